"""The sample web's server: every manner of answering, met by a plain client over a socket."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from dataengine.testing.pages import CLOSED_HOST, HOSTS, page_at
from dataengine.testing.plan import MIN_SCENES
from dataengine.testing.server import HITS, serve
from dataengine.testing.web import SampleWeb, render_web

Row = dict[str, Any]
Reply = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> SampleWeb:
    return render_web(tmp_path_factory.mktemp("web"), seed=3, num_scenes=MIN_SCENES)


@pytest.fixture(scope="module")
def addresses(web: SampleWeb) -> Iterator[dict[str, str]]:
    with serve(web) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def rows(web: SampleWeb) -> dict[str, Row]:
    return {row["kind"]: row for row in web.truth.to_pylist()}


def connect(addresses: dict[str, str], url: str, timeout: float = 5) -> http.client.HTTPResponse:
    page = page_at(url)
    connection = http.client.HTTPConnection(addresses[page.host], timeout=timeout)
    connection.request("GET", page.target, headers={"Host": page.host})
    return connection.getresponse()


def get(addresses: dict[str, str], url: str) -> Reply:
    with connect(addresses, url) as response:
        return (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )


def test_every_host_has_an_address(addresses: dict[str, str]) -> None:
    assert set(addresses) == {*HOSTS, CLOSED_HOST}
    assert all(address.startswith("127.0.0.1:") for address in addresses.values())


def test_pages_answer_with_their_bytes_and_type(web: SampleWeb, addresses: dict[str, str]) -> None:
    good = [row for row in web.truth.to_pylist() if row["kind"] == "good" and row["shard"] is None]
    types = set()
    for row in good[:40]:
        status, headers, body = get(addresses, row["url"])
        assert (status, hashlib.sha256(body).hexdigest()) == (200, row["sha256"])
        types.add(headers["content-type"])
    assert types == {"image/jpeg", "image/png", "image/webp"}


def test_a_page_nobody_planted_is_not_found(addresses: dict[str, str]) -> None:
    assert get(addresses, "http://photos.test/none.jpg")[0] == 404


@pytest.mark.parametrize(("kind", "status"), [("http_404", 404), ("http_410", 410), ("http_500", 500)])
def test_a_lasting_failure_fails_every_time(
    addresses: dict[str, str], rows: dict[str, Row], kind: str, status: int
) -> None:
    assert [get(addresses, rows[kind]["url"])[0] for _ in range(3)] == [status] * 3


@pytest.mark.parametrize(("kind", "status", "wait"), [("first_500", 500, None), ("first_429", 429, "1")])
def test_a_passing_failure_passes_and_returns_with_the_next_server(
    web: SampleWeb, rows: dict[str, Row], kind: str, status: int, wait: str | None
) -> None:
    row = rows[kind]
    for _ in range(2):
        with serve(web) as fresh:
            first, headers, _ = get(fresh, row["url"])
            assert (first, headers.get("retry-after")) == (status, wait)
            for _ in range(2):
                later, _, body = get(fresh, row["url"])
                assert (later, hashlib.sha256(body).hexdigest()) == (200, row["sha256"])


def test_redirects_lead_to_a_picture_or_round_in_circles_or_inside(
    addresses: dict[str, str], rows: dict[str, Row]
) -> None:
    def location(url: str) -> str:
        status, headers, _ = get(addresses, url)
        assert status == 301
        return headers["location"]

    moved = get(addresses, location(rows["moved"]["url"]))
    assert hashlib.sha256(moved[2]).hexdigest() == rows["moved"]["sha256"]
    loop = rows["redirect_loop"]["url"]
    assert location(location(loop)) == loop
    assert urlsplit(location(rows["redirect_to_private_address"]["url"])).hostname == "169.254.169.254"


def test_bodies_that_are_no_picture(addresses: dict[str, str], rows: dict[str, Row]) -> None:
    bodies = {}
    for kind in ("html", "unknown_format", "half_jpeg", "empty_body", "pixel_bomb"):
        status, _, bodies[kind] = get(addresses, rows[kind]["url"])
        assert status == 200
    assert bodies["html"].startswith(b"<!DOCTYPE html>")
    assert bodies["unknown_format"][:16] == bytes(16)
    assert bodies["half_jpeg"].startswith(b"\xff\xd8")
    assert not bodies["half_jpeg"].endswith(b"\xff\xd9")
    assert bodies["empty_body"] == b""
    assert len(bodies["pixel_bomb"]) < 1000
    assert bodies["pixel_bomb"][16:24] == (50_000).to_bytes(4, "big") * 2


def test_a_cut_body_ends_before_its_declared_length(addresses: dict[str, str], rows: dict[str, Row]) -> None:
    with connect(addresses, rows["cut_body"]["url"]) as response:
        declared = int(response.headers["Content-Length"])
        with pytest.raises(http.client.IncompleteRead) as cut:
            response.read()
    assert len(cut.value.partial) == declared // 2


def test_a_dripping_body_sends_about_two_bytes_a_second(addresses: dict[str, str], rows: dict[str, Row]) -> None:
    started = time.monotonic()
    with connect(addresses, rows["slow_drip"]["url"]) as response:
        assert int(response.headers["Content-Length"]) > 1000
        assert response.read(3) == b"\xff\xd8\xff"
    assert 0.8 < time.monotonic() - started < 3


def test_an_endless_body_exceeds_any_cap(addresses: dict[str, str], rows: dict[str, Row]) -> None:
    with connect(addresses, rows["endless_body"]["url"]) as response:
        assert "Content-Length" not in response.headers
        num_bytes = sum(len(response.read(1 << 20)) for _ in range(24))
    assert num_bytes == 24 << 20


def test_a_reset_and_a_refused_connection(addresses: dict[str, str], rows: dict[str, Row]) -> None:
    with pytest.raises(ConnectionResetError):
        connect(addresses, rows["connection_reset"]["url"])
    with pytest.raises(ConnectionRefusedError):
        connect(addresses, rows["connection_refused"]["url"])


def test_opt_outs(addresses: dict[str, str], rows: dict[str, Row]) -> None:
    status, headers, _ = get(addresses, rows["opt_out_header"]["url"])
    assert (status, headers["x-robots-tag"]) == (200, "noai")
    rules = get(addresses, "http://shop.test/robots.txt")
    assert (rules[0], rules[2].splitlines()) == (200, [b"User-agent: *", b"Disallow: /private/"])
    assert urlsplit(rows["robots_disallowed"]["url"]).path.startswith("/private/")
    assert get(addresses, rows["robots_disallowed"]["url"])[0] == 200
    assert get(addresses, "http://photos.test/robots.txt")[0] == 404


def test_the_server_counts_requests(web: SampleWeb) -> None:
    with serve(web) as fresh:
        for _ in range(3):
            get(fresh, "http://blog.test/robots.txt")
        hits = json.loads(get(fresh, f"http://cdn.test{HITS}")[2])
    assert hits == {"blog.test /robots.txt": 3}


def refuses(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((host, int(port))) != 0


def test_the_server_ends_with_its_context_even_while_it_drips(web: SampleWeb, rows: dict[str, Row]) -> None:
    with serve(web) as fresh:
        response = connect(fresh, rows["slow_drip"]["url"])
        assert not refuses(fresh["photos.test"])
    assert refuses(fresh["photos.test"])
    response.close()


def test_the_server_dies_with_a_killed_parent(web: SampleWeb) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from dataengine.testing.server import serve\n"
        "from dataengine.testing.web import render_web\n"
        f"with serve(render_web(pathlib.Path(sys.argv[1]), 3, {MIN_SCENES})) as hosts:\n"
        "    print(hosts['photos.test'], flush=True)\n"
        "    time.sleep(60)\n"
    )
    paths = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", code, str(web.directory)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as parent:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        assert not refuses(address)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not refuses(address) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert refuses(address)


def test_a_taken_port_is_an_error(web: SampleWeb, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(web) as fresh:
        port = int(fresh["photos.test"].split(":")[1])
        with pytest.raises(OSError, match=f"did not start on port {port}"), serve(web, port):
            pass
    assert "Address already in use" in capfd.readouterr().err
