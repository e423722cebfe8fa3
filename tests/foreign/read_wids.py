"""Runs under an environment that has wids (webdataset before 1.0): every sample of an index, one JSON line each.

usage: read_wids.py INDEX CACHE

wids opens copies in CACHE. Told to open shards where they lie, it puts locks and links beside them, and deletes shards.
"""

import hashlib
import json
import sys

import wids


def main() -> None:
    index, cache = sys.argv[1:]
    dataset = wids.ShardListDataset(index, cache_dir=cache, transformations=[])
    for number in range(len(dataset)):
        sample = dataset[number]
        (form,) = {".jpg", ".png", ".webp"} & set(sample)
        image = hashlib.sha256(sample[form].read()).hexdigest()
        caption = sample[".txt"].read().decode()
        print(json.dumps({"key": sample["__key__"], "image": image, "caption": caption}))


if __name__ == "__main__":
    main()
