"""From the config of caption dedup to how captions are signed, banded and compared."""

from __future__ import annotations

from dataengine.config.dedup import CaptionDedupConfig
from dataengine.dedup.banding import Banding, choose_banding
from dataengine.dedup.caption_pairs import Comparison
from dataengine.dedup.minhash import SignatureSpec
from dataengine.dedup.shingles import Shingling


def banding_of(config: CaptionDedupConfig) -> Banding:
    """The bands that the config asks for, or that reach its recall; raises ConfigError when none do."""
    return choose_banding(
        config.min_similarity, config.target_recall, config.most_perm, config.num_bands, config.rows_per_band
    )


def signature_spec(config: CaptionDedupConfig, seed: int) -> SignatureSpec:
    """How captions are signed; raises ConfigError as `banding_of` does."""
    banding = banding_of(config)
    shingling = Shingling(config.shingle_unit, config.shingle_size)
    return SignatureSpec(shingling, config.hash, seed, banding.num_bands, banding.rows_per_band)


def comparison_of(config: CaptionDedupConfig, seed: int) -> Comparison:
    """How rows that share a band hash are compared."""
    return Comparison(config.max_degree, banding_of(config).max_differ, seed)
