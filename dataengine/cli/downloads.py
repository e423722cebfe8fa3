"""How downloads went, as tables: outcomes and pace by source, and what politeness to single hosts will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
from rich.table import Table

from dataengine.cli.tables import printable
from dataengine.download.metrics import Summary

_NUM_HOSTS = 3
_NUM_SLOWEST = 5


def most_common(reasons: Counter[str], number: int) -> str:
    """The most frequent reasons, and how many others there are."""
    shown = [f"{name} {count:,}" for name, count in reasons.most_common(number)]
    num_others = len(reasons) - len(shown)
    return ", ".join([*shown, f"{num_others} more reason{'s' * (num_others > 1)}"] if num_others > 0 else shown)


def downloads_table(sources: Mapping[str, tuple[Counter[str], Summary]]) -> Table:
    """A row per source: its rows by reason as they stand, and how the last pass over each part went."""
    table = Table("source", "rows", "ok", "MB", "reasons", "slowest hosts", title="Download", title_justify="left")
    table.caption = "MB and hosts are those of the last pass over each part."
    table.caption_justify = "left"
    for column in table.columns[1:4]:
        column.justify = "right"
    for source, (reasons, summary) in sources.items():
        num_rows, failures = reasons.total(), Counter({name: n for name, n in reasons.items() if name != "ok"})
        slow = ", ".join(
            f"{printable(host)} {seconds:.1f} s × {number:,}"
            for host, number, seconds in summary.slow_hosts[:_NUM_HOSTS]
        )
        megabytes = f"{summary.num_body_bytes / 1e6:,.1f}"
        ok_share = f"{reasons['ok'] / num_rows:.1%}" if num_rows else "-"
        table.add_row(source, f"{num_rows:,}", ok_share, megabytes, most_common(failures, 5) or "-", slow or "-")
    return table


def politeness_table(hosts: pa.Table, rate_text: str) -> Table:
    """The hosts whose URLs take longest; `hosts` as `politeness_hours` gives them."""
    table = Table("host", "URLs", "hours at least", title=f"Politeness: {rate_text}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in hosts.slice(0, _NUM_SLOWEST).to_pylist():
        hours = "< 0.01" if row["hours"] < 0.01 else f"{row['hours']:,.2f}"
        table.add_row(printable(row["host"]), f"{row['num_urls']:,}", hours)
    return table
