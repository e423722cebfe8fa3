"""Decodes images in processes of their own, so that no picture can harm more than its own row.

In go an image's bytes; out comes what of it is stored and its hashes, or the reason why there is nothing. What is
decided here: when a decoder is given up and replaced, and that a picture is to blame for a crash only when a fresh
decoder crashes on it too. Pictures are judged in `dataengine.download.image`; nothing here knows rows.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self, cast

from dataengine.download.decoder_child import COMMAND, digest, environment, read_shared, write_shared
from dataengine.download.image import StoredImage
from dataengine.errors import TryAgainError

if TYPE_CHECKING:
    from dataengine.config.download import ImageConfig, LimitsConfig

_MAX_STARTS = 3
_START_SECONDS = 60.0  # a start takes 0.3 s of CPU
_EXIT_SECONDS = 5.0
_MAX_IMAGES = 10_000  # bounds what libraries leak; a start then costs 30 µs per image
_MAX_ANSWER_BYTES = 65_536
_MAX_WORDS_BYTES = 4096
_KEPT_BYTES = 2**20  # of the shared file between two images; most images need less
_SIGNALS = {number.value: number.name for number in signal.Signals}


@dataclass(frozen=True)
class Decoded:
    """What became of an image's bytes: exactly one of `image` and `reason` is there."""

    digests: Mapping[str, str]
    """Algorithm → hash of the bytes in hex."""
    image: StoredImage | None = None
    reason: str | None = None
    detail: str | None = None


class DecoderPool:
    """Processes that decode an image at a time each; they start when first needed and end with the `with` block."""

    def __init__(
        self,
        num_children: int,
        image: ImageConfig | None,
        limits: LimitsConfig,
        algorithms: Sequence[str] = ("sha256",),
        *,
        _command: Sequence[str] = COMMAND,
    ) -> None:
        """Without `image`, images are inspected and stay where they lie: their `content` is then empty.

        `algorithms` names the hashes to take, as hashlib does; SHA-256 is always among them.
        """
        self._seconds = limits.decode_seconds
        self._algorithms = tuple(dict.fromkeys(("sha256", *algorithms)))
        self._command = tuple(_command)
        self._settings: dict[str, Any] = {
            "algorithms": self._algorithms,
            "image": None if image is None else image.model_dump(mode="json"),
            "limits": limits.model_dump(mode="json"),
        }
        self._slots = threading.BoundedSemaphore(num_children)
        self._lock = threading.Lock()
        self._closed = False
        self._alive: set[_Child] = set()
        self._idle: list[_Child] = []
        # The kernel ends a child together with the thread that started it, so that thread is the pool's own.
        self._starter = ThreadPoolExecutor(1, "decoder-starter")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._closed = True
            for child in self._alive:
                child.kill()
            idle, self._idle = self._idle, []
        for child in idle:  # the others belong to threads that see their end
            self._end(child)
        self._starter.shutdown()

    def decode(self, content: bytes) -> Decoded:
        """What became of `content`. Blocks while every decoder is busy; any thread may call it.

        Raises TryAgainError when no decoder can be started, and RuntimeError when the pool is closed.
        """
        with self._slots:
            # The second time in a fresh child: an earlier picture, or a machine short of memory, may be to blame.
            for child_for_it in (self._take, self._start):
                try:
                    return self._ask(child_for_it(), content)
                except _Lost as lost:
                    fault = lost
                if fault.reason == "decoder_timeout":
                    break
        self._check_open()  # or the child was killed because the pool closed
        return Decoded(digest(content, self._algorithms), reason=fault.reason, detail=fault.detail)

    def _ask(self, child: _Child, content: bytes) -> Decoded:
        try:
            decoded = child.decode(content, self._seconds)
        except BaseException:
            self._end(child)
            raise
        self._give_back(child)
        return decoded

    def _take(self) -> _Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._start()

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            is_kept = not self._closed and child.num_images < _MAX_IMAGES
            if is_kept:
                self._idle.append(child)
        if not is_kept:
            self._end(child)

    def _start(self) -> _Child:
        words = ""
        for _ in range(_MAX_STARTS):
            self._check_open()
            try:
                child = self._starter.submit(_Child, self._command, self._settings).result()
            except (_Lost, OSError) as error:
                words = str(error)
                continue
            with self._lock:
                self._alive.add(child)
            if self._closed:
                self._end(child)
            self._check_open()
            return child
        raise TryAgainError(
            f"no decoder starts on this machine ({' '.join(self._command)}), tried {_MAX_STARTS} times; the last one: "
            f"{words}. Look for a lack of memory or of processes, or a broken installation, and run again"
        )

    def _end(self, child: _Child) -> None:
        with self._lock:
            self._alive.discard(child)
        child.end()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the decoder pool is closed")


