"""One contender of the reader's benchmark over S3, in a process of its own: reads a corpus once, and says what it cost.

python -m benchmarks.trainer_s3_contenders NAME ADDRESS CORPUS CACHE     # storage options as JSON on standard input

Every contender hands over (key, image, txt, json), whose checksum is compared with the same corpus on disk. The bare
ones get ranges and nothing else: as many at once as two workers of ours do, tried again when they fail.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from benchmarks.trainer_contenders import cpu_seconds
from dataengine.trainer.tarset import parse_sample

WORKERS, BATCH = 2, 64
PARALLEL = 16 * WORKERS
TRIES = 5
CACHE_BYTES = 2**36
_PIECE_BYTES = 8 * 2**20
_SIGNED = timedelta(hours=1)
_WORKERS_END_SECONDS = 0.5

Sample = tuple[str, bytes, bytes, bytes]
Options = dict[str, str]


def places(corpus: Path) -> Iterator[tuple[str, int, int]]:
    """(name of the tar, first byte, end) of every sample."""
    for tar in sorted((corpus / "web").glob("*.tar")):
        for begin, end in pairwise(np.fromfile(f"{tar}.idx", "<u8").tolist()):
            yield tar.name, begin, end


def ours(address: str, options: Options, cache: Path | None = None, kind: Any = "thread") -> Iterator[Sample]:
    from dataengine.trainer import Cache, DataLoader, Patience, ShardDataset

    dataset = ShardDataset(
        address,
        decode="bytes",
        seed=1,
        check_hashes=True,
        storage_options=options,
        patience=Patience(timeout_seconds=20, tries=TRIES, pause_seconds=0.02),
        cache=None if cache is None else Cache(cache, CACHE_BYTES),
    )
    loader = DataLoader(
        dataset, global_batch_size=BATCH, num_workers=WORKERS, workers=kind, tail="pad", prefetch_batches=4
    )
    for batch in loader:
        names = ("__key__", "image", "txt", "json")
        for pad, *sample in zip(batch["__pad__"].tolist(), *(batch[name] for name in names), strict=True):
            if not pad:
                yield tuple(sample)  # type: ignore[misc]


def webdataset(address: str, corpus: Path, options: Options) -> Iterator[Sample]:
    """Whole tars over http, as webdataset fetches them: curl in a pipe, which tries a refused request again."""
    import webdataset as wds

    logging.captureWarnings(True)
    store = _store(address, options)
    names = sorted(tar.name for tar in (corpus / "web").glob("*.tar"))
    urls = [obstore.sign(store, "GET", f"web/{name}", _SIGNED) for name in names]
    dataset = wds.WebDataset(
        urls, shardshuffle=len(urls), seed=1, workersplitter=wds.split_by_worker, handler=wds.ignore_and_continue,
        empty_check=False,  # of fewer shards than workers
    )  # fmt: skip
    rows = dataset.shuffle(1000).map(_of_webdataset, handler=wds.ignore_and_continue).batched(BATCH, collation_fn=list)
    for batch in wds.WebLoader(rows, batch_size=None, num_workers=WORKERS, prefetch_factor=4):
        yield from batch


def _of_webdataset(one: dict[str, Any]) -> Sample:
    return one["__key__"], one["jpg"], one["txt"], one["json"]


def bare_samples(address: str, corpus: Path, options: Options) -> Iterator[Sample]:
    """A ranged get per sample, in random order."""
    store = _store(address, options)

    def get(place: tuple[str, int, int]) -> Sample:
        key, members = parse_sample(_range(store, *place))
        return key, members["image"], members["txt"], members["json"]

    order = list(places(corpus))
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(PARALLEL) as pool:
        yield from pool.map(get, order)


def bare_shards(address: str, corpus: Path, options: Options) -> Iterator[Sample]:
    """Every tar in ranges of 8 MiB, then cut into samples: in the order of the tars."""
    store = _store(address, options)
    pieces = []
    for tar in sorted((corpus / "web").glob("*.tar")):
        nbytes = tar.stat().st_size
        pieces += [(tar.name, begin, min(begin + _PIECE_BYTES, nbytes)) for begin in range(0, nbytes, _PIECE_BYTES)]
    found: dict[str, list[bytes]] = {}
    with ThreadPoolExecutor(PARALLEL) as pool:
        for (name, _, _), content in zip(pieces, pool.map(lambda piece: _range(store, *piece), pieces), strict=True):
            found.setdefault(name, []).append(content)
    whole = {name: b"".join(contents) for name, contents in found.items()}
    for name, begin, end in places(corpus):
        key, members = parse_sample(whole[name][begin:end])
        yield key, members["image"], members["txt"], members["json"]


def _store(address: str, options: Options) -> S3Store:
    config: Any = {name: value for name, value in options.items() if name != "allow_http"}
    return S3Store.from_url(address, config=config, client_options={"allow_http": True})


def _range(store: S3Store, name: str, begin: int, end: int) -> bytes:
    for _ in range(TRIES):
        try:
            content = bytes(obstore.get_range(store, f"web/{name}", start=begin, end=end))
        except BaseError:
            continue
        if len(content) == end - begin:
            return content
    raise RuntimeError(f"{name}: {TRIES} tries failed")


CONTENDERS: dict[str, Callable[[str, Path, Options, Path], Iterable[Sample]]] = {
    "bare, 8 MiB ranges": lambda address, corpus, options, _: bare_shards(address, corpus, options),
    "bare, a get per sample": lambda address, corpus, options, _: bare_samples(address, corpus, options),
    "ours": lambda address, _, options, __: ours(address, options),
    "ours, processes": lambda address, _, options, __: ours(address, options, kind="process"),
    "ours, empty cache": lambda address, _, options, cache: ours(address, options, cache),
    "ours, full cache": lambda address, _, options, cache: ours(address, options, cache),
    "webdataset": lambda address, corpus, options, _: webdataset(address, corpus, options),
}


def truth(corpus: Path) -> dict[str, tuple[int, int]]:
    """Key → checksums of the image and of the texts, as they lie on disk."""
    found = {}
    contents = {tar.name: tar.read_bytes() for tar in (corpus / "web").glob("*.tar")}
    for name, begin, end in places(corpus):
        key, members = parse_sample(contents[name][begin:end])
        found[key] = _checksums(members["image"], members["txt"], members["json"])
    return found


def _checksums(image: bytes, txt: bytes, record: bytes) -> tuple[int, int]:
    return zlib.crc32(image), zlib.crc32(record, zlib.crc32(txt))


def measure(samples: Callable[[], Iterable[Sample]], wanted: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Read everything once, and hold it against the corpus."""
    started, cpu = time.perf_counter(), cpu_seconds()
    first = 0.0
    got: list[tuple[str, tuple[int, int]]] = []
    for key, image, txt, record in samples():
        first = first or time.perf_counter() - started
        got.append((key, _checksums(image, txt, record)))
    wall = time.perf_counter() - started
    time.sleep(_WORKERS_END_SECONDS)
    cpu = cpu_seconds() - cpu
    times = Counter(key for key, _ in got)
    return {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "first_seconds": first,
        "samples": len(got),
        "missing": len(wanted.keys() - times.keys()),
        "repeated": sum(count - 1 for count in times.values()),
        "wrong_images": sum(wanted.get(key, (None, None))[0] != found[0] for key, found in got),
        "wrong_texts": sum(wanted.get(key, (None, None))[1] != found[1] for key, found in got),
    }


def main() -> None:
    """Run one contender."""
    name, address, corpus, cache = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    options = json.load(sys.stdin)
    import torch.utils.data  # noqa: F401 - a training script has it

    import dataengine.trainer.loader  # noqa: F401

    logging.getLogger("dataengine.trainer").setLevel(logging.ERROR)  # each try that failed
    wanted = truth(corpus)
    print(json.dumps(measure(lambda: CONTENDERS[name](address, corpus, options, cache), wanted)))


if __name__ == "__main__":
    main()
