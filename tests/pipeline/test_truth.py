"""Every planted fault and duplicate of the sample web ends where it should, and the ledger closes."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import polars as pl
import pytest

from tests.pipeline.truth import load, violations


def test_every_planted_row_ends_where_it_should(quickstart_run: Path, quickstart_dataset: Path) -> None:
    joined = load(quickstart_run, quickstart_dataset)
    assert violations(joined) == []


def test_every_kind_of_fault_and_copy_was_there(quickstart_run: Path) -> None:
    kinds = set(pl.read_parquet(quickstart_run / "sample-web" / "truth.parquet")["kind"])
    copies = {"exact_copy", "lossless_copy", "jpeg_copy", "resized_copy", "cropped_copy", "watermarked_copy"}
    captions = {"same_caption", "near_caption", "mismatched_caption", "no_caption", "listed_twice"}
    rules = {"too_small", "too_wide", "blurred"}
    assert copies | captions | rules | {"first_500", "slow_drip", "pixel_bomb"} <= kinds
    assert len(kinds) > 45


def test_truth_can_fail(quickstart_run: Path, quickstart_dataset: Path) -> None:
    """Each way in which a ledger may differ from the truth is seen."""
    joined = load(quickstart_run, quickstart_dataset)
    dropped = pl.col("expected_stage") == "download"
    assert violations(joined.with_columns(reason=pl.when(dropped).then(pl.lit("other")).otherwise("reason")))
    assert violations(joined.with_columns(num_rows_ledger=pl.col("num_rows_ledger") + 1))
    yields = pl.col("reason") == "duplicate_image"
    assert violations(joined.with_columns(reason=pl.when(yields).then(None).otherwise("reason")))
    good = pl.col("kind") == "good"
    assert violations(
        joined.with_columns(reason=pl.when(good).then(pl.lit("sharp")).otherwise("reason"), state=pl.lit(""))
    )


def test_ledger_accounts_for_every_input_row(quickstart_run: Path, quickstart_dataset: Path) -> None:
    inputs = quickstart_run / "sample-web" / "inputs"
    with (inputs / "shop.csv").open(newline="", encoding="utf-8") as file:
        num_shop = sum(1 for _ in csv.DictReader(file))
    num_archive = 0
    for path in inputs.glob("archive-*.tar"):
        with tarfile.open(path) as tar:
            num_archive += sum(name.endswith(".json") for name in tar.getnames())
    wanted = {
        "photos": len(pl.read_parquet(inputs / "photos.parquet")),
        "shop": num_shop,
        "blog": len((inputs / "blog.jsonl").read_text().splitlines()),
        "archive": num_archive,
    }
    ledger = pl.read_parquet(quickstart_dataset / "ledger" / "*.parquet")
    assert dict(ledger.group_by("source").agg(pl.col("num_rows").sum()).iter_rows()) == wanted
    manifest = json.loads((quickstart_dataset / "manifest.json").read_text())
    assert {name: source["num_rows"] for name, source in manifest["sources"].items()} == wanted


def test_ledger_is_one_sorted_row_per_candidate(quickstart_dataset: Path) -> None:
    ledger = pl.read_parquet(quickstart_dataset / "ledger" / "*.parquet")
    assert ledger["key"].is_sorted()
    assert ledger["key"].is_unique().all()
    assert ledger.filter((pl.col("state") == "dropped") & pl.col("reason").is_null()).is_empty()


def test_every_dropped_duplicate_names_a_row_that_no_duplicate_removed(quickstart_dataset: Path) -> None:
    ledger = pl.read_parquet(quickstart_dataset / "ledger" / "*.parquet")
    dropped = ledger.filter(pl.col("reason") == "duplicate_image")
    survivors = dropped.join(ledger, left_on="survivor_key", right_on="key", how="left", suffix="_survivor")
    assert len(dropped) > 0
    assert survivors["state_survivor"].null_count() == 0
    assert set(survivors["reason_survivor"].drop_nulls()) <= {"balance"}
    assert survivors["similarity"].min() >= 0.97


def test_duplicates_hand_their_captions_to_the_survivor(quickstart_dataset: Path) -> None:
    samples = pl.read_parquet(quickstart_dataset / "samples" / "*.parquet").select("key", "captions")
    merged = [row["key"] for row in samples.to_dicts() if any(name.startswith("merged_") for name, _ in _items(row))]
    ledger = pl.read_parquet(quickstart_dataset / "ledger" / "*.parquet")
    assert merged
    assert set(merged) <= set(ledger["survivor_key"])


def _items(row: dict[str, object]) -> list[tuple[str, str]]:
    captions = row["captions"]
    assert isinstance(captions, list | dict)
    return list(captions.items()) if isinstance(captions, dict) else [tuple(pair.values()) for pair in captions]


@pytest.mark.slow
def test_the_whole_quickstart_agrees_with_its_truth(tmp_path: Path) -> None:
    from rich.console import Console

    from dataengine.config.load import load_config
    from dataengine.job import run_job
    from tests.conftest import REPOSITORY

    overrides = [f"root={tmp_path}", "execution.runner=serial"]
    finished = run_job(load_config(REPOSITORY / "configs" / "quickstart.yaml", overrides), console=Console(quiet=True))
    assert finished.dataset is not None
    assert violations(load(tmp_path, Path(finished.dataset))) == []
