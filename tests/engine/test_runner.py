"""The driver, with both executors: what runs, what is reused, and what becomes of faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dataengine.contract import Machine, Step
from dataengine.engine.board import Board, Job
from dataengine.engine.runner import Executor, Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.errors import InputError, PartError, TryAgainError
from dataengine.storage.rundir import RunDirectory, digest
from dataengine.storage.store import Root
from tests.engine.steps import Double, Read, StatefulDouble, Sum, Together


def now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


STAGES = ("sources", "download", "score", "select")
MACHINES = {stage: Machine(0.5, 0, 2, {}, now) for stage in STAGES}


class _Silent:
    def update(self, board: Board, running: Iterable[Job]) -> None:
        pass


@pytest.fixture(params=["serial", "ray"])
def start(request: pytest.FixtureRequest) -> Callable[[], Executor]:
    if request.param == "serial":
        return lambda: SerialExecutor(MACHINES)
    request.getfixturevalue("ray_cluster")
    from dataengine.engine.cluster import RayExecutor

    return lambda: RayExecutor(MACHINES, task_retries=2)


def recipes(steps: Sequence[Step]) -> dict[str, str]:
    found: dict[str, str] = {}
    for step in steps:
        below = {need.step: found[need.step] for need in step.needs}
        found[step.name] = digest({"identity": dict(step.identity()), "needs": below, "unit": step.name})
    return found


def drive(folder: Path, steps: Sequence[Step], start: Callable[[], Executor]) -> tuple[Board, int]:
    board = Board(RunDirectory(Root(str(folder)), "run"), steps, recipes(steps), store=True)
    return board, Runner(board, start, _Silent(), stall_seconds=60).run()


def total(board: Board) -> int:
    (commit,) = board.commits("select/sum")
    return int(commit.facts["total"])


def test_every_part_runs_once_and_then_never_again(tmp_path: Path, start: Callable[[], Executor]) -> None:
    steps = [Read((1, 2, 3)), Double(), Sum()]
    board, num_run = drive(tmp_path, steps, start)
    assert (total(board), num_run) == (12, 7)
    again, num_run = drive(tmp_path, steps, lambda: pytest.fail("nothing is left to do"))
    assert (total(again), num_run) == (12, 0)


def test_changed_part_redoes_only_what_stands_on_it(tmp_path: Path, start: Callable[[], Executor]) -> None:
    drive(tmp_path, [Read((1, 2, 3)), Double(), Sum()], start)
    board, num_run = drive(tmp_path, [Read((1, 7, 3)), Double(), Sum()], start)
    assert (total(board), num_run) == (22, 3)
    board, num_run = drive(tmp_path, [Read((1, 2, 3)), Double(), Sum()], start)
    assert (total(board), num_run) == (12, 0)


def test_added_part_runs_alone(tmp_path: Path, start: Callable[[], Executor]) -> None:
    drive(tmp_path, [Read((1, 2)), Double(), Sum()], start)
    board, num_run = drive(tmp_path, [Read((1, 2, 5)), Double(), Sum()], start)
    assert (total(board), num_run) == (16, 3)


def test_changed_config_goes_to_another_folder(tmp_path: Path, start: Callable[[], Executor]) -> None:
    drive(tmp_path, [Read((1, 2)), Double(), Sum()], start)
    board, num_run = drive(tmp_path, [Read((1, 2)), Double(factor=10), Sum()], start)
    assert (total(board), num_run) == (30, 3)
    assert len({path.name for path in (tmp_path / "runs/run/download").iterdir()}) == 2


def test_no_parts_is_legal(tmp_path: Path, start: Callable[[], Executor]) -> None:
    board, num_run = drive(tmp_path, [Read(()), Double(), Sum()], start)
    assert (total(board), num_run) == (0, 1)


def test_actors_do_the_same_work(tmp_path: Path, start: Callable[[], Executor]) -> None:
    board, _ = drive(tmp_path, [Read((1, 2, 3, 4)), StatefulDouble(), Sum("score/doubled")], start)
    assert total(board) == 20


def test_parts_of_a_bundle_go_together_and_each_is_committed(tmp_path: Path, start: Callable[[], Executor]) -> None:
    numbers = (1, 2, 3, 4, 5)
    steps = [
        Read(numbers),
        Together(factor=2),
        Together(factor=3),
        Sum("download/times2"),
        Sum("download/times3", "sum3"),
    ]
    board, num_run = drive(tmp_path, steps, start)
    assert num_run == 5 + 10 + 2
    assert [commit.facts["total"] for commit in board.commits("select/sum")] == [30]
    assert [commit.facts["total"] for commit in board.commits("select/sum3")] == [45]
    for name in ("download/times2", "download/times3"):
        assert [commit.metrics["together"] for commit in board.commits(name)] == [2] * 5
    more = [*steps, Together(factor=7), Sum("download/times7", "sum7")]
    board, num_run = drive(tmp_path, more, start)
    assert num_run == 5 + 1
    assert {commit.metrics["together"] for commit in board.commits("download/times7")} == {1}


def test_users_fault_stops_the_run_with_its_place_and_loses_nothing(
    tmp_path: Path, start: Callable[[], Executor]
) -> None:
    faulty = [Read((1, 3)), Double("input", str(tmp_path / "marker")), Sum()]
    with pytest.raises(InputError, match="download/doubled part-000001: the number 3"):
        drive(tmp_path, faulty, start)
    board, num_run = drive(tmp_path, faulty, start)
    assert total(board) == 8
    assert num_run <= 3


def test_fault_of_the_program_carries_its_traceback(tmp_path: Path, start: Callable[[], Executor]) -> None:
    with pytest.raises(PartError, match=r"(?s)download/doubled part-000000.*_misbehave.*ZeroDivisionError: on purpose"):
        drive(tmp_path, [Read((3,)), Double("bug"), Sum()], start)


def test_part_whose_worker_dies_is_tried_again(tmp_path: Path, ray_cluster: None) -> None:
    from dataengine.engine.cluster import RayExecutor

    steps = [Read((1, 3)), Double("die", str(tmp_path / "marker")), Sum()]
    board, _ = drive(tmp_path, steps, lambda: RayExecutor(MACHINES, task_retries=1))
    assert total(board) == 8


@pytest.mark.parametrize("step", [Double("die"), StatefulDouble("die")])
def test_part_whose_workers_always_die_ends_the_run(tmp_path: Path, ray_cluster: None, step: Double) -> None:
    from dataengine.engine.cluster import RayExecutor

    with pytest.raises(TryAgainError, match=r"doubled part-000000: its worker died 2 times"):
        drive(tmp_path, [Read((3,)), step], lambda: RayExecutor(MACHINES, task_retries=1))


def test_damaged_run_directory_is_named(tmp_path: Path, start: Callable[[], Executor]) -> None:
    from dataengine.errors import CorruptObject

    drive(tmp_path, [Read((1,)), Double(), Sum()], start)
    (commit,) = (tmp_path / "runs/run/download").rglob("commits/part-000000.json")
    (complete,) = (tmp_path / "runs/run/download").rglob("complete.json")
    complete.unlink()
    commit.write_bytes(b"\x00" * 10)
    with pytest.raises(CorruptObject, match=r"commits/part-000000\.json"):
        drive(tmp_path, [Read((1,)), Double(), Sum()], start)


def test_survey_writes_nothing_and_sees_what_is_missing(tmp_path: Path, start: Callable[[], Executor]) -> None:
    steps = [Read((1, 2)), Double(), Sum()]
    drive(tmp_path, steps[:2], start)
    before = sorted(path for path in tmp_path.rglob("*"))
    board = Board(RunDirectory(Root(str(tmp_path)), "run"), steps, recipes(steps), store=False)
    board.survey()
    assert {name: len(state.done) for name, state in board.states.items()} == {
        "sources/numbers": 2, "download/doubled": 2, "select/sum": 0,
    }  # fmt: skip
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_resources_that_no_machine_has_are_refused_at_once(ray_cluster: None) -> None:
    from dataengine.engine.cluster import Wanted, await_resources
    from dataengine.errors import ConfigError

    with pytest.raises(ConfigError, match=r"execution\.score\.num_gpus: 1 wanted, the cluster has 0"):
        await_resources({"score": Wanted(1.0, 1.0)}, joined=False, wait_seconds=60)
    with pytest.raises(ConfigError, match=r"execution\.score\.min_workers: 3 of 1 CPU wanted, the cluster has 2"):
        await_resources({"score": Wanted(1.0, 0.0, min_workers=3)}, joined=False, wait_seconds=60)
    assert await_resources({"score": Wanted(1.0, 0.0, min_workers=2)}, joined=False, wait_seconds=60)["CPU"] == 2


@pytest.mark.parametrize(
    ("resources", "wanted", "stateful", "count"),
    [
        ({"CPU": 8.0}, (1.0, 0.0, 1, None), False, 8),
        ({"CPU": 8.0}, (0.5, 0.0, 1, None), False, 16),
        ({"CPU": 8.0}, (1.0, 0.0, 1, 3), False, 3),
        ({"CPU": 8.0}, (2.0, 0.0, 1, None), True, 2),
        ({"CPU": 64.0, "GPU": 4.0}, (4.0, 0.5, 1, None), True, 8),
        ({"CPU": 64.0, "GPU": 0.8}, (1.0, 0.1, 1, None), True, 8),
        ({"CPU": 8.0}, (1.0, 0.0, 6, 8), True, 6),
        ({"CPU": 1.0}, (1.0, 0.0, 1, None), True, 1),
    ],
)
def test_worker_counts_fit_the_cluster(
    resources: dict[str, float], wanted: tuple[float, float, int, int | None], stateful: bool, count: int
) -> None:
    from dataengine.engine.cluster import Wanted, worker_counts

    assert worker_counts(resources, {"score": Wanted(*wanted)}, lambda _: stateful) == {"score": count}


class _Slow:
    """An executor whose one part never ends."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell
        self.num_waits = 0
        self.is_busy = False

    def has_room(self, stage: str) -> bool:
        return not self.is_busy

    def submit(self, job: Job) -> None:
        self.is_busy = True

    def wait(self, seconds: float) -> None:
        self.num_waits += 1
        time.sleep(0.05)
        if self.num_waits <= 20:
            self.tell()

    def retire(self, stage: str) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_part_that_tells_of_progress_is_not_stuck(tmp_path: Path) -> None:
    """A polite download may take hours for a part; only when it falls silent is it given up."""
    heard = [0.0]
    executor = _Slow(lambda: heard.__setitem__(0, time.monotonic()))
    steps = [Read((1,))]
    board = Board(RunDirectory(Root(str(tmp_path)), "run"), steps, recipes(steps), store=True)
    with pytest.raises(TryAgainError, match="nor did one get on"):
        Runner(board, lambda: executor, _Silent(), 0.3, lambda: heard[0]).run()
    assert executor.num_waits > 20
