"""Who is a duplicate of whom, as numbers: classes become labels of rows, and edges join labels.

Rows with one label are exact copies in some respect; an edge makes every row of one label a duplicate of every row of
the other, so a class of a million copies costs a million labels and no pairs. CLASS and EDGE rows in, relations out;
what the policies mean of them is said in `survivors.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.select.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN_DISTANCE = 127
"""Stands for a perceptual distance that nobody measured; more than any limit."""


@dataclass(frozen=True)
class Edges:
    """Pairs of near-duplicate rows: [edges] each."""

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    similarity: NDArray[np.float32]
    distance: NDArray[np.int8]
    """Hamming distance of the perceptual hashes, `UNKNOWN_DISTANCE` where there is none."""

    @staticmethod
    def none() -> Edges:
        """No edges."""
        rows = np.zeros(0, np.int32)
        return Edges(rows, rows, np.zeros(0, np.float32), np.zeros(0, np.int8))


@dataclass(frozen=True)
class Relation:
    """One respect in which rows are duplicates: they share a label, or an edge joins their labels.

    A label is the number of one of its rows. The edges of label `l` are at `starts[l]` to `starts[l + 1]` of the other
    columns, each edge once at either end.
    """

    labels: NDArray[np.int32]
    """[rows]"""
    starts: NDArray[np.int64]
    """[rows + 1]"""
    others: NDArray[np.int32]
    """Label at the other end: [2 × edges]; never the label itself."""
    similarity: NDArray[np.float32]
    distance: NDArray[np.int8]

    @staticmethod
    def build(num_rows: int, copies: tuple[NDArray[np.int32], NDArray[np.int32]], edges: Edges) -> Relation:
        """The relation of exact `copies` (two rows of one content each) and near-duplicates."""
        labels = np.arange(num_rows, dtype=np.int32)
        unite(labels, *copies)
        flatten(labels)
        return Relation.join(labels, labels[edges.left], labels[edges.right], edges)

    @staticmethod
    def join(labels: NDArray[np.int32], left: NDArray[np.int32], right: NDArray[np.int32], edges: Edges) -> Relation:
        """The relation of rows with `labels`, whose edges join the labels `left` and `right`."""
        starts, others, at = _adjacent(len(labels), left, right)
        return Relation(labels, starts, others, edges.similarity[at], edges.distance[at])

    @property
    def related(self) -> NDArray[np.bool_]:
        """Rows that have a duplicate of any kind: bool [rows]."""
        sizes = np.bincount(self.labels, minlength=len(self.labels))
        return (sizes[self.labels] > 1) | (np.diff(self.starts) > 0)[self.labels]


def both(images: Relation, captions: Relation, rows: NDArray[np.integer]) -> Relation:
    """Of `rows`, those that are duplicates in image and in caption; an edge is as similar as the lesser of the two.

    Other rows are duplicates of none.
    """
    nodes = pl.DataFrame({"row": rows.astype(np.int32), "image": images.labels[rows], "caption": captions.labels[rows]})
    first = nodes.group_by("image", "caption").agg(pl.col("row").min())
    labelled = nodes.join(first.rename({"row": "label"}), on=["image", "caption"])
    joined = (
        first.rename({"row": "left"})
        .join(_reachable(images, "image", first["image"]), on="image")
        .join(_reachable(captions, "caption", first["caption"]), on="caption")
        .join(
            first.rename({"image": "image_other", "caption": "caption_other", "row": "right"}),
            on=["image_other", "caption_other"],
        )
        .filter(pl.col("left") < pl.col("right"))
        .sort("left", "right")
    )
    labels = np.arange(len(images.labels), dtype=np.int32)
    labels[labelled["row"].to_numpy()] = labelled["label"].to_numpy()
    similarity = joined.select(pl.min_horizontal("image_similarity", "caption_similarity")).to_series()
    left, right = joined["left"].to_numpy(), joined["right"].to_numpy()
    distance = joined["image_distance"].to_numpy()
    return Relation.join(labels, left, right, Edges(left, right, similarity.to_numpy(), distance))


def _reachable(relation: Relation, name: str, wanted: pl.Series) -> pl.DataFrame:
    """Each of the `wanted` labels with itself, and with the labels that edges join it to."""
    labels = wanted.unique().to_numpy()
    counts = relation.starts[labels + 1] - relation.starts[labels]
    at = np.repeat(relation.starts[labels] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    ones, zeros = np.ones(len(labels), np.float32), np.zeros(len(labels), np.int8)
    return pl.DataFrame(
        {
            name: np.concatenate([labels, np.repeat(labels, counts)]),
            f"{name}_other": np.concatenate([labels, relation.others[at]]),
            f"{name}_similarity": np.concatenate([ones, relation.similarity[at]]),
            f"{name}_distance": np.concatenate([zeros, relation.distance[at]]),
        }
    )


@compiled
def unite(parents: NDArray[np.int32], left: NDArray[np.int32], right: NDArray[np.int32]) -> None:
    """Join the trees of each two rows in place: the smaller root stays one (union by index, paths halved)."""
    for at in range(len(left)):
        one, other = left[at], right[at]
        while parents[one] != one:
            parents[one] = parents[parents[one]]
            one = parents[one]
        while parents[other] != other:
            parents[other] = parents[parents[other]]
            other = parents[other]
        if one < other:
            parents[other] = one
        else:
            parents[one] = other


@compiled
def flatten(parents: NDArray[np.int32]) -> None:
    """Point every row at its root, in place. A root is smaller than what it stands for, so one pass does."""
    for row in range(len(parents)):
        parents[row] = parents[parents[row]]


@compiled
def _adjacent(
    num_rows: int, left: NDArray[np.int32], right: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Starts, labels at the other end and edge numbers, by label; edges within a label are left out."""
    starts = np.zeros(num_rows + 1, np.int64)
    for at in range(len(left)):
        if left[at] != right[at]:
            starts[left[at] + 1] += 1
            starts[right[at] + 1] += 1
    for row in range(num_rows):
        starts[row + 1] += starts[row]
    others = np.empty(starts[num_rows], np.int32)
    edges = np.empty(starts[num_rows], np.int64)
    nexts = starts[:-1].copy()
    for at in range(len(left)):
        one, other = left[at], right[at]
        if one != other:
            others[nexts[one]], edges[nexts[one]] = other, at
            nexts[one] += 1
            others[nexts[other]], edges[nexts[other]] = one, at
            nexts[other] += 1
    return starts, others, edges
