"""How many files this process may have open."""

from __future__ import annotations

import resource
import sys

_MANY_FILES = 65_536


def raise_file_limit() -> int:
    """How many files may be open, after asking the system for as many as it grants, up to 65,536.

    The usual 1,024 are for programs that use select(); 3,072 shards would be opened again for every other sample.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
    if soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # some systems have a limit beside the hard one
        return soft
    return wanted
