"""Rows for the benchmark of select: a finished run of any size, made up column by column, and its published tables.

Keys, scores and sizes are random with fixed seeds; texts are as long as real ones (URLs of 45 characters, captions of
60). Hashes of bytes stay null: nothing here reads them. A unit is written as the engine would have, so that select
reads it through its own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataengine.schemas import CANDIDATE, CLASS, EDGE, SAMPLE, TableSchema, score_schema
from dataengine.select.keyed import Keys
from dataengine.storage.rundir import Commit, ObjectRef, Part, Plan, UnitDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import parquet_bytes

PART_ROWS = 10_000
SOURCES = {"laion": 0.25, "redcaps": 0.2, "megalith": 0.4, "cc12m": 0.15}
SCORE = score_schema(("clip_score",), ("aesthetic", "nsfw", "watermark"), measures=True)
EDGE_ROWS = 200_000
EDGE_STEPS = ("dedup/caption-classes", "dedup/images")


@dataclass(frozen=True)
class Source:
    """One source's rows: numbers `begin` to `end`, in parts whose keys ascend."""

    name: str
    begin: int
    end: int

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Bounds of each part."""
        return [(at, min(at + PART_ROWS, self.end)) for at in range(self.begin, self.end, PART_ROWS)]


@dataclass(frozen=True)
class FinishedRun:
    """Where the units of the made-up run are: step → the object that lists its commits."""

    root: Root
    units: Mapping[str, tuple[UnitDirectory, str]]


def sources_of(num_rows: int) -> list[Source]:
    """The sources, rows shared out among them."""
    bounds = [0, *(round(share * num_rows) for share in np.cumsum(list(SOURCES.values())))]
    return [Source(name, bounds[at], bounds[at + 1]) for at, name in enumerate(SOURCES)]


def random_keys(sources: list[Source], num_rows: int) -> Keys:
    """Keys that ascend within each source, as those of URL tables do."""
    random = np.random.default_rng(1)
    high = random.integers(0, 2**64, num_rows, dtype=np.uint64)
    for source in sources:
        high[source.begin : source.end].sort()
    return Keys(high, random.integers(0, 2**64, num_rows, dtype=np.uint64))


def run_of(folder: Path) -> FinishedRun:
    """The run that `write_run` left in `folder`."""
    root = Root(str(folder))
    paths = [path for path in root.list("runs/bench") if path.endswith("/complete.json")]
    units = {path.removeprefix("runs/bench/").rpartition("-")[0]: UnitDirectory(root, path.rpartition("/")[0])
             for path in paths}  # fmt: skip
    return FinishedRun(root, {step: (unit, f"{unit.path}/complete.json") for step, unit in units.items()})


def write_run(folder: Path, num_rows: int, num_edges: int) -> Keys:
    """A run that is complete up to dedup; the keys of its candidates."""
    sources = sources_of(num_rows)
    keys = random_keys(sources, num_rows)
    writer = _Writer(Root(str(folder)), {})
    for source in sources:
        with ThreadPoolExecutor(2) as threads:
            tables = list(
                threads.map(lambda part, source=source: _write_part(writer, source, keys, part), source.parts)
            )
        for step, name in ((f"sources/{source.name}", "candidate"), (f"download/{source.name}", "sample"),
                           (f"score/clip.{source.name}", "score")):  # fmt: skip
            writer.complete(step, [commits[name] for commits in tables])
    writer.complete("dedup/classes", [writer.part("dedup/classes", 0, "class", CLASS, _classes(keys, num_rows // 10))])
    writer.complete("dedup/caption-classes", [])  # no captions were compared
    edges = _edges(keys, num_edges)
    pieces = [edges.slice(at, EDGE_ROWS) for at in range(0, max(num_edges, 1), EDGE_ROWS)]
    writer.complete(
        "dedup/images", [writer.part("dedup/images", at, "edge", EDGE, table) for at, table in enumerate(pieces)]
    )
    return keys


@dataclass
class _Writer:
    root: Root
    units: dict[str, tuple[UnitDirectory, str]]

    def directory(self, step: str) -> UnitDirectory:
        return UnitDirectory(self.root, f"runs/bench/{step}-00000000")

    def part(self, step: str, number: int, name: str, schema: TableSchema, table: pa.Table) -> Commit:
        part = f"part-{number:06d}"
        path = self.directory(step).data_path(part, "first", f"{name}.parquet")
        place = self.root.local_path(path)
        assert place is not None
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(parquet_bytes(table))
        item = ObjectRef(path, place.stat().st_size, f"{number:064x}", len(table))
        return Commit(part, "first", {}, {name: item}, len(table), len(table), facts={"content_sha256": ""})

    def complete(self, step: str, commits: list[Commit]) -> None:
        plan = Plan(tuple(Part(commit.part) for commit in commits))
        self.units[step] = self.directory(step), self.directory(step).store_complete(plan, commits)


def _write_part(writer: _Writer, source: Source, keys: Keys, bounds: tuple[int, int]) -> dict[str, Commit]:
    begin, end = bounds
    number = (begin - source.begin) // PART_ROWS
    random = np.random.default_rng(begin + 2)
    texts = keys.texts(np.arange(begin, end))
    failed = random.random(end - begin) < 0.08
    written = {}
    for step, name, schema, columns in (
        (f"sources/{source.name}", "candidate", CANDIDATE, _candidate(source.name, texts, random)),
        (f"download/{source.name}", "sample", SAMPLE, _sample(texts, failed, random)),
        (f"score/clip.{source.name}", "score", SCORE, _score(texts, failed, random)),
    ):
        written[name] = writer.part(step, number, name, schema, table_of(schema, columns, end - begin))
    return written


def table_of(schema: TableSchema, columns: Mapping[str, Any], num_rows: int) -> pa.Table:
    """A table of `schema`; columns that are not given are empty."""
    arrays = []
    for field in schema.arrow:
        values = columns.get(field.name)
        if values is None and not field.nullable:
            values = _maps(num_rows, field.type) if pa.types.is_map(field.type) else pa.repeat("", num_rows)
        array = pa.nulls(num_rows, field.type) if values is None else pa.array(values)
        arrays.append(array.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema.arrow)


def _maps(num_rows: int, kind: pa.MapType) -> pa.Array:
    """Maps that hold nothing."""
    return pa.array([[]], kind).take(pa.array(np.zeros(num_rows, np.int32)))


def urls(texts: pa.Array) -> pa.Array:
    """A URL by key."""
    names = pc.utf8_slice_codeunits(texts, 0, 16)
    return pc.binary_join_element_wise("https://images.example/", names, ".jpg", "")


def captions(random: np.random.Generator, num_rows: int) -> pa.Array:
    """Captions of eight words."""
    words = pa.array([f"word{number:03d}" for number in range(500)])
    return pc.binary_join_element_wise(
        *(words.take(pa.array(random.integers(0, 500, num_rows))) for _ in range(8)), " "
    )


def _candidate(source: str, texts: pa.Array, random: np.random.Generator) -> dict[str, Any]:
    num_rows = len(texts)
    return {
        "key": texts,
        "num_rows": np.ones(num_rows, np.int32),
        "source": pa.repeat(source, num_rows),
        "url": urls(texts),
        "caption": captions(random, num_rows),
    }


def _sample(texts: pa.Array, failed: NDArray[np.bool_], random: np.random.Generator) -> dict[str, Any]:
    num_rows = len(texts)
    sides = {name: random.integers(150, 1024, num_rows).astype(np.int32) for name in ("width", "height")}
    reasons = pa.array(["http_404", "dns", "timeout", "not_image"]).take(pa.array(random.integers(0, 4, num_rows)))
    return {
        "key": texts,
        "status": pa.array(["ok", "failed"]).take(pa.array(failed.astype(np.int8))),
        "reason": pc.if_else(pa.array(failed), reasons, None),
        "detail": pc.if_else(pa.array(failed), "what was seen instead of a picture", None),
        "http_status": np.full(num_rows, 200, np.int32),
        "num_attempts": np.ones(num_rows, np.int32),
        **{name: pa.array(values, mask=failed) for name, values in sides.items()},
        **{f"original_{name}": pa.array(values * 2, mask=failed) for name, values in sides.items()},
        "format": pc.if_else(pa.array(failed), None, "jpg"),
        "nbytes": pa.array(random.integers(20_000, 90_000, num_rows), mask=failed),
    }


def _score(texts: pa.Array, failed: NDArray[np.bool_], random: np.random.Generator) -> dict[str, Any]:
    num_rows = len(texts)
    scores = {
        "clip_score": random.normal(0.28, 0.05, num_rows),
        "aesthetic": random.normal(5, 0.8, num_rows),
        "nsfw": random.beta(1, 20, num_rows),
        "watermark": random.beta(1, 8, num_rows),
        "sharpness": random.gamma(2, 300, num_rows),
        "entropy": random.uniform(4, 8, num_rows),
    }
    return {
        "key": texts,
        "score_status": pa.array(["ok", "missing"]).take(pa.array(failed.astype(np.int8))),
        **{name: pa.array(values.astype(np.float32), mask=failed) for name, values in scores.items()},
        "caption_chars": random.integers(4, 90, num_rows).astype(np.int32),
        "caption_tokens": random.integers(2, 30, num_rows).astype(np.int32),
        "caption_truncated": random.random(num_rows) < 0.02,
    }


def _classes(keys: Keys, num_members: int) -> pa.Table:
    """Exact copies of pixels, in classes of two and three."""
    random = np.random.default_rng(3)
    members = random.permutation(len(keys))[:num_members]
    ids = np.sort(random.integers(0, max(1, num_members * 2 // 5), num_members))
    order = np.lexsort((keys.high[members], ids))
    members = members[order]
    first = np.concatenate([[True], np.diff(ids) > 0]) if num_members else np.zeros(0, bool)
    speakers = members[np.maximum.accumulate(np.where(first, np.arange(num_members), 0))] if num_members else members
    columns = {"key": keys.texts(members), "kind": pa.repeat("pixels", num_members), "class_key": keys.texts(speakers)}
    return table_of(CLASS, columns, num_members)


def _edges(keys: Keys, num_edges: int) -> pa.Table:
    """Near-duplicates: pairs of random rows, so that groups of all sizes arise."""
    random = np.random.default_rng(4)
    ends = random.integers(0, len(keys), (2, num_edges))
    ends[1] = np.where(ends[0] == ends[1], (ends[1] + 1) % len(keys), ends[1])
    swapped = keys.high[ends[0]] > keys.high[ends[1]]
    left, right = np.where(swapped, ends[1], ends[0]), np.where(swapped, ends[0], ends[1])
    order = np.argsort(keys.high[left], kind="stable")
    columns = {
        "left_key": keys.texts(left[order]),
        "right_key": keys.texts(right[order]),
        "kind": pa.repeat("image_embedding", num_edges),
        "similarity": random.uniform(0.95, 1, num_edges).astype(np.float32),
        "phash_distance": random.integers(0, 20, num_edges).astype(np.int16),
    }
    return table_of(EDGE, columns, num_edges)
