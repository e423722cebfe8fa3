"""When two captions are the same text.

Decides which differences of writing do not count (case, punctuation, spacing, Unicode presentation) and
gives each caption the hash its exact copies share. Captions in, normalised captions and hashes out; it
knows neither keys nor similarity.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from numpy.typing import NDArray

NORMALISATION = "nfkc-fold-space/1"
"""Names what `normalise_captions` does; recorded with every signature, and raised when it changes."""
_INVISIBLE = r"\p{Cf}+"  # joiners, soft hyphens, direction marks: no reader sees them
_SEPARATORS = r"[\p{P}\p{Z}\p{Cc}]+"  # symbols (\p{S}) stay: a caption may be nothing but emoji
_BLOCKS = (
    (0x0000, 0x0300), (0x0370, 0x0483), (0x048A, 0x0530),  # Latin, Greek, Cyrillic
    (0x2000, 0x20D0), (0x2100, 0x2C00),  # punctuation and symbols
    (0x3000, 0x302A), (0x3041, 0x3097), (0x309B, 0x3100), (0xFF01, 0xFF61),  # kana and full width
)  # fmt: skip
"""Code points that neither combine with what is before them nor, in normal form, end in what combines: the form of a
text of these alone is that of each, one after the other."""
_SAME_BLOCKS = ((0x4E00, 0xA000), (0xAC00, 0xD7A4))
"""Such as are their own normal form: Han and Hangul."""
_MOST_BYTES = 4  # that a byte of such a code point becomes: U+2A0C is four integral signs


def normalise_captions(captions: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Captions as they are compared: large_string [rows], null becoming empty.

    NFKC, case folded, punctuation and white space turned into single spaces, none at the ends. Upper before
    lower case folds the letters that have two small forms, such as the two sigmas.
    """
    from dataengine.dedup.kernels.text import ASCII_FOLDED, count_wide, normalise

    content, offsets = text_buffers(pc.fill_null(captions, ""))
    num_wide = count_wide(content[offsets[0] : offsets[-1]])
    room = int(offsets[-1] - offsets[0]) + (_MOST_BYTES - 1) * num_wide + 1
    folded, ends = np.empty(room, np.uint8), np.empty(len(offsets), np.int64)
    is_other = np.zeros(len(offsets) - 1, np.bool_)
    normalise(content, offsets, ASCII_FOLDED, *_forms(), folded, ends, is_other)
    plain = text_array(folded[: ends[-1]], ends)
    if not is_other.any():
        return plain
    others = pa.array(is_other)
    return pc.replace_with_mask(plain, others, _normalised(as_text(captions).filter(others)))


@functools.cache
def _forms() -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
    """The forms of all blocks in UTF-8; where that of each code point begins, and its bytes or `UNKNOWN`: [65536]."""
    from dataengine.dedup.kernels.text import UNKNOWN

    begins, sizes = np.zeros(1 << 16, np.int32), np.full(1 << 16, UNKNOWN, np.uint8)
    points = np.concatenate([np.arange(*block) for block in _BLOCKS])
    # Framed, so that a space is not taken for one at an end.
    framed, ends = text_buffers(_normalised(pa.array([f"a{chr(point)}a" for point in points], pa.large_string())))
    begins[points], sizes[points] = ends[:-1] + 1, np.diff(ends) - 2
    same = np.concatenate([np.arange(*block) for block in _SAME_BLOCKS])
    themselves = np.frombuffer("".join(map(chr, same)).encode(), np.uint8)
    begins[same], sizes[same] = len(framed) + 3 * np.arange(len(same)), 3
    return np.concatenate([framed, themselves]), begins, sizes


def _normalised(captions: pa.Array) -> pa.Array:
    folded = pc.utf8_lower(pc.utf8_upper(pc.utf8_normalize(captions, form="NFKC")))
    visible = pc.replace_substring_regex(folded, _INVISIBLE, "")
    return pc.utf8_trim(pc.replace_substring_regex(visible, _SEPARATORS, " "), " ")


def caption_hashes(normalised: pa.Array) -> NDArray[np.uint8]:
    """What exact copies share: the 128-bit BLAKE2b of each normalised caption, uint8 [rows, 16].

    BLAKE2b rather than a faster checksum: captions are hostile, and a forged collision would merge two of them.
    """
    from dataengine.dedup.kernels.blake2b import blake2b_128

    content, offsets = text_buffers(normalised)
    digests = np.empty((len(offsets) - 1, 2), np.uint64)
    blake2b_128(content, offsets, digests)
    return digests.view(np.uint8)


def as_text(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """`texts` as one large_string array, whose offsets do not end at 2 GiB."""
    wide = texts.cast(pa.large_string())
    if isinstance(wide, pa.ChunkedArray):
        return pa.concat_arrays(wide.chunks) if wide.num_chunks else pa.array([], pa.large_string())
    return wide


def text_buffers(texts: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of `texts` (no nulls), and where each begins and ends: uint8 [bytes], int64 [rows + 1]."""
    wide = as_text(texts)
    if not len(wide):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, ends, content = wide.buffers()
    offsets = np.frombuffer(ends, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    return np.frombuffer(content or b"", np.uint8), offsets


def text_array(content: NDArray[np.uint8], offsets: NDArray[np.int64]) -> pa.Array:
    """The large_string array over these buffers; see `text_buffers`."""
    return pa.Array.from_buffers(
        pa.large_string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    )
