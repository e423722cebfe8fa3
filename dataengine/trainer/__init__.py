"""Reads a published dataset for training: exactly once, on any ranks and workers, from any position."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "ShardDataset": "dataset",
    "DataLoader": "loader",
    "Mixture": "mixture",
    "Repeats": "mixture",
    "Buckets": "buckets",
    "Caption": "captions",
    "Cache": "cache",
    "Patience": "fetch",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    # Looked up when asked for: the command line imports `dataengine.trainer.manifest` and must stay quick.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
