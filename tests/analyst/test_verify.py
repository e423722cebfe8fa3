"""Verification: silent on a sound version, and loud about every kind of file when it is broken."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.faults import Fault
from dataengine.analyst.verify import verify
from dataengine.schemas import FUNNEL, LEDGER, SHARDS, TableSchema, manifest_schema
from tests.trainer.publishing import SCORES, read_rows, write_manifest, write_table

FILES = [
    "alpha/alpha-000000.tar",
    "beta/beta-000000.tar.idx",
    "ledger/part-000000.parquet",
    "samples/part-000001.parquet",
    "shards.parquet",
    "stats/funnel.parquet",
    "stats/histogram.parquet",
]


@pytest.fixture
def version(published: Path, tmp_path: Path) -> Path:
    """A private copy, to break."""
    return Path(shutil.copytree(published, tmp_path / "pairs" / "v000001"))


def faults_of(folder: Path, *, full: bool = True, sample: int = 9) -> list[Fault]:
    return verify(open_dataset(folder), full=full, sample=sample, progress=lambda what, done, total: None)


def named(faults: list[Fault]) -> set[tuple[str, str]]:
    return {(fault.object, fault.check) for fault in faults}


@pytest.mark.parametrize(("full", "sample"), [(True, 0), (True, 9), (False, 0), (False, 2), (False, 99)])
def test_a_sound_version_has_no_faults(published: Path, full: bool, sample: int) -> None:
    assert faults_of(published, full=full, sample=sample) == []


def test_progress_counts_to_the_end(published: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    verify(open_dataset(published), full=True, sample=1, progress=lambda *step: seen.append(step))
    assert {what for what, done, total in seen if done == total} == {"files", "first samples", "tables", "tars"}


@pytest.mark.parametrize("path", FILES)
def test_a_flipped_bit_is_found(version: Path, path: str) -> None:
    content = bytearray((version / path).read_bytes())
    for place in (len(content) // 2, 700):
        broken = bytearray(content)
        broken[place % len(content)] ^= 4
        (version / path).write_bytes(broken)
        assert (path, "sha256") in named(faults_of(version))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("path", FILES)
def test_a_cut_file_is_found(version: Path, path: str, full: bool) -> None:
    content = (version / path).read_bytes()
    (version / path).write_bytes(content[: len(content) * 2 // 3])
    (fault,) = [fault for fault in faults_of(version, full=full, sample=0) if fault.check == "size"]
    assert (fault.object, fault.expected) == (path, f"{len(content)} bytes")
    assert fault.found == f"{len(content) * 2 // 3} bytes"


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("path", FILES)
def test_a_missing_file_is_found(version: Path, path: str, full: bool) -> None:
    (version / path).unlink()
    assert (path, "exists") in named(faults_of(version, full=full, sample=0))


@pytest.mark.parametrize("path", ["beta/beta-000000.tar", "beta/beta-000000.tar.idx"])
def test_a_file_that_the_manifest_does_not_list_is_named(version: Path, path: str) -> None:
    change_files(version, lambda files: [file for file in files if file["path"] != path])
    assert faults_of(version) == [Fault(path, "listed in manifest.json", "once", "not at all")]


def test_a_file_listed_twice_is_named(version: Path) -> None:
    change_files(version, lambda files: [*files, files[0]])
    (fault,) = faults_of(version)
    assert (fault.check, fault.found) == ("listed in manifest.json", "2 times")


@pytest.mark.parametrize("path", ["beta/beta-000099.tar", "ledger/part-000099.parquet"])
def test_a_stranger_that_a_glob_would_read_is_named(version: Path, path: str) -> None:
    (version / path).write_bytes(b"")
    (version / "latents").mkdir()
    (version / "latents" / "beta-000000.tar").write_bytes(b"")  # a sibling folder, as a trainer may add
    assert named(faults_of(version, full=False)) == {(path, "belongs to the version")}


def change_files(folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": change(manifest["files"])}))


def test_a_broken_picture_is_found_behind_right_hashes(version: Path) -> None:
    row = read_rows(version)[8]
    tar = version / "alpha/alpha-000001.tar"
    content = bytearray(tar.read_bytes())
    content[row["image_offset"] : row["image_offset"] + 30] = bytes(30)
    tar.write_bytes(content)
    write_manifest(version)
    faults = faults_of(version)
    where = f"alpha/alpha-000001.tar: key {row['key']}"
    assert {(where, "image xxh3"), (where, "picture")} <= named(faults)
    assert ("alpha/alpha-000001.tar", "shards.parquet and manifest.json agree") in named(faults)
    (decoded,) = [fault for fault in faults if fault.check == "picture"]
    assert (decoded.expected, decoded.found) == ("16x12", "no image format that Pillow knows")


def edit(folder: Path, path: str, schema: TableSchema, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change a table's rows and publish the result with right hashes."""
    rows = pq.read_table(folder / path).to_pylist()
    change(rows)
    loose = TableSchema(schema.name, schema.arrow, sorted_by=())
    write_table(folder / path, loose, rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder)
    fresh = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": fresh["files"]}))


SAMPLES = manifest_schema(SCORES)
PART = "samples/part-000000.parquet"
LEDGER_PART = "ledger/part-000000.parquet"


def set_first(state: str, column: str, value: object) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        next(row for row in rows if row["state"] == state)[column] = value

    return change


