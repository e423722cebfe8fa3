"""`top` rules: the exact number of the best rows, whatever ties, nulls and groups there are."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.select import SelectConfig, TopRule
from dataengine.errors import ConfigError
from dataengine.select.keyed import Keys
from dataengine.select.ranks import best
from dataengine.select.rules import compile_rules
from tests.select.choosing import KEYS, judged

VALUES = st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]), max_size=30)


def kept(values: list[float | None], **rule: object) -> list[int]:
    """Rows that pass; the rows are in key order."""
    frame = pl.DataFrame({"score": pl.Series(values, dtype=pl.Float32)})
    found = judged(frame, {"best": {"top": "score", **rule}})
    assert all(reason == "no_score" for (reason, _), value in zip(found, values, strict=True) if value is None)
    return [row for row, (reason, _) in enumerate(found) if reason is None]


@given(VALUES, st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999, 1]), st.sampled_from(["desc", "asc"]))
def test_a_fraction_is_the_best_rows_by_value_then_key(values: list[float | None], fraction: float, order: str) -> None:
    there = [row for row, value in enumerate(values) if value is not None]
    best = sorted(there, key=lambda row: (values[row] if order == "asc" else -values[row], KEYS[row]))  # type: ignore[operator]
    number = int(Fraction(str(fraction)) * len(there))
    assert kept(values, fraction=fraction, order=order) == sorted(best[:number])


def test_a_share_is_taken_as_the_decimal_it_reads_as() -> None:
    assert len(kept([0.5] * 30, fraction=0.3)) == 9  # in binary, 0.3 × 30 is 8.999...
    assert kept([0.5] * 10, fraction=0.3) == [0, 1, 2], "ties by key"


@given(st.permutations(range(12)), st.lists(st.sampled_from([0.0, 0.5]), min_size=12, max_size=12), st.integers(0, 12))
def test_ties_are_broken_by_key_in_whatever_order_rows_come(order: list[int], values: list[float], number: int) -> None:
    wanted = sorted(range(12), key=lambda row: (-values[row], KEYS[row]))[:number]
    keys = Keys.parse(pa.array([KEYS[row] for row in order]))
    found = best(np.array([values[row] for row in order]), number, keys)
    assert sorted(order[place] for place in found) == sorted(wanted)


def test_all_and_none() -> None:
    assert kept([0.5, None, 0.1], fraction=1) == [0, 2]
    assert kept([0.5, None, 0.1], fraction=0) == []
    assert kept([0.5, None, 0.1], count=0) == []
    assert kept([0.5, None, 0.1], count=99) == [0, 2]
    assert kept([], fraction=0.5) == []
    assert kept([None, None], fraction=0.5) == []


def test_nan_has_no_rank() -> None:
    frame = pl.DataFrame({"score": pl.Series([float("nan"), 0.1, 0.2], dtype=pl.Float32)})
    assert [reason for reason, _ in judged(frame, {"best": {"top": "score", "count": 1}})] == ["no_score", "best", None]


def test_a_null_may_pass_uncounted() -> None:
    frame = pl.DataFrame({"score": pl.Series([None, 0.1, 0.2], dtype=pl.Float32)})
    rule = {"top": "score", "count": 1, "if_null": "pass"}
    assert [reason for reason, _ in judged(frame, {"best": rule})] == [None, "best", None]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1, 2, 3])), max_size=30))
def test_within_groups(rows: list[tuple[str | None, int]]) -> None:
    frame = pl.DataFrame(rows, schema={"kind": pl.String, "size": pl.Int32}, orient="row")
    found = judged(frame, {"best": {"top": "size", "count": 2, "per": ["kind"]}})
    for kind in ("a", "b", None):
        mine = [row for row, (other, _) in enumerate(rows) if other == kind]
        best = sorted(mine, key=lambda row: (-rows[row][1], KEYS[row]))[:2]
        assert [row for row in mine if found[row][0] is None] == sorted(best)


def test_a_rank_is_among_the_rows_that_the_rules_before_left_over() -> None:
    frame = pl.DataFrame({"score": [0.9, 0.8, 0.7, 0.6], "width": [1, 9, 9, 9]})
    top, wide = {"top": "score", "fraction": 0.5}, "width > 5"
    after = [reason for reason, _ in judged(frame, {"wide": wide, "best": top})]
    before = [reason for reason, _ in judged(frame, {"best": top, "wide": wide})]
    assert after == ["wide", None, "best", "best"]
    assert before == ["wide", None, "best", "best"]
    values = judged(frame, {"wide": wide, "best": top, "best_of_rest": {"top": "width", "count": 0}})
    assert values[2] == ("best", "score=0.7")
    assert values[1] == ("best_of_rest", "width=9")


@pytest.mark.parametrize("rule", [{"top": "score"}, {"top": "score", "count": 1, "fraction": 0.5}])
def test_a_rank_wants_one_size(rule: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="either fraction or count"):
        TopRule.model_validate(rule)


def test_an_unknown_column_is_named() -> None:
    for rule in ({"top": "scor", "count": 1}, {"top": "score", "count": 1, "per": ["scor"]}):
        config = SelectConfig.model_validate({"rules": {"best": rule}})
        with pytest.raises(ConfigError, match=r"select\.rules\.best: no column 'scor'; did you mean score\?"):
            compile_rules(config.rules, {"score": pl.Float32()})


def test_texts_flags_and_large_numbers_have_ranks() -> None:
    frame = pl.DataFrame({"name": ["b", "a", "c"], "flag": [True, False, True], "big": [2**62 + 1, 2**62, -(2**62)]})
    for column, wanted in (("name", [2]), ("flag", [0]), ("big", [0])):
        found = judged(frame, {"best": {"top": column, "count": 1}})
        assert np.flatnonzero([reason is None for reason, _ in found]).tolist() == wanted
