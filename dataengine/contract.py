"""What a stage is made of: steps that plan parts, read what they declared, and write objects that a commit makes exist.

A step is a frozen, picklable description. It names the steps it needs, either part by part (same part name) or whole;
the engine runs `Step.run` once per part, on any machine, and knows nothing of what the step does. A per-part stage is
one step; an exchange is two: one that routes rows into buckets, and one whose parts are the buckets.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from dataengine.schemas import TableSchema
from dataengine.storage.hashing import HashingWriter
from dataengine.storage.ranges import range_pieces, read_range
from dataengine.storage.rundir import Commit, ObjectRef, Part, Plan, UnitDirectory, combined_digest
from dataengine.storage.slices import SlicedObject, batch_slices, put_slices, record_slices
from dataengine.storage.store import Root
from dataengine.storage.tables import (
    bucketed_parquet_bytes,
    npy_bytes,
    parquet_bytes,
    read_bucket,
    read_npy,
    read_table,
)

AGAIN = "again"
"""Names, among what a part reads, its own last commit, when it is done again on top of that: facts of the world
(downloads) can be asked for once more, and the good ones are kept. By its attempt, not its content: a host that is
still gone leaves the same content, and can be asked for once more all the same."""

AGAIN_FOR = "again for"
"""Names, beside it, what of that commit is asked for once more."""


@dataclass(frozen=True)
class Need:
    """A step that must come before: its part of the same name, or with `whole` every part of it."""

    step: str
    whole: bool = False


def ignore(metrics: Mapping[str, Any]) -> None:
    """The report of a machine that nobody watches."""


@dataclass(frozen=True)
class Machine:
    """What a worker may use, and how it shares the world with its peers."""

    num_cpus: float
    num_gpus: float
    num_workers: int
    """Workers of this stage that may be alive at once; budgets of hosts are divided by it."""
    hosts: Mapping[str, str]
    """Host → address:port of services that this run started itself."""
    now: Callable[[], datetime]
    report: Callable[[Mapping[str, Any]], None] = ignore
    """Told from time to time how far a part is: its metrics so far."""

    @property
    def num_threads(self) -> int:
        """Threads a kernel may start."""
        return max(1, int(self.num_cpus))


class PlanContext(ABC):
    """What a step may look at while it plans its parts."""

    root: Root

    @abstractmethod
    def parts(self, step: str) -> tuple[Part, ...]:
        """The planned parts of a step that this one needs."""

    @abstractmethod
    def commits(self, step: str) -> list[Commit]:
        """The commits of a step in `plan_needs`, in part order."""


class Step(ABC):
    """A kind of work on the parts of one unit."""

    stage: ClassVar[str]
    version: ClassVar[int]
    """Raised by hand when the same inputs and config would give other bytes."""
    stateful: ClassVar[bool] = False
    """Whether a worker keeps costly state (a model) between parts."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """What of the stage this is: usually a source, `all` for what spans sources."""

    @property
    @abstractmethod
    def needs(self) -> tuple[Need, ...]:
        """Steps whose commits a part reads."""

    @property
    def name(self) -> str:
        """`stage/unit`, unique in a run."""
        return f"{self.stage}/{self.unit}"

    @property
    def plan_needs(self) -> tuple[str, ...]:
        """Steps that must be complete before this one can list its parts."""
        return ()

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """The config values that the step's output depends on, as plain JSON."""

    def plan(self, context: PlanContext) -> Plan:
        """The parts, in order; those of the first part-by-part need unless the step says otherwise."""
        first = next(need.step for need in self.needs if not need.whole)
        return Plan(tuple(Part(part.name) for part in context.parts(first)))

    @abstractmethod
    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        """Do the work of one part. Pure: the same part and inputs give the same objects, but for facts of the world."""

    def bundle(self, part: Part) -> str | None:
        """Ready parts of the same bundle are done by one worker in one go; None: this part is done alone."""
        return None

    def run_bundle(self, works: Sequence[Work], machine: Machine) -> None:
        """Do the work of several parts, each as `run` would do it; called on the step of the first one."""
        for work in works:
            work.step.run(work.part, work.inputs, work.outputs, machine)

    def check(self, commits: Sequence[Commit]) -> None:  # noqa: B027 - most steps have nothing to add
        """Refuse a complete unit: raise DataBudgetError, InputError or LedgerError."""


