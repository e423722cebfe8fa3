"""The emit stage: the kept rows become shards of a claimed dataset version.

    plan ──► rows.<source> ──by shard──► shards (writing.py) ──► publish (publish.py)

`plan` cuts shards and claims a version; `rows` routes each kept row to its shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.config.run import EmitConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.emit.buckets import nearest_bucket
from dataengine.emit.plan import Kept, Pure, ShardPlan, plan_shards, split_rows
from dataengine.emit.shard import MEMBERS
from dataengine.emit.versions import claim_version, version_path
from dataengine.errors import LedgerError, TryAgainError
from dataengine.schemas import (
    CANDIDATE,
    EXTRA_MEMBERS,
    LOCATION,
    MEMBER,
    SAMPLE,
    SELECTION,
    TableSchema,
    manifest_schema,
)
from dataengine.storage.rundir import Part, Plan, canonical_json
from dataengine.storage.tables import read_table
from dataengine.storage.takedowns import standing_lists

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = "rows"
"""Name of the sliced object that holds a part's rows, a slice per shard of the source."""

_READERS = 2  # parts are mostly waited for where the store is remote
_PLACES = tuple(f"{member}_{what}" for member in MEMBERS for what in ("offset", "nbytes"))
_SAMPLE_COLUMNS = ["format", "width", "height", "sha256", "xxh3", "object", "offset", "nbytes"]


def emit_rows_schema(scores: tuple[str, ...]) -> TableSchema:
    """MANIFEST without the places in a tar, plus where the image bytes are to be read.

    `extra_members` are placed in the object that holds the image.
    """
    fields = [
        field for field in manifest_schema(scores).arrow if field.name not in {"shard", "index_in_shard", *_PLACES}
    ]
    return TableSchema("emit_rows", pa.schema([*fields, *LOCATION]), sorted_by=())


