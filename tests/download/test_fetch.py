"""Whatever a server does, a URL gets exactly one outcome, in time, with a bounded body and the evidence."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import time
import zlib
from collections.abc import Callable
from datetime import timedelta

import pytest

from dataengine.config.download import DownloadConfig, GuardConfig, LimitsConfig
from dataengine.download.blocklist import Blocklist, parse_blocklist
from dataengine.download.fetch import Fetched, Fetcher
from dataengine.download.known_hosts import new_hosts
from tests.download.fetching import HOST, NOW, collect, config, fetch, fetch_one
from tests.download.site import NOT_FOUND, Route, Site, reply, serving


def test_a_plain_image_comes_with_its_evidence() -> None:
    url = f"http://user:secret@{HOST}/a?b=1#part"
    (fetched,), site = fetch({"/a?b=1": reply(b"picture", "200 OK", "Content-Type: image/png")}, url)
    assert dataclasses.replace(fetched, seconds=0.0) == Fetched(
        b"picture",
        None,
        200,
        f"http://{HOST}/a?b=1",
        "image/png",
        evidence=None,
        fetched_at=NOW,
        num_attempts=1,
        host=HOST,
        seconds=0.0,
        num_body_bytes=7,
    )
    assert 0 < fetched.seconds < 2
    request = site.requests[-1]
    assert f"Host: {HOST}\r\n" in request
    assert "User-Agent: dataengine/" in request
    assert "Accept-Encoding: identity\r\n" in request
    assert not {"authorization", "cookie"} & {line.split(":")[0].lower() for line in request.splitlines()}


def test_cookies_are_not_kept() -> None:
    routes = {"/a": reply(b"x", "200 OK", "Set-Cookie: track=1"), "/b": reply(b"y")}
    _, site = fetch(routes, f"http://{HOST}/a", f"http://{HOST}/b")
    assert "track" not in site.requests[-1]


def test_environment_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert fetch_one({"/a": reply(b"x")}).content == b"x"


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def dripping(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 4096)
        await writer.drain()


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Pad: " + b"x" * 4096 + b"\r\n")
        await writer.drain()


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + end


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (NOT_FOUND, "http_404"),
        (reply(b"", "410 Gone"), "http_410"),
        (reply(b"", "503 Busy"), "http_503"),
        (reply(b"", "204 No Content"), "http_204"),
        (reply(b"", "302 Found"), "http_302"),
        (reply(b"x" * 5000), "too_large"),
        (reply(b"x" * 5)[:-1].replace(b": 5", b": 5000"), "too_large"),
        (chunked(*[b"x" * 1000] * 5), "too_large"),
        (endless, "too_large"),
        (reset, "reset"),
        (b"", "reset"),
        (b"not http at all\r\n\r\n", "protocol"),
        (reply(b"x", "200 OK", "X-Long: " + "x" * 20_000), "protocol"),
        (endless_headers, "protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "protocol"),
        (chunked(b"x" * 100, end=b""), "truncated"),
        (reply(b"no gzip", "200 OK", "Content-Encoding: gzip"), "protocol"),
        (reply(gzip.compress(b"x" * 100)[:-9], "200 OK", "Content-Encoding: gzip"), "truncated"),
        (reply(gzip.compress(bytes(1_000_000)), "200 OK", "Content-Encoding: gzip"), "too_large"),
    ],
)
def test_faults_have_their_reason(route: Route, reason: str) -> None:
    fetched = fetch_one({"/a": route})
    assert (fetched.content, fetched.reason) == (None, reason)


def test_a_short_body_is_truncated() -> None:
    async def short(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")

    assert fetch_one({"/a": short}).reason == "truncated"


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress])
def test_a_compressed_body_within_the_cap_is_inflated(encode: Callable[[bytes], bytes]) -> None:
    name = "gzip" if encode is gzip.compress else "deflate"
    assert fetch_one({"/a": reply(encode(b"x" * 99), "200 OK", f"Content-Encoding: {name}")}).content == b"x" * 99


def test_a_body_of_exactly_the_cap_passes() -> None:
    assert fetch_one({"/a": reply(b"x" * 4096)}).content == b"x" * 4096
    assert fetch_one({"/a": chunked(b"x" * 4000, b"x" * 96)}).content == b"x" * 4096


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "ftp://photos.test/a", "file:///etc/passwd", "http://", "http:///a", "http://photos.test:x/",
     "http://photos.test:99999/", "http://[::1/", "//photos.test/a", "http://a b.test/", "http://\ud800.test/", "http://[v1.fe80::]/"],
)  # fmt: skip
def test_bad_urls_are_told_without_an_attempt(url: str) -> None:
    fetched = fetch_one({}, url)
    assert fetched.reason in ("bad_url", "dns")
    assert (fetched.reason, fetched.num_attempts) == ("bad_url", 0) or " " in url


@pytest.mark.parametrize("honor", [True, False])
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/a", "blocked_address"),
        ("http://127.1/a", "blocked_address"),
        ("http://2130706433/a", "blocked_address"),
        ("http://0x7f.1/a", "blocked_address"),
        ("http://[::1]/a", "blocked_address"),
        ("http://[::ffff:169.254.169.254]/latest/meta-data", "blocked_address"),
        ("http://localhost/a", "blocked_address"),
        ("http://down.test/a", "connect"),
        ("http://nowhere.invalid/a", "dns"),
    ],
)
def test_unreachable_places_have_their_reason(url: str, reason: str, honor: bool) -> None:
    assert fetch_one({}, url, honor=honor).reason == reason


def test_a_server_without_tls_is_a_tls_fault() -> None:
    async def run() -> Fetched:
        async def speak_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(reply(b"", "400 Bad Request"))
            writer.close()

        server = await asyncio.start_server(speak_plainly, "127.0.0.1", 0)
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, Fetcher(DownloadConfig(guard=GuardConfig(hosts={HOST: host})), 1, lambda: NOW) as fetcher:
            return await fetcher.fetch(f"https://{HOST}/a")

    assert asyncio.run(run()).reason == "tls"


def redirect(target: str, status: str = "302 Found") -> bytes:
    return reply(b"moved", status, f"Location: {target}")


def test_redirects_are_followed_to_the_end() -> None:
    routes = {
        "/a": redirect("/b", "301 Moved"),
        "/b": redirect("//other.test/c?x=\u00e9#f", "307 Temporary"),
        "/c?x=%C3%A9": reply(b"picture"),
    }
    fetched = fetch_one(routes)
    assert fetched.content == b"picture"
    assert fetched.final_url == "http://other.test/c?x=%C3%A9"
    assert fetched.num_attempts == 1


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://169.254.169.254/latest", "blocked_address"),
        ("http://localhost/", "blocked_address"),
        ("http://localhost:1/", "blocked_port"),
        ("file:///etc/passwd", "bad_url"),
        ("http://[", "bad_url"),
        ("/a", "redirects"),
    ],
)
def test_redirects_lead_nowhere_else(target: str, reason: str) -> None:
    fetched = fetch_one({"/a": redirect(target)})
    assert (fetched.reason, fetched.http_status, fetched.final_url) == (reason, 302, f"http://{HOST}/a")


def test_redirects_are_counted() -> None:
    routes = {f"/{step}": redirect(f"/{step + 1}") for step in range(3)} | {"/3": reply(b"x")}
    for max_redirects, reason in ((3, None), (2, "redirects")):
        limits = LimitsConfig(max_redirects=max_redirects)
        assert fetch_one(routes, f"http://{HOST}/0", limits=limits).reason == reason


def test_transient_faults_are_tried_again() -> None:
    busy = reply(b"", "503 Busy")
    (fetched,), site = fetch({"/a": [busy, reply(b"x")]}, f"http://{HOST}/a", retries=1)
    assert (fetched.content, fetched.num_attempts, site.paths["/a"]) == (b"x", 2, 2)
    fetched = fetch_one({"/a": busy}, retries=1)
    assert (fetched.content, fetched.reason, fetched.http_status, fetched.num_attempts) == (None, "http_503", 503, 2)


@pytest.mark.parametrize("route", [NOT_FOUND, reply(b"x" * 5000), b"rubbish\r\n\r\n"])
def test_lasting_faults_are_not_tried_again(route: bytes) -> None:
    assert fetch_one({"/a": route}, retries=3).num_attempts == 1


def test_retry_after_is_waited_for_within_the_deadline() -> None:
    def limited(seconds: int) -> list[bytes]:
        return [reply(b"", "429 Slow down", f"Retry-After: {seconds}"), reply(b"x")]

    started = time.monotonic()
    assert fetch_one({"/a": limited(1)}, retries=1).content == b"x"
    assert time.monotonic() - started >= 1
    started = time.monotonic()
    assert fetch_one({"/a": limited(60)}, retries=1).reason == "http_429"
    assert time.monotonic() - started < 1


def test_the_deadline_ends_everything() -> None:
    for handler in (silent, dripping):
        started = time.monotonic()
        assert fetch_one({"/a": handler}, total_seconds=0.5).reason == "timeout"
        assert time.monotonic() - started < 2


def test_a_dripping_body_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataengine.download.body._RATE_WINDOW_SECONDS", 0.4)
    assert fetch_one({"/a": dripping}).reason == "too_slow"
    assert fetch_one({"/a": dripping}, min_bytes_per_second=5, total_seconds=1.5).reason == "timeout"


@pytest.mark.parametrize("header", ["X-Robots-Tag: nofollow, noai", "tdm-reservation: 1"])
def test_opt_out_headers_are_honoured(header: str) -> None:
    routes = {"/a": reply(b"x", "200 OK", header)}
    fetched = fetch_one(routes)
    assert (fetched.content, fetched.reason) == (None, "opt_out")
    assert fetched.evidence is not None
    assert fetch_one(routes, honor=False).content == b"x"


def test_an_opt_out_is_obeyed_before_the_body_is_read() -> None:
    async def forbidding(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\nContent-Length: 4000\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(30)

    started = time.monotonic()
    assert fetch_one({"/a": forbidding}).reason == "opt_out"
    assert time.monotonic() - started < 2


def test_robots_txt_is_asked_once_and_obeyed() -> None:
    routes = {
        "/robots.txt": reply(b"User-agent: *\nDisallow: /private"),
        "/a": reply(b"x"),
        "/b": reply(b"y"),
    }
    urls = [f"http://{HOST}/{path}" for path in ("a", "private/a", "b")]
    fetched, site = fetch(routes, *urls)
    assert [each.content for each in fetched] == [b"x", None, b"y"]
    assert (fetched[1].reason, fetched[1].evidence) == ("robots", "robots.txt: Disallow: /private")
    assert site.paths == {"/robots.txt": 1, "/a": 1, "/b": 1}
    fetched, site = fetch(routes | {"/private/a": reply(b"z")}, *urls, honor=False)
    assert fetched[1].content == b"z"
    assert "/robots.txt" not in site.paths


def test_a_redirect_needs_the_permission_of_where_it_leads() -> None:
    routes = {
        "/robots.txt": reply(b"User-agent: dataengine\nDisallow: /b"),
        "/a": redirect("/b"),
        "/b": reply(b"x"),
    }
    (fetched,), site = fetch(routes, f"http://{HOST}/a")
    assert fetched.reason == "robots"
    assert "/b" not in site.paths


@pytest.mark.parametrize(
    ("robots", "reason"),
    [
        (NOT_FOUND, None),
        (reply(b"", "403 Forbidden"), None),
        (redirect("/robots.txt"), None),
        (reply(b"", "500 Broken"), "robots_unreachable"),
        (reset, "robots_unreachable"),
        (b"rubbish\r\n\r\n", "robots_unreachable"),
        (reply(b"User-agent: *\nDisallow: /\n" + b"#" * 600_000), "robots"),
    ],
)
def test_a_robots_txt_that_cannot_be_had(robots: Route, reason: str | None) -> None:
    assert fetch_one({"/robots.txt": robots, "/a": reply(b"x")}).reason == reason


@pytest.mark.parametrize(
    ("encoding", "pack", "reason"),
    [("gzip", gzip.compress, "robots"), ("deflate", zlib.compress, "robots"), ("br", bytes, "robots_unreachable")],
)
def test_a_packed_robots_txt_is_unpacked(encoding: str, pack: Callable[[bytes], bytes], reason: str) -> None:
    for rules in (b"User-agent: *\nDisallow: /\n", b"User-agent: *\nDisallow: /\n" + b"#" * 3_000_000):
        robots = reply(pack(rules)[:600_000], "200 OK", f"Content-Encoding: {encoding}")
        assert fetch_one({"/robots.txt": robots, "/a": reply(b"x")}).reason == reason


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/robots.txt", "http://down.test/robots.txt", "ftp://x/y"])
def test_where_a_robots_txt_redirects_to_is_no_matter_of_the_image(place: str) -> None:
    fetched = fetch_one({"/robots.txt": redirect(place), "/a": reply(b"x")})
    assert fetched.reason == "robots_unreachable"


def test_a_list_is_obeyed_at_every_hop() -> None:
    async def run() -> tuple[list[Fetched], Site]:
        routes = {"/a": redirect("http://other.test/x"), "/x": redirect(f"http://{HOST}/b"), "/b": reply(b"x")}
        async with serving(routes) as site:
            lists = Blocklist()
            parse_blocklist(["other.test"], "list", lists)
            asked = config(site)
            async with (
                Fetcher(asked, 1, lambda: NOW, forbids=lists.forbids_url) as guarded,
                Fetcher(asked, 1, lambda: NOW) as free,
            ):
                return [await guarded.fetch(f"http://{HOST}/a"), await free.fetch(f"http://{HOST}/a")], site

    (guarded, free), site = asyncio.run(run())
    assert (guarded.reason, guarded.evidence) == ("blocklist", "domain other.test")
    assert free.content == b"x"
    assert site.paths["/x"] == 1


def test_a_name_that_does_not_exist_costs_no_patience() -> None:
    """It has no server that rest would help, and to ask for it again at once is in vain."""
    started = time.monotonic()
    urls = [f"http://nowhere.invalid/{number}" for number in range(50)]
    results, _ = collect({}, urls, retries=2)
    assert {fetched.reason for fetched in results.values()} == {"dns"}
    assert {fetched.num_attempts for fetched in results.values()} == {1}
    assert time.monotonic() - started < 5


def test_what_is_known_of_a_host_outlives_a_part() -> None:
    async def run() -> tuple[list[str | None], Site]:
        routes = {"/a": reply(b"x"), "/busy": reply(b"", "429 Slow down", "Retry-After: 3600")}
        async with serving(routes) as site:
            asked, reasons = config(site), []
            hosts = new_hosts(asked.fetch, 1)
            for path in ("a", "a", "busy", "a"):
                async with Fetcher(asked, 1, lambda: NOW, hosts=hosts) as fetcher:
                    reasons.append((await fetcher.fetch(f"http://{HOST}/{path}")).reason)
            return reasons, site

    reasons, site = asyncio.run(run())
    assert reasons == [None, None, "http_429", "http_429"]
    assert site.paths == {"/robots.txt": 1, "/a": 2, "/busy": 1}


def test_rules_are_asked_for_again_after_a_day() -> None:
    async def run() -> Site:
        async with serving({"/a": reply(b"x")}) as site:
            asked = config(site)
            hosts = new_hosts(asked.fetch, 1)
            for _ in range(2):
                async with Fetcher(asked, 1, lambda: NOW, hosts=hosts) as fetcher:
                    await fetcher.fetch(f"http://{HOST}/a")
                for origin, (rules, until) in list(hosts.rules.items()):
                    hosts.rules[origin] = rules, until - 86_400
            return site

    assert asyncio.run(run()).paths["/robots.txt"] == 2


def test_a_body_of_several_gzip_members_is_whole() -> None:
    def answer(body: bytes) -> Fetched:
        return fetch_one({"/a": reply(body, "200 OK", "Content-Encoding: gzip")})

    assert answer(gzip.compress(b"one") + gzip.compress(b"two")).content == b"onetwo"
    assert answer(gzip.compress(b"one") + b"\0" * 8).content == b"one"
    assert answer(gzip.compress(b"one") + gzip.compress(b"two")[:-3]).reason == "truncated"
    assert answer(gzip.compress(b"") * 100).reason == "protocol"
    assert answer(gzip.compress(b"x" * 3000) * 2).reason == "too_large"


def test_an_unreachable_robots_txt_is_asked_again() -> None:
    routes = {"/robots.txt": [reply(b"", "500 Broken"), NOT_FOUND], "/a": reply(b"x")}
    assert fetch_one(routes, retries=1).content == b"x"


def test_hostile_header_text_becomes_valid_text() -> None:
    async def binary(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe" + b"x" * 900 + b"\r\nContent-Length: 1\r\n\r\nx")

    fetched = fetch_one({"/a": binary})
    assert fetched.content == b"x"
    assert len((fetched.content_type or "").encode()) < 600


def test_the_clock_is_the_callers() -> None:
    times = iter(NOW + timedelta(seconds=n) for n in range(5))

    async def run() -> Fetched:
        async with (
            serving({"/a": [reply(b"", "503 Busy"), reply(b"x")]}) as site,
            Fetcher(config(site, retries=1, honor=False), 1, lambda: next(times)) as fetcher,
        ):
            return await fetcher.fetch(f"http://{HOST}/a")

    fetched_at = asyncio.run(run()).fetched_at
    assert fetched_at is not None
    assert fetched_at > NOW
