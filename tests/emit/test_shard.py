"""Shards are byte-for-byte reproducible, and tarfile, webdataset and our own walk read what was meant."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset

from dataengine.emit.shard import ShardContent, build_shard
from dataengine.errors import CorruptObject
from dataengine.storage import tar
from tests.emit.conftest import Kept, kept_rows


def build(kept: Kept) -> tuple[bytes, ShardContent]:
    buffer = io.BytesIO()
    content = build_shard(
        kept.rows, iter(kept.images), buffer.write, caption_names=("alt", "long"), extra_names=("license",)
    )
    return buffer.getvalue(), content


def test_two_builds_are_byte_identical(kept: Kept) -> None:
    first, again = build(kept), build(kept_rows(25))
    assert first[0] == again[0]
    assert first[1].nbytes == again[1].nbytes == len(first[0])
    assert first[1].nbytes == len(first[0])


def test_bytes_are_those_of_tarfile(kept: Kept) -> None:
    written, _ = build(kept)
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as rebuilt,
        tarfile.open(fileobj=io.BytesIO(written)) as read,
    ):
        for member in read:
            rebuilt.addfile(member, read.extractfile(member))
    ours, theirs = written[: -len(tar.END)], buffer.getvalue()
    assert theirs.startswith(ours)
    assert not any(theirs[len(ours) :])  # tarfile pads the end to 10 KiB


def test_the_tables_places_are_the_members(kept: Kept) -> None:
    written, content = build(kept)
    columns = content.columns
    found = list(tar.walk(io.BytesIO(written), "built"))
    extensions = ("jpg", "txt", "json")
    assert [member.name for member in found] == [
        f"{key}.{end}" for key in kept.rows["key"].to_pylist() for end in extensions
    ]
    for place, member in enumerate(("image", "txt", "json")):
        assert columns[f"{member}_offset"].tolist() == [entry.offset for entry in found[place::3]]
        assert columns[f"{member}_nbytes"].tolist() == [entry.nbytes for entry in found[place::3]]
    assert content.sample_offsets.dtype == np.uint64
    assert content.sample_offsets.tolist() == [entry.offset - tar.BLOCK for entry in found[::3]] + [len(written) - 1024]


def test_webdataset_reads_every_sample(kept: Kept, tmp_path: Path) -> None:
    path = tmp_path / "photos-000000.tar"
    path.write_bytes(build(kept)[0])
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == kept.rows["key"].to_pylist()
    assert [sample["jpg"] for sample in samples] == kept.images
    assert [sample["txt"].decode() for sample in samples] == kept.rows["caption"].to_pylist()
    assert {frozenset(sample) - {"__key__", "__url__", "__local_path__"} for sample in samples} == {
        frozenset({"jpg", "txt", "json"})
    }


def test_json_has_every_field_and_no_null(kept: Kept) -> None:
    written, content = build(kept)
    begins, sizes = content.columns["json_offset"], content.columns["json_nbytes"]
    texts = [written[begin : begin + size].decode() for begin, size in zip(begins, sizes, strict=True)]
    objects = [json.loads(text) for text in texts]
    assert {tuple(sample) for sample in objects} == {tuple(objects[0])}
    assert {tuple(sample["captions"]) for sample in objects} == {("alt", "long")}
    assert not any("null" in text for text in texts)
    assert objects[0]["url"] == ""
    assert objects[0]["phash"] == ""
    assert objects[0]["extra"] == {"license": ""}
    assert objects[0]["clip_score"] == -1.0
    assert '"clip_score":-1.0' in texts[0]
    assert objects[1]["clip_score"] == pytest.approx(kept.rows["clip_score"][1].as_py(), abs=5e-7)
    assert len(str(abs(objects[1]["clip_score"]))) <= len("0.123456")
    assert objects[1]["caption"] == 'a "red"\ncircle № 1'
    assert objects[1]["url"].endswith("ü")


def test_merged_captions_follow_the_configured_ones(kept: Kept) -> None:
    captions = pa.array([[("other", "x"), ("alt", "y")]] * 25, kept.rows.schema.field("captions").type)
    rows = kept.rows.set_column(kept.rows.schema.get_field_index("captions"), "captions", captions)
    written, content = build(Kept(rows.slice(20), kept.images[20:]))
    begin = content.columns["json_offset"][0]
    sample = json.loads(written[begin : begin + content.columns["json_nbytes"][0]])
    assert list(sample["captions"].items()) == [("alt", "y"), ("long", ""), ("other", "x")]
    assert content.num_samples == 5


def test_a_changed_image_is_named(kept: Kept) -> None:
    images = list(kept.images)
    images[7] = images[7][:-1] + bytes([images[7][-1] ^ 1])
    with pytest.raises(CorruptObject, match=kept.rows["key"][7].as_py()):
        build(Kept(kept.rows, images))


@pytest.mark.parametrize("images", [0, 24])
def test_images_must_match_rows(kept: Kept, images: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        build(Kept(kept.rows, kept.images[:images]))


def test_an_empty_shard_is_an_empty_tar() -> None:
    written, content = build(kept_rows(0))
    assert written == tar.END
    assert content.sample_offsets.tolist() == [0]
