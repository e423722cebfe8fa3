"""Summaries of a published version: funnel, sources, scores. A dataset in, small Polars frames out."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from dataengine.analyst.dataset import Dataset
from dataengine.analyst.quantiles import score_values, summary

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def funnel_table(dataset: Dataset) -> pl.DataFrame:
    """The funnel with each line's share of its source's input rows, largest first within a source.

    Columns: source, state, stage, reason, num_candidates, num_rows, share_rows.
    """
    share = pl.col("num_rows") / pl.col("num_rows").sum().over("source")
    return (
        dataset.funnel()
        .with_columns(share_rows=share)
        .sort("source", "num_rows", "state", "stage", "reason", descending=[False, True, False, False, False])
        .collect()
    )


def per_source(dataset: Dataset) -> pl.DataFrame:
    """One row per source: its counts, the share of candidates kept, and its place in the mixture.

    Columns: source, license, num_rows, num_candidates, num_emitted, num_draws, share_kept (null without
    candidates), asked and realised (draws, as the manifest's mixture states them; null where it states
    none), share_draws.
    """
    mixture = dataset.manifest["mixture"]["sources"]
    rows = [
        {
            "source": name,
            **counts,
            **{what: mixture.get(name, {}).get(what) for what in ("asked", "realised")},
        }
        for name, counts in dataset.manifest["sources"].items()
    ]
    schema: dict[str, pl.DataType | type[pl.DataType]] = {"source": pl.String, "license": pl.String}
    schema |= dict.fromkeys(("num_rows", "num_candidates", "num_emitted", "num_draws"), pl.Int64)
    schema |= dict.fromkeys(("asked", "realised"), pl.Float64)
    num_candidates, total = pl.col("num_candidates"), pl.col("num_draws").sum()
    return pl.DataFrame(rows, schema=schema).select(
        *("source", "license", "num_rows", "num_candidates", "num_emitted", "num_draws"),
        pl.when(num_candidates > 0).then(pl.col("num_emitted") / num_candidates).alias("share_kept"),
        *("asked", "realised"),
        pl.when(total > 0).then(pl.col("num_draws") / total).alias("share_draws"),
    )


def score_quantiles(dataset: Dataset, quantiles: Sequence[float] = QUANTILES) -> pl.DataFrame:
    """Quantiles of every score of the emitted samples, one row per source and score, sorted so.

    Columns: source, score, num_scored, num_missing, min, q1 ... q99 (of 100, one per quantile asked), max. Raises
    CorruptObject when a part cannot be read, or there are other samples than the manifest counts.
    """
    rows = [
        {"source": source, "score": score, **summary(values, quantiles)}
        for source, score, values in score_values(dataset, dataset.score_names())
    ]
    marks = ("min", *(f"q{quantile * 100:g}" for quantile in quantiles), "max")
    schema: dict[str, type[pl.DataType]] = {"source": pl.String, "score": pl.String}
    schema |= dict.fromkeys(("num_scored", "num_missing"), pl.Int64) | dict.fromkeys(marks, pl.Float64)
    return pl.DataFrame(rows, schema=schema).sort("source", "score")
