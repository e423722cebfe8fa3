"""Dataset versions: numbered folders, each claimed by one plan before its first byte and published by its manifest.

A version may name tars of earlier ones as its own (`../v000001/...`), so that a shard whose rows did not change is not
written again. Which shard holds which rows is noted beside the versions, by the hash of all that its bytes depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dataengine.errors import CorruptObject, MissingObject
from dataengine.storage.rundir import ObjectRef, canonical_json
from dataengine.storage.store import Root


@dataclass
class VersionFiles:
    """Writes the files of a version and remembers them for its manifest; several threads may."""

    root: Root
    folder: str
    """Of the version, relative to the root."""
    entries: list[dict[str, Any]] = field(default_factory=list)

    def put(self, path: str, content: bytes) -> None:
        """Write a file whose bytes are a pure function of the version's plan."""
        self.root.put(f"{self.folder}/{path}", content)
        self.remember(path, len(content), hashlib.sha256(content).hexdigest())

    def copy(self, folder: str, path: str, nbytes: int, sha256: str) -> None:
        """Let this version hold a file of the version in `folder` under the same path."""
        self.root.copy(f"{folder}/{path}", f"{self.folder}/{path}")
        self.remember(path, nbytes, sha256)

    def remember(self, path: str, nbytes: int, sha256: str) -> None:
        """Name a file that lies there already, or in another version."""
        self.entries.append({"path": path, "nbytes": nbytes, "sha256": sha256})

    def listed(self) -> list[dict[str, Any]]:
        """What the manifest lists: every file, by path."""
        return sorted(self.entries, key=lambda file: str(file["path"]))


def path_within(path: str) -> str:
    """Where a file that a version names would lie in its own folder: `../v000001/a/a-000000.tar` → `a/a-000000.tar`."""
    return path.split("/", 2)[2] if path.startswith("../") else path


def version_path(dataset: str, version: int) -> str:
    """The folder of a version, relative to the root."""
    return f"datasets/{dataset}/v{version:06d}"


def claim_version(root: Root, dataset: str, plan: str, check: Callable[[], None] = lambda: None) -> int:
    """The version that belongs to the plan with hash `plan`.

    The same plan joins the version it claimed before; another plan takes the next number. Gaps are legal. `check` is
    called before each number is asked for, and may raise: it sees whatever those who claimed the numbers below saw.
    """
    version, claim = 1, canonical_json({"plan": plan})
    while True:
        check()
        if root.create(f"{version_path(dataset, version)}/claim.json", claim) == claim:
            return version
        version += 1


def note_shard(root: Root, dataset: str, identity: str, version: int, objects: Mapping[str, ObjectRef]) -> None:
    """Note that `version` holds the shard of `identity`; the first note stays."""
    record = {"version": version, "objects": {name: asdict(item) for name, item in objects.items()}}
    root.create(_note_path(dataset, identity), canonical_json(record))


def find_shard(root: Root, dataset: str, identity: str, version: int) -> dict[str, ObjectRef] | None:
    """The objects of the shard of `identity`, where an earlier version than `version` holds it; else None.

    Only published versions count: what an abandoned one left behind may be cleared away by anybody. Raises
    CorruptObject when the note is none.
    """
    path = _note_path(dataset, identity)
    try:
        record = json.loads(root.get(path))
        holder = int(record["version"])
        objects = {name: ObjectRef(**item) for name, item in record["objects"].items()}
    except MissingObject:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptObject(f"{root.address(path)}: not the note of a shard: {error!r}; remove it") from error
    if holder >= version or not root.exists(f"{version_path(dataset, holder)}/manifest.json"):
        return None
    whole = all(root.size(item.path) == item.nbytes for item in objects.values())
    return objects if whole else None


def _note_path(dataset: str, identity: str) -> str:
    return f"datasets/{dataset}/shards/{identity}.json"
