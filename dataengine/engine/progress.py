"""What a person sees while a run goes on: a bar per stage on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

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


class ProgressView:
    """A context manager and watcher; `console` decides between bars and lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
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
        if self._bars is not None:
            self._draw(self._bars, count_stages(board))
        elif time.monotonic() - self._last_line >= LINE_SECONDS:
            self._print_line(count_stages(board), sum(1 for _ in running))

    def _draw(self, bars: Progress, stages: dict[str, StageCount]) -> None:
        for stage, count in stages.items():
            if stage not in self._tasks:
                self._tasks[stage] = bars.add_task(stage, total=None, rows="")
            total = count.num_parts if count.planned else None
            bars.update(self._tasks[stage], total=total, completed=count.num_done, rows=f"{count.num_rows:,} rows")

    def _print_line(self, stages: dict[str, StageCount], num_running: int) -> None:
        self._last_line = time.monotonic()
        shown = [
            f"{stage} {count.num_done}/{count.num_parts}{'' if count.planned else '+'}"
            for stage, count in stages.items()
            if count.num_parts
        ]
        text = f"parts done: {', '.join(shown)}; running {num_running}"
        if text != self._last_text:
            self._console.print(text, highlight=False, soft_wrap=True)
            self._last_text = text
