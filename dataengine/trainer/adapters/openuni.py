"""Samples in the shape that OpenUni's collate functions take: prompt tokens, and pixels or latents.

A transform of `ShardDataset`: a sample and its generator go in, a dict of `input_ids`, `pixel_values` or
`image_latents` (for editing also `pixel_values_src`), `image_file`, `image_dir` and `type` comes out. The crop and the
unconditional prompt are drawn from the generator, so they are the same whatever worker makes the sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dataengine.errors import ConfigError

if TYPE_CHECKING:
    import torch

_PROMPTS = {"text2image": ("GENERATION", "CFG"), "image2image": ("IMG_CONTEXT_TOKEN", "IMG_END_TOKEN")}


@dataclass(frozen=True)
class OpenUniSample:
    """What a sample becomes. `tokenizer` has Hugging Face's `encode`; `prompt_template` is OpenUni's dict of strings.

    `latents` names the part (of `siblings`) that holds the picture's latents; without it the picture becomes
    `pixel_values`, float32 [3, image_size, image_size] in -1 to 1. `source` names the part with the picture before an
    edit; naming `image` itself makes the task reconstruction. `unconditional` is the share of empty prompts.
    `prompt` stands in for the caption.

    Raises ConfigError for a template that lacks an entry.
    """

    tokenizer: Any
    prompt_template: Mapping[str, str]
    image_size: int = 512
    max_length: int = 128
    unconditional: float = 0.1
    latents: str | None = None
    source: str | None = None
    image_length: int = 256
    prompt: str | None = None
    tokenizer_kwargs: Mapping[str, Any] = field(default_factory=lambda: {"add_special_tokens": True})

    def __post_init__(self) -> None:
        wanted = {"INSTRUCTION", "IMG_START_TOKEN", *_PROMPTS[self.task]}
        if missing := sorted(wanted - set(self.prompt_template)):
            raise ConfigError(f"prompt_template: lacks {missing}, which {self.task} needs")

    @property
    def task(self) -> str:
        """OpenUni's name of it, by which its collate functions are chosen."""
        return "text2image" if self.source is None else "image2image"

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The sample in OpenUni's shape."""
        caption = self.prompt if self.prompt is not None else sample.get("caption", sample.get("txt"))
        if caption is None:
            raise ConfigError("OpenUniSample: the dataset reads no caption; add 'txt' to its parts, or give caption=")
        made = {"image_dir": sample["__shard__"], "image_file": sample["__key__"], "type": self.task}
        made |= {"input_ids": self._tokens(str(caption), rng)}
        if self.latents is not None:
            return made | {"image_latents": _tensor(sample[self.latents])}
        if self.source is None:
            return made | {"pixel_values": self._pixels(_square(sample["image"], rng))}
        if self.source == "image":
            pixels = self._pixels(_square(sample["image"], rng))
            return made | {"pixel_values": pixels, "pixel_values_src": pixels}
        pair = {"pixel_values": sample["image"], "pixel_values_src": sample[self.source]}
        return made | {name: self._pixels(picture) for name, picture in pair.items()}

    def _tokens(self, caption: str, rng: np.random.Generator) -> torch.Tensor:
        template = self.prompt_template
        if self.source is not None:
            context = template["IMG_CONTEXT_TOKEN"] * self.image_length
            asked = f"{template['IMG_START_TOKEN']}{context}{template['IMG_END_TOKEN']}\n{caption}"
        elif rng.random() < self.unconditional:
            asked = template["CFG"]
        else:
            asked = template["GENERATION"].format(input=caption.strip())
        whole = template["INSTRUCTION"].format(input=asked)
        if template.get("IMG_START_TOKEN_FOR_GENERATION", True):
            whole += template["IMG_START_TOKEN"]
        tokens = self.tokenizer.encode(whole, return_tensors="pt", **self.tokenizer_kwargs)[0]
        return tokens if self.source is not None else tokens[: self.max_length]

    def _pixels(self, picture: Any) -> torch.Tensor:
        resized = np.asarray(picture.resize((self.image_size, self.image_size)), dtype=np.float32)
        return _tensor((resized / 127.5 - 1).transpose(2, 0, 1))


def _square(picture: Any, rng: np.random.Generator) -> Any:
    """A random one of the largest squares in the picture."""
    side = min(picture.size)
    left, top = (int(rng.integers(edge - side + 1)) for edge in picture.size)
    return picture.crop((left, top, left + side, top + side))


def _tensor(array: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(array, order="C"))  # a copy: what was read may not be written to
