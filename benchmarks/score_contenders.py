"""One contender of `benchmarks.score` per process: what it does on how many items, and what that cost.

`python -m benchmarks.score_contenders '{"what": ..., ...}'` prints a JSON object with `items`, `wall_seconds` and
`cpu_seconds` (this process and its children) of the measured part; models are loaded and warmed up before. Texts also
leave their embeddings in a file, so that they can be compared.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 2
"""Batches before the clock starts."""


@dataclass(frozen=True)
class Task:
    """What to measure; plain JSON on the command line."""

    what: str
    """bare, usual, ours, text_usual or text_ours."""
    model: str
    weights: str
    device: str
    precision: str
    batch_size: int
    num_threads: int
    items: int
    source: str = ""
    """A folder of pictures, a run root, or a JSON list of texts."""
    measures: bool = False
    num_workers: int = 0
    output: str = ""


@contextlib.contextmanager
def measured(found: dict[str, float]) -> Iterator[None]:
    """Adds the block's seconds to `found`."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield
    found["wall_seconds"] = time.perf_counter() - wall
    found["cpu_seconds"] = _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _model(task: Task) -> tuple[Any, Any]:
    import open_clip
    import torch

    torch.set_num_threads(task.num_threads)
    model, transform = open_clip.create_model_from_pretrained(task.model, pretrained=task.weights, device=task.device)
    return model.eval(), transform


@contextlib.contextmanager
def _inference(task: Task) -> Iterator[None]:
    import torch

    is_low = task.precision == "bfloat16"
    with torch.inference_mode(), torch.autocast(task.device, torch.bfloat16, enabled=is_low):
        yield
        if task.device == "cuda":
            torch.cuda.synchronize()


def bare(task: Task) -> dict[str, float]:
    """The image tower on random input that lies in its layout already."""
    import torch

    model, _ = _model(task)
    size = model.visual.preprocess_cfg["size"]
    side = size if isinstance(size, int) else size[0]
    batch = torch.randn(task.batch_size, 3, side, side, device=task.device)
    num_batches = -(-task.items // task.batch_size)
    with _inference(task):
        for _ in range(WARM_UP):
            model.encode_image(batch)
    found: dict[str, float] = {"items": num_batches * task.batch_size}
    with measured(found), _inference(task):
        for _ in range(num_batches):
            model.encode_image(batch)
    return found


class _Pictures:
    """A dataset of files, as clip-retrieval reads a folder."""

    def __init__(self, files: list[Path], transform: Callable[[Any], Any]) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Any:
        from PIL import Image

        return self._transform(Image.open(self._files[number]))


def usual(task: Task) -> dict[str, float]:
    """open_clip's transform by Pillow in a DataLoader, then the tower: the way of clip-retrieval."""
    import torch

    model, transform = _model(task)
    files = sorted(Path(task.source).iterdir())[: task.items]
    workers = {"num_workers": task.num_workers, "prefetch_factor": 2 if task.num_workers else None}
    with _inference(task):
        for _ in range(WARM_UP):
            model.encode_image(torch.randn(task.batch_size, 3, 224, 224, device=task.device))
    found: dict[str, float] = {"items": len(files)}
    with measured(found):
        loader = torch.utils.data.DataLoader(_Pictures(files, transform), batch_size=task.batch_size, **workers)
        with _inference(task):
            for batch in loader:
                features = model.encode_image(batch.to(task.device))
                features /= features.norm(dim=-1, keepdim=True)
                features.cpu()
        del loader
    return found


def ours(task: Task) -> dict[str, float]:
    """The score stage on the second part of a run whose pictures are downloaded; the first part warms it up."""
    from benchmarks.score_run import run_config, score_jobs
    from dataengine.contract import Machine
    from dataengine.engine.worker import run_job
    from dataengine.job import survey_job
    from dataengine.pipeline import build_pipeline  # noqa: F401 - what a worker has imported

    board = survey_job(run_config(Path(task.source), task))
    warm, *jobs = score_jobs(board)
    machine = Machine(task.num_threads, int(task.device == "cuda"), 1, {}, lambda: datetime.now(UTC))
    jobs = [replace(job, step=replace(job.step, measures=task.measures)) for job in (warm, *jobs)]
    _done(run_job(jobs[0], machine))
    found: dict[str, float] = {"items": 0}
    with measured(found):
        outcomes = [run_job(job, machine) for job in jobs[1:]]
    for outcome in outcomes:
        commit = _done(outcome)
        found["items"] += commit.counts["ok"]
        for name in ("idle_share", "read_seconds", "decode_seconds", "transfer_seconds", "tower_seconds"):
            found[name] = commit.metrics[name]
    return found


def _done(outcome: Any) -> Any:
    if outcome.error is not None:
        raise outcome.error
    return outcome.commit


def text_usual(task: Task) -> dict[str, float]:
    """open_clip's tokenizer and text tower, padded to its context."""
    import open_clip

    model, _ = _model(task)
    texts = json.loads(Path(task.source).read_text())[: task.items]
    tokenizer = open_clip.get_tokenizer(task.model)
    batches = [texts[start : start + task.batch_size] for start in range(0, len(texts), task.batch_size)]
    with _inference(task):
        model.encode_text(tokenizer(batches[0]).to(task.device))
    found: dict[str, float] = {"items": len(texts)}
    with measured(found), _inference(task):
        rows = [model.encode_text(tokenizer(batch).to(task.device), normalize=True).float().cpu() for batch in batches]
    np.save(task.output, np.concatenate([part.numpy() for part in rows]))
    return found


def text_ours(task: Task) -> dict[str, float]:
    """Our text tower on the same texts, as one part."""
    from dataengine.config.score import ScorerConfig
    from dataengine.score.clip import Scorer

    config = ScorerConfig.model_validate(
        {
            "model": task.model,
            "pretrained": task.weights,
            "precision": task.precision,
            "batch_size": task.batch_size,
        }
    )
    scorer = Scorer.load(config, task.device, task.num_threads)
    texts = json.loads(Path(task.source).read_text())[: task.items]
    scorer.encode_texts(texts[: task.batch_size])
    found: dict[str, float] = {"items": len(texts)}
    with measured(found):
        unique = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(unique)}
        rows = scorer.encode_texts(unique)[[place[text] for text in texts]]
    np.save(task.output, rows)
    return found


def main() -> None:
    """Measure what the command line says."""
    task = Task(**json.loads(sys.argv[1]))
    contenders = {"bare": bare, "usual": usual, "ours": ours, "text_usual": text_usual, "text_ours": text_ours}
    print(json.dumps(contenders[task.what](task)))


if __name__ == "__main__":
    main()
