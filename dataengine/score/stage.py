"""The score stage: image bytes and captions in; SCORE and EMBEDDING out, row for row with SAMPLE.

Each scorer is a unit of its own per source, so adding one leaves the others alone. The first scorer also takes the
measures that need no model, from the same decode.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataengine.config.download import LimitsConfig
from dataengine.config.score import ScorerConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, Step
from dataengine.imaging import ImageFault, decode_rgb
from dataengine.schemas import CANDIDATE, SAMPLE, TableSchema, score_schema
from dataengine.score.captions import cosine, gather_captions
from dataengine.score.clip import Scorer
from dataengine.score.heads import Head, load_head
from dataengine.score.measures import entropy, phash, sharpness
from dataengine.storage.located import places_of, read_located
from dataengine.storage.rundir import Part


@dataclass(frozen=True)
class Score(Step):
    """Scores the images and captions of a source with one open_clip model and its heads."""

    stage: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    stateful: ClassVar[bool] = True
    scorer: str
    source: str
    config: ScorerConfig
    limits: LimitsConfig
    columns: tuple[tuple[str, str], ...]
    """(caption name, column of its cosine); `caption` is the primary one."""
    measures: bool

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
            "config": self.config.identity(),
            "columns": [list(pair) for pair in self.columns],
            "measures": self.measures,
        }

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        model, heads = _load(self.config, machine.num_gpus > 0, machine.num_threads)
        candidates = inputs.table(f"sources/{self.source}", "candidate", CANDIDATE, ["key", "caption", "captions"])
        samples = inputs.table(
            f"download/{self.source}", "sample", SAMPLE, ["key", "status", "object", "offset", "nbytes"]
        )
        embeddings, status, measured = self._look(samples, inputs, model)
        seen = np.array([state == "ok" for state in status], dtype=bool)
        columns: dict[str, Any] = {"key": samples.column("key"), "score_status": status}
        columns |= self._cosines(candidates, embeddings, seen, model)
        columns |= {name: _masked(head.apply(embeddings), seen) for name, head in heads.items()}
        if self.measures:
            columns |= measured | _measure_captions(candidates, model)
        outputs.rows_in = len(samples)
        outputs.count(Counter(status))
        outputs.table("score", self.schema, self.schema.table(columns))
        outputs.array("embedding", embeddings.astype(np.float16))
        outputs.facts["provenance"] = model.provenance() | {
            "heads": {name: {"weights_sha256": head.sha256} for name, head in heads.items()}
        }

    def _look(
        self, samples: pa.Table, inputs: Inputs, model: Scorer
    ) -> tuple[NDArray[np.float32], list[str], dict[str, list[Any]]]:
        """Embeddings [rows, dim] (zero where there is no picture), a status per row, and the image measures."""
        embeddings = np.zeros((len(samples), model.dim), dtype=np.float32)
        status = ["missing"] * len(samples)
        measured: dict[str, list[Any]] = {name: [None] * len(samples) for name in ("phash", "sharpness", "entropy")}
        batch: list[tuple[int, NDArray[np.uint8]]] = []

        def flush() -> None:
            if batch:
                rows = [row for row, _ in batch]
                embeddings[rows] = model.encode_images([rgb for _, rgb in batch])
                batch.clear()

        places = places_of(samples.select(["object", "offset", "nbytes"]).to_pydict())
        for row, content in enumerate(read_located(inputs.root, places)):
            if content is None:
                continue
            try:
                rgb = decode_rgb(content, max_pixels=self.limits.max_pixels, max_side=self.limits.max_side)
            except ImageFault:
                status[row] = "undecodable"
                continue
            status[row] = "ok"
            if self.measures:
                measured["phash"][row] = f"{phash(rgb):016x}"
                measured["sharpness"][row], measured["entropy"][row] = sharpness(rgb), entropy(rgb)
            batch.append((row, rgb))
            if len(batch) == self.config.batch_size:
                flush()
        flush()
        return embeddings, status, measured

    def _cosines(
        self, candidates: pa.Table, embeddings: NDArray[np.float32], seen: NDArray[np.bool_], model: Scorer
    ) -> dict[str, pa.Array]:
        texts = gather_captions(candidates, [name for name, _ in self.columns])
        encoded = model.encode_texts(texts.unique)
        found = {}
        for name, column in self.columns:
            rows = texts.rows[name]  # index into `unique`, -1 where the row has no such caption
            there = seen & (rows >= 0)
            scores = np.zeros(len(rows), dtype=np.float32)
            scores[there] = cosine(embeddings[there], encoded[rows[there]])
            found[column] = _masked(scores, there)
        return found


def _measure_captions(candidates: pa.Table, model: Scorer) -> dict[str, Any]:
    captions = candidates.column("caption")
    tokens, truncated = model.count_tokens(captions.to_pylist())
    return {
        "caption_chars": pa.compute.utf8_length(captions).cast(pa.int32()),
        "caption_tokens": pa.array(tokens),
        "caption_truncated": pa.array(truncated),
    }


def _masked(values: NDArray[np.float32], there: NDArray[np.bool_]) -> pa.Array:
    """`values` with null where not `there`."""
    return pa.array(values, type=pa.float32(), mask=~there)


@functools.lru_cache(maxsize=2)
def _load_key(key: str, gpu: bool, num_threads: int) -> tuple[Scorer, dict[str, Head]]:
    config = ScorerConfig.model_validate_json(key)
    model = Scorer.load(config, "cuda" if gpu else "cpu", num_threads)
    return model, {name: load_head(head.weights, model.dim) for name, head in config.heads.items()}


def _load(config: ScorerConfig, gpu: bool, num_threads: int) -> tuple[Scorer, dict[str, Head]]:
    """The model and its heads; kept by the worker process from part to part."""
    return _load_key(config.model_dump_json(), gpu, num_threads)
