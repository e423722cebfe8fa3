"""No URL of a stranger reaches a service beside the worker, whatever it spells, resolves to or redirects to.

A canary listens on loopback, and its port is an allowed one: only the check of addresses stands before it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from dataengine.config.download import DownloadConfig, FetchConfig, GuardConfig
from dataengine.download import guard, resolve
from dataengine.download.fetch import Fetched, Fetcher, fetch_all
from tests.download.dns_server import NXDOMAIN, SERVFAIL, SILENCE, NameServer, Reply, name_server, says
from tests.download.site import NOT_FOUND, Site, reply

NOW = datetime(2030, 1, 2, tzinfo=UTC)
BLOCKED, PORT, BAD, DNS = "blocked_address", "blocked_port", "bad_url", "dns"
REASONS = {BLOCKED, PORT, BAD, DNS}

# "@@" stands for the port of the canary.
LITERALS = {
    # IPv4 as it is written, and as only libc reads it
    **dict.fromkeys(
        ["http://127.0.0.1:@@/", "https://127.0.0.1:@@/", "http://127.0.0.2:@@/", "http://127.255.255.254:@@/",
         "http://0.0.0.0:@@/", "http://0:@@/", "http://127.1:@@/", "http://127.0.1:@@/", "http://2130706433:@@/",
         "http://0x7f000001:@@/", "http://0x7F.0x0.0x0.0x1:@@/", "http://0x7f.1:@@/", "http://0177.0.0.1:@@/",
         "http://017700000001:@@/", "http://00000177.1:@@/", "http://0177.0x0.1:@@/", "http://127.0.0.1.:@@/",
         "http://127.0.0.1..:@@/", "HTTP://127.0.0.1:@@/"],
        BLOCKED,
    ),
    # look-alikes that IDNA makes digits and dots of
    **dict.fromkeys(
        ["http://\uff11\uff12\uff17.0.0.1:@@/", "http://127\u30020\u30020\u30021:@@/", "http://127\uff0e0\uff0e0\uff0e1:@@/",
         "http://\u2460\u2461\u2466.0.0.1:@@/", "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3:@@/",
         "http://localho\u017ft:@@/"],
        BLOCKED,
    ),
    # IPv6
    **dict.fromkeys(
        ["http://[::1]:@@/", "http://[0:0:0:0:0:0:0:1]:@@/", "http://[::]:@@/", "http://[::1%25lo]:@@/", "http://[::1%lo]:@@/",
         "http://[fe80::1%25eth0]:@@/", "http://[::ffff:127.0.0.1]:@@/", "http://[::FFFF:7F00:1]:@@/",
         "http://[::127.0.0.1]:@@/", "http://[::ffff:0:127.0.0.1]:@@/", "http://[64:ff9b::127.0.0.1]:@@/",
         "http://[64:ff9b:1::7f00:1]:@@/", "http://[2002:7f00:1::]:@@/", "http://[2001:0:7f00:1::]:@@/",
         "http://[fc00::1]:@@/", "http://[fec0::1]:@@/", "http://[ff02::1]:@@/"],
        BLOCKED,
    ),
    # metadata services: AWS, GCP, Azure, Alibaba, Oracle, ECS
    **dict.fromkeys(
        ["http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/latest/", "http://[fd20:ce::254]/",
         "http://[::ffff:169.254.169.254]/", "http://[64:ff9b::a9fe:a9fe]/", "http://2852039166/",
         "http://0xa9fea9fe/", "http://168.63.129.16/", "http://100.100.100.200/", "http://192.0.0.192/",
         "http://169.254.170.2/v2/credentials"],
        BLOCKED,
    ),
    # networks that are nobody's or everybody's
    **dict.fromkeys(
        ["http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.0.1/", "http://100.64.0.1/", "http://198.18.0.1/",
         "http://224.0.0.1/", "http://240.0.0.1/", "http://255.255.255.255/", "http://20.0.0.1/"],
        BLOCKED,
    ),
    # who is the host?
    **dict.fromkeys(
        ["http://user@127.0.0.1:@@/", "http://1.1.1.1@127.0.0.1:@@/", "http://1.1.1.1:80@127.0.0.1:@@/",
         "http://a@b@127.0.0.1:@@/", "http://127.0.0.1:@@#@1.1.1.1/", "http://127.0.0.1:@@?@1.1.1.1/",
         "http://12\t7.0.0.1:@@/", " http://127.0.0.1:@@/\n"],
        BLOCKED,
    ),
    **dict.fromkeys(
        ["http://1.1.1.1\\@127.0.0.1:@@/", "http://127.0.0.1:@@\\@1.1.1.1/", "http://[::1:@@/", "http://::1:@@/",
         "http://lo\u00adcalhost:@@/", "http://256.256.256.256:@@/", "http://4294967297:@@/", "http://127.0.0.1.1:@@/",
         "//127.0.0.1:@@/", "http:/127.0.0.1:@@/", "gopher://127.0.0.1:@@/", "ftp://127.0.0.1:@@/", "dict://127.0.0.1:@@/",
         "file:///etc/passwd", "jar:http://127.0.0.1:@@/!", "unix:///run/docker.sock", "http://127.0.0.1:0/",
         "http://127.0.0.1:65536/", "http://127.0.0.1:-1/", "http://127.0.0.1:0x50/"],
        BAD,
    ),
    **dict.fromkeys(
        ["http://%31%32%37.0.0.1:@@/", "http://%6c%6f%63alhost:@@/", "http://127.0.0.1%00:@@/", "http://127.0.0.1%2f:@@/",
         "http://localhost%00.example:@@/"],
        DNS,
    ),
    # services beside the web's
    **{f"http://public.test:{port}/": PORT for port in (22, 25, 2375, 6379, 9200, 10250, 11211)},
    "https://public.test:8443/": PORT,
    "http://1.1.1.1:22/": PORT,
    "http://[2606:4700::1111]:81/": PORT,
}  # fmt: skip

NAMES: dict[str, tuple[Reply, str]] = {
    "localhost": (says("A 127.0.0.1", "AAAA ::1"), BLOCKED),
    "metadata.google.internal": (says("A 169.254.169.254"), BLOCKED),
    "a.private.test": (says("A 10.0.0.1"), BLOCKED),
    "a.loopback.test": (says("A 127.0.0.1"), BLOCKED),
    "no-ttl.test": (says("A 127.0.0.1", ttl=0), BLOCKED),
    "long-ttl.test": (says("A 127.0.0.1", ttl=2**31 - 1), BLOCKED),
    "127.0.0.1.nip.test": (says("A 127.0.0.1"), BLOCKED),
    "nothing.test": (says("A 0.0.0.0"), BLOCKED),
    "nothing6.test": (says("AAAA ::"), BLOCKED),
    "six.test": (says("AAAA ::1"), BLOCKED),
    "public-first.test": (says("A 1.1.1.1", "A 127.0.0.1"), BLOCKED),
    "private-first.test": (says("A 127.0.0.1", "A 1.1.1.1"), BLOCKED),
    "public4-private6.test": (says("A 1.1.1.1", "AAAA ::1"), BLOCKED),
    "private4-public6.test": (says("A 127.0.0.1", "AAAA 2606:4700::1111"), BLOCKED),
    "one-of-many.test": (says(*(f"A 1.1.1.{n}" for n in range(1, 20)), "A 127.0.0.1"), BLOCKED),
    "mapped.test": (says("AAAA ::ffff:7f00:1"), BLOCKED),
    "mapped-metadata.test": (says("AAAA ::ffff:a9fe:a9fe"), BLOCKED),
    "compatible.test": (says("AAAA ::7f00:1"), BLOCKED),
    "nat64.test": (says("AAAA 64:ff9b::7f00:1"), BLOCKED),
    "6to4.test": (says("AAAA 2002:7f00:1::1"), BLOCKED),
    "teredo.test": (says("AAAA 2001:0:7f00:1::1"), BLOCKED),
    "unique-local.test": (says("AAAA fd00:ec2::254"), BLOCKED),
    "link-local.test": (says("AAAA fe80::1"), BLOCKED),
    "cgnat.test": (says("A 100.100.100.200"), BLOCKED),
    "azure.test": (says("A 168.63.129.16"), BLOCKED),
    "oracle.test": (says("A 192.0.0.192"), BLOCKED),
    "multicast.test": (says("A 224.0.0.1"), BLOCKED),
    "broadcast.test": (says("A 255.255.255.255"), BLOCKED),
    "pods.test": (says("A 20.0.0.1"), BLOCKED),
    "alias.test": (says("CNAME a.loopback.test"), BLOCKED),
    "alias-of-alias.test": (says("CNAME alias.test"), BLOCKED),
    "half-an-alias.test": (Reply(("CNAME a.loopback.test",), is_whole=False), BLOCKED),
    "alias-of-localhost.test": (Reply(("CNAME localhost",), is_whole=False), BLOCKED),
    "alias-of-itself.test": (says("CNAME alias-of-itself.test"), DNS),
    "alias-of-nothing.test": (says("CNAME gone.test"), DNS),
    "empty.test": (says(), DNS),
    "gone.test": (NXDOMAIN, DNS),
    "broken.test": (SERVFAIL, DNS),
    "silent.test": (SILENCE, DNS),
}
ZONE = {"public.test": says("A 1.1.1.1")} | {name: said for name, (said, _) in NAMES.items()}

BY_NAME = {f"http://{name}:@@/": reason for name, (_, reason) in NAMES.items()} | {
    "http://LOCALHOST:@@/": BLOCKED,
    "http://localhost.:@@/": BLOCKED,
    "https://a.loopback.test.:@@/": BLOCKED,
    "http://user:a.loopback.test@alias.test:@@/": BLOCKED,
}

# To where a public site sends us on. What has no host of its own means another place there.
REDIRECTS = {
    **{url: reason for url, reason in (LITERALS | BY_NAME).items() if url.isprintable() and "//" in url},
    "//127.0.0.1:@@/": BLOCKED,
    "http://[v1.fe80::]:@@/": BAD,
    "http://localhost:22/": PORT,
    "/to/0": BLOCKED,
}

CASES = {
    **LITERALS,
    **BY_NAME,
    **{f"http://public-site.test/to/{n}": reason for n, reason in enumerate(REDIRECTS.values())},
}


class Canary(Site):
    """Listens on loopback, in both families where there are two."""

    @property
    def is_untouched(self) -> bool:
        return self.max_open == 0


@asynccontextmanager
async def listening() -> AsyncIterator[Canary]:
    canary = Canary({"/": reply(b"secret"), "/robots.txt": NOT_FOUND})
    async with await asyncio.start_server(canary.serve, "127.0.0.1", 0) as server:
        canary.port = server.sockets[0].getsockname()[1]
        async with AsyncExitStack() as stack:
            with suppress(OSError):  # no IPv6 here
                await stack.enter_async_context(await asyncio.start_server(canary.serve, "::1", canary.port))
            yield canary


@asynccontextmanager
async def network(**changes: Any) -> AsyncIterator[tuple[Canary, NameServer, DownloadConfig]]:
    """A canary, a name server, a public site that redirects, and the config of a worker among them."""
    async with listening() as canary, name_server(ZONE) as server:
        routes = {
            f"/to/{n}": reply(b"", "302 Found", f"Location: {target.replace('@@', str(canary.port))}")
            for n, target in enumerate(REDIRECTS)
        }
        site = Site(routes)
        async with await asyncio.start_server(site.serve, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            settings: dict[str, Any] = {
                "allow_ports": (80, 443, canary.port),
                "deny_networks": ("20.0.0.0/8",),
                "hosts": {"public-site.test": f"127.0.0.1:{port}"},
            }
            fetch = FetchConfig(
                nameservers=(server.address,), connect_seconds=1.0, retries=0, per_host=64, per_host_rate=None
            )
            yield canary, server, DownloadConfig(guard=GuardConfig(**settings | changes), fetch=fetch)


async def outcomes(urls: Sequence[str], canary: Canary, config: DownloadConfig) -> dict[str, str | None]:
    """The reason of each of `urls`, all of them fetched by one worker."""
    reasons: dict[str, str | None] = {}

    def keep(position: int, fetched: Fetched) -> None:
        reasons[urls[position]] = fetched.reason

    await fetch_all([url.replace("@@", str(canary.port)) for url in urls], config, 1, lambda: NOW, keep)
    return reasons


@pytest.mark.parametrize("honor", [True, False])
def test_no_case_reaches_the_canary_and_each_has_its_reason(honor: bool) -> None:
    async def run() -> tuple[dict[str, str | None], Canary]:
        async with network() as (canary, _, config):
            asked = config.model_copy(update={"honor_opt_out": honor})
            return await outcomes(list(CASES), canary, asked), canary

    reasons, canary = asyncio.run(run())
    assert reasons == CASES
    assert canary.is_untouched
    assert set(CASES.values()) == REASONS
    assert min(len(LITERALS), len(REDIRECTS)) >= 60
    assert len(BY_NAME) >= 30


def test_without_the_guard_the_cases_reach_the_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(address: str, deny_networks: Sequence[str] = ()) -> bool:
        return not _is_loopback(address)  # nobody outside is asked

    monkeypatch.setattr(guard, "refused", opened)
    monkeypatch.setattr(resolve, "refused", opened)

    async def run() -> tuple[list[str], Canary]:
        async with network() as (canary, _, config):
            reasons = await outcomes(list(CASES), canary, config)
            return [url for url, reason in reasons.items() if reason is None], canary

    reached, canary = asyncio.run(run())
    assert not canary.is_untouched
    assert len(reached) >= 50


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    target = getattr(parsed, "ipv4_mapped", None) or parsed
    return target.is_loopback or target.is_unspecified


@pytest.mark.parametrize(
    ("url", "changes"),
    [
        ("http://127.0.0.1:@@/", {"allow_hosts": ("127.0.0.1",)}),
        ("http://A.loopback.test.:@@/", {"allow_hosts": ("a.Loopback.test",)}),
        ("http://a.loopback.test:@@/", {"allow_hosts": ("a.loopback.test",), "allow_ports": (80,)}),
        ("http://alias.test:@@/", {"allow_hosts": ("alias.test",)}),
        ("http://canary.test/", {"hosts": {"canary.test": "127.0.0.1:@@"}}),
        ("http://canary.test:8080/", {"hosts": {"canary.test": "127.0.0.1:@@"}}),
    ],
)
def test_the_canary_is_there_for_those_whom_the_config_lets_through(url: str, changes: dict[str, Any]) -> None:
    async def run() -> tuple[Fetched, Canary]:
        async with network() as (canary, _, config):
            hosts = {name: target.replace("@@", str(canary.port)) for name, target in changes.get("hosts", {}).items()}
            settings = config.guard.model_dump() | changes | {"hosts": hosts}
            asked = config.model_copy(update={"guard": GuardConfig(**settings)})
            async with Fetcher(asked, 1, lambda: NOW) as fetcher:
                return await fetcher.fetch(url.replace("@@", str(canary.port))), canary

    fetched, canary = asyncio.run(run())
    assert (fetched.content, fetched.reason) == (b"secret", None)
    assert not canary.is_untouched


def test_a_redirect_to_an_exempt_host_reaches_it_and_its_neighbours_do_not() -> None:
    async def run() -> dict[str, str | None]:
        async with network(allow_hosts=("alias.test",)) as (canary, _, config):
            return await outcomes(list(CASES), canary, config)

    reasons = asyncio.run(run())
    passed = {url for url, reason in reasons.items() if reason is None}
    assert passed == {url for url in CASES if "//alias.test:@@" in _asked(url) or "@alias.test:@@" in _asked(url)}


def _asked(url: str) -> str:
    """What `url` leads to."""
    _, is_redirect, number = url.partition("/to/")
    return list(REDIRECTS)[int(number)] if is_redirect else url


@pytest.mark.parametrize(("cache_seconds", "reason"), [(0.0, BLOCKED), (300.0, None)])
def test_a_name_that_changes_its_mind_is_checked_again_or_kept_where_it_was(
    monkeypatch: pytest.MonkeyPatch, cache_seconds: float, reason: str | None
) -> None:
    refused = guard.refused  # 127.0.0.2 is the public address here: nobody outside is asked
    monkeypatch.setattr(resolve, "refused", lambda address, deny=(): address != "127.0.0.2" and refused(address, deny))
    public, private = says("A 127.0.0.2"), says("A 127.0.0.1")

    async def run() -> tuple[list[Fetched], Canary]:
        async with network() as (canary, server, config):
            server.zone = {"rebind.test": [public, private]}
            site = Site({f"/{n}": reply(b"public", "200 OK", "Connection: close") for n in range(3)})
            fetch = config.fetch.model_copy(update={"dns_cache_seconds": cache_seconds})
            asked = config.model_copy(update={"fetch": fetch, "honor_opt_out": False})
            async with (
                await asyncio.start_server(site.serve, "127.0.0.2", canary.port),
                Fetcher(asked, 1, lambda: NOW) as fetcher,
            ):
                return [await fetcher.fetch(f"http://rebind.test:{canary.port}/{n}") for n in range(3)], canary

    fetched, canary = asyncio.run(run())
    assert [each.reason for each in fetched] == [None, reason, reason]
    assert fetched[0].content == b"public"
    assert canary.is_untouched


def test_a_robots_txt_does_not_lead_there_either() -> None:
    async def run() -> tuple[dict[str, str | None], Canary, Site]:
        async with network() as (canary, _, config):
            targets = [url.replace("@@", str(canary.port)) for url in REDIRECTS if "//" in url]
            site = Site({"/robots.txt": [reply(b"", "301 Moved", f"Location: {target}") for target in targets]})
            async with await asyncio.start_server(site.serve, "127.0.0.1", 0) as listener:
                port = listener.sockets[0].getsockname()[1]
                hosts = {f"site{n}.test": f"127.0.0.1:{port}" for n in range(len(targets))}
                settings = config.guard.model_copy(update={"hosts": hosts})
                asked = config.model_copy(update={"guard": settings})
                return await outcomes([f"http://{host}/a" for host in hosts], canary, asked), canary, site

    reasons, canary, site = asyncio.run(run())
    assert None not in reasons.values()
    assert site.paths == {"/robots.txt": len(REDIRECTS) - 1}
    assert canary.is_untouched
