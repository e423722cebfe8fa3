"""Arrays of npy files, such as latents: one by one, or stacked while they are read.

In go contents, or views of them; out come arrays. Format: NumPy Enhancement Proposal 1.
"""

from __future__ import annotations

import ast
import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from dataengine.errors import CorruptObject
from dataengine.trainer.collate import stack
from dataengine.trainer.tarset import Content

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 10_000  # as NumPy's own: longer ones are attacks on the parser
_FAULTS = (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError)


class _Layout(NamedTuple):
    """What a header says; the values begin at byte `begin`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    begin: int

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def decode_array(content: Content) -> Any:
    """The array of an npy file, over its bytes and read-only; the bytes themselves where they are no npy file.

    Raises CorruptObject for an npy file that does not parse, or that holds Python objects.
    """
    if content[: len(_MAGIC)] != _MAGIC:
        return bytes(content)
    try:
        layout = _layout_of(content)
        values = np.frombuffer(content, layout.dtype, offset=layout.begin)
        return values.reshape(layout.shape, order=layout.order)
    except _FAULTS as error:
        raise CorruptObject(f"npy of {len(content)} bytes does not parse: {error}") from error


class ArrayColumn:
    """The column of a batch that the `count` arrays added to it are: what `decode_array` and `stack` make of them.

    Arrays of one header are copied to where they are stacked as soon as they are read, while they are in the
    processor's cache: a third of the time that decoding each and stacking all takes for 16 kB arrays.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._header, self._begin, self._nbytes, self._length, self._added = b"", 0, 0, -1, 0
        self._stacked: np.ndarray[Any, Any] | None = None
        self._memory = memoryview(b"")
        self._others: list[Any] = []

    def add(self, content: Content) -> None:
        """Append an array. Raises CorruptObject like `decode_array`."""
        begin = self._begin
        if len(content) != self._length or bytes(content[:begin]) != self._header:
            self._add_other(content)
            return
        at = self._added
        self._added = end = at + self._nbytes
        self._memory[at:end] = content[begin:]

    @property
    def value(self) -> Any:
        """The column, once all are added."""
        return stack(self._others) if self._stacked is None else self._stacked

    def _add_other(self, content: Content) -> None:
        """One that has another header than those before, or is the first."""
        array = decode_array(content)
        if not self._added and not self._others and isinstance(array, np.ndarray) and array.nbytes:
            layout = _layout_of(content)
            native = layout.dtype.isnative and layout.dtype.kind in "biufc" and layout.order == "C"
            if native and layout.begin + layout.nbytes == len(content):
                self._stacked = np.empty((self._count, *layout.shape), layout.dtype)
                self._memory = self._stacked.reshape(-1).view(np.uint8).data
                self._header, self._length = bytes(content[: layout.begin]), len(content)
                self._begin, self._nbytes = layout.begin, layout.nbytes
                self.add(content)
                return
        if self._stacked is not None:
            so_far = self._added // self._nbytes
            self._others = [self._stacked[number, ...] for number in range(so_far)]
            self._stacked, self._length = None, -1
        self._others.append(array)


def _layout_of(content: Content) -> _Layout:
    """Raises one of `_FAULTS`."""
    width = 2 if content[6:7] == b"\x01" else 4
    begin = 8 + width
    length = int.from_bytes(content[8:begin], "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes, wanted {_MAX_HEADER_BYTES} at most")
    end = begin + length
    return _Layout(*_parsed(bytes(content[begin:end])), end)


@lru_cache(maxsize=1024)
def _parsed(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """(dtype, shape, order): a set of latents has one header, and parsing it costs more than reading the array."""
    fields = ast.literal_eval(header.decode("latin-1").strip())
    dtype = np.dtype(fields["descr"])
    if dtype.hasobject:
        raise ValueError("holds Python objects, which would be executed to be read")
    return dtype, tuple(fields["shape"]), "F" if fields["fortran_order"] else "C"
