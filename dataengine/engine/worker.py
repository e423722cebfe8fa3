"""One part on one worker: run the step, write its objects, then the commit that makes them exist."""

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dataengine.contract import Machine, Outputs, Work
from dataengine.engine.board import Job, part_reads
from dataengine.errors import DataEngineError, PartError
from dataengine.storage.rundir import Commit

Report = Callable[[Job, Mapping[str, Any]], None]
"""Somebody who is told how far a job under way is, in the metrics of its stage."""


def unwatched(job: Job, metrics: Mapping[str, Any]) -> None:
    """The report of a run that nobody watches."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a commit, or the error that stopped it; and the outcomes of its partners."""

    step: str
    part: str
    commit: Commit | None
    error: DataEngineError | None = None
    partners: tuple[Outcome, ...] = ()


def run_job(job: Job, machine: Machine) -> Outcome:
    """Do one part and those of its partners. Never raises: what goes wrong comes back as the outcome's error."""
    try:
        first, *others = _run(job, machine)
        return replace(first, partners=tuple(others))
    except DataEngineError as error:
        located = type(error)(f"{job.step.name} {job.part.name}: {error}")
        return Outcome(job.step.name, job.part.name, None, located)
    except Exception:  # noqa: BLE001 - the one place that turns a fault of the program into a message with its part
        error_ = PartError(f"{job.step.name} {job.part.name}: {traceback.format_exc()}")
        return Outcome(job.step.name, job.part.name, None, error_)


def _run(job: Job, machine: Machine) -> list[Outcome]:
    started = time.monotonic()
    jobs = [job, *job.partners]
    works = [Work(one.step, one.part, one.inputs, _outputs(one)) for one in jobs]
    job.step.run_bundle(works, machine)
    seconds = round(time.monotonic() - started, 3)
    outcomes = []
    for one, work in zip(jobs, works, strict=True):
        commit = work.outputs.commit(part_reads(one.part, one.inputs), seconds)
        outcomes.append(Outcome(one.step.name, one.part.name, one.directory.store_commit(commit)))
    return outcomes


def _outputs(job: Job) -> Outputs:
    return Outputs(job.directory, job.part.name, uuid.uuid4().hex[:8])
