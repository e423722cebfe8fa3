"""img2dataset's output read in place: its images where they lie, and every row that it did not get."""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataengine.config.sources import Img2DatasetSource
from dataengine.errors import InputError
from dataengine.keys import member_key
from dataengine.sources.img2dataset import index_shard
from tests.sources.img2dataset_output import Asked, parquet_bytes, tar_bytes

CONFIG = Img2DatasetSource(
    kind="img2dataset", paths=("x.tar",), caption_fields={"lic": "licence"}, passthrough=("n", "width", "key")
)
ROWS = [
    Asked("000000", "a cat", b"jpeg 0" * 100, n=3),
    Asked("000001", None, b"jpeg 1"),
    Asked("000002", "gone", None, "HTTP Error 404: Not Found", n=7),
    Asked("000003", "a dög", b"jpeg 3" * 1000),
]


def index(tar: bytes, listing: bytes, config: Img2DatasetSource = CONFIG) -> list[dict[str, Any]]:
    """CANDIDATE rows in the order of the keys that img2dataset gave."""
    files = io.BytesIO(tar), io.BytesIO(listing)
    rows = index_shard(*files, "out/00000.parquet", "s", "00000", "out/00000.tar", config).to_pylist()
    order = {member_key("s", "00000", f"{number:06d}", 0): number for number in range(300)}
    return sorted(rows, key=lambda row: order.get(row["key"], 999))


def faults(rows: list[dict[str, Any]]) -> Counter[object]:
    return Counter(row["fault"] for row in rows)


def test_images_lie_in_the_tar_and_the_rest_is_accounted_for() -> None:
    tar = tar_bytes(ROWS)
    rows = index(tar, parquet_bytes(ROWS))
    assert [row["fault"] for row in rows] == [None, None, "not_downloaded", None]
    assert [row["url"] for row in rows] == [f"http://u/00000{number}" for number in range(4)]
    assert [row["caption"] for row in rows] == ["a cat", "", "gone", "a dög"]
    assert [row["extra"] for row in rows[1:3]] == [
        [("key", "000001"), ("n", "0"), ("width", "8")],
        [("key", "000002"), ("n", "7")],
    ]
    assert {str(row["captions"]) for row in rows} == {"[('lic', 'cc')]"}
    for row, asked in zip(rows, ROWS, strict=True):
        if asked.content is not None:
            assert tar[row["offset"] : row["offset"] + row["nbytes"]] == asked.content
    assert (rows[2]["detail"], rows[2]["object"]) == ("HTTP Error 404: Not Found", None)


def test_a_long_error_is_cut_and_a_missing_one_is_the_status() -> None:
    rows = index(tar_bytes([]), parquet_bytes([Asked("000000", "a", None, "e" * 900), Asked("000001", "a", None, "")]))
    assert [row["detail"] for row in rows] == ["e" * 200, "failed_to_download"]


def test_a_success_that_the_tar_lacks_is_a_missing_image() -> None:
    rows = index(tar_bytes(ROWS[1:]), parquet_bytes(ROWS))
    assert rows[0]["fault"] == "missing_image"
    assert rows[0]["detail"] == "00000.tar: no member '000000', though 00000.parquet calls it a success"
    assert rows[0]["url"] == "http://u/000000"


def test_members_that_the_parquet_lacks_are_kept() -> None:
    rows = index(tar_bytes(ROWS), parquet_bytes(ROWS[2:]))
    assert [row["fault"] for row in rows] == [None, None, "not_downloaded", None]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_a_torn_tar_loses_no_row_and_adds_none(share: float) -> None:
    asked = [
        Asked(f"{number:06d}", "c", b"x" * 700 * (number % 3 != 0) or None, None if number % 3 else "no")
        for number in range(250)
    ]
    tar = tar_bytes(asked)
    rows = index(tar[: int(share * len(tar))], parquet_bytes(asked))
    assert len({row["key"] for row in rows}) == len(rows) == 250
    found = faults(rows)
    assert found["not_downloaded"] == 84
    assert found["corrupt_tar"] == pytest.approx((1 - share) * 166, abs=2)
    assert set(found) <= {None, "not_downloaded", "corrupt_tar"}
    assert all("00000.tar: tar ends" in str(row["detail"]) for row in rows if row["fault"] == "corrupt_tar")


def test_keys_met_twice_are_rows_of_their_own() -> None:
    listed = [ROWS[0], ROWS[0], ROWS[2], ROWS[2]]
    rows = index(tar_bytes([ROWS[0], ROWS[0]]), parquet_bytes(listed))
    assert faults(rows) == {None: 1, "duplicate_member": 1, "not_downloaded": 2}
    assert len({row["key"] for row in rows}) == 4


