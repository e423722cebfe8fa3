"""Faults of the web, one word each: which URL a faulty row holds, what answers there, and the reason it must
end with (none where a patient client still gets the picture). In go a slot's name and the bytes of a good
picture, out come a URL and pages; who lists the URL is none of its business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from dataengine.testing.pages import CLOSED_HOST, UNKNOWN_HOST, Served, page_at
from dataengine.testing.pictures import half, pixel_bomb

Answer: TypeAlias = Callable[[str, bytes], list[Served]]

_HTML = b"<!DOCTYPE html>\n<html><title>Gone away</title><p>No picture here.</p></html>\n"
_JPEG = {"Content-Type": "image/jpeg"}
_TEXT = {"Content-Type": "text/html; charset=utf-8"}

ROBOTS: Served = (
    page_at("http://shop.test/robots.txt", headers={"Content-Type": "text/plain"}),
    b"User-agent: *\nDisallow: /private/\n",
)
"""The only robots.txt of the web: its host's pages under /private/ are not for machines."""


@dataclass(frozen=True)
class WebFault:
    """One way for a URL to fail.

    ``url`` is formatted with the name of the slot, so that every faulty row has its own; ``answer`` makes the
    pages from the URL and a good JPEG file, and ``reason`` is None where the picture arrives in the end.
    """

    kind: str
    reason: str | None
    answer: Answer
    url: str = "http://faulty.test/{}.jpg"


def _status(status: int) -> Answer:
    return lambda url, _: [(page_at(url, status=status, headers=_TEXT), _HTML)]


def _later(status: int, headers: dict[str, str]) -> Answer:
    return lambda url, body: [(page_at(url, "later", status, headers), body)]


def _drip(url: str, body: bytes) -> list[Served]:
    return [(page_at(url, "drip", headers=_JPEG), body)]


def _cut(url: str, body: bytes) -> list[Served]:
    return [(page_at(url, "cut", headers=_JPEG), body)]


def _whole(change: Callable[[bytes], bytes] = bytes, **headers: str) -> Answer:
    """Answers 200 with the changed picture; header names are given with underscores."""
    named = _JPEG | {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda url, body: [(page_at(url, headers=named), change(body))]


def _endless(url: str, body: bytes) -> list[Served]:
    return [(page_at(url, "endless", headers=_JPEG), body)]


def _reset(url: str, _: bytes) -> list[Served]:
    return [(page_at(url, "reset"), b"")]


def _moved(url: str, location: str) -> Served:
    return page_at(url, status=301, headers={"Location": location}), b""


def _moved_page(url: str, body: bytes) -> list[Served]:
    there = url.replace("faulty.test", "cdn.test")
    return [_moved(url, there), (page_at(there, headers=_JPEG), body)]


def _redirect_loop(url: str, _: bytes) -> list[Served]:
    there = url.replace(".jpg", "-again.jpg")
    return [_moved(url, there), _moved(there, url)]


def _nothing(_url: str, _body: bytes) -> list[Served]:
    return []


FAULTS = (
    WebFault("http_404", "http_404", _status(404)),
    WebFault("http_410", "http_410", _status(410)),
    WebFault("http_500", "http_500", _status(500)),
    WebFault("first_500", None, _later(500, _TEXT)),
    WebFault("first_429", None, _later(429, {**_TEXT, "Retry-After": "1"})),
    WebFault("moved", None, _moved_page),
    WebFault("redirect_loop", "redirects", _redirect_loop),
    WebFault(
        "redirect_to_private_address",
        "blocked_address",
        lambda url, _: [_moved(url, "http://169.254.169.254/latest/meta-data/")],
    ),
    WebFault("html", "not_image", lambda url, _: [(page_at(url, headers=_TEXT), _HTML)]),
    WebFault("unknown_format", "not_image", _whole(lambda body: b"\x00" * 16 + body)),
    WebFault("half_jpeg", "bad_image", _whole(half)),
    WebFault("cut_body", "truncated", _cut),
    WebFault("empty_body", "not_image", _whole(lambda _: b"")),
    WebFault("pixel_bomb", "too_many_pixels", _whole(lambda _: pixel_bomb(), Content_Type="image/png")),
    WebFault("endless_body", "too_large", _endless),
    WebFault("slow_drip", "timeout", _drip),
    WebFault("connection_reset", "reset", _reset),
    WebFault("connection_refused", "connect", _nothing, f"http://{CLOSED_HOST}/{{}}.jpg"),
    WebFault("unknown_host", "dns", _nothing, f"http://{UNKNOWN_HOST}/{{}}.jpg"),
    WebFault("opt_out_header", "opt_out", _whole(X_Robots_Tag="noai")),
    WebFault("robots_disallowed", "robots", _whole(), "http://shop.test/private/{}.jpg"),
    WebFault("loopback_address", "blocked_address", _nothing, "http://127.0.0.1:9/{}.jpg"),
    WebFault("metadata_address", "blocked_address", _nothing, "http://169.254.169.254/{}"),
    WebFault("ftp_url", "bad_url", _nothing, "ftp://photos.test/{}.jpg"),
    WebFault("not_a_url", "bad_url", _nothing, "not a url {}"),
)
"""Every fault of which a web may hold several."""

EMPTY_URL = WebFault("empty_url", "bad_url", _nothing, "")
"""A row without a URL; two of them in one source would be one candidate."""
