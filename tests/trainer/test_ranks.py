"""Which process this is: arguments before torch.distributed before the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed

from dataengine.errors import ConfigError
from dataengine.trainer.ranks import rank_and_world_size

ENVIRONMENT = {"RANK": "2", "WORLD_SIZE": "4"}


def test_arguments_come_before_the_environment() -> None:
    assert rank_and_world_size(0, 3, ENVIRONMENT) == (0, 3)
    assert rank_and_world_size(environment=ENVIRONMENT) == (2, 4)
    assert rank_and_world_size(environment={}) == rank_and_world_size(environment={"WORLD_SIZE": "1"}) == (0, 1)


def test_torch_distributed_comes_before_the_environment(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert rank_and_world_size(environment=ENVIRONMENT) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()
    assert rank_and_world_size(environment=ENVIRONMENT) == (2, 4)


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2)])
def test_contradictions_are_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(ConfigError, match="rank="):
        rank_and_world_size(rank, world_size, {})
    with pytest.raises(ConfigError, match="WORLD_SIZE=2 is in the environment, RANK is not"):
        rank_and_world_size(environment={"WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="whole numbers"):
        rank_and_world_size(environment={"RANK": "one"})
