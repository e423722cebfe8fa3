"""Worker processes under bad treatment: the same batches, or an error in time; never a hang, an orphan or old bytes."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataengine.errors import ConfigError, TryAgainError
from dataengine.trainer import DataLoader, Mixture, ShardDataset, transport
from tests.trainer.publishing import publish
from tests.trainer.test_killed import is_running

BIG = 3_000_000  # characters that fill a wire, so that a worker stops in the middle of a message


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 samples of 2 sources; never written to."""
    return publish(tmp_path_factory.mktemp("many") / "datasets/pairs", {"alpha": (60, 60), "beta": (80,)})


def opened(folder: Path, **options: Any) -> ShardDataset:
    return ShardDataset(folder, **{"parts": ("txt",), "seed": 5, **options})


def keys(batches: Any) -> list[list[str]]:
    return [batch["__key__"] for batch in batches]


def workers_of(loader: DataLoader) -> list[int]:
    return [worker.process.pid for worker in loader._pool._workers]  # type: ignore[union-attr]


def large(sample: dict[str, Any]) -> dict[str, Any]:
    return {"__key__": sample["__key__"], "text": "x" * BIG}


@pytest.mark.parametrize("transform", [None, large])
def test_a_mixture_that_changes_at_every_step_does_not_pile_up_work(many: Path, transform: Any) -> None:
    """Every change forgets what was asked for: unread answers once filled the wires, both ways, after 138 steps."""

    def drawn(num_workers: int, steps: int) -> list[list[str]]:
        dataset = opened(many, mixture=Mixture({"alpha": 0.5, "beta": 0.5}), transform=transform)
        loader = DataLoader(dataset, global_batch_size=2, num_workers=num_workers, timeout_seconds=30)
        found = []
        while loader.step < steps:
            for batch in loader:
                found.append(batch["__key__"])
                loader.set_mixture({"alpha": 0.5 + loader.step * 1e-4, "beta": 0.5})
                if loader.step >= steps:
                    break
        return found

    steps = 400 if transform is None else 30
    assert drawn(2, steps) == drawn(0, steps)


@pytest.mark.parametrize("transform", [None, large])
def test_any_number_of_batches_may_be_ahead(many: Path, transform: Any) -> None:
    options = {"global_batch_size": 1, "num_workers": 1, "prefetch_batches": 1024, "timeout_seconds": 60}
    found = keys(islice(DataLoader(opened(many, transform=transform), **options), 20))  # type: ignore[arg-type]
    assert found == keys(islice(DataLoader(opened(many), global_batch_size=1), 20))


