"""The score stage: image bytes and captions in; SCORE and EMBEDDING out, row for row with SAMPLE.

Each scorer is a unit of its own per source, so adding one leaves the others alone. Scorers that have the same part to
do, do it in one go: every picture is read and decoded once for all of them. The first scorer also takes the measures
that need no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataengine.config.download import LimitsConfig
from dataengine.config.score import ScorerConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, Step, Work
from dataengine.errors import DriftError
from dataengine.schemas import CANDIDATE, SAMPLE, TableSchema, score_schema
from dataengine.score.captions import PRIMARY, Captions, gather_captions
from dataengine.score.clip import settle_torch
from dataengine.score.golden import VERSION as GOLDEN_VERSION
from dataengine.score.golden import check_golden
from dataengine.score.loaded import MODELS, Ask, Loaded
from dataengine.score.metrics import Reporter, Waits
from dataengine.score.part import (
    NOT_FINITE,
    Looker,
    PartImages,
    PartInput,
    caption_cosines,
    masked,
    read_captions,
)
from dataengine.score.pictures import OK
from dataengine.storage.located import places_of, read_located
from dataengine.storage.rundir import Commit, Part, digest


@dataclass(frozen=True)
class Score(Step):
    """Scores the images and captions of a source with one open_clip model and its heads."""

    stage: ClassVar[str] = "score"
    version: ClassVar[int] = 2
    stateful: ClassVar[bool] = True
    scorer: str
    source: str
    config: ScorerConfig
    weights: str
    """What its weights are; see `identify_scorer`."""
    heads: Mapping[str, str]
    """Column → SHA-256 of the head's weights."""
    limits: LimitsConfig
    columns: tuple[tuple[str, str], ...]
    """(caption name, column of its cosine); `caption` is the primary one."""
    measures: bool
    parts_per_batch: int = 1

    @property
    def unit(self) -> str:
        return f"{self.scorer}.{self.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(f"sources/{self.source}"), Need(f"download/{self.source}"))

    @property
    def schema(self) -> TableSchema:
        """SCORE as this scorer writes it."""
        return score_schema((column for _, column in self.columns), self.config.heads, measures=self.measures)

    def identity(self) -> Mapping[str, Any]:
        return {
            "scorer": self.scorer,
            "columns": [list(pair) for pair in self.columns],
            "measures": self.measures,
            **self._model_identity(),
        }

    def _model_identity(self) -> dict[str, Any]:
        return {"config": self.config.identity(), "weights": self.weights, "heads": dict(self.heads)}

    def bundle(self, part: Part) -> str | None:
        """Scorers of the same source share a part's pictures."""
        if self.parts_per_batch == 1:
            return f"{self.source} {part.name}"
        return f"{self.source} {int(part.name.rpartition('-')[2]) // self.parts_per_batch}"

    def check(self, commits: Sequence[Commit]) -> None:
        """Raises DriftError when parts were scored with different weights, as under a tag that moved.

        So too where a head is not the file that the run was planned with.
        """
        for commit in commits:
            for name, told in commit.facts["provenance"].get("heads", {}).items():
                if told["weights_sha256"] != self.heads.get(name):
                    raise DriftError(
                        f"{self.name}: head {name} of part {commit.part} has the weights "
                        f"{told['weights_sha256']}, the run was planned with {self.heads.get(name)}; start a run of "
                        f"another name"
                    )
        used = {commit.facts["provenance"]["weights_sha256"] for commit in commits}
        if len(used) > 1:
            raise DriftError(
                f"{self.name}: its parts were scored with different weights under the name {self.config.pretrained}: "
                f"{', '.join(sorted(used))}; set `weights_sha256` to the right one and run again"
            )

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        self.run_bundle([Work(self, part, inputs, outputs)], machine)

    def run_bundle(self, works: Sequence[Work], machine: Machine) -> None:
        reporter = Reporter(Waits(), machine.report)
        steps = [work.step for work in works if isinstance(work.step, Score)]
        num_scorers = len({step.scorer for step in steps})
        models = {
            step.scorer: step.load(work.outputs, machine, num_scorers) for step, work in zip(steps, works, strict=True)
        }
        parts = list(dict.fromkeys(work.part.name for work in works))
        looker = Looker(
            {name: found.scorer for name, found in models.items()}, self.limits, machine.num_threads, reporter
        )
        inputs = [
            _part_input([(step, work) for step, work in zip(steps, works, strict=True) if work.part.name == name])
            for name in parts
        ]
        seen = dict(zip(parts, looker.look(inputs), strict=True))
        for step, work in zip(steps, works, strict=True):
            together = sum(other.scorer == step.scorer for other in steps)
            step.write(work, seen[work.part.name], models[step.scorer], reporter, together)
        # Of all works, so that sums over commits count nothing twice.
        works[0].outputs.metrics |= reporter.waits.metrics()

    def load(self, outputs: Outputs, machine: Machine, num_scorers: int) -> Loaded:
        """The model and its heads, proven against the run's golden batch; the part has `num_scorers` of them."""
        device = "cuda" if machine.num_gpus > 0 else "cpu"
        settle_torch(device, machine.num_threads)  # also for a model that is loaded: threads are the process's
        heads = tuple(sorted(self.heads.items()))
        ask = Ask(self.config.model_dump_json(), self.weights, heads, device, machine.num_threads)
        found = MODELS.get(ask, num_scorers)
        identity = digest({**self._model_identity(), "golden": GOLDEN_VERSION})[:16]
        place = f"{outputs.directory.root.url} {outputs.directory.path.rsplit('/', 2)[0]} {identity}"
        if place not in found.proven:
            check_golden(found.scorer, found.heads, identity, outputs.settle)
            found.proven.add(place)
        return found

    def write(self, work: Work, images: PartImages, found: Loaded, reporter: Reporter, num_together: int) -> None:
        """Score what was seen of a part, whose batches ran through `num_together` parts, and write its tables."""
        model, heads = found.scorer, found.heads
        names = ["key", "caption", "captions"]
        candidates = work.inputs.table(f"sources/{self.source}", "candidate", CANDIDATE, names)
        embeddings, seen = images.embeddings[self.scorer], images.good[self.scorer]
        captions = gather_captions(candidates, list(dict.fromkeys((PRIMARY, *(name for name, _ in self.columns)))))
        tokens, texts, good = read_captions(model, captions, reporter)
        scores: dict[str, pa.Array] = {}
        for name, column in self.columns:
            rows = captions.rows[name]
            known = np.where((rows >= 0) & good[rows] if len(good) else False, rows, -1)
            scores[column] = caption_cosines(embeddings, seen, texts, known)
        scores |= {name: masked(head.apply(embeddings), seen) for name, head in heads.items()}
        status = _status(images, seen, scores, captions, dict(self.columns))
        columns: dict[str, Any] = {"key": candidates.column("key"), "score_status": status} | scores
        if self.measures:
            columns |= _measured(images) | _caption_measures(candidates, captions, tokens.counts, tokens.truncated)
        provenance = model.provenance() | {
            # What the images had; captions may have found less memory since.
            "batch_size": images.batch_sizes[self.scorer],
            "text_batch_size": model.batch_size,
            "heads": {name: head.provenance() for name, head in heads.items()},
            "batches": "of one part" if num_together == 1 else f"across {num_together} parts",
        }
        outputs = work.outputs
        outputs.rows_in = len(candidates)
        outputs.count(Counter(status))
        metadata = {"provenance": json.dumps(provenance, sort_keys=True)}
        outputs.table("score", self.schema, self.schema.table(columns).replace_schema_metadata(metadata))
        outputs.array("embedding", embeddings.astype(np.float16))
        outputs.facts["provenance"] = provenance


