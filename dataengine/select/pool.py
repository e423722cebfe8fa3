"""The pool: every candidate of every source as narrow columns of numbers, gathered as its tables pass by.

Texts are looked at once and let go: keys become numbers, a rule's columns become its states, and of the rows that
failed only the words of evidence stay. So 24 million candidates are a few gigabytes, whatever their URLs and captions
weigh. Tables in part order come in; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow as pa

from dataengine.select.keyed import Keys
from dataengine.select.rules import RowRule, first_failed, states, values_seen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.select import Rule

RuleKey = tuple[str, "Rule"]
"""Name and config of a rule: equal ones of two configs have the same states."""
Reason = tuple[str | None, str | None]
"""Stage and reason of a drop."""
KEPT: Reason = (None, None)
ROWS_AT_ONCE = 250_000
"""Rows judged together: enough that calls cost nothing, few enough that others are read meanwhile."""


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
    """Gathers a pool from the tables of its parts."""

    sources: tuple[str, ...]
    rules: Mapping[RuleKey, RowRule]
    columns: Sequence[str]
    """What to keep as it is."""
    with_evidence: bool = True
    _blocks: list[Block] = field(default_factory=list)
    _waiting: list[pa.Table] = field(default_factory=list)
    _num_waiting: int = 0
    _num_rows: int = 0
    _keys: list[Keys] = field(default_factory=list)
    _source: list[NDArray[np.int16]] = field(default_factory=list)
    _reasons: dict[Reason, int] = field(default_factory=lambda: {KEPT: 0})
    _failed: list[NDArray[np.int16]] = field(default_factory=list)
    _states: list[list[NDArray[np.uint8]]] = field(default_factory=list)
    _columns: list[pl.DataFrame] = field(default_factory=list)
    _evidence: list[tuple[NDArray[np.int64], pa.Array]] = field(default_factory=list)

    def add(self, source: str, part: str, table: pa.Table) -> None:
        """Take in a part: key, status, reason, detail, score_status, and every column that rules and `columns` name.

        Raises ConfigError when a rule cannot be computed on a row.
        """
        begin = self._num_rows + self._num_waiting
        self._blocks.append(Block(source, part, begin, begin + len(table)))
        self._source.append(np.full(len(table), self.sources.index(source), np.int16))
        self._waiting.append(table)
        self._num_waiting += len(table)
        if self._num_waiting >= ROWS_AT_ONCE:
            self._flush()

    def finish(self) -> Pool:
        """The pool of all parts, in the order they came."""
        self._flush()
        none = pa.chunked_array([[]], pa.large_string())
        rows = [rows for rows, _ in self._evidence]
        columns = (
            pl.concat(self._columns, rechunk=True)
            if self._columns
            else pl.DataFrame({name: [] for name in self.columns})
        )
        source = np.concatenate([np.zeros(0, np.int16), *self._source])
        if "source" in self.columns:
            names = pl.Series("source", self.sources, pl.Enum(self.sources))
            columns = columns.with_columns(names.gather(source))
        return Pool(
            sources=self.sources,
            blocks=tuple(self._blocks),
            keys=Keys.joined(self._keys),
            source=source,
            reasons=tuple(self._reasons),
            failed=np.concatenate([np.zeros(0, np.int16), *self._failed]),
            states={
                key: np.concatenate([np.zeros(0, np.uint8), *(batch[number] for batch in self._states)])
                for number, key in enumerate(self.rules)
            },
            columns=columns,
            evidence=Texts(
                np.concatenate([np.zeros(0, np.int64), *rows]),
                pa.chunked_array([words for _, words in self._evidence], pa.large_string()) if rows else none,
            ),
        )

    def _flush(self) -> None:
        if not self._waiting:
            return
        table, self._waiting = pa.concat_tables(self._waiting), []
        self._keys.append(Keys.parse(table.column("key")))
        if "key" not in {*self.columns, *(column for rule in self.rules.values() for column in rule.columns)}:
            table = table.drop_columns(["key"])
        frame = pl.DataFrame(pl.from_arrow(table))
        frame = frame.with_columns(cs.float().fill_nan(None))
        usable = _usable(frame)
        self._failed.append(self._failures(frame, usable))
        under = states(frame, list(self.rules.values()))
        self._states.append(under)
        self._columns.append(frame.select(name for name in self.columns if name != "source"))
        if self.with_evidence:
            self._gather_evidence(frame, usable, under)
        self._num_rows, self._num_waiting = self._num_rows + len(frame), 0

    def _failures(self, frame: pl.DataFrame, usable: NDArray[np.bool_]) -> NDArray[np.int16]:
        """The number of what each row failed for before select."""
        failed = np.zeros(len(frame), np.int16)
        if usable.all():
            return failed
        downloaded = pl.col("status") == "ok"
        reasons = frame.filter(~usable).select(
            stage=pl.when(downloaded).then(pl.lit("score")).otherwise(pl.lit("download")),
            reason=pl.when(downloaded).then(pl.col("score_status").fill_null("missing")).otherwise("reason"),
        )
        different = reasons.unique().sort("stage", "reason").rows()
        for pair in different:
            self._reasons.setdefault(pair, len(self._reasons))
        numbers = pl.DataFrame(
            [(*pair, self._reasons[pair]) for pair in different],
            schema={"stage": pl.String, "reason": pl.String, "number": pl.Int16},
            orient="row",
        )
        joined = reasons.join(numbers, on=["stage", "reason"], how="left", maintain_order="left", nulls_equal=True)
        failed[~usable] = joined["number"].to_numpy()
        return failed

    def _gather_evidence(
        self, frame: pl.DataFrame, usable: NDArray[np.bool_], under: Sequence[NDArray[np.uint8]]
    ) -> None:
        """What a failed download saw, and the values that the first failing rule over one row saw."""
        seen = frame.select(pl.when(pl.col("status") != "ok").then("detail").alias("words")).to_series()
        words = [seen.filter(pl.Series(~usable))]
        rows = [np.flatnonzero(~usable)]
        first = first_failed(under, len(frame))
        for number, rule in enumerate(self.rules.values()):
            at = np.flatnonzero((first == number) & usable)
            rows.append(at)
            words.append(values_seen(frame.select(rule.columns)[at], rule.columns))
        all_rows = np.concatenate(rows)
        order = np.argsort(all_rows, kind="stable")
        texts = pl.concat([text.cast(pl.String).alias("words") for text in words]).gather(order)
        self._evidence.append((all_rows[order] + self._num_rows, texts.to_arrow().cast(pa.large_string())))


def _usable(frame: pl.DataFrame) -> NDArray[np.bool_]:
    usable = (pl.col("status") == "ok") & (pl.col("score_status") == "ok")
    return frame.select(usable.fill_null(value=False)).to_series().to_numpy()
