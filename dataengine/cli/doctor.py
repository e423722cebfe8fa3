"""`doctor`: a table of what each reader would do with a dataset's shards."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataengine.analyst.doctor import Diagnosis, diagnose
from dataengine.analyst.readers import Job, Reading
from dataengine.cli.inspect import store_options
from dataengine.errors import ConfigError
from dataengine.trainer.view import Split


def print_doctor(address: str, world: int, workers: int, batch: int, split: str, options: list[str]) -> None:
    """Diagnose and print. Raises ConfigError for an unknown split."""
    if split not in ("train", "holdout"):
        raise ConfigError(f"--split {split}: wanted train or holdout")
    chosen: Split = "train" if split == "train" else "holdout"
    found = diagnose(address, Job(world, workers, batch), chosen, store_options(options))
    console = Console(soft_wrap=True)
    job = found.job
    console.print(
        f"[bold]{escape(found.version.root.url)}[/]: {found.num_samples:,} samples in {len(found.sizes):,} shards of "
        f"{min(found.sizes):,} to {max(found.sizes):,}, read by {job.world_size:,} ranks × {job.num_workers} workers, "
        f"batches of {job.batch_size:,} a rank",
        highlight=False,
    )
    console.print(_table(found))
    for line in _advice(found):
        console.print(line, highlight=False)


def _table(found: Diagnosis) -> Table:
    table = Table(title="One epoch", box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    table.add_column("reader", no_wrap=True)
    for name in ("never read", "read again", "steps", "tars read"):
        table.add_column(name, justify="right", no_wrap=True)
    for reading in found.readings:
        table.add_row(*_cells(reading, found))
    return table


def _cells(reading: Reading, found: Diagnosis) -> list[str]:
    if reading.refusal is not None:
        return [reading.reader, "[red]does not begin[/]"]
    low, high = reading.steps
    return [
        reading.reader,
        _count(reading.never, found.num_samples),
        _count(reading.repeated, found.num_samples),
        f"{low:,}" if low == high else f"[red]{low:,} to {high:,}[/]",
        f"{reading.amplification:,.0f} ×",
    ]


def _count(number: float, samples: int) -> str:
    return "0" if round(number) == 0 else f"[yellow]{number:,.0f} {number / samples:.2%}[/]"


def _remarks(reading: Reading) -> list[str]:
    if reading.refusal is not None:
        return [f"does not begin: {reading.refusal}"]
    remarks = []
    if reading.hangs:
        remarks.append("ranks end at different steps; those that have more wait for ever in the next all-reduce")
    if reading.amplification > 1:
        remarks.append("every rank reads every tar, since ranks do not divide the number of shards")
    if reading.idle:
        remarks.append(f"{reading.idle:,} workers get no shard and end at once")
    return remarks


def _advice(found: Diagnosis) -> list[str]:
    lines = [f"[bold]{reading.reader}[/] {escape(said)}." for reading in found.readings for said in _remarks(reading)]
    lines += ["Numbers of readers that draw at random (resampled, and open_clip's partial batches) are expectations."]
    if found.num_draws != found.num_samples:
        lines.append(
            f"Repeats make {found.num_draws:,} draws of these samples. dataengine draws them, open_clip by the factors "
            "of train_data.txt; every other reader takes each sample once, which is another mixture."
        )
    per_reader = len(found.sizes) % found.job.num_readers
    if per_reader and found.better_counts:
        counts = " or ".join(f"{count:,}" for count in found.better_counts)
        lines.append(
            f"{len(found.sizes):,} shards over {found.job.num_readers:,} workers leaves {per_reader:,} over; {counts} "
            f"would not (emit.shard_multiple: {found.job.num_readers}). dataengine does not mind."
        )
    return lines
