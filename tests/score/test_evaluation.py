from __future__ import annotations

import io
import re
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataengine.config.download import LimitsConfig
from dataengine.config.score import ScorerConfig
from dataengine.contract import Inputs, Machine, Outputs
from dataengine.engine.board import Board
from dataengine.errors import InputError
from dataengine.schemas import EVALUATION
from dataengine.score import evaluation
from dataengine.score.evaluation import ScoreEvaluation
from dataengine.score.weights import identify_scorer
from dataengine.storage.rundir import Commit, RunDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import read_npy, read_table
from tests.conftest import REPOSITORY

TINY = ScorerConfig(model="tiny-clip", pretrained="builtin")
MACHINE = Machine(1, 0, 1, {}, lambda: datetime.now(UTC))


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def step_and_board(root: Path, *sets: str) -> tuple[ScoreEvaluation, Board]:
    step = ScoreEvaluation("tiny", TINY, identify_scorer(TINY), LimitsConfig(), sets)
    return step, Board(RunDirectory(Root(str(root)), "run"), [step], {step.name: "0" * 64}, store=False)


def score(root: Path, *sets: str) -> tuple[list[dict[str, object]], np.ndarray, list[Commit]]:
    step, board = step_and_board(root, *sets)
    directory = board.states[step.name].directory
    commits = []
    for part in step.plan(board).parts:
        outputs = Outputs(directory, part.name, "first")
        step.run(part, Inputs(board.root, {}, {}), outputs, MACHINE)
        commits.append(outputs.commit({}, 0.0))
    step.check(commits)
    tables = [read_table(board.root, item.objects["evaluation"].path, EVALUATION).to_pylist() for item in commits]
    arrays = [read_npy(board.root, item.objects["embedding"]) for item in commits]
    return [row for table in tables for row in table], np.concatenate(arrays), commits


def test_folders_tars_and_embeddings_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "set" / "deeper").mkdir(parents=True)
    contents = {"a.png": picture(1), "deeper/b.PNG": picture(2)}
    for name, content in contents.items():
        (tmp_path / "set" / name).write_bytes(content)
    (tmp_path / "set" / "notes.txt").write_text("no image")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in contents:
            tar.add(tmp_path / "set" / name, name)
    rows, embeddings, _ = score(tmp_path, f"{tmp_path}/set")
    assert [row["name"] for row in rows] == ["a.png", "deeper/b.PNG"]
    np.save(tmp_path / "set.npy", embeddings.astype(np.float32) * 3)
    packed, of_tar, _ = score(tmp_path, "{root}/set.tar")
    assert [row["name"] for row in packed] == ["set.tar/a.png", "set.tar/deeper/b.PNG"]
    assert [row["phash"] for row in packed] == [row["phash"] for row in rows]
    assert of_tar.tobytes() == embeddings.tobytes()
    given, of_array, _ = score(tmp_path, f"{tmp_path}/*.npy")
    assert [(row["name"], row["phash"]) for row in given] == [("set.npy/0", None), ("set.npy/1", None)]
    assert of_array.astype(np.float32) == pytest.approx(embeddings.astype(np.float32), abs=1e-3)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "TIFF"])
def test_formats_of_benchmarks_are_looked_at_too(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture(1))
    Image.open(io.BytesIO(picture(1))).save(tmp_path / "set" / f"b.{suffix}", suffix[:4].replace("tif", "tiff"))
    (tmp_path / "set" / f"c.{suffix}").write_bytes(b"BM but no more")
    rows, embeddings, commits = score(tmp_path, f"{tmp_path}/set")
    assert [row["name"] for row in rows] == ["a.png", f"b.{suffix}"]
    assert rows[0]["phash"] == rows[1]["phash"]
    assert np.array_equal(embeddings[0], embeddings[1])
    assert sum(commits[0].counts.values()) == 1


