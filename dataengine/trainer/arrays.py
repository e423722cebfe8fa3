"""Arrays of npy files, such as latents: what their headers say, and arrays over their bytes.

Format: NumPy Enhancement Proposal 1.
"""

from __future__ import annotations

import ast
import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from dataengine.errors import CorruptObject

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 10_000  # as NumPy's own: longer ones are attacks on the parser
_FAULTS = (ValueError, KeyError, TypeError, MemoryError, ArithmeticError)


class Layout(NamedTuple):
    """What a header says; the values begin at byte `begin`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    begin: int

    @property
    def nbytes(self) -> int:
        """Of the values."""
        return self.dtype.itemsize * math.prod(self.shape)


def decode_array(content: bytes) -> Any:
    """The array of an npy file, over its bytes and read-only; the bytes themselves where they are no npy file.

    Raises CorruptObject for an npy file that does not parse, or that holds Python objects.
    """
    layout = array_layout(content)
    if layout is None:
        return content
    try:
        values = np.frombuffer(content, layout.dtype, offset=layout.begin)
        return values.reshape(layout.shape, order=layout.order)
    except _FAULTS as error:
        raise _unparsed(content, error) from error


def array_layout(content: bytes) -> Layout | None:
    """What the header of an npy file says, None where it is none; raises CorruptObject like `decode_array`."""
    if content[: len(_MAGIC)] != _MAGIC:
        return None
    begin = 10 if content[6:7] == b"\x01" else 12
    length = int.from_bytes(content[8:begin], "little")
    if length > _MAX_HEADER_BYTES:
        raise _unparsed(content, f"a header of {length} bytes, wanted {_MAX_HEADER_BYTES} at most")
    end = begin + length
    try:
        return Layout(*_parsed(content[begin:end]), end)
    except _FAULTS as error:
        raise _unparsed(content, error) from error


def _unparsed(content: bytes, fault: object) -> CorruptObject:
    return CorruptObject(f"npy of {len(content)} bytes does not parse: {fault}")


@lru_cache(maxsize=1024)
def _parsed(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """(dtype, shape, order): a set of latents has one header, and parsing it costs more than reading the array."""
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
        if "/" in repr(fields["descr"]):  # NumPy divides by the 0 of "M8[s/0]", which ends the process
            raise ValueError
        dtype = np.dtype(fields["descr"])
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # whose texts hold addresses
        raise ValueError(f"its header says nothing that NumPy knows: {header[:200]!r}") from None
    if dtype.hasobject:
        raise ValueError("holds Python objects, which would be executed to be read")
    return dtype, tuple(fields["shape"]), "F" if fields["fortran_order"] else "C"
