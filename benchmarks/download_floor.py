"""The floor of the download benchmark: what fetching, decoding, resizing and encoding cost with no product around them.

One event loop a core (libcurl's multi interface where pycurl is installed, else aiohttp), JPEGs decoded at reduced
scale by libjpeg-turbo, INTER_AREA, encoded by libjpeg-turbo. No guard, no opt-outs, no EXIF, no hashes, no tables; what
it cannot decode it passes over.

python -m benchmarks.download_floor SPEC     # JSON: urls, size, mode, folder, num_processes
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import multiprocessing
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Take = Callable[[str, bytes], None]

IN_FLIGHT = 32
"""Requests of a process."""


def reencode(content: bytes, size: int, mode: str) -> bytes:
    """The JPEG that is stored for `content`. Raises ValueError or cv2.error for what it cannot decode."""
    import cv2
    import numpy as np
    import simplejpeg

    longest = mode == "keep_ratio_largest"
    if content[:2] == b"\xff\xd8":
        height, width = simplejpeg.decode_jpeg_header(content)[:2]
        scale = min(1.0, size / (max(height, width) if longest else min(height, width)))
        least = {"min_height": max(1, int(height * scale)), "min_width": max(1, int(width * scale))}
        pixels = simplejpeg.decode_jpeg(content, "BGR", **least)
    else:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    height, width = pixels.shape[:2]
    scale = size / (max(height, width) if longest else min(height, width))
    if scale < 1:
        target = (round(width * scale), round(height * scale))
        pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
        if not longest:
            top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
            pixels = np.ascontiguousarray(pixels[top : top + size, left : left + size])
    return bytes(simplejpeg.encode_jpeg(pixels, quality=95, colorspace="BGR", colorsubsampling="420"))


def fetch_with_curl(urls: list[str], take: Take) -> None:
    """Call `take` with each URL and its body, in order of completion."""
    import pycurl

    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, IN_FLIGHT)
    idle, bodies, todo = [pycurl.Curl() for _ in range(IN_FLIGHT)], {}, urls[::-1]
    while todo or bodies:
        while todo and idle:
            handle, url, body = idle.pop(), todo.pop(), io.BytesIO()
            handle.setopt(pycurl.URL, url)
            handle.setopt(pycurl.WRITEFUNCTION, body.write)
            for option in (pycurl.NOSIGNAL, pycurl.FOLLOWLOCATION, pycurl.FAILONERROR):
                handle.setopt(option, 1)
            multi.add_handle(handle)
            bodies[handle] = (url, body)
        multi.perform()
        _, done, failed = multi.info_read()
        for handle in [*done, *(item[0] for item in failed)]:
            multi.remove_handle(handle)
            idle.append(handle)
            url, body = bodies.pop(handle)
            if handle in done:
                take(url, body.getvalue())
        if not done and not failed:
            multi.select(0.05)


def fetch_with_aiohttp(urls: list[str], take: Take) -> None:
    """Call `take` with each URL and its body, in order of completion."""
    import aiohttp

    async def fetch_all() -> None:
        todo = urls[::-1]
        async with aiohttp.ClientSession() as session:

            async def work() -> None:
                while todo:
                    url = todo.pop()
                    async with session.get(url) as response:
                        if response.status == 200:
                            take(url, await response.read())

            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    asyncio.run(fetch_all())


def has_curl() -> bool:
    """Whether pycurl is installed."""
    return importlib.util.find_spec("pycurl") is not None


def _work(number: int, spec: dict[str, Any]) -> None:
    import cv2

    cv2.setNumThreads(1)
    folder = Path(spec["folder"])
    with (folder / f"{number}.bin").open("wb") as store, (folder / f"{number}.jsonl").open("w") as listing:

        def take(url: str, body: bytes) -> None:
            with suppress(ValueError, cv2.error, AttributeError):  # AttributeError: imdecode returned None
                content = reencode(body, spec["size"], spec["mode"])
                listing.write(json.dumps([url, store.tell(), len(content)]) + "\n")
                store.write(content)

        fetch = fetch_with_curl if has_curl() else fetch_with_aiohttp
        fetch(spec["urls"][number :: spec["num_processes"]], take)


def main() -> None:
    """Fetch and store what the spec names."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    Path(spec["folder"]).mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(number, spec)) for number in range(spec["num_processes"])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit(f"a worker of the floor died: {[worker.exitcode for worker in workers]}")


if __name__ == "__main__":
    main()
