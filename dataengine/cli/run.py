"""`run` and `quickstart`: carry out a config and show what came of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from dataengine.analyst.dataset import Dataset, open_dataset
from dataengine.analyst.stats import per_source
from dataengine.cli.tables import funnel_table, sources_table
from dataengine.config.load import load_config
from dataengine.config.run import RunConfig
from dataengine.engine.progress import count_stages
from dataengine.errors import ConfigError, InputError, MissingObject
from dataengine.job import Finished, run_job
from dataengine.pipeline import STAGES

MANY_LOST = 0.5  # more than the link rot of lists that are years old
QUICKSTART_CONFIG = Path(__file__).parent.parent / "testing" / "quickstart.yaml"

TRAINER_SNIPPET = """\
from dataengine.trainer.dataset import ShardDataset

dataset = ShardDataset("{dataset}/manifest.json", seed=1)
print(len(dataset), "draws an epoch")
for sample, _ in zip(dataset, range(3)):
    print(sample["__source__"], sample["image"].size, sample["txt"])
"""

ANALYST_SNIPPET = """\
import polars as pl

ledger = pl.scan_parquet("{dataset}/ledger/*.parquet")
reasons = ledger.group_by("stage", "reason").agg(pl.col("num_rows").sum())
print(reasons.sort("num_rows", descending=True).head(5).collect())
"""


def run_config(path: Path, overrides: list[str], until: str) -> None:
    """Carry out the config at `path` and print what came of it."""
    if until not in STAGES:
        raise ConfigError(f"--until {until}: no such stage; stages are {', '.join(STAGES)}")
    console = Console(soft_wrap=True)
    config = load_config(path, overrides)
    print_finished(run_job(config, until=until, console=console), config.storage_options, console)


def run_quickstart(directory: Path, overrides: list[str]) -> None:
    """Run the built-in config in `directory`, then the snippets that the README shows."""
    console = Console(soft_wrap=True)
    config = load_config(QUICKSTART_CONFIG, [f"root={directory.absolute()}", *overrides])
    finished = run_job(config, console=console)
    print_finished(finished, config.storage_options, console)
    if finished.dataset is not None and finished.num_parts_run:
        for title, snippet in (("A trainer reads it", TRAINER_SNIPPET), ("An analyst asks it", ANALYST_SNIPPET)):
            _run_snippet(title, snippet.format(dataset=finished.dataset), console)
    _print_next(config, finished, console)


def print_finished(finished: Finished, options: Mapping[str, str], console: Console) -> None:
    """What was done, and the funnel of the published dataset."""
    if not finished.num_parts_run:
        console.print("[bold green]Nothing left to do:[/] every part is committed and fits this config.")
    else:
        _print_stages(finished, console)
    if finished.dataset is None:
        return
    dataset = _open_published(finished.dataset, options)
    counts = dataset.manifest["counts"]
    if finished.num_parts_run:
        console.print(funnel_table(dataset.funnel().collect()))
        console.print(sources_table(per_source(dataset)))
    for note in _notes(finished.dataset, dataset, options):
        console.print(f"[bold yellow]Note:[/] {escape(note)}", highlight=False)
    if not counts["num_samples"]:
        console.print("[bold yellow]Every row was dropped:[/] the dataset is empty; the funnel says why.")
    address = escape(finished.dataset)
    console.print(
        f"[bold]Dataset[/] {address}\n"
        f"  {counts['num_samples']:,} samples, {counts['num_draws']:,} draws, {counts['num_shards']:,} shards, "
        f"{counts['nbytes'] / 1e6:,.1f} MB\n"
        f"  trainers open   {address}/manifest.json\n"
        f"  samples         {address}/samples/*.parquet\n"
        f"  why each row    {address}/ledger/*.parquet\n"
        f"  counts          {address}/stats/funnel.parquet, histogram.parquet",
        highlight=False,
    )


def _notes(address: str, dataset: Dataset, options: Mapping[str, str]) -> Iterator[str]:
    """What a person would not want to find out later."""
    newest = open_dataset(address.rpartition("/")[0], options).manifest["version"]
    if newest != dataset.manifest["version"]:
        yield (
            f"v{newest:06d} is newer; whoever opens the dataset's folder reads that one. "
            f"To use this config's result, name its version's folder."
        )
    lost = dataset.funnel().filter(pl.col("stage") == "download").group_by("source").agg(pl.col("num_rows").sum())
    for source, num_lost in lost.sort("source").collect().iter_rows():
        num_rows = dataset.manifest["sources"][source]["num_rows"]
        if num_lost > MANY_LOST * num_rows:
            yield (
                f"source {source} lost {num_lost / num_rows:.0%} of its input rows at download; if its servers were "
                f"out of reach, `dataengine download-again` asks once more for what failed"
            )


def _open_published(address: str, options: Mapping[str, str]) -> Dataset:
    try:
        return open_dataset(address, options)
    except InputError as error:
        raise MissingObject(
            f"{address}: this run published it, but it is gone ({error}); restore it, or remove the folder `emit` of "
            f"the run to publish it anew"
        ) from error


def _print_stages(finished: Finished, console: Console) -> None:
    table = Table("stage", "parts", "reused", "rows", title="Run", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, count in count_stages(finished.board).items():
        table.add_row(stage, f"{count.num_done:,}", f"{count.num_reused:,}", f"{count.num_rows:,}")
    console.print(table)


def _run_snippet(title: str, snippet: str, console: Console) -> None:
    console.print(f"\n[bold]{title}[/] (this was just run):")
    console.print(Syntax(snippet, "python", background_color="default"))
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    console.print(done.stdout + done.stderr, highlight=False, markup=False)
    done.check_returncode()


def _print_next(config: RunConfig, finished: Finished, console: Console) -> None:
    dataset, runs = escape(str(finished.dataset)), escape(str(Path(config.root).absolute() / "runs"))
    console.print(
        f"\n[bold]Next[/]\n"
        f"  dataengine stats  {dataset}\n"
        f"  dataengine why    {dataset} http://archive.test/00006.jpg\n"
        f"  dataengine verify {dataset} --full\n"
        f"  dataengine status {runs}/{config.name}",
        highlight=False,
    )
