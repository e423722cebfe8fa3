"""The ledger: what became of every candidate, and the proof that none was lost or counted twice.

Candidates and verdicts go in; the ledger, the funnel over it and the score histograms come out. The ledger
judges nothing: verdicts were made at select.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.errors import LedgerError
from dataengine.schemas import FUNNEL, HISTOGRAM, LEDGER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_BINS = 50
MIN_WIDTH = 1e-9  # narrower bins are below what float32 scores tell apart
_EVIDENCE = ("stage", "reason", "rule_value", "survivor_key", "similarity")


def build_ledger(candidates: pa.Table, selection: pa.Table) -> pa.Table:
    """LEDGER of `candidates` [key, num_rows, source, url] under `selection` (SELECTION), in any order.

    Evidence of a drop is null on emitted rows. Raises LedgerError when the two do not hold the same keys.
    """
    left, right = candidates.sort_by("key"), selection.sort_by("key")
    if not left.column("key").equals(right.column("key")):
        raise LedgerError(_key_difference(left.column("key"), right.column("key")))
    kept = pc.equal(right.column("verdict"), "kept")
    columns = {name: left.column(name) for name in ("key", "num_rows", "source", "url")}
    columns["state"] = pc.if_else(kept, "emitted", "dropped")
    columns |= {
        name: pc.if_else(kept, pa.scalar(None, right.schema.field(name).type), right.column(name)) for name in _EVIDENCE
    }
    return LEDGER.table(columns)


def check_ledger(ledger: pa.Table, num_input_rows: Mapping[str, int]) -> None:
    """Prove that the ledger closes: every input row is in one state, and every drop has its reason.

    Raises LedgerError with the numbers of each source that does not add up, or the first drop without a
    reason.
    """
    table = pl.DataFrame(pl.from_arrow(ledger))
    found = dict(table.group_by("source").agg(pl.col("num_rows").sum()).iter_rows())
    wrong = {
        source: (num_input_rows.get(source, 0), found.get(source, 0))
        for source in sorted(num_input_rows.keys() | found.keys())
        if num_input_rows.get(source, 0) != found.get(source, 0)
    }
    if wrong:
        numbers = "; ".join(
            f"{source}: {wanted} rows in, {got} in the ledger" for source, (wanted, got) in wrong.items()
        )
        raise LedgerError(f"the ledger does not close. {numbers}. Nothing was published.")
    silent = table.filter((pl.col("state") != "emitted") & (pl.col("stage").is_null() | pl.col("reason").is_null()))
    if len(silent):
        raise LedgerError(
            f"{len(silent)} rows were dropped without a stage and reason, the first is {silent['key'][0]}"
        )


def funnel(ledger: pa.Table) -> pa.Table:
    """FUNNEL: candidates and input rows by source, state, stage and reason."""
    columns = list(FUNNEL.sorted_by)
    table = pl.DataFrame(pl.from_arrow(ledger))
    counts = table.group_by(columns).agg(
        num_candidates=pl.len().cast(pl.Int64), num_rows=pl.col("num_rows").cast(pl.Int64).sum()
    )
    ordered = counts.sort(columns, nulls_last=True).to_arrow()
    return FUNNEL.table({name: ordered.column(name) for name in FUNNEL.arrow.names})


def histograms(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """HISTOGRAM of the score `columns` of `rows` [source, verdict, *columns]; nulls are in no bin.

    Bins are alike over the sources of a column: at most 50 + 1, as wide as 1, 2 or 5 times a power of ten,
    with edges at multiples of that, so that the bins of two datasets line up.
    """
    tables = [_histogram(rows, name) for name in sorted(columns)]
    merged = pa.concat_tables(tables) if tables else HISTOGRAM.empty()
    ordered = merged.sort_by([(name, "ascending") for name in HISTOGRAM.sorted_by])
    return HISTOGRAM.check(ordered.combine_chunks())


def _histogram(rows: pa.Table, name: str) -> pa.Table:
    scored = rows.filter(pc.fill_null(pc.is_finite(rows.column(name)), False))
    if not len(scored):
        return HISTOGRAM.empty()
    values = scored.column(name).to_numpy().astype(np.float64)
    edges = bin_edges(float(values.min()), float(values.max()))
    num_bins = len(edges) - 1
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, num_bins - 1)
    source = scored.column("source").combine_chunks().dictionary_encode()
    cells = source.indices.to_numpy().astype(np.int64) * num_bins + bins
    kept = pc.equal(scored.column("verdict"), "kept").to_numpy()
    size = len(source.dictionary) * num_bins
    return HISTOGRAM.table(
        {
            "source": source.dictionary.take(pa.array(np.repeat(np.arange(len(source.dictionary)), num_bins))),
            "column": pa.array([name] * size),
            "low": np.tile(edges[:-1], len(source.dictionary)),
            "high": np.tile(edges[1:], len(source.dictionary)),
            "num_scored": np.bincount(cells, minlength=size),
            "num_emitted": np.bincount(cells[kept], minlength=size),
        }
    )


def bin_edges(low: float, high: float) -> NDArray[np.float64]:
    """Edges of equal bins that cover [low, high], at multiples of a round width: float64 [bins + 1]."""
    least = (high - low) / MAX_BINS
    power = 10.0 ** math.floor(math.log10(least)) if least > MIN_WIDTH else 1.0
    width = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    multiples = np.arange(math.floor(low / width), math.floor(high / width) + 2)
    return np.round(multiples * width, 12)  # 0.3 rather than 0.30000000000000004


def _key_difference(candidates: pa.ChunkedArray, selected: pa.ChunkedArray) -> str:
    lost = candidates.filter(pc.invert(pc.is_in(candidates, value_set=selected.combine_chunks())))
    strange = selected.filter(pc.invert(pc.is_in(selected, value_set=candidates.combine_chunks())))
    examples = ", ".join([*lost[:2].to_pylist(), *strange[:2].to_pylist()]) or "keys are repeated"
    return (
        f"{len(candidates)} candidates and {len(selected)} verdicts: {len(lost)} candidates without "
        f"a verdict, {len(strange)} verdicts without a candidate ({examples})"
    )
