"""The pool: every candidate of every source as narrow columns of numbers, gathered as its tables pass by.

So 24 million candidates are a few gigabytes, whatever their URLs and captions weigh. What `judging.py` keeps of tables
in part order comes in; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa

from dataengine.select.judging import KEPT, Judged, Reason, RuleKey
from dataengine.select.keyed import Keys

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Block:
    """Where the rows of a candidate part are in the pool: `begin` to `end`."""

    source: str
    part: str
    begin: int
    end: int


@dataclass(frozen=True)
class Texts:
    """Words about some rows, in row order."""

    rows: NDArray[np.int64]
    words: pa.ChunkedArray
    """large_string [rows]"""

    def within(self, begin: int, end: int, others: pa.Array) -> pa.Array:
        """`others`, large_string [end - begin], with these words where a row has some."""
        first, last = np.searchsorted(self.rows, [begin, end])
        if first == last:
            return others
        mask = np.zeros(end - begin, np.bool_)
        mask[self.rows[first:last] - begin] = True
        words = self.words.slice(first, last - first).combine_chunks()
        return pa.compute.replace_with_mask(others, pa.array(mask), words)


@dataclass(frozen=True)
class Pool:
    """All candidates, part by part; columns are [rows]."""

    sources: tuple[str, ...]
    blocks: tuple[Block, ...]
    keys: Keys
    source: NDArray[np.int16]
    """Number of the row's source."""
    reasons: tuple[Reason, ...]
    """What a row can have failed for before select; the first is `KEPT`."""
    failed: NDArray[np.int16]
    """Which of `reasons`."""
    states: Mapping[RuleKey, NDArray[np.uint8]]
    columns: pl.DataFrame
    """What ranks, preferences and caps look at."""
    evidence: Texts

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class PoolBuilder:
    """Gathers a pool from what is kept of its parts."""

    sources: tuple[str, ...]
    rules: Sequence[RuleKey]
    columns: Sequence[str]
    """What was kept as it is."""
    _blocks: list[Block] = field(default_factory=list)
    _num_rows: int = 0
    _judged: list[Judged] = field(default_factory=list)
    _reasons: dict[Reason, int] = field(default_factory=lambda: {KEPT: 0})
    _failed: list[NDArray[np.int16]] = field(default_factory=list)
    _evidence_rows: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, parts: Sequence[tuple[str, str, int]], judged: Judged) -> None:
        """Take in a run of parts (source, part, rows), and what is kept of their rows."""
        self._evidence_rows.append(judged.evidence_rows + self._num_rows)
        for source, part, num_rows in parts:
            self._blocks.append(Block(source, part, self._num_rows, self._num_rows + num_rows))
            self._num_rows += num_rows
        numbers = [self._reasons.setdefault(reason, len(self._reasons)) for reason in judged.reasons]
        self._failed.append(np.array(numbers, np.int16)[judged.failed])
        self._judged.append(judged)

    def finish(self) -> Pool:
        """The pool of all parts, in the order they came."""
        source = np.repeat(
            np.array([self.sources.index(block.source) for block in self._blocks], np.int16),
            [block.end - block.begin for block in self._blocks],
        )
        return Pool(
            sources=self.sources,
            blocks=tuple(self._blocks),
            keys=Keys.joined([judged.keys for judged in self._judged]),
            source=source,
            reasons=tuple(self._reasons),
            failed=np.concatenate([np.zeros(0, np.int16), *self._failed]),
            states={
                key: np.concatenate([np.zeros(0, np.uint8), *(judged.states[number] for judged in self._judged)])
                for number, key in enumerate(self.rules)
            },
            columns=self._all_columns(source),
            evidence=Texts(
                np.concatenate([np.zeros(0, np.int64), *self._evidence_rows]),
                pa.chunked_array([judged.evidence for judged in self._judged], pa.large_string()),
            ),
        )

    def _all_columns(self, source: NDArray[np.int16]) -> pl.DataFrame:
        if not self._judged:
            return pl.DataFrame({name: [] for name in self.columns})
        columns = pl.concat([judged.columns for judged in self._judged], rechunk=True)
        if "source" in self.columns:
            names = pl.Series("source", self.sources, pl.Enum(self.sources))
            columns = columns.with_columns(names.gather(source))
        return columns
