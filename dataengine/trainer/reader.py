"""Reads rows of a dataset: key, members and, where latents lie in sibling tars, those too.

In go row numbers; out come their shards, and `Raw` samples or the error that each met, named by shard, key or place; or
all of them by the column, arrays stacked. It decodes nothing else, and replaces nothing.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from dataengine.errors import ConfigError, CorruptObject, StorageError
from dataengine.storage.store import Root
from dataengine.trainer.cache import Cache
from dataengine.trainer.fetch import Fetcher, Patience
from dataengine.trainer.hashes import Hashes
from dataengine.trainer.index import Shard, Shards
from dataengine.trainer.manifest import Version
from dataengine.trainer.stacked import StackedReader
from dataengine.trainer.tarset import MEMBERS, LocalTars, Raw, RemoteTars, Tars

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAIN = ""
Contents: TypeAlias = "list[bytes] | NDArray[Any]"
"""Of a part of several samples: the bytes of each, or arrays [samples, ...] that were stacked while they were read."""


class Columns(NamedTuple):
    """Samples by the column: of each its shard and its key, and part → contents."""

    shards: list[Shard]
    keys: list[str]
    contents: dict[str, Contents]


@dataclass(frozen=True)
class Source:
    """Where samples are read from, and how. May be sent to other processes; each makes its own `SampleReader`.

    `siblings` maps a part to the folder of tars of the same names that holds it; `parts` are those asked for.
    """

    version: Version
    shards: Shards
    parts: tuple[str, ...]
    siblings: Mapping[str, str] = field(default_factory=dict)
    hashes: Hashes | None = None
    patience: Patience = field(default_factory=Patience)
    cache: Cache | None = None
    process: int = field(default_factory=os.getpid)
    """That which opened it, or was sent it: a client of an object store works there alone."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, process=os.getpid())

    @property
    def is_local(self) -> bool:
        """Whether all its tars lie on this machine's disks."""
        return all(root.local_path("") is not None for root in map(self.root_of, (None, *self.siblings.values())))

    def root_of(self, folder: str | None) -> Root:
        """Where tars lie: those of a sibling's folder, or the dataset's own."""
        root = self.version.root
        if folder is None:
            return root
        absolute = "://" in folder or folder.startswith("/")
        return Root(folder if absolute else root.address(posixpath.normpath(folder)), root.options)

    def folders(self) -> dict[str, str | None]:
        """Each set of tars to open: its part, or MAIN for the dataset's own, and the folder if not its own."""
        found: dict[str, str | None] = {part: self.siblings[part] for part in self.parts if part in self.siblings}
        return found if found and len(found) == len(self.parts) else {MAIN: None, **found}


