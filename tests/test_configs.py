"""The configs that ship: they load, their rules fit the tables, and `plan` can be asked before any input is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dataengine.config.load import load_config
from dataengine.config.run import RunConfig
from dataengine.errors import ConfigError
from dataengine.pipeline import build_pipeline
from dataengine.select.question import Question
from dataengine.select.stage import Select

CONFIGS = Path(__file__).parent.parent / "configs"
RUNS = sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != "kustomization.yaml")


RULES = sorted(path.name for path in (CONFIGS / "rules").glob("*.yaml"))


@pytest.mark.parametrize("name", RUNS)
def test_rules_fit_the_tables(name: str) -> None:
    config = load_config(CONFIGS / name)
    step = next(step for step in build_pipeline(config).steps if isinstance(step, Select))
    assert [rule.name for rule in Question.ask([config.select], step.columns).rules[0]] == list(config.select.rules)


@pytest.mark.parametrize("name", RULES)
def test_rules_of_others_fit_any_run(name: str) -> None:
    """Each file is what it says, and its own first line tells how to ask for it."""
    text = (CONFIGS / "rules" / name).read_text()
    config = load_config(CONFIGS / "quickstart.yaml", [f"select.rules=@{CONFIGS / 'rules' / name}"])
    assert config.select.rules
    assert f"--set select.rules=@configs/rules/{name}" in text or name == "laion.yaml"
    assert build_pipeline(config)


def test_an_override_from_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--set select\.rules=@gone\.yaml: cannot read gone\.yaml"):
        load_config(CONFIGS / "quickstart.yaml", ["select.rules=@gone.yaml"])


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
