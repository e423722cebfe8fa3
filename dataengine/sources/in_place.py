"""Sources in place: existing tars and Parquet become CANDIDATE parts whose images stay where they are.

A tar is one part, and a run of row groups of a Parquet file is one. Which images can be located and what is wrong
with a row is decided by the kernels; here files are found, told apart, and read. Images that have no place of their
own in a compressed file are the one exception: they are copied once, into a tar beside the part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pyarrow as pa

from dataengine.config.sources import ImageParquetSource, Img2DatasetSource, WebDatasetSource
from dataengine.contract import Inputs, Machine, Need, Outputs, PlanContext, Step
from dataengine.errors import InputError
from dataengine.schemas import CANDIDATE, LOCATION, MEMBER
from dataengine.sources.files import expand_braces
from dataengine.sources.image_parquet import GroupRun, group_runs, index_rows, open_images
from dataengine.sources.img2dataset import index_shard
from dataengine.sources.webdataset import candidate_table, member_table, read_samples, tar_rows
from dataengine.storage.hashing import HashingWriter
from dataengine.storage.inputs import find_files, input_address, quick_fingerprint
from dataengine.storage.rundir import Part, Plan, digest
from dataengine.storage.store import Root
from dataengine.storage.tables import parquet_bytes
from dataengine.storage.tar import END, append


@dataclass(frozen=True)
class _InPlace(Step):
    stage: ClassVar[str] = "sources"
    source: str
    config: WebDatasetSource | Img2DatasetSource | ImageParquetSource

    @property
    def unit(self) -> str:
        return self.source

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def identity(self) -> Mapping[str, Any]:
        return {"source": self.source, "config": self.config.identity()}

    def _files(self, root: Root) -> list[tuple[str, str]]:
        """(path, file name without its last extension) of every file; keys hold the name, so it must be the only one.

        Raises InputError when a pattern names nothing, or two files have one name.
        """
        patterns = [path for item in self.config.paths for path in expand_braces(input_address(root, item))]
        found: dict[str, str] = {}
        for path in find_files(root, patterns, f"sources.{self.source}.paths"):
            name = path.rpartition("/")[2]
            shard = name.rpartition(".")[0] or name
            if shard in found:
                raise InputError(
                    f"sources.{self.source}.paths: two files are called {name}: {found[shard]} and {path}, so their "
                    f"samples would share keys; rename one or make two sources of them"
                )
            found[shard] = path
        return [(path, shard) for shard, path in found.items()]


@dataclass(frozen=True)
class IndexTars(_InPlace):
    """Indexes existing tars: one CANDIDATE part a tar."""

    version: ClassVar[int] = 3
    config: WebDatasetSource

    def plan(self, context: PlanContext) -> Plan:
        files = self._files(context.root)
        return _plan([({"path": path, "shard": shard}, _reads(context.root, path)) for path, shard in files])

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        path, shard = part.spec["path"], part.spec["shard"]
        with inputs.root.open(path) as file:
            samples = read_samples(file, path, self.config)
            rows = tar_rows(samples, self.source, shard, inputs.root.within(path), self.config)
        _write(outputs, candidate_table(rows, self.source))
        if self.config.extra_members:
            members = member_table(rows)
            outputs.table("member", MEMBER, members)
            outputs.facts["content_sha256"] = digest([outputs.facts["content_sha256"], members_sha256(members)])


@dataclass(frozen=True)
class IndexImg2Dataset(_InPlace):
    """Indexes the shards that img2dataset wrote: one CANDIDATE part a shard, with the rows that it did not get."""

    version: ClassVar[int] = 1
    config: Img2DatasetSource

    def plan(self, context: PlanContext) -> Plan:
        found = []
        for path, shard in self._files(context.root):
            listing = f"{path.rpartition('/')[0]}/{shard}.parquet"
            fingerprint = context.root.fingerprint(listing)
            if fingerprint is None:
                raise InputError(
                    f"sources.{self.source}: {listing}: no such file, and without it nobody knows which rows of "
                    f"{shard}.tar img2dataset did not get; bring it back, or read the tars as kind: webdataset"
                )
            reads = _reads(context.root, path) | {"listing": fingerprint}
            found.append(({"path": path, "shard": shard, "listing": listing}, reads))
        return _plan(found)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        path, listing = part.spec["path"], part.spec["listing"]
        object_url = inputs.root.within(path)
        with inputs.root.open(path) as tar, inputs.root.open(listing) as file:
            table = index_shard(tar, file, listing, self.source, part.spec["shard"], object_url, self.config)
        _write(outputs, table)


@dataclass(frozen=True)
class IndexImages(_InPlace):
    """Indexes Parquet that holds images: a CANDIDATE part for each run of row groups of a file."""

    version: ClassVar[int] = 1
    config: ImageParquetSource

    def plan(self, context: PlanContext) -> Plan:
        found = []
        for path, shard in self._files(context.root):
            reads = _reads(context.root, path)
            with context.root.open(path) as file:
                runs = group_runs(open_images(file, path, self.config))
            found += [({"path": path, "shard": shard, **asdict(run)}, reads | _text(asdict(run))) for run in runs]
        return _plan(found)

    def run(self, part: Part, inputs: Inputs, outputs: Outputs, machine: Machine) -> None:
        path, shard = part.spec["path"], part.spec["shard"]
        run = GroupRun(**{name: part.spec[name] for name in GroupRun.__dataclass_fields__})
        object_url = inputs.root.within(path)
        with inputs.root.open(path) as file, ExitStack() as stack:
            images = open_images(file, path, self.config)
            tar = _ImageTar(outputs, part, stack)
            rows = index_rows(images, run, self.source, shard, object_url, self.config, tar.keep)
            tar.finish()
        _write(outputs, candidate_table(rows, self.source))


class _ImageTar:
    """The tar of a part's copied images; there is none when nothing had to be copied."""

    def __init__(self, outputs: Outputs, part: Part, stack: ExitStack) -> None:
        self._outputs = outputs
        self._stack = stack
        # Candidates name this path and are the same whichever attempt wrote them, so it must be too.
        self._path = outputs.directory.data_path(part.name, digest(dict(part.spec))[:16], "images.tar")
        self._tar: HashingWriter | None = None

    def keep(self, key: str, content: bytes) -> tuple[str, int, int]:
        """Append an image; where it lies."""
        if self._tar is None:
            self._tar = self._stack.enter_context(self._outputs.stream_to("images", self._path))
        return self._path, append(self._tar, f"{key}.image", content), len(content)

    def finish(self) -> None:
        if self._tar is not None:
            self._tar.write(END)


