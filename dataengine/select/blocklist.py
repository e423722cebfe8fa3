"""Block-list rules: domains, hashes of fetched bytes, and perceptual hashes within a distance.

Lines of block-lists in, an expression out that is false where a row is on the list. MD5 and SHA-1 are not among the
columns of a finished run; they are for the block-lists of download, before anything is stored. A line may begin with
the kind of its entry (`phash 00ff00ff00ff00ff 4`), as lines of take-downs do; keys, whole URLs and hashes of pixels
are only told that way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.errors import ConfigError
from dataengine.select.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = ("url", "final_url", "sha256", "phash")
KINDS = ("key", "url", "domain", "sha256", "pixels", "phash")
"""What a line may begin with."""
_HOST = r"^(?i:https?)://(?:[^/?#@]*@)?\[?([^/:?#\]]+)"
_DOMAIN = re.compile(r"(?:\*\.)?([\w-]+(?:\.[\w-]+)*)\.?", re.ASCII)
_MAX_LABELS = 32  # a name of DNS has 127 at most, one that anybody lists a handful
_HEX_CHARS = {"key": 32, "sha256": 64, "pixels": 32, "phash": 16}
_URL_PARTS = r"^(?i:https?)://(?:[^/?#@]*@)?([^/?#]*)([^#]*)"


@dataclass
class Listed:
    """What is blocked."""

    keys: set[str] = field(default_factory=set)
    urls: set[str] = field(default_factory=set)
    """As `plain_url` spells them."""
    domains: set[str] = field(default_factory=set)
    sha256: set[str] = field(default_factory=set)
    pixels: set[str] = field(default_factory=set)
    phashes: dict[int, int | None] = field(default_factory=dict)
    """Perceptual hash → bits in which one may differ from it; None: as the rule says."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are looked at."""
        extra = {"key": self.keys, "pixel_hash": self.pixels}
        return (*COLUMNS, *(name for name, entries in extra.items() if entries))

    def add(self, kind: str, value: str, distance: int | None = None) -> None:
        """Take in an entry of one of `KINDS`. Raises ValueError when it is none, saying what was wanted."""
        value = value if kind == "url" else value.lower()
        if kind in _HEX_CHARS and not re.fullmatch(f"[0-9a-f]{{{_HEX_CHARS[kind]}}}", value):
            raise ValueError(f"wanted {kind} as {_HEX_CHARS[kind]} hex characters")
        if kind == "phash":
            known = self.phashes.get(int(value, 16))
            self.phashes[int(value, 16)] = distance if known is None or distance is None else max(known, distance)
        elif kind == "domain":
            domain = _DOMAIN.fullmatch(value)
            if domain is None:
                raise ValueError("wanted a domain, such as example.com")
            self.domains.add(domain[1])
        elif kind == "url":
            self.urls.add(plain_url(value))
        else:
            {"key": self.keys, "sha256": self.sha256, "pixels": self.pixels}[kind].add(value)


def parse_lines(lines: Iterable[str], where: str) -> Listed:
    """The entries of some lines. Raises ConfigError naming the line that is none."""
    listed = Listed()
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            _add(listed, entry)
        except ValueError as error:
            raise ConfigError(f"{where}, line {number}: got {entry[:80]!r}, {error}") from error
    return listed


def _add(listed: Listed, entry: str) -> None:
    kind, *words = entry.partition(" #")[0].split()
    if words and kind in KINDS:
        distance = words[1] if kind == "phash" and len(words) == 2 else None
        if len(words) != 1 and distance is None:
            raise ValueError(f"wanted one {kind} after the word")
        if distance is not None and not (distance.isdecimal() and int(distance) <= 64):
            raise ValueError("wanted a number of bits, 0 to 64, after the perceptual hash")
        listed.add(kind, words[0], int(distance) if distance else None)
        return
    lower = entry.lower()
    is_hex = re.fullmatch("[0-9a-f]+", lower) is not None
    if is_hex and len(lower) in (64, 16):
        listed.add("sha256" if len(lower) == 64 else "phash", lower)
    elif _DOMAIN.fullmatch(lower) and not (is_hex and len(lower) in (32, 40)):
        listed.add("domain", lower)
    else:
        raise ValueError(
            "wanted a domain, a SHA-256 (64 hex characters) or a perceptual hash (16); bare URLs, MD5 and SHA-1 are "
            "for download.blocklists"
        )


