"""The order at its real size: 24 million rows in 3,072 shards, every one drawn exactly once, whatever reads them.

Each rank's draws are computed as its workers compute them, ticket by ticket, and marked in a bitset.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dataengine.trainer.batches import BatchPlan
from dataengine.trainer.chunks import Chunks, cut_chunks
from dataengine.trainer.order import Order, StreamOrder
from dataengine.trainer.schedule import Group, Schedule, Ticket, Weights

NUM_ROWS, NUM_SHARDS = 24_000_000, 3_072
_TICKETS = 32  # evaluated at once: a rank's rows of one are too few to fill a vector


def equal_shards(num_rows: int, num_shards: int) -> Chunks:
    sizes = np.full(num_shards, num_rows // num_shards)
    sizes[: num_rows - int(sizes.sum())] += 1
    return cut_chunks(np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)


class Reading:
    """A run over an epoch: which rows it drew, how often, and how many batches each rank got."""

    def __init__(self, batch: int, num_rows: int = NUM_ROWS, num_shards: int = NUM_SHARDS) -> None:
        self.num_rows = num_rows
        self.order = StreamOrder(equal_shards(num_rows, num_shards), Order(1, batch))
        self.schedule = Schedule((Group((0,), batch),), (num_rows,), Weights((1,), (2**32,)), num_rows)
        self.point = self.schedule.start()
        self.seen = np.zeros(num_rows, dtype=bool)
        self.num_repeated = self.num_next = 0

    def run(self, world_size: int, num_workers: int, until: float = 1.0) -> Reading:
        """Go on with other ranks and workers, until a part of the epoch is drawn."""
        tickets: list[Ticket] = []
        while self.schedule.epoch(self.point) == 0 and self.point.drawn < until * self.num_rows:
            ticket, self.point = self.schedule.step(self.point)
            tickets.append(ticket)
        counts = set()
        for rank in range(world_size):
            plan = BatchPlan((self.order,), (None,), None, None, rank, world_size)  # type: ignore[arg-type]
            given = 0
            for worker in range(num_workers):
                mine = tickets[worker::num_workers]
                given += len(mine)
                for begin in range(0, len(mine), _TICKETS):
                    self._mark(plan, mine[begin : begin + _TICKETS])
            counts.add(given)
        assert counts == {len(tickets)}  # every rank makes as many steps
        return self

    def _mark(self, plan: BatchPlan, tickets: list[Ticket]) -> None:
        draws = [plan.draws(ticket) for ticket in tickets]
        whole = replace(
            draws[0],
            **{name: np.concatenate([getattr(one, name) for one in draws]) for name in ("streams", "draws", "padding")},
        )
        rows, epochs = plan.rows(whole)
        self.num_next += int((epochs > 0).sum())
        rows = rows[epochs == 0]
        self.num_repeated += int(self.seen[rows].sum()) + len(rows) - len(np.unique(rows))
        self.seen[rows] = True

    def check(self, batch: int) -> None:
        """Nothing is missing, nothing repeated, and only the last batch takes from the next epoch."""
        assert (int((~self.seen).sum()), self.num_repeated) == (0, 0)
        assert self.num_next == -self.num_rows % batch


def test_exactly_once_at_a_thousandth() -> None:
    for world_size, num_workers, batch in ((8, 3, 96), (6, 4, 96), (1, 1, 96)):
        Reading(batch, 24_000, 31).run(world_size, num_workers).check(batch)
    Reading(96, 24_000, 31).run(8, 2, 0.3).run(3, 1, 0.7).run(1, 4).check(96)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "num_workers", "batch"), [(128, 8, 4096), (96, 8, 3840), (64, 4, 4096)])
def test_exactly_once_at_24_million_rows(world_size: int, num_workers: int, batch: int) -> None:
    Reading(batch).run(world_size, num_workers).check(batch)


@pytest.mark.slow
def test_exactly_once_over_128_then_64_then_8_ranks() -> None:
    Reading(4096).run(128, 8, 0.37).run(64, 4, 0.81).run(8, 1).check(4096)
