"""How tables look on a terminal."""

from __future__ import annotations

from typing import Any

import polars as pl
from rich.markup import escape
from rich.table import Table


def as_table(frame: pl.DataFrame, title: str) -> Table:
    """A frame as a table; numbers to the right, with separators."""
    table = Table(title=title, title_justify="left")
    for name, kind in frame.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*(_cell(value) for value in row))
    return table


def printable(value: Any) -> str:
    """`value` as text that cannot move the cursor or recolour the terminal: inputs are written by strangers."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in str(value))


def funnel_table(funnel: pl.DataFrame) -> Table:
    """FUNNEL with one column per source: where every input row ended, in the order of the stages."""
    order = {"sources": 0, "download": 1, "score": 2, "select": 3, None: 4}
    sources = sorted(funnel["source"].unique())
    wide = funnel.with_columns(pl.col("stage").fill_null("emitted"), pl.col("reason").fill_null("")).pivot(
        "source", index=["stage", "reason"], values="num_rows", aggregate_function="sum", sort_columns=True
    )
    rows = sorted(
        wide.iter_rows(named=True),
        key=lambda row: (order.get(row["stage"], 4), -sum(row[name] or 0 for name in sources)),
    )
    table = Table(
        "stage", "reason", title="Funnel: where every input row ended", title_justify="left", show_footer=True
    )
    for name in (*sources, "all"):
        total = funnel.filter(pl.col("source") == name)["num_rows"].sum() if name != "all" else funnel["num_rows"].sum()
        table.add_column(name, justify="right", footer=f"{total:,}")
    table.columns[0].footer = "input rows"
    for row in rows:
        counts = [row[name] or 0 for name in sources]
        style = "bold green" if row["stage"] == "emitted" else None
        table.add_row(row["stage"], row["reason"], *(_count(n) for n in counts), f"{sum(counts):,}", style=style)
    return table


def _count(number: int) -> str:
    return f"{number:,}" if number else "·"


def _cell(value: Any) -> str:
    if value is None:
        return "·"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(printable(value))
