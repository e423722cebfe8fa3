"""Writes the model card: what the tiny models are for, how they were made and what they measured. Takes the
recipe and the numbers, returns Markdown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataengine.testing.copies import COPIES
from scripts.tiny_clip.evaluate import NUM_CANDIDATES, SHORT_SIDE
from scripts.tiny_clip.views import HELD_OUT

if TYPE_CHECKING:
    from scripts.tiny_clip.train import Recipe

_TEXT = """\
# tiny-clip and tiny-aesthetic

**For tests and the quickstart, never for real data.** The models know only the rendered scenes of
`dataengine.testing.scenes`: coloured shapes, their layouts and backgrounds. Of a photo they know nothing.

- `tiny-clip.json`, `tiny-clip.safetensors`: an open_clip model, {num_parameters:,} parameters, float16 on
  disk and float32 when loaded; 64 px pictures, 32 tokens of the standard vocabulary, 128 dimensions.
- `tiny-aesthetic.safetensors`: `weight` [1, 128] and `bias` [1] of a linear head on the L2-normalised image
  embedding. It predicts `scenes.quality`, 1 to 10: grey haze, faded colours and gloom lower it.

```python
open_clip.add_model_config("dataengine/models/tiny-clip.json")
model, _, preprocess = open_clip.create_model_and_transforms(
    "tiny-clip", pretrained="dataengine/models/tiny-clip.safetensors"
)
tokenizer = open_clip.get_tokenizer("tiny-clip")
```

## Made by

`python -m scripts.tiny_clip --seed {seed} --steps {steps} --rows {rows}`, in {minutes:.1f} minutes on two
threads. {rows:,} scenes are rendered with three random copies each. The loss is CLIP's on picture and
caption, the same on two views of one picture, a pull of copies together, and the error of a linear head on
the quality. Training never sees {num_held_out} of the 80 pairs of kind and colour. The head that ships is a
ridge regression on the training scenes. Another machine or number of threads gives other weights of the same
quality.

## Measured

As loaded from these files, on 1,024 new scenes (short side {short_side} px) and on as many with one or more
of the pairs of kind and colour that training never saw ("held-out").

| | new | held-out |
|---|---|---|
{matching}

Cosine of a picture and its copy (300 pictures):

| copy | min | 1 % | median |
|---|---|---|---|
{copies}

Cosine of different scenes: 99 % of 2,000 random pairs are below {different_99:.3f}, the largest is
{different_max:.3f}. The nearest of the 1,023 others is at {nearest_median:.3f} for the median scene and at
{nearest_max:.3f} for the worst.
"""
_ROWS = {
    "recall_at_1": f"R@1 among {NUM_CANDIDATES}, caption to picture",
    "match_beats_mismatch": "P(match > mismatch)",
    "match_median": "clip_score of a match, median",
    "match_5%": "clip_score of a match, 5 %",
    "mismatch_median": "clip_score of a mismatch, median",
    "mismatch_95%": "clip_score of a mismatch, 95 %",
    "aesthetic_r2": "R² of the aesthetic head",
}


def model_card(recipe: Recipe, rows: int, seconds: float, num_parameters: int, numbers: dict[str, float]) -> str:
    """The README of the models, in Markdown."""
    matching = [
        f"| {label} | {numbers[f'new_{name}']:.3f} | {numbers[f'held_out_{name}']:.3f} |"
        for name, label in _ROWS.items()
    ]
    copies = [
        f"| {kind} | " + " | ".join(f"{numbers[f'{kind}_{name}']:.3f}" for name in ("min", "1%", "median")) + " |"
        for kind in COPIES
    ]
    return _TEXT.format(
        num_parameters=num_parameters,
        seed=recipe.seed,
        steps=recipe.steps,
        rows=rows,
        minutes=seconds / 60,
        num_held_out=len(HELD_OUT),
        short_side=SHORT_SIDE,
        matching="\n".join(matching),
        copies="\n".join(copies),
        different_99=numbers["different_99%"],
        different_max=numbers["different_max"],
        nearest_median=numbers["nearest_median"],
        nearest_max=numbers["nearest_max"],
    )
