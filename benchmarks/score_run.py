"""Runs for `benchmarks.score`: pictures in, a run whose downloads are done out, and its parts to score.

Pictures lie in two tars of one source and are read in place, or were fetched and stored by the download stage as it
stores them: JPEG, 512 pixels on the short side, quality 95, raw tars in key order.
"""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dataengine.config.download import ImageConfig, LimitsConfig
from dataengine.config.load import parse_config
from dataengine.download.image import store_image
from dataengine.engine.board import Board, Job
from dataengine.job import run_job

if TYPE_CHECKING:
    from benchmarks.score_contenders import Task
    from dataengine.config.run import RunConfig


def store_pictures(files: Sequence[Path], folder: Path) -> list[Path]:
    """The same pictures as the download stage would store them, as files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = []
    for file in files:
        path = folder / f"{file.stem}.jpg"
        if not path.exists():
            image = ImageConfig(resize="keep_ratio", size=512, format="jpg", quality=95)
            path.write_bytes(store_image(file.read_bytes(), image, LimitsConfig()).content)
        stored.append(path)
    return stored


def prepare_run(root: Path, files: Sequence[Path], num_warm: int, task: Task) -> None:
    """A run in `root` up to download; its first tar holds `num_warm` pictures, its second all of them."""
    root.mkdir(parents=True)
    for name, members in (("a-warm", files[:num_warm]), ("b-all", files)):
        with tarfile.open(root / f"{name}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, file in enumerate(members):
                _add(tar, f"{number:06d}{file.suffix}", file.read_bytes())
                _add(tar, f"{number:06d}.json", b"{}")
    run_job(run_config(root, task), until="download", console=Console(quiet=True))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def run_config(root: Path, task: Task) -> RunConfig:
    """The config of the run in `root`, with the scorer that the task asks for."""
    scorer: dict[str, Any] = {"model": task.model, "pretrained": task.weights, "precision": task.precision}
    config = {
        "name": "benchmark",
        "root": str(root),
        "sources": {"tars": {"kind": "webdataset", "paths": ["{root}/*.tar"]}},
        "download": {"limits": {"max_body_bytes": 100_000_000}},
        "score": {"scorers": {"clip": scorer | {"batch_size": task.batch_size}}},
        "execution": {"runner": "serial"},
    }
    import yaml

    return parse_config(yaml.safe_dump(config))


def score_jobs(board: Board) -> list[Job]:
    """The jobs of the run's score step, in part order, as attempts of which nothing is known yet."""
    state = board.states["score/clip.tars"]
    assert state.plan is not None
    jobs = []
    for part in state.plan.parts:
        inputs = board.inputs(state.step, part)
        assert inputs is not None, "the run is not downloaded"
        # In a folder of this attempt's own, for a commit that is there already would be taken in its place.
        directory = replace(state.directory, path=f"{state.directory.path}-{uuid.uuid4().hex[:8]}")
        jobs.append(Job(state.step, part, directory, inputs))
    return jobs
