"""The configs that ship: they load, their rules fit the tables, and `plan` can be asked before any input is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from dataengine.config.load import load_config
from dataengine.config.run import RunConfig
from dataengine.schemas import score_schema
from dataengine.select.rules import compile_rules
from dataengine.select.stage import rule_schema

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "kustomization.yaml")


@pytest.mark.parametrize("name", RUNS)
def test_rules_fit_the_tables(name: str) -> None:
    config = load_config(CONFIGS / name)
    tables = {
        scorer: score_schema(
            config.clip_score_columns[scorer].values(), wanted.heads, measures=scorer == config.first_scorer
        )
        for scorer, wanted in config.score.scorers.items()
    }
    frame = pl.DataFrame(pl.from_arrow(rule_schema(tables).empty_table()))
    rules = compile_rules(config.select.rules, frame.schema)
    assert [rule.name for rule in rules] == list(config.select.rules)
    preferred = [order.split()[0] for order in config.select.survivors.prefer]
    assert set(preferred) <= set(frame.columns)


@pytest.fixture(scope="module")
def openuni() -> RunConfig:
    return load_config(CONFIGS / "openuni_24m.yaml")


def test_openuni_asks_for_every_source(openuni: RunConfig) -> None:
    balance = openuni.select.balance
    assert balance.target == 24_000_000
    assert balance.weights.keys() == openuni.sources.keys()
    assert sum(balance.weights.values()) == pytest.approx(1)
    assert openuni.emit.shard_multiple == 128


def test_openuni_names_a_place_under_its_root_for_every_input(openuni: RunConfig) -> None:
    for name, source in openuni.sources.items():
        assert all(path.startswith("{root}/inputs/") for path in source.paths), name
        assert source.license, name


def test_plan_says_what_is_absent_and_writes_nothing(openuni: RunConfig, tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = [sys.executable, "-m", "dataengine", "plan", str(CONFIGS / "openuni_24m.yaml"), "--set", f"root={root}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    problems = [line for line in done.stdout.splitlines() if line.startswith("cannot be planned yet")]
    assert len(problems) == len(openuni.sources)
    for name in openuni.sources:
        (problem,) = (line for line in problems if f"sources.{name}.paths" in line)
        assert str(root) in problem
    assert "24,000,000" in done.stdout
    assert not root.exists()
