"""Scoring of parts: places of images and captions in, embeddings, cosines, measures and a status per row out.

Several scorers look at every picture of a source in one go, from one decode; each has batches of its own. Batches of
images run through all parts that were given together: one part, unless it was asked otherwise. It writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataengine.score.captions import Captions, cosine
from dataengine.score.clip import Scorer
from dataengine.score.feed import Feed
from dataengine.score.measures import Measures
from dataengine.score.memory import MemoryShort
from dataengine.score.metrics import Clock, Reporter, Waits
from dataengine.score.pictures import OK, Prepared, Preparer, distinct
from dataengine.score.tokens import Tokens

if TYPE_CHECKING:
    import torch

    from dataengine.config.download import LimitsConfig
    from dataengine.score.preprocess import Preprocess

GPU_CHUNKS_AHEAD = 2
TEXTS_AT_ONCE = 256
"""Texts that are turned into tokens between two reports; hostile ones take up to 30 ms each."""

MISSING, NOT_FINITE = "missing", "not_finite"


@dataclass
class PartImages:
    """What was seen of the images of one part; row `i` is row `i` of SAMPLE."""

    status: NDArray[np.object_]
    measures: list[Measures | None]
    embeddings: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Scorer → unit rows [rows, dim]; zeros where there is no picture or its embedding is not finite."""
    good: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Scorer → whether the row has an embedding."""
    batch_sizes: dict[str, int] = field(default_factory=dict)
    """Scorer → images in each of its batches."""

    @classmethod
    def of(cls, num_rows: int) -> PartImages:
        """A part of which nothing was seen yet."""
        return cls(np.full(num_rows, MISSING, dtype=object), [None] * num_rows)


@dataclass(frozen=True)
class PartInput:
    """Where the pictures of a part come from, and who looks at them."""

    num_rows: int
    order: NDArray[np.int64]
    """Rows that have a picture, in the order in which `read` gives them."""
    read: Callable[[], Iterator[bytes | None]]
    scorers: tuple[str, ...]
    measures: bool


@dataclass
class _Tower:
    """One scorer's batches: pictures that wait, and raw embeddings with the rows they belong to."""

    scorer: Scorer
    clock: Clock
    waits: Waits
    rows: list[tuple[int, int]] = field(default_factory=list)
    """(part, row) of every picture so far, in the order in which they were given."""
    waiting: list[Any] = field(default_factory=list)
    raw: list[torch.Tensor] = field(default_factory=list)

    def give(self, part: int, row: int, prepared: Any) -> None:
        """Take a picture; runs the tower when a batch is full."""
        self.rows.append((part, row))
        self.waiting.append(prepared)
        if len(self.waiting) == self.scorer.batch_size:
            self.flush()

    def flush(self) -> None:
        """Run the tower on what waits."""
        if not self.waiting:
            return
        started = time.perf_counter()
        batch = self.scorer.lay_out(self.waiting)
        self.waits.transfer_seconds += time.perf_counter() - started
        with self.clock:
            self.raw.append(self.scorer.run_images(batch)[: len(self.waiting)])
        self.waiting = []

    def settle(self, name: str, parts: Sequence[PartImages]) -> None:
        """Run what is left, and write the unit embeddings to their rows."""
        self.flush()
        units, good = self.scorer.unit_rows(self.raw)
        self.waits.tower_seconds += self.clock.seconds()
        owners = np.array(self.rows, np.int64).reshape(-1, 2)
        for number, part in enumerate(parts):
            mine = owners[:, 0] == number
            rows = owners[mine, 1]
            part.embeddings[name] = np.zeros((len(part.status), self.scorer.dim), np.float32)
            part.embeddings[name][rows] = units[mine]
            part.good[name] = np.zeros(len(part.status), bool)
            part.good[name][rows] = good[mine]
            part.batch_sizes[name] = self.scorer.batch_size


@dataclass(frozen=True)
class Looker:
    """Looks at the images of parts with several scorers."""

    scorers: Mapping[str, Scorer]
    limits: LimitsConfig
    num_threads: int
    reporter: Reporter

    @property
    def waits(self) -> Waits:
        """Where the seconds go."""
        return self.reporter.waits

    def look(self, inputs: Sequence[PartInput]) -> list[PartImages]:
        """What is seen in each part. A part whose batches do not fit the memory is begun again with smaller ones."""
        while True:
            try:
                return self._look(inputs)
            except MemoryShort:
                self.waits.num_memory_short += 1

    def _look(self, inputs: Sequence[PartInput]) -> list[PartImages]:
        parts = [PartImages.of(item.num_rows) for item in inputs]
        names = [name for item in inputs for name in item.scorers]
        towers = {
            name: _Tower(self.scorers[name], Clock(self.scorers[name].device), self.waits)
            for name in dict.fromkeys(names)
        }
        for number, item in enumerate(inputs):
            wanted = {name: self.scorers[name].preprocess for name in item.scorers}
            feed = self._feed(item, wanted)
            for row, prepared in zip(item.order.tolist(), feed(item.read()), strict=True):
                assert prepared is not None
                parts[number].status[row] = prepared.status
                parts[number].measures[row] = prepared.measures
                if prepared.status == OK:
                    for name, step in wanted.items():
                        towers[name].give(number, row, prepared.pixels[step])
                    self.waits.num_images += 1
                self.reporter.tell()
        for name, tower in towers.items():
            tower.settle(name, parts)
        return parts

    def _feed(self, item: PartInput, wanted: Mapping[str, Preprocess]) -> Feed[Prepared]:
        scorers = [self.scorers[name] for name in item.scorers]
        prepare = Preparer(distinct(list(wanted.values())), self.limits, item.measures)
        ahead = 0 if all(scorer.device == "cpu" for scorer in scorers) else GPU_CHUNKS_AHEAD
        return Feed(prepare, self.num_threads, max(scorer.batch_size for scorer in scorers), ahead, self.waits)


def read_captions(
    scorer: Scorer, captions: Captions, reporter: Reporter
) -> tuple[Tokens, NDArray[np.float32], NDArray[np.bool_]]:
    """Tokens, unit embeddings [texts, dim] and whether each is finite, of a part's unique texts."""
    waits, texts = reporter.waits, captions.unique
    started = time.perf_counter()
    pieces = []
    for start in range(0, max(1, len(texts)), TEXTS_AT_ONCE):
        pieces.append(scorer.tokenizer.read(texts[start : start + TEXTS_AT_ONCE]))
        reporter.tell()
    tokens = Tokens.joined(pieces)
    read = time.perf_counter()
    waits.token_seconds += read - started
    while True:
        try:
            units, good = scorer.encode_tokens(tokens, reporter.tell)
            break
        except MemoryShort:
            waits.num_memory_short += 1
    waits.text_seconds += time.perf_counter() - read
    waits.num_texts += len(texts)
    return tokens, units, good


def caption_cosines(
    images: NDArray[np.float32], seen: NDArray[np.bool_], texts: NDArray[np.float32], rows: NDArray[np.int64]
) -> pa.Array:
    """The cosine of each row's image and text: float32 [rows], null where `seen` or the text's place is missing."""
    there = seen & (rows >= 0)
    scores = np.zeros(len(rows), dtype=np.float32)
    scores[there] = cosine(images[there], texts[rows[there]])
    return masked(scores, there)


def masked(values: NDArray[np.float32], there: NDArray[np.bool_]) -> pa.Array:
    """`values` with null where not `there`, and wherever they are not finite: NaN never reaches a table."""
    return pa.array(values, type=pa.float32(), mask=~(there & np.isfinite(values)))
