"""`dataengine`: the verbs, their help, and how every error becomes one message and an exit code."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from dataengine import __version__
from dataengine.errors import ConfigError, DataEngineError, StorageError

app = typer.Typer(
    name="dataengine",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Turn URL lists and existing shards into published image-text datasets.

    [bold]Start here:[/bold]  dataengine quickstart

    A [bold]run[/bold] goes sources → download → score → dedup → select → emit. What is committed is never
    done again: run the same command after a crash, or with a changed config, and only what is missing or touched is
    worked on.

    Exit codes: 0 done · 2 bad config · 3 bad input · 65 too many rows failed · 70 fault of the program · 74 storage ·
    75 try again · 130, 143 interrupted.""",
)

ConfigPath = Annotated[Path, typer.Argument(help="The run's YAML config.", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Override a config value, or take it from a YAML file with @FILE; repeatable.",
    ),
]
DatasetAddress = Annotated[
    str,
    typer.Argument(
        help="A dataset folder or URL (latest version), a version folder, or a manifest.json.", show_default=False
    ),
]
StoreOptions = Annotated[
    list[str],
    typer.Option("--store", metavar="NAME=VALUE", help="Object store setting such as endpoint=http://...; repeatable."),
]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"dataengine {__version__}")
        raise typer.Exit


@app.command()
def quickstart(
    directory: Annotated[Path, typer.Argument(help="Where to keep run and dataset.")] = Path("quickstart"),
    overrides: Overrides = [],  # noqa: B006 - typer reads the default
) -> None:
    """Run the main job offline on the built-in sample web, and show where the results are.

    Renders a small internet with known faults and duplicates, serves it on loopback, and takes it through every stage
    with the built-in tiny CLIP. Example: [bold]dataengine quickstart ./try --set execution.runner=serial[/bold]
    """
    from dataengine.cli.run import run_quickstart

    run_quickstart(directory, overrides)


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = [],  # noqa: B006
    until: Annotated[str, typer.Option(help="Last stage: sources, download, score, dedup, select or emit.")] = "emit",
) -> None:
    """Carry out a config: start it, or continue it after a crash or a change.

    Example: [bold]dataengine run configs/openuni_24m.yaml --set root=s3://bucket/openuni --until score[/bold]
    """
    from dataengine.cli.run import run_config

    run_config(config, overrides, until)


@app.command(name="download-again")
def download_again(
    run: Annotated[
        str, typer.Argument(help="A run's folder or URL (<root>/runs/<name>), or its config.", show_default=False)
    ],
    reasons: Annotated[
        str,
        typer.Option(help="Comma-separated reasons such as dns,timeout,http_403, or groups: 4xx, 5xx, transient."),
    ] = "transient",
    overrides: Overrides = [],  # noqa: B006
    options: StoreOptions = [],  # noqa: B006
) -> None:
    """Ask once more for rows that failed to download for the given reasons.

    Good rows and their images stay as they are; parts that hold such rows get a new generation, and the next `run`
    redoes only what stands on those. Any number of passes. Example:
    [bold]dataengine download-again s3://bucket/openuni/runs/openuni --reasons dns,timeout,5xx[/bold]
    """
    from dataengine.cli.again import print_again

    print_again(run, reasons, overrides, options)


@app.command()
def plan(config: ConfigPath, overrides: Overrides = []) -> None:  # noqa: B006
    """Say what `run` would do: what is reused, what runs and why, and how many rows there can be at most."""
    from dataengine.cli.plan import print_plan

    print_plan(config, overrides)


@app.command()
def preview(
    config: ConfigPath,
    overrides: Overrides = [],  # noqa: B006
    sweep: Annotated[
        list[str],
        typer.Option(metavar="NAME=LOW:HIGH:STEP", help="Yield at each value of a rule, column or key; repeatable."),
    ] = [],  # noqa: B006
    plot: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write histograms and curves there, as PNG and one HTML page.")
    ] = None,
) -> None:
    """Say what select would make of a run whose duplicates are found: funnel, mixture, overlap of rules, difference.

    Reads scores and duplicates once and writes nothing of the run. Example:
    [bold]dataengine preview configs/openuni_24m.yaml --sweep clip_score=0.18:0.28:0.02[/bold]
    """
    from dataengine.cli.preview import print_preview

    print_preview(config, overrides, sweep, plot)


