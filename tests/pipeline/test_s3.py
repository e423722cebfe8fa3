"""The whole pipeline with its root on a real S3 server publishes what a local root publishes."""

from __future__ import annotations

from pathlib import Path

import yaml
from rich.console import Console

from dataengine.analyst.dataset import open_dataset
from dataengine.analyst.verify import verify
from dataengine.config.load import parse_config
from dataengine.job import run_job
from dataengine.storage.store import Root
from dataengine.testing.server import serve
from dataengine.testing.web import render_web
from dataengine.trainer.dataset import ShardDataset
from tests.conftest import REPOSITORY, SMALL


def test_s3_root_publishes_the_same_dataset(
    s3_server: dict[str, str], quickstart_run: Path, quickstart_dataset: Path, tmp_path: Path
) -> None:
    web = render_web(quickstart_run / "sample-web", seed=7, num_scenes=80)
    tree = yaml.safe_load((REPOSITORY / "configs" / "quickstart.yaml").read_text())
    tree["root"] = root = f"s3://lake/{tmp_path.name}"
    tree["storage_options"] = s3_server
    tree["sample_web"] = None
    for name, source in tree["sources"].items():
        source["paths"] = [str(path) for path in web.inputs[name]]
    with serve(web) as hosts:
        tree["download"]["guard"] = {"hosts": hosts}
        overrides = [override for override in SMALL if not override.startswith("sample_web")]
        finished = run_job(parse_config(yaml.safe_dump(tree, sort_keys=False), overrides), console=Console(quiet=True))
    assert finished.dataset == f"{root}/datasets/quickstart/v000001"
    remote = Root(finished.dataset, tuple(sorted(s3_server.items())))
    assert remote.get("manifest.json") == (quickstart_dataset / "manifest.json").read_bytes()
    dataset = open_dataset(finished.dataset, s3_server)
    assert verify(dataset, full=True, sample=2, progress=lambda *_: None) == []
    samples = ShardDataset(f"{finished.dataset}/manifest.json", decode="bytes", storage_options=s3_server)
    assert len({sample["__key__"] for sample in samples}) == 60
