"""Common PNGs decode to what Pillow makes of them; all others, and broken ones, are left to Pillow."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from dataengine.imaging import ImageFault, decode_rgb, open_image
from dataengine.png import decode_common, speaks_late

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 3, 4]))
BOUNDS = {"max_pixels": 1_000_000, "max_side": 2000}


def encoded(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def put(content: bytes, added: bytes, before: bytes) -> bytes:
    """`content` with a chunk more, in front of the first one of type `before`."""
    place = content.index(before) - 4
    return content[:place] + added + content[place:]


def grainy(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, *channels), dtype=np.uint8))


@given(shape=SHAPES, level=st.sampled_from([0, 1, 6]), drawn=st.data())
def test_samples_are_those_of_pillow(shape: tuple[int, int, int], level: int, drawn: st.DataObject) -> None:
    samples = drawn.draw(arrays(np.uint8, shape if shape[2] else shape[:2]))
    found = decode_common(encoded(Image.fromarray(samples), compress_level=level))
    assert found is not None
    assert found.dtype == np.uint8
    assert np.array_equal(found, samples)


@pytest.mark.parametrize(
    "content",
    [
        encoded(grainy().quantize(16)),
        encoded(grainy(mode="L").convert("1")),
        encoded(grainy(mode="L").convert("LA")),
        encoded(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60))),
        encoded(grainy(), transparency=(9, 9, 9)),
        encoded(grainy(mode="L"), transparency=7),
        encoded(grainy(), save_all=True, append_images=[grainy(mode="RGBA").convert("RGB")]),
    ],
    ids=["palette", "1-bit", "grey+alpha", "16-bit", "key", "grey-key", "animated"],
)
def test_odd_files_are_left_to_pillow(content: bytes) -> None:
    assert decode_common(content) is None
    assert decode_rgb(content, **BOUNDS).shape == (40, 60, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_damaged_picture_is_never_half_a_picture(mode: str) -> None:
    content = encoded(grainy(mode=mode))
    start = content.index(b"IDAT") + 4
    for place in range(start, len(content) - 12, 97):
        broken = bytearray(content)
        broken[place] ^= 0x10
        assert decode_common(bytes(broken)) is None
        with pytest.raises(ImageFault, match="bad_image"):
            decode_rgb(bytes(broken), **BOUNDS)
    for length in range(start, len(content) - 16, 97):
        assert decode_common(content[:length]) is None


@given(st.binary(max_size=64))
def test_rubbish_behind_the_header_is_no_picture(rubbish: bytes) -> None:
    content = encoded(grainy())
    assert decode_common(content[: content.index(b"IDAT") + 4] + rubbish) is None


def test_a_file_of_nothing_but_chunks_ends() -> None:
    content = encoded(grainy())
    assert speaks_late(put(content, chunk(b"quIt", b"") * 200_000, b"IDAT"))


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_exif_counts_wherever_it_stands(before: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = put(encoded(grainy()), chunk(b"eXIf", exif.tobytes()[6:]), before)
    assert speaks_late(content) == (before == b"IEND")
    opened = open_image(content, **BOUNDS)
    assert (opened.width, opened.height, opened.orientation) == (40, 60, 6)


def test_a_date_and_words_before_the_pixels_are_no_reason_to_decode() -> None:
    content = put(encoded(grainy()), chunk(b"tIME", struct.pack(">HBBBBB", 2024, 1, 2, 3, 4, 5)), b"IEND")
    assert not speaks_late(put(content, chunk(b"tEXt", b"Software\0any"), b"IDAT"))
