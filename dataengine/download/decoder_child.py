"""The process that decodes: lengths of images on stdin in, JSON lines about them on stdout out, bytes in a shared file.

Its first line of input says what is stored, which hashes are taken, and the descriptor of the file; its own first line
says that it is ready. What is decided here: what a decoder may use. It keeps its memory within bounds, leaves no core
file, and ends with its parent. It knows no table, no network and no config classes, which would add 0.1 s to its start.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import cv2

from dataengine.download.image import StoredImage, inspect_image, store_image
from dataengine.imaging import ImageFault

if TYPE_CHECKING:
    from dataengine.config.download import ImageConfig, LimitsConfig

COMMAND = (sys.executable, "-P", "-m", "dataengine.download.decoder_child")
"""Starts one, in `environment`."""

_MEMORY = {
    # These would reserve address space for every thread.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # glibc gives the memory of a picture back, and the next one pays 310 page faults, 1 ms, to get it again.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
_PR_SET_PDEATHSIG = 1
_MAX_DETAIL_CHARS = 300  # as many as a row keeps


@dataclass(frozen=True)
class _Settings:
    shared: int
    """Descriptor of the file that bytes travel in, from its start: those of the image, then those stored."""
    algorithms: Sequence[str]
    image: ImageConfig | None
    limits: LimitsConfig


def main() -> None:
    """Answer requests until stdin ends."""
    with open(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        settings = _read_settings(sys.stdin.buffer.readline())
        cv2.setNumThreads(1)  # there are as many of us as cores
        _confine(settings.limits.decode_memory_bytes)
        answers.write(b"{}\n")
        answers.flush()
        for line in sys.stdin.buffer:
            answers.write(json.dumps(_answer(read_shared(settings.shared, int(line)), settings)).encode() + b"\n")
            answers.flush()


def environment() -> dict[str, str]:
    """That of this process and its import path, and what keeps a decoder's memory small and near."""
    imports = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100 - "" is the working directory
    return os.environ | {"PYTHONPATH": imports} | _MEMORY


def digest(content: bytes, algorithms: Sequence[str]) -> dict[str, str]:
    """Algorithm → hash of `content` in hex."""
    return {name: hashlib.new(name, content, usedforsecurity=False).hexdigest() for name in algorithms}


def write_shared(shared: int, content: bytes) -> None:
    """Put `content` at the start of the shared file."""
    num_written = 0
    with memoryview(content) as view:
        while num_written < len(view):  # one call takes at most 2 GiB
            num_written += os.pwrite(shared, view[num_written:], num_written)


def read_shared(shared: int, num_bytes: int) -> bytes:
    """The first `num_bytes` of the shared file. Raises EOFError when it is shorter."""
    content = os.pread(shared, num_bytes, 0)
    while len(content) < num_bytes:
        more = os.pread(shared, num_bytes - len(content), len(content))
        if not more:
            raise EOFError(f"the shared file ends after {len(content)} of {num_bytes} bytes")
        content += more
    return content


def _read_settings(line: bytes) -> _Settings:
    given = json.loads(line)
    image = None if given["image"] is None else cast("ImageConfig", SimpleNamespace(**given["image"]))
    limits = cast("LimitsConfig", SimpleNamespace(**given["limits"]))
    return _Settings(given["shared"], given["algorithms"], image, limits)


def _confine(memory_bytes: int) -> None:
    """Bound what this process may use: `memory_bytes` more address space than now. It ends with its parent alone."""
    for sent_to_all in (signal.SIGINT, signal.SIGTERM):  # by a terminal or a service manager that stops the parent
        signal.signal(sent_to_all, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # An end of stdin does as much, but not in the middle of a picture.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with open("/proc/self/statm") as statm:
            start_bytes = int(statm.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = start_bytes + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _answer(content: bytes, settings: _Settings) -> Mapping[str, Any]:
    answer: dict[str, Any] = {"digests": digest(content, settings.algorithms)}
    try:
        if settings.image is None:
            return answer | _describe(inspect_image(content, settings.limits))
        stored = store_image(content, settings.image, settings.limits)
        if stored.content is content:
            return answer | _describe(stored)
        write_shared(settings.shared, stored.content)
        return answer | _describe(stored) | {"num_bytes": len(stored.content)}
    except ImageFault as fault:
        return answer | _fail(fault.reason, str(fault).removeprefix(f"{fault.reason}: "))
    except MemoryError:
        return answer | _fail("decoder_memory", f"needs more than {settings.limits.decode_memory_bytes} bytes")


def _describe(stored: StoredImage) -> dict[str, Any]:
    return {"image": {name: value for name, value in vars(stored).items() if name != "content"}}


def _fail(reason: str, detail: str) -> dict[str, Any]:
    # A lone surrogate in the message of a library could not be stored in a table.
    return {"reason": reason, "detail": detail[:_MAX_DETAIL_CHARS].encode("ascii", "backslashreplace").decode()}


if __name__ == "__main__":
    main()
