"""Judging rows as their tables pass by: texts are looked at once and let go, and narrow columns of numbers stay.

Keys become numbers, a rule's columns become its states, and of the rows that failed only the words of evidence stay.
One table in, what the pool keeps of it out; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Judged:
    """What is kept of some rows, in their order; columns are [rows]."""

    keys: Keys
    reasons: tuple[Reason, ...]
    """What rows failed for before select; the first is `KEPT`."""
    failed: NDArray[np.int16]
    """Which of `reasons`."""
    states: Sequence[NDArray[np.uint8]]
    """By rule."""
    columns: pl.DataFrame
    evidence_rows: NDArray[np.int64]
    """Rows that words are kept about, ascending."""
    evidence: pa.Array
    """These words, large_string."""


@dataclass(frozen=True)
class Judge:
    """What to look at, and what to keep."""

    rules: Mapping[RuleKey, RowRule]
    columns: Sequence[str]
    """What to keep as it is; `source` is not a column of tables."""
    with_evidence: bool = True

    def judge(self, table: pa.Table) -> Judged:
        """What is kept of a table: key, status, reason, detail, score_status, and all that rules and `columns` name.

        Raises ConfigError when a rule cannot be computed on a row.
        """
        keys = Keys.parse(table.column("key"))
        if "key" not in {*self.columns, *(column for rule in self.rules.values() for column in rule.columns)}:
            table = table.drop_columns(["key"])
        frame = pl.DataFrame(pl.from_arrow(table)).with_columns(cs.float().fill_nan(None))
        usable = _usable(frame)
        reasons, failed = _failures(frame, usable)
        under = states(frame, list(self.rules.values()))
        columns = frame.select(name for name in self.columns if name != "source")
        rows, words = self._evidence(frame, usable, under) if self.with_evidence else (np.zeros(0, np.int64), _NO_WORDS)
        return Judged(keys, reasons, failed, under, columns, rows, words)

    def _evidence(
        self, frame: pl.DataFrame, usable: NDArray[np.bool_], under: Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.int64], pa.Array]:
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
        return all_rows[order], texts.to_arrow().cast(pa.large_string())


_NO_WORDS = pa.array([], pa.large_string())


def _usable(frame: pl.DataFrame) -> NDArray[np.bool_]:
    usable = (pl.col("status") == "ok") & (pl.col("score_status") == "ok")
    return frame.select(usable.fill_null(value=False)).to_series().to_numpy()


def _failures(frame: pl.DataFrame, usable: NDArray[np.bool_]) -> tuple[tuple[Reason, ...], NDArray[np.int16]]:
    """What rows failed for before select, and which of that each row did."""
    failed = np.zeros(len(frame), np.int16)
    if usable.all():
        return (KEPT,), failed
    downloaded = pl.col("status") == "ok"
    reasons = frame.filter(~usable).select(
        stage=pl.when(downloaded).then(pl.lit("score")).otherwise(pl.lit("download")),
        reason=pl.when(downloaded).then(pl.col("score_status").fill_null("missing")).otherwise("reason"),
    )
    different = reasons.unique().sort("stage", "reason")
    numbers = different.with_columns(number=pl.int_range(1, len(different) + 1, dtype=pl.Int16))
    joined = reasons.join(numbers, on=["stage", "reason"], how="left", maintain_order="left", nulls_equal=True)
    failed[~usable] = joined["number"].to_numpy()
    return (KEPT, *different.rows()), failed