def _part_input(members: Sequence[tuple[Score, Work]]) -> PartInput:
    step, work = members[0]
    inputs = work.inputs
    samples = inputs.table(f"download/{step.source}", "sample", SAMPLE, ["key", "status", "object", "offset", "nbytes"])
    places = places_of(samples.select(["object", "offset", "nbytes"]).to_pydict())
    # In the order in which they lie, so that neighbours are read together: rows of tars read in place are in key order.
    order = sorted((row for row, place in enumerate(places) if place is not None), key=lambda row: places[row] or ())

    def read() -> Iterator[bytes | None]:
        return read_located(inputs.root, [places[row] for row in order])

    scorers = tuple(member.scorer for member, _ in members)
    measures = any(member.measures for member, _ in members)
    return PartInput(len(samples), np.array(order, np.int64), read, scorers, measures)


def _status(
    images: PartImages,
    seen: NDArray[np.bool_],
    scores: Mapping[str, pa.Array],
    captions: Captions,
    columns: Mapping[str, str],
) -> list[str]:
    """A status per row: what became of the picture, and whether every score that there should be is a number."""
    there = np.array([state == OK for state in images.status], dtype=bool)
    finite = seen.copy()
    caption_of = {column: name for name, column in columns.items()}
    for column, values in scores.items():
        wanted = captions.rows[caption_of[column]] >= 0 if column in caption_of else np.ones(len(there), bool)
        finite &= ~wanted | pc.is_valid(values).to_numpy(zero_copy_only=False)
    return list(np.where(there & ~finite, NOT_FINITE, images.status))


def _measured(images: PartImages) -> dict[str, Any]:
    found = images.measures
    return {
        "phash": [None if item is None else f"{item.phash:016x}" for item in found],
        "sharpness": [None if item is None else item.sharpness for item in found],
        "entropy": [None if item is None else item.entropy for item in found],
    }


def _caption_measures(
    candidates: pa.Table, captions: Captions, counts: NDArray[np.int32], truncated: NDArray[np.bool_]
) -> dict[str, Any]:
    rows = captions.rows[PRIMARY]
    there = rows >= 0
    tokens, cut = np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
    tokens[there], cut[there] = counts[rows[there]], truncated[rows[there]]
    return {
        "caption_chars": pc.utf8_length(candidates.column("caption")).cast(pa.int32()),
        "caption_tokens": pa.array(tokens),
        "caption_truncated": pa.array(cut),
    }
