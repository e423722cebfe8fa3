"""ShardDataset: a published dataset version as a torch IterableDataset.

It puts the order of draws, the tars and the position together: every process iterates its own share of the
epoch, exactly once. Batches, worker processes and counting with them are the business of
`dataengine.trainer.loader`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from dataengine.errors import ConfigError, CorruptObject, InputError
from dataengine.trainer.decode import Decode, decode_members
from dataengine.trainer.index import MEMBERS, load_index
from dataengine.trainer.manifest import open_version
from dataengine.trainer.order import EpochOrder, Share, cut_chunks, draw_rows
from dataengine.trainer.position import Position, View
from dataengine.trainer.ranks import rank_and_world_size
from dataengine.trainer.reader import SampleReader
from dataengine.trainer.workers import IterableDataset, worker_info

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sample = dict[str, Any]


class ShardDataset(IterableDataset[Any]):
    """Samples of a published dataset: dicts of `__key__`, `__source__`, `__shard__` and the parts asked for.

    `manifest` is a manifest.json, a version folder or a dataset folder. One iteration runs from the current
    position to the end of the epoch; the next one begins the next epoch. Each draw is handed out once across
    all ranks and workers, and ranks differ by one sample at most. `transform` maps a sample to what is
    yielded.

    The rank is taken from the arguments, else torch.distributed, else RANK and WORLD_SIZE, when first needed.

    `state_dict` counts what this very object handed out. Worker processes hold copies that nobody hears from,
    so with workers use `dataengine.trainer.loader.DataLoader`, which counts the batches that reach the
    training loop.
    """

    def __init__(
        self,
        manifest: str | Path,
        *,
        parts: Sequence[str] = MEMBERS,
        split: Literal["train", "holdout"] = "train",
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        decode: Decode = "pil",
        transform: Callable[[Sample], Any] | None = None,
        repeats: bool = True,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        if not parts or set(parts) - set(MEMBERS):
            raise ConfigError(f"parts={tuple(parts)}: wanted some of {MEMBERS}")
        if decode not in ("pil", "bytes"):
            raise ConfigError(f"decode={decode!r}: wanted 'pil' or 'bytes'")
        if rank is not None or world_size is not None:
            rank_and_world_size(rank, world_size)
        version = open_version(manifest, storage_options)
        self._index = load_index(version, [member for member in MEMBERS if member in parts], split)
        self._draws = draw_rows(self._index.wanted, self._index.repeat if repeats else None)
        self._chunks = cut_chunks(self._index.shard if self._draws is None else self._index.shard[self._draws])
        if not len(self._chunks[0]):
            raise InputError(f"{version.root.url}: has no samples of split {split!r}; nothing could ever be drawn")
        self._view = View(version.sha256, seed, split, repeats, shuffle)
        self._place = (rank, world_size)
        self._decode, self._transform = decode, transform
        self._position = Position()
        self._block, self._drop_last = 1, False

    @property
    def epoch(self) -> int:
        """The epoch the next iteration draws from."""
        return self._position.epoch

    @property
    def num_draws(self) -> int:
        """Draws of one epoch on all ranks together."""
        return int(self._chunks[1].sum())

    @property
    def is_local(self) -> bool:
        """Whether the shards lie on this machine's disks."""
        return self._index.version.is_local

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank."""
        rank, world_size = self._rank_and_world_size()
        return Share(0, self._stop(0, world_size), rank, world_size).num_positions()

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a loaded position inside that epoch stays."""
        self._position = self._position.at_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position as a small JSON object, the same on every rank that has handed out as many samples.

        Raises ConfigError in a worker process, which knows only its own share.
        """
        if worker_info() is not None:
            raise ConfigError("state_dict() was called in a worker process; use dataengine.trainer.loader.DataLoader")
        return self._position.state(self._view)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position, whatever the number of ranks and workers it was saved under. Reads nothing.

        Raises InputError when the state is of another dataset, seed, split, repeats or shuffle.
        """
        self._position = Position.load(state, self._view)

    def dealt(self, block: int, *, drop_last: bool) -> Self:
        """A copy here whose workers take turns of `block` samples, without the ragged end if asked."""
        dealt = copy.copy(self)
        dealt._place = self._rank_and_world_size()
        dealt._block, dealt._drop_last = block, drop_last
        return dealt

    def share(self) -> Share:
        """What this process reads from the current position to the end of the epoch."""
        rank, world_size = self._rank_and_world_size()
        worker = worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        start = min(self._position.num_consumed, self.num_draws)
        return Share(start, self._stop(start, world_size), rank, world_size, number, num_workers, self._block)

    def advance(self, epoch: int, share: Share, num_handed_out: int) -> None:
        """Move to where `share`'s rank, and so every rank, has handed out its first `num_handed_out` samples.

        A rank that has handed out all of its share may be one sample short of another; then the epoch is
        over.
        """
        if num_handed_out >= share.num_positions():
            self._position = Position(epoch + 1)
        else:
            self._position = Position(epoch, share.start + num_handed_out * share.world_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, share = self.epoch, self.share()
        order = EpochOrder(self._chunks, self._view.seed, epoch, shuffle=self._view.shuffle)
        reader = SampleReader(self._index)
        handed_out = 0
        for draws in order.draws(share):
            for row in self._rows(draws).tolist():
                sample = self._sample(reader, row)
                handed_out += 1
                if worker_info() is None:
                    self.advance(epoch, share, handed_out)
                yield sample
        self.advance(epoch, share, share.num_positions())

    def _rows(self, draws: NDArray[np.int64]) -> NDArray[np.integer[Any]]:
        return draws if self._draws is None else self._draws[draws]

    def _sample(self, reader: SampleReader, row: int) -> Any:
        key, contents = reader.read(row)
        shard = self._index.shards[int(self._index.shard[row])]
        try:
            fields = decode_members(contents, self._decode)
        except CorruptObject as error:
            raise CorruptObject(f"{reader.describe(row)}: {error}") from error
        sample = {"__key__": key, "__source__": shard.source, "__shard__": shard.name, **fields}
        return sample if self._transform is None else self._transform(sample)

    def _stop(self, start: int, world_size: int) -> int:
        if not self._drop_last:
            return self.num_draws
        return start + (self.num_draws - start) // (world_size * self._block) * world_size * self._block

    def _rank_and_world_size(self) -> tuple[int, int]:
        return rank_and_world_size(*self._place)
