"""The dedup stage, captions: exact copies become classes, their representatives are signed, paired and compared.

    texts.<source> ──by caption hash──► caption-classes ──► signatures ──by band hash──► pairs
                                               │                                        │    │
                                               ├──by part of the right row──► asked ◄───┘    │
                                               └─────────────────► captions ◄──by part of the left row

A caption travels once by its hash, and once more to each part that asked for it; between them only band records and
pairs of row numbers do. What each step holds at once is bounded by a part, or by `memory_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.against import EarlierPart, earlier_parts, fingerprints, open_bands
from dataengine.dedup.bands import BAND_ROWS, NUM_SLOTS, RECORD_BYTES, band_table, read_records
from dataengine.dedup.caption_classes import CAPTION_ROWS, NUM_HASH_SLOTS, by_slot, find_copies, hash_slots
from dataengine.dedup.caption_edges import PAIR_TEXTS, PairTexts, against_copies, caption_edges
from dataengine.dedup.caption_pairs import (
    Comparison,
    Runs,
    audited_pairs,
    candidate_pairs,
    distinct_pairs,
    ends,
    find_runs,
    stands_in,
)
from dataengine.dedup.captions import caption_hashes, normalise_captions
from dataengine.dedup.minhash import SignatureSpec
from dataengine.dedup.numbering import Numbering
from dataengine.dedup.routed import flat, from_binary, to_binary
from dataengine.keys import key_bytes
from dataengine.schemas import CANDIDATE, CLASS, EDGE, SAMPLE, TableSchema, column
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.slices import SlicedObject, read_each

CLASSES = "dedup/caption-classes"
_PART_BYTES = (
    32 * 2**20
)  # of captions and their keys: a few hundred thousand rows, so that 24 million are a hundred parts
_BANDED_ROWS = 1 << 19  # signed at once: 26 bands of them are 218 MB of records
_RECORD_COPIES = 6  # of each record while a bucket is sorted: as read, its place, and what stands in runs
_PAIRS = TableSchema("pairs", pa.schema([column("pair", pa.uint64(), "lower row << 32 | higher row")]), sorted_by=())
_ASKED = TableSchema(
    "asked",
    pa.schema(
        [column("row", pa.uint32(), "whose caption is asked for"), column("part", pa.uint32(), "the part that asks")]
    ),
    sorted_by=(),
)
_DENSE = TableSchema("dense", pa.schema([column("row", pa.uint32(), "stands in a dense run")]), sorted_by=())


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
        routed = routed_captions(candidates.filter(there))
        outputs.rows_in, outputs.rows_out = len(samples), sum(map(len, routed))
        outputs.facts["nbytes"] = sum(table.nbytes for table in routed)
        outputs.slices("captions", CAPTION_ROWS, routed)


def routed_captions(rows: pa.Table) -> list[pa.Table]:
    """CAPTION_ROWS by slot, out of rows of key and caption; an empty caption says nothing, and is a copy of none."""
    captions = normalise_captions(rows.column("caption"))
    said = pc.greater(pc.binary_length(captions), 0)
    captions, keys = captions.filter(said), flat(rows.column("key").filter(said))
    hashes = caption_hashes(captions)
    table = CAPTION_ROWS.table({"key": to_binary(key_bytes(keys)), "hash": to_binary(hashes), "caption": captions})
    return by_slot(table, hash_slots(hashes), NUM_HASH_SLOTS)


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
        return {"sources": list(self.sources), "part_bytes": _PART_BYTES}

    def plan(self, context: PlanContext) -> Plan:
        nbytes = sum(commit.facts["nbytes"] for name in self.plan_needs for commit in context.commits(name))
        spec = {"reads": fingerprints(context.root, self.against)}
        if self.spec is not None:
            earlier_parts(context.root, spec["reads"], self.spec.to_json())  # refuses before anything is worked on
        return _slot_plan(NUM_HASH_SLOTS, -(-nbytes // _PART_BYTES), spec)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        first, stop = part.spec["slots"]
        routed = [item for name in self.plan_needs for item in inputs.sliced(name, "captions")]
        rows = pa.concat_tables([CAPTION_ROWS.empty(), *read_each(routed, CAPTION_ROWS, first, stop)])
        keys, hashes = from_binary(rows.column("key"), np.uint8), from_binary(rows.column("hash"), np.uint8)
        copies = find_copies(hashes, keys)
        classes = copies.table(keys)
        chosen = rows.take(pa.array(copies.representatives)).combine_chunks()
        slots = hash_slots(hashes[copies.representatives])
        edges = self._edges(chosen, part, inputs)
        outputs.rows_in = len(rows)
        outputs.count({"caption_exact": len(classes), "against": len(edges)})
        outputs.table("class", CLASS, classes)
        outputs.table("edge", EDGE, edges)
        outputs.slices("captions", CAPTION_ROWS, by_slot(chosen, slots, NUM_HASH_SLOTS))
        outputs.rows_out = len(chosen)

    def _edges(self, chosen: pa.Table, part: Part, inputs: Inputs) -> pa.Table:
        if not self.against or self.spec is None:
            return EDGE.empty()
        first, stop = part.spec["slots"]
        earlier = earlier_parts(inputs.root, _manifests(part, self.against), self.spec.to_json())
        tables = (SlicedObject.open(inputs.root, item.captions).read(CAPTION_ROWS, first, stop) for item in earlier)
        return against_copies(chosen, zip((item.dataset for item in earlier), tables, strict=True))


@dataclass(frozen=True)
class Signatures(Step):
    """MinHash signatures of caption representatives, cut into bands: one record per band, by slot of its hash."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    spec: SignatureSpec

    @property
    def unit(self) -> str:
        return "signatures"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need(CLASSES),)

    def identity(self) -> Mapping[str, Any]:
        return self.spec.to_json()

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        rows = own_captions(inputs, inputs.commit(CLASSES).objects["captions"].path)
        outputs.rows_in = len(rows)
        captions = flat(rows.column("caption"))
        for number, start in enumerate(range(0, max(len(rows), 1), _BANDED_ROWS)):
            table = band_table(captions.slice(start, _BANDED_ROWS), self.spec, start)
            outputs.rows_out += len(table.records) // self.spec.num_bands
            outputs.slices(f"bands-{number:03d}", BAND_ROWS, table.slices(), {"spec": self.spec.to_json()})


