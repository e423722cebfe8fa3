"""The whole config of a run, and the settings of the machines it runs on."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dataengine.config.base import EXECUTION, Config
from dataengine.config.dedup import DedupConfig
from dataengine.config.download import DownloadConfig
from dataengine.config.score import ScoreConfig
from dataengine.config.select import SelectConfig
from dataengine.config.sources import ImageParquetSource, Source, SourceName, TableSource
from dataengine.schemas import CANDIDATE, CELL, LEDGER, SAMPLE, SELECTION, manifest_schema, score_schema

_TAKEN_COLUMNS = {
    name
    for table in (CANDIDATE, SAMPLE, SELECTION, LEDGER, CELL, manifest_schema(()), score_schema((), (), measures=True))
    for name in table.arrow.names
}
_TAKEN_BEGINNINGS = ("extra_", "captions_")
"""Of the names that rules have for passthrough columns and named captions."""


class EmitConfig(Config):
    """How shards are cut."""

    target_shard_bytes: Annotated[int, Field(ge=1)] = 900 * 2**20
    """Size that shards are cut towards."""
    shard_multiple: Annotated[int, Field(ge=1)] = 128
    """Shards per source are a multiple of this, so that ranks × workers divide them."""


class Resources(Config):
    """What one worker of a stage holds."""

    num_cpus: Annotated[float, Field(gt=0)] = 1
    """Cores of one worker; torch gets as many threads (one at least)."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of one worker; fractions share a GPU."""
    min_workers: Annotated[int, Field(ge=1)] = 1
    """Workers that the cluster must have room for before the run starts; machines still coming are waited for."""
    max_workers: Annotated[int, Field(ge=1)] | None = None
    """Most workers at once; null: as many as the cluster holds."""

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(f"max_workers: {self.max_workers} is less than min_workers, {self.min_workers}")
        return self


class ExecutionConfig(Config):
    """Where and how wide the run is executed; nothing here changes a published byte."""

    runner: Literal["ray", "serial"] = "ray"
    """`ray` uses a cluster or this machine's cores; `serial` one process, for tests and debugging."""
    address: str | None = None
    """Ray cluster to join; null joins the job's cluster (RAY_ADDRESS) or starts a local one."""
    sources: Resources = Resources()
    """Workers of the sources stage."""
    download: Resources = Resources()
    """Workers of the download stage."""
    score: Resources = Resources()
    """Workers of the score stage."""
    dedup: Resources = Resources()
    """Workers of the dedup stage."""
    select: Resources = Resources()
    """Workers of the select stage."""
    emit: Resources = Resources()
    """Workers of the emit stage."""
    task_retries: Annotated[int, Field(ge=0, le=20)] = 3
    """How often a part is tried again after its worker or machine failed."""
    stall_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """Give up (exit code 75) when no part was committed for this long."""


class SampleWebConfig(Config):
    """The built-in sample web: rendered pages served on loopback, for the quickstart and tests."""

    seed: int = 7
    """Another seed renders another web."""
    num_scenes: Annotated[int, Field(ge=60, le=100_000)] = 1000
    """Good pictures to render; faults and copies come on top."""


