"""Near-duplicate images beside exact blocked search and SemDeDup's method, on generated CLIP-like embeddings.

python -m benchmarks.dedup_images --rows 100000      # 100,000; with 1000000 also 300,000 and a million

Each contender has a process and one thread of its own, so that CPU-seconds are work and not waiting. `dataengine` is
the image part of the dedup stage as the engine runs it: tables read, vectors routed through the store, recall measured
against exact search; the others work on one array in memory. Recall is of pairs outside giant groups, those whose rows
have fewer than 50 neighbours; of a giant group a member is lost when the pairs found do not connect it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.dedup_image_contenders import MIN_SIMILARITY
from benchmarks.reporting import Goal, report
from dataengine.select.relations import flatten, unite

LADDER = (100_000, 300_000, 1_000_000)
GIANT_DEGREE = 50
TRUTH_ROWS = 3000
EXACT_ROWS = 100_000
"""Up to here exact search of all pairs runs too; beyond, its time would be hours."""


@dataclass(frozen=True)
class Truth:
    """Pairs of some rows with all others that reach the similarity."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    group: NDArray[np.int32]
    num_giants: int


def run_contender(name: str, vectors: Path, num_threads: int) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """What it cost, and the pairs it found: int64 [2, pairs]."""
    out = vectors.with_suffix(f".{name}.npz")
    threads = {key: str(num_threads) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **threads}
    environment.pop("OPENBLAS_CORETYPE", None)
    command = [sys.executable, "-m", "benchmarks.dedup_image_contenders", name, str(vectors), str(out)]
    done = subprocess.run(
        [*command, "--threads", str(num_threads)], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    with np.load(out) as found:
        return json.loads(done.stdout.splitlines()[-1]), np.stack([found["left"], found["right"]])


def sampled_truth(vectors: Path, group: NDArray[np.int32], num_giants: int) -> Truth:
    """Exact search of some random rows against all."""
    everyone = np.load(vectors, mmap_mode="r")
    chosen = np.random.default_rng(11).permutation(len(everyone))[:TRUTH_ROWS]
    sample, found = _units(everyone[chosen]), []
    for begin in range(0, len(everyone), 20_000):
        near = sample @ _units(everyone[begin : begin + 20_000]).T >= MIN_SIMILARITY
        row, other = np.divmod(np.flatnonzero(near), near.shape[1])
        found.append(np.stack([chosen[row], other + begin]))
    left, right = np.concatenate(found, axis=1)
    apart = left != right
    return Truth(left[apart], right[apart], group, num_giants)


def _units(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    wide = rows.astype(np.float32)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)


def judge(truth: Truth, pairs: NDArray[np.int64], vectors: Path) -> dict[str, float]:
    """Recall outside giant groups, members of giants lost, and precision."""
    num_rows = len(truth.group)
    degree = np.bincount(truth.left, minlength=num_rows)
    small = (degree[truth.left] < GIANT_DEGREE) & (degree[truth.right] < GIANT_DEGREE)
    small &= ~((truth.group[truth.left] >= 0) & (truth.group[truth.left] < truth.num_giants))
    code = np.minimum(truth.left, truth.right)[small] * num_rows + np.maximum(truth.left, truth.right)[small]
    code = np.unique(code)
    hit = np.isin(code, pairs[0] * num_rows + pairs[1])
    return {
        "true pairs": len(code),
        "recall": float(hit.mean()) if len(code) else 1.0,
        "lost": _lost(truth, pairs),
        "precision": _precision(pairs, vectors),
    }


def _lost(truth: Truth, pairs: NDArray[np.int64]) -> int:
    lost = 0
    for giant in range(truth.num_giants):
        members = np.flatnonzero(truth.group == giant)
        inside = np.isin(pairs[0], members) & np.isin(pairs[1], members)
        left, right = (np.searchsorted(members, side[inside]) for side in pairs)
        labels = np.arange(len(members), dtype=np.int32)
        unite(labels, left.astype(np.int32), right.astype(np.int32))
        flatten(labels)
        lost += len(members) - int(np.bincount(labels).max())
    return lost


def _precision(pairs: NDArray[np.int64], vectors: Path) -> float:
    """Share of the pairs found (of a sample of them) that do reach the similarity."""
    rows = np.load(vectors, mmap_mode="r")
    chosen = np.random.default_rng(3).permutation(pairs.shape[1])[:20_000]
    if not len(chosen):
        return 1.0
    here, there = (rows[side[chosen]].astype(np.float64) for side in pairs)
    lengths = np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1)
    return float((np.einsum("rd,rd->r", here, there) / lengths >= MIN_SIMILARITY - 1e-6).mean())


