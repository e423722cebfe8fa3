"""What README and docs show works: commands run, configs load, snippets and queries run, links lead somewhere.

Everything is carried out in a folder that looks like the one a reader has after `make quickstart`: the small quickstart
in `quickstart/`, and its config in `configs/quickstart.yaml`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from dataengine.config.load import parse_config
from dataengine.download.outcomes import REASONS
from dataengine.storage.rundir import RunDirectory
from dataengine.storage.store import Root
from scripts import config_reference, table_reference

REPOSITORY = Path(__file__).parent.parent
DOCS = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCS += sorted((REPOSITORY / "docs").rglob("*.md"))

NOT_RUN = {
    "make ": "installs an environment, then runs what is tested here; that the target exists is checked",
    "kubectl ": "needs a Kubernetes cluster",
    "ray job submit ": "needs a Ray cluster with a job server",
    "dataengine status s3://": "needs that bucket",
    "torchrun ": "trains for a minute, with two processes; tests/examples does, and kills it",
    "python examples/": "goes on with that training; tests/examples does",
    "python -m scripts.": "writes into docs/; that it would change nothing is checked",
}
"""Beginnings of the commands that are shown and not run, with the reason."""

OPTIONAL = {"accelerate", "mmengine", "torchdata", "transformers"}
"""Trainers that adapters are for: what imports one is run where it is installed."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line}"


def blocks_of(path: Path) -> Iterator[Block]:
    fence, start, content = "", 0, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            content.append(line)
        elif fence:
            yield Block(path, start, fence, "\n".join(content))
            fence = ""
        else:
            fence, start, content = line[3:].strip(), number + 1, []
            assert fence, f"{path}:{number}: a fenced block needs a language"
    assert not fence, f"{path}: the block from line {start} on is not closed"


BLOCKS = [block for path in DOCS for block in blocks_of(path)]


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def commands() -> list[str]:
    """Every command shown, each once, in reading order; comments removed and continued lines joined."""
    lines = (line for block in blocks("sh") for line in block.text.replace("\\\n", " ").splitlines())
    plain = (" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in lines)
    return list(dict.fromkeys(line for line in plain if line))


def run_commands() -> list[str]:
    return [command for command in commands() if not command.startswith(tuple(NOT_RUN))]


@pytest.fixture(scope="module")
def workplace(quickstart_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the docs speak of; its run reads the inputs where they lay at first."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(quickstart_run, folder / "quickstart")
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    config = RunDirectory(Root(str(quickstart_run)), "quickstart").last_config()["config"]
    for source in config["sources"].values():
        source["paths"] = [path.replace("{root}", str(quickstart_run)) for path in source["paths"]]
    (folder / "configs" / "quickstart.yaml").write_text(json.dumps(config | {"root": "./quickstart"}))
    return folder


@pytest.mark.parametrize("command", run_commands())
def test_command_runs(command: str, workplace: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=workplace,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_what_needs_more_than_this_machine_is_not_run() -> None:
    shown = commands()
    for beginning in NOT_RUN:
        assert any(command.startswith(beginning) for command in shown), f"no longer shown: {beginning}"
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    asked = {command.split()[1] for command in shown if command.startswith("make ")}
    assert asked <= targets
    modules = [command.split()[-1] for command in shown if command.startswith("python -m scripts.")]
    assert modules == [config_reference.__name__, table_reference.__name__]


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_config_loads(block: Block) -> None:
    """A whole config as it is; an excerpt, laid over the quickstart's."""
    tree = yaml.safe_load(block.text)
    if not {"name", "sources"} <= tree.keys():
        tree = yaml.safe_load((REPOSITORY / "configs" / "quickstart.yaml").read_text()) | tree
    parse_config(json.dumps(tree), where=str(block))


INSTALLED = {name for name in OPTIONAL if find_spec(name) is not None}


def needs(block: Block) -> set[str]:
    """Which of the optional packages a snippet imports, itself or by an adapter."""
    named = set(re.findall(r"^(?:from|import) (\w+)", block.text, re.MULTILINE)) & OPTIONAL
    return named | ({"mmengine"} if "adapters.mmengine" in block.text else set())


def test_snippets_of_every_optional_package_are_known() -> None:
    assert set().union(*map(needs, blocks("python"))) == OPTIONAL


def run_snippets(path: Path) -> dict[str, Any]:
    """What the snippets of a document leave behind, run one after another as a reader would type them."""
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        if block.path == path and not needs(block) - INSTALLED:
            exec(compile(block.text, str(block), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("name", ["README.md", "docs/analyst.md"])
def test_python_runs(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run_snippets(REPOSITORY / name)


def test_python_of_the_trainer_page_resumes(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the break three batches of 16 were handed out; what the new loader gives is the rest of the epoch."""
    monkeypatch.chdir(workplace)
    found = run_snippets(REPOSITORY / "docs" / "trainer.md")
    assert 0 < len(found["rest"]) == len(found["later"]) - 3 * 16


def test_no_python_is_left_out() -> None:
    assert {block.path.name for block in blocks("python")} == {"README.md", "analyst.md", "trainer.md"}


@pytest.mark.parametrize("block", blocks("sql"), ids=str)
def test_sql_finds_rows(block: Block, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    assert len(pl.SQLContext().execute(block.text, eager=True))


@pytest.mark.parametrize("reference", [config_reference, table_reference], ids=lambda module: module.TARGET.name)
def test_reference_is_up_to_date(reference: Any) -> None:
    found = reference.TARGET.read_text(encoding="utf-8")
    assert found == reference.render(), f"stale; run `python -m {reference.__name__}`"


def test_every_reason_is_explained(quickstart_run: Path) -> None:
    explained = set(re.findall(r"`(\w+)`", (REPOSITORY / "docs" / "engineer.md").read_text(encoding="utf-8")))
    rules = yaml.safe_load((REPOSITORY / "configs" / "quickstart.yaml").read_text())["select"]["rules"]
    funnel = pl.read_parquet(quickstart_run / "datasets" / "quickstart" / "v000001" / "stats" / "funnel.parquet")
    counted = set(funnel["reason"].drop_nulls()) - set(rules)
    unexplained = {reason for reason in REASONS | counted if not reason.startswith("http_")} - explained
    assert not unexplained


def test_links_lead_somewhere() -> None:
    broken = []
    for path in DOCS:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            file, _, anchor = target.partition("#")
            place = path if not file else path.parent / file
            if "://" in target:
                continue
            if not place.exists() or (anchor and anchor not in anchors(place)):
                broken.append(f"{path.name}: {target}")
    assert not broken


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_lines_are_short() -> None:
    """Prose and code alike; a row of a table cannot be broken, and the references are made of them."""
    generated = {config_reference.TARGET, table_reference.TARGET}
    long = [
        f"{path.name}:{number}"
        for path in DOCS
        if path not in generated
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120 and not line.startswith("|")
    ]
    assert not long
