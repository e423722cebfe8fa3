"""Makes samples of what was read: members decoded, caption chosen, picture fitted, transform applied.

In go `Raw` samples with the epoch that each is drawn in; out come samples or whole columns. Everything random about a
sample is drawn from (seed, epoch, key), so it is the same whatever worker makes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dataengine.errors import CorruptObject
from dataengine.trainer.buckets import Shape, fit
from dataengine.trainer.captions import Caption
from dataengine.trainer.collate import stack
from dataengine.trainer.decode import Decode, decode_record, decoder
from dataengine.trainer.index import Shards
from dataengine.trainer.reader import Raw

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

    shards: Shards
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
        self, raw: Raw, epoch: int, shape: Shape | None = None, *, replaced: bool = False, pad: bool | None = None
    ) -> Any:
        """One sample as the user gets it; `shape` is its bucket's. Raises CorruptObject if a member does not decode.

        `replaced` says that it stands in for a corrupt one, `pad`, where batches are padded, that it fills one up.
        """
        shard = self.shards.shards[raw.shard]
        sample: Sample = {
            "__key__": raw.key,
            "__source__": shard.source,
            "__shard__": shard.name,
            "__epoch__": epoch,
            "__replaced__": replaced,
        }
        if pad is not None:
            sample["__pad__"] = pad
        try:
            for part in self.parts:
                decode = decoder(part, self.decode)
                sample[part] = raw.members[part] if decode is None else decode(raw.members[part])
            if self.caption is not None:
                record = decode_record(raw.members["json"])
                chosen = self.caption.choose(record, raw.key, self.seed, epoch)
                sample["caption"], sample["__caption__"] = chosen
        except CorruptObject as error:
            raise CorruptObject(f"shard {shard.name}, key {raw.key}: {error}") from error
        if shape is not None:
            sample["__bucket__"] = shape
            if hasattr(sample.get("image"), "resize"):
                sample["image"] = _fitted(sample["image"], shape)
        if self.transform is None:
            return sample
        return (
            self.transform(sample, sample_rng(self.seed, epoch, raw.key)) if self.wants_rng else self.transform(sample)
        )

    @property
    def is_plain(self) -> bool:
        """Whether `columns` can make whole columns: members only, decoded or not."""
        return self.transform is None and self.caption is None

    def columns(
        self, raws: Sequence[Raw], epochs: NDArray[np.int64], padding: NDArray[np.bool_] | None
    ) -> dict[str, Any]:
        """The batch that collated `sample`s would be, without a dict for each. Raises CorruptObject like `sample`."""
        shards = self.shards.shards
        batch: dict[str, Any] = {
            "__key__": [raw.key for raw in raws],
            "__source__": [shards[raw.shard].source for raw in raws],
            "__shard__": [shards[raw.shard].name for raw in raws],
            "__epoch__": epochs,
            "__replaced__": np.zeros(len(raws), dtype=np.bool_),
        }
        if padding is not None:
            batch["__pad__"] = padding
        for part in self.parts:
            decode = decoder(part, self.decode)
            members = [raw.members[part] for raw in raws]
            batch[part] = members if decode is None else stack([decode(member) for member in members])
        return batch


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _fitted(image: Any, shape: Shape) -> np.ndarray[Any, Any]:
    """The picture, fitted, as uint8 [height, width, 3]: batches of one shape stack, and bytes travel cheaply."""
    from PIL import Image

    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return np.asarray(fit(picture, shape))