def test_a_worker_that_stops_in_the_middle_of_a_message_is_an_error_in_time(many: Path) -> None:
    loader = DataLoader(opened(many, transform=large), global_batch_size=1, num_workers=1, timeout_seconds=2)
    batches = iter(loader)
    next(batches)
    (worker,) = workers_of(loader)
    time.sleep(0.5)  # it fills the wire with the next batch
    os.kill(worker, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(TryAgainError, match="was not made within 2 s"):
        list(batches)
    assert time.monotonic() - begin < 10
    assert keys(islice(loader, 3)) == keys(islice(DataLoader(opened(many), global_batch_size=1), 1, 4))


def test_an_interrupt_in_the_middle_of_a_message_breaks_nothing(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = transport.Receiver.receive

    def interrupted(receiver: transport.Receiver) -> Any:
        receiver._connection.recv_bytes()
        raise KeyboardInterrupt

    loader = DataLoader(opened(many), global_batch_size=8, num_workers=2, persistent_workers=True)
    found = keys(islice(loader, 3))
    monkeypatch.setattr(transport.Receiver, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(loader)
    monkeypatch.setattr(transport.Receiver, "receive", whole)
    assert found + keys(loader) == keys(DataLoader(opened(many), global_batch_size=8))


class CannotBeSent:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("no pickle of this")


class CannotBeRead:
    def __reduce__(self) -> Any:
        return os.open, ("/nowhere/at/all", os.O_RDONLY)


@pytest.mark.parametrize(("kind", "said"), [(CannotBeSent, "cannot be sent"), (CannotBeRead, "cannot be read")])
def test_a_batch_that_does_not_travel_leaves_no_old_bytes(many: Path, kind: type, said: str) -> None:
    made = 0

    def collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
        nonlocal made
        made += 1
        seen = np.array([int(sample["__key__"][:6], 16) for sample in samples])
        batch = {"seen": seen, "array": np.repeat(seen, 40_000 if made == 3 else 10_000)}
        return {**batch, "wrong": kind()} if made == 3 else batch

    loader = DataLoader(opened(many), global_batch_size=8, num_workers=1, collate_fn=collated, persistent_workers=True)
    batches: list[dict[str, Any]] = []
    for _ in range(2):  # the third of each worker does not travel
        with pytest.raises(RuntimeError, match=said):
            batches.extend(loader)
    assert len(batches) == 4
    for batch in batches:
        assert np.array_equal(batch["array"], np.repeat(batch["seen"], 10_000))


class TwoArguments(Exception):
    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{key}: {why}")


class NoFile(Exception):
    def __reduce__(self) -> Any:
        return os.open, ("/nowhere/at/all", os.O_RDONLY)


@pytest.mark.parametrize("error", [TwoArguments("key", "is odd"), NoFile("is odd")])
def test_an_error_that_does_not_travel_is_told_all_the_same(many: Path, error: Exception) -> None:
    def fails(sample: dict[str, Any]) -> None:
        raise error

    loader = DataLoader(opened(many, transform=fails), global_batch_size=8, num_workers=1)
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}: .*is odd") as caught:
        list(loader)
    (note,) = caught.value.__notes__
    assert "In a worker process" in note
    assert "in fails" in note


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_is_no_exception_comes_as_it_was_raised(many: Path, error: type[BaseException]) -> None:
    def fails(sample: dict[str, Any]) -> None:
        raise error("from a transform")

    with pytest.raises(error, match="from a transform"):
        list(DataLoader(opened(many, transform=fails), global_batch_size=8, num_workers=1))


def test_a_cause_that_is_gone_is_forgiven(many: Path, tmp_path: Path) -> None:
    cause = tmp_path / "cause"
    cause.touch()

    def dies(sample: dict[str, Any]) -> dict[str, Any]:
        if cause.exists():
            os.kill(os.getpid(), signal.SIGRTMIN + 6)
        return sample

    loader = DataLoader(opened(many, transform=dies), global_batch_size=8, num_workers=1, max_restarts=1)
    with pytest.raises(TryAgainError, match=r"died by signal \d+ while making batch 0, after 1 restarts"):
        list(loader)
    cause.unlink()
    assert keys(loader) == keys(DataLoader(opened(many), global_batch_size=8))


HANDLES = """
import os, signal, sys
from pathlib import Path
from dataengine.trainer import DataLoader, ShardDataset

folder, marks = sys.argv[1], Path(sys.argv[2])
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: (marks / f"{number}-{os.getpid()}").touch())
loader = DataLoader(ShardDataset(folder, parts=("txt",)), global_batch_size=8, num_workers=2)
for epoch in range(2):
    for batch in loader:
        os.kill(loader._pool._workers[0].process.pid, signal.SIGUSR1)
assert not list(marks.iterdir()), list(marks.iterdir())
os.kill(os.getpid(), signal.SIGTERM)
assert len(list(marks.iterdir())) == 1
"""


def test_a_training_runs_signal_handlers_are_its_own(many: Path, tmp_path: Path) -> None:
    """Workers neither run them when they are ended, nor when a signal is sent to the group."""
    ended = subprocess.run(
        [sys.executable, "-c", HANDLES, str(many), str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")


BUSY = """
import sys, time
from dataengine.trainer import DataLoader, ShardDataset

dataset = ShardDataset(sys.argv[1], parts=("txt",), transform=lambda sample: time.sleep(200))
loader = DataLoader(dataset, global_batch_size=8, num_workers=2)
pool = loader._started()
pool.put(loader._schedule.step(loader._position.point)[0])
print(*(worker.process.pid for worker in pool._workers), flush=True)
time.sleep(200)
"""


def test_busy_workers_end_with_their_parent(many: Path) -> None:
    rank = subprocess.Popen([sys.executable, "-c", BUSY, str(many)], stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    workers = [int(pid) for pid in rank.stdout.readline().split()]
    time.sleep(0.5)
    assert len(workers) == 2
    assert all(map(is_running, workers))
    rank.kill()
    rank.wait(10)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(map(is_running, workers)):
        time.sleep(0.1)
    assert not any(map(is_running, workers))
    rank.stdout.close()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_does_not_travel_to_another_process_is_told(many: Path, method: str) -> None:
    dataset = opened(many, transform=lambda sample: sample)
    loader = DataLoader(dataset, global_batch_size=8, num_workers=1, multiprocessing_context=method)
    with pytest.raises(
        ConfigError, match=rf"does not travel to a process of {method} \(.*lambda.*\); define transform"
    ):
        next(iter(loader))


def test_a_daemon_may_have_no_worker_processes(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="daemonic processes are not allowed to have children; take workers='thread'"):
        next(iter(DataLoader(opened(many), global_batch_size=8, num_workers=1)))


NO_GUARD = """
import sys
from dataengine.trainer import DataLoader, ShardDataset

dataset = ShardDataset(sys.argv[1], parts=("txt",))
list(DataLoader(dataset, global_batch_size=2, num_workers=1, multiprocessing_context=sys.argv[2]))
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_script_that_workers_would_run_again_is_told_at_once(many: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(NO_GUARD)
    command = [sys.executable, str(script), str(many), method]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path.cwd())
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert "ConfigError: worker 0" in last
    assert f"a process of {method} could not start" in last
    assert "starting it again" not in ended.stderr


NO_ROOM = """
import resource, socket, sys
import numpy as np
from dataengine.errors import ConfigError
from dataengine.trainer import DataLoader, ShardDataset

def made(sample):
    return np.zeros(10_000)

socket.setdefaulttimeout(5)
dataset = ShardDataset(sys.argv[1], parts=("txt",), transform=made)
list(DataLoader(dataset, global_batch_size=2, num_workers=2, prefetch_batches=2))
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
try:
    list(DataLoader(dataset, global_batch_size=2, num_workers=1, prefetch_batches=80))
except ConfigError as error:
    print(error)
"""


def test_too_many_batches_for_the_limit_of_files_is_told(many: Path) -> None:
    """And a default time-out of sockets is none of the wires'."""
    ended = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(many)], capture_output=True, text=True, timeout=120, check=True
    )
    assert "raise the limit (ulimit -n), or lower num_workers or prefetch_batches" in ended.stdout


def test_workers_outlive_the_thread_that_made_them(many: Path) -> None:
    loader = DataLoader(opened(many), global_batch_size=8, num_workers=2, persistent_workers=True)
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.extend(keys(islice(loader, 3))))
    thread.start()
    thread.join()
    pids = workers_of(loader)
    found += keys(loader)
    assert workers_of(loader) == pids
    assert found == keys(DataLoader(opened(many), global_batch_size=8))


def test_what_the_user_froze_stays_frozen(many: Path) -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        list(DataLoader(opened(many), global_batch_size=50, num_workers=1))
        assert gc.get_freeze_count() == frozen
    finally:
        gc.unfreeze()


def test_a_copy_of_a_loader_starts_workers_of_its_own(many: Path) -> None:
    wanted = keys(DataLoader(opened(many), global_batch_size=8))
    for num_workers in (0, 2):
        loader = DataLoader(opened(many), global_batch_size=8, num_workers=num_workers)
        batches = iter(loader)
        found = keys(islice(batches, 3))
        for other in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
            assert keys(other) == wanted[3:]
            del other
        gc.collect()
        assert found + keys(batches) == wanted


def chance(sample: dict[str, Any]) -> tuple[str, float, float, float]:
    drawn = (float(torch.rand(1, dtype=torch.float64)), float(np.random.rand()), random.random())  # noqa: NPY002
    return (sample["__key__"], *drawn)


def drawn_by(folder: Path, num_workers: int, epochs: int = 2, **options: Any) -> list[dict[str, tuple[float, ...]]]:
    dataset = opened(folder, transform=chance)
    loader = DataLoader(dataset, global_batch_size=10, num_workers=num_workers, **options)
    found = []
    for _ in range(epochs):
        batches = list(loader)
        found.append({key: tuple(of) for names, *numbers in batches for key, *of in zip(names, *numbers, strict=True)})
    return found


def test_workers_draw_different_numbers_and_the_same_whoever_they_are(many: Path) -> None:
    """Forks of one process would draw alike from torch's and NumPy's global generators."""
    first, second = drawn_by(many, 2)
    for place in range(3):
        assert len({numbers[place] for epoch in (first, second) for numbers in epoch.values()}) == 400
    assert drawn_by(many, 1) == drawn_by(many, 3, persistent_workers=True) == [first, second]
    assert drawn_by(many, 2, 1, multiprocessing_context="forkserver") == [first]
