"""Reading a config: YAML text and `--set` overrides in, a validated RunConfig or one clear ConfigError out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dataengine.config.run import RunConfig
from dataengine.config.select import KIND_TAG
from dataengine.config.sources import SOURCE_KINDS
from dataengine.errors import ConfigError

MAX_CONFIG_BYTES = 4 * 2**20


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The config at `path` with `a.b=value` overrides applied; `a.b=@file` takes the YAML of a file.

    Raises ConfigError naming the file, the key's path, what it holds and what it may hold.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read this config: {error}. Give the path of a YAML file.") from error
    return parse_config(text, overrides, where=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, where: str = "config") -> RunConfig:
    """The config that YAML `text` holds; see `load_config`."""
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where}: {len(text)} characters; a config has at most {MAX_CONFIG_BYTES}")
    tree = _parse_yaml(text, where)
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: got {type(tree).__name__}, wanted a mapping such as `name: my-run`")
    for override in overrides:
        _apply(tree, override)
    try:
        payload = json.dumps(tree, allow_nan=False)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}; write dates and the like in quotes") from error
    except ValueError as error:
        raise ConfigError(f"{where}: holds .nan or .inf; write a number that is finite") from error
    try:
        # Validated as JSON, because only there strict mode takes a list for a tuple.
        return RunConfig.model_validate_json(payload, strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(where, fault) for fault in error.errors())) from error


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, and aliases (an alias bomb is small on disk only)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed in a config", event.start_mark)
        return super().compose_node(parent, index)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # PyYAML's own constructors raise the last three for dates, numbers and tagged values that are none.
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nests too deep; a config needs a handful of levels") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override}: wanted key.path=value, for example --set select.balance.target=1000")
    value = _parse_yaml(_file_text(text[1:], override) if text.startswith("@") else text, f"--set {override}")
    *parents, last = path.split(".")
    node = tree
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {name} holds {child!r}, which has no keys")
        node = child
    node[last] = value


def _file_text(path: str, override: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--set {override}: cannot read {path}: {error}; @ stands before the path of a file"
        ) from error


def _explain(where: str, fault: Any) -> str:
    path = ".".join(str(step) for step in fault["loc"] if not _is_tag(step)) or "config"
    if fault["type"] == "extra_forbidden":
        hint = _closest(fault["loc"])
        return f"{where}: {path}: unknown key{hint}"
    if fault["type"] == "missing":
        return f"{where}: {path}: missing; this key is required"
    if fault["type"] == "value_error":
        return f"{where}: {path + ': ' if fault['loc'] else ''}{fault['ctx']['error']}"
    got = json.dumps(fault["input"], default=str)
    got = got if len(got) <= 80 else got[:77] + "..."
    return f"{where}: {path}: got {got}; {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _closest(location: tuple[str | int, ...]) -> str:
    names = _keys_at(RunConfig, location[:-1])
    match = difflib.get_close_matches(str(location[-1]), names, n=1)
    if match:
        return f"; did you mean {match[0]}?"
    return f"; known keys are {', '.join(sorted(names))}" if names else ""


def _keys_at(model: Any, location: tuple[str | int, ...]) -> list[str]:
    """Names of the keys that the config may hold at `location`."""
    candidates = [model]
    for step in location:
        candidates = [found for candidate in candidates for found in _descend(candidate, step)]
    return sorted({name for candidate in candidates for part in _models(candidate) for name in part.model_fields})


def _is_tag(step: str | int) -> bool:
    """Whether a step of a location says which of several models was tried, rather than a key."""
    return step in SOURCE_KINDS or str(step).startswith(KIND_TAG)


def _descend(kind: Any, step: str | int) -> list[Any]:
    if str(step).startswith(KIND_TAG):
        return [model for model in _models(kind) if str(step).removeprefix(KIND_TAG) in model.model_fields]
    if step in SOURCE_KINDS:
        return [model for model in _models(kind) if step in get_args(model.model_fields["kind"].annotation)]
    found = [model.model_fields[step].annotation for model in _models(kind) if step in model.model_fields]
    return found or list(get_args(kind)[1:])


def _models(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for argument in get_args(kind) for model in _models(argument)]