class RunConfig(Config):
    """Everything a run is asked for."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}\Z")]
    """Names the run, resumable, and the dataset it publishes."""
    root: Annotated[str, Field(min_length=1, pattern=r"^[^\0]*\Z", json_schema_extra=EXECUTION)]
    """Where runs and datasets live: a folder, s3://, gs:// or az://."""
    storage_options: Annotated[dict[str, str], Field(json_schema_extra=EXECUTION)] = {}
    """Settings of the object store (endpoint, region, ...); credentials come from the environment."""
    seed: int = 0
    """Seeds every draw: dedup anchors and samples, balance, holdout."""
    part_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Candidates per part of a URL source."""
    sources: Annotated[dict[SourceName, Source], Field(min_length=1)]
    """Name → where its candidates come from."""
    download: DownloadConfig = DownloadConfig()
    """What is fetched and stored."""
    score: ScoreConfig
    """Which models look at every image and caption."""
    dedup: DedupConfig = DedupConfig()
    """What counts as a duplicate."""
    select: SelectConfig = SelectConfig()
    """Which rows are published."""
    emit: EmitConfig = EmitConfig()
    """How shards are cut."""
    execution: Annotated[ExecutionConfig, Field(json_schema_extra=EXECUTION)] = ExecutionConfig()
    """Where and how wide the run is executed."""
    sample_web: Annotated[SampleWebConfig | None, Field(json_schema_extra=EXECUTION)] = None
    """Render and serve the sample web while the run needs it."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        self._check_weights()
        self._check_columns()
        self._check_dedup()
        return self

    def _check_weights(self) -> None:
        balance = self.select.balance
        for key, named in (("weights", balance.weights), ("min", balance.min), ("max", balance.max)):
            if unknown := set(named) - set(self.sources):
                raise ValueError(
                    f"select.balance.{key} names no source: {sorted(unknown)}; sources are {sorted(self.sources)}"
                )
        for name in balance.min.keys() & balance.max.keys():
            if balance.min[name] > balance.max[name]:
                raise ValueError(
                    f"select.balance.min.{name}: {balance.min[name]} is more than its max {balance.max[name]}"
                )
        if balance.temperature != 1 and (balance.weights or balance.target is None):
            why = "weights say all" if balance.weights else "it shares out a target, so say how many"
            raise ValueError(f"select.balance.temperature: {balance.temperature} has no effect here: {why}")
        if balance.weights and not any(balance.weights.values()):
            raise ValueError("select.balance.weights: every weight is 0, so nothing could be drawn; raise one")
        if balance.weights and balance.target is None:
            raise ValueError("select.balance.target: missing; weights share out a number of draws, so say how many")

    def _check_columns(self) -> None:
        for name, count in Counter(self.score_columns).items():
            if count > 1 or name in _TAKEN_COLUMNS or name.startswith(_TAKEN_BEGINNINGS):
                raise ValueError(
                    f"score.scorers: {name!r} names another column already; rename the head, scorer or caption"
                )

    def _check_dedup(self) -> None:
        images = self.dedup.images
        if images and images.scorer and images.scorer not in self.score.scorers:
            raise ValueError(
                f"dedup.images.scorer: no scorer {images.scorer!r}; scorers are {list(self.score.scorers)}"
            )
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        """Select may ask for more than dedup did, and not for less: other pairs were never stored."""
        survivors, images, captions = self.select.survivors, self.dedup.images, self.dedup.captions
        for key, asked, stored in (
            ("min_image_similarity", survivors.min_image_similarity, images.min_similarity if images else None),
            ("min_caption_similarity", survivors.min_caption_similarity, captions.min_similarity if captions else None),
        ):
            if asked is not None and stored is not None and asked < stored:
                raise ValueError(
                    f"select.survivors.{key}: got {asked}, but dedup stores pairs from {stored} on; ask for that or "
                    f"more, or lower dedup's min_similarity"
                )
        if survivors.max_rows_per_image > 1 and survivors.policy in ("caption", "none"):
            raise ValueError(f"select.survivors.max_rows_per_image: has no effect with policy {survivors.policy}")

    @property
    def first_scorer(self) -> str:
        """The scorer that gives `clip_score` and the measures."""
        return next(iter(self.score.scorers))

    @property
    def clip_score_columns(self) -> dict[str, dict[str, str]]:
        """Scorer → caption name (`caption` is the primary one) → column of its cosine."""
        columns = {
            scorer: {name: f"clip_score_{scorer}_{name}" for name in ("caption", *self.caption_names)}
            for scorer in self.score.scorers
        }
        columns[self.first_scorer]["caption"] = "clip_score"
        return columns

    @property
    def score_columns(self) -> tuple[str, ...]:
        """Every score column there is, by scorer: cosines, then heads."""
        return tuple(
            column
            for scorer, cosines in self.clip_score_columns.items()
            for column in (*cosines.values(), *self.score.scorers[scorer].heads)
        )

    @property
    def caption_names(self) -> tuple[str, ...]:
        """Every named caption a source declares, sorted."""
        names: set[str] = set()
        for source in self.sources.values():
            if isinstance(source, TableSource | ImageParquetSource):
                names.update(source.caption_columns)
            else:
                names.update(source.caption_fields)
        return tuple(sorted(names))

    @property
    def extra_members(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Source → extensions of the extra members that its samples carry, for sources that have any."""
        named = ((name, source) for name, source in sorted(self.sources.items()) if source.kind == "webdataset")
        return tuple((name, source.extra_members) for name, source in named if source.extra_members)

    @property
    def passthrough_names(self) -> tuple[str, ...]:
        """Every passthrough column that a source declares, sorted."""
        return tuple(sorted({name for source in self.sources.values() for name in source.passthrough}))
