"""Inputs that change between two runs: a new version with every row in it, and nothing published touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from tests.pipeline.test_equality import content, run

SHOP = 'sources.shop.paths=["{root}/shop/*.csv"]'


def num_shop_rows(dataset: str) -> int:
    """Input rows of the source `shop` in the ledger."""
    counted = open_dataset(dataset).ledger().filter(pl.col("source") == "shop").select(pl.col("num_rows").sum())
    return int(counted.collect().item())


def test_changed_inputs_make_new_versions(quickstart_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(quickstart_run, root)
    (root / "shop").mkdir()
    header, *lines = (root / "sample-web/inputs/shop.csv").read_text().splitlines(keepends=True)
    num_rows = num_shop_rows(str(root / "datasets/quickstart/v000001"))
    published = content(root / "datasets/quickstart/v000001")

    # One dead link more: the same rows are kept, and only the ledger differs.
    (root / "shop/a.csv").write_text("".join([header, *lines, "not a url,nothing\n"]))
    appended = run(root, SHOP)
    assert appended.dataset is not None
    assert appended.dataset.endswith("v000002")
    assert num_shop_rows(appended.dataset) == num_rows + 1
    assert content(root / "datasets/quickstart/v000001") == published
    assert not verify(open_dataset(appended.dataset), full=True, sample=1, progress=lambda *_: None)

    # A file more, and away again: rows are dealt to other ranges, and none is lost with them.
    (root / "shop/b.csv").write_text("".join([header, *(f"http://gone.invalid/{i},none\n" for i in range(40))]))
    assert num_shop_rows(str(run(root, SHOP).dataset)) == num_rows + 41
    (root / "shop/b.csv").unlink()
    assert run(root, SHOP).dataset == appended.dataset
