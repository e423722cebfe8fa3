"""Train the tiny CLIP on a published dataset; kill it at any moment, and go on with another number of processes.

    dataengine quickstart
    torchrun --standalone --nproc-per-node 2 examples/train_clip.py quickstart/datasets/quickstart --out clip
    ^C, kill -9, a lost machine ...
    python examples/train_clip.py quickstart/datasets/quickstart --out clip

The second command goes on where the last checkpoint was written, with one process instead of two, and sees the very
batches that two would have seen: `clip/log.jsonl` holds a hash of each, beside its loss. Needs dataengine[engine,cpu].
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.distributed as dist
import xxhash
from numpy.typing import NDArray
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.loss import ClipLoss
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

import dataengine
from dataengine.trainer import DataLoader, ShardDataset

MODEL = Path(dataengine.__file__).parent / "models" / "tiny-clip.json"
SIDE = 64


class TrainingView:
    """A sample as the model takes it: a random crop of most of the picture as uint8 [64, 64, 3], and tokens [32]."""

    def __init__(self) -> None:
        self._tokenizer = open_clip.get_tokenizer("tiny-clip")

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        # The generator is seeded by (seed, epoch, key), so the crop is the same whichever process makes it.
        picture = sample["image"]
        side = min(picture.size) * rng.uniform(0.8, 1.0)
        left, top = (rng.uniform(0, edge - side) for edge in picture.size)
        crop = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        return {"key": sample["__key__"], "pixels": np.asarray(crop), "tokens": self._tokenizer(sample["txt"])[0]}


def normalised(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [n, height, width, 3] → float32 [n, 3, height, width] as CLIP wants it; cheap to send until here."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


def batch_hash(keys: list[str], world_size: int) -> str:
    """A hash of the keys of the global batch, in order: each rank holds a consecutive piece of it."""
    pieces: list[Any] = [keys]
    if world_size > 1:
        pieces = [None] * world_size
        dist.all_gather_object(pieces, keys)
    return xxhash.xxh3_64_hexdigest(" ".join(key for piece in pieces for key in piece).encode())


def mean(loss: torch.Tensor, world_size: int) -> float:
    """The loss of the global batch: each rank has that of its own rows and columns."""
    if world_size > 1:
        dist.all_reduce(loss)
    return loss.item() / world_size


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Whole or not at all, whenever the process dies."""
    torch.save(checkpoint, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def train(options: argparse.Namespace, rank: int, world_size: int) -> None:
    torch.manual_seed(options.seed)
    open_clip.add_model_config(MODEL)
    model = open_clip.create_model("tiny-clip")
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.1)
    # The loss is that of the global batch on any number of processes; only BatchNorm looks at a rank's part alone.
    clip_loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)

    dataset = ShardDataset(options.dataset, parts=("image", "txt"), seed=options.seed, transform=TrainingView())
    loader = DataLoader(dataset, global_batch_size=options.batch, num_workers=options.workers)

    path = options.out / "checkpoint.pt"
    if path.exists():
        checkpoint = torch.load(path, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        loader.load_state_dict(checkpoint["data"])
    replica = DistributedDataParallel(model) if world_size > 1 else model

    while loader.step < options.steps:
        for batch in loader:  # the rest of this epoch; `loader.step` counts over all epochs
            images, texts, scale = replica(normalised(batch["pixels"]), batch["tokens"])
            loss = clip_loss(images, texts, scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            told = {"batch": batch_hash(batch["key"], world_size), "loss": mean(loss.detach(), world_size)}
            if rank == 0:
                print(f"{world_size} processes  step {loader.step}  loss {told['loss']:.4f}", flush=True)
                with (options.out / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"step": loader.step, "processes": world_size} | told) + "\n")
                if loader.step % options.save_every == 0 or loader.step == options.steps:
                    weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    save(path, weights | {"data": loader.state_dict()})
            if loader.step == options.steps:
                break
    loader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a manifest.json, a version folder or a dataset folder")
    parser.add_argument("--out", type=Path, default=Path("clip"), help="folder of the checkpoint and the log")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64, help="samples of a global batch, over all processes")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches, for each rank")
    parser.add_argument("--save-every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    world_size = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if world_size > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    try:
        train(options, int(os.environ.get("RANK", "0")), world_size)
    finally:
        if world_size > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
