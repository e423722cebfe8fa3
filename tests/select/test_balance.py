from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.select import BalanceConfig
from dataengine.errors import ConfigError
from dataengine.keys import url_keys
from dataengine.select.balance import apportion, draw_rows

COUNTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 50), min_size=1)
WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.floats(0, 10), max_size=4)


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
        assert largest < target or largest == 0
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
            draw_rows(pa.array(keys, pa.string()), num_draws, 3, seed=1)
        return
    repeats, _ = draw_rows(pa.array(keys, pa.string()), num_draws, 3, seed=1)
    assert repeats.sum() == num_draws
    assert not num_rows or np.ptp(repeats) <= 1
    shuffled = list(range(num_rows))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again, _ = draw_rows(pa.array([keys[row] for row in shuffled], pa.string()), num_draws, 3, seed=1)
    assert again.tolist() == repeats[shuffled].tolist()


def test_the_rows_of_smallest_number_are_drawn() -> None:
    keys = pa.array(url_keys("s", [str(row) for row in range(100)]))
    repeats, numbers = draw_rows(keys, 30, 1, seed=9)
    assert numbers[repeats == 1].max() < numbers[repeats == 0].min()
    fewer, _ = draw_rows(keys, 20, 1, seed=9)
    assert (fewer <= repeats).all(), "a smaller target takes a subset"
