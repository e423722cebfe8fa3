from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.select import BalanceConfig, KeepRule, SelectConfig, SurvivorConfig
from dataengine.errors import ConfigError
from dataengine.schemas import CLASS, EDGE
from tests.select.choosing import KEYS, Selection, select

SCHEMA = {
    "key": pl.String,
    "source": pl.String,
    "caption": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "detail": pl.String,
    "score_status": pl.String,
    "clip_score": pl.Float32,
    "width": pl.Int32,
}
GOOD = {
    "source": "web",
    "caption": "a barn",
    "status": "ok",
    "score_status": "ok",
    "clip_score": 0.3,
    "width": 512,
}


def rows_of(*changes: dict[str, Any]) -> pl.DataFrame:
    named = zip(KEYS[: len(changes)], changes, strict=True)
    return pl.DataFrame([{**GOOD, "reason": None, "key": key, **change} for key, change in named], schema=SCHEMA)


def class_of(*members: int, kind: str = "pixels") -> pa.Table:
    keys = [KEYS[row] for row in members]
    return CLASS.table({"key": keys, "kind": [kind] * len(keys), "class_key": [min(keys)] * len(keys)})


def edge(left: int, right: int, similarity: float, kind: str = "image_embedding") -> pa.Table:
    ends = {"left_key": [KEYS[left]], "right_key": [KEYS[right]]}
    evidence = {"similarity": [similarity], "phash_distance": [None], "against": [None]}
    return EDGE.table({**ends, "kind": [kind], **evidence})


def chosen(
    rows: pl.DataFrame, config: SelectConfig, classes: pa.Table | None = None, edges: pa.Table | None = None
) -> Selection:
    found = select(rows, classes, edges, config)
    assert found.table["key"].to_pylist() == sorted(rows["key"].to_list())
    return found


def columns(found: Selection, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(found.table[name].to_pylist() for name in names), strict=True))


def test_the_first_thing_against_a_row_decides() -> None:
    rows = rows_of(
        {},
        {"status": "failed", "reason": "http_404", "detail": "gone", "score_status": "missing", "clip_score": None},
        {"score_status": "undecodable", "clip_score": None},
        {"score_status": None, "clip_score": None},
        {"clip_score": 0.1, "width": 100},
        {"width": 100},
        {"clip_score": 0.9},
    )
    config = SelectConfig.model_validate({"rules": {"clip": "clip_score >= 0.2", "small": "width >= 200"}})
    found = chosen(rows, config, class_of(0, 6, 4))
    assert columns(found, "verdict", "stage", "reason", "rule_value", "survivor_key", "repeat") == [
        ("dropped", "select", "duplicate_image", None, KEYS[6], 0),
        ("dropped", "download", "http_404", "gone", None, 0),
        ("dropped", "score", "undecodable", None, None, 0),
        ("dropped", "score", "missing", None, None, 0),
        ("dropped", "select", "clip", "clip_score=0.1", None, 0),
        ("dropped", "select", "small", "width=100", None, 0),
        ("kept", None, None, None, None, 1),
    ]


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        ("image", [None, "duplicate_image", None, "duplicate_image"]),
        ("caption", [None, None, "duplicate_caption", "duplicate_caption"]),
        ("pair", [None, None, None, "duplicate_pair"]),
        ("either", [None, "duplicate_image", "duplicate_caption", "duplicate_image"]),
        ("none", [None] * 4),
    ],
)
def test_policies(policy: str, reasons: list[str | None]) -> None:
    rows = rows_of({"clip_score": 0.9}, {}, {}, {})
    classes = pa.concat_tables([class_of(0, 2, kind="caption_exact"), class_of(0, 3, kind="caption_exact")])
    edges = pa.concat_tables([edge(0, 1, 0.97), edge(0, 3, 0.96)])
    config = SelectConfig(survivors=SurvivorConfig(policy=policy))  # type: ignore[arg-type]
    found = chosen(rows, config, classes, edges)
    # Row 3 copies row 0's caption exactly, which says more than an image of 0.96.
    if policy == "either":
        reasons = [None, "duplicate_image", "duplicate_caption", "duplicate_caption"]
    assert found.table["reason"].to_pylist() == reasons


def test_survivors_carry_the_captions_of_those_that_yield() -> None:
    captions = ["mine", "old barn", "mine", "", "old barn", "farm", "alone"]
    rows = rows_of(*({"caption": caption, "clip_score": 0.9 - row / 10} for row, caption in enumerate(captions)))
    classes = class_of(*range(6))
    found = chosen(rows, SelectConfig(), classes)
    assert found.table["merged_captions"].to_pylist() == [
        [("merged_1", "old barn"), ("merged_2", "farm")],
        *([[]] * 6),
    ]
    unmerged = SelectConfig(survivors=SurvivorConfig(merge_captions=False))
    assert chosen(rows, unmerged, classes).table["merged_captions"].to_pylist() == [[]] * 7