@app.command()
def status(
    run: Annotated[
        str, typer.Argument(help="A run's folder or URL (<root>/runs/<name>), or its config.", show_default=False)
    ],
    options: StoreOptions = [],  # noqa: B006
) -> None:
    """Show how far a run is, from its commits alone; no cluster need be left."""
    from dataengine.cli.status import print_status

    print_status(run, options)


@app.command()
def why(
    address: Annotated[
        str,
        typer.Argument(
            metavar="RUN|DATASET",
            help="A run (<root>/runs/<name>), a dataset folder (latest version), a version folder, or a manifest.json.",
            show_default=False,
        ),
    ],
    key_or_url: Annotated[
        str, typer.Argument(metavar="KEY|URL", help="A key, the first 8 or more characters of one, or a URL.")
    ],
    options: StoreOptions = [],  # noqa: B006
) -> None:
    """Tell one sample's story: how it was fetched, its scores, kept or dropped, for which reason, and where it went."""
    from dataengine.cli.inspect import print_why

    print_why(address, key_or_url, options)


@app.command()
def stats(dataset: DatasetAddress, options: StoreOptions = []) -> None:  # noqa: B006
    """Print a dataset's funnel, its sources and the distribution of its scores."""
    from dataengine.cli.inspect import print_stats

    print_stats(dataset, options)


@app.command()
def verify(
    dataset: DatasetAddress,
    full: Annotated[bool, typer.Option("--full", help="Hash every file and check every image.")] = False,
    sample: Annotated[
        int, typer.Option(help="Without --full: shards to hash and images to decode, at least one.", min=1)
    ] = 8,
    options: StoreOptions = [],  # noqa: B006
) -> None:
    """Check a dataset: sizes, hashes, counts, keys, offsets, images. Exit code 74 when something is wrong."""
    from dataengine.cli.inspect import print_verify

    print_verify(dataset, full, sample, options)


