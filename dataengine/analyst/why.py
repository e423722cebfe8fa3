"""Tells the story of a row: how it was fetched, what became of it, for which reason, and which row stands for it.

In goes a dataset or a run, and a key, the beginning of a key, or a URL; out comes a `Story` of plain dataclasses. It
reads tables, never a tar, and renders nothing. A dataset knows its ledger and its samples; what the stages saw is told
as well where the run lies beside it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

import polars as pl

from dataengine.analyst.dataset import Dataset
from dataengine.analyst.run_tables import Record, RunTables
from dataengine.errors import InputError
from dataengine.keys import KEY_CHARS, url_keys

MIN_PREFIX_CHARS = 8  # 32 bits: among 24 million keys, one prefix in 180 meets a second row
NUM_SUGGESTIONS = 3
NUM_COMPARED = 2000  # URLs of the same host that suggestions are drawn from
_PLAIN = ("key", "source", "url", "num_rows", "state", "stage", "reason", "rule_value", "similarity")
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
    """The row that a dropped duplicate yields to; `shard` is null where it is not emitted, `stored` without the run."""

    key: str
    url: str | None
    shard: str | None
    stored: str | None = None


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
    similarity: float | None
    """To what it yields to, or to what of an evaluation set it matches."""
    survivor: Survivor | None
    placement: Placement | None
    record: Record | None = None
    """What the stages wrote of it, where the run is at hand."""


@dataclass(frozen=True)
class Story:
    """Every candidate that a query matched, by key."""

    query: str
    outcomes: tuple[Outcome, ...]


def why(dataset: Dataset, key_or_url: str, run: RunTables | None = None) -> Story:
    """What became of the candidates of this key, this beginning of a key (8 characters or more), or this URL.

    Raises InputError when nothing matches, naming the nearest keys or URLs.
    """
    query, is_key = _parse(key_or_url)
    rows = _ledger_rows(dataset, query, is_key=is_key)
    if not rows:
        advice = _nearest_keys(dataset, query.lower()) if is_key else _nearest_urls(dataset, query)
        raise InputError(f"{query!r} is no candidate of {dataset.version.root.url}; {advice}")
    shards = dataset.shards().select("shard", "source", "path", "min_key", "max_key").collect()
    scores = dataset.score_names()
    outcomes = []
    for row in rows:
        own = _sample(dataset, shards, row["key"]) if row["state"] == "emitted" else None
        outcomes.append(
            Outcome(
                **{name: row[name] for name in _PLAIN},
                survivor=_survivor(dataset, shards, row, run) if row["survivor_key"] else None,
                placement=_placement(own, dict(shards.select("shard", "path").iter_rows()), scores) if own else None,
                record=run.record(row["key"]) if run is not None else None,
            )
        )
    return Story(query, tuple(outcomes))


def why_in_run(run: RunTables, key_or_url: str) -> Story:
    """The same of a run that has published nothing yet, as far as it has come.

    `state` is `kept` or `dropped`, `failed` for a failed download before select, else `undecided`. Raises InputError
    when nothing matches.
    """
    query, is_key = _parse(key_or_url)
    keys = run.keys_from(query.lower()) if is_key else run.keys_of(query)
    records = [record for record in map(run.record, keys) if record is not None]
    if not records:
        raise InputError(
            f"{query!r} is no candidate of this run; give a key of its tables, or a URL as the input had it"
        )
    return Story(query, tuple(_undecided(run, record) for record in records))


def _undecided(run: RunTables, record: Record) -> Outcome:
    chosen, sample = record.selection, record.sample
    state = chosen.get("verdict") or ("failed" if sample.get("status") == "failed" else "undecided")
    failed = {"stage": "download", "reason": sample.get("reason"), "rule_value": sample.get("detail")}
    told: dict[str, Any] = chosen or (failed if state == "failed" else {})
    other = run.record(chosen["survivor_key"]) if chosen.get("survivor_key") else None
    survivor = None
    if other is not None:
        survivor = Survivor(chosen["survivor_key"], other.candidate["url"], None, other.stored)
    return Outcome(
        **{name: record.candidate[name] for name in ("key", "source", "url", "num_rows")},
        state=state,
        stage=told.get("stage"),
        reason=told.get("reason"),
        rule_value=told.get("rule_value"),
        similarity=told.get("similarity"),
        survivor=survivor,
        placement=None,
        record=record,
    )


def _parse(key_or_url: str) -> tuple[str, bool]:
    """The query without blanks, and whether it is a key or the beginning of one. Raises InputError."""
    query = key_or_url.strip()
    is_key = re.fullmatch(rf"[0-9a-fA-F]{{1,{KEY_CHARS}}}", query) is not None
    if is_key and len(query) < MIN_PREFIX_CHARS:
        raise InputError(f"{query!r}: give at least {MIN_PREFIX_CHARS} characters of a key")
    return query, is_key


def _ledger_rows(dataset: Dataset, query: str, *, is_key: bool) -> list[dict[str, Any]]:
    """Rows of the ledger by key; only row groups that can hold one are read, but for URLs of samples in tars."""
    if is_key:
        within = pl.col("key").is_between(pl.lit(query.lower()), pl.lit(query.lower() + _LAST))
        return dataset.ledger().filter(within).sort("key").collect().to_dicts()
    made = [url_keys(source, [query])[0] for source in dataset.manifest["sources"]]
    frames = [dataset.ledger().filter(pl.col("key") == key) for key in made]
    rows = pl.concat(pl.collect_all(frames)).sort("key").to_dicts() if frames else []
    return rows or dataset.ledger().filter(pl.col("url") == query).sort("key").collect().to_dicts()


def _sample(dataset: Dataset, shards: pl.DataFrame, key: str) -> dict[str, Any] | None:
    """The row of the samples table: looked for in the parts of the shards whose keys enclose it, then in all."""
    paths = dataset.version.tables("samples")
    order = shards.sort("shard").with_row_index("number")
    numbers = order.filter((pl.col("min_key") <= key) & (pl.col("max_key") >= key))["number"].to_list()
    if len(paths) == len(shards):  # a part of the table for each shard, in the same order
        for number in numbers:
            rows = dataset.scan([paths[number]]).filter(pl.col("key") == key).collect().to_dicts()
            if rows:
                return rows[0]
    rows = dataset.samples().filter(pl.col("key") == key).collect().to_dicts()
    return rows[0] if rows else None


def _survivor(dataset: Dataset, shards: pl.DataFrame, row: dict[str, Any], run: RunTables | None) -> Survivor:
    key = row["survivor_key"]
    (other,) = dataset.ledger().filter(pl.col("key") == key).collect().to_dicts() or [{"url": None, "state": None}]
    sample = _sample(dataset, shards, key) if other["state"] == "emitted" else None
    record = run.record(key) if run is not None else None
    return Survivor(key, other["url"], sample["shard"] if sample else None, record.stored if record else None)


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
