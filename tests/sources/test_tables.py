"""Foreign tables: every format gives the same rows, and unusable files say why."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataengine.errors import InputError
from dataengine.sources.tables import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    MALFORMED,
    PIECE_ROWS,
    cut_table,
    read_columns,
    table_format,
)

ROWS = [("http://a.example/1.jpg", "a cat,\nsleeping"), ("http://b.example/2.jpg", 'a "dog"'), ("", "no url")]


def read(
    content: bytes, form: str, compression: str | None = None, columns: tuple[str, ...] = ("url", "text")
) -> pa.Table:
    file = io.BytesIO(content)
    tables = list(read_columns(file, f"in.{form}", form, compression, columns))
    table = pa.concat_tables(tables)
    assert not file.closed
    assert sum(piece.num_rows for piece in cut_table(file, f"in.{form}", form, compression)) == len(table)
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
        "json": b"[" + as_jsonl().strip().replace(b"\n", b",\n") + b"]\n",
        "jsonl": as_jsonl(),
        "parquet": as_parquet(pa.table(columns)),
    }


@pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(form: str) -> None:
    table = read(contents()[form], form)
    assert table.schema.types == [pa.string()] * 3
    assert list(zip(*(table.column(name).to_pylist() for name in ("url", "text")), strict=True)) == ROWS
    assert table.column(MALFORMED).to_pylist() == [None] * 3


@pytest.mark.parametrize("form", ["csv", "tsv", "txt", "json", "jsonl"])
def test_gz_of_several_members_and_zst_are_unpacked(form: str) -> None:
    content = {**contents(), "txt": b"http://a/1\nhttp://b/2\n\nhttp://c/3"}[form]
    columns = ("url",) if form == "txt" else ("url", "text")
    plain = read(content, form, columns=columns)
    assert len(plain) == 3
    assert read(gzip.compress(content[:20]) + gzip.compress(content[20:]), form, "gz", columns).equals(plain)
    assert read(pa.compress(content, "zstd", asbytes=True), form, "zst", columns).equals(plain)


def test_json_of_an_object_a_line_is_read_as_lines() -> None:
    assert read(b"\xef\xbb\xbf\n " + as_jsonl(), "json").equals(read(as_jsonl(), "jsonl"))


@pytest.mark.parametrize("content", [b"", b" \n", b"url,text\n", b'"url"'])
def test_json_that_is_no_table_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match=r"in\.json: no JSON table: .*wanted an array of objects"):
        read(content, "json")


@pytest.mark.parametrize("form", ["csv", "tsv", "txt", "json", "jsonl"])
@pytest.mark.parametrize(("encoding", "compression"), [("utf-16", None), ("utf-16", "gz"), ("utf-16-be", None)])
def test_utf_16_is_refused_with_what_to_do(form: str, encoding: str, compression: str | None) -> None:
    content = "url,text\nhttp://a/1,ü\n".encode(encoding)
    content = content if encoding == "utf-16" else b"\xfe\xff" + content
    packed = content if compression is None else gzip.compress(content)
    with pytest.raises(InputError, match=rf"in\.{form}: UTF-16 text, wanted UTF-8; .*iconv -f UTF-16 -t UTF-8"):
        read(packed, form, compression, ("url",))


def test_other_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert read("url,text\nu,\u00fc\n".encode("latin-1"), "csv").column("text").to_pylist() == ["\ufffd"]


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
    assert table.column(MALFORMED).to_pylist() == [
        None,
        "in.csv, line 3: 3 fields, wanted 2",
        "in.csv, line 4: 1 fields, wanted 2",
        None,
    ]


@pytest.mark.parametrize(
    ("form", "content", "place"),
    [
        ("jsonl", b'{"url": "u"}\n\n{"url": 1\n', "in.jsonl, line 3: no JSON object"),
        ("json", b'[{"url": "u"},\n\n7]', "in.json, element 2: no JSON object"),
        ("tsv", b'url\tn\n"u\tv\n', "in.tsv, line 2: a quote is never closed"),
    ],
)
def test_malformed_rows_say_where_and_why(form: str, content: bytes, place: str) -> None:
    assert read(content, form, columns=("url",)).column(MALFORMED).to_pylist()[-1] == place


def test_a_header_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(InputError, match=r"no header line .*quote"):
        read(b'"url,text\n', "csv")


def test_blocks_are_bounded_in_bytes() -> None:
    num_rows, text = 80, "x" * (BLOCK_BYTES // 32)
    table = pa.table({"url": [f"u{number}" for number in range(num_rows)], "text": [text] * num_rows})
    parquet = as_parquet(table, use_dictionary=False, compression="zstd")
    csv = b"url,text\n" + b"".join(b'{"url": "u%d", "text": "%s"}\n' % (n, text.encode()) for n in range(num_rows))
    for form, content in (("parquet", parquet), ("jsonl", csv.partition(b"\n")[2])):
        blocks = list(read_columns(io.BytesIO(content), f"x.{form}", form, None, ["url", "text"]))
        assert max(block.nbytes for block in blocks) < 1.2 * BLOCK_BYTES
        assert pa.concat_tables(blocks).column("url").to_pylist() == table.column("url").to_pylist()


@pytest.mark.parametrize("group_rows", [[], [0], [5], [PIECE_ROWS // 2] * 3, [PIECE_ROWS * 2, 3, 0, 7], [10] * 50])
def test_parquet_is_cut_between_row_groups(group_rows: list[int]) -> None:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, pa.schema([("n", pa.int32())])) as writer:
        for num_rows in group_rows:
            writer.write_table(pa.table({"n": pa.array(range(num_rows), pa.int32())}), row_group_size=2**30)
    pieces = cut_table(sink, "x.parquet", "parquet", None)
    assert [piece.first_row for piece in pieces] == [
        sum(before.num_rows for before in pieces[:number]) for number in range(len(pieces))
    ]
    assert sum(piece.num_rows for piece in pieces) == sum(group_rows)
    for piece in pieces:
        assert piece.row_groups is not None
        assert piece.num_rows <= PIECE_ROWS or len(piece.row_groups) == 1
        blocks = list(read_columns(sink, "x.parquet", "parquet", None, ["n"], piece.row_groups))
        assert sum(map(len, blocks)) == piece.num_rows
    assert len(pieces) == {(PIECE_ROWS // 2,) * 3: 2, (PIECE_ROWS * 2, 3, 0, 7): 2}.get(tuple(group_rows), 1)


class CountingFile(io.BytesIO):
    num_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.num_bytes += len(content)
        return content


def test_planning_reads_the_footer_of_a_parquet_only() -> None:
    content = as_parquet(pa.table({"url": [f"http://a.example/{number**3}" for number in range(100_000)]}))
    file = CountingFile(content)
    assert cut_table(file, "x.parquet", "parquet", None)[0].num_rows == 100_000
    assert file.num_bytes < min(len(content) / 3, 100_000)


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
            "view": pa.array(["x", "y"], pa.string_view()),
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
        "view": "x",
    }
    assert found.to_pylist()[1] | {"float": None} == {
        "int": None, "float": None, "bytes": "\ufffd!", "text": None, "nothing": None, "large": "y", "view": "y"
    }  # fmt: skip


def test_parquet_text_that_is_no_utf8_is_replaced() -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xffa"]).buffers())
    found = read(as_parquet(pa.table({"url": broken})), "parquet", columns=("url",))
    assert found.column("url").to_pylist() == ["\ufffda"]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([["a"]]),
        pa.array([["a"]], pa.large_list(pa.string())),
        pa.array([{"en": "a"}]),
        pa.array([[("en", "a")]], pa.map_(pa.string(), pa.string())),
    ],
)
def test_a_nested_column_is_refused(values: pa.Array) -> None:
    content = as_parquet(pa.table({"url": ["a"], "text": values}))
    with pytest.raises(InputError, match=r"in\.parquet: column 'text' is .*<.*wanted text or numbers; flatten it"):
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
        ("x.json.zst", "auto", ("json", "zst")),
        ("part-0001.gz", "jsonl", ("jsonl", "gz")),
    ],
)
def test_format_by_name(path: str, declared: str, found: tuple[str, str | None]) -> None:
    assert table_format(path, declared) == found


@pytest.mark.parametrize(
    ("path", "declared"),
    [("dir.csv/x", "auto"), ("x.parquet.gz", "auto"), ("x.gz", "parquet")],
)
def test_format_that_cannot_be_told(path: str, declared: str) -> None:
    with pytest.raises(InputError, match=path):
        table_format(path, declared)


def test_no_byte_of_a_parquet_footer_ends_the_process() -> None:
    """Arrow 26.0 calls std::terminate when it is asked for a column chunk whose size statistics do not add up."""
    done = subprocess.run([sys.executable, "-c", _EVERY_FOOTER], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


_EVERY_FOOTER = """
import contextlib, io
import pyarrow as pa, pyarrow.parquet as pq
from dataengine.errors import InputError
from dataengine.sources.tables import read_columns
stream = io.BytesIO()
pq.write_table(pa.table({"url": ["http://a.example/1.jpg", None, ""]}), stream, store_schema=False)
content = stream.getvalue()
end = len(content) - 8
for place in range(end - int.from_bytes(content[end : end + 4], "little"), end):
    for byte in (0, 1, 0x2C, 0xFF):
        changed = io.BytesIO(content[:place] + bytes([byte]) + content[place + 1 :])
        with contextlib.suppress(InputError):
            list(read_columns(changed, "x.parquet", "parquet", None, ["url"]))
print("done")
"""
