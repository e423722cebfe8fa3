"""Politeness over a whole run: four Ray workers together keep one host's rate, and make room when it says 429."""

from __future__ import annotations

import bisect
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from dataengine.config.load import load_config
from dataengine.job import run_job
from tests.pipeline.crawl import Arrival, committed_parts, crawl_config, logging_site, picture_reply, reply

LOG = logging.getLogger(__name__)
NUM_WORKERS = 4
SLACK = 1.2
RETRY_AFTER_SECONDS = 2
MIN_PATIENCE_SECONDS = 1.9  # clocks and timers have grains
MIN_BACKOFF_SECONDS = 0.2  # the first wait is half a second, give or take half of it
SEEING_SECONDS = 0.5
"""Until every worker has met a 429 of its own."""


@dataclass
class MoodyHost:
    """Serves pictures, but for one spell each, that begins with a certain request, answers all with 429."""

    spells: dict[int, tuple[str, ...]]
    """Number of the request that begins a spell → headers of its answers."""
    spell_seconds: float
    begun: dict[int, float] = field(default_factory=dict)
    _num_requests: int = 0
    _picture: bytes = field(default_factory=picture_reply)

    def answer(self, _: str) -> bytes:
        now = time.monotonic()
        self._num_requests += 1
        if self._num_requests in self.spells:
            self.begun[self._num_requests] = now
        for number, began in self.begun.items():
            if now < began + self.spell_seconds:
                return reply(429, b"", *self.spells[number])
        return self._picture


def most_within(seconds: float, times: list[float]) -> int:
    """The most of `times`, which ascend, that any window of `seconds` holds."""
    return max(bisect.bisect_left(times, start + seconds) - i for i, start in enumerate(times))


def waits_after_429(arrivals: list[Arrival], begin: float, finish: float) -> list[float]:
    """Seconds from each 429 in [begin, finish) to the next request for the same path, where there is one."""
    waits, refused = [], dict[str, float]()
    for arrival in arrivals:
        if arrival.path in refused:
            waits.append(arrival.seconds - refused.pop(arrival.path))
        if arrival.status == 429 and begin <= arrival.seconds < finish:
            refused[arrival.path] = arrival.seconds
    return waits


def test_windows_are_counted_right() -> None:
    assert most_within(1.0, [0.0, 0.5, 0.99, 1.0, 5.0]) == 3
    assert most_within(5.0, [0.0]) == 1


@pytest.mark.parametrize(
    ("num_urls", "rate", "window_seconds"),
    [
        (300, 80.0, 2.0),
        pytest.param(10_000, 100.0, 5.0, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_four_workers_keep_the_rate_of_one_host(
    ray_cluster: None, tmp_path: Path, num_urls: int, rate: float, window_seconds: float
) -> None:
    patient, bare = num_urls // 3, num_urls * 2 // 3
    host = MoodyHost({patient: (f"Retry-After: {RETRY_AFTER_SECONDS}",), bare: ()}, spell_seconds=2.0)
    with logging_site(host.answer) as site:
        workers = {"num_cpus": 0.5, "max_workers": NUM_WORKERS}
        execution = {"runner": "ray", "download": workers}
        fetch = {"per_host": 8 * NUM_WORKERS, "per_host_rate": rate}
        config = crawl_config(tmp_path, site, num_urls, 1, num_urls // NUM_WORKERS, fetch, execution=execution)
        run_job(load_config(config, []), until="download", console=Console(quiet=True))
    times = [arrival.seconds for arrival in site.arrivals]
    busiest = most_within(window_seconds, times)
    LOG.info("busiest %g s: %d requests, %g are allowed", window_seconds, busiest, rate * window_seconds)
    assert busiest <= rate * window_seconds * SLACK
    # One worker alone would keep the rate of four too, and prove nothing.
    assert busiest >= rate * window_seconds / 3
    for number, began in host.begun.items():
        begin, finish = began + SEEING_SECONDS, began + host.spell_seconds
        num_met = bisect.bisect_left(times, finish) - bisect.bisect_left(times, begin)
        LOG.info("spell at request %d: %d requests in %g s", number, num_met, finish - begin)
        assert num_met <= rate * (finish - begin) / 3
        waits = waits_after_429(site.arrivals, began, finish)
        assert min(waits) >= (MIN_PATIENCE_SECONDS if host.spells[number] else MIN_BACKOFF_SECONDS)
    assert len(host.begun) == 2
    rows = [row for part in committed_parts(tmp_path).values() for row in part.rows]
    assert sorted(row["path"] for row in rows) == sorted(f"/{number}.png" for number in range(num_urls))
    reasons = Counter(row["reason"] for row in rows)
    assert set(reasons) <= {None, "http_429"}
    assert reasons[None] >= 0.9 * num_urls
    assert max(row["num_attempts"] for row in rows) > 1
