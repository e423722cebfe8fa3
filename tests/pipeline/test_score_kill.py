"""SIGKILL of a score worker in mid-part: what was committed stays, the rest is scored once, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dataengine.storage.rundir import Commit
from tests.pipeline.test_kill import MARK, kill_all
from tests.pipeline.test_score import png, write_tar

NUM_TARS, NUM_EACH = 6, 300


def write_run(folder: Path) -> Path:
    """Enough pictures that a part takes a second or so, and a config."""
    (folder / "tars").mkdir()
    rng = np.random.default_rng(0)
    noise = [png(Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))) for _ in range(NUM_EACH)]
    for number in range(NUM_TARS):
        write_tar(folder / "tars" / f"t{number}.tar", [(content, {"caption": "noise"}) for content in noise])
    config = {
        "name": "killed",
        "root": str(folder / "root"),
        "sources": {"tars": {"kind": "webdataset", "paths": [f"{folder}/tars/*.tar"], "caption_field": "caption"}},
        "score": {"scorers": {"tiny": {"model": "tiny-clip", "pretrained": "builtin"}}},
        "execution": {"runner": "ray", "score": {"max_workers": 1}},
    }
    config["sources"]["tars"]["url_field"] = None  # type: ignore[index]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def commits(folder: Path) -> dict[str, tuple[bytes, Commit]]:
    """Every commit of the score stage, by file name."""
    files = (folder / "root" / "runs" / "killed" / "score").rglob("commits/*.json")
    return {file.name: (file.read_bytes(), Commit.from_json(file.read_bytes(), file.name)) for file in files}


def score_workers(mark: str) -> list[int]:
    """Process ids of the run's score actors while they run a part."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_ours = entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
            if is_ours and b"ray::_Worker.run" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc of Linux")
def test_killed_score_worker_loses_nothing_and_scores_nothing_twice(tmp_path: Path) -> None:
    config, mark = write_run(tmp_path), f"score-{os.getpid()}"
    command = [sys.executable, "-m", "dataengine", "run", str(config), "--until", "score"]
    process = subprocess.Popen(
        command, env=os.environ | {MARK: mark}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 150
        while not (0 < len(commits(tmp_path)) < NUM_TARS) or not (workers := score_workers(mark)):
            assert process.poll() is None, process.communicate()[0].decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = commits(tmp_path)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        output, _ = process.communicate(timeout=150)
        assert process.returncode == 0, output.decode()
    finally:
        kill_all(mark)
    after = commits(tmp_path)
    assert len(before) < NUM_TARS
    assert {name: content for name, (content, _) in after.items() if name in before} == {
        name: content for name, (content, _) in before.items()
    }
    assert sorted(after) == [f"part-{number:06d}.json" for number in range(NUM_TARS)]
    counts = Counter[str]()
    for _, commit in after.values():
        assert commit.rows_in == commit.rows_out == NUM_EACH
        counts.update(commit.counts)
    assert counts == {"ok": NUM_TARS * NUM_EACH}
