"""What image dedup finds when it starts, as steps that write it: samples and scores of sources, and exact classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dataengine.config.dedup import ImageDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.image_search import ImageEdges, MeasureRecall
from dataengine.dedup.image_steps import Centroids, PlaceVectors, SampleVectors, VectorSource
from dataengine.dedup.routed import KEYS
from dataengine.engine.board import Board, Job
from dataengine.engine.runner import Executor, Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.schemas import EDGE, SAMPLE, TableSchema, score_schema
from dataengine.storage.rundir import Part, Plan, RunDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table

MACHINES = dict.fromkeys(("download", "score", "dedup"), Machine(1, 0, 1, {}, lambda: datetime.now(UTC)))
SCORE = score_schema((), (), measures=True)
ENDS = [("left_key", "ascending"), ("right_key", "ascending")]


@dataclass(frozen=True)
class Source:
    """Images of one source, in key order."""

    name: str
    keys: tuple[str, ...]
    vectors: np.ndarray = field(compare=False)
    """float16 [rows, dim]"""
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Given(Step):
    """One table of a source, in parts of so many rows."""

    version: ClassVar[int] = 1
    stage: ClassVar[str] = "download"
    source: Source
    part_rows: int

    @property
    def unit(self) -> str:
        return self.source.name

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {}

    def plan(self, context: PlanContext) -> Plan:
        begins = range(0, max(len(self.source.keys), 1), self.part_rows)
        return Plan(tuple(Part(f"part-{number:06d}", {"begin": begin}) for number, begin in enumerate(begins)))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        keys = self.source.keys[part.spec["begin"] : part.spec["begin"] + self.part_rows]
        status = ["failed" if key in self.source.failed else "ok" for key in keys]
        outputs.table(
            "sample", SAMPLE, filled(SAMPLE, {"key": keys, "status": status, "num_attempts": [1] * len(keys)})
        )


@dataclass(frozen=True)
class GivenScores(Given):
    """SCORE and EMBEDDING."""

    stage: ClassVar[str] = "score"

    @property
    def unit(self) -> str:
        return f"clip.{self.source.name}"

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        run = slice(part.spec["begin"], part.spec["begin"] + self.part_rows)
        keys = self.source.keys[run]
        numbers = {"caption_chars": [0] * len(keys), "caption_tokens": [0] * len(keys)}
        flags = {"caption_truncated": [False] * len(keys), "score_status": ["ok"] * len(keys)}
        outputs.table("score", SCORE, filled(SCORE, {"key": keys, **numbers, **flags}))
        outputs.array("embedding", self.source.vectors[run])


@dataclass(frozen=True)
class GivenClasses(Step):
    """The images that others speak for."""

    version: ClassVar[int] = 1
    stage: ClassVar[str] = "dedup"
    unit: ClassVar[str] = "classes"  # type: ignore[misc]
    needs: ClassVar[tuple[Need, ...]] = ()  # type: ignore[misc]
    num_rows: int
    copies: tuple[str, ...]

    def identity(self) -> Mapping[str, Any]:
        return {}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        outputs.table("copies", KEYS, KEYS.table({"key": sorted(self.copies)}))
        outputs.rows_in = self.num_rows


def filled(schema: TableSchema, given: Mapping[str, Any]) -> pa.Table:
    """A table with nulls in the columns that are not given."""
    num_rows = len(given["key"])
    return schema.table({**{column.name: pa.nulls(num_rows, column.type) for column in schema.arrow}, **given})


def image_steps(
    sources: Iterable[Source], config: ImageDedupConfig, part_rows: int = 50, copies: tuple[str, ...] = ()
) -> list[Step]:
    """Everything from what is given to the measured recall."""
    found = list(sources)
    names = tuple(source.name for source in found)
    given: list[Step] = [Given(source, part_rows) for source in found]
    given += [GivenScores(source, part_rows) for source in found]
    given.append(GivenClasses(sum(len(source.keys) for source in found), copies))
    vectors = [VectorSource(name, "clip", "clip") for name in names]
    steps: list[Step] = [SampleVectors(source, config, 3) for source in vectors]
    steps.append(Centroids(names, config, 3))
    for rung in (0, 1):
        steps += [PlaceVectors(source, config, rung) for source in vectors]
        steps += [ImageEdges(names, config, 3, rung), MeasureRecall(names, config, rung)]
    return [*given, *steps]


class Silent:
    """Nobody watches."""

    def update(self, board: Board, running: Iterable[Job]) -> None:
        """Told nothing."""


def drive(folder: Path, steps: list[Step], start: Callable[[], Executor] = lambda: SerialExecutor(MACHINES)) -> Board:
    """Run `steps` to their end."""
    board = Board(RunDirectory(Root(str(folder)), "run"), steps, {step.name: "0" * 64 for step in steps}, store=True)
    Runner(board, start, Silent(), 600).run()
    return board


def edges_of(board: Board) -> pa.Table:
    """Every edge that the run found."""
    commits = [commit for name in ("dedup/images", "dedup/images-wide") for commit in board.commits(name)]
    tables = [read_table(board.root, commit.objects["edge"].path, EDGE) for commit in commits]
    return pa.concat_tables([EDGE.empty(), *tables]).sort_by(ENDS).combine_chunks()
