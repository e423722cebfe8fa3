"""Imaging: hostile, odd and plain images become upright RGB pixels or a named fault."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
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


def test_ycck_as_adobe_inverts_it() -> None:
    inverted = np.full((16, 16, 4), (255, 0, 0, 255), np.uint8)  # of cyan 0, magenta and yellow full, no black
    content = simplejpeg.encode_jpeg(inverted, 95, "CMYK", "444")
    assert content[content.index(b"Adobe") + 11] == 2  # YCCK
    red = decode(content)[8, 8]
    assert red[0] > 240
    assert max(red[1:]) < 15


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def sixteen_bit(color_type: int, samples: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of 16-bit samples [height, width, channels]; color_type 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    height, width = samples.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    samples = np.array([[[0, 256, 32768], [65535, 65280, 255]]])
    assert decode(sixteen_bit(2, samples))[0].tolist() == [[0, 1, 128], [255, 255, 0]]


def test_sixteen_bit_transparency_becomes_white() -> None:
    clear, solid = 0, 65535
    assert decode(sixteen_bit(6, np.array([[[9, 9, 9, clear], [65280, 256, 0, solid]]])))[0].tolist() == [
        [255, 255, 255],
        [255, 1, 0],
    ]
    assert decode(sixteen_bit(4, np.array([[[9, clear], [25600, solid]]])))[0].tolist() == [[255] * 3, [100] * 3]
    key = chunk(b"tRNS", struct.pack(">H", 25601))
    assert decode(sixteen_bit(0, np.array([[[25601], [25600]]]), key))[0].tolist() == [[255] * 3, [100] * 3]


def test_a_transparent_sixteen_bit_colour_stays_as_it_is() -> None:
    """Only its high bytes are left when it is looked for, and they would take other colours with them."""
    key = chunk(b"tRNS", struct.pack(">HHH", 256, 512, 768))
    assert decode(sixteen_bit(2, np.array([[[256, 512, 768]]]), key))[0, 0].tolist() == [1, 2, 3]


def test_one_bit_transparency_becomes_white() -> None:
    content = encoded(Image.new("1", (2, 2), 0), "png", transparency=0)
    assert decode(content)[0, 0].tolist() == [255] * 3


def test_progressive_and_optimised_jpegs_are_as_any_other() -> None:
    plain = decode(encoded(picture(), "jpg"))
    for options in ({"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}):
        assert np.array_equal(decode(encoded(picture(), "jpg", **options)), plain)


def test_an_interlaced_png_is_as_any_other() -> None:
    pixels = np.asarray(picture(16, 16))
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [pixels[top::down, left::across] for left, top, across, down in passes]
    lines = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 1))
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    assert np.array_equal(decode(content), pixels)


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


def display_p3() -> bytes:
    """The sRGB profile with the primaries of Display P3, adapted to D50."""
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2919, 0.6922, 0.0419),
        b"bXYZ": (0.1572, 0.0666, 0.7841),
    }
    profile = bytearray(wide_profile(swap=False))
    for at in range(132, 132 + 12 * profile[131], 12):
        if (tag := bytes(profile[at : at + 4])) in primaries:
            place = int.from_bytes(profile[at + 4 : at + 8], "big") + 8
            profile[place : place + 12] = struct.pack(">3i", *(round(value * 65536) for value in primaries[tag]))
    return bytes(profile)


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
@pytest.mark.parametrize("color", [(230, 120, 90), (110, 140, 80), (200, 200, 200)])
def test_display_p3_becomes_srgb(image_format: str, color: tuple[int, int, int]) -> None:
    encoded_light = np.array(color) / 255
    light = np.where(encoded_light > 0.04045, ((encoded_light + 0.055) / 1.055) ** 2.4, encoded_light / 12.92)
    to_srgb = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])  # CSS Color 4
    wanted = (1.055 * (to_srgb @ light) ** (1 / 2.4) - 0.055) * 255
    options = {"lossless": True} if image_format == "webp" else {"quality": 100, "subsampling": 0}
    content = encoded(Image.new("RGB", (600, 400), color), image_format, icc_profile=display_p3(), **options)
    for target in (None, (60, 40)):
        pixels = render(open_image(content, **BOUNDS), target)
        assert np.abs(pixels[10, 10] - wanted).max() <= 3


@pytest.mark.parametrize("profile", [b"rubbish", wide_profile(swap=True)[:200]])
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    content = encoded(Image.new("RGB", (8, 8), (255, 0, 0)), "png", icc_profile=profile)
    assert decode(content)[0, 0].tolist() == [255, 0, 0]


def test_a_profile_of_another_colour_model_is_ignored() -> None:
    content = encoded(Image.new("L", (8, 8), 100), "png", icc_profile=wide_profile(swap=True))
    assert decode(content)[0, 0].tolist() == [100] * 3


def png_header(width: int, height: int) -> bytes:
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
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 500), (65, 64), (30, 20)])
@pytest.mark.parametrize("target", [(64, 48), (48, 64), (64, 1)])
def test_render_scales_to_the_target(image_format: str, shape: tuple[int, int], target: tuple[int, int]) -> None:
    scaled = render(open_image(encoded(picture(*shape), image_format), **BOUNDS), target)
    assert scaled.shape == (target[1], target[0], 3)
    wanted = picture(*shape).resize(target, Image.Resampling.LANCZOS)
    assert np.abs(scaled.astype(int) - np.asarray(wanted).astype(int)).mean() < 8


def ramp(width: int, height: int) -> np.ndarray:
    """Red is the column and green the row, 40 to 240: wherever it is scaled, a pixel tells where it was."""
    columns, rows = 40 + 200 * (np.arange(width) + 0.5) / width, 40 + 200 * (np.arange(height) + 0.5) / height
    pixels = np.stack([*np.meshgrid(columns, rows), np.full((height, width), 90.0)], axis=-1)
    return np.asarray(np.round(pixels), np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(40, 700), st.integers(40, 700)),
    target=st.tuples(st.integers(16, 48), st.integers(16, 48)),
    image_format=st.sampled_from(["jpg", "png"]),
)
@example(shape=(103, 77), target=(40, 30), image_format="jpg")
@example(shape=(103, 77), target=(40, 30), image_format="png")
def test_scaling_moves_nothing_and_keeps_flat_areas_flat(
    shape: tuple[int, int], target: tuple[int, int], image_format: str
) -> None:
    options = {"quality": 100, "subsampling": 0} if image_format == "jpg" else {}
    content = encoded(Image.fromarray(ramp(*shape)), image_format, **options)
    scaled = render(open_image(content, **BOUNDS), target)
    apart = scaled.astype(int) - ramp(*target).astype(int)
    noise = 6 if image_format == "jpg" else 1
    assert np.abs(apart[..., 2]).max() <= noise
    assert np.abs(apart).max() <= noise + 2 * 200 / min(target)  # at a border the slope ends
    far = apart[target[1] // 2 : -2, target[0] // 2 : -2]  # a wrong scale shows at the far end
    for color, side in enumerate(target):
        assert abs(far[..., color].mean()) <= 0.7 + 0.1 * 200 / side  # a tenth of a pixel, and rounding


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_cut_keeps_the_middle(orientation: int) -> None:
    stripes = np.zeros((100, 300, 3), np.uint8)
    stripes[:, 100:200] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(Image.fromarray(stripes), "png", exif=exif), **BOUNDS)
    for side in (20, 100, 150):
        middle = render(opened, (side, side), cut=True)
        assert middle.shape == (side, side, 3)
        assert middle[:, side // 10 : -side // 10, :].min() > 240


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(("divisor", "target"), [(1, (512, 384)), (2, (300, 225)), (4, (150, 112)), (8, (80, 60))])
def test_a_jpeg_far_too_large_is_decoded_scaled(
    mode: str, cut: bool, divisor: int, target: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    decode_jpeg = simplejpeg.decode_jpeg

    def spy(*args: object, **options: int) -> np.ndarray:
        pixels = decode_jpeg(*args, **options)
        sizes.append(pixels.shape[1::-1])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    opened = open_image(encoded(picture(1003, 751).convert(mode), "jpg"), **BOUNDS)
    render(opened, target, cut=cut)
    [size] = sizes or [opened.file.size]
    assert size == (-(-1003 // divisor), -(-751 // divisor))


def test_both_jpeg_decoders_agree() -> None:
    scene = Image.fromarray(np.random.default_rng(5).integers(0, 256, (61, 83, 3), np.uint8)).resize((500, 370))
    for options in ({}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"keep_rgb": True}):
        content = encoded(scene, "jpg", quality=90, **options)
        with Image.open(io.BytesIO(content)) as by_pillow:
            apart = np.abs(decode(content).astype(int) - np.asarray(by_pillow.convert("RGB")).astype(int))
        assert apart.max() <= 2


def test_both_webp_decoders_agree() -> None:
    scene = Image.fromarray(np.random.default_rng(5).integers(0, 256, (61, 83, 3), np.uint8)).resize((501, 371))
    content = encoded(scene, "webp")
    with Image.open(io.BytesIO(content)) as by_pillow:
        assert np.abs(decode(content).astype(int) - np.asarray(by_pillow.convert("RGB")).astype(int)).max() <= 2


def test_a_jpeg_cut_short_and_ended_is_a_fault() -> None:
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8))
    content = encoded(noise, "jpg")
    assert fault_of(content[: len(content) // 2] + b"\xff\xd9") == "bad_image"


def test_stray_bytes_between_markers_are_no_fault() -> None:
    content = encoded(picture(), "jpg")
    place = content.index(b"\xff\xda")
    assert decode(content[:place] + b"junk" + content[place:]).shape == (24, 40, 3)


def test_a_jpeg_of_two_sizes_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda content: (24_000, 40_000, "YCbCr", "420"))
    assert fault_of(encoded(picture(), "jpg")) == "bad_image"


def test_want_of_memory_is_no_fault_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*_: object, **__: object) -> None:
        raise ValueError("Insufficient memory (case 4)")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", starve)
    with pytest.raises(MemoryError):
        decode(encoded(picture(), "jpg"))
