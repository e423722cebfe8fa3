"""Arrays of npy files are what was saved, and damaged ones are told."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import CorruptObject
from dataengine.trainer.arrays import array_layout, decode_array

DTYPES = ("<f4", ">f4", "<f2", "|u1", "<i8", "|b1", "<c8", "<M8[s]", "|S3", "<U2")
SHAPES = ((2, 3), (3, 2), (4,), (), (0,), (1, 0, 2))


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def array_of(dtype: str, shape: tuple[int, ...], order: str, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 2, shape or (1,)).reshape(shape)
    return np.asarray(values.astype(dtype), order=order)  # type: ignore[call-overload]


@given(st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.sampled_from("CF"), st.integers(0, 99))
def test_an_array_is_what_was_saved(dtype: str, shape: tuple[int, ...], order: str, seed: int) -> None:
    wanted = array_of(dtype, shape, order, seed)
    content = npy(wanted)
    found, layout = decode_array(content), array_layout(content)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_array_equal(found, wanted)
    assert layout is not None
    assert (layout.dtype, layout.shape) == (wanted.dtype, wanted.shape)
    assert layout.begin + layout.nbytes == len(content)


def test_what_is_no_array_stays_bytes() -> None:
    content = b"PK\x03\x04 of torch.save"
    assert decode_array(content) is content
    assert array_layout(content) is None


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"


def crafted(descr: str, shape: str, payload: bytes) -> bytes:
    header = (HEADER % (descr, shape)).ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + payload


@pytest.mark.parametrize(
    "content",
    [
        crafted("<f4", "(6,)", bytes(20)),
        crafted("<f4", "(6,)", bytes(28)),
        crafted("<f4", f"({2**40}, {2**40})", bytes(24)),
        crafted("<f4", "(-1,)", bytes(24)) + b"x",
        crafted("|O", "(1,)", bytes(8)),
        crafted("nonsense", "(1,)", bytes(8)),
        crafted("<f4", "__import__", bytes(8)),
        crafted(",f4", "(6,)", bytes(24)),
        crafted("<,4", "(6,)", bytes(24)),
        crafted("M8[s/0]", "(3,)", bytes(24)),
        crafted("', 'descr': {'names': ['a'], 'formats': ['<f4'], 'offsets': [2**70]}, 'x': '", "(1,)", bytes(8)),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x02\x00" + (900_001).to_bytes(4, "little") + b"-" * 900_000 + b"1",
        b"\x93NUMPY\x02\x00" + (9_001).to_bytes(4, "little") + b"-" * 9_000 + b"1",
        b"\x93NUMPY\x02\x00" + (9_000).to_bytes(4, "little") + b"(" * 9_000,
    ],
)
def test_a_damaged_array_is_corrupt_and_takes_no_memory(content: bytes) -> None:
    with pytest.raises(CorruptObject, match="npy of"):
        decode_array(content)
