"""When two captions are the same text.

Decides which differences of writing do not count (case, punctuation, spacing, Unicode presentation) and
gives each caption the hash its exact copies share. Captions in, normalised captions and hashes out; it
knows neither keys nor similarity.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

_INVISIBLE = r"\p{Cf}+"  # joiners, soft hyphens, direction marks: no reader sees them
_SEPARATORS = r"[\p{P}\p{Z}\p{Cc}]+"  # symbols (\p{S}) stay: a caption may be nothing but emoji


def normalise_captions(captions: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Captions as they are compared: string [rows], null becoming empty.

    NFKC, case folded, punctuation and white space turned into single spaces, none at the ends. Upper before
    lower case folds the letters that have two small forms, such as the two sigmas.
    """
    flat = captions.combine_chunks() if isinstance(captions, pa.ChunkedArray) else captions
    folded = pc.utf8_lower(pc.utf8_upper(pc.utf8_normalize(pc.fill_null(flat, ""), form="NFKC")))
    visible = pc.replace_substring_regex(folded, _INVISIBLE, "")
    return pc.utf8_trim(pc.replace_substring_regex(visible, _SEPARATORS, " "), " ")


def caption_hashes(normalised: pa.Array) -> pa.Array:
    """What exact copies share: 128-bit BLAKE2b of the normalised caption, 32 hex characters, or null.

    Null where empty: such a caption says nothing, so it is a copy of none.
    """
    digests = [
        hashlib.blake2b(text.encode(), digest_size=16).hexdigest() if text else None for text in normalised.to_pylist()
    ]
    return pa.array(digests, pa.string())
