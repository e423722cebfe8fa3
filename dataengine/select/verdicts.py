"""The decision written down: SELECTION rows of any run of the pool, and the captions that survivors take over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from dataengine.schemas import CAPTIONS, SELECTION
from dataengine.select.keyed import ABSENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.select.pool import Pool
    from dataengine.select.selection import Decision

_SPLITS = pa.array(["train", "holdout"])


@dataclass(frozen=True)
class Merged:
    """Captions that kept rows take over: `lists` belongs to `rows`, ascending."""

    rows: NDArray[np.int64]
    lists: pl.Series

    @staticmethod
    def none() -> Merged:
        """Nobody takes over any."""
        return Merged(np.zeros(0, np.int64), pl.Series("caption", [], pl.List(pl.String)))


def num_by_reason(decision: Decision) -> dict[str, int]:
    """Rows by reason, those to publish as `kept`; what nothing was dropped for is left out."""
    counts: dict[str, int] = {}
    for (_, reason), number in zip(decision.reasons, np.bincount(decision.reason).tolist(), strict=False):
        if number:
            counts[reason or "kept"] = counts.get(reason or "kept", 0) + number
    return counts


def donors_and_heirs(decision: Decision) -> NDArray[np.bool_]:
    """Rows whose captions `merge_captions` wants: those that yielded to a kept row, and these: bool [rows]."""
    wanted = np.zeros(len(decision.reason), np.bool_)
    donors = np.flatnonzero(decision.survivor != ABSENT)
    donors = donors[decision.kept[decision.survivor[donors]]]
    wanted[donors] = True
    wanted[decision.survivor[donors]] = True
    return wanted


def merge_captions(decision: Decision, pool: Pool, rows: NDArray[np.int64], captions: pl.Series) -> Merged:
    """The captions that kept rows take over from those that yielded to them, other than their own, each once.

    `captions` are those of `rows`, which `donors_and_heirs` named; donors give in key order.
    """
    texts = pl.DataFrame({"row": rows, "caption": captions})
    survivor = decision.survivor[rows]
    donors = survivor != ABSENT
    keys = pool.keys.take(rows[donors])
    given = texts.filter(pl.Series(donors)).with_columns(
        pl.Series("survivor", survivor[donors].astype(np.int64)),
        pl.Series("high", keys.high),
        pl.Series("low", keys.low),
    )
    taken = (
        given.join(texts.rename({"row": "survivor", "caption": "own"}), on="survivor")
        .filter((pl.col("caption") != pl.col("own")) & (pl.col("caption") != ""))
        .sort("survivor", "high", "low")
        .unique(["survivor", "caption"], keep="first", maintain_order=True)
        .group_by("survivor", maintain_order=True)
        .agg("caption")
    )
    return Merged(taken["survivor"].to_numpy(), taken["caption"])


def selection_table(decision: Decision, pool: Pool, merged: Merged, begin: int, end: int) -> pa.Table:
    """SELECTION of the pool's rows `begin` to `end`, in their order; checked when it is written."""
    here = slice(begin, end)
    rows = np.arange(begin, end)
    reason = decision.reason[here]
    stages, reasons = (pa.array([pair[what] for pair in decision.reasons], pa.string()) for what in (0, 1))
    number = pa.array(reason.astype(np.int32))
    dropped = reason != 0
    survivor = decision.survivor[here]
    evidence = pa.nulls(end - begin, pa.large_string())
    for texts in decision.words:
        evidence = texts.within(begin, end, evidence)
    draw = decision.draw[here]
    columns: dict[str, Any] = {
        "key": pool.keys.texts(rows),
        "source": pa.array(pool.sources, pa.string()).take(pa.array(pool.source[here])),
        "verdict": pa.array(["kept", "dropped"]).take(pa.array(dropped.astype(np.int8))),
        "stage": stages.take(number),
        "reason": reasons.take(number),
        "rule_value": pa.compute.if_else(pa.array(dropped), evidence, pa.scalar(None, pa.large_string())),
        "group_key": pool.keys.texts(decision.group[here]),
        "survivor_key": pool.keys.texts(survivor),
        "similarity": pa.array(decision.similarity[here], mask=decision.similarity[here] == 0),
        "split": _SPLITS.take(pa.array(decision.held_out[here].astype(np.int8))),
        "repeat": decision.repeat[here],
        "draw": pa.array(draw, mask=np.isnan(draw)),
        "merged_captions": _merged_maps(merged, begin, end),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in SELECTION.arrow]
    return pa.Table.from_arrays(arrays, schema=SELECTION.arrow)


def _merged_maps(merged: Merged, begin: int, end: int) -> pa.Array:
    """The lists of rows `begin` to `end` as maps `merged_1`, `merged_2` ... → text, empty where there is none."""
    first, last = np.searchsorted(merged.rows, [begin, end])
    lists = merged.lists.slice(first, last - first)
    counts = np.zeros(end - begin, np.int64)
    counts[merged.rows[first:last] - begin] = lists.list.len().to_numpy()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    captions = lists.explode(empty_as_null=False) if len(lists) else pl.Series([], dtype=pl.String)
    numbers = np.arange(len(captions)) - np.repeat(offsets[:-1], counts) + 1
    names = pl.select(pl.format("merged_{}", pl.Series(numbers))).to_series()
    return pa.MapArray.from_arrays(
        pa.array(offsets, pa.int32()), names.to_arrow().cast(pa.string()), captions.to_arrow().cast(pa.string())
    ).cast(CAPTIONS)
