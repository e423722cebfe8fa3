"""What dedup found, in terms of the pool's rows: CLASS and EDGE in, a relation of images and one of captions out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.errors import LedgerError
from dataengine.select.keyed import ABSENT, KeyIndex, Keys
from dataengine.select.relations import UNKNOWN_DISTANCE, Edges, Relation

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_KINDS = {"image_bytes": "image", "pixels": "image", "caption_exact": "caption"}
EDGE_KINDS = {"image_embedding": "image", "caption_minhash": "caption"}
OUTSIDE_KINDS = CLASS_KINDS | EDGE_KINDS
"""Of edges to other datasets: exact copies there are edges, too."""
Copies = tuple["NDArray[np.int32]", "NDArray[np.int32]"]


@dataclass(frozen=True)
class Contaminated:
    """Rows of the pool that resemble something outside it, in their order: [rows] each."""

    rows: NDArray[np.int64]
    words: pa.ChunkedArray
    """The dataset and the key of what resembles it most."""
    similarity: NDArray[np.float32]


@dataclass(frozen=True)
class Duplicates:
    """Which rows of the pool are duplicates, and which are duplicates of something outside it."""

    images: Relation
    captions: Relation
    contaminated: Contaminated
    """Rows that resemble something of another dataset, and what it is."""


@dataclass
class DuplicatesBuilder:
    """Gathers the relations: first every EDGE table, then every CLASS table.

    What an edge to another dataset says of a class representative holds for all of its class, so classes are kept of
    the respects that such edges are in, too.
    """

    index: KeyIndex
    kinds: frozenset[str]
    """`image`, `caption`: what to look at; the other relation stays empty."""
    num_threads: int = 1
    _copies: dict[str, list[Copies]] = field(default_factory=lambda: {"image": [], "caption": []})
    _edges: dict[str, list[Edges]] = field(default_factory=lambda: {"image": [], "caption": []})
    _outside: list[pa.Table] = field(default_factory=list)

    def add_classes(self, table: pa.Table) -> None:
        """Take in CLASS rows. Raises LedgerError when one names a key that is no candidate's."""
        for kind, respect in CLASS_KINDS.items():
            rows = table.filter(pc.equal(table.column("kind"), kind)) if respect in self._wanted else table.slice(0, 0)
            if len(rows):
                self._copies[respect].append((self._find(rows, "key", "class"), self._find(rows, "class_key", "class")))

    def add_edges(self, table: pa.Table) -> None:
        """Take in EDGE rows. Raises LedgerError when one names a key that is no candidate's."""
        outside = pc.is_valid(table.column("against"))
        if pc.any(outside).as_py():
            self._outside.append(table.filter(outside))
            table = table.filter(pc.invert(outside))
        for kind, respect in EDGE_KINDS.items():
            rows = table.filter(pc.equal(table.column("kind"), kind)) if respect in self.kinds else table.slice(0, 0)
            if len(rows):
                distance = pc.fill_null(rows.column("phash_distance"), UNKNOWN_DISTANCE).cast(pa.int8())
                self._edges[respect].append(
                    Edges(
                        self._find(rows, "left_key", "edge"),
                        self._find(rows, "right_key", "edge"),
                        rows.column("similarity").to_numpy(),
                        distance.to_numpy(),
                    )
                )

    def finish(self) -> Duplicates:
        """The relations."""
        images, captions = self._relation("image"), self._relation("caption")
        return Duplicates(images, captions, self._contaminated({"image": images.labels, "caption": captions.labels}))

    @property
    def _wanted(self) -> frozenset[str]:
        kinds = {kind for table in self._outside for kind in pc.unique(table.column("kind")).to_pylist()}
        return self.kinds | {OUTSIDE_KINDS[kind] for kind in kinds}

    def _relation(self, respect: str) -> Relation:
        none = (np.zeros(0, np.int32), np.zeros(0, np.int32))
        copies = [none, *self._copies.pop(respect)]
        joined = (np.concatenate([left for left, _ in copies]), np.concatenate([right for _, right in copies]))
        return Relation.build(len(self.index.keys), joined, _joined([Edges.none(), *self._edges.pop(respect)]))

    def _find(self, table: pa.Table, column: str, name: str) -> NDArray[np.int32]:
        found = self.index.find(Keys.parse(table.column(column)), self.num_threads)
        if len(found) and found.min() == ABSENT:
            key = table.column(column)[int(np.argmin(found))]
            raise LedgerError(f"select: {name} names {column} {key}, which is no candidate of this run")
        return found

    def _contaminated(self, labels: Mapping[str, NDArray[np.int32]]) -> Contaminated:
        """The most similar match of each row or of its copies; equal ones by the name of the match."""
        met = [table for kind, respect in OUTSIDE_KINDS.items() for table in self._met(kind, labels[respect])]
        if not met:
            return Contaminated(np.zeros(0, np.int64), pa.chunked_array([[]], pa.string()), np.zeros(0, np.float32))
        order = [("similarity", "descending"), ("against", "ascending"), ("right_key", "ascending")]
        table = pa.concat_tables(met).sort_by([("row", "ascending"), *order])
        numbers = table.column("row").to_numpy()
        table = table.filter(pa.array(np.diff(numbers, prepend=-1) != 0))
        words = pc.binary_join_element_wise(table.column("against"), table.column("right_key"), " ")
        return Contaminated(table.column("row").to_numpy(), words, table.column("similarity").to_numpy())

    def _met(self, kind: str, labels: NDArray[np.int32]) -> Iterator[pa.Table]:
        """Of edges to other datasets, of one kind: row, similarity, against and right_key of all they speak for."""
        for table in self._outside:
            edges = table.filter(pc.equal(table.column("kind"), kind))
            found = self.index.find(Keys.parse(edges.column("left_key")), self.num_threads)
            edges = edges.filter(pa.array(found != ABSENT)).append_column(
                "label", pa.array(labels[found[found != ABSENT]])
            )
            rows = np.flatnonzero(np.isin(labels, edges.column("label").to_numpy()))
            copies = pa.table({"row": rows, "label": labels[rows]})
            met = copies.join(edges.select(["label", "similarity", "against", "right_key"]), "label", join_type="inner")
            yield met.select(["row", "similarity", "against", "right_key"])


def _joined(parts: Sequence[Edges]) -> Edges:
    return Edges(
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.similarity for part in parts]),
        np.concatenate([part.distance for part in parts]),
    )