def test_a_row_without_a_key_is_a_row() -> None:
    table = pq.read_table(io.BytesIO(parquet_bytes(ROWS)))
    keyless = table.set_column(table.column_names.index("key"), "key", pa.nulls(4, pa.string()))
    sink = io.BytesIO()
    pq.write_table(keyless, sink)
    assert faults(index(tar_bytes([]), sink.getvalue())) == {"missing_image": 3, "not_downloaded": 1}


def test_there_may_be_no_captions() -> None:
    table = pq.read_table(io.BytesIO(parquet_bytes(ROWS[2:3]))).drop_columns(["caption", "error_message"])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    (row,) = index(tar_bytes([]), sink.getvalue())
    assert (row["caption"], row["detail"]) == ("", "failed_to_download")


@pytest.mark.parametrize("cut", [0, 10, 700, -9])
def test_an_unreadable_parquet_is_an_input_error(cut: int) -> None:
    with pytest.raises(InputError, match=r"^out/00000\.parquet: "):
        index(tar_bytes(ROWS), parquet_bytes(ROWS)[:cut])


def test_a_corrupt_parquet_is_an_input_error() -> None:
    content = parquet_bytes(ROWS)
    with pytest.raises(InputError, match=r"^out/00000\.parquet: .*let img2dataset write the shard again"):
        index(tar_bytes(ROWS), content[:4] + b"\xff" * 600 + content[604:])


def test_a_field_that_was_not_saved_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"out/00000\.parquet: no column 'licens' \(did you mean 'licence'\?\)"):
        index(tar_bytes(ROWS), parquet_bytes(ROWS), CONFIG.model_copy(update={"passthrough": ("licens",)}))


_DOWNLOAD = """
import json, sys
from img2dataset import download
download(**json.loads(sys.argv[1]))
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a server with twelve pictures, one page that is none, and nothing else."""
    folder = tmp_path / "www"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (40 + number, 30), (20 * number, 0, 0)).save(folder / f"{number}.jpg")
    (folder / "page.jpg").write_bytes(b"<html>")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_what_a_real_img2dataset_wrote(site: str, tmp_path: Path) -> None:
    interpreter = os.environ.get("DATAENGINE_IMG2DATASET_PYTHON")
    if not interpreter:
        pytest.skip("DATAENGINE_IMG2DATASET_PYTHON names no interpreter that has img2dataset 1.47")
    names = [*map(str, range(6)), "page", "gone", *map(str, range(6, 12))]
    captions = {f"{site}/{name}.jpg": f"caption of {name} – ö" if name != "3" else "" for name in names}
    table = pa.table({"url": list(captions), "text": list(captions.values()), "n": list(range(len(names)))})
    pq.write_table(table, tmp_path / "asked.parquet")
    arguments = {
        **{"url_list": str(tmp_path / "asked.parquet"), "input_format": "parquet", "url_col": "url"},
        **{"caption_col": "text", "save_additional_columns": ["n"], "output_format": "webdataset"},
        **{"output_folder": str(tmp_path / "out"), "processes_count": 1, "thread_count": 4, "image_size": 32},
        **{"number_sample_per_shard": 5, "enable_wandb": False},
    }
    subprocess.run([interpreter, "-c", _DOWNLOAD, json.dumps(arguments)], check=True, cwd=tmp_path)
    config = Img2DatasetSource(kind="img2dataset", paths=("x",), passthrough=("key", "n"))
    rows: list[dict[str, Any]] = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        listing = path.with_suffix(".parquet")
        with path.open("rb") as tar, listing.open("rb") as file:
            found = index_shard(tar, file, str(listing), "s", path.stem, str(path), config).to_pylist()
        with tarfile.open(path) as members:
            stored = {member.name.removesuffix(".jpg"): member for member in members if member.name.endswith(".jpg")}
            located = {dict(row["extra"])["key"]: row for row in found if row["fault"] is None}
            assert stored.keys() == located.keys()
            for key, row in located.items():
                assert row["key"] == member_key("s", path.stem, key, 0)
                assert row["nbytes"] == stored[key].size
                with path.open("rb") as tar:
                    tar.seek(row["offset"])
                    picture = Image.open(io.BytesIO(tar.read(row["nbytes"])))
                assert picture.size == (32, 32)
        rows += found
    assert {row["url"]: row["caption"] for row in rows} == captions
    assert faults(rows) == {None: 12, "not_downloaded": 2}
    assert {row["detail"] for row in rows} == {None, "Image decoding error", "HTTP Error 404: File not found"}
    assert sorted(int(dict(row["extra"])["n"]) for row in rows) == list(range(14))
