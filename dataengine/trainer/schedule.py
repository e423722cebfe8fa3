"""The schedule: what each global batch draws from each stream, and where a run stands in it.

A `Point` is a place between two batches: the batches and samples so far, the next draw of every stream, and what
streams are owed. `Schedule.step` takes a point to the next one and says what lies between as a `Ticket`. Both are a few
integers, so a point is a checkpoint and a ticket is all that a worker needs. Ranks and workers do not exist here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dataengine.errors import ConfigError
from dataengine.trainer.apportion import apportion, converted

Tail = Literal["carry", "drop", "pad"]


@dataclass(frozen=True)
class Group:
    """Streams that share batches of `batch` samples, by number. Every batch is of one group."""

    streams: tuple[int, ...]
    batch: int


@dataclass(frozen=True)
class Weights:
    """Integer weights of groups (in batches) and of all streams (in samples, within their group)."""

    groups: tuple[int, ...]
    streams: tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """A place between two batches.

    `drawn` counts samples of all streams; `cursors` the draws of each stream; `owed_groups` and `owed_streams` are what
    `apportion` is owed, in units of the weights' sums.
    """

    step: int
    drawn: int
    cursors: tuple[int, ...]
    owed_groups: tuple[int, ...]
    owed_streams: tuple[int, ...]


@dataclass(frozen=True)
class Ticket:
    """One global batch: `counts[i]` draws of stream `streams[i]` from `first[i]` on, then `padding` copies."""

    step: int
    group: int
    streams: tuple[int, ...]
    first: tuple[int, ...]
    counts: tuple[int, ...]
    padding: int = 0

    @property
    def size(self) -> int:
        """Samples of the global batch."""
        return sum(self.counts) + self.padding


@dataclass(frozen=True)
class Schedule:
    """How streams of `num_rows` rows make batches; an epoch is `epoch_draws` samples.

    `tail` says what becomes of the samples that do not fill an epoch's last batch: `carry` fills it up from the next
    epoch, `drop` skips them, `pad` fills it up with copies. The latter two need a single stream, since streams of a
    mixture end at different times.
    """

    groups: tuple[Group, ...]
    num_rows: tuple[int, ...]
    weights: Weights
    epoch_draws: int
    tail: Tail = "carry"

    def __post_init__(self) -> None:
        if self.tail != "carry" and len(self.num_rows) > 1:
            raise ConfigError(
                f"tail={self.tail!r} with {len(self.num_rows)} streams: streams of a mixture and buckets end at "
                "different times, so only tail='carry' is exact; leave mixture and buckets out, or use 'carry'"
            )
        if self.tail == "drop" and self.epoch_draws < self.groups[0].batch:
            raise ConfigError(
                f"tail='drop': an epoch of {self.epoch_draws} samples is less than a global batch of "
                f"{self.groups[0].batch}, so every sample would be dropped; use 'carry' or 'pad', or a smaller batch"
            )

    def start(self) -> Point:
        """The beginning of epoch 0."""
        blank = (0,) * len(self.num_rows)
        return Point(0, 0, blank, (0,) * len(self.groups), blank)

    def settled(self, point: Point) -> Point:
        """`point`, which another batch size may have led to; with `drop`, a rest below a batch is dropped there."""
        end = (self.epoch(point) + 1) * self.epoch_draws
        if self.tail == "drop" and end - point.drawn < self.groups[0].batch:
            return replace(point, drawn=end, cursors=(end,))
        return point

    def epoch(self, point: Point) -> int:
        """The epoch that the batch after `point` begins in."""
        return point.drawn // self.epoch_draws

    def step(self, point: Point) -> tuple[Ticket, Point]:
        """The batch after `point`, and the point after that batch."""
        group, owed_groups = self._choose_group(point)
        streams, batch = self.groups[group].streams, self.groups[group].batch
        counts, owed_streams = self._share_out(streams, batch, point)
        first = tuple(point.cursors[stream] for stream in streams)
        cursors = list(point.cursors)
        for stream, count in zip(streams, counts, strict=True):
            cursors[stream] += count
        after = Point(point.step + 1, point.drawn + batch, tuple(cursors), owed_groups, owed_streams)
        ticket = Ticket(point.step, group, streams, first, counts)
        return (ticket, after) if self.tail == "carry" else self._end_epoch(ticket, after)

    def steps_left(self, point: Point) -> int:
        """Batches from `point` to the end of its epoch."""
        epoch = self.epoch(point)
        if len({group.batch for group in self.groups}) == 1:
            left = (epoch + 1) * self.epoch_draws - point.drawn
            batch = self.groups[0].batch
            return left // batch if self.tail == "drop" else -(-left // batch)
        steps = 0
        while self.epoch(point) == epoch:
            _, point = self.step(point)
            steps += 1
        return steps

    def steps_of(self, epoch: int) -> int:
        """Batches of `epoch` from its beginning on. Takes no step where all batches are of one size."""
        sizes = {group.batch for group in self.groups}
        if len(self.num_rows) == 1 or len(sizes) > 1:
            return self.steps_left(self.at_epoch(epoch))
        (batch,) = sizes
        return self.steps_left(replace(self.start(), drawn=-(-epoch * self.epoch_draws // batch) * batch))

    def at_epoch(self, epoch: int) -> Point:
        """The point that `epoch` begins at. Takes a step for every batch before it, when there are several streams."""
        if len(self.num_rows) == 1:
            batch = self.groups[0].batch
            drawn = epoch * self.epoch_draws
            if self.tail == "carry":
                drawn = -(-drawn // batch) * batch
            steps = drawn // batch if self.tail == "carry" else epoch * self.steps_left(self.start())
            return replace(self.start(), step=steps, drawn=drawn, cursors=(drawn,))
        point = self.start()
        while self.epoch(point) < epoch:
            _, point = self.step(point)
        return point

    def reweighted(self, weights: Weights, point: Point) -> tuple[Schedule, Point]:
        """This schedule with other weights, and `point` in it: what streams are owed goes with them."""
        owed = []
        for before, after, units in (
            (self.weights.groups, weights.groups, [(tuple(range(len(self.groups))), point.owed_groups)]),
            (
                self.weights.streams,
                weights.streams,
                [(group.streams, point.owed_streams) for group in self.groups],
            ),
        ):
            found = [0] * len(before)
            for members, debts in units:
                old, new = (sum(of[member] for member in members) for of in (before, after))
                if old and new:
                    moved = converted(np.array([debts[member] for member in members], dtype=np.int64), old, new)
                    for member, debt in zip(members, moved.tolist(), strict=True):
                        found[member] = debt
            owed.append(tuple(found))
        return replace(self, weights=weights), replace(point, owed_groups=owed[0], owed_streams=owed[1])

    def _choose_group(self, point: Point) -> tuple[int, tuple[int, ...]]:
        if len(self.groups) == 1:
            return 0, point.owed_groups
        weights, owed = (np.array(of, dtype=np.int64) for of in (self.weights.groups, point.owed_groups))
        seats, after = apportion(1, weights, owed)
        return int(np.argmax(seats)), tuple(after.tolist())

    def _share_out(self, streams: tuple[int, ...], batch: int, point: Point) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if len(streams) == 1:
            return (batch,), point.owed_streams
        members = list(streams)
        weights, owed = (
            np.array([of[member] for member in members], dtype=np.int64)
            for of in (self.weights.streams, point.owed_streams)
        )
        seats, after = apportion(batch, weights, owed)
        owed_streams = list(point.owed_streams)
        for member, debt in zip(members, after.tolist(), strict=True):
            owed_streams[member] = debt
        return tuple(seats.tolist()), tuple(owed_streams)

    def _end_epoch(self, ticket: Ticket, after: Point) -> tuple[Ticket, Point]:
        """The last whole batch of an epoch goes on to the next epoch's start; a ragged one is padded."""
        (first,), (count,) = ticket.first, ticket.counts
        end = (first // self.epoch_draws + 1) * self.epoch_draws
        left = end - first - count
        if self.tail == "pad" and left < 0:
            ticket = replace(ticket, counts=(count + left,), padding=-left)
            return ticket, replace(after, drawn=end, cursors=(end,))
        if self.tail == "drop" and left < count:
            return ticket, replace(after, drawn=end, cursors=(end,))
        return ticket, after
