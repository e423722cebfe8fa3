"""What DuckDB and Polars do in the benchmark of select.

The same conditions over the same files, counted by the first that a row fails; the same quantiles of the same table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from dataengine.analyst.stats import QUANTILES

RULES = {
    "min_side": "least(width, height) >= 256",
    "aspect": "greatest(width, height) <= 3 * least(width, height)",
    "caption": "caption_chars >= 8",
    "clip_score": "clip_score >= 0.25",
    "safe": "nsfw < 0.2 AND watermark < 0.5",
    "aesthetic": "aesthetic >= 4.5",
}
THREADS = 2


def _files(folder: Path) -> tuple[list[str], list[str]]:
    """The samples and the scores of each part, in one order."""
    run = folder / "runs" / "bench"
    samples, scores = (run.glob(f"{name}.parquet") for name in ("download/*/data/*.sample", "score/*/data/*.score"))
    return sorted(map(str, samples)), sorted(map(str, scores))


def rules_polars(folder: Path, _: int) -> dict[str, Any]:
    """The same with a lazy Polars query."""
    samples, scores = _files(folder)
    frame = pl.concat([pl.scan_parquet(samples), pl.scan_parquet(scores).drop("key")], how="horizontal")
    failed = pl.lit(-1, pl.Int16)
    for number, text in reversed(list(enumerate(RULES.values()))):
        failed = pl.when(~pl.sql_expr(text).fill_null(value=False)).then(pl.lit(number, pl.Int16)).otherwise(failed)
    counts = frame.select(failed.alias("failed")).group_by("failed").len().collect(engine="streaming")
    return {"passed": dict(counts.iter_rows())[-1]}


def rules_duckdb(folder: Path, _: int) -> dict[str, Any]:
    """The same with DuckDB."""

    samples, scores = _files(folder)
    cases = " ".join(f"WHEN NOT coalesce({text}, false) THEN {number}" for number, text in enumerate(RULES.values()))
    database = duckdb.connect(config={"threads": THREADS})
    found = database.execute(
        f"SELECT CASE {cases} ELSE -1 END AS failed, count(*) FROM read_parquet({samples!r}) POSITIONAL JOIN "
        f"(SELECT * EXCLUDE (key) FROM read_parquet({scores!r})) GROUP BY failed"
    ).fetchall()
    return {"passed": dict(found)[-1]}


def _samples(folder: Path) -> str:
    return str(folder / "datasets" / "bench" / "v000001" / "samples" / "*.parquet")


def stats_polars(folder: Path, _: int) -> dict[str, Any]:
    """The same quantiles with a lazy Polars query."""

    found = (
        pl.scan_parquet(_samples(folder))
        .group_by("source")
        .agg(
            pl.col(score).quantile(share, "linear").alias(f"{score}{share}")
            for score in ("clip_score", "aesthetic")
            for share in (0, *QUANTILES, 1)
        )
        .collect(engine="streaming")
    )
    return {"median": round(float(found.filter(source="laion")["clip_score0.5"][0]), 6)}


def stats_duckdb(folder: Path, _: int) -> dict[str, Any]:
    """The same quantiles with DuckDB."""

    database = duckdb.connect(config={"threads": THREADS})
    columns = ", ".join(f"quantile_cont({name}, {[0, *QUANTILES, 1]})" for name in ("clip_score", "aesthetic"))
    query = f"SELECT source, {columns} FROM read_parquet('{_samples(folder)}') GROUP BY source"
    found = {source: clip for source, clip, _ in database.execute(query).fetchall()}
    return {"median": round(float(found["laion"][1 + QUANTILES.index(0.5)]), 6)}
