"""Published datasets for the reader's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.publishing import publish


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder of 18 samples in 3 shards of 2 sources; never written to."""
    return publish(tmp_path_factory.mktemp("published") / "datasets" / "pairs")


@pytest.fixture(scope="session")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 samples, some drawn twice or three times, the last four held out."""
    return publish(
        tmp_path_factory.mktemp("repeated") / "datasets" / "pairs",
        repeat=lambda position: 1 + (position % 3 == 0) + (position % 6 == 0),
        split=lambda position: "holdout" if position >= 14 else "train",
    )
