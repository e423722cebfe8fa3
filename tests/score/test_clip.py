"""The scorer: open_clip's own numbers, whatever shares the batch; and clear words when a model cannot be had.

The model is a tiny one with random weights, registered with open_clip like any other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from dataengine.config.score import ScorerConfig
from dataengine.errors import ConfigError, StorageError
from dataengine.score.clip import Scorer
from dataengine.score.memory import MemoryShort
from dataengine.score.weights import clip_weights, file_sha256, identify_scorer
from tests.score.conftest import MODEL


def pictures(num_pictures: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    sizes = rng.integers(20, 90, size=(num_pictures, 2))
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


def test_images_are_encoded_as_open_clip_does(load: Callable[..., Scorer], scorer: Scorer, weights: Path) -> None:
    images = pictures(6)
    model, preprocess = open_clip.create_model_from_pretrained(MODEL, pretrained=str(weights))
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.fromarray(image)) for image in images])
        wanted = model.eval().encode_image(pixels, normalize=True).numpy()
    found = load(preprocess="exact").encode_images(images)
    assert (found.shape, found.dtype, scorer.dim) == ((6, 16), np.float32, 16)
    assert found == pytest.approx(wanted, abs=1e-5)


def test_texts_are_encoded_as_open_clip_does(scorer: Scorer, weights: Path) -> None:
    texts = ["a cat", "", "a long caption of very many words that does not fit the context", "ein Bär", "x"]
    model = open_clip.create_model(MODEL, pretrained=str(weights)).eval()
    with torch.inference_mode():
        wanted = model.encode_text(open_clip.get_tokenizer(MODEL)(texts), normalize=True).numpy()
    found = scorer.encode_texts(texts)
    assert found == pytest.approx(wanted, abs=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)


def test_what_shares_a_batch_changes_no_bit(scorer: Scorer) -> None:
    images, texts = pictures(7), [f"a picture of number {number}" for number in range(7)]
    all_images, all_texts = scorer.encode_images(images), scorer.encode_texts(texts)
    for row in range(7):
        assert np.array_equal(scorer.encode_images(images[row : row + 1])[0], all_images[row])
        assert np.array_equal(scorer.encode_texts(texts[row : row + 1])[0], all_texts[row])
    assert np.array_equal(scorer.encode_images(images[::-1])[::-1], all_images)


def test_no_images_and_no_texts_have_no_embeddings(scorer: Scorer) -> None:
    assert scorer.encode_images([]).shape == (0, 16)
    assert scorer.encode_texts([]).shape == (0, 16)


def test_an_endless_picture_is_seen_in_its_middle(scorer: Scorer) -> None:
    strip = np.zeros((2, 20_000, 3), np.uint8)
    strip[:, 10_000 - 16 : 10_000 + 16] = pictures(1)[0][0, 0]
    upright = np.ascontiguousarray(strip.transpose(1, 0, 2))
    short = np.ascontiguousarray(strip[:, 10_000 - 16 : 10_000 + 16])
    assert np.array_equal(scorer.encode_images([strip]), scorer.encode_images([short]))
    assert scorer.encode_images([upright]).shape == (1, 16)


def test_tokens_are_counted_without_ends_and_before_truncation(scorer: Scorer) -> None:
    texts = ["", "a cat", "a " * 10, "a " * 11, "x" * 5000]
    read = scorer.tokenizer.read(texts)
    assert (read.counts.dtype, read.ids.dtype) == (np.int32, np.int64)
    assert read.counts.tolist()[:4] == [0, 2, 10, 11]
    assert read.truncated.tolist() == [False, False, False, True, True]
    assert np.array_equal(read.ids, open_clip.get_tokenizer(MODEL)(texts).numpy())
    assert scorer.tokenizer.read([]).ids.shape == (0, 12)


def test_bfloat16_towers_stay_near_float32(load: Callable[..., Scorer], scorer: Scorer) -> None:
    images = pictures(5)
    low = load(precision="bfloat16").encode_images(images)
    full = scorer.encode_images(images)
    assert low.dtype == np.float32
    assert np.linalg.norm(low, axis=1) == pytest.approx(1, abs=1e-6)
    assert not np.array_equal(low, full)
    assert np.sum(low * full, axis=1) == pytest.approx(1, abs=1e-3)


def test_provenance_tells_what_scores_depend_on(scorer: Scorer, weights: Path) -> None:
    told = scorer.provenance()
    assert json.loads(json.dumps(told))["preprocess"]["size"] in (32, [32, 32])
    assert (told["model"], told["weights_sha256"], told["activation"]) == (
        MODEL,
        file_sha256(weights),
        "gelu",
    )
    assert (told["device"].split()[0], told["precision"], told["context_length"]) == ("cpu", "float32", 12)
    assert (told["preprocess"]["variant"], told["batch_size"], told["compile"]) == ("fast", 4, False)
    assert {"numpy", "open_clip_torch", "pillow", "simplejpeg", "torch", "torchvision"} <= set(told["libraries"])


def test_a_tag_trained_with_quick_gelu_gets_it(
    load: Callable[..., Scorer], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = {"file": str(weights), "quick_gelu": True, "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, MODEL, {"like_openai": tag})
    told = load(pretrained="like_openai").provenance()
    assert told["activation"] == "quick_gelu"
    assert tuple(told["preprocess"]["mean"]) == (0.5, 0.5, 0.5)
    assert told["weights_sha256"] == file_sha256(weights)


@pytest.mark.parametrize(
    ("model", "pretrained", "hint"),
    [
        ("ViT-L14", "openai", "'ViT-L14'; did you mean .*ViT-L-14"),
        ("zzz", "openai", "'zzz'; there are"),
        ("ViT-B-32", "openia", "tag 'openia'; did you mean openai"),
        ("ViT-B-32", "/nowhere/w.pt", "no weights file /nowhere/w.pt"),
        ("ViT-B-32", "builtin", "no built-in weights 'ViT-B-32'"),
    ],
)
def test_names_that_do_not_exist_are_config_errors(model: str, pretrained: str, hint: str) -> None:
    config = ScorerConfig(model=model, pretrained=pretrained)
    for find in (clip_weights, identify_scorer):
        with pytest.raises(ConfigError, match=hint):
            find(config)


def test_weights_that_cannot_be_fetched_say_from_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        StorageError, match=r"ViT-L-14.*'openai' from timm/vit_large_patch14_clip_224.openai.*path of a"
    ):
        clip_weights(ScorerConfig(model="ViT-L-14", pretrained="openai"))


def test_weights_of_another_model_do_not_load(load: Callable[..., Scorer], tmp_path: Path) -> None:
    save_file({"visual.proj": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="do not load"):
        load(pretrained=str(tmp_path / "w.safetensors"))
    (tmp_path / "w.pt").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="do not load"):
        load(pretrained=str(tmp_path / "w.pt"))
    torch.save({"weight": Path("/")}, tmp_path / "w.pt")  # torch's own advice would be to run what it holds as code
    with pytest.raises(ConfigError, match=r"do not load \(it holds more than weights") as caught:
        load(pretrained=str(tmp_path / "w.pt"))
    assert "weights_only" not in str(caught.value)


def test_weights_that_give_no_embedding_are_refused(load: Callable[..., Scorer], weights: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(weights)
    tensors["visual.proj"].fill_(float("nan"))
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="zero or not finite"):
        load(pretrained=str(tmp_path / "w.safetensors")).encode_images(pictures(1))


GPU_SHORT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
CPU_SHORT = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried")


class Narrow:
    """A tower on a device that has room for so many rows."""

    def __init__(self, tower: Callable[[torch.Tensor], torch.Tensor], room: int, error: Exception = GPU_SHORT) -> None:
        self.tower, self.room, self.error = tower, room, error
        self.sizes: list[int] = []

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return self.tower(batch)


def until_it_fits(encode: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    for _ in range(10):
        try:
            return encode()
        except MemoryShort:
            continue
    pytest.fail("batches did not shrink")


@pytest.mark.parametrize("error", [GPU_SHORT, CPU_SHORT, MemoryError("cannot allocate an array")])
def test_short_memory_halves_batches_for_good(load: Callable[..., Scorer], error: Exception) -> None:
    narrow = load(batch_size=16)
    narrow.image_tower = tower = Narrow(narrow.image_tower, 5, error)
    found = until_it_fits(lambda: narrow.encode_images(pictures(10)))
    assert tower.sizes == [16, 8, 4, 4, 4]
    assert np.array_equal(found, load(batch_size=4).encode_images(pictures(10)))
    narrow.encode_images(pictures(3))
    assert tower.sizes[5:] == [4]
    assert narrow.provenance()["batch_size"] == 4


def test_another_error_of_a_tower_is_no_lack_of_memory(load: Callable[..., Scorer]) -> None:
    broken = load(batch_size=16)
    broken.image_tower = Narrow(broken.image_tower, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        broken.encode_images(pictures(1))
    assert broken.batch_size == 16


def test_short_memory_of_texts_halves_batches_too(load: Callable[..., Scorer]) -> None:
    narrow = load(batch_size=16)
    narrow.text_tower = tower = Narrow(narrow.text_tower, 20)
    texts = ["a cat", "two dogs on a long beach in the evening light"]
    found = until_it_fits(lambda: narrow.encode_texts(texts))
    assert tower.sizes == [32, 16, 10]
    assert np.array_equal(found, load(batch_size=8).encode_texts(texts))


def test_memory_for_not_even_one_image_is_a_config_error(load: Callable[..., Scorer]) -> None:
    narrow = load(batch_size=2)
    narrow.image_tower = Narrow(narrow.image_tower, 0)
    with pytest.raises(ConfigError, match=r"not even one image.*num_gpus"):
        until_it_fits(lambda: narrow.encode_images(pictures(1)))


def test_channels_last_is_the_same_to_the_last_bits(load: Callable[..., Scorer], scorer: Scorer) -> None:
    images = pictures(5)
    assert load(channels_last=True).encode_images(images) == pytest.approx(scorer.encode_images(images), abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_towers_are_the_same_to_the_last_bits(load: Callable[..., Scorer], scorer: Scorer) -> None:
    images, texts = pictures(5), ["a cat", "two dogs on a long beach in the evening light"]
    compiled = load(compile=True)
    assert compiled.encode_images(images) == pytest.approx(scorer.encode_images(images), abs=1e-5)
    assert compiled.encode_texts(texts) == pytest.approx(scorer.encode_texts(texts), abs=1e-5)
    assert compiled.provenance()["compile"] is True


def test_other_weights_than_planned_are_refused(weights: Path) -> None:
    planned = ScorerConfig(model=MODEL, pretrained=str(weights))
    assert identify_scorer(planned) == f"sha256:{file_sha256(weights)}"
    with pytest.raises(ConfigError, match="the run was planned with 0000"):
        Scorer.load(planned, "cpu", 1, f"sha256:{'0' * 64}")
    with pytest.raises(ConfigError, match="the run was planned with 1111"):
        Scorer.load(planned.model_copy(update={"weights_sha256": "1" * 64}), "cpu", 1)


def test_where_a_file_lies_is_not_what_it_is(weights: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(weights.read_bytes())
    here, there = (ScorerConfig(model=MODEL, pretrained=str(path)) for path in (weights, moved))
    assert here.identity() == there.identity()
    assert identify_scorer(here) == identify_scorer(there)
    moved.write_bytes(b"other weights")
    assert identify_scorer(here) != identify_scorer(there)
    absent = there.model_copy(update={"pretrained": "/nowhere/w.pt", "weights_sha256": file_sha256(weights)})
    assert identify_scorer(absent) == identify_scorer(here)


def test_a_folder_that_open_clip_saved_brings_its_weights(
    load: Callable[..., Scorer], scorer: Scorer, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"open_clip_config\.json"):
        identify_scorer(ScorerConfig(model=f"local-dir:{tmp_path}"))
    saved = {"model_cfg": open_clip.get_model_config(MODEL), "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match="holds no weights"):
        identify_scorer(ScorerConfig(model=f"local-dir:{tmp_path}"))
    shutil.copy(weights, tmp_path / "open_clip_model.safetensors")
    folder = load(model=f"local-dir:{tmp_path}", pretrained=None)
    assert np.array_equal(folder.encode_texts(["a cat"]), scorer.encode_texts(["a cat"]))
    assert folder.provenance()["preprocess"]["mean"] == (0.1, 0.2, 0.3)
    named = identify_scorer(folder.config)
    assert named.startswith(f"sha256:{file_sha256(weights)} ")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("open_clip*"):
        shutil.copy(path, moved)
    there = folder.config.model_copy(update={"model": f"local-dir:{moved}"})
    assert (there.identity(), identify_scorer(there)) == (folder.config.identity(), named)
    (moved / "README.md").write_text("notes")
    assert identify_scorer(there) == named
    for name, content in (("open_clip_config.json", json.dumps(saved | {"preprocess_cfg": {}})), ("merges.txt", "a b")):
        (moved / name).write_text(content)
        assert identify_scorer(there) != named
        with pytest.raises(ConfigError, match="the run was planned with"):
            Scorer.load(there, "cpu", 1, named)
        named = identify_scorer(there)


HUB_REPO = "someone/random-tiny-clip"


@pytest.fixture
def hub(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds one model, and no network; the model's weights."""
    commit = "0" * 40
    repo = tmp_path / f"models--{HUB_REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    saved = {
        "model_cfg": open_clip.get_model_config(MODEL) | {"quick_gelu": True},
        "preprocess_cfg": {"std": [1, 1, 1]},
    }
    (snapshot / "open_clip_config.json").write_text(json.dumps(saved))
    shutil.copy(weights, snapshot / "open_clip_model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return weights


def test_a_model_of_the_hub_comes_with_its_config(load: Callable[..., Scorer], hub: Path) -> None:
    scorer = load(model=f"hf-hub:{HUB_REPO}", pretrained=None)
    told = scorer.provenance()
    assert (told["activation"], told["weights_sha256"]) == ("quick_gelu", file_sha256(hub))
    assert tuple(told["preprocess"]["std"]) == (1, 1, 1)
    assert identify_scorer(scorer.config) == f"hub:{HUB_REPO}"


def test_a_model_of_the_hub_is_held_to_its_hash(load: Callable[..., Scorer], hub: Path) -> None:
    sha256 = file_sha256(hub)
    known = load(model=f"hf-hub:{HUB_REPO}", pretrained=None, weights_sha256=sha256)
    assert identify_scorer(known.config) == f"sha256:{sha256}"
    assert Scorer.load(known.config, "cpu", 1, identify_scorer(known.config)).weights_sha256 == sha256
    with pytest.raises(ConfigError, match=f"hashes to {sha256}, the run was planned with 1111"):
        load(model=f"hf-hub:{HUB_REPO}", pretrained=None, weights_sha256="1" * 64)
    with pytest.raises(StorageError, match=r"'hf-hub:someone/else'.*local-dir:"):
        load(model="hf-hub:someone/else", pretrained=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_a_config_error(weights: Path) -> None:
    with pytest.raises(ConfigError, match="num_gpus"):
        Scorer.load(ScorerConfig(model=MODEL, pretrained=str(weights)), "cuda", 1)
