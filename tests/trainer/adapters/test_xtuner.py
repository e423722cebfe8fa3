"""xtuner's own commands, as installed: they train by a config that names the dataset, resume, and show its samples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xtuner", reason="xtuner is not installed")

from mmengine.registry import DATASETS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from xtuner.registry import BUILDER

from dataengine.trainer import DataLoader, ShardDataset
from dataengine.trainer.adapters import mmengine as adapter
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
WORDS = ["?", "user", "assistant", "draw", "image", "a", "picture", "of"]
# As xtuner's configs are: types by import, the tokenizer once, for the dataset and for xtuner's tools.
CONFIG = """
from mmengine.hooks import CheckpointHook
from torch.optim import SGD
from transformers import PreTrainedTokenizerFast

from dataengine.trainer.adapters.mmengine import ResumableTrainLoop, build_dataset
from dataengine.trainer.adapters.openuni import OpenUniSample
from tests.trainer.adapters.xtuner_parts import Writing, keys_and_tokens

tokenizer = dict(type=PreTrainedTokenizerFast.from_pretrained, pretrained_model_name_or_path="{tokenizer}")
prompt_template = dict(
    INSTRUCTION="user {{input}} assistant", GENERATION="draw {{input}}", CFG="draw", IMG_START_TOKEN=" image",
)
model = dict(type=Writing)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        type=build_dataset,
        manifest="{version}",
        parts=("image", "txt"),
        seed=3,
        transform=dict(type=OpenUniSample, tokenizer=tokenizer, prompt_template=prompt_template, image_size=8),
    ),
    collate_fn=dict(type=keys_and_tokens),
)
train_cfg = dict(type=ResumableTrainLoop, max_iters=9)
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.01))
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=3, by_epoch=False))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of transformers' own kind, of eight words."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    return folder


@pytest.fixture
def config(published: Path, tokenizer: Path, tmp_path: Path) -> Path:
    file = tmp_path / "openuni.py"
    file.write_text(CONFIG.format(version=published, tokenizer=tokenizer))
    return file


def run(tool: str, config: Path, seen: Path, *arguments: str | Path) -> str:
    """What one of xtuner's tools printed; batches that a model was fed are in `seen`."""
    # mmengine's checkpoints hold more than weights, which torch since 2.6 refuses to load unasked.
    given = {"SEEN": str(seen), "PYTHONPATH": str(REPOSITORY), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    given |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"xtuner.tools.{tool}", str(config), *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | given, capture_output=True, text=True, check=False, cwd=config.parent
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_resumed_xtuner_train_goes_on_where_it_was(published: Path, config: Path, tmp_path: Path) -> None:
    first, later = tmp_path / "first.jsonl", tmp_path / "later.jsonl"
    run("train", config, first, "--work-dir", tmp_path / "first")
    own = DataLoader(ShardDataset(published, parts=("txt",), seed=3), global_batch_size=4)
    wanted = [batch["__key__"] for _ in range(2) for batch in own]
    assert [line["keys"] for line in lines(first)] == wanted[:9]
    assert lines(first)[0]["input_ids"][0][:2] == [WORDS.index("user"), WORDS.index("draw")]
    run("train", config, later, "--work-dir", tmp_path / "later", "--resume", tmp_path / "first/iter_6.pth")
    assert lines(later) == lines(first)[6:]


def test_xtuners_log_dataset_shows_a_sample(config: Path, tmp_path: Path) -> None:
    assert "user draw a picture of ? assistant image" in run("log_dataset", config, tmp_path / "seen")


@pytest.mark.parametrize("registry", [BUILDER, DATASETS])
def test_both_registries_know_the_dataset_by_name(registry: Any, published: Path) -> None:
    built = registry.build({"type": "ShardDataset", "manifest": str(published), "parts": ("txt",)})
    assert isinstance(built, ShardDataset)
    assert registry.get("ShardDataset") is adapter.build_dataset
