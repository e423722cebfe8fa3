from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.dedup.bands import band_hashes, bucket_rows, hot_bands
from dataengine.dedup.caption_edges import caption_edges
from dataengine.dedup.minhash import signatures
from dataengine.keys import url_keys
from dataengine.schemas import EDGE

WORDS = ["red", "barn", "snow", "old", "boat", "harbour", "night", "cat", "window", "green"]


def captions_like(rng: np.random.Generator, num_captions: int) -> list[str]:
    """Distinct captions, half of them one word away from another."""
    made: list[str] = []
    while len(made) < num_captions:
        if made and rng.random() < 0.5:
            words = rng.choice(made).split()
            words[rng.integers(len(words))] = str(rng.choice(WORDS))
        else:
            words = rng.choice(WORDS, rng.integers(1, 12)).tolist()
        made.append(" ".join(words))
    return sorted(set(made))


def similarity(one: str, other: str, size: int) -> float:
    first, second = ({text[at : at + size] for at in range(len(text) - size + 1)} for text in (one, other))
    return len(first & second) / len(first | second) if first and second else 0.0


def search(captions: list[str], config: CaptionDedupConfig, order: np.ndarray | None = None) -> tuple[pa.Table, int]:
    """Every bucket's edges, put together as the stage does."""
    rows = pa.array(captions, pa.string())
    keys = pa.array(url_keys("s", captions), pa.string())
    if order is not None:
        rows, keys = rows.take(order), keys.take(order)
    hashes = band_hashes(signatures(rows, config, 1), config.num_bands)
    routed, buckets = bucket_rows(hashes, config.num_buckets)
    parts = [routed[buckets == bucket] for bucket in range(config.num_buckets)]
    hot = np.concatenate(
        [hot_bands(hashes[part], bucket, config.num_buckets, config.max_degree) for bucket, part in enumerate(parts)]
    )
    found = [
        caption_edges(keys.take(part), rows.take(part), hashes[part], bucket, hot, config, 1)
        for bucket, part in enumerate(parts)
    ]
    edges = pa.concat_tables([each.edges for each in found])
    return edges.sort_by([("left_key", "ascending"), ("right_key", "ascending")]), sum(
        each.num_capped for each in found
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.integers(0, 60), st.integers(1, 7), st.sampled_from([2, 3, 50]))
def test_order_and_buckets_do_not_matter(seed: int, size: int, num_buckets: int, max_degree: int) -> None:
    rng = np.random.default_rng(seed)
    captions = captions_like(rng, size)
    shape = {"min_similarity": 0.6, "max_degree": max_degree, "num_perm": 64, "num_bands": 16}
    edges, capped = search(captions, CaptionDedupConfig(**shape, num_buckets=1))
    again, capped_again = search(
        captions, CaptionDedupConfig(**shape, num_buckets=num_buckets), rng.permutation(len(captions))
    )
    assert again.equals(edges)
    assert capped_again == capped
    assert len(edges.group_by(["left_key", "right_key"]).aggregate([])) == len(edges), "each pair once"


def test_equals_brute_force_up_to_the_recall_of_banding() -> None:
    captions = captions_like(np.random.default_rng(5), 400)
    config = CaptionDedupConfig(min_similarity=0.8, num_buckets=3)
    texts = dict(zip(url_keys("s", captions), captions, strict=True))
    edges, _ = search(captions, config)
    EDGE.check(edges)
    found = {(row["left_key"], row["right_key"]): row["similarity"] for row in edges.to_pylist()}
    true = {
        pair: similarity(texts[pair[0]], texts[pair[1]], 5)
        for pair in combinations(sorted(texts), 2)
        if similarity(texts[pair[0]], texts[pair[1]], 5) >= 0.8
    }
    assert len(true) > 30
    assert set(found) <= set(true), "nothing below the threshold"
    assert len(found) >= 0.99 * len(true)
    assert all(value == pytest.approx(true[pair]) for pair, value in found.items())


@pytest.mark.parametrize("text", ["", "cat", "語語", "🔥"])
def test_short_captions_have_no_neighbours(text: str) -> None:
    edges, _ = search([text + suffix for suffix in ("", "a", "b")], CaptionDedupConfig(min_similarity=0.1))
    assert len(edges) == 0


def test_a_dense_neighbourhood_is_bounded_and_counted() -> None:
    captions = [f"a very long boilerplate caption about a product, number {number:03}" for number in range(300)]
    edges, capped = search(captions, CaptionDedupConfig(max_degree=4))
    assert capped == 300
    assert 300 * 4 * 0.9 <= len(edges) <= 300 * 4 * 32