def test_images_that_do_not_decode_are_counted(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "good.png").write_bytes(picture(1))
    (tmp_path / "set" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 but no more")
    rows, _, commits = score(tmp_path, f"{tmp_path}/set")
    assert [row["name"] for row in rows] == ["good.png"]
    assert commits[0].counts == {"undecodable": 1}
    assert commits[0].facts["evaluation"] == {
        "set": f"{tmp_path}/set",
        "of": "set",
        "num_images": 2,
        "unusable": {"undecodable": 1},
    }


def test_a_folder_in_several_parts_is_judged_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_PART_IMAGES", 1)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "set" / "good.png").write_bytes(picture(1))
    rows, _, commits = score(tmp_path, f"{tmp_path}/set")
    assert [row["name"] for row in rows] == ["good.png"]
    assert [commit.counts for commit in commits] == [{"undecodable": 1}, {}]


@pytest.mark.parametrize("packed", [False, True])
def test_images_of_which_none_decodes_are_an_error_with_the_reasons(tmp_path: Path, packed: bool) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "set" / name).write_bytes(b"no image")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "set", "set")
    address = "{root}/set.tar" if packed else "{root}/set"
    with pytest.raises(InputError, match=r"dedup\.against: set.*none of its 2 images.*undecodable 2"):
        score(tmp_path, address)


@pytest.mark.parametrize(
    ("names", "told"),
    [([], "0 members (it is empty)"), (["a.txt", "b.txt", "c.json", "LICENSE"], "4 members (.txt, .json, no suffix)")],
)
def test_a_tar_without_images_is_an_error_that_says_what_it_holds(tmp_path: Path, names: list[str], told: str) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(InputError, match=rf"set\.tar: no images among its {re.escape(told)}, wanted.*\.png"):
        score(tmp_path, f"{tmp_path}/set.tar")


@pytest.mark.parametrize("name", ["more.tar", "deeper/more.npy"])
def test_a_folder_that_holds_tars_or_arrays_too_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "set" / "deeper").mkdir(parents=True)
    (tmp_path / "set" / "a.png").write_bytes(picture(1))
    (tmp_path / "set" / name).write_bytes(b"")
    pattern = re.escape(f"{(tmp_path / 'set' / name).parent}/*{Path(name).suffix}")
    with pytest.raises(InputError, match=rf"dedup\.against: {tmp_path}/set: holds 1 .*and 1 images.*{pattern}"):
        score(tmp_path, f"{tmp_path}/set")


def test_embeddings_without_direction_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_PART_EMBEDDINGS", 2)
    array = np.random.default_rng(0).normal(size=(7, 128))
    array[[0, 1, 6]] = 0
    array[3, 5] = np.nan
    array[4] *= 1e-300
    array[5] *= 1e300 / np.abs(array[5]).max()
    np.save(tmp_path / "set.npy", array)
    rows, embeddings, commits = score(tmp_path, f"{tmp_path}/set.npy")
    assert [row["name"] for row in rows] == ["set.npy/2", "set.npy/4", "set.npy/5"]
    assert [commit.counts for commit in commits] == [{"zero": 2}, {"not_finite": 1}, {}, {"zero": 1}]
    assert [commit.rows_in for commit in commits] == [2, 2, 2, 1]
    assert np.linalg.norm(embeddings.astype(np.float64), axis=1) == pytest.approx([1, 1, 1], abs=1e-3)


