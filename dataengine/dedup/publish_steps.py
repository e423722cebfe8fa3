"""The emit stage, captions: a published version carries the caption tables of what it holds.

    kept.<source> ──by caption hash──► captions

A later run matches new captions with these (`dedup.against`) without reading or signing the old ones again. Only
captions of emitted samples are in them: a caption that was dropped has no copy in the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.against import read_bands, read_captions
from dataengine.dedup.caption_classes import CAPTION_ROWS, by_slot, find_copies
from dataengine.dedup.caption_edges import sortable
from dataengine.dedup.minhash import SignatureSpec
from dataengine.dedup.routed import from_binary
from dataengine.dedup.text_steps import CLASSES
from dataengine.keys import key_bytes
from dataengine.schemas import SELECTION, TableSchema
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.slices import read_each
from dataengine.storage.tables import read_table

_KEPT = TableSchema("kept", pa.schema([CAPTION_ROWS.arrow.field(name) for name in ("key", "hash")]), sorted_by=())


@dataclass(frozen=True)
class KeptCaptions(Step):
    """Sends key and caption hash of each kept row of a source to the slot of the hash."""

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 1
    source: str

    @property
    def unit(self) -> str:
        return f"kept.{self.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(f"dedup/texts.{self.source}"), Need("select/selection", whole=True))

    def identity(self) -> Mapping[str, Any]:
        return {}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        (selected,) = inputs.commits("select/selection")
        path = selected.objects[f"{self.source}.{part.name}"].path
        chosen = read_table(inputs.root, path, SELECTION, ["key", "verdict"])
        kept = chosen.filter(pc.equal(chosen.column("verdict"), "kept"))
        texts = read_captions(inputs.root, inputs.commit(f"dedup/texts.{self.source}").objects["captions"].path)
        there = np.isin(_values(texts, "key"), sortable(key_bytes(kept.column("key"))))
        rows = texts.select(["key", "hash"]).filter(pa.array(there)).combine_chunks()
        outputs.rows_in, outputs.rows_out = len(texts), len(rows)
        outputs.slices("kept", _KEPT, *by_slot(rows, from_binary(rows.column("hash"), np.uint8)))


@dataclass(frozen=True)
class PublishCaptions(Step):
    """Writes the captions and band records of what is emitted into the claimed version."""

    stage: ClassVar[str] = "emit"
    version: ClassVar[int] = 2
    sources: tuple[str, ...]
    spec: SignatureSpec

    @property
    def unit(self) -> str:
        return "captions"

    @property
    def needs(self) -> tuple[Need, ...]:
        whole = ("emit/plan", *(f"emit/kept.{source}" for source in self.sources))
        return (Need(CLASSES), Need("dedup/signatures"), *(Need(name, whole=True) for name in whole))

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return ("emit/plan",)

    def identity(self) -> Mapping[str, Any]:
        return {"sources": list(self.sources)}

    def plan(self, context: PlanContext) -> Plan:
        facts = context.commits("emit/plan")[0].facts
        parts = (Part(part.name, {"slots": part.spec["slots"]}) for part in context.parts(CLASSES))
        return Plan(tuple(parts), {"plan": facts["plan"], "version": str(facts["version"])})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        folder = inputs.commits("emit/plan")[0].facts["folder"]
        rows = read_captions(inputs.root, inputs.commit(CLASSES).objects["captions"].path)
        first, stop = part.spec["slots"]
        kept = [item for source in self.sources for item in inputs.sliced(f"emit/kept.{source}", "kept")]
        emitted = _smallest_keys(pa.concat_tables([_KEPT.empty(), *read_each(kept, _KEPT, first, stop)]))
        stays, published = _published(rows, emitted)
        outputs.rows_in, outputs.rows_out = len(rows), len(published)
        hashes = from_binary(published.column("hash"), np.uint8)
        path = f"{folder}/captions/{part.name}.captions"
        outputs.slices("captions", CAPTION_ROWS, *by_slot(published, hashes), path=path)
        spec = self.spec.to_json()
        for name, item in sorted(inputs.commit("dedup/signatures").objects.items()):
            bands = read_bands(inputs.root, item.path, spec).of_rows(stays)
            path = f"{folder}/captions/{part.name}.{name}"
            outputs.records(name, bands.records, bands.starts, {"spec": spec}, path=path)


def _smallest_keys(kept: pa.Table) -> pa.Table:
    """One row per caption hash, by hash: the smallest emitted key."""
    keys, hashes = from_binary(kept.column("key"), np.uint8), from_binary(kept.column("hash"), np.uint8)
    return kept.take(pa.array(find_copies(hashes, keys).representatives))


def _published(rows: pa.Table, emitted: pa.Table) -> tuple[NDArray[np.bool_], pa.Table]:
    """Which captions are emitted, and these under the key of a row that is."""
    hashes, wanted = _values(rows, "hash"), _values(emitted, "hash")
    stays = np.isin(hashes, wanted)
    published = rows.filter(pa.array(stays)).combine_chunks()
    # Both are by hash, and every emitted caption is among the rows: they are the same ones.
    return stays, CAPTION_ROWS.table(
        {**{name: published.column(name) for name in ("hash", "caption")}, "key": emitted.column("key")}
    )


def _values(table: pa.Table, name: str) -> NDArray[np.bytes_]:
    return sortable(from_binary(table.column(name), np.uint8))
