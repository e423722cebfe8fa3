"""What the engine itself costs: parts that do nothing, through both executors, beside bare Ray tasks in the same run.

python -m benchmarks.bench_engine --rows 500     # parts
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from benchmarks.reporting import Goal, report
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.engine.board import Board, Job
from dataengine.engine.runner import Executor, Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.storage.rundir import Part, Plan, RunDirectory
from dataengine.storage.store import Root

PART_SECONDS = 30.0  # what a part of 10,000 rows costs at least: its downloads alone take longer


@dataclass(frozen=True)
class Idle(Step):
    """Parts that write nothing but their commit."""

    stage: ClassVar[str] = "download"
    version: ClassVar[int] = 1
    num_parts: int

    @property
    def unit(self) -> str:
        return "idle"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> dict[str, Any]:
        return {"num_parts": self.num_parts}

    def plan(self, context: PlanContext) -> Plan:
        return Plan(tuple(Part(f"part-{number:06d}") for number in range(self.num_parts)))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        outputs.rows_out = 1


class _Silent:
    def update(self, board: Board, running: Iterable[Job]) -> None:
        pass


def drive(num_parts: int, start: Callable[[], Executor]) -> tuple[float, float]:
    """Wall seconds of a run of `num_parts` idle parts, and of finding that nothing is left to do."""
    step = Idle(num_parts)
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = RunDirectory(Root(folder), "bench"), []
        for _ in range(2):
            started = time.monotonic()
            Runner(Board(run, [step], {step.name: "0" * 64}, store=True), start, _Silent(), 600).run()
            seconds.append(time.monotonic() - started)
    return seconds[0], seconds[1]


def bare_ray(num_parts: int) -> float:
    """Wall seconds of as many empty Ray tasks."""
    import ray

    empty = ray.remote(lambda number: number)
    ray.get([empty.remote(number) for number in range(4)])
    started = time.monotonic()
    ray.get([empty.remote(number) for number in range(num_parts)])
    return time.monotonic() - started


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=500, help="parts")
    num_parts = parser.parse_args().rows
    from dataengine.engine.cluster import RayExecutor, connect

    connect(None)
    machine = Machine(1, 0, 2, {}, lambda: datetime.now(UTC))
    machines = {"download": machine}
    drive(8, lambda: RayExecutor(machines, 0))  # workers start once
    results = {}
    for name, start in (
        ("serial", lambda: SerialExecutor(machines)),
        ("ray", lambda: RayExecutor(machines, 0)),
    ):
        first, again = drive(num_parts, start)
        results[name] = {"ms per part": first / num_parts * 1e3, "ms if reused": again / num_parts * 1e3}
    results["bare Ray tasks"] = {"ms per part": bare_ray(num_parts) / num_parts * 1e3}
    share = results["ray"]["ms per part"] / 1e3 / PART_SECONDS * 100
    report("bench_engine", results, [Goal("engine's share of a part of 10,000 rows, percent", share, 1.0)])


if __name__ == "__main__":
    main()
