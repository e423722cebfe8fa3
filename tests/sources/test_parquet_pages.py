"""Where the values of a Parquet column lie: equal to what Arrow reads, and nothing believed of a hostile file."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.sources.parquet_footer import Chunk, FooterFault, Span, read_chunks
from dataengine.sources.parquet_pages import PageFault, decode_levels, locate_values, read_pages
from dataengine.sources.thrift import MAX_DEPTH, ThriftFault, Truncated, read_struct

Values = list[bytes | None]
VALUES = st.lists(st.none() | st.binary(max_size=40) | st.integers(0, 3000).map(bytes), max_size=60)


def write(values: Values, *, is_struct: bool = False, **options: Any) -> bytes:
    """A file of one column `image` as Arrow writes it, uncompressed and PLAIN unless told otherwise."""
    images = pa.array(values, pa.binary())
    if is_struct:
        images = pa.StructArray.from_arrays([images, pa.array(["p"] * len(values))], ["bytes", "path"])
    sink = io.BytesIO()
    options = {"compression": "none", "use_dictionary": False} | options
    pq.write_table(pa.table({"image": images}), sink, **options)
    return sink.getvalue()


def chunks(content: bytes) -> list[tuple[Chunk, int]]:
    """(chunk, maximum definition level) of the first column in each row group."""
    level = pq.ParquetFile(io.BytesIO(content)).schema.column(0).max_definition_level
    return [(next(iter(group.values())), level) for group in read_chunks(io.BytesIO(content))]


def locate(content: bytes) -> list[Span | None]:
    found: list[Span | None] = []
    for chunk, level in chunks(content):
        assert chunk.has_places
        found += locate_values(io.BytesIO(content), chunk, chunk.num_values, level)
    return found


def taken(content: bytes, spans: list[Span | None]) -> Values:
    return [None if span is None else content[span[0] : span[0] + span[1]] for span in spans]


@given(
    values=VALUES,
    is_struct=st.booleans(),
    version=st.sampled_from(["1.0", "2.0"]),
    group_rows=st.integers(1, 80),
    page_bytes=st.sampled_from([1, 100, 2**20]),
    checksum=st.booleans(),
)
def test_the_bytes_at_each_place_are_the_value(
    values: Values, is_struct: bool, version: str, group_rows: int, page_bytes: int, checksum: bool
) -> None:
    content = write(
        values,
        is_struct=is_struct,
        data_page_version=version,
        row_group_size=group_rows,
        data_page_size=page_bytes,
        write_batch_size=1 if page_bytes == 1 else 7,
        write_page_checksum=checksum,
    )
    assert taken(content, locate(content)) == values


def test_a_required_column_has_no_levels() -> None:
    values = [b"one", b"", b"three"]
    table = pa.table([pa.array(values, pa.binary())], pa.schema([pa.field("image", pa.binary(), nullable=False)]))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    assert taken(sink.getvalue(), locate(sink.getvalue())) == values


def test_a_header_may_hold_whole_values_as_statistics() -> None:
    values: Values = [bytes([number]) * 3000 for number in range(4)]
    content = write(values)
    page = next(read_pages(io.BytesIO(content), chunks(content)[0][0].span))
    assert page.offset > 6000
    assert taken(content, locate(content)) == values


@pytest.mark.parametrize(
    "options", [{"compression": "snappy"}, {"use_dictionary": True}, {"column_encoding": "DELTA_BYTE_ARRAY"}]
)
def test_other_layouts_have_no_places(options: dict[str, Any]) -> None:
    assert not chunks(write([b"x" * 50] * 9, **options))[0][0].has_places


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"use_dictionary": True}, {"data_page_version": "2.0"}])
def test_pages_are_found_in_any_layout(options: dict[str, Any]) -> None:
    content = write([b"x" * 50, None, b"y" * 50] * 30, data_page_size=100, write_batch_size=10, **options)
    chunk = chunks(content)[0][0]
    pages = list(read_pages(io.BytesIO(content), chunk.span))
    assert sum(page.num_values for page in pages) == 90
    assert [page.holds_rows for page in pages] == [not chunk.has_dictionary] + [True] * (len(pages) - 1)
    assert pages[-1].offset + pages[-1].nbytes == sum(chunk.span)


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), version=st.sampled_from(["1.0", "2.0"]))
def test_a_changed_byte_never_leads_out_of_the_chunk(place: float, byte: int, version: str) -> None:
    content = bytearray(write([b"abc", None, b"d" * 20, b""] * 5, data_page_version=version, data_page_size=40))
    chunk, level = chunks(bytes(content))[0]
    begin, nbytes = chunk.span
    content[begin + int(place * nbytes)] = byte
    found: list[Span | None] = []
    with contextlib.suppress(PageFault):
        found.extend(locate_values(io.BytesIO(content), chunk, chunk.num_values, level))
    assert len(found) <= chunk.num_values
    assert all(begin < span[0] and sum(span) <= begin + nbytes for span in found if span is not None)


def test_what_stands_before_the_fault_is_found() -> None:
    content = bytearray(write([b"one", b"two", b"three"]))
    third = content.index(b"three") - 4
    content[third : third + 4] = (2**31).to_bytes(4, "little")
    chunk, level = chunks(bytes(content))[0]
    found = locate_values(io.BytesIO(content), chunk, 3, level)
    assert [next(found), next(found)] == locate(write([b"one", b"two", b"three"]))[:2]
    with pytest.raises(PageFault, match=rf"a value of 2147483648 bytes leaves its page at byte {third}"):
        next(found)


@pytest.mark.parametrize(
    ("span", "num_values", "wanted"),
    [
        ((4, 10**12), 3, "does not lie in the file"),
        ((-5, 10), 3, "does not lie in the file"),
        (None, 4, "pages of 3 values in a row group of 4"),
        (None, 2, "pages of 3 values in a row group of 2"),
        ((4, 9), 3, "a page header ends within itself"),
    ],
)
def test_a_footer_that_lies_is_a_fault(span: Span | None, num_values: int, wanted: str) -> None:
    content = write([b"one", b"two", b"three"])
    chunk, level = chunks(content)[0]
    with pytest.raises(PageFault, match=wanted):
        list(locate_values(io.BytesIO(content), replace(chunk, span=span or chunk.span), num_values, level))


def test_a_page_is_what_its_footer_says() -> None:
    content = write([b"one", b"two"] * 9, use_dictionary=True)
    chunk, level = chunks(content)[0]
    with pytest.raises(PageFault, match="the footer does not name"):
        list(locate_values(io.BytesIO(content), chunk, 18, level))


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"use_dictionary": True}])
def test_the_footer_is_read_as_arrow_reads_it(options: dict[str, Any]) -> None:
    content = write([b"x" * 9, None, b"y"] * 40, is_struct=True, row_group_size=50, **options)
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata
    found = read_chunks(io.BytesIO(content))
    assert len(found) == 3
    for group, by_path in enumerate(found):
        assert list(by_path) == ["image.bytes", "image.path"]
        for leaf, chunk in enumerate(by_path.values()):
            wanted = metadata.row_group(group).column(leaf)
            begin = wanted.dictionary_page_offset if wanted.has_dictionary_page else wanted.data_page_offset
            assert chunk.span == (begin, wanted.total_compressed_size)
            assert (chunk.num_values, chunk.has_dictionary) == (wanted.num_values, wanted.has_dictionary_page)


@given(footer=st.binary(max_size=60))
def test_any_footer_is_read_or_a_fault(footer: bytes) -> None:
    content = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with contextlib.suppress(FooterFault):
        assert isinstance(read_chunks(io.BytesIO(content)), list)


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


@st.composite
def levels(draw: st.DrawFn) -> tuple[bytes, list[int], int]:
    """(encoded, levels, bit width) in runs of both kinds."""
    width = draw(st.integers(1, 8))
    content, values = b"", []
    for is_packed in draw(st.lists(st.booleans(), max_size=6)):
        if is_packed:
            run = draw(st.lists(st.integers(0, 2**width - 1), min_size=8, max_size=8)) * draw(st.integers(1, 3))
            bits = sum(value << (width * place) for place, value in enumerate(run))
            content += varint(len(run) // 8 << 1 | 1) + bits.to_bytes(len(run) * width // 8, "little")
        else:
            run = [draw(st.integers(0, 2**width - 1))] * draw(st.integers(0, 300))
            content += varint(len(run) << 1) + bytes([run[0] if run else 0])
        values += run
    return content, values, width


@given(levels())
def test_levels_are_decoded(case: tuple[bytes, list[int], int]) -> None:
    content, values, width = case
    assert decode_levels(content, len(values), width, 0).tolist() == values
    with pytest.raises(PageFault, match="levels end"):
        decode_levels(content, len(values) + 1, width, 0)


@given(st.binary(max_size=60), st.integers(0, 2**20), st.integers(1, 8))
def test_any_bytes_as_levels_are_levels_or_a_fault(content: bytes, num_values: int, width: int) -> None:
    with contextlib.suppress(PageFault):
        assert decode_levels(content, num_values, width, 0).max(initial=0) < 256


@given(st.binary(max_size=200))
def test_any_bytes_are_a_struct_or_a_fault(content: bytes) -> None:
    try:
        _, nbytes = read_struct(content)
    except ThriftFault:
        return
    assert nbytes <= len(content)


def test_a_struct_of_every_type() -> None:
    content = bytes.fromhex(
        "15 05 11 12 13 7f 18 03 616263 19 25 02 04 17 0000000000000000 1b 01 58 02 01 05 1c 15 02 00 00"
    )
    fields, nbytes = read_struct(content)
    assert nbytes == len(content)
    assert fields == {1: -3, 2: True, 3: False, 4: 127, 5: b"abc", 6: [1, 2], 7: None, 8: None, 9: {1: 1}}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"\x1c" * 100, f"nested more than {MAX_DEPTH} deep"),
        (b"\x19" + b"\x19" * 100, f"nested more than {MAX_DEPTH} deep"),
        (b"\x15" + b"\xff" * 20, "a number of more than 10 bytes"),
        (b"\x1d\x00", "no type has the number 13"),
    ],
)
def test_a_hostile_struct_is_refused(content: bytes, wanted: str) -> None:
    with pytest.raises(ThriftFault, match=wanted):
        read_struct(content)


@pytest.mark.parametrize("content", [b"", b"\x15", b"\x18\xff\xff\xff\x7f", b"\x19\xfc\xff\xff\xff\x7f"])
def test_a_cut_struct_asks_for_more(content: bytes) -> None:
    with pytest.raises(Truncated):
        read_struct(content)
