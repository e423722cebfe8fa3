from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.select import SurvivorConfig
from dataengine.errors import ConfigError
from dataengine.schemas import CLASS, EDGE
from dataengine.select.relations import components
from dataengine.select.survivors import choose_survivors

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
)
def test_greedy_cover_by_its_definition(
    policy: str,
    image_names: list[int],
    image_edges: list[tuple[tuple[int, int], float]],
    caption_names: list[int],
    caption_edges: list[tuple[tuple[int, int], float]],
    passing: list[int],
    scores: list[float | None],
) -> None:
    images, captions = similarities(image_names, image_edges), similarities(caption_names, caption_edges)
    near = {
        "image": images,
        "caption": captions,
        "pair": np.minimum(images, captions),
        "either": np.maximum(images, captions),
        "none": np.zeros((14, 14), np.float32),
    }[policy]
    rows = pl.DataFrame(
        {"key": [KEYS[row] for row in passing], "clip_score": [scores[row] for row in passing]},
        schema={"key": pl.String, "clip_score": pl.Float32},
    )
    classes = class_rows(image_names, "pixels") + class_rows(caption_names, "caption_exact")
    edges = edge_rows(image_edges, "image_embedding") + edge_rows(caption_edges, "caption_minhash")
    config = SurvivorConfig(policy=policy)  # type: ignore[arg-type]
    found = choose_survivors(rows, frame(classes, CLASS), frame(edges, EDGE), config)

    best_first = sorted(passing, key=lambda row: (-(scores[row] if scores[row] is not None else -1), row))
    kept: list[int] = []
    wanted: dict[int, tuple[str | None, float | None]] = {}
    for row in best_first:
        survivor = next((other for other in kept if near[row, other] > 0), None)
        wanted[row] = (None, None) if survivor is None else (KEYS[survivor], near[row, survivor])
        if survivor is None:
            kept.append(row)
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
            by_image = images[row, survivor] >= captions[row, survivor]
            assert reason == ("duplicate_image" if by_image else "duplicate_caption")


def rows_of(num_rows: int) -> pl.DataFrame:
    return pl.DataFrame({"key": [f"{row:032x}" for row in range(num_rows)], "clip_score": np.linspace(0, 1, num_rows)})


@pytest.mark.parametrize("policy", ["image", "either"])
def test_a_class_of_many_copies_costs_its_rows(policy: str) -> None:
    rows = rows_of(200_000)
    classes = rows.select("key", kind=pl.lit("pixels"), class_key=pl.lit(KEYS[0]))
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


def test_an_edge_to_another_dataset_drops_nothing_here() -> None:
    edges = frame(edge_rows([((0, 1), 0.99)], "image_embedding", against="imagenet"), EDGE)
    found = choose_survivors(rows_of(2), frame([], CLASS), edges, SurvivorConfig())
    assert found["survivor_key"].null_count() == 2


@pytest.mark.parametrize("prefer", ["clip_scor desc", "clip_score", "clip_score upwards"])
def test_a_preference_that_does_not_fit_is_named(prefer: str) -> None:
    with pytest.raises(ConfigError, match=r"select\.survivors\.prefer"):
        choose_survivors(rows_of(1), frame([], CLASS), frame([], EDGE), SurvivorConfig(prefer=(prefer,)))


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_components(num_nodes: int, edges: list[tuple[int, int]]) -> None:
    edges = [(left % num_nodes, right % num_nodes) for left, right in edges]
    ends = np.array(edges, np.int64).reshape(-1, 2)
    groups = [{node} for node in range(num_nodes)]
    for left, right in edges:
        merged = groups[left] | groups[right]
        for node in merged:
            groups[node] = merged
    assert components(num_nodes, ends[:, 0], ends[:, 1]).tolist() == [min(group) for group in groups]
