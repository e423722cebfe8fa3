"""One job: a config, carried out. Both the command line and the Ray-job entry point call `run_job`, nothing else."""

from __future__ import annotations

import contextlib
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from dataengine import __version__
from dataengine.config.run import ExecutionConfig, RunConfig
from dataengine.contract import Machine
from dataengine.download.metrics import Gauge
from dataengine.download.outcomes import matching
from dataengine.download.stage import Download, load_blocklist
from dataengine.engine.board import Board
from dataengine.engine.progress import ProgressView
from dataengine.engine.runner import Executor, Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.engine.worker import Report
from dataengine.errors import InputError, StorageError
from dataengine.pipeline import STAGES, Pipeline, build_pipeline
from dataengine.score.metrics import Gauge as ScoreGauge
from dataengine.select.stage import Select
from dataengine.storage.rundir import Commit, RunDirectory
from dataengine.storage.store import Root

STATEFUL_STAGES = frozenset({"score"})


@dataclass(frozen=True)
class Finished:
    """What a job came to."""

    board: Board
    num_parts_run: int
    """Parts that were worked on now; 0 when everything was there already."""
    dataset: str | None
    """Address of the published version; None when the job stopped before emit."""


def run_job(config: RunConfig, *, until: str = "emit", console: Console) -> Finished:
    """Carry out `config` up to a stage, reusing every part that is committed already.

    Raises ConfigError, InputError, DataBudgetError, StorageError or TryAgainError; what was committed stays.
    """
    whole = build_pipeline(config)
    pipeline = whole.until(until)
    run = RunDirectory.open(config.root, config.storage_options, config.name)
    _probe(run)
    _prove_files(run.root, config, whole)
    _record(run, config, pipeline)
    _render_sample_web(config, run.root, console)
    board = Board(run, pipeline.steps, dict(pipeline.recipes), store=True)
    with ExitStack() as services, ProgressView(console, {"download": Gauge(), "score": ScoreGauge()}) as view:
        start = _executor_starter(config, run.root, services, view.report, console)
        num_run = Runner(board, start, view, config.execution.stall_seconds, lambda: view.heard_at).run()
    return Finished(board, num_run, _published(board, run.root))


def survey_job(config: RunConfig) -> Board:
    """The board of `config` as it stands; nothing is written or run. Raises ConfigError, InputError or StorageError."""
    pipeline = build_pipeline(config)
    run = RunDirectory.open(config.root, config.storage_options, config.name)
    _prove_files(run.root, config, pipeline)
    board = Board(run, pipeline.steps, dict(pipeline.recipes), store=False)
    board.survey()
    return board


@dataclass(frozen=True)
class Repeated:
    """What asking again came to, for one source."""

    source: str
    num_parts: int
    """Parts that were done again."""
    before: Mapping[str, int]
    """Rows by reason, `ok` among them."""
    after: Mapping[str, int]


def repeat_downloads(config: RunConfig, reasons: Sequence[str], *, console: Console) -> list[Repeated]:
    """Ask again for the rows of a finished download whose reason is among `reasons` (see `outcomes.parse_reasons`).

    Only the parts that hold such rows get another generation; a later `run_job` redoes what stands on them. Raises
    InputError when the download of this config is not complete.
    """
    # A source over its budget of failures is just what one wants to ask again for; the next run judges it anew.
    lenient = config.download.model_copy(update={"max_failed_share": 1.0})
    pipeline = build_pipeline(config.model_copy(update={"download": lenient})).until("download")
    run = RunDirectory.open(config.root, config.storage_options, config.name)
    board = Board(run, pipeline.steps, dict(pipeline.recipes), store=True)
    board.survey()
    if not board.finished:
        raise InputError(
            f"{run.root.address(run.path)}: the download of this config is not complete; finish it with `dataengine "
            f"run CONFIG --until download`, then ask again for what failed"
        )
    asked = [step for step in pipeline.steps if isinstance(step, Download) and not step.in_place]
    before = [board.commits(step.name) for step in asked]
    for step, commits in zip(asked, before, strict=True):
        board.repeat(replace(step, again=tuple(reasons)), _parts_with(commits, reasons), ",".join(sorted(reasons)))
    with ExitStack() as services, ProgressView(console, {"download": Gauge()}) as view:
        start = _executor_starter(config, run.root, services, view.report, console)
        Runner(board, start, view, config.execution.stall_seconds, lambda: view.heard_at).run()
    return [_repeated(step, old, board.commits(step.name)) for step, old in zip(asked, before, strict=True)]


def _parts_with(commits: Sequence[Commit], reasons: Sequence[str]) -> list[str]:
    return [commit.part for commit in commits if matching(commit.counts.keys() - {"ok"}, reasons)]


