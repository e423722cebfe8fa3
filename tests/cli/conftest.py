"""The command line, ready to be called."""

from __future__ import annotations

import pytest

from tests.cli.command import CommandLine


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """`cli("run", path)` → exit code and messages."""
    return CommandLine(capsys, monkeypatch)
