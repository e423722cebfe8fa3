"""What dedup found, in terms of the pool's rows: CLASS and EDGE in, a relation of images and one of captions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataengine.errors import LedgerError
from dataengine.select.keyed import ABSENT, KeyIndex, Keys
from dataengine.select.pool import Texts
from dataengine.select.relations import UNKNOWN_DISTANCE, Edges, Relation

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_KINDS = {"image_bytes": "image", "pixels": "image", "caption_exact": "caption"}
EDGE_KINDS = {"image_embedding": "image", "caption_minhash": "caption"}
Copies = tuple["NDArray[np.int32]", "NDArray[np.int32]"]


@dataclass(frozen=True)
class Duplicates:
    """Which rows of the pool are duplicates, and which are duplicates of something outside it."""

    images: Relation
    captions: Relation
    contaminated: Texts
    """Rows that resemble something of another dataset, and what it is."""


@dataclass
class DuplicatesBuilder:
    """Gathers the relations from tables in any order."""

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
            rows = table.filter(pc.equal(table.column("kind"), kind)) if respect in self.kinds else table.slice(0, 0)
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
        return Duplicates(self._relation("image"), self._relation("caption"), self._contaminated())

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

    def _contaminated(self) -> Texts:
        """One match of each row, the most similar; equal ones by the name of the match."""
        if not self._outside:
            return Texts(np.zeros(0, np.int64), pa.chunked_array([[]], pa.large_string()))
        table = pa.concat_tables(self._outside)
        rows = self.index.find(Keys.parse(table.column("left_key")), self.num_threads).astype(np.int64)
        table = table.append_column("row", pa.array(rows)).filter(pa.array(rows != ABSENT))
        order = [
            ("row", "ascending"),
            ("similarity", "descending"),
            ("against", "ascending"),
            ("right_key", "ascending"),
        ]
        table = table.sort_by(order)
        numbers = table.column("row").to_numpy()
        table = table.filter(pa.array(np.diff(numbers, prepend=-1) != 0))
        words = [
            f"{kind} of {key} in {against}, similarity={similarity:.4f}"
            for kind, key, against, similarity in zip(
                *(table.column(name).to_pylist() for name in ("kind", "right_key", "against", "similarity")),
                strict=True,
            )
        ]
        return Texts(table.column("row").to_numpy(), pa.chunked_array([words], pa.large_string()))


def _joined(parts: Sequence[Edges]) -> Edges:
    return Edges(
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.right for part in parts]),
        np.concatenate([part.similarity for part in parts]),
        np.concatenate([part.distance for part in parts]),
    )
