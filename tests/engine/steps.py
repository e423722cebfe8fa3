"""Toy steps for the engine's tests: numbers in files, doubled part by part, then summed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step, Work
from dataengine.errors import InputError
from dataengine.schemas import TableSchema, column
from dataengine.storage.rundir import Part, Plan

NUMBERS = TableSchema("numbers", pa.schema([column("number", pa.int64(), "a number")]), sorted_by=())


@dataclass(frozen=True)
class Read(Step):
    """One part per number in `content`; parts may be none."""

    stage: ClassVar[str] = "sources"
    version: ClassVar[int] = 1
    content: tuple[int, ...]

    @property
    def unit(self) -> str:
        return "numbers"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {}

    def plan(self, context: PlanContext) -> Plan:
        numbered = enumerate(self.content)
        parts = [Part(f"part-{i:06d}", {"number": n, "reads": {"input": str(n)}}) for i, n in numbered]
        return Plan(tuple(parts), {"inputs": ",".join(map(str, self.content))})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        outputs.table("numbers", NUMBERS, NUMBERS.table({"number": [part.spec["number"]]}))


@dataclass(frozen=True)
class Double(Step):
    """Doubles part by part; misbehaves on request, once per marker file."""

    stage: ClassVar[str] = "download"
    version: ClassVar[int] = 1
    fault: str = ""
    marker: str = ""
    factor: int = 2

    @property
    def unit(self) -> str:
        return "doubled"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("sources/numbers"),)

    def identity(self) -> Mapping[str, Any]:
        return {"factor": self.factor}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        number = inputs.table("sources/numbers", "numbers", NUMBERS).column("number")[0].as_py()
        if self.fault and number == 3:
            self._misbehave()
        outputs.table("numbers", NUMBERS, NUMBERS.table({"number": [number * self.factor]}))

    def _misbehave(self) -> None:
        marker = Path(self.marker)
        if self.marker and marker.exists():
            return
        if self.marker:
            marker.touch()
        if self.fault == "die":
            os._exit(9)
        if self.fault == "input":
            raise InputError("the number 3 is not to be had")
        raise ZeroDivisionError("on purpose")


@dataclass(frozen=True)
class Together(Double):
    """Multiplies, in one go with the others of its kind that have the same part to do."""

    @property
    def unit(self) -> str:
        return f"times{self.factor}"

    def bundle(self, part: Part) -> str:
        return part.name

    def run_bundle(self, works: Sequence[Work], machine: Machine) -> None:
        super().run_bundle(works, machine)
        for work in works:
            work.outputs.metrics["together"] = len(works)


@dataclass(frozen=True)
class StatefulDouble(Double):
    """The same, kept in actors."""

    stage: ClassVar[str] = "score"
    stateful: ClassVar[bool] = True


@dataclass(frozen=True)
class Sum(Step):
    """Sums every part of `below`."""

    stage: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    below: str = "download/doubled"
    name_: str = "sum"

    @property
    def unit(self) -> str:
        return self.name_

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(self.below, whole=True),)

    def identity(self) -> Mapping[str, Any]:
        return {}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        total = sum(sum(table.column("number").to_pylist()) for table in inputs.tables(self.below, "numbers", NUMBERS))
        outputs.facts["total"] = total
        outputs.table("numbers", NUMBERS, NUMBERS.table({"number": [total]}))
