"""Caption dedup beside datasketch 2.0 and rensa 0.5: the same captions, from Parquet to pairs of duplicates.

python -m benchmarks.dedup_captions --rows 20000            # within a minute, datasketch and rensa included
python -m benchmarks.dedup_captions --rows 1000000          # without datasketch, which takes ten minutes
python -m benchmarks.dedup_captions --rows 24000000         # ours alone: without boilerplate, and with 30 % of it

rensa needs an environment of its own (with datasketch and pyarrow): name its interpreter by --peers-python or
DATAENGINE_DEDUP_PEERS_PYTHON. What is true is found by an exact join of all pairs, up to a million rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.captions_corpus import Shares, write_corpus
from benchmarks.captions_score import Truth, score
from benchmarks.captions_truth import true_pairs
from benchmarks.reporting import Goal, report
from dataengine.config.dedup import CaptionDedupConfig
from dataengine.dedup.captions import normalise_captions
from dataengine.dedup.shingles import Shingling
from dataengine.dedup.signing import banding_of

SETTINGS = [(unit, size, similarity) for unit, size in (("char", 5), ("word", 3)) for similarity in (0.7, 0.8)]
TRUTH_SIMILARITY = 0.7
MAX_TRUTH_ROWS, MAX_DATASKETCH_ROWS = 1_000_000, 100_000
FLAT_ROWS = 1_000_000  # what the cost per row at more rows is compared with
PEERS = ("datasketch", "rensa 16x8", "rensa 32x4")


@dataclass(frozen=True)
class Corpus:
    """Captions on disk, and what they are once normalised."""

    paths: list[Path]

    def texts(self) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.bytes_]]:
        """Distinct normalised captions, the number of each row's, and each row's key."""
        table = pa.concat_tables([pq.read_table(path) for path in self.paths])
        normalised = normalise_captions(table.column("caption"))
        texts = pc.unique(normalised)
        numbers = pc.index_in(normalised, value_set=texts).to_numpy(zero_copy_only=False)
        return texts, numbers.astype(np.int64), table.column("key").to_numpy().astype("S32")


def main() -> None:
    """Run every contender at every setting, one after another, and report."""
    asked = _asked()
    with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
        scratch = Path(folder)
        if asked.rows > MAX_TRUTH_ROWS:
            results, goals = _at_scale(asked, scratch)
        else:
            results, goals = _beside_peers(asked, scratch)
    report("dedup_captions", results, goals, variant=f"_{_rows_name(asked.rows)}")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peers-python", default=os.environ.get("DATAENGINE_DEDUP_PEERS_PYTHON"))
    parser.add_argument("--corpus", type=Path, help="folder that keeps corpora and truths from run to run")
    parser.add_argument("--scratch", type=Path, help="where run directories are written")
    return parser.parse_args()


def _rows_name(rows: int) -> str:
    return f"{rows // 1_000_000}m" if rows % 1_000_000 == 0 else f"{rows // 1000}k"


def _corpus(asked: argparse.Namespace, scratch: Path, rows: int, templates: float) -> Corpus:
    folder = (asked.corpus or scratch) / f"captions-{rows}-{asked.seed}-{templates}"
    paths = sorted(folder.glob("*.parquet"))
    if len(paths) == -(-rows // 250_000):
        return Corpus(paths)
    return Corpus(write_corpus(folder, rows, asked.seed, Shares(templates=templates)))


def _beside_peers(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, dict[str, Any]], list[Goal]]:
    corpus = _corpus(asked, scratch, asked.rows, 0.3)
    texts, numbers, keys = corpus.texts()
    results: dict[str, dict[str, Any]] = {}
    goals: list[Goal] = []
    for unit, size, similarity in SETTINGS:
        _print_curve(unit, size, similarity)
        truth = _truth(corpus, texts, Shingling(unit, size), similarity)
        setting = f"{unit}{size} {similarity}"
        for contender in ("ours", *_peers(asked)):
            cost, left, right = _run(asked, contender, corpus, (unit, size, similarity), scratch)
            if contender == "ours":
                left, right = _rows_of(keys, left), _rows_of(keys, right)
            found = score(truth, numbers[left], numbers[right], similarity)
            results[f"{contender}, {setting}"] = {
                "rows_per_cpu_s": asked.rows / cost["cpu_s"],
                "cpu_s": cost["cpu_s"],
                "seconds": cost["seconds"],
                "peak_mb": cost["peak_mb"],
                "runs": cost["runs"],
                "recall": round(found.recall, 4),
                "precision": round(found.precision, 4),
                "leak": round(found.leak, 5),
                "leak_above": found.leak_above,
                "wrong": found.num_wrong,
                "kept": found.num_kept,
            }
        goals += _goals(setting, results, asked.rows)
    return results, goals


def _print_curve(unit: str, size: int, similarity: float) -> None:
    banding = banding_of(CaptionDedupConfig(min_similarity=similarity, shingle_unit=unit, shingle_size=size))  # type: ignore[arg-type]
    curve = "  ".join(f"{at:.2f} {found:.4f}" for at, found in banding.curve())
    print(f"{unit}{size} {similarity}: {banding.num_bands} bands of {banding.rows_per_band} find {curve}")


def _peers(asked: argparse.Namespace) -> tuple[str, ...]:
    if asked.peers_python is None:
        print("peers left out: name an interpreter that has rensa and datasketch by --peers-python")
        return ()
    return PEERS if asked.rows <= MAX_DATASKETCH_ROWS else PEERS[1:2]


def _truth(corpus: Corpus, texts: pa.Array, shingling: Shingling, similarity: float) -> Truth:
    kept = corpus.paths[0].parent / f"truth-{shingling.unit}{shingling.size}.npz"
    if not kept.exists():
        left, right, values = true_pairs(texts, shingling, TRUTH_SIMILARITY)
        np.savez(kept, left=left, right=right, similarity=values)
    found = np.load(kept)
    alike = found["similarity"] >= similarity
    return Truth(len(texts), found["left"][alike], found["right"][alike], found["similarity"][alike])


def _run(
    asked: argparse.Namespace, contender: str, corpus: Corpus, setting: tuple[str, int, float], scratch: Path
) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any]]:
    out = scratch / "pairs.npz"
    python = sys.executable if contender == "ours" else asked.peers_python
    script = (
        ["-m", "benchmarks.captions_peers"]
        if contender == "ours"
        else ["-P", str(Path(__file__).parent / "captions_peers.py")]  # else benchmarks/select.py is its `select`
    )
    command = [python, *script, contender, *map(str, setting), str(out), *map(str, corpus.paths)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr}")
    found = np.load(out)
    return json.loads(done.stdout.splitlines()[-1]), found["left"], found["right"]


def _rows_of(keys: NDArray[np.bytes_], wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
    order = np.argsort(keys)
    return order[np.searchsorted(keys[order], wanted)]


def _goals(setting: str, results: dict[str, dict[str, Any]], rows: int) -> list[Goal]:
    ours = results[f"ours, {setting}"]
    rivals = [result for name, result in results.items() if name.endswith(setting) and not name.startswith("ours")]
    goals = [
        Goal(f"{setting}: CPU-microseconds per row", round(ours["cpu_s"] / rows * 1e6, 2), round(1e6 / 70_000, 2)),
        Goal(f"{setting}: leak at the threshold", ours["leak"], 0.01),
        Goal(f"{setting}: pairs leaked at threshold + 0.1", ours["leak_above"], 0),
        Goal(f"{setting}: rows wrongly removed", ours["wrong"], 0),
    ]
    if rivals:
        best = max(result["rows_per_cpu_s"] for result in rivals)
        rensa = [result["peak_mb"] for name, result in results.items() if name.endswith(setting) and "rensa" in name]
        goals.append(
            Goal(f"{setting}: CPU over the best peer's", round(best / ours["rows_per_cpu_s"], 3), round(1 / 3, 3))
        )
        goals.append(Goal(f"{setting}: peak memory over rensa's", round(ours["peak_mb"] / min(rensa), 3), 1.0))
    return goals


def _at_scale(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, dict[str, Any]], list[Goal]]:
    setting = ("char", 5, 0.8)
    _print_curve(*setting)
    results = {}
    for rows, templates in ((FLAT_ROWS, 0.0), (asked.rows, 0.0), (asked.rows, 0.3)):
        corpus = _corpus(asked, scratch, rows, templates)
        cost, _, _ = _run(asked, "ours", corpus, setting, scratch)
        results[f"ours, {rows:,} rows, {templates:.0%} boilerplate"] = {
            "rows_per_cpu_s": rows / cost["cpu_s"],
            "cpu_us_per_row": cost["cpu_s"] / rows * 1e6,
            "cpu_s": cost["cpu_s"],
            "seconds": cost["seconds"],
            "peak_mb": cost["peak_mb"],
            **cost["counts"],
        }
    small, plain, _ = results.values()
    return results, [
        Goal("seconds without boilerplate", round(plain["seconds"], 1), 480.0),
        Goal("peak MB without boilerplate", round(plain["peak_mb"]), 10_000),
        Goal("CPU per row over that at a million", round(plain["cpu_us_per_row"] / small["cpu_us_per_row"], 3), 1.1),
    ]


if __name__ == "__main__":
    main()
