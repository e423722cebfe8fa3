"""A take-down as it stands: written once for a list, read by every later run, and what it says of a row.

The list of a take-down names what was asked for and, one line each, the candidates that it meant, their copies and
near-duplicates, with the hashes of their pictures: so that nobody must know the old run to keep them out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from dataengine.errors import ConfigError
from dataengine.select.blocklist import Listed, parse_lines
from dataengine.storage.rundir import canonical_json
from dataengine.storage.store import Root
from dataengine.storage.takedowns import register_list, standing_lists
from dataengine.versions.known import Known
from dataengine.versions.lists import Entry
from dataengine.versions.matching import Match

_REASON = "# reason: "
_HASHES = (("sha256", "sha256"), ("pixel_hash", "pixels"), ("phash", "phash"))
"""Column, and the kind of entry that it makes."""


@dataclass(frozen=True)
class Standing:
    """Every take-down that stands under a root, at one moment."""

    paths: dict[str, str]
    """Path → SHA-256."""
    listed: Listed
    why: dict[str, str]
    """Key → what is said of it in the ledger, for keys that a list names."""


def request_line(dataset: str, entries: Sequence[Entry], reason: str, distance: int) -> str:
    """The first line of a take-down's list: the same for the same request."""
    asked = {"dataset": dataset, "entries": sorted(map(str, entries)), "reason": reason, "distance": distance}
    return f"# take-down {hashlib.sha256(canonical_json(asked)).hexdigest()}"


def register(
    root: Root, first: str, entries: Sequence[Entry], reason: str, distance: int, found: Match, known: Known
) -> str:
    """The path of the list that stands for a request from now on."""

    def content() -> str:
        asked = [f"{entry} {distance}" if entry.kind == "phash" else str(entry) for entry in entries]
        keys = [f"key {key} # {why}" for key, why in found.found.iter_rows()]
        return "\n".join([f"{_REASON}{reason}", *asked, *keys, *_hash_lines(found, known, distance)]) + "\n"

    return register_list(root, first, content)


def _hash_lines(found: Match, known: Known, distance: int) -> Iterable[str]:
    keys = found.found["key"].implode()
    for column, kind in _HASHES:
        frames = (frame.filter(pl.col("key").is_in(keys)) for frame in known.with_column(column))
        values = sorted({value for frame in frames for value in frame.collect(engine="streaming")[column]})
        yield from (f"{kind} {value} {distance}" if kind == "phash" else f"{kind} {value}" for value in values)


def read_standing(root: Root) -> Standing:
    """All take-downs that stand now. Raises ConfigError when a list was tampered with."""
    listed, why, paths = Listed(), dict[str, str](), standing_lists(root)
    for path in paths:
        lines = _lines(root, path)
        reason = next((line.removeprefix(_REASON) for line in lines if line.startswith(_REASON)), "")
        told = (line.removeprefix("key ").partition(" # ") for line in lines if line.startswith("key "))
        why = {key: f"{path}: {'; '.join(filter(None, (reason, said)))}" for key, _, said in told} | why
        _merge(listed, parse_lines(lines, root.address(path)))
    return Standing(paths, listed, why)


def _lines(root: Root, path: str) -> list[str]:
    try:
        return root.get(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{root.address(path)}: not UTF-8 text ({error}); restore this list of take-downs") from error


def _merge(into: Listed, other: Listed) -> None:
    for name in ("keys", "urls", "domains", "sha256", "pixels"):
        getattr(into, name).update(getattr(other, name))
    for value, distance in other.phashes.items():
        into.add("phash", f"{value:016x}", distance)
