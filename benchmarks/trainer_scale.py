"""The reader at 24 million rows in 3,072 shards: first batch, memory, resume, exactly once.

python -m benchmarks.trainer_scale                      # 24,000,000 rows
python -m benchmarks.trainer_scale --rows 240000        # within a minute

Every shard is the same tar of tiny samples by hard link: opening, planning and memory are of the real size, reading is
not. Each figure is taken in a process of its own. Exactly-once marks the rows of an epoch in a bitset, as every worker
of every rank computes them; beside it the shares of shards that webdataset and open_clip deal out, by their own rules.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import Goal, report
from benchmarks.trainer_corpus import build_giant
from dataengine.trainer import DataLoader, ShardDataset
from dataengine.trainer.batches import BatchPlan
from dataengine.trainer.position import Position, save

WORLDS = ((128, 8, 4096), (96, 8, 3840), (64, 4, 4096))
STOPS = ((128, 8, 0.37), (64, 4, 0.81), (8, 1, 1.0))
NUM_WORKERS, BATCH, WORLD_SIZE = 8, 4096, 128
_TICKETS = 32


def first_batch(version: Path) -> dict[str, float]:
    """From imports done to the first batch of one of 128 ranks with 8 workers, and what memory that takes."""
    baseline = _memory([os.getpid()])
    started = time.perf_counter()
    loader = _loader(version, NUM_WORKERS)
    iterator = iter(loader)
    next(iterator)
    first = time.perf_counter() - started
    for _ in range(min(64, len(loader) - 1)):
        next(iterator)
    pids = [os.getpid(), *(worker.process.pid for worker in loader._pool._workers)]  # type: ignore[union-attr]
    return {"seconds": first, "megabytes": (_memory(pids) - baseline) / 1e6}


def resume(version: Path, part: float) -> dict[str, float]:
    """From imports done to the first batch after a load, at a part of the epoch."""
    view = _loader(version, 0).dataset.view
    schedule = view.schedule(BATCH, "carry")
    point = schedule.start()
    for _ in range(int(part * schedule.steps_of(0))):
        _, point = schedule.step(point)
    state = save(Position(point, BATCH), view.identity(), "carry")
    started = time.perf_counter()
    loader = _loader(version, NUM_WORKERS)
    loader.load_state_dict(state)
    next(iter(loader))
    return {"seconds": time.perf_counter() - started, "megabytes": len(json.dumps(state)) / 1e6}


def _loader(version: Path, num_workers: int) -> DataLoader:
    dataset = ShardDataset(version, decode="bytes", seed=1)
    return DataLoader(dataset, global_batch_size=BATCH, num_workers=num_workers, rank=5, world_size=WORLD_SIZE)


def _memory(pids: list[int]) -> int:
    """Memory of a process and its workers, in bytes: what is theirs in proportion, and the first one's files once.

    Proportions of files would depend on who else has the same libraries mapped, such as this benchmark's main process.
    """
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
    (files,) = (
        line for line in Path(f"/proc/{pids[0]}/status").read_text().splitlines() if line.startswith("RssFile:")
    )
    return total + int(files.split()[1]) * 1024


class Epoch:
    """The rows of an epoch as they are drawn: `seen` is a bitset."""

    def __init__(self, version: Path, batch: int) -> None:
        dataset = ShardDataset(version, parts=("txt",), seed=1)
        self.loader = DataLoader(dataset, global_batch_size=batch, rank=0, world_size=1)
        self.schedule = dataset.view.schedule(batch, "carry")
        self.point = self.schedule.start()
        self.plan: BatchPlan = self.loader._batch_plan()
        self.seen = np.zeros(len(dataset), dtype=np.bool_)
        self.repeated = 0

    def run(self, world_size: int, num_workers: int, part: float) -> None:
        """Draw up to a part of the epoch with so many ranks and workers."""
        tickets = []
        while self.schedule.epoch(self.point) == 0 and self.point.drawn < part * len(self.seen):
            ticket, self.point = self.schedule.step(self.point)
            tickets.append(ticket)
        for rank in range(world_size):
            plan = replace(self.plan, rank=rank, world_size=world_size)
            for worker in range(num_workers):
                mine = tickets[worker::num_workers]
                for begin in range(0, len(mine), _TICKETS):
                    self._mark(plan, mine[begin : begin + _TICKETS])

    def _mark(self, plan: BatchPlan, tickets: list[Any]) -> None:
        draws = [plan.draws(ticket) for ticket in tickets]
        joined = {
            name: np.concatenate([getattr(one, name) for one in draws]) for name in ("streams", "draws", "padding")
        }
        rows, epochs = plan.rows(replace(draws[0], **joined))
        rows = rows[epochs == 0]
        self.repeated += int(self.seen[rows].sum()) + len(rows) - len(np.unique(rows))
        self.seen[rows] = True

    @property
    def missing(self) -> int:
        """Rows that nobody drew."""
        return int((~self.seen).sum())


def exactly_once(version: Path) -> dict[str, dict[str, Any]]:
    """Missing and repeated rows of ours at several worlds, and over three of them in one epoch."""
    found = {}
    for world_size, num_workers, batch in WORLDS:
        epoch = Epoch(version, batch)
        epoch.run(world_size, num_workers, 1.0)
        found[f"ours {world_size}x{num_workers}"] = {"missing": epoch.missing, "repeated": epoch.repeated}
    epoch = Epoch(version, BATCH)
    for world_size, num_workers, part in STOPS:
        epoch.run(world_size, num_workers, part)
    found["ours 128 to 64 to 8"] = {"missing": epoch.missing, "repeated": epoch.repeated}
    return found


def dealt_shards(
    num_rows: int, num_shards: int, world_size: int, num_workers: int, per_rank: int
) -> dict[str, dict[str, Any]]:
    """What the same shards become under rules that deal out whole ones.

    webdataset: `split_by_node`, `split_by_worker` and `with_epoch` of the mean, which its documentation gives for equal
    steps: workers with more lose the rest, workers with fewer begin again. open_clip, non-resampled: the epoch is
    rounded up to whole batches of every worker (`get_wds_dataset`), the same otherwise.
    """
    sizes = np.full(num_shards, num_rows // num_shards)
    sizes[: num_rows - int(sizes.sum())] += 1
    # Shard i goes to rank i mod R, and of those every W-th to a worker: islice twice.
    worker = np.arange(num_shards) % world_size * num_workers + np.arange(num_shards) // world_size % num_workers
    held = np.bincount(worker, weights=sizes, minlength=world_size * num_workers)
    rounded = -(-num_rows // (per_rank * world_size * num_workers)) * per_rank
    found = {}
    for name, quota in (("webdataset", num_rows // (world_size * num_workers)), ("open_clip", rounded)):
        found[f"{name} {world_size}x{num_workers}"] = {
            "missing": int(np.maximum(0, held - quota).sum()),
            "repeated": int(np.maximum(0, np.where(held > 0, quota - held, 0)).sum()),
        }
    return found


def apart(name: str, version: Path, *arguments: str) -> dict[str, Any]:
    """A measurement in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.trainer_scale",
        "--measure",
        name,
        *arguments,
        "--version",
        str(version),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main() -> None:
    """Measure everything."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dataengine" / "benchmark"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=24_000_000)
    parser.add_argument("--shards", type=int, default=3072)
    parser.add_argument("--cache", type=Path, default=cache, help="where the dataset is kept")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--version", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, *rest = arguments.measure
        print(json.dumps({"first": first_batch, "resume": resume}[name](arguments.version, *map(float, rest))))
        return
    version = build_giant(arguments.cache, arguments.rows, arguments.shards)
    results: dict[str, dict[str, Any]] = {"first batch, 128x8": apart("first", version)}
    for part in ("0.01", "0.5", "0.99"):
        results[f"resume at {part}"] = apart("resume", version, part)
    results |= exactly_once(version)
    num_rows = arguments.rows // arguments.shards * arguments.shards
    for world_size, num_workers, batch in WORLDS:
        results |= dealt_shards(num_rows, arguments.shards, world_size, num_workers, batch // world_size)
    first = results["first batch, 128x8"]
    resumed = [row["seconds"] for name, row in results.items() if name.startswith("resume")]
    wrong = [row["missing"] + row["repeated"] for name, row in results.items() if name.startswith("ours")]
    goals = [
        Goal("first batch after imports, seconds", first["seconds"], 0.5),
        Goal("memory of a rank with 8 workers over imports, MB", first["megabytes"], 60.0),
        Goal("resume, seconds", max(resumed), 1.0),
        Goal("rows missing or repeated", sum(wrong), 0),
    ]
    report("trainer_scale", results, goals)


if __name__ == "__main__":
    main()
