"""Questions to datasets and runs that are missing or damaged end in one message and the right exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.cli.command import CommandLine, picture_tar, write_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run of three pictures, all published; never written to."""
    folder = tmp_path_factory.mktemp("made")
    source = {"kind": "webdataset", "paths": [str(picture_tar(folder / "pictures.tar"))]}
    config = write_config(folder, source)
    subprocess.run([sys.executable, "-m", "dataengine", "run", config], check=True, capture_output=True)
    return folder / "root"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "root")


def test_a_dataset_that_is_not_there(cli: CommandLine, tmp_path: Path) -> None:
    for verb in (("stats",), ("verify",), ("why", "http://gone.test/")):
        said = cli(verb[0], tmp_path, *verb[1:])
        assert (said.code, "no published dataset; looked for manifest.json" in said.err) == (3, True)
    assert "wanted NAME=VALUE" in cli("stats", tmp_path, "--store", "endpoint").err


@pytest.mark.parametrize("content", ["", "junk", "[]", "{}", "[" * 200_000, '{"format": "other/1"}'])
def test_a_manifest_that_is_none(cli: CommandLine, root: Path, content: str) -> None:
    manifest = root / "datasets/small/v000001/manifest.json"
    manifest.write_text(content)
    said = cli("stats", manifest)
    assert (said.code, str(manifest) in said.err, "dataengine-dataset/1" in said.err) == (3, True, True)


def test_a_manifest_that_leads_outside(cli: CommandLine, root: Path) -> None:
    manifest = root / "datasets/small/v000001/manifest.json"
    tree = json.loads(manifest.read_text())
    tree["files"] += [{"path": path, "nbytes": 1, "sha256": "0"} for path in ("ledger/../../../../x.parquet", "[/b]")]
    manifest.write_text(json.dumps(tree))
    assert cli("verify", manifest).code == 74
    said = cli("why", manifest, "http://gone.test/")
    assert (said.code, "outside its dataset" in said.err) == (3, True)


@pytest.mark.parametrize("name", ["stats/funnel.parquet", "samples/part-000000.parquet", "ledger/part-000000.parquet"])
@pytest.mark.parametrize("content", [None, b"junk"])
def test_a_damaged_table(cli: CommandLine, root: Path, name: str, content: bytes | None) -> None:
    dataset = root / "datasets/small/v000001"
    (dataset / name).unlink()
    if content is not None:
        (dataset / name).write_bytes(content)
    assert cli("verify", dataset).code == 74
    said = cli("why", dataset, "pictures") if name.startswith("ledger") else cli("stats", dataset)
    assert (said.code, "a table cannot be read" in said.err, "dataengine verify" in said.err) == (74, True, True)


@pytest.mark.parametrize("name", ["samples/part-000000.parquet", "ledger/part-000000.parquet"])
@pytest.mark.parametrize("content", [None, b"junk"])
def test_a_damaged_table_is_taken_down_nowhere(
    cli: CommandLine, root: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    dataset = root / "datasets/small"
    gone = tmp_path / "gone.txt"
    gone.write_text(f"key {pl.read_parquet(dataset / 'v000001/samples/*.parquet')['key'][0]}\n")
    (dataset / "v000001" / name).unlink()
    if content is not None:
        (dataset / "v000001" / name).write_bytes(content)
    said = cli("takedown", dataset, "--list", gone)
    assert (said.code, "a table cannot be read" in said.err, "dataengine verify" in said.err) == (74, True, True)
    assert not (root / "takedowns").exists()


def test_keys_that_no_candidate_has(cli: CommandLine, made: Path) -> None:
    dataset = made / "datasets/small"
    assert "give at least 8 characters of a key" in cli("why", dataset, "ab").err
    for query in ("0123456789abcdef", "http://gone.test/", "http://[/"):
        said = cli("why", dataset, query)
        assert (said.code, "is no candidate of" in said.err) == (3, True)


def test_the_status_of_a_run_that_never_was(cli: CommandLine, made: Path) -> None:
    said = cli("status", made / "runs/other")
    assert (said.code, "no run was started under this name" in said.err) == (3, True)
    assert "wanted <root>/runs/<name>" in cli("status", made).err


@pytest.mark.parametrize(
    ("pattern", "content"), [("configs/*.json", "{}"), ("asks/*.json", "junk"), ("*/*/plan.json", "{}")]
)
def test_a_damaged_run(cli: CommandLine, root: Path, pattern: str, content: str) -> None:
    for path in (root / "runs/small").glob(pattern):
        path.write_text(content)
    said = cli("status", root / "runs/small")
    assert (said.code, "CorruptObject" in said.err) == (74, True)


def test_a_published_version_that_was_deleted(cli: CommandLine, made: Path, root: Path) -> None:
    shutil.rmtree(root / "datasets")
    said = cli("run", made.parent / "config.yaml", "--set", f"root={root}")
    assert (said.code, "is gone" in said.err, "publish it anew" in said.err) == (74, True, True)
