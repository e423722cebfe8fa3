"""Caption dedup alone, as steps on a board, over captions given as a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.caption_classes import CAPTION_ROWS
from dataengine.dedup.caption_steps import (
    AskedTexts,
    CandidatePairs,
    CaptionEdges,
    Signatures,
)
from dataengine.dedup.signing import comparison_of, signature_spec
from dataengine.dedup.text_steps import CaptionClasses, routed_captions
from dataengine.engine.board import Board
from dataengine.engine.runner import Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.keys import url_keys
from dataengine.schemas import CLASS, EDGE
from dataengine.storage.rundir import Part, Plan, RunDirectory, digest
from dataengine.storage.tables import read_table


@dataclass(frozen=True)
class GivenCaptions(Step):
    """Captions in the place of sources and download, cut into parts."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    captions: tuple[str, ...]
    part_rows: int

    @property
    def unit(self) -> str:
        return "texts.given"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {"captions": list(self.captions)}

    def plan(self, context: PlanContext) -> Plan:
        starts = range(0, max(len(self.captions), 1), self.part_rows)
        return Plan(tuple(Part(f"part-{start:06d}", {"start": start}) for start in starts))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        captions = self.captions[part.spec["start"] :][: self.part_rows]
        keys = url_keys("s", captions_names(captions, part.spec["start"]))
        routed, edges = routed_captions(
            pa.table({"key": pa.array(keys, pa.string()), "caption": pa.array(captions, pa.string())})
        )
        outputs.rows_in, outputs.rows_out = len(captions), len(routed)
        outputs.facts["nbytes"] = routed.nbytes
        outputs.slices("captions", CAPTION_ROWS, routed, edges)


def captions_names(captions: tuple[str, ...], start: int) -> list[str]:
    """URLs of captions: by text and how often it came before is what makes a key the same in any order."""
    return [f"{caption}#{start + at}" for at, caption in enumerate(captions)]


def key_of(caption: str, place: int) -> str:
    """The key of the caption at a place."""
    return url_keys("s", [f"{caption}#{place}"])[0]


def caption_steps(
    captions: tuple[str, ...],
    config: CaptionDedupConfig,
    part_rows: int,
    memory_bytes: int,
    against: tuple[str, ...] = (),
    seed: int = 1,
) -> list[Step]:
    """The steps, in order."""
    spec = signature_spec(config, seed)
    return [
        GivenCaptions(captions, part_rows),
        CaptionClasses(("given",), against, spec),
        Signatures(spec),
        CandidatePairs(spec, comparison_of(config, seed), against, memory_bytes),
        AskedTexts(spec, against),
        CaptionEdges(config, spec, against),
    ]


def board_of(root: Path, steps: list[Step], *, store: bool = True) -> Board:
    """The board of the steps in a run under `root`."""
    recipes = {step.name: digest([step.name, dict(step.identity())]) for step in steps}
    return Board(RunDirectory.open(str(root), {}, "given"), steps, recipes, store=store)


def run_steps(board: Board) -> int:
    """Bring the board to its end; the number of parts run."""
    machine = Machine(2, 0, 1, {}, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    return Runner(board, lambda: SerialExecutor({"dedup": machine}), _Unwatched(), 600.0).run()


class _Unwatched:
    def update(self, board: object, running: object) -> None:
        """Nobody looks."""


def edges_of(board: Board, step: str = "dedup/captions") -> pa.Table:
    """All EDGE rows, sorted."""
    tables = [read_table(board.root, item.objects["edge"].path, EDGE) for item in board.commits(step)]
    return pa.concat_tables(tables).sort_by([("left_key", "ascending"), ("right_key", "ascending")])


def classes_of(board: Board) -> pa.Table:
    """All CLASS rows, sorted."""
    items = board.commits("dedup/caption-classes")
    tables = [read_table(board.root, item.objects["class"].path, CLASS) for item in items]
    return pa.concat_tables(tables).sort_by([("class_key", "ascending"), ("key", "ascending")])


def counts_of(board: Board, step: str) -> dict[str, int]:
    """Counts summed over the parts of a step."""
    total: dict[str, int] = {}
    for commit in board.commits(step):
        for name, number in commit.counts.items():
            total[name] = total.get(name, 0) + number
    return total