@dataclass(frozen=True)
class PlanShards(Step):
    """Cuts the kept rows into shards and claims the dataset version that will hold them."""

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 4
    dataset: str
    sources: tuple[str, ...]
    scorers: tuple[str, ...]
    config: EmitConfig
    published: Mapping[str, Any]
    """Everything else that the published files depend on: config and recipes."""
    evaluation_step: str | None = None
    """Embedded the images that the rows were matched with, where there are any."""

    @property
    def unit(self) -> str:
        return "plan"

    @property
    def needs(self) -> tuple[Need, ...]:
        per_source = (f"{stage}/{source}" for stage in ("sources", "download") for source in self.sources)
        names = ["select/selection", *per_source, *self._score_steps()]
        names += [self.evaluation_step] if self.evaluation_step else []
        return tuple(Need(name, whole=True) for name in names)

    def _score_steps(self) -> list[str]:
        return [f"score/{scorer}.{source}" for scorer in self.scorers for source in self.sources]

    def identity(self) -> Mapping[str, Any]:
        return {"dataset": self.dataset, "config": self.config.identity(), "published": dict(self.published)}

    def plan(self, context: PlanContext) -> Plan:
        return Plan((Part("part-000000"),))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        described = hashlib.sha256(canonical_json([dict(self.identity()), self._content(inputs)]))
        kept: dict[Pure, list[Kept]] = {}
        with ThreadPoolExecutor(max(_READERS, machine.num_threads)) as threads:
            for digest, split in threads.map(partial(self._read, inputs), *zip(*self._parts(inputs), strict=True)):
                described.update(digest)
                for pure, rows in split.items():
                    kept.setdefault(pure, []).append(rows)
        shards = plan_shards(kept, self.config)
        plan = described.hexdigest()
        outputs.rows_in = outputs.rows_out = sum(shard.num_samples for shard in shards)
        outputs.facts |= {
            "version": (version := claim_version(inputs.root, self.dataset, plan, partial(_refuse_unseen, inputs))),
            "folder": version_path(self.dataset, version),
            "plan": plan,
            "shards": [asdict(shard) for shard in shards],
            "evaluation_images": self._evaluation_images(inputs),
        }

    def _content(self, inputs: Inputs) -> dict[str, Any]:
        """What samples, ledger and statistics say besides the kept rows; without places, times and attempts."""
        found: dict[str, Any] = {
            name: inputs.whole[name].digest() for name in ("select/selection", *self._score_steps())
        }
        for source in self.sources:
            commits = inputs.commits(f"sources/{source}")
            found[f"sources/{source}"] = {commit.part: commit.facts["content_sha256"] for commit in commits}
        if self.evaluation_step:
            found[self.evaluation_step] = self._evaluation_images(inputs)
        return found

    def _evaluation_images(self, inputs: Inputs) -> dict[str, dict[str, Any]]:
        """How many images each evaluation set held, and how many could not be compared, by reason."""
        sets: dict[str, dict[str, Any]] = {}
        for commit in inputs.commits(self.evaluation_step) if self.evaluation_step else ():
            found = commit.facts["evaluation"]
            of_set = sets.setdefault(found["set"], {"num_images": 0, "unusable": {}})
            of_set["num_images"] += found["num_images"]
            for reason, number in found["unusable"].items():
                of_set["unusable"][reason] = of_set["unusable"].get(reason, 0) + number
        return sets

    def _parts(self, inputs: Inputs) -> list[tuple[str, str]]:
        """(path of its SELECTION, path of its SAMPLE) of every part, in the order of sources and parts."""
        (selected,) = inputs.commits("select/selection")
        return [
            (selected.objects[f"{source}.{commit.part}"].path, commit.objects["sample"].path)
            for source in self.sources
            for commit in inputs.commits(f"download/{source}")
        ]

    def _read(self, inputs: Inputs, selection: str, sample: str) -> tuple[bytes, dict[Pure, Kept]]:
        """Hash of what is published of a part's kept rows, and these rows as planning sees them."""
        chosen = read_table(inputs.root, selection, SELECTION, ["source", "verdict", "split", "repeat"])
        names = ["key", "sha256", "xxh3", "format", "width", "height", "nbytes"]
        samples = read_table(inputs.root, sample, SAMPLE, names)
        columns = {name: samples.column(name) for name in names}
        columns |= {name: chosen.column(name) for name in ("source", "split", "repeat")}
        rows = pa.table(columns).filter(pc.equal(chosen.column("verdict"), "kept")).combine_chunks()
        content = hashlib.sha256()
        for batch in rows.to_batches():
            content.update(memoryview(batch.serialize()))
        return content.digest(), split_rows(rows)


def _refuse_unseen(inputs: Inputs) -> None:
    """Raises TryAgainError when something was taken down since rows were selected: it would be published again."""
    (selected,) = inputs.commits("select/selection")
    unseen = [path for path, sha256 in standing_lists(inputs.root).items() if selected.reads.get(path) != sha256]
    if unseen:
        raise TryAgainError(
            f"{inputs.root.address(unseen[0])}: taken down while this run was selecting; nothing was published. Run "
            "the same command again"
        )