class _Lost(Exception):
    """A child that cannot be used any more; the reason and detail are those of the picture, if it is to blame."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class _Child:
    """The parent's side of one child. Used by one thread at a time, but any may kill it.

    Bytes travel in a file in memory. Large pipes do it as cheaply (0.2 ms for 370 kB), but a user may have few of them.
    """

    def __init__(self, command: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.num_images = 0
        self._in_place = settings["image"] is None
        self._words = b""
        self._shared = _open_shared()
        try:
            self._process = subprocess.Popen(
                command, bufsize=0, env=environment(), pass_fds=(self._shared,),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError:
            os.close(self._shared)
            raise
        pipes = self._process.stdin, self._process.stdout, self._process.stderr
        self._requests, self._answers, self._errors = cast("tuple[IO[bytes], IO[bytes], IO[bytes]]", pipes)
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        self._poll.register(self._errors, select.POLLIN)
        try:
            self._send(json.dumps({**settings, "shared": self._shared}).encode())
            self._receive(_START_SECONDS)
        except BaseException:
            self.end()
            raise

    def decode(self, content: bytes, seconds: float) -> Decoded:
        """The child's answer. Raises _Lost when it crashes, lacks memory or takes longer than `seconds`."""
        self.num_images += 1
        write_shared(self._shared, content)
        self._send(b"%d" % len(content))
        line = self._receive(seconds)
        try:
            decoded = self._read(json.loads(line), content)
        except (ValueError, TypeError, LookupError, EOFError) as error:
            raise _Lost("decoder_crash", f"answered nonsense, {line[:100]!r}: {error}") from error
        if max(len(content), len(decoded.image.content) if decoded.image else 0) > _KEPT_BYTES:
            os.ftruncate(self._shared, 0)
        return decoded

    def kill(self) -> None:
        """End the child at once; the thread that uses it sees a crash."""
        self._process.kill()

    def end(self) -> None:
        """Kill the child and let go of all that belongs to it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers, self._errors):
            pipe.close()
        os.close(self._shared)

    def _read(self, answer: Mapping[str, Any], content: bytes) -> Decoded:
        if "image" not in answer:
            if answer["reason"] == "decoder_memory":  # its heap is full, or full of holes
                raise _Lost(answer["reason"], answer["detail"])
            return Decoded(answer["digests"], reason=answer["reason"], detail=answer["detail"])
        kept = b"" if self._in_place else content
        if "num_bytes" in answer:
            kept = read_shared(self._shared, answer["num_bytes"])
        return Decoded(answer["digests"], StoredImage(content=kept, **answer["image"]))

    def _send(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # it is dead, which `_receive` will find too, with its cause
            self._requests.write(line + b"\n")

    def _receive(self, seconds: float) -> bytes:
        """The next line of the child, which may take `seconds`; what it says on stderr meanwhile is remembered."""
        deadline = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                raise _Lost("decoder_timeout", f"no answer within {seconds:g} s")
            readable = [descriptor for descriptor, _ in self._poll.poll(left_seconds * 1000)]
            if self._errors.fileno() in readable:
                self._listen()
            if self._answers.fileno() in readable:
                chunk = self._answers.read(_MAX_ANSWER_BYTES)
                line += chunk
                if not chunk:
                    raise _Lost("decoder_crash", self._obituary())
                if len(line) > _MAX_ANSWER_BYTES:
                    raise _Lost("decoder_crash", f"answered nonsense, {line[:100]!r} and no end")
        return line

    def _listen(self) -> None:
        chunk = self._errors.read(_MAX_WORDS_BYTES)
        if not chunk:
            self._poll.unregister(self._errors)
        self._words = (self._words + chunk)[-_MAX_WORDS_BYTES:]

    def _obituary(self) -> str:
        """How the child ended, and the last line it said."""
        try:
            status = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output"
        os.set_blocking(self._errors.fileno(), False)
        self._words += self._errors.read(_MAX_WORDS_BYTES) or b""
        cause = f"killed by {_SIGNALS.get(-status, -status)}" if status < 0 else f"exit status {status}"
        return ": ".join([cause, *self._words.decode(errors="replace").strip().splitlines()[-1:]])


def _open_shared() -> int:
    if sys.platform == "linux":
        return os.memfd_create("dataengine-decoder")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