def measure(num_rows: int, dim: int, folder: Path, num_threads: int, repeat: int) -> dict[str, dict[str, Any]]:
    """All contenders on one set, in turns; the best of each: results by name."""
    vectors = folder / f"vectors-{num_rows}.npy"
    generate = [sys.executable, "-m", "benchmarks.embeddings", str(vectors), "--rows", str(num_rows), "--dim", str(dim)]
    subprocess.run(generate, check=True)
    with np.load(vectors.with_suffix(".groups.npz")) as planted:
        group, num_giants = planted["group"], int(planted["num_giants"])
    names = ["dataengine", "semdedup", *(["exact"] if num_rows <= EXACT_ROWS else [])]
    turns = [{name: run_contender(name, vectors, num_threads) for name in names} for _ in range(repeat)]
    found = {name: min((turn[name] for turn in turns), key=lambda run: run[0]["cpu_seconds"]) for name in names}
    if "exact" in found:
        left, right = found["exact"][1]
        both = np.concatenate([left, right]), np.concatenate([right, left])
        truth = Truth(*both, group, num_giants)
    else:
        truth = sampled_truth(vectors, group, num_giants)
    results: dict[str, dict[str, Any]] = {}
    for name, (spent, pairs) in found.items():
        results[f"{name} {num_rows:,}"] = _row(num_rows, spent, pairs, judge(truth, pairs, vectors))
        print(f"{name} {num_rows:,}: {json.dumps(spent)}", flush=True)
    for path in folder.iterdir():
        path.unlink()
    return results


def _row(num_rows: int, spent: dict[str, Any], pairs: NDArray[np.int64], judged: dict[str, float]) -> dict[str, Any]:
    measured = spent.get("measured", {})
    return {
        "CPU-s": spent["cpu_seconds"],
        "seconds": spent["seconds"],
        "rows/CPU-s": num_rows / spent["cpu_seconds"],
        "peak GiB": spent["peak_gib"],
        "pairs": pairs.shape[1],
        **judged,
        "run: recall": measured.get("value"),
        "run: low": measured.get("low"),
        "run: high": measured.get("high"),
    }


def goals_of(results: dict[str, dict[str, Any]], sizes: list[int]) -> list[Goal]:
    """What was asked for, as far as these sizes can tell."""
    goals = []
    for size in sizes:
        ours, peer = results[f"dataengine {size:,}"], results[f"semdedup {size:,}"]
        share = 0.6 if size >= 1_000_000 else 1.0
        goals += [
            Goal(f"CPU beside SemDeDup's method, {size:,}", ours["CPU-s"] / peer["CPU-s"], share),
            Goal(f"pairs missed outside giant groups, {size:,}", 1 - ours["recall"], 0.001),
            Goal(f"giant members lost, {size:,}", ours["lost"], 0),
            Goal(f"peak GiB, {size:,}", ours["peak GiB"], 4.0),
        ]
    if len(sizes) > 1:
        first, last = (results[f"dataengine {size:,}"]["CPU-s"] for size in (sizes[0], sizes[-1]))
        power = math.log(last / first) / math.log(sizes[-1] / sizes[0])
        goals.append(Goal("power of n that CPU grows by", power, 1.5))
    return goals


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1, help="of each contender's matrix products")
    parser.add_argument("--repeat", type=int, default=1, help="take each contender's best of so many turns")
    parser.add_argument("--folder", type=Path, help="where the vectors go; a temporary folder by default")
    asked = parser.parse_args()
    sizes = [size for size in LADDER if size <= asked.rows] or [asked.rows]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for size in sizes:
            results |= measure(size, asked.dim, Path(folder), asked.threads, asked.repeat)
    report("dedup_images", results, goals_of(results, sizes))


if __name__ == "__main__":
    main()
