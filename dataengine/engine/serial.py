"""Runs jobs one after another in this process: the reference that every other executor must equal byte for byte."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from dataengine.contract import Machine
from dataengine.engine.board import Job
from dataengine.engine.worker import Outcome, Report, run_job, unwatched


class SerialExecutor:
    """Holds one job at a time, and runs it when asked for its outcome."""

    def __init__(self, machines: Mapping[str, Machine], report: Report = unwatched) -> None:
        self._machines = machines
        self._report = report
        self._queue: deque[Job] = deque()

    def has_room(self, stage: str) -> bool:
        """Whether a job may be submitted."""
        return not self._queue

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def wait(self, seconds: float) -> Outcome | None:
        """Run the queued job."""
        job = self._queue.popleft()
        return run_job(job, replace(self._machines[job.step.stage], report=partial(self._report, job)))

    def retire(self, stage: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""
