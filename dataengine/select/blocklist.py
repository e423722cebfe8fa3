"""Block-list rules: domains, hashes of fetched bytes, and perceptual hashes within a distance.

Lines of block-lists in, an expression out that is false where a row is on the list. MD5 and SHA-1 are not among the
columns of a finished run; they, and whole URLs, are for the block-lists of download, before anything is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.errors import ConfigError
from dataengine.select.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = ("url", "final_url", "sha256", "phash")
_HOST = r"^(?i:https?)://(?:[^/?#@]*@)?\[?([^/:?#\]]+)"
_DOMAIN = re.compile(r"(?:\*\.)?([\w-]+(?:\.[\w-]+)*)\.?", re.ASCII)
_MAX_LABELS = 32  # a name of DNS has 127 at most, one that anybody lists a handful


@dataclass
class Listed:
    """What is blocked."""

    domains: set[str] = field(default_factory=set)
    sha256: set[str] = field(default_factory=set)
    phashes: set[int] = field(default_factory=set)


def parse_lines(lines: Iterable[str], where: str) -> Listed:
    """The entries of some lines. Raises ConfigError naming the line that is none."""
    listed = Listed()
    for number, line in enumerate(lines, 1):
        entry = line.strip().lower()
        if not entry or entry.startswith("#"):
            continue
        is_hex = re.fullmatch("[0-9a-f]+", entry) is not None
        domain = _DOMAIN.fullmatch(entry)
        if is_hex and len(entry) == 64:
            listed.sha256.add(entry)
        elif is_hex and len(entry) == 16:
            listed.phashes.add(int(entry, 16))
        elif domain and not (is_hex and len(entry) in (32, 40)):
            listed.domains.add(domain[1])
        else:
            raise ConfigError(
                f"{where}, line {number}: got {line.strip()[:80]!r}, wanted a domain, a SHA-256 (64 hex characters) or "
                f"a perceptual hash (16); URLs, MD5 and SHA-1 are for download.blocklists"
            )
    return listed


def blocklist_condition(listed: Listed, max_phash_distance: int) -> pl.Expr:
    """True where a row is not on the list; never null, because what is not known cannot be on it."""
    conditions = [pl.col("url").is_null() | pl.lit(value=True)]  # a bare literal would be one row
    if listed.domains:
        conditions += [~_below(name, listed.domains) for name in ("url", "final_url")]
    if listed.sha256:
        conditions.append(~pl.col("sha256").is_in(sorted(listed.sha256)))
    if listed.phashes:
        wanted = np.array(sorted(listed.phashes), np.uint64)
        near = pl.col("phash").map_batches(
            lambda hashes: _near(hashes, wanted, max_phash_distance), return_dtype=pl.Boolean
        )
        conditions.append(~near)
    return pl.all_horizontal([condition.fill_null(value=True) for condition in conditions])


def _below(column: str, domains: set[str]) -> pl.Expr:
    """Whether the host of a URL is one of `domains` or lies below one."""
    host = pl.col(column).str.extract(_HOST).str.to_lowercase().str.strip_chars_end(".")
    found = pl.lit(value=False)
    most = min(max(name.count(".") + 1 for name in domains), _MAX_LABELS)
    labels = host.str.split(".")
    for number in range(1, most + 1):
        found |= labels.list.tail(number).list.join(".").is_in(sorted(domains))
    return found


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
