"""The text tower cut short: open_clip's own numbers, in batches of fixed shapes; and towers that must not be cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataengine.score.clip import Scorer
from dataengine.score.texts import STEP, TOKENS_PER_IMAGE, TextTower
from tests.score.conftest import SHAPE

TEXTS = [
    "",
    "a cat",
    "two dogs on a long beach in the evening light, seen from far above",
    "<end_of_text> in the middle of a caption",
    "words " * 60,
    "ein Bär auf 50 % Rabatt!",
]
CAUSAL = {
    "clip": {},
    "clip, eos": {"text_cfg": {"pool_type": "eos", "eos_id": 49407}},
    "custom text": {"custom_text": True},
    "custom text, eos, linear": {
        "custom_text": True,
        "text_cfg": {"pool_type": "eos", "eos_id": 49407, "proj_bias": True},
    },
    "quick gelu": {"quick_gelu": True},
}
NOT_CAUSAL = {
    "no mask": {"text_cfg": {"no_causal_mask": True}},
    "last": {"text_cfg": {"pool_type": "last"}},
    "class token": {"custom_text": True, "text_cfg": {"embed_cls": True}},
}


def build(changes: dict[str, Any]) -> Any:
    config: dict[str, Any] = SHAPE | {name: value for name, value in changes.items() if name != "text_cfg"}
    config["text_cfg"] = {**SHAPE["text_cfg"], "context_length": 40, **changes.get("text_cfg", {})}  # type: ignore[dict-item]
    torch.manual_seed(3)
    custom = config.pop("custom_text", False)
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config).eval()


def tokens_of(texts: list[str]) -> torch.Tensor:
    found: torch.Tensor = open_clip.SimpleTokenizer(context_length=40)(texts)
    return found


def encode(tower: TextTower, tokens: torch.Tensor, batch_size: int = 4) -> np.ndarray:
    found = np.full((len(tokens), 16), np.nan, np.float32)
    with torch.inference_mode():
        for rows, ids in tower.batches(tokens.numpy(), batch_size):
            found[rows] = tower(torch.from_numpy(ids))[: len(rows)].numpy()
    return found


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_towers_are_cut_and_give_open_clips_numbers(kind: str) -> None:
    model = build(CAUSAL[kind])
    tower = TextTower.of(model, 40)
    assert "cut" in tower.variant
    tokens = tokens_of(TEXTS)
    with torch.inference_mode():
        wanted = model.encode_text(tokens).numpy()
    assert np.abs(encode(tower, tokens) - wanted).max() < 1e-5 * np.abs(wanted).max()
    lengths = {ids.shape[1] for _, ids in tower.batches(tokens.numpy(), 4)}
    assert lengths == {8, 16, 24, 40}


@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_other_towers_see_the_full_context(kind: str) -> None:
    model = build(NOT_CAUSAL[kind])
    tower = TextTower.of(model, 40)
    assert tower.variant == "full context"
    tokens = tokens_of(TEXTS)
    with torch.inference_mode():
        wanted = model.encode_text(tokens).numpy()
    assert encode(tower, tokens) == pytest.approx(wanted, abs=1e-6)
    assert {ids.shape[1] for _, ids in tower.batches(tokens.numpy(), 4)} == {40}


@given(
    lengths=st.lists(st.integers(2, 40), max_size=60),
    batch_size=st.integers(1, 9),
)
def test_every_text_is_in_one_batch_whose_shape_is_its_lengths(lengths: list[int], batch_size: int) -> None:
    tower = TextTower.of(_model(), 40)
    tokens = np.zeros((len(lengths), 40), np.int64)
    for row, length in enumerate(lengths):
        tokens[row, : length - 1], tokens[row, length - 1] = row + 1, 49407
    seen: list[int] = []
    for rows, ids in tower.batches(tokens, batch_size):
        length = ids.shape[1]
        assert length in (*range(STEP, 40, STEP), 40)
        assert len(ids) == max(1, batch_size * TOKENS_PER_IMAGE // length)
        assert all(length - STEP < lengths[row] <= length for row in rows)
        assert np.array_equal(ids[: len(rows)], tokens[rows, :length])
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(lengths)))


_MODELS: list[Any] = []


def _model() -> Any:
    if not _MODELS:
        _MODELS.append(build({}))
    return _MODELS[0]


def test_company_and_order_change_no_bit(scorer: Scorer) -> None:
    texts = [*TEXTS, *(f"a picture of number {number}" for number in range(40))]
    together = scorer.encode_texts(texts)
    assert np.array_equal(scorer.encode_texts(texts[::-1])[::-1], together)
    for row in range(0, len(texts), 7):
        assert np.array_equal(scorer.encode_texts([texts[row]])[0], together[row])
