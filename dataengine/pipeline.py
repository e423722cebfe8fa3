"""The main job as a value: config → steps → recipes. Structure only; what a step does lies in its stage.

sources ──► download ──► score ──► dedup ──► select ──► emit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataengine.config.dedup import ImageDedupConfig
from dataengine.config.run import RunConfig
from dataengine.contract import Step
from dataengine.dedup.caption_steps import (
    AskedTexts,
    CandidatePairs,
    CaptionEdges,
    Signatures,
)
from dataengine.dedup.evaluation_steps import AgainstEvaluation
from dataengine.dedup.image_search import ImageEdges, MeasureRecall
from dataengine.dedup.image_steps import Centroids, PlaceVectors, SampleVectors, VectorSource
from dataengine.dedup.publish_steps import KeptCaptions, PublishCaptions
from dataengine.dedup.signing import comparison_of, signature_spec
from dataengine.dedup.stage import Classes, Route
from dataengine.dedup.text_steps import CaptionClasses, RouteCaptions
from dataengine.download.stage import Download
from dataengine.emit.publish import Publish
from dataengine.emit.stage import PlanShards, RouteRows
from dataengine.emit.writing import WriteShards
from dataengine.schemas import TableSchema
from dataengine.score.evaluation import ScoreEvaluation
from dataengine.score.heads import identify_head
from dataengine.score.stage import Score
from dataengine.score.weights import identify_scorer
from dataengine.select.balance import check_bounds
from dataengine.select.columns import Columns
from dataengine.select.question import Question
from dataengine.select.stage import Select
from dataengine.sources.in_place import IndexImages, IndexImg2Dataset, IndexTars
from dataengine.sources.stage import MergeTable, ScanTable
from dataengine.storage.rundir import digest
from dataengine.storage.tables import TABLE_FORMAT

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

    Raises ConfigError when a rule, preference or cap does not fit the columns that there will be, or a model, its
    weights or a head's do not exist.
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
        found[step.name] = digest(record | {"tables": TABLE_FORMAT})
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
    found = config.score.scorers
    weights = {name: identify_scorer(scorer) for name, scorer in found.items()}
    heads = {
        name: {column: identify_head(head, scorer) for column, head in scorer.heads.items()}
        for name, scorer in found.items()
    }
    return steps + [
        Score(
            scorer=scorer,
            source=source,
            config=found[scorer],
            weights=weights[scorer],
            heads=heads[scorer],
            limits=config.download.limits,
            columns=tuple(columns.items()),
            measures=scorer == config.first_scorer,
            parts_per_batch=config.score.parts_per_batch,
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
    steps: list[Step] = [Route(name, dedup.num_class_buckets) for name in sources]
    steps.append(Classes(sources, dedup.num_class_buckets))
    steps += _caption_steps(config)
    if dedup.images is not None:
        steps += _image_steps(config, dedup.images)
    return steps


def _image_steps(config: RunConfig, images: ImageDedupConfig) -> list[Step]:
    names = tuple(sorted(config.sources))
    vectors = [VectorSource(name, images.scorer or config.first_scorer, config.first_scorer) for name in names]
    steps: list[Step] = [SampleVectors(source, images, config.seed) for source in vectors]
    steps.append(Centroids(names, images, config.seed))
    for rung in (0, 1):
        steps += [PlaceVectors(source, images, rung) for source in vectors]
        steps += [ImageEdges(names, images, config.seed, rung), MeasureRecall(names, images, rung)]
    if config.dedup.evaluation_sets:
        steps += [_evaluation(config, vectors[0].scorer), *(AgainstEvaluation(source, images) for source in vectors)]
    return steps


def _evaluation(config: RunConfig, scorer: str) -> ScoreEvaluation:
    found, sets = config.score.scorers[scorer], config.dedup.evaluation_sets
    return ScoreEvaluation(scorer, found, identify_scorer(found), config.download.limits, sets)


def _evaluation_step(config: RunConfig) -> str | None:
    """The step that embeds evaluation sets, where there are any."""
    images = config.dedup.images
    if images is None or not config.dedup.evaluation_sets:
        return None
    return f"score/evaluation-images.{images.scorer or config.first_scorer}"


def _caption_steps(config: RunConfig) -> list[Step]:
    sources, dedup = tuple(sorted(config.sources)), config.dedup
    steps: list[Step] = [RouteCaptions(source) for source in sources]
    if dedup.captions is None:
        return [*steps, CaptionClasses(sources, (), None)]
    spec, comparison = signature_spec(dedup.captions, config.seed), comparison_of(dedup.captions, config.seed)
    return [
        *steps,
        CaptionClasses(sources, dedup.earlier_versions, spec),
        Signatures(spec),
        CandidatePairs(spec, comparison, dedup.earlier_versions, dedup.memory_bytes),
        AskedTexts(spec, dedup.earlier_versions),
        CaptionEdges(dedup.captions, spec, dedup.earlier_versions),
    ]


def _edge_steps(config: RunConfig) -> tuple[str, ...]:
    captions = () if config.dedup.captions is None else ("dedup/captions",)
    images = () if config.dedup.images is None else ("dedup/images", "dedup/images-wide")
    sets = sorted(config.sources) if config.dedup.evaluation_sets else []
    return ("dedup/caption-classes", *captions, *images, *(f"dedup/evaluation.{source}" for source in sets))


def _select_step(config: RunConfig, scores: Mapping[str, TableSchema]) -> Select:
    columns = Columns(tuple(scores.items()), config.passthrough_names, config.caption_names)
    if config.dedup.images is not None:
        columns = replace(columns, with_cell=True)
    # Refuses what would fail only after everything was scored.
    check_bounds(config.sources, config.select.balance)
    question = Question.ask([config.select], columns)
    columns = replace(columns, with_cell="cell" in question.read)
    return Select(tuple(sorted(config.sources)), columns, config.select, _edge_steps(config), config.seed)


def _emit_steps(config: RunConfig, scores: Mapping[str, TableSchema], published: Mapping[str, Any]) -> list[Step]:
    sources, tables, columns = tuple(sorted(config.sources)), tuple(scores.items()), config.score_columns
    spec = signature_spec(config.dedup.captions, config.seed) if config.dedup.captions is not None else None
    return [
        PlanShards(config.name, sources, tuple(scores), config.emit, published, _evaluation_step(config)),
        *(RouteRows(source, tables, columns) for source in sources),
        WriteShards(
            config.name, sources, columns, config.caption_names, config.passthrough_names, config.extra_members
        ),
        *([*map(KeptCaptions, sources), PublishCaptions(sources, spec)] if spec is not None else []),
        Publish(
            dataset=config.name,
            sources=sources,
            scans=tuple(name for name, source in config.sources.items() if source.kind == "table"),
            licenses={name: source.license for name, source in config.sources.items()},
            scores=tables,
            score_columns=columns,
            recall_step="dedup/recall" if config.dedup.images is not None else None,
            caption_spec=spec.to_json() if spec is not None else None,
            published=published,
        ),
    ]
