"""Many URLs: each comes to one outcome, no host gets more than its share, and nobody waits for another's host."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from dataengine.config.download import HealthConfig
from dataengine.download.fetch import Fetched, fetch_all
from dataengine.download.pace import Pace
from dataengine.download.turns import Turns
from dataengine.errors import TryAgainError
from tests.download.fetching import HOST, NOW, collect, config
from tests.download.site import NOT_FOUND, Route, reply, serving


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


def urls_of(host: str, number: int) -> list[str]:
    return [f"http://{host}/{n}" for n in range(number)]


def routes_of(number: int, route: Route) -> dict[str, Route]:
    return {f"/{n}": route for n in range(number)}


def test_all_urls_come_to_an_outcome_once() -> None:
    routes = {f"/{n}": reply(b"%d" % n) for n in range(0, 100, 2)}
    urls = [f"http://{HOST if n % 3 else 'other.test'}/{n}" for n in range(100)] + ["bad", f"http://{HOST}/2"]
    results, site = collect(routes, urls, concurrency=16)
    assert sorted(results) == list(range(102))
    assert all((results[n].content == b"%d" % n) == (n % 2 == 0) for n in range(100))
    assert results[100].reason == "bad_url"
    assert results[101].content == b"2"
    assert len(site.requests) == 101 + 2


def test_no_urls_are_no_work() -> None:
    assert collect({}, [])[0] == {}


@pytest.mark.parametrize(("per_host", "num_workers", "wanted"), [(4, 1, 4), (4, 2, 2), (2, 3, 1)])
def test_a_host_gets_its_share_of_requests(per_host: int, num_workers: int, wanted: int) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(reply(b"x"))

    settings = {"per_host": per_host, "concurrency": 50, "honor": False}
    results, site = collect(routes_of(12, slow), urls_of(HOST, 12), num_workers, **settings)
    assert all(fetched.content == b"x" for fetched in results.values())
    assert site.max_open == wanted


def test_a_stuck_host_does_not_hold_up_the_others() -> None:
    done: list[tuple[int, float]] = []
    routes: dict[str, Route] = {f"/slow{n}": silent for n in range(4)} | routes_of(20, reply(b"x"))
    urls = [f"http://{HOST}/slow{n}" for n in range(4)] + urls_of("other.test", 20)

    async def run() -> None:
        async with serving(routes) as site:
            asked = config(site, concurrency=4, per_host=2, total_seconds=1.0, honor=False)
            started = time.monotonic()
            await fetch_all(urls, asked, 1, lambda: NOW, lambda n, _: done.append((n, time.monotonic() - started)))

    asyncio.run(run())
    assert max(seconds for n, seconds in done if n >= 4) < 0.5
    assert len(done) == 24


def test_the_wait_for_a_turn_costs_neither_the_deadline_nor_a_seat() -> None:
    done: list[int] = []

    async def run() -> None:
        async with serving(routes_of(30, reply(b"x"))) as site:
            # One seat, and 10 requests of the first host take two seconds.
            asked = config(site, concurrency=1, per_host_rate=5.0, total_seconds=0.7, honor=False)
            urls = urls_of(HOST, 10) + urls_of("other.test", 3)
            await fetch_all(urls, asked, 1, lambda: NOW, lambda n, got: done.append(n if got.content else -1))

    started = time.monotonic()
    asyncio.run(run())
    assert 1.6 < time.monotonic() - started < 4
    assert sorted(done) == list(range(13))
    assert set(done[:6]) == {0, 1, 2, 10, 11, 12}


def test_a_redirect_waits_for_its_turn_where_it_leads() -> None:
    """Aside, so that others use the seat meanwhile, and at no cost to its deadline."""
    routes: dict[str, Route] = {
        f"/{n}": reply(b"", "302 Found", f"Location: http://other.test/to{n}") for n in range(8)
    }
    routes |= {f"/to{n}": reply(b"x") for n in range(8)}
    routes["/quick"] = reply(b"y")
    done: list[int] = []

    async def run() -> None:
        async with serving(routes) as site:
            settings = config(site, concurrency=1, per_host_rate=4.0, total_seconds=0.7, honor=False)
            hosts = {f"h{n}.test": f"127.0.0.1:{site.port}" for n in range(9)} | settings.guard.hosts
            guard = settings.guard.model_copy(update={"hosts": hosts})
            urls = [*(f"http://h{n}.test/{n}" for n in range(8)), "http://h8.test/quick"]
            asked = settings.model_copy(update={"guard": guard})
            await fetch_all(urls, asked, 1, lambda: NOW, lambda n, got: done.append(n if got.content else -1))

    started = time.monotonic()
    asyncio.run(run())
    assert 1.6 < time.monotonic() - started < 4
    assert sorted(done) == list(range(9))
    assert 8 in done[:3]


def test_what_robots_txt_takes_counts_once() -> None:
    """Its server's seconds are the URL's; the turn that it waits for is not."""

    async def slow(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(NOT_FOUND)

    routes = {"/robots.txt": slow} | routes_of(4, reply(b"x"))
    results, site = collect(routes, urls_of(HOST, 4), total_seconds=0.9, per_host_rate=2.0)
    assert all(fetched.content == b"x" for fetched in results.values())
    assert site.paths["/robots.txt"] == 1
    results, _ = collect(routes, urls_of(HOST, 4), total_seconds=0.4)
    assert {fetched.reason for fetched in results.values()} == {"robots_unreachable"}
    # Half a second for robots.txt leaves four tenths, and the image would take half a second.
    results, _ = collect(routes | {"/0": slow}, urls_of(HOST, 1), total_seconds=0.9)
    assert results[0].reason == "timeout"
    results, _ = collect(routes | {"/0": slow}, urls_of(HOST, 1), total_seconds=3.0)
    assert results[0].reason == "http_404"
    assert 1.0 <= results[0].seconds < 3


def test_a_host_that_wants_to_be_left_alone_is() -> None:
    busy = reply(b"", "429 Slow down", "Retry-After: 3600")
    started = time.monotonic()
    # More URLs than the window of health: those that are not asked say nothing of the network.
    results, site = collect(routes_of(600, busy), urls_of(HOST, 600), retries=2, per_host=2, honor=False)
    assert Counter(fetched.reason for fetched in results.values()) == {"http_429": 600}
    assert len(site.requests) <= 2
    assert sum(fetched.num_attempts for fetched in results.values()) == len(site.requests)
    assert time.monotonic() - started < 3


def test_idle_connections_are_bounded_and_the_oldest_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataengine.download.exchange._max_idle", lambda: 6)
    num_open: list[int] = []

    async def run() -> None:
        async with serving({"/0": reply(b"x"), "/robots.txt": NOT_FOUND}) as site:
            settings = config(site, concurrency=4)
            hosts = {f"h{n}.test": f"127.0.0.1:{site.port}" for n in range(60)}
            asked = settings.model_copy(update={"guard": settings.guard.model_copy(update={"hosts": hosts})})
            urls = [f"http://{host}/0" for host in hosts]
            await fetch_all(urls, asked, 1, lambda: NOW, lambda *_: num_open.append(site.num_open))

    asyncio.run(run())
    assert len(num_open) == 60
    assert 6 <= max(num_open) <= 6 + 4 + 2  # idle, in flight, and about to be closed


def test_turns_come_in_order_of_arrival() -> None:
    async def run() -> bool:
        turns = Turns(Pace(8, 20.0, 1, random.Random(1)))
        assert turns.take_now(HOST)
        first = asyncio.create_task(turns.take(HOST))
        await asyncio.sleep(0)
        time.sleep(0.1)  # the turn is due, and its alarm late
        jumped = turns.take_now(HOST)
        await first
        return jumped

    assert not asyncio.run(run())


def test_what_the_receiver_raises_ends_it_all() -> None:
    def fail(position: int, fetched: Fetched) -> None:
        raise RuntimeError("disk full")

    async def run() -> None:
        async with serving({"/a": reply(b"x"), "/b": silent}) as site:
            urls = [f"http://{HOST}/a", f"http://{HOST}/b"]
            await fetch_all(urls, config(site), 1, lambda: NOW, fail)

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="disk full"):
        asyncio.run(run())
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(("route", "stops"), [(reply(b"", "403 Forbidden"), True), (NOT_FOUND, False)])
def test_a_dead_network_ends_it_before_its_outcome_is_told(route: bytes, stops: bool) -> None:
    told: list[int] = []

    async def run() -> None:
        async with serving(routes_of(200, route)) as site:
            asked = config(site, honor=False).model_copy(update={"health": HealthConfig(window=50)})
            await fetch_all(urls_of(HOST, 200), asked, 1, lambda: NOW, lambda n, _: told.append(n))

    if stops:
        with pytest.raises(TryAgainError, match="http_403 50"):
            asyncio.run(run())
    else:
        asyncio.run(run())
    assert len(told) == (49 if stops else 200)


def most_within_a_second(moments: list[float]) -> int:
    return max(sum(moment <= other < moment + 1 for other in moments) for moment in moments)


def test_two_workers_keep_the_rate_of_a_host_together_and_back_off_when_it_refuses() -> None:
    rate, refused = 66.0, {"/1/30": "1", "/1/70": None}
    arrivals: list[tuple[str, float]] = []

    def route(path: str) -> Route:
        async def note(writer: asyncio.StreamWriter) -> None:
            arrivals.append((path, time.monotonic()))
            busy = path in refused and [seen for seen, _ in arrivals].count(path) == 1
            wait = [f"Retry-After: {refused[path]}"] if busy and refused[path] else []
            writer.write(reply(b"", "429 Slow down", *wait) if busy else reply(b"x"))

        return note

    async def run() -> None:
        paths = ["/robots.txt", *(f"/{worker}/{n}" for worker in (0, 1) for n in range(100))]
        async with serving({path: route(path) for path in paths}) as site:
            asked = config(site, per_host_rate=rate, retries=2)
            told: list[str | None] = []
            await asyncio.gather(
                *(
                    fetch_all(
                        [f"http://{HOST}/{worker}/{n}" for n in range(100)],
                        asked, 2, lambda: NOW, lambda _, fetched: told.append(fetched.reason),
                    )
                    for worker in (0, 1)
                )
            )  # fmt: skip
            assert told == [None] * 200

    asyncio.run(run())
    assert len(arrivals) == 204
    moments = [moment for _, moment in arrivals]
    assert most_within_a_second(moments) <= 1.2 * rate
    assert max(moments) - min(moments) >= 100 / rate * 0.9
    for path, seconds in (("/1/30", 1.0), ("/1/70", 0.25)):
        refused_at = next(moment for seen, moment in arrivals if seen == path)
        later = [moment - refused_at for seen, moment in arrivals if seen.startswith("/1/") and moment > refused_at]
        # Those that were under way may still arrive, the last of them a moment later.
        assert not [after for after in later if 0.1 < after < seconds * 0.95]
    # The other worker was not refused: it goes on.
    assert most_within_a_second([moment for seen, moment in arrivals if seen.startswith("/0/")]) >= 0.5 * rate / 2
