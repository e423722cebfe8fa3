from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.select import SelectConfig, SurvivorConfig
from dataengine.errors import ConfigError
from dataengine.schemas import CLASS, EDGE
from dataengine.select.relations import flatten, unite
from tests.select.choosing import select

KEYS = [f"{number:032x}" for number in range(14)]
POLICIES = ["image", "caption", "pair", "either", "none"]
EDGES = st.lists(
    st.tuples(st.sampled_from(list(combinations(range(14), 2))), st.sampled_from([0.8, 0.9])),
    max_size=14,
    unique_by=lambda edge: edge[0],
)
NAMES = st.lists(st.integers(0, 7), min_size=14, max_size=14)


def class_rows(names: list[int], kind: str) -> list[dict[str, str]]:
    return [
        {"key": key, "kind": kind, "class_key": KEYS[names.index(name)]}
        for key, name in zip(KEYS, names, strict=True)
        if names.count(name) > 1
    ]


def edge_rows(
    edges: list[tuple[tuple[int, int], float]], kind: str, against: str | None = None
) -> list[dict[str, object]]:
    return [
        {
            "left_key": KEYS[left],
            "right_key": KEYS[right],
            "kind": kind,
            "similarity": similarity,
            "phash_distance": None,
            "against": against,
        }
        for (left, right), similarity in edges
    ]


def frame(rows: list[dict[str, object]] | list[dict[str, str]], schema: object) -> pl.DataFrame:
    empty = pl.DataFrame(pl.from_arrow(schema.empty()))  # type: ignore[attr-defined]
    return pl.concat([empty, pl.DataFrame(rows, schema=empty.schema)])


