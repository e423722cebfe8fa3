"""Plans cover every row once, in pure and equal runs of key order, whatever the order of the input."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.run import EmitConfig
from dataengine.emit.plan import Kept, Pure, ShardPlan, count_shards, split_rows
from dataengine.emit.plan import plan_shards as plan_kept
from dataengine.keys import url_keys

SMALL = EmitConfig(target_shard_bytes=1000, shard_multiple=4)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["photos", "blog"]),
        st.sampled_from(["train"] * 5 + ["holdout"]),
        st.sampled_from(["jpg", "png", "webp"]),
        st.integers(1, 2000),
    ),
    max_size=80,
)


def table(rows: list[tuple[str, str, str, int]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [[], [], [], []]
    keys = url_keys("any", [str(place) for place in range(len(rows))])
    types = (pa.string(), pa.string(), pa.string(), pa.int64())
    arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
    return pa.table([pa.array(keys, pa.string()), *arrays], names=["key", "source", "split", "format", "nbytes"])


def plan_shards(rows: pa.Table, config: EmitConfig) -> list[ShardPlan]:
    """The plan of rows that come in two parts."""
    kept: dict[Pure, list[Kept]] = {}
    for part in (rows.slice(0, len(rows) // 3), rows.slice(len(rows) // 3)):
        for pure, of_part in split_rows(part).items():
            kept.setdefault(pure, []).append(of_part)
    return plan_kept(kept, config)


def members(plan: ShardPlan, rows: pa.Table) -> list[dict[str, object]]:
    return [
        row
        for row in rows.sort_by("key").to_pylist()
        if (row["source"], row["split"], row["format"]) == (plan.source, plan.split, plan.format)
        and plan.min_key <= row["key"] <= plan.max_key
    ]


@given(ROWS)
def test_plans_cover_every_row_once_and_tell_the_truth(drawn: list[tuple[str, str, str, int]]) -> None:
    rows = table(drawn)
    plans = plan_shards(rows, SMALL)
    seen: list[object] = []
    for plan in plans:
        inside = members(plan, rows)
        assert (len(inside), sum(int(str(row["nbytes"])) for row in inside)) == (
            plan.num_samples,
            plan.nbytes,
        )
        assert (inside[0]["key"], inside[-1]["key"]) == (plan.min_key, plan.max_key)
        seen += [row["key"] for row in inside]
    assert sorted(map(str, seen)) == sorted(rows.column("key").to_pylist())


@given(ROWS)
def test_counts_are_equal_and_names_number_on(drawn: list[tuple[str, str, str, int]]) -> None:
    plans = plan_shards(table(drawn), SMALL)
    by_run: dict[tuple[str, ...], list[int]] = {}
    for plan in plans:
        by_run.setdefault((plan.source, plan.split, plan.format), []).append(plan.num_samples)
    assert all(max(counts) - min(counts) <= 1 for counts in by_run.values())
    for source in {plan.source for plan in plans}:
        names = [plan.name for plan in plans if plan.source == source]
        assert names == [f"{source}-{number:06d}" for number in range(len(names))]


@given(ROWS, st.randoms())
def test_the_order_of_rows_changes_nothing(drawn: list[tuple[str, str, str, int]], random: object) -> None:
    rows = table(drawn)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert plan_shards(rows.take(pa.array(order, pa.int64())), SMALL) == plan_shards(rows, SMALL)


@given(ROWS)
def test_the_shards_of_a_split_are_a_multiple_or_as_many_as_fit(
    drawn: list[tuple[str, str, str, int]],
) -> None:
    rows = table(drawn)
    num_shards = Counter((plan.source, plan.split) for plan in plan_shards(rows, SMALL))
    samples = Counter((source, split) for source, split, _, _ in drawn)
    formats = {group: len({form for source, split, form, _ in drawn if (source, split) == group}) for group in samples}
    for group, count in num_shards.items():
        power_of_two = count & (count - 1) == 0
        assert count % 4 == 0 or (count <= samples[group] and power_of_two) or count == formats[group]


@pytest.mark.parametrize(
    ("num_samples", "nbytes", "expected"),
    [
        (10**6, 128 * 10**9, 128),
        (10**6, 190 * 10**9, 128),
        (10**6, 200 * 10**9, 256),
        (10**6, 10**6, 128),
        (128, 10**6, 128),
        (127, 10**6, 64),
        (10, 10**6, 8),
        (1, 1, 1),
        (200, 300 * 10**9, 128),  # 256 would leave shards empty
    ],
)
def test_count_shards(num_samples: int, nbytes: int, expected: int) -> None:
    assert count_shards(num_samples, nbytes, EmitConfig(target_shard_bytes=10**9, shard_multiple=128)) == expected


def test_formats_share_the_shards_of_their_source() -> None:
    rows = [("photos", "train", "jpg", 100)] * 90 + [("photos", "train", "png", 100)] * 30
    plans = plan_shards(table(rows), EmitConfig(target_shard_bytes=1000, shard_multiple=4))
    assert Counter(plan.format for plan in plans) == {"jpg": 9, "png": 3}
    assert {plan.num_samples for plan in plans} == {10}


def test_holdout_lies_apart() -> None:
    rows = table([("photos", "holdout", "jpg", 1), ("photos", "train", "jpg", 1)])
    paths = [plan.path for plan in plan_shards(rows, SMALL)]
    assert paths == ["photos/photos-000000.tar", "holdout/photos/photos-000001.tar"]


def test_no_rows_no_shards() -> None:
    assert plan_shards(table([]), SMALL) == []


def test_a_large_plan_is_quick() -> None:
    num_rows = 100_000
    columns = {
        "key": pa.array([f"{place:032x}" for place in range(num_rows)]),
        "source": pa.array(["photos"] * num_rows),
        "split": pa.array(["train"] * num_rows),
        "format": pa.array(["jpg"] * num_rows),
        "nbytes": pa.array(np.full(num_rows, 100_000)),
    }
    plans = plan_shards(pa.table(columns), EmitConfig(target_shard_bytes=10**7, shard_multiple=128))
    assert len(plans) == 1024
    assert {plan.num_samples for plan in plans} == {97, 98}
