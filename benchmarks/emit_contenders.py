"""The contenders of the emit benchmark: each writes the prepared samples into tars, in a process of its own.

A contender's clock runs from the first sample to the last byte handed to the kernel; imports and the reading of what
it is handed in memory are outside. Its note says wall and CPU seconds (children included), samples, bytes of payload
and bytes written.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import xxhash

from benchmarks.download_watch import ProcessTree
from dataengine.emit.shard import plan_shard
from dataengine.emit.sidecars import tar_index
from dataengine.emit.stage import emit_rows_schema
from dataengine.emit.writing import Stored
from dataengine.schemas import CAPTIONS, EXTRA_MEMBERS, manifest_schema
from dataengine.storage.hashing import HashingWriter
from dataengine.storage.store import Root
from dataengine.storage.tables import parquet_bytes
from dataengine.storage.tar import END, header, padding

SHARD_ROWS = 5000
SCORES = ("clip_score", "aesthetic")
_CAPTIONS, _EXTRAS = ("alt",), ("license",)
_WORDS = ["a", "red", "old", "house", "near", "the", "river", "with", "two", "dogs", "and", "one", "man"]


def prepare(folder: Path, num_rows: int, payload_kb: int) -> None:
    """Stored tars of `SHARD_ROWS` images as download writes them, and emit's rows of them in key order."""
    rng = np.random.default_rng(payload_kb)
    keys = sorted(rng.bytes(16).hex() for _ in range(num_rows))
    sizes = rng.integers(payload_kb * 500, payload_kb * 1500, num_rows)
    noise = rng.bytes(payload_kb * 1500 + num_rows)
    hashes, objects, offsets = [], [], []
    for first in range(0, num_rows, SHARD_ROWS):
        path = folder / f"stored-{first // SHARD_ROWS:06d}.tar"
        with path.open("wb") as tar:
            for row in range(first, min(first + SHARD_ROWS, num_rows)):
                image = noise[row : row + int(sizes[row])]
                tar.write(header(f"{keys[row]}.jpg", len(image)))
                objects.append(path.name)
                offsets.append(tar.tell())
                hashes.append(xxhash.xxh3_64_hexdigest(image))
                tar.write(image + padding(len(image)))
            tar.write(END)
    feather.write_feather(_rows(keys, sizes, hashes, objects, offsets, rng), folder / "rows.arrow", "uncompressed")
    _write_for_cp(folder)


def _rows(
    keys: Sequence[str], sizes: Any, hashes: Sequence[str], objects: list[str], offsets: list[int], rng: Any
) -> pa.Table:
    count = len(keys)
    texts = [" ".join(words) for words in rng.choice(_WORDS, (count, 14)).tolist()]
    columns: dict[str, Any] = {
        "key": keys,
        "source": ["photos"] * count,
        "split": ["train"] * count,
        "repeat": np.ones(count, np.int32),
        "format": ["jpg"] * count,
        "width": np.full(count, 512, np.int32),
        "height": np.full(count, 384, np.int32),
        "bucket": ["4:3"] * count,
        "caption": texts,
        "captions": pa.array([[("alt", text[::-1])] for text in texts], CAPTIONS),
        "url": [f"http://photos.example/{key}.jpg" for key in keys],
        "sha256": [key * 2 for key in keys],
        "xxh3": hashes,
        "phash": [key[:16] for key in keys],
        "extra": pa.array([[("license", "CC-BY-4.0")]] * count, CAPTIONS),
        "extra_members": pa.array([[]] * count, EXTRA_MEMBERS),
        "object": objects,
        "offset": np.array(offsets, np.int64),
        "nbytes": sizes.astype(np.int64),
    }
    columns |= {name: rng.normal(0.3, 0.1, count).astype(np.float32) for name in SCORES}
    return emit_rows_schema(SCORES).table(columns)


def _write_for_cp(folder: Path) -> None:
    (folder / "whole").mkdir()
    for number, rows in enumerate(_shards(folder)):
        with (folder / "whole" / f"{number:06d}.tar").open("wb") as tar:
            _write(rows, Root(str(folder)), tar.write)


def _shards(folder: Path, *, scattered: bool = False) -> Iterator[pa.Table]:
    rows = feather.read_table(folder / "rows.arrow")
    if scattered:  # keys of an in-place source have nothing to do with where its images lie
        rows = rows.take(np.random.default_rng(0).permutation(len(rows)))
    for first in range(0, len(rows), SHARD_ROWS):
        yield rows.slice(first, SHARD_ROWS).combine_chunks()


def _write(rows: pa.Table, root: Root, write: Callable[[memoryview], object], *, hashed: bool = True) -> Any:
    shard = plan_shard(rows, caption_names=_CAPTIONS, extra_names=_EXTRAS)
    stored = Stored.of(rows, shard.layout)
    with stored.reads(root) as reads:
        if hashed:
            shard.write(stored.filler(reads), write)
        else:
            places = stored.places
            shard.write(lambda i, views: reads.begin(places[i : i + len(views)], views, lambda _: None), write)
    return shard.layout


def _ours(folder: Path, out: Path, *, hashed: bool = True, scattered: bool = False) -> None:
    """What emit writes of each shard, one after another."""
    for number, rows in enumerate(_shards(folder, scattered=scattered)):
        _write_part(folder, out, number, rows, hashed=hashed)


