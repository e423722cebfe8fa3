"""A small internet for tests and first steps, rendered from a seed: pages under hosts that end in ``.test``,
four sources that list them, and the truth about every candidate. Equal seeds and sizes give equal bytes
anywhere; serving the pages and judging an engine by the truth is left to others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from dataengine.testing.faults import ROBOTS
from dataengine.testing.inputs import write_inputs
from dataengine.testing.pages import CLOSED_HOST, HOSTS, Page, write_body, write_index
from dataengine.testing.plan import plan
from dataengine.testing.planting import ARCHIVE, Plant
from dataengine.testing.truth import read_truth, write_truth

_LAYOUT = 4  # raised when the same seed and size come to mean other bytes
_MARKER = "web.json"


@dataclass(frozen=True)
class SampleWeb:
    """A rendered web: where it lies, what is true of every candidate (columns: ``truth.TRUTH``), each
    source's files in order, and the hosts that have an address.
    """

    directory: Path
    truth: pa.Table
    inputs: dict[str, list[Path]]
    hosts: tuple[str, ...] = (*HOSTS, CLOSED_HOST)


def render_web(directory: Path, seed: int = 7, num_scenes: int = 1000) -> SampleWeb:
    """The web of ``num_scenes`` good pictures (at least 60) and about a fifth more candidates, under
    ``directory``.

    What lies there complete is only loaded; anything else of ours there is rendered anew. Raises ValueError
    when ``num_scenes`` is too small to hold one of every kind.
    """
    marker = directory / _MARKER
    wanted = {"layout": _LAYOUT, "seed": seed, "num_scenes": num_scenes}
    if not marker.exists() or json.loads(marker.read_text())["wanted"] != wanted:
        _clear(directory)
        inputs = _render(directory, seed, num_scenes)
        names = {source: [path.name for path in paths] for source, paths in inputs.items()}
        marker.write_text(json.dumps({"wanted": wanted, "inputs": names}, indent=2) + "\n")
    return _load(directory)


def _load(directory: Path) -> SampleWeb:
    names: dict[str, list[str]] = json.loads((directory / _MARKER).read_text())["inputs"]
    inputs = {source: [directory / "inputs" / name for name in files] for source, files in names.items()}
    return SampleWeb(directory, read_truth(directory / "truth.parquet"), inputs)


def _clear(directory: Path) -> None:
    """Removes what an earlier rendering left, its marker first."""
    for name in (_MARKER, "truth.parquet", "pages.json"):
        (directory / name).unlink(missing_ok=True)
    for name in ("pages", "inputs"):
        shutil.rmtree(directory / name, ignore_errors=True)


def _render(directory: Path, seed: int, num_scenes: int) -> dict[str, list[Path]]:
    pages: list[Page] = []
    plants = list(_write_pages(directory, plan(seed, num_scenes), pages))
    write_index(directory, pages)
    write_truth(directory / "truth.parquet", (plant.truth for plant in plants))
    return write_inputs(directory / "inputs", plants, seed)


def _write_pages(directory: Path, plants: Iterator[Plant], pages: list[Page]) -> Iterator[Plant]:
    """Stores bodies as they come and passes the plants on without, but for those of the archive."""
    write_body(directory, *ROBOTS)
    pages.append(ROBOTS[0])
    for plant in plants:
        for page, body in plant.pages:
            write_body(directory, page, body)
            pages.append(page)
        yield replace(plant, pages=(), body=plant.body if plant.truth.source == ARCHIVE else None)
