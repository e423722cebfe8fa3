"""Foreign tables: every format gives the same rows, and unusable files say why."""

from __future__ import annotations

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataengine.errors import InputError
from dataengine.sources.tables import BLOCK_ROWS, MALFORMED, count_rows, read_columns, table_format

ROWS = [("http://a.example/1.jpg", "a cat,\nsleeping"), ("http://b.example/2.jpg", 'a "dog"'), ("", "no url")]


def read(
    content: bytes, form: str, compression: str | None = None, columns: tuple[str, ...] = ("url", "text")
) -> pa.Table:
    file = io.BytesIO(content)
    tables = list(read_columns(file, f"in.{form}", form, compression, columns))
    table = pa.concat_tables(tables)
    assert not file.closed
    assert count_rows(file, f"in.{form}", form, compression) == len(table)
    return table


def as_parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def as_csv(delimiter: str) -> bytes:
    quoted = (delimiter.join('"' + field.replace('"', '""') + '"' for field in row) for row in ROWS)
    return "\r\n".join([delimiter.join(["url", "text"]), *quoted]).encode()


def as_jsonl() -> bytes:
    return b"".join(json.dumps({"text": text, "url": url, "n": 1}).encode() + b"\n" for url, text in ROWS)


def contents() -> dict[str, bytes]:
    columns = {"n": [1, 2, 3], "text": [text for _, text in ROWS], "url": [url for url, _ in ROWS]}
    return {
        "csv": as_csv(","),
        "tsv": as_csv("\t"),
        "jsonl": as_jsonl(),
        "parquet": as_parquet(pa.table(columns)),
    }


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(form: str) -> None:
    table = read(contents()[form], form)
    assert table.schema.types == [pa.string(), pa.string(), pa.bool_()]
    assert list(zip(*(table.column(name).to_pylist() for name in ("url", "text")), strict=True)) == ROWS
    assert table.column(MALFORMED).to_pylist() == [False] * 3


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_gz_of_several_members_and_zst_are_unpacked(form: str) -> None:
    content = contents()[form]
    plain = read(content, form)
    assert read(gzip.compress(content[:20]) + gzip.compress(content[20:]), form, "gz").equals(plain)
    assert read(pa.compress(content, "zstd", asbytes=True), form, "zst").equals(plain)


def test_a_gz_cut_short_is_an_input_error_naming_the_file() -> None:
    packed = gzip.compress(b"url\n" + bytes(range(33, 120)) * 100 + b"\n")[:-9]
    with pytest.raises(InputError, match=r"in\.csv.*gz|in\.csv.*Truncated"):
        read(packed, "csv", "gz", ("url",))


def test_txt_is_one_url_a_line() -> None:
    table = read(b"http://a/1\r\n\nhttp://a/2", "txt", columns=("url",))
    assert table.column("url").to_pylist() == ["http://a/1", "http://a/2"]
    with pytest.raises(InputError, match="URLs only"):
        read(b"http://a/1\n", "txt")


def test_malformed_rows_are_kept_in_their_place() -> None:
    table = read(b"url,text\nu1,a\nu2,b,c\nu3\nu4,d\n", "csv")
    assert table.column("url").to_pylist() == ["u1", None, None, "u4"]
    assert table.column(MALFORMED).to_pylist() == [False, True, True, False]


def test_blocks_keep_order_and_number() -> None:
    num_rows = BLOCK_ROWS + 10
    content = b"url\n" + b"".join(b"u%d\n" % number for number in range(num_rows))
    blocks = list(read_columns(io.BytesIO(content), "x.csv", "csv", None, ["url"]))
    assert [len(block) for block in blocks] == [BLOCK_ROWS, 10]
    assert pa.concat_tables(blocks).column("url").to_pylist() == [f"u{number}" for number in range(num_rows)]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_missing_column_is_named_with_the_nearest_and_all_there_are(form: str) -> None:
    with pytest.raises(InputError, match=rf"in\.{form}: no column 'urll' \(did you mean 'url'\?\).*text") as fault:
        read(contents()[form], form, columns=("urll",))
    assert "config" in str(fault.value)


def test_a_column_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="stands 2 times"):
        read(b"url,url\na,b\n", "csv", columns=("url",))


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_csv_without_a_header_is_refused(form: str) -> None:
    with pytest.raises(InputError, match="no header"):
        read(b"", form)


def test_parquet_values_of_any_flat_type_become_text() -> None:
    table = pa.table(
        {
            "int": pa.array([1, None]),
            "float": pa.array([0.5, 2.0]),
            "bytes": pa.array([b"ok", b"\xff!"]),
            "text": pa.array(["a", None]).dictionary_encode(),
            "nothing": pa.nulls(2),
            "large": pa.array(["x", "y"], pa.large_string()),
        }
    )
    found = read(as_parquet(table), "parquet", columns=tuple(table.column_names)).drop(MALFORMED)
    assert found.to_pylist()[0] == {
        "int": "1",
        "float": "0.5",
        "bytes": "ok",
        "text": "a",
        "nothing": None,
        "large": "x",
    }
    assert found.to_pylist()[1] | {"float": None} == {
        "int": None, "float": None, "bytes": "\ufffd!", "text": None, "nothing": None, "large": "y"
    }  # fmt: skip


def test_parquet_text_that_is_no_utf8_is_replaced() -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xffa"]).buffers())
    found = read(as_parquet(pa.table({"url": broken})), "parquet", columns=("url",))
    assert found.column("url").to_pylist() == ["\ufffda"]


def test_a_list_column_is_refused() -> None:
    content = as_parquet(pa.table({"url": [["a"]], "text": ["b"]}))
    with pytest.raises(InputError, match=r"column 'url' is list<.*wanted text"):
        read(content, "parquet")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1",
        b"<html>not found</html>",
        b"PAR1" + (2**31).to_bytes(4, "little") + b"PAR1",
        contents()["parquet"][:-20],
        contents()["parquet"][:-300] + b"\xff" * 292 + contents()["parquet"][-8:],
    ],
)
def test_what_is_no_parquet_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match=r"in\.parquet"):
        read(content, "parquet")


def test_a_damaged_page_is_an_input_error() -> None:
    content = bytearray(as_parquet(pa.table({"url": ["http://a.example/x" * 50] * 10}), compression="zstd"))
    content[4:60] = b"\xff" * 56
    with pytest.raises(InputError, match=r"in\.parquet"):
        read(bytes(content), "parquet", columns=("url",))


def test_an_empty_parquet_has_no_rows() -> None:
    empty = as_parquet(pa.table({"url": pa.array([], pa.string())}))
    assert list(read_columns(io.BytesIO(empty), "x", "parquet", None, ["url"])) == []


@pytest.mark.parametrize(
    ("path", "declared", "found"),
    [
        ("s3://b/a.PARQUET", "auto", ("parquet", None)),
        ("a/x.csv.gz", "auto", ("csv", "gz")),
        ("x.tsv", "auto", ("tsv", None)),
        ("x.ndjson.zst", "auto", ("jsonl", "zst")),
        ("x.txt", "csv", ("csv", None)),
        ("part-0001.gz", "jsonl", ("jsonl", "gz")),
    ],
)
def test_format_by_name(path: str, declared: str, found: tuple[str, str | None]) -> None:
    assert table_format(path, declared) == found


@pytest.mark.parametrize(
    ("path", "declared"),
    [("dir.csv/x", "auto"), ("x.json", "auto"), ("x.parquet.gz", "auto"), ("x.gz", "parquet")],
)
def test_format_that_cannot_be_told(path: str, declared: str) -> None:
    with pytest.raises(InputError, match=path):
        table_format(path, declared)
