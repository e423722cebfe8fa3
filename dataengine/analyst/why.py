"""Tells the story of a row: what became of it, at which stage, for which reason, and which row stands for it.

In goes a dataset and a key, the beginning of a key, or a URL; out comes a `Story` of plain dataclasses. It
reads the ledger and the samples table, never a tar, and renders nothing.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import polars as pl

from dataengine.analyst.dataset import Dataset
from dataengine.errors import InputError
from dataengine.keys import KEY_CHARS

MIN_PREFIX_CHARS = 8  # 32 bits: among 24 million keys, one prefix in 180 meets a second row
NUM_SUGGESTIONS = 3
NUM_COMPARED = 2000  # URLs of the same host that suggestions are drawn from
_MEMBERS = ("image", "txt", "json")
_LAST = "g"  # sorts after every hex digit


@dataclass(frozen=True)
class Placement:
    """Where an emitted sample lies, and what is known of it; `members` maps a member to (offset, nbytes)."""

    shard: str
    path: str
    index_in_shard: int
    split: str
    repeat: int
    members: dict[str, tuple[int, int]]
    scores: dict[str, float | None]
    caption: str
    captions: dict[str, str]
    width: int
    height: int


@dataclass(frozen=True)
class Survivor:
    """The row that a dropped duplicate yields to; `shard` is null where the ledger names no emitted row."""

    key: str
    url: str | None
    shard: str | None
    similarity: float | None


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate."""

    key: str
    source: str
    url: str | None
    num_rows: int
    state: str
    stage: str | None
    reason: str | None
    rule_value: str | None
    survivor: Survivor | None
    placement: Placement | None


@dataclass(frozen=True)
class Story:
    """Every candidate that a query matched, by key."""

    query: str
    outcomes: tuple[Outcome, ...]


def why(dataset: Dataset, key_or_url: str) -> Story:
    """What became of the candidates of this key, this beginning of a key (8 characters or more), or this URL.

    Raises InputError when nothing matches, naming the nearest keys or URLs.
    """
    query = key_or_url.strip()
    is_key = re.fullmatch(rf"[0-9a-fA-F]{{1,{KEY_CHARS}}}", query) is not None
    if is_key and len(query) < MIN_PREFIX_CHARS:
        raise InputError(f"{query!r}: give at least {MIN_PREFIX_CHARS} characters of a key")
    matches = (
        pl.col("key").is_between(pl.lit(query.lower()), pl.lit(query.lower() + _LAST))
        if is_key
        else pl.col("url") == query
    )
    rows = dataset.ledger().filter(matches).sort("key").collect().to_dicts()
    if not rows:
        advice = _nearest_keys(dataset, query.lower()) if is_key else _nearest_urls(dataset, query)
        raise InputError(f"{query!r} is no candidate of {dataset.version.root.url}; {advice}")
    samples = _samples_of(dataset, {row["key"] for row in rows} | {row["survivor_key"] for row in rows} - {None})
    paths = dict(dataset.shards().select("shard", "path").collect().iter_rows())
    scores = dataset.score_names()
    return Story(query, tuple(_outcome(row, samples, paths, scores) for row in rows))


def _samples_of(dataset: Dataset, keys: set[str]) -> dict[str, dict[str, Any]]:
    found = dataset.samples().filter(pl.col("key").is_in(sorted(keys))).collect()
    return {row["key"]: row for row in found.to_dicts()}


def _outcome(
    row: dict[str, Any], samples: dict[str, dict[str, Any]], paths: dict[str, str], scores: list[str]
) -> Outcome:
    own = samples.get(row["key"])
    plain = ("key", "source", "url", "num_rows", "state", "stage", "reason", "rule_value")
    return Outcome(
        **{name: row[name] for name in plain},
        survivor=_survivor(row, samples) if row["survivor_key"] else None,
        placement=_placement(own, paths, scores) if own else None,
    )


def _survivor(row: dict[str, Any], samples: dict[str, dict[str, Any]]) -> Survivor:
    sample = samples.get(row["survivor_key"], {})
    return Survivor(row["survivor_key"], sample.get("url"), sample.get("shard"), row["similarity"])


def _placement(row: dict[str, Any], paths: dict[str, str], scores: list[str]) -> Placement:
    plain = ("shard", "index_in_shard", "split", "repeat", "caption", "captions", "width", "height")
    return Placement(
        **{name: row[name] for name in plain},
        path=paths[row["shard"]],
        members={member: (row[f"{member}_offset"], row[f"{member}_nbytes"]) for member in _MEMBERS},
        scores={name: row[name] for name in scores},
    )


def _nearest_keys(dataset: Dataset, query: str) -> str:
    keys = dataset.ledger().select("key")
    before = keys.filter(pl.col("key") < query).max().collect().item()
    after = keys.filter(pl.col("key") > query).min().collect().item()
    around = [key for key in (before, after) if key is not None]
    return f"the nearest keys are {' and '.join(around)}" if around else "its ledger is empty"


def _nearest_urls(dataset: Dataset, query: str) -> str:
    host = query.partition("://")[2].partition("/")[0] or query
    same_host = pl.col("url").str.contains(host, literal=True)
    urls = dataset.ledger().filter(same_host).select("url").head(NUM_COMPARED).collect()["url"].to_list()
    near = difflib.get_close_matches(query, urls, NUM_SUGGESTIONS, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return f"{len(urls) or 'no'} URLs of it hold {host!r}; give the URL exactly as the input had it, or a key"
