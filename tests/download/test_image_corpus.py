"""Bombs, lies and broken files: each a picture or a fault with its reason, in bounded time and memory."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import time
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataengine.config.download import ImageConfig, LimitsConfig
from dataengine.download.image import store_image
from dataengine.download.outcomes import is_known
from dataengine.imaging import ImageFault, decode_rgb, sniff_format

MAX_SECONDS = 5.0
MAX_EXTRA_BYTES = 640 * 2**20
"""Of address space beside the libraries: 50 megapixels are 150 MB as RGB, and 200 MB as Pillow holds them."""
PICTURE = "picture"


def photo(width: int = 640, height: int = 480) -> Image.Image:
    """Detailed enough that its files are long."""
    small = np.random.default_rng(7).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes, *chunks: bytes, color_type: int = 2) -> bytes:
    """A PNG of 8-bit samples whose IDAT holds `pixels`, already deflated."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@cache
def zeros(num_bytes: int) -> bytes:
    deflate = zlib.compressobj(9)
    return b"".join(deflate.compress(bytes(2**20)) for _ in range(num_bytes // 2**20)) + deflate.flush()


def resized_header(content: bytes, width: int, height: int) -> bytes:
    """A JPEG that says another size."""
    start = next(at for marker in (b"\xff\xc0", b"\xff\xc2") if (at := content.find(marker)) > 0)
    return content[: start + 5] + struct.pack(">HH", height, width) + content[start + 9 :]


def with_exif(content: bytes, exif: bytes) -> bytes:
    """A JPEG with `exif` right behind its start, in as many segments as it takes."""
    pieces = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    segments = (b"Exif\0\0" + piece for piece in pieces)
    return content[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments) + content[2:]


def exif_of(num_tags: int, num_bytes: int, following: int = 0) -> bytes:
    """Each of many tags claims the same bytes; the directory after this one lies at `following`."""
    tags = b"".join(struct.pack(">HHII", tag, 7, num_bytes, 8) for tag in range(num_tags))
    return (b"MM\0*\0\0\0\x08" + struct.pack(">H", num_tags) + tags + struct.pack(">I", following)).ljust(
        num_bytes, b"\0"
    )


def endless_exif() -> bytes:
    """EXIF, GPS and interoperability directories that are all the first one, which follows itself."""
    tags = b"".join(struct.pack(">HHII", tag, 4, 1, 8) for tag in (0x8769, 0x8825, 0xA005))
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", 3) + tags + struct.pack(">I", 8)


def many_scans(num_scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    content = encoded(photo(64, 48), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * num_scans + b"\xff\xd9"


def gif(width: int, height: int, num_frames: int, frame: tuple[int, int] | None = None) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    control = b"!\xf9\x04\x08\0\0\0\0"
    one = control + struct.pack("<BHHHHBB", 0x2C, 0, 0, *(frame or (width, height)), 0, 2) + b"\x02\x4c\x01\0"
    return b"GIF89a" + screen + one * num_frames + b";"


def webp_canvas(width: int, height: int) -> bytes:
    """A WebP whose canvas is far larger than its frame."""
    content = bytearray(encoded(photo(40, 24), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"))
    content[24:27], content[27:30] = (width - 1).to_bytes(3, "little"), (height - 1).to_bytes(3, "little")
    return bytes(content)


def webp_frame(width: int, height: int) -> bytes:
    """A WebP whose frame says another size than it has."""
    content = bytearray(encoded(photo(40, 24), "WEBP"))
    start = content.index(b"\x9d\x01\x2a") + 3
    content[start : start + 4] = struct.pack("<HH", width, height)
    return bytes(content)


def mpo() -> bytes:
    return encoded(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")] * 2)


def corpus() -> dict[str, tuple[bytes, set[str]]]:
    """Name → the bytes, and what may become of them."""
    jpeg, webp = encoded(photo(), "JPEG"), encoded(photo(), "WEBP")
    line = zlib.compress(b"\0" + bytes(3 * 64))
    lines = zlib.compress((b"\0" + bytes(3 * 64)) * 64)
    either = {PICTURE, "bad_image"}
    return {
        "png-50k": (png(50_000, 50_000, line), {"too_many_pixels"}),
        "png-50k-full": (png(50_000, 50_000, zeros(200 * 2**20), color_type=0), {"too_many_pixels"}),
        "png-7k-empty": (png(7000, 7000, line), {"bad_image"}),
        "png-overfull": (png(64, 64, zeros(200 * 2**20)), either),
        "png-no-pixels": (png(64, 64, b""), {"bad_image"}),
        "png-zero-size": (png(0, 0, line), {"bad_image"}),
        "png-ztxt": (png(64, 64, lines, chunk(b"zTXt", b"a\0\0" + zeros(200 * 2**20))), either),
        "png-many-ztxt": (png(64, 64, lines, *[chunk(b"zTXt", b"a\0\0" + zeros(2**20))] * 300), either),
        "png-itxt": (png(64, 64, lines, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(200 * 2**20))), either),
        "png-iccp": (png(64, 64, lines, chunk(b"iCCP", b"a\0\0" + zeros(200 * 2**20))), either),
        "png-many-frames": (png(64, 64, lines, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))), either),
        "png-exif": (png(64, 64, lines, chunk(b"eXIf", exif_of(60_000, 2**20))), either),
        "gif-100k-frames": (gif(1, 1, 100_000), {PICTURE}),
        "gif-canvas": (gif(65_535, 65_535, 1), {"too_many_pixels"}),
        "gif-canvas-of-frame": (gif(8, 8, 1, frame=(65_535, 65_535)), {"too_many_pixels"}),
        "gif-canvas-in-bounds": (gif(7000, 7000, 1), {"bad_image"}),
        "webp-canvas": (webp_canvas(2**24, 2**24), {"too_many_pixels", "bad_image"}),
        "webp-canvas-in-bounds": (webp_canvas(7000, 7000), {"bad_image"}),
        "webp-frame-huge": (webp_frame(16_383, 16_383), {"too_many_pixels", "bad_image"}),
        "webp-frame-in-bounds": (webp_frame(7000, 7000), {"bad_image"}),
        "webp-frame-small": (webp_frame(8, 8), either),
        "jpeg-huge": (resized_header(jpeg, 65_500, 65_500), {"too_many_pixels"}),
        "jpeg-larger": (resized_header(jpeg, 7000, 7000), {"bad_image"}),
        "jpeg-progressive-larger": (
            resized_header(encoded(photo(), "JPEG", progressive=True), 7000, 7000),
            {"bad_image"},
        ),
        "jpeg-smaller": (resized_header(jpeg, 64, 64), either),
        "jpeg-zero": (resized_header(jpeg, 0, 0), {"bad_image"}),
        "jpeg-two-headers": (jpeg[:2] + jpeg[2 : jpeg.index(b"\xff\xda")] + jpeg[2:], either),
        "jpeg-10k-scans": (many_scans(10_000), {"bad_image"}),
        "jpeg-90-scans": (many_scans(90), {PICTURE}),
        "jpeg-exif": (with_exif(jpeg, exif_of(5000, 65_000)), {PICTURE}),
        "jpeg-long-exif": (with_exif(jpeg, exif_of(65_000, 4 * 2**20)), {PICTURE}),
        "jpeg-endless-exif": (with_exif(jpeg, endless_exif()), {PICTURE}),
        "jpeg-exif-loop": (with_exif(jpeg, exif_of(1, 64, following=8)), {PICTURE}),
        "mpo": (mpo(), {PICTURE}),
        "wide": (encoded(Image.new("RGB", (20_001, 1)), "JPEG"), {"too_many_pixels"}),
        "tall": (encoded(Image.new("RGB", (1, 20_001)), "PNG"), {"too_many_pixels"}),
        "as-wide-as-may-be": (encoded(Image.new("RGB", (20_000, 1)), "PNG"), {PICTURE}),
        "as-large-as-may-be": (encoded(Image.new("RGB", (10_000, 5000)), "JPEG"), {PICTURE}),
        "nothing": (b"", {"not_image"}),
        "one-byte": (b"\xff", {"not_image"}),
        "zero-bytes": (bytes(4096), {"not_image"}),
        "html": (b"<!doctype html><html><body>gone</body></html>", {"not_image"}),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', {"not_image"}),
        "svg-with-declaration": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', {"not_image"}),
        "gzip": (gzip.compress(jpeg), {"not_image"}),
        "pdf": (b"%PDF-1.7\n", {"not_image"}),
        "riff": (b"RIFF\x24\0\0\0WAVEfmt ", {"not_image"}),
        "avif": (b"\0\0\0\x20ftypavif", {"not_image"}),
        "tiff": (encoded(photo(64, 64), "TIFF"), {"not_image"}),
        **{f"cut-{name}-{n}": (cut, faults) for name, n, cut, faults in cuts(jpeg=jpeg, webp=webp)},
        **{f"rubbish-{name}": (magic + random.Random(name).randbytes(5000), {"bad_image", "too_many_pixels"})
           for name, magic in MAGIC.items()},
    }  # fmt: skip


MAGIC = {
    "jpg": b"\xff\xd8\xff",
    "jpg-jfif": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\x80\x13\0\0WEBPVP8 ",
    "gif": b"GIF89a",
}


def cuts(**contents: bytes) -> list[tuple[str, int, bytes, set[str]]]:
    """Files that end at twenty places, and JPEGs that say they end there."""
    found = []
    for name, content in contents.items():
        for n in range(1, 20):
            cut = content[: len(content) * n // 20]
            found.append((name, n, cut, {"bad_image"}))
            if name == "jpeg":
                found.append(("jpeg-ended", n, cut + b"\xff\xd9", {"bad_image"}))
    return found


CHILD = """
import json, resource, sys, time
from pathlib import Path
from dataengine.config.download import ImageConfig, LimitsConfig
from dataengine.download.image import store_image
from dataengine.imaging import ImageFault

extra = int(sys.argv[2])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    content, start = path.read_bytes(), time.process_time()
    try:
        store_image(content, ImageConfig(), LimitsConfig())
        outcome = "picture"
    except ImageFault as fault:
        outcome = fault.reason
    except BaseException as error:
        outcome = repr(error)
    found[path.name] = outcome, time.process_time() - start
print(json.dumps(found))
"""


def test_the_corpus_of_bombs_and_broken_files(tmp_path: Path) -> None:
    files = corpus()
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(MAX_EXTRA_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == files.keys()
    assert {name: outcome for name, (outcome, _) in found.items() if outcome not in files[name][1]} == {}
    assert {name: seconds for name, (_, seconds) in found.items() if seconds > MAX_SECONDS} == {}
    assert all(is_known(outcome) for outcome, _ in found.values() if outcome != PICTURE)


def good_files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = photo(160, 120)
    return {
        "jpeg": encoded(small, "JPEG", exif=exif),
        "progressive": encoded(small, "JPEG", progressive=True),
        "cmyk": encoded(small.convert("CMYK"), "JPEG"),
        "grey": encoded(small.convert("L"), "JPEG"),
        "png": encoded(small, "PNG", exif=exif),
        "palette": encoded(small.quantize(64), "PNG", transparency=0),
        "webp": encoded(small, "WEBP"),
        "webp-alpha": encoded(small.convert("RGBA"), "WEBP", lossless=True, exif=exif),
        "webp-moving": encoded(small, "WEBP", save_all=True, append_images=[small.rotate(9)]),
        "gif": encoded(small, "GIF", save_all=True, append_images=[small.rotate(9)]),
    }


def mutant(content: bytes, rng: random.Random) -> bytes:
    """`content` with a few bytes changed, a run cut out, doubled or overwritten, half of all near the start."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        reach = rng.choice([min(200, len(changed)), len(changed)])
        place, length = rng.randrange(reach), rng.randint(1, 64)
        kind = rng.randrange(5)
        if kind == 0:
            changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = changed[place : place + length]
        elif kind == 3:
            changed[place : place + length] = rng.randbytes(length)
        else:
            changed[place : place + 4] = struct.pack(">I", rng.choice([0, 2**31 - 1, 2**32 - 1, 65_535]))
    return bytes(changed)


@pytest.mark.parametrize("name", good_files())
def test_mutants_are_pictures_or_faults(name: str) -> None:
    content, rng = good_files()[name], random.Random(name)
    outcomes = set()
    for _ in range(40):
        changed, start = mutant(content, rng), time.process_time()
        try:
            stored = store_image(changed, ImageConfig(size=64), LimitsConfig())
            assert sniff_format(stored.content) == "jpg"
            outcomes.add(PICTURE)
        except ImageFault as fault:
            outcomes.add(fault.reason)
        assert time.process_time() - start < MAX_SECONDS
    assert all(is_known(outcome) for outcome in outcomes - {PICTURE})
    assert len(outcomes) > 1  # or the mutations are too tame, or too wild, to test anything


def test_only_the_first_picture_of_several_is_stored() -> None:
    stored = store_image(mpo(), ImageConfig(), LimitsConfig())
    assert (stored.width, stored.height) == (640, 480)
    assert stored.content.count(b"\xff\xd8\xff") == 1


def test_real_near_duplicates_decode(real_data: Path) -> None:
    """All but what is no JPEG, PNG, WebP or GIF; names lie about that."""
    refused = {}
    for path in sorted((real_data / "near-duplicates").rglob("*")):
        if path.is_file():
            try:
                assert min(decode_rgb(path.read_bytes(), max_pixels=50_000_000, max_side=20_000).shape[:2]) > 1
            except ImageFault as fault:
                refused[path.name] = fault.reason
    others = ["Iggy.1024.ppm", "baboon.pgm", "copyleft.tiff", "marbles.pbm", "ukbench09268_corrupt.jpg"]
    assert refused == dict.fromkeys(others, "not_image")