@app.command(name="caption-set")
def caption_set(
    config: ConfigPath,
    files: Annotated[
        list[str], typer.Argument(help="Text files, a caption a line, or .parquet files; globs.", show_default=False)
    ],
    to: Annotated[str, typer.Option(metavar="DIR", help="A new folder or URL for the set.", show_default=False)],
    column: Annotated[str, typer.Option(help="Column of .parquet files.")] = "caption",
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Sign captions that no training set may hold, such as the prompts of a benchmark, for `dedup.against`.

    They are signed as the config's own captions are; the key of a match is the number of its row. Example:
    [bold]dataengine caption-set configs/openuni_24m.yaml prompts.txt --to /data/evaluation/prompts[/bold]
    """
    from dataengine.cli.caption_set import print_caption_set

    print_caption_set(config, files, to, column, overrides)


@app.command()
def takedown(
    dataset: DatasetAddress,
    entries: Annotated[
        Path | None, typer.Option("--list", help="TXT (one entry a line) or CSV: url, domain, key, sha256, phash.")
    ] = None,
    reason: Annotated[str, typer.Option(help="What the ledger says of each sample besides the entry.")] = "",
    max_phash_distance: Annotated[
        int, typer.Option(help="Bits in which perceptual hashes of copies may differ.", min=0, max=32)
    ] = 4,
    purge: Annotated[
        bool, typer.Option("--purge", help="Retire versions that hold what was taken down; delete their files.")
    ] = False,
    grace_days: Annotated[int, typer.Option(help="With --purge: days that a take-down must have stood.", min=0)] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    options: StoreOptions = [],  # noqa: B006
) -> None:
    """Publish a version without what a list names, nor its copies, and keep it out of every later run.

    Only shards that hold any of it are written anew. Example:
    [bold]dataengine takedown s3://bucket/openuni/datasets/openuni --list gone.csv --reason "request 4711"[/bold]
    """
    from dataengine.cli.versions import print_purge, print_takedown

    if (entries is None) != purge:
        raise typer.BadParameter("give --list to take something down, or --purge to delete what was; one of the two")
    if entries is None:
        print_purge(dataset, grace_days, dry_run, options)
        return
    print_takedown(dataset, entries, reason, max_phash_distance, dry_run, options)


@app.command()
def materialize(
    version: DatasetAddress,
    directory: Annotated[str, typer.Argument(help="An empty or new folder, or a URL.", show_default=False)],
    options: StoreOptions = [],  # noqa: B006
) -> None:
    """Make a whole folder of a version that needs nothing of its parents: hard links, or copies within the store."""
    from dataengine.cli.versions import print_materialize

    print_materialize(version, directory, options)


@app.command()
def doctor(
    dataset: DatasetAddress,
    world: Annotated[int, typer.Option(help="Ranks: training processes, mostly one a GPU.", min=1)] = 8,
    workers: Annotated[int, typer.Option(help="Worker processes that read for each rank.", min=1)] = 8,
    batch: Annotated[int, typer.Option(help="Samples of a batch on one rank.", min=1)] = 32,
    split: Annotated[str, typer.Option(help="train or holdout.")] = "train",
    options: StoreOptions = [],  # noqa: B006
) -> None:
    """Say what each reader would drop, repeat or hang on with these shards, before a training job finds out.

    Readers of tars deal whole shards out to ranks × workers. What does not come out even is lost, read again, or leaves
    ranks with fewer steps than others, which then wait for ever in the next all-reduce. The table counts that for an
    epoch of webdataset, open_clip and Hugging Face datasets, each as it is and as it is mostly used, and of
    dataengine.trainer:

    [bold]never read[/bold], [bold]read again[/bold]: samples of the epoch · [bold]steps[/bold]: of a rank, the least
    and the most · [bold]tars read[/bold]: bytes read over bytes there are.

    Reads the manifest and shards.parquet, no tar. Example:
    [bold]dataengine doctor s3://bucket/datasets/openuni --world 128 --workers 8 --batch 32[/bold]
    """
    from dataengine.cli.doctor import print_doctor

    print_doctor(dataset, world, workers, batch, split, options)


ENGINE_HINT = "install dataengine[engine,cpu], or [engine,gpu] for FAISS on GPUs"


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # captions of strangers on a terminal that knows only ASCII
    terminated: list[int] = []

    def terminate(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        _interrupt(frame)

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = app(standalone_mode=False)
    except DataEngineError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        print_error(ConfigError(f"this command builds datasets and needs {error.name}: {ENGINE_HINT}"))
        sys.exit(ConfigError.exit_code)
    except OSError as error:
        print_error(StorageError(f"{error}; check the disk and the network, and run the same command again"))
        sys.exit(StorageError.exit_code)
    except Exception as error:  # noqa: BLE001 - nothing is above but the shell, which is told 70
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            traceback.print_exc()
            sys.exit(DataEngineError.exit_code)
        error.show()  # a usage error of the command line itself
        sys.exit(error.exit_code)
    if code == 130:  # what Typer makes of a KeyboardInterrupt
        print_interrupted()
        _leave(143 if terminated else 130)
    sys.exit(code if isinstance(code, int) else 0)


def _leave(code: int) -> NoReturn:
    """Exit with `code` now, work of libraries' own threads unfinished.

    To wait for it and then tear their C++ down aborts the process one time in forty.
    """
    atexit._run_exitfuncs()  # Ray's, for one
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def print_error(error: DataEngineError) -> None:
    """One message on standard error, the kind of error first."""
    from rich.console import Console
    from rich.text import Text

    from dataengine.cli.tables import printable

    label = Text(f"{type(error).__name__}: ", style="bold red")
    message = "\n".join(map(printable, str(error).splitlines()))
    Console(stderr=True, soft_wrap=True).print(label + Text(message), highlight=False)


def print_interrupted() -> None:
    """Say that nothing is lost."""
    typer.echo("interrupted; run the same command again to continue", err=True)


def _interrupt(frame: FrameType | None) -> None:
    """Do what Ctrl-C does at this moment: an event loop, for one, is cancelled rather than torn open."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)
