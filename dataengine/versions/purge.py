"""The purge: versions that hold what was taken down are retired, and their files deleted after a grace period.

A version is retired by `retired.json`, which readers meet before anything else; then its files go, but for what says
that it was (claim, manifest), and for tars that a version which stays names as its own. Nothing is deleted before the
take-down that asks for it has stood for the grace period, by the store's clock. Raw parts of runs are written anew
(`raw.py`); inputs that are read in place are their owner's, and only named.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from dataengine.analyst.dataset import Dataset, open_dataset
from dataengine.errors import InputError
from dataengine.storage.rundir import canonical_json
from dataengine.storage.takedowns import RETIRED
from dataengine.versions.child import TakeDown
from dataengine.versions.place import DatasetPlace
from dataengine.versions.raw import RawPart, raw_parts, rewrite
from dataengine.versions.standing import Standing, read_standing

_KEPT = ("claim.json", "manifest.json", RETIRED)


@dataclass(frozen=True)
class Purge:
    """What will go."""

    retired: tuple[str, ...]
    """Folders of versions, relative to the root."""
    successor: str
    """Name of the version to be read instead."""
    files: tuple[str, ...]
    """Objects to delete, relative to the root."""
    raw: tuple[RawPart, ...]
    """Parts of download that are written anew, without what was taken down."""
    keys: frozenset[str]
    """What was taken down."""
    outside: tuple[str, ...]
    """Inputs read in place that hold pictures taken down; they stay."""


def plan_purge(place: DatasetPlace, grace: timedelta, now: datetime) -> Purge:
    """What a purge deletes now. Nothing is written.

    Raises InputError when nothing was taken down, when a take-down stands for less than `grace`, or when the latest
    version still holds something that was taken down.
    """
    standing = read_standing(place.root)
    _check_grace(place, standing, grace, now)
    latest = place.latest()
    number = int(latest.manifest["version"])
    versions = dict(_versions(place, number))
    doomed = {folder for folder, found in versions.items() if not TakeDown(place, found, standing).removed.is_empty()}
    if place.path(number) in doomed:
        raise InputError(
            f"{latest.version.root.url}: holds what was taken down; take it down in this dataset first: `dataengine "
            f"takedown {place.root.address(place.folder)} --list ...`"
        )
    named = {path for folder, found in versions.items() if folder not in doomed for path in _objects(folder, found)}
    retired = {*doomed, *_already_retired(place, number)}
    files = [
        path
        for folder in sorted(retired)
        for path in place.root.list(folder)
        if path not in named and path.removeprefix(f"{folder}/") not in _KEPT
    ]
    successor = f"v{number:06d}"
    keys = frozenset(standing.listed.keys)
    raw, outside = raw_parts(place.root, keys)
    return Purge(tuple(sorted(doomed)), successor, tuple(files), tuple(raw), keys, tuple(sorted(outside)))


def purge(place: DatasetPlace, planned: Purge) -> None:
    """Retire versions, delete files, then write raw parts anew; killed in between, the same command goes on."""
    for folder in planned.retired:
        place.root.create(f"{folder}/{RETIRED}", canonical_json({"successor": planned.successor}))
    for path in planned.files:
        place.root.delete(path)
    rewrite(planned.raw, planned.keys)


def _check_grace(place: DatasetPlace, standing: Standing, grace: timedelta, now: datetime) -> None:
    if not standing.paths:
        raise InputError(f"{place.root.address('takedowns')}: nothing was taken down, so there is nothing to purge")
    for path in standing.paths:
        registered = place.root.modified(path)
        if registered is None or now - registered < grace:
            raise InputError(
                f"{place.root.address(path)}: stands since {registered and registered.isoformat(timespec='seconds')}, "
                f"less than the grace period of {grace.days} days; wait, or shorten it with --grace-days"
            )


def _versions(place: DatasetPlace, latest: int) -> Iterator[tuple[str, Dataset]]:
    """(folder, version) of each published version that is not retired."""
    for number in range(1, latest + 1):
        folder = place.path(number)
        if place.root.exists(f"{folder}/manifest.json") and not place.root.exists(f"{folder}/{RETIRED}"):
            yield folder, open_dataset(place.root.address(folder), dict(place.root.options))


def _already_retired(place: DatasetPlace, latest: int) -> list[str]:
    folders = map(place.path, range(1, latest + 1))
    return [folder for folder in folders if place.root.exists(f"{folder}/{RETIRED}")]


def _objects(folder: str, dataset: Dataset) -> Iterator[str]:
    for file in dataset.version.files:
        yield posixpath.normpath(f"{folder}/{file.path}")
