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
from dataengine.sources.candidates import ROUTED, columns_of, deal_rows, merge_rows, route_rows
from dataengine.sources.tables import MALFORMED

CONFIG = TableSource(
    kind="table",
    paths=("x.csv",),
    caption_column="text",
    caption_columns={"recap": "long", "alt": "alt"},
    sha256_column="sha",
    passthrough=("licence",),
)
NAMES = ["url", "text", "long", "alt", "sha", "licence"]
TEXT = st.sampled_from([None, "", "a", "b", "c"])
URL = st.sampled_from([None, "", "http://a/1", "http://a/2", "https://b/é", "ftp://a/1"])
ROW = st.tuples(URL, TEXT, TEXT, TEXT, st.sampled_from([None, "", "AB" * 32, "xyz"]), TEXT, st.booleans())


def block(rows: list[tuple[object, ...]]) -> pa.Table:
    columns = [[row[number] for row in rows] for number in range(7)]
    arrays = [pa.array(values, pa.string()) for values in columns[:6]]
    return pa.table([*arrays, pa.array(columns[6], pa.bool_())], names=[*NAMES, MALFORMED])


def row(url: str | None, text: str | None = "t", **more: str | bool | None) -> tuple[object, ...]:
    values = {
        "url": url,
        "text": text,
        "long": None,
        "alt": None,
        "sha": None,
        "licence": None,
        "bad": False,
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
            "expected_sha256": "ab" * 32,
            "fault": None,
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


@pytest.mark.parametrize(("sha", "fault"), [("", None), (None, None), ("F" * 64, None), ("f" * 63, "bad_hash")])
def test_malformed_hashes_are_faults(sha: str | None, fault: str | None) -> None:
    assert route(row("http://a/1", sha=sha)).column("fault").to_pylist() == [fault]


def test_each_malformed_row_is_a_candidate_of_its_own() -> None:
    bad = row(None, None, bad=True)
    merged = merge_rows(pa.concat_tables([route(bad, bad), route(bad, first_position=2)]), "s")
    assert merged.column("fault").to_pylist() == ["bad_row"] * 3
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


def test_rows_are_dealt_by_key_and_keep_their_order() -> None:
    rows = [row(f"http://a.example/{number % 40}", str(number)) for number in range(100)]
    routed = route(*rows)
    dealt = deal_rows(routed, 7)
    assert len(dealt) == 7
    for number, part in enumerate(dealt):
        assert part.equals(routed.filter(pc.equal(pa.array(key_ranges(routed["key"], 7)), number)))
