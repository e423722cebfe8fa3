"""Among good URLs, servers with every bad habit: each URL comes to its true reason, in time and in bounded memory."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from pathlib import Path

import pytest

from dataengine.config.download import DownloadConfig, FetchConfig, GuardConfig, LimitsConfig
from dataengine.download.fetch import Fetched, Fetcher, fetch_all
from tests.download.fetching import NOW
from tests.download.hostile import body_of, hostile_servers

REASONS = {
    "silent": "timeout",
    "slow_header": "timeout",
    "slow_body": "too_slow",
    "steady_body": "timeout",
    "endless_body": "too_large",
    "endless_headers": "protocol",
    "endless_header": "protocol",
    "redirect_loop": "redirects",
    "redirect_chain": "redirects",
    "short_body": "truncated",
    "long_body": "protocol",
    "gzip_bomb": "too_large",
    "html": "body",
    "tls_stall": "connect",
    "reset": "reset",
    "desync": "body",
}
"""What a URL of each habit comes to; `body` is none."""
TOTAL_SECONDS, FIRST_BYTE_SECONDS = 3.0, 1.0
NUM_HOSTS = 10


def config(port: int, stalling_port: int) -> DownloadConfig:
    hosts = {f"{habit}{n}.test": f"127.0.0.1:{port}" for habit in ("good", *REASONS) for n in range(NUM_HOSTS)}
    hosts |= {f"tls_stall{n}.test": f"127.0.0.1:{stalling_port}" for n in range(NUM_HOSTS)}
    fetch = FetchConfig(
        total_seconds=TOTAL_SECONDS,
        first_byte_seconds=FIRST_BYTE_SECONDS,
        connect_seconds=1.0,
        per_host=2,
        per_host_rate=None,
        retries=1,
    )
    return DownloadConfig(
        fetch=fetch, guard=GuardConfig(hosts=hosts), limits=LimitsConfig(max_body_bytes=2**20, max_redirects=5)
    )


def url_of(habit: str, number: int) -> str:
    scheme = "https" if habit == "tls_stall" else "http"
    step = 10_000 if habit == "redirect_chain" else 1
    return f"{scheme}://{habit}{number % NUM_HOSTS}.test/{habit}/{number * step}"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def watch(seen: list[int]) -> None:
    while True:
        seen.append(resident_bytes())
        await asyncio.sleep(0.02)


def fetch_among(num_each: int, num_good: int) -> tuple[dict[str, list[Fetched]], int]:
    """The outcomes by habit in the order of numbers, and by how many bytes this process grew."""
    wanted = [("good", n) for n in range(num_good)]
    gap = num_good // num_each
    for n in range(num_each):  # evenly among the good ones
        wanted[n * (gap + len(REASONS)) : n * (gap + len(REASONS))] = [(habit, n) for habit in REASONS]
    outcomes: dict[tuple[str, int], Fetched] = {}
    seen: list[int] = []

    async def run() -> None:
        async with hostile_servers() as ports:
            watching = asyncio.create_task(watch(seen))
            urls = [url_of(*one) for one in wanted]
            await fetch_all(urls, config(*ports), 1, lambda: NOW, lambda n, got: outcomes.update({wanted[n]: got}))
            watching.cancel()

    before = resident_bytes()
    asyncio.run(run())
    by_habit = {habit: [outcomes[key] for key in sorted(outcomes) if key[0] == habit] for habit in ("good", *REASONS)}
    return by_habit, max(seen) - before


@pytest.mark.parametrize(("num_each", "num_good"), [(2, 40), pytest.param(50, 1000, marks=pytest.mark.slow)])
def test_hostile_servers_among_good_ones(num_each: int, num_good: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataengine.download.body._RATE_WINDOW_SECONDS", 1.0)
    outcomes, growth_bytes = fetch_among(num_each, num_good)
    found = {habit: Counter(got.reason or "body" for got in outcomes[habit]) for habit in outcomes}
    assert found == {"good": {"body": num_good}} | {habit: {reason: num_each} for habit, reason in REASONS.items()}
    for habit in ("good", "desync"):
        assert all(got.content == body_of(n) for n, got in enumerate(outcomes[habit]))
    assert {got.content for got in outcomes["html"]} == {b"<html>gone</html>"}
    assert max(got.seconds for habit in outcomes.values() for got in habit) <= TOTAL_SECONDS + 1
    assert max(got.seconds for habit in ("silent", "slow_header") for got in outcomes[habit]) < FIRST_BYTE_SECONDS + 1
    assert growth_bytes < 200e6


def test_a_response_that_nobody_asked_for_answers_no_later_request() -> None:
    async def run() -> list[Fetched]:
        async with hostile_servers() as ports, Fetcher(config(*ports), 1, lambda: NOW) as fetcher:
            outcomes = []
            for number in (0, 10, 20):
                outcomes.append(await fetcher.fetch(url_of("desync", number).replace("/desync/", "/late_desync/")))
                await asyncio.sleep(0.2)
            return outcomes

    assert [got.content for got in asyncio.run(run())] == [body_of(number) for number in (0, 10, 20)]
