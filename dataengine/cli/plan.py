"""`plan`: what `run` would do, read from commits and inputs without writing anything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataengine.cli.downloads import politeness_table
from dataengine.config.load import load_config
from dataengine.config.run import RunConfig
from dataengine.config.sources import TableSource
from dataengine.dedup.signing import banding_of
from dataengine.engine.board import Board, StepState
from dataengine.errors import MissingObject
from dataengine.job import survey_job
from dataengine.pipeline import STAGES
from dataengine.sources.hosts import HOSTS, count_hosts, politeness_hours
from dataengine.sources.stage import input_urls
from dataengine.storage.rundir import Plan, RunDirectory
from dataengine.storage.tables import read_table

_LEAST_SHOWN = 0.0005  # of the pairs of a similarity; below, the curve is a column of zeros


def print_plan(path: Path, overrides: list[str]) -> None:
    """Print what is reused, what runs and why, and the ceilings that the inputs set."""
    console = Console(soft_wrap=True)
    config = load_config(path, overrides)
    board = survey_job(config)
    run = RunDirectory.open(config.root, config.storage_options, config.name)
    console.print(f"[bold]{config.name}[/] in {escape(run.root.address(run.path))}", highlight=False)
    for line in changed_keys(run, config):
        console.print(f"  changed since it was last run: {line}", highlight=False, markup=False)
    console.print(_sources_table(config, board))
    console.print(_stages_table(board))
    for state in board.states.values():
        if state.problem is not None:
            console.print(f"[bold yellow]cannot be planned yet[/] {state.step.name}: ", end="", highlight=False)
            console.print(state.problem, highlight=False, markup=False)
    _print_politeness(config, board, console)
    _print_captions(config, console)
    _print_target(config, board, console)


def changed_keys(run: RunDirectory, config: RunConfig) -> list[str]:
    """Identity-bearing values that differ from the config this run was last asked for."""
    try:
        last = RunConfig.model_validate(run.last_config()["config"])
    except (MissingObject, ValueError):
        return []
    before, after = _flatten(last.identity()), _flatten(config.identity())
    names = sorted(before.keys() | after.keys())
    return [f"{name}: {before.get(name)} → {after.get(name)}" for name in names if before.get(name) != after.get(name)]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {name: value for key, item in tree.items() for name, value in _flatten(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def _sources_table(config: RunConfig, board: Board) -> Table:
    table = Table("source", "kind", "input files", "input rows", title="Inputs", title_justify="left")
    for name, source in config.sources.items():
        step = f"sources/{name}.scan" if source.kind == "table" else f"sources/{name}"
        state = board.states[step]
        if state.plan is None:
            table.add_row(name, source.kind, "[yellow]absent[/]", "?")
            continue
        table.add_row(name, source.kind, f"{_num_files(state.plan):,}", _rows_text(num_input_rows(state)))
    return table


def _num_files(plan: Plan) -> int:
    return len({part.spec["path"] for part in plan.parts})


def num_input_rows(state: StepState) -> int | None:
    """Input rows of a planned source: counted for tables, known for tars once they are indexed."""
    assert state.plan is not None
    if all("num_rows" in part.spec for part in state.plan.parts):
        return sum(part.spec["num_rows"] for part in state.plan.parts)
    return sum(commit.rows_in for commit in state.done.values()) if state.complete else None


def _rows_text(num_rows: int | None) -> str:
    return "known once indexed" if num_rows is None else f"{num_rows:,}"


def _stages_table(board: Board) -> Table:
    table = Table("stage", "parts reused", "parts to run", "why", title="What run will do", title_justify="left")
    for stage in STAGES:
        states = [state for state in board.states.values() if state.step.stage == stage]
        reused = sum(len(state.done) for state in states)
        to_run = sum(len(state.plan.parts) - len(state.done) for state in states if state.plan is not None)
        unplanned = sum(state.plan is None for state in states)
        more = " + later ones" if unplanned else ""
        table.add_row(stage, f"{reused:,}", f"{to_run:,}{more}", _reason(states))
    return table


def _reason(states: list[StepState]) -> str:
    if all(state.complete for state in states):
        return "nothing to do: every part is committed and fits this config"
    if any(state.problem for state in states):
        return "inputs are absent"
    started = [state for state in states if state.stored]
    if not started:
        return "not run yet under this config and these inputs"
    if any(part not in state.stored for state in started for part in state.waiting):
        return "continues: some parts are committed"
    return "what its parts were made from has changed"


def _print_politeness(config: RunConfig, board: Board, console: Console) -> None:
    """The least time that the most frequent hosts take, whatever the number of machines."""
    fetch = config.download.fetch
    counted = [_hosts(name, source, board) for name, source in config.sources.items() if source.kind == "table"]
    hosts = politeness_hours(pa.concat_tables([HOSTS.empty(), *counted]), fetch.per_host_rate, fetch.per_host)
    if not len(hosts):
        return
    rate = "" if fetch.per_host_rate is None else f"{fetch.per_host_rate:g} requests a second and "
    manners = f"each host gets {rate}{fetch.per_host} requests of half a second at once"
    console.print(politeness_table(hosts, f"{len(hosts):,} host{'s' * (len(hosts) > 1)}, {manners}"))


def _hosts(name: str, source: TableSource, board: Board) -> pa.Table:
    """URLs by host: from the source's parts once they are there, else counted in the input itself."""
    state, scan = board.states[f"sources/{name}"], board.states[f"sources/{name}.scan"]
    if state.complete:
        paths = [commit.objects["hosts"].path for commit in state.commits()]
        return pa.concat_tables([HOSTS.empty(), *(read_table(board.root, path, HOSTS) for path in paths)])
    if scan.plan is None:
        return HOSTS.empty()
    files = dict.fromkeys(part.spec["path"] for part in scan.plan.parts)
    counted = [count_hosts(urls) for path in files for urls in input_urls(board.root, path, source)]
    return pa.concat_tables([HOSTS.empty(), *counted])