def test_balance_drops_what_it_does_not_draw() -> None:
    rows = rows_of(*({"source": "web" if row % 4 else "photos"} for row in range(40)))
    config = SelectConfig(balance=BalanceConfig(target=30, weights={"web": 1, "photos": 2}, max_repeat=2))
    found = chosen(rows, config)
    assert found.mixture.realised == {"photos": 20, "web": 10}
    drawn = pl.DataFrame(pl.from_arrow(found.table.drop_columns(["merged_captions"])))
    assert dict(drawn.group_by("source").agg(pl.sum("repeat")).iter_rows()) == found.mixture.realised
    dropped = drawn.filter(pl.col("verdict") == "dropped")
    assert dropped.select("stage", "reason", "repeat").unique().rows() == [("select", "balance", 0)]
    assert len(dropped) == 20


def test_a_group_is_held_out_as_a_whole() -> None:
    rows = rows_of(*[{}] * 40)
    edges = pa.concat_tables([edge(row, row + 1, 0.96) for row in range(0, 40, 2)])
    config = SelectConfig(survivors=SurvivorConfig(policy="none"), holdout_share=0.5)
    splits = chosen(rows, config, None, edges).table["split"].to_pylist()
    assert splits[::2] == splits[1::2]
    assert 4 < splits.count("holdout") < 36


def test_nothing_to_select_from() -> None:
    empty = pl.DataFrame(schema=SCHEMA)
    config = SelectConfig.model_validate({"rules": {"clip": "clip_score >= 0.2"}})
    assert len(chosen(empty, config).table) == 0
    with pytest.raises(ConfigError, match="no column"):
        chosen(empty, SelectConfig.model_validate({"rules": {"clip": "clipp_score >= 0.2"}}))
    lost = chosen(rows_of({"clip_score": 0.1}, {"status": "failed", "reason": "dns"}), config)
    assert lost.table["verdict"].to_pylist() == ["dropped", "dropped"]
    assert lost.mixture.realised == {"web": 0}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "source": st.sampled_from(["a", "b"]),
                "status": st.sampled_from(["ok", "ok", "ok", "failed"]),
                "clip_score": st.sampled_from([0.1, 0.3, 0.5]),
                "caption": st.sampled_from(["", "x", "y"]),
            }
        ),
        max_size=20,
    ),
    st.sets(st.tuples(st.integers(0, 19), st.integers(0, 19)).filter(lambda pair: pair[0] < pair[1]), max_size=12),
    st.randoms(),
)
def test_order_does_not_matter_and_every_duplicate_has_a_survivor(
    changes: list[dict[str, Any]], pairs: set[tuple[int, int]], random: object
) -> None:
    rows = rows_of(*({**change, "reason": "dns"} for change in changes))
    edges = pa.concat_tables(
        [EDGE.empty(), *(edge(left, right, 0.97) for left, right in sorted(pairs) if right < len(rows))]
    )
    config = SelectConfig(
        rules={"clip": KeepRule(keep="clip_score >= 0.2")},
        balance=BalanceConfig(target=7, if_short="all", max_repeat=2),
        holdout_share=0.3,
    )
    found = chosen(rows, config, None, edges)
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    backwards = edges.take(pa.array(range(len(edges) - 1, -1, -1), pa.int64()))
    again = chosen(rows[shuffled], config, None, backwards)
    assert again.table.equals(found.table)
    verdicts = {row["key"]: row for row in found.table.to_pylist()}
    for row in verdicts.values():
        if row["reason"] == "duplicate_image":
            assert verdicts[row["survivor_key"]]["reason"] in (None, "balance")
            assert tuple(sorted((KEYS.index(row["key"]), KEYS.index(row["survivor_key"])))) in pairs
            assert row["group_key"] == verdicts[row["survivor_key"]]["group_key"]
            assert row["split"] == verdicts[row["survivor_key"]]["split"]
    trained = [row["repeat"] for row in verdicts.values() if row["split"] == "train"]
    assert sum(trained) == sum(found.mixture.realised.values())
    assert {row["repeat"] for row in verdicts.values() if row["split"] == "holdout"} <= {0, 1}


def test_the_target_counts_training_draws_and_holds_each_held_out_sample_once() -> None:
    rows = rows_of(*[{}] * 40)
    balance = BalanceConfig(target=80, max_repeat=4)
    config = SelectConfig(survivors=SurvivorConfig(policy="none"), holdout_share=0.2, balance=balance)
    table = pl.DataFrame(pl.from_arrow(chosen(rows, config).table.drop_columns(["merged_captions"])))
    draws_of = dict(table.group_by("split").agg(pl.col("repeat").sum()).iter_rows())
    held_out = table.filter(pl.col("split") == "holdout")
    assert draws_of["train"] == 80
    assert 1 < draws_of["holdout"] == len(held_out)
