"""The standing take-downs of a root: lists of what must not be published again, by any run, under any name.

    takedowns/000001.txt, takedowns/000002.txt, ...

Lists are create-once and numbered without gaps, so that all of them are found by probing upward, and whoever registers
one has seen those before it. Lines are those of a block-list (`dataengine.select.blocklist`). Nothing here reads them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable

from dataengine.errors import MissingObject
from dataengine.storage.store import Root

TAKEDOWN = "takedown"
"""The reason of what is on one of them, and the rule that stands before all others where there are some."""
RETIRED = "retired.json"
"""Lies beside the manifest of a version whose files were deleted, and names the one to be read instead."""


def standing_lists(root: Root) -> dict[str, str]:
    """Path → SHA-256 of every registered list, in the order of registration."""
    found: dict[str, str] = {}
    while True:
        path = _path(len(found) + 1)
        try:
            found[path] = _sha256(root, path)
        except MissingObject:
            return found


def register_list(root: Root, headline: str, content: Callable[[], str]) -> str:
    """The path of the list that begins with the line `headline`; made of `content` when there is none yet."""
    number, made = 1, b""
    first = f"{headline}\n".encode()
    while True:
        path = _path(number)
        try:
            stored = root.get(path)
        except MissingObject:
            made = made or first + content().encode()
            stored = root.create(path, made)
        if stored.startswith(first):
            return path
        number += 1


def _path(number: int) -> str:
    return f"takedowns/{number:06d}.txt"


@functools.lru_cache(maxsize=4096)  # created once: what was read holds for ever; an error is not kept
def _sha256(root: Root, path: str) -> str:
    return hashlib.sha256(root.get(path)).hexdigest()
