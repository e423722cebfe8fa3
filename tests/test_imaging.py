"""Imaging: hostile, odd and plain images become upright RGB pixels or a named fault."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dataengine.imaging import ImageFault, decode_rgb, open_image, render, sniff_format

BOUNDS = {"max_pixels": 1_000_000, "max_side": 2000}
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF"}


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """A picture whose corners differ: red grows rightwards, green downwards."""
    rows, columns = np.mgrid[0:height, 0:width]
    blue = np.full_like(rows, 64)
    pixels = np.stack([columns * 255 // width, rows * 255 // height, blue], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, FORMATS[image_format], **options)
    return stream.getvalue()


def decode(content: bytes) -> np.ndarray:
    return decode_rgb(content, **BOUNDS)


def fault_of(content: bytes, **bounds: int) -> str:
    with pytest.raises(ImageFault) as caught:
        decode_rgb(content, **(BOUNDS | bounds))
    return caught.value.reason


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_allowed_format_decodes_to_its_picture(image_format: str) -> None:
    content = encoded(picture(), image_format)
    assert sniff_format(content) == image_format
    pixels = decode(content)
    assert pixels.shape == (24, 40, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(picture()).astype(int)).mean() < 8


@pytest.mark.parametrize("name", ["TIFF", "BMP", "PPM", "ICO"])
def test_formats_off_the_list_are_no_images(name: str) -> None:
    stream = io.BytesIO()
    picture().save(stream, name)
    assert fault_of(stream.getvalue()) == "not_image"


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"RIFF\0\0\0\0WAVE", b"\xff\xd8"])
def test_other_bytes_are_no_images(content: bytes) -> None:
    assert sniff_format(content) is None
    assert fault_of(content) == "not_image"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_orientation_is_applied(orientation: int, image_format: str) -> None:
    inverses = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    laid = picture().transpose(inverses[orientation]) if orientation > 1 else picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(laid, image_format, exif=exif)
    opened = open_image(content, **BOUNDS)
    assert (opened.width, opened.height, opened.orientation) == (40, 24, orientation)
    pixels = decode(content).astype(int)
    assert np.abs(pixels - np.asarray(picture()).astype(int)).mean() < 8


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_out_of_range_is_upright(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert open_image(encoded(picture(), "jpg", exif=exif), **BOUNDS).orientation == 1


def test_unreadable_exif_is_upright() -> None:
    content = encoded(picture(), "jpg", exif=b"Exif\0\0XX*\0\xff\xff\xff\xff")
    assert open_image(content, **BOUNDS).orientation == 1
    assert decode(content).shape == (24, 40, 3)


def transparent_palette() -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    return encoded(image, "png", transparency=0)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "png"),
        encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "webp", lossless=True, exact=True),
        encoded(Image.new("LA", (4, 4), (9, 0)), "png"),
        encoded(Image.new("RGB", (4, 4), (9, 9, 9)), "png", transparency=(9, 9, 9)),
        transparent_palette(),
    ],
    ids=["rgba", "webp", "grey-alpha", "rgb-key", "palette"],
)
def test_transparency_becomes_white(content: bytes) -> None:
    assert decode(content)[0, 0].tolist() == [255, 255, 255]


def test_half_transparent_red_on_white_is_pink() -> None:
    content = encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "png")
    assert decode(content)[0, 0].tolist() == [255, 127, 127]


def test_grey_sixteen_bit_keeps_its_range() -> None:
    grey = np.array([[0, 256, 32768, 65535]], np.uint16)
    content = encoded(Image.fromarray(grey), "png")
    assert decode(content)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_cmyk_and_one_bit_decode() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode(encoded(cmyk, "jpg", quality=95))[8, 8]
    assert red[0] > 240
    assert max(red[1:]) < 15
    assert decode(encoded(Image.new("1", (2, 2), 1), "png"))[0, 0].tolist() == [255] * 3


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for image_format in ("gif", "webp", "png"):
        content = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
        assert decode(content)[4, 4, 0] > 240


def wide_profile(swap: bool) -> bytes:
    """An RGB profile; with `swap`, its red and green primaries change places."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    table = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * profile[131], 12)}
    if swap:
        red, green = table[b"rXYZ"] + 4, table[b"gXYZ"] + 4
        profile[red : red + 8], profile[green : green + 8] = (
            profile[green : green + 8],
            profile[red : red + 8],
        )
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


