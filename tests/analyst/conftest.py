"""Published datasets for the analyst's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.publishing import publish


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder of 18 samples in 3 shards of 2 sources, with 3 dropped rows each; never written to."""
    return publish(
        tmp_path_factory.mktemp("published") / "datasets" / "pairs",
        repeat=lambda position: 1 + (position % 3 == 0),
    )
