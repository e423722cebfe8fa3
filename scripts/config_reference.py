"""Writes docs/config.md: every key of a run's config, from the models themselves.

`python -m scripts.config_reference` rewrites the file; a test fails when it is behind the models. It decides how a
schema reads as prose, and knows no key by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataengine.config.run import RunConfig

TARGET = Path(__file__).parent.parent / "docs" / "config.md"

HEAD = """\
# Config reference

Made from `dataengine/config/*.py` by `python -m scripts.config_reference`; do not edit by hand.
How the keys work together is told in [engineer.md](engineer.md).

A config is one YAML mapping. An unknown key, a key that stands twice and a value of the wrong type are errors (exit
code 2). `--set key.path=value` overrides any key. **Identity**: *yes* means that the value enters the recipe of a
stage, so that another value recomputes what builds on it; *no* means that it may change from one run of the command to
the next, and nothing is recomputed.
"""

Schema = Mapping[str, Any]


def render() -> str:
    """The whole of docs/config.md."""
    schema = RunConfig.model_json_schema()
    return HEAD + "".join(_sections(schema, schema["$defs"], path="", bears_identity=True))


def _sections(model: Schema, definitions: Schema, path: str, *, bears_identity: bool) -> Iterator[str]:
    """The section of `model` at `path`, then those of the models inside it; one for equal models side by side."""
    rows: list[str] = []
    inner: dict[tuple[str, bool], list[str]] = {}
    for name, field in model["properties"].items():
        identity = bears_identity and not field.get("execution")
        where = f"{path}.{name}" if path else name
        below = list(_models(field, where))
        rows.append(_row(name, field, name in model.get("required", ()), identity, bool(below)))
        for item, place in below:
            inner.setdefault((item, identity), []).append(place)
    yield f"\n## {_heading(model, path)}\n\n{_about(model)}"
    yield "| key | value | default | identity | meaning |\n|---|---|---|---|---|\n" + "".join(rows)
    for (item, identity), places in inner.items():
        yield from _sections(definitions[item], definitions, "`, `".join(places), bears_identity=identity)


def _heading(model: Schema, path: str) -> str:
    kind = model["properties"].get("kind", {}).get("const")
    return f"`{path}`{f' of kind {kind}' if kind else ''}" if path else "Top level"


def _about(model: Schema) -> str:
    text = model.get("description", "")
    return f"{text}\n\n" if text else ""


def _models(field: Schema, where: str) -> Iterator[tuple[str, str]]:
    """(model, path) of the sections that a field may hold."""
    for choice in _choices(field):
        if "$ref" in choice:
            yield choice["$ref"].rpartition("/")[2], where
        for values in _values_of_mapping(choice):
            yield from _models(values, f"{where}.<name>")


def _choices(field: Schema) -> list[Schema]:
    return list(field.get("anyOf") or field.get("oneOf") or [field])


def _values_of_mapping(field: Schema) -> list[Schema]:
    more = field.get("additionalProperties")
    return [*field.get("patternProperties", {}).values(), *([more] if isinstance(more, dict) else [])]


def _row(name: str, field: Schema, is_required: bool, bears_identity: bool, is_section: bool) -> str:
    is_whole = is_section and bool(field.get("default"))
    default = "required" if is_required else "see below" if is_whole else f"`{json.dumps(field.get('default'))}`"
    cells = [f"`{name}`", _value(field), default, "yes" if bears_identity else "no", field.get("description", "")]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |\n"


def _value(field: Schema) -> str:
    return " or ".join(dict.fromkeys(_one_value(choice) for choice in _choices(field)))


def _one_value(field: Schema) -> str:
    if "$ref" in field:
        return "section"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "array":
        return f"list of {_value(field['items'])}"
    if field["type"] == "object":
        kinds = {_value(values) for values in _values_of_mapping(field)}
        return f"mapping of name to {' or '.join(sorted(kinds))}"
    names = {"string": "text", "boolean": "`true`, `false`", "null": "`null`"}
    return f"{names.get(field['type'], field['type'])}{_bounds(field)}"


def _bounds(field: Schema) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[word]:,}" for word, sign in words.items() if word in field]
    return f" {', '.join(bounds)}" if bounds else ""


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
