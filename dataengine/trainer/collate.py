"""Makes a batch of samples: columns in a dict from dicts, in a tuple from tuples; arrays of one shape as one array.

What does not stack (pictures, texts, arrays of several shapes) stays a list. torch's tensors stack as tensors; torch is
not imported for that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dataengine.errors import ConfigError

_NUMBER = (bool, int, float, np.number, np.bool_)


def collate(values: Sequence[Any]) -> Any:
    """The batch of `values`, all of one kind."""
    first = values[0]
    if isinstance(first, dict | tuple):
        _check_alike(values)
    if isinstance(first, dict):
        return {name: stack([value[name] for value in values]) for name in first}
    if isinstance(first, tuple):
        return tuple(stack(list(column)) for column in zip(*values, strict=True))
    return stack(list(values))


def _check_alike(values: Sequence[Any]) -> None:
    """Raises ConfigError unless all have the entries of the first: a column cannot be made of some samples."""
    first = values[0]
    entries = _entries(first)
    for number, value in enumerate(values):
        if type(value) is not type(first) or _entries(value) != entries:
            raise ConfigError(
                f"collate: sample {number} of a batch is {_told(value)}, the first {_told(first)}; make them alike in "
                "transform, or give collate_fn"
            )


def _entries(value: Any) -> Any:
    return value.keys() if isinstance(value, dict) else len(value)


def _told(value: Any) -> str:
    kind = f"a {type(value).__name__}"
    if isinstance(value, dict):
        return f"{kind} of {list(value)}"
    return f"{kind} of {len(value)}" if isinstance(value, tuple) else kind


def stack(column: list[Any]) -> Any:
    """One array or tensor of `column` if its entries are numbers, or arrays of one shape and dtype; else the list."""
    first = column[0]
    if isinstance(first, np.ndarray):
        alike = all(
            isinstance(one, np.ndarray) and (one.shape, one.dtype) == (first.shape, first.dtype) for one in column
        )
        return (np.ma if isinstance(first, np.ma.MaskedArray) else np).stack(column) if alike else column
    if isinstance(first, _NUMBER):
        return np.array(column) if all(isinstance(one, _NUMBER) for one in column) else column
    torch = sys.modules.get("torch")  # whoever made a tensor has imported it
    if torch is not None and isinstance(first, torch.Tensor):
        alike = all(isinstance(one, torch.Tensor) and one.shape == first.shape for one in column)
        return torch.stack(column) if alike else column
    return column


def pinned(batch: Any) -> Any:
    """`batch` with its tensors in page-locked memory, for transfers that overlap with computing."""
    if isinstance(batch, dict):
        return {name: pinned(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        values = [pinned(value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch
