"""`download-again`: ask once more for the rows that failed for reasons that may have passed."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataengine.cli.status import find_run, is_config
from dataengine.config.load import load_config, parse_config
from dataengine.config.run import RunConfig
from dataengine.download.outcomes import matching, parse_reasons
from dataengine.errors import InputError, MissingObject
from dataengine.job import Repeated, repeat_downloads
from dataengine.storage.rundir import RunDirectory


def print_again(run: str, reasons: str, overrides: list[str], options: list[str]) -> None:
    """Ask again, and print what came of it by source and reason."""
    wanted = parse_reasons(reasons)
    directory = find_run(run, options)
    config = load_config(Path(run), overrides) if is_config(run) else _last_config(directory, overrides)
    console = Console(soft_wrap=True)
    repeated = repeat_downloads(config, wanted, console=console)
    if not any(_num_asked(item, wanted) for item in repeated):
        console.print(f"No row of a URL source failed for {', '.join(wanted)}; nothing was asked again.")
        return
    console.print(_table(repeated, wanted))
    console.print(
        f"Recorded in {escape(directory.root.address(directory.path))}. Run its config again: only what stands on the "
        f"parts above is done anew.",
        highlight=False,
    )


def _last_config(directory: RunDirectory, overrides: list[str]) -> RunConfig:
    """What the run was last asked for, with overrides, and with the settings of the store it was found in."""
    try:
        record = directory.last_config()["config"]
    except MissingObject as error:
        raise InputError(f"{error}; give <root>/runs/<name> or the run's config") from error
    where = directory.root.address(directory.path)
    config = parse_config(json.dumps(record), overrides, where=where)
    return config.model_copy(update={"root": directory.root.url, "storage_options": dict(directory.root.options)})


def _table(repeated: list[Repeated], wanted: tuple[str, ...]) -> Table:
    table = Table("source", "parts", "rows asked", "ok now", "other reason now", "still failing", title="Asked again")
    table.title_justify = "left"
    for item in repeated:
        asked = _num_asked(item, wanted)
        if not asked:
            continue
        still = {reason: item.after[reason] for reason in matching(item.after.keys() - {"ok"}, wanted)}
        gained = item.after.get("ok", 0) - item.before.get("ok", 0)
        other = asked - gained - sum(still.values())
        failing = ", ".join(f"{reason} {number:,}" for reason, number in sorted(still.items())) or "-"
        table.add_row(item.source, f"{item.num_parts:,}", f"{asked:,}", f"{gained:,}", f"{other:,}", failing)
    return table


def _num_asked(item: Repeated, wanted: tuple[str, ...]) -> int:
    return sum(item.before[reason] for reason in matching(item.before.keys() - {"ok"}, wanted))
