from __future__ import annotations

import io
import tracemalloc
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import InputError
from dataengine.score import embedding_file
from dataengine.score.embedding_file import EmbeddingFile, Units, unit_rows

DTYPES = ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g")


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version, allow_pickle=False)
    return buffer.getvalue()


def header(text: str) -> bytes:
    """A file of version 1.0 with any text as its header."""
    content = text.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


def told(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


def opened(content: bytes) -> EmbeddingFile:
    return EmbeddingFile.open(io.BytesIO(content), "set.npy")


def units_of(content: bytes, begin: int = 0, end: int | None = None) -> Units:
    file = io.BytesIO(content)
    found = EmbeddingFile.open(file, "set.npy")
    return found.units(file, begin, found.num_rows if end is None else end)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_floats_of_every_type_become_unit_vectors(dtype: str, version: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 16)).astype(dtype)
    found = units_of(npy(rows, version))
    wide = rows.astype(np.float64)
    wanted = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)
    assert found.rows.tolist() == list(range(9))
    np.testing.assert_allclose(found.embeddings.astype(np.float32), wanted.astype(np.float32), atol=1e-3)
    assert not found.unusable


@given(
    st.lists(st.sampled_from(["usable", "zero", "not_finite"]), max_size=30),
    st.integers(1, 7),
    st.integers(-320, 307),
    st.integers(0, 2**32),
)
def test_each_row_is_a_unit_vector_or_counted_by_its_reason(
    kinds: list[str], dim: int, exponent: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    directions = rng.choice([-1.0, 1.0], (len(kinds), dim)) * rng.uniform(0.5, 1, (len(kinds), dim))
    rows = directions * 10.0**exponent
    for row, kind in zip(rows, kinds, strict=True):
        if kind == "zero":
            row[:] = rng.choice([0.0, -0.0], dim)
        elif kind == "not_finite":
            row[rng.integers(dim)] = rng.choice([np.nan, np.inf, -np.inf])
    units, good, reasons = unit_rows(rows)
    assert good.tolist() == [kind == "usable" for kind in kinds]
    assert reasons == Counter(kind for kind in kinds if kind != "usable")
    assert np.linalg.norm(units.astype(np.float64), axis=1) == pytest.approx(np.ones(len(units)), abs=2e-3)
    if exponent > -300:  # below, float64 itself has few digits left
        wanted = directions[good] / np.linalg.norm(directions[good], axis=1, keepdims=True)
        np.testing.assert_allclose(units.astype(np.float64), wanted, atol=1e-3)


@pytest.mark.parametrize("block_floats", [1, 8, 20, 1000])
def test_blocks_and_ranges_change_nothing(monkeypatch: pytest.MonkeyPatch, block_floats: int) -> None:
    rows = np.random.default_rng(1).normal(size=(23, 4)).astype(np.float32)
    rows[[0, 7, 22]] = 0
    rows[9, 2] = np.nan
    content = npy(rows)
    whole = units_of(content)
    monkeypatch.setattr(embedding_file, "_BLOCK_FLOATS", block_floats)
    parts = [units_of(content, begin, min(begin + 10, 23)) for begin in range(0, 23, 10)]
    assert np.concatenate([part.rows for part in parts]).tolist() == whole.rows.tolist()
    assert np.concatenate([part.embeddings for part in parts]).tobytes() == whole.embeddings.tobytes()
    assert sum((part.unusable for part in parts), Counter()) == whole.unusable == {"zero": 3, "not_finite": 1}


def test_a_range_holds_its_result_and_a_block_of_rows(tmp_path: Path) -> None:
    dim, num_rows = 512, 65_536  # 128 MiB, of which a block is 8 MiB
    path = tmp_path / "set.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (num_rows, dim))[:] = 1
    with path.open("rb") as file:
        found = EmbeddingFile.open(file, "set.npy")
        tracemalloc.start()
        units = found.units(file, 0, num_rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < units.embeddings.nbytes + 2**26


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"\x93NUMPY\x09\x00\x02\x00{}",
        header("{'descr': '<f4', 'shape': (3, 4"),
        header("{'descr': '''<f4"),
        header("  x\n y"),
        header("(" * 5000),
        header("\0"),
        header("[]"),
        header("{}"),
        header(told("3")),
        header(told("(3, 4)", "'<f17'")),
        header(told("(3, 4)", "[('a',)]")),
        header(told("(3, 4)", "3")),
        header(told("(3, 4)", "None")),
        header(told("(3, 4)", "('<f4', (-1,))")),
    ],
)
def test_what_is_no_array_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match=r"set\.npy: .*np\.save|wanted floats"):
        opened(content)


@given(st.data())
@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@pytest.mark.filterwarnings("ignore:invalid:SyntaxWarning")
def test_damaged_headers_are_refused_or_read(data: st.DataObject) -> None:
    content = bytearray(npy(np.ones((3, 4), np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))
    with suppress(InputError):
        found = opened(bytes(content[:cut]))
        assert found.num_rows * found.dim * found.dtype.itemsize + found.offset == cut


@pytest.mark.parametrize(
    "shape", ["(1 << 60, 512)", "(1152921504606846976, 512)", f"({10**40}, 4)", "(4, 4)", "(2, 4)"]
)
def test_a_file_of_another_length_than_its_header_tells_is_refused(shape: str) -> None:
    with pytest.raises(InputError, match=r"set\.npy: (48 bytes after its header, wanted|not a readable)"):
        opened(header(told(shape)) + bytes(48))


@pytest.mark.parametrize("shape", ["(0, 4)", "(-3, 4)", f"({10**40}, 0)"])
def test_an_array_without_embeddings_is_refused(shape: str) -> None:
    with pytest.raises(InputError, match=r"set\.npy.*holds no embeddings"):
        opened(header(told(shape)))


@pytest.mark.parametrize(
    "array", [np.ones(8, np.float32), np.ones((2, 3, 4)), np.ones((3, 4), int), np.ones((3, 4), complex), np.float32(1)]
)
def test_other_shapes_and_types_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"set\.npy.*wanted floats \[rows, dim\]"):
        opened(npy(np.asarray(array)))


def test_other_dimensions_and_fortran_order_are_refused() -> None:
    with pytest.raises(InputError, match=r"float32 \[3, 4\], wanted floats \[rows, 5\]"):
        opened(npy(np.ones((3, 4), np.float32))).check_dim(5)
    with pytest.raises(InputError, match=r"Fortran.*ascontiguousarray"):
        opened(npy(np.asfortranarray(np.ones((3, 4)))))


def test_a_file_that_shrinks_is_refused() -> None:
    content = npy(np.ones((3, 4), np.float32))
    with pytest.raises(InputError, match=r"set\.npy: ends before row 3"):
        opened(content).units(io.BytesIO(content[:-1]), 0, 3)
