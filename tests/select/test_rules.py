from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import ConfigError
from dataengine.select.rules import apply_rules, compile_rules

SCHEMA = {
    "width": pl.Int32(),
    "height": pl.Int32(),
    "clip_score": pl.Float32(),
    "caption": pl.String(),
    "caption_truncated": pl.Boolean(),
}
ROWS = pl.DataFrame(
    {
        "width": [1024, 300, 60_000, 512, None],
        "height": [768, 900, 60_000, 0, 512],
        "clip_score": [0.28, 0.3, None, 0.7, 0.5],
        "caption": ["A cat", "a dog", "", "Cat 100% art", "x"],
        "caption_truncated": [False, True, False, None, False],
    },
    schema=SCHEMA,
)


def passing(text: str) -> list[bool]:
    judged = apply_rules(ROWS, compile_rules({"only": text}, ROWS.schema))
    return judged["failed_rule"].is_null().to_list()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("clip_score >= 0.28", [1, 1, 0, 1, 1]),
        ("clip_score >= 0.7", [0, 0, 0, 1, 0]),
        ("least(width, height) >= 512", [1, 0, 1, 0, 1]),  # a null is skipped, as in PostgreSQL
        ("width * height > 3000000000", [0, 0, 1, 0, 0]),
        ("width / height < 2", [1, 1, 1, 0, 0]),
        ("width / height > 2 OR width = 512", [0, 0, 0, 0, 0]),
        ("width % height >= 0", [1, 1, 1, 0, 0]),
        ("width BETWEEN 300 AND 1024 AND NOT (height IN (900))", [1, 0, 0, 1, 0]),
        ("caption LIKE 'A%' OR caption ILIKE '%cat 100\\% art'", [1, 0, 0, 0, 0]),
        ("lower(caption) LIKE '%cat%'", [1, 0, 0, 1, 0]),
        ("length(caption) > 0 AND caption IS NOT NULL", [1, 1, 0, 1, 1]),
        ("NOT caption_truncated", [1, 0, 1, 0, 1]),
        ("coalesce(clip_score, 0) < 0.3", [1, 0, 1, 0, 0]),
        ("abs(width - height) <= 256", [1, 0, 1, 0, 0]),
        ("greatest(width, height) * 1.0 / least(width, height) <= 3", [1, 1, 1, 0, 1]),
        ("CASE WHEN width > 1000 THEN clip_score > 0.2 ELSE true END", [1, 1, 0, 1, 1]),
        ("CAST(caption_truncated AS INT) = 0", [1, 0, 1, 0, 1]),
        ("clip_score IS NULL", [0, 0, 1, 0, 0]),
    ],
)
def test_a_rule_passes_the_rows_it_says(text: str, wanted: list[int]) -> None:
    assert passing(text) == [bool(flag) for flag in wanted]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("clip_scor >= 0.28", "did you mean clip_score?"),
        ("clip_score", "Float32"),
        ("sum(width) > 3", "Count is not allowed"),
        ("max(width) > 3", "Max is not allowed"),
        ("first(width) > 3", "First is not allowed"),
        ("count(*) > 3", "Len is not allowed"),
        ("row_number() OVER () > 1", "not allowed"),
        ("rank() OVER (ORDER BY width) > 1", "not allowed"),
        ("lag(width) OVER (ORDER BY height) > 1", "Over is not allowed"),
        ("sum(width) OVER (PARTITION BY height) > 1", "Over is not allowed"),
        ("width > (SELECT 3)", "SubPlan is not allowed"),
        ("width IN (SELECT width FROM self)", "not an expression"),
        ("read_csv('/etc/passwd') = 1", "not an expression"),
        ("random() < 0.5", "not an expression"),
        ("width > 3; DROP TABLE x", "not an expression"),
        ("width >", "not an expression"),
        ("", "not an expression"),
        ("1 = 1", "names no column"),
        ("caption > 3", "select.rules.only"),
        ("sqrt(width) > 1", "Pow.Sqrt is not allowed"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"select\.rules\.only") as caught:
        compile_rules({"only": text}, SCHEMA)
    assert says in str(caught.value)


def test_a_rule_that_breaks_on_a_row_is_named() -> None:
    rules = compile_rules({"number": "CAST(caption AS INT) > 3"}, SCHEMA)
    with pytest.raises(ConfigError, match=r"select\.rules\.number"):
        apply_rules(ROWS, rules)


def test_the_first_failing_rule_is_named_with_the_values_it_saw() -> None:
    rules = compile_rules(
        {"sharp": "clip_score >= 0.29", "large": "width >= 512 AND height >= 512", "said": "caption <> ''"},
        SCHEMA,
    )
    judged = apply_rules(ROWS, rules)
    assert judged["failed_rule"].to_list() == ["sharp", "large", "sharp", "large", "large"]
    assert judged["rule_value"].to_list() == [
        "clip_score=0.28",
        "width=300, height=900",
        "clip_score=null",
        "width=512, height=0",
        "width=null, height=512",
    ]
    assert judged.columns == [*ROWS.columns, "failed_rule", "rule_value"]


def test_no_rules_and_no_rows() -> None:
    assert apply_rules(ROWS, [])["failed_rule"].null_count() == len(ROWS)
    rules = compile_rules({"large": "width >= 512"}, SCHEMA)
    assert apply_rules(ROWS.clear(), rules).schema["rule_value"] == pl.String


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20), st.permutations(["a", "b", "c"]))
def test_the_first_failure_in_config_order_decides(rows: list[tuple[int, int]], order: list[str]) -> None:
    texts = {"a": "width > 0", "b": "height > 1", "c": "width + height > 3"}
    frame = pl.DataFrame(rows, schema={"width": pl.Int32, "height": pl.Int32}, orient="row")
    judged = apply_rules(frame, compile_rules({name: texts[name] for name in order}, frame.schema))
    for (width, height), failed in zip(rows, judged["failed_rule"].to_list(), strict=True):
        holds = {"a": width > 0, "b": height > 1, "c": width + height > 3}
        assert failed == next((name for name in order if not holds[name]), None)
