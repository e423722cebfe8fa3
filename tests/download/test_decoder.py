"""Decoders: the same answers as in process, and a picture that kills, hangs or fills one costs its own row alone."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataengine.config.download import ImageConfig, LimitsConfig
from dataengine.download import decoder
from dataengine.download.decoder import Decoded, DecoderPool
from dataengine.download.image import inspect_image, store_image
from dataengine.errors import TryAgainError
from dataengine.imaging import ImageFault

IMAGE, LIMITS = ImageConfig(size=64), LimitsConfig()
PROTOCOL = """
import json, os, signal, sys, time

SHARED = json.loads(sys.stdin.readline())["shared"]
print("{}", flush=True)
poisoned = False
for line in sys.stdin:
    content = os.pread(SHARED, int(line), 0)
    if content == b"crash" or poisoned:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif content == b"exit":
        sys.exit("no more of this")
    elif content == b"crash, then hang" and not os.path.exists(sys.argv[0] + ".crashed"):
        open(sys.argv[0] + ".crashed", "w").close()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif content.endswith(b"hang"):
        time.sleep(60)
    elif content == b"chatter":
        while True:
            print("still here", file=sys.stderr)
    elif content == b"talk":
        print("much to say" * 100_000, file=sys.stderr)
    elif content == b"nonsense":
        print("[1, 2]", flush=True)
        continue
    elif content == b"flood":
        print("x" * 1_000_000, flush=True)
    poisoned = content == b"poison"
    answer = {"digests": {"sha256": content.decode()}, "reason": "not_image", "detail": str(os.getpid())}
    print(json.dumps(answer), flush=True)
"""
"""Speaks as a child does, gives what it was sent back as hash and its process as detail, and does as it is told."""

PARENT = """
import sys, threading, time
from dataengine.config.download import ImageConfig, LimitsConfig
from dataengine.download.decoder import DecoderPool

pool = DecoderPool(2, ImageConfig(resize="no", format="webp", quality=100), LimitsConfig())
with open(sys.argv[1], "rb") as file:
    slow = file.read()
