"""Candidates: one key per URL, nothing lost, and no dependence on the order of rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.sources import TableSource
from dataengine.keys import key_ranges, url_keys
from dataengine.schemas import CANDIDATE
from dataengine.sources.candidates import (
    ROUTED,
    batched,
    bucket_width,
    columns_of,
    deal_rows,
    merge_rows,
    route_rows,
    rows_of_range,
)
from dataengine.sources.tables import MALFORMED

CONFIG = TableSource(
    kind="table",
    paths=("x.csv",),
    caption_column="text",
    caption_columns={"recap": "long", "alt": "alt"},
    hash_column="sha",
    passthrough=("licence",),
)
NAMES = ["url", "text", "long", "alt", "sha", "licence"]
TEXT = st.sampled_from([None, "", "a", "b", "c"])
URL = st.sampled_from([None, "", "http://a/1", "http://a/2", "https://b/é", "ftp://a/1"])
BAD = st.sampled_from([None, None, "x.csv, line 2: torn"])
ROW = st.tuples(URL, TEXT, TEXT, TEXT, st.sampled_from([None, "", "AB" * 32, "xyz"]), TEXT, BAD)


def block(rows: list[tuple[object, ...]]) -> pa.Table:
    columns = [[row[number] for row in rows] for number in range(7)]
    return pa.table([pa.array(values, pa.string()) for values in columns], names=[*NAMES, MALFORMED])


def row(url: str | None, text: str | None = "t", **more: str | None) -> tuple[object, ...]:
    values = {
        "url": url,
        "text": text,
        "long": None,
        "alt": None,
        "sha": None,
        "licence": None,
        "bad": None,
    } | more
    return tuple(values.values())


def route(*rows: tuple[object, ...], first_position: int = 0) -> pa.Table:
    return route_rows(block(list(rows)), "s", CONFIG, first_position)


def test_columns_are_read_once_each() -> None:
    config = CONFIG.model_copy(update={"passthrough": ("url", "licence", "text")})
    assert columns_of(config, "csv") == ["url", "text", "long", "alt", "sha", "licence"]
    plain = TableSource(kind="table", paths=("x.txt",))
    assert columns_of(plain, "txt") == ["url"]
    assert columns_of(plain, "csv") == ["url", "caption"]


def test_a_row_keeps_all_its_values() -> None:
    routed = route(row("http://a/1", "t", long="L", alt="A", sha=" " + "Ab" * 32, licence="cc"), first_position=7)
    assert routed.to_pylist() == [
        {
            "position": 7,
            "key": url_keys("s", ["http://a/1"])[0],
            "url": "http://a/1",
            "caption": "t",
            "captions": [("alt", "A"), ("recap", "L")],
            "extra": [("licence", "cc")],
            "expected_hash": "ab" * 32,
            "fault": None,
            "detail": None,
        }
    ]


def test_empty_named_captions_and_null_extras_are_left_out() -> None:
    routed = route(row("http://a/1", None, long="", alt=None, licence=""), row("http://a/2", alt="x"))
    assert routed.column("captions").to_pylist() == [[], [("alt", "x")]]
    assert routed.column("extra").to_pylist() == [[("licence", "")], []]
    assert routed.column("caption").to_pylist() == ["", "t"]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://a.example/x.jpg", None),
        ("HTTPS://user:pw@a.example:80?x#y", None),
        ("https://[::1]/x", None),
        ("http://bücher.example/ü", None),
        ("http://a/one two.jpg", None),
        ("", "bad_url"),
        (None, "bad_url"),
        (" \thttp://a.example/x.jpg", None),
        ("http://a.example ", None),
        ("a.example/x.jpg", "bad_url"),
        ("ftp://a.example/x", "bad_url"),
        ("http://", "bad_url"),
        ("http:///x", "bad_url"),
        ("http://:80/", "bad_url"),
        ("http://user@/x", "bad_url"),
        ("data:image/png;base64,xx", "bad_url"),
        ("http://a.example/\ufffd", "bad_url"),
    ],
)
def test_urls_that_cannot_be_fetched_are_faults(url: str | None, fault: str | None) -> None:
    routed = route(row(url))
    assert routed.column("fault").to_pylist() == [fault]
    assert routed.column("url").to_pylist() == [url or ""]
    assert routed.column("key").to_pylist() == url_keys("s", [url or ""])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (None, None),
        (" ", None),
        *((digit * length, "a" * length) for digit in "aA" for length in (32, 40, 64)),
    ],
)
def test_expected_hashes_are_told_by_their_length_and_lowered(text: str | None, expected: str | None) -> None:
    routed = route(row("http://a/1", sha=text)).to_pylist()[0]
    assert (routed["expected_hash"], routed["fault"], routed["detail"]) == (expected, None, None)


@pytest.mark.parametrize(
    "text", ["f" * length for length in (1, 31, 33, 39, 41, 63, 65, 128)] + ["g" * 64, "a" * 32 + "\n"]
)
def test_malformed_hashes_are_faults(text: str) -> None:
    routed = route(row("http://a/1", sha=f"{text}.")).to_pylist()[0]
    assert (routed["fault"], routed["detail"]) == ("bad_hash", f"{text}."[:120])


def test_details_show_what_is_wrong() -> None:
    rows = (
        row(None, bad="x.csv, line 7: torn"),
        row("ftp://a/\u00fc" + "x" * 200),
        row("", sha="xyz"),
        row("http://a/1", sha="Z" * 200),
        row("http://a/2"),
    )
    assert route(*rows).select(["fault", "detail"]).to_pylist() == [
        {"fault": "bad_row", "detail": "x.csv, line 7: torn"},
        {"fault": "bad_url", "detail": "ftp://a/\u00fc" + "x" * 111},
        {"fault": "bad_url", "detail": "(empty)"},
        {"fault": "bad_hash", "detail": "z" * 120},
        {"fault": None, "detail": None},
    ]
    assert merge_rows(route(*rows), "s").column("detail").null_count == 1


def test_each_malformed_row_is_a_candidate_of_its_own() -> None:
    bad = row(None, None, bad="x.csv, line 7: torn")
    merged = merge_rows(pa.concat_tables([route(bad, bad), route(bad, first_position=2)]), "s")
    assert merged.column("fault").to_pylist() == ["bad_row"] * 3
    assert merged.column("detail").to_pylist() == ["x.csv, line 7: torn"] * 3
    assert merged.column("num_rows").to_pylist() == [1] * 3


def test_further_captions_follow_in_input_order() -> None:
    url = "http://a/1"
    routed = route(row(url, "a", alt="x"), row(url, "b"), row(url, "a"), row(url, ""), row(url, "c"), row(url, "b"))
    merged = merge_rows(routed, "s")
    assert merged.column("num_rows").to_pylist() == [6]
    assert merged.column("caption").to_pylist() == ["a"]
    assert merged.column("captions").to_pylist() == [[("alt", "x"), ("caption_2", "b"), ("caption_3", "c")]]


def test_no_rows_make_no_candidates() -> None:
    assert route_rows(block([]), "s", CONFIG, 0).equals(ROUTED.empty())
    assert merge_rows(ROUTED.empty(), "s").equals(CANDIDATE.empty())


def expected_candidates(routed: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    """The definition of `merge_rows`, row by row."""
    found: dict[str, dict[str, object]] = {}
    for entry in sorted(routed, key=lambda entry: entry["position"]):
        first = found.setdefault(entry["key"], entry | {"num_rows": 0, "further": []})
        first["num_rows"] += 1
        text = entry["caption"]
        if text and text != first["caption"] and text not in first["further"]:
            first["further"].append(text)
    for first in found.values():
        numbered = [(f"caption_{number}", text) for number, text in enumerate(first.pop("further"), start=2)]
        first["captions"] = [*first["captions"], *numbered]
        del first["position"]
    return found


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROW, max_size=20), seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 20))
def test_merging_is_as_defined_and_knows_no_order(rows: list[tuple[object, ...]], seed: int, cut: int) -> None:
    cut = min(cut, len(rows))
    routed = pa.concat_tables([route(*rows[:cut]), route(*rows[cut:], first_position=cut)])
    merged = merge_rows(routed, "s")
    assert sum(merged.column("num_rows").to_pylist()) == len(rows)
    expected = expected_candidates(routed.to_pylist())
    found = {entry["key"]: entry for entry in merged.to_pylist()}
    assert list(found) == sorted(expected)
    for key, entry in expected.items():
        assert {name: found[key][name] for name in entry} == entry
    shuffled = routed.take(np.random.default_rng(seed).permutation(len(rows)))
    assert merge_rows(shuffled, "s").equals(merged)
    assert merge_rows(pa.concat_tables([routed.slice(cut), routed.slice(0, cut)]), "s").equals(merged)


@pytest.mark.parametrize(("num_ranges", "num_buckets"), [(1, 1), (7, 7), (256, 256), (257, 129), (1000, 250)])
def test_rows_are_dealt_by_key_and_keep_their_order(num_ranges: int, num_buckets: int) -> None:
    routed = route(*(row(f"http://a.example/{number % 400}", str(number)) for number in range(1000)))
    dealt = deal_rows(routed, num_ranges)
    assert len(dealt) == num_buckets
    found = []
    for number in range(num_ranges):
        part = rows_of_range(dealt[number // bucket_width(num_ranges)], number, num_ranges)
        assert part.equals(routed.filter(pc.equal(pa.array(key_ranges(routed["key"], num_ranges)), number)))
        found += part.column("position").to_pylist()
    assert sorted(found) == list(range(1000))


def test_batches_end_with_the_table_that_reaches_a_bound() -> None:
    tables = [pa.table({"n": pa.array(range(rows), pa.int64())}) for rows in (3, 4, 0, 2, 5)]
    assert [len(batch) for batch in batched(tables, 6, 2**20)] == [7, 7]
    assert [len(batch) for batch in batched(tables, 100, 8 * 9)] == [9, 5]
    assert list(batched([], 6, 6)) == []
