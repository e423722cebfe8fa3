"""Taking down: a list becomes a standing take-down, and the latest version gets a child that holds none of it.

The list is registered first, so that every run and every take-down that begins later sees it; then children are made of
the latest version until it holds nothing that stands. Versions are claimed in order of their numbers, and whoever
claims one has looked at the lists after the number below was taken: so no version lets back in what an earlier one left
out, whoever runs at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from dataengine.errors import InputError
from dataengine.storage.rundir import canonical_json
from dataengine.versions.child import TakeDown
from dataengine.versions.known import Known
from dataengine.versions.lists import Entry
from dataengine.versions.matching import Match, match
from dataengine.versions.place import DatasetPlace
from dataengine.versions.standing import Standing, read_standing, register, request_line


@dataclass(frozen=True)
class Survey:
    """What a list means to the latest version, before anything is written."""

    version: str
    match: Match
    num_samples: int
    """Samples of the latest version among what is meant."""
    touched: tuple[str, ...]
    """Shards that hold them."""
    has_duplicates: bool
    """Whether copies were looked for in the run's own tables of duplicates."""


@dataclass(frozen=True)
class Done:
    """What a take-down came to."""

    list_path: str
    version: str
    """Address of the latest version, which holds nothing that stands."""
    num_removed: int
    num_shards: int
    """Shards that were cut anew."""


def survey(place: DatasetPlace, entries: Sequence[Entry], max_phash_distance: int) -> Survey:
    """Look up what `entries` mean. Raises InputError when they name no candidate of the dataset at all."""
    dataset = place.latest()
    known = Known(dataset)
    found = match(entries, known, max_phash_distance)
    if found.found.is_empty():
        raise InputError(
            f"{dataset.version.root.url}: none of the {len(entries):,} entries names a candidate of this dataset, the "
            f"first is {entries[0]}; nothing was done. To keep out what is not there yet, use download.blocklists or a "
            "block-list rule"
        )
    meant = pl.col("key").is_in(found.found["key"].implode())
    held = dataset.samples().filter(meant).select("shard").collect(engine="streaming")
    touched = tuple(held["shard"].unique().sort())
    return Survey(dataset.version.root.url, found, len(held), touched, known.has_duplicates)


def take_down(
    place: DatasetPlace, entries: Sequence[Entry], reason: str, max_phash_distance: int, found: Match
) -> Done:
    """Register the list of a request, and publish a child if the latest version holds anything of it.

    Asked for again it finds what is there. Raises CorruptObject when the parent is damaged, StorageError otherwise.
    """
    first = request_line(place.name, entries, reason, max_phash_distance)
    known = Known(place.latest())
    path = register(place.root, first, entries, reason, max_phash_distance, found, known)
    num_removed, touched = 0, 0
    while True:
        take = _look(place)
        if take.removed.is_empty():
            return Done(path, take.parent.version.root.url, num_removed, touched)
        number, take = _claim(place, take)
        take.publish(number)
        num_removed, touched = num_removed + len(take.removed), touched + len(take.touched)


def _look(place: DatasetPlace, standing: Standing | None = None) -> TakeDown:
    # The lists are read after the version: a list registered since then is one too many, never one too few.
    parent = place.latest()
    return TakeDown(place, parent, standing or read_standing(place.root))


def _claim(place: DatasetPlace, take: TakeDown) -> tuple[int, TakeDown]:
    """The version that belongs to what stands now, and what it is made of."""
    number = int(take.parent.manifest["version"]) + 1
    while True:
        claim = canonical_json({"plan": take.plan})
        if place.root.create(f"{place.path(number)}/claim.json", claim) == claim:
            return number, take
        seen = _look(place)
        if seen.plan == take.plan:
            number += 1
        else:
            take, number = seen, int(seen.parent.manifest["version"]) + 1
