"""Cutting the kept rows of a run into shards: seconds and memory of emit's plan step, its input tables read included.

python -m benchmarks.emit_plan --rows 240000     # within a minute
python -m benchmarks.emit_plan --rows 24000000   # 2,400 parts, 3,072 shards

The step itself runs, in a process of its own, on SAMPLE and SELECTION tables that lie in a run directory as download
and select leave them: three sources of parts of 10,000 rows, one row in twenty dropped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.download_watch import run_watched
from benchmarks.reporting import Goal, report
from dataengine.config.run import EmitConfig
from dataengine.contract import Inputs, Machine, Outputs, WholeUnit
from dataengine.emit.stage import PlanShards
from dataengine.keys import hex_keys
from dataengine.schemas import SAMPLE, SELECTION
from dataengine.storage.rundir import Commit, ObjectRef, Part, Plan, RunDirectory, UnitDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import parquet_bytes

SOURCES = ("photos", "shop", "web")
PART_ROWS = 10_000
DROPPED, HELD_OUT = 0.05, 0.01
_IMAGE_BYTES = 100_000


def make(folder: Path, num_rows: int) -> None:
    """A run directory with `num_rows` rows of samples and verdicts."""
    run = RunDirectory(Root(str(folder)), "run")
    num_parts = max(1, num_rows // PART_ROWS // len(SOURCES))
    jobs = [(source, number) for source in SOURCES for number in range(num_parts)]
    with ThreadPoolExecutor(2) as threads:
        written = dict(zip(jobs, threads.map(lambda job: _make_part(run, *job, num_parts), jobs), strict=True))
    chosen = {f"{source}.part-{number:06d}": written[source, number][1] for source, number in jobs}
    _complete(_unit(run, "select/selection"), [Commit("part-000000", "a", {}, chosen)])
    for source in SOURCES:
        names = [f"part-{number:06d}" for number in range(num_parts)]
        samples = [Commit(name, "a", {}, {"sample": written[source, i][0]}) for i, name in enumerate(names)]
        _complete(_unit(run, f"download/{source}"), samples)
        facts = {"content_sha256": "0" * 64}
        _complete(_unit(run, f"sources/{source}"), [Commit(name, "a", {}, {}, facts=facts) for name in names])


def _make_part(run: RunDirectory, source: str, number: int, num_parts: int) -> tuple[ObjectRef, ObjectRef]:
    rng = np.random.default_rng([number, SOURCES.index(source)])
    key = rng.integers(0, 256, (PART_ROWS, 16), np.uint8)
    # Parts of a table are ranges of keys.
    leading = (rng.random(PART_ROWS) + number) / num_parts * 2**52
    key[:, :8] = (np.sort(leading.astype(np.uint64)) << np.uint64(12)).astype(">u8").view(np.uint8).reshape(-1, 8)
    keys, kept = hex_keys(key), rng.random(PART_ROWS) > DROPPED
    images = rng.integers(_IMAGE_BYTES // 2, _IMAGE_BYTES * 3 // 2, PART_ROWS)
    columns: dict[str, Any] = _blank(SAMPLE) | {
        "key": keys,
        "status": ["ok"] * PART_ROWS,
        "num_attempts": np.ones(PART_ROWS, np.int32),
        "sha256": pa.array(
            [text * 2 for text in hex_keys(rng.integers(0, 256, (PART_ROWS, 16), np.uint8)).to_pylist()]
        ),
        "xxh3": pa.array([text[:16] for text in hex_keys(rng.integers(0, 256, (PART_ROWS, 16), np.uint8)).to_pylist()]),
        "width": np.full(PART_ROWS, 512, np.int32),
        "height": np.full(PART_ROWS, 384, np.int32),
        "format": np.where(rng.random(PART_ROWS) < 0.9, "jpg", "webp").tolist(),
        "nbytes": images,
    }
    verdicts = _blank(SELECTION) | {
        "key": keys,
        "source": [source] * PART_ROWS,
        "verdict": np.where(kept, "kept", "dropped").tolist(),
        "split": np.where(rng.random(PART_ROWS) < HELD_OUT, "holdout", "train").tolist(),
        "repeat": kept.astype(np.int32),
        "merged_captions": [[]] * PART_ROWS,
    }
    name = f"part-{number:06d}"
    return (
        _put(_unit(run, f"download/{source}"), f"{name}.sample", SAMPLE.table(columns)),
        _put(_unit(run, "select/selection"), f"{source}.{name}", SELECTION.table(verdicts)),
    )


def _blank(schema: Any) -> dict[str, Any]:
    return {field.name: pa.nulls(PART_ROWS, field.type) for field in schema.arrow if field.nullable}


def _put(unit: UnitDirectory, name: str, table: pa.Table) -> ObjectRef:
    content, path = parquet_bytes(table), f"{unit.path}/data/{name}.parquet"
    (unit.root.local_path(path) or Path()).parent.mkdir(parents=True, exist_ok=True)
    (unit.root.local_path(path) or Path()).write_bytes(content)  # not synced: nothing here must outlive the benchmark
    return ObjectRef(path, len(content), name, len(table))


def _unit(run: RunDirectory, step: str) -> UnitDirectory:
    return run.unit(*step.split("/"), "0" * 8)


def _complete(unit: UnitDirectory, commits: list[Commit]) -> None:
    unit.store_complete(Plan(tuple(Part(commit.part) for commit in commits)), commits)


def plan(folder: Path, num_rows: int) -> None:
    """Run the step on what `make` left in `folder`; says how many shards there are."""
    run = RunDirectory(Root(str(folder)), "run")
    # Of each source 896 shards to train on and the 128 that a holdout gets at least: 3,072 together.
    trained = num_rows * (1 - DROPPED) * (1 - HELD_OUT) * _IMAGE_BYTES
    config = EmitConfig(target_shard_bytes=int(trained / (len(SOURCES) * 896)) + 1, shard_multiple=128)
    step = PlanShards("bench", SOURCES, (), config, {"config": {}, "recipes": {}})
    units = {need.step: _unit(run, need.step) for need in step.needs}
    whole = {name: WholeUnit(unit, f"{unit.path}/complete.json") for name, unit in units.items()}
    outputs = Outputs(_unit(run, "emit/plan"), "part-000000", "a")
    machine = Machine(2, 0, 1, {}, lambda: datetime.now(UTC))
    step.run(Part("part-000000"), Inputs(run.root, {}, whole), outputs, machine)
    (folder / "shards").write_text(str(len(outputs.facts["shards"])))


def main() -> None:
    if sys.argv[1] == "plan":
        plan(Path(sys.argv[2]), int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=240_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), rows)
        command = [sys.executable, "-m", "benchmarks.emit_plan", "plan", name, str(rows)]
        cost = run_watched(command, timeout_seconds=1200)
        num_shards = int((Path(name) / "shards").read_text())
    gigabytes = cost.peak_pss_bytes / 1e9
    row = {"rows": rows, "shards": num_shards, "seconds": cost.wall_seconds, "CPU s": cost.cpu_seconds, "GB": gigabytes}
    goals = [Goal("seconds to plan", cost.wall_seconds, 60.0), Goal("GB of memory", gigabytes, 6.0)]
    report("emit_plan", {"plan": row}, goals, f"_{rows}")


if __name__ == "__main__":
    main()
