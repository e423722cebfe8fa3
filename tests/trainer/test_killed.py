"""kill -9 of a worker and of a rank: recovery or a clear error, and never a hang or an orphan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dataengine.errors import TryAgainError
from dataengine.trainer import DataLoader, ShardDataset
from tests.trainer.publishing import publish, read_rows

RANK = """
import json, sys, time
from dataengine.trainer import DataLoader, ShardDataset

folder, rank, world_size, out, state = sys.argv[1:]
loader = DataLoader(ShardDataset(folder, parts=("txt",)), global_batch_size=8, num_workers=2,
                    rank=int(rank), world_size=int(world_size), multiprocessing_context="fork")
if state != "none":
    loader.load_state_dict(json.loads(open(state).read()))
for batch in loader:
    with open(out, "a") as file:
        file.write(json.dumps([loader.step, [worker.process.pid for worker in loader._pool._workers],
                               batch["__key__"], batch["__epoch__"].tolist(), loader.state_dict()]) + "\\n")
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("many") / "datasets/pairs", {"alpha": (120, 80)})


def keys(batches: list[dict[str, Any]]) -> list[list[str]]:
    return [batch["__key__"] for batch in batches]


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_killed_worker_is_started_again_and_nothing_is_lost(many: Path, method: str) -> None:
    dataset = ShardDataset(many, parts=("txt",))
    wanted = keys(list(DataLoader(dataset, global_batch_size=8)))
    loader = DataLoader(dataset, global_batch_size=8, num_workers=2, multiprocessing_context=method, timeout_seconds=60)
    got = []
    for number, batch in enumerate(loader):
        got.append(batch["__key__"])
        if number % 5 == 2:
            os.kill(loader._pool._workers[number % 2].process.pid, signal.SIGKILL)  # type: ignore[union-attr]
    assert got == wanted


def test_a_worker_that_always_dies_is_an_error(many: Path) -> None:
    dataset = ShardDataset(many, parts=("txt",), transform=lambda sample: os.kill(os.getpid(), signal.SIGKILL))
    loader = DataLoader(dataset, global_batch_size=8, num_workers=1, max_restarts=2, timeout_seconds=60)
    with pytest.raises(TryAgainError, match=r"died by SIGKILL while making batch 0, after 2 restarts; it reads shards"):
        list(loader)


def test_a_killed_rank_leaves_no_worker_and_the_rest_is_read_once(many: Path, tmp_path: Path) -> None:
    """Two ranks; one is killed. The other ends by itself, and a single rank goes on from where both had been."""

    def start(rank: int, world_size: int, state: str) -> tuple[subprocess.Popen[bytes], Path]:
        out = tmp_path / f"{rank}-of-{world_size}"
        command = [sys.executable, "-c", RANK, str(many), str(rank), str(world_size), str(out), state]
        return subprocess.Popen(command), out

    ranks = [start(rank, 2, "none") for rank in (0, 1)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(len(lines(out)) >= 5 for _, out in ranks):
        time.sleep(0.02)
    ranks[0][0].send_signal(signal.SIGKILL)
    assert ranks[0][0].wait(10) == -signal.SIGKILL
    workers = lines(ranks[0][1])[-1][1]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(is_running, workers)):
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    assert ranks[1][0].wait(60) == 0
    together = min(len(lines(out)) for _, out in ranks)
    state = tmp_path / "state.json"
    state.write_text(json.dumps(lines(ranks[1][1])[together - 1][4]))
    alone, rest = start(0, 1, str(state))
    assert alone.wait(60) == 0
    drawn = [key for _, out in ranks for line in lines(out)[:together] for key in line[2]]
    drawn += [key for line in lines(rest) for key, epoch in zip(line[2], line[3], strict=True) if epoch == 0]
    assert sorted(drawn) == sorted(row["key"] for row in read_rows(many))


def lines(path: Path) -> list[Any]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("]")]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
