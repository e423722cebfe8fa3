"""What is stored of a fetched image: upright, clean, small enough, and only encoded anew when it must be."""

from __future__ import annotations

import io

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
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


MODES = ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("mode", "shape", "wanted"),
    [
        ("keep_ratio", (300, 200), (96, 64)),
        ("keep_ratio", (200, 333), (64, 107)),
        ("keep_ratio_largest", (300, 200), (64, 43)),
        ("keep_ratio_largest", (20, 3000), (1, 64)),
        ("center_crop", (300, 200), (64, 64)),
        ("center_crop", (65, 200), (64, 64)),
        ("border", (300, 200), (64, 64)),
        ("border", (65, 3), (64, 64)),
        ("no", (300, 200), (300, 200)),
    ],
)
def test_every_mode_makes_its_size(
    mode: str, shape: tuple[int, int], wanted: tuple[int, int], orientation: int
) -> None:
    laid = shape if orientation == 1 else shape[::-1]
    content = encoded("jpg", picture(*laid), exif=tagged(0x0112, orientation))
    stored = store_image(content, ImageConfig(resize=mode, size=64), LIMITS)
    assert (stored.width, stored.height) == wanted
    assert (stored.original_width, stored.original_height) == shape
    with Image.open(io.BytesIO(stored.content)) as image:
        assert image.size == wanted


@pytest.mark.parametrize(("mode", "shape"), [
    ("keep_ratio", (300, 64)), ("center_crop", (300, 64)), ("keep_ratio_largest", (64, 20)), ("border", (64, 20)),
    ("keep_ratio", (30, 20)), ("center_crop", (30, 20)), ("keep_ratio_largest", (30, 20)), ("border", (30, 20)),
])  # fmt: skip
def test_an_image_that_is_small_enough_is_left_alone(mode: str, shape: tuple[int, int]) -> None:
    content = encoded("jpg", picture(*shape))
    stored = store_image(content, ImageConfig(resize=mode, size=64), LIMITS)
    assert stored.content == content
    assert (stored.width, stored.height) == shape


@pytest.mark.parametrize(
    ("mode", "shape", "wanted"),
    [
        ("keep_ratio", (30, 20), (96, 64)),
        ("keep_ratio_largest", (30, 20), (64, 43)),
        ("center_crop", (30, 20), (64, 64)),
        ("center_crop", (300, 64), (64, 64)),
        ("border", (30, 20), (64, 64)),
        ("border", (64, 20), (64, 64)),
        ("no", (30, 20), (30, 20)),
    ],
)
def test_small_images_are_enlarged_where_asked(mode: str, shape: tuple[int, int], wanted: tuple[int, int]) -> None:
    config = ImageConfig(resize=mode, size=64, only_if_bigger=False, format="png")
    stored = store_image(encoded("png", picture(*shape)), config, LIMITS)
    assert (stored.width, stored.height) == wanted


def test_enlarging_is_by_lanczos() -> None:
    stored = store_image(encoded("png"), ImageConfig(size=128, only_if_bigger=False, format="png"), LIMITS)
    with Image.open(io.BytesIO(stored.content)) as image:
        assert image.size == (192, 128)
        wanted = picture().resize((192, 128), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(wanted).astype(int)).max() <= 3


def test_enlarging_a_thin_image_without_end_is_a_fault() -> None:
    content = encoded("jpg", Image.new("RGB", (2000, 1)))
    config = ImageConfig(resize="keep_ratio", size=512, only_if_bigger=False, format="png")
    with pytest.raises(ImageFault, match=r"too_many_pixels.*to store"):
        store_image(content, config, LIMITS)
    cropped = store_image(content, ImageConfig(resize="center_crop", size=512, only_if_bigger=False), LIMITS)
    assert (cropped.width, cropped.height) == (512, 512)


def test_a_border_is_white_and_even() -> None:
    config = ImageConfig(resize="border", size=64, format="png")
    stored = store_image(encoded("png", Image.new("RGB", (200, 101), (200, 30, 30))), config, LIMITS)
    with Image.open(io.BytesIO(stored.content)) as image:
        rows = np.asarray(image)[:, 32]
    assert (rows[:16] == 255).all()
    assert (rows[48:] == 255).all()
    assert (rows[16:48] == (200, 30, 30)).all()


def test_a_crop_keeps_the_middle() -> None:
    stripes = np.zeros((100, 300, 3), np.uint8)
    stripes[:, 100:200] = 255
    config = ImageConfig(resize="center_crop", size=50, format="png")
    stored = store_image(encoded("png", Image.fromarray(stripes)), config, LIMITS)
    with Image.open(io.BytesIO(stored.content)) as image:
        assert np.asarray(image)[:, 2:-2].min() > 250


@pytest.mark.parametrize("image_format", ["jpg", "webp"])
def test_quality_counts(image_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    sizes = [
        len(store_image(encoded("png", noise), ImageConfig(format=image_format, quality=quality), LIMITS).content)
        for quality in (30, 95)
    ]
    assert sizes[0] * 2 < sizes[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("only_if_bigger", [True, False])
def test_storing_what_was_stored_changes_nothing(mode: str, only_if_bigger: bool) -> None:
    config = ImageConfig(resize=mode, size=64, only_if_bigger=only_if_bigger)
    first = store_image(encoded("jpg", picture(200, 130), quality=80), config, LIMITS)
    again = store_image(first.content, config, LIMITS)
    assert again.content == first.content


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    mode=st.sampled_from(MODES),
    size=st.integers(16, 200),
    only_if_bigger=st.booleans(),
)
def test_sizes_are_as_img2dataset_has_them(shape: tuple[int, int], mode: str, size: int, only_if_bigger: bool) -> None:
    wanted = shape
    side = min(shape) if mode in ("keep_ratio", "center_crop") else max(shape)
    if mode != "no" and (side > size or not only_if_bigger):
        scale = size / side
        is_square = mode in ("center_crop", "border")
        wanted = (size, size) if is_square else tuple(max(1, round(length * scale)) for length in shape)
    config = ImageConfig(resize=mode, size=size, only_if_bigger=only_if_bigger)
    stored = store_image(encoded("jpg", Image.new("RGB", shape, (9, 99, 199))), config, LIMITS)
    # It multiplies by a rounded scale, which may end on the other side of a half.
    assert np.abs(np.subtract((stored.width, stored.height), wanted)).max() <= (mode.startswith("keep_ratio"))


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
    content = encoded("jpg", picture(300, 200))
    with pytest.raises(ImageFault, match="bad_image"):
        store_image(content[: len(content) // 2], ImageConfig(size=64), LIMITS)


def test_a_side_too_long_for_the_stored_format_is_a_fault() -> None:
    content = encoded("jpg", Image.new("RGB", (17_000, 64)))
    assert store_image(content, ImageConfig(format="jpg"), LIMITS).width == 17_000
    with pytest.raises(ImageFault, match=r"too_many_pixels.*webp"):
        store_image(content, ImageConfig(format="webp"), LIMITS)
