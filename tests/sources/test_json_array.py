"""JSON arrays: read element by element, and a broken element costs itself only."""

from __future__ import annotations

import io
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.sources.json_array import array_rows
from dataengine.sources.lines import MAX_RECORD_BYTES, Row

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
OBJECT = st.fixed_dictionaries({}, optional={"url": TEXT, "n": st.integers() | st.none(), "more": st.lists(TEXT)})
LOST = "nothing after it can be read"


def rows(content: bytes) -> list[Row]:
    return list(array_rows(io.BytesIO(content), ["url", "n"]))


def shown(content: bytes) -> list[object]:
    """URLs of the sound rows, and what is said of the others."""
    return [row if isinstance(row, str) else row[0] for row in rows(content)]


@given(objects=st.lists(OBJECT, max_size=6), indent=st.sampled_from([None, 1]), is_ascii=st.booleans())
def test_what_json_writers_write_is_read_back(
    objects: list[dict[str, object]], indent: int | None, is_ascii: bool
) -> None:
    content = json.dumps(objects, indent=indent, ensure_ascii=is_ascii).encode()
    expected = [[entry.get("url"), None if entry.get("n") is None else str(entry["n"])] for entry in objects]
    assert rows(content) == expected
    assert rows(b"\xef\xbb\xbf \n" + content + b"\n") == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error(content: bytes) -> None:
    for row in rows(b"[" + content):
        assert isinstance(row, str) or len(row) == 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[]", []),
        (b'[{"url": "a"},\n{"url": "b"},\n]\n', ["a", "b"]),
        (b'[{"url": "a"} {"url": "b"}]', ["a", "b"]),
        (b'[{"url": "\xff"}, {"url": "\\ud800x"}]', ["\ufffd", "\ufffdx"]),
        (b'[3, null, {"url": "a"}]', ["element 1: no JSON object", "element 2: no JSON object", "a"]),
        (
            b'[{"url": ["u"]}, {"url": "b"}]',
            ["element 1: field 'url' is a list or an object, wanted text", "b"],
        ),
        (b'[{"url": "a, "n": "x"}, {"url": "b"}]', ["element 1: broken JSON: Expecting ',' delimiter", "b"]),
        (b'[{"url": "a\n"}, {"url": "b"}]', ["element 1: broken JSON: Invalid control character at", "b"]),
        (b'[{"url": "a"} junk, {"url": "b"}]', ["a", "element 2: broken JSON: Expecting value", "b"]),
        (b'[{"url": "a"}, {"url": "b', ["a", f"element 2: broken JSON: Unterminated string starting at; {LOST}"]),
        (b'[{"url": "a"},', ["a", "after element 1: the array has no end, so the file may be cut"]),
        (b'[{"url": "a"}]\n[{"url": "b"}]', ["a", "after element 1: text follows the end of the array"]),
    ],
)
def test_broken_arrays(content: bytes, expected: list[object]) -> None:
    assert shown(content) == expected


@pytest.mark.parametrize("inner", [b"[" * 2000 + b"]" * 2000, b"9" * 5000, b'{"url": "z", "n": ' + b"9" * 5000 + b"}"])
def test_what_python_cannot_parse_is_passed_by_its_brackets(inner: bytes) -> None:
    element = b'{"x": [{"url": "not a row"}], "y": ' + inner + b"}"
    assert shown(b"[" + element + b', {"url": "b"}]')[1:] == ["b"]
    assert shown(b"[" + inner + b', {"url": "b"}]')[1:] == ["b"]


def test_elements_longer_than_a_window_and_without_end() -> None:
    long = b'{"url": "' + b"x" * (3 * MAX_RECORD_BYTES) + b'"}'
    (first, second) = shown(b"[" + long + b', {"url": "b"}]')
    assert isinstance(first, str)
    assert second == "b"
    many = b"[" + b",".join(b'{"url": "%07d"}' % number for number in range(200_000)) + b"]"
    assert shown(many) == [f"{number:07d}" for number in range(200_000)]


@pytest.mark.parametrize(
    "piece",
    [b'{"a": "b, ', b'{"a": [0, ', b"[", b" ,", b'"', b'{"a": ' + b"[" * 1500, b'{"a": [0,' * 900 + b"9" * 5000],
)
def test_the_work_is_linear_in_hostile_bytes(piece: bytes) -> None:
    def seconds(num_bytes: int) -> float:
        content = b"[" + piece * (num_bytes // len(piece))
        begin = time.process_time()
        for _ in array_rows(io.BytesIO(content), ["url"]):
            pass
        return time.process_time() - begin

    assert seconds(2**20) < 30 * max(seconds(2**17), 0.01)  # 64 times, if it were quadratic