@dataclass(frozen=True)
class WholeUnit:
    """A complete unit, by the object that lists its commits."""

    directory: UnitDirectory
    complete_path: str

    def commits(self) -> list[Commit]:
        """The unit's commits in part order; read once per process."""
        return _load_commits(self)

    def digest(self) -> str:
        """Identity of the unit's content."""
        return _digest_unit(self)


@functools.lru_cache(maxsize=256)
def _digest_unit(unit: WholeUnit) -> str:
    return combined_digest(unit.commits())


@functools.lru_cache(maxsize=32)
def _load_commits(unit: WholeUnit) -> list[Commit]:
    return unit.directory.read_complete(unit.complete_path)


@dataclass(frozen=True)
class Inputs:
    """What a part may read: the commits of its needs."""

    root: Root
    by_part: Mapping[str, Commit]
    whole: Mapping[str, WholeUnit]

    def reads(self) -> dict[str, str]:
        """Digest of the content of every need, by step; of AGAIN, with the attempt."""
        found = {step: commit.digest for step, commit in self.by_part.items()}
        if AGAIN in found:
            found[AGAIN] += f" of {self.by_part[AGAIN].attempt}"
        found |= {step: unit.digest() for step, unit in self.whole.items()}
        return found

    def commit(self, step: str) -> Commit:
        """The commit of the same part of `step`."""
        return self.by_part[step]

    def commits(self, step: str) -> list[Commit]:
        """Every commit of `step`, in part order."""
        return self.whole[step].commits()

    def table(self, step: str, name: str, schema: TableSchema, columns: Sequence[str] | None = None) -> pa.Table:
        """The table that the same part of `step` wrote as `name`."""
        return read_table(self.root, self.by_part[step].objects[name].path, schema, columns)

    def array(self, step: str, name: str) -> NDArray[Any]:
        """The array that the same part of `step` wrote as `name`."""
        return read_npy(self.root, self.by_part[step].objects[name])

    def tables(
        self, step: str, name: str, schema: TableSchema, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The tables `name` of every part of `step`, in part order, one at a time."""
        for commit in self.commits(step):
            yield read_table(self.root, commit.objects[name].path, schema, columns)

    def arrays(self, step: str, name: str) -> Iterator[NDArray[Any]]:
        """The arrays `name` of every part of `step`, in part order, one at a time."""
        for commit in self.commits(step):
            yield read_npy(self.root, commit.objects[name])

    def bucket(self, step: str, name: str, schema: TableSchema, bucket: int) -> pa.Table:
        """The rows that every part of `step` routed to `bucket`, in part order."""
        found = [read_bucket(self.root, item.objects[name].path, schema, bucket) for item in self.commits(step)]
        return pa.concat_tables(found) if found else schema.empty()

    def ranges(self, step: str, name: str, schema: TableSchema, number: int) -> Iterator[pa.Table]:
        """Range `number` of the object `name` of every part of `step`, in part order, one at a time."""
        for commit in self.commits(step):
            yield read_range(self.root, commit.objects[name].path, schema, number)

    def sliced(self, step: str, prefix: str) -> list[SlicedObject]:
        """The sliced objects of `step` whose names begin with `prefix`, in part order."""
        found = [
            commit.objects[name].path
            for commit in self.commits(step)
            for name in sorted(commit.objects)
            if name.startswith(prefix)
        ]
        return [SlicedObject.open(self.root, path) for path in found]

    def buckets(self, step: str, prefix: str, schema: TableSchema, bucket: int) -> Iterator[pa.Table]:
        """The rows routed to `bucket` by each object of `step` whose name begins with `prefix`, in part order."""
        for commit in self.commits(step):
            for name in sorted(commit.objects):
                if name.startswith(prefix):
                    yield read_bucket(self.root, commit.objects[name].path, schema, bucket)


@dataclass
class Outputs:
    """Collects the objects, counts and facts of one attempt; a commit makes them exist all at once."""

    directory: UnitDirectory
    part: str
    attempt: str
    objects: dict[str, ObjectRef] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    rows_in: int = 0
    rows_out: int = 0

    def table(self, name: str, schema: TableSchema, table: pa.Table) -> None:
        """Write a checked table; the first one written gives the part's number of rows."""
        content = parquet_bytes(schema.check(table))
        if not any(item.path.endswith(".parquet") for item in list(self.objects.values())):  # threads may write
            self.rows_out = len(table)
        self._put(name, f"{name}.parquet", content, len(table))

    def buckets(self, name: str, schema: TableSchema, buckets: Sequence[pa.Table]) -> None:
        """Write rows routed to buckets 0, 1, ..., to be read with `Inputs.bucket`."""
        checked = [bucket.cast(schema.arrow) for bucket in buckets]
        self._put(name, f"{name}.parquet", bucketed_parquet_bytes(checked), sum(map(len, checked)))

    def ranges(self, name: str, schema: TableSchema, tables: Sequence[pa.Table]) -> None:
        """Write wide rows as ranges 0, 1, ... of raw buffers, to be read with `Inputs.ranges`."""
        with self.stream(name, f"{name}.ranges") as writer:
            for piece in range_pieces(schema, tables):
                writer.write(piece)
        self.objects[name] = replace(self.objects[name], num_rows=sum(map(len, tables)))

    def slices(
        self, name: str, schema: TableSchema, table: pa.Table, edges: NDArray[np.int64], path: str | None = None
    ) -> None:
        """Write rows cut at `edges` into slices, any run of which is one ranged read (`Inputs.sliced`).

        With `path` they go to a place of their own; their bytes must be a pure function of the part's inputs.
        """
        self._sliced(name, batch_slices(schema.check(table), edges), len(table), {}, path)

    def records(
        self,
        name: str,
        records: NDArray[Any],
        edges: NDArray[np.int64],
        metadata: Mapping[str, Any],
        path: str | None = None,
    ) -> None:
        """Write records of a fixed size likewise, with plain JSON beside them."""
        self._sliced(name, record_slices(records, edges), len(records), metadata, path)

    def _sliced(
        self, name: str, slices: Iterator[memoryview], num_rows: int, metadata: Mapping[str, Any], path: str | None
    ) -> None:
        path = path or self.path(f"{name}.slices")
        writer = put_slices(self.directory.root, path, slices, metadata)
        self.objects[name] = ObjectRef(path, writer.num_bytes, writer.sha256, num_rows)

    def array(self, name: str, array: NDArray[Any]) -> None:
        """Write an array as `.npy`."""
        self._put(name, f"{name}.npy", npy_bytes(array), len(array))

    @contextmanager
    def stream(self, name: str, suffix: str) -> Iterator[HashingWriter]:
        """Write a large object piece by piece."""
        with self.stream_to(name, self.path(suffix)) as writer:
            yield writer

    @contextmanager
    def stream_to(self, name: str, path: str) -> Iterator[HashingWriter]:
        """Write a large object to a place of its own; its bytes must be a pure function of the part's inputs."""
        with self.directory.root.writer(path) as writer:
            yield writer
        self.objects[name] = ObjectRef(path, writer.num_bytes, writer.sha256)

    def put_to(self, name: str, path: str, content: bytes, num_rows: int = 0) -> None:
        """Write an object to a place of its own; its bytes must be a pure function of the part's inputs."""
        with self.directory.root.writer(path) as writer:
            writer.write(content)
        xxh3 = xxhash.xxh3_64_hexdigest(content)
        self.objects[name] = ObjectRef(path, writer.num_bytes, writer.sha256, num_rows, xxh3)

    def path(self, suffix: str) -> str:
        """The attempt's own path for an object."""
        return self.directory.data_path(self.part, self.attempt, suffix)

    def count(self, reasons: Mapping[str, int]) -> None:
        """Add to the part's counts by reason."""
        for reason, number in reasons.items():
            self.counts[reason] = self.counts.get(reason, 0) + number

    def settle(self, name: str, content: bytes) -> bytes:
        """What the whole run holds under `name` for ever: `content` if nobody settled it before."""
        return self.directory.settle(name, content)

    def _put(self, name: str, suffix: str, content: bytes, num_rows: int) -> None:
        self.put_to(name, self.path(suffix), content, num_rows)

    def commit(self, reads: Mapping[str, str], seconds: float) -> Commit:
        """The record of what this attempt made."""
        return Commit(
            self.part, self.attempt, reads, self.objects, self.rows_in, self.rows_out, self.counts, self.facts, seconds,
            self.metrics,
        )  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A part of a step, with what it reads and where it writes."""

    step: Step
    part: Part
    inputs: Inputs
    outputs: Outputs
