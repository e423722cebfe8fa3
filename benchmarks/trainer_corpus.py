"""Published datasets for the reader's benchmarks: real tars and tables, of pictures that cost what real ones do.

What is decided here: how large samples are (`small`: 256 pixels, about 20 kB; `large`: 512 pixels, about 100 kB;
`latents`: 16 kB arrays in sibling tars) and how many rows a shard holds. Some hundred pictures are drawn and used in
turn, so a decoder meets variety and the corpus is made in seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from PIL import Image

from dataengine.schemas import SHARDS, manifest_schema
from dataengine.storage.tar import END, header, padding

VERSION = 3
"""Raised when the same name would hold other bytes."""

KINDS = {"small": (256, 20_000), "large": (512, 100_000)}
LATENT_SHAPE, SHARD_ROWS = (32, 16, 16), 1000
_NUM_PICTURES = 128
LATENTS = "latents"

Sample = tuple[str, bytes, bytes, bytes]
"""Key, image, txt, json."""


def corpus_parser(about: str, repeat: int) -> argparse.ArgumentParser:
    """A command line that says how many rows, how often, and where corpora are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dataengine" / "benchmark"
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_rows, default=40_000, help="samples of 20 kB, 1,000 or more")
    parser.add_argument("--repeat", type=int, default=repeat, help="runs of each contender; the median is taken")
    parser.add_argument("--cache", type=Path, default=cache, help="where corpora are kept")
    return parser


def _rows(text: str) -> int:
    if int(text) < 1000:
        raise argparse.ArgumentTypeError("wanted 1,000 or more")
    return int(text)


class Shard(NamedTuple):
    """A tar that was written: its name, its samples' keys, the XXH3-64 of their first members, and its bytes."""

    name: str
    keys: list[str]
    hashes: list[str]
    nbytes: int


def pictures(kind: str) -> list[bytes]:
    """Distinct JPEGs with detail at every scale, near the kind's size."""
    side, wanted = KINDS[kind]
    rng = np.random.default_rng(1)
    found = []
    for _ in range(_NUM_PICTURES):
        shape = (side, round(side * rng.choice([0.75, 1.0, 4 / 3])), 3)
        canvas = np.zeros(shape, np.float32)
        for octave in range(2, 9):
            noise = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32) * 1.6**-octave
            canvas += cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        canvas = (canvas - canvas.min()) / (canvas.max() - canvas.min()) * 255
        found.append(
            min(
                (_jpeg(canvas, quality) for quality in (50, 70, 80, 88, 93, 96)),
                key=lambda made: abs(len(made) - wanted),
            )
        )
    return found


def samples(kind: str, num_rows: int) -> Iterator[Sample]:
    """The corpus, sample by sample: what every contender is given in its own format."""
    images = pictures(kind)
    words = (
        "red",
        "old",
        "house",
        "near",
        "river",
        "two",
        "dogs",
        "one",
        "man",
        "summer",
        "light",
        "with",
        "and",
        "the",
    )
    rng = np.random.default_rng(2)
    for number in range(num_rows):
        key = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
        caption = " ".join(words[place] for place in rng.integers(0, len(words), 14))
        record = {"key": key, "url": f"https://example.test/{number}.jpg", "width": 512, "caption": caption,
                  "aesthetic": 5.2, "clip_score": 0.31, "captions": {"alt": caption}, "sha256": "0" * 64}  # fmt: skip
        yield key, images[number % len(images)], caption.encode(), json.dumps(record).encode()


def latents(num_rows: int) -> Iterator[tuple[str, bytes]]:
    """(key, npy file) of each row: half floats, as a DC-AE gives them at 512 pixels."""
    rng = np.random.default_rng(3)
    arrays = []
    for _ in range(_NUM_PICTURES):
        content = io.BytesIO()
        np.save(content, rng.normal(size=LATENT_SHAPE).astype(np.float16))
        arrays.append(content.getvalue())
    for number in range(num_rows):
        yield hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest(), arrays[number % len(arrays)]


def build(folder: Path, kind: str, num_rows: int) -> Path:
    """The version folder of a corpus, made unless it is there; with `latents/` beside when the kind is small."""
    version = folder / f"corpus-v{VERSION}-{kind}-{num_rows}" / "v000001"
    if (version / "manifest.json").exists():
        return version
    made = samples(kind, num_rows)
    shards = _write_shards(
        version / "web", ((key, {"jpg": jpg, "txt": txt, "json": record}) for key, jpg, txt, record in made)
    )
    if kind == "small":
        _write_shards(version / LATENTS, ((key, {"npy": array}) for key, array in latents(num_rows)))
    write_tables(version, shards)
    return version


