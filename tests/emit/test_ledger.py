"""The ledger closes or raises with the numbers; funnel and histograms add up to it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.emit.ledger import bin_edges, build_ledger, check_ledger, funnel, histograms
from dataengine.errors import LedgerError
from dataengine.keys import url_keys
from dataengine.schemas import SELECTION

REASONS = [None, "http_404", "clip_score", "duplicate_image"]


def candidates(num_rows: list[int]) -> pa.Table:
    urls = [f"http://a.test/{place}" for place in range(len(num_rows))]
    return pa.table(
        {
            "key": pa.array(url_keys("photos", urls), pa.string()),
            "num_rows": pa.array(num_rows, pa.int32()),
            "source": pa.array(["photos", "blog"] * len(num_rows), pa.string())[: len(num_rows)],
            "url": pa.array(urls, pa.string()),
        }
    )


def selection(keys: list[str], reasons: list[str | None]) -> pa.Table:
    size = len(keys)
    order = sorted(range(size), key=keys.__getitem__)
    keys, reasons = [keys[place] for place in order], [reasons[place] for place in order]
    columns = {name: pa.nulls(size, SELECTION.arrow.field(name).type) for name in SELECTION.arrow.names}
    columns |= {
        "key": pa.array(keys, pa.string()),
        "source": ["photos"] * size,
        "verdict": ["dropped" if reason else "kept" for reason in reasons],
        "stage": pa.array(["select" if reason else None for reason in reasons], pa.string()),
        "reason": pa.array(reasons, pa.string()),
        "survivor_key": pa.array(["0" * 32] * size),
        "split": ["train"] * size,
        "repeat": [1] * size,
        "merged_captions": [[]] * size,
    }
    return SELECTION.table(columns)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(REASONS)), max_size=40))
def test_the_ledger_and_its_funnel_close(drawn: list[tuple[int, str | None]]) -> None:
    rows = candidates([num_rows for num_rows, _ in drawn])
    ledger = build_ledger(rows, selection(rows["key"].to_pylist(), [reason for _, reason in drawn]))
    expected: dict[str, int] = {}
    for source, num_rows in zip(rows["source"].to_pylist(), rows["num_rows"].to_pylist(), strict=True):
        expected[source] = expected.get(source, 0) + num_rows
    check_ledger(ledger, expected)
    table = funnel(ledger)
    assert sum(table["num_rows"].to_pylist()) == sum(num_rows for num_rows, _ in drawn)
    assert sum(table["num_candidates"].to_pylist()) == len(drawn)
    states = dict.fromkeys(zip(*(table[name].to_pylist() for name in ("source", "state", "reason")), strict=True))
    assert len(states) == len(table)
    assert sum(state == "emitted" for state in ledger["state"].to_pylist()) == sum(not reason for _, reason in drawn)


def test_emitted_rows_carry_no_evidence_of_a_drop() -> None:
    rows = candidates([1, 1])
    ledger = build_ledger(rows, selection(rows["key"].to_pylist(), [None, "clip_score"])).to_pylist()
    assert {row["state"]: row["survivor_key"] for row in ledger} == {"emitted": None, "dropped": "0" * 32}


def test_a_lost_row_stops_the_run_with_the_numbers() -> None:
    rows = candidates([2, 1, 1])
    ledger = build_ledger(rows, selection(rows["key"].to_pylist(), [None, None, None]))
    with pytest.raises(LedgerError, match=r"photos: 4 rows in, 3 in the ledger"):
        check_ledger(ledger, {"photos": 4, "blog": 1})
    with pytest.raises(LedgerError, match=r"shop: 7 rows in, 0 in the ledger"):
        check_ledger(ledger, {"photos": 3, "blog": 1, "shop": 7})
    with pytest.raises(LedgerError, match=r"blog: 0 rows in, 1 in the ledger"):
        check_ledger(ledger, {"photos": 3})


def test_a_drop_without_a_reason_is_refused() -> None:
    rows = candidates([1])
    ledger = build_ledger(rows, selection(rows["key"].to_pylist(), ["clip_score"]))
    silent = ledger.set_column(ledger.schema.get_field_index("reason"), "reason", pa.array([None], pa.string()))
    with pytest.raises(LedgerError, match=rows["key"][0].as_py()):
        check_ledger(silent, {"photos": 1})


def test_keys_without_a_verdict_are_named() -> None:
    rows = candidates([1, 1, 1])
    keys = rows["key"].to_pylist()
    with pytest.raises(LedgerError, match=f"1 candidates without a verdict, 0 verdicts without a candidate .{keys[2]}"):
        build_ledger(rows, selection(keys[:2], [None, None]))


def test_histograms_count_scored_and_emitted_rows() -> None:
    rows = pa.table(
        {
            "source": ["b", "a", "a", "a", "a"],
            "verdict": ["kept", "kept", "dropped", "dropped", "kept"],
            "clip_score": pa.array([0.3125, 0.125, 0.28125, None, 0.125], pa.float32()),
            "sharpness": pa.array([None] * 5, pa.float32()),
        }
    )
    table = histograms(rows, ["sharpness", "clip_score"]).to_pylist()
    assert {row["column"] for row in table} == {"clip_score"}
    filled = [
        (row["source"], row["low"], row["high"], row["num_scored"], row["num_emitted"])
        for row in table
        if row["num_scored"]
    ]
    assert filled == [("a", 0.125, 0.13, 2, 2), ("a", 0.28, 0.285, 1, 0), ("b", 0.31, 0.315, 1, 1)]
    assert [row["low"] for row in table if row["source"] == "a"] == [
        row["low"] for row in table if row["source"] == "b"
    ]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_bins_cover_every_value(values: list[float]) -> None:
    edges = bin_edges(min(values), max(values))
    assert np.all(np.diff(edges) > 0)
    assert edges[0] <= min(values) + 1e-9
    assert max(values) < edges[-1] + 1e-9
    assert len(edges) <= 53
    rows = pa.table(
        {
            "source": ["a"] * len(values),
            "verdict": ["kept"] * len(values),
            "x": pa.array(values, pa.float32()),
        }
    )
    assert sum(histograms(rows, ["x"])["num_emitted"].to_pylist()) == len(values)
