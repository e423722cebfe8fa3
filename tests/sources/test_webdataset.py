"""Tars indexed in place: samples, places, and every kind of broken tar."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from dataengine.config.sources import WebDatasetSource
from dataengine.keys import member_key
from dataengine.sources.webdataset import candidate_table, read_samples, tar_rows

CONFIG = WebDatasetSource(
    kind="webdataset", paths=("x.tar",), caption_fields={"recap": "long"}, passthrough=("n", "exif")
)
CC12M = Path(os.environ.get("DATAENGINE_TEST_DATA", "absent")) / "cc12m-32" / "cc12m-train-0000.tar"


def tar_of(*members: tuple[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def index(content: bytes, config: WebDatasetSource = CONFIG) -> pa.Table:
    samples = read_samples(io.BytesIO(content), "x.tar", config)
    return candidate_table(tar_rows(samples, "s", "x", "s3://b/x.tar", config), "s")


def by_member(content: bytes, config: WebDatasetSource = CONFIG) -> dict[tuple[str, int], dict[str, object]]:
    """Rows by (member key, occurrence), for the few member keys of these tests."""
    names = [(name, count) for name in ("", "a", "b", "c", "d/a", "a.b", "v1.2", "a.b.c") for count in range(3)]
    keys = {member_key("s", "x", *name): name for name in names}
    return {keys[row["key"]]: row for row in index(content, config).to_pylist()}


def test_a_sample_gives_its_captions_and_the_place_of_its_image() -> None:
    metadata = {"url": "http://u/1", "long": "a long one", "n": 3, "exif": {"b": [1], "a": None}}
    content = tar_of(("d/a.JPG", b"jpeg bytes"), ("d/a.txt", b"a cat\n"), ("d/a.json", json.dumps(metadata).encode()))
    row = by_member(content)["d/a", 0]
    offset, nbytes = row.pop("offset"), row.pop("nbytes")
    assert content[offset : offset + nbytes] == b"jpeg bytes"
    assert row == {
        "key": member_key("s", "x", "d/a", 0),
        "num_rows": 1,
        "source": "s",
        "url": "http://u/1",
        "caption": "a cat",
        "captions": [("recap", "a long one")],
        "extra": [("exif", '{"a": null, "b": [1]}'), ("n", "3")],
        "expected_hash": None,
        "fault": None,
        "detail": None,
        "object": "s3://b/x.tar",
    }


def test_keys_may_hold_dots_where_only_the_last_extension_is_known() -> None:
    content = tar_of(
        ("v1.2.jpg", b"1"), ("v1.2.txt", b"one"), ("a.b.c.png", b"2"), ("a.seg.npy", b"x"), ("a.jpg", b"3")
    )
    rows = by_member(content)
    assert set(rows) == {("v1.2", 0), ("a.b.c", 0), ("a", 0)}
    assert rows["v1.2", 0]["caption"] == "one"
    assert all(row["fault"] is None for row in rows.values())


def test_hidden_files_and_folders_are_no_samples() -> None:
    assert len(index(tar_of(("._a.jpg", b"1"), ("d/.DS_Store", b"2"), ("README", b"3"), ("a.jpg", b"4")))) == 2


def test_of_two_images_the_first_counts() -> None:
    content = tar_of(("a.png", b"first"), ("a.jpg", b"second"))
    rows = by_member(content)
    assert rows.keys() == {("a", 0)}
    assert rows["a", 0]["nbytes"] == 5


def test_a_key_met_again_is_a_duplicate_in_a_row_or_apart() -> None:
    sample = (("a.jpg", b"1"), ("a.txt", b"x"))
    rows = by_member(tar_of(*sample, *sample, ("b.jpg", b"2"), *sample))
    faults = {name: row["fault"] for name, row in rows.items()}
    assert faults == {
        ("a", 0): None,
        ("a", 1): "duplicate_member",
        ("a", 2): "duplicate_member",
        ("b", 0): None,
    }


def test_a_sample_without_an_image_is_a_fault_and_has_no_place() -> None:
    row = by_member(tar_of(("a.txt", b"x"), ("a.json", b"{}")))["a", 0]
    assert (row["fault"], row["object"], row["offset"], row["caption"]) == ("missing_image", None, None, "x")


@pytest.mark.parametrize("broken", [b"{", b"[]", b"\xff\xfe{", b"[" * 100_000])
def test_broken_json_is_a_fault_only_where_it_is_needed(broken: bytes) -> None:
    content = tar_of(("a.jpg", b"1"), ("a.txt", b"x"), ("a.json", broken))
    assert by_member(content)["a", 0]["fault"] == "bad_json"
    unneeded = CONFIG.model_copy(update={"url_field": None})
    row = by_member(content, unneeded)["a", 0]
    assert (row["fault"], row["caption"], row["captions"], row["extra"]) == (None, "x", [], [])


def test_the_caption_may_come_from_the_json() -> None:
    config = CONFIG.model_copy(update={"caption_field": "long", "caption_fields": {}, "url_field": None})
    content = tar_of(
        ("a.jpg", b"1"),
        ("a.txt", b"x"),
        ("a.json", b'{"long": "y"}'),
        ("b.jpg", b"2"),
        ("c.jpg", b"3"),
        ("c.json", b'{"long": ["z"]}'),
    )
    rows = by_member(content, config)
    assert [rows[name, 0]["caption"] for name in "abc"] == ["y", "", ""]
    assert {row["fault"] for row in rows.values()} == {None}


def test_a_cut_tar_keeps_its_sound_samples_and_says_that_it_is_cut() -> None:
    whole = tar_of(
        ("a.jpg", b"1" * 600),
        ("a.txt", b"x"),
        ("a.json", b"{}"),
        ("b.jpg", b"2" * 600),
        ("b.txt", b"y" * 600),
    )
    texts_end = whole.index(b"y" * 600)
    rows = by_member(whole[: texts_end + 100])
    faults = {name: row["fault"] for name, row in rows.items()}
    assert faults == {("a", 0): None, ("b", 0): "corrupt_tar", ("", 0): "corrupt_tar"}
    assert sum(row["num_rows"] for row in rows.values()) == 3


def test_a_whole_last_sample_of_a_cut_tar_is_kept() -> None:
    whole = tar_of(("a.jpg", b"1"), ("a.txt", b"x"), ("a.json", b"{}"))
    rows = by_member(whole[: 6 * 512])
    assert {name: row["fault"] for name, row in rows.items()} == {("a", 0): None, ("", 0): "corrupt_tar"}


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_what_is_no_tar_is_one_corrupt_row(content: bytes) -> None:
    assert index(content).column("fault").to_pylist() == ["corrupt_tar"]


def test_a_fault_says_where_it_is() -> None:
    sample = (("a.jpg", b"1"), ("a.json", b"{}"))
    whole = tar_of(*sample, ("b.json", b"["), ("b.JPG", b"2"), ("c.json", b"{}"), ("c.npy", b"x"), *sample)
    details = {name: row["detail"] for name, row in by_member(whole).items()}
    assert details == {
        ("a", 0): None,
        ("b", 0): "x.tar: 'b' at byte 2560: its json member holds no JSON object",
        ("c", 0): "x.tar: 'c' at byte 4608: no image among its members (json, npy)",
        ("a", 1): "x.tar: 'a' at byte 6656: this key was met before in the tar",
    }
    assert whole[2560:2561] == b"["
    cut = by_member(whole[:7681])
    assert cut["", 0]["detail"] == cut["a", 1]["detail"] == "x.tar: tar ends within content of 'a.json' at byte 7681"


def test_a_huge_member_name_is_quoted_in_part() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("n" * 90_000 + ".txt"))
    (row,) = index(sink.getvalue()).to_pylist()
    assert row["fault"] == "missing_image"
    assert len(row["detail"]) < 300


def test_an_empty_tar_has_no_candidates() -> None:
    assert len(index(tar_of())) == 0


@pytest.mark.skipif(not CC12M.exists(), reason="DATAENGINE_TEST_DATA names no folder with the CC12M shard")
def test_a_real_shard() -> None:
    with CC12M.open("rb") as file:
        table = candidate_table(tar_rows(read_samples(file, "cc12m", CONFIG), "s", "x", str(CC12M), CONFIG), "s")
        rows = table.to_pylist()
        assert len(rows) == 32
        assert all(row["fault"] is None and row["caption"] and row["url"].startswith("http") for row in rows)
        for row in rows:
            file.seek(row["offset"])
            assert file.read(row["nbytes"])[:2] == b"\xff\xd8"