def choose_survivors(
    rows: pl.DataFrame, classes: pl.DataFrame, edges: pl.DataFrame, config: SurvivorConfig
) -> pl.DataFrame:
    """SELECTION of `rows` in their order, which all passed the rules."""
    good = {"status": "ok", "score_status": "ok", "reason": None, "detail": None, "source": "web"}
    frame = rows.with_columns(**{name: pl.lit(value, pl.String) for name, value in good.items()})
    tables = (
        pa.Table.from_arrays(
            [
                frame.to_arrow()[name].cast(kind.type)
                for name, kind in zip(schema.arrow.names, schema.arrow, strict=True)
            ],
            schema=schema.arrow,
        )
        for frame, schema in ((classes, CLASS), (edges, EDGE))
    )
    asked = SelectConfig.model_validate({"rules": {"passes": "passes"} if "passes" in rows.columns else {}})
    found = select(
        frame, *tables, asked.model_copy(update={"survivors": config}), part_rows=max(4, len(rows) // 3)
    ).table
    selection = pl.DataFrame(pl.from_arrow(found.drop_columns(["merged_captions"])))
    return rows.select("key").join(selection, on="key", how="left", maintain_order="left")


def similarities(names: list[int], edges: list[tuple[tuple[int, int], float]]) -> np.ndarray:
    """The similarity of each two keys in one respect, 0 where they are no duplicates, by the definition."""
    near = np.zeros((14, 14), np.float32)
    for (left, right), similarity in edges:
        for one in (row for row in range(14) if names[row] == names[left]):
            for other in (row for row in range(14) if names[row] == names[right]):
                near[one, other] = near[other, one] = max(near[one, other], np.float32(similarity))
    near[np.equal.outer(names, names)] = 1
    return near


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(POLICIES),
    NAMES,
    EDGES,
    NAMES,
    EDGES,
    st.lists(st.integers(0, 13), unique=True),
    st.lists(st.sampled_from([0.1, 0.5, None]), min_size=14, max_size=14),
    st.sampled_from([None, 0.85]),
    st.sampled_from([1, 1, 2, 3]),
)
def test_greedy_cover_by_its_definition(
    policy: str,
    image_names: list[int],
    image_edges: list[tuple[tuple[int, int], float]],
    caption_names: list[int],
    caption_edges: list[tuple[tuple[int, int], float]],
    passing: list[int],
    scores: list[float | None],
    threshold: float | None,
    max_rows: int,
) -> None:
    counting = [[edge for edge in edges if edge[1] >= (threshold or 0)] for edges in (image_edges, caption_edges)]
    images, captions = similarities(image_names, counting[0]), similarities(caption_names, counting[1])
    near = {
        "image": images,
        "caption": captions,
        "pair": np.minimum(images, captions),
        "either": np.maximum(images, captions),
        "none": np.zeros((14, 14), np.float32),
    }[policy]
    rows = pl.DataFrame(
        {"key": KEYS, "clip_score": scores, "passes": [row in passing for row in range(14)]},
        schema_overrides={"clip_score": pl.Float32},
    )
    classes = class_rows(image_names, "pixels") + class_rows(caption_names, "caption_exact")
    edges = edge_rows(image_edges, "image_embedding") + edge_rows(caption_edges, "caption_minhash")
    thresholds = {"min_image_similarity": threshold, "min_caption_similarity": threshold}
    max_rows = 1 if policy in ("caption", "none") else max_rows
    config = SurvivorConfig(policy=policy, max_rows_per_image=max_rows, **thresholds)  # type: ignore[arg-type]
    found = choose_survivors(rows, frame(classes, CLASS), frame(edges, EDGE), config)

    best_first = sorted(passing, key=lambda row: (-(scores[row] if scores[row] is not None else -1), row))
    kept: list[int] = []
    wanted: dict[int, tuple[str | None, float | None]] = {}
    for row in best_first:
        named = []
        respects = {"image": [images], "caption": [captions], "either": [images, captions]}.get(policy, [near])
        for respect, allowed in zip(respects, (max_rows, 1), strict=False):
            of_row = [other for other in kept if respect[row, other] > 0]
            named += [(kept.index(of_row[0]), -respect[row, of_row[0]])] if len(of_row) >= allowed else []
        survivor, similarity = min(named, default=(None, None))
        wanted[row] = (None, None) if survivor is None else (KEYS[kept[survivor]], -similarity)
        if survivor is None:
            kept.append(row)
    assert found["reason"].to_list().count("passes") == 14 - len(passing)
    passing = sorted(passing)
    found = found.filter(rows["passes"])
    got = zip(found["survivor_key"].to_list(), found["similarity"].to_list(), strict=True)
    for row, (survivor_key, similarity) in zip(passing, got, strict=True):
        assert (survivor_key, similarity) == wanted[row]

    linked = np.maximum(images, captions) if policy in ("caption", "either") else images
    groups = {row: {row} for row in passing}
    for one, other in combinations(passing, 2):
        if linked[one, other] > 0:
            merged = groups[one] | groups[other]
            for row in merged:
                groups[row] = merged
    for row, group_key in zip(passing, found["group_key"].to_list(), strict=True):
        assert group_key == (KEYS[min(groups[row])] if len(groups[row]) > 1 else None)
    for row, reason in zip(passing, found["reason"].to_list(), strict=True):
        survivor_key = wanted[row][0]
        if policy != "either":
            assert reason == (f"duplicate_{policy}" if survivor_key else None)
        elif survivor_key:
            survivor = KEYS.index(survivor_key)
            full = sum(images[row, other] > 0 for other in kept if best_first.index(other) < best_first.index(row))
            by_image = images[row, survivor] >= captions[row, survivor] and full >= max_rows
            assert reason == ("duplicate_image" if by_image else "duplicate_caption")


def rows_of(num_rows: int) -> pl.DataFrame:
    return pl.DataFrame({"key": [f"{row:032x}" for row in range(num_rows)], "clip_score": np.linspace(0, 1, num_rows)})


@pytest.mark.parametrize("policy", ["image", "either"])
def test_a_class_of_many_copies_costs_its_rows(policy: str) -> None:
    # Spread as hashes are: rows are found again by the leading bits of their keys.
    keys = [f"{row * 2**64 // 200_000:016x}{row:016x}" for row in range(200_000)]
    rows = rows_of(200_000).with_columns(key=pl.Series(keys))
    classes = rows.select("key", kind=pl.lit("pixels"), class_key=pl.lit(keys[0]))
    config = SurvivorConfig(policy=policy)  # type: ignore[arg-type]
    found = choose_survivors(rows, classes, frame([], EDGE), config)
    assert found["survivor_key"].null_count() == 1
    assert found["survivor_key"][0] == rows["key"][-1]
    assert found["similarity"].min() == 1.0


