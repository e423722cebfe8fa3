"""Pictures of a selection: each score before and after, and the yield along each sweep, as PNG files and one page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from dataengine.select.pool import Pool
    from dataengine.select.selection import Decision
    from dataengine.select.summary import Yield
    from dataengine.select.sweep import Sweep

_BINS = 80
_SIZE = (6.4, 3.2)


def write_plots(
    folder: Path,
    decision: Decision,
    pool: Pool,
    scores: Sequence[str],
    curves: Sequence[tuple[Sweep, Sequence[Yield]]],
) -> Path:
    """Write the plots into `folder`; the page that shows them all."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    names = []
    for score in scores:
        figure = _histogram(decision, pool, score)
        if figure is not None:
            names.append(_save(figure, folder, f"histogram-{score}"))
    names += [_save(_curve(sweep, curve), folder, f"sweep-{sweep.name}") for sweep, curve in curves]
    images = "".join(f'<img src="{html.escape(name)}" alt="{html.escape(name)}">\n' for name in names)
    page = folder / "index.html"
    page.write_text(f"<!doctype html>\n<meta charset=utf-8>\n<title>Selection</title>\n{images}", encoding="utf-8")
    return page


def _save(figure: Figure, folder: Path, name: str) -> str:
    figure.savefig(folder / f"{name}.png", dpi=120)
    return f"{name}.png"


def _histogram(decision: Decision, pool: Pool, score: str) -> Figure | None:
    """Usable rows and kept ones over the score; None where nothing has one."""
    values = pool.columns[score]
    there = values.is_not_null().to_numpy() & (pool.failed == 0)
    if not there.any():
        return None
    numbers = values.to_numpy()
    edges = np.histogram_bin_edges(numbers[there], _BINS)
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    for label, rows in (("usable", there), ("kept", there & decision.kept)):
        axes.stairs(np.histogram(numbers[rows], edges)[0], edges, label=label, fill=label == "kept", alpha=0.7)
    axes.set(xlabel=score, ylabel="rows")
    axes.legend(frameon=False)
    return figure


def _curve(sweep: Sweep, curve: Sequence[Yield]) -> Figure:
    """Survivors, published rows and draws along the sweep, with gaps where the config is impossible."""
    figure = Figure(_SIZE, layout="constrained")
    axes = figure.subplots()
    lines = {
        "survivors": [sum(found.available.values()) for found in curve],
        "published": [found.num_published for found in curve],
        "draws": [sum(found.realised.values()) for found in curve],
    }
    possible = np.array([not found.fault for found in curve])
    for label, numbers in lines.items():
        axes.plot(np.array(sweep.values, float), np.where(possible, numbers, np.nan), marker="o", label=label)
    axes.set(xlabel=sweep.name, ylabel="rows", ylim=(0, None))
    axes.legend(frameon=False)
    return figure
