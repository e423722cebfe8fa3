"""Makes samples of what was read: members decoded, caption chosen, picture fitted, transform applied.

In go `Raw` samples with their shards and the epoch that each is drawn in; out come samples or whole columns. Everything
random about a sample is drawn from (seed, epoch, key), so it is the same whatever worker makes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dataengine.errors import CorruptObject, StorageError
from dataengine.trainer.arrays import decode_array
from dataengine.trainer.buckets import Shape
from dataengine.trainer.captions import Caption
from dataengine.trainer.collate import stack
from dataengine.trainer.decode import Decode, decode_record, decoder
from dataengine.trainer.fit import fit
from dataengine.trainer.index import Shard
from dataengine.trainer.tarset import Raw

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sample = dict[str, Any]


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of one sample in one epoch: Philox keyed by (seed, epoch), its counter the hash of `key`."""
    number = xxhash.xxh3_128_intdigest(key.encode())
    words = np.array([0, 0, number & (2**64 - 1), number >> 64], dtype=np.uint64)
    keys = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=keys, counter=words))


@dataclass(frozen=True)
class SampleMaker:
    """How samples are made of members. May be sent to other processes if `transform` and `decode` may."""

    parts: tuple[str, ...]
    decode: Decode
    seed: int
    caption: Caption | None = None
    transform: Callable[..., Any] | None = None

    @cached_property
    def wants_rng(self) -> bool:
        """Whether the transform takes a generator beside the sample."""
        if self.transform is None:
            return False
        try:
            parameters = inspect.signature(self.transform).parameters.values()
        except (TypeError, ValueError):  # built in, without a signature
            return False
        needed = [one for one in parameters if one.default is one.empty and one.kind in _POSITIONAL]
        return len(needed) >= 2

    def sample(
        self,
        raw: Raw,
        shard: Shard,
        epoch: int,
        shape: Shape | None = None,
        *,
        replaced: bool = False,
        pad: bool | None = None,
    ) -> Any:
        """One sample as the user gets it; `shape` is its bucket's. Raises CorruptObject if a member does not decode.

        `replaced` says that it stands in for a corrupt one, `pad`, where batches are padded, that it fills one up.
        """
        key, members = raw
        sample: Sample = {
            "__key__": key,
            "__source__": shard.source,
            "__shard__": shard.name,
            "__epoch__": epoch,
            "__replaced__": replaced,
        }
        if pad is not None:
            sample["__pad__"] = pad
        try:
            for part in self.parts:
                decode = decoder(part, self.decode, shape)
                sample[part] = members[part] if decode is None else decode(members[part])
            if self.caption is not None:
                record = decode_record(bytes(members["json"]))
                chosen = self.caption.choose(record, key, self.seed, epoch)
                sample["caption"], sample["__caption__"] = chosen
        except CorruptObject as error:
            raise CorruptObject(f"shard {shard.name}, key {key}: {error}") from error
        if shape is not None:
            sample["__bucket__"] = shape
            if hasattr(sample.get("image"), "resize"):  # bytes, and what else a function made, stay as they are
                sample["image"] = fit(sample["image"], shape)  # arrays stack, and travel cheaply
        if self.transform is None:
            return sample
        return self.transform(sample, sample_rng(self.seed, epoch, key)) if self.wants_rng else self.transform(sample)

    @property
    def is_plain(self) -> bool:
        """Whether `columns` can make whole columns: members only, decoded or not."""
        return self.transform is None and self.caption is None

    @property
    def is_array(self) -> bool:
        """Whether a batch is one column of arrays, which may be read stacked."""
        return self.is_plain and len(self.parts) == 1 and decoder(self.parts[0], self.decode) is decode_array

    def columns(
        self,
        shards: Sequence[Shard],
        raws: Iterable[Raw | StorageError],
        *,
        epochs: NDArray[np.int64],
        padding: NDArray[np.bool_] | None,
    ) -> dict[str, Any]:
        """The batch that collated `sample`s would be, without a dict for each.

        Raises the first error among `raws`, and CorruptObject where one lacks a part, or like `sample`.
        """
        keys, contents = _sound(raws, self.parts)
        values = {part: self._column(part, column) for part, column in contents.items()}
        return self.assembled(shards, keys, values, epochs=epochs, padding=padding)

    def _column(self, part: str, contents: list[bytes]) -> Any:
        decode = decoder(part, self.decode)
        return contents if decode is None else stack([decode(content) for content in contents])

    def assembled(
        self,
        shards: Sequence[Shard],
        keys: list[str],
        values: dict[str, Any],
        *,
        epochs: NDArray[np.int64],
        padding: NDArray[np.bool_] | None,
    ) -> dict[str, Any]:
        """The batch of samples of which all columns are made: part → column."""
        batch: dict[str, Any] = {
            "__key__": keys,
            "__source__": [shard.source for shard in shards],
            "__shard__": [shard.name for shard in shards],
            "__epoch__": epochs,
            "__replaced__": np.zeros(len(shards), dtype=np.bool_),
        }
        return batch | ({} if padding is None else {"__pad__": padding}) | values


def _sound(raws: Iterable[Raw | StorageError], parts: Sequence[str]) -> tuple[list[str], dict[str, list[bytes]]]:
    """Keys of all of `raws`, and contents of `parts`."""
    keys = []
    contents: dict[str, list[bytes]] = {part: [] for part in parts}
    takers = [(part, column.append) for part, column in contents.items()]
    for raw in raws:
        if not isinstance(raw, tuple):
            raise raw
        key, members = raw
        keys.append(key)
        try:
            for part, take in takers:
                take(members[part])
        except KeyError as error:
            raise CorruptObject(f"key {key!r} has no member {error}, but {sorted(members)}") from error
    return keys, contents


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
