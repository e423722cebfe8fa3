"""The order of preference among duplicates: columns in turn, best first, then key.

Columns are packed into 64-bit words that compare as their values do, so that one sort of plain numbers does nearly all
the work; rows with equal words are few, and are put in order apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from dataengine.errors import ConfigError
from dataengine.sql import require_column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataengine.select.keyed import Keys

_WORD_BITS = 64
_SIGN_32, _SIGN_64 = np.uint32(1 << 31), np.uint64(1 << 63)


def preference(prefer: Sequence[str], columns: Sequence[str]) -> list[tuple[str, bool]]:
    """`prefer` as (column, descending); raises ConfigError for an unknown column or direction."""
    return [_preferred(text, columns) for text in prefer]


def _preferred(text: str, columns: Sequence[str]) -> tuple[str, bool]:
    where = f"select.survivors.prefer: {text!r}"
    name, _, direction = text.strip().rpartition(" ")
    if direction.lower() not in ("asc", "desc") or not name:
        raise ConfigError(f"{where}: wanted `column asc` or `column desc`")
    require_column(name.strip(), columns, where)
    return name.strip(), direction.lower() == "desc"


def best_first(
    order: Sequence[tuple[str, bool]], columns: pl.DataFrame, keys: Keys, rows: NDArray[np.integer]
) -> NDArray[np.int32]:
    """`rows` in order of preference, (column, descending) by (column, descending), then key; null comes last."""
    fields = [_field(columns[name].gather(rows), descending=downwards) for name, downwards in order]
    words = [*_packed(fields), keys.high[rows]]
    ranked = np.argsort(words[0])
    first = words[0][ranked]
    same = first[1:] == first[:-1]
    tied = np.flatnonzero(np.concatenate([[False], same]) | np.concatenate([same, [False]]))
    if len(tied):
        among = ranked[tied]
        ranked[tied] = among[np.lexsort([keys.low[rows[among]], *(word[among] for word in reversed(words))])]
    return rows[ranked].astype(np.int32)


def _field(values: pl.Series, *, descending: bool) -> tuple[NDArray[np.uint64], int]:
    """Numbers below 2^bits that are the smaller the better a value is, and these bits; null has the largest of all."""
    null = values.is_null().to_numpy()
    if values.dtype == pl.Float32:
        plain = values.fill_null(0).to_numpy() + np.float32(0)  # + 0: no minus zero
        bits = plain.view(np.uint32)
        numbers, size = np.where(bits & _SIGN_32, ~bits, bits | _SIGN_32).astype(np.uint64), 32
    elif values.dtype.is_float():
        bits = (values.cast(pl.Float64).fill_null(0).to_numpy() + 0.0).view(np.uint64)
        numbers, size = np.where(bits & _SIGN_64, ~bits, bits | _SIGN_64), 64
    else:  # whole numbers, flags and texts: by rank, of which there are no more than rows
        numbers = values.rank("dense").fill_null(0).cast(pl.UInt64).to_numpy()
        size = int(numbers.max(initial=0) + 1).bit_length()
    largest = np.uint64(2**size - 1)  # stands for no number: with floats, it would be NaN
    return np.where(null, largest, largest - np.uint64(1) - numbers if descending else numbers), size


def _packed(fields: Sequence[tuple[NDArray[np.uint64], int]]) -> Iterator[NDArray[np.uint64]]:
    """The fields side by side in as few words as hold them."""
    word, used = None, 0
    for numbers, size in fields:
        if word is not None and used + size <= _WORD_BITS:
            word, used = (word << np.uint64(size)) | numbers, used + size
            continue
        if word is not None:
            yield word
        word, used = numbers, size
    if word is not None:
        yield word