def test_a_long_chain_keeps_every_other_row() -> None:
    rows = rows_of(2001)
    ends = rows["key"].to_list()
    edges = pl.DataFrame(
        {
            "phash_distance": pl.Series([None] * 2000, dtype=pl.Int16),
            "left_key": ends[:-1],
            "right_key": ends[1:],
            "kind": "image_embedding",
            "similarity": pl.Series([0.96] * 2000, dtype=pl.Float32),
            "against": pl.Series([None] * 2000, dtype=pl.String),
        }
    )
    found = choose_survivors(rows, frame([], CLASS), edges, SurvivorConfig())
    assert found["survivor_key"].is_null().to_list() == [row % 2 == 0 for row in range(2001)]
    assert set(found["group_key"]) == {ends[0]}


@pytest.mark.parametrize("prefer", ["clip_scor desc", "clip_score", "clip_score upwards"])
def test_a_preference_that_does_not_fit_is_named(prefer: str) -> None:
    with pytest.raises(ConfigError, match=r"select\.survivors\.prefer"):
        choose_survivors(rows_of(1), frame([], CLASS), frame([], EDGE), SurvivorConfig(prefer=(prefer,)))


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_union(num_nodes: int, edges: list[tuple[int, int]]) -> None:
    edges = [(left % num_nodes, right % num_nodes) for left, right in edges]
    ends = np.array(edges, np.int32).reshape(-1, 2)
    groups = [{node} for node in range(num_nodes)]
    for left, right in edges:
        merged = groups[left] | groups[right]
        for node in merged:
            groups[node] = merged
    labels = np.arange(num_nodes, dtype=np.int32)
    unite(labels, ends[:, 0], ends[:, 1])
    flatten(labels)
    assert labels.tolist() == [min(group) for group in groups]


def test_a_class_is_held_together_by_a_row_that_failed_a_rule() -> None:
    good = {"status": "ok", "reason": None, "detail": None, "score_status": "ok", "source": "web"}
    rows = pl.DataFrame([{"key": key, "clip_score": 0.1 if key == KEYS[0] else 0.5, **good} for key in KEYS[:3]],
                        schema_overrides={"reason": pl.String, "detail": pl.String})  # fmt: skip
    classes = CLASS.table({"key": KEYS[:3], "kind": ["pixels"] * 3, "class_key": [KEYS[0]] * 3})
    config = SelectConfig.model_validate({"rules": {"clip": "clip_score > 0.2"}})
    assert select(rows, classes, None, config).table["reason"].to_pylist() == ["clip", None, "duplicate_image"]


def test_an_edge_that_the_second_witness_is_too_far_for_does_not_count() -> None:
    rows = edge_rows([((0, 1), 0.99), ((2, 3), 0.99), ((4, 5), 0.99)], "image_embedding")
    for row, distance in zip(rows, (3, 9, None), strict=True):
        row["phash_distance"] = distance
    found = choose_survivors(rows_of(6), frame([], CLASS), frame(rows, EDGE), SurvivorConfig(max_phash_distance=5))
    assert found["survivor_key"].is_null().to_list() == [False, True, True, True, True, True]


@pytest.mark.parametrize("policy", ["image", "caption", "none"])
def test_what_an_edge_to_another_dataset_says_holds_for_all_copies(policy: str) -> None:
    """Whichever row speaks for a class, and whatever the policy compares."""
    rows = edge_rows([((1, 13), 0.9)], "caption_minhash", against="flickr30k")
    rows += edge_rows([((1, 12), 1.0)], "caption_exact", against="coco")
    classes = frame([{"key": KEYS[row], "kind": "caption_exact", "class_key": KEYS[1]} for row in (1, 2, 3)], CLASS)
    found = choose_survivors(rows_of(5), classes, frame(rows, EDGE), SurvivorConfig(policy=policy))
    assert found["reason"].to_list() == [None, *["contaminated"] * 3, None]
    assert set(found["rule_value"].to_list()[1:4]) == {f"coco {KEYS[12]}"}


def test_what_resembles_another_dataset_is_dropped_and_named() -> None:
    rows = edge_rows([((0, 13), 0.9), ((0, 12), 0.99), ((2, 11), 0.8)], "caption_minhash", against="flickr30k")
    found = choose_survivors(rows_of(3), frame([], CLASS), frame(rows, EDGE), SurvivorConfig())
    assert found["reason"].to_list() == ["contaminated", None, "contaminated"]
    assert found["rule_value"][0] == f"flickr30k {KEYS[12]}"
    assert found["similarity"].to_list()[0] == pytest.approx(0.99)
    assert found["survivor_key"].null_count() == 3
    assert found["verdict"].to_list() == ["dropped", "kept", "dropped"]
