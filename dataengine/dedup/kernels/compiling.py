"""How kernels are compiled: to machine code on their first call, without the interpreter's lock, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function, any_order: bool = False) -> _Function:
    """`function` as machine code. Integers wrap; an index out of bounds is not checked, so callers prove sizes.

    The code is kept beside the source, else in the user's cache folder; where neither can be written (a read-only
    image without a home) it is compiled once per process.
    """
    fastmath = {"reassoc"} if any_order else False
    try:
        return njit(function, cache=True, nogil=True, error_model="numpy", fastmath=fastmath)
    except RuntimeError:  # numba: no locator available
        return njit(function, nogil=True, error_model="numpy", fastmath=fastmath)


def summing(function: _Function) -> _Function:
    """As `compiled`; sums of floats may be taken in any order, so that they use all lanes of a register."""
    return compiled(function, any_order=True)


def inlined(function: _Function) -> _Function:
    """A small helper of other kernels, compiled into each of them."""
    return njit(function, nogil=True, inline="always", error_model="numpy")
