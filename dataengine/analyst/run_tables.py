"""The tables of a run, asked about one candidate: which part holds it, and what each stage wrote of it.

In goes a run and a key; out comes a `Record` of plain values. It opens the few parts that can hold the key: those of a
URL list are ranges of keys, so that the part follows from the key; only of sources that lie in tars are all looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from dataengine.analyst.dataset import Dataset
from dataengine.errors import MissingObject
from dataengine.keys import key_ranges, url_keys
from dataengine.storage.rundir import Commit, RunDirectory, UnitDirectory
from dataengine.storage.store import Root

Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One candidate as the stages wrote it down; what a stage has not written yet is empty."""

    candidate: Row
    sample: Row
    scores: Row
    selection: Row

    @property
    def stored(self) -> str | None:
        """Where the stored image lies: object, first byte and length."""
        if self.sample.get("object") is None:
            return None
        return f"{self.sample['object']} at {self.sample['offset']}, {self.sample['nbytes']} bytes"


@dataclass(frozen=True)
class RunTables:
    """The units of one config of a run: step (`download/photos`) → folder."""

    root: Root
    units: Mapping[str, str]

    @staticmethod
    def of_run(run: RunDirectory) -> RunTables:
        """The units that the last config of a run asked for. Raises MissingObject when there is no such run."""
        units = run.last_config()["units"]
        return RunTables(run.root, {_step_of(path.removeprefix(f"{run.path}/")): path for path in units})

    @staticmethod
    def of_dataset(dataset: Dataset) -> RunTables | None:
        """The units that a published version was made of; None where its run does not lie beside it any more."""
        folder, separator, _ = dataset.version.root.address("").rstrip("/").rpartition("/datasets/")
        run = f"runs/{dataset.manifest['name']}"
        units = {step: f"{run}/{step}-{recipe[:8]}" for step, recipe in dataset.manifest["recipes"].items()}
        tables = RunTables(Root(folder, dataset.version.root.options), units)
        return tables if separator and any(tables.commits(f"sources/{source}") for source in tables.sources) else None

    @cached_property
    def sources(self) -> list[str]:
        """Names of the sources."""
        return sorted(step.removeprefix("download/") for step in self.units if step.startswith("download/"))

    @cached_property
    def _commits(self) -> dict[str, list[Commit]]:
        return {}

    def commits(self, step: str) -> list[Commit]:
        """The newest commits of a step, in part order; none where it was not begun."""
        if step not in self._commits:
            standing = UnitDirectory(self.root, self.units[step]).standing()[1] if step in self.units else []
            self._commits[step] = sorted(standing, key=lambda commit: commit.part)
        return self._commits[step]

    def published(self) -> str | None:
        """Address of the version that these units became."""
        for commit in self.commits("emit/publish"):
            return self.root.address(commit.objects["manifest"].path.removesuffix("/manifest.json"))
        return None

    def keys_of(self, url: str) -> list[str]:
        """The keys that candidates of this URL have: made from it in URL lists, found by reading in tars."""
        made = {source: url_keys(source, [url])[0] for source in self.sources}
        found = [key for source, key in made.items() if self._place(source, key) is not None]
        if found:
            return found
        paths = [path for source in self.sources for path in self._paths(source, "candidate")]
        if not paths:
            return []
        rows = self._scan(paths).filter(pl.col("url") == url).select("key").collect()
        return sorted(rows["key"])

    def keys_from(self, beginning: str) -> list[str]:
        """The keys that begin so, of whatever source."""
        first, last = beginning.ljust(32, "0"), beginning.ljust(32, "f")
        found: list[str] = []
        for source in self.sources:
            paths = self._paths(source, "candidate")
            wanted = [paths[at] for at in self._parts_between(source, first, last)]
            if wanted:
                within = pl.col("key").is_between(pl.lit(first), pl.lit(last))
                found.extend(self._scan(wanted).filter(within).select("key").collect()["key"])
        return sorted(found)

    def record(self, key: str) -> Record | None:
        """What the stages wrote of the candidate with this key; None where there is none."""
        for source in self.sources:
            place = self._place(source, key)
            if place is not None:
                return self._record(source, place, key)
        return None

    def _record(self, source: str, place: int, key: str) -> Record:
        part = self.commits(f"sources/{source}")[place].part
        scores: Row = {}
        for step in self.units:
            if step.startswith("score/") and step.rpartition(".")[2] == source:
                scores = {**self._row(step, part, "score", key), **scores}
        selection: Row = {}
        for commit in self.commits("select/selection"):
            if f"{source}.{part}" in commit.objects:
                selection = self._find(commit.objects[f"{source}.{part}"].path, key)
        return Record(
            candidate=self._row(f"sources/{source}", part, "candidate", key),
            sample=self._row(f"download/{source}", part, "sample", key),
            scores={name: value for name, value in scores.items() if name != "key"},
            selection=selection,
        )

    def _row(self, step: str, part: str, name: str, key: str) -> Row:
        commit = next((commit for commit in self.commits(step) if commit.part == part), None)
        return self._find(commit.objects[name].path, key) if commit is not None else {}

    def _find(self, path: str, key: str) -> Row:
        rows = self._scan([path]).filter(pl.col("key") == key).collect().to_dicts()
        return rows[0] if rows else {}

    def _place(self, source: str, key: str) -> int | None:
        """The number of the part that holds a key."""
        paths = self._paths(source, "candidate")
        for at in self._parts_between(source, key, key):
            if self._find(paths[at], key):
                return at
        return None

    def _parts_between(self, source: str, first: str, last: str) -> list[int]:
        """The parts that may hold keys from `first` to `last`."""
        commits = self.commits(f"sources/{source}")
        if f"sources/{source}.scan" in self.units and commits:
            low, high = key_ranges([first, last], len(commits)).tolist()
            return list(range(low, high + 1))
        return list(range(len(commits)))

    def _paths(self, source: str, name: str) -> list[str]:
        return [commit.objects[name].path for commit in self.commits(f"sources/{source}")]

    def _scan(self, paths: list[str]) -> pl.LazyFrame:
        addresses = [self.root.address(path) for path in paths]
        return pl.scan_parquet(addresses, storage_options=dict(self.root.options) or None, glob=False)


def _step_of(unit: str) -> str:
    """`download/photos-1a2b3c4d` → `download/photos`."""
    return unit.rpartition("-")[0]


def open_run(address: str, options: Mapping[str, str]) -> RunTables | None:
    """The tables of the run at `<root>/runs/<name>`; None when `address` is no such thing."""
    root, runs, name = address.rstrip("/").rpartition("/runs/")
    if not runs or "/" in name:
        return None
    try:
        return RunTables.of_run(RunDirectory.open(root, options, name))
    except MissingObject:
        return None
