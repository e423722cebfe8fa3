"""`doctor` prints the numbers of every reader, and says what would suit them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataengine.analyst.doctor import diagnose
from dataengine.analyst.readers import RULES, Job
from dataengine.cli.app import app
from dataengine.errors import ConfigError, InputError
from tests.trainer.publishing import publish


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 samples in three shards, the last six held out, the first drawn twice."""
    return publish(
        tmp_path_factory.mktemp("doctor") / "datasets" / "pairs", repeat=lambda position: 1 + (position == 0)
    )


def test_every_reader_has_a_row_and_its_faults_a_line(published: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(published), "--world", "2", "--workers", "1", "--batch", "4"])
    assert done.exit_code == 0, done.output
    for reader in ("webdataset with_epoch", "open_clip resampled", "datasets streaming", "dataengine"):
        assert reader in done.output
    table = done.output.partition("One epoch")[2].partition("webdataset ranks")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "webdataset ranks end at different steps" in done.output
    assert "Repeats make 19 draws of these samples" in done.output
    assert "3 shards over 2 workers leaves 1 over; 2 or 4 would not" in done.output


def test_too_many_workers_are_a_refusal_in_the_table(published: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", str(published), "--world", "4", "--workers", "2"])
    assert done.exit_code == 0, done.output
    assert done.output.count("does not begin") == 2 * 3
    assert "number of shards must be >= total workers (8)" in done.output


def test_the_own_reader_reads_each_draw_once(published: Path) -> None:
    found = diagnose(str(published), Job(2, 3, 2))
    assert (found.num_samples, found.num_draws) == (18, 19)
    assert len(found.readings) == len(RULES) + 1
    ours = found.readings[-1]
    assert (ours.reader, ours.never, ours.repeated, ours.steps) == ("dataengine", 0, 0, (5, 5))


def test_what_cannot_be_asked_is_said(published: Path) -> None:
    with pytest.raises(ConfigError, match="--batch 0"):
        diagnose(str(published), Job(1, 1, 0))
    with pytest.raises(InputError, match="no samples in the split 'holdout'"):
        diagnose(str(published), Job(1, 1, 1), "holdout")
    done = CliRunner().invoke(app, ["doctor", str(published), "--split", "test"])
    assert isinstance(done.exception, ConfigError)


def test_the_help_says_what_the_columns_mean() -> None:
    text = " ".join(CliRunner().invoke(app, ["doctor", "--help"]).output.split())
    assert all(column in text for column in ("never read", "read again", "steps", "tars read"))
