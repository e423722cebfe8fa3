"""What a verification reports: a fault names the object, what was expected of it and what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from polars.exceptions import PanicException, PolarsError

from dataengine.errors import DataEngineError

UNREADABLE = (PolarsError, PanicException, DataEngineError, OSError)
"""What reading a broken table may raise; on some broken Parquet files Polars panics instead of refusing."""

Progress = Callable[[str, int, int], None]
"""Called with (what is being checked, how many are done, of how many)."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as published; `object` is a path in the version, and a key where one is meant."""

    object: str
    check: str
    expected: str
    found: str
