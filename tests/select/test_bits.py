"""Booleans as bytes, whatever their chunks, slices and nulls."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from dataengine.select.bits import unpacked

FLAGS = st.lists(st.sampled_from([True, False, None]), max_size=40)


@given(st.lists(FLAGS, max_size=4), st.integers(0, 50), st.integers(0, 160))
def test_every_flag_is_a_byte(chunks: list[list[bool | None]], begin: int, length: int) -> None:
    parts = [pl.Series("flag", chunk, pl.Boolean) for chunk in [[], *chunks]]
    flags = pl.concat([part.to_frame() for part in parts], rechunk=False).to_series().slice(begin, length)
    values, known = unpacked(flags)
    is_known = np.ones(len(flags), np.uint8) if known is None else known
    assert values.dtype == is_known.dtype == np.uint8
    assert len(values) == len(is_known) == len(flags)
    found = [bool(value) if there else None for value, there in zip(values, is_known, strict=True)]
    assert found == flags.to_list()
