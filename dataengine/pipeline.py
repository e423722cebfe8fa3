"""The main job as a value: config → steps → recipes. Structure only; what a step does lies in its stage.

sources ──► download ──► score ──► dedup ──► select ──► emit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataengine.config.run import RunConfig
from dataengine.contract import Step
from dataengine.dedup.caption_steps import CaptionEdges, HotBands, Signatures
from dataengine.dedup.image_steps import Cells, Centroids, ImageEdges, MeasureRecall
from dataengine.dedup.stage import Classes, Route
from dataengine.download.stage import Download
from dataengine.emit.publish import Publish
from dataengine.emit.stage import PlanShards, RouteRows, WriteShards
from dataengine.schemas import TableSchema
from dataengine.score.stage import Score
from dataengine.select.columns import Columns
from dataengine.select.question import Question
from dataengine.select.stage import Select
from dataengine.sources.in_place import IndexImages, IndexImg2Dataset, IndexTars
from dataengine.sources.stage import MergeTable, ScanTable
from dataengine.storage.rundir import digest

STAGES = ("sources", "download", "score", "dedup", "select", "emit")


@dataclass(frozen=True)
class Pipeline:
    """Steps in an order in which each comes after its needs, and the recipe (64 hex characters) of each."""

    steps: tuple[Step, ...]
    recipes: Mapping[str, str]

    def until(self, stage: str) -> Pipeline:
        """The pipeline up to and including `stage`."""
        wanted = STAGES[: STAGES.index(stage) + 1]
        steps = tuple(step for step in self.steps if step.stage in wanted)
        return Pipeline(steps, {step.name: self.recipes[step.name] for step in steps})


def build_pipeline(config: RunConfig) -> Pipeline:
    """The steps that `config` asks for.

    Raises ConfigError when a rule, preference or cap does not fit the columns that there will be.
    """
    scores = _score_tables(config)
    steps: list[Step] = [*_source_steps(config), *_score_steps(config), *_dedup_steps(config)]
    steps.append(_select_step(config, scores))
    recipes = _recipes(steps)
    published = {"config": config.identity(), "recipes": dict(recipes)}
    emit = _emit_steps(config, scores, published)
    return Pipeline((*steps, *emit), recipes | _recipes(emit, recipes))


def _recipes(steps: Sequence[Step], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """What each step's output depends on but its inputs' content: config, version, and the recipes it builds on."""
    found: dict[str, str] = {}
    for step in steps:
        below = {need.step: found.get(need.step) or (known or {})[need.step] for need in step.needs}
        kind = type(step).__name__
        record = {"step": kind, "version": step.version, "identity": dict(step.identity()), "needs": below}
        found[step.name] = digest(record)
    return found


def _source_steps(config: RunConfig) -> list[Step]:
    steps: list[Step] = []
    for name, source in config.sources.items():
        if source.kind == "table":
            steps += [ScanTable(name, source, config.part_rows), MergeTable(name)]
        elif source.kind == "webdataset":
            steps.append(IndexTars(name, source))
        elif source.kind == "img2dataset":
            steps.append(IndexImg2Dataset(name, source))
        else:
            steps.append(IndexImages(name, source))
    return steps


def _score_steps(config: RunConfig) -> list[Step]:
    steps: list[Step] = [
        Download(name, config.download, source.kind != "table") for name, source in config.sources.items()
    ]
    return steps + [
        Score(
            scorer=scorer,
            source=source,
            config=config.score.scorers[scorer],
            limits=config.download.limits,
            columns=tuple(columns.items()),
            measures=scorer == config.first_scorer,
        )
        for scorer, columns in config.clip_score_columns.items()
        for source in config.sources
    ]


def _score_tables(config: RunConfig) -> dict[str, TableSchema]:
    """SCORE by scorer."""
    steps = (step for step in _score_steps(config) if isinstance(step, Score))
    return {step.scorer: step.schema for step in steps}


def _dedup_steps(config: RunConfig) -> list[Step]:
    sources, dedup = tuple(sorted(config.sources)), config.dedup
    scorer = (dedup.images and dedup.images.scorer) or config.first_scorer
    steps: list[Step] = [Route(name, scorer, config.first_scorer, dedup.num_class_buckets) for name in sources]
    steps.append(Classes(sources, dedup.num_class_buckets))
    if dedup.captions is not None:
        captions = dedup.captions
        steps += [Signatures(captions, config.seed), HotBands(captions), CaptionEdges(captions, config.seed)]
    if dedup.images is not None:
        images = dedup.images
        steps += [Centroids(images, config.seed), Cells(images), ImageEdges(images), MeasureRecall(images, config.seed)]
    return steps


def _edge_steps(config: RunConfig) -> tuple[str, ...]:
    kinds = {"dedup/captions": config.dedup.captions, "dedup/images": config.dedup.images}
    return tuple(name for name, asked in kinds.items() if asked is not None)


def _select_step(config: RunConfig, scores: Mapping[str, TableSchema]) -> Select:
    columns = Columns(tuple(scores.items()), config.passthrough_names, config.caption_names)
    if config.dedup.images is not None:
        columns = replace(columns, with_cell=True)
    # Refuses what would fail only after everything was scored.
    question = Question.ask([config.select], columns)
    columns = replace(columns, with_cell="cell" in question.read)
    return Select(tuple(sorted(config.sources)), columns, config.select, _edge_steps(config), config.seed)


def _emit_steps(config: RunConfig, scores: Mapping[str, TableSchema], published: Mapping[str, Any]) -> list[Step]:
    sources, tables, columns = tuple(sorted(config.sources)), tuple(scores.items()), config.score_columns
    return [
        PlanShards(config.name, sources, tuple(scores), config.emit, published),
        *(RouteRows(source, tables, columns) for source in sources),
        WriteShards(config.name, sources, columns, config.caption_names, config.passthrough_names),
        Publish(
            dataset=config.name,
            sources=sources,
            scans=tuple(name for name, source in config.sources.items() if source.kind == "table"),
            licenses={name: source.license for name, source in config.sources.items()},
            scores=tables,
            score_columns=columns,
            recall_step="dedup/recall" if config.dedup.images is not None else None,
            published=published,
        ),
    ]
