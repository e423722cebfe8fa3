from __future__ import annotations

from dataclasses import replace

import datasketch
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataengine.dedup import minhash
from dataengine.dedup.captions import normalise_captions
from dataengine.dedup.minhash import SignatureSpec
from dataengine.dedup.shingles import Shingling
from tests.dedup.reference import shingle_hash32, shingles_of

CHARS = SignatureSpec(Shingling("char", 3), "poly32", 1, 8, 4)
SPECS = [CHARS, replace(CHARS, hash="sha1"), replace(CHARS, shingling=Shingling("word", 2))]
SPECS.append(replace(SPECS[-1], hash="sha1"))


def datasketch_signature(caption: str, spec: SignatureSpec) -> list[int]:
    """The signature by datasketch alone, with SHA-1 its own default."""
    hashing = {"hashfunc": shingle_hash32} if spec.hash == "poly32" else {}
    sketch = datasketch.MinHash(num_perm=spec.num_perm, seed=spec.seed, scheme="affine32", **hashing)
    sketch.update_batch([shingle.encode() for shingle in shingles_of(caption, spec.shingling)])
    return sketch.hashvalues.tolist()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@settings(max_examples=15)
@given(st.lists(st.text(alphabet="abc é語🔥", max_size=40), max_size=4), st.integers(0, 2**32 - 1))
def test_signatures_equal_datasketch(spec: SignatureSpec, captions: list[str], seed: int) -> None:
    spec = replace(spec, seed=seed)
    matrix, counts = minhash.signatures(pa.array(captions, pa.string()), spec)
    assert matrix.shape == (len(captions), 32)
    assert counts.tolist() == [len(shingles_of(caption, spec.shingling)) for caption in captions]
    for caption, signature in zip(captions, matrix, strict=True):
        assert signature.tolist() == datasketch_signature(caption, spec)


def test_signatures_of_long_shingles_equal_datasketch() -> None:
    caption = " ".join("w" * size for size in range(1, 90))  # SHA-1 of one to several blocks
    spec = SignatureSpec(Shingling("word", 2), "sha1", 7, 16, 1)
    matrix, _ = minhash.signatures(pa.array([caption]), spec)
    assert matrix[0].tolist() == datasketch_signature(caption, spec)


def test_a_caption_without_shingles_is_empty_throughout() -> None:
    matrix, counts = minhash.signatures(pa.array(["", "ab", "abc"]), CHARS)
    assert (matrix[:2] == minhash.EMPTY).all()
    assert counts.tolist() == [0, 0, 1]


@pytest.mark.parametrize("hashing", ["poly32", "sha1"])
def test_real_captions_equal_datasketch(real_data: object, hashing: str) -> None:
    """Ten thousand real captions, bit for bit; with SHA-1 against datasketch's own defaults."""
    from pathlib import Path

    table = pq.read_table(Path(str(real_data)) / "captions" / "laion-10k.parquet", columns=["TEXT"])
    captions = normalise_captions(table.column("TEXT"))
    spec = SignatureSpec(Shingling("char", 5), hashing, 1, 26, 5)
    matrix, _ = minhash.signatures(captions, spec)
    texts = captions.to_pylist()
    shingles = {text: shingles_of(text, spec.shingling) for text in texts}
    if hashing == "poly32":
        known = {gram: shingle_hash32(gram.encode()) for gram in {g for grams in shingles.values() for g in grams}}
        sketches = datasketch.MinHash.bulk(
            [shingles[text] for text in texts], num_perm=130, seed=1, scheme="affine32", hashfunc=known.__getitem__
        )
    else:
        sketches = datasketch.MinHash.bulk(
            [[gram.encode() for gram in shingles[text]] for text in texts], num_perm=130, seed=1, scheme="affine32"
        )
    assert len(texts) == 10_000
    assert np.array_equal(matrix, np.array([sketch.hashvalues for sketch in sketches]))


def test_specs_tell_what_differs() -> None:
    assert CHARS.to_json() == SPECS[0].to_json()
    assert len({str(spec.to_json()) for spec in SPECS}) == len(SPECS)
