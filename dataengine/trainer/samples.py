"""Makes samples of what was read: members decoded, caption chosen, picture fitted, transform applied.

In go `Raw` samples with their shards and the epoch that each is drawn in; out come samples or whole columns. Everything
random about a sample is drawn from (seed, epoch, key), so it is the same whatever worker makes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dataengine.errors import CorruptObject, StorageError
from dataengine.trainer.arrays import ArrayColumn, decode_array
from dataengine.trainer.buckets import Shape
from dataengine.trainer.captions import Caption
from dataengine.trainer.collate import stack
from dataengine.trainer.decode import Decode, decode_record, decoder
from dataengine.trainer.fit import fit
from dataengine.trainer.index import Shard
from dataengine.trainer.tarset import Content, Raw

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
        decoders = {part: decoder(part, self.decode) for part in self.parts}
        arrays = {part: ArrayColumn(len(shards)) for part, decode in decoders.items() if decode is decode_array}
        keys, contents = _sound(raws, [part for part in self.parts if part not in arrays], arrays)
        batch: dict[str, Any] = {
            "__key__": keys,
            "__source__": [shard.source for shard in shards],
            "__shard__": [shard.name for shard in shards],
            "__epoch__": epochs,
            "__replaced__": np.zeros(len(shards), dtype=np.bool_),
        }
        if padding is not None:
            batch["__pad__"] = padding
        for part, decode in decoders.items():
            if part in arrays:
                batch[part] = arrays[part].value
            elif decode is None:
                batch[part] = contents[part]
            else:
                batch[part] = stack([decode(content) for content in contents[part]])
        return batch


def _sound(
    raws: Iterable[Raw | StorageError], parts: Sequence[str], arrays: Mapping[str, ArrayColumn]
) -> tuple[list[str], dict[str, list[Content]]]:
    """Keys of all of `raws`, and contents of `parts`; members that are arrays are added to their columns."""
    keys = []
    contents: dict[str, list[Content]] = {part: [] for part in parts}
    takers: list[tuple[str, Callable[[Content], None]]] = [(part, found.append) for part, found in contents.items()]
    takers += [(part, column.add) for part, column in arrays.items()]
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
