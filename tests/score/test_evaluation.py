from __future__ import annotations

import io
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
from dataengine.score.evaluation import ScoreEvaluation
from dataengine.score.weights import identify_scorer
from dataengine.storage.rundir import Commit, RunDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import read_npy, read_table

TINY = ScorerConfig(model="tiny-clip", pretrained="builtin")
MACHINE = Machine(1, 0, 1, {}, lambda: datetime.now(UTC))


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def score(root: Path, *sets: str) -> tuple[list[dict[str, object]], np.ndarray, list[Commit]]:
    step = ScoreEvaluation("tiny", TINY, identify_scorer(TINY), LimitsConfig(), sets)
    run = RunDirectory(Root(str(root)), "run")
    board = Board(run, [step], {step.name: "0" * 64}, store=False)
    directory = board.states[step.name].directory
    commits = []
    for part in step.plan(board).parts:
        outputs = Outputs(directory, part.name, "first")
        step.run(part, Inputs(run.root, {}, {}), outputs, MACHINE)
        commits.append(outputs.commit({}, 0.0))
    tables = [read_table(run.root, item.objects["evaluation"].path, EVALUATION).to_pylist() for item in commits]
    arrays = [read_npy(run.root, item.objects["embedding"].path, item.objects["embedding"].sha256) for item in commits]
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


@pytest.mark.parametrize("array", [np.ones((3, 7), np.float32), np.ones(64, np.float32), np.ones((3, 64), np.int64)])
def test_embeddings_of_another_model_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "set.npy", array)
    with pytest.raises(InputError, match=r"dedup\.against.*set\.npy.*wanted floats"):
        score(tmp_path, f"{tmp_path}/set.npy")


@pytest.mark.parametrize("address", ["nowhere", "empty", "none.tar"])
def test_a_set_without_images_is_an_error_that_names_it(tmp_path: Path, address: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"dedup\.against.*{address}"):
        score(tmp_path, f"{tmp_path}/{address}")


def test_a_broken_tar_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(InputError, match=r"set\.tar"):
        score(tmp_path, f"{tmp_path}/set.tar")
