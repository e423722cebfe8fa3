"""The same config gives the same dataset, byte for byte, whoever runs it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from dataengine.config.load import load_config
from dataengine.job import Finished, run_job, survey_job
from dataengine.trainer.dataset import ShardDataset
from tests.conftest import REPOSITORY, SMALL


def run(root: Path, *overrides: str) -> Finished:
    """The small quickstart in `root`."""
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"root={root}", *SMALL, *overrides])
    return run_job(config, console=Console(quiet=True))


def content(dataset: Path) -> dict[str, str]:
    """SHA-256 of every file of a version, by relative path."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    return {path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_ray_and_serial_publish_equal_bytes(ray_cluster: None, quickstart_dataset: Path, tmp_path: Path) -> None:
    """Two independent runs in two places: different ports, times, processes and order of work."""
    shutil.copytree(quickstart_dataset.parents[2] / "sample-web", tmp_path / "sample-web")
    finished = run(tmp_path, "execution.runner=ray", "execution.download.num_cpus=0.5")
    assert finished.dataset is not None
    assert content(Path(finished.dataset)) == content(quickstart_dataset)


def test_run_again_has_nothing_to_do_and_starts_nothing(quickstart_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataengine.engine.serial import SerialExecutor

    def refuse(*_: object) -> None:
        raise AssertionError("an executor was started for an empty plan")

    monkeypatch.setattr(SerialExecutor, "__init__", refuse)
    assert run(quickstart_run).num_parts_run == 0


def test_changed_threshold_redoes_select_and_emit_alone(quickstart_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(quickstart_run, root)
    finished = run(root, "select.rules.clip_score=clip_score >= 0.3")
    redone = {state.step.stage for state in finished.board.states.values() if state.reused < len(state.done)}
    assert finished.dataset is not None
    assert finished.dataset.endswith("v000002")
    assert redone == {"select", "emit"}
    assert content(root / "datasets/quickstart/v000001") == content(quickstart_run / "datasets/quickstart/v000001")


def test_shards_whose_rows_did_not_change_are_those_of_the_first_version(quickstart_run: Path, tmp_path: Path) -> None:
    """A rule that touches one source: select and emit alone run, as `plan` says, its tars are written."""
    root = tmp_path / "copy"
    shutil.copytree(quickstart_run, root)
    run(root)  # plans name places, so that a moved run is looked through once
    override = "select.rules.shop=source <> 'shop' OR key < '8'"
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"root={root}", *SMALL, override])
    planned = survey_job(config).states.values()
    assert {state.step.stage for state in planned if not state.complete} == {"select", "emit"}
    finished = run(root, override)
    assert finished.dataset is not None
    first, second = root / "datasets/quickstart/v000001", Path(finished.dataset)
    assert second.name == "v000002"
    tars = {path.parent.name for path in second.rglob("*.tar")}
    assert tars == {"shop"}
    dataset = open_dataset(second)
    assert dataset.manifest["parent"] == "v000001"
    paths = dict(dataset.shards().select("shard", "path").collect().iter_rows())
    assert {name.partition("-")[0] for name, path in paths.items() if path.startswith("../v000001/")} == {
        "archive", "blog", "photos",
    }  # fmt: skip
    assert not verify(dataset, full=True, sample=1, progress=lambda *_: None)
    samples = dataset.samples().collect()
    assert {sample["__key__"] for sample in ShardDataset(second, decode="bytes")} == set(samples["key"])
    assert content(first) == content(quickstart_run / "datasets/quickstart/v000001")


def test_asking_for_the_first_config_again_joins_the_first_version(quickstart_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(quickstart_run, root)
    run(root, "select.balance.target=40")
    finished = run(root)
    assert (finished.num_parts_run, finished.dataset) == (0, str(root / "datasets/quickstart/v000001"))


def test_moved_root_keeps_its_facts(quickstart_run: Path, tmp_path: Path) -> None:
    """A run directory is relocatable: what was downloaded and scored is found again at another address."""
    root = tmp_path / "moved"
    shutil.copytree(quickstart_run, root)
    finished = run(root)
    redone = {state.step.name for state in finished.board.states.values() if state.reused < len(state.done)}
    assert not {name for name in redone if name.startswith("download/") and name != "download/archive"}


def test_changed_input_behind_the_same_path_is_seen(quickstart_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(quickstart_run, root)
    blog = root / "sample-web" / "inputs" / "blog.jsonl"
    lines = blog.read_text().splitlines()
    blog.write_text("\n".join(lines[:-3]) + "\n")
    finished = run(root)
    assert finished.dataset is not None
    assert finished.dataset.endswith("v000002")
    untouched = [state for name, state in finished.board.states.items() if name in ("download/shop", "score/tiny.shop")]
    assert all(state.reused == len(state.done) for state in untouched)