def plain_url(url: str) -> str:
    """A URL without scheme, user and fragment, its host in lower case: how URLs are compared; others as they are."""
    parts = re.match(_URL_PARTS, url)
    return f"{parts[1].lower()}{parts[2]}" if parts else url


def blocklist_condition(listed: Listed, max_phash_distance: int) -> pl.Expr:
    """True where a row is not on the list; never null, because what is not known cannot be on it."""
    conditions = [pl.col("url").is_null() | pl.lit(value=True)]  # a bare literal would be one row
    if listed.keys:
        conditions.append(~pl.col("key").is_in(sorted(listed.keys)))
    if listed.urls:
        conditions += [~plain_urls(name).is_in(sorted(listed.urls)) for name in ("url", "final_url")]
    if listed.domains:
        conditions += [~below(name, listed.domains) for name in ("url", "final_url")]
    if listed.sha256:
        conditions.append(~pl.col("sha256").is_in(sorted(listed.sha256)))
    if listed.pixels:
        conditions.append(~pl.col("pixel_hash").is_in(sorted(listed.pixels)))
    if listed.phashes:
        conditions.append(~near_phash(listed.phashes, max_phash_distance))
    return pl.all_horizontal([condition.fill_null(value=True) for condition in conditions])


def near_phash(phashes: Mapping[int, int | None], max_distance: int) -> pl.Expr:
    """Whether the column `phash` is within the distance of one of `phashes`, `max_distance` where it has none."""
    wanted: dict[int, list[int]] = {}
    for value, distance in sorted(phashes.items()):
        wanted.setdefault(max_distance if distance is None else distance, []).append(value)
    found = [
        pl.col("phash").map_batches(
            partial(_near, wanted=np.array(values, np.uint64), max_distance=distance), return_dtype=pl.Boolean
        )
        for distance, values in wanted.items()
    ]
    return pl.any_horizontal(found)


def plain_urls(column: str) -> pl.Expr:
    """`plain_url` of a column."""
    url = pl.col(column)
    host, rest = (url.str.extract(_URL_PARTS, group) for group in (1, 2))
    return pl.coalesce(pl.concat_str(host.str.to_lowercase(), rest), url)


def below(column: str, domains: set[str]) -> pl.Expr:
    """Whether the host of a URL is one of `domains` or lies below one."""
    found = pl.lit(value=False)
    most = min(max(name.count(".") + 1 for name in domains), _MAX_LABELS)
    labels = host_of(column).str.split(".")
    for number in range(1, most + 1):
        found |= labels.list.tail(number).list.join(".").is_in(sorted(domains))
    return found


def host_of(column: str) -> pl.Expr:
    """The host of a URL, as domains are compared with it."""
    return pl.col(column).str.extract(_HOST).str.to_lowercase().str.strip_chars_end(".")


def _near(hashes: pl.Series, wanted: NDArray[np.uint64], max_distance: int) -> pl.Series:
    known = hashes.is_not_null().to_numpy()
    bits = hashes.drop_nulls().str.to_integer(base=16, dtype=pl.UInt64).to_numpy()
    near = np.zeros(len(hashes), np.bool_)
    near[known] = _within(bits, wanted, max_distance)
    return pl.Series(hashes.name, near)


@compiled
def _within(bits: NDArray[np.uint64], wanted: NDArray[np.uint64], max_distance: int) -> NDArray[np.bool_]:
    """Whether a wanted hash is that near to each; bits that differ are counted one by one (Wegner 1960)."""
    near = np.zeros(len(bits), np.bool_)
    for row in range(len(bits)):
        for other in wanted:
            left = bits[row] ^ other
            distance = 0
            while left != 0 and distance <= max_distance:
                left &= left - np.uint64(1)
                distance += 1
            if distance <= max_distance:
                near[row] = True
                break
    return near