@pytest.mark.parametrize(
    ("path", "schema", "change", "where", "check"),
    [
        (PART, SAMPLES, lambda rows: rows.pop(), "manifest.json", "counts.num_samples"),
        (PART, SAMPLES, lambda rows: rows.pop(), "ledger", "emitted rows are samples"),
        (PART, SAMPLES, lambda rows: rows.pop(), "shard alpha-000001", "num_samples"),
        (PART, SAMPLES, lambda rows: rows[1].update(key=rows[0]["key"]), "samples", "keys are unique"),
        (PART, SAMPLES, lambda rows: rows[1].update(index_in_shard=2), "shard alpha-000000", "num_indices"),
        (PART, SAMPLES, lambda rows: rows[0].update(txt_offset=513), "alpha/alpha-000000.tar", "members"),
        (PART, SAMPLES, lambda rows: rows[0].update(source="beta"), "shard alpha-000000", "source"),
        (PART, SAMPLES, lambda rows: rows[0].update(repeat=7), "manifest.json", "sources.alpha.num_draws"),
        (PART, SAMPLES, lambda rows: rows[0].update(shard="lost"), "shard lost", "num_samples"),
        ("shards.parquet", SHARDS, lambda rows: rows.pop(), "manifest.json", "counts.num_shards"),
        (
            "shards.parquet",
            SHARDS,
            lambda rows: rows[0].update(path="../../lost.tar"),
            "../../lost.tar",
            "readable",
        ),
        (
            LEDGER_PART,
            LEDGER,
            set_first("emitted", "state", "gone"),
            "ledger",
            "states are emitted or dropped",
        ),
        (LEDGER_PART, LEDGER, set_first("dropped", "reason", None), "ledger", "dropped rows have a reason"),
        (
            LEDGER_PART,
            LEDGER,
            set_first("dropped", "survivor_key", "f" * 32),
            "ledger",
            "survivors are left",
        ),
        (LEDGER_PART, LEDGER, lambda rows: rows.append(rows[0]), "ledger", "keys are unique"),
        (
            LEDGER_PART,
            LEDGER,
            set_first("emitted", "state", "dropped"),
            "samples",
            "samples are emitted rows of the ledger",
        ),
        (
            "stats/funnel.parquet",
            FUNNEL,
            lambda rows: rows[0].update(num_rows=99),
            "stats/funnel.parquet",
            "alpha/dropped/download/http_404 num_rows",
        ),
    ],
)
def test_tables_that_disagree_are_found(
    version: Path,
    path: str,
    schema: TableSchema,
    change: Callable[[list[dict[str, Any]]], None],
    where: str,
    check: str,
) -> None:
    edit(version, path, schema, change)
    assert (where, check) in named(faults_of(version, full=False, sample=3))


def test_a_table_without_a_column_is_found(version: Path) -> None:
    part = version / LEDGER_PART
    pq.write_table(pq.read_table(part).drop_columns("reason"), part)
    write_manifest(version)
    assert faults_of(version) == [Fault(LEDGER_PART, "column reason", "string", "None")]


def test_what_is_sampled_follows_from_the_version(version: Path) -> None:
    (version / "alpha/alpha-000000.tar").write_bytes(b"")
    assert faults_of(version, full=False, sample=2) == faults_of(version, full=False, sample=2)


@pytest.mark.parametrize(("full", "sample"), [(True, 0), (False, 0)])
def test_swapped_shards_are_named(version: Path, full: bool, sample: int) -> None:
    """Tars of one size, each where the other belongs: without a hash, their first samples tell."""
    first, second = (version / f"alpha/alpha-00000{number}.tar" for number in (0, 1))
    contents = [path.read_bytes().ljust(30_720, b"\0") for path in (first, second)]
    for path, content in zip((first, second), contents, strict=True):
        path.write_bytes(content)
    shards = pq.read_table(version / "shards.parquet").to_pylist()
    for row in shards[:2]:
        row["nbytes"] = 30_720
        row["sha256"] = hashlib.sha256((version / row["path"]).read_bytes()).hexdigest()
    write_table(version / "shards.parquet", SHARDS, shards)
    write_manifest(version)
    assert faults_of(version, full=full, sample=sample) == []
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content)
    wanted = {(f"alpha/alpha-00000{number}.tar", "first member") for number in (0, 1)}
    found = named(faults_of(version, full=full, sample=sample))
    assert wanted <= found
    assert all(fault.startswith(("alpha/alpha-000000.tar", "alpha/alpha-000001.tar")) for fault, _ in found)
    assert not full or {(path, check) for path, _ in wanted for check in ("sha256", "members")} <= found


def test_an_index_that_points_elsewhere_is_named(version: Path) -> None:
    index = version / "beta/beta-000000.tar.idx"
    offsets = np.frombuffer(index.read_bytes(), "<u8").copy()
    offsets[2] += 512
    index.write_bytes(offsets.tobytes())
    write_manifest(version)
    (fault,) = faults_of(version)
    assert (fault.object, fault.check) == ("beta/beta-000000.tar.idx", "offset of sample 2")
    assert int(fault.found) - int(fault.expected) == 512


def test_an_index_that_ends_early_is_named(version: Path) -> None:
    index = version / "beta/beta-000000.tar.idx"
    index.write_bytes(index.read_bytes()[:-8])
    write_manifest(version)
    (fault,) = faults_of(version)
    assert (fault.check, fault.found) == ("offset of sample 6", "nothing")
