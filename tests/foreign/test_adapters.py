"""The adapters of trainers whose pins clash with the engine's, each tested in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.foreign.test_readers import READERS

pytestmark = pytest.mark.slow
SUITES = {"xtuner": ("test_mmengine.py", "test_openuni.py", "test_xtuner.py")}


@pytest.mark.parametrize("environment", SUITES)
def test_an_adapter_passes_its_tests_beside_the_real_package(environment: str) -> None:
    python = READERS / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment of {environment} at {python}; run make test-foreign")
    folder = Path("tests/trainer/adapters")
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "-m", "slow or not slow", "-rs"]
    command += [str(folder / name) for name in SUITES[environment]]
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, env=os.environ | offline, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    summary = done.stdout.splitlines()[-1]
    assert re.search(r"[1-9]\d* passed", summary)
    assert "skipped" not in summary, done.stdout[-4000:]
