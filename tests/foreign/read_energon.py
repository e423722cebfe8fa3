"""Runs under Megatron-Energon's environment: every sample of a split, one JSON line each; then shares of the mixture.

usage: read_energon.py VERSION (train | val)
"""

import hashlib
import json
import sys
from collections import Counter

from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_savable_loader, get_train_dataset, get_val_dataset

NUM_DRAWS = 4000
# At every tenth sample by default, which takes two minutes of the three that 50,000 samples take.
LOADER = {"gc_collect_every_n_steps": 0}


class Raw(DefaultTaskEncoder):
    """Leaves members as they lie in the tar."""

    decoder = None


def main() -> None:
    version, split = sys.argv[1:]
    options = {"worker_config": WorkerConfig(rank=0, world_size=1, num_workers=0), "batch_size": None}
    once = {"shuffle_buffer_size": None, "max_samples_per_sequence": None, "repeat": False}
    if split == "train":
        dataset = get_train_dataset(version, task_encoder=Raw(), **options, **once)
    else:
        dataset = get_val_dataset(version, task_encoder=Raw(), **options)
    for sample in get_savable_loader(dataset, **LOADER):
        image = hashlib.sha256(bytes(sample.image)).hexdigest()
        caption = sample.caption if isinstance(sample.caption, str) else bytes(sample.caption).decode()
        print(json.dumps({"key": sample.__key__, "image": image, "caption": caption}))
    if split == "train":
        mixed = get_train_dataset(
            f"{version}/metadataset.yaml", shuffle_buffer_size=None, max_samples_per_sequence=None, **options
        )
        drawn = Counter(
            sample.__sources__[0].shard_name.split("/")[0]
            for sample, _ in zip(get_savable_loader(mixed, **LOADER), range(NUM_DRAWS))
        )
        print(json.dumps({"drawn": drawn}))


if __name__ == "__main__":
    main()
