"""What must not be stored: the entries of block-lists in, the entry that forbids a URL or some bytes out.

An entry is a domain (with everything below it), a URL, or an MD5, SHA-1 or SHA-256 in hex, told by their form, or with
its kind before it, as in take-downs (`url http://...`). Hashes are kept as bytes, a fifth of the memory of their text.
Keys, pixels and perceptual distance are no matter of this list: they are judged when rows are selected, and lines of
these kinds say nothing here. It knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from yarl import URL

from dataengine.download.guard import canonical_host

HASHES = {32: "md5", 40: "sha1", 64: "sha256"}
"""Hex characters → algorithm."""

_HEX = re.compile("[0-9a-f]+")
_DOMAIN = re.compile(r"[\w.-]+", re.ASCII)


class BadEntry(ValueError):
    """A line that is none of the four kinds of entry."""


@dataclass
class Blocklist:
    """Entries by kind; empty ones forbid nothing."""

    domains: set[str] = field(default_factory=set)
    urls: set[str] = field(default_factory=set)
    hashes: dict[str, set[bytes]] = field(default_factory=dict)

    @property
    def algorithms(self) -> frozenset[str]:
        """Those that the bytes of an image must be hashed with."""
        return frozenset(self.hashes)

    def add(self, entry: str) -> None:
        """Take in one line; blank ones and those that start with # say nothing. Raises BadEntry."""
        text = _bare(entry.strip())
        lower = text.lower()
        if not text or text.startswith("#"):
            return
        if len(lower) in HASHES and _HEX.fullmatch(lower):
            self.hashes.setdefault(HASHES[len(lower)], set()).add(bytes.fromhex(lower))
        elif lower.startswith(("http://", "https://")):
            self.urls.add(_entry_url(text))
        else:
            self.domains.add(_domain(lower))

    def forbids_url(self, url: str) -> str | None:
        """The entry that forbids `url`, or None."""
        if not self.domains and not self.urls:
            return None
        try:
            plain, host = _plain(url), (URL(url.strip()).raw_host or "").lower().rstrip(".")
        except ValueError:
            return None  # no URL: the fetcher says so
        if plain in self.urls:
            return f"url {plain}"
        labels = host.split(".")
        parents = (".".join(labels[start:]) for start in range(len(labels)))
        return next((f"domain {parent}" for parent in parents if parent in self.domains), None)

    def forbids_bytes(self, digests: Mapping[str, str]) -> str | None:
        """The algorithm whose list holds the digest of some bytes (algorithm → hex), or None."""
        for algorithm, listed in self.hashes.items():
            if bytes.fromhex(digests[algorithm]) in listed:
                return f"{algorithm} list"
        return None


def parse_blocklist(lines: Iterable[str], where: str, into: Blocklist) -> None:
    """Add every line to `into`. Raises BadEntry naming `where` and the line."""
    for number, line in enumerate(lines, 1):
        try:
            into.add(line)
        except BadEntry as error:
            raise BadEntry(f"{where}, line {number}: {error}") from error


def _bare(text: str) -> str:
    """A line without the word that tells its kind; empty for kinds that are judged later."""
    kind, _, value = text.partition(" ")
    if kind in ("url", "domain", "sha256"):
        return value.strip()
    return "" if kind in ("key", "pixels", "phash") else text


def _plain(url: str) -> str:
    """A URL in the one spelling that entries are compared in: host in lower case, without user and fragment."""
    return str(URL(url.strip()).with_user(None).with_fragment(None))


def _entry_url(text: str) -> str:
    try:
        return _plain(text)
    except ValueError as error:
        raise BadEntry(f"got {text[:80]!r}, which is no URL: {error}") from error


def _domain(text: str) -> str:
    name = text.removeprefix("*.").strip(".")
    ascii_name = canonical_host(name)  # as the hosts of URLs are; Python's own IDNA is an older one
    if not _DOMAIN.fullmatch(ascii_name):
        raise BadEntry(f"got {text[:80]!r}, wanted a domain, a URL, or an MD5, SHA-1 or SHA-256 in hex")
    return ascii_name
