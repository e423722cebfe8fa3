"""One contender of the reader's benchmark, in a process of its own: reads a corpus once, and says what it cost.

python -m benchmarks.trainer_contenders NAME TIER WORKERS CORPUS

Every contender hands over batches of 64 in its own shuffled order. Tiers: T0 image bytes; T1 image, txt and json bytes;
T2 decoded; T3 and T4 decoded at 256 × 256, stacked; T5 latents. Peers and "ours" decode by one function, Pillow's
reduced decoding and its bilinear filter; "ours, bucket" by the reader's own, with a bucket of that shape and
decode="rgb", and "ours, scaled" with decode="scaled". Whatever is imported before the clock starts is what a training
script has imported anyway: torch, and the contender.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH, SIDE = 64, 256
_WORKERS_END_SECONDS = 0.5

Result = tuple[list[Any], list[Any]]


def decode(content: bytes) -> np.ndarray:
    """A picture, whole."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def decode_small(content: bytes) -> np.ndarray:
    """A picture at 256 × 256, scaled while decoded as far as libjpeg does: uint8 [256, 256, 3]."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (SIDE, SIDE))
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def array_of(content: bytes) -> np.ndarray:
    """A latent."""
    return np.load(io.BytesIO(content), allow_pickle=False)


class Work:
    """What a tier makes of a sample's bytes. May be sent to worker processes."""

    def __init__(self, tier: str) -> None:
        self.tier = tier

    def __call__(self, image: bytes, txt: Any = b"", record: Any = b"") -> tuple[Any, ...]:
        if self.tier == "T0":
            return (image,)
        if self.tier == "T1":
            return image, txt, record
        if self.tier == "T5":
            return (array_of(image),)
        return (decode(image) if self.tier == "T2" else decode_small(image)), txt


def stack(samples: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Columns of samples; pictures of one shape as a tensor."""
    import torch

    columns = list(zip(*samples, strict=True))
    first = columns[0]
    if isinstance(first[0], np.ndarray) and len({one.shape for one in first}) == 1:
        columns[0] = torch.from_numpy(np.stack(first))  # type: ignore[call-overload]
    return tuple(columns)


def torch_loader(dataset: Any, workers: int, **options: Any) -> Any:
    """torch's DataLoader, as its documentation has it."""
    import torch.utils.data

    ahead = {"prefetch_factor": 4} if workers else {}
    return torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, collate_fn=stack, **ahead, **options)


