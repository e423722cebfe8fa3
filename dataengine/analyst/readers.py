"""What readers of WebDataset tars do with shards of given sizes: read, drop and repeat in an epoch, in numbers.

One function per reader; in go the samples of each shard and the shape of the job, out comes a `Reading`. Each follows
what the reader's documentation and code say of splitting shards over ranks and workers; tests hold it against the real
packages. Where a reader draws at random, the number is the expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """How a training job reads: `world_size` ranks of `num_workers` worker processes, `batch_size` samples a rank."""

    world_size: int
    num_workers: int
    batch_size: int

    @property
    def num_readers(self) -> int:
        """Worker processes of all ranks."""
        return self.world_size * self.num_workers


@dataclass(frozen=True)
class Reading:
    """What a reader makes of an epoch.

    `never` and `repeated` count samples that are not read at all and more than once; `steps` is the least and the most
    of any rank; `amplification` is tar bytes read over tar bytes there are; `idle` counts workers without a shard. With
    `refusal` the reader does not begin.
    """

    reader: str
    never: float = 0.0
    repeated: float = 0.0
    steps: tuple[int, int] = (0, 0)
    amplification: float = 1.0
    idle: int = 0
    refusal: str | None = None

    @property
    def hangs(self) -> bool:
        """Whether ranks end at different steps, so that the others wait for them in the next all-reduce."""
        return self.steps[0] != self.steps[1]


def webdataset_plain(sizes: NDArray[np.int64], job: Job) -> Reading:
    """`WebDataset(urls, nodesplitter=split_by_node)` in a DataLoader, an epoch being what there is.

    webdataset 1.0: `split_by_node` and `split_by_worker` each take every n-th shard. Its default `nodesplitter` raises
    with more than one rank, and `check_empty` raises in a worker that gets no shard.
    """
    name = "webdataset"
    held = _dealt(sizes, job)
    idle = int((held == 0).sum())
    if idle:
        return Reading(name, idle=idle, refusal=f"{idle:,} workers get no shard: ValueError, no samples found")
    return Reading(name, steps=_extremes(_batches(held, job).sum(axis=1)))


def webdataset_with_epoch(sizes: NDArray[np.int64], job: Job) -> Reading:
    """The same with `.with_epoch(samples // workers)`: equal steps by cutting long workers and repeating short ones."""
    name = "webdataset with_epoch"
    held = _dealt(sizes, job)
    idle = int((held == 0).sum())
    if idle:
        return Reading(name, idle=idle, refusal=f"{idle:,} workers get no shard: ValueError, no samples found")
    quota = int(sizes.sum()) // job.num_readers
    steps = -(-quota // job.batch_size) * job.num_workers
    return Reading(name, *_passes(held, np.full_like(held, quota), held), steps=(steps, steps))


def webdataset_resampled(sizes: NDArray[np.int64], job: Job) -> Reading:
    """`WebDataset(urls, resampled=True).with_epoch(samples // workers)`: shards are drawn with replacement."""
    quota = int(sizes.sum()) // job.num_readers
    steps = -(-quota // job.batch_size) * job.num_workers
    return Reading("webdataset resampled", *_with_replacement(sizes, job, quota), steps=(steps, steps))


def open_clip_plain(sizes: NDArray[np.int64], job: Job, seed: int = 0) -> Reading:
    """open_clip's training pipeline (`open_clip_train.data.get_wds_dataset`) without `--dataset-resampled`.

    Shards are shuffled by epoch, the same on all ranks, and dealt out; every worker gives the same number of whole
    batches, `ceil(ceil(samples / global batch) / workers)`. Who holds more leaves the rest unread; who holds less
    begins its own shards again. A worker's last, partial batch of each pass is dropped. With fewer shards than workers
    it refuses ("number of shards must be >= total workers").
    """
    name = "open_clip"
    if len(sizes) < job.num_readers:
        idle = job.num_readers - len(sizes)
        return Reading(name, idle=idle, refusal=f"number of shards must be >= total workers ({job.num_readers:,})")
    held = _dealt(np.random.default_rng(seed).permutation(sizes), job)
    whole = held // job.batch_size * job.batch_size
    quota = np.where(whole > 0, _open_clip_quota(sizes, job), 0)  # without a whole batch a worker ends
    steps = _extremes((quota // job.batch_size).sum(axis=1))
    return Reading(name, *_passes(held, quota, whole), steps=steps)


def open_clip_resampled(sizes: NDArray[np.int64], job: Job) -> Reading:
    """open_clip's training pipeline with `--dataset-resampled`: every worker draws shards with replacement."""
    quota = _open_clip_quota(sizes, job)
    steps = quota // job.batch_size * job.num_workers
    return Reading("open_clip resampled", *_with_replacement(sizes, job, quota), steps=(steps, steps))


