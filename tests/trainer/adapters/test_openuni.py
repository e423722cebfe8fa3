"""A sample in OpenUni's shape: the same numbers that its own recipe gives, and the same whatever worker makes it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="torch is not installed")

import torch

from dataengine.errors import ConfigError
from dataengine.trainer import DataLoader, ShardDataset
from dataengine.trainer.adapters.openuni import OpenUniSample
from tests.trainer.publishing import write_siblings

TEMPLATE = {
    "INSTRUCTION": "<user>{input}<assistant>",
    "GENERATION": "Generate an image: {input}",
    "CFG": "Generate an image.",
    "IMG_START_TOKEN": "<img>",
    "IMG_CONTEXT_TOKEN": "+",
    "IMG_END_TOKEN": "</img>",
}


class Letters:
    """A tokenizer of code points, with the one method that is asked for."""

    def encode(self, text: str, return_tensors: str, add_special_tokens: bool) -> Any:
        assert (return_tensors, add_special_tokens) == ("pt", True)
        return torch.tensor([[ord(letter) for letter in text]])


def read(tokens: Any) -> str:
    return "".join(map(chr, tokens.tolist()))


def made(folder: Path, parts: tuple[str, ...] = ("image", "txt"), siblings: Any = None, **more: Any) -> list[Any]:
    transform = OpenUniSample(Letters(), TEMPLATE, image_size=8, **more)
    return list(ShardDataset(folder, parts=parts, siblings=siblings, seed=1, transform=transform))


def test_a_picture_becomes_a_square_in_minus_one_to_one(published: Path) -> None:
    for sample in made(published, unconditional=0):
        assert sample["type"] == "text2image"
        assert (sample["pixel_values"].shape, sample["pixel_values"].dtype) == ((3, 8, 8), torch.float32)
        assert -1 <= float(sample["pixel_values"].min()) < 0 < float(sample["pixel_values"].max()) <= 1
        text = read(sample["input_ids"])
        assert text.startswith("<user>Generate an image: a picture of https://")
        assert text.endswith("<assistant><img>")


def test_the_crop_is_a_whole_side_of_the_picture() -> None:
    picture = Image.fromarray(np.arange(6 * 10 * 3, dtype=np.uint8).reshape(6, 10, 3))
    transform = OpenUniSample(Letters(), TEMPLATE, image_size=6, unconditional=0)
    sample = {"__key__": "k", "__shard__": "s", "txt": "x", "image": picture}
    found = [transform(sample, np.random.default_rng(seed))["pixel_values"] for seed in range(40)]
    whole = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy()).float() / 127.5 - 1
    places = {
        left for pixels in found for left in range(5) if torch.allclose(pixels, whole[:, :, left : left + 6], atol=1e-5)
    }
    assert places == set(range(5))


def test_some_prompts_are_unconditional_and_tokens_bounded(published: Path) -> None:
    texts = [read(sample["input_ids"]) for sample in made(published, unconditional=0.5, max_length=1000)]
    empty = [text for text in texts if text == "<user>Generate an image.<assistant><img>"]
    assert 2 < len(empty) < 16
    assert [read(sample["input_ids"]) for sample in made(published, unconditional=0.5, max_length=1000)] == texts
    assert all(len(sample["input_ids"]) <= 12 for sample in made(published, max_length=12))


def test_latents_come_from_sibling_tars_and_no_picture_is_read(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "v000001"
    shutil.copytree(published, folder)
    latents = write_siblings(folder, "latents/dcae")
    samples = made(folder, ("latent", "txt"), {"latent": "latents/dcae"}, latents="latent")
    assert len(samples) == len(latents)
    for sample in samples:
        assert "pixel_values" not in sample
        np.testing.assert_array_equal(sample["image_latents"].numpy(), latents[sample["image_file"]])
        sample["image_latents"] += 1  # a tensor of one's own


def test_reconstruction_has_its_picture_on_both_sides(published: Path) -> None:
    for sample in made(published, source="image", image_length=4, prompt="Keep it."):
        assert sample["type"] == "image2image"
        assert torch.equal(sample["pixel_values"], sample["pixel_values_src"])
        assert read(sample["input_ids"]) == "<user><img>++++</img>\nKeep it.<assistant><img>"


def test_batches_collate_as_openuni_does(published: Path) -> None:
    """Through worker processes, to a collate function that takes entries out of the samples."""

    def gathered(samples: list[dict[str, Any]]) -> dict[str, Any]:
        kind = {sample["type"] for sample in samples}.pop()
        return {"data": {kind: torch.stack([sample.pop("pixel_values") for sample in samples])}, "data_samples": None}

    transform = OpenUniSample(Letters(), TEMPLATE, image_size=8)
    dataset = ShardDataset(published, parts=("image", "txt"), transform=transform)
    for batch in DataLoader(dataset, global_batch_size=6, num_workers=2, collate_fn=gathered):
        assert batch["data"]["text2image"].shape == (6, 3, 8, 8)


def test_a_template_that_lacks_an_entry_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lacks \['CFG'\], which text2image needs"):
        OpenUniSample(Letters(), {name: text for name, text in TEMPLATE.items() if name != "CFG"})
    with pytest.raises(ConfigError, match=r"lacks \['IMG_END_TOKEN'\], which image2image"):
        OpenUniSample(Letters(), {n: t for n, t in TEMPLATE.items() if n != "IMG_END_TOKEN"}, source="image")
