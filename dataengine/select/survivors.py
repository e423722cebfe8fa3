"""Survivors: which of a set of duplicates stay.

Decides by greedy cover in a total order: rows are taken best first, and a row is dropped exactly when a row
that stays is its duplicate. So there are no chains, and every dropped row names a survivor it really
resembles. Rows that passed the rules, CLASS and EDGE in; a verdict per row out. It does not know where the
edges came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.errors import ConfigError
from dataengine.select.columns import require_column
from dataengine.select.relations import NONE, Duplicates, Relation, both, components

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.config.select import SurvivorConfig

_REASONS = {
    "image": ("duplicate_image",),
    "caption": ("duplicate_caption",),
    "pair": ("duplicate_pair",),
    "either": ("duplicate_image", "duplicate_caption"),
    "none": (),
}
_VERDICT = pl.Schema({"group_key": pl.String, "survivor_key": pl.String, "similarity": pl.Float32, "reason": pl.String})


def choose_survivors(
    rows: pl.DataFrame, classes: pl.DataFrame, edges: pl.DataFrame, config: SurvivorConfig
) -> pl.DataFrame:
    """group_key, survivor_key, similarity and reason per row, in row order; null for a row without duplicate.

    `rows` holds `key` and the columns that `config.prefer` names, of rows that passed every rule; `classes`
    and `edges` are CLASS and EDGE. `survivor_key` is null for a row that stays. `group_key` is the smallest
    key that row is connected to by its image, or by what the policy compares, whether or not any of them
    was dropped.
    """
    order = preference(config.prefer, rows.columns)
    duplicates = Duplicates.read(classes, edges)
    wanted = list(dict.fromkeys(["key", *(name for name, _ in order)]))
    numbered = rows.select(wanted).with_row_index("place").join(duplicates.keys, on="key")
    ranked = numbered.sort(
        [*(name for name, _ in order), "key"],
        descending=[*(downwards for _, downwards in order), False],
        nulls_last=True,
    )
    verdict = _judge(ranked["key"], ranked["code"].to_numpy(), duplicates, config.policy)
    every_row = rows.select("key").with_row_index("place")
    judged = every_row.join(verdict.with_columns(ranked["place"]), on="place", how="left", maintain_order="left")
    return judged.select(_VERDICT.names())


def preference(prefer: Sequence[str], columns: Sequence[str]) -> list[tuple[str, bool]]:
    """`prefer` as (column, descending); raises ConfigError for an unknown column or direction."""
    return [_preferred(text, columns) for text in prefer]


def _preferred(text: str, columns: Sequence[str]) -> tuple[str, bool]:
    where = f"select.survivors.prefer: {text!r}"
    name, _, direction = text.strip().partition(" ")
    if direction.strip().lower() not in ("asc", "desc"):
        raise ConfigError(f"{where}: wanted `column asc` or `column desc`")
    require_column(name, columns, where)
    return name, direction.strip().lower() == "desc"


def _judge(keys: pl.Series, codes: NDArray[np.int64], duplicates: Duplicates, policy: str) -> pl.DataFrame:
    """The verdict on rows in order of preference."""
    images, captions = duplicates.images(codes), duplicates.captions(codes)
    relations = {
        "image": [images],
        "caption": [captions],
        "pair": [both(images, captions)] if policy == "pair" else [],
        "either": [images, captions],
        "none": [],
    }[policy]
    survivors, similarity, respects = cover(relations, len(keys))
    dropped = survivors != np.arange(len(keys))
    reasons = pl.Series([*_REASONS[policy], None], dtype=pl.String)
    linked = [images, captions] if policy in ("caption", "either") else [images]
    return pl.DataFrame(
        {
            "group_key": _group_keys(linked, codes, duplicates.keys["key"]),
            "survivor_key": keys.gather(survivors),
            "similarity": similarity,
            "reason": reasons.gather(np.where(dropped, respects, len(reasons) - 1)),
        },
        schema=_VERDICT,
    ).with_columns(
        pl.when(pl.Series(dropped)).then("survivor_key").alias("survivor_key"),
        pl.when(pl.Series(dropped)).then("similarity").alias("similarity"),
    )


def cover(
    relations: Sequence[Relation], num_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Each row's survivor (its own number if it stays), the similarity to it, and the relation that says so.

    Rows are numbered best first. Equal to walking them in order, done in rounds: a row better than all its
    undecided duplicates stays, and these are dropped (the lexicographically first maximal independent set,
    Blelloch et al. 2012). Among several surviving duplicates a row yields to the best.
    """
    ranks = np.arange(num_rows, dtype=np.int64)
    kept = np.full(num_rows, NONE)
    undecided, active = ranks, list(relations)
    while len(undecided):
        best = _nearest(active, undecided)
        stays = undecided[best == undecided]
        kept[stays] = stays
        left_over = _nearest(active, np.where(best == undecided, undecided, NONE)) == NONE
        undecided, active = undecided[left_over], [relation.narrowed(left_over) for relation in active]
    survivors = _nearest(relations, kept)
    if not relations:
        return survivors, np.ones(num_rows, np.float32), np.zeros(num_rows, np.int64)
    similarities = np.array([relation.similarity_to(survivors, kept) for relation in relations])
    return survivors, similarities.max(axis=0), similarities.argmax(axis=0)


def _nearest(relations: Sequence[Relation], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    nearest = ranks
    for relation in relations:
        nearest = np.minimum(nearest, relation.nearest(ranks))
    return nearest


def _group_keys(relations: Sequence[Relation], codes: NDArray[np.int64], keys: pl.Series) -> pl.Series:
    """The smallest key in each row's connected component, null where the row is alone in it."""
    offsets = np.cumsum([0, *(relation.num_labels for relation in relations)])
    first = relations[0].labels
    left, right = [], []
    for relation, offset in zip(relations, offsets, strict=False):
        left += [relation.left + offset, first]  # a row ties its labels in all respects together
        right += [relation.right + offset, relation.labels + offset]
    groups = components(int(offsets[-1]), np.concatenate(left), np.concatenate(right))[first]
    smallest = np.full(int(offsets[-1]), NONE)
    np.minimum.at(smallest, groups, codes)
    shared = np.bincount(groups, minlength=1)[groups] > 1
    named = pl.concat([keys, pl.Series([None], dtype=pl.String)])
    return named.gather(np.where(shared, smallest[groups], len(named) - 1))
