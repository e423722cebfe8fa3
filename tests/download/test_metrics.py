from __future__ import annotations

from dataengine.download.fetch import Fetched
from dataengine.download.metrics import Gauge, Tally, summarise


def _fetched(host: str, seconds: float, num_bytes: int) -> Fetched:
    return Fetched(
        content=b"", reason=None, http_status=200, final_url=None, content_type=None, evidence=None, fetched_at=None,
        num_attempts=1, host=host, seconds=seconds, num_body_bytes=num_bytes,
    )  # fmt: skip


def test_parts_add_up() -> None:
    tallies = [Tally(), Tally()]
    for i in range(100):
        tallies[i % 2].add(_fetched(f"h{i % 20}.test", 0.1 * (i % 20), 1000), None if i % 4 else "http_404")
    summary = summarise([*(tally.metrics() for tally in tallies), {}])
    assert (summary.num_urls, summary.num_body_bytes, summary.ok_share) == (100, 100_000, 0.75)
    assert summary.worst(3) == "http_404 25"
    host, num_urls, mean_seconds = summary.slow_hosts[0]
    assert (host, num_urls, round(mean_seconds, 3)) == ("h19.test", 5, 1.9)


def test_the_line_tells_rates_of_the_last_half_minute() -> None:
    gauge, tally = Gauge(), Tally()
    assert gauge.line([tally.metrics()], 0.0) == ""
    for second in range(100):
        for _ in range(1 if second < 60 else 50):
            tally.add(_fetched("slow.test", 2.0, 10_000), None if second % 2 else "dns")
        line = gauge.line([tally.metrics()], float(second))
    assert "50 URLs/s" in line
    assert "0.5 MB/s" in line
    assert "slowest host slow.test 2.0 s a URL" in line
    parts = [
        tally.metrics() | {"resting": rest} for rest in (None, ["a.test", "http_429", 9.0], ["b.test", "dns", 40.2])
    ]
    assert gauge.line(parts, 100.0).endswith("b.test is left alone for 40 s (dns)")
