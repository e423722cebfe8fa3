"""One contender of the caption benchmark in a process of its own: Parquet files in, pairs of rows out.

    python benchmarks/captions_peers.py NAME UNIT SIZE SIMILARITY OUT.npz PARQUET...

Peers run under an interpreter that has them (and pyarrow), so this file imports nothing of the engine's unless it is
asked for `ours`. The last line printed is JSON: what the work cost after imports, and the most memory held. Work of a
second is done three times, and the run of median CPU counts: a neighbour on the machine doubles that of a single one.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

_GAPS = re.compile(r"[\W_]+")
_CHUNK = 20_000
_NUM_PERM = 128
_RUNS, _LONG_CPU_SECONDS = 3, 15.0


def _captions(paths: list[str]) -> list[str]:
    texts: list[str] = []
    for path in paths:
        texts += pq.read_table(path, columns=["caption"])["caption"].to_pylist()
    return [_GAPS.sub(" ", text.lower()).strip() for text in texts]


def _shingles(text: str, unit: str, size: int) -> list[str]:
    if unit == "char":
        return [text[at : at + size] for at in range(max(1, len(text) - size + 1))]
    words = text.split(" ")
    return [" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))]


def run_datasketch(paths: list[str], unit: str, size: int, similarity: float) -> list[tuple[int, int]]:
    """MinHash and MinHashLSH, candidates verified by estimate: datasketch's own way."""
    from datasketch import MinHash, MinHashLSH

    lsh, sketches, pairs = MinHashLSH(threshold=similarity, num_perm=_NUM_PERM), [], []
    for row, text in enumerate(_captions(paths)):
        sketch = MinHash(num_perm=_NUM_PERM)
        sketch.update_batch([shingle.encode() for shingle in _shingles(text, unit, size)])
        pairs += [(other, row) for other in lsh.query(sketch) if sketches[other].jaccard(sketch) >= similarity]
        lsh.insert(row, sketch)
        sketches.append(sketch)
    return pairs


def run_rensa(paths: list[str], unit: str, size: int, similarity: float, num_bands: int) -> list[tuple[int, int]]:
    """RMinHash and RMinHashLSH, candidates verified by estimate: the recipe of rensa's README."""
    from rensa import RMinHash, RMinHashLSH

    captions, sketches = _captions(paths), []
    for start in range(0, len(captions), _CHUNK):
        sets = [_shingles(text, unit, size) for text in captions[start : start + _CHUNK]]
        sketches += RMinHash.from_token_sets(sets, num_perm=_NUM_PERM, seed=42)
    lsh = RMinHashLSH(threshold=similarity, num_perm=_NUM_PERM, num_bands=num_bands)
    lsh.insert_many(sketches)
    pairs = []
    for row, sketch in enumerate(sketches):
        pairs += [
            (other, row) for other in lsh.query(sketch) if other < row and sketch.jaccard(sketches[other]) >= similarity
        ]
    return pairs


def run_ours(paths: list[str], unit: str, size: int, similarity: float) -> Any:
    """The engine's steps; pairs of keys."""
    from benchmarks.captions_ours import find_duplicates
    from dataengine.config.dedup import CaptionDedupConfig

    config = CaptionDedupConfig(min_similarity=similarity, shingle_unit=unit, shingle_size=size)
    return find_duplicates([Path(path) for path in paths], config, 2**29)


CONTENDERS: dict[str, Callable[..., Any]] = {
    "ours": run_ours,
    "datasketch": run_datasketch,
    "rensa 16x8": lambda *asked: run_rensa(*asked, 16),
    "rensa 32x4": lambda *asked: run_rensa(*asked, 32),
}


def main() -> None:
    """Run a contender on a little, so that everything is imported and compiled, then measured on all."""
    name, unit, size, similarity, out, *paths = sys.argv[1:]
    run = CONTENDERS[name]
    began = time.process_time()
    warm = Path(out).with_suffix(".warm.parquet")
    pq.write_table(pq.read_table(paths[0]).slice(0, 500), warm)
    run([str(warm)], unit, int(size), float(similarity))
    start_cpu, peak, costs = time.process_time() - began, 0, []
    while len(costs) < _RUNS and sum(cpu for cpu, _ in costs) < _LONG_CPU_SECONDS:
        wall, cpu = time.perf_counter(), time.process_time()
        found = run(paths, unit, int(size), float(similarity))
        costs.append((time.process_time() - cpu, time.perf_counter() - wall))
        peak = peak or _peak_bytes()  # of the first run: those that follow find memory that it left
    cpu_s, seconds = sorted(costs)[len(costs) // 2]
    cost: dict[str, Any] = {"seconds": seconds, "cpu_s": cpu_s, "start_cpu_s": start_cpu, "peak_mb": peak / 1e6}
    cost["runs"] = len(costs)
    if name == "ours":
        cost["counts"] = {
            key: found.count(step, key)
            for step, keys in (
                ("dedup/pairs", ("comparisons", "dense_runs")),
                ("dedup/captions", ("candidates", "edges", "dense_rows", "audited_pairs", "leaked_pairs")),
            )
            for key in keys
        }
        edges, classes = found.edges, found.classes
        columns = (edges["left_key"], edges["right_key"], classes["class_key"], classes["key"])
        left, right, leader, member = (column.to_numpy().astype("S32") for column in columns)
        np.savez(out, left=np.concatenate([left, leader]), right=np.concatenate([right, member]))
    else:
        pairs = np.array(found, np.int64).reshape(-1, 2)
        np.savez(out, left=pairs[:, 0], right=pairs[:, 1])
    print(json.dumps(cost))


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
