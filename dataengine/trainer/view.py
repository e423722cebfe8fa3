"""The view: which rows are drawn from, as which streams, and how streams share batches.

In go a version, its shards and what the user asked for; out come the chunks of each stream and, for a global batch
size and weights, the `Schedule`. Only shards.parquet is read unless conditions, buckets or repeats make rows differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dataengine.errors import ConfigError, InputError
from dataengine.trainer.apportion import whole_weights
from dataengine.trainer.buckets import MAX_SIDE, Buckets
from dataengine.trainer.chunks import Chunks, cut_chunks, repeated
from dataengine.trainer.columns import equals, integers, predicate, scan
from dataengine.trainer.index import Shards
from dataengine.trainer.manifest import Version
from dataengine.trainer.mixture import Mixture, Repeats
from dataengine.trainer.ranks import batch_size
from dataengine.trainer.schedule import Group, Schedule, Tail, Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

Split = Literal["train", "holdout"]
EVERYTHING = "all"
_MAX_REPEAT = 1000  # the most that select gives
_MAX_EPOCH = 2**40  # draws; times the largest batch they fit 64 bits


@dataclass(frozen=True)
class Asked:
    """What a user asked a dataset for, as far as it decides which rows are drawn in which order."""

    split: Split = "train"
    seed: int = 0
    shuffle: bool = True
    repeats: bool = True
    where: str | None = None
    mixture: Mixture | Repeats | None = None
    buckets: Buckets | None = None


@dataclass(frozen=True)
class Stream:
    """Rows that are drawn from together: `name` of the mixture, and their bucket if there are buckets."""

    name: str
    bucket: int | None
    chunks: Chunks


@dataclass(frozen=True)
class View:
    """The streams of a dataset. `fitting` is a row per bucket of what fitting costs."""

    version: Version
    asked: Asked
    streams: tuple[Stream, ...]
    fitting: tuple[dict[str, Any], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a mixture weighs."""
        return tuple(dict.fromkeys(stream.name for stream in self.streams))

    def identity(self) -> dict[str, Any]:
        """What a saved position is a position in, as a few short texts and numbers that can be compared by name."""
        asked, manifest = self.asked, self.version.manifest
        mixture = asked.mixture
        streams = (
            {} if mixture is None else {"names": list(self.names), "where": dict(mixture.where), "per": mixture.per}
        )
        return {
            "dataset": f"{manifest['name']} v{int(manifest['version']):06d}",
            "snapshot": self.version.sha256[:32],
            "split": asked.split,
            "seed": asked.seed,
            "shuffle": asked.shuffle,
            "repeats": asked.repeats,
            "where": _short(asked.where),
            "streams": _short(json.dumps(streams, sort_keys=True) if streams else None),
            "buckets": _short(json.dumps(asked.buckets.shapes) if asked.buckets else None),
        }

    def schedule(self, global_batch_size: int, tail: Tail, weights: Mapping[str, float] | None = None) -> Schedule:
        """How batches are made, under the view's own weights or others by name.

        Raises ConfigError for names that the view does not have, and sizes that are none.
        """
        global_batch_size = batch_size(global_batch_size)
        groups = self._groups(global_batch_size)
        return Schedule(
            groups=groups,
            num_rows=tuple(stream.chunks.num_rows for stream in self.streams),
            weights=self._weights(groups, weights),
            epoch_draws=self.epoch_draws,
            tail=tail,
        )

    @property
    def epoch_draws(self) -> int:
        """Samples of an epoch: with `Repeats` as often as they say, else every row of every stream once."""
        if isinstance(self.asked.mixture, Repeats):
            return sum(self._times(self.asked.mixture.times).values())
        return sum(stream.chunks.num_rows for stream in self.streams)

    def _groups(self, global_batch_size: int) -> tuple[Group, ...]:
        buckets, mixture = self.asked.buckets, self.asked.mixture
        apart = mixture is not None and mixture.per == "batch"
        members: dict[Any, list[int]] = {}
        for number, stream in enumerate(self.streams):
            members.setdefault((stream.bucket, number if apart else None), []).append(number)
        return tuple(
            Group(
                tuple(numbers),
                global_batch_size
                if buckets is None or bucket is None
                else buckets.batch_size(bucket, global_batch_size),
            )
            for (bucket, _), numbers in members.items()
        )

    def _weights(self, groups: tuple[Group, ...], weights: Mapping[str, float] | None) -> Weights:
        masses = self._masses(weights)
        if len(groups) == 1:
            return Weights((1,), whole_weights(masses))
        by_group = [sum(masses[stream] for stream in group.streams) for group in groups]
        if len({group.batch for group in groups}) > 1:
            by_group = [mass / group.batch for mass, group in zip(by_group, groups, strict=True)]
        within: list[int] = [0] * len(self.streams)
        for group in groups:
            mine = [masses[stream] for stream in group.streams]
            for stream, weight in zip(
                group.streams, whole_weights(mine) if any(mine) else (0,) * len(mine), strict=True
            ):
                within[stream] = weight
        return Weights(whole_weights(by_group), tuple(within))

    def _masses(self, weights: Mapping[str, float] | None) -> list[float]:
        """What each stream weighs: its name's weight, shared out over buckets by rows."""
        mixture = self.asked.mixture
        rows = dict.fromkeys(self.names, 0)
        for stream in self.streams:
            rows[stream.name] += stream.chunks.num_rows
        if weights is None:
            if mixture is None:
                return [stream.chunks.num_rows for stream in self.streams]
            weights = self._times(mixture.times) if isinstance(mixture, Repeats) else mixture.weights
        _check_names(weights, self.names)
        if self.asked.buckets is None:
            return [weights.get(stream.name, 0) for stream in self.streams]
        return [weights.get(stream.name, 0) * stream.chunks.num_rows / rows[stream.name] for stream in self.streams]

    def _times(self, times: Mapping[str, float]) -> dict[str, int]:
        """Draws of an epoch by name."""
        found = dict.fromkeys(self.names, 0)
        for stream in self.streams:
            found[stream.name] += stream.chunks.num_rows
        draws = {name: round(rows * times.get(name, 0)) for name, rows in found.items()}
        if not 0 < sum(draws.values()) <= _MAX_EPOCH:
            raise ConfigError(
                f"mixture: times {dict(times)} of {found} samples draw {sum(draws.values()):.6g} in an epoch; wanted 1 "
                f"to {_MAX_EPOCH}"
            )
        return draws


