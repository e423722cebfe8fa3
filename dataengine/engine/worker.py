"""One part on one worker: run the step, write its objects, then the commit that makes them exist."""

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dataengine.contract import Machine, Outputs
from dataengine.engine.board import Job, part_reads
from dataengine.errors import DataEngineError, PartError
from dataengine.storage.rundir import Commit

Report = Callable[[Job, Mapping[str, Any]], None]
"""Somebody who is told how far a job under way is, in the metrics of its stage."""


def unwatched(job: Job, metrics: Mapping[str, Any]) -> None:
    """The report of a run that nobody watches."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a commit, or the error that stopped it."""

    step: str
    part: str
    commit: Commit | None
    error: DataEngineError | None = None


def run_job(job: Job, machine: Machine) -> Outcome:
    """Do one part. Never raises: what goes wrong comes back as the outcome's error."""
    try:
        return Outcome(job.step.name, job.part.name, _run(job, machine))
    except DataEngineError as error:
        located = type(error)(f"{job.step.name} {job.part.name}: {error}")
        return Outcome(job.step.name, job.part.name, None, located)
    except Exception:  # noqa: BLE001 - the one place that turns a fault of the program into a message with its part
        error_ = PartError(f"{job.step.name} {job.part.name}: {traceback.format_exc()}")
        return Outcome(job.step.name, job.part.name, None, error_)


def _run(job: Job, machine: Machine) -> Commit:
    started = time.monotonic()
    outputs = Outputs(job.directory, job.part.name, uuid.uuid4().hex[:8])
    job.step.run(job.part, job.inputs, outputs, machine)
    commit = outputs.commit(part_reads(job.part, job.inputs), round(time.monotonic() - started, 3))
    return job.directory.store_commit(commit)
