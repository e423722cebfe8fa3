"""Finds and opens one published version of a dataset.

In goes the address of a manifest.json, of a version folder, or of a dataset folder (its latest version is
taken); out comes a `Version`: the parsed manifest, its hash, and where each file lies. It reads no table and
no tar.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataengine.errors import ConfigError, InputError, MissingObject
from dataengine.storage.store import Root
from dataengine.storage.takedowns import RETIRED
from dataengine.trainer import arguments
from dataengine.trainer.manifest_faults import ABSENT, faults

FORMAT = "dataengine-dataset/1"
MANIFEST = "manifest.json"
MAX_VERSION_GAP = 16  # numbers that were claimed and never published, in a row, before a search gives up


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """One file of a version as its manifest lists it."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Version:
    """A published dataset version; `sha256` is of its manifest.json and names the version everywhere.

    `manifest` is the parsed object but for its list of files, which is `files`.
    """

    root: Root
    manifest: Mapping[str, Any]
    sha256: str
    files: tuple[PublishedFile, ...] = field(repr=False)

    def locate(self, path: str) -> str:
        """`path`, as `root` opens it; a child version names its parents' tars by `../v000001/...`.

        Raises InputError when the path leaves the dataset's folder.
        """
        clean = posixpath.normpath(path)
        if "://" in path or "\0" in path or clean.startswith(("/", "../../")) or clean in (".", "..", "../.."):
            raise InputError(f"{self.root.address(MANIFEST)}: names {path!r}, outside its dataset; do not trust it")
        if clean.startswith("../"):
            return f"{posixpath.dirname(self.root.address('')[:-1])}/{clean[3:]}"
        return clean

    def tables(self, name: str) -> list[str]:
        """Paths of the parts of the table `name` (samples, ledger), in order."""
        paths = sorted(
            file.path for file in self.files if file.path.startswith(f"{name}/") and file.path.endswith(".parquet")
        )
        if not paths:
            raise InputError(f"{self.root.address(MANIFEST)}: lists no {name}/*.parquet; publish the dataset again")
        return paths

    @property
    def is_local(self) -> bool:
        """Whether its files lie on this machine's disks."""
        return self.root.local_path(MANIFEST) is not None


def open_version(address: str | Path, options: Mapping[str, str] | None = None) -> Version:
    """The version at `address`: a manifest.json, a version folder, or a dataset folder (the latest version).

    Raises ConfigError for what is no address, InputError when there is no version there, saying what was looked for,
    when it was retired, or of unknown format.
    """
    if not isinstance(address, str | Path) or not str(address).strip() or "\0" in str(address):
        raise ConfigError(
            f"manifest={arguments.shown(address)}: wanted a path or URL of a dataset, a version or a manifest.json"
        )
    url, root_options = str(address), tuple(sorted((options or {}).items()))
    # Absolute, since the process may go elsewhere before a shard is opened.
    url = url.rstrip("/") if "://" in url or url.endswith(":") else str(Path(url).absolute())
    if url.endswith(":"):
        raise ConfigError(f"manifest={address!r}: names no bucket or folder; wanted such as s3://bucket/datasets/name")
    if url.rpartition("/")[2] == MANIFEST:
        folder = Root(Root(url).address("")[: -len(MANIFEST) - 2], root_options)
        return _parse(folder, _read(folder, f"{url}: no such manifest; is the dataset published?"))
    folder = Root(url, root_options)
    if not folder.exists(MANIFEST):
        folder = Root(f"{folder.address('')}{_latest(folder)}", root_options)
    return _parse(folder, _read(folder, f"{folder.url}: its manifest vanished while it was being opened"))


def _latest(folder: Root) -> str:
    """The highest version under `folder` that has a manifest; probed, because listings may lag."""
    found, number = "", 1
    missing = 0
    while missing < MAX_VERSION_GAP:
        name = f"v{number:06d}"
        present = folder.exists(f"{name}/{MANIFEST}")
        found, missing = (name, 0) if present else (found, missing + 1)
        number += 1
    if not found:
        raise InputError(
            f"{folder.url}: no published dataset; looked for {MANIFEST} and for v000001/{MANIFEST} to "
            f"v{MAX_VERSION_GAP:06d}/{MANIFEST}; give a manifest.json, a version folder or "
            "<root>/datasets/<name>"
        )
    return found


def _read(folder: Root, missing: str) -> bytes:
    try:
        return folder.get(MANIFEST)
    except MissingObject as error:
        raise InputError(missing) from error


def _parse(root: Root, content: bytes) -> Version:
    where = root.address(MANIFEST)
    _refuse_retired(root)
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not a dataset manifest ({error}); wanted {FORMAT!r} JSON") from error
    found = manifest.get("format", ABSENT) if isinstance(manifest, dict) else ABSENT
    if found is not ABSENT and found != FORMAT:
        raise InputError(
            f"{where}: format {arguments.shown(found)}, wanted {FORMAT!r}; read it with the dataengine that wrote it"
        )
    fault = next(faults(manifest), None)
    if fault is not None:
        raise InputError(f"{where}: not a dataset manifest ({FORMAT!r}): {fault}; copy it again")
    files = tuple(PublishedFile(file["path"], file["nbytes"], file["sha256"]) for file in manifest.pop("files"))
    return Version(root, manifest, hashlib.sha256(content).hexdigest(), files)


def _refuse_retired(root: Root) -> None:
    try:
        record = json.loads(root.get(RETIRED))
        successor = record["successor"]
    except MissingObject:
        return
    except (ValueError, KeyError, TypeError):
        successor = "a later version"
    raise InputError(
        f"{root.url}: was retired: samples of it were taken down and its files deleted; read {successor} instead"
    )
