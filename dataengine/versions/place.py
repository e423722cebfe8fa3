"""Where a dataset lies: its root, its name, and its versions by number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dataengine.analyst.dataset import Dataset, open_dataset
from dataengine.emit.versions import version_path
from dataengine.errors import ConfigError, InputError
from dataengine.storage.store import Root

_ADDRESS = re.compile(r"(?P<root>.+)/datasets/(?P<name>[^/]+?)(/(?P<version>v\d{6,})(/manifest\.json)?)?")


@dataclass(frozen=True)
class DatasetPlace:
    """A dataset under a root."""

    root: Root
    name: str

    @staticmethod
    def of(address: str, options: Mapping[str, str]) -> DatasetPlace:
        """Of the dataset at `<root>/datasets/<name>`, or one of its versions.

        Raises ConfigError when the address is neither, InputError when there is no such version.
        """
        whole = Root(address.rstrip("/")).address("").rstrip("/")
        found = _ADDRESS.fullmatch(whole)
        if found is None:
            raise ConfigError(
                f"{address}: got no <root>/datasets/<name>; versions are made where a run published the dataset. Of a "
                f"copy elsewhere make a new copy"
            )
        place = DatasetPlace(Root(found["root"], tuple(sorted(options.items()))), found["name"])
        version = found["version"]
        if version and not place.root.exists(f"{place.folder}/{version}/manifest.json"):
            raise InputError(f"{address}: no such version; name one that is there, or the dataset: {place.folder}")
        return place

    @property
    def folder(self) -> str:
        """Relative to the root."""
        return f"datasets/{self.name}"

    def latest(self) -> Dataset:
        """The latest published version. Raises InputError when there is none."""
        return open_dataset(self.root.address(self.folder), dict(self.root.options))

    def path(self, number: int) -> str:
        """The folder of a version, relative to the root."""
        return version_path(self.name, number)
