"""Foreign values as text: one JSON object or Python value in, clean Unicode out.

What arrives here was written by strangers: objects that do not parse are None, lone surrogates become U+FFFD, and a
row that cannot be used is a text that says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence


def parse_object(text: str | bytes) -> dict[str, object] | None:
    """The JSON object in `text`; None when it is no object, does not parse, or nests too deep."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_nested(value: object) -> bool:
    """Whether a JSON value is a list or an object."""
    return isinstance(value, list | dict)


def flat_fields(value: object, names: Sequence[str]) -> list[str | None] | str:
    """Fields `names` of a JSON object as text, null where it lacks one; what is wrong with `value` otherwise."""
    if not isinstance(value, dict):
        return "no JSON object"
    fields = [value.get(name) for name in names]
    for name, field in zip(names, fields, strict=True):
        if is_nested(field):
            return f"field {name!r} is a list or an object, wanted text"
    return [text_of(field) for field in fields]


def text_of(value: object) -> str | None:
    """A JSON value as text: strings as they are, null as None, anything else as compact JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    # JSON may escape half a surrogate pair, which no UTF-8 column can hold.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
