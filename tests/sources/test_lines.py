"""Line readers: nothing is lost, and one broken record spoils itself only."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.sources.lines import (
    MAX_RECORD_BYTES,
    csv_records,
    csv_rows,
    json_rows,
    text_lines,
    text_rows,
)

# Surrogates are no UTF-8, and a leading byte order mark is dropped.
FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=12)


def numbered(content: bytes, delimiter: str = ",") -> list[tuple[int, list[str] | str]]:
    return list(csv_records(text_lines(io.BytesIO(content)), delimiter))


def records(content: bytes, delimiter: str = ",") -> list[list[str] | None]:
    """The fields of each record, None where they cannot be read."""
    return [None if isinstance(fields, str) else fields for _, fields in numbered(content, delimiter)]


@given(rows=st.lists(st.lists(FIELD, min_size=2, max_size=3), max_size=8), delimiter=st.sampled_from([",", "\t"]))
def test_what_csv_writers_write_is_read_back(rows: list[list[str]], delimiter: str) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    assert records(text.getvalue().encode(), delimiter) == rows


def test_quotes_newlines_and_byte_order_mark() -> None:
    content = b'\xef\xbb\xbfurl,caption\r\nu1,"a, ""b""\nc"\r\n\r\nu2,5" pipe\n'
    assert records(content) == [["url", "caption"], ["u1", 'a, "b"\nc'], ["u2", '5" pipe']]


def test_an_unclosed_quote_spoils_its_own_line_only() -> None:
    content = b'a,"b\n' + b"c,d\n" * 3
    assert records(content) == [None, ["c", "d"], ["c", "d"], ["c", "d"]]


def test_an_unclosed_quote_is_given_up_long_before_the_end() -> None:
    line = b"c," + b"d" * 1000 + b"\n"
    found = records(b'a,"b\n' + line * 3000)
    assert found[0] is None
    assert len(found) == 3001
    assert None not in found[1:]


def test_a_line_without_end_is_one_malformed_record() -> None:
    content = b"a,b\n" + b"x" * (2 * MAX_RECORD_BYTES) + b"\nc,d\n"
    assert records(content) == [["a", "b"], None, ["c", "d"]]
    assert list(text_rows(text_lines(io.BytesIO(content)))) == [
        ["a,b"],
        "line 2: longer than 1,048,576 bytes",
        ["c,d"],
    ]


def test_a_line_without_end_inside_quotes_gives_back_the_lines_before_it() -> None:
    content = b'a,"b\nc,d\n' + b"x" * (2 * MAX_RECORD_BYTES) + b"\ne,f\n"
    assert records(content) == [None, ["c", "d"], None, ["e", "f"]]


def test_records_know_their_first_line_and_what_is_wrong_with_them() -> None:
    content = b'url,caption\r\nu1,"two\nlines"\n\nu2,"torn\nu3,c\n'
    unclosed = "a quote is never closed"
    assert numbered(content) == [(1, ["url", "caption"]), (2, ["u1", "two\nlines"]), (5, unclosed), (6, ["u3", "c"])]
    long = b"a\n" + b"x" * (2 * MAX_RECORD_BYTES) + b'\n"' + b"x" * 150_000 + b'"\nb\n'
    (_, a), (second, too_long), (third, wide), (fourth, b) = numbered(long)
    assert (a, second, third, fourth, b) == (["a"], 2, 3, 4, ["b"])
    assert "longer than" in too_long
    assert wide == ["x" * 150_000]


def test_a_carriage_return_alone_ends_no_line() -> None:
    ((_, words),) = numbered(b"url,caption\ru1,c1\r")
    assert "end lines with" in words


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(content: bytes) -> None:
    for record in records(content):
        assert record is None or all(field.encode("utf-8") is not None for field in record)


def test_rows_of_another_width_are_malformed() -> None:
    found = csv_rows(iter([(1, ["a", "b"]), (2, ["a"]), (3, ["a", "b", "c"]), (5, "torn")]), 2, [1, 0])
    assert list(found) == [["b", "a"], "line 2: 1 fields, wanted 2", "line 3: 3 fields, wanted 2", "line 5: torn"]


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b'{"url": "u", "n": 3, "more": [1]}', ["u", "3"]),
        (b'{"url": "u", "n": 1.5}', ["u", "1.5"]),
        (b'{"url": "u", "n": true}', ["u", "true"]),
        (b'{"url": "u"}', ["u", None]),
        (b'{"url": null, "n": ""}', [None, ""]),
        (b'{"url": "\\ud800x"}', ["\ufffdx", None]),
        (b'{"url": "\\ud83d\\ude00"}', ["\U0001f600", None]),
        (b'{"url": ["u"]}', "line 2: field 'url' is a list or an object, wanted text"),
        (b'["u"]', "line 2: no JSON object"),
        (b'{"url": "u"', "line 2: no JSON object"),
        (b"[" * 100_000, "line 2: no JSON object"),
        (b'{"n": ' + b"9" * 5000 + b"}", "line 2: no JSON object"),
        (b'{"url": "\xff"}', ["\ufffd", None]),
    ],
)
def test_json_lines(line: bytes, row: list[str | None] | str) -> None:
    assert list(json_rows(text_lines(io.BytesIO(b"\n" + line + b"\r\n")), ["url", "n"])) == [row]
