"""Caption tables of published versions: how a later run finds them, and refuses those it cannot be compared with."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.dedup.bands import NUM_SLOTS, RECORD, BandTable
from dataengine.dedup.caption_classes import CAPTION_ROWS, by_slot
from dataengine.dedup.routed import from_binary
from dataengine.errors import ConfigError, CorruptObject, InputError, MissingObject
from dataengine.storage.slices import SlicedObject, batch_slices, put_slices, record_slices
from dataengine.storage.store import Root
from dataengine.storage.takedowns import RETIRED

if TYPE_CHECKING:
    import pyarrow as pa

    from dataengine.storage.hashing import HashingWriter


@dataclass(frozen=True)
class EarlierPart:
    """One part of a version's caption tables."""

    dataset: str
    """`name/v000003`: what EDGE calls it."""
    captions: str
    bands: tuple[str, ...]
    num_rows: int


@dataclass(frozen=True)
class EarlierVersion:
    """The caption tables that a published version carries."""

    spec: Mapping[str, Any]
    parts: tuple[EarlierPart, ...]


def fingerprints(root: Root, addresses: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of each manifest. Raises InputError for one that is not there."""
    found = {}
    for address in addresses:
        try:
            found[address] = hashlib.sha256(root.get(address)).hexdigest()
        except MissingObject as error:
            raise InputError(
                f"dedup.against: {root.address(address)}: no such manifest; name that of a published version"
            ) from error
        if root.exists(f"{address.rpartition('/')[0]}/{RETIRED}"):
            raise InputError(f"dedup.against: {root.address(address)}: was retired; name a later version")
    return found


def earlier_parts(root: Root, manifests: Mapping[str, str], spec: Mapping[str, Any]) -> list[EarlierPart]:
    """The parts of all manifests (address → SHA-256), in order.

    Raises ConfigError when one was signed in another way than `spec`, InputError when it carries no caption tables,
    CorruptObject when it is not the manifest it was.
    """
    versions = {address: _load(root, address, sha256) for address, sha256 in manifests.items()}
    for address, version in versions.items():
        _refuse_other_spec(version.spec, spec, f"dedup.against: {root.address(address)}")
    return [part for version in versions.values() for part in version.parts]


def open_bands(root: Root, path: str, spec: Mapping[str, Any]) -> SlicedObject:
    """The band table at `path`; raises ConfigError when it was signed in another way than `spec`."""
    table = SlicedObject.open(root, path)
    _refuse_other_spec(table.metadata.get("spec", {}), spec, root.address(path))
    return table


def read_captions(root: Root, path: str) -> pa.Table:
    """All captions of the table at `path`, in row order: CAPTION_ROWS."""
    table = SlicedObject.open(root, path)
    return table.read(CAPTION_ROWS, 0, table.num_slices).combine_chunks()


def put_captions(root: Root, path: str, rows: pa.Table) -> HashingWriter:
    """Write CAPTION_ROWS, each slot of the hash a slice; size and hash of the table."""
    hashes = from_binary(rows.column("hash"), np.uint8)
    return put_slices(root, path, batch_slices(*by_slot(CAPTION_ROWS.check(rows), hashes)), {})


def read_bands(root: Root, path: str, spec: Mapping[str, Any]) -> BandTable:
    """All records of the band table at `path`; raises ConfigError as `open_bands`."""
    return BandTable(*open_bands(root, path, spec).records(RECORD, 0, NUM_SLOTS))


def put_bands(root: Root, path: str, bands: BandTable, spec: Mapping[str, Any]) -> HashingWriter:
    """Write a band table signed as `spec` says; its size and hash."""
    return put_slices(root, path, record_slices(bands.records, bands.starts), {"spec": dict(spec)})


def _refuse_other_spec(stored: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    differing = sorted(name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name))
    if differing:
        told = ", ".join(f"{name} {stored.get(name)!r} (wanted {wanted.get(name)!r})" for name in differing)
        raise ConfigError(
            f"{where}: signed with other settings: {told}. Signatures of two settings cannot be compared: give this "
            "run the settings and the seed of that one, or sign its captions anew by running it with these."
        )


@functools.lru_cache(maxsize=64)
def _load(root: Root, address: str, sha256: str) -> EarlierVersion:
    content, where = root.get(address), root.address(address)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CorruptObject(
            f"{where}: another manifest than this run was planned with; published versions never change"
        )
    try:
        manifest = json.loads(content)
        tables = manifest["captions"]
        dataset = f"{manifest['name']}/v{manifest['version']:06d}"
        folder = where.rpartition("/")[0]
        parts = tuple(
            EarlierPart(
                dataset, f"{folder}/{part['captions']}", tuple(f"{folder}/{path}" for path in part["bands"]),
                part["num_rows"],
            )
            for part in tables["parts"]
        )  # fmt: skip
        return EarlierVersion(tables["spec"], parts)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"dedup.against: {where}: carries no caption tables ({error!r}); it was published without dedup.captions, "
            "or by an earlier release: publish it anew"
        ) from error
