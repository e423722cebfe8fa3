"""`preview`: what select would make of a finished run, in numbers, without writing anything of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataengine.cli.tables import funnel_table
from dataengine.config.load import load_config
from dataengine.config.run import RunConfig
from dataengine.config.select import SelectConfig
from dataengine.errors import ConfigError, InputError, MissingObject
from dataengine.job import survey_job
from dataengine.select.pool import Pool
from dataengine.select.question import Question
from dataengine.select.reading import Reader, read_lines, rule_files, under_takedowns
from dataengine.select.selection import Decision, Selector
from dataengine.select.stage import Select
from dataengine.select.summary import Yield, count_reasons, difference, overlap, yield_of, yields
from dataengine.select.sweep import Sweep, plan_sweep
from dataengine.storage.rundir import Commit, Part, RunDirectory, UnitDirectory
from dataengine.storage.takedowns import TAKEDOWN

_THREADS = 2  # of reading; Polars takes all cores by itself


@dataclass(frozen=True)
class _Finished:
    """A run that is complete up to dedup, as select sees it."""

    step: Select
    reader: Reader
    last: Commit | None
    """The selection that was made last, of any config."""


def print_preview(path: Path, overrides: list[str], sweeps: list[str], plots: Path | None) -> None:
    """Print funnel, sources, mixture, overlap of rules and the difference to the last selection; and sweeps."""
    console = Console(soft_wrap=True)
    started = time.monotonic()
    if plots is not None and plots.exists() and not plots.is_dir():
        raise ConfigError(f"--plot {plots}: is a file; give a folder, which may be new")
    config = load_config(path, overrides)
    run = _open(config)
    files = rule_files(run.reader.inputs.root, config.select)
    config = config.model_copy(update={"select": under_takedowns(config.select, files)})
    planned = [_planned(config, text, run.step) for text in sweeps]
    configs = [config.select, *(variant for sweep in planned for variant in sweep.configs)]
    lines = read_lines(run.reader.inputs.root, files)
    plotted = _plotted(run.step) if plots is not None else []
    question = Question.ask(configs, run.step.columns, lines, also=["num_rows", *plotted])
    pool = run.reader.pool(question, with_evidence=False)
    selector = Selector(pool, run.reader.duplicates(pool, question), run.step.seed)
    decision = selector.decide(config.select, question.rules[0])
    _print_decision(decision, pool, config, question, console)
    _print_difference(run, decision, pool, console)
    curves = list(_swept(selector, question, planned))
    for sweep, curve in curves:
        console.print(_sweep_table(sweep, curve))
    if plots is not None:
        from dataengine.cli.plots import write_plots

        page = write_plots(plots, decision, pool, plotted, curves)
        console.print(f"plots are in {escape(str(page))}", highlight=False)
    seconds = time.monotonic() - started
    console.print(f"{len(pool):,} candidates, {seconds:.1f} s; nothing of the run was written", highlight=False)


def _open(config: RunConfig) -> _Finished:
    board = survey_job(config)
    step = board.states["select/selection"].step
    assert isinstance(step, Select)
    inputs = board.inputs(step, Part("part-000000"))
    if inputs is None:
        missing = [name for name, state in board.states.items() if state.complete_path is None and name != step.name]
        stages = dict.fromkeys(name.partition("/")[0] for name in missing if not name.startswith("emit/"))
        raise InputError(
            f"run {config.name} in {config.root}: {', '.join(stages)} is not complete for this config; finish it with "
            f"`dataengine run CONFIG --until dedup`, then preview"
        )
    run = RunDirectory.open(config.root, config.storage_options, config.name)
    return _Finished(step, step.reader(inputs, _THREADS), _last_selection(run))


def _last_selection(run: RunDirectory) -> Commit | None:
    try:
        units = run.last_config()["units"]
    except MissingObject:
        return None
    paths = [path for path in units if path.startswith(f"{run.path}/select/")]
    commits = [commit for path in paths for commit in UnitDirectory(run.root, path).standing()[1]]
    return commits[-1] if commits else None


def _planned(config: RunConfig, text: str, step: Select) -> Sweep:
    sweep = plan_sweep(config.select, text, step.columns.types)
    for value, variant in zip(sweep.values, sweep.configs, strict=True):
        _check(config, variant, f"--sweep {sweep.name}={value}")
    return sweep


def _check(config: RunConfig, select: SelectConfig, where: str) -> None:
    """Whether the run may be asked for with `select`, take-downs aside, in the place of its own. Raises ConfigError."""
    asked = select.model_dump()
    asked["rules"].pop(TAKEDOWN, None)
    try:
        RunConfig.model_validate(config.model_dump() | {"select": asked})
    except ValidationError as error:
        raise ConfigError(f"{where}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _plotted(step: Select) -> list[str]:
    """Scores and measures: every number of SCORE."""
    fields = [field for of_scorer in step.columns.of_scores.values() for field in of_scorer]
    names = [name for name, kind in step.columns.types.items() if kind.is_numeric()]
    return [field.name for field in fields if field.name in names]


def _print_decision(decision: Decision, pool: Pool, config: RunConfig, question: Question, console: Console) -> None:
    console.print(funnel_table(count_reasons(decision, pool, pool.columns["num_rows"].to_numpy())))
    console.print(_yields_table(yields(decision, pool), config.select.balance.target))
    shared = overlap(decision, pool, config.select, question.rules[0])
    if len(shared):
        console.print(_counts_table(shared, "Rules: usable rows that fail each, first, alone, and with another"))


def _print_difference(run: _Finished, decision: Decision, pool: Pool, console: Console) -> None:
    if run.last is None:
        console.print("There is no earlier selection to compare with.")
        return
    changed = difference(decision, pool, run.reader.kept_before(pool, run.last))
    total = changed.sum().with_columns(source=pl.lit("all"))
    console.print(_counts_table(pl.concat([changed, total]), "Kept by the last selection and by this one"))


def _swept(selector: Selector, question: Question, sweeps: Sequence[Sweep]) -> Iterator[tuple[Sweep, list[Yield]]]:
    place = 1
    for sweep in sweeps:
        rules = question.rules[place : place + len(sweep.configs)]
        yield sweep, [yield_of(selector, *asked) for asked in zip(sweep.configs, rules, strict=True)]
        place += len(sweep.configs)


def _yields_table(found: pl.DataFrame, target: int | None) -> Table:
    title = "Sources" if target is None else f"Sources and mixture: target {target:,} draws"
    table = Table("source", "candidates", "usable", "survivors", "asked", "draws", "share", title=title,
                  title_justify="left")  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    total = max(int(found["realised"].sum()), 1)
    for source, *numbers in found.iter_rows():
        table.add_row(escape(source), *(f"{number:,}" for number in numbers), f"{numbers[-1] / total:.1%}")
    return table


def _counts_table(found: pl.DataFrame, title: str) -> Table:
    table = Table(*(name.removeprefix("num_") for name in found.columns), title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, *numbers in found.iter_rows():
        table.add_row(escape(name), *(f"{number:,}" if number else "·" for number in numbers))
    return table


def _sweep_table(sweep: Sweep, curve: Sequence[Yield]) -> Table:
    """Survivors, rows drawn at least once, and draws, by value."""
    sources = next((list(found.realised) for found in curve if not found.fault), [])
    table = Table(sweep.name.rpartition(".")[2], "survivors", "published", "draws", *sources,
                  title=f"Sweep of {escape(sweep.name)}", title_justify="left")  # fmt: skip
    for column in table.columns:
        column.justify = "right"
    for value, found in zip(sweep.values, curve, strict=True):
        if found.fault:
            table.add_row(str(value), "[yellow]impossible[/]", escape(found.fault.partition(";")[0]))
            continue
        draws = [found.realised[source] for source in sources]
        numbers = (sum(found.available.values()), found.num_published, sum(draws), *draws)
        table.add_row(str(value), *(f"{number:,}" for number in numbers))
    return table
