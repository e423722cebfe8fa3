"""What is known of the candidates of a version: by its own tables, and by those of its run where it lies beside it.

The version knows every candidate's key, URL and survivor, and of samples the hashes. Its run also knows the hashes of
what was dropped, classes of exact copies and edges between near-duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import polars as pl

from dataengine.analyst.dataset import Dataset
from dataengine.analyst.run_tables import RunTables
from dataengine.storage.rundir import Commit

IMAGE_CLASSES = ("image_bytes", "pixels")
IMAGE_EDGES = "image_embedding"
DUPLICATES = ("duplicate_image", "duplicate_pair")
"""Reasons in the ledger that say: the survivor has the same image."""
_EDGE_STEPS = ("dedup/images", "dedup/images-wide")


@dataclass(frozen=True)
class Known:
    """Tables to look candidates up in, lazily."""

    dataset: Dataset

    @cached_property
    def run(self) -> RunTables | None:
        """The tables of the run; None where they are gone."""
        return RunTables.of_dataset(self.dataset)

    @property
    def has_duplicates(self) -> bool:
        """Whether classes, and edges if images were compared, can still be read."""
        if self.run is None or not self.run.commits("dedup/classes"):
            return False
        return "dedup/images" not in self.run.units or bool(self.run.commits("dedup/images"))

    def with_column(self, name: str) -> list[pl.LazyFrame]:
        """Tables that hold the column `name` (url, final_url, sha256, pixel_hash or phash) beside `key`."""
        ours = {"url": [self.dataset.ledger()], "sha256": [self.dataset.samples()], "phash": [self.dataset.samples()]}
        frames = list(ours.get(name, []))
        if name in ("final_url", "sha256", "pixel_hash"):
            frames += self._of_run("download/", "sample", name)
        elif name == "phash":
            frames += self._of_run("score/", "score", name)
        return [frame.select("key", name).filter(pl.col(name).is_not_null()) for frame in frames]

    def classes(self) -> list[pl.LazyFrame]:
        """CLASS rows about images."""
        return [
            frame.filter(pl.col("kind").is_in(IMAGE_CLASSES)) for frame in self._of_run("dedup/classes", "class", "key")
        ]

    def edges(self) -> list[pl.LazyFrame]:
        """EDGE rows between images of the run."""
        within = (pl.col("kind") == IMAGE_EDGES) & pl.col("against").is_null()
        return [frame.filter(within) for step in _EDGE_STEPS for frame in self._of_run(step, "edge", "kind")]

    def _of_run(self, step: str, name: str, column: str) -> list[pl.LazyFrame]:
        """The tables `name` of steps that begin with `step`, if they have the column."""
        if self.run is None:
            return []
        matching = [unit for unit in self.run.units if unit == step or (step.endswith("/") and unit.startswith(step))]
        frames = [self._scan(self.run.commits(unit), name) for unit in matching if self.run.commits(unit)]
        return [frame for frame in frames if column in frame.collect_schema().names()]

    def _scan(self, commits: list[Commit], name: str) -> pl.LazyFrame:
        assert self.run is not None
        root = self.run.root
        addresses = [root.address(commit.objects[name].path) for commit in commits]
        return pl.scan_parquet(addresses, storage_options=dict(root.options) or None, glob=False)
