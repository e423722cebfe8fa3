"""Select over made-up rows: a full selection, a sweep, `why` of one key and `stats`, beside DuckDB and Polars.

python -m benchmarks.select --rows 240000
python -m benchmarks.select --rows 24000000 --folder /scratch/select     # 6 GB of disk, kept for another run
python -m benchmarks.select --rows 24000000 --folder /scratch/select --only-write

Each figure is taken in a process of its own, whose peak memory is its own. The peers do the part that all three can do:
the same conditions over the same files, counted by the first that fails; and the same quantiles of the same table.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.reporting import Goal, report

MEASURES = {
    "select, all of it": "benchmarks.select_ours:select_all",
    "sweep of 11": "benchmarks.select_ours:select_again",
    "rules: dataengine": "benchmarks.select_ours:rules_ours",
    "rules: Polars": "benchmarks.select_peers:rules_polars",
    "rules: DuckDB": "benchmarks.select_peers:rules_duckdb",
    "stats: dataengine": "benchmarks.select_asked:stats_ours",
    "stats: Polars": "benchmarks.select_peers:stats_polars",
    "stats: DuckDB": "benchmarks.select_peers:stats_duckdb",
    "why of one key": "benchmarks.select_asked:why_key",
}
"""By what is measured, `module:function`; a module imports what its own contenders need, before the clock runs."""


def measure(name: str, folder: Path, num_rows: int) -> None:
    """Do one thing in this process, and print what it cost once the process is up."""
    module, _, function = MEASURES[name].partition(":")
    work = getattr(importlib.import_module(module), function)
    started, cpu = time.perf_counter(), time.process_time()
    found = work(folder, num_rows)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # of this program, not of its parent
    assert peak is not None
    cost = {"wall s": time.perf_counter() - started, "CPU s": time.process_time() - cpu,
            "peak MB": int(peak[1]) / 1024}  # fmt: skip
    print(json.dumps(cost | found))


def main() -> None:
    """Write the rows unless they are there, measure everything, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--folder", type=Path, help="keep the rows there; a temporary folder by default")
    parser.add_argument("--only-write", action="store_true", help="write the rows, and measure nothing")
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.folder, asked.rows)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)) / str(asked.rows)
        if not (folder / "whole").exists():
            from benchmarks.select_published import write_dataset  # here, so that no measured process carries them
            from benchmarks.select_rows import write_run

            keys = write_run(folder, asked.rows, asked.rows // 3)
            write_dataset(folder / "datasets" / "bench" / "v000001", keys)
            (folder / "whole").touch()
        if asked.only_write:
            return
        results = {name: _in_a_process(name, folder, asked.rows) for name in MEASURES}
    report("select", results, _goals(results, asked.rows), f"_{asked.rows}")


def _in_a_process(name: str, folder: Path, num_rows: int) -> dict[str, Any]:
    """The better of two runs, so that files are in memory and compiled code is there for all alike."""
    command = [sys.executable, "-m", "benchmarks.select", "--measure", name, "--folder", str(folder)]
    runs = []
    for _ in range(2):
        done = subprocess.run([*command, "--rows", str(num_rows)], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(runs, key=lambda run: run["wall s"])


def _goals(results: dict[str, dict[str, Any]], num_rows: int) -> list[Goal]:
    """The goals are for 24 million rows; those of time are held in proportion, so that cost per row shows."""
    scale = num_rows / 24_000_000

    def wall(name: str) -> float:
        return float(results[name]["wall s"])

    passed = [results[f"rules: {name}"]["passed"] for name in ("dataengine", "Polars", "DuckDB")]
    medians = [results[f"stats: {name}"]["median"] for name in ("dataengine", "Polars", "DuckDB")]
    assert max(passed) == min(passed), f"the contenders do not agree: {passed}"
    assert max(medians) - min(medians) < 1e-5, f"the contenders do not agree: {medians}"
    return [
        Goal("seconds of a full selection", wall("select, all of it"), 60 * scale),
        Goal("peak GB of a full selection", results["select, all of it"]["peak MB"] / 1024, 10),
        Goal("rules, times bare Polars", wall("rules: dataengine") / wall("rules: Polars"), 1.5),
        Goal("seconds of a swept threshold", results["sweep of 11"]["each s"], 3 * scale),
        Goal("seconds of why", results["why of one key"]["each s"], 0.5),
        Goal("seconds of stats", wall("stats: dataengine"), 4 * scale),
        Goal("peak MB of stats", results["stats: dataengine"]["peak MB"], 400),
        Goal(
            "stats, times the better of Polars and DuckDB",
            wall("stats: dataengine") / min(wall("stats: Polars"), wall("stats: DuckDB")),
            1.1,
        ),
    ]


if __name__ == "__main__":
    main()
