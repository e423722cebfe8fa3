"""The published side of the benchmark of select: samples, ledger, shards and manifest of made-up rows, without tars."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.select_rows import PART_ROWS, Source, captions, sources_of, table_of, urls
from dataengine.schemas import FUNNEL, HISTOGRAM, LEDGER, SHARDS, manifest_schema
from dataengine.select.keyed import Keys
from dataengine.storage.tables import parquet_bytes

SCORES = ("clip_score", "aesthetic")
LEDGER_ROWS = 1_000_000


def write_dataset(folder: Path, keys: Keys) -> None:
    """A version of which every candidate is a sample, in shards of 10,000."""
    sources = sources_of(len(keys))
    pieces = [
        (source, *bounds) for source in sorted(sources, key=lambda source: source.name) for bounds in source.parts
    ]
    with ThreadPoolExecutor(2) as threads:
        shards = list(threads.map(lambda piece: _write_samples(folder, keys, piece), enumerate(pieces)))
    columns = {name: [shard[name] for shard in shards] for name in shards[0]}
    _write(folder / "shards.parquet", table_of(SHARDS, columns, len(shards)))
    order = np.lexsort((keys.low, keys.high))
    for number, start in enumerate(range(0, len(keys), LEDGER_ROWS)):
        rows = order[start : start + LEDGER_ROWS]
        texts = keys.texts(rows)
        names = pa.array([source.name for source in sources])
        of_source = np.searchsorted([source.end for source in sources], rows, side="right")
        columns = {"key": texts, "num_rows": np.ones(len(rows), np.int32), "source": names.take(pa.array(of_source)),
                   "url": urls(texts), "state": pa.repeat("emitted", len(rows))}  # fmt: skip
        _write(folder / "ledger" / f"part-{number:06d}.parquet", table_of(LEDGER, columns, len(rows)))
    _write(folder / "stats" / "funnel.parquet", _funnel(sources))
    _write(folder / "stats" / "histogram.parquet", HISTOGRAM.empty())
    _write_manifest(folder, sources, len(shards))


def _write_samples(folder: Path, keys: Keys, piece: tuple[int, tuple[Source, int, int]]) -> dict[str, Any]:
    """The samples of one shard; its row of SHARDS."""
    number, (source, begin, end) = piece
    random = np.random.default_rng(begin + 5)
    texts, num_rows = keys.texts(np.arange(begin, end)), end - begin
    shard = f"{source.name}-{(begin - source.begin) // PART_ROWS:06d}"
    sizes = {
        "image": random.integers(20_000, 90_000, num_rows),
        "txt": np.full(num_rows, 60),
        "json": np.full(num_rows, 700),
    }
    starts = np.cumsum(sizes["image"] + 4096)
    columns: dict[str, Any] = {
        "key": texts,
        "shard": pa.repeat(shard, num_rows),
        "index_in_shard": np.arange(num_rows, dtype=np.int32),
        "source": pa.repeat(source.name, num_rows),
        "split": pa.repeat("train", num_rows),
        "repeat": np.ones(num_rows, np.int32),
        **{f"{member}_nbytes": nbytes for member, nbytes in sizes.items()},
        **{f"{member}_offset": starts for member in sizes},
        "format": pa.repeat("jpg", num_rows),
        "bucket": pa.repeat("1:1", num_rows),
        **{name: random.integers(256, 1024, num_rows).astype(np.int32) for name in ("width", "height")},
        "caption": captions(random, num_rows),
        "url": urls(texts),
        **{name: pa.array(random.normal(0.5, 0.1, num_rows).astype(np.float32)) for name in SCORES},
    }
    _write(folder / "samples" / f"part-{number:06d}.parquet", table_of(manifest_schema(SCORES), columns, num_rows))
    return {"shard": shard, "path": f"{source.name}/{shard}.tar", "source": source.name, "format": "jpg",
            "num_samples": num_rows, "nbytes": int(starts[-1]), "sha256": "0" * 64, "min_key": texts[0].as_py(),
            "max_key": texts[-1].as_py()}  # fmt: skip


def _funnel(sources: list[Source]) -> pa.Table:
    counts = [source.end - source.begin for source in sources]
    columns = {"source": [source.name for source in sources], "state": ["emitted"] * len(sources),
               "num_candidates": counts, "num_rows": counts}  # fmt: skip
    return table_of(FUNNEL, columns, len(sources))


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parquet_bytes(table))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, sources: list[Source], num_shards: int) -> None:
    counts = {source.name: source.end - source.begin for source in sources}
    of_source = {
        name: {"license": None, **dict.fromkeys(("num_rows", "num_candidates", "num_emitted", "num_draws"), count)}
        for name, count in counts.items()
    }
    files = [
        {"path": path.relative_to(folder).as_posix(), "nbytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*.parquet"))
    ]
    manifest = {
        "format": "dataengine-dataset/1", "name": "bench", "version": 1, "parent": None, "config": {}, "recipes": {},
        "sources": of_source, "provenance": {}, "dedup": {}, "files": files,
        "mixture": {"sources": {name: {"asked": count, "realised": count} for name, count in counts.items()}},
        "counts": {"num_samples": sum(counts.values()), "num_draws": sum(counts.values()), "num_shards": num_shards},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
