"""Who is a duplicate of whom, as numbers: classes become labels, and edges join labels.

Decides what the policies mean. Rows with one label are exact copies in some respect; an edge makes every
row of one label a duplicate of every row of the other, so a class of a million copies costs a million
labels and no pairs. CLASS and EDGE rows in, relations out; who survives is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_CLASSES = ("image_bytes", "pixels")
CAPTION_CLASSES = ("caption_exact",)
NONE = np.iinfo(np.int64).max
"""Stands for no rank."""


@dataclass(frozen=True)
class Relation:
    """One respect in which rows are duplicates: they share a label, or an edge joins their labels."""

    labels: NDArray[np.int64]
    """[rows]"""
    left: NDArray[np.int64]
    """Label at one end of each edge: [edges]; never the label at the other end."""
    right: NDArray[np.int64]
    similarity: NDArray[np.float32]
    """[edges]"""
    num_labels: int

    def nearest(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The lowest of `ranks` (`NONE` for no rank) among each row and its duplicates: int64 [rows]."""
        return self._spread(self._lowest(ranks))[self.labels]

    def similarity_to(self, survivors: NDArray[np.int64], ranks: NDArray[np.int64]) -> NDArray[np.float32]:
        """How similar each row is to its survivor (a rank), -1 where this relation does not join them."""
        own = self._lowest(ranks)
        best = self._spread(own)
        similarity = np.where(own == best, np.float32(1), np.float32(-1))
        for here, there in ((self.left, self.right), (self.right, self.left)):
            leads = own[there] == best[here]
            np.maximum.at(similarity, here[leads], self.similarity[leads])
        return np.where(best[self.labels] == survivors, similarity[self.labels], np.float32(-1))

    def narrowed(self, rows: NDArray[np.bool_]) -> Relation:
        """The relation among some rows only, its labels numbered anew."""
        names, labels = np.unique(self.labels[rows], return_inverse=True)
        number = np.full(self.num_labels, -1)
        number[names] = np.arange(len(names))
        left, right = number[self.left], number[self.right]
        there = (left >= 0) & (right >= 0)
        return Relation(labels, left[there], right[there], self.similarity[there], len(names))

    def _lowest(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        lowest = np.full(self.num_labels, NONE)
        np.minimum.at(lowest, self.labels, ranks)
        return lowest

    def _spread(self, own: NDArray[np.int64]) -> NDArray[np.int64]:
        lowest = own.copy()
        np.minimum.at(lowest, self.left, own[self.right])
        np.minimum.at(lowest, self.right, own[self.left])
        return lowest


@dataclass(frozen=True)
class Duplicates:
    """CLASS and EDGE with their keys as numbers, in key order."""

    keys: pl.DataFrame
    """key, code: every key that has a copy or a neighbour."""
    classes: pl.DataFrame
    """kind, left, right: codes of a member and its class key."""
    edges: pl.DataFrame
    """kind, left, right, similarity: codes of the ends."""

    @staticmethod
    def read(classes: pl.DataFrame, edges: pl.DataFrame) -> Duplicates:
        """CLASS and EDGE, without edges to another dataset: their survivor is not in this run."""
        inside = edges.filter(pl.col("against").is_null())
        columns = [classes["key"], classes["class_key"], inside["left_key"], inside["right_key"]]
        keys = pl.concat([column.alias("key") for column in columns]).unique().sort().to_frame()
        keys = keys.with_columns(pl.int_range(pl.len()).alias("code"))
        members = _coded(classes.rename({"key": "left", "class_key": "right"}), keys)
        pairs = _coded(inside.rename({"left_key": "left", "right_key": "right"}), keys)
        return Duplicates(keys, members, pairs.select("kind", "left", "right", "similarity"))

    def images(self, codes: NDArray[np.int64]) -> Relation:
        """Rows with equal bytes or pixels, or near-duplicate images."""
        return self._relation(codes, IMAGE_CLASSES, "image_embedding")

    def captions(self, codes: NDArray[np.int64]) -> Relation:
        """Rows with equal or near-duplicate captions."""
        return self._relation(codes, CAPTION_CLASSES, "caption_minhash")

    def _relation(self, codes: NDArray[np.int64], kinds: tuple[str, ...], edge_kind: str) -> Relation:
        copies = self.classes.filter(pl.col("kind").is_in(kinds))
        labels = components(len(self.keys), copies["left"].to_numpy(), copies["right"].to_numpy())
        edges = self.edges.filter(pl.col("kind") == edge_kind)
        left, right = labels[edges["left"].to_numpy()], labels[edges["right"].to_numpy()]
        apart = left != right
        similarity = edges["similarity"].to_numpy()[apart]
        every_key = Relation(labels, left[apart], right[apart], similarity, len(labels))
        # Only rows that passed the rules count, so a label without one joins nothing.
        present = np.zeros(len(labels), np.bool_)
        present[codes] = True
        alive = every_key.narrowed(present)
        place = np.cumsum(present) - 1
        return Relation(alive.labels[place[codes]], alive.left, alive.right, alive.similarity, alive.num_labels)


def _coded(frame: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    for end in ("left", "right"):
        frame = frame.join(keys.rename({"key": end}), on=end).drop(end).rename({"code": end})
    return frame


def both(images: Relation, captions: Relation) -> Relation:
    """Rows that are duplicates in image and in caption; the similarity is the lesser of the two."""
    rows = pl.DataFrame({"image": images.labels, "caption": captions.labels})
    nodes = rows.unique().sort("image", "caption").with_columns(pl.int_range(pl.len()).alias("label"))
    ends = nodes.rename({"image": "image_right", "caption": "caption_right", "label": "right"})
    joined = (
        nodes.rename({"label": "left"})
        .join(_reachable(images, "image"), on="image")
        .join(_reachable(captions, "caption"), on="caption")
        .join(ends, on=["image_right", "caption_right"])
        .filter(pl.col("left") < pl.col("right"))
    )
    similarity = joined.select(pl.min_horizontal("image_similarity", "caption_similarity")).to_series()
    labels = rows.join(nodes, on=["image", "caption"], maintain_order="left")["label"].to_numpy()
    return Relation(labels, joined["left"].to_numpy(), joined["right"].to_numpy(), similarity.to_numpy(), len(nodes))


def _reachable(relation: Relation, name: str) -> pl.DataFrame:
    """Every label with itself, and with the labels that edges join it to."""
    itself = np.unique(relation.labels)
    return pl.DataFrame(
        {
            name: np.concatenate([itself, relation.left, relation.right]),
            f"{name}_right": np.concatenate([itself, relation.right, relation.left]),
            f"{name}_similarity": np.concatenate(
                [np.ones(len(itself), np.float32), relation.similarity, relation.similarity]
            ),
        }
    )


def components(num_nodes: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest node that each node is connected to: int64 [num_nodes].

    Roots are hooked onto smaller roots, then paths halved, until no edge joins two trees (Shiloach and
    Vishkin 1982): a few passes over the arrays whatever the shape.
    """
    parents = np.arange(num_nodes, dtype=np.int64)
    while True:
        here, there = parents[left], parents[right]
        joins = here != there
        if not joins.any():
            return parents
        np.minimum.at(parents, np.maximum(here, there)[joins], np.minimum(here, there)[joins])
        while not np.array_equal(grandparents := parents[parents], parents):
            parents = grandparents
