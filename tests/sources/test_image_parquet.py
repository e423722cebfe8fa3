"""Parquet that holds images: located where it can be, copied where it cannot, and every row accounted for."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.sources import ImageParquetSource
from dataengine.errors import InputError
from dataengine.keys import member_key
from dataengine.schemas import CANDIDATE
from dataengine.sources import image_parquet, parquet_fields
from dataengine.sources.image_parquet import GroupRun, group_runs, index_rows, open_images
from dataengine.sources.parquet_fields import read_batches
from dataengine.sources.parquet_footer import read_chunks
from dataengine.sources.webdataset import Row, candidate_table
from tests.conftest import REPOSITORY

CONFIG = ImageParquetSource(
    kind="image_parquet",
    paths=("x.parquet",),
    caption_column="text",
    caption_columns={"recap": "long"},
    url_column="url",
    passthrough=("tags", "score", "n"),
)
PLAIN = {"compression": "none", "use_dictionary": False}
# How Hugging Face datasets writes them: from 4.6 on, and before.
LAYOUTS = [PLAIN, {"compression": "snappy"}, {"compression": "none", "use_dictionary": True}]


def image(number: int) -> bytes:
    return f"image {number} ".encode() * (10 + number)


def table(num_rows: int, missing: tuple[int, ...] = (), *, is_struct: bool = True) -> pa.Table:
    contents = [None if number in missing else image(number) for number in range(num_rows)]
    structs = [content and {"bytes": content, "path": f"{i}.jpg"} for i, content in enumerate(contents)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table(
        {
            "image": pa.array(structs, kind) if is_struct else pa.array(contents, pa.binary()),
            "text": [f"caption {number}" for number in range(num_rows)],
            "long": [None if number % 2 else "long" for number in range(num_rows)],
            "url": [f"http://u/{number}" for number in range(num_rows)],
            "tags": [["a", str(number)] for number in range(num_rows)],
            "score": [0.5 * number for number in range(num_rows)],
            "n": list(range(num_rows)),
        }
    )


def parquet(rows: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink, **(options or PLAIN))
    return sink.getvalue()


def index(content: bytes, config: ImageParquetSource = CONFIG) -> tuple[list[Row], dict[str, bytes]]:
    """(rows of the whole file, what was kept by key)."""
    kept: dict[str, bytes] = {}

    def keep(key: str, content: bytes) -> tuple[str, int, int]:
        kept[key] = content
        return "images.tar", 0, len(content)

    images = open_images(io.BytesIO(content), "d/x.parquet", config)
    rows = [row for run in group_runs(images) for row in index_rows(images, run, "s", "x", "x.parquet", config, keep)]
    return rows, kept


@pytest.mark.parametrize("is_struct", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_plain_images_are_located_in_the_file(version: str, is_struct: bool) -> None:
    content = parquet(table(9, is_struct=is_struct), **PLAIN, row_group_size=4, data_page_version=version)
    rows, kept = index(content)
    assert not kept
    assert [content[row["offset"] : row["offset"] + row["nbytes"]] for row in rows] == [image(i) for i in range(9)]
    assert {row["object"] for row in rows} == {"x.parquet"}
    rows[3].update(offset=0, nbytes=0)
    assert rows[3] == {
        "key": member_key("s", "x", "3", 0),
        "url": "http://u/3",
        "caption": "caption 3",
        "captions": [],
        "extra": [("n", "3"), ("score", "1.5"), ("tags", '["a", "3"]')],
        "fault": None,
        "detail": None,
        "object": "x.parquet",
        "offset": 0,
        "nbytes": 0,
    }
    assert rows[2]["captions"] == [("recap", "long")]
    assert len(candidate_table(rows, "s")) == 9


@pytest.mark.parametrize("options", LAYOUTS[1:])
def test_images_without_a_place_are_kept_once_each(options: dict[str, Any]) -> None:
    rows, kept = index(parquet(table(9, missing=(4,)), **options, row_group_size=4))
    assert kept == {row["key"]: image(i) for i, row in enumerate(rows) if i != 4}
    assert [row["object"] for row in rows] == ["images.tar"] * 4 + [None] + ["images.tar"] * 4


@pytest.mark.parametrize("options", LAYOUTS)
def test_a_row_without_bytes_is_a_missing_image(options: dict[str, Any]) -> None:
    rows = table(5, missing=(1,))
    images = rows["image"].to_pylist()
    images[2], images[3] = {"bytes": None, "path": "2.jpg"}, {"bytes": b"", "path": None}
    rows = rows.set_column(0, "image", pa.array(images, rows["image"].type))
    found, _ = index(parquet(rows, **options))
    assert [row["fault"] for row in found] == [None, *["missing_image"] * 3, None]
    assert found[1]["detail"] == "x.parquet: row 1: no bytes in column 'image'"
    assert [row["caption"] for row in found] == [f"caption {number}" for number in range(5)]


def spoil(content: bytes, group: int, column: str) -> bytes:
    """`content` with the first page header of a column of a row group overwritten."""
    begin = read_chunks(io.BytesIO(content))[group][column].span[0]
    return content[:begin] + b"\xff" * 16 + content[begin + 16 :]


@pytest.mark.parametrize("column", ["image.bytes", "text", "tags.list.element"])
@pytest.mark.parametrize("options", LAYOUTS)
def test_a_corrupt_page_costs_its_row_group(options: dict[str, Any], column: str) -> None:
    rows, _ = index(spoil(parquet(table(12), **options, row_group_size=4), 1, column))
    assert [row["fault"] for row in rows] == [None] * 4 + ["corrupt_parquet"] * 4 + [None] * 4
    assert str(rows[5]["detail"]).startswith("x.parquet: row group 1: ")
    assert {row["object"] for row in rows[4:8]} == {None}
    assert [row["caption"] for row in rows[8:]] == [f"caption {number}" for number in range(8, 12)]
    assert candidate_table(rows, "s").schema == CANDIDATE.arrow


def test_rows_before_the_fault_are_kept() -> None:
    content = parquet(table(6))
    broken = content.replace((len(image(4))).to_bytes(4, "little") + image(4), b"\xff\xff\xff\x7f" + image(4))
    rows, _ = index(broken)
    assert [row["fault"] for row in rows] == [None] * 4 + ["corrupt_parquet"] * 2
    assert "a value of 2147483647 bytes leaves its page" in str(rows[4]["detail"])


def test_a_flipped_bit_in_a_compressed_page_is_found_where_there_are_checksums() -> None:
    content = bytearray(parquet(table(40), compression="none", use_dictionary=True, write_page_checksum=True))
    place = content.index(image(7))
    content[place] ^= 1
    rows, _ = index(bytes(content))
    assert Counter(row["fault"] for row in rows) == {"corrupt_parquet": 40}
    assert "CRC" in str(rows[0]["detail"])


def test_one_huge_value_that_every_row_names_is_never_unpacked_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array([bytes(2**22)], pa.binary()))
    content = parquet(pa.table({"image": huge}), compression="zstd", dictionary_pagesize_limit=2**30)
    assert len(content) < 2**16
    images = open_images(io.BytesIO(content), "x.parquet", CONFIG.model_copy(update=BARE))
    blocks = read_batches(images.parquet, 0, ["image"])
    assert {block.nbytes <= parquet_fields.MAX_BLOCK_BYTES + 2**16 for block in blocks} == {True}
    monkeypatch.setattr(image_parquet, "MAX_CHUNK_BYTES", 100 * 2**20)
    rows, kept = index(content, CONFIG.model_copy(update=BARE))
    assert len(kept) <= 25
    assert rows[-1]["fault"] == "corrupt_parquet"
    assert rows[-1]["detail"] == "x.parquet: row group 0: images of more than 104857600 bytes"


BARE: dict[str, Any] = {"caption_column": None, "caption_columns": {}, "url_column": None, "passthrough": ()}


def test_only_the_image_column_is_needed() -> None:
    rows, _ = index(parquet(table(3).select(["image"])), CONFIG.model_copy(update=BARE))
    assert [(row["caption"], row["url"], row["captions"], row["extra"]) for row in rows] == [("", None, [], [])] * 3


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"image_column": "images"}, r"no column 'images' \(did you mean 'image'\?\)"),
        ({"image_column": "text"}, "'text' is string, wanted binary or a struct"),
        ({"image_column": "tags"}, "wanted binary or a struct"),
        ({"caption_column": "caption"}, "no column 'caption'"),
    ],
)
def test_a_column_that_is_not_of_use_is_an_input_error(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(InputError, match=f"^d/x.parquet: .*{wanted}"):
        index(parquet(table(3)), CONFIG.model_copy(update=changes))


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_what_is_no_parquet_is_an_input_error(cut: int) -> None:
    with pytest.raises(InputError, match=r"^d/x\.parquet: "):
        index(parquet(table(3))[:cut])


def test_a_row_group_of_absurdly_many_rows_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_fields, "MAX_GROUP_ROWS", 8)
    with pytest.raises(InputError, match="row group 0 holds 9 rows, at most 8"):
        index(parquet(table(9)))


def test_no_byte_of_a_footer_ends_the_process() -> None:
    """Arrow 26.0 calls std::terminate when it is asked for a column chunk whose size statistics do not add up."""
    command = [sys.executable, "-c", _EVERY_FOOTER]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


_EVERY_FOOTER = """
import contextlib
from tests.sources.test_image_parquet import *
content = parquet(table(3).select(["image"]))
end = len(content) - 8
for place in range(end - int.from_bytes(content[end : end + 4], "little"), end):
    for byte in (0, 1, 0x2C, 0xFF):
        with contextlib.suppress(InputError):
            index(content[:place] + bytes([byte]) + content[place + 1 :], CONFIG.model_copy(update=BARE))
