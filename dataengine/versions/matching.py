"""Whom a list means: entries in, the candidates they name, and these candidates' copies and near-duplicates.

Candidates are looked up in tables that pass by, so memory is that of what was found. Copies are looked for one step
from what the list names, not from copies again: there are no chains, as in select.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from dataengine.select.blocklist import below, host_of, near_phash, plain_urls
from dataengine.versions.known import DUPLICATES, Known
from dataengine.versions.lists import Entry

_BOUND = pl.col("reason").is_in(DUPLICATES) & pl.col("survivor_key").is_not_null()


@dataclass(frozen=True)
class Match:
    """Candidates that a list takes down."""

    found: pl.DataFrame
    """[key, why], each key once, by key; `why` is the entry, or the relation to a candidate that one names."""
    num_named: int
    """Of these, named by an entry; the others are copies and near-duplicates of them."""
    unmatched: tuple[Entry, ...]
    """Entries that name no candidate."""


def match(entries: Sequence[Entry], known: Known, max_phash_distance: int) -> Match:
    """What `entries` mean among the candidates that are known."""
    values = {kind: {entry.plain for entry in entries if entry.kind == kind} for kind, _ in _LOOKUPS}
    found = [frame for kind, look in _LOOKUPS for frame in look(known, values[kind], max_phash_distance)]
    named = _each_once(found)
    related = _each_once([named, *_relatives(named["key"], known, max_phash_distance)])
    hit = {entry for frame in found for entry in frame["entry"].unique()}
    unmatched = tuple(entry for entry in entries if f"{entry.kind} {entry.plain}" not in hit)
    return Match(related.select("key", "why").sort("key"), len(named), unmatched)


def _collected(frames: Iterable[pl.LazyFrame]) -> list[pl.DataFrame]:
    return [frame.collect(engine="streaming") for frame in frames]


def _equal(kind: str, expression: pl.Expr, values: set[str], frames: list[pl.LazyFrame]) -> list[pl.DataFrame]:
    """Rows of `frames` whose `expression` is one of `values`."""
    if not values:
        return []
    asked = (frame.select("key", value=expression).filter(pl.col("value").is_in(sorted(values))) for frame in frames)
    entry = pl.concat_str(pl.lit(f"{kind} "), "value")
    return [frame.select("key", why=entry, entry=entry) for frame in _collected(asked)]


def _by_key(known: Known, values: set[str], _: int) -> list[pl.DataFrame]:
    return _equal("key", pl.col("key"), values, [known.dataset.ledger()])


def _by_url(known: Known, values: set[str], _: int) -> list[pl.DataFrame]:
    found = []
    for column in ("url", "final_url"):
        found += _equal("url", plain_urls(column), values, known.with_column(column))
    return found


def _by_domain(known: Known, values: set[str], _: int) -> list[pl.DataFrame]:
    if not values:
        return []
    found = []
    for column in ("url", "final_url"):
        below_one = (each.filter(below(column, values)) for each in known.with_column(column))
        for frame in _collected(each.select("key", host=host_of(column)) for each in below_one):
            rows = [
                (key, f"domain {name}") for key, host in frame.iter_rows() for name in _above(host) if name in values
            ]
            text = pl.DataFrame(rows, {"key": pl.String, "entry": pl.String}, orient="row")
            found.append(text.select("key", why="entry", entry="entry"))
    return found


def _above(host: str) -> list[str]:
    """The host and all domains that it lies below, the longest first."""
    labels = host.split(".")
    return [".".join(labels[first:]) for first in range(len(labels))]


def _by_sha256(known: Known, values: set[str], _: int) -> list[pl.DataFrame]:
    return _equal("sha256", pl.col("sha256"), values, known.with_column("sha256"))


def _by_phash(known: Known, values: set[str], distance: int) -> list[pl.DataFrame]:
    near = _near(known, {int(value, 16): value for value in values}, distance)
    said = pl.concat_str(pl.lit("phash "), "value")
    why = (
        pl.when(pl.col("distance") == 0)
        .then(said)
        .otherwise(pl.concat_str(pl.lit("within "), "distance", pl.lit(" bits of phash "), "value"))
    )
    return [frame.select("key", why=why, entry=said) for frame in near]


_LOOKUPS: tuple[tuple[str, Callable[[Known, set[str], int], list[pl.DataFrame]]], ...] = (
    ("key", _by_key),
    ("url", _by_url),
    ("sha256", _by_sha256),
    ("phash", _by_phash),
    ("domain", _by_domain),
)
"""In the order in which they are given as the reason, the most exact first."""


def _near(known: Known, wanted: dict[int, str], distance: int) -> list[pl.DataFrame]:
    """[key, value, distance] of each pair of a row and one of `wanted` (hash → what it is called), nearest first."""
    if not wanted:
        return []
    near = near_phash(dict.fromkeys(wanted), distance)
    hashes = np.array(list(wanted), np.uint64)
    names = list(wanted.values())
    found = []
    for frame in _collected(each.filter(near) for each in known.with_column("phash")):
        own = frame["phash"].str.to_integer(base=16, dtype=pl.UInt64).to_numpy()
        pairs = []
        for key, value in zip(frame["key"], own, strict=True):
            apart = np.bitwise_count(hashes ^ value)
            nearest = np.argsort(apart, kind="stable")[: np.count_nonzero(apart <= distance)]
            pairs += [(key, names[place], int(apart[place])) for place in nearest.tolist()]
        found.append(pl.DataFrame(pairs, {"key": pl.String, "value": pl.String, "distance": pl.Int64}, orient="row"))
    return found


def _relatives(named: pl.Series, known: Known, distance: int) -> list[pl.DataFrame]:
    """[key, why] of copies and near-duplicates of the candidates `named`, the surest relation first."""
    found = [frame for column in ("sha256", "pixel_hash") for frame in _sharing(named, known, column)]
    found += _by_edges(named, known)
    found += _by_survivors(named, known)
    phashes: dict[int, str] = {}
    for frame in _collected(each.filter(pl.col("key").is_in(named.implode())) for each in known.with_column("phash")):
        phashes |= {int(value, 16): key for key, value in frame.iter_rows()}
    why = pl.concat_str(pl.lit("within "), "distance", pl.lit(" bits of the phash of "), "value")
    return [*found, *(frame.select("key", why=why) for frame in _near(known, phashes, distance))]


def _sharing(named: pl.Series, known: Known, column: str) -> list[pl.DataFrame]:
    """Rows that share the value of a column with one of `named`."""
    frames = known.with_column(column)
    own = [frame.filter(pl.col("key").is_in(named.implode())) for frame in frames]
    if not own:
        return []
    originals = pl.concat(_collected(own)).unique(column, keep="first", maintain_order=True)
    wanted = originals.rename({"key": "original"})
    found = _collected(frame.filter(pl.col(column).is_in(wanted[column].implode())) for frame in frames)
    why = pl.concat_str(pl.lit("copy of "), "original", pl.lit(f" (equal {column.replace('_', ' ')})"))
    return [frame.join(wanted, on=column).select("key", why=why) for frame in found]


def _by_edges(named: pl.Series, known: Known) -> list[pl.DataFrame]:
    """Members of the classes that an edge joins to the class of one of `named`."""
    classes = pl.concat(
        [_empty("key", "class_key"), *_collected(frame.select("key", "class_key") for frame in known.classes())]
    )
    own = classes.filter(pl.col("key").is_in(named.implode())).rename({"key": "original"})
    alone = pl.DataFrame({"original": named, "class_key": named})
    labels = pl.concat([own, alone]).unique("class_key", keep="first", maintain_order=True)
    wanted = labels["class_key"].implode()
    ends = []
    for frame in known.edges():
        near = frame.filter(pl.col("left_key").is_in(wanted) | pl.col("right_key").is_in(wanted)).collect()
        for here, there in (("left_key", "right_key"), ("right_key", "left_key")):
            ends.append(near.select(class_key=here, other=there, similarity=pl.col("similarity").round(4)))
    if not ends:
        return []
    joined = pl.concat(ends).join(labels, on="class_key").sort("similarity", descending=True)
    why = pl.concat_str(pl.lit("near-duplicate of "), "original", pl.lit(", cosine "), "similarity")
    others = joined.select("other", why=why).unique("other", keep="first", maintain_order=True)
    members = classes.join(others, left_on="class_key", right_on="other").select("key", "why")
    return [others.rename({"other": "key"}), members]


def _by_survivors(named: pl.Series, known: Known) -> list[pl.DataFrame]:
    """Rows that yielded to one of `named` for its image, and the rows that these yielded to."""
    bound = known.dataset.ledger().filter(_BOUND).select("key", "survivor_key", "similarity")
    keys = named.implode()
    near = bound.filter(pl.col("key").is_in(keys) | pl.col("survivor_key").is_in(keys)).collect(engine="streaming")
    why = pl.concat_str(pl.lit("duplicate image of "), "original")
    yielded = near.filter(pl.col("survivor_key").is_in(keys)).select("key", original="survivor_key")
    survived = near.filter(pl.col("key").is_in(keys)).select(key="survivor_key", original="key")
    return [pl.concat([yielded, survived]).select("key", why=why)]


def _empty(*names: str) -> pl.DataFrame:
    return pl.DataFrame(schema=dict.fromkeys(names, pl.String))


def _each_once(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """[key, why, entry] of the first row of each key; rows without an entry have none."""
    columns = [
        frame if "entry" in frame.columns else frame.with_columns(entry=pl.lit(None, pl.String)) for frame in frames
    ]
    blank = _empty("key", "why", "entry")
    return pl.concat([blank, *columns]).unique("key", keep="first", maintain_order=True)
