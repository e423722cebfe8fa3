"""Compiles loops over rows to machine code, for what no column operation does: unions, look-ups, greedy cover.

numba is imported when the first such function is needed, and keeps the machine code beside the source or, where that
cannot be written, in the user's cache; where neither can, each process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` as machine code, which runs without the interpreter's lock."""
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no folder that a cache could be written to
        return cast(Function, numba.njit(nogil=True)(function))
