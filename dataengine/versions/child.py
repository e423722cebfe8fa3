"""A child version without what was taken down: shards that held any of it are cut anew, all others stay where they lie.

A child is a pure function of its parent and of the take-downs that stand, so that anybody may finish one that somebody
else began. Tables are whole in every version; a tar that did not change is named where it lies.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from dataengine.analyst.dataset import Dataset
from dataengine.emit.card import data_card
from dataengine.emit.ledger import funnel
from dataengine.emit.sidecars import dataset_sidecars, tar_index
from dataengine.emit.versions import VersionFiles, path_within
from dataengine.errors import CorruptObject
from dataengine.schemas import FUNNEL, HISTOGRAM, LEDGER, SHARDS, TableSchema, manifest_schema
from dataengine.select.blocklist import blocklist_condition
from dataengine.storage.rundir import canonical_json
from dataengine.storage.tables import parquet_bytes, read_table
from dataengine.storage.takedowns import TAKEDOWN
from dataengine.trainer.manifest import PublishedFile
from dataengine.versions.captions import cut_captions
from dataengine.versions.known import DUPLICATES
from dataengine.versions.place import DatasetPlace
from dataengine.versions.rewrite import COLUMNS, Cut, check_whole, copy_spans, cut, moved
from dataengine.versions.standing import Standing

_NO_REASON = "on a list of take-downs"


@dataclass(frozen=True)
class TakeDown:
    """What the standing take-downs mean to one published version."""

    place: DatasetPlace
    parent: Dataset
    standing: Standing

    @cached_property
    def removed(self) -> pl.DataFrame:
        """[key, source, shard, caption and scores] of the samples to take out."""
        blank = {name: pl.lit(None, pl.String) for name in ("final_url", "pixel_hash")}
        listed = ~blocklist_condition(self.standing.listed, 0)
        columns = ["key", "source", "shard", "caption", *self.parent.score_names()]
        rows = self.parent.samples().with_columns(**blank).filter(listed).select(columns)
        return rows.collect(engine="streaming").sort("key")

    @property
    def plan(self) -> str:
        """Identity of the child: hash of its parent and of the lists."""
        described = {"parent": self.parent.version.sha256, "takedowns": self.standing.paths}
        return hashlib.sha256(canonical_json(described)).hexdigest()

    @property
    def touched(self) -> list[str]:
        """Names of the shards that are cut anew."""
        return self.removed["shard"].unique().sort().to_list()

    def publish(self, number: int) -> None:
        """Write the child as version `number` and publish it; nothing happens when it is published already.

        Raises CorruptObject when a file of the parent is not what its manifest says.
        """
        folder = self.place.path(number)
        path = f"{folder}/manifest.json"
        if self.place.root.exists(path):
            return
        content = _Child(self, number, VersionFiles(self.place.root, folder)).write()
        if self.place.root.create(path, content) != content:
            raise CorruptObject(
                f"{self.place.root.address(path)}: holds another manifest than its claim makes; two releases of "
                "dataengine may have met. The version that is there stands: run the command again"
            )


@dataclass(frozen=True)
class _Child:
    """One child being written."""

    take: TakeDown
    number: int
    files: VersionFiles

    def write(self) -> bytes:
        """Everything but the manifest is written; the manifest is returned."""
        self._copy_untouched()
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            list(threads.map(self._write_tar, self._cuts))
            list(threads.map(self._write_samples, self.take.parent.version.tables("samples")))
        shards = self._shards()
        self.files.put("shards.parquet", parquet_bytes(shards))
        told = self._write_ledger()
        self.files.put("stats/funnel.parquet", parquet_bytes(told))
        self.files.put("stats/histogram.parquet", parquet_bytes(self._histogram()))
        draws = self._draws()
        for path, content in sorted(dataset_sidecars(self.take.place.name, shards, draws).items()):
            self.files.put(path, content)
        captions = cut_captions(self.files, self._parent_folder, self.take.parent, self.take.removed)
        manifest = self._manifest(shards, told, draws, captions)
        self.files.put("README.md", data_card(manifest, told, shards).encode())
        manifest["files"] = self.files.listed()
        return canonical_json(manifest)

    @cached_property
    def _old_shards(self) -> dict[str, dict[str, Any]]:
        return {row["shard"]: row for row in self._sound("shards.parquet", SHARDS).to_pylist()}

    @cached_property
    def _cuts(self) -> dict[str, Cut]:
        """How each touched shard is cut."""
        wanted = self.take.parent.samples().filter(pl.col("shard").is_in(self.take.touched))
        placed = wanted.select("shard", "index_in_shard", *COLUMNS).sort("shard", "index_in_shard")
        rows = placed.collect(engine="streaming").partition_by("shard", as_dict=True)
        return {
            shard: cut(of_shard, self.take.removed["key"], self._old_shards[shard]["path"])
            for (shard,), of_shard in sorted(rows.items())
        }

    def _path(self, path: str) -> str:
        """A path of the parent, relative to the root."""
        return posixpath.normpath(f"{self._parent_folder}/{path}")

    @property
    def _parent_folder(self) -> str:
        return self.take.place.path(int(self.take.parent.manifest["version"]))

    def _from_here(self, path: str) -> str:
        """A path of the parent as this version names it."""
        return posixpath.relpath(self._path(path), self.files.folder)

    def _copy_untouched(self) -> None:
        """Name tars and indexes that did not change."""
        changed = {self._old_shards[name]["path"] for name in self.take.touched}
        for file in self.take.parent.version.files:
            if file.path.endswith((".tar", ".tar.idx")) and file.path.removesuffix(".idx") not in changed:
                self.files.remember(self._from_here(file.path), file.nbytes, file.sha256)

    def _write_tar(self, shard: str) -> None:
        found, row = self._cuts[shard], self._old_shards[shard]
        if not found.stays.any():
            return
        path = path_within(row["path"])
        root = self.take.place.root
        with root.writer(f"{self.files.folder}/{path}") as tar:
            copy_spans(root, self._path(row["path"]), row["sha256"], found.spans(), tar.write)
        self.files.remember(path, tar.num_bytes, tar.sha256)
        self.files.put(f"{path}.idx", tar_index(found.sample_offsets))

    def _shards(self) -> pa.Table:
        written = {entry["path"]: entry for entry in self.files.entries}
        left = self._left()
        rows = []
        for name, old in sorted(self._old_shards.items()):
            if name not in self._cuts:
                rows.append(old | {"path": self._from_here(old["path"])})
            elif (file := written.get(path_within(old["path"]))) is not None:
                rows.append(old | file | left[name])
        return SHARDS.table({name: [row[name] for row in rows] for name in SHARDS.arrow.names})

    def _left(self) -> dict[str, dict[str, Any]]:
        """What SHARDS says of the samples that are left in each touched shard."""
        touched = pl.col("shard").is_in(self.take.touched)
        left = self.take.parent.samples().filter(touched & ~pl.col("key").is_in(self.take.removed["key"].implode()))
        key = pl.col("key")
        told = left.group_by("shard").agg(num_samples=pl.len(), min_key=key.min(), max_key=key.max())
        return {row.pop("shard"): row for row in told.collect(engine="streaming").to_dicts()}

    def _write_samples(self, path: str) -> None:
        root, schema = self.take.place.root, self._samples_schema
        shards = read_table(root, self._path(path), schema, ["shard"]).column("shard")
        if self._cuts.keys().isdisjoint(shards.unique().to_pylist()):
            self._copy(path)
        else:
            table = moved(self._sound(path, schema), self._cuts)
            self.files.put(path, parquet_bytes(schema.check(table)))

    def _sound(self, path: str, schema: TableSchema) -> pa.Table:
        """A table of the parent, to be written anew: an edited one would get a hash that vouches for it."""
        file = self._parent_files.get(path)
        if file is None:
            raise CorruptObject(f"{self.take.place.root.address(self._path(path))}: its manifest does not list it")
        check_whole(self.take.place.root, self._path(path), file.sha256)
        return read_table(self.take.place.root, self._path(path), schema)

    @cached_property
    def _samples_schema(self) -> TableSchema:
        return manifest_schema(self.take.parent.score_names())

    def _copy(self, path: str) -> None:
        file = self._parent_files[path]
        self.files.copy(self._parent_folder, path, file.nbytes, file.sha256)

    @cached_property
    def _parent_files(self) -> dict[str, PublishedFile]:
        return {file.path: file for file in self.take.parent.version.files}

    def _write_ledger(self) -> pa.Table:
        """Writes the ledger, tombstones in place; returns the funnel."""
        funnels = []
        for path in self.take.parent.version.tables("ledger"):
            table = self._sound(path, LEDGER)
            marked = self._entombed(table)
            if marked.equals(table):
                self._copy(path)
            else:
                self.files.put(path, parquet_bytes(marked))
            funnels.append(funnel(marked))
        counted = ("num_candidates", "num_rows")
        names = list(FUNNEL.sorted_by)
        joined = pl.DataFrame(pl.from_arrow(pa.concat_tables(funnels))).group_by(names).agg(pl.col(counted).sum())
        ordered = joined.sort(names, nulls_last=True).to_arrow()
        return FUNNEL.table({name: ordered.column(name) for name in FUNNEL.arrow.names})

    def _entombed(self, ledger: pa.Table) -> pa.Table:
        """`ledger` with a tombstone for each sample taken down, and each of its copies that had yielded to one."""
        why = self.take.standing.why
        removed = pl.col("key").is_in(self.take.removed["key"].implode())
        copies = pl.col("reason").is_in(DUPLICATES) & pl.col("key").is_in(list(why))
        gone = (removed | copies).fill_null(value=False)
        frame = pl.DataFrame(pl.from_arrow(ledger))
        said = pl.col("key").replace_strict(why, default=_NO_REASON, return_dtype=pl.String)
        stone = {"state": pl.lit("dropped"), "stage": pl.lit(TAKEDOWN), "reason": pl.lit(TAKEDOWN), "rule_value": said}
        stone |= {"survivor_key": pl.lit(None, pl.String), "similarity": pl.lit(None, pl.Float32)}
        marked = frame.with_columns(
            pl.when(gone).then(value).otherwise(pl.col(name)).alias(name) for name, value in stone.items()
        ).to_arrow()
        return LEDGER.table({name: marked.column(name) for name in LEDGER.arrow.names})

    def _histogram(self) -> pa.Table:
        old = self._sound("stats/histogram.parquet", HISTOGRAM)
        return HISTOGRAM.check(_less_emitted(old, self.take.removed))

    def _draws(self) -> dict[str, int]:
        """Training draws of what is left, by source; 0 for one that has none."""
        left = self.take.parent.samples().filter(
            (pl.col("split") == "train") & ~pl.col("key").is_in(self.take.removed["key"].implode())
        )
        summed = left.group_by("source").agg(pl.col("repeat").cast(pl.Int64).sum()).collect(engine="streaming")
        return dict.fromkeys(sorted(self.take.parent.manifest["sources"]), 0) | dict(summed.iter_rows())

    def _manifest(
        self, shards: pa.Table, told: pa.Table, draws: Mapping[str, int], captions: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        old = self.take.parent.manifest
        emitted = {row["source"]: row["num_candidates"] for row in told.to_pylist() if row["state"] == "emitted"}
        sources = {
            name: facts | {"num_emitted": emitted.get(name, 0), "num_draws": draws[name]}
            for name, facts in old["sources"].items()
        }
        mixed = {name: facts | {"realised": draws[name]} for name, facts in old["mixture"]["sources"].items()}
        counts = {
            "num_samples": sum(shards.column("num_samples").to_pylist()),
            "num_draws": sum(draws.values()),
            "num_shards": len(shards),
            "nbytes": sum(shards.column("nbytes").to_pylist()),
        }
        changed = {
            "version": self.number,
            "parent": posixpath.basename(self._parent_folder),
            "plan": self.take.plan,
            "sources": sources,
            "mixture": old["mixture"] | {"sources": mixed},
            "counts": counts,
            "captions": captions,
            "takedowns": self.take.standing.paths,
        }
        return {name: value for name, value in old.items() if name != "files"} | changed


def _less_emitted(histogram: pa.Table, removed: pl.DataFrame) -> pa.Table:
    """HISTOGRAM with the samples `removed` [source, scores] no longer emitted; they were scored all the same."""
    frame = pl.DataFrame(pl.from_arrow(histogram)).with_row_index("place")
    counts = frame["num_emitted"].to_numpy().copy()
    for (source, column), bins in frame.group_by("source", "column"):
        values = removed.filter(pl.col("source") == source)[column].drop_nulls().cast(pl.Float64).to_numpy()
        places = bins.sort("low")
        found = np.searchsorted(places["low"].to_numpy(), values, side="right") - 1
        np.subtract.at(counts, places["place"].to_numpy()[np.clip(found, 0, None)], 1)
    place = histogram.schema.get_field_index("num_emitted")
    return histogram.set_column(place, histogram.schema.field(place), pa.array(counts, pa.int64()))
