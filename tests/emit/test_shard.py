"""Shards are byte-for-byte reproducible, and tarfile, webdataset and our own walk read what was meant."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset

from dataengine.emit import shard
from dataengine.emit.shard import Layout, plan_shard
from dataengine.storage import tar
from tests.emit.conftest import Kept, kept_rows


def build(kept: Kept) -> tuple[bytes, Layout]:
    planned = plan_shard(kept.rows, caption_names=("alt", "long"), extra_names=("license",))
    buffer = io.BytesIO()
    planned.write(from_memory(kept.images), buffer.write)
    return buffer.getvalue(), planned.layout


def from_memory(stored: list[bytes], per_sample: int = 1) -> shard.Fill:
    """Fills views with `stored`, and only when it is waited for."""

    def fill(first: int, views: Sequence[memoryview]) -> Callable[[], None]:
        def wait() -> None:
            for view, content in zip(views, stored[first * per_sample :], strict=False):
                view[:] = content

        return wait

    return fill


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


def test_pieces_do_not_show(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = build(kept)
    planned = plan_shard(kept.rows, caption_names=("alt", "long"), extra_names=("license",))
    for nbytes, ahead in ((1, 0), (5000, 1), (20_000, 3)):
        monkeypatch.setattr(shard, "PIECE_BYTES", nbytes)
        buffer = io.BytesIO()
        planned.write(from_memory(kept.images), buffer.write, pieces_ahead=ahead)
        assert buffer.getvalue() == whole


def test_extra_members_follow_the_json(kept: Kept) -> None:
    names, rng = ("src.jpg", "npy"), np.random.default_rng(1)
    extras = [[rng.bytes(int(size)) for size in rng.integers(0, 2000, 2)] for _ in kept.images]
    planned = plan_shard(
        kept.rows,
        extra_members=names,
        extra_sizes=np.array([[len(content) for content in of_sample] for of_sample in extras]),
    )
    stored = [content for image, of_sample in zip(kept.images, extras, strict=True) for content in (image, *of_sample)]
    buffer = io.BytesIO()
    planned.write(from_memory(stored, 3), buffer.write)
    found = list(tar.walk(io.BytesIO(buffer.getvalue()), "built"))
    keys = kept.rows["key"].to_pylist()
    assert [m.name for m in found] == [f"{k}.{end}" for k in keys for end in ("jpg", "txt", "json", *names)]
    assert [m.offset for m in found] == planned.layout.offsets.ravel().tolist()
    contents = [buffer.getvalue()[m.offset : m.offset + m.nbytes] for m in found]
    assert contents[0::5] == kept.images
    assert contents[3::5] == [of_sample[0] for of_sample in extras]
    assert contents[4::5] == [of_sample[1] for of_sample in extras]


def test_an_empty_shard_is_an_empty_tar() -> None:
    written, content = build(kept_rows(0))
    assert written == tar.END
    assert content.sample_offsets.tolist() == [0]
