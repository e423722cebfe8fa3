"""A child carries the caption tables of what it holds, and copies those that did not change."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from dataengine.dedup.against import read_bands, read_captions
from dataengine.dedup.captions import normalise_captions
from dataengine.emit.versions import VersionFiles
from dataengine.versions.captions import cut_captions
from dataengine.versions.place import DatasetPlace
from tests.emit.publishing import contents
from tests.versions.test_takedown import emitted, keys, request


def test_captions_stay_under_the_smallest_key_that_is_left(quickstart_run: Path, tmp_path: Path) -> None:
    shutil.copytree(quickstart_run / "datasets", tmp_path / "datasets")
    place = DatasetPlace.of(f"{tmp_path}/datasets/quickstart", {})
    rows = emitted(place.latest())
    request(place, keys(rows["key"][:3].to_list()))
    child, folder = place.latest(), place.path(2)
    left = emitted(child)
    said = pl.Series(normalise_captions(left["caption"].to_arrow().cast("string")))
    wanted = dict(reversed(list(zip(said, left["key"], strict=True))))
    wanted.pop("", None)
    (told,) = child.manifest["captions"]["parts"]
    table = read_captions(place.root, f"{folder}/{told['captions']}")
    found = zip(
        table.column("caption").to_pylist(), (key.hex() for key in table.column("key").to_pylist()), strict=True
    )
    assert dict(found) == wanted
    assert told["num_rows"] == len(wanted) < len(rows)
    for path in told["bands"]:
        records = read_bands(place.root, f"{folder}/{path}", child.manifest["captions"]["spec"]).records
        assert set(records["row"]) <= set(range(len(wanted)))


def test_tables_without_a_change_are_copied(quickstart_run: Path, tmp_path: Path) -> None:
    shutil.copytree(quickstart_run / "datasets", tmp_path / "datasets")
    place = DatasetPlace.of(f"{tmp_path}/datasets/quickstart", {})
    files = VersionFiles(place.root, place.path(2))
    parent = place.latest()
    told = cut_captions(files, place.path(1), parent, pl.DataFrame({"key": ["0" * 32], "caption": ["nobody's"]}))
    assert told == parent.manifest["captions"]
    here, there = (contents(place.root, f"{place.path(number)}/captions") for number in (1, 2))
    assert list(here.values()) == list(there.values())
    listed = [file for file in parent.version.files if file.path.startswith("captions/")]
    assert files.listed() == [{"path": file.path, "nbytes": file.nbytes, "sha256": file.sha256} for file in listed]
