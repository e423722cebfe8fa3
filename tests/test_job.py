"""What a job keeps of the config it was asked for."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dataengine.config.load import load_config
from dataengine.job import run_job
from dataengine.storage.rundir import RunDirectory


def test_settings_of_the_store_are_kept_nowhere(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://web.test/1,one\n")
    (tmp_path / "run.yaml").write_text(
        f"""
        name: kept
        root: {tmp_path}
        storage_options: {{secret_access_key: hunter2}}
        sources: {{web: {{kind: table, paths: ["{{root}}/list.csv"]}}}}
        score: {{scorers: {{tiny: {{model: tiny-clip, pretrained: builtin}}}}}}
        execution: {{runner: serial}}
        """
    )
    config = load_config(tmp_path / "run.yaml")
    run_job(config, until="sources", console=Console(quiet=True))
    assert RunDirectory.open(config.root, {}, config.name).last_config()["config"]["name"] == "kept"
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
