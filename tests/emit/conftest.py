"""Rows as emit gets them: kept samples with captions, scores and images, and the shards planned from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from dataengine.keys import url_keys
from dataengine.schemas import CAPTIONS


@dataclass(frozen=True)
class Kept:
    """Rows of one shard, and the image of each."""

    rows: pa.Table
    images: list[bytes]


def kept_rows(num_samples: int, source: str = "photos", form: str = "jpg") -> Kept:
    """`num_samples` rows in key order, with images of 1 to 3,000 random bytes; some values are null."""
    rng = np.random.default_rng(num_samples)
    urls = [f"http://photos.test/{place}?a=1&b=ü" for place in range(num_samples)]
    images = [rng.bytes(int(size)) for size in rng.integers(1, 3000, num_samples)]
    scores = [None if place % 3 == 0 else float(rng.normal(0.3, 0.1)) for place in range(num_samples)]
    columns = {
        "key": pa.array(sorted(url_keys(source, urls))),
        "source": pa.array([source] * num_samples),
        "url": pa.array([None if place % 4 == 0 else url for place, url in enumerate(urls)], pa.string()),
        "caption": pa.array([f'a "red"\ncircle № {place}' if place % 5 else "" for place in range(num_samples)]),
        "captions": pa.array(
            [[("alt", f"alt {place}")] if place % 2 else [] for place in range(num_samples)], CAPTIONS
        ),
        "extra": pa.array([[("license", None)]] * num_samples, CAPTIONS),
        "format": pa.array([form] * num_samples),
        "bucket": pa.array(["4:3"] * num_samples),
        "width": pa.array([640] * num_samples, pa.int32()),
        "height": pa.array([480] * num_samples, pa.int32()),
        "sha256": pa.array([hashlib.sha256(image).hexdigest() for image in images], pa.string()),
        "xxh3": pa.array([xxhash.xxh3_64_hexdigest(image) for image in images], pa.string()),
        "nbytes": pa.array([len(image) for image in images], pa.int64()),
        "phash": pa.array([None] * num_samples, pa.string()),
        "clip_score": pa.array(scores, pa.float32()),
    }
    text = {name: values.cast(pa.string()) for name, values in columns.items() if pa.types.is_null(values.type)}
    return Kept(pa.table(columns | text), images)  # no rows, no types to infer


@pytest.fixture(scope="session")
def kept() -> Kept:
    return kept_rows(25)
