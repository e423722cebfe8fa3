"""A crash before or after any single operation on the store: the next run ends with the same content."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataengine.engine.board import Board
from dataengine.engine.runner import Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.storage.rundir import RunDirectory
from dataengine.storage.store import Root
from tests.crashes import Clock, Crash, clock
from tests.engine.steps import Double, Read, Sum
from tests.engine.test_runner import MACHINES, _Silent, recipes

__all__ = ["clock"]
STEPS = (Read((1, 2, 3)), Double(), Sum())


def run(folder: Path) -> dict[str, str]:
    """Drive the toy pipeline to its end; the digest of every part."""
    board = Board(RunDirectory(Root(str(folder)), "run"), STEPS, recipes(STEPS), store=True)
    Runner(board, lambda: SerialExecutor(MACHINES), _Silent(), stall_seconds=60).run()
    return {f"{name} {commit.part}": commit.digest for name in board.states for commit in board.commits(name)}


def test_crash_at_every_store_operation(tmp_path: Path, clock: Clock) -> None:
    wanted = run(tmp_path / "undisturbed")
    num_operations = clock.now
    assert num_operations > 50
    for crash_at in range(1, num_operations + 1):
        folder = tmp_path / str(crash_at)
        clock.reset(crash_at)
        with pytest.raises(Crash):
            run(folder)
        clock.reset()
        assert run(folder) == wanted, f"crash at operation {crash_at}"


def test_crash_during_every_second_run(tmp_path: Path, clock: Clock) -> None:
    """Crashed again and again, each time a little later, one folder still ends as the undisturbed one."""
    wanted = run(tmp_path / "undisturbed")
    num_crashes = 0
    for crash_at in range(3, 200, 5):
        clock.reset(crash_at)
        try:
            found = run(tmp_path / "crashed")
            break
        except Crash:
            num_crashes += 1
    assert num_crashes > 2
    assert found == wanted
