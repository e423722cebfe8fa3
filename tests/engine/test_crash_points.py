"""A crash before or after any single operation on the store: the next run ends with the same content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dataengine.engine.board import Board
from dataengine.engine.runner import Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.storage import store
from dataengine.storage.rundir import RunDirectory
from dataengine.storage.store import Root
from tests.engine.steps import Double, Read, Sum
from tests.engine.test_runner import MACHINES, _Silent, recipes

STEPS = (Read((1, 2, 3)), Double(), Sum())


class Crash(BaseException):
    """The process is gone; nothing may catch it."""


class CrashingBackend:
    """Passes operations on, and crashes before or after the chosen one."""

    def __init__(self, backend: Any, clock: dict[str, int]) -> None:
        self._backend, self._clock = backend, clock

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._backend, name)
        if name == "local_path":
            return operation

        def call(*arguments: Any) -> Any:
            self._tick()
            result = operation(*arguments)
            if name != "writer":
                self._tick()
                return result
            return self._writer(result)

        return call

    @contextmanager
    def _writer(self, inner: Any) -> Iterator[Any]:
        with inner as stream:
            yield stream
        self._tick()

    def _tick(self) -> None:
        self._clock["now"] += 1
        if self._clock["now"] == self._clock["crash_at"]:
            raise Crash


def run(folder: Path) -> dict[str, str]:
    """Drive the toy pipeline to its end; the digest of every part."""
    board = Board(RunDirectory(Root(str(folder)), "run"), STEPS, recipes(STEPS), store=True)
    Runner(board, lambda: SerialExecutor(MACHINES), _Silent(), stall_seconds=60).run()
    return {f"{name} {commit.part}": commit.digest for name in board.states for commit in board.commits(name)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts store operations; crashes when `now` reaches `crash_at`."""
    ticking = {"now": 0, "crash_at": -1}
    real = store._backend
    monkeypatch.setattr(store, "_backend", lambda *arguments: CrashingBackend(real(*arguments), ticking))
    return ticking


def test_crash_at_every_store_operation(tmp_path: Path, clock: dict[str, int]) -> None:
    wanted = run(tmp_path / "undisturbed")
    num_operations = clock["now"]
    assert num_operations > 50
    for crash_at in range(1, num_operations + 1):
        folder = tmp_path / str(crash_at)
        clock.update(now=0, crash_at=crash_at)
        with pytest.raises(Crash):
            run(folder)
        clock.update(now=0, crash_at=-1)
        assert run(folder) == wanted, f"crash at operation {crash_at}"


def test_crash_during_every_second_run(tmp_path: Path, clock: dict[str, int]) -> None:
    """Crashed again and again, each time a little later, one folder still ends as the undisturbed one."""
    wanted = run(tmp_path / "undisturbed")
    num_crashes = 0
    for crash_at in range(3, 200, 5):
        clock.update(now=0, crash_at=crash_at)
        try:
            found = run(tmp_path / "crashed")
            break
        except Crash:
            num_crashes += 1
    assert num_crashes > 2
    assert found == wanted
