"""Which of how many training processes this is, by torch.distributed or the environment; whether batches divide."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping

from dataengine.errors import ConfigError
from dataengine.trainer import arguments

MAX_BATCH = 2**20  # times a sum of weights it must fit 64 bits


def rank_and_world_size(
    rank: int | None = None, world_size: int | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """(rank, world size) as given, else of torch.distributed once initialised, else RANK and WORLD_SIZE, else
    (0, 1).

    Raises ConfigError when only one of the two is given, one is no whole number, or the rank is not below the world
    size.
    """
    if (rank is None) != (world_size is None):
        raise ConfigError(f"rank={rank}, world_size={world_size}: give both or neither")
    if rank is None or world_size is None:
        rank, world_size = _distributed() or _environment(environment)
    world_size = arguments.whole("world_size", world_size, 1)
    rank = arguments.whole("rank", rank, 0)
    if rank >= world_size:
        raise ConfigError(f"rank={rank}, world_size={world_size}: wanted 0 <= rank < world_size")
    return rank, world_size


def batch_size(size: int) -> int:
    """`size` as a global batch size. Raises ConfigError when it is none."""
    return arguments.whole("global_batch_size", size, 1, MAX_BATCH)


def check_batches(sizes: Collection[int], world_size: int) -> None:
    """Raises ConfigError, naming sizes and ranks that fit, when `world_size` does not divide all global batches."""
    wrong = [size for size in sorted(sizes) if size % world_size]
    if wrong:
        divisors = [ranks for ranks in range(1, min(sizes) + 1) if not any(size % ranks for size in sizes)]
        below = [ranks for ranks in divisors if ranks < world_size][-3:]
        above = [ranks for ranks in divisors if ranks > world_size][:3]
        raise ConfigError(
            f"{world_size} ranks do not divide a global batch of {wrong[0]}; near that, {below + above} do, and "
            f"batches of {wrong[0] // world_size * world_size or world_size} or "
            f"{(wrong[0] // world_size + 1) * world_size} would"
        )


def _distributed() -> tuple[int, int] | None:
    # Looked up, not imported: a process that initialised torch.distributed has imported it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank()), int(distributed.get_world_size())


def _environment(environment: Mapping[str, str]) -> tuple[int, int]:
    rank, world_size = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    try:
        if int(world_size) > 1 and "RANK" not in environment:
            raise ConfigError(
                f"WORLD_SIZE={world_size} is in the environment, RANK is not: each process would take itself for the "
                "first; set both, or give rank and world_size"
            )
        return int(rank), int(world_size)
    except ValueError as error:
        raise ConfigError(
            f"RANK={rank!r}, WORLD_SIZE={world_size!r} in the environment: wanted whole numbers"
        ) from error
