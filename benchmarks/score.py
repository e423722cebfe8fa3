"""Scoring beside the bare tower and the usual way (Pillow in a DataLoader, as clip-retrieval does), in one run.

python -m benchmarks.score                       # 256 pictures, 2,000 captions, three rounds: ten minutes on 2 cores
python -m benchmarks.score --rows 32             # within two minutes

Weights are random: speed does not depend on them. Every contender runs in a process of its own, and only what follows
its start is measured. Contenders take turns, and the table holds the median of the rounds; ratios are of CPU-seconds,
which neighbours on the same machine disturb least. Where torch sees a GPU, the towers run there too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.download_corpus import VERSION, build_corpus
from benchmarks.reporting import Goal, report
from benchmarks.score_contenders import Task
from benchmarks.score_run import prepare_run, store_pictures

BARE, OURS, MEASURES = "bare tower", "ours, stored", "ours, stored, measures"
OURS_ORIGINALS, USUAL_ORIGINALS, USUAL = "ours, originals", "usual, originals", "usual, stored"
TEXT_USUAL, TEXT_OURS = "open_clip texts", "our texts"
GPU_MODELS = ("ViT-B-32", "ViT-L-14")
Rows = dict[str, dict[str, Any]]


def weights_of(model: str, folder: Path) -> Path:
    """Random weights of an architecture, the same every time."""
    path = folder / f"{model}-random.safetensors"
    if not path.exists():
        import open_clip
        import torch
        from safetensors.torch import save_file

        torch.manual_seed(0)
        tensors = open_clip.create_model(model).state_dict()
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


def run(task: Task) -> dict[str, float]:
    """What a contender's process says. Raises RuntimeError with its last words."""
    command = [sys.executable, "-m", "benchmarks.score_contenders", json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task.what}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(tasks: dict[str, Task], num_rounds: int) -> Rows:
    """The table: contenders in turn, `num_rounds` times; medians."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in tasks}
    for number in range(num_rounds):
        for name, task in tasks.items():
            print(f"round {number + 1}: {name} ...", file=sys.stderr, flush=True)
            found[name].append(run(task))
    return {name: _row(rounds) for name, rounds in found.items()}


def _row(rounds: list[dict[str, float]]) -> dict[str, Any]:
    items = rounds[0]["items"]
    row: dict[str, Any] = {
        "items": int(items),
        "items/s": items / statistics.median(item["wall_seconds"] for item in rounds),
        "CPU-ms each": statistics.median(item["cpu_seconds"] for item in rounds) / items * 1e3,
    }
    if "idle_share" in rounds[0]:
        middle = sorted(rounds, key=lambda item: item["cpu_seconds"])[len(rounds) // 2]
        row["idle"] = middle["idle_share"]
        row |= {cause: middle[f"{cause}_seconds"] / items * 1e3 for cause in ("read", "decode", "transfer")}
    return row


def image_tasks(task: Task, originals: list[Path], stored: list[Path], scratch: Path) -> dict[str, Task]:
    """Contenders on images; runs are prepared in `scratch`."""
    roots = {}
    for name, files in (("stored", stored), ("originals", originals)):
        roots[name] = scratch / f"{task.model}-{name}"
        prepare_run(roots[name], files, task.batch_size, task)
    ours = replace(task, what="ours", source=str(roots["stored"]))
    usual = replace(task, what="usual")
    return {
        BARE: replace(task, what="bare"),
        OURS: ours,
        MEASURES: replace(ours, measures=True),
        USUAL: replace(usual, source=str(stored[0].parent)),
        OURS_ORIGINALS: replace(ours, source=str(roots["originals"])),
        USUAL_ORIGINALS: replace(usual, source=str(originals[0].parent)),
        f"{USUAL_ORIGINALS}, 2 workers": replace(usual, source=str(originals[0].parent), num_workers=2),
    }


def text_tasks(task: Task, captions: list[str], scratch: Path) -> dict[str, Task]:
    """Contenders on captions. open_clip's rate does not depend on their number, so it reads an eighth of them."""
    path = scratch / "captions.json"
    path.write_text(json.dumps(captions))
    num_usual = max(task.batch_size, len(captions) // 8)
    usual = replace(task, what="text_usual", source=str(path), items=num_usual, output=str(scratch / "usual.npy"))
    ours = replace(task, what="text_ours", source=str(path), items=len(captions), output=str(scratch / "ours.npy"))
    return {TEXT_USUAL: usual, TEXT_OURS: ours}


def draw_captions(number: int, seed: int) -> list[str]:
    """Captions as long as alt-texts are: about 9 words in the middle, a tenth more than 20, some of them repeated."""
    rng = random.Random(seed)
    words = [
        "".join(rng.choice("bcdfglmnprstv") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
        + rng.choice("snrt")
        for _ in range(3000)
    ]
    captions = [" ".join(rng.choices(words, k=max(1, round(rng.lognormvariate(1.8, 0.6))))) for _ in range(number)]
    return [rng.choice(captions) if rng.random() < 0.05 else caption for caption in captions]


def read_captions(path: Path | None, number: int, seed: int) -> list[str]:
    """Captions of the column TEXT of a Parquet table, or drawn ones."""
    if path is None:
        return draw_captions(number, seed)
    import pyarrow.parquet as pq

    column = pq.read_table(path, columns=["TEXT"]).column("TEXT").drop_null().to_pylist()
    return [text for text in column if text.strip()][:number]


def goals_of(rows: Rows, difference: float) -> list[Goal]:
    """What was asked for on CPUs."""
    cost = {name: row["CPU-ms each"] for name, row in rows.items()}
    usual = min(value for name, value in cost.items() if name.startswith(USUAL_ORIGINALS))
    return [
        Goal("CPU over the bare tower's, stored pictures", cost[OURS] / cost[BARE], 1.05),
        Goal("the same with perceptual hash, blur and entropy", cost[MEASURES] / cost[BARE], 1.08),
        Goal("CPU over the usual way's on originals, stored pictures (1 / 1.12)", cost[OURS] / usual, 1 / 1.12),
        Goal("the same, ours on originals too (1 / 1.12)", cost[OURS_ORIGINALS] / usual, 1 / 1.12),
        Goal("CPU over open_clip's, captions (1 / 2.5)", cost[TEXT_OURS] / cost[TEXT_USUAL], 1 / 2.5),
        Goal("largest difference of a text embedding from open_clip's", difference, 1e-5),
    ]


def text_difference(tasks: dict[str, Task]) -> float:
    """The largest difference of a coordinate, over the captions that both have read."""
    usual, ours = (np.load(tasks[name].output) for name in (TEXT_USUAL, TEXT_OURS))
    return float(np.abs(usual - ours[: len(usual)]).max())


def gpu_part(
    arguments: argparse.Namespace, files: tuple[list[Path], list[Path]], scratch: Path
) -> tuple[Rows, list[Goal]]:
    """The same on a GPU in bfloat16; the goal holds where at least 12 cores feed it."""
    rows, goals = {}, []
    for model in GPU_MODELS:
        weights, threads = str(weights_of(model, arguments.cache)), os.cpu_count() or 1
        task = Task("", model, weights, "cuda", "bfloat16", arguments.gpu_batch, threads, 64 * arguments.gpu_batch)
        repeated = tuple(part * -(-task.items // len(part)) for part in files)
        tasks = image_tasks(task, repeated[0][: task.items], repeated[1][: task.items], scratch)
        found = compare({name: tasks[name] for name in (BARE, OURS, MEASURES)}, arguments.rounds)
        rows |= {f"{model} GPU, {name}": row for name, row in found.items()}
        if threads >= 12:
            share = found[BARE]["items/s"] / found[OURS]["items/s"]
            goals.append(Goal(f"bare tower's rate over ours, {model} on a GPU (1 / 0.9)", share, 1 / 0.9))
    return rows, goals


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dataengine" / "benchmark"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="pictures; a batch or more, fewer than 128 tell little")
    parser.add_argument("--rounds", type=int, help="default: 3, and 1 for fewer than 128 rows")
    parser.add_argument("--photos", type=Path, help="folder of photos to cut pictures from (default: drawn ones)")
    parser.add_argument("--captions", type=Path, help="Parquet table with a column TEXT (default: drawn captions)")
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip architecture")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch on the CPU")
    parser.add_argument("--gpu-batch", type=int, default=256, help="images in a batch on a GPU")
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cores, help="CPU threads of every contender (default: cores)")
    parser.add_argument("--seed", type=int, default=1, help="of pictures and captions")
    parser.add_argument("--cache", type=Path, default=cache, help="where pictures and weights are kept")
    arguments = parser.parse_args()
    if arguments.rows < arguments.batch:
        parser.error(f"--rows: wanted {arguments.batch} or more, a batch")
    arguments.rounds = arguments.rounds or (3 if arguments.rows >= 128 else 1)
    return arguments


def main() -> None:
    """Measure and report."""
    arguments = parse_arguments()
    origin = "drawn" if arguments.photos is None else "photos"
    folder = arguments.cache / f"web-v{VERSION}-seed{arguments.seed}-{origin}"
    threads = os.cpu_count() or 1
    pictures = build_corpus(folder, arguments.rows, arguments.seed, arguments.photos, threads)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        originals = [_copy(folder / picture.name, scratch / "originals") for picture in pictures]
        stored = store_pictures(originals, scratch / "stored")
        weights = str(weights_of(arguments.model, arguments.cache))
        task = Task("", arguments.model, weights, "cpu", "float32", arguments.batch, arguments.threads, len(pictures))
        captions = read_captions(arguments.captions, 8 * arguments.rows, arguments.seed)
        texts = text_tasks(task, captions, scratch)
        rows = compare(image_tasks(task, originals, stored, scratch) | texts, arguments.rounds)
        goals = goals_of(rows, text_difference(texts))
        import torch

        if torch.cuda.is_available():
            gpu_rows, gpu_goals = gpu_part(arguments, (originals, stored), scratch)
            rows, goals = rows | gpu_rows, goals + gpu_goals
    report("score", rows, goals)


def _copy(path: Path, folder: Path) -> Path:
    """A file in a folder of just these, since the corpus may hold more."""
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(path, folder / path.name))


if __name__ == "__main__":
    main()
