"""What dataengine does in the benchmark of select: the whole step, a sweep, and the rules alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.select_peers import RULES
from benchmarks.select_rows import EDGE_STEPS, SCORE, SOURCES, run_of
from dataengine.config.select import SelectConfig
from dataengine.contract import Inputs, Machine, Outputs, WholeUnit
from dataengine.job import utc_now
from dataengine.select.columns import Columns
from dataengine.select.question import Question
from dataengine.select.rules import first_failed, states
from dataengine.select.selection import Selector
from dataengine.select.stage import Select
from dataengine.select.summary import yield_of
from dataengine.select.sweep import plan_sweep
from dataengine.storage.rundir import Part, UnitDirectory

SWEPT = "clip_score=0.24:0.34:0.01"
THREADS = 2


def config_of(num_rows: int) -> Any:
    """The selection that is measured: rules, image survivors with their captions merged, and a mixture."""

    return SelectConfig.model_validate(
        {
            "rules": RULES,
            "survivors": {"prefer": ["aesthetic desc", "clip_score desc"]},
            "balance": {"target": num_rows // 5, "weights": SOURCES, "max_repeat": 2},
        }
    )


def step_of(num_rows: int) -> Any:
    """The select step over the made-up run."""

    return Select(tuple(sorted(SOURCES)), Columns((("clip", SCORE),)), config_of(num_rows), EDGE_STEPS, 7)


def inputs_of(folder: Path) -> Any:
    """What the select step may read of the made-up run."""

    run = run_of(folder)
    return Inputs(run.root, {}, {step: WholeUnit(directory, path) for step, (directory, path) in run.units.items()})


def select_all(folder: Path, num_rows: int) -> dict[str, Any]:
    """The step as the engine runs it: everything read, decided and written."""

    inputs, step = inputs_of(folder), step_of(num_rows)
    outputs = Outputs(UnitDirectory(inputs.root, "runs/bench/select/selection"), "part-000000", "attempt")
    step.run(Part("part-000000"), inputs, outputs, Machine(THREADS, 0, 1, {}, utc_now))
    assert outputs.rows_out == sum(outputs.counts.values())
    return {"kept": outputs.counts["kept"]}


def select_again(folder: Path, num_rows: int) -> dict[str, Any]:
    """A sweep of eleven thresholds, read once: seconds of the reading, and of each threshold after it."""

    config, step = config_of(num_rows), step_of(num_rows)
    configs = [config, *plan_sweep(config, SWEPT, step.columns.types).configs]
    question = Question.ask(configs, step.columns)
    reader = step.reader(inputs_of(folder), THREADS)
    pool = reader.pool(question, with_evidence=False)
    selector = Selector(pool, reader.duplicates(pool, question), step.seed)
    yield_of(selector, config, question.rules[0])
    seconds = []
    for variant, rules in zip(configs[1:], question.rules[1:], strict=True):
        started = time.perf_counter()
        yield_of(selector, variant, rules)
        seconds.append(time.perf_counter() - started)
    return {"each s": max(seconds)}


def rules_ours(folder: Path, num_rows: int) -> dict[str, Any]:
    """Rows by the first rule they fail, through the code of select."""

    config, step = config_of(num_rows), step_of(num_rows)
    rules = list(Question.ask([config], step.columns).row_rules.values())
    names = [name for name in step.columns.types if any(name in rule.columns for rule in rules)]

    def judged(table: pa.Table) -> Any:
        frame = pl.DataFrame(pl.from_arrow(table))
        return np.bincount(first_failed(states(frame, rules), len(frame)) + 1, minlength=len(rules) + 1)

    counts = sum(found for _, found in step.reader(inputs_of(folder), THREADS).runs(names, judged))
    return {"passed": int(counts[0])}
