"""Side files hold what each reader looks for: open_clip's sizes and ranges, Energon's index, wids' list."""

from __future__ import annotations

import json
import struct

import numpy as np
import pyarrow as pa
import pytest
import yaml
from webdataset.shardlists import expand_urls

from dataengine.emit.sidecars import brace_ranges, dataset_sidecars, tar_index
from dataengine.schemas import SHARDS


def shards(paths: list[str], formats: list[str] | None = None) -> pa.Table:
    """SHARDS of `paths`; the n-th holds n + 1 samples."""
    names = [path.rsplit("/", 1)[-1].removesuffix(".tar") for path in paths]
    return SHARDS.table(
        {
            "shard": names,
            "path": paths,
            "source": [name.rsplit("-", 1)[0] for name in names],
            "format": formats or ["jpg"] * len(paths),
            "num_samples": list(range(1, len(paths) + 1)),
            "nbytes": [10_240] * len(paths),
            "sha256": ["0" * 64] * len(paths),
            "min_key": ["0" * 32] * len(paths),
            "max_key": ["f" * 32] * len(paths),
        }
    )


PATHS = [
    "blog/blog-000000.tar",
    "photos/photos-000000.tar",
    "photos/photos-000001.tar",
    "../v000001/photos/photos-000002.tar",
    "photos/photos-000003.tar",
    "holdout/photos/photos-000004.tar",
]
DRAWS = {"blog": 3, "photos": 28}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return dataset_sidecars("web", shards(PATHS, ["png", *["jpg"] * 5]), DRAWS)


def test_the_files(files: dict[str, bytes]) -> None:
    folders = ("blog", "photos", "holdout/photos")
    assert set(files) == {
        *(f"{folder}/{name}" for folder in folders for name in ("urls.txt", "sizes.json", "wids-meta.json")),
        *(f".nv-meta/{name}" for name in (".info.json", "split.yaml", "dataset.yaml")),
        *(f".nv-meta/split.{source}.yaml" for source in ("blog", "photos")),
        "metadataset.yaml",
        "train_data.txt",
    }


def test_open_clip_draws_each_source_by_its_mean_repeat(files: dict[str, bytes]) -> None:
    urls, factors = files["train_data.txt"].decode().splitlines()
    groups = dict(zip(urls.split("::"), map(float, factors.split("::")), strict=True))
    assert [path for group in groups for path in expand_urls(group)] == PATHS[:5]
    sizes = json.loads(files["blog/sizes.json"])
    drawn = {"blog": 0.0, "photos": 0.0}
    for group, factor in groups.items():
        for path in expand_urls(group):
            base = path.rsplit("/", 1)[-1]
            drawn[base.split("-")[0]] += factor * sizes[base]
    assert drawn == DRAWS


def test_every_folder_sizes_every_shard(files: dict[str, bytes]) -> None:
    sizes = {path.rsplit("/", 1)[-1]: number for number, path in enumerate(PATHS, 1)}
    for folder in ("blog", "photos", "holdout/photos"):
        assert json.loads(files[f"{folder}/sizes.json"]) == sizes


def test_urls_are_relative_to_their_folder(files: dict[str, bytes]) -> None:
    assert files["photos/urls.txt"].decode().split() == [
        "photos-000000.tar",
        "photos-000001.tar",
        "../../v000001/photos/photos-000002.tar",
        "photos-000003.tar",
    ]
    assert files["holdout/photos/urls.txt"] == b"photos-000004.tar\n"
    listed = json.loads(files["photos/wids-meta.json"])["shardlist"]
    assert [(entry["url"], entry["nsamples"]) for entry in listed][:2] == [
        ("photos-000000.tar", 2),
        ("photos-000001.tar", 3),
    ]


def test_energon_finds_splits_counts_and_fields(files: dict[str, bytes]) -> None:
    info = json.loads(files[".nv-meta/.info.json"])
    assert list(info["shard_counts"].items()) == [(path, number) for number, path in enumerate(PATHS, 1)]
    splits = yaml.safe_load(files[".nv-meta/split.yaml"])
    parts = {
        part: [path for name in names for path in expand_urls(name)] for part, names in splits["split_parts"].items()
    }
    assert parts == {"train": PATHS[:5], "val": PATHS[5:], "test": []}
    fields = yaml.safe_load(files[".nv-meta/dataset.yaml"])
    assert fields["field_map"] == {"image": "jpg,png", "caption": "txt"}


def test_tar_index_is_little_endian() -> None:
    assert tar_index(np.array([0, 1536, 2**33], dtype=np.uint64)) == struct.pack("<3Q", 0, 1536, 2**33)


def test_ranges_break_at_gaps_and_folders() -> None:
    ranges = brace_ranges(shards(PATHS).to_pylist())
    assert [path for group in ranges for path in expand_urls(group)] == PATHS
    assert "photos/photos-{000000..000001}.tar" in ranges


def test_a_strange_path_is_refused() -> None:
    with pytest.raises(ValueError, match="NNNNNN"):
        brace_ranges([{"path": "photos/other.tar"}])


def test_a_dataset_without_shards_has_its_side_files() -> None:
    files = dataset_sidecars("web", SHARDS.empty(), {})
    assert files["train_data.txt"] == b"\n\n"
    assert json.loads(files[".nv-meta/.info.json"]) == {"shard_counts": {}}