busy = threading.Thread(target=pool.decode, args=(slow,))
busy.start()
pool.decode(b"not an image")
print(*(child._process.pid for child in pool._alive), flush=True)
pool.decode(slow)
time.sleep(60)
"""


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


JPEG = encoded(noise(300, 200), "JPEG")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(1, IMAGE, LIMITS, ("md5",)) as decoders:
        yield decoders


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """49 megapixels in 140 kB: half a second and 400 MB."""
    return encoded(Image.new("LA", (7000, 7000)), compress_level=1)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[DecoderPool]:
    path = tmp_path / "child.py"
    path.write_text(PROTOCOL)
    limits = LimitsConfig(decode_seconds=1)
    with DecoderPool(1, IMAGE, limits, _command=(sys.executable, str(path))) as decoders:
        yield decoders


def in_process(content: bytes) -> Decoded:
    digests = {name: hashlib.new(name, content).hexdigest() for name in ("sha256", "md5")}
    try:
        return Decoded(digests, store_image(content, IMAGE, LIMITS))
    except ImageFault as fault:
        return Decoded(digests, reason=fault.reason, detail=str(fault).removeprefix(f"{fault.reason}: ")[:300])


def pids(decoders: DecoderPool) -> set[int]:
    return {child._process.pid for child in decoders._alive}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "content",
    [
        JPEG,
        encoded(noise(60, 40), "JPEG", quality=80),
        encoded(noise(200, 300).convert("LA")),
        encoded(noise(90, 90), "WEBP"),
        encoded(noise(90, 90).convert("P"), "GIF"),
        encoded(noise(20, 20), "JPEG")[:-200],
        b"",
        b"<html>",
        b"\xff\xd8\xff" + bytes(2**21),
    ],
    ids=["jpg", "unchanged", "png", "webp", "gif", "cut", "empty", "html", "long"],
)
def test_the_answer_is_that_of_the_parents_own_decoder(pool: DecoderPool, content: bytes) -> None:
    assert pool.decode(content) == in_process(content)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, len(JPEG)), length=st.integers(0, 40), patch=st.binary(max_size=40))
def test_broken_bytes_are_a_fault_or_a_picture_in_both(
    pool: DecoderPool, start: int, length: int, patch: bytes
) -> None:
    content = JPEG[:start] + patch + JPEG[start + length :]
    assert pool.decode(content) == in_process(content)


def test_what_lies_in_place_is_looked_at_and_not_sent_back() -> None:
    with DecoderPool(1, None, LIMITS) as decoders:
        decoded = decoders.decode(JPEG)
    found = inspect_image(JPEG, LIMITS)
    assert decoded.image is not None
    assert vars(decoded.image) == vars(found) | {"content": b""}
    assert decoded.digests == {"sha256": hashlib.sha256(JPEG).hexdigest()}


def test_bytes_that_pass_unchanged_are_not_sent_back(pool: DecoderPool) -> None:
    content = encoded(Image.new("RGB", (60, 40)), "JPEG")
    image = pool.decode(content).image
    assert image is not None
    assert image.content is content


def test_every_hash_asked_for_is_taken_also_of_what_no_decoder_survives(tmp_path: Path) -> None:
    path = tmp_path / "child.py"
    path.write_text(PROTOCOL)
    wanted = {name: hashlib.new(name, b"crash").hexdigest() for name in ("md5", "sha1", "sha256")}
    with DecoderPool(1, IMAGE, LIMITS, ("md5", "sha1"), _command=(sys.executable, str(path))) as decoders:
        assert decoders.decode(b"crash").digests == wanted
    with DecoderPool(1, IMAGE, LIMITS, ("sha1", "md5")) as decoders:
        assert decoders.decode(b"crash").digests == wanted


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (b"crash", "decoder_crash", "killed by SIGSEGV"),
        (b"exit", "decoder_crash", "exit status 1: no more of this"),
        (b"nonsense", "decoder_crash", "answered nonsense"),
        (b"flood", "decoder_crash", "answered nonsense"),
        (b"hang", "decoder_timeout", "no answer within 1 s"),
        (b"chatter", "decoder_timeout", "no answer within 1 s"),
    ],
)
def test_a_picture_that_ruins_a_decoder_costs_its_own_row(
    scripted: DecoderPool, content: bytes, reason: str, detail: str
) -> None:
    first = scripted.decode(b"before")
    ruined = scripted.decode(content)
    assert (ruined.reason, ruined.image) == (reason, None)
    assert ruined.detail is not None
    assert ruined.detail.startswith(detail)
    last = scripted.decode(b"after")
    assert (first.digests["sha256"], last.digests["sha256"]) == ("before", "after")
    assert first.detail != last.detail
    assert len(pids(scripted)) == 1


def test_a_picture_is_not_blamed_for_what_an_earlier_one_did(scripted: DecoderPool) -> None:
    poison, innocent = scripted.decode(b"poison"), scripted.decode(b"innocent")
    assert (innocent.reason, innocent.digests["sha256"]) == ("not_image", "innocent")
    assert innocent.detail != poison.detail


def test_what_a_library_prints_holds_nothing_up(scripted: DecoderPool) -> None:
    assert scripted.decode(b"talk").reason == "not_image"


def test_ruined_decoders_leave_no_descriptor_behind(scripted: DecoderPool) -> None:
    scripted.decode(b"before")
    num_before = num_descriptors()
    for _ in range(5):
        scripted.decode(b"crash")
    scripted.decode(b"after")
    assert num_descriptors() == num_before


def test_a_decoder_is_replaced_before_its_leaks_add_up(scripted: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_MAX_IMAGES", 3)
    served_by = [scripted.decode(b"x").detail for _ in range(9)]
    assert [served_by.count(pid) for pid in dict.fromkeys(served_by)] == [3, 3, 3]


def test_too_little_memory_is_a_reason(bomb: bytes) -> None:
    with DecoderPool(1, IMAGE, LimitsConfig(decode_memory_bytes=256 * 2**20)) as decoders:
        decoded = decoders.decode(bomb)
        assert (decoded.reason, decoded.detail) == ("decoder_memory", f"needs more than {256 * 2**20} bytes")
        assert decoders.decode(JPEG).image == in_process(JPEG).image
    with DecoderPool(1, IMAGE, LIMITS) as decoders:
        assert decoders.decode(bomb).image is not None


def test_a_decoder_killed_in_the_middle_of_a_picture_is_replaced(bomb: bytes) -> None:
    with DecoderPool(1, IMAGE, LIMITS) as decoders, ThreadPoolExecutor(1) as threads:
        decoders.decode(JPEG)
        (pid,) = pids(decoders)
        under_way = threads.submit(decoders.decode, bomb)
        wait_for(lambda: not decoders._idle)
        time.sleep(0.05)  # of half a second
        os.kill(pid, signal.SIGKILL)
        image = under_way.result().image
        assert image is not None
        assert (image.original_width, image.original_height) == (7000, 7000)
        assert decoders.decode(JPEG).image == in_process(JPEG).image
        assert pid not in pids(decoders)


def test_every_thread_gets_the_answers_to_its_own_pictures() -> None:
    contents = [encoded(noise(24, 20, seed)) for seed in range(1600)]
    wanted = [store_image(content, IMAGE, LIMITS) for content in contents]
    with DecoderPool(3, IMAGE, LIMITS) as decoders, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(decoders.decode, contents))
        assert len(pids(decoders)) == 3
    assert [decoded.image for decoded in found] == wanted
    assert [decoded.digests["sha256"] for decoded in found] == [hashlib.sha256(item).hexdigest() for item in contents]


def test_a_decoder_outlives_the_thread_that_needed_it_first() -> None:
    with DecoderPool(1, IMAGE, LIMITS) as decoders:
        thread = threading.Thread(target=decoders.decode, args=(JPEG,))
        thread.start()
        thread.join()
        first = pids(decoders)
        time.sleep(0.1)
        assert decoders.decode(JPEG).image is not None
        assert pids(decoders) == first


def test_signals_sent_to_all_end_no_decoder(pool: DecoderPool) -> None:
    pool.decode(JPEG)
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert pool.decode(JPEG).image is not None
    assert pids(pool) == {pid}


def test_a_decoder_is_confined(pool: DecoderPool) -> None:
    pool.decode(JPEG)
    (pid,) = pids(pool)
    limits = dict(line.split("  ", 1) for line in Path(f"/proc/{pid}/limits").read_text().splitlines())
    assert limits["Max core file size"].split()[0] == "0"
    memory_bytes = int(limits["Max address space"].split()[0])
    assert LIMITS.decode_memory_bytes < memory_bytes < LIMITS.decode_memory_bytes + 2**30


@pytest.mark.parametrize("content", [b"hang", b"crash, then hang"])
def test_decoders_end_with_the_pool_which_blames_no_picture(scripted: DecoderPool, content: bytes) -> None:
    with ThreadPoolExecutor(1) as threads:
        scripted.decode(b"x")
        first = pids(scripted)
        under_way = threads.submit(scripted.decode, content)
        wait_for(lambda: pids(scripted) - first if content.startswith(b"crash") else not scripted._idle)
        last = pids(scripted)
        scripted.__exit__()
        with pytest.raises(RuntimeError, match="closed"):
            under_way.result()
    assert not any(is_running(pid) for pid in first | last)
    with pytest.raises(RuntimeError, match="closed"):
        scripted.decode(b"x")


def test_decoders_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "slow").write_bytes(encoded(Image.effect_noise((4000, 4000), 80), "JPEG"))  # takes 3 s
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path / "slow")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        assert all(is_running(pid) for pid in children)
        parent.kill()
    wait_for(lambda: not any(is_running(pid) for pid in children), seconds=2)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((sys.executable, "-c", "raise SystemExit('no library here')"), "exit status 1: no library here"),
        (("/nowhere/python",), "No such file"),
    ],
)
def test_a_machine_on_which_no_decoder_starts_stops_the_part(command: tuple[str, ...], words: str) -> None:
    num_before = num_descriptors()
    with DecoderPool(1, IMAGE, LIMITS, _command=command) as decoders:
        with pytest.raises(TryAgainError, match=words):
            decoders.decode(JPEG)
        assert num_descriptors() == num_before


def test_a_decoder_starts_without_what_it_does_not_need() -> None:
    code = "import dataengine.download.decoder_child, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "torch", "aiohttp", "pyarrow", "polars", "pydantic"} & set(loaded)