@dataclass(frozen=True)
class RouteRows(Step):
    """Sends each kept row of a source to its shard, with everything that the manifest says of it."""

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 2
    source: str
    scores: tuple[tuple[str, TableSchema], ...]
    score_columns: tuple[str, ...]

    @property
    def unit(self) -> str:
        return f"rows.{self.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        by_part = (f"sources/{self.source}", f"download/{self.source}", *self._score_steps().values())
        whole = ("select/selection", "emit/plan")
        return (*(Need(name) for name in by_part), *(Need(name, whole=True) for name in whole))

    def _score_steps(self) -> dict[str, str]:
        return {scorer: f"score/{scorer}.{self.source}" for scorer, _ in self.scores}

    def identity(self) -> Mapping[str, Any]:
        return {"source": self.source, "score_columns": list(self.score_columns)}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        rows = self._rows(part, inputs)
        outputs.rows_in = outputs.rows_out = len(rows)
        outputs.slices(ROWS, emit_rows_schema(self.score_columns), *route(rows, shards_of(inputs, self.source)))

    def _rows(self, part: Part, inputs: Inputs) -> pa.Table:
        (selected,) = inputs.commits("select/selection")
        chosen = read_table(inputs.root, selected.objects[f"{self.source}.{part.name}"].path, SELECTION)
        kept = pc.equal(chosen.column("verdict"), "kept")
        candidates = inputs.table(f"sources/{self.source}", "candidate", CANDIDATE).filter(kept)
        samples = inputs.table(f"download/{self.source}", "sample", SAMPLE, _SAMPLE_COLUMNS).filter(kept)
        chosen = chosen.filter(kept)
        columns: dict[str, Any] = {name: samples.column(name) for name in _SAMPLE_COLUMNS}
        columns |= {name: candidates.column(name) for name in ("key", "source", "url", "caption", "extra")}
        columns |= {name: chosen.column(name) for name in ("split", "repeat")}
        columns["captions"] = _joined(candidates.column("captions"), chosen.column("merged_captions"))
        columns["bucket"] = nearest_bucket(samples.column("width").to_numpy(), samples.column("height").to_numpy())
        columns["extra_members"] = self._extra_members(inputs, kept, len(candidates))
        schema = emit_rows_schema(self.score_columns)
        for (_, table), step in zip(self.scores, self._score_steps().values(), strict=True):
            names = [name for name in table.arrow.names if name in schema.arrow.names and name != "key"]
            scored = inputs.table(step, "score", table, names).filter(kept)
            columns |= {name: scored.column(name) for name in names}
        return schema.table(columns)

    def _extra_members(self, inputs: Inputs, kept: pa.ChunkedArray, num_rows: int) -> pa.Array | pa.ChunkedArray:
        step = f"sources/{self.source}"
        if "member" not in inputs.commit(step).objects:
            return pa.array([[]] * num_rows, EXTRA_MEMBERS)
        return inputs.table(step, "member", MEMBER).column("extra_members").filter(kept)


def shards_of(inputs: Inputs, source: str) -> list[ShardPlan]:
    """The planned shards of `source`, in bucket order."""
    (planned,) = inputs.commits("emit/plan")
    return [ShardPlan(**shard) for shard in planned.facts["shards"] if shard["source"] == source]


def route(rows: pa.Table, shards: Sequence[ShardPlan]) -> tuple[pa.Table, NDArray[np.int64]]:
    """The rows by shard, each shard in the order of `rows`, and where each begins: int64 [shards + 1].

    Raises LedgerError when a row is in no shard.
    """
    number = np.full(len(rows), -1)
    keys, splits, formats = (_text(rows.column(name)) for name in ("key", "split", "format"))
    runs = {(shard.split, shard.format) for shard in shards}
    for split, form in runs:
        places = np.array([i for i, shard in enumerate(shards) if (shard.split, shard.format) == (split, form)])
        first = np.array([shards[i].min_key for i in places], keys.dtype)
        mine = (splits == split.encode()) & (formats == form.encode())
        number[mine] = places[np.searchsorted(first, keys[mine], side="right") - 1]
    last = np.array([shard.max_key for shard in shards], keys.dtype)
    if len(rows) and ((number < 0).any() or (keys > last[number]).any()):
        raise LedgerError("a kept row is in no planned shard; the plan is of another selection")
    order = np.argsort(number, kind="stable")
    return rows.take(order), np.searchsorted(number[order], np.arange(len(shards) + 1))


def _text(values: pa.ChunkedArray) -> NDArray[np.bytes_]:
    return np.array(values.to_pylist(), np.bytes_)


def _joined(first: pa.ChunkedArray, second: pa.ChunkedArray) -> list[list[tuple[str, str]]]:
    """Two map columns as one; where a name stands in both, the first one's text."""
    pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
    return [list((dict(right) | dict(left)).items()) for left, right in pairs]
