"""A whole folder of a version that names tars of its parents: for readers that scan folders, and to give away.

Files are hard links or copies within the store where that can be; only what names places is written anew. The manifest
is written last, so a folder without one is not finished, and the same command finishes it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dataengine.analyst.dataset import Dataset, open_dataset
from dataengine.emit.card import data_card
from dataengine.emit.sidecars import dataset_sidecars
from dataengine.emit.versions import path_within
from dataengine.errors import CorruptObject, InputError
from dataengine.schemas import FUNNEL, SHARDS
from dataengine.storage.rundir import canonical_json
from dataengine.storage.store import Root
from dataengine.storage.tables import parquet_bytes, read_table

_NUMBERED = re.compile(r"/datasets/[^/]+/v\d{6,}/")


def materialize(address: str, target: str, options: Mapping[str, str]) -> tuple[int, int]:
    """Make the folder `target` of the version at `address`; number of files, and bytes of them.

    Raises InputError when the folder holds anything else or is the place of a numbered version, CorruptObject when a
    file of the version has another size than its manifest says, MissingObject when one is gone.
    """
    dataset = open_dataset(address, options)
    folder = Root(target, tuple(sorted(options.items())))
    _refuse_versions(folder, target)
    written = _rewritten(dataset)
    copies = {path_within(file.path): file for file in dataset.version.files if path_within(file.path) not in written}
    nbytes = {path: file.nbytes for path, file in copies.items()}
    _refuse_others(folder, nbytes | dict.fromkeys((*written, "manifest.json")), target)
    source = dataset.version.root
    for path, file in copies.items():
        origin = source.address(dataset.version.locate(file.path))
        size = folder.size(origin)
        if size is not None and size != file.nbytes:
            raise CorruptObject(f"{origin}: {size} bytes, its manifest says {file.nbytes}; verify the version")
        folder.copy(origin, folder.address(path))
    for path, content in written.items():
        folder.put(path, content)
    files: list[dict[str, Any]] = [
        {"path": path, "nbytes": file.nbytes, "sha256": file.sha256} for path, file in copies.items()
    ]
    files += [_file(path, content) for path, content in written.items()]
    manifest = source.get("manifest.json")
    if written:
        told = _manifest(dataset) | {"files": sorted(files, key=lambda file: str(file["path"]))}
        manifest = canonical_json(told)
    if folder.create("manifest.json", manifest) != manifest:
        raise InputError(f"{target}: holds the manifest of another version; name an empty folder")
    return len(files) + 1, sum(int(file["nbytes"]) for file in files) + len(manifest)


def _file(path: str, content: bytes) -> dict[str, Any]:
    return {"path": path, "nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _manifest(dataset: Dataset) -> dict[str, Any]:
    origin = {"version": dataset.manifest["version"], "sha256": dataset.version.sha256}
    return dict(dataset.manifest) | {"parent": None, "materialized_from": origin}


def _rewritten(dataset: Dataset) -> dict[str, bytes]:
    """What names places, by path; nothing when the version names no place outside its folder."""
    if not any(file.path.startswith("../") for file in dataset.version.files):
        return {}
    root = dataset.version.root
    old = read_table(root, "shards.parquet", SHARDS)
    paths = [path_within(path) for path in old.column("path").to_pylist()]
    shards = SHARDS.table({name: old.column(name) for name in SHARDS.arrow.names} | {"path": pa.array(paths)})
    draws = {source: facts["num_draws"] for source, facts in dataset.manifest["sources"].items()}
    funnel = read_table(root, "stats/funnel.parquet", FUNNEL)
    written = dataset_sidecars(dataset.manifest["name"], shards, draws)
    written["shards.parquet"] = parquet_bytes(shards)
    written["README.md"] = data_card(_manifest(dataset), funnel, shards).encode()
    return written


def _refuse_versions(folder: Root, target: str) -> None:
    """A whole folder among numbered versions would be the latest of them, with what was taken down since."""
    local = folder.local_path("")
    where = folder.address("") if local is None else f"{local.resolve()}/"
    if _NUMBERED.search(where):
        raise InputError(
            f"{target}: is the place of a numbered version, which only a run or a take-down publishes; name a folder "
            "elsewhere"
        )


def _refuse_others(folder: Root, wanted: Mapping[str, int | None], target: str) -> None:
    """`wanted` is path → bytes, None for what is written anew anyway."""
    for path in folder.list(""):
        if path not in wanted:
            raise InputError(f"{target}: holds {path} already; name an empty folder, or one this command began")
        nbytes, found = wanted[path], folder.size(path)
        if nbytes is not None and found != nbytes:
            raise InputError(f"{target}: holds {path} of {found} bytes, wanted {nbytes}; delete it, or the folder")
