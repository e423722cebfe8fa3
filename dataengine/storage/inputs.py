"""Input files: from the patterns of a config to the files there are, and a fingerprint of what each one holds."""

from __future__ import annotations

import fnmatch
import hashlib
import os
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
    folder = pattern_folder(address)
    if folder is None:
        return []
    return [path for path in root.list(folder or "/") if _matches(path, address)]


def _matches(path: str, pattern: str) -> bool:
    """Whether `pattern` fits folder by folder, as in a shell: `*` does not cross a slash."""
    names, globs = path.split("/"), pattern.split("/")
    return len(names) == len(globs) and all(map(fnmatch.fnmatchcase, names, globs))


def pattern_folder(address: str) -> str | None:
    """The folder that every match of a pattern lies beneath; None when `address` is no pattern."""
    glob = _GLOB.search(address)
    return None if glob is None else address[: glob.start()].rpartition("/")[0]


def files_beneath(root: Root, folder: str, where: str) -> list[str]:
    """Sorted addresses of the files in `folder` and its subfolders, linked ones too; each folder is read once.

    Raises InputError for a subfolder that cannot be read, or a link to a folder that `folder` itself lies in.
    """
    local = root.local_path(folder)
    if local is None:
        return root.list(folder)
    if not local.is_dir():
        return []

    def refuse(error: OSError) -> None:
        raise InputError(f"{where}: {error.filename}: {error.strerror or error}; let this user read it") from error

    top, seen, found = local.resolve(), set[Path](), list[str]()
    for parent, folders, names in os.walk(local, onerror=refuse, followlinks=True):
        real = Path(parent).resolve()
        if real in seen:
            folders.clear()
            continue
        if real != top and top.is_relative_to(real):
            raise InputError(
                f"{where}: {parent}: is a link to {real}, which {folder} itself lies in; remove it, or name the "
                "folders beside it one by one"
            )
        seen.add(real)
        folders.sort()
        inner = Path(parent).relative_to(local)
        found += [(inner / name).as_posix() for name in names if not name.startswith(".aside-")]
    return sorted(f"{folder.rstrip('/')}/{name}" for name in found)


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
