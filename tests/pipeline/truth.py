"""Holds a published sample-web dataset against the truth that was planted."""

from __future__ import annotations

from pathlib import Path

import polars as pl


def load(root: Path, version: Path) -> pl.DataFrame:
    """Truth joined with the ledger by (source, url): one row per planted candidate and per ledger row."""
    truth = pl.read_parquet(root / "sample-web" / "truth.parquet")
    ledger = pl.read_parquet(version / "ledger" / "*.parquet")
    # Duplicate members share a URL with the sample they repeat; both lists are in the order of their occurrence.
    return truth.join(ledger, on=["source", "url"], how="full", nulls_equal=True, suffix="_ledger", coalesce=True)


def violations(joined: pl.DataFrame) -> list[str]:
    """Everything in which the ledger differs from the truth, one line each."""
    found = [
        f"truth without ledger row: {row['source']} {row['url']}" for row in _rows(joined, pl.col("key").is_null())
    ]
    found += [f"ledger row nobody planted: {row['key']}" for row in _rows(joined, pl.col("kind").is_null())]
    found += [
        f"{row['kind']} {row['source']} {row['url']}: wanted {row['expected_stage']}/{row['expected_reason']}, "
        f"got {row['state']} {row['stage']}/{row['reason']} {row['rule_value']}"
        for row in _rows(joined, ~_as_expected())
    ]
    found += [
        f"{row['source']} {row['url']}: wanted {row['num_rows']} input rows, got {row['num_rows_ledger']}"
        for row in _rows(joined, pl.col("num_rows") != pl.col("num_rows_ledger"))
    ]
    return found + _group_violations(joined)


def _as_expected() -> pl.Expr:
    dropped_there = (pl.col("stage") == pl.col("expected_stage")) & (pl.col("reason") == pl.col("expected_reason"))
    drawn_or_not = (pl.col("state") == "emitted") | (pl.col("reason") == "balance")
    yields = pl.col("group").is_not_null() & (pl.col("reason") == "duplicate_image")
    eligible = pl.col("expected_state") != "dropped"
    return pl.when(eligible).then(drawn_or_not | yields).otherwise(dropped_there).fill_null(False)


def _group_violations(joined: pl.DataFrame) -> list[str]:
    """Of every planted group exactly one row is left, and the others yield to it."""
    found = []
    members = joined.filter(pl.col("group").is_not_null() & (pl.col("expected_state") != "dropped"))
    for (group,), rows in members.group_by(["group"]):
        kept = rows.filter(pl.col("reason").is_null() | (pl.col("reason") == "balance"))["key"].to_list()
        if len(kept) != 1:
            found.append(
                f"group {group}: wanted one row to be left, got {len(kept)} of {len(rows)}: {rows['kind'].to_list()}"
            )
            continue
        strangers = rows.filter((pl.col("reason") == "duplicate_image") & (pl.col("survivor_key") != kept[0]))
        found += [f"group {group}: {key} yields to a stranger" for key in strangers["key"]]
    return found


def _rows(frame: pl.DataFrame, condition: pl.Expr) -> list[dict[str, object]]:
    return frame.filter(condition).to_dicts()
