"""A column of npy files is what decoding each and stacking all gives, whatever their headers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import CorruptObject
from dataengine.trainer.arrays import ArrayColumn, decode_array
from dataengine.trainer.collate import stack

DTYPES = ("<f4", ">f4", "<f2", "|u1", "<i8", "|b1", "<c8", "<M8[s]", "|S3", "<U2")
SHAPES = ((2, 3), (3, 2), (4,), (), (0,), (1, 0, 2))


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def array_of(dtype: str, shape: tuple[int, ...], order: str, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 2, shape or (1,)).reshape(shape)
    return np.asarray(values.astype(dtype), order=order)  # type: ignore[call-overload]


KINDS = st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.sampled_from("CF"))


@given(st.lists(KINDS, min_size=1, max_size=3), st.lists(st.integers(0, 2), min_size=1, max_size=9), st.booleans())
def test_a_column_is_what_stacking_gives(
    kinds: list[tuple[str, tuple[int, ...], str]], picks: list[int], view: bool
) -> None:
    contents = [npy(array_of(*kinds[pick % len(kinds)], seed)) for seed, pick in enumerate(picks)]
    column = ArrayColumn(len(contents))
    for content in contents:
        column.add(memoryview(content) if view else content)
    found, wanted = column.value, stack([decode_array(content) for content in contents])
    assert type(found) is type(wanted)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("place", range(4))
def test_what_is_no_array_stays_bytes_among_arrays(place: int) -> None:
    contents = [npy(np.arange(6, dtype=np.float32))] * 3
    contents.insert(place, b"PK\x03\x04 of torch.save")
    column = ArrayColumn(4)
    for content in contents:
        column.add(memoryview(content))
    assert column.value[place] == contents[place]
    assert isinstance(column.value[place], bytes)
    assert all(np.array_equal(column.value[other], np.arange(6)) for other in range(4) if other != place)


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
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x02\x00" + (900_001).to_bytes(4, "little") + b"-" * 900_000 + b"1",
        b"\x93NUMPY\x02\x00" + (9_001).to_bytes(4, "little") + b"-" * 9_000 + b"1",
        b"\x93NUMPY\x02\x00" + (9_000).to_bytes(4, "little") + b"(" * 9_000,
    ],
)
@pytest.mark.parametrize("after", [0, 2])
def test_a_damaged_array_is_corrupt_and_takes_no_memory(content: bytes, after: int) -> None:
    column = ArrayColumn(3)
    for _ in range(after):
        column.add(npy(np.arange(6, dtype=np.float32)))
    with pytest.raises(CorruptObject, match="npy of"):
        column.add(content)


def test_a_header_alike_but_for_a_byte_is_not_taken_for_the_same() -> None:
    floats = np.arange(4, dtype=np.float32)
    column = ArrayColumn(2)
    column.add(npy(floats))
    column.add(npy(floats.view(np.int32)))
    assert [one.dtype for one in column.value] == [np.float32, np.int32]


def test_arrays_without_axes_stay_arrays_when_one_is_padded_otherwise() -> None:
    one = npy(np.float32(3))
    header = one[10:-4].rstrip() + b" " * 64
    other = one[:8] + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + one[-4:]
    column = ArrayColumn(3)
    for content in (one, one, other):
        column.add(content)
    assert column.value.tolist() == [3, 3, 3]
