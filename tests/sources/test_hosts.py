"""Hosts of URLs, and what asking them politely costs."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.sources.hosts import HOSTS, count_hosts, politeness_hours


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.example/x.jpg", "a.example"),
        ("HTTPS://User:pw@A.Example:8080?x#y@z", "a.example"),
        ("https://a.example.", "a.example"),
        ("https://a.example.:80/b.c:9/", "a.example"),
        ("https://[2001:DB8::1]:443/x", "[2001:db8::1]"),
        ("http://bücher.example/ü", "bücher.example"),
        ("http://a/one two.jpg\nthree", "a"),
        ("http://localhost", "localhost"),
        ("ftp://a.example/x", None),
        ("http:///x", None),
        ("", None),
        (None, None),
    ],
)
def test_the_host_of_a_url(url: str | None, host: str | None) -> None:
    found = count_hosts(pa.array([url], pa.string()))
    assert found.to_pylist() == ([] if host is None else [{"host": host, "num_urls": 1}])
    assert found.schema == HOSTS.arrow


@given(st.lists(st.sampled_from(["b.test", "a.test", "c.test", "A.test"]), max_size=30))
def test_urls_are_counted_and_sorted_by_host(hosts: list[str]) -> None:
    found = count_hosts(pa.array([f"http://{host}/{number}" for number, host in enumerate(hosts)], pa.string()))
    names = [host.lower() for host in hosts]
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        (name, names.count(name)) for name in sorted({*names})
    ]


@pytest.mark.parametrize(
    ("rate", "per_host", "request_seconds", "per_second"),
    [(50.0, 8, 0.5, 16.0), (2.0, 8, 0.5, 2.0), (None, 8, 0.5, 16.0), (None, 1, 2.0, 0.5), (1.0, 1, 2.0, 0.5)],
)
def test_the_stricter_of_rate_and_connections_counts(
    rate: float | None, per_host: int, request_seconds: float, per_second: float
) -> None:
    hosts = HOSTS.table({"host": ["a", "b"], "num_urls": [3600, 7200]})
    found = politeness_hours(hosts, rate, per_host, request_seconds)
    assert found.column_names == ["host", "num_urls", "hours"]
    assert found.to_pylist() == [
        {"host": "b", "num_urls": 7200, "hours": pytest.approx(2 / per_second)},
        {"host": "a", "num_urls": 3600, "hours": pytest.approx(1 / per_second)},
    ]


def test_hosts_of_several_parts_are_summed() -> None:
    parts = [
        HOSTS.table({"host": ["a", "b"], "num_urls": [1, 5]}),
        HOSTS.table({"host": ["a", "c"], "num_urls": [9, 5]}),
    ]
    found = politeness_hours(pa.concat_tables(parts), 1.0, 1)
    assert list(zip(*found.select(["host", "num_urls"]).to_pydict().values(), strict=True)) == [
        ("a", 10),
        ("b", 5),
        ("c", 5),
    ]
    assert len(politeness_hours(HOSTS.empty(), None, 1)) == 0