def build_view(version: Version, shards: Shards, asked: Asked) -> View:
    """The view of `version` that was asked for.

    Raises ConfigError for a condition or name that does not fit, InputError when a stream has no rows.
    """
    masks = _scanned(version, shards, asked)
    names = list(asked.mixture.weights) if asked.mixture is not None else [EVERYTHING]
    if asked.mixture is not None:
        _check_sources(asked.mixture, shards.sources)
    streams = []
    for name in names:
        whole = _named_chunks(name, shards, asked, masks)
        if not len(whole.starts):
            raise InputError(
                f"{version.root.url}: has no samples of split {asked.split!r}{_because(name, asked)}; nothing could "
                "ever be drawn"
            )
        streams += [Stream(name, bucket, chunks) for bucket, chunks in _by_bucket(name, shards, asked, masks, whole)]
    fitting: Sequence[dict[str, Any]] = ()
    if asked.buckets is not None:
        drawn = masks["times"] > 0 if "times" in masks else np.ones(shards.num_rows, dtype=np.bool_)
        fitting = asked.buckets.fitting(masks["width"][drawn], masks["height"][drawn], masks["bucket"][drawn])
    return View(version, asked, tuple(streams), tuple(fitting))


def _scanned(version: Version, shards: Shards, asked: Asked) -> dict[str, NDArray[Any]]:
    """Arrays over all rows, for whatever of the view shards alone do not decide.

    `times` joins split, repeat and where; `by_row` is there when the table, and not the folder, told the split.
    """
    columns: list[str] = []
    found: dict[str, Any] = {}
    conditions = {} if asked.mixture is None else dict(asked.mixture.where)
    for name, text in conditions.items():
        names, found[f"where {name}"] = predicate(text, version, f"mixture.where[{name!r}]")
        columns += names
    if asked.where is not None:
        names, found["where"] = predicate(asked.where, version, "where")
        columns += names
    if asked.buckets is not None:
        columns += ["width", "height"]
        found |= {name: integers(name, 1, MAX_SIDE, version) for name in ("width", "height")}
    if not _rows_are_alike(version, shards):
        columns += ["split", "repeat"]
        found |= {"split": equals("split", asked.split), "repeat": integers("repeat", 0, _MAX_REPEAT, version)}
    if not found:
        return {}
    masks = scan(version, shards, columns, found)
    if "split" in masks:
        masks["by_row"] = masks["split"]
    times = masks.pop("repeat", None) if asked.repeats else None
    for name in ("split", "where"):
        if name in masks:
            mask = masks.pop(name)
            times = mask.astype(np.int32) if times is None else times * mask
    if times is not None:
        masks["times"] = times
    if asked.buckets is not None:
        masks["bucket"] = asked.buckets.assign(masks["width"], masks["height"])
    return masks


