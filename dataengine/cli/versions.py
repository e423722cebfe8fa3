"""`takedown` and `materialize`: what becomes of published versions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from dataengine.cli.inspect import readable_tables, store_options
from dataengine.cli.tables import printable
from dataengine.errors import ConfigError, InputError
from dataengine.versions.lists import parse_list
from dataengine.versions.matching import Match
from dataengine.versions.place import DatasetPlace
from dataengine.versions.purge import plan_purge, purge
from dataengine.versions.takedown import Survey, survey, take_down

_SHOWN = 10


def print_takedown(
    address: str, path: Path, reason: str, max_phash_distance: int, dry_run: bool, options: list[str]
) -> None:
    """Take down what a list names, and say what came of it."""
    console = Console(soft_wrap=True)
    if any(not character.isprintable() for character in reason):
        raise ConfigError(f"--reason {reason!r}: wanted one line of text")
    try:
        entries = parse_list(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot read this list: {error.strerror}") from error
    place = DatasetPlace.of(address, store_options(options))
    with readable_tables(address):
        surveyed = survey(place, entries, max_phash_distance)
    _print_survey(surveyed, console)
    if dry_run:
        console.print("dry run: nothing was written")
        return
    with readable_tables(address):
        done = take_down(place, entries, reason, max_phash_distance, surveyed.match)
    if done.num_removed:
        console.print(
            f"[bold green]taken down[/] {done.num_removed:,} samples; {done.num_shards:,} shards were cut anew, all "
            f"others stay where they lie",
            highlight=False,
        )
    else:
        console.print("the latest version holds none of it: no version was made")
    console.print(f"[bold]list[/]    {escape(place.root.address(done.list_path))}: every later run obeys it")
    console.print(f"[bold]version[/] {escape(done.version)}", highlight=False)


def print_purge(address: str, grace_days: int, dry_run: bool, options: list[str]) -> None:
    """Retire the versions that hold what was taken down, and say what went."""
    console = Console(soft_wrap=True)
    place = DatasetPlace.of(address, store_options(options))
    with readable_tables(address):
        planned = plan_purge(place, timedelta(days=grace_days), datetime.now(UTC))
    for folder in planned.retired:
        console.print(f"[bold]retire[/] {escape(place.root.address(folder))}", highlight=False)
    for path in planned.files:
        console.print(f"[bold]delete[/] {escape(printable(place.root.address(path)))}", highlight=False)
    for part in planned.raw:
        where = escape(place.root.address(f"{part.unit.path} {part.commit.part}"))
        console.print(f"[bold]rewrite[/] {where}, delete its {len(part.objects)} old tars", highlight=False)
    for path in planned.outside:
        where = escape(printable(place.root.address(path)))
        console.print(f"[yellow]stays[/]  {where}: holds pictures that were taken down", highlight=False)
    if dry_run:
        console.print("dry run: nothing was deleted")
        return
    purge(place, planned)
    console.print(
        f"[bold green]purged[/] {len(planned.retired)} versions retired, {len(planned.files):,} files deleted, "
        f"{len(planned.raw):,} raw parts written anew; read {planned.successor}",
        highlight=False,
    )


def _print_survey(surveyed: Survey, console: Console) -> None:
    found: Match = surveyed.match
    for entry in found.unmatched[:_SHOWN]:
        console.print(f"[yellow]warning[/] {escape(printable(str(entry)))} names no candidate", highlight=False)
    if len(found.unmatched) > _SHOWN:
        console.print(f"[yellow]warning[/] nor do {len(found.unmatched) - _SHOWN:,} other entries", highlight=False)
    if not surveyed.has_duplicates:
        console.print(
            "[yellow]warning[/] the run that found duplicates is gone: copies are known by equal bytes, by perceptual "
            "hash and by what the ledger says of duplicates",
            highlight=False,
        )
    console.print(
        f"{found.num_named:,} candidates are named, {len(found.found) - found.num_named:,} more are copies or "
        f"near-duplicates of them; {surveyed.num_samples:,} samples in {len(surveyed.touched):,} shards of "
        f"{escape(surveyed.version)}",
        highlight=False,
    )


def print_materialize(address: str, target: str, options: list[str]) -> None:
    """Make a whole folder of a version."""
    from dataengine.versions.materialize import materialize

    console = Console(soft_wrap=True)
    num_files, nbytes = materialize(address, target, store_options(options))
    console.print(f"[bold green]whole[/] {escape(target)}: {num_files:,} files, {nbytes:,} bytes", highlight=False)