def test_parts_of_one_array_are_told_apart_by_what_they_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a part whose number now means other rows would be taken from an earlier plan."""
    monkeypatch.setattr(evaluation, "_PART_EMBEDDINGS", 2)
    np.save(tmp_path / "set.npy", np.ones((6, 128), np.float32))
    step, board = step_and_board(tmp_path, f"{tmp_path}/set.npy")
    reads = [tuple(part.spec["reads"].items()) for part in step.plan(board).parts]
    assert len(set(reads)) == 3


def test_an_array_of_which_no_row_has_a_direction_is_an_error_though_another_has_some(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 128), np.float32))
    np.save(tmp_path / "b.npy", np.array([[0.0], [np.nan], [np.inf]]) * np.ones(128))
    with pytest.raises(InputError, match=r"b\.npy: none of its 3 images.*not_finite 2, zero 1"):
        score(tmp_path, f"{tmp_path}/*.npy")


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00\x05\x00((((("])
def test_a_broken_array_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"dedup\.against.*set\.npy: not a readable \.npy array"):
        score(tmp_path, f"{tmp_path}/set.npy")


@pytest.mark.parametrize("array", [np.ones((3, 7), np.float32), np.ones(64, np.float32), np.ones((3, 64), np.int64)])
def test_embeddings_of_another_model_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "set.npy", array)
    with pytest.raises(InputError, match=r"dedup\.against.*set\.npy.*wanted floats"):
        score(tmp_path, f"{tmp_path}/set.npy")


@pytest.mark.parametrize("packed", [False, True])
def test_files_that_may_be_images_but_are_not_read_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    monkeypatch.setattr(evaluation, "_PART_IMAGES", 1)
    (tmp_path / "set").mkdir()
    for number, name in enumerate(("good.png", "more.png")):
        (tmp_path / "set" / name).write_bytes(picture(number))
    others = ["a.ppm", "b.JFIF", "c.avif", "ILSVRC2012_val_00000001"]
    beside = ["a.txt", "a.JSON", "a.cls", "a.md", "a.csv", "a.html", "a.xml", "a.yaml"]
    for name in others + beside:
        (tmp_path / "set" / name).write_bytes(b"")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(tmp_path / "set", "set")
        tar.addfile(tarfile.TarInfo("a.npy"))
    rows, _, commits = score(tmp_path, "{root}/set.tar" if packed else "{root}/set")
    assert len(rows) == 2
    assert [commit.counts for commit in commits] == ([{"other_file": 4}] if packed else [{"other_file": 4}, {}])
    facts = [commit.facts["evaluation"] for commit in commits]
    assert sum(found["num_images"] for found in facts) == 6
    assert facts[0]["unusable"] == {"other_file": 4}


def test_a_file_that_joins_the_others_of_a_folder_makes_another_part(tmp_path: Path) -> None:
    """Else an earlier count would stand in the manifest."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture(1))
    step, board = step_and_board(tmp_path, f"{tmp_path}/set")
    before = step.plan(board)
    (tmp_path / "set" / "b.ppm").write_bytes(b"")
    after = step.plan(board)
    assert before.parts[0].spec["reads"] != after.parts[0].spec["reads"]


def test_the_docs_say_which_files_are_read_and_which_are_passed_over() -> None:
    text = (REPOSITORY / "docs" / "dedup-images.md").read_text()
    for suffix in (*evaluation.IMAGE_SUFFIXES, *evaluation._BESIDE):
        assert f"`{suffix}`" in text


def test_images_in_a_linked_subfolder_are_compared_too(tmp_path: Path) -> None:
    for name in ("set", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(picture(len(name)))
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    rows, _, _ = score(tmp_path, f"{tmp_path}/set")
    assert [row["name"] for row in rows] == ["linked/elsewhere.png", "set.png"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("nowhere", "does not exist"),
        ("set/a.png", "is one image: name its folder, ROOT/set"),
        ("set/a.txt", "is a file, but neither a .tar nor a .npy"),
        ("set/*.jpg", "patterns are for .tar and .npy files: name the folder, such as ROOT/set"),
        ("p.tar.gz", "compressed tars are not read: unpack it or make a plain tar"),
        ("*.tgz", "compressed tars are not read: unpack it or make a plain tar"),
        ("texts", "no images there (.txt); name"),
        ("empty", "no images there (it is empty); name"),
    ],
)
def test_an_address_where_nothing_is_read_is_told_why(tmp_path: Path, address: str, told: str) -> None:
    for name in ("set/a.png", "set/a.txt", "texts/a.txt", "p.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    told = f"dedup.against: {tmp_path}/{address}: {told.replace('ROOT', str(tmp_path))}"
    with pytest.raises(InputError, match=re.escape(told)):
        score(tmp_path, f"{tmp_path}/{address}")


def test_an_empty_prefix_of_a_bucket_does_not_exist(s3_server: dict[str, str], tmp_path: Path) -> None:
    board = Board(RunDirectory(Root("s3://lake", tuple(sorted(s3_server.items()))), "run"), [], {}, store=False)
    step = ScoreEvaluation("tiny", TINY, "weights", LimitsConfig(), (f"s3://lake/{tmp_path.name}/none",))
    with pytest.raises(InputError, match=r"none: does not exist"):
        step.plan(board)


@pytest.mark.parametrize("address", ["nowhere", "empty", "none.tar"])
def test_a_set_without_images_is_an_error_that_names_it(tmp_path: Path, address: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"dedup\.against.*{address}"):
        score(tmp_path, f"{tmp_path}/{address}")


def test_a_broken_tar_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(InputError, match=r"set\.tar"):
        score(tmp_path, f"{tmp_path}/set.tar")
