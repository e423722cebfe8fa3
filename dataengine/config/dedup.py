"""Dedup: what counts as a near-duplicate."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dataengine.config.base import EXECUTION, Config


class CaptionDedupConfig(Config):
    """Near-duplicate captions: MinHash LSH candidates, verified by exact Jaccard."""

    min_similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of shingles from which two captions are near-duplicates."""
    shingle_unit: Literal["char", "word"] = "char"
    """What a shingle is made of: characters, or words."""
    shingle_size: Annotated[int, Field(ge=1, le=32)] = 5
    """Characters or words of a shingle; shorter captions are compared whole."""
    hash: Literal["poly32", "sha1"] = "poly32"
    """What turns a shingle into 32 bits: the fast hash of docs/dedup.md, or SHA-1 as datasketch takes it."""
    target_recall: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Share of the pairs at `min_similarity` that must become candidates; bands are chosen for it."""
    max_perm: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Slots that a MinHash signature may have; null: 160, or 128 for shingles of words, which strangers share so rarely
    that shorter bands do."""
    num_bands: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Bands the signature is cut into; null: as many as `target_recall` takes."""
    rows_per_band: Annotated[int, Field(ge=1, le=64)] | None = None
    """Slots of a band; null: the most that fit into `max_perm`."""
    max_degree: Annotated[int, Field(ge=1, le=4096)] = 64
    """Rows that share a band hash with more than this many others meet that many anchors, chosen by keyed hash."""

    @property
    def most_perm(self) -> int:
        """`max_perm`, or its default for the unit."""
        return self.max_perm or {"char": 160, "word": 128}[self.shingle_unit]


class ImageDedupConfig(Config):
    """Near-duplicate images: cosine neighbours of CLIP embeddings, exact inside cells and near their borders."""

    min_similarity: Annotated[float, Field(ge=0.1, le=1)] = 0.95
    """Cosine of CLIP embeddings from which two images are near-duplicates."""
    scorer: str | None = None
    """Whose embeddings; the first scorer's by default."""
    rows_per_cell: Annotated[int, Field(ge=16)] | None = None
    """Cells are made so that each holds about this many rows; null: 0.4 times the square root of all rows, where to
    place a row costs about as much as to search for it."""
    bucket_rows: Annotated[int, Field(ge=16)] = 131072
    """Cells that hold about this many rows together are one task, which holds them in memory."""
    border: Annotated[float, Field(gt=0, le=1)] = 0.35
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
    against: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """What this run's samples must not repeat: captions of published versions (paths or URLs of their `manifest.json`),
    and images of evaluation sets (a folder, or paths or globs of `.tar` or `.npy` files, the latter embeddings)."""
    memory_bytes: Annotated[int, Field(ge=2**24, json_schema_extra=EXECUTION)] = 2**29
    """What a task of caption dedup may hold; more is spilled to the run directory."""
    num_class_buckets: Annotated[int, Field(ge=1, le=65536)] = 8
    """Tasks that content hashes of images are routed to."""

    @property
    def earlier_versions(self) -> tuple[str, ...]:
        """The manifests among `against`."""
        return tuple(address for address in self.against if address.endswith(".json"))

    @property
    def evaluation_sets(self) -> tuple[str, ...]:
        """The sets of images among `against`."""
        return tuple(address for address in self.against if not address.endswith(".json"))

    @model_validator(mode="after")
    def _against_needs_both(self) -> Self:
        for kind, addresses, asked in (
            ("captions", self.earlier_versions, self.captions),
            ("images", self.evaluation_sets, self.images),
        ):
            if addresses and asked is None:
                raise ValueError(
                    f"dedup.against: {addresses[0]}: matches {kind}, but dedup.{kind} is null; set it, or drop this"
                )
        return self
