from __future__ import annotations

import datasketch
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.dedup import minhash
from dataengine.dedup.shingles import hash_shingles


def datasketch_signature(caption: str, config: CaptionDedupConfig, seed: int) -> np.ndarray:
    size = config.shingle_chars
    grams = [caption[start : start + size] for start in range(len(caption) - size + 1)]
    sketch = datasketch.MinHash(
        num_perm=config.num_perm,
        seed=seed,
        scheme="affine32",
        hashfunc=lambda gram: int(hash_shingles(pa.array([gram]), size).hashes[0] >> np.uint64(32)),
    )
    sketch.update_batch(grams)
    return sketch.hashvalues


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(alphabet="abc é語", max_size=30), max_size=4), st.integers(0, 2**32 - 1))
def test_signatures_equal_datasketch(captions: list[str], seed: int) -> None:
    config = CaptionDedupConfig(shingle_chars=3, num_perm=32, num_bands=4)
    signatures = minhash.signatures(pa.array(captions, pa.string()), config, seed)
    assert signatures.shape == (len(captions), 32)
    for caption, signature in zip(captions, signatures, strict=True):
        assert signature.tolist() == datasketch_signature(caption, config, seed).tolist()


def test_signatures_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = pa.array(["a long caption about a barn " * size for size in range(40)] + ["", "abc"])
    whole = minhash.signatures(captions, CaptionDedupConfig(), 3)
    monkeypatch.setattr(minhash, "_CHUNK_SHINGLES", 100)
    assert (minhash.signatures(captions, CaptionDedupConfig(), 3) == whole).all()
    assert (whole[-2:] == minhash.EMPTY).all()
