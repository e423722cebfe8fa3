"""How downloads went, as tables: outcomes and pace by source, and what politeness to single hosts will cost."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from rich.table import Table

from dataengine.cli.tables import printable
from dataengine.download.metrics import Summary

_NUM_HOSTS = 3
_NUM_SLOWEST = 5


def downloads_table(summaries: Mapping[str, Summary]) -> Table:
    """A row per source: what was asked for, what came, and who was slow."""
    table = Table("source", "URLs", "ok", "MB", "reasons", "slowest hosts", title="Download", title_justify="left")
    for column in table.columns[1:4]:
        column.justify = "right"
    for source, summary in summaries.items():
        slow = ", ".join(
            f"{printable(host)} {seconds:.1f} s × {number:,}"
            for host, number, seconds in summary.slow_hosts[:_NUM_HOSTS]
        )
        megabytes = f"{summary.num_body_bytes / 1e6:,.1f}"
        table.add_row(
            source, f"{summary.num_urls:,}", f"{summary.ok_share:.1%}", megabytes, summary.worst(5) or "-", slow or "-"
        )
    return table


def politeness_table(hosts: pa.Table, rate_text: str) -> Table:
    """The hosts whose URLs take longest; `hosts` as `politeness_hours` gives them."""
    table = Table("host", "URLs", "hours at least", title=f"Politeness: {rate_text}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in hosts.slice(0, _NUM_SLOWEST).to_pylist():
        table.add_row(printable(row["host"]), f"{row['num_urls']:,}", f"{row['hours']:,.2f}")
    return table
