"""Names lead to checked addresses, once asked for, and every fault of DNS is an OSError."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from aiohttp.abc import ResolveResult
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.download import FetchConfig, GuardConfig
from dataengine.download import resolve
from dataengine.download.guard import BlockedAddress
from dataengine.download.resolve import GuardedResolver
from tests.download.dns_server import NXDOMAIN, SERVFAIL, SILENCE, NameServer, Reply, Zone, name_server, says

PUBLIC = says("A 1.1.1.1", "AAAA 2606:4700::1111")


def asking(
    zone: Zone, use: Callable[[GuardedResolver, NameServer], Awaitable[Any]], guard: dict[str, Any], **fetch: Any
) -> Any:
    """What `use` makes of a resolver that asks a server of `zone`."""

    async def run() -> Any:
        async with name_server(zone) as server:
            settings = {"nameservers": (server.address,), "connect_seconds": 6.0} | fetch
            resolver = GuardedResolver(GuardConfig(**guard), FetchConfig(**settings))
            try:
                return await use(resolver, server)
            finally:
                await resolver.close()

    return asyncio.run(run())


def addresses(found: Sequence[ResolveResult]) -> list[str]:
    return [result["host"] for result in found]


def look_up(zone: Zone, name: str = "photos.test", guard: dict[str, Any] | None = None, **fetch: Any) -> list[str]:
    async def use(resolver: GuardedResolver, _: NameServer) -> list[str]:
        return addresses(await resolver.resolve(name, 80))

    found: list[str] = asking(zone, use, guard or {}, **fetch)
    return found


def system(name: str, **guard: Any) -> list[tuple[str, int]]:
    async def run() -> list[tuple[str, int]]:
        resolver = GuardedResolver(GuardConfig(**guard), FetchConfig())
        try:
            return [(found["host"], found["port"]) for found in await resolver.resolve(name, 80)]
        finally:
            await resolver.close()

    return asyncio.run(run())


def test_mapped_names_go_where_the_map_says() -> None:
    hosts = {"Photos.test": "127.0.0.1:8123", "six.test": "[::1]:9", "b\u00fccher.test": "127.0.0.1:1"}
    assert system("photos.test", hosts=hosts) == [("127.0.0.1", 8123)]
    assert system("photos.test.", hosts=hosts) == [("127.0.0.1", 8123)]
    assert system("six.test", hosts=hosts) == [("::1", 9)]
    assert system("xn--bcher-kva.test", hosts=hosts) == [("127.0.0.1", 1)]
    assert system("named.test", hosts={"named.test": "localhost:7"})[0][1] == 7


def test_a_name_that_leads_home_is_blocked_unless_allowed() -> None:
    with pytest.raises(BlockedAddress, match=r"localhost leads to .* add localhost to download.guard.allow_hosts"):
        system("localhost", hosts={"photos.test": "127.0.0.1:8123"})
    assert ("127.0.0.1", 80) in system("localhost.", allow_hosts=("LocalHost",))


def test_the_system_resolver_is_asked_off_the_loop_and_every_answer_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def answers(*_: object, **__: object) -> list[Any]:
        threads.add(threading.current_thread())
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("1.1.1.1", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", answers)
    with pytest.raises(BlockedAddress, match=r"10\.0\.0\.1"):
        system("rebind.test")
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "a..test"])
def test_impossible_names_are_dns_faults(name: str) -> None:
    with pytest.raises(OSError, match="cannot be a host name"):
        system(name)


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_faults_of_the_system_resolver_are_told(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "because")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(OSError, match=r"gone\.test: .*because"):
        system("gone.test")


@pytest.mark.parametrize(
    ("zone", "wanted"),
    [
        ({"photos.test": PUBLIC}, ["1.1.1.1", "2606:4700::1111"]),
        ({"photos.test": says("A 1.1.1.1", "A 8.8.8.8")}, ["1.1.1.1", "8.8.8.8"]),
        ({"photos.test": says("AAAA 2606:4700::1111")}, ["2606:4700::1111"]),
        (
            {"photos.test": says("CNAME a.test"), "a.test": says("CNAME b.test"), "b.test": says("A 9.9.9.9")},
            ["9.9.9.9"],
        ),
        (
            {"photos.test": Reply(("CNAME a.test",), is_whole=False), "a.test": says("CNAME b.test"), "b.test": PUBLIC},
            ["1.1.1.1", "2606:4700::1111"],
        ),
        ({"photos.test": [says("A 1.1.1.1"), says("A 8.8.8.8")]}, ["1.1.1.1"]),
        ({"photos.test": says(*(f"A 1.1.1.{n}" for n in range(1, 25)))}, [f"1.1.1.{n}" for n in range(1, 25)]),
        (
            {"photos.test": Reply(tuple(f"A 1.1.{n}.1" for n in range(200)), over_tcp=True)},
            [f"1.1.{n}.1" for n in range(64)],
        ),
    ],
)
def test_name_servers_give_all_addresses(zone: Zone, wanted: list[str]) -> None:
    assert look_up(zone) == wanted
    assert look_up(zone, "PHOTOS.test.") == wanted


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        (says("A 10.0.0.1"), "10.0.0.1"),
        (says("A 1.1.1.1", "A 10.0.0.1"), "10.0.0.1"),
        (says("A 1.1.1.1", "AAAA ::1"), "::1"),
        (says("AAAA ::ffff:7f00:1"), "::ffff:127.0.0.1"),
        (says("CNAME home.test"), "127.0.0.1"),
        (Reply(("CNAME home.test",), is_whole=False), "127.0.0.1"),
        (says("A 1.2.3.4"), "1.2.3.4"),
    ],
)
def test_one_refused_answer_blocks_the_name(reply: Reply, refused: str) -> None:
    zone = {"photos.test": reply, "home.test": says("A 127.0.0.1")}
    with pytest.raises(BlockedAddress, match=f"photos.test leads to {refused}, "):
        look_up(zone, guard={"deny_networks": ("1.2.3.0/24",)})
    assert refused in look_up(zone, guard={"deny_networks": ("1.2.3.0/24",), "allow_hosts": ("Photos.test",)})


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (NXDOMAIN, "not found"),
        (says(), "no data"),
        (SERVFAIL, "general failure|server failure|SERVFAIL"),
        (SILENCE, "no answer within 0.6 s|[Tt]imeout"),
        (says("CNAME photos.test"), "more than 8 aliases"),
        (Reply(("CNAME gone.test",), is_whole=False), "not found"),
    ],
)
def test_what_name_servers_do_not_know_is_an_os_error(reply: Reply, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(OSError, match=rf"^photos\.test: .*({message})"):
        look_up({"photos.test": reply}, connect_seconds=0.6)
    assert time.monotonic() - started < 0.6 * 3


def test_name_servers_are_reached_over_ipv6_and_a_dead_one_is_passed_over() -> None:
    async def run() -> list[str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            dead = f"127.0.0.1:{closed.getsockname()[1]}"
        async with name_server({"photos.test": says("A 1.1.1.1")}, "::1") as server:
            resolver = GuardedResolver(GuardConfig(), FetchConfig(nameservers=(dead, server.address)))
            try:
                return addresses(await resolver.resolve("photos.test"))
            finally:
                await resolver.close()

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    assert asyncio.run(run()) == ["1.1.1.1"]


@settings(max_examples=50)
@given(st.text())
def test_any_text_is_resolved_or_refused(name: str) -> None:
    with suppress(OSError, BlockedAddress):
        assert look_up({}, name)


def test_one_kind_of_address_is_enough() -> None:
    zone = {"photos.test": says("A 1.1.1.1", "AAAA 2606:4700::1111")}

    async def use(resolver: GuardedResolver, server: NameServer) -> list[str]:
        plain = server._reply
        server._reply = lambda name, kind: plain(name, kind) if kind == "A" else SERVFAIL  # type: ignore[method-assign]
        return addresses(await resolver.resolve("photos.test"))

    assert asking(zone, use, {}) == ["1.1.1.1"]


def test_a_literal_in_any_form_is_not_asked_for() -> None:
    assert look_up({}, "0x01010101") == ["1.1.1.1"]
    with pytest.raises(BlockedAddress):
        look_up({}, "0x7f.1")


def test_a_family_may_be_asked_for() -> None:
    async def use(resolver: GuardedResolver, _: NameServer) -> list[Any]:
        return [addresses(await resolver.resolve("photos.test", 80, f)) for f in (socket.AF_INET, socket.AF_INET6)]

    assert asking({"photos.test": PUBLIC}, use, {}) == [["1.1.1.1"], ["2606:4700::1111"]]
    with pytest.raises(OSError, match="no address of the family"):
        asking({"photos.test": says("A 1.1.1.1")}, use, {})


def test_answers_are_kept_for_a_while_whatever_their_time_to_live() -> None:
    zone = {"photos.test": [says("A 1.1.1.1"), says("A 10.0.0.1")]}

    async def use(resolver: GuardedResolver, server: NameServer) -> None:
        assert [addresses(await resolver.resolve(name, 80)) for name in ("photos.test", "PHOTOS.test.")] == [
            ["1.1.1.1"],
            ["1.1.1.1"],
        ]
        assert server.asked["photos.test"] == 1
        await asyncio.sleep(1.1)
        with pytest.raises(BlockedAddress):  # what it changed its mind to is checked like the first answer
            await resolver.resolve("photos.test", 80)
        assert server.asked["photos.test"] == 2

    asking(zone, use, {}, dns_cache_seconds=1.0)


@pytest.mark.parametrize("reply", [NXDOMAIN, SERVFAIL])
def test_faults_are_kept_too_but_not_as_long(reply: Reply) -> None:
    async def use(resolver: GuardedResolver, server: NameServer) -> None:
        for _ in range(5):
            with pytest.raises(OSError, match=r"gone\.test"):
                await resolver.resolve("gone.test")
        first = server.asked["gone.test"]
        await asyncio.sleep(0.7)
        with pytest.raises(OSError, match=r"gone\.test"):
            await resolver.resolve("gone.test")
        assert server.asked["gone.test"] == 2 * first

    asking({"gone.test": reply}, use, {}, dns_cache_seconds=6.0)


def test_a_failure_holds_a_second_however_long_answers_are_kept() -> None:
    async def use(resolver: GuardedResolver, server: NameServer) -> list[str]:
        with pytest.raises(OSError, match=r"photos\.test"):
            await resolver.resolve("photos.test")
        server.zone = {"photos.test": PUBLIC}
        await asyncio.sleep(1.05)
        return addresses(await resolver.resolve("photos.test"))

    assert asking({"photos.test": SERVFAIL}, use, {}, dns_cache_seconds=3000.0) == ["1.1.1.1", "2606:4700::1111"]


def test_many_who_want_a_name_ask_once_and_one_who_leaves_does_not_harm_the_others() -> None:
    async def use(resolver: GuardedResolver, server: NameServer) -> None:
        waiters = [asyncio.create_task(resolver.resolve("photos.test", port)) for port in range(100)]
        await asyncio.sleep(0.05)
        waiters[0].cancel()
        waiters[50].cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        left = [result for result in results if isinstance(result, asyncio.CancelledError)]
        assert len(left) == 2
        assert sum(addresses(result) == ["1.1.1.1"] for result in results if isinstance(result, list)) == 98
        assert server.asked["photos.test"] == 1

    asking({"photos.test": says("A 1.1.1.1", after_seconds=0.2)}, use, {})


def test_a_channel_is_renewed_while_others_still_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_MAX_CHANNEL_NAMES", 3)
    zone = {f"{n}.test": says("A 1.1.1.1", after_seconds=0.05) for n in range(20)}

    async def use(resolver: GuardedResolver, _: NameServer) -> None:
        found = await asyncio.gather(*(resolver.resolve(f"{n}.test") for n in range(20)))
        assert [addresses(each) for each in found] == [["1.1.1.1"]] * 20

    asking(zone, use, {})


def test_names_are_forgotten_beyond_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "MAX_NAMES", 10)
    zone = {f"{n}.test": says("A 1.1.1.1") for n in range(30)}

    async def use(resolver: GuardedResolver, server: NameServer) -> None:
        for n in range(30):
            await resolver.resolve(f"{n}.test")
        for n in (29, 20, 19):
            await resolver.resolve(f"{n}.test")
        assert [server.asked[f"{n}.test"] for n in (29, 20, 19)] == [1, 1, 2]

    asking(zone, use, {})


def test_a_kept_answer_costs_microseconds() -> None:
    async def use(resolver: GuardedResolver, _: NameServer) -> float:
        await resolver.resolve("photos.test", 80)
        started = time.process_time()
        for _ in range(5000):
            await resolver.resolve("photos.test", 80)
        return (time.process_time() - started) / 5000

    assert asking({"photos.test": PUBLIC}, use, {}) < 60e-6


def test_closing_gives_up_what_is_being_asked() -> None:
    async def run() -> None:
        async with name_server({"photos.test": SILENCE}) as server:
            resolver = GuardedResolver(GuardConfig(), FetchConfig(nameservers=(server.address,)))
            waiter = asyncio.create_task(resolver.resolve("photos.test"))
            await asyncio.sleep(0.05)
            await resolver.close()
            assert (await asyncio.gather(waiter, return_exceptions=True))[0].__class__ is asyncio.CancelledError

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 1.5
