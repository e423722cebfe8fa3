"""The download stage on tars in place: what is read, and what is refused unread."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from dataengine.config.download import DownloadConfig, LimitsConfig
from dataengine.contract import Inputs, Machine, Outputs
from dataengine.download.stage import Download
from dataengine.schemas import CANDIDATE, SAMPLE
from dataengine.storage.rundir import Part, RunDirectory
from dataengine.storage.store import Root
from dataengine.storage.tables import read_table

MACHINE = Machine(1, 0, 1, {}, lambda: datetime(2026, 1, 1, tzinfo=UTC))


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(stream, "JPEG")
    return stream.getvalue()


def test_a_member_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    root = Root(str(tmp_path))
    content = picture()
    root.put("x.tar", content)  # ends before the second member would: reading it would raise
    keys, sizes = ["0" * 32, "1" * 32], [len(content), 8 * 2**30]
    blank = {field.name: [None, None] for field in CANDIDATE.arrow}
    candidates = blank | {
        "key": keys, "num_rows": [1, 1], "source": ["tars"] * 2, "caption": ["a", "b"], "captions": [[], []],
        "extra": [[], []], "object": ["x.tar"] * 2, "offset": [0, 0], "nbytes": sizes,
    }  # fmt: skip
    part, run = Part("part-000000"), RunDirectory(root, "run")
    below = Outputs(run.unit("sources", "tars", "0" * 8), part.name, "one")
    below.table("candidate", CANDIDATE, CANDIDATE.table(candidates))
    step = Download("tars", DownloadConfig(limits=LimitsConfig(max_body_bytes=4096)), in_place=True)
    outputs = Outputs(run.unit("download", "tars", "0" * 8), part.name, "two")
    step.run(part, Inputs(root, {"sources/tars": below.commit({}, 0.0)}, {}), outputs, MACHINE)
    samples = read_table(root, outputs.objects["sample"].path, SAMPLE).to_pydict()
    assert (samples["status"], samples["reason"]) == (["ok", "failed"], [None, "too_large"])
    assert outputs.counts == {"ok": 1, "too_large": 1}