print("done")
"""


def test_a_file_without_rows_is_an_empty_part() -> None:
    content = parquet(table(0))
    images = open_images(io.BytesIO(content), "x.parquet", CONFIG)
    assert sum(run.num_rows for run in group_runs(images)) == 0
    assert len(candidate_table(index(content)[0], "s")) == 0


@given(num_rows=st.integers(0, 60), group_rows=st.integers(1, 20), part_rows=st.integers(1, 30))
def test_runs_cover_every_row_once_and_stay_small(num_rows: int, group_rows: int, part_rows: int) -> None:
    content = parquet(table(num_rows).select(["image"]), **PLAIN, row_group_size=group_rows)
    images = open_images(io.BytesIO(content), "x.parquet", CONFIG.model_copy(update=BARE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_parquet, "MAX_PART_ROWS", part_rows)
        runs = group_runs(images)
    next_group = next_row = 0
    for run in runs:
        assert run == GroupRun(next_group, run.num_groups, next_row, run.num_rows)
        assert run.num_rows <= part_rows or run.num_groups == 1
        next_group, next_row = next_group + run.num_groups, next_row + run.num_rows
    assert (next_group, next_row) == (len(images.parquet.num_rows), num_rows)


def test_runs_end_where_the_bytes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_parquet, "MAX_PART_BYTES", 3000)
    images = open_images(io.BytesIO(parquet(table(40), **PLAIN, row_group_size=4)), "x.parquet", CONFIG)
    runs = group_runs(images)
    footers = [images.chunk(group).span[1] for group in range(10)]
    sizes = [sum(footers[run.first_group : run.first_group + run.num_groups]) for run in runs]
    assert len(runs) > 3
    assert all(size <= 3000 or run.num_groups == 1 for size, run in zip(sizes, runs, strict=True))
    assert any(run.num_groups > 1 for run in runs)
