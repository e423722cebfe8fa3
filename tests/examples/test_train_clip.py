"""Training with two processes, killed, goes on with one process over the very batches that were to come."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from dataengine.trainer import DataLoader, ShardDataset

pytest.importorskip("open_clip", reason="the example trains an open_clip model; install dataengine[engine]")

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "train_clip.py"
BATCH, STEPS, SAVE_EVERY = 16, 12, 3
PATIENCE_SECONDS = 200


def command(dataset: Path, out: Path) -> list[str]:
    options = {"out": out, "batch": BATCH, "steps": STEPS, "save-every": SAVE_EVERY}
    return [sys.executable, str(EXAMPLE), str(dataset), *(f"--{name}={value}" for name, value in options.items())]


def environment(**more: Any) -> dict[str, str]:
    path = os.pathsep.join([str(EXAMPLE.parent.parent), os.environ.get("PYTHONPATH", "")])
    return (
        os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in more.items()}
    )


def read_log(out: Path) -> list[dict[str, Any]]:
    path = out / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train_on_two_and_kill(dataset: Path, out: Path, after_step: int) -> None:
    """What `torchrun --nproc-per-node 2` would start; a kill -9 of both once `after_step` has been logged."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1], "WORLD_SIZE": 2}
    errors = [(out.parent / f"rank-{rank}.txt").open("w+") for rank in range(2)]
    ranks = [
        subprocess.Popen(
            command(dataset, out), env=environment(**address, RANK=rank, LOCAL_RANK=rank), stdout=errors[rank],
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while not any(line["step"] >= after_step for line in read_log(out)):
            assert time.monotonic() < deadline, "no step within time"
            for rank, process in enumerate(ranks):
                assert process.poll() is None, Path(errors[rank].name).read_text()
            time.sleep(0.02)
    finally:
        for rank, process in enumerate(ranks):
            process.kill()
            process.wait()
            errors[rank].close()


@pytest.mark.slow  # three processes that import torch and open_clip
def test_a_killed_training_goes_on_with_another_number_of_processes(quickstart_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "clip"
    train_on_two_and_kill(quickstart_dataset, out, after_step=SAVE_EVERY + 2)
    before = read_log(out)
    done = subprocess.run(
        command(quickstart_dataset, out), env=environment(), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 0, done.stderr
    after = read_log(out)[len(before) :]

    assert {line["processes"] for line in before} == {2}
    assert {line["processes"] for line in after} == {1}
    # It goes on behind the last checkpoint; what was logged after that is made again.
    assert after[0]["step"] % SAVE_EVERY == 1
    assert 1 < after[0]["step"] <= before[-1]["step"] + 1
    assert [line["step"] for line in after] == list(range(after[0]["step"], STEPS + 1))

    loader = DataLoader(ShardDataset(quickstart_dataset, parts=("txt",)), global_batch_size=BATCH)
    wanted = {}
    while loader.step < STEPS:
        for batch in loader:
            wanted[loader.step] = xxhash.xxh3_64_hexdigest(" ".join(batch["__key__"]).encode())
    assert len(set(wanted.values())) == len(wanted) >= STEPS
    assert all(line["batch"] == wanted[line["step"]] for line in before + after)
    assert all(np.isfinite(line["loss"]) for line in before + after)
