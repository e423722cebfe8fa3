"""What every config model is: frozen, closed to unknown keys, and split into identity and execution.

A field marked `EXECUTION` (concurrency, time-outs, addresses, places) may change without changing what is published;
every other field bears identity and enters the recipe of its stage.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

EXECUTION: dict[str, Any] = {"execution": True}
"""Pass as `json_schema_extra` of a field that must not bear identity."""

FilePattern = Annotated[str, Field(min_length=1, pattern=r"^[^\0]*\Z")]
"""A path or URL, or a glob over them."""


class Config(BaseModel):
    """A frozen config section; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, regex_engine="python-re")

    def identity(self) -> dict[str, Any]:
        """The identity-bearing values as plain JSON types, execution settings left out at every depth."""
        fields = type(self).model_fields
        return {
            name: _plain(getattr(self, name))
            for name, field in fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("execution"))
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.identity()
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