class Bare:
    """Offsets in arrays and a pread a member: as little as a reader of tars can do under torch's DataLoader."""

    def __init__(self, corpus: Path, tier: str) -> None:
        self.work, self.files = Work(tier), {}
        folder = corpus / ("latents" if tier == "T5" else "web")
        self.paths = sorted(str(path) for path in folder.glob("*.tar"))
        self.rows = [(shard, *place) for shard, path in enumerate(self.paths) for place in _members(Path(path))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        shard, *places = self.rows[number]
        file = self.files.get(shard)
        if file is None:
            file = self.files[shard] = os.open(self.paths[shard], os.O_RDONLY)
        wanted = places[: {"T0": 1, "T1": 3, "T5": 1}.get(self.work.tier, 2)]
        return self.work(*(os.pread(file, nbytes, offset) for offset, nbytes in wanted))


def _members(path: Path) -> list[list[tuple[int, int]]]:
    """(offset, size) of each member of each sample."""
    starts = np.fromfile(f"{path}.idx", "<u8").tolist()
    content, found = path.read_bytes(), []
    for begin, end in pairwise(starts):
        members = []
        while begin < end:
            size = int(content[begin + 124 : begin + 135], 8)
            members.append((begin + 512, size))
            begin += 512 + size + -size % 512
        found.append(members)
    return found


def bare(corpus: Path, tier: str, workers: int) -> Callable[[], Iterable[Any]]:
    dataset = Bare(corpus, tier)  # its index is made beforehand, as a manifest is
    return lambda: torch_loader(dataset, workers, shuffle=True)


def in_memory(corpus: Path, tier: str, workers: int, bucket_decode: str | None = None) -> Callable[[], Iterable[Any]]:
    """The work alone: bytes that lie in memory, no reader; with two workers, two processes that do it side by side."""
    dataset, work = Bare(corpus, "T1"), BucketWork(tier, bucket_decode) if bucket_decode else Work(tier)
    contents = [dataset[number] for number in range(min(256, len(dataset)))]

    def batches(begin: int = 0, step: int = BATCH) -> Iterator[Any]:
        for first in range(begin, len(dataset), step):
            numbers = range(first, min(first + BATCH, len(dataset)))
            yield stack([work(*contents[number % len(contents)]) for number in numbers])

    def side_by_side() -> Iterator[Any]:
        counts = multiprocessing.get_context("fork").SimpleQueue()
        for number in range(workers):
            if not os.fork():
                done = 0
                try:
                    done = sum(len(batch[0]) for batch in batches(number * BATCH, workers * BATCH))
                finally:
                    counts.put(done)
                    os._exit(0)
        for _ in range(workers):
            yield [range(counts.get())]
        for _ in range(workers):
            os.wait()

    return side_by_side if workers else batches


class BucketWork(Work):
    """What ours makes of a picture where a bucket says its shape."""

    def __init__(self, tier: str, decode: str) -> None:
        from dataengine.trainer.decode import decoder
        from dataengine.trainer.fit import fit

        super().__init__(tier)
        self.decode, self.fit = decoder("image", decode, (SIDE, SIDE)), fit

    def __call__(self, image: bytes, txt: Any = b"", record: Any = b"") -> tuple[Any, ...]:
        return self.fit(self.decode(image), (SIDE, SIDE)), txt


def ours(
    corpus: Path, tier: str, workers: int, kind: Any = "process", bucket_decode: Any = None
) -> Callable[[], Iterable[Any]]:
    from dataengine.trainer import Buckets, DataLoader, ShardDataset

    parts = {"T0": ("image",), "T1": ("image", "txt", "json"), "T5": ("latent",)}.get(tier, ("image", "txt"))
    how: Any = {"T2": decode, "T3": decode_small, "T4": decode_small, "T5": "pil"}.get(tier, "bytes")
    siblings = {"latent": "latents"} if tier == "T5" else None
    buckets = Buckets(((SIDE, SIDE),)) if bucket_decode else None

    def batches() -> Iterator[Any]:
        decode = bucket_decode or how
        dataset = ShardDataset(corpus, parts=parts, decode=decode, siblings=siblings, seed=1, buckets=buckets)
        loader = DataLoader(dataset, global_batch_size=BATCH, num_workers=workers, workers=kind, prefetch_batches=4)
        for batch in loader:
            yield [batch[part] for part in parts]

    return batches


def webdataset(corpus: Path, tier: str, workers: int) -> Callable[[], Iterable[Any]]:
    import webdataset as wds

    work = Work(tier)
    urls = sorted(str(path) for path in (corpus / ("latents" if tier == "T5" else "web")).glob("*.tar"))

    def sample(one: dict[str, Any]) -> Any:
        return work(one["npy"]) if tier == "T5" else work(one["jpg"], one["txt"], one["json"])

    def batches() -> Iterable[Any]:
        dataset = wds.WebDataset(
            urls, shardshuffle=len(urls), seed=1, workersplitter=wds.split_by_worker, empty_check=False
        )
        dataset = dataset.shuffle(1000).map(sample).batched(BATCH, collation_fn=stack)
        return wds.WebLoader(
            dataset, batch_size=None, num_workers=workers, **({"prefetch_factor": 4} if workers else {})
        )

    return batches


def open_clip(corpus: Path, tier: str, workers: int) -> Callable[[], Iterable[Any]]:
    """The training pipeline of open_clip's data.py, non-resampled."""
    import webdataset as wds
    from open_clip_train import data as theirs

    urls = sorted(str(path) for path in (corpus / "web").glob("*.tar"))
    expand = theirs.tar_file_expander

    def without_markers(*arguments: Any, **options: Any) -> Iterator[Any]:
        # webdataset marks the end of a shard since 0.2.87, which open_clip 3.3 takes for a sample without a name.
        return (one for one in expand(*arguments, **options) if "fname" in one)

    theirs.tar_file_expander = without_markers

    def pixels(image: Image.Image) -> np.ndarray:
        whole = tier == "T2"
        return np.asarray(image if whole else image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    def batches() -> Iterable[Any]:
        steps = [wds.SimpleShardList(urls), wds.split_by_node, wds.split_by_worker, theirs.tarfile_to_samples_nothrow,
                 wds.shuffle(bufsize=5000, initial=1000), wds.select(theirs.filter_no_caption_or_no_image)]  # fmt: skip
        if tier in ("T2", "T3", "T4"):
            steps.append(wds.decode("pilrgb", handler=theirs.log_and_continue))
            steps += [wds.rename(image="jpg;png;jpeg;webp", text="txt"), wds.map_dict(image=pixels)]
        else:
            steps += [wds.rename(image="jpg;png;jpeg;webp", text="txt")]
        names = ("image", "text", "json") if tier == "T1" else ("image", "text")[: 1 if tier == "T0" else 2]
        steps += [wds.to_tuple(*names), wds.batched(BATCH, collation_fn=stack, partial=True)]
        ahead = {"prefetch_factor": 4} if workers else {}
        return wds.WebLoader(wds.DataPipeline(*steps), batch_size=None, num_workers=workers, **ahead)

    return batches


def streaming(corpus: Path, tier: str, workers: int) -> Callable[[], Iterable[Any]]:
    from streaming import StreamingDataLoader, StreamingDataset

    work = Work(tier)

    class Dataset(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return work(sample["jpg"], sample["txt"], sample["json"])

    def batches() -> Iterable[Any]:
        dataset = Dataset(
            local=str(corpus / "mds"), shuffle=True, shuffle_seed=1, batch_size=BATCH, num_canonical_nodes=1
        )
        ahead = {"prefetch_factor": 4} if workers else {}
        return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=stack, **ahead)

    return batches


def litdata(corpus: Path, tier: str, workers: int) -> Callable[[], Iterable[Any]]:
    import litdata as theirs

    work = Work(tier)

    class Dataset(theirs.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return work(sample["jpg"], sample["txt"], sample["json"])

    def batches() -> Iterable[Any]:
        dataset = Dataset(str(corpus / "lit"), shuffle=True, drop_last=False)
        return theirs.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=stack)

    return batches


def huggingface(corpus: Path, tier: str, workers: int) -> Callable[[], Iterable[Any]]:
    import datasets

    work = Work(tier)
    files = sorted(str(path) for path in (corpus / "web").glob("*.tar"))

    def sample(one: dict[str, Any]) -> dict[str, Any]:
        return {"sample": work(one["jpg"]["bytes"], one["txt"], one["json"])}

    def batches() -> Iterable[Any]:
        dataset = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
        dataset = dataset.cast_column("jpg", datasets.Image(decode=False)).shuffle(seed=1, buffer_size=1000)
        import torch.utils.data

        ahead = {"prefetch_factor": 4} if workers else {}
        mapped = dataset.map(sample, remove_columns=dataset.column_names)
        return torch.utils.data.DataLoader(
            mapped, BATCH, num_workers=workers, collate_fn=lambda rows: stack([row["sample"] for row in rows]), **ahead
        )

    return batches


CONTENDERS: dict[str, Callable[[Path, str, int], Callable[[], Iterable[Any]]]] = {
    "in memory": in_memory,
    "in memory, bucket": partial(in_memory, bucket_decode="rgb"),
    "in memory, scaled": partial(in_memory, bucket_decode="scaled"),
    "bare": bare,
    "ours": ours,
    "ours, threads": partial(ours, kind="thread"),
    "ours, bucket": partial(ours, bucket_decode="rgb"),
    "ours, bucket, threads": partial(ours, kind="thread", bucket_decode="rgb"),
    "ours, scaled": partial(ours, bucket_decode="scaled"),
    "webdataset": webdataset,
    "open_clip": open_clip,
    "streaming": streaming,
    "litdata": litdata,
    "huggingface": huggingface,
}
PEERS = ("open_clip", "streaming", "litdata", "huggingface")
"""Those that need an interpreter of their own."""


def write_peers(corpus: Path, kind: str, num_rows: int) -> None:
    """The corpus in the formats of mosaicml-streaming and litdata, unless they are there."""
    from benchmarks.trainer_corpus import samples

    if not (corpus / "mds").exists():
        from streaming import MDSWriter

        columns = {"jpg": "bytes", "txt": "bytes", "json": "bytes"}
        with MDSWriter(out=str(corpus / "mds"), columns=columns, size_limit=1 << 26) as writer:
            for _, jpg, txt, record in samples(kind, num_rows):
                writer.write({"jpg": jpg, "txt": txt, "json": record})
    if not (corpus / "lit").exists():
        import litdata as theirs

        theirs.optimize(
            fn=_Lit(kind, num_rows), inputs=[0], output_dir=str(corpus / "lit"), chunk_bytes="64MB", num_workers=1
        )


class _Lit:
    """What litdata's `optimize` calls in its own process."""

    def __init__(self, kind: str, num_rows: int) -> None:
        self.kind, self.num_rows = kind, num_rows

    def __call__(self, _: int) -> Iterator[dict[str, bytes]]:
        from benchmarks.trainer_corpus import samples

        for _, jpg, txt, record in samples(self.kind, self.num_rows):
            yield {"jpg": jpg, "txt": txt, "json": record}


def cpu_seconds() -> float:
    """CPU of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def measure(batches: Callable[[], Iterable[Any]]) -> dict[str, float]:
    """Read everything once."""
    started, cpu = time.perf_counter(), cpu_seconds()
    num_samples, first = 0, 0.0
    iterator = iter(batches())
    for batch in iterator:
        num_samples += len(batch[0])
        first = first or time.perf_counter() - started
    wall = time.perf_counter() - started
    del iterator, batch
    time.sleep(_WORKERS_END_SECONDS)
    return {"samples": num_samples, "wall_seconds": wall, "cpu_seconds": cpu_seconds() - cpu, "first_seconds": first}


def main() -> None:
    name, tier, workers, corpus = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    if name == "write":
        write_peers(corpus, tier, workers)
        return
    import torch.utils.data  # noqa: F401 - a training script has it

    if "ours" in name:
        import dataengine.trainer.loader  # noqa: F401
    print(json.dumps(measure(CONTENDERS[name](corpus, tier, workers))))


if __name__ == "__main__":
    main()