def hugging_face_streaming(sizes: NDArray[np.int64], job: Job) -> Reading:
    """`load_dataset(..., streaming=True)`, `split_dataset_by_node`, then a DataLoader with workers.

    datasets 5: when ranks divide the number of shards, each gets its own; otherwise every rank reads all of them and
    keeps one sample of `world_size`. Either way the workers of a rank share its shards, every n-th one.
    """
    world_size, num_workers = job.world_size, job.num_workers
    if len(sizes) % world_size == 0:
        held = _dealt(sizes, job)
        idle = int((held == 0).sum())
        return Reading("datasets streaming", steps=_extremes(_batches(held, job).sum(axis=1)), idle=idle)
    read = np.array([sizes[worker::num_workers].sum() for worker in range(num_workers)])
    kept = np.maximum(0, -(-(read[None, :] - np.arange(world_size)[:, None]) // world_size))
    return Reading(
        "datasets streaming",
        steps=_extremes(_batches(kept, job).sum(axis=1)),
        amplification=float(world_size),
        idle=int((read == 0).sum()) * world_size,
    )


def hugging_face_map_style(sizes: NDArray[np.int64], job: Job) -> Reading:
    """`load_dataset(...)` copied to Arrow, then torch's DistributedSampler: the last samples are padded by the first.

    The tars are read once, to be copied.
    """
    samples = int(sizes.sum())
    of_rank = -(-samples // job.world_size)
    steps = -(-of_rank // job.batch_size)
    repeated = min(samples, of_rank * job.world_size - samples)
    return Reading("datasets map-style", repeated=float(repeated), steps=(steps, steps))


RULES = (
    webdataset_plain,
    webdataset_with_epoch,
    webdataset_resampled,
    open_clip_plain,
    open_clip_resampled,
    hugging_face_streaming,
    hugging_face_map_style,
)


def _dealt(sizes: NDArray[np.int64], job: Job) -> NDArray[np.int64]:
    """Samples [ranks, workers] when every rank takes each n-th shard, and every worker each n-th of its rank's."""
    held = np.zeros((job.world_size, job.num_workers), dtype=np.int64)
    shard = np.arange(len(sizes))
    np.add.at(held, (shard % job.world_size, shard // job.world_size % job.num_workers), sizes)
    return held


def _batches(held: NDArray[np.int64], job: Job) -> NDArray[np.int64]:
    """Batches that workers make of their samples, the last one perhaps smaller: what torch's DataLoader does."""
    return -(-held // job.batch_size)


def _extremes(steps: NDArray[np.int64]) -> tuple[int, int]:
    return int(steps.min()), int(steps.max())


def _open_clip_quota(sizes: NDArray[np.int64], job: Job) -> int:
    """Samples that each worker gives in an epoch."""
    batches = math.ceil(int(sizes.sum()) / (job.batch_size * job.world_size))
    return math.ceil(batches / job.num_workers) * job.batch_size


def _passes(held: NDArray[np.int64], quota: NDArray[np.int64], whole: NDArray[np.int64]) -> tuple[float, float]:
    """(never, repeated) when a worker with `held` samples gives `quota`, `whole` of them in each pass, then goes on.

    Each pass is in an order of its own, so what it leaves out is any of the samples.
    """
    passes, rest = np.divmod(quota, np.maximum(whole, 1))
    part, last = whole / np.maximum(held, 1), rest / np.maximum(held, 1)
    left_out = 1 - part
    none = left_out**passes
    once = np.where(passes > 0, passes * part * left_out ** np.maximum(passes - 1, 0), 0.0)
    unread, read_once = none * (1 - last), once * (1 - last) + none * last
    return float((held * unread).sum()), float((held * np.maximum(1 - unread - read_once, 0.0)).sum())


def _with_replacement(sizes: NDArray[np.int64], job: Job, quota: int) -> tuple[float, float]:
    """(never, repeated), in expectation, when each worker gives `quota` samples of shards drawn with replacement."""
    drawn = job.num_readers * quota / sizes.sum()  # times that a shard is drawn, on average; many draws: Poisson
    unread = math.exp(-drawn)
    return float(sizes.sum() * unread), float(sizes.sum() * (1 - unread * (1 + drawn)))
