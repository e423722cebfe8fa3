from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.download.blocklist import BadEntry, Blocklist, parse_blocklist


def _listed(*lines: str) -> Blocklist:
    blocklist = Blocklist()
    parse_blocklist(lines, "list.txt", blocklist)
    return blocklist


@pytest.mark.parametrize(
    ("entry", "url", "found"),
    [
        ("bad.example", "http://bad.example/1.jpg", "domain bad.example"),
        ("bad.example", "https://a.b.BAD.example:443/x?y#z", "domain bad.example"),
        ("*.bad.example", "http://cdn.bad.example/1.jpg", "domain bad.example"),
        ("bad.example", "http://notbad.example/1.jpg", None),
        ("bad.example", "http://bad.example.org/1.jpg", None),
        ("bücher.example", "http://xn--bcher-kva.example/a", "domain xn--bcher-kva.example"),
        ("faß.example", "http://faß.example/a", "domain xn--fa-hia.example"),
        ("http://x.example/a.jpg", "http://X.example/a.jpg#top", "url http://x.example/a.jpg"),
        ("http://x.example/a.jpg", "http://u:p@x.example/a.jpg", "url http://x.example/a.jpg"),
        ("http://x.example/a.jpg", "http://x.example/A.jpg", None),
        ("http://x.example/a.jpg", "https://x.example/a.jpg", None),
        ("bad.example", "no url at all", None),
        ("# bad.example", "http://bad.example/1.jpg", None),
        ("", "http://bad.example/1.jpg", None),
    ],
)
def test_urls(entry: str, url: str, found: str | None) -> None:
    assert _listed(entry).forbids_url(url) == found


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@given(content=st.binary(max_size=40))
def test_bytes_are_found_by_any_digest(algorithm: str, content: bytes) -> None:
    digests = {name: hashlib.new(name, content).hexdigest() for name in ("md5", "sha1", "sha256")}
    blocklist = _listed(digests[algorithm].upper())
    assert blocklist.algorithms == {algorithm}
    assert blocklist.forbids_bytes(digests) == f"{algorithm} list"
    other = {name: hashlib.new(name, content + b".").hexdigest() for name in digests}
    assert blocklist.forbids_bytes(other) is None


@pytest.mark.parametrize("line", ["two words", "a/b", "http://[::1", "exa mple.org", "ab" * 20 + "zz!"])
def test_what_is_no_entry_is_named_with_its_line(line: str) -> None:
    with pytest.raises(BadEntry, match=r"list\.txt, line 2: got"):
        _listed("fine.example", line)
