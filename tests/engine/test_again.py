"""Doing parts of a finished step again: what stands on them follows, and an interruption costs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dataengine.contract import AGAIN, Inputs, Machine, Outputs
from dataengine.engine.board import Board, Job
from dataengine.engine.runner import Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.errors import InputError
from dataengine.storage.rundir import Part
from dataengine.storage.tables import read_table
from tests.engine.steps import NUMBERS, Double, Read, Sum
from tests.engine.test_runner import MACHINES, drive, total


class _Silent:
    def update(self, board: Board, running: Iterable[Job]) -> None:
        pass


@dataclass(frozen=True)
class Raise(Double):
    """The same step on another day: adds to what it made the last time."""

    plus: int = 0
    broken_part: str = ""

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        if part.name == self.broken_part:
            raise InputError("not today")
        last = read_table(inputs.root, inputs.by_part[AGAIN].objects["numbers"].path, NUMBERS)
        number = last.column("number")[0].as_py() + self.plus
        outputs.table("numbers", NUMBERS, NUMBERS.table({"number": [number]}))


def _serial() -> SerialExecutor:
    return SerialExecutor(MACHINES)


def _again(folder: Path, step: Raise, parts: list[str]) -> int:
    board, _ = drive(folder, [Read((1, 2, 3)), Double()], _serial)
    board.repeat(step, parts, f"plus {step.plus}")
    return Runner(board, _serial, _Silent(), stall_seconds=60).run()


def test_only_what_stands_on_a_repeated_part_is_redone(tmp_path: Path) -> None:
    steps = [Read((1, 2, 3)), Double(), Sum()]
    drive(tmp_path, steps, _serial)
    assert _again(tmp_path, Raise(plus=100), ["part-000001"]) == 1
    board, num_run = drive(tmp_path, steps, _serial)
    assert (total(board), num_run) == (112, 1)
    assert drive(tmp_path, steps, lambda: pytest.fail("nothing is left to do"))[1] == 0


def test_passes_build_on_each_other(tmp_path: Path) -> None:
    steps = [Read((1, 2, 3)), Double(), Sum()]
    drive(tmp_path, steps, _serial)
    _again(tmp_path, Raise(plus=100), ["part-000001"])
    _again(tmp_path, Raise(plus=1000), ["part-000001", "part-000002"])
    assert total(drive(tmp_path, steps, _serial)[0]) == 12 + 100 + 2000


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path: Path) -> None:
    steps = [Read((1, 2, 3)), Double(), Sum()]
    drive(tmp_path, steps, _serial)
    parts = ["part-000000", "part-000001", "part-000002"]
    with pytest.raises(InputError, match="not today"):
        _again(tmp_path, Raise(plus=100, broken_part="part-000002"), parts)
    assert _again(tmp_path, Raise(plus=100), parts) == 1
    assert total(drive(tmp_path, steps, _serial)[0]) == 12 + 300


def test_changed_inputs_leave_the_repeated_commit_behind(tmp_path: Path) -> None:
    drive(tmp_path, [Read((1, 2, 3)), Double(), Sum()], _serial)
    _again(tmp_path, Raise(plus=100), ["part-000001"])
    assert total(drive(tmp_path, [Read((1, 5, 3)), Double(), Sum()], _serial)[0]) == 18
    assert total(drive(tmp_path, [Read((1, 2, 3)), Double(), Sum()], _serial)[0]) == 112


def test_another_question_is_not_answered_by_an_interrupted_pass(tmp_path: Path) -> None:
    steps = [Read((1, 2, 3)), Double(), Sum()]
    drive(tmp_path, steps, _serial)
    parts = ["part-000000", "part-000001"]
    with pytest.raises(InputError, match="not today"):
        _again(tmp_path, Raise(plus=100, broken_part="part-000001"), parts)
    assert _again(tmp_path, Raise(plus=1000), parts) == 2
    assert total(drive(tmp_path, steps, _serial)[0]) == 12 + 2000
