"""Patterns of input files: what they find, and what they leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dataengine.errors import InputError
from dataengine.storage.inputs import files_beneath, find_files
from dataengine.storage.store import Root


def lay(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_a_star_stays_within_a_folder(tmp_path: Path) -> None:
    lay(tmp_path, "a.csv", "b.csv", "c.txt", "runs/internal.csv", "runs/deep/er.csv")
    root = Root(str(tmp_path))
    assert find_files(root, ["{root}/*.csv"], "here") == [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]
    assert find_files(root, [f"{tmp_path}/*/*.csv"], "here") == [f"{tmp_path}/runs/internal.csv"]


def test_each_file_once_in_the_order_of_the_patterns(tmp_path: Path) -> None:
    lay(tmp_path, "a.csv", "b.csv")
    found = find_files(Root(str(tmp_path)), ["{root}/b.csv", "{root}/*.csv"], "here")
    assert found == [f"{tmp_path}/b.csv", f"{tmp_path}/a.csv"]


def test_a_folder_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    lay(tmp_path, "run[1]/a.csv")
    assert find_files(Root(str(tmp_path / "run[1]")), ["{root}/a.csv"], "here") == [f"{tmp_path}/run[1]/a.csv"]


def test_a_bucket_may_be_searched_at_its_top(s3_server: dict[str, str], tmp_path: Path) -> None:
    root = Root("s3://lake", tuple(sorted(s3_server.items())))
    name = f"{tmp_path.name}.csv"
    root.put(name, b"x")
    assert find_files(root, [f"s3://lake/{tmp_path.name}*"], "here") == [f"s3://lake/{name}"]
    assert name in root.list("")


def test_a_pattern_that_finds_nothing_is_an_error(tmp_path: Path) -> None:
    for pattern in ("{root}/none.csv", "{root}/*.csv"):
        with pytest.raises(InputError, match=r"here: .*no such file"):
            find_files(Root(str(tmp_path)), [pattern], "here")


def test_files_beneath_a_folder_are_found_through_links_and_each_folder_is_read_once(tmp_path: Path) -> None:
    lay(tmp_path, "set/b.png", "set/z/c.png", "elsewhere/deep/d.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "zz").symlink_to(tmp_path / "set" / "z")
    (tmp_path / "name").symlink_to(tmp_path / "set")
    root = Root(str(tmp_path))
    for top in (f"{tmp_path}/set", f"{tmp_path}/name", f"{tmp_path}/set/", f"file://{tmp_path}/set"):
        base = top.rstrip("/")
        wanted = [f"{base}/b.png", f"{base}/linked/deep/d.png", f"{base}/z/c.png"]
        assert files_beneath(root, top, "here") == wanted
    assert files_beneath(root, f"{tmp_path}/none", "here") == []


def test_a_link_to_a_folder_around_the_one_that_is_listed_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "all/set/a.png", "all/train/b.png")
    (tmp_path / "all" / "set" / "up").symlink_to(tmp_path / "all")
    with pytest.raises(InputError, match=rf"here: {tmp_path}/all/set/up: is a link to {tmp_path}/all, which"):
        files_beneath(Root(str(tmp_path)), f"{tmp_path}/all/set", "here")


def test_a_subfolder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "set/closed/a.png", "set/b.png")
    scan = os.scandir

    def scandir(path: str | os.PathLike[str]) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"here: .*/set/closed: Permission denied"):
        files_beneath(Root(str(tmp_path)), f"{tmp_path}/set", "here")