def _print_captions(config: RunConfig, console: Console) -> None:
    """The bands that captions are cut into, and which share of pairs of each similarity they find."""
    captions = config.dedup.captions
    if captions is None:
        return
    chosen = banding_of(captions)
    unit = f"{captions.shingle_unit} {captions.shingle_size}-grams"
    table = Table(
        "similarity",
        "found",
        title=f"Captions: {chosen.num_bands} bands × {chosen.rows_per_band} rows, Jaccard of {unit}",
        title_justify="left",
    )
    for similarity, found in chosen.curve():
        asked = " ← min_similarity" if math.isclose(similarity, captions.min_similarity) else ""
        if found >= _LEAST_SHOWN:
            table.add_row(f"{similarity:.2f}", f"{found:.2%}{asked}")
    console.print(table)


def _print_target(config: RunConfig, board: Board, console: Console) -> None:
    balance = config.select.balance
    if balance.target is None:
        return
    weights = balance.weights or dict.fromkeys(config.sources, 1.0)
    total = sum(weights.values())
    table = Table(
        "source", "draws asked", "draws at most", title=f"Ceilings: target {balance.target:,}", title_justify="left"
    )
    for name, source in config.sources.items():
        step = f"sources/{name}.scan" if source.kind == "table" else f"sources/{name}"
        state = board.states[step]
        num_rows = num_input_rows(state) if state.plan is not None else None
        asked = f"{balance.target * weights.get(name, 0.0) / total:,.0f}" if balance.weights else "in proportion"
        most = "?" if num_rows is None else f"{num_rows * balance.max_repeat:,}"
        short = (
            num_rows is not None
            and balance.weights
            and num_rows * balance.max_repeat < balance.target * weights.get(name, 0.0) / total
        )
        table.add_row(name, asked, f"[red]{most}[/]" if short else most)
    console.print(table)
    console.print(f"A source that falls short: {balance.if_short} (select.balance.if_short).", highlight=False)
