"""Runs under an environment that has wids (webdataset before 1.0): every sample of an index, one JSON line each.

usage: read_wids.py INDEX
"""

import hashlib
import json
import os
import sys

import wids


def main() -> None:
    os.chdir(os.path.dirname(sys.argv[1]))  # urls are relative to the index
    dataset = wids.ShardListDataset(sys.argv[1], localname=lambda url: url, transformations=[])
    for number in range(len(dataset)):
        sample = dataset[number]
        (form,) = {".jpg", ".png", ".webp"} & set(sample)
        image = hashlib.sha256(sample[form].read()).hexdigest()
        caption = sample[".txt"].read().decode()
        print(json.dumps({"key": sample["__key__"], "image": image, "caption": caption}))


if __name__ == "__main__":
    main()
