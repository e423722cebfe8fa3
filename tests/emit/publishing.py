"""Publishes sets that are given by number, through emit's own steps and the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from dataengine.config.run import EmitConfig
from dataengine.contract import Machine, Step
from dataengine.emit.publish import Publish
from dataengine.emit.stage import PlanShards, RouteRows
from dataengine.emit.writing import WriteShards
from dataengine.engine.board import Board
from dataengine.engine.runner import Executor, Runner
from dataengine.engine.serial import SerialExecutor
from dataengine.pipeline import _recipes
from dataengine.storage.rundir import RunDirectory
from dataengine.storage.store import Root
from dataengine.testing.given import SCORE, SCORER, GivenSource, given_steps
from tests.engine.test_runner import _Silent

MACHINES = {
    stage: Machine(1, 0, 1, {}, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    for stage in ("sources", "download", "score", "select", "emit")
}
SMALL = (
    GivenSource("birds", 60, 20, image_bytes=700, holdout_every=9, max_repeat=2),
    GivenSource("cats", 33, 11, formats=("jpg", "png")),
)


def emit_steps(given: tuple[GivenSource, ...], config: EmitConfig) -> list[Step]:
    """Emit of `given`, as the pipeline makes it."""
    names = tuple(sorted(source.name for source in given))
    scores, columns = ((SCORER, SCORE),), ("clip_score",)
    published: dict[str, Any] = {"config": {"emit": config.identity()}, "recipes": {}}
    return [
        PlanShards("given", names, (SCORER,), config, published),
        *(RouteRows(name, scores, columns) for name in names),
        WriteShards("given", names, columns, ("alt",), ("license",)),
        Publish("given", names, (), dict.fromkeys(names, "CC0"), scores, columns, None, None, published),
    ]


def publish(
    root: Root,
    given: tuple[GivenSource, ...] = SMALL,
    *,
    shard_multiple: int = 4,
    target_shard_bytes: int = 2**20,
    start: Callable[[], Executor] = lambda: SerialExecutor(MACHINES),
    run: str = "run",
) -> str:
    """Publish `given` under `root`; the version's folder."""
    config = EmitConfig(target_shard_bytes=target_shard_bytes, shard_multiple=shard_multiple)
    steps = [*given_steps(given), *emit_steps(given, config)]
    board = Board(RunDirectory(root, run), steps, _recipes(steps), store=True)
    Runner(board, start, _Silent(), stall_seconds=600).run()
    (commit,) = board.commits("emit/publish")
    return commit.objects["manifest"].path.removesuffix("/manifest.json")


def contents(root: Root, folder: str) -> Mapping[str, bytes]:
    """Every object of a version, by its path in it."""
    return {path.removeprefix(f"{folder}/"): root.get(path) for path in root.list(folder)}
