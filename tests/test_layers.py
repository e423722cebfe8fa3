"""Imports point down, heavy ones stay where they belong, and nothing imports in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dataengine"
STAGES = ("sources", "download", "score", "dedup", "select", "emit")
# Stage wiring may touch stores; every other file of a stage package is a kernel: arrays and bytes in and out.
WIRING = {
    *("stage", "caption_steps", "text_steps", "image_steps", "image_search", "evaluation_steps", "against"),
    *("caption_set", "publish_steps", "publish", "writing", "versions", "evaluation", "reading", "fetched_part"),
    *("located_part", "in_place"),
}
LAYERS: dict[str, int] = {
    "errors": 0, "scaling": 0, "png": 0, "orientation": 0,
    "schemas": 1, "keys": 1, "imaging": 1, "sql": 1,
    "config": 2,
    "storage": 2,
    "contract": 3,
    **dict.fromkeys(STAGES, 4),
    "trainer": 4, "testing": 4,
    "engine": 5, "analyst": 5, "pipeline": 5,
    "job": 6, "versions": 6,
    "cli": 7,
    "__main__": 8,
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules that the file imports; names under `if TYPE_CHECKING` count as types, not as imports."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in tree.body if top_level_only else _walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _walk(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _walk(node)


MODULES = dict(modules())


def area(module: str) -> str:
    """`dataengine.dedup.cells` → `dedup`."""
    return module.split(".")[1] if "." in module else "dataengine"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    mine = area(module)
    if mine == "dataengine":
        return
    for name in imports(MODULES[module]):
        other = area(name)
        if name not in MODULES or other in (mine, "dataengine"):
            continue
        assert LAYERS[other] < LAYERS[mine], f"{module} imports {name}"
        assert not (mine in STAGES and other in STAGES), f"{module} imports another stage: {name}"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_engine_imports_ray(module: str) -> None:
    uses_ray = any(name == "ray" or name.startswith("ray.") for name in imports(MODULES[module]))
    assert not uses_ray or area(module) == "engine"


@pytest.mark.parametrize("module", [name for name in MODULES if area(name) in STAGES])
def test_kernels_touch_no_store(module: str) -> None:
    if module.rpartition(".")[2] in WIRING:
        return
    # The tar format is bytes in, bytes out; it lies in storage because the store's index reads it.
    stores = {
        name for name in imports(MODULES[module]) if name.startswith(("dataengine.storage", "dataengine.contract"))
    }
    assert all(name.startswith("dataengine.storage.tar") or name == "dataengine.storage" for name in stores), stores


@pytest.mark.parametrize("module", [name for name in MODULES if area(name) == "trainer"])
def test_trainer_imports_no_stage_and_nothing_heavy(module: str) -> None:
    for name in imports(MODULES[module]):
        assert name.partition(".")[0] not in {"ray", "faiss", "open_clip", "cv2", "aiohttp", "datasketch"}
        assert not (name.startswith("dataengine.") and area(name) in {*STAGES, "engine", "cli"})


def test_nothing_imports_in_a_circle() -> None:
    graph = {
        module: {name for name in imports(path, top_level_only=True) if name in MODULES}
        for module, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()


def test_command_line_loads_nothing_heavy() -> None:
    heavy = {"ray", "torch", "faiss", "webdataset", "open_clip", "cv2", "aiohttp", "polars", "pyarrow", "pydantic"}
    code = f"import sys, dataengine.cli.app; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reader_iterates_without_torch(quickstart_dataset: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from dataengine.trainer.dataset import ShardDataset; "
        f"print(len(list(ShardDataset({str(quickstart_dataset)!r}, decode='bytes'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "60"
