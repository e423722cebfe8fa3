"""Pictures come out of the decoders upright, as the engine measured them, wherever their orientation is written."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from dataengine.imaging import decode_rgb
from dataengine.orientation import orientation_of
from dataengine.trainer.decode import decoder

PIL, RGB = decoder("image", "pil"), decoder("image", "rgb")
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