class SampleReader:
    """Reads rows of one source. Belongs to one thread of one process."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sets = {part: _open_set(source, part, folder) for part, folder in source.folders().items()}
        self._is_remote = not source.is_local
        self._stacked = {
            part: StackedReader(tars, part)
            for part, tars in self._sets.items()
            if part != MAIN and isinstance(tars, LocalTars)
        }
        self._wanted = frozenset(source.parts)
        self._own_parts = [part for part in source.parts if part not in self._sets]
        self._hashes = source.hashes

    def read(self, rows: NDArray[np.int64]) -> tuple[list[Shard], Iterator[Raw | StorageError]]:
        """Each row's shard, and its sample or what is wrong with it, in the order asked for, read when it is asked for.

        Raises ConfigError in a fork of the process that opened an object store: the client's threads are not in it, and
        it would wait for ever.
        """
        if self._is_remote and self._source.process != os.getpid():
            raise ConfigError(
                f"{self._source.version.root.url}: read in a forked process, which an object store's client does not "
                "survive; give the loader multiprocessing_context='forkserver'"
            )
        shards, asked = self._located(rows)
        samples = zip(*(tars.read(asked) for tars in self._sets.values()), strict=True)
        return shards, map(self._sound, rows.tolist(), asked, samples)

    def read_anew(self, row: int) -> Raw | StorageError | None:
        """A row whose sample was read and is no good, past all that is kept of it; None where all lies on local disks:
        what was read there is what there is.
        """
        if not self._is_remote:
            return None
        _, (place,) = self._located(np.array([row]))
        sample = self._anew(row, place)
        return self._again(row, place, sample) if type(sample) is CorruptObject else sample

    def columns(self, rows: NDArray[np.int64], arrays: Container[str]) -> Columns | None:
        """Rows of an `is_plain` reader, in half of the time; those of `arrays` stacked where they are alike.

        None where anything is wrong: `read` tells what.
        """
        shards, asked = self._located(rows)
        try:
            found = [self._columns_of_set(part, shards, asked, arrays) for part in self._sets]
        except StorageError:
            return None
        keys = found[0][0]
        if any(others != keys for others, _ in found[1:]):
            return None
        return Columns(shards, keys, {part: contents for _, of_set in found for part, contents in of_set.items()})

    def _columns_of_set(
        self, name: str, shards: list[Shard], asked: list[tuple[int, int]], arrays: Container[str]
    ) -> tuple[list[str], Mapping[str, Contents]]:
        if name in arrays and name in self._stacked and (stacked := self._stacked[name].read(asked)):
            keys, values = stacked
            if all(shard.min_key <= key <= shard.max_key for shard, key in zip(shards, keys, strict=True)):
                return keys, {name: values}
        return _gathered(self._sets[name].read(asked), self._own_parts if name == MAIN else [name])

    @property
    def is_plain(self) -> bool:
        """Whether all lies on local disks, and nothing is compared with the manifest."""
        return self._hashes is None and not self._is_remote

    def _located(self, rows: NDArray[np.int64]) -> tuple[list[Shard], list[tuple[int, int]]]:
        """Each row's shard, and (number of the shard, place in it)."""
        numbers, places = (found.tolist() for found in self._source.shards.locate(rows))
        return list(map(self._source.shards.shards.at, numbers)), list(zip(numbers, places, strict=True))

    def _sound(self, row: int, place: tuple[int, int], of_sets: Sequence[Raw | StorageError]) -> Raw | StorageError:
        sample = self._joined(row, place, of_sets)
        return self._again(row, place, sample) if type(sample) is CorruptObject else sample

    def describe(self, shard: int, place: int) -> str:
        """`shard ..., sample ...`, for messages."""
        return f"shard {self._source.shards.shards[shard].name}, sample {place}"

    def _again(self, row: int, place: tuple[int, int], fault: CorruptObject) -> Raw | StorageError:
        """A sample whose bytes were wrong, read anew: wires and caches err, too."""
        sample: Raw | StorageError = fault
        for _ in range(self._source.patience.tries - 1 if self._is_remote else 0):
            sample = self._anew(row, place)
            if type(sample) is not CorruptObject:
                break
        return sample

    def _anew(self, row: int, place: tuple[int, int]) -> Raw | StorageError:
        """A sample, read past all that is kept of it."""
        for tars in self._sets.values():
            tars.forget(*place)
        return self._joined(row, place, [next(tars.read([place])) for tars in self._sets.values()])

    def _joined(self, row: int, place: tuple[int, int], samples: Sequence[Raw | StorageError]) -> Raw | StorageError:
        """One sample out of what each set of tars holds of it."""
        key, image = "", None
        members: dict[str, bytes] = {}
        for part, sample in zip(self._sets, samples, strict=True):
            if isinstance(sample, StorageError):
                return type(sample)(f"{self.describe(*place)}{f' of {part}' if part else ''}: {sample}")
            found, of_set = sample
            if key and found != key:
                return self._corrupt(place, part, f"holds key {found!r}, the dataset {key!r}")
            key = found
            if part == MAIN:
                members, image = dict(of_set), of_set.get("image")
            else:
                members[part] = of_set[part]
        if not self._wanted <= members.keys():
            missing = sorted(self._wanted - members.keys())
            if extra := [part for part in missing if part not in MEMBERS]:
                raise ConfigError(
                    f"parts: {self.describe(*place)} has no member {extra[0]!r}, but {sorted(members)}; ask for parts "
                    "that every sample has, or leave sources without them out of the mixture"
                )
            return self._corrupt(place, MAIN, f"key {key!r} has no member {missing[0]!r}, but {sorted(members)}")
        if self._hashes is not None and image is not None:
            fault = self._hashes.fault(row, key, image)
            if fault is not None:
                return self._corrupt(place, MAIN, fault)
        return key, members

    def _corrupt(self, place: tuple[int, int], part: str, fault: str) -> CorruptObject:
        where = f"{self.describe(*place)}{f' of {part}' if part else ''}"
        return CorruptObject(f"{where}: {fault}; run `dataengine verify` on the dataset, and copy the shard again")


def columns_of(shards: list[Shard], samples: Iterable[Raw | StorageError], parts: Sequence[str]) -> Columns:
    """Samples that were read one by one, as columns. Raises the first error among them."""
    return Columns(shards, *_gathered(samples, parts))


def _gathered(samples: Iterable[Raw | StorageError], parts: Sequence[str]) -> tuple[list[str], dict[str, Contents]]:
    """Keys of all samples, contents of `parts`. Raises the first error; CorruptObject where one lacks a part."""
    keys = []
    columns: dict[str, list[bytes]] = {part: [] for part in parts}
    takers = [(part, column.append) for part, column in columns.items()]
    for sample in samples:
        if not isinstance(sample, tuple):
            raise sample
        key, members = sample
        keys.append(key)
        try:
            for part, take in takers:
                take(members[part])
        except KeyError as error:
            raise CorruptObject(f"key {key!r} has no member {error}, but {sorted(members)}") from error
    return keys, {**columns}


def _open_set(source: Source, part: str, folder: str | None) -> LocalTars | RemoteTars:
    root, tars = source.root_of(folder), Tars(source.shards.shards, part)
    if root.local_path("") is not None:
        return LocalTars(root, tars)
    return RemoteTars(root, tars, Fetcher(root, source.patience, source.cache))
