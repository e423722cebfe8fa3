"""Shards written: ours, webdataset's ShardWriter, Ray Data's write_webdataset, and cp of the same bytes, in one run.

python -m benchmarks.emit --rows 500        # within a minute
python -m benchmarks.emit --rows 10000

Every contender writes the same samples (image, txt, json) of about 20 and 100 KB into tars of 5,000. webdataset is
handed them in memory, Ray Data as Parquet; ours reads stored tars as emit does, and builds json and manifest rows on
the way. write_webdataset needs pandas, so an environment of its own with `ray[data]` and the packages of the base
install: name its interpreter by --ray-python or DATAENGINE_EMIT_RAY_PYTHON, or it is left out. Nobody waits for the
disk: files are in the page cache, and nothing is synced.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.download_watch import run_watched
from benchmarks.emit_contenders import CONTENDERS, prepare
from benchmarks.reporting import Goal, report

PAYLOADS = (20, 100)
TIMES = 3
RAY = "write_webdataset"
_PEERS = ("ShardWriter", RAY)


def measure(name: str, folder: Path, times: int, python: str) -> dict[str, Any]:
    """Median of `times` runs of a contender, each in a process of its own under the interpreter `python`."""
    found = []
    for _ in range(times):
        note = folder / "note.json"
        command = [python, "-m", "benchmarks.emit_contenders", name, str(folder), str(note)]
        cost = run_watched(command, timeout_seconds=600)
        found.append(json.loads(note.read_text()) | {"peak_mb": cost.peak_pss_bytes / 1e6})
    median = {key: statistics.median(item[key] for item in found) for key in found[0]}
    return {
        "MB/s": median["payload"] / median["wall"] / 1e6,
        "samples/s": median["samples"] / median["wall"],
        "CPU us/sample": median["cpu"] / median["samples"] * 1e6,
        "overhead %": (median["written"] / median["payload"] - 1) * 100,
        "peak MB": median["peak_mb"],
    }


def goals_of(results: dict[str, dict[str, Any]]) -> list[Goal]:
    """What was asked for, of the contenders that ran."""

    def value(name: str, payload: int, column: str) -> float:
        return float(results[f"{name} {payload} KB"][column])

    goals = [
        Goal("CPU us per sample of 100 KB, before hashing", value("ours unhashed", 100, "CPU us/sample"), 95),
        Goal("CPU us per sample of 20 KB, before hashing", value("ours unhashed", 20, "CPU us/sample"), 60),
        Goal("bytes over the payload at 20 KB, %", value("ours", 20, "overhead %"), 13),
    ]
    for payload in PAYLOADS:
        slower = value("cp", payload, "MB/s") / value("ours x2", payload, "MB/s")
        goals.append(Goal(f"MB/s of cp over ours at {payload} KB, hashes and indexes included", slower, 1 / 0.6))
        mine = value("ours unhashed", payload, "CPU us/sample")
        theirs = [value(peer, payload, "CPU us/sample") for peer in _PEERS if f"{peer} {payload} KB" in results]
        if theirs:
            goals.append(Goal(f"share of the better peer's CPU at {payload} KB", mine / min(theirs), 0.25))
    return goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="samples of each payload")
    parser.add_argument("--folder", type=Path, help="where inputs and tars lie for the time (default: TMPDIR)")
    parser.add_argument("--only", help="contenders, comma-separated")
    parser.add_argument("--times", type=int, default=TIMES)
    variable = "DATAENGINE_EMIT_RAY_PYTHON"
    parser.add_argument("--ray-python", default=os.environ.get(variable), help=f"default: ${variable}")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(CONTENDERS)
    if arguments.ray_python is None and RAY in wanted:
        print(f"{RAY} is left out: no --ray-python is given")
        wanted.remove(RAY)
    results: dict[str, dict[str, Any]] = {}
    for payload in PAYLOADS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            prepare(Path(name), arguments.rows, payload)
            for contender in wanted:
                times = 1 if contender == RAY else arguments.times  # it starts Ray, and takes a minute
                python = arguments.ray_python if contender == RAY else sys.executable
                results[f"{contender} {payload} KB"] = measure(contender, Path(name), times, python)
    report("emit", results, goals_of(results) if not arguments.only else [])


if __name__ == "__main__":
    main()
