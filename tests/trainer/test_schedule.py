"""Batches out of streams: never a sample off what was wanted, tails accounted for, the same from any point on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dataengine.errors import ConfigError
from dataengine.trainer.apportion import apportion, whole_weights
from dataengine.trainer.schedule import Group, Point, Schedule, Weights

WEIGHTS = st.lists(st.floats(0, 1e3), min_size=2, max_size=12).filter(lambda weights: sum(weights) > 0.1)


def mixture(weights: list[float], batch: int) -> Schedule:
    """One group of streams of a thousand rows."""
    numbers = tuple(range(len(weights)))
    whole = Weights((1,), whole_weights(weights))
    return Schedule((Group(numbers, batch),), (1000,) * len(weights), whole, 1000 * len(weights))


def errors(schedule: Schedule, point: Point, num_steps: int, start: np.ndarray | None = None) -> tuple[float, Point]:
    """The largest |drawn - wanted| of any stream after any of the steps, in samples."""
    weights = np.array(schedule.weights.streams, dtype=np.int64)
    unit, wanted = int(weights.sum()), np.zeros(len(weights), dtype=object)
    first = np.array(point.cursors)
    worst = 0.0
    for _ in range(num_steps):
        ticket, point = schedule.step(point)
        wanted = wanted + ticket.size * weights.astype(object)
        off = (np.array(point.cursors) - first).astype(object) * unit - wanted
        worst = max(worst, *(abs(float(number) / unit) for number in off))
    return worst, point


@given(WEIGHTS, st.integers(1, 600))
@settings(max_examples=60)
def test_no_stream_is_ever_a_sample_off(weights: list[float], batch: int) -> None:
    worst, _ = errors(mixture(weights, batch), mixture(weights, batch).start(), 150)
    assert worst < 1


@given(st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 50.0]), min_size=3, max_size=40).filter(any), st.integers(1, 9))
@settings(max_examples=60)
def test_many_small_streams_are_served_in_time(weights: list[float], batch: int) -> None:
    worst, _ = errors(mixture(weights, batch), mixture(weights, batch).start(), 300)
    assert worst < 1


@given(st.lists(WEIGHTS, min_size=2, max_size=5), st.integers(1, 600))
@settings(max_examples=60)
def test_changes_of_weights_keep_the_account(changes: list[list[float]], batch: int) -> None:
    """What streams are owed sums to nothing, batches are full, and no stream is ever two samples off."""
    width = min(map(len, changes))
    changes = [weights[:width] for weights in changes if sum(weights[:width]) > 0]
    if not changes:
        return
    schedule = mixture(changes[0], batch)
    point = schedule.start()
    for weights in changes:
        schedule, point = schedule.reweighted(Weights((1,), whole_weights(weights)), point)
        unit = sum(schedule.weights.streams)
        for _ in range(20):
            ticket, point = schedule.step(point)
            assert ticket.size == batch
            assert min(ticket.counts) >= 0
            assert sum(point.owed_streams) == 0
            assert max(abs(owed) for owed in point.owed_streams) < 2 * unit


@pytest.mark.slow
def test_a_hundred_thousand_steps_with_two_changes() -> None:
    mixtures = [[0.3, 0.5, 0.2], [0.6, 0.1, 0.3], [0.25, 0.25, 0.5]]
    schedule = mixture(mixtures[0], 512)
    point, wanted, worst = schedule.start(), np.zeros(3), 0.0
    for number in range(100_000):
        if number in (30_000, 70_001):
            weights = whole_weights(mixtures[1 if number == 30_000 else 2])
            schedule, point = schedule.reweighted(Weights((1,), weights), point)
        _, point = schedule.step(point)
        share = np.array(schedule.weights.streams, dtype=np.float64)
        wanted += 512 * share / share.sum()
        worst = max(worst, float(np.abs(np.array(point.cursors) - wanted).max()))
    assert worst < 1


def test_repeats_end_exactly() -> None:
    """Whole weights are exact: after an epoch each stream was drawn its own number of times."""
    draws = (300, 17, 1000)
    schedule = Schedule((Group((0, 1, 2), 1317),), (150, 34, 1000), Weights((1,), whole_weights(draws)), 1317)
    _, point = schedule.step(schedule.start())
    assert point.cursors == draws
    small = Schedule((Group((0, 1, 2), 3),), (150, 34, 1000), Weights((1,), whole_weights(draws)), 1317)
    point = small.start()
    while point.drawn < 1317:
        _, point = small.step(point)
    assert point.cursors == draws
    assert point.owed_streams == (0, 0, 0)


def test_groups_take_turns_by_weight() -> None:
    groups = (Group((0,), 8), Group((1,), 8), Group((2,), 4))
    schedule = Schedule(groups, (10, 10, 10), Weights(whole_weights([5, 3, 2]), (1, 1, 1)), 1000)
    point, turns = schedule.start(), []
    for _ in range(100):
        ticket, point = schedule.step(point)
        assert ticket.size == groups[ticket.group].batch
        turns.append(ticket.group)
    for steps in range(1, 101):
        for group, share in enumerate((0.5, 0.3, 0.2)):
            assert abs(turns[:steps].count(group) - steps * share) < 1


def single(num_rows: int, batch: int, tail: str) -> Schedule:
    return Schedule((Group((0,), batch),), (num_rows,), Weights((1,), (2**32,)), num_rows, tail)  # type: ignore[arg-type]


@given(st.integers(1, 200), st.integers(1, 60), st.sampled_from(["carry", "drop", "pad"]))
@settings(max_examples=100)
def test_tails(num_rows: int, batch: int, tail: str) -> None:
    if tail == "drop" and num_rows < batch:
        with pytest.raises(ConfigError, match="every sample would be dropped"):
            single(num_rows, batch, tail)
        return
    assume(tail != "carry" or num_rows >= batch)  # else a batch holds several epochs, and some begin none
    schedule = single(num_rows, batch, tail)
    point, drawn = schedule.start(), []
    for epoch in range(3):
        assert schedule.at_epoch(epoch) == point
        steps = 0
        left = schedule.steps_left(point)
        while schedule.epoch(point) == epoch:
            ticket, point = schedule.step(point)
            assert ticket.size == batch
            drawn += range(ticket.first[0], ticket.first[0] + ticket.counts[0])
            steps += 1
        assert steps == left
    if tail == "drop":
        whole = num_rows // batch * batch
        assert drawn == [epoch * num_rows + place for epoch in range(3) for place in range(whole)]
    else:
        assert drawn == list(range(len(drawn)))
        assert len(drawn) == 3 * num_rows if tail == "pad" else 3 * num_rows <= len(drawn) < 3 * num_rows + batch


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 90), st.integers(0, 6))
@settings(max_examples=60)
def test_the_steps_of_an_epoch_are_counted_without_taking_those_before(rows: list[int], batch: int, epoch: int) -> None:
    numbers = tuple(range(len(rows)))
    weights = Weights((1,), whole_weights(rows))
    schedule = Schedule((Group(numbers, batch),), tuple(rows), weights, sum(rows))
    assert schedule.steps_of(epoch) == schedule.steps_left(schedule.at_epoch(epoch))
    assert schedule.steps_of(10**9) >= 1  # at once


def test_only_one_stream_has_a_tail() -> None:
    schedule = mixture([1, 1], 4)
    with pytest.raises(ConfigError, match="only tail='carry' is exact"):
        Schedule(schedule.groups, schedule.num_rows, schedule.weights, 2000, "pad")


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0], [float("inf")]])
def test_weights_that_are_none(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        whole_weights(weights)


def test_whole_weights_keep_ratios() -> None:
    assert whole_weights([3, 1]) == (3 << 30, 1 << 30)
    halves = whole_weights([0.5, 0.5])
    assert halves[0] == halves[1]
    given, owed = apportion(4, np.array(whole_weights([3, 1])), np.zeros(2, np.int64))
    assert (given.tolist(), owed.tolist()) == ([3, 1], [0, 0])
