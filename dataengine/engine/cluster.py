"""Runs jobs on a Ray cluster: a task per part, and actors for stages whose workers keep a model.

Ray retries nothing for us. A part whose worker or machine died is submitted again, a bounded number of times; what made
it exist is its commit, so a half-dead attempt does no harm.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.experimental import internal_kv

from dataengine.contract import Machine
from dataengine.engine.board import Job
from dataengine.engine.worker import Outcome, Report, run_job, unwatched
from dataengine.errors import ConfigError, TryAgainError

# Jobs queued at Ray beyond those that run, so that a worker never waits for the driver.
_QUEUE_AHEAD = 1
_NOTES = b"dataengine"
_NOTE_SECONDS = 2.0


def connect(address: str | None) -> bool:
    """Join a cluster (the one named, or the job's own) or start a local one; whether it was joined."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        on_terminate = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None and "RAY_ADDRESS" not in os.environ:
            # Image bytes never travel through the object store, so it may be small.
            options |= {"include_dashboard": False, "object_store_memory": 200 * 2**20, "address": "local"}
        else:
            options |= {"address": address or os.environ["RAY_ADDRESS"]}
        ray.init(**options)
        if threading.current_thread() is threading.main_thread():
            # Ray puts handlers of its own in place, which abort the process instead of ending the run in order.
            signal.signal(signal.SIGTERM, on_terminate)
    return address is not None or "RAY_ADDRESS" in os.environ


@dataclass
class _Pool:
    """Actors of one stage that wait for a part; each does one at a time."""

    idle: list[Any] = field(default_factory=list)


class RayExecutor:
    """Submits jobs to Ray within each stage's number of workers."""

    def __init__(self, machines: dict[str, Machine], task_retries: int, report: Report = unwatched) -> None:
        self._machines = machines
        self._retries = task_retries
        self._report = report
        self._next_look = 0.0
        self._jobs: dict[Any, tuple[Job, int, Any]] = {}
        self._pools: dict[str, _Pool] = {}

    def has_room(self, stage: str) -> bool:
        """Whether a worker of `stage` is free, or will be before the driver looks again."""
        running = sum(1 for job, _, _ in self._jobs.values() if job.step.stage == stage)
        ahead = 0 if stage in self._pools else _QUEUE_AHEAD
        return running < self._machines[stage].num_workers + ahead

    def submit(self, job: Job) -> None:
        """Start a job."""
        self._start(job, attempts=1)

    def _start(self, job: Job, attempts: int) -> None:
        internal_kv._internal_kv_del(_place(job), namespace=_NOTES)  # what an earlier driver's attempt left
        machine = replace(self._machines[job.step.stage], report=_Note(_place(job)))
        if job.step.stateful:
            actor = self._take_actor(job.step.stage, machine)
            handle = actor.run.remote(job, machine)
        else:
            actor = None
            options = {"num_cpus": machine.num_cpus, "num_gpus": machine.num_gpus, "max_retries": 0}
            handle = _run_remote(options).remote(job, machine)
        self._jobs[handle] = (job, attempts, actor)

    def _take_actor(self, stage: str, machine: Machine) -> Any:
        pool = self._pools.setdefault(stage, _Pool())
        if pool.idle:
            return pool.idle.pop()
        return ray.remote(_Worker).options(num_cpus=machine.num_cpus, num_gpus=machine.num_gpus).remote()

    def wait(self, seconds: float) -> Outcome | None:
        """The next outcome, or None when none came in time. Raises TryAgainError when a part's workers keep dying."""
        done, _ = ray.wait(list(self._jobs), num_returns=1, timeout=seconds)
        self._read_notes()
        if not done:
            return None
        job, attempts, actor = self._jobs.pop(done[0])
        try:
            outcome: Outcome = ray.get(done[0])
        except RayTaskError:
            raise  # run_job catches everything, so this is a fault of the engine itself
        except RayError as error:
            self._retry(job, attempts, error)
            return None
        if actor is not None:
            self._pools[job.step.stage].idle.append(actor)
        return outcome

    def _read_notes(self) -> None:
        if time.monotonic() < self._next_look:
            return
        for job, _, _ in self._jobs.values():
            note = internal_kv._internal_kv_get(_place(job), namespace=_NOTES)
            if note is not None:
                self._report(job, json.loads(note))
        self._next_look = time.monotonic() + _NOTE_SECONDS

    def _retry(self, job: Job, attempts: int, error: RayError) -> None:
        if attempts > self._retries:
            raise TryAgainError(
                f"{job.step.name} {job.part.name}: its worker died {attempts} times, last with "
                f"{type(error).__name__}: {error}. Run the same command again; if it dies again, give the stage's "
                f"workers more memory or look into the cluster's logs."
            ) from error
        self._start(job, attempts + 1)

    def retire(self, stage: str) -> None:
        """Free what the stage's idle actors hold."""
        for actor in self._pools.pop(stage, _Pool()).idle:
            ray.kill(actor)

    def close(self) -> None:
        """Stop what runs and let go of the actors; Ray itself stays, for it may belong to others."""
        for handle, (_, _, actor) in self._jobs.items():
            if actor is None:
                ray.cancel(handle, force=True)
            else:
                ray.kill(actor)
        for pool in self._pools.values():
            for actor in pool.idle:
                ray.kill(actor)
        self._jobs.clear()
        self._pools.clear()


@dataclass(frozen=True)
class _Note:
    """Leaves what a part reports where the driver looks: in the key-value store that every Ray cluster has.

    An actor to collect reports would cost a process of 100 MB.
    """

    place: bytes

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        internal_kv._internal_kv_put(self.place, json.dumps(metrics).encode(), overwrite=True, namespace=_NOTES)


def _place(job: Job) -> bytes:
    return f"{job.directory.path} {job.part.name}".encode()


class _Worker:
    """An actor that runs jobs of a stateful stage; the stage caches its model in the process."""

    def run(self, job: Job, machine: Machine) -> Outcome:
        return run_job(job, machine)


def _run_remote(options: dict[str, Any]) -> Any:
    return ray.remote(run_job).options(**options)


@dataclass(frozen=True)
class Wanted:
    """What one worker of a stage holds, and how many there may be."""

    num_cpus: float
    num_gpus: float
    min_workers: int = 1
    max_workers: int | None = None


def await_resources(wanted: Mapping[str, Wanted], *, joined: bool, wait_seconds: float) -> dict[str, float]:
    """The cluster's resources once each stage's least number of workers fits; machines of a joined cluster may still be
    arriving.

    Raises ConfigError when a stage asks for more than the cluster has.
    """
    deadline = time.monotonic() + (wait_seconds if joined else 0)
    while True:
        resources = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
        short = [text for stage, item in wanted.items() for text in _short(stage, item, resources)]
        if not short:
            return resources
        if time.monotonic() >= deadline:
            raise ConfigError(f"{'; '.join(short)}. Ask for less, or add machines to the cluster.")
        time.sleep(2.0)


def _short(stage: str, wanted: Wanted, resources: Mapping[str, float]) -> Iterator[str]:
    """What a stage lacks, by key of the config."""
    for name, kind, each in (("num_cpus", "CPU", wanted.num_cpus), ("num_gpus", "GPU", wanted.num_gpus)):
        there = resources.get(kind, 0.0)
        if each > there:
            yield f"execution.{stage}.{name}: {each:g} wanted, the cluster has {there:g}"
        elif each * wanted.min_workers > there:
            yield (
                f"execution.{stage}.min_workers: {wanted.min_workers} of {each:g} {kind} wanted, "
                f"the cluster has {there:g}"
            )


def worker_counts(
    resources: Mapping[str, float], wanted: Mapping[str, Wanted], stateful: Callable[[str], bool]
) -> dict[str, int]:
    """Workers of each stage that the cluster can hold.

    A stateful stage keeps its workers while others run, so on CPUs it takes at most half of them, unless it is asked to
    have more.
    """
    counts = {}
    for stage, item in wanted.items():
        fits = resources.get("CPU", 1.0) / item.num_cpus
        if item.num_gpus:
            fits = min(fits, resources.get("GPU", 0.0) / item.num_gpus)
        elif stateful(stage):
            fits /= 2
        # A millionth more: eight workers of 0.1 GPU are not to become seven of 0.7999.
        most = int(fits + 1e-6)
        counts[stage] = max(item.min_workers, min(most, item.max_workers or most or 1))
    return counts
