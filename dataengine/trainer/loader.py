"""Batches of a ShardDataset through worker processes, and a position that counts what was handed out.

It wraps torch's DataLoader: workers take turns batch by batch, so that after n batches on every rank the
draws read are a prefix of the epoch, whatever lies prefetched. It adds batching and counting, and no reading
of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.utils.data

from dataengine.errors import ConfigError
from dataengine.trainer.dataset import ShardDataset


class DataLoader:
    """Iterates batches from the current position to the end of the epoch, and then begins the next epoch.

    A batch is `collate_fn` of a list of `batch_size` samples: the list itself by default, because pictures do
    not stack; pass `torch.utils.data.default_collate` when the dataset's transform gives tensors. With
    `drop_last` only whole batches on all ranks are given, so every rank makes the same number of steps;
    without it each draw is given once, and the ranks' last batches may differ by one sample (or one rank may
    lack it). Further options go to torch's DataLoader (`pin_memory`, `prefetch_factor`, `timeout` ...).
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        batch_size: int,
        num_workers: int = 0,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Any] = list,
        **options: Any,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(f"batch_size={batch_size}, num_workers={num_workers}: wanted at least 1 and 0")
        refused = {"persistent_workers", "shuffle", "sampler", "batch_sampler", "in_order"} & options.keys()
        if refused:
            raise ConfigError(
                f"{sorted(refused)}: the dataset decides the order, and workers start at its position with "
                "each epoch; leave them out"
            )
        if num_workers and not dataset.is_local:
            # The object-store client runs threads, which do not survive a fork.
            options.setdefault("multiprocessing_context", "forkserver")
        self._dataset, self._batch_size, self._drop_last = dataset, batch_size, drop_last
        self._options = {"num_workers": num_workers, "collate_fn": collate_fn, **options}

    @property
    def epoch(self) -> int:
        """The epoch the next batch is drawn from."""
        return self._dataset.epoch

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return -(-len(self._dealt()) // self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a loaded position inside that epoch stays."""
        self._dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches handed out so far: a small JSON object, the same on every rank."""
        return self._dataset.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position, whatever batch size, ranks and workers it was saved under."""
        self._dataset.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:
        dealt = self._dealt()
        epoch, share = dealt.epoch, dealt.share()
        batches = torch.utils.data.DataLoader(dealt, batch_size=self._batch_size, **self._options)
        handed_out = 0
        for batch in batches:
            handed_out += self._batch_size
            self._dataset.advance(epoch, share, handed_out)
            yield batch
        self._dataset.advance(epoch, share, share.num_positions())

    def _dealt(self) -> ShardDataset:
        return self._dataset.dealt(self._batch_size, drop_last=self._drop_last)
