"""The reader beside webdataset, open_clip's pipeline, mosaicml-streaming, litdata, Hugging Face and a bare loader.

python -m benchmarks.trainer                    # 40,000 rows of 20 kB, a sixteenth as many of 100 kB
python -m benchmarks.trainer --rows 2000        # within a minute or so, without peers

The same samples in each contender's own format, warm in the page cache, shuffled, in batches of 64; each in a process
of its own. Peers need an interpreter that has them: --peers-python or DATAENGINE_TRAINER_PEERS_PYTHON.
Goals are ratios of CPU taken in this run: others may share the machine. With one decoder for all, decoding alone takes
0.85 of webdataset's CPU, so no reader can be 1.4 times as cheap: those goals are for the reader's own decoder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.reporting import Goal, report
from benchmarks.trainer_contenders import PEERS
from benchmarks.trainer_corpus import build, corpus_parser

READERS = ("bare", "ours", "ours, threads", "webdataset", *PEERS)
ALONE = ("in memory", "in memory, bucket", "in memory, scaled")
# tier → (corpus, worker counts, contenders); threads without workers are the same as ours.
TIERS: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "T0": ("small", (0,), ("bare", "ours", "webdataset")),
    "T1": ("small", (0, 1, 2), READERS),
    "T2": ("large", (0,), ("in memory", "bare", "ours", "webdataset")),
    "T3": ("large", (0,), (*ALONE, "bare", "ours", "ours, bucket", "ours, scaled", "webdataset")),
    "T4": ("large", (1, 2), (*ALONE, *READERS, "ours, bucket", "ours, bucket, threads", "ours, scaled")),
    "T5": ("small", (0, 2), ("bare", "ours", "ours, threads", "webdataset")),
}
LARGE_PART = 16  # of the rows: decoding costs a hundred times as much


def run(python: str, name: str, tier: str, workers: int, corpus: Path) -> dict[str, Any]:
    """One contender, once, in a process of its own."""
    command = [python, "-m", "benchmarks.trainer_contenders", name, tier, str(workers), str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{name} {tier} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def row_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of a contender's runs."""
    per_sample = [one["cpu_seconds"] / one["samples"] * 1e6 for one in runs]
    return {
        "CPU-us per sample": statistics.median(per_sample),
        "lowest": min(per_sample),
        "samples/s": statistics.median(one["samples"] / one["wall_seconds"] for one in runs),
        "first batch s": statistics.median(one["first_seconds"] for one in runs),
    }


def goals_of(results: dict[str, dict[str, Any]]) -> list[Goal]:
    """What was asked for; a goal beside a contender that is absent is left out."""
    wanted = [
        ("raw CPU over the bare loader's, 2 processes", "T1 w2 ours", "T1 w2 bare", 1.1),
        ("raw CPU over the bare loader's, 2 threads", "T1 w2 ours, threads", "T1 w2 bare", 1.1),
        ("raw CPU over webdataset's, no workers", "T1 w0 ours", "T1 w0 webdataset", 1 / 8),
        ("latents, CPU over webdataset's, no workers", "T5 w0 ours", "T5 w0 webdataset", 1 / 10),
        ("decoded CPU over decoding alone, no workers", "T3 w0 ours", "T3 w0 in memory", 1.15),
        ("decoded CPU over decoding alone, 2 processes", "T4 w2 ours", "T4 w2 in memory", 1.15),
        ("bucketed CPU over decoding alone, no workers", "T3 w0 ours, bucket", "T3 w0 in memory, bucket", 1.15),
        ("bucketed CPU over decoding alone, 2 processes", "T4 w2 ours, bucket", "T4 w2 in memory, bucket", 1.15),
        ("bucketed CPU over litdata's decoded, 2 processes", "T4 w2 ours, bucket", "T4 w2 litdata", 1 / 1.2),
        ("bucketed CPU over webdataset's decoded, 2 processes", "T4 w2 ours, bucket", "T4 w2 webdataset", 1 / 1.4),
    ]
    cpu = "CPU-us per sample"
    goals = [
        Goal(name, results[ours][cpu] / results[theirs][cpu], goal)
        for name, ours, theirs, goal in wanted
        if ours in results and theirs in results
    ]
    firsts = [row["first batch s"] for name, row in results.items() if "ours" in name]
    return [*goals, Goal("first batch, seconds, the slowest of ours", max(firsts), 0.3)] if firsts else goals


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = corpus_parser(__doc__ or "", repeat=3)
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=list(TIERS))
    variable = "DATAENGINE_TRAINER_PEERS_PYTHON"
    parser.add_argument("--peers-python", default=os.environ.get(variable), help=f"default: ${variable}")
    return parser.parse_args()


def main() -> None:
    """Run the tiers that were asked for."""
    arguments = parse_arguments()
    peers: str | None = arguments.peers_python
    sizes = {"small": arguments.rows, "large": max(512, arguments.rows // LARGE_PART)}
    corpora = {kind: build(arguments.cache, kind, num_rows) for kind, num_rows in sizes.items()}
    if peers:
        for kind, num_rows in sizes.items():
            run_write(peers, kind, num_rows, corpora[kind])
    results: dict[str, dict[str, Any]] = {}
    for tier in arguments.tiers:
        kind, worker_counts, names = TIERS[tier]
        for workers in worker_counts:
            chosen = [name for name in names if (peers or name not in PEERS) and (workers or "threads" not in name)]
            pythons = {name: peers if name in PEERS and peers else sys.executable for name in chosen}
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
            for _ in range(arguments.repeat):  # by turns: a minute in which the machine is slow is everybody's
                for name in chosen:
                    print(f"running {tier} {name} with {workers} workers ...", file=sys.stderr, flush=True)
                    runs[name].append(run(pythons[name], name, tier, workers, corpora[kind]))
            results |= {f"{tier} w{workers} {name}": row_of(of) for name, of in runs.items()}
    report("trainer", results, goals_of(results))


def run_write(python: str, kind: str, num_rows: int, corpus: Path) -> None:
    """Have the peers write their own formats."""
    command = [python, "-m", "benchmarks.trainer_contenders", "write", kind, str(num_rows), str(corpus)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
