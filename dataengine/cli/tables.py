"""How tables look on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from rich.markup import escape
from rich.table import Table


def sources_table(sources: pl.DataFrame) -> Table:
    """What each source gave, and its place in the mixture."""
    table = Table(
        "source", "input rows", "emitted", "kept", "asked", "drawn", "share", title="Sources", title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in sources.iter_rows(named=True):
        counts = (row["num_rows"], row["num_emitted"])
        draws = (_cell(row["asked"]), _cell(row["num_draws"]), _share(row["share_draws"]))
        table.add_row(escape(row["source"]), *(f"{count:,}" for count in counts), _share(row["share_kept"]), *draws)
    return table


def score_tables(quantiles: pl.DataFrame) -> Iterator[Table]:
    """One narrow table per score: its distribution in each source."""
    shown = ("min", "q5", "q25", "q50", "q75", "q95", "max")
    for (score,), rows in quantiles.group_by(["score"], maintain_order=True):
        table = Table(
            "source", "samples", *shown, title=f"{escape(str(score))} of emitted samples", title_justify="left"
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows.iter_rows(named=True):
            table.add_row(escape(row["source"]), f"{row['num_scored']:,}", *(_cell(row[name]) for name in shown))
        yield table


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
        table.add_row(
            escape(row["stage"]), escape(row["reason"]), *(_count(n) for n in counts), f"{sum(counts):,}", style=style
        )
    return table


def _count(number: int) -> str:
    return f"{number:,}" if number else "·"


def _share(value: float | None) -> str:
    return "·" if value is None else f"{value:.1%}"


def _cell(value: float | None) -> str:
    return "·" if value is None else f"{value:,.3f}" if value != int(value) else f"{int(value):,}"


def printable(value: object) -> str:
    """`value` as text without control characters, with which a hostile URL or caption could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in str(value))
