"""What the config of test_xtuner.py names: a model that writes down what it is fed, and its collate function."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel


class Writing(BaseModel):
    """A model of one weight; each batch is a line of the file SEEN."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, keys: list[str], input_ids: list[list[int]], mode: str = "loss") -> dict[str, Any]:
        with Path(os.environ["SEEN"]).open("a") as file:
            file.write(json.dumps({"keys": keys, "input_ids": input_ids}) + "\n")
        return {"loss": (self.weight - 1).square().sum()}


def keys_and_tokens(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "keys": [sample["image_file"] for sample in samples],
        "input_ids": [sample["input_ids"].tolist() for sample in samples],
    }
