"""The last step: tables, side files and data card of a version, then the manifest that publishes it.

Until `manifest.json` exists the version is not there. Nothing in it names a machine, a path outside or a time, so the
same rows under the same config are the same bytes.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.emit.card import data_card
from dataengine.emit.ledger import build_ledger, check_ledger, funnel, histograms
from dataengine.emit.order import sorted_by_key
from dataengine.emit.sidecars import dataset_sidecars
from dataengine.emit.versions import VersionFiles, version_path
from dataengine.errors import CorruptObject, LedgerError
from dataengine.schemas import CANDIDATE, FUNNEL, HISTOGRAM, LEDGER, SELECTION, SHARDS, TableSchema, manifest_schema
from dataengine.storage.rundir import Commit, ObjectRef, Part, Plan, canonical_json
from dataengine.storage.tables import parquet_bytes, read_table

FORMAT = "dataengine-dataset/1"
LEDGER_ROWS = 1_000_000  # per ledger part: about 100 MB, one sorted run
_CAPTION_STEPS = ("emit/captions", "dedup/captions", "dedup/pairs")
_VERDICT = ("verdict", "stage", "reason", "rule_value", "survivor_key", "similarity", "split", "repeat")


@dataclass(frozen=True)
class Publish(Step):
    """Checks that the ledger closes, writes what describes the dataset, and publishes it."""

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 5
    dataset: str
    sources: tuple[str, ...]
    scans: tuple[str, ...]
    """Sources whose input rows were counted by a scan of their tables."""
    licenses: Mapping[str, str]
    scores: tuple[tuple[str, TableSchema], ...]
    score_columns: tuple[str, ...]
    recall_step: str | None
    caption_spec: Mapping[str, Any] | None
    """How captions were signed; None when they were not compared."""
    published: Mapping[str, Any]

    @property
    def unit(self) -> str:
        return "publish"

    @property
    def needs(self) -> tuple[Need, ...]:
        names = ["emit/plan", "emit/shards", "select/selection"]
        names += [f"sources/{source}.scan" for source in self.scans]
        names += [f"sources/{source}" for source in self.sources]
        names += [f"score/{scorer}.{source}" for source in self.sources for scorer, _ in self.scores]
        names += [self.recall_step] if self.recall_step else []
        names += list(_CAPTION_STEPS) if self.caption_spec is not None else []
        return tuple(Need(name, whole=True) for name in names)

    def identity(self) -> Mapping[str, Any]:
        return {"dataset": self.dataset, "published": dict(self.published)}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        (planned,) = inputs.commits("emit/plan")
        writer = VersionFiles(inputs.root, version_path(self.dataset, planned.facts["version"]))
        rows, shards = self._rows(inputs), self._shards(inputs)
        ledger = LEDGER.check(pa.concat_tables(_ledger_parts(rows)))
        check_ledger(ledger, self._input_rows(inputs))
        self._remember(inputs, writer)
        self._write_shards(shards, rows, writer)
        told = self._write_ledger(ledger, rows, writer)
        manifest = self._manifest(planned, ledger, inputs)
        writer.put("README.md", data_card(manifest, told, shards).encode())
        manifest["files"] = writer.listed()
        content = canonical_json(manifest)
        path = f"{writer.folder}/manifest.json"
        if inputs.root.create(path, content) != content:
            raise CorruptObject(
                f"{inputs.root.address(path)}: holds another manifest than its plan makes; publish anew"
            )
        outputs.objects["manifest"] = ObjectRef(path, len(content), hashlib.sha256(content).hexdigest())
        outputs.rows_in, outputs.rows_out = len(ledger), manifest["counts"]["num_samples"]

    def _rows(self, inputs: Inputs) -> pa.Table:
        """Every candidate with its verdict and scores, sorted by key.

        Raises LedgerError when the verdicts of a part are not about its candidates.
        """
        (selected,) = inputs.commits("select/selection")
        tables = []
        for source in self.sources:
            for i, commit in enumerate(inputs.commits(f"sources/{source}")):
                names = ["key", "num_rows", "source", "url"]
                candidates = read_table(inputs.root, commit.objects["candidate"].path, CANDIDATE, names)
                path = selected.objects[f"{source}.{commit.part}"].path
                chosen = read_table(inputs.root, path, SELECTION, ["key", *_VERDICT])
                if not chosen.column("key").equals(candidates.column("key")):
                    raise LedgerError(f"{inputs.root.address(path)}: other keys than {source} {commit.part} has")
                columns = {name: candidates.column(name) for name in names}
                columns |= {name: chosen.column(name) for name in _VERDICT}
                for scorer, schema in self.scores:
                    scored = inputs.commits(f"score/{scorer}.{source}")[i].objects["score"].path
                    wanted = [name for name in schema.arrow.names if name in self.score_columns]
                    table = read_table(inputs.root, scored, schema, wanted)
                    columns |= {name: table.column(name) for name in wanted}
                tables.append(pa.table(columns))
        return sorted_by_key(tables)

    def _remember(self, inputs: Inputs, writer: VersionFiles) -> None:
        """Lists the files of the version that earlier steps wrote."""
        for step in ("emit/shards", "emit/captions") if self.caption_spec is not None else ("emit/shards",):
            for item in (item for commit in inputs.commits(step) for item in commit.objects.values()):
                writer.remember(posixpath.relpath(item.path, writer.folder), item.nbytes, item.sha256)

    def _write_shards(self, shards: pa.Table, rows: pa.Table, writer: VersionFiles) -> None:
        """Writes SHARDS and the side files for other readers."""
        if not len(shards):
            writer.put("samples/part-000000.parquet", parquet_bytes(manifest_schema(self.score_columns).empty()))
        writer.put("shards.parquet", parquet_bytes(SHARDS.check(shards)))
        trained = rows.filter(pc.equal(rows.column("split"), "train"))
        for path, content in sorted(dataset_sidecars(self.dataset, shards, _draws_by_source(trained)).items()):
            writer.put(path, content)

    def _write_ledger(self, ledger: pa.Table, rows: pa.Table, writer: VersionFiles) -> pa.Table:
        """Writes the ledger and the stats; returns the funnel."""
        for number, start in enumerate(range(0, max(len(ledger), 1), LEDGER_ROWS)):
            content = parquet_bytes(ledger.slice(start, LEDGER_ROWS))
            writer.put(f"ledger/part-{number:06d}.parquet", content)
        told = FUNNEL.check(funnel(ledger))
        writer.put("stats/funnel.parquet", parquet_bytes(told))
        measured = rows.select(["source", "verdict", *self.score_columns])
        writer.put("stats/histogram.parquet", parquet_bytes(HISTOGRAM.check(histograms(measured, self.score_columns))))
        return told

    def _shards(self, inputs: Inputs) -> pa.Table:
        (planned,) = inputs.commits("emit/plan")
        folder = version_path(self.dataset, planned.facts["version"])
        rows = []
        for shard, commit in zip(planned.facts["shards"], inputs.commits("emit/shards"), strict=True):
            tar = commit.objects["tar"]
            places = {"path": posixpath.relpath(tar.path, folder), "shard": shard["name"]}
            names = ("source", "format", "num_samples", "min_key", "max_key")
            rows.append({name: shard[name] for name in names} | places | {"nbytes": tar.nbytes, "sha256": tar.sha256})
        rows.sort(key=lambda row: row["shard"])
        return SHARDS.table({name: [row[name] for row in rows] for name in SHARDS.arrow.names})

    def _input_rows(self, inputs: Inputs) -> dict[str, int]:
        """Input rows by source, as counted where they were first read."""
        counted = {}
        for source in self.sources:
            step = f"sources/{source}.scan" if source in self.scans else f"sources/{source}"
            counted[source] = sum(commit.rows_in for commit in inputs.commits(step))
        return counted

    def _manifest(self, planned: Commit, ledger: pa.Table, inputs: Inputs) -> dict[str, Any]:
        (selected,) = inputs.commits("select/selection")
        shards = inputs.commits("emit/shards")
        mixture = selected.facts["mixture"]
        input_rows = self._input_rows(inputs)
        return {
            "format": FORMAT,
            "name": self.dataset,
            "version": planned.facts["version"],
            "parent": self._parent(inputs),
            "plan": planned.facts["plan"],
            **self.published,
            "sources": {source: self._source_counts(source, ledger, mixture, input_rows) for source in self.sources},
            "mixture": mixture,
            "provenance": self._provenance(inputs),
            "dedup": self._recall(inputs) | _evaluation_images(planned) | self._caption_counts(inputs),
            "captions": self._caption_tables(inputs, version_path(self.dataset, planned.facts["version"])),
            "counts": {
                "num_samples": sum(commit.rows_out for commit in shards),
                "num_draws": sum(of_source["realised"] for of_source in mixture["sources"].values()),
                "num_shards": len(shards),
                "nbytes": sum(commit.objects["tar"].nbytes for commit in shards),
            },
        }

    def _parent(self, inputs: Inputs) -> str | None:
        """The newest earlier version that shards of this one lie in."""
        (planned,) = inputs.commits("emit/plan")
        folders = {commit.objects["tar"].path.split("/")[2] for commit in inputs.commits("emit/shards")}
        return max(folders - {f"v{planned.facts['version']:06d}"}, default=None)

    def _source_counts(
        self, source: str, ledger: pa.Table, mixture: Mapping[str, Any], input_rows: Mapping[str, int]
    ) -> dict[str, Any]:
        mine = ledger.filter(pc.equal(ledger.column("source"), source))
        return {
            "license": self.licenses[source],
            "num_rows": input_rows[source],
            "num_candidates": len(mine),
            "num_emitted": pc.sum(pc.equal(mine.column("state"), "emitted")).as_py() or 0,
            "num_draws": mixture["sources"][source]["realised"],
        }

    def _provenance(self, inputs: Inputs) -> dict[str, Any]:
        """What scored the rows, by scorer; a list where parts were scored by different ones."""
        found: dict[str, Any] = {}
        for scorer, _ in self.scores:
            facts = [
                commit.facts["provenance"]
                for source in self.sources
                for commit in inputs.commits(f"score/{scorer}.{source}")
            ]
            different = {canonical_json(item): item for item in facts}
            items = [different[name] for name in sorted(different)]
            found[scorer] = items[0] if len(items) == 1 else items
        return found

    def _recall(self, inputs: Inputs) -> dict[str, Any]:
        if self.recall_step is None:
            return {}
        return {"image_recall": inputs.commits(self.recall_step)[0].facts["recall"]}

    def _caption_counts(self, inputs: Inputs) -> dict[str, Any]:
        """What caption dedup compared, and what bounding dense neighbourhoods cost it."""
        if self.caption_spec is None:
            return {}
        counted: Counter[str] = Counter()
        for step in ("dedup/pairs", "dedup/captions"):
            for commit in inputs.commits(step):
                counted.update(commit.counts)
        audited = counted["audited_pairs"]
        leak = round(counted["leaked_pairs"] / audited, 6) if audited else None
        num_captions = sum(commit.rows_in for commit in inputs.commits("dedup/captions"))
        return {"captions": {"num_captions": num_captions, **dict(sorted(counted.items())), "dense_leak": leak}}

    def _caption_tables(self, inputs: Inputs, folder: str) -> dict[str, Any] | None:
        """Where the tables lie that a later run matches its captions with."""
        if self.caption_spec is None:
            return None
        parts = []
        for commit in inputs.commits("emit/captions"):
            paths = {name: item.path.removeprefix(f"{folder}/") for name, item in sorted(commit.objects.items())}
            captions = paths.pop("captions")
            parts.append({"captions": captions, "bands": list(paths.values()), "num_rows": commit.rows_out})
        return {"spec": dict(self.caption_spec), "parts": parts}


def _evaluation_images(planned: Commit) -> dict[str, Any]:
    """What was compared with, by evaluation set."""
    sets = planned.facts["evaluation_images"]
    return {"evaluation_images": sets} if sets else {}


def _ledger_parts(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, max(len(rows), 1), LEDGER_ROWS):
        part = rows.slice(start, LEDGER_ROWS)
        yield build_ledger(part.select(["key", "num_rows", "source", "url"]), part.select(["key", *_VERDICT]))


def _draws_by_source(rows: pa.Table) -> Counter[str]:
    summed = rows.group_by("source").aggregate([("repeat", "sum")])
    return Counter(dict(zip(summed.column("source").to_pylist(), summed.column("repeat_sum").to_pylist(), strict=True)))
