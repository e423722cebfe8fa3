"""Makes a batch of samples: columns in a dict from dicts, in a tuple from tuples; arrays of one shape as one array.

What does not stack (pictures, texts, arrays of several shapes) stays a list. torch's tensors stack as tensors; torch is
not imported for that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def collate(values: Sequence[Any]) -> Any:
    """The batch of `values`, all of one kind."""
    first = values[0]
    if isinstance(first, dict):
        return {name: stack([value[name] for value in values]) for name in first}
    if isinstance(first, tuple):
        return tuple(stack(list(column)) for column in zip(*values, strict=True))
    return stack(list(values))


def stack(column: list[Any]) -> Any:
    """One array or tensor of `column` if its entries are numbers, or arrays of one shape and dtype; else the list."""
    first = column[0]
    if isinstance(first, np.ndarray):
        alike = all(
            isinstance(one, np.ndarray) and (one.shape, one.dtype) == (first.shape, first.dtype) for one in column
        )
        return np.stack(column) if alike else column
    if isinstance(first, bool | int | float | np.number | np.bool_):
        return np.array(column)
    torch = sys.modules.get("torch")  # whoever made a tensor has imported it
    if torch is not None and isinstance(first, torch.Tensor):
        return torch.stack(column) if all(one.shape == first.shape for one in column) else column
    return column


def pinned(batch: Any) -> Any:
    """`batch` with its tensors in page-locked memory, for transfers that overlap with computing."""
    if isinstance(batch, dict):
        return {name: pinned(value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        values = [pinned(value) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch.pin_memory() if hasattr(batch, "pin_memory") else batch
