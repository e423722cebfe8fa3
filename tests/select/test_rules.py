from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.select import SelectConfig
from dataengine.errors import ConfigError
from dataengine.select.blocklist import blocklist_condition, parse_lines
from dataengine.select.rules import Compiled, compile_rules
from tests.select.choosing import judged

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


def compiled(rules: dict[str, object]) -> list[Compiled]:
    return compile_rules(SelectConfig.model_validate({"rules": rules}).rules, SCHEMA)


def passing(text: str) -> list[bool]:
    return [reason is None for reason, _ in judged(ROWS, {"only": text})]


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
        ("clip_score BETWEEN 0.1 AND 0.3", [1, 1, 0, 0, 0]),  # float32's 0.3 is a little more than 0.3
        ("clip_score NOT BETWEEN 0.1 AND 0.3", [0, 0, 0, 1, 1]),
        ("clip_score IS NOT DISTINCT FROM 0.7", [0, 0, 0, 1, 0]),
        ("CASE clip_score WHEN 0.7 THEN true ELSE false END", [0, 0, 0, 1, 0]),
        ("caption <> 'now()'", [1, 1, 1, 1, 1]),
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
        ("width > 1 AND now() > date '2026-01-01'", "now is not allowed"),
        ("width > 1 AND CURRENT_DATE > '2026-01-01'", "CURRENT_DATE is not allowed"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"select\.rules\.only") as caught:
        compiled({"only": text})
    assert says in str(caught.value)


def test_a_rule_that_breaks_on_a_row_is_named() -> None:
    rules = {"fine": "width > 3", "number": "CAST(caption AS INT) > 3"}
    with pytest.raises(ConfigError, match=r"select\.rules\.number: .*TRY_CAST"):
        judged(ROWS, rules)


def test_the_first_failing_rule_is_named_with_the_values_it_saw() -> None:
    rules = {"sharp": "clip_score >= 0.29", "large": "width >= 512 AND height >= 512", "said": "caption <> ''"}
    assert judged(ROWS, rules) == [
        ("sharp", "clip_score=0.28"),
        ("large", "width=300, height=900"),
        ("no_clip_score", "clip_score=null"),
        ("large", "width=512, height=0"),
        ("no_width", "width=null, height=512"),
    ]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("clip_score >= 0.29", ["only", None, "no_clip_score", None, None]),
        ({"keep": "clip_score >= 0.29", "if_null": "pass"}, ["only", None, None, None, None]),
        ("coalesce(clip_score, 0) >= 0.29", ["only", None, "only", None, None]),
        ("clip_score IS NULL OR clip_score >= 0.29", ["only", None, None, None, None]),
        ("clip_score >= 0.29 OR width > 1000", [None, None, None, None, None]),
        ("width > 3 AND clip_score > 0 AND NOT caption_truncated",
         [None, "only", "no_clip_score", "no_caption_truncated", "no_width"]),
    ],
)  # fmt: skip
def test_a_null_drops_under_its_own_reason_unless_the_rule_says_otherwise(
    rule: object, wanted: list[str | None]
) -> None:
    assert [reason for reason, _ in judged(ROWS, {"only": rule})] == wanted


def test_nan_passes_no_rule() -> None:
    frame = pl.DataFrame({"score": pl.Series([float("nan"), 0.5, None], dtype=pl.Float32), "text": ["nan", "1", "x"]})
    assert [reason for reason, _ in judged(frame, {"only": "score > 0.3"})] == ["no_score", None, "no_score"]
    assert [reason for reason, _ in judged(frame, {"only": "score < 0.3"})] == ["no_score", "only", "no_score"]
    texts = [reason for reason, _ in judged(frame, {"only": "TRY_CAST(text AS DOUBLE) > 0.3"})]
    assert texts == ["only", None, "only"]
    frame = pl.DataFrame({"width": [0, 1], "text": ["inf", "inf"]})
    assert [reason for reason, _ in judged(frame, {"only": "TRY_CAST(text AS DOUBLE) * width > 0.3"})] == ["only"] * 2


def test_no_rules_and_no_rows() -> None:
    assert judged(ROWS, {}) == [(None, None)] * len(ROWS)
    assert judged(ROWS.clear(), {"large": "width >= 512"}) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20), st.permutations(["a", "b", "c"]))
def test_the_first_failure_in_config_order_decides(rows: list[tuple[int, int]], order: list[str]) -> None:
    texts = {"a": "width > 0", "b": "height > 1", "c": "width + height > 3"}
    frame = pl.DataFrame(rows, schema={"width": pl.Int32, "height": pl.Int32}, orient="row")
    found = judged(frame, {name: texts[name] for name in order})
    for (width, height), (failed, _) in zip(rows, found, strict=True):
        holds = {"a": width > 0, "b": height > 1, "c": width + height > 3}
        assert failed == next((name for name in order if not holds[name]), None)


@pytest.mark.parametrize("name", ["balance", "duplicate_image", "no_clip_score", "cap_cell", "contaminated"])
def test_a_rule_may_not_take_a_reason_of_selects_own(name: str) -> None:
    with pytest.raises(ValueError, match="given by select itself"):
        SelectConfig.model_validate({"rules": {name: "width > 3"}})


CAPTIONS = pl.DataFrame({"caption": ["A cat", "Two dogs, one cat", "", "concatenate all", None, "ДВА кота"]})


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ({"min_words": 2}, [1, 1, 0, 1, 0, 1]),
        ({"max_words": 2, "min_words": 1}, [1, 0, 0, 1, 0, 1]),
        ({"min_chars": 6, "max_chars": 15}, [0, 0, 0, 1, 0, 1]),
        ({"forbid": ["CAT"]}, [0, 0, 1, 1, 0, 1]),
        ({"require_any": ["cat", "dogs one"]}, [1, 1, 0, 0, 0, 0]),
        ({"require_any": ["два"]}, [0, 0, 0, 0, 0, 1]),
        ({"require_any_of": ["words.txt"]}, [1, 1, 0, 1, 0, 0]),
        ({"min_words": 2, "if_null": "pass"}, [1, 1, 0, 1, 1, 1]),
    ],
)
def test_caption_rules(rule: dict[str, object], wanted: list[int]) -> None:
    lines = {"only": ["# animals", "cat", "", "concatenate"]}
    found = judged(CAPTIONS, {"only": {"caption": "caption", **rule}}, lines if "require_any_of" in rule else {})
    assert [reason is None for reason, _ in found] == [bool(flag) for flag in wanted]
    assert found[4][0] in (None, "no_caption")


def test_a_caption_rule_that_asks_nothing_or_for_no_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="asks nothing"):
        compiled({"only": {"caption": "caption"}})
    with pytest.raises(ConfigError, match="holds no word"):
        compiled({"only": {"caption": "caption", "forbid": [" ... "]}})
    with pytest.raises(ConfigError, match="hold no phrase"):
        judged(CAPTIONS, {"only": {"caption": "caption", "require_any_of": ["words.txt"]}}, {"only": ["# none", ""]})
    with pytest.raises(ConfigError, match="did you mean caption"):
        compiled({"only": {"caption": "alt", "min_words": 3}})


BLOCKED = pl.DataFrame(
    {
        "url": ["https://User@Bad.Example:80/x", "http://notbad.example/", "http://a.b.bad.example/", None, "mailto:x"],
        "final_url": [None, "http://fine.test/", None, "http://evil.test./x", None],
        "sha256": ["0" * 64, "ab" * 32, None, None, None],
        "phash": ["ffff00000000ffff", "ffff00000000fff0", None, "0000000000000000", "0000000000000001"],
    }
)


@pytest.mark.parametrize(
    ("lines", "distance", "wanted"),
    [
        (["bad.example"], 0, [0, 1, 0, 1, 1]),
        (["*.b.bad.example", "EVIL.test"], 0, [1, 1, 0, 0, 1]),
        (["AB" * 32], 0, [1, 0, 1, 1, 1]),
        (["ffff00000000ffff"], 0, [0, 1, 1, 1, 1]),
        (["ffff00000000ffff"], 4, [0, 0, 1, 1, 1]),
        (["0000000000000000"], 1, [1, 1, 1, 0, 0]),
        (["# nothing", ""], 0, [1, 1, 1, 1, 1]),
    ],
)
def test_blocklists(lines: list[str], distance: int, wanted: list[int]) -> None:
    rule = {"blocklist": ["list.txt"], "max_phash_distance": distance}
    found = judged(BLOCKED, {"only": rule}, {"only": lines})
    assert [reason is None for reason, _ in found] == [bool(flag) for flag in wanted]


@pytest.mark.parametrize("line", ["http://a.test/", "0" * 32, "0" * 40, "a b"])
def test_what_no_blocklist_can_hold_is_refused_by_line(line: str) -> None:
    with pytest.raises(ConfigError, match=r"select\.rules\.only, line 2"):
        judged(BLOCKED, {"only": {"blocklist": ["list.txt"]}}, {"only": ["# list", line]})


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["phash ffff00000000ffff 4"], [0, 0, 1, 1, 1]),
        (["phash ffff00000000ffff"], [0, 1, 1, 1, 1]),
        (["url http://BAD.example:80/x#top"], [0, 1, 1, 1, 1]),
        (["url http://fine.test/"], [1, 0, 1, 1, 1]),
        (["url mailto:x"], [1, 1, 1, 1, 0]),
        (["sha256 " + "AB" * 32 + " # why"], [1, 0, 1, 1, 1]),
        (["domain bad.example"], [0, 1, 0, 1, 1]),
        (["key " + "0a" * 16], [1, 1, 0, 1, 1]),
        (["pixels " + "cd" * 16], [1, 1, 1, 0, 1]),
    ],
)
def test_lines_that_tell_their_kind(lines: list[str], wanted: list[int]) -> None:
    rows = BLOCKED.with_columns(
        key=pl.Series(["1", "2", "0a" * 16, "4", "5"]), pixel_hash=pl.Series([None, None, None, "cd" * 16, None])
    )
    listed = parse_lines(lines, "list.txt")
    found = rows.select(blocklist_condition(listed, 0)).to_series().to_list()
    assert found == [bool(flag) for flag in wanted]


@pytest.mark.parametrize("line", ["key 12", "phash ffff00000000ffff 65", "phash ffff00000000ffff four", "sha256 a b"])
def test_lines_whose_kind_does_not_fit_are_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=r"list\.txt, line 1: got"):
        parse_lines([line], "list.txt")
