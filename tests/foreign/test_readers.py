"""Foreign readers, each in an environment of its own, find every sample of the manifest and no other, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
import webdataset

from dataengine.storage.store import Root
from dataengine.testing.given import GivenSource
from tests.conftest import REPOSITORY
from tests.emit.publishing import publish

pytestmark = pytest.mark.slow
# `make test-foreign` makes them; DATAENGINE_FOREIGN_READERS names another folder of the same environments.
READERS = Path(os.environ.get("DATAENGINE_FOREIGN_READERS", REPOSITORY / ".foreign"))
NUM_ROWS = int(os.environ.get("DATAENGINE_FOREIGN_ROWS", "55_000"))
GIVEN = (
    GivenSource("birds", NUM_ROWS * 8 // 11, 5000, holdout_every=50, max_repeat=3),
    GivenSource("cats", NUM_ROWS * 3 // 11, 5000, formats=("jpg", "jpg", "png", "webp"), seed=1),
)
WIDS = {
    "type": "object",
    "required": ["__kind__", "wids_version", "name", "shardlist"],
    "additionalProperties": False,
    "properties": {
        "__kind__": {"const": "wids-shard-index-v1"},
        "wids_version": {"const": 1},
        "name": {"type": "string", "minLength": 1},
        "shardlist": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["url", "nsamples", "filesize"],
                "properties": {
                    "url": {"type": "string", "pattern": r"\.tar$"},
                    "nsamples": {"type": "integer", "minimum": 1},
                    "filesize": {"type": "integer", "minimum": 1024},
                },
            },
        },
    },
}
Sample = dict[str, Any]


@pytest.fixture(scope="module")
def given_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of about 50,000 samples of two sources, three formats and a holdout."""
    folder = tmp_path_factory.mktemp("given")
    version = folder / publish(Root(str(folder)), GIVEN, shard_multiple=8, target_shard_bytes=2**24)
    assert len(pl.read_parquet(version / "samples" / "*.parquet")) >= NUM_ROWS * 0.9
    return version