def test_an_embedded_profile_is_converted_to_srgb() -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert decode(encoded(red, "png", icc_profile=wide_profile(swap=False)))[0, 0].tolist() == [255, 0, 0]
    swapped = decode(encoded(red, "png", icc_profile=wide_profile(swap=True)))[0, 0]
    assert swapped[1] > 250
    assert swapped[0] < 5


@pytest.mark.parametrize("profile", [b"rubbish", wide_profile(swap=True)[:200]])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    content = encoded(Image.new("RGB", (8, 8), (255, 0, 0)), "png", icc_profile=profile)
    assert decode(content)[0, 0].tolist() == [255, 0, 0]


def test_a_profile_of_another_colour_model_is_ignored() -> None:
    content = encoded(Image.new("L", (8, 8), 100), "png", icc_profile=wide_profile(swap=True))
    assert decode(content)[0, 0].tolist() == [100] * 3


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def gif_header(width: int, height: int, frame: int = 0) -> bytes:
    extent = frame or width, frame or height
    control = b"!\xf9\x04\x08\0\0\0\0"  # dispose to background, which makes Pillow allocate the frame
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + screen + control + struct.pack("<BHHHHBB", 0x2C, 0, 0, *extent, 0, 2) + b"\x02\x4c\x01\0;"


def webp_header(width: int, height: int) -> bytes:
    content = bytearray(encoded(picture(), "webp", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"))
    assert content[12:16] == b"VP8X"
    content[24:27] = (width - 1).to_bytes(3, "little")
    content[27:30] = (height - 1).to_bytes(3, "little")
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        png_header(60_000, 60_000),
        png_header(10_000, 10_000),
        gif_header(65_000, 65_000),
        gif_header(10_000, 10_000),
        gif_header(10, 10, frame=10_000),
        webp_header(16_000_000, 16_000_000),
    ],
    ids=["png-huge", "png-large", "gif-huge", "gif-large", "gif-frame", "webp"],
)
def test_bombs_are_refused_by_their_header_without_a_warning(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fault_of(content) == "too_many_pixels"


def test_bounds_are_inclusive() -> None:
    content = encoded(picture(40, 24), "png")
    assert decode_rgb(content, max_pixels=960, max_side=40).shape == (24, 40, 3)
    assert fault_of(content, max_pixels=959) == "too_many_pixels"
    assert fault_of(content, max_side=39) == "too_many_pixels"


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    content = encoded(picture(), "jpg")
    assert fault_of(content[:2] + b"\xff\xfe\x02\x02" + b"\xff\xda" * 256 + content[2:]) == "bad_image"


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_truncated_file_is_a_fault_at_every_cut(image_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8))
    content = encoded(noise, image_format)
    for cut in range(len(content) * 9 // 10):
        assert fault_of(content[:cut]) in ("not_image", "bad_image")


def test_a_truncated_progressive_jpeg_is_a_fault() -> None:
    content = encoded(picture(200, 200), "jpg", progressive=True)
    assert fault_of(content[: len(content) * 2 // 3]) == "bad_image"


@pytest.mark.parametrize("image_format", FORMATS)
@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_files_raise_nothing_but_faults(image_format: str, flips: list[tuple[float, int]]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if image_format == "gif" else {"exif": exif, "icc_profile": wide_profile(swap=True)}
    content = bytearray(encoded(picture(), image_format, **options))
    for place, value in flips:
        content[int(place * len(content))] = value
    with contextlib.suppress(ImageFault):
        assert decode(bytes(content)).shape[2] == 3


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 500), (65, 64)])
def test_render_scales_the_short_side_down(image_format: str, shape: tuple[int, int]) -> None:
    scaled = render(open_image(encoded(picture(*shape), image_format), **BOUNDS), 64)
    assert min(scaled.size) == 64
    assert max(scaled.size) == round(max(shape) * 64 / min(shape))
    wanted = picture(*shape).resize(scaled.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(scaled).astype(int) - np.asarray(wanted).astype(int)).mean() < 8


def test_render_never_scales_up() -> None:
    assert render(open_image(encoded(picture(), "jpg"), **BOUNDS), 64).size == (40, 24)


def test_render_carries_no_metadata() -> None:
    content = encoded(picture(), "jpg", comment=b"secret", icc_profile=wide_profile(swap=False))
    assert render(open_image(content, **BOUNDS)).info == {}
