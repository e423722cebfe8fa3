"""The dedup stage, near-duplicate captions: representatives of classes are signed, paired and compared.

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
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.dedup.against import EarlierPart, earlier_parts, fingerprints, open_bands, read_captions
from dataengine.dedup.bands import NUM_SLOTS, RECORD, BandTable, band_table
from dataengine.dedup.caption_edges import PAIR_TEXTS, PairTexts, caption_edges
from dataengine.dedup.caption_pairs import (
    MAX_SLOTS,
    Comparison,
    Runs,
    audited_pairs,
    candidate_pairs,
    distinct_pairs,
    ends,
    find_runs,
    stands_in,
)
from dataengine.dedup.minhash import SignatureSpec
from dataengine.dedup.numbering import Numbering
from dataengine.dedup.routed import flat
from dataengine.dedup.text_steps import CLASSES, manifests_of, slot_plan
from dataengine.schemas import EDGE, TableSchema, column
from dataengine.storage.rundir import Part, Plan
from dataengine.storage.slices import read_each, read_each_records

_BANDED_ROWS = 1 << 16  # signed at once: 26 bands of them are 27 MB of records
_SORTED_RECORDS = 1 << 17  # of small slots at once: a slot costs as much to begin as to sort some thousand records
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
class Signatures(Step):
    """MinHash signatures of caption representatives, cut into bands: one record per band, by slot of its hash."""

    stage: ClassVar[str] = "dedup"
    version: ClassVar[int] = 3
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
        rows = read_captions(inputs.root, inputs.commit(CLASSES).objects["captions"].path)
        outputs.rows_in = len(rows)
        captions = flat(rows.column("caption"))
        for number, start in enumerate(range(0, max(len(rows), 1), _BANDED_ROWS)):
            table = band_table(captions.slice(start, _BANDED_ROWS), self.spec, start)
            outputs.rows_out += len(table.records) // self.spec.num_bands
            outputs.records(f"bands-{number:03d}", table.records, table.starts, {"spec": self.spec.to_json()})


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
        nbytes = records * self.spec.num_bands * RECORD.itemsize * _RECORD_COPIES
        return slot_plan(NUM_SLOTS, -(-nbytes // self.memory_bytes), {"reads": reads})

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        earlier = earlier_parts(inputs.root, manifests_of(part, self.against), self.spec.to_json())
        spill = _PairSpill(numbering(inputs, earlier), outputs, self.memory_bytes // 32)
        for hashes, rows, sketches in self._slots(part, inputs, earlier, spill.rows):
            runs = find_runs(hashes, rows, sketches, spill.rows.num_own, self.comparison)
            outputs.rows_in += len(hashes)
            spill.add_runs(runs, self.comparison)
        spill.close()

    def _slots(
        self, part: Part, inputs: Inputs, earlier: Sequence[EarlierPart], rows: Numbering
    ) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint64]]]:
        """Hashes, row numbers and sketches of a few slots at a time, over all parts."""
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
        found = read_each_records([table for table, _ in numbered], RECORD, first, stop)
        tables = [(BandTable(*of_part), start) for of_part, (_, start) in zip(found, numbered, strict=True)]
        counts = sum((table.starts for table, _ in tables), np.zeros(stop - first + 1, np.int64))
        begin = 0
        while begin < stop - first:
            full = int(np.searchsorted(counts, counts[begin] + _SORTED_RECORDS))
            end = min(max(full, begin + 1), begin + MAX_SLOTS, stop - first)
            if counts[begin] < counts[end]:
                yield _joined(tables, first, begin, end)
            begin = end


def _joined(
    tables: Sequence[tuple[BandTable, int]], first_slot: int, begin: int, end: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint64]]:
    """The records of some slots of all tables (each with the number of its first row), as `find_runs` takes them."""
    from dataengine.dedup.kernels.signatures import unpack_records

    size = sum(int(table.starts[end] - table.starts[begin]) for table, _ in tables)
    hashes, rows, sketches = np.empty(size, np.uint64), np.empty(size, np.uint32), np.empty(size, np.uint64)
    place = 0
    for table, first_row in tables:
        starts = table.starts[begin : end + 1]
        room = slice(place, place + int(starts[-1] - starts[0]))
        unpack_records(
            table.records.view(np.uint64).reshape(-1, 2), starts, first_slot + begin, first_row,
            hashes[room], rows[room], sketches[room],
        )  # fmt: skip
        place = room.stop
    return hashes, rows, sketches


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
        self._outputs.slices("dense", _DENSE, pa.table({"row": dense}, _DENSE.arrow), edges)

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
        self._outputs.slices(name, _PAIRS, pa.table({"pair": pairs}, _PAIRS.arrow), edges)
        asking = np.repeat(np.arange(len(edges) - 1, dtype=np.uint64), np.diff(edges))
        rows, parts = ends(distinct_pairs(pairs << np.uint64(32) | asking))
        away = self.rows.part_of(rows) != parts
        rows, parts = rows[away], parts[away]
        table = pa.table({"row": rows.astype(np.uint32), "part": parts.astype(np.uint32)}, _ASKED.arrow)
        self._outputs.slices(f"asked-{name}", _ASKED, table, np.searchsorted(rows, self.rows.starts))


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
        earlier = earlier_parts(inputs.root, manifests_of(part, self.against), self.spec.to_json())
        rows, number = numbering(inputs, earlier), part.spec["number"]
        asked = read_each(inputs.sliced("dedup/pairs", "asked-"), _ASKED, number, number + 1)
        wanted = _asked_rows(pa.concat_tables([_ASKED.empty(), *asked]))
        outputs.rows_in = outputs.rows_out = len(wanted)
        parts, chosen = ends(wanted)
        sent = PAIR_TEXTS.empty()
        if len(wanted):  # else the captions need not be read
            commits = inputs.commits(CLASSES)
            paths = [*(commit.objects["captions"].path for commit in commits), *(item.captions for item in earlier)]
            captions = read_captions(inputs.root, paths[number])
            taken = captions.take(pa.array(chosen - rows.starts[number]))
            columns = {"row": chosen.astype(np.uint32), "key": taken.column("key"), "caption": taken.column("caption")}
            sent = pa.table({name: pa.array(value) if isinstance(value, np.ndarray) else value
                             for name, value in columns.items()}, PAIR_TEXTS.arrow)  # fmt: skip
        edges = np.searchsorted(parts, np.arange(rows.num_own_parts + 1))
        outputs.slices("texts", PAIR_TEXTS, sent, edges)


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
        earlier = earlier_parts(inputs.root, manifests_of(part, self.against), self.spec.to_json())
        rows, number = numbering(inputs, earlier), part.spec["number"]
        texts = PairTexts.joined(
            read_captions(inputs.root, inputs.commits(CLASSES)[number].objects["captions"].path),
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


def numbering(inputs: Inputs, earlier: Sequence[EarlierPart]) -> Numbering:
    """How caption representatives are counted over all parts."""
    own = [commit.objects["captions"].num_rows for commit in inputs.commits(CLASSES)]
    return Numbering.of(own, [part.num_rows for part in earlier])
