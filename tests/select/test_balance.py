from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.select import BalanceConfig
from dataengine.errors import ConfigError
from dataengine.keys import url_keys
from dataengine.select.balance import apportion, check_bounds, draw_rows
from dataengine.select.keyed import Keys

COUNTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 50), min_size=1)
WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 10), max_size=4)


def keys_of(texts: list[str]) -> Keys:
    return Keys.parse(pa.array(texts, pa.string()))


def test_without_a_target_every_survivor_is_drawn_once() -> None:
    mixture = apportion({"b": 3, "a": 0}, BalanceConfig(max_repeat=4))
    assert mixture.realised == mixture.asked == mixture.available == {"a": 0, "b": 3}


@given(COUNTS, WEIGHTS, st.integers(1, 200), st.integers(1, 5))
def test_quotas_hit_the_target_and_stay_within_a_draw_of_the_weights(
    counts: dict[str, int], weights: dict[str, float], target: int, max_repeat: int
) -> None:
    config = BalanceConfig(target=target, weights=weights, max_repeat=max_repeat, if_short="all")
    parts = {name: weights.get(name, 0) for name in counts} if weights else counts
    if not sum(parts.values()):
        if weights:
            with pytest.raises(ConfigError, match="every weight is 0"):
                apportion(counts, config)
        else:  # no survivors, and all of them are wanted: an empty dataset
            assert apportion(counts, config).realised == dict.fromkeys(counts, 0)
        return
    mixture = apportion(counts, config)
    assert sum(mixture.asked.values()) == target
    for name, count in counts.items():
        assert abs(mixture.asked[name] - target * parts[name] / sum(parts.values())) <= 1
        assert mixture.realised[name] == min(mixture.asked[name], count * max_repeat)


@given(COUNTS, WEIGHTS, st.integers(1, 200), st.integers(1, 5))
def test_a_shortage_names_the_largest_target_that_fits(
    counts: dict[str, int], weights: dict[str, float], target: int, max_repeat: int
) -> None:
    config = BalanceConfig(target=target, weights=weights, max_repeat=max_repeat)
    try:
        mixture = apportion(counts, config)
    except ConfigError as error:
        if "nothing to draw" in str(error):
            return
        largest = int(str(error).partition("can fill is ")[2].partition(",")[0])
        assert largest != target  # more may fit where this does not: rounding by largest remainder is not monotone
        if largest:
            fits = apportion(counts, config.model_copy(update={"target": largest}))
            assert fits.realised == fits.asked
    else:
        assert sum(mixture.realised.values()) == target


def test_weights_want_a_target() -> None:
    with pytest.raises(ConfigError, match="fill is 20"):
        apportion({"a": 10, "b": 99}, BalanceConfig(weights={"a": 1, "b": 1}))


@given(st.integers(0, 40), st.integers(0, 120), st.randoms())
def test_draws_are_even_and_do_not_depend_on_order(num_rows: int, num_draws: int, random: object) -> None:
    keys = url_keys("s", [str(row) for row in range(num_rows)])
    if num_draws > 3 * num_rows:
        with pytest.raises(ValueError, match="need more than 3 repeats"):
            draw_rows(keys_of(keys), num_draws, 3, seed=1)
        return
    repeats, _ = draw_rows(keys_of(keys), num_draws, 3, seed=1)
    assert repeats.sum() == num_draws
    assert not num_rows or np.ptp(repeats) <= 1
    shuffled = list(range(num_rows))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again, _ = draw_rows(keys_of([keys[row] for row in shuffled]), num_draws, 3, seed=1)
    assert again.tolist() == repeats[shuffled].tolist()


def test_the_rows_of_smallest_number_are_drawn() -> None:
    keys = keys_of(url_keys("s", [str(row) for row in range(100)]))
    repeats, numbers = draw_rows(keys, 30, 1, seed=9)
    assert numbers[repeats == 1].max() < numbers[repeats == 0].min()
    fewer, _ = draw_rows(keys, 20, 1, seed=9)
    assert (fewer <= repeats).all(), "a smaller target takes a subset"


@given(
    COUNTS,
    st.floats(0.3, 20),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 60), max_size=3),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 60), max_size=3),
    st.integers(1, 200),
)
def test_bounds_hold_and_what_is_between_them_is_in_proportion(
    counts: dict[str, int], temperature: float, least: dict[str, int], most: dict[str, int], target: int
) -> None:
    most = {name: max(number, least.get(name, 0)) for name, number in most.items()}
    config = BalanceConfig(target=target, temperature=temperature, min=least, max=most, if_short="all")
    if not any(counts.values()):
        return
    low = sum(least.get(name, 0) for name in counts)
    open_ended = any(count and name not in most for name, count in counts.items())
    high = sum(most.get(name, 0) if count else least.get(name, 0) for name, count in counts.items())
    if target < low or (not open_ended and target > high):
        with pytest.raises(ConfigError, match="do not fit"):
            apportion(counts, config)
        return
    check_bounds(counts, config)
    asked = apportion(counts, config).asked
    assert sum(asked.values()) == target
    assert all(least.get(name, 0) <= number <= most.get(name, target) for name, number in asked.items())
    shares = {name: count ** (1 / temperature) for name, count in counts.items()}
    free = [name for name in counts if least.get(name, 0) < asked[name] < most.get(name, target + 1)]
    for one in free:
        for other in free:
            assert abs(asked[one] - asked[other] * shares[one] / shares[other]) <= 1 + shares[one] / shares[other]


def test_temperature_evens_sources_out() -> None:
    asked = apportion({"a": 10_000, "b": 100}, BalanceConfig(target=110, temperature=2.0, max_repeat=9)).asked
    assert asked == {"a": 100, "b": 10}


def test_bounds_that_leave_no_room_say_what_is_possible() -> None:
    config = BalanceConfig(target=100, min={"a": 5}, max={"a": 20, "b": 30})
    with pytest.raises(ConfigError, match="which allow from 5 to 50"):
        apportion({"a": 90, "b": 90}, config)
    with pytest.raises(ConfigError, match="which allow at least 150"):
        apportion({"a": 90, "b": 90}, BalanceConfig(target=100, min={"a": 150}))


def test_bounds_that_no_survivors_could_meet_are_refused_beforehand() -> None:
    config = BalanceConfig(target=100, min={"a": 5}, max={"a": 20, "b": 30})
    check_bounds("abc", config)
    with pytest.raises(ConfigError, match="which allow from 5 to 50"):
        check_bounds("ab", config)
    weighted = {"weights": {"a": 1}, "max": {"a": 20}}
    with pytest.raises(ConfigError, match="which allow from 0 to 20"):
        check_bounds("abc", BalanceConfig(target=100, **weighted))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="which allow at least 101"):
        check_bounds("abc", BalanceConfig(target=100, min={"c": 101}))


def test_bounds_without_a_target_take_every_survivor_within_them() -> None:
    config = BalanceConfig(min={"a": 8}, max={"b": 3}, max_repeat=2)
    assert apportion({"a": 5, "b": 9, "c": 4}, config).realised == {"a": 8, "b": 3, "c": 4}
    with pytest.raises(ConfigError, match=r"a can give 5 of 8 draws .* lower select\.balance\.min"):
        apportion({"a": 5, "b": 9}, BalanceConfig(min={"a": 8}))
