"""Publishes a tiny dataset version by hand: real ustar tars, tables by schema, a manifest with every hash."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from dataengine.keys import url_keys
from dataengine.schemas import FUNNEL, HISTOGRAM, LEDGER, SHARDS, TableSchema, manifest_schema

SCORES = ("clip_score", "aesthetic")
SHARD_SIZES = {"alpha": (7, 5), "beta": (6,)}
DROPPED = (
    ("download", "http_404", None),
    ("select", "low_score", "clip_score=0.1"),
    ("select", "duplicate_image", None),
)

Row = dict[str, Any]


def publish(
    dataset: Path,
    shard_sizes: Mapping[str, tuple[int, ...]] = SHARD_SIZES,
    *,
    version: int = 1,
    repeat: Callable[[int], int] = lambda position: 1,
    split: Callable[[int], str] = lambda position: "train",
    picture_size: Callable[[int], tuple[int, int]] = lambda number: (16, 12),
) -> Path:
    """The folder `dataset`/v00000N, written.

    `repeat` and `split` map a sample's position in the table, `picture_size` its number among all samples.
    """
    folder = dataset / f"v{version:06d}"
    rows, shards = [], []
    for source, sizes in shard_sizes.items():
        urls = [f"https://{source}.example/{number}.jpg" for number in range(sum(sizes))]
        remaining = sorted(zip(url_keys(source, urls), urls, strict=True))
        for number, size in enumerate(sizes):
            name = f"{source}-{number:06d}"
            first = sum(len(shard["keys"]) for shard in shards)
            members = [
                _sample(source, key, url, picture_size(first + place))
                for place, (key, url) in enumerate(remaining[:size])
            ]
            remaining = remaining[size:]
            _write_tar(folder / source / f"{name}.tar", members)
            rows += [member["row"] | {"shard": name, "index_in_shard": index} for index, member in enumerate(members)]
            keys = [member["row"]["key"] for member in members]
            shards.append(_shard_row(folder, source, name, keys) | {"keys": keys})
    for position, row in enumerate(rows):
        row |= {"repeat": repeat(position), "split": split(position)}
    _write_tables(folder, rows, shards)
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    """Write manifest.json over whatever lies in `folder`, with the hashes of the files as they are."""
    samples = pq.read_table(folder / "samples")
    ledger = pq.read_table(folder / "ledger")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    counts = {
        "num_samples": len(samples),
        "num_draws": sum(samples["repeat"].to_pylist()),
        "num_shards": len(pq.read_table(folder / "shards.parquet")),
        "nbytes": sum(path.stat().st_size for path in folder.rglob("*.tar")),
    }
    sources = sorted(set(ledger["source"].to_pylist()))
    manifest = {
        "format": "dataengine-dataset/1",
        "name": folder.parent.name,
        "version": int(folder.name[1:]),
        "parent": None,
        "config": {},
        "recipes": {},
        "sources": {source: _source_counts(samples, ledger, source) for source in sources},
        "mixture": {
            "target": None,
            "sources": {source: {"asked": 10, "realised": 10} for source in sources},
        },
        "provenance": {},
        "dedup": {},
        "counts": counts,
        "files": sorted((_file_row(folder, path) for path in files), key=lambda row: str(row["path"])),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def read_rows(folder: Path) -> list[Row]:
    """The samples table as dicts, in order."""
    return pq.read_table(folder / "samples").to_pylist()


def write_siblings(folder: Path, where: str, rename: Callable[[str], str] = str) -> dict[str, np.ndarray[Any, Any]]:
    """A tar of the same name beside each tar of `folder`, with one npy per sample; the arrays by key."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    (folder / where).mkdir(parents=True)
    by_shard: dict[str, list[str]] = {}
    for row in read_rows(folder):
        by_shard.setdefault(row["shard"], []).append(row["key"])
    for shard, keys in by_shard.items():
        starts = []
        with tarfile.open(folder / where / f"{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for key in keys:
                arrays[key] = np.random.default_rng(int(key[:8], 16)).normal(size=(4, 3)).astype(np.float16)
                content = io.BytesIO()
                np.save(content, arrays[key])
                entry = tarfile.TarInfo(f"{rename(key)}.dcae.npy")
                entry.size = len(content.getvalue())
                starts.append(tar.offset)
                tar.addfile(entry, io.BytesIO(content.getvalue()))
            starts.append(tar.offset)
        (folder / where / f"{shard}.tar.idx").write_bytes(np.array(starts, "<u8").tobytes())
    return arrays


def _sample(source: str, key: str, url: str, size: tuple[int, int]) -> dict[str, Any]:
    rng = np.random.default_rng(int(key[:8], 16))
    picture = io.BytesIO()
    width, height = size
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(picture, "JPEG")
    caption = f"a picture of {url}"
    record = json.dumps({"key": key, "url": url, "caption": caption}).encode()
    contents = {"image": picture.getvalue(), "txt": caption.encode(), "json": record}
    row = {
        "key": key,
        "source": source,
        "format": "jpg",
        "width": width,
        "height": height,
        "bucket": "4:3",
        "caption": caption,
        "captions": [("alt", f"alt of {key[:6]}")],
        "url": url,
        "sha256": hashlib.sha256(contents["image"]).hexdigest(),
        "xxh3": xxhash.xxh3_64_hexdigest(contents["image"]),
        "phash": None,
        "extra": [],
        "extra_members": [],
        "clip_score": float(rng.uniform(0.2, 0.4)),
        "aesthetic": None if rng.random() < 0.2 else float(rng.uniform(4, 7)),
    }
    return {"row": row, "contents": contents}


def _write_tar(path: Path, members: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    starts = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            starts.append(tar.offset)
            for kind, content in member["contents"].items():
                suffix = "jpg" if kind == "image" else kind
                entry = tarfile.TarInfo(f"{member['row']['key']}.{suffix}")
                entry.size = len(content)
                member["row"] |= {f"{kind}_offset": tar.offset + 512, f"{kind}_nbytes": len(content)}
                tar.addfile(entry, io.BytesIO(content))
        starts.append(tar.offset)
    path.with_suffix(".tar.idx").write_bytes(np.array(starts, "<u8").tobytes())


def _shard_row(folder: Path, source: str, name: str, keys: list[str]) -> Row:
    path = f"{source}/{name}.tar"
    content = (folder / path).read_bytes()
    return {
        "shard": name,
        "path": path,
        "source": source,
        "format": "jpg",
        "num_samples": len(keys),
        "nbytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "min_key": keys[0],
        "max_key": keys[-1],
    }


def _write_tables(folder: Path, rows: list[Row], shards: list[Row]) -> None:
    ledger = [_emitted(row) for row in rows]
    for source in dict.fromkeys(row["source"] for row in rows):
        survivor = next(row["key"] for row in rows if row["source"] == source)
        ledger += _dropped(source, survivor)
    ledger.sort(key=lambda row: str(row["key"]))
    half = len(rows) // 2 + 1
    write_table(folder / "samples/part-000000.parquet", manifest_schema(SCORES), rows[:half])
    write_table(folder / "samples/part-000001.parquet", manifest_schema(SCORES), rows[half:])
    write_table(folder / "ledger/part-000000.parquet", LEDGER, ledger)
    write_table(folder / "shards.parquet", SHARDS, shards)
    write_table(folder / "stats/funnel.parquet", FUNNEL, _funnel(ledger))
    write_table(folder / "stats/histogram.parquet", HISTOGRAM, _histogram(rows))


def write_table(path: Path, schema: TableSchema, rows: list[Row]) -> None:
    """Write rows as one Parquet file of `schema`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = schema.table({name: [row[name] for row in rows] for name in schema.arrow.names})
    pq.write_table(table, path, write_page_checksum=True)


def _emitted(row: Row) -> Row:
    blank = dict.fromkeys(("stage", "reason", "rule_value", "survivor_key", "similarity"))
    return {name: row[name] for name in ("key", "source", "url")} | {"num_rows": 1, "state": "emitted"} | blank


def _dropped(source: str, survivor: str) -> list[Row]:
    urls = [f"https://{source}.example/dropped-{reason}.jpg" for _, reason, _ in DROPPED]
    rows = []
    for key, url, (stage, reason, value) in zip(url_keys(source, urls), urls, DROPPED, strict=True):
        yields = reason.startswith("duplicate")
        rows.append(
            {"key": key, "num_rows": 2, "source": source, "url": url, "state": "dropped", "stage": stage}
            | {"reason": reason, "rule_value": value, "survivor_key": survivor if yields else None}
            | {"similarity": 0.97 if yields else None}
        )
    return rows


def _funnel(ledger: list[Row]) -> list[Row]:
    names = ("source", "state", "stage", "reason")
    grouped = (
        pa.Table.from_pylist([{name: row[name] for name in (*names, "num_rows")} for row in ledger])
        .group_by(names)
        .aggregate([("num_rows", "sum"), ("num_rows", "count")])
    )
    renamed = {"num_rows_sum": "num_rows", "num_rows_count": "num_candidates"}
    rows = [{renamed.get(name, name): value for name, value in row.items()} for row in grouped.to_pylist()]
    return sorted(rows, key=lambda row: tuple(str(row[name] or "") for name in names))


def _histogram(rows: list[Row]) -> list[Row]:
    counted = {source: sum(row["source"] == source for row in rows) for source in {row["source"] for row in rows}}
    return [
        {"source": source, "column": "clip_score", "low": 0.2, "high": 0.4}
        | {"num_scored": counted[source] + 1, "num_emitted": counted[source]}
        for source in sorted(counted)
    ]


def _source_counts(samples: pa.Table, ledger: pa.Table, source: str) -> Row:
    emitted = [row for row in samples.select(["source", "repeat"]).to_pylist() if row["source"] == source]
    entered = [row for row in ledger.select(["source", "num_rows"]).to_pylist() if row["source"] == source]
    return {
        "num_rows": sum(row["num_rows"] for row in entered),
        "num_candidates": len(entered),
        "num_emitted": len(emitted),
        "num_draws": sum(row["repeat"] for row in emitted),
        "license": "CC-BY-4.0",
    }


def _file_row(folder: Path, path: Path) -> Row:
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return {"path": path.relative_to(folder).as_posix(), "nbytes": len(content), "sha256": sha256}
