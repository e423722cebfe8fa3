"""What the base install must do without the engine: everything that reads, and a clear word for what builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = (
    *("aiohttp", "cv2", "datasketch", "faiss", "matplotlib", "numba", "open_clip", "PIL", "ray", "safetensors"),
    *("simplejpeg", "torch"),
)


def base(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process that has none of the engine's libraries."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"
        f"sys.argv = ['dataengine', *{list(arguments)}]\n"
        "import importlib.util as util; find = util.find_spec\n"
        f"util.find_spec = lambda name, *rest: None if name in {ABSENT} else find(name, *rest)\n"
        "from dataengine.cli.app import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", ["stats", "verify"])
def test_readers_of_datasets_need_no_engine(verb: str, quickstart_dataset: Path) -> None:
    done = base(verb, str(quickstart_dataset))
    assert done.returncode == 0, done.stderr
    if verb == "verify":
        assert "for want of Pillow: install dataengine[trainer]" in done.stdout.replace("\n", "")


def test_why_and_status_need_no_engine(quickstart_run: Path, quickstart_dataset: Path) -> None:
    for address in (quickstart_dataset, quickstart_run / "runs" / "quickstart"):
        assert base("why", str(address), "http://archive.test/00006.jpg").returncode == 0
    assert "complete" in base("status", str(quickstart_run / "runs" / "quickstart")).stdout


@pytest.mark.parametrize("verb", ["run", "plan", "preview", "quickstart"])
def test_builders_say_what_to_install(verb: str, tmp_path: Path) -> None:
    done = base(verb, str(tmp_path / "x.yaml"))
    assert done.returncode == 2
    assert "install dataengine[engine,cpu]" in done.stderr
    assert "Traceback" not in done.stderr
