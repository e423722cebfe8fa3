"""Column names that people write in a config, looked up among the columns there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from dataengine.errors import ConfigError


def require_column(name: str, columns: Iterable[str], where: str) -> None:
    """Proves that `name` is one of `columns`; raises ConfigError with the closest match and the list."""
    known = sorted(columns)
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"{where}: no column {name!r}; {hint}columns are {', '.join(known)}")
