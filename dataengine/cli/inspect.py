"""`why`, `stats` and `verify`: questions to a published dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from dataengine.analyst.dataset import Dataset, open_dataset
from dataengine.analyst.faults import Fault
from dataengine.analyst.run_tables import Record, RunTables, open_run
from dataengine.analyst.stats import per_source, score_quantiles
from dataengine.analyst.verify import can_decode, verify
from dataengine.analyst.why import Outcome, why, why_in_run
from dataengine.cli.tables import funnel_table, printable, score_tables, sources_table
from dataengine.errors import ConfigError, CorruptObject


def store_options(options: list[str]) -> dict[str, str]:
    """`NAME=VALUE` settings as a mapping. Raises ConfigError."""
    pairs = [option.partition("=") for option in options]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise ConfigError(f"--store {name}: wanted NAME=VALUE, for example --store endpoint=http://127.0.0.1:8333")
    return {name: value for name, _, value in pairs}


@contextmanager
def readable_tables(address: str) -> Iterator[None]:
    """Turns what Polars says of a missing or damaged table into a CorruptObject."""
    try:
        yield
    except (pl.exceptions.PolarsError, FileNotFoundError) as error:
        raise CorruptObject(
            f"{address}: a table cannot be read: {str(error).partition(chr(10))[0]}; "
            f"`dataengine verify {address}` names what is damaged"
        ) from error


def print_stats(address: str, options: list[str]) -> None:
    """Funnel, sources and scores of a dataset."""
    console = Console(soft_wrap=True)
    dataset = open_dataset(address, store_options(options))
    with readable_tables(address):
        console.print(funnel_table(dataset.funnel().collect()))
        console.print(sources_table(per_source(dataset)))
        for table in score_tables(score_quantiles(dataset)):
            console.print(table)
    _print_dedup(dataset.manifest["dedup"], console)


def _recall(recall: Mapping[str, Any]) -> str:
    sample = f"a sample of {recall['num_rows']:,} rows"
    if recall["value"] is None:
        bounded = recall["num_bounded_pairs"]
        beside = f" but {bounded:,} in groups too dense to keep all" if bounded else ""
        return f"recall could not be measured: {sample} has no true pairs{beside}"
    return (
        f"{recall['num_found']:,} of {recall['num_pairs']:,} true pairs found on {sample}; "
        f"recall {recall['value']:.4f} (95 %: {recall['low']:.4f} to {recall['high']:.4f}), "
        f"target {recall['target']}{'' if recall['reached'] else ' NOT reached'}"
    )


def _print_dedup(dedup: Mapping[str, Any], console: Console) -> None:
    """How well image duplicates were found, and what evaluation sets were compared."""
    recall = dedup.get("image_recall")
    if recall:
        console.print(f"Image duplicates: {_recall(recall)}", highlight=False)
        console.print(
            f"{recall['num_edges']:,} pairs of near-duplicate images; the second witness refused "
            f"{recall['num_refused']:,} more; {recall['num_bounded_rows']:,} rows lie in groups too dense to keep all.",
            highlight=False,
        )
    for name, found in dedup.get("evaluation_images", {}).items():
        unusable = found["unusable"].items()
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in unusable) or "none"
        line = f"Evaluation set {name}: {found['num_images']:,} images; could not be compared: {reasons}"
        console.print(printable(line), highlight=False, markup=False)


def print_why(address: str, key_or_url: str, options: list[str]) -> None:
    """The story of one sample, from a dataset or a run."""
    console = Console(soft_wrap=True)
    settings = store_options(options)
    run = open_run(address, settings)
    published = run.published() if run is not None else address
    with readable_tables(address):
        if published is None:
            assert run is not None
            story = why_in_run(run, key_or_url)
        else:
            dataset = open_dataset(published, settings)
            story = why(dataset, key_or_url, RunTables.of_dataset(dataset) if run is None else run)
    for outcome in story.outcomes:
        _print_outcome(outcome, console)


def _print_outcome(outcome: Outcome, console: Console) -> None:
    color = {"emitted": "green", "kept": "green", "undecided": "yellow"}.get(outcome.state, "red")
    console.print(f"[bold]{outcome.key}[/]  [bold {color}]{outcome.state}[/]", highlight=False)
    lines: dict[str, Any] = {"source": outcome.source, "url": outcome.url, "input rows": outcome.num_rows}
    if outcome.record is not None:
        lines |= dict(_seen_by_stages(outcome.record))
    lines |= {"dropped at": outcome.stage, "reason": outcome.reason, "evidence": outcome.rule_value}
    lines["similarity"] = outcome.similarity
    if outcome.survivor is not None:
        kept = outcome.survivor
        where = f"in shard {kept.shard}" if kept.shard else "itself not emitted"
        lines["yields to"] = f"{kept.key} {kept.url or ''} ({where})"
        lines["its image"] = kept.stored
    if outcome.placement is not None:
        placed = outcome.placement
        lines |= {"shard": f"{placed.path}, sample {placed.index_in_shard}", "drawn": f"{placed.repeat} times an epoch"}
        lines["split"] = placed.split
        lines["caption"] = placed.caption
        lines |= {f"caption {name}": text for name, text in placed.captions.items()}
        lines |= {name: None if score is None else f"{score:.4f}" for name, score in placed.scores.items()}
    for name, value in lines.items():
        if value is not None:
            console.print(f"  {name:<22} {printable(value)}", highlight=False, markup=False)


def _seen_by_stages(record: Record) -> Iterator[tuple[str, Any]]:
    """What a published table does not say: how it was fetched, every score, the group and the draw."""
    sample, chosen = record.sample, record.selection
    if sample.get("fetched_at"):
        yield "fetched", f"{sample['fetched_at']:%Y-%m-%d %H:%M:%S}Z, {sample['num_attempts']} requests"
        yield "answer", f"{sample['http_status']} {sample['content_type'] or ''}".strip()
    elif sample.get("num_attempts"):  # a purge took the rest away
        yield "requests", sample["num_attempts"]
    yield from ((name.replace("_", " "), sample.get(name)) for name in ("final_url", "opt_out", "sha256"))
    if sample.get("width") is not None:
        size = f"{sample['width']} × {sample['height']} {sample['format']}"
        yield "image", f"{size}, fetched as {sample['original_width']} × {sample['original_height']}"
        yield "its bytes", record.stored
    for name, value in record.scores.items():
        if name != "score_status" or value != "ok":
            yield name, f"{value:.4f}" if isinstance(value, float) else value
    yield from (("group", chosen.get("group_key")), ("draw", chosen.get("draw")), ("repeat", chosen.get("repeat")))


def print_verify(address: str, full: bool, sample: int, options: list[str]) -> None:
    """Check a dataset. Raises CorruptObject when something is wrong."""
    console = Console(soft_wrap=True)
    dataset = open_dataset(address, store_options(options))
    faults = _verify(dataset, full, sample, console)
    for fault in faults:
        found = f"{fault.object}: {fault.check}: wanted {fault.expected}, found {fault.found}"
        console.print(f"[bold red]fault[/] {escape(printable(found))}")
    if faults:
        raise CorruptObject(
            f"{address}: {len(faults)} faults; restore the objects named above or publish the version anew"
        )
    counts = dataset.manifest["counts"]
    how = "every byte" if full else f"every size, {sample} shards in depth"
    how += "" if can_decode() else "; no picture was decoded, for want of Pillow: install dataengine\\[trainer]"
    console.print(
        f"[bold green]sound[/] {escape(address)}: "
        f"{counts['num_samples']:,} samples in {counts['num_shards']:,} shards, "
        f"{len(dataset.version.files):,} files ({how})",
        highlight=False,
    )


def _verify(dataset: Dataset, full: bool, sample: int, console: Console) -> list[Fault]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, num_done: int, num_all: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=num_done, total=num_all)

        return verify(dataset, full=full, sample=sample, progress=show)