def _reads(root: Root, path: str) -> dict[str, str]:
    # Keys hold the file's name and locations its place, so a file that was moved is indexed anew.
    return {"input": quick_fingerprint(root, path), "object": root.within(path)}


def _text(values: Mapping[str, int]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _plan(found: Sequence[tuple[dict[str, Any], dict[str, str]]]) -> Plan:
    """A part for each (what it is of, what it reads)."""
    parts = (Part(f"part-{i:06d}", spec | {"reads": reads}) for i, (spec, reads) in enumerate(found))
    return Plan(tuple(parts), {spec["path"]: digest(reads) for spec, reads in found})


def _write(outputs: Outputs, table: pa.Table) -> None:
    outputs.rows_in = len(table)
    outputs.table("candidate", CANDIDATE, table)
    outputs.facts["content_sha256"] = content_sha256(table)


def members_sha256(members: pa.Table) -> str:
    """What tells extra members apart wherever they lie."""
    described = [
        [key, [[name, place["xxh3"]] for name, place in found]]
        for key, found in zip(
            members.column("key").to_pylist(), members.column("extra_members").to_pylist(), strict=True
        )
    ]
    return digest(described)


def content_sha256(candidates: pa.Table) -> str:
    """What tells candidates apart wherever their images lie: a dataset is the same after its files were moved."""
    content = candidates.drop_columns([field.name for field in LOCATION])
    return hashlib.sha256(parquet_bytes(content)).hexdigest()
