"""The dedup stage, exact copies of captions: texts are routed by hash and reduced to classes and representatives.

texts.<source> ──by caption hash──► caption-classes ──► signatures ... (caption_steps.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.against import earlier_parts, fingerprints
from dataengine.dedup.caption_classes import CAPTION_ROWS, NUM_HASH_SLOTS, by_slot, find_copies
from dataengine.dedup.caption_edges import against_copies
from dataengine.dedup.captions import caption_hashes, normalise_captions
from dataengine.dedup.minhash import SignatureSpec
from dataengine.dedup.routed import flat, from_binary, to_binary
from dataengine.keys import key_bytes
from dataengine.schemas import CANDIDATE, CLASS, EDGE, SAMPLE
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.slices import SlicedObject, read_each

CLASSES = "dedup/caption-classes"
# Of captions and their keys: a few hundred thousand rows, so that 24 million are a hundred parts.
PART_BYTES = 32 * 2**20


@dataclass(frozen=True)
class RouteCaptions(Step):
    """Normalises the captions of a source's samples, and sends them to the slot of their hash."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    source: str

    @property
    def unit(self) -> str:
        return f"texts.{self.source}"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(f"sources/{self.source}"), Need(f"download/{self.source}"))

    def identity(self) -> Mapping[str, Any]:
        return {}

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        candidates = inputs.table(f"sources/{self.source}", "candidate", CANDIDATE, ["key", "caption"])
        samples = inputs.table(f"download/{self.source}", "sample", SAMPLE, ["status"])
        there = pc.equal(samples.column("status"), "ok")
        routed, edges = routed_captions(candidates.filter(there))
        outputs.rows_in, outputs.rows_out = len(samples), len(routed)
        outputs.facts["nbytes"] = routed.nbytes
        outputs.slices("captions", CAPTION_ROWS, routed, edges)


def routed_captions(rows: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """CAPTION_ROWS by slot of rows of key and caption, and where each slot begins.

    An empty caption says nothing, and is a copy of none.
    """
    captions, keys = normalise_captions(rows.column("caption")), rows.column("key")
    said = pc.greater(pc.binary_length(captions), 0)
    if not pc.all(said).as_py():
        captions, keys = captions.filter(said), keys.filter(said)
    hashes = caption_hashes(captions)
    table = CAPTION_ROWS.table(
        {"key": to_binary(key_bytes(flat(keys))), "hash": to_binary(hashes), "caption": captions}
    )
    return by_slot(table, hashes)


@dataclass(frozen=True)
class CaptionClasses(Step):
    """Finds exact copies of captions, in this run and in earlier versions, and who represents each class."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    sources: tuple[str, ...]
    against: tuple[str, ...]
    spec: SignatureSpec | None
    """How captions are signed; None when only exact copies are asked for."""

    @property
    def unit(self) -> str:
        return CLASSES.partition("/")[2]

    @property
    def needs(self) -> tuple[Need, ...]:
        return tuple(Need(name, whole=True) for name in self.plan_needs)

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return tuple(f"dedup/texts.{source}" for source in self.sources)

    def identity(self) -> Mapping[str, Any]:
        return {"sources": list(self.sources), "part_bytes": PART_BYTES}

    def plan(self, context: PlanContext) -> Plan:
        nbytes = sum(commit.facts["nbytes"] for name in self.plan_needs for commit in context.commits(name))
        spec = {"reads": fingerprints(context.root, self.against)}
        if self.spec is not None:
            earlier_parts(context.root, spec["reads"], self.spec.to_json())  # refuses before anything is worked on
        return slot_plan(NUM_HASH_SLOTS, -(-nbytes // PART_BYTES), spec)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        first, stop = part.spec["slots"]
        routed = [item for name in self.plan_needs for item in inputs.sliced(name, "captions")]
        rows = pa.concat_tables([CAPTION_ROWS.empty(), *read_each(routed, CAPTION_ROWS, first, stop)])
        keys, hashes = from_binary(rows.column("key"), np.uint8), from_binary(rows.column("hash"), np.uint8)
        copies = find_copies(hashes, keys)
        classes = copies.table(keys)
        chosen = rows.take(pa.array(copies.representatives)).combine_chunks()
        edges = self._edges(chosen, part, inputs)
        outputs.rows_in = len(rows)
        outputs.count({"caption_exact": len(classes), "against": len(edges)})
        outputs.table("class", CLASS, classes)
        outputs.table("edge", EDGE, edges)
        outputs.slices("captions", CAPTION_ROWS, *by_slot(chosen, hashes[copies.representatives]))
        outputs.rows_out = len(chosen)

    def _edges(self, chosen: pa.Table, part: Part, inputs: Inputs) -> pa.Table:
        if not self.against or self.spec is None:
            return EDGE.empty()
        first, stop = part.spec["slots"]
        earlier = earlier_parts(inputs.root, manifests_of(part, self.against), self.spec.to_json())
        tables = (SlicedObject.open(inputs.root, item.captions).read(CAPTION_ROWS, first, stop) for item in earlier)
        return against_copies(chosen, zip((item.dataset for item in earlier), tables, strict=True))


def slot_plan(num_slots: int, num_parts: int, spec: Mapping[str, Any]) -> Plan:
    """Runs of slots, as equal as can be, and at least one."""
    edges = np.linspace(0, num_slots, min(max(num_parts, 1), num_slots) + 1).round().astype(int).tolist()
    parts = []
    for number, slots in enumerate(pairwise(edges)):
        # What a part holds is identity, too: under another plan the same name is another part.
        reads = {**spec["reads"], "slots": f"{slots[0]}-{slots[1]} of {num_slots}"}
        parts.append(Part(f"part-{number:06d}", {**spec, "slots": list(slots), "reads": reads}))
    return Plan(tuple(parts))


def manifests_of(part: Part, against: tuple[str, ...]) -> dict[str, str]:
    """The manifests to be matched with (address → SHA-256), as the part was planned with them."""
    return {address: part.spec["reads"][address] for address in against}
