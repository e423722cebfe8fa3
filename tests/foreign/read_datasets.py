"""Runs under Hugging Face datasets' environment: every sample of every config and split, one JSON line each.

usage: read_datasets.py VERSION CACHE
"""

import hashlib
import json
import sys

import datasets


def main() -> None:
    version, cache = sys.argv[1:]
    for config in datasets.get_dataset_config_names(version):
        for split, rows in datasets.load_dataset(version, config, cache_dir=cache).items():
            (form,) = {"jpg", "png", "webp"} & set(rows.column_names)
            for row in rows.cast_column(form, datasets.Image(decode=False)):
                image = hashlib.sha256(row[form]["bytes"]).hexdigest()
                found = {"key": row["__key__"], "image": image, "caption": row["txt"], "split": split}
                assert (row["json"]["key"], row["json"]["format"]) == (row["__key__"], form)
                print(json.dumps(found))
            assert rows[0][form].size  # decodes


if __name__ == "__main__":
    main()
