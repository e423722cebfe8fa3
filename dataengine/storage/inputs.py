"""Input files: from the patterns of a config to the files there are, and a fingerprint of what each one holds."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from dataengine.errors import InputError
from dataengine.storage.store import Root

_BLOCK_BYTES = 1 << 20
_GLOB = re.compile(r"[*?\[]")


def input_address(root: Root, pattern: str) -> str:
    """`pattern` with `{root}` filled in, as an absolute path or URL."""
    filled = pattern.replace("{root}", root.address("").rstrip("/"))
    return filled if "://" in filled else str(Path(filled).expanduser().absolute())


def find_files(root: Root, patterns: Iterable[str], where: str) -> list[str]:
    """Addresses of the files that `patterns` (paths or globs) name, in the order of the patterns, each once.

    Raises InputError when a pattern names nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        address = input_address(root, pattern)
        matches = _expand(root, address)
        if not matches and Path(address).is_dir():
            raise InputError(f"{where}: {address}: is a folder; name the files in it, such as {address}/*.parquet")
        if not matches:
            raise InputError(f"{where}: {address}: no such file; check the path, and that this machine can reach it")
        found.update(dict.fromkeys(matches))
    return list(found)


def _expand(root: Root, address: str) -> list[str]:
    if root.exists(address):  # also when a folder on the way has brackets in its name
        return [address]
    glob = _GLOB.search(address)
    if glob is None:
        return []
    folder = address[: glob.start()].rpartition("/")[0]
    return [path for path in root.list(folder or "/") if _matches(path, address)]


def _matches(path: str, pattern: str) -> bool:
    """Whether `pattern` fits folder by folder, as in a shell: `*` does not cross a slash."""
    names, globs = path.split("/"), pattern.split("/")
    return len(names) == len(globs) and all(map(fnmatch.fnmatchcase, names, globs))


def content_fingerprint(root: Root, path: str) -> str:
    """What tells one content of an input file from another: SHA-256 on local disks, size and ETag elsewhere."""
    local = root.local_path(path)
    if local is None:
        return quick_fingerprint(root, path)
    digest = hashlib.sha256()
    with root.open(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def quick_fingerprint(root: Root, path: str) -> str:
    """A fingerprint that reads nothing, for files too large to hash: size and time of change, or size and ETag."""
    found = root.fingerprint(path)
    if found is None:
        raise InputError(f"{path}: no such file; check the path, and that this machine can reach it")
    return found
