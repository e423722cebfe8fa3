"""URLs, waits and faults of single requests; what servers do is tested through the fetcher."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.download.exchange import FetchFault, parse_url, retry_after_seconds

NOW = datetime(2030, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("7", 7), (" 0 ", 0), ("-1", None), ("soon", None), ("1e9", None),
        ("9" * 5000, math.inf),
        ("Wed, 02 Jan 2030 00:00:30 GMT", 30), ("Wed, 02 Jan 2020 00:00:30 GMT", 0),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


def test_urls_are_read_as_browsers_read_them() -> None:
    assert str(parse_url(" HTTP://Photos.Test/\u00e9 x?q=%2B#top ")) == "http://photos.test/%C3%A9%20x?q=%2B"
    assert str(parse_url("http://b\u00fccher.test/")) == "http://xn--bcher-kva.test/"
    assert str(parse_url("../c", parse_url("http://a.test/x/y/z"))) == "http://a.test/x/c"


@given(st.text(), st.sampled_from(["", "http://", "https://a.test/", "//", "http://a.test:"]))
def test_any_text_is_a_url_or_a_bad_one(text: str, start: str) -> None:
    for base in (None, parse_url("http://a.test/x")):
        try:
            url = parse_url(start + text, base)
        except FetchFault:
            continue
        assert url.scheme in ("http", "https")
        assert url.host
        assert str(url).isascii()


def test_only_what_passes_by_itself_is_transient() -> None:
    transient = {"dns", "connect", "reset", "robots_unreachable", "http_429", "http_500", "http_503"}
    lasting = {"http_404", "tls", "too_large", "opt_out", "robots", "bad_url", "blocked_address", "protocol"}
    assert {reason for reason in transient | lasting if FetchFault(reason).is_transient} == transient
