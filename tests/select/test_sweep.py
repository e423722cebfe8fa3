"""A sweep is as many selections: the variants are right, and each gives what a selection of its own gives."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from dataengine.config.select import KeepRule, SelectConfig, TopRule
from dataengine.errors import ConfigError
from dataengine.schemas import CLASS
from dataengine.select.duplicates import DuplicatesBuilder
from dataengine.select.keyed import KeyIndex
from dataengine.select.question import Question
from dataengine.select.selection import Selector
from dataengine.select.summary import count_reasons, overlap, yield_of
from dataengine.select.sweep import plan_sweep
from tests.select.choosing import KEYS, FrameColumns, pool_of, select
from tests.select.test_selection import edge, rows_of

CONFIG = SelectConfig.model_validate(
    {
        "rules": {
            "wide": "width >= 100",
            "clip": 'clip_score >= 0.2 AND "clip_score" <= 1',
            "best": {"top": "clip_score", "fraction": 0.8},
        },
        "balance": {"target": 6, "if_short": "all"},
    }
)

COLUMNS = {"width": pl.Int32(), "height": pl.Int32(), "clip_score": pl.Float32(), "caption": pl.String()}


def keep(config: SelectConfig, name: str) -> str:
    rule = config.rules[name]
    assert isinstance(rule, KeepRule)
    return rule.keep


def test_a_rule_with_one_number_is_swept_by_its_name() -> None:
    sweep = plan_sweep(CONFIG, "wide=100:300:100", COLUMNS)
    assert sweep.values == (Decimal(100), Decimal(200), Decimal(300))
    assert [keep(config, "wide") for config in sweep.configs] == [f"width >= {n}" for n in (100, 200, 300)]
    assert all(config.rules["clip"] == CONFIG.rules["clip"] for config in sweep.configs)


def test_a_column_is_swept_where_it_is_compared() -> None:
    assert keep(plan_sweep(CONFIG, "width=7,8", COLUMNS).configs[1], "wide") == "width >= 8"
    added = plan_sweep(CONFIG, "height=0.5:0.5:1", COLUMNS).configs[0]
    assert keep(added, "height") == '"height" >= 0.5'
    assert list(added.rules) == [*CONFIG.rules, "height"]
    turned = SelectConfig.model_validate({"rules": {"sides": "64 <= width AND height <= 1e4"}})
    assert keep(plan_sweep(turned, "width=7,8", COLUMNS).configs[1], "sides") == "8 <= width AND height <= 1e4"


def test_steps_are_exact_and_the_end_is_included() -> None:
    assert [str(value) for value in plan_sweep(CONFIG, "width=0.24:0.34:0.02", COLUMNS).values] == [
        "0.24", "0.26", "0.28", "0.30", "0.32", "0.34",
    ]  # fmt: skip


def test_fractions_and_keys_are_swept() -> None:
    best = [config.rules["best"] for config in plan_sweep(CONFIG, "best=0.1,0.5", COLUMNS).configs]
    assert [rule.fraction for rule in best if isinstance(rule, TopRule)] == [0.1, 0.5]
    targets = [config.balance.target for config in plan_sweep(CONFIG, "balance.target=5:15:5", COLUMNS).configs]
    assert targets == [5, 10, 15]
    assert [config.holdout_share for config in plan_sweep(CONFIG, "holdout_share=0.1,0.2", COLUMNS).configs] == [
        0.1,
        0.2,
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("clip_score", "NAME=LOW:HIGH:STEP"),
        ("wide=1:2", "LOW:HIGH:STEP"),
        ("wide=3:2:1", "LOW ≤ HIGH"),
        ("wide=0:1000:1", "at most 200"),
        ("wide=a", "no number"),
        ("clip=0.1", "wanted one number in select.rules.clip"),
        ("clip_score=0.1", "wanted one number"),
        ("balance.goal=3", "balance.goal"),
        ("mixture.target=3", "no key mixture.target"),
        ("survivors.min_image_similarity=2", "less than or equal to 1"),
        ("heigth=1", "no column 'heigth'; did you mean height?"),
        ("caption=1", "column caption holds String"),
        ("wide=0:inf:1", "not finite"),
        ("wide=nan", "not finite"),
        ("wide=sNaN:1:1", "not finite"),
    ],
)
def test_what_cannot_be_swept_is_said(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"--sweep") as caught:
        plan_sweep(CONFIG, text, COLUMNS)
    assert says in str(caught.value)


def test_a_sweep_equals_separate_runs() -> None:
    random = np.random.default_rng(5)
    scores = random.choice([None, 0.1, 0.2, 0.25, 0.3, 0.4], 50)
    rows = rows_of(*({"clip_score": score, "width": int(random.integers(50, 300)), "source": "ab"[row % 2]}
                     for row, score in enumerate(scores)))  # fmt: skip
    edges = pa.concat_tables([edge(row, row + step, 0.95 + step / 100) for row in range(40) for step in (1, 3)])
    planned = [
        plan_sweep(CONFIG, text, COLUMNS)
        for text in (
            "wide=50:300:50",
            "best=0:1:0.25",
            "balance.target=2:20:6",
            "survivors.min_image_similarity=0.95:1:0.01",
        )
    ]
    configs = [CONFIG, *(config for sweep in planned for config in sweep.configs)]
    question = Question.ask(configs, FrameColumns(rows))  # type: ignore[arg-type]
    pool = pool_of(rows, question)
    builder = DuplicatesBuilder(KeyIndex.build(pool.keys), question.respects)
    builder.add_edges(edges)
    builder.add_classes(CLASS.empty())
    selector = Selector(pool, builder.finish(), 3)
    different = set()
    for config, rules in zip(configs, question.rules, strict=True):
        found = yield_of(selector, config, rules)
        alone = select(rows, None, edges, config)
        assert found.realised == alone.mixture.realised
        assert found.available == alone.mixture.available
        assert found.num_published == alone.table["verdict"].to_pylist().count("kept")
        decision = selector.decide(config, rules)
        counted = count_reasons(decision, pool, np.ones(len(pool), np.int32))
        reasons = pl.Series(alone.table["reason"]).value_counts(name="n")
        assert dict(counted.group_by("reason").agg(pl.col("num_rows").sum()).iter_rows()) == dict(reasons.iter_rows())
        different.add(str(sorted(reasons.iter_rows(), key=str)))
    assert len(different) > 10, "a sweep over which nothing changes shows nothing"


def test_overlap_counts_who_fails_what_with_whom() -> None:
    rows = rows_of({"clip_score": 0.1, "width": 10}, {"clip_score": 0.1}, {"width": 10}, {}, {"status": "failed"})
    question = Question.ask([CONFIG], FrameColumns(rows))  # type: ignore[arg-type]
    pool = pool_of(rows, question)
    builder = DuplicatesBuilder(KeyIndex.build(pool.keys), question.respects)
    decision = Selector(pool, builder.finish(), 3).decide(CONFIG, question.rules[0])
    assert overlap(decision, pool, CONFIG, question.rules[0]).rows() == [
        ("wide", 2, 2, 1, 2, 1),
        ("clip", 2, 1, 1, 1, 2),
    ]
    assert KEYS