def build_giant(folder: Path, num_rows: int, num_shards: int) -> Path:
    """A version of `num_rows` rows whose shards are all the same tar of tiny samples, by hard links."""
    version = folder / f"giant-v{VERSION}-{num_rows}-{num_shards}" / "v000001"
    if (version / "manifest.json").exists():
        return version
    per_shard = num_rows // num_shards
    made = samples("small", per_shard)
    tiny = ((key, {"jpg": jpg[:900], "txt": txt, "json": record}) for key, jpg, txt, record in made)
    first, *_ = _write_shards(version / "web", tiny, per_shard)
    shards = []
    for number in range(num_shards):
        other = f"web-{number:06d}"
        if number:
            for suffix in (".tar", ".tar.idx"):
                os.link(version / "web" / f"{first.name}{suffix}", version / "web" / f"{other}{suffix}")
        shards.append(first._replace(name=other))
    write_tables(version, shards, with_samples=False)
    return version


def write_tables(version: Path, shards: Sequence[Shard], *, with_samples: bool = True) -> None:
    """shards.parquet, the samples table, and the manifest that publishes them."""
    rows = {
        "shard": [shard.name for shard in shards],
        "path": [f"web/{shard.name}.tar" for shard in shards],
        "source": ["web"] * len(shards),
        "format": ["jpg"] * len(shards),
        "num_samples": [len(shard.keys) for shard in shards],
        "nbytes": [shard.nbytes for shard in shards],
        "sha256": ["0" * 64] * len(shards),
        "min_key": [min(shard.keys) for shard in shards],
        "max_key": [max(shard.keys) for shard in shards],
    }
    pq.write_table(SHARDS.table(rows), version / "shards.parquet")
    names = ["shards.parquet"]
    if with_samples:
        (version / "samples").mkdir()
        for shard in shards:
            path = f"samples/part-{shard.name[-6:]}.parquet"
            pq.write_table(_sample_rows(shard), version / path, write_page_checksum=True)
            names.append(path)
    num_samples = sum(len(shard.keys) for shard in shards)
    files = [{"path": name, "nbytes": (version / name).stat().st_size, "sha256": "0" * 64} for name in names]
    # As many entries as a real manifest has: parsing them is part of opening.
    files += [{"path": f"web/{shard.name}.tar{end}", "nbytes": shard.nbytes, "sha256": "0" * 64}
              for shard in shards for end in ("", ".idx")]  # fmt: skip
    counts = {"num_samples": num_samples, "num_draws": num_samples, "num_shards": len(shards), "nbytes": 0}
    manifest = {"format": "dataengine-dataset/1", "name": version.parent.name, "version": 1, "files": files,
                "counts": counts, "sources": {}, "mixture": {"sources": {}}, "dedup": {}}  # fmt: skip
    (version / "manifest.json").write_text(json.dumps(manifest))


def _sample_rows(shard: Shard) -> pa.Table:
    schema = manifest_schema(("aesthetic",)).arrow
    blank = {"string": "", "int32": 0, "int64": 0, "float": 5.0}
    columns = {
        field.name: pa.array([blank.get(str(field.type), [])] * len(shard.keys), field.type) for field in schema
    } | {
        # Of pictures of other ratios, too: with the one bucket that is measured nothing depends on it.
        "width": pa.repeat(pa.scalar(512, pa.int32()), len(shard.keys)),
        "height": pa.repeat(pa.scalar(512, pa.int32()), len(shard.keys)),
        "key": pa.array(shard.keys),
        "xxh3": pa.array(shard.hashes),
        "shard": pa.array([shard.name] * len(shard.keys)),
        "index_in_shard": pa.array(range(len(shard.keys)), pa.int32()),
        "repeat": pa.array([1] * len(shard.keys), pa.int32()),
        "split": pa.array(["train"] * len(shard.keys)),
    }
    return pa.table([columns[name] for name in schema.names], names=schema.names)


def _write_shards(
    folder: Path, rows: Iterator[tuple[str, dict[str, bytes]]], per_shard: int = SHARD_ROWS
) -> list[Shard]:
    """Each tar that was written."""
    folder.mkdir(parents=True)
    shards: list[Shard] = []
    batch: list[tuple[str, dict[str, bytes]]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == per_shard:
            shards.append(_write_shard(folder, f"web-{len(shards):06d}", batch))
            batch = []
    if batch:
        shards.append(_write_shard(folder, f"web-{len(shards):06d}", batch))
    return shards


def _write_shard(folder: Path, name: str, rows: list[tuple[str, dict[str, bytes]]]) -> Shard:
    starts, offset = [], 0
    with open(folder / f"{name}.tar", "wb") as tar:
        for key, members in rows:
            starts.append(offset)
            for extension, content in members.items():
                offset += tar.write(header(f"{key}.{extension}", len(content)) + content + padding(len(content)))
        starts.append(offset)
        nbytes = offset + tar.write(END)
    (folder / f"{name}.tar.idx").write_bytes(np.array(starts, "<u8").tobytes())
    hashes = [xxhash.xxh3_64_hexdigest(next(iter(members.values()))) for _, members in rows]
    return Shard(name, [key for key, _ in rows], hashes, nbytes)


def _jpeg(canvas: np.ndarray, quality: int) -> bytes:
    made = io.BytesIO()
    Image.fromarray(canvas.astype(np.uint8)).save(made, "JPEG", quality=quality)
    return made.getvalue()