def _rows_are_alike(version: Version, shards: Shards) -> bool:
    """Whether shards alone tell which rows are drawn: as many draws as rows in training means that none is repeated."""
    return int(version.manifest["counts"]["num_draws"]) == int(shards.sizes[shards.of_split("train")].sum())


def _named_chunks(name: str, shards: Shards, asked: Asked, masks: Mapping[str, NDArray[Any]]) -> Chunks:
    """The rows of one name of the mixture."""
    chosen = np.ones(len(shards.shards), dtype=np.bool_)
    conditional = asked.mixture is not None and name in asked.mixture.where
    if asked.mixture is not None and not conditional:
        chosen &= shards.of_source(name)
    times = masks.get("times")
    if "by_row" not in masks:
        chosen &= shards.of_split(asked.split)
    chunks = cut_chunks(shards.first_rows[:-1][chosen], shards.sizes[chosen])
    if conditional:
        met = masks[f"where {name}"]
        times = met.astype(np.int32) if times is None else times * met
    return chunks if times is None else repeated(chunks, times)


def _by_bucket(
    name: str, shards: Shards, asked: Asked, masks: Mapping[str, NDArray[Any]], whole: Chunks
) -> list[tuple[int | None, Chunks]]:
    if asked.buckets is None:
        return [(None, whole)]
    found: list[tuple[int | None, Chunks]] = []
    for bucket in range(len(asked.buckets.shapes)):
        mine = masks["bucket"] == bucket
        times = masks.get("times")
        narrowed = dict(masks) | {"times": mine.astype(np.int32) if times is None else times * mine}
        chunks = _named_chunks(name, shards, asked, narrowed)
        if len(chunks.starts):
            found.append((bucket, chunks))
    return found


def _check_sources(mixture: Mixture | Repeats, sources: Sequence[str]) -> None:
    _check_names({name: 1.0 for name in mixture.weights if name not in mixture.where}, sources)


def _check_names(weights: Mapping[str, float], names: Sequence[str]) -> None:
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise ConfigError(f"mixture names {unknown}; wanted some of {sorted(names)}")


def _because(name: str, asked: Asked) -> str:
    said = [] if asked.where is None else [f"where {asked.where}"]
    said += [] if asked.mixture is None else [f"in {name!r} of the mixture"]
    return "".join(f" {part}" for part in said)


def _short(text: str | None) -> str | None:
    """`text`, or its beginning and hash: a position must stay small whatever condition it was saved under."""
    if text is None or len(text) <= 160:
        return text
    return f"{text[:120]}... #{hashlib.sha256(text.encode()).hexdigest()[:16]}"
