"""The driver: keeps workers busy with parts that may start, later stages first, until every step is complete.

It holds no truth. Killed at any moment and started again, it reads the commits and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from dataengine.engine.board import Board, Job
from dataengine.engine.worker import Outcome
from dataengine.errors import TryAgainError

_POLL_SECONDS = 1.0


class Executor(Protocol):
    """Somewhere jobs run."""

    def has_room(self, stage: str) -> bool:
        """Whether another job of `stage` may be submitted now."""

    def submit(self, job: Job) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> Outcome | None:
        """The next outcome, or None when none came in time."""

    def retire(self, stage: str) -> None:
        """Let go of the workers of a stage that has nothing left to do."""

    def close(self) -> None:
        """Let go of all workers."""


class Watcher(Protocol):
    """Someone who is told how the run goes."""

    def update(self, board: Board, running: Iterable[Job]) -> None:
        """Called whenever something changed, and at least about once a second."""


@dataclass
class Runner:
    """Drives a board to its end."""

    board: Board
    start_executor: Callable[[], Executor]
    """Called when the first job is there; never for a run that has nothing to do."""
    watcher: Watcher
    stall_seconds: float
    heard_at: Callable[[], float] = field(default=lambda: 0.0)
    """When a part under way last told of progress, by the monotonic clock: a polite part may take hours."""
    _ready: dict[str, dict[str, Job]] = field(default_factory=dict)
    """Jobs that may start, by step and part."""
    _bundles: dict[str, list[Job]] = field(default_factory=dict)
    """The same, by bundle."""
    _running: dict[tuple[str, str], Job] = field(default_factory=dict)

    def run(self) -> int:
        """Complete every step; the number of parts that were run. Raises the first error of any part."""
        executor: Executor | None = None
        num_run = 0
        last_commit = time.monotonic()
        try:
            while True:
                self._collect()
                if any(self._ready.values()) and executor is None:
                    executor = self.start_executor()
                    last_commit = time.monotonic()
                if executor is not None:
                    self._submit(executor)
                self.watcher.update(self.board, self._running.values())
                if not self._running:
                    if not self.board.finished:
                        self.board.require_progress()
                    return num_run
                assert executor is not None
                outcome = executor.wait(_POLL_SECONDS)
                if outcome is None:
                    self._watch(last_commit)
                    continue
                self._finish(outcome)
                self._retire(executor, outcome.step)
                num_run += 1 + len(outcome.partners)
                last_commit = time.monotonic()
        finally:
            if executor is not None:
                executor.close()

    def _collect(self) -> None:
        for job in self.board.advance():
            self._ready.setdefault(job.step.name, {})[job.part.name] = job
            if job.bundle is not None:
                self._bundles.setdefault(job.bundle, []).append(job)

    def _submit(self, executor: Executor) -> None:
        # Later steps first: a downloaded part is scored before another one is downloaded, so little lies about.
        for name in reversed(list(self.board.states)):
            jobs = self._ready.get(name)
            while jobs and executor.has_room(self.board.states[name].step.stage):
                executor.submit(self._take(next(iter(jobs.values()))))
            if not jobs:
                self._ready.pop(name, None)

    def _take(self, job: Job) -> Job:
        """A ready job, with those of its bundle that are ready too; they run from now on."""
        together = [job] if job.bundle is None else self._bundles.pop(job.bundle)
        for one in together:
            del self._ready[one.step.name][one.part.name]
            self._running[one.step.name, one.part.name] = one
        first, *partners = together
        return replace(first, partners=tuple(partners))

    def _finish(self, outcome: Outcome) -> None:
        del self._running[outcome.step, outcome.part]
        if outcome.error is not None:
            raise outcome.error
        assert outcome.commit is not None
        self.board.commit(outcome.step, outcome.commit)
        for partner in outcome.partners:
            self._finish(partner)

    def _retire(self, executor: Executor, step: str) -> None:
        stage = self.board.states[step].step.stage
        if all(state.complete for state in self.board.states.values() if state.step.stage == stage):
            executor.retire(stage)

    def _watch(self, last_commit: float) -> None:
        idle = time.monotonic() - max(last_commit, self.heard_at())
        if idle > self.stall_seconds:
            running = ", ".join(f"{step} {part}" for step, part in self._running)
            raise TryAgainError(
                f"no part was committed, nor did one get on, for {idle:.0f} s (execution.stall_seconds: "
                f"{self.stall_seconds:.0f}); running: {running}. Run the same command again to continue."
            )
