"""Opening versions: what is found, what is refused, and what the message says."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataengine.errors import InputError
from dataengine.trainer.index import load_index
from dataengine.trainer.manifest import open_version
from tests.trainer.publishing import publish, read_rows, write_manifest


def test_the_latest_version_is_the_highest_with_a_manifest(tmp_path: Path) -> None:
    for version in (1, 2, 17):
        publish(tmp_path / "pairs", {"alpha": (1,)}, version=version)
    (tmp_path / "pairs/v000018").mkdir()
    assert open_version(tmp_path / "pairs").manifest["version"] == 17
    assert open_version(f"file://{tmp_path}/pairs/").manifest["version"] == 17


def test_a_missing_dataset_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"looked for manifest.json and for v000001/manifest.json"):
        open_version(tmp_path)
    with pytest.raises(InputError, match=r"nowhere/manifest.json: no such manifest"):
        open_version(tmp_path / "nowhere/manifest.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"format": "dataengine-dataset/2"}',
            "format 'dataengine-dataset/2', wanted 'dataengine-dataset/1'",
        ),
        ('{"format": "dataengine-dataset/1"}', "KeyError: 'files'"),
        ('{"format": "dataengine-dataset/1", "files": [], "counts": {"num_samples": 1}}', "num_draws"),
        ("[]", "not a dataset manifest"),
        ('{"form', "not a dataset manifest"),
    ],
)
def test_a_strange_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_version(tmp_path)


def test_tables_that_disagree_with_the_manifest_are_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"]["num_samples"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="holds 18 rows, the manifest says 19"):
        load_index(open_version(folder), ["txt"], "train")
    part = folder / "samples/part-000001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"part-000001.parquet: not a readable Parquet file"):
        load_index(open_version(folder), ["txt"], "train")
    for path in (folder / "samples").iterdir():
        path.unlink()
    (folder / "samples/part-000000.parquet").write_bytes((folder / "shards.parquet").read_bytes())
    manifest["files"] = [file for file in manifest["files"] if file["path"] != "samples/part-000001.parquet"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"lacks the columns \['repeat', 'split', 'txt_nbytes', 'txt_offset'\]"):
        load_index(open_version(folder), ["txt"], "train")


def test_a_part_may_be_empty(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs", {"alpha": (1,)})
    assert len(pq.read_table(folder / "samples/part-000001.parquet")) == 0
    assert load_index(open_version(folder), ["txt"], "train").part_starts.tolist() == [0, 1, 1]


def test_the_index_places_every_member(published: Path) -> None:
    index = load_index(open_version(published), ["image", "json"], "train")
    for position, row in enumerate(read_rows(published)):
        assert index.key_of(position) == row["key"]
        assert index.offsets[position].tolist() == [row["image_offset"], row["json_offset"]]
        assert index.nbytes[position].tolist() == [row["image_nbytes"], row["json_nbytes"]]
        assert index.shards[index.shard[position]].name == row["shard"]


def test_an_unlisted_file_does_not_exist(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    write_manifest(folder)
    (folder / "samples/part-000002.parquet").write_bytes(b"left over")
    assert len(open_version(folder).tables("samples")) == 2
