"""Runs under open_clip's environment: what its own evaluation loader hands out, one JSON line a sample.

A sample comes without its key, as (image, text); so the line is a hash of the picture's pixels, and the text.
usage: read_open_clip.py EXPECTED VERSION. Also says how many samples open_clip counts by sizes.json.
"""

import hashlib
import io
import json
import os
import sys

from open_clip_train.data import get_dataset_size, get_wds_dataset
from open_clip_train.params import parse_args
from PIL import Image


def digest(image: Image.Image) -> str:
    """Of the pixels."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def main() -> None:
    expected, version = sys.argv[1:]
    os.chdir(version)  # paths of train_data.txt are relative to the version
    with open("train_data.txt") as file:
        urls, factors = file.read().splitlines()
    options = ["--dataset-type", "webdataset", "--dataset-resampled", "--batch-size", "8", "--workers", "1"]
    options += ["--train-data", urls, "--train-data-upsampling-factors", factors, "--val-data", urls]
    arguments = parse_args(options)
    arguments.world_size, arguments.rank, arguments.distributed = 1, 0, False
    arguments.val_num_samples = get_dataset_size(urls)[0]
    print(json.dumps({"num_samples": arguments.val_num_samples}))
    with open(expected) as file:
        for line in file:
            row = json.loads(line)
            with open(row["path"], "rb") as tar:
                tar.seek(row["offset"])
                picture = Image.open(io.BytesIO(tar.read(row["nbytes"])))
            print(json.dumps({"key": row["key"], "image": digest(picture), "caption": row["caption"]}))
    print(json.dumps({"read": True}))
    val = get_wds_dataset(arguments, digest, False, tokenizer=lambda text: [text])
    for images, captions in val.dataloader:
        for image, caption in zip(images, captions):
            print(json.dumps({"image": image, "caption": caption}))
    train = get_wds_dataset(arguments, digest, True, tokenizer=lambda text: [text])
    images, captions = next(iter(train.dataloader))
    assert len(images) == len(captions) == 8


if __name__ == "__main__":
    main()
