"""Pictures come out of the decoders upright, as the engine measured them, wherever their orientation is written."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from dataengine.errors import CorruptObject
from dataengine.imaging import decode_rgb
from dataengine.orientation import orientation_of
from dataengine.trainer.decode import decoder

PIL, RGB = decoder("image", "pil"), decoder("image", "rgb")
PHOTO = np.add.outer(np.arange(101), np.arange(230))[..., None] * np.array([1, 0.5, 0.2]) * 0.75
assert PIL is not None
assert RGB is not None
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def encoded(form: str = "JPEG", orientation: int | None = None, mode: str = "RGB", **settings: object) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (3, 5, 3), np.uint8)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        settings["exif"] = exif
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((40, 24)).convert(mode).save(sink, form, **settings)
    return sink.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        *(encoded(form, orientation) for form in ("JPEG", "PNG", "WEBP") for orientation in range(1, 10)),
        encoded(),
        encoded(xmp=XMP),
        encoded(orientation=3, xmp=XMP),
        encoded(orientation=8, comment=b"before"),
        encoded(orientation=6, mode="CMYK"),
        encoded(orientation=6, mode="L"),
        encoded(exif=b"Exif\0\0XX*\0\xff\xff\xff\xff"),
    ],
)
def test_as_the_engine_sees_it(content: bytes) -> None:
    wanted = decode_rgb(content, max_pixels=10**6, max_side=10**4).astype(int)
    picture = PIL(content)
    for found in (np.asarray(picture), RGB(content)):
        assert found.shape == wanted.shape
        assert np.abs(found.astype(int) - wanted).mean() < 3
    assert orientation_of(picture) == 1  # a transform that turns by EXIF finds nothing left to turn


def test_a_plain_jpeg_needs_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded()
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert RGB(content).shape == (24, 40, 3)


def photo(form: str = "JPEG", orientation: int = 1, mode: str = "RGB") -> bytes:
    """230 × 101 as encoded: smooth, so that whatever shrinks it comes out nearly alike."""
    exif, sink = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO.astype(np.uint8)).convert(mode).save(sink, form, exif=exif, quality=95)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((230, 101), (230, 101)),
        ((115, 50), (115, 51)),
        ((115, 51), (230, 101)),  # the half is 50.5 high
        ((57, 25), (58, 26)),
        ((58, 25), (115, 51)),
        ((28, 12), (29, 13)),
        ((1, 1), (29, 13)),
        ((10, 60), (230, 101)),
        ((400, 400), (230, 101)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("without", ["", "simplejpeg"])
def test_scaled_covers_the_shape_with_no_more_than_it_needs(
    shape: tuple[int, int], size: tuple[int, int], orientation: int, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without:
        monkeypatch.setitem(sys.modules, without, None)
    if orientation >= 5:
        shape, size = shape[::-1], size[::-1]
    decode = decoder("image", "scaled", shape)
    assert decode is not None
    found = decode(photo(orientation=orientation))
    assert found.shape == (*size[::-1], 3)
    whole = Image.fromarray(RGB(photo(orientation=orientation))).resize(size, Image.Resampling.BOX)
    assert np.abs(found.astype(int) - np.asarray(whole)).mean() < 2


@pytest.mark.parametrize("content", [photo("PNG"), photo("WEBP"), photo(mode="CMYK"), photo(mode="L")])
def test_scaled_takes_every_format(content: bytes) -> None:
    decode = decoder("image", "scaled", (115, 50))
    assert decode is not None
    assert decode(content).shape in ((101, 230, 3), (51, 115, 3))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", photo()[:300], b"GIF89a", photo("PNG")[:60]])
def test_scaled_says_what_does_not_decode(content: bytes) -> None:
    decode = decoder("image", "scaled", (10, 10))
    assert decode is not None
    with pytest.raises(CorruptObject, match="does not decode"):
        decode(content)
