"""What is stored of a fetched image: upright, clean, small enough, and only encoded anew when it must be."""

from __future__ import annotations

import io

import numpy as np
import pytest
import xxhash
from PIL import Image, ImageCms

from dataengine.config.download import ImageConfig, LimitsConfig
from dataengine.download.image import inspect_image, store_image
from dataengine.imaging import ImageFault, sniff_format

LIMITS = LimitsConfig()
ENCODERS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF"}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(width: int = 48, height: int = 32) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, np.full_like(rows, 64)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image_format: str, image: Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, ENCODERS[image_format], **options)
    return stream.getvalue()


def tagged(tag: int, value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[tag] = value
    return exif


@pytest.mark.parametrize("image_format", ["jpg", "webp"])
def test_a_clean_image_is_stored_as_it_came(image_format: str) -> None:
    content = encoded(image_format)
    stored = store_image(content, ImageConfig(format=image_format), LIMITS)
    assert stored.content == content
    assert stored.format == image_format
    assert stored.xxh3 == xxhash.xxh3_64_hexdigest(content)


@pytest.mark.parametrize(
    "content",
    [
        encoded("jpg", exif=tagged(0x0112, 6)),
        encoded("jpg", exif=tagged(0x010E, "secret")),
        encoded("jpg", comment=b"secret"),
        encoded("jpg", icc_profile=PROFILE),
        encoded("jpg", picture().convert("L")),
        encoded("jpg", picture().convert("CMYK")),
        encoded("jpg") + b"secret",
        encoded("jpg") + encoded("jpg"),
        encoded("png"),
        encoded("gif"),
        encoded("webp"),
    ],
    ids=["exif-turn", "exif", "comment", "icc", "grey", "cmyk", "trailer", "two", "png", "gif", "webp"],
)
def test_anything_else_is_encoded_anew_without_metadata(content: bytes) -> None:
    stored = store_image(content, ImageConfig(), LIMITS)
    assert stored.content != content
    assert sniff_format(stored.content) == "jpg"
    assert b"secret" not in stored.content
    with Image.open(io.BytesIO(stored.content)) as image:
        assert image.mode == "RGB"
        assert image.size == (stored.width, stored.height)
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize("options", [{"exif": tagged(0x0112, 6)}, {"lossless": True}, {"icc_profile": PROFILE}])
def test_a_webp_of_more_than_one_lossy_frame_is_encoded_anew(options: dict[str, object]) -> None:
    content = encoded("webp", **options)
    stored = store_image(content, ImageConfig(format="webp"), LIMITS)
    assert stored.content[12:16] == b"VP8 "


def test_a_png_keeps_its_pixels_and_loses_its_text() -> None:
    content = encoded("png", icc_profile=PROFILE, dpi=(72, 72))
    stored = store_image(content, ImageConfig(format="png"), LIMITS)
    assert b"iCCP" not in stored.content
    assert b"pHYs" not in stored.content
    with Image.open(io.BytesIO(stored.content)) as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture()))


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_large_images_are_scaled_and_turned_upright(image_format: str) -> None:
    content = encoded("jpg", picture(300, 200), exif=tagged(0x0112, 6))
    stored = store_image(content, ImageConfig(size=64, format=image_format), LIMITS)
    assert (stored.original_width, stored.original_height) == (200, 300)
    assert (stored.width, stored.height) == (64, 96)
    with Image.open(io.BytesIO(stored.content)) as image:
        assert image.size == (64, 96)
    assert sniff_format(stored.content) == stored.format == image_format


def test_resize_no_keeps_every_pixel() -> None:
    stored = store_image(encoded("png", picture(300, 200)), ImageConfig(resize="no", size=64), LIMITS)
    assert (stored.width, stored.height) == (300, 200)


def test_the_pixel_hash_tells_pictures_not_files() -> None:
    config = ImageConfig(format="png")
    stored = store_image(encoded("png"), config, LIMITS)
    assert len(stored.pixel_hash) == 32
    assert store_image(encoded("png", compress_level=1), config, LIMITS).pixel_hash == stored.pixel_hash
    assert store_image(encoded("png"), ImageConfig(), LIMITS).pixel_hash == stored.pixel_hash
    assert inspect_image(encoded("webp", lossless=True), LIMITS).pixel_hash == stored.pixel_hash
    other = picture()
    other.putpixel((0, 0), (1, 0, 64))
    assert store_image(encoded("png", other), config, LIMITS).pixel_hash != stored.pixel_hash


def test_the_pixel_hash_knows_the_shape() -> None:
    wide, tall = Image.new("RGB", (8, 2)), Image.new("RGB", (2, 8))
    hashes = {inspect_image(encoded("png", image), LIMITS).pixel_hash for image in (wide, tall)}
    assert len(hashes) == 2


def test_storing_is_deterministic() -> None:
    content, config = encoded("png", picture(300, 200)), ImageConfig(size=64)
    assert store_image(content, config, LIMITS) == store_image(content, config, LIMITS)


def test_inspecting_changes_nothing() -> None:
    content = encoded("jpg", picture(300, 200), exif=tagged(0x0112, 6))
    found = inspect_image(content, LIMITS)
    assert found.content == content
    assert (found.width, found.height) == (found.original_width, found.original_height) == (200, 300)
    assert inspect_image(encoded("gif"), LIMITS).format == "gif"


def test_faults_pass_through() -> None:
    with pytest.raises(ImageFault, match="too_many_pixels"):
        store_image(encoded("jpg"), ImageConfig(), LimitsConfig(max_pixels=100))
    with pytest.raises(ImageFault, match="not_image"):
        inspect_image(b"<html>", LIMITS)


def test_a_side_too_long_for_the_stored_format_is_a_fault() -> None:
    content = encoded("jpg", Image.new("RGB", (17_000, 64)))
    assert store_image(content, ImageConfig(format="jpg"), LIMITS).width == 17_000
    with pytest.raises(ImageFault, match=r"too_many_pixels.*webp"):
        store_image(content, ImageConfig(format="webp"), LIMITS)