def _repeated(step: Download, old: Sequence[Commit], new: Sequence[Commit]) -> Repeated:
    num_parts = sum(commit.attempt != last.attempt for commit, last in zip(new, old, strict=True))
    return Repeated(step.source, num_parts, _sum_counts(old), _sum_counts(new))


def _sum_counts(commits: Sequence[Commit]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for commit in commits:
        counts.update(commit.counts)
    return counts


def _published(board: Board, root: Root) -> str | None:
    state = board.states.get("emit/publish")
    if state is None:
        return None
    (commit,) = state.commits()
    return root.address(commit.objects["manifest"].path.removesuffix("/manifest.json"))


def _probe(run: RunDirectory) -> None:
    """Refuse a store that does not keep the one promise everything rests on."""
    path = f"{run.path}/create-once"
    first = run.root.create(path, b"first")
    if run.root.create(path, b"second") != first:
        raise StorageError(
            f"{run.root.address(path)}: this store replaced an object that must be created once (If-None-Match is "
            f"ignored), so parallel attempts could mix; use a store that supports conditional writes"
        )


def _prove_files(root: Root, config: RunConfig, pipeline: Pipeline) -> None:
    """Refuse lists that are absent or hold a bad line, which are better known now than when they are used."""
    load_blocklist(root, config.download.blocklists)
    for step in pipeline.steps:
        if isinstance(step, Select):
            step.prove(root)


def _record(run: RunDirectory, config: RunConfig, pipeline: Pipeline) -> None:
    units = [run.unit(step.stage, step.unit, pipeline.recipes[step.name]).path for step in pipeline.steps]
    environment = {"dataengine": __version__, "python": platform.python_version(), "platform": platform.platform()}
    # Settings of the store may hold a secret, and say nothing of the data.
    asked = config.model_dump(mode="json", exclude={"storage_options"})
    record = {"config": asked, "units": units, "environment": environment}
    run.record_config(record, asked_at=utc_now().isoformat(timespec="seconds"))


def utc_now() -> datetime:
    """The time; handed to stages so that they hold no clock of their own."""
    return datetime.now(UTC)


def _executor_starter(
    config: RunConfig, root: Root, services: ExitStack, report: Report, console: Console
) -> Callable[[], Executor]:
    def start() -> Executor:
        hosts = services.enter_context(_sample_web(config, root))
        execution = config.execution
        if execution.runner == "serial":
            _require_gpu(execution)
            return SerialExecutor(_machines(execution, dict.fromkeys(STAGES, 1), hosts), report)
        from dataengine.engine.cluster import RayExecutor, Wanted, await_resources, connect, worker_counts

        console.print("starting Ray ..." if execution.address is None else f"joining Ray at {execution.address} ...")
        asked = {stage: getattr(execution, stage) for stage in STAGES}
        needs = {stage: Wanted(**item.model_dump()) for stage, item in asked.items()}
        joined = connect(execution.address)
        resources = await_resources(needs, joined=joined, wait_seconds=execution.stall_seconds)
        counts = worker_counts(resources, needs, STATEFUL_STAGES.__contains__)
        return RayExecutor(_machines(execution, counts, hosts), execution.task_retries, report)

    return start


def _require_gpu(execution: ExecutionConfig) -> None:
    """Refuse a GPU that is not there before anything is downloaded; Ray's resources say so by themselves."""
    if execution.score.num_gpus:
        from dataengine.score.clip import settle_torch

        settle_torch("cuda", max(1, int(execution.score.num_cpus)))


def _machines(execution: ExecutionConfig, counts: dict[str, int], hosts: dict[str, str]) -> dict[str, Machine]:
    machines = {}
    for stage in STAGES:
        wanted = getattr(execution, stage)
        machines[stage] = Machine(wanted.num_cpus, wanted.num_gpus, counts[stage], hosts, utc_now)
    return machines


def _web_folder(config: RunConfig, root: Root) -> Path:
    folder = root.local_path("sample-web")
    if folder is None:
        raise InputError(f"sample_web: is rendered to a local folder, but root is {config.root}; use a local root")
    return folder


def _render_sample_web(config: RunConfig, root: Root, console: Console) -> None:
    if config.sample_web is None:
        return
    from dataengine.testing.web import render_web

    folder = _web_folder(config, root)
    if not (folder / "web.json").exists():
        console.print(f"rendering the sample web into {folder} ...", soft_wrap=True, markup=False)
    render_web(folder, config.sample_web.seed, config.sample_web.num_scenes)


@contextlib.contextmanager
def _sample_web(config: RunConfig, root: Root) -> Iterator[dict[str, str]]:
    if config.sample_web is None:
        yield {}
        return
    from dataengine.testing.server import serve
    from dataengine.testing.web import render_web

    web = render_web(_web_folder(config, root), config.sample_web.seed, config.sample_web.num_scenes)
    with serve(web) as hosts:
        yield hosts
