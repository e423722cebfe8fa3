"""Opening a version as frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataengine.analyst.dataset import open_dataset
from dataengine.errors import InputError
from tests.trainer.publishing import SCORES, read_rows


@pytest.mark.parametrize("address", ["manifest.json", ".", ".."])
def test_frames_hold_the_tables(published: Path, address: str) -> None:
    dataset = open_dataset((published / address).resolve())
    assert dataset.manifest["name"] == "pairs"
    assert dataset.samples().collect()["key"].to_list() == [row["key"] for row in read_rows(published)]
    assert dataset.ledger().collect().height == 18 + 6
    assert dataset.shards().collect()["num_samples"].to_list() == [7, 5, 6]
    assert dataset.funnel().collect()["num_rows"].sum() == 18 + 12
    assert dataset.histogram().collect()["num_emitted"].sum() == 18
    assert dataset.score_names() == list(SCORES)


def test_a_missing_dataset_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="looked for"):
        open_dataset(tmp_path)
