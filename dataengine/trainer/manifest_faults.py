"""What a manifest must hold for its readers: each field's place, and what it may be.

In goes parsed JSON, from wherever; out come its faults, in words that name the place, what is there and what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dataengine.trainer import arguments

ABSENT = object()
"""Stands for a field that is not there."""
_Check = tuple[str, Callable[[Any], bool], str]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(entry, Mapping) for entry in value.values())


_COUNT = (_is_count, "a whole number from 0")
_TEXT = (_is_text, "a text")
_TABLE = (_is_table, "an object of objects")
_FIELDS: tuple[_Check, ...] = (
    ("format", *_TEXT),
    ("name", *_TEXT),
    ("version", *_COUNT),
    ("counts.num_samples", *_COUNT),
    ("counts.num_draws", *_COUNT),
    ("counts.num_shards", *_COUNT),
    ("sources", *_TABLE),
    ("mixture.sources", *_TABLE),
    ("dedup", lambda value: isinstance(value, Mapping), "an object"),
    ("files", lambda value: isinstance(value, list), "a list"),
)
_OF_A_FILE: tuple[_Check, ...] = (("path", *_TEXT), ("nbytes", *_COUNT), ("sha256", *_TEXT))


def faults(manifest: Any) -> Iterator[str]:
    """What keeps `manifest` from being read."""
    yield from _of(manifest, "", _FIELDS)
    files = _found(manifest, "files")
    for number, file in enumerate(files if isinstance(files, list) else ()):
        yield from _of(file, f"files[{number}].", _OF_A_FILE)


def _of(value: Any, prefix: str, checks: tuple[_Check, ...]) -> Iterator[str]:
    for path, is_sound, wanted in checks:
        found = _found(value, path)
        if found is ABSENT or not is_sound(found):
            yield f"{prefix}{path} is {'missing' if found is ABSENT else arguments.shown(found)}, wanted {wanted}"


def _found(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value.get(name, ABSENT) if isinstance(value, Mapping) else ABSENT
    return value
