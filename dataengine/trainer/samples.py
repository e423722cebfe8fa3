"""Makes samples of what was read: members decoded, caption chosen, picture fitted, transform applied.

In go `Raw` samples or `Columns`, and the epoch that each sample is drawn in; out come samples, or batches of whole
columns. Everything random about a sample is drawn from (seed, epoch, key), so it is the same whatever worker makes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from dataengine.errors import CorruptObject
from dataengine.trainer.arrays import decode_array
from dataengine.trainer.buckets import Shape
from dataengine.trainer.captions import Caption
from dataengine.trainer.collate import stack
from dataengine.trainer.decode import Decode, decode_record, decoder
from dataengine.trainer.fit import fit
from dataengine.trainer.index import Shard
from dataengine.trainer.reader import Columns, Contents
from dataengine.trainer.tarset import Raw

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sample = dict[str, Any]
_RNG = "rng"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


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
        """Whether the transform takes a generator beside the sample: a parameter `rng`, or a second one it needs."""
        if self.transform is None:
            return False
        try:
            parameters = inspect.signature(self.transform).parameters
        except (TypeError, ValueError):  # built in, without a signature
            return False
        places = [one for one in parameters.values() if one.kind in _POSITIONAL]
        return _RNG in parameters or (len(places) >= 2 and places[1].default is inspect.Parameter.empty)

    @cached_property
    def _names_rng(self) -> bool:
        assert self.transform is not None
        parameter = inspect.signature(self.transform).parameters.get(_RNG)
        return parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY

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
                decode = self._decoding(part, shape)
                sample[part] = members[part] if decode is None else decode(members[part])
            if self.caption is not None:
                record = decode_record(members["json"])
                chosen = self.caption.choose(record, key, self.seed, epoch)
                sample["caption"], sample["__caption__"] = chosen
        except CorruptObject as error:
            raise CorruptObject(f"shard {shard.name}, key {key}: {error}") from error
        except Exception as error:  # of a decode function of the user's own
            error.add_note(f"decode was given shard {shard.name}, key {key}; CorruptObject would have it replaced")
            raise
        if shape is not None:
            sample["__bucket__"] = shape
        if self.transform is None:
            return sample
        try:
            return self._transformed(sample, epoch, key)
        except Exception as error:
            error.add_note(f"transform was given shard {shard.name}, key {key}, epoch {epoch}")
            raise

    def _transformed(self, sample: Sample, epoch: int, key: str) -> Any:
        assert self.transform is not None
        if not self.wants_rng:
            return self.transform(sample)
        rng = sample_rng(self.seed, epoch, key)
        return self.transform(sample, **{_RNG: rng}) if self._names_rng else self.transform(sample, rng)

    @property
    def is_plain(self) -> bool:
        """Whether `batch` can make whole columns: members only, decoded or not."""
        return self.transform is None and self.caption is None

    @cached_property
    def arrays(self) -> frozenset[str]:
        """Parts that `batch` takes as arrays, too, stacked already."""
        return frozenset(part for part in self.parts if decoder(part, self.decode) is decode_array)

    def batch(
        self, read: Columns, epochs: NDArray[np.int64], padding: NDArray[np.bool_] | None, shape: Shape | None
    ) -> dict[str, Any]:
        """What collated `sample`s would be, without a dict for each. Raises CorruptObject like `sample`."""
        count = len(read.keys)
        columns: dict[str, Any] = {
            "__key__": read.keys,
            "__source__": [shard.source for shard in read.shards],
            "__shard__": [shard.name for shard in read.shards],
            "__epoch__": epochs,
            "__replaced__": np.zeros(count, dtype=np.bool_),
        }
        if padding is not None:
            columns["__pad__"] = padding
        # Pictures last: they cost the most, and are made again by the sample where another part is corrupt.
        found = {
            part: self._column(part, read.contents[part], shape) for part in sorted(self.parts, key="image".__eq__)
        }
        columns |= {part: found[part] for part in self.parts}
        return columns if shape is None else {**columns, "__bucket__": [shape] * count}

    def _column(self, part: str, contents: Contents, shape: Shape | None) -> Any:
        decode = self._decoding(part, shape)
        if isinstance(contents, np.ndarray) or decode is None:
            return contents
        return stack([decode(content) for content in contents])

    def _decoding(self, part: str, shape: Shape | None) -> Callable[[bytes], Any] | None:
        """What makes the value of a part; pictures are fitted to `shape`, of their bucket."""
        decode = decoder(part, self.decode, shape)
        if part != "image" or decode is None or shape is None:
            return decode
        return lambda content: _fitted(decode(content), shape)


def _fitted(picture: Any, shape: Shape) -> Any:
    # Arrays stack, and travel cheaply; bytes, and what else a function made, stay as they are.
    return fit(picture, shape) if hasattr(picture, "resize") else picture
