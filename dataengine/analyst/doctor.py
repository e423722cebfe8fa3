"""Doctor: what a dataset's shards mean to each reader, for a job of a given shape, and what would suit them better.

In go an address and a `Job`; out comes a `Diagnosis`. It reads the manifest and shards.parquet, and no tar.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataengine.analyst.readers import RULES, Job, Reading
from dataengine.errors import ConfigError, InputError
from dataengine.trainer.index import load_shards
from dataengine.trainer.manifest import Version, open_version
from dataengine.trainer.plan import Plan
from dataengine.trainer.view import Asked, Split, build_view


@dataclass(frozen=True)
class Diagnosis:
    """`readings`, the engine's own reader last; `num_draws` counts samples as often as `repeat` says."""

    version: Version
    job: Job
    sizes: tuple[int, ...]
    num_draws: int
    readings: tuple[Reading, ...]

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return sum(self.sizes)

    @property
    def better_counts(self) -> list[int]:
        """The numbers of shards nearest to this one that every worker gets as many of."""
        unit = self.job.num_readers
        below = len(self.sizes) // unit * unit
        return [count for count in (below, below + unit) if 0 < count <= self.num_samples]


def diagnose(address: str, job: Job, split: Split = "train", options: Mapping[str, str] | None = None) -> Diagnosis:
    """What readers would make of the dataset at `address`.

    Raises InputError when there is no such dataset or split, ConfigError for a job that cannot be.
    """
    for name, value in (("world", job.world_size), ("workers", job.num_workers), ("batch", job.batch_size)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: wanted 1 or more")
    version = open_version(address, options)
    shards = load_shards(version)
    sizes = shards.sizes[shards.of_split(split)]
    if not sizes.sum():
        raise InputError(f"{version.root.url}: has no samples in the split {split!r}")
    view = build_view(version, shards, Asked(split=split))
    plan = Plan(view, view.schedule(job.world_size * job.batch_size, "carry"), job.world_size)
    readings = (*(rule(sizes, job) for rule in RULES), _ours(plan))
    return Diagnosis(version, job, tuple(sizes.tolist()), plan.schedule.epoch_draws, readings)


def _ours(plan: Plan) -> Reading:
    """The last batch of an epoch is filled up from the next epoch, whose samples then count there."""
    epoch = plan.epoch()
    steps = (epoch["steps"], epoch["steps"])
    return Reading("dataengine", never=float(epoch["dropped"]), repeated=float(epoch["padded"]), steps=steps)