@pytest.fixture(scope="module")
def whole_child(given_version: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own of the child of `given_version` that a take-down of about a hundred keys leaves.

    Of the holdout it lacks a whole shard from the middle, of the rest single samples of some shards.
    """
    folder, parent = tmp_path_factory.mktemp("child"), pl.read_parquet(given_version / "samples" / "*.parquet")
    parent = parent.sort("shard", "index_in_shard")
    some = parent.filter(pl.col("shard").is_in(["birds-000001", "birds-000002", "cats-000005"]))
    asked = pl.concat([parent.filter(pl.col("shard") == "birds-000010"), some[:: len(some) // 100]])
    (folder / "gone.txt").write_text("\n".join(asked["key"]))
    dataengine("takedown", given_version.parent, "--list", folder / "gone.txt", "--reason", "asked")
    dataengine("materialize", given_version.parent / "v000002", folder / "whole")
    # Pictures of the two sources may be of the same bytes; those go together.
    left = parent.filter(~pl.col("sha256").is_in(asked["sha256"].implode()))["key"]
    assert set(pl.read_parquet(folder / "whole" / "samples" / "*.parquet")["key"]) == set(left)
    child = pl.read_parquet(given_version.parent / "v000002" / "shards.parquet")["path"]
    assert len({path.startswith("../") for path in child}) == 2  # some shards were the parent's, some are new
    return folder / "whole"


def dataengine(*arguments: str | Path) -> None:
    """Run a command, and see it succeed."""
    done = subprocess.run([sys.executable, "-m", "dataengine", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


VERSIONS = {"quickstart": "quickstart_dataset", "given": "given_version", "child": "whole_child"}


@pytest.fixture(params=list(VERSIONS))
def version(request: pytest.FixtureRequest) -> Path:
    """The folder of a published version, or of a child that was made whole."""
    return Path(request.getfixturevalue(VERSIONS[request.param]))


def rows_of(version: Path, split: str | None = None) -> list[Sample]:
    """MANIFEST rows, with the path of their tar."""
    shards = pl.read_parquet(version / "shards.parquet").select("shard", "path")
    rows = pl.read_parquet(version / "samples" / "*.parquet").join(shards, on="shard")
    return rows.filter(pl.lit(True) if split is None else pl.col("split") == split).to_dicts()


def wanted(version: Path, split: str | None = None) -> dict[str, tuple[str, str]]:
    """Key → (SHA-256 of the image member, caption), as the manifest places them."""
    found, rows = {}, rows_of(version, split)
    tars = {path: (version / path).read_bytes() for path in {row["path"] for row in rows}}
    for row in rows:
        tar = tars[row["path"]]
        image = tar[row["image_offset"] : row["image_offset"] + row["image_nbytes"]]
        found[row["key"]] = (hashlib.sha256(image).hexdigest(), row["caption"])
    return found


def read(environment: str, script: str, *arguments: str | Path) -> Iterator[Sample]:
    """The JSON lines that a script prints under a foreign environment; skips when that is not there."""
    python = READERS / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment of {environment} at {python}; run make test-foreign")
    command = [str(python), str(Path(__file__).parent / script), *map(str, arguments)]
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))


def by_key(samples: Iterator[Sample]) -> dict[str, tuple[str, str]]:
    """What was read; no key twice."""
    listed = [(sample["key"], (sample["image"], sample["caption"])) for sample in samples]
    assert not [key for key, count in Counter(key for key, _ in listed).items() if count > 1]
    return dict(listed)


def test_webdataset(version: Path) -> None:
    """webdataset 1.x, in the engine's own environment, by the list of URLs of every folder."""
    urls = [str(path.parent / line) for path in sorted(version.rglob("urls.txt")) for line in path.read_text().split()]
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        (image,) = (sample[form] for form in ("jpg", "png", "webp") if form in sample)
        assert json.loads(sample["json"])["key"] == sample["__key__"]
        assert sample["__key__"] not in found
        found[sample["__key__"]] = (hashlib.sha256(image).hexdigest(), sample["txt"].decode())
    assert found == wanted(version)


def test_open_clip(version: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected.jsonl"
    rows = rows_of(version, "train")
    with expected.open("w") as file:
        for row in rows:
            place = {"path": str(version / row["path"]), "offset": row["image_offset"], "nbytes": row["image_nbytes"]}
            file.write(json.dumps(place | {"key": row["key"], "caption": row["caption"]}) + "\n")
    counted, *lines = read("open_clip", "read_open_clip.py", expected, version)
    middle = lines.index({"read": True})
    pairs = Counter((line["image"], line["caption"]) for line in lines[:middle])
    assert counted == {"num_samples": len(rows)}
    assert {line["key"] for line in lines[:middle]} == {row["key"] for row in rows}
    assert Counter((line["image"], line["caption"]) for line in lines[middle + 1 :]) == pairs


@pytest.mark.parametrize("split", ["train", "val"])
def test_energon(version: Path, split: str) -> None:
    asked = wanted(version, {"val": "holdout"}.get(split, split))
    if not asked:
        pytest.skip("this version holds nothing out")
    lines = list(read("energon", "read_energon.py", version, split))
    assert by_key(line for line in lines if "key" in line) == asked
    if split == "train":
        mixture = json.loads((version / "manifest.json").read_text())["mixture"]["sources"]
        (drawn,) = (line["drawn"] for line in lines if "drawn" in line)
        total = sum(source["realised"] for source in mixture.values())
        for name, source in mixture.items():
            assert drawn.get(name, 0) / sum(drawn.values()) == pytest.approx(source["realised"] / total, abs=0.04)


def test_hugging_face_datasets(version: Path, tmp_path: Path) -> None:
    lines = list(read("datasets", "read_datasets.py", version, tmp_path))
    assert by_key(iter(lines)) == wanted(version)
    held = {line["key"] for line in lines if line["split"] == "holdout"}
    assert held == {row["key"] for row in rows_of(version, "holdout")}


def test_wids(version: Path, tmp_path: Path) -> None:
    """Every index by its schema, and every sample. The last webdataset that ships wids is what open_clip pins."""
    found: dict[str, tuple[str, str]] = {}
    for index in sorted(version.rglob("wids-meta.json")):
        described = json.loads(index.read_text())
        jsonschema.validate(described, WIDS)
        for shard in described["shardlist"]:
            assert (index.parent / shard["url"]).stat().st_size == shard["filesize"]
        mine = by_key(read("open_clip", "read_wids.py", index, tmp_path / index.parent.name))
        assert len(mine) == sum(shard["nsamples"] for shard in described["shardlist"])
        assert found.keys().isdisjoint(mine)
        found |= mine
    assert found == wanted(version)