def _write_part(folder: Path, out: Path, number: int, rows: pa.Table, *, hashed: bool = True) -> None:
    """What a part of emit writes: tar, index, rows of the manifest."""
    root = Root(str(folder))
    with (out / f"{number:06d}.tar").open("wb") as tar:
        if hashed:
            with HashingWriter(nullcontext(tar)) as writer:
                layout = _write(rows, root, writer.write)
        else:
            layout = _write(rows, root, tar.write, hashed=False)
    (out / f"{number:06d}.tar.idx").write_bytes(tar_index(layout.sample_offsets))
    names = [name for name in rows.column_names if name in manifest_schema(SCORES).arrow.names]
    columns: dict[str, Any] = {name: rows.column(name) for name in names}
    columns |= layout.columns | {"shard": [f"{number:06d}"] * len(rows), "index_in_shard": np.arange(len(rows))}
    (out / f"{number:06d}.parquet").write_bytes(parquet_bytes(manifest_schema(SCORES).table(columns)))


def _write_every_second(folder: Path, out: Path, first: int) -> None:
    for number, rows in enumerate(_shards(folder)):
        if number % 2 == first:
            _write_part(folder, out, number, rows)


def _hash_every_second(folder: Path, out: Path, first: int) -> None:
    buffer = memoryview(bytearray(2**21))
    for path in sorted((folder / "whole").glob("*.tar"))[first::2]:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as source, (out / path.name).open("wb", buffering=0) as tar:
            while nbytes := source.readinto(buffer):
                digest.update(buffer[:nbytes])
                tar.write(buffer[:nbytes])


def _warm_up(folder: Path, ready: Any) -> None:
    _payload(folder)
    ready.wait()


def _two_at_once(folder: Path, out: Path, work: Callable[[Path, Path, int], None]) -> Callable[[], None]:
    """Two workers with a shard each, as the engine has them on two cores."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    workers = ProcessPoolExecutor(2, context, _warm_up, (folder, ready))
    for _ in range(2):
        workers.submit(int)  # starts a worker
    ready.wait()

    def run() -> None:
        list(workers.map(work, [folder] * 2, [out] * 2, range(2)))

    return run


def _cp(folder: Path, out: Path) -> None:
    subprocess.run(["cp", "-r", "--reflink=never", folder / "whole", out], check=True)


def _sha256(folder: Path, out: Path) -> None:
    """The one hash that every published tar needs, alone: nothing that hashes a tar in one stream is faster."""
    for path in sorted((folder / "whole").glob("*.tar")):
        with path.open("rb") as tar:
            hashlib.file_digest(tar, "sha256")
        (out / path.name).touch()


def _samples(folder: Path) -> list[dict[str, Any]]:
    """The samples in memory, as webdataset takes them."""
    samples = []
    for path in sorted((folder / "whole").glob("*.tar")):
        import tarfile

        with tarfile.open(path) as tar:
            found: dict[str, dict[str, Any]] = {}
            for member in tar:
                key, extension = member.name.split(".")
                content = tar.extractfile(member)
                assert content is not None
                found.setdefault(key, {"__key__": key})[extension] = content.read()
            samples += found.values()
    return samples


def _shard_writer(folder: Path, out: Path) -> Callable[[], None]:
    import webdataset

    samples = _samples(folder)

    def run() -> None:
        with webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=SHARD_ROWS, verbose=0) as writer:
            for sample in samples:
                writer.write(sample)

    return run


def _ray_data(folder: Path, out: Path) -> Callable[[], None]:
    import pyarrow.parquet as pq
    import ray

    samples = _samples(folder)
    source = folder / "parquet"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    for first in range(0, len(samples), SHARD_ROWS):
        pq.write_table(pa.Table.from_pylist(samples[first : first + SHARD_ROWS]), source / f"{first:06d}.parquet")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

    def run() -> None:
        ray.data.read_parquet(str(source)).write_webdataset(str(out), encoder=None)

    return run


CONTENDERS: dict[str, Callable[[Path, Path], Callable[[], None]]] = {
    "cp": lambda folder, out: lambda: _cp(folder, out),
    "sha256 alone": lambda folder, out: lambda: _sha256(folder, out),
    "ours": lambda folder, out: lambda: _ours(folder, out),
    "ours x2": lambda folder, out: _two_at_once(folder, out, _write_every_second),
    "cp and sha256 x2": lambda folder, out: _two_at_once(folder, out, _hash_every_second),
    "ours unhashed": lambda folder, out: lambda: _ours(folder, out, hashed=False),
    "ours scattered": lambda folder, out: lambda: _ours(folder, out, scattered=True),
    "ShardWriter": _shard_writer,
    "write_webdataset": _ray_data,
}
"""Name → from inputs and an empty folder to what is timed; what happens before is not."""


def _payload(folder: Path) -> tuple[int, int]:
    """Samples, and bytes of their members' contents."""
    num_samples = num_bytes = 0
    for rows in _shards(folder):
        layout = plan_shard(rows, caption_names=_CAPTIONS, extra_names=_EXTRAS).layout
        num_samples += layout.num_samples
        num_bytes += int(layout.sizes.sum())
    return num_samples, num_bytes


def _cpu_seconds(name: str) -> float:
    """Of this process and of children that have ended; where workers go on, of the whole tree."""
    if name == "write_webdataset" or name.endswith(" x2"):
        tree = ProcessTree(os.getpid())
        tree.sample()
        return tree.cpu_seconds
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def main() -> None:
    name, folder, note = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    num_samples, payload = _payload(folder)  # also warms up: polars and pyarrow start their threads once a process
    run = CONTENDERS[name](folder, out)
    before, started = _cpu_seconds(name), time.perf_counter()
    run()
    wall, cpu = time.perf_counter() - started, _cpu_seconds(name) - before
    written = sum(path.stat().st_size for path in out.rglob("*.tar"))
    note.write_text(
        json.dumps({"wall": wall, "cpu": cpu, "samples": num_samples, "payload": payload, "written": written})
    )


if __name__ == "__main__":
    main()
