"""`status`: how far a run is, from commits alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from dataengine.cli.downloads import downloads_table, most_common
from dataengine.cli.inspect import store_options
from dataengine.config.load import load_config
from dataengine.download.metrics import Summary, summarise
from dataengine.errors import InputError, MissingObject
from dataengine.storage.rundir import RunDirectory, UnitDirectory


def print_status(run: str, options: list[str]) -> None:
    """Print parts, rows and reasons of every unit that the last config of the run asked for."""
    directory = find_run(run, options)
    try:
        record = directory.last_config()
    except MissingObject as error:
        raise InputError(f"{error}; give <root>/runs/<name> or the run's config") from error
    console = Console(soft_wrap=True)
    table = Table(
        Column("unit", no_wrap=True, overflow="fold"),
        "parts",
        "rows",
        "seconds",
        "reasons",
        title=escape(f"Run {directory.name}"),
        title_justify="left",
    )
    for column in table.columns[1:4]:
        column.justify = "right"
    done = True
    downloads: dict[str, tuple[Counter[str], Summary]] = {}
    for path in record["units"]:
        num_parts, commits = UnitDirectory(directory.root, path).standing()
        complete = num_parts == len(commits)
        done &= complete
        stage, unit = path.removeprefix(f"{directory.path}/").split("/")
        reasons: Counter[str] = Counter()
        for commit in commits:
            reasons.update(commit.counts)
        if stage == "download" and any(commit.metrics for commit in commits):
            downloads[unit.rpartition("-")[0]] = reasons, summarise(commit.metrics for commit in commits)
        table.add_row(
            f"{stage}/{unit}",
            f"{len(commits):,}/{num_parts:,}" if num_parts is not None else "not planned",
            f"{sum(commit.rows_out for commit in commits):,}",
            f"{sum(commit.seconds for commit in commits):,.1f}",
            most_common(reasons, 5),
            style="green" if complete else None,
        )
    console.print(table)
    if downloads:
        console.print(downloads_table(downloads))
    if not done:
        console.print("not complete; run the same command again to continue it")
        return
    console.print("[bold green]complete[/]" + ("" if stage == "emit" else f" up to {stage}, as was asked"))


def is_config(run: str) -> bool:
    """Whether `run` names a config rather than a run's folder."""
    return run.endswith((".yaml", ".yml"))


def find_run(run: str, options: list[str]) -> RunDirectory:
    """The run at a `<root>/runs/<name>` address, or of a config file."""
    if is_config(run):
        config = load_config(Path(run))
        return RunDirectory.open(config.root, config.storage_options, config.name)
    root, runs, name = run.rstrip("/").rpartition("/runs/")
    if not runs:
        raise InputError(f"{run}: not a run; wanted <root>/runs/<name>, or the run's YAML config")
    return RunDirectory.open(root, store_options(options), name)
