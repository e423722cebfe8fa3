"""What a person sees while a run goes on: a bar per stage on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dataengine.engine.board import Board, Job

LINE_SECONDS = 10.0


@dataclass
class StageCount:
    """Where one stage stands, summed over its units."""

    num_parts: int = 0
    num_done: int = 0
    num_reused: int = 0
    num_rows: int = 0
    planned: bool = True


def count_stages(board: Board) -> dict[str, StageCount]:
    """Counts by stage, in the order of the way of the data."""
    stages: dict[str, StageCount] = {}
    for state in board.states.values():
        count = stages.setdefault(state.step.stage, StageCount())
        if state.plan is None:
            count.planned = False
            continue
        count.num_parts += len(state.plan.parts)
        count.num_done += len(state.done)
        count.num_reused += state.reused
        count.num_rows += sum(commit.rows_out for commit in state.done.values())
    return stages


class Gauge(Protocol):
    """Puts the metrics of one stage's parts into words."""

    def line(self, metrics: Iterable[Mapping[str, Any]], seconds: float) -> str:
        """One line, empty when there is nothing to say; `seconds` is the moment, by any clock."""


class ProgressView:
    """A context manager and watcher; `console` decides between bars and lines, `gauges` speak for their stages."""

    def __init__(self, console: Console, gauges: Mapping[str, Gauge]) -> None:
        self._console = console
        self._gauges = gauges
        self._live: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.heard_at = 0.0
        """When a job under way last told of something new, by the monotonic clock."""
        self._board: Board | None = None
        self._num_running = 0
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._last_text = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rows]:>12}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[words]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, board: Board, running: Iterable[Job]) -> None:
        """Show where the run stands."""
        self._board, self._num_running = board, sum(1 for _ in running)
        self._show(board)

    def report(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """Note how far a job under way is, and show it."""
        place = job.step.name, job.part.name
        if self._live.get(place) != metrics:
            self.heard_at = time.monotonic()
        self._live[place] = metrics
        if self._board is not None:
            self._show(self._board)

    def _show(self, board: Board) -> None:
        if self._bars is not None:
            self._draw(self._bars, board)
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._print_lines(board)

    def _words(self, board: Board, stage: str) -> str:
        """What the stage's gauge says while parts of it are under way."""
        states = [state for state in board.states.values() if state.step.stage == stage]
        if stage not in self._gauges or all(state.complete for state in states):
            return ""
        done = {state.step.name: state.done for state in states}
        metrics = [commit.metrics for commits in done.values() for commit in commits.values()]
        metrics += [live for (step, part), live in self._live.items() if step in done and part not in done[step]]
        return self._gauges[stage].line(metrics, time.monotonic())

    def _draw(self, bars: Progress, board: Board) -> None:
        for stage, count in count_stages(board).items():
            if stage not in self._tasks:
                self._tasks[stage] = bars.add_task(stage, total=None, rows="", words="")
            total = count.num_parts if count.planned else None
            rows, words = f"{count.num_rows:,} rows", self._words(board, stage)
            bars.update(self._tasks[stage], total=total, completed=count.num_done, rows=rows, words=words)

    def _print_lines(self, board: Board) -> None:
        self._last_line = time.monotonic()
        for text in self._lines(board):
            if text != self._last_text:
                self._console.print(text, highlight=False, soft_wrap=True, markup=False)
                self._last_text = text

    def _lines(self, board: Board) -> Iterator[str]:
        shown = [
            f"{stage} {count.num_done}/{count.num_parts}{'' if count.planned else '+'}"
            for stage, count in count_stages(board).items()
            if count.num_parts
        ]
        yield f"parts done: {', '.join(shown)}; running {self._num_running}"
        for stage in self._gauges:
            words = self._words(board, stage)
            if words:
                yield f"  {stage}: {words}"
