"""Select over made-up rows: a full selection, a sweep, `why` of one key and `stats`, beside DuckDB and Polars.

python -m benchmarks.select --rows 240000
python -m benchmarks.select --rows 24000000 --folder /scratch/select     # about 6 GB of disk, kept for another run

Each figure is taken in a process of its own, whose peak memory is its own. The peers do the part that all three can do:
the same conditions over the same files, counted by the first that fails; and the same quantiles of the same table.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.reporting import Goal, report
from benchmarks.select_published import write_dataset
from benchmarks.select_rows import EDGE_STEPS, SCORE, SOURCES, run_of, score_files, write_run

RULES = {
    "min_side": "least(width, height) >= 256",
    "aspect": "greatest(width, height) <= 3 * least(width, height)",
    "caption": "caption_chars >= 8",
    "clip_score": "clip_score >= 0.25",
    "safe": "nsfw < 0.2 AND watermark < 0.5",
    "aesthetic": "aesthetic >= 4.5",
}
SWEPT = "clip_score=0.24:0.34:0.01"
THREADS = 2


def config_of(num_rows: int) -> Any:
    """The selection that is measured: rules, image survivors with their captions merged, and a mixture."""
    from dataengine.config.select import SelectConfig

    return SelectConfig.model_validate(
        {
            "rules": RULES,
            "survivors": {"prefer": ["aesthetic desc", "clip_score desc"]},
            "balance": {"target": num_rows // 5, "weights": SOURCES, "max_repeat": 2},
        }
    )


def step_of(num_rows: int) -> Any:
    """The select step over the made-up run."""
    from dataengine.select.columns import Columns
    from dataengine.select.stage import Select

    return Select(tuple(sorted(SOURCES)), Columns((("clip", SCORE),)), config_of(num_rows), EDGE_STEPS, 7)


def select_all(folder: Path, num_rows: int) -> dict[str, Any]:
    """The step as the engine runs it: everything read, decided and written."""
    from dataengine.contract import Machine, Outputs
    from dataengine.job import utc_now
    from dataengine.storage.rundir import Part, UnitDirectory

    inputs, step = inputs_of(folder), step_of(num_rows)
    outputs = Outputs(UnitDirectory(inputs.root, "runs/bench/select/selection"), "part-000000", "attempt")
    step.run(Part("part-000000"), inputs, outputs, Machine(THREADS, 0, 1, {}, utc_now))
    assert outputs.rows_out == sum(outputs.counts.values())
    return {"kept": outputs.counts["kept"]}


def select_again(folder: Path, num_rows: int) -> dict[str, Any]:
    """A sweep of eleven thresholds, read once: seconds of the reading, and of each threshold after it."""
    from dataengine.select.question import Question
    from dataengine.select.selection import Selector
    from dataengine.select.summary import yield_of
    from dataengine.select.sweep import plan_sweep

    config, step = config_of(num_rows), step_of(num_rows)
    configs = [config, *plan_sweep(config, SWEPT).configs]
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
    import pyarrow as pa

    from dataengine.select.question import Question
    from dataengine.select.rules import first_failed, states

    config, step = config_of(num_rows), step_of(num_rows)
    rules = list(Question.ask([config], step.columns).row_rules.values())
    names = [name for name in step.columns.types if any(name in rule.columns for rule in rules)]
    counts = np.zeros(len(rules) + 1, np.int64)
    waiting: list[pa.Table] = []

    def judge() -> None:
        frame = pl.DataFrame(pl.from_arrow(pa.concat_tables(waiting)))
        failed = first_failed(states(frame, rules), len(frame))
        counts[:] += np.bincount(failed + 1, minlength=len(counts))
        waiting.clear()

    for _, _, table in step.reader(inputs_of(folder), THREADS).tables(names):
        waiting.append(table)
        if sum(map(len, waiting)) >= 1_000_000:
            judge()
    if waiting:
        judge()
    return {"passed": int(counts[0])}


def rules_polars(folder: Path, _: int) -> dict[str, Any]:
    """The same with a lazy Polars query."""
    samples, scores = zip(*score_files(run_of(folder)), strict=True)
    frame = pl.concat([pl.scan_parquet(list(samples)), pl.scan_parquet(list(scores)).drop("key")], how="horizontal")
    failed = pl.lit(-1, pl.Int16)
    for number, text in reversed(list(enumerate(RULES.values()))):
        failed = pl.when(~pl.sql_expr(text).fill_null(value=False)).then(pl.lit(number, pl.Int16)).otherwise(failed)
    counts = frame.select(failed.alias("failed")).group_by("failed").len().collect(engine="streaming")
    return {"passed": dict(counts.iter_rows())[-1]}


def rules_duckdb(folder: Path, _: int) -> dict[str, Any]:
    """The same with DuckDB."""
    import duckdb

    samples, scores = zip(*score_files(run_of(folder)), strict=True)
    cases = " ".join(f"WHEN NOT coalesce({text}, false) THEN {number}" for number, text in enumerate(RULES.values()))
    database = duckdb.connect(config={"threads": THREADS})
    found = database.execute(
        f"SELECT CASE {cases} ELSE -1 END AS failed, count(*) FROM read_parquet({list(samples)!r}) POSITIONAL JOIN "
        f"(SELECT * EXCLUDE (key) FROM read_parquet({list(scores)!r})) GROUP BY failed"
    ).fetchall()
    return {"passed": dict(found)[-1]}


def stats_ours(folder: Path, _: int) -> dict[str, Any]:
    """What `dataengine stats` computes."""
    from dataengine.analyst.dataset import open_dataset
    from dataengine.analyst.stats import funnel_table, per_source, score_quantiles

    dataset = open_dataset(folder / "datasets" / "bench")
    funnel_table(dataset)
    per_source(dataset)
    found = score_quantiles(dataset)
    return {"median": round(float(found.filter(source="laion", score="clip_score")["q50"][0]), 6)}


def _samples(folder: Path) -> str:
    return str(folder / "datasets" / "bench" / "v000001" / "samples" / "*.parquet")


def stats_polars(folder: Path, _: int) -> dict[str, Any]:
    """The same quantiles with a lazy Polars query."""
    from dataengine.analyst.stats import QUANTILES

    found = (
        pl.scan_parquet(_samples(folder))
        .group_by("source")
        .agg(
            pl.col(score).quantile(share, "linear").alias(f"{score}{share}")
            for score in ("clip_score", "aesthetic")
            for share in (0, *QUANTILES, 1)
        )
        .collect(engine="streaming")
    )
    return {"median": round(float(found.filter(source="laion")["clip_score0.5"][0]), 6)}


def stats_duckdb(folder: Path, _: int) -> dict[str, Any]:
    """The same quantiles with DuckDB."""
    import duckdb

    from dataengine.analyst.stats import QUANTILES

    database = duckdb.connect(config={"threads": THREADS})
    columns = ", ".join(f"quantile_cont({name}, {[0, *QUANTILES, 1]})" for name in ("clip_score", "aesthetic"))
    query = f"SELECT source, {columns} FROM read_parquet('{_samples(folder)}') GROUP BY source"
    found = {source: clip for source, clip, _ in database.execute(query).fetchall()}
    return {"median": round(float(found["laion"][1 + QUANTILES.index(0.5)]), 6)}


def why_key(folder: Path, num_rows: int) -> dict[str, Any]:
    """The story of one key, once the process is up; the slowest of a few keys."""
    from dataengine.analyst.dataset import open_dataset
    from dataengine.analyst.why import why

    dataset = open_dataset(folder / "datasets" / "bench")
    keys = dataset.ledger().select("key").slice(num_rows // 2, 5).collect()["key"].to_list()
    seconds = []
    for key in keys:
        started = time.perf_counter()
        (outcome,) = why(open_dataset(folder / "datasets" / "bench"), key).outcomes
        seconds.append(time.perf_counter() - started)
        assert outcome.key == key
    return {"each s": max(seconds)}


MEASURES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "select, all of it": select_all,
    "sweep of 11": select_again,
    "rules: dataengine": rules_ours,
    "rules: Polars": rules_polars,
    "rules: DuckDB": rules_duckdb,
    "stats: dataengine": stats_ours,
    "stats: Polars": stats_polars,
    "stats: DuckDB": stats_duckdb,
    "why of one key": why_key,
}


def inputs_of(folder: Path) -> Any:
    """What the select step may read of the made-up run."""
    from dataengine.contract import Inputs, WholeUnit

    run = run_of(folder)
    return Inputs(run.root, {}, {step: WholeUnit(directory, path) for step, (directory, path) in run.units.items()})


def measure(name: str, folder: Path, num_rows: int) -> None:
    """Do one thing in this process, and print what it cost."""
    started, cpu = time.perf_counter(), time.process_time()
    found = MEASURES[name](folder, num_rows)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # of this program, not of its parent
    assert peak is not None
    cost = {"wall s": time.perf_counter() - started, "CPU s": time.process_time() - cpu,
            "peak MB": int(peak[1]) / 1024}  # fmt: skip
    print(json.dumps(cost | found))


def main() -> None:
    """Write the rows unless they are there, measure everything, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--folder", type=Path, help="keep the rows there; a temporary folder by default")
    parser.add_argument("--only-write", action="store_true", help="write the rows, and measure nothing")
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.folder, asked.rows)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)) / str(asked.rows)
        if not (folder / "whole").exists():
            keys = write_run(folder, asked.rows, asked.rows // 3)
            write_dataset(folder / "datasets" / "bench" / "v000001", keys)
            (folder / "whole").touch()
        if asked.only_write:
            return
        results = {name: _in_a_process(name, folder, asked.rows) for name in MEASURES}
    report("select", results, _goals(results, asked.rows), f"_{asked.rows}")


def _in_a_process(name: str, folder: Path, num_rows: int) -> dict[str, Any]:
    """The better of two runs, so that files are in memory and compiled code is there for all alike."""
    command = [sys.executable, "-m", "benchmarks.select", "--measure", name, "--folder", str(folder)]
    runs = []
    for _ in range(2):
        done = subprocess.run([*command, "--rows", str(num_rows)], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(runs, key=lambda run: run["wall s"])


def _goals(results: dict[str, dict[str, Any]], num_rows: int) -> list[Goal]:
    """The goals are for 24 million rows; those of time are held in proportion, so that cost per row shows."""
    scale = num_rows / 24_000_000

    def wall(name: str) -> float:
        return float(results[name]["wall s"])

    passed = [results[f"rules: {name}"]["passed"] for name in ("dataengine", "Polars", "DuckDB")]
    medians = [results[f"stats: {name}"]["median"] for name in ("dataengine", "Polars", "DuckDB")]
    assert max(passed) == min(passed), f"the contenders do not agree: {passed}"
    assert max(medians) - min(medians) < 1e-5, f"the contenders do not agree: {medians}"
    return [
        Goal("seconds of a full selection", wall("select, all of it"), 60 * scale),
        Goal("peak GB of a full selection", results["select, all of it"]["peak MB"] / 1024, 10),
        Goal("rules, times bare Polars", wall("rules: dataengine") / wall("rules: Polars"), 1.5),
        Goal("seconds of a swept threshold", results["sweep of 11"]["each s"], 3 * scale),
        Goal("seconds of why", results["why of one key"]["each s"], 0.5),
        Goal("seconds of stats", wall("stats: dataengine"), 4 * scale),
        Goal("peak MB of stats", results["stats: dataengine"]["peak MB"], 400),
        Goal(
            "stats, times the better of Polars and DuckDB",
            wall("stats: dataengine") / min(wall("stats: Polars"), wall("stats: DuckDB")),
            1.1,
        ),
    ]


if __name__ == "__main__":
    main()
