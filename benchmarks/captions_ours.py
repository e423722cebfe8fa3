"""The contender `ours`: the engine's own steps of caption dedup, from Parquet to EDGE and CLASS in a run directory."""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

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
from dataengine.engine.board import Board, Job
from dataengine.engine.runner import Runner
from dataengine.engine.worker import Outcome, run_job
from dataengine.schemas import CLASS, EDGE
from dataengine.storage.rundir import Commit, Part, Plan, RunDirectory, digest
from dataengine.storage.tables import read_table

NUM_THREADS = 2
SEED = 1


@dataclass(frozen=True)
class ReadCaptions(Step):
    """Key and caption from Parquet files, in the place of sources and download."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    paths: tuple[str, ...]

    @property
    def unit(self) -> str:
        return "texts.corpus"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {"paths": list(self.paths)}

    def plan(self, context: PlanContext) -> Plan:
        return Plan(tuple(Part(f"part-{number:06d}", {"path": path}) for number, path in enumerate(self.paths)))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        rows = pq.read_table(part.spec["path"], columns=["key", "caption"], use_threads=False)
        routed, edges = routed_captions(rows)
        outputs.rows_in, outputs.rows_out = len(rows), len(routed)
        outputs.facts["nbytes"] = routed.nbytes
        outputs.slices("captions", CAPTION_ROWS, routed, edges)


@dataclass
class ThreadExecutor:
    """Parts on threads of this process: kernels hold no lock, so two of them keep two cores busy."""

    machine: Machine
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(NUM_THREADS))
    _done: queue.SimpleQueue[Outcome] = field(default_factory=queue.SimpleQueue)
    _running: int = 0

    def has_room(self, stage: str) -> bool:
        """Whether a thread is free."""
        return self._running < NUM_THREADS

    def submit(self, job: Job) -> None:
        """Start a job."""
        self._running += 1
        self._pool.submit(lambda: self._done.put(run_job(job, self.machine)))

    def wait(self, seconds: float) -> Outcome | None:
        """The next outcome."""
        try:
            outcome = self._done.get(timeout=seconds)
        except queue.Empty:
            return None
        self._running -= 1
        return outcome

    def retire(self, stage: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown()


class _Unwatched:
    def update(self, board: Board, running: Iterable[Job]) -> None:
        """Nobody looks."""


@dataclass(frozen=True)
class Found:
    """What the run wrote."""

    classes: pa.Table
    edges: pa.Table
    commits: Mapping[str, list[Commit]]
    """By step."""

    def count(self, step: str, name: str) -> int:
        """The sum of a count over the parts of a step."""
        return sum(commit.counts[name] for commit in self.commits[step])


def find_duplicates(
    paths: list[Path], config: CaptionDedupConfig, memory_bytes: int, scratch: Path | None = None
) -> Found:
    """Run every step of caption dedup over `paths`."""
    spec = signature_spec(config, SEED)
    steps: list[Step] = [
        ReadCaptions(tuple(map(str, paths))),
        CaptionClasses(("corpus",), (), spec),
        Signatures(spec),
        CandidatePairs(spec, comparison_of(config, SEED), (), memory_bytes),
        AskedTexts(spec, ()),
        CaptionEdges(config, spec, ()),
    ]
    recipes = {step.name: digest([step.name, dict(step.identity())]) for step in steps}
    machine = Machine(1, 0, NUM_THREADS, {}, lambda: datetime.now(UTC))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        board = Board(RunDirectory.open(folder, {}, "captions"), steps, recipes, store=True)
        Runner(board, lambda: ThreadExecutor(machine), _Unwatched(), 3600.0).run()
        commits = {name: board.commits(name) for name in board.states}
        edges = [read_table(board.root, item.objects["edge"].path, EDGE) for item in commits["dedup/captions"]]
        classes = [
            read_table(board.root, item.objects["class"].path, CLASS) for item in commits["dedup/caption-classes"]
        ]
        return Found(pa.concat_tables(classes), pa.concat_tables(edges), commits)
