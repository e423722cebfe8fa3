"""Every benchmark still imports from the code that it measures what it wants of it, and runs to its report."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks

MODULES = sorted(path.stem for path in Path(benchmarks.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", MODULES)
def test_benchmark_imports(name: str) -> None:
    try:
        importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if str(error.name).startswith(("dataengine", "benchmarks")):
            raise
        pytest.skip(f"the peer {error.name} is not installed")


SMALL = {
    "bench_engine": ["--rows", "20"],
    "bench_quickstart": ["--rows", "60"],
    "dedup_captions": ["--rows", "2000"],
    "dedup_images": ["--rows", "3000"],
    "download": ["--rows", "60"],
    "emit": ["--rows", "100"],
    "emit_plan": ["--rows", "24000"],
    "score": ["--rows", "32"],
    "select": ["--rows", "24000"],
    "trainer": ["--rows", "1000", "--repeat", "1"],
    "trainer_s3": ["--rows", "1000"],
    "trainer_scale": ["--rows", "24000"],
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SMALL)
def test_benchmark_runs_to_its_report(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name]],
        cwd=Path(benchmarks.__file__).parent.parent,
        env=os.environ | {"DATAENGINE_BENCHMARK_RESULTS": str(tmp_path / "results")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["results"]
    assert all({"name", "value", "goal", "met"} <= goal.keys() for goal in said["goals"])
    (kept,) = (tmp_path / "results").glob(f"{name}*.json")
    assert json.loads(kept.read_text())["results"] == said["results"]
