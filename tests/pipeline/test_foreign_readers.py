"""What we emit, read by others: plain tarfile and webdataset agree with the manifest on keys, captions and images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import polars as pl
import pytest
import xxhash
from PIL import Image


@pytest.fixture(scope="module")
def samples(quickstart_dataset: Path) -> dict[str, dict[str, object]]:
    """MANIFEST rows by key."""
    rows = pl.read_parquet(quickstart_dataset / "samples" / "*.parquet")
    return {row["key"]: row for row in rows.to_dicts()}


def tars(dataset: Path) -> list[Path]:
    """The shards, in the manifest's order."""
    return [dataset / path for path in pl.read_parquet(dataset / "shards.parquet")["path"]]


def test_tarfile_finds_every_member_where_the_manifest_says(
    quickstart_dataset: Path, samples: dict[str, dict[str, object]]
) -> None:
    seen = []
    for path in tars(quickstart_dataset):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                key, _, extension = member.name.partition(".")
                row = samples[key]
                name = extension if extension in ("txt", "json") else "image"
                assert (member.offset_data, member.size) == (row[f"{name}_offset"], row[f"{name}_nbytes"])
                assert (member.mtime, member.uid, member.gid, member.pax_headers) == (0, 0, 0, {})
                assert row["shard"] == path.stem
                seen.append((key, name))
    assert sorted(seen) == sorted((key, name) for key in samples for name in ("image", "txt", "json"))


def test_webdataset_reads_keys_captions_and_images(
    quickstart_dataset: Path, samples: dict[str, dict[str, object]]
) -> None:
    import webdataset

    urls = [str(path) for path in tars(quickstart_dataset)]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in read] == [
        key for key, row in sorted(samples.items(), key=lambda item: (item[1]["shard"], item[1]["index_in_shard"]))
    ]
    for sample in read:
        row = samples[sample["__key__"]]
        image = sample[str(row["format"])]
        assert sample["txt"].decode() == row["caption"]
        assert xxhash.xxh3_64_hexdigest(image) == row["xxh3"]
        assert Image.open(io.BytesIO(image)).size == (row["width"], row["height"])
        described = json.loads(sample["json"])
        assert (described["key"], described["caption"]) == (row["key"], row["caption"])
        assert None not in described.values()


def test_our_reader_and_webdataset_see_the_same_samples(quickstart_dataset: Path) -> None:
    import webdataset

    from dataengine.trainer.dataset import ShardDataset

    urls = [str(path) for path in tars(quickstart_dataset)]
    theirs = {sample["__key__"]: sample["txt"].decode() for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    ours = {sample["__key__"]: sample["txt"] for sample in ShardDataset(str(quickstart_dataset), decode="bytes")}
    assert {key: text if isinstance(text, str) else text.decode() for key, text in ours.items()} == theirs


def test_every_published_file_is_listed_with_its_hash(quickstart_dataset: Path) -> None:
    from dataengine.analyst.dataset import open_dataset
    from dataengine.analyst.verify import verify

    manifest = json.loads((quickstart_dataset / "manifest.json").read_text())
    there = {
        path.relative_to(quickstart_dataset).as_posix() for path in quickstart_dataset.rglob("*") if path.is_file()
    }
    assert {file["path"] for file in manifest["files"]} == there - {"manifest.json", "claim.json"}
    assert verify(open_dataset(str(quickstart_dataset)), full=True, sample=4, progress=lambda *_: None) == []
