"""How a benchmark reports: a table for people, one JSON line for programs, and a file under `benchmarks/results/`, or
under what DATAENGINE_BENCHMARK_RESULTS names."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("DATAENGINE_BENCHMARK_RESULTS") or Path(__file__).parent / "results")


@dataclass(frozen=True)
class Goal:
    """A figure that was asked for: met when `value` is at most `goal`."""

    name: str
    value: float
    goal: float

    @property
    def met(self) -> bool:
        """Whether the figure is reached."""
        return self.value <= self.goal


@dataclass(frozen=True)
class Timed:
    """What a command cost, and what came of it."""

    wall_seconds: float
    exit_code: int
    output: str


def run_timed(command: list[str]) -> Timed:
    """Run `command` to its end and time it."""
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Timed(time.monotonic() - started, done.returncode, done.stdout + done.stderr)


def report(name: str, results: dict[str, dict[str, Any]], goals: list[Goal], variant: str = "") -> None:
    """Print the table and the JSON line, and keep both under `results/` with machine, date, commit and command.

    `variant` sets the file apart from those of other sizes.
    """
    columns = list(dict.fromkeys(column for row in results.values() for column in row))
    print(f"{'':<24}" + "".join(f"{column:>16}" for column in columns))
    for contender, row in results.items():
        print(f"{contender:<24}" + "".join(f"{_cell(row.get(column)):>16}" for column in columns))
    record = {"results": results, "goals": [asdict(goal) | {"met": goal.met} for goal in goals]}
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = record | {"machine": _machine(), "date": datetime.now(UTC).date().isoformat(), "commit": _commit()}
    kept["command"] = " ".join(["python", "-m", f"benchmarks.{name}", *_without_paths(sys.argv[1:])])
    (RESULTS / f"{name}{variant}.json").write_text(json.dumps(kept, indent=2) + "\n")
    print(json.dumps(record))


def _without_paths(arguments: list[str]) -> list[str]:
    """`arguments`, but for paths the names of what they stand for: those of one machine say nothing elsewhere."""
    names = ["PATH", *(argument.lstrip("-").replace("-", "_").upper() for argument in arguments)]
    return [name if os.sep in argument else argument for name, argument in zip(names, arguments, strict=False)]


def _cell(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else str("" if value is None else value)


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores {platform.machine()}, {memory:.0f} GiB, Python {platform.python_version()}"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
