"""What image dedup finds when it starts, made of an array of vectors: samples, scores and classes, as commits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.routed import KEYS
from dataengine.schemas import SAMPLE, TableSchema, score_schema
from dataengine.storage.rundir import Part, Plan

PART_ROWS = 10_000
_SCORE = score_schema((), (), measures=True)
_ODD = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: its multiples scatter row numbers over the key space


@dataclass(frozen=True)
class _Given(Step):
    """Parts of the array at `path`, `PART_ROWS` each."""

    stage: ClassVar[str] = "download"
    version: ClassVar[int] = 1
    path: str

    @property
    def unit(self) -> str:
        return "web"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {}

    def plan(self, context: PlanContext) -> Plan:
        begins = range(0, len(self.vectors()), PART_ROWS)
        return Plan(tuple(Part(f"part-{number:06d}", {"begin": begin}) for number, begin in enumerate(begins)))

    def vectors(self) -> NDArray[np.float16]:
        """The whole array, mapped."""
        found: NDArray[np.float16] = np.load(self.path, mmap_mode="r")
        return found


@dataclass(frozen=True)
class GivenSamples(_Given):
    """SAMPLE: every row is there."""

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        keys, _ = _keyed(part.spec["begin"], len(self.vectors()))
        given = {"key": keys, "status": pa.repeat("ok", len(keys)), "num_attempts": [1] * len(keys)}
        outputs.table("sample", SAMPLE, _filled(SAMPLE, given, len(keys)))


@dataclass(frozen=True)
class GivenVectors(_Given):
    """SCORE without scores, and EMBEDDING."""

    stage: ClassVar[str] = "score"

    @property
    def unit(self) -> str:
        return "clip.web"

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        keys, rows = _keyed(part.spec["begin"], len(self.vectors()))
        nothing = {"caption_chars": [0] * len(keys), "caption_tokens": [0] * len(keys)}
        given = {**nothing, "caption_truncated": [False] * len(keys), "key": keys}
        given["score_status"] = pa.repeat("ok", len(keys))
        outputs.table("score", _SCORE, _filled(_SCORE, given, len(keys)))
        outputs.array("embedding", self.vectors()[rows])


@dataclass(frozen=True)
class GivenClasses(_Given):
    """No copies."""

    stage: ClassVar[str] = "dedup"

    @property
    def unit(self) -> str:
        return "classes"

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        outputs.table("copies", KEYS, KEYS.empty())
        outputs.rows_in = len(self.vectors())


def _keyed(begin: int, num_rows: int) -> tuple[pa.Array, NDArray[np.int64]]:
    """Keys of the part that begins at row `begin`, ascending, and the row of each."""
    rows = range(begin, min(begin + PART_ROWS, num_rows))
    keys = sorted(f"{row * _ODD % 2**64:016x}{row:016x}" for row in rows)
    return pa.array(keys), row_numbers(pa.chunked_array([keys]))


def row_numbers(keys: pa.ChunkedArray) -> NDArray[np.int64]:
    """Which row of the array each key stands for: int64 [keys]."""
    return np.array([int(key[16:], 16) for key in keys.to_pylist()], np.int64)


def _filled(schema: TableSchema, given: Mapping[str, Any], num_rows: int) -> pa.Table:
    """A table with nulls in the columns that are not given."""
    return schema.table({**{field.name: pa.nulls(num_rows, field.type) for field in schema.arrow}, **given})
