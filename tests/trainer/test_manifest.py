"""Opening versions: what is found, what is refused, and what the message says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataengine.errors import InputError
from dataengine.trainer.columns import integers, scan
from dataengine.trainer.index import load_shards
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
        ('{"format": "dataengine-dataset/1"}', "name is missing, wanted a text"),
        (
            '{"format": "dataengine-dataset/1", "name": "x", "version": 1, "counts": {"num_samples": 1}}',
            "counts.num_draws is missing, wanted a whole number from 0",
        ),
        ("[]", "not a dataset manifest"),
        ('{"form', "not a dataset manifest"),
    ],
)
def test_a_strange_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_version(tmp_path)


def test_shards_that_disagree_with_the_manifest_are_refused(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"]["num_samples"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"shards.parquet: counts 18 samples in 3 shards, the manifest says 19 in 3"):
        load_shards(open_version(folder))
    (folder / "shards.parquet").write_bytes((folder / "samples/part-000001.parquet").read_bytes())
    with pytest.raises(
        InputError, match=r"lacks the columns \['max_key', 'min_key', 'nbytes', 'num_samples', 'path'\]"
    ):
        load_shards(open_version(folder))


def test_rows_are_numbered_by_shard_whatever_the_order_of_parts(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    first, second = (folder / f"samples/part-00000{number}.parquet" for number in (0, 1))
    rows = read_rows(folder)
    first.rename(first.with_suffix(".away"))
    second.rename(first)
    first.with_suffix(".away").rename(second)
    version = open_version(folder)
    shards = load_shards(version)
    found = scan(version, shards, ["width", "repeat"], {"width": integers("width", 1, 99, version)})
    assert found["width"].tolist() == [row["width"] for row in rows]
    number, place = shards.locate(np.arange(18))
    assert [shards.shards[shard].name for shard in number] == [row["shard"] for row in rows]
    assert place.tolist() == [row["index_in_shard"] for row in rows]


def test_an_unlisted_file_does_not_exist(tmp_path: Path) -> None:
    folder = publish(tmp_path / "pairs")
    write_manifest(folder)
    (folder / "samples/part-000002.parquet").write_bytes(b"left over")
    assert len(open_version(folder).tables("samples")) == 2
