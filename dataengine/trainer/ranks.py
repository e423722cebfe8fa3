"""Tells which of how many training processes this is, from torch.distributed or the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from dataengine.errors import ConfigError


def rank_and_world_size(
    rank: int | None = None, world_size: int | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """(rank, world size) as given, else of torch.distributed once initialised, else RANK and WORLD_SIZE, else
    (0, 1).

    Raises ConfigError when only one of the two is given, or the rank is not below the world size.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError(f"rank={rank}, world_size={world_size}: give both or neither")
    if rank is None or world_size is None:
        rank, world_size = _distributed() or _environment(environment)
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank}, world_size={world_size}: wanted 0 <= rank < world_size")
    return rank, world_size


def _distributed() -> tuple[int, int] | None:
    # Looked up, not imported: a process that initialised torch.distributed has imported it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank()), int(distributed.get_world_size())


def _environment(environment: Mapping[str, str]) -> tuple[int, int]:
    rank, world_size = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    try:
        return int(rank), int(world_size)
    except ValueError as error:
        raise ConfigError(
            f"RANK={rank!r}, WORLD_SIZE={world_size!r} in the environment: wanted whole numbers"
        ) from error
