"""Renders, trains, saves, measures and writes the model card, from one command line."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save

from scripts.tiny_clip.card import model_card
from scripts.tiny_clip.evaluate import evaluate, load
from scripts.tiny_clip.train import CONFIG, Recipe, embed_pictures, fit_head, train
from scripts.tiny_clip.views import render_views


def main() -> None:
    """Make the models in ``--out`` and print what they measure."""
    options = _options()
    started = time.monotonic()
    recipe = Recipe(options.seed, options.steps)
    torch.set_num_threads(options.threads)
    torch.manual_seed(recipe.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    config = options.out / "tiny-clip.json"
    config.write_text(json.dumps(CONFIG, indent=2) + "\n")
    open_clip.add_model_config(config)
    model = open_clip.create_model("tiny-clip")
    views = render_views(recipe.seed, options.rows, options.threads)
    train(model, open_clip.get_tokenizer("tiny-clip"), views, recipe)
    head = fit_head(embed_pictures(model, views.pixels[:, 0]), views.qualities)
    (options.out / "tiny-clip.safetensors").write_bytes(save(_float16(model)))
    (options.out / "tiny-aesthetic.safetensors").write_bytes(save(head))
    seconds = time.monotonic() - started
    numbers = evaluate(load(options.out), recipe.seed)
    print("\n".join(f"{name}: {value:.3f}" for name, value in numbers.items()))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(recipe, options.rows, seconds, num_parameters, numbers)
    (options.out / "README.md").write_text(card)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.tiny_clip", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--rows", type=int, default=14_000, help="scenes to render for training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("dataengine/models"))
    return parser.parse_args()


def _float16(model: Any) -> dict[str, torch.Tensor]:
    """The state of ``model`` with every float at half precision, in plain memory order."""
    state: dict[str, torch.Tensor] = model.state_dict()
    return {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for name, tensor in state.items()
    }


if __name__ == "__main__":
    main()
