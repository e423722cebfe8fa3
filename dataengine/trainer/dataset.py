"""ShardDataset: what of a published dataset is read, and how samples are made of it.

It is a map-style dataset in torch's sense, in the order of the tars, for samplers that exist already. Shuffled batches,
mixtures, ranks, workers and positions are the business of `dataengine.trainer.loader.DataLoader`.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.errors import ConfigError, StorageError
from dataengine.trainer import arguments
from dataengine.trainer.buckets import Buckets
from dataengine.trainer.cache import Cache
from dataengine.trainer.captions import Caption
from dataengine.trainer.decode import NAMED, Decode
from dataengine.trainer.fetch import Patience
from dataengine.trainer.hashes import load_hashes
from dataengine.trainer.index import load_shards
from dataengine.trainer.manifest import open_version
from dataengine.trainer.mixture import Mixture, Repeats
from dataengine.trainer.order import Order, StreamOrder, rows_of
from dataengine.trainer.ranks import batch_size
from dataengine.trainer.reader import SampleReader, Source
from dataengine.trainer.samples import SampleMaker
from dataengine.trainer.tarset import MEMBERS
from dataengine.trainer.view import Asked, Split, View, build_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

_READ_AHEAD = 64  # samples that iterating reads at once
_MAX_SEED = 2**64 - 1
MAX_EPOCHS = 2**31


class ShardDataset:
    """Samples of a published dataset: dicts of parts beside `__key__`, `__source__`, `__shard__` and other marks.

    `manifest` is a manifest.json, a version folder or a dataset folder (its latest version). Opening reads
    shards.parquet, and columns of the samples table only where `where`, `mixture.where`, `buckets` or repeats ask for
    them. Indexing is by place in the view: tar order, one stream of the mixture after the other, copies last.

    `parts` are `image`, `txt`, `json`, any other member by its extension, or the names of `siblings`, which map a part
    to the folder of tars of the same names that holds it (latents, say). `where` is an SQL condition on the samples
    table. `transform` maps a sample to what is returned; a parameter `rng` of it, or a second one that it needs, gets a
    NumPy generator seeded by (seed, epoch, key). With `check_hashes` every key and image is compared with the
    manifest's, for which opening reads two columns of the samples table and keeps 8 bytes a row. `patience` and `cache`
    are about object stores.

    Raises ConfigError for arguments that contradict each other, InputError for a dataset that cannot be used.
    """

    def __init__(
        self,
        manifest: str | Path,
        *,
        parts: Sequence[str] = MEMBERS,
        where: str | None = None,
        mixture: Mapping[str, float] | Mixture | Repeats | None = None,
        caption: Caption | None = None,
        buckets: Buckets | None = None,
        split: Split = "train",
        shuffle: bool = True,
        seed: int = 0,
        repeats: bool = True,
        decode: Decode = "pil",
        transform: Callable[..., Any] | None = None,
        siblings: Mapping[str, str] | None = None,
        check_hashes: bool = False,
        cache: Cache | None = None,
        patience: Patience | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        _check_parts(parts)
        siblings = arguments.texts("siblings", siblings or {})
        if unread := sorted(siblings.keys() - set(parts)):
            raise ConfigError(f"siblings names {unread}, parts={parts} does not; add them there")
        if not (callable(decode) or decode in NAMED):
            named = ", ".join(map(repr, NAMED))
            raise ConfigError(f"decode={arguments.shown(decode)}: wanted {named} or a function of an image's bytes")
        if decode == "scaled" and buckets is None:
            raise ConfigError("decode='scaled': to cover which shape? Give buckets, or decode='rgb' for whole pictures")
        arguments.one_of("split", split, ("train", "holdout"))
        seed = arguments.whole("seed", seed, 0, _MAX_SEED)
        for name, value in (("shuffle", shuffle), ("repeats", repeats), ("check_hashes", check_hashes)):
            arguments.flag(name, value)
        if isinstance(mixture, Mapping):
            mixture = Mixture(mixture)
        if mixture is not None and not isinstance(mixture, Mixture | Repeats):
            raise ConfigError(f"mixture={arguments.shown(mixture)}: wanted a dict of shares, a Mixture or Repeats")
        arguments.instance("caption", caption, Caption)
        arguments.instance("buckets", buckets, Buckets)
        arguments.instance("cache", cache, Cache)
        arguments.instance("patience", patience, Patience)
        arguments.function("transform", transform)
        version = open_version(manifest, arguments.texts("storage_options", storage_options or {}))
        shards = load_shards(version)
        self.view: View = build_view(version, shards, Asked(split, seed, shuffle, repeats, where, mixture, buckets))
        wanted = tuple(parts) if caption is None or "json" in parts else (*parts, "json")
        hashes = load_hashes(version, shards) if check_hashes else None
        self.source = Source(version, shards, wanted, siblings, hashes, patience or Patience(), cache)
        self._epoch, self._readers = 0, threading.local()
        self.maker = SampleMaker(tuple(parts), decode, seed, caption, transform)

    @property
    def is_local(self) -> bool:
        """Whether the shards lie on this machine's disks."""
        return self.source.is_local

    def __len__(self) -> int:
        """Samples of the view, copies counted."""
        return int(self._bounds[-1])

    def __getitem__(self, place: int) -> Any:
        """The sample at `place`. Raises IndexError beyond the end, CorruptObject or MissingObject for bad storage."""
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """The samples at `places`: one call per batch is what torch's DataLoader makes."""
        length = len(self)
        numbers = [operator.index(place) for place in places]
        if not numbers:
            return []
        if outside := [number for number in (min(numbers), max(numbers)) if not -length <= number < length]:
            raise IndexError(f"index {outside[0]} of {length} samples")
        wanted = np.array(numbers, dtype=np.int64) % length
        streams = np.searchsorted(self._bounds, wanted, side="right") - 1
        of_epoch = self._epoch * np.diff(self._bounds)[streams]
        return self.samples(self._natural, streams, wanted - self._bounds[streams] + of_epoch)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that samples are drawn in by `[]` and `for`: their generators and captions differ by it.

        Samplers and loaders of others do not tell. `DataLoader` and the adapters need none.
        """
        self._epoch = arguments.whole("epoch", epoch, 0, MAX_EPOCHS)

    def __iter__(self) -> Iterator[Any]:
        """Every sample of the view once, in its order. For training use `DataLoader`."""
        for begin in range(0, len(self), _READ_AHEAD):
            yield from self.__getitems__(range(begin, min(begin + _READ_AHEAD, len(self))))

    def samples(
        self,
        orders: Sequence[StreamOrder],
        streams: NDArray[np.int64],
        draws: NDArray[np.int64],
        pads: Sequence[bool | None] | None = None,
    ) -> list[Any]:
        """The samples of `draws`, int64, of the streams that `streams` numbers, in the `orders` of all streams.

        `pads` says of each whether it fills a batch up, where batches are padded. Raises CorruptObject or MissingObject
        for bad storage: nothing is replaced here.
        """
        rows, epochs = rows_of(orders, streams, draws)
        shapes = self.shapes
        samples = []
        columns = (streams.tolist(), epochs.tolist(), pads or [None] * len(rows), *self._reader.read(rows))
        for stream, epoch, pad, shard, raw in zip(*columns, strict=True):
            if isinstance(raw, StorageError):
                raise raw
            samples.append(self.maker.sample(raw, shard, epoch, shapes[stream], pad=pad))
        return samples

    @property
    def shapes(self) -> tuple[tuple[int, int] | None, ...]:
        """The bucket shape of each stream."""
        buckets = self.view.asked.buckets
        return tuple(
            None if buckets is None or stream.bucket is None else buckets.shapes[stream.bucket]
            for stream in self.view.streams
        )

    def orders(self, order_batch: int, *, carried: bool) -> tuple[StreamOrder, ...]:
        """The order of each stream, laid out for global batches of `order_batch` samples."""
        asked = self.view.asked
        order = Order(asked.seed, batch_size(order_batch), asked.shuffle, carried)
        return tuple(StreamOrder(stream.chunks, order, number) for number, stream in enumerate(self.view.streams))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_natural", "_bounds")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _readers=threading.local())

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(stream.chunks.num_rows for stream in self.view.streams)])

    @cached_property
    def _natural(self) -> tuple[StreamOrder, ...]:
        order = Order(0, 1, shuffle=False)
        return tuple(StreamOrder(stream.chunks, order) for stream in self.view.streams)

    @property
    def _reader(self) -> SampleReader:
        """This thread's own, as it belongs to one."""
        reader: SampleReader | None = getattr(self._readers, "reader", None)
        if reader is None:
            reader = self._readers.reader = SampleReader(self.source)
        return reader


def _check_parts(parts: Sequence[str]) -> None:
    sound = isinstance(parts, Sequence) and not isinstance(parts, str | bytes) and len(parts) > 0
    if not sound or not all(isinstance(part, str) and part for part in parts) or len(set(parts)) != len(parts):
        raise ConfigError(f"parts={arguments.shown(parts)}: wanted one or more names, each once, such as {MEMBERS}")