@dataclass(frozen=True)
class CandidatePairs(Step):
    """Pairs of captions that share a band hash in some slots, for the parts that will compare them."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    spec: SignatureSpec
    comparison: Comparison
    against: tuple[str, ...]
    memory_bytes: int

    @property
    def unit(self) -> str:
        return "pairs"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/signatures", whole=True), Need(CLASSES, whole=True))

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return ("dedup/signatures", CLASSES)

    def identity(self) -> Mapping[str, Any]:
        comparison = self.comparison
        return {
            "max_degree": comparison.max_degree,
            "max_differ": comparison.max_differ,
            "seed": comparison.seed,
        }

    def plan(self, context: PlanContext) -> Plan:
        reads = fingerprints(context.root, self.against)
        records = sum(commit.rows_out for commit in context.commits("dedup/signatures"))
        records += sum(part.num_rows for part in earlier_parts(context.root, reads, self.spec.to_json()))
        nbytes = records * self.spec.num_bands * RECORD_BYTES * _RECORD_COPIES
        return _slot_plan(NUM_SLOTS, -(-nbytes // self.memory_bytes), {"reads": reads})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        earlier = earlier_parts(inputs.root, _manifests(part, self.against), self.spec.to_json())
        spill = _PairSpill(numbering(inputs, earlier), outputs, self.memory_bytes // 32)
        for hashes, rows, sketches in self._slots(part, inputs, earlier, spill.rows):
            runs = find_runs(hashes, rows, sketches, spill.rows.num_own, self.comparison)
            outputs.rows_in += len(hashes)
            spill.add_runs(runs, self.comparison)
        spill.close()

    def _slots(
        self, part: Part, inputs: Inputs, earlier: Sequence[EarlierPart], rows: Numbering
    ) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64]]]:
        """Hashes, row numbers and sketches of each slot, over all parts."""
        first, stop = part.spec["slots"]
        spec = self.spec.to_json()
        own = [sorted(name for name in commit.objects) for commit in inputs.commits("dedup/signatures")]
        paths = [
            [commit.objects[name].path for name in names]
            for commit, names in zip(inputs.commits("dedup/signatures"), own, strict=True)
        ]
        paths += [list(item.bands) for item in earlier]
        numbered = [
            (open_bands(inputs.root, path, spec), int(start))
            for start, of_part in zip(rows.starts[:-1], paths, strict=True)
            for path in of_part
        ]
        batches = [table.batches(BAND_ROWS, first, stop) for table, _ in numbered]
        for slot in range(stop - first):
            there = [
                (found[slot], start)
                for found, (_, start) in zip(batches, numbered, strict=True)
                if found[slot] is not None
            ]
            if there:
                records = [(read_records(batch), start) for batch, start in there]
                yield (
                    np.concatenate([found["hash"] for found, _ in records]),
                    np.concatenate([found["row"] + np.uint32(start) for found, start in records]),
                    np.concatenate([found["sketch"] for found, _ in records]),
                )


class _PairSpill:
    """Collects pairs, and writes them to the run directory whenever they are as many as may be held."""

    def __init__(self, rows: Numbering, outputs: Outputs, max_pairs: int) -> None:
        self.rows = rows
        self._outputs = outputs
        self._max_pairs = max_pairs
        self._held: list[NDArray[np.uint64]] = []
        self._audited: list[NDArray[np.uint64]] = []
        self._dense: list[NDArray[np.uint32]] = []
        self._num_spilled = 0
        outputs.count({"comparisons": 0, "pairs": 0, "dense_runs": 0})

    def add_runs(self, runs: Runs, comparison: Comparison) -> None:
        """Pair the rows of one slot's runs."""
        for pairs, num_compared in candidate_pairs(runs, comparison, self._max_pairs // 4):
            self._outputs.count({"comparisons": num_compared})
            self._held.append(pairs)
            if sum(map(len, self._held)) > self._max_pairs // 2:
                self._spill()
        self._outputs.count({"dense_runs": int(np.count_nonzero(runs.is_dense))})
        self._audited.append(audited_pairs(runs, comparison))
        self._dense.append(runs.dense_rows())

    def close(self) -> None:
        """Write what is left."""
        if self._held or not self._num_spilled:
            self._spill()
        audited = distinct_pairs(np.concatenate([np.zeros(0, np.uint64), *self._audited]))
        self._write("audits", audited)
        dense = np.unique(np.concatenate([np.zeros(0, np.uint32), *self._dense]))
        edges = np.searchsorted(dense, self.rows.starts[: self.rows.num_own_parts + 1])
        self._outputs.slices("dense", _DENSE, _cut(pa.table({"row": dense}, _DENSE.arrow), edges))

    def _spill(self) -> None:
        pairs = distinct_pairs(np.concatenate([np.zeros(0, np.uint64), *self._held]))
        self._held = []
        self._outputs.count({"pairs": len(pairs)})
        self._outputs.rows_out += len(pairs)
        self._write(f"pairs-{self._num_spilled:03d}", pairs)
        self._num_spilled += 1

    def _write(self, name: str, pairs: NDArray[np.uint64]) -> None:
        """The pairs by the part of their lower row, and what that part must be sent."""
        own = self.rows.starts[: self.rows.num_own_parts + 1].astype(np.uint64)
        edges = np.searchsorted(pairs, own << np.uint64(32))
        self._outputs.slices(name, _PAIRS, _cut(pa.table({"pair": pairs}, _PAIRS.arrow), edges))
        asking = np.repeat(np.arange(len(edges) - 1, dtype=np.uint64), np.diff(edges))
        rows, parts = ends(distinct_pairs(pairs << np.uint64(32) | asking))
        away = self.rows.part_of(rows) != parts
        rows, parts = rows[away], parts[away]
        table = pa.table({"row": rows.astype(np.uint32), "part": parts.astype(np.uint32)}, _ASKED.arrow)
        self._outputs.slices(f"asked-{name}", _ASKED, _cut(table, np.searchsorted(rows, self.rows.starts)))


@dataclass(frozen=True)
class AskedTexts(Step):
    """Sends captions of one part to the parts that compare them with their own."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    spec: SignatureSpec
    against: tuple[str, ...]

    @property
    def unit(self) -> str:
        return "asked"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Need("dedup/pairs", whole=True), Need(CLASSES, whole=True))

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return (CLASSES,)

    def identity(self) -> Mapping[str, Any]:
        return {}

    def plan(self, context: PlanContext) -> Plan:
        reads = fingerprints(context.root, self.against)
        earlier = earlier_parts(context.root, reads, self.spec.to_json())
        num_own = len(context.parts(CLASSES))
        return Plan(
            tuple(
                Part(f"part-{number:06d}", {"reads": reads, "number": number})
                for number in range(num_own + len(earlier))
            )
        )

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        earlier = earlier_parts(inputs.root, _manifests(part, self.against), self.spec.to_json())
        rows, number = numbering(inputs, earlier), part.spec["number"]
        asked = read_each(inputs.sliced("dedup/pairs", "asked-"), _ASKED, number, number + 1)
        wanted = _asked_rows(pa.concat_tables([_ASKED.empty(), *asked]))
        outputs.rows_in = outputs.rows_out = len(wanted)
        parts, chosen = ends(wanted)
        sent = PAIR_TEXTS.empty()
        if len(wanted):  # else the captions need not be read
            commits = inputs.commits(CLASSES)
            paths = [*(commit.objects["captions"].path for commit in commits), *(item.captions for item in earlier)]
            captions = own_captions(inputs, paths[number])
            taken = captions.take(pa.array(chosen - rows.starts[number]))
            columns = {"row": chosen.astype(np.uint32), "key": taken.column("key"), "caption": taken.column("caption")}
            sent = pa.table({name: pa.array(value) if isinstance(value, np.ndarray) else value
                             for name, value in columns.items()}, PAIR_TEXTS.arrow)  # fmt: skip
        edges = np.searchsorted(parts, np.arange(rows.num_own_parts + 1))
        outputs.slices("texts", PAIR_TEXTS, _cut(sent, edges))


def _asked_rows(asked: pa.Table) -> NDArray[np.uint64]:
    """part << 32 | row, ascending, each once."""
    parts, rows = (asked.column(name).to_numpy().astype(np.uint64) for name in ("part", "row"))
    return distinct_pairs(parts << np.uint64(32) | rows)


@dataclass(frozen=True)
class CaptionEdges(Step):
    """Compares the candidate pairs whose lower row lies in one part, by exact Jaccard."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    config: CaptionDedupConfig
    spec: SignatureSpec
    against: tuple[str, ...]

    @property
    def unit(self) -> str:
        return "captions"

    @property
    def needs(self) -> tuple[Need, ...]:
        whole = ("dedup/pairs", "dedup/asked", CLASSES)
        return tuple(Need(name, whole=True) for name in whole)

    @property
    def plan_needs(self) -> tuple[str, ...]:
        return (CLASSES,)

    def identity(self) -> Mapping[str, Any]:
        return {"min_similarity": self.config.min_similarity}

    def plan(self, context: PlanContext) -> Plan:
        reads = fingerprints(context.root, self.against)
        parts = enumerate(context.parts(CLASSES))
        return Plan(tuple(Part(part.name, {"reads": reads, "number": number}) for number, part in parts))

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        earlier = earlier_parts(inputs.root, _manifests(part, self.against), self.spec.to_json())
        rows, number = numbering(inputs, earlier), part.spec["number"]
        texts = PairTexts.joined(
            own_captions(inputs, inputs.commits(CLASSES)[number].objects["captions"].path),
            int(rows.starts[number]),
            read_each(inputs.sliced("dedup/asked", "texts"), PAIR_TEXTS, number, number + 1),
        )
        pairs, audits = self._pairs(inputs, "pairs-", number), self._pairs(inputs, "audits", number)
        met = stands_in(audits, pairs)
        compared = self.spec.shingling, self.config.min_similarity, machine.num_threads
        found, lost = caption_edges(texts, pairs, *compared), caption_edges(texts, audits[~met], *compared)
        audited = stands_in(audits[met], found.pairs)
        dense = pa.concat_tables(read_each(inputs.sliced("dedup/pairs", "dense"), _DENSE, number, number + 1))
        outputs.rows_in = len(texts.own)
        outputs.count(
            {
                "candidates": len(pairs),
                "edges": len(found.pairs),
                "dense_rows": len(pc.unique(dense.column("row"))),
                "audited_pairs": int(np.count_nonzero(audited)) + len(lost.pairs),
                "leaked_pairs": len(lost.pairs),
            }
        )
        datasets = [None] * rows.num_own_parts + [item.dataset for item in earlier]
        outputs.table("edge", EDGE, found.table(rows, datasets))

    def _pairs(self, inputs: Inputs, prefix: str, number: int) -> NDArray[np.uint64]:
        tables = read_each(inputs.sliced("dedup/pairs", prefix), _PAIRS, number, number + 1)
        pairs = [table.column("pair").to_numpy() for table in tables]
        return distinct_pairs(np.concatenate([np.zeros(0, np.uint64), *pairs]))


def own_captions(inputs: Inputs, path: str) -> pa.Table:
    """All captions of one part, in row order."""
    table = SlicedObject.open(inputs.root, path)
    return table.read(CAPTION_ROWS, 0, table.num_slices).combine_chunks()


def numbering(inputs: Inputs, earlier: Sequence[EarlierPart]) -> Numbering:
    """How caption representatives are counted over all parts."""
    own = [commit.objects["captions"].num_rows for commit in inputs.commits(CLASSES)]
    return Numbering.of(own, [part.num_rows for part in earlier])


def _slot_plan(num_slots: int, num_parts: int, spec: Mapping[str, Any]) -> Plan:
    """Runs of slots, as equal as can be, and at least one."""
    edges = np.linspace(0, num_slots, min(max(num_parts, 1), num_slots) + 1).round().astype(int).tolist()
    parts = []
    for number, slots in enumerate(pairwise(edges)):
        # What a part holds is identity, too: under another plan the same name is another part.
        reads = {**spec["reads"], "slots": f"{slots[0]}-{slots[1]} of {num_slots}"}
        parts.append(Part(f"part-{number:06d}", {**spec, "slots": list(slots), "reads": reads}))
    return Plan(tuple(parts))


def _manifests(part: Part, against: tuple[str, ...]) -> dict[str, str]:
    """The manifests to be matched with (address → SHA-256), as the part was planned with them."""
    return {address: part.spec["reads"][address] for address in against}


def _cut(table: pa.Table, edges: NDArray[np.int64]) -> list[pa.Table]:
    """`table` between each two of `edges`."""
    numbers = edges.tolist()
    return [table.slice(start, stop - start) for start, stop in pairwise(numbers)]
