"""`preview` over a finished run: what it prints is what a run would do, and it writes nothing but plots."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from dataengine.analyst.dataset import open_dataset
from tests.cli.command import CommandLine
from tests.conftest import REPOSITORY, SMALL
from tests.pipeline.test_equality import content, run


@pytest.fixture(scope="module")
def root(quickstart_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small quickstart that knows its place; not written to."""
    root = tmp_path_factory.mktemp("preview") / "copy"
    shutil.copytree(quickstart_run, root)
    run(root)
    return root


def arguments(root: Path, *overrides: str) -> list[str]:
    settings = [f"root={root}", *SMALL, *overrides]
    return [
        str(REPOSITORY / "configs" / "quickstart.yaml"),
        *(word for setting in settings for word in ("--set", setting)),
    ]


def numbers(line: str) -> list[str]:
    """The cells of a printed row."""
    return [cell.strip() for cell in line.replace("┃", "│").split("│") if cell.strip()]


def test_it_prints_the_funnel_of_the_run_and_writes_nothing(root: Path, cli: CommandLine) -> None:
    before = content(root)
    said = cli("preview", *arguments(root))
    assert said.code == 0, said.err
    assert content(root) == before
    funnel = open_dataset(root / "datasets/quickstart").funnel().collect()
    lines = [numbers(line) for line in said.out.splitlines()]
    for (stage, reason), rows in funnel.group_by("stage", "reason"):
        wanted = [stage or "emitted", *([reason] if reason else [])]
        (found,) = [line for line in lines if line[: len(wanted)] == wanted and line[-1].replace(",", "").isdigit()]
        assert int(found[-1].replace(",", "")) == rows["num_rows"].sum(), wanted
    (difference,) = [line for line in lines if line and line[0] == "all" and len(line) == 6]
    num_samples = str(open_dataset(root / "datasets/quickstart").manifest["counts"]["num_samples"])
    assert difference == ["all", num_samples, num_samples, num_samples, "·", "·"]


def test_a_sweep_says_what_runs_would_give(root: Path, cli: CommandLine, tmp_path: Path) -> None:
    plots = tmp_path / "plots"
    sweeps = ["--sweep", "clip_score=0.5,0.9", "--sweep", "balance.target=20,40"]
    said = cli("preview", *arguments(root), *sweeps, "--plot", plots)
    assert said.code == 0, said.err
    lines = [numbers(line) for line in said.out.splitlines()]
    for override, value in (("select.rules.clip_score=clip_score >= 0.9", "0.9"), ("select.balance.target=20", "20")):
        copy = tmp_path / value
        shutil.copytree(root, copy)
        finished = run(copy, override)
        counts = open_dataset(str(finished.dataset)).manifest["counts"]
        (found,) = [line for line in lines if line and line[0] == value]
        assert found[2:4] == [str(counts["num_samples"]), str(counts["num_draws"])]
    assert {"index.html", "histogram-clip_score.png", "sweep-clip_score.png"} <= {path.name for path in plots.iterdir()}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in plots.glob("*.png"))


def test_what_cannot_be_previewed_is_said(root: Path, cli: CommandLine, tmp_path: Path) -> None:
    assert "--until dedup" in cli("preview", *arguments(root, "score.scorers.tiny.precision=bfloat16")).err
    low = cli("preview", *arguments(root), "--sweep", "survivors.min_image_similarity=0.5:0.6:0.1")
    assert low.code == 2
    assert "dedup stores pairs from 0.97 on" in low.err
    unknown = cli("preview", *arguments(root), "--sweep", "clip_scor=1")
    assert unknown.code == 2
    assert unknown.err.startswith("ConfigError: --sweep clip_scor=1: ")
    assert "did you mean clip_score?" in unknown.err
    file = tmp_path / "plots"
    file.touch()
    assert "is a file" in cli("preview", *arguments(root), "--plot", file).err
    impossible = cli("preview", *arguments(root, "select.balance.if_short=error"), "--sweep", "balance.target=40,4000")
    assert impossible.code == 0, impossible.err
    assert "impossible" in impossible.out


def test_why_tells_of_a_run_what_it_tells_of_its_dataset_and_more(root: Path, cli: CommandLine) -> None:
    ledger = open_dataset(root / "datasets/quickstart").ledger().collect()
    dropped = ledger.filter(pl.col("reason") == "duplicate_image").row(0, named=True)
    for address in ("runs/quickstart", "datasets/quickstart"):
        for query in (dropped["key"], dropped["key"][:10], dropped["url"]):
            said = cli("why", root / address, query)
            assert said.code == 0, said.err
            assert dropped["key"] in said.out
            assert dropped["survivor_key"] in said.out
            assert len(re.findall(r"at \d+, \d+ bytes", said.out)) == 2, (
                "where the image lies, and that of its survivor"
            )
    failed = ledger.filter(pl.col("reason") == "http_404").row(0, named=True)
    told = cli("why", root / "runs/quickstart", failed["url"]).out
    assert "404" in told
    assert "fetched" in told
    emitted = ledger.filter(pl.col("state") == "emitted").row(0, named=True)
    assert "drawn" in cli("why", root / "runs/quickstart", emitted["key"]).out
    assert cli("why", root / "runs/quickstart", "http://nobody.test/").code == 3


def test_why_of_a_run_that_published_nothing(root: Path, cli: CommandLine, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "runs/quickstart/emit")
    ledger = open_dataset(root / "datasets/quickstart").ledger().collect()
    for reason, word in (("duplicate_image", "yields to"), ("http_404", "404"), (None, "kept")):
        row = ledger.filter(pl.col("reason").eq_missing(reason)).row(0, named=True)
        said = cli("why", copy / "runs/quickstart", row["url"] or row["key"])
        assert said.code == 0, said.err
        assert word in said.out
    assert "no candidate of this run" in cli("why", copy / "runs/quickstart", "0" * 32).err
