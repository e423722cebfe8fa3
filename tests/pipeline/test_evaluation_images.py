"""Images of evaluation sets are found among the samples, dropped as contaminated, and named in the ledger."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from rich.console import Console

from dataengine.config.load import load_config
from dataengine.job import run_job
from tests.cli.command import CommandLine
from tests.cli.conftest import cli
from tests.conftest import REPOSITORY, SMALL

__all__ = ["cli"]


def test_samples_in_an_evaluation_set_are_dropped_with_their_copies(
    quickstart_run: Path, quickstart_dataset: Path, tmp_path: Path, cli: CommandLine
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(quickstart_run, root, copy_function=shutil.copy2)
    emitted = pl.read_parquet(quickstart_dataset / "samples" / "*.parquet").sort("key").head(5)
    held = tmp_path / "held-out"
    held.mkdir()
    for row in emitted.iter_rows(named=True):
        shard = next(quickstart_dataset.rglob(f"{row['shard']}.tar")).read_bytes()
        content = shard[row["image_offset"] : row["image_offset"] + row["image_nbytes"]]
        Image.open(io.BytesIO(content)).convert("RGB").save(held / f"{row['key']}.jpg", quality=85)
    before = pl.read_parquet(quickstart_dataset / "ledger" / "*.parquet")
    finished = _run(root, f"dedup.against=[{held}]")
    ledger = pl.read_parquet(Path(finished) / "ledger" / "*.parquet")
    dropped = ledger.filter(pl.col("reason") == "contaminated")
    assert set(emitted["key"]) <= set(dropped["key"])
    for row in dropped.filter(pl.col("key").is_in(emitted["key"].to_list())).iter_rows(named=True):
        assert row["rule_value"] == f"{held} {row['key']}.jpg"
        assert row["similarity"] >= 0.97
    told = cli("why", finished, emitted["key"][0]).out
    assert re.search(rf"evidence +{re.escape(str(held))} .*\n +similarity +(0\.9|1\.0)", told), told
    yielded = before.filter(pl.col("survivor_key").is_in(emitted["key"].to_list()) & (pl.col("similarity") == 1.0))
    assert set(yielded["key"]) <= set(dropped["key"]), "exact copies share the fate of the one that is found"
    assert _compared(finished) == {str(held): {"num_images": 5, "unusable": {}}}
    (held / "bad.jpg").write_bytes(b"no image")
    again = _run(root, f"dedup.against=[{held}]")
    assert again != finished, "another claim, though the same rows are kept"
    assert _compared(again) == {str(held): {"num_images": 6, "unusable": {"undecodable": 1}}}
    assert f"Evaluation set {held}: 6 images; could not be compared: 1 undecodable" in cli("stats", again).out
    assert f"| evaluation_images.{held}.unusable.undecodable | 1 |" in (Path(again) / "README.md").read_text()
    kept = _run(root, f"dedup.against=[{held}]", "select.contaminated=keep")
    assert not pl.read_parquet(Path(kept) / "ledger" / "*.parquet").filter(pl.col("reason") == "contaminated").height


def _compared(dataset: str) -> object:
    return json.loads((Path(dataset) / "manifest.json").read_text())["dedup"]["evaluation_images"]


def _run(root: Path, *overrides: str) -> str:
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"root={root}", *SMALL, *overrides])
    dataset = run_job(config, console=Console(quiet=True)).dataset
    assert dataset is not None
    return dataset


def test_images_cannot_be_matched_when_they_are_not_compared() -> None:
    from dataengine.errors import ConfigError

    with pytest.raises(ConfigError, match=r"dedup\.images is null"):
        load_config(REPOSITORY / "configs" / "quickstart.yaml", ["dedup.against=[/held]", "dedup.images=null"])
