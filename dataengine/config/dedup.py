"""Dedup: what counts as a near-duplicate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dataengine.config.base import Config


class CaptionDedupConfig(Config):
    """Near-duplicate captions: MinHash LSH candidates, verified by exact Jaccard."""

    min_similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of character shingles from which two captions are near-duplicates."""
    shingle_chars: Annotated[int, Field(ge=2, le=32)] = 5
    """Characters of a shingle; shorter captions are compared whole."""
    num_perm: Annotated[int, Field(ge=16, le=1024)] = 128
    """Slots of a MinHash signature."""
    num_bands: Annotated[int, Field(ge=1, le=256)] = 32
    """Bands the signature is cut into; must divide `num_perm`."""
    num_buckets: Annotated[int, Field(ge=1, le=65536)] = 16
    """Tasks that band hashes are routed to."""
    max_degree: Annotated[int, Field(ge=1)] = 128
    """Rows of one band bucket are compared with at most this many anchors, chosen by keyed hash."""


class ImageDedupConfig(Config):
    """Near-duplicate images: cosine neighbours of CLIP embeddings, exact inside cells and near their borders."""

    min_similarity: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Cosine of CLIP embeddings from which two images are near-duplicates."""
    scorer: str | None = None
    """Whose embeddings; the first scorer's by default."""
    rows_per_cell: Annotated[int, Field(ge=16)] | None = None
    """Cells are made so that each holds about this many rows; null: half the square root of the rows, where placing a
    row costs about as much as searching for it."""
    bucket_rows: Annotated[int, Field(ge=16)] = 131072
    """Cells that hold about this many rows together are one task, which holds them in memory."""
    border: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Rows look into the cells whose border is near: 1 for as near as finds every pair, by proof; less is cheaper."""
    target_recall: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Of pairs at or above `min_similarity`; measured in every run, and when it is missed the search is widened to a
    `border` of 1."""
    recall_rows: Annotated[int, Field(ge=1)] = 2000
    """Rows searched exactly to measure recall; fewer where that is more than 1 % of all, but no fewer than 500."""
    max_degree: Annotated[int, Field(ge=2)] = 64
    """Near-duplicates that a row keeps of those in one cell, chosen by keyed hash, so that a group of many costs no
    square."""
    confirm: Literal["phash", "none"] = "phash"
    """A second witness that a pair in question must pass: perceptual hash, or none."""
    max_phash_distance: Annotated[int, Field(ge=0, le=64)] = 20
    """With `confirm: phash`, a pair further apart than this is not called a duplicate."""


class DedupConfig(Config):
    """Everything about finding duplicates; null switches a kind off."""

    captions: CaptionDedupConfig | None = CaptionDedupConfig()
    """Near-duplicate captions; null: only exact ones."""
    images: ImageDedupConfig | None = ImageDedupConfig()
    """Near-duplicate images; null: only exact ones."""
    num_class_buckets: Annotated[int, Field(ge=1, le=65536)] = 8
    """Tasks that content hashes are routed to."""
