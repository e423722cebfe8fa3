"""Which texts a part must be scored with, and the cosine of each with its image.

Captions repeat within a part and rows lack some, so what the text tower sees is the unique texts, and an
index leads back to the rows. It knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

PRIMARY = "caption"
"""The name of the primary caption among the names of captions."""


@dataclass(frozen=True)
class Captions:
    """The texts of a part: `unique` by first use, and for each name the row's place among them, or -1."""

    unique: list[str]
    rows: dict[str, NDArray[np.int64]]
    """Caption name → int64 [rows]."""


def gather_captions(candidates: pa.Table, names: Sequence[str]) -> Captions:
    """The captions called `names` (`caption`: the primary one) of CANDIDATE rows; blank ones are missing."""
    columns = [_texts(candidates, name) for name in names]
    encoded = pa.concat_arrays([*columns, pa.array([], pa.string())]).dictionary_encode()
    places = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy()
    rows = places.reshape(len(names), len(candidates))
    return Captions(encoded.dictionary.to_pylist(), dict(zip(names, rows, strict=True)))


def cosine(image: NDArray[np.float32], text: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row by row the cosine of unit vectors [n, dim] and [n, dim]: float32 [n], within [-1, 1].

    Summed in float64 without BLAS, so that the bits depend on neither threads nor neighbours.
    """
    dots = np.einsum("nd,nd->n", image, text, dtype=np.float64)
    return np.clip(dots, -1.0, 1.0).astype(np.float32)


def _texts(candidates: pa.Table, name: str) -> pa.Array:
    if name == PRIMARY:
        texts = candidates.column("caption").combine_chunks()
    else:
        texts = pc.map_lookup(candidates.column("captions").combine_chunks(), pa.scalar(name), "first")
    is_blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
    return pc.if_else(is_blank, pa.scalar(None, pa.string()), texts)
