"""Hosts of URLs: URLs in, the number of URLs per host and the hours that asking politely costs out.

What bounds a polite download is its most frequent host, so this is known before the first request. It knows no config
and opens no connection.
"""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from dataengine.schemas import TableSchema, column

HOSTS = TableSchema(
    "hosts",
    pa.schema(
        [
            column("host", pa.string(), "host of the URL, lower case, without port and trailing dot"),
            column("num_urls", pa.int64(), "different URLs of that host"),
        ]
    ),
    sorted_by=("host",),
)

_HOST = "^(?i:https?)://(?:[^/?#@\\s]*@)?(?P<host>\\[[^/\\]]+\\]|[^/?#@:\\s]+)"
_HOUR_SECONDS = 3600.0


def count_hosts(urls: pa.Array | pa.ChunkedArray) -> pa.Table:
    """HOSTS of `urls`; nulls and what is no http(s) URL are not counted."""
    hosts = pc.struct_field(pc.extract_regex(urls, _HOST), "host")
    return _summed(pa.table({"host": pc.utf8_rtrim(pc.utf8_lower(hosts), ".").drop_null()}), ([], "count_all"))


def politeness_hours(
    hosts: pa.Table, per_host_rate: float | None, per_host: int, request_seconds: float = 0.5
) -> pa.Table:
    """(host, num_urls, hours) of each host in `hosts`, the slowest first: the least time its URLs can take.

    `hosts` are HOSTS of any number of parts, one after the other. A host is asked at most `per_host_rate` times a
    second (null: no bound), and `per_host` requests of `request_seconds` each at once.
    """
    rate = min(per_host_rate or math.inf, per_host / request_seconds)
    summed = _summed(hosts, ("num_urls", "sum"))
    hours = pc.divide(summed.column("num_urls"), rate * _HOUR_SECONDS)
    return summed.append_column("hours", hours).sort_by([("hours", "descending"), ("host", "ascending")])


def _summed(rows: pa.Table, aggregation: tuple[str | list[str], str]) -> pa.Table:
    grouped = rows.group_by("host", use_threads=False).aggregate([aggregation])
    return HOSTS.table({"host": grouped.column("host"), "num_urls": grouped.column(1)}).sort_by("host")
