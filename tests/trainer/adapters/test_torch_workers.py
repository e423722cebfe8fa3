"""Workers agree on where an iteration begins, whenever each of them begins, ends or leaves it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from dataengine.trainer.adapters.torch_workers import SharedPoint, Turn
from dataengine.trainer.schedule import Point


def point(step: int) -> Point:
    return Point(step, 4 * step, (4 * step,), (0,), (0,))


def crew(process: int, seed: int = 7, workers: int = 2) -> list[Turn]:
    """The first turns of workers, of which the first is the parent's `process`-th process."""
    return [Turn((1, seed), worker, workers, process + worker, 1) for worker in range(workers)]


def next_of(turn: Turn) -> Turn:
    return replace(turn, number=turn.number + 1)


@pytest.fixture
def shared() -> SharedPoint:
    return SharedPoint(point(0))


def test_the_last_to_finish_moves_the_point(shared: SharedPoint) -> None:
    left, right = crew(1)
    assert shared.begin(left) == point(0)
    shared.finish(left, point(5))
    assert shared.begin(right) == shared.point == point(0)
    shared.finish(right, point(5))
    assert shared.point == shared.begin(next_of(left)) == shared.begin(next_of(right)) == point(5)


def test_what_finishes_after_others_began_anew_moves_nothing(shared: SharedPoint) -> None:
    left, right = crew(1)
    shared.begin(left), shared.begin(right)
    shared.finish(left, point(5))
    assert shared.begin(next_of(left)) == point(0)
    shared.finish(right, point(5))
    assert shared.begin(next_of(right)) == point(0)
    for turn in (left, right):
        shared.finish(next_of(turn), point(5))
    assert shared.point == point(5)


def test_a_worker_that_begins_late_disturbs_its_crew_in_no_later_iteration(shared: SharedPoint) -> None:
    left, right = crew(1)
    shared.begin(left), shared.begin(next_of(left)), shared.begin(right)
    shared.finish(next_of(left), point(5))
    shared.begin(next_of(right))
    shared.finish(next_of(right), point(5))
    assert shared.point == point(5)


@pytest.mark.parametrize("seed", [7, 8])
def test_crews_are_told_apart(seed: int, shared: SharedPoint) -> None:
    """Also where seeds are the same, and workers of a crew that was left are the last to begin or finish."""
    (old_left, old_right), (left, right) = crew(1), crew(3, seed)
    shared.begin(old_left)
    shared.finish(old_left, point(5))
    assert shared.begin(left) == point(0)
    shared.finish(left, point(5))
    assert shared.begin(old_right) == point(0)
    shared.finish(old_right, point(5))
    assert shared.point == shared.begin(right) == point(0)
    shared.finish(right, point(5))
    assert shared.point == point(5)


def test_a_crew_that_was_kept_comes_again_after_another(shared: SharedPoint) -> None:
    for turn in (*crew(1), *crew(3, 8), *map(next_of, crew(1))):
        shared.begin(turn)
    for turn in map(next_of, crew(1)):
        shared.finish(turn, point(5))
    assert shared.point == point(5)


def test_where_the_parent_goes_stays(shared: SharedPoint) -> None:
    for turn in crew(1):
        shared.begin(turn)
    shared.go(point(9))
    for turn in crew(1):
        shared.finish(turn, point(5))
    assert [shared.begin(next_of(turn)) for turn in crew(1)] == [point(9)] * 2


def test_an_iteration_that_was_resumed_is_begun_at_the_least_of_its_parts(shared: SharedPoint) -> None:
    for turn, resumed in zip(crew(1), (point(8), point(7)), strict=True):
        shared.begin(turn, resumed)
    assert shared.point == point(7)


def test_copies_have_their_own(shared: SharedPoint) -> None:
    copies = copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))
    shared.go(point(3))
    assert [one.point for one in copies] == [point(0)] * 2


def test_points_of_any_size_are_kept(shared: SharedPoint) -> None:
    wide = Point(2, 2**40, tuple(range(10_000)), (0,), (0,) * 10_000)
    shared.go(wide)
    assert shared.point == wide
    shared.go(point(1))
    assert shared.point == point(1)
