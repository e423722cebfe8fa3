from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.select import BalanceConfig, KeepRule, SelectConfig, SurvivorConfig
from dataengine.errors import ConfigError, LedgerError
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


def by_key(found: Selection, *names: str) -> dict[str, tuple[Any, ...]]:
    return {key: values for key, *values in columns(found, "key", *names)}  # type: ignore[misc]


@given(st.integers(1, 30), st.integers(1, 3), st.booleans())
def test_the_target_is_met_exactly_with_the_mixture_that_was_asked(target: int, max_repeat: int, even: bool) -> None:
    rows = rows_of(*({"source": "abc"[row % 3]} for row in range(60)))
    weights = {"a": 1, "b": 1, "c": 1} if even else {"a": 0.5, "b": 0.2, "c": 0.3}
    balance = BalanceConfig(target=target, weights=weights, max_repeat=max_repeat)
    found = chosen(rows, SelectConfig(balance=balance))
    assert sum(found.table["repeat"].to_pylist()) == target
    for name, weight in weights.items():
        drawn = sum(repeat for source, repeat in columns(found, "source", "repeat") if source == name)
        assert abs(drawn - target * weight / sum(weights.values())) < 1
        assert drawn == found.mixture.realised[name]


def test_rows_keep_their_draws_when_a_source_is_added() -> None:
    """The numbers always; the draws as well, where the old sources' quotas stay what they were."""
    old = rows_of(*({"source": "ab"[row % 2]} for row in range(40)))
    new = pl.concat([old, rows_of(*({"source": "z"} for _ in range(60)))[40:]])
    before = chosen(old, SelectConfig(balance=BalanceConfig(target=20, weights={"a": 1, "b": 3})))
    after = chosen(new, SelectConfig(balance=BalanceConfig(target=30, weights={"a": 1, "b": 3, "z": 2})))
    found, wanted = by_key(after, "draw", "repeat", "reason"), by_key(before, "draw", "repeat", "reason")
    assert len(wanted) == 40
    assert {key: found[key] for key in wanted} == wanted


def test_a_cap_keeps_about_its_number_of_each_concept_and_says_so() -> None:
    rows = rows_of(*({"width": 1 if row < 50 else 2} for row in range(60)))
    config = SelectConfig.model_validate({"balance": {"cap": {"by": "width", "at": 20}}})
    found = pl.DataFrame(pl.from_arrow(chosen(rows, config).table.drop_columns(["merged_captions"])))
    capped = found.filter(pl.col("reason") == "cap_width")
    assert 15 <= len(capped) <= 45, "50 rows, of which each stays with probability 0.4"
    assert set(capped["rule_value"]) == {"width=1, count=50"}
    assert (capped["draw"] * 50 >= 20).all()
    assert found.filter(pl.col("verdict") == "kept")["key"].to_list()[-10:] == KEYS[50:]
    higher = SelectConfig.model_validate({"balance": {"cap": [{"by": "width", "at": 30}]}})
    more = chosen(rows, higher).table
    kept = {key for key, verdict in columns(chosen(rows, config), "key", "verdict") if verdict == "kept"}
    assert kept <= {key for key, verdict in zip(more["key"].to_pylist(), more["verdict"].to_pylist(), strict=True)
                    if verdict == "kept"}  # fmt: skip


def test_caps_compose_with_each_other_and_with_the_target() -> None:
    rows = rows_of(*({"width": row % 2, "source": "ab"[row % 3 == 0], "clip_score": row / 60} for row in range(60)))
    caps = [{"by": "width", "at": 20}, {"by": "source", "at": 10}]
    config = SelectConfig.model_validate({"balance": {"cap": caps, "target": 8, "weights": {"a": 1, "b": 1}}})
    found = chosen(rows, config)
    reasons = found.table["reason"].to_pylist()
    assert {"cap_width", "cap_source", "balance", None} == set(reasons)
    assert found.mixture.realised == {"a": 4, "b": 4}
    assert sum(found.table["repeat"].to_pylist()) == 8


def test_selecting_what_was_selected_selects_all_of_it() -> None:
    """Idempotence: rules, survivors and a target of their own number drop nothing from a selection."""
    rows = rows_of(*({"clip_score": (row % 7) / 10} for row in range(60)))
    edges = pa.concat_tables([edge(row, row + 2, 0.97) for row in range(50)])
    config = SelectConfig.model_validate({"rules": {"clip": "clip_score >= 0.2"}, "balance": {"target": 12}})
    first = chosen(rows, config, None, edges)
    kept = [key for key, verdict in columns(first, "key", "verdict") if verdict == "kept"]
    inside = edges.filter(
        pc.and_(pc.is_in(edges["left_key"], pa.array(kept)), pc.is_in(edges["right_key"], pa.array(kept)))
    )
    again = chosen(rows.filter(pl.col("key").is_in(kept)), config, None, inside)
    assert len(kept) == 12
    assert again.table["reason"].null_count == 12


@pytest.mark.parametrize("part_rows", [1, 5, 60])
def test_parts_do_not_matter(part_rows: int) -> None:
    rows = rows_of(*({"clip_score": (row % 7) / 10, "source": "ab"[row % 2], "width": row} for row in range(60)))
    edges = pa.concat_tables([edge(row, row + 2, 0.97) for row in range(50)])
    asked = {
        "rules": {"best": {"top": "width", "fraction": 0.7, "per": ["source"]}, "clip": "clip_score >= 0.2"},
        "balance": {"target": 12, "cap": {"by": "source", "at": 15}, "temperature": 2, "if_short": "all"},
        "holdout_share": 0.2,
    }
    config = SelectConfig.model_validate(asked)
    assert select(rows, None, edges, config, part_rows=part_rows).table.equals(chosen(rows, config, None, edges).table)


def test_two_rows_of_one_key_are_refused() -> None:
    with pytest.raises(LedgerError, match=f"two candidates have the key {KEYS[0]}"):
        chosen(pl.concat([rows_of({}), rows_of({"source": "b"})]), SelectConfig())
    with pytest.raises(LedgerError, match="which is no candidate of this run"):
        chosen(rows_of({}), SelectConfig(), class_of(0, 1))
