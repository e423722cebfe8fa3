"""Download: what is fetched, what is refused, and what is stored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dataengine.config.base import EXECUTION, Config


def _address_and_port(text: str) -> str:
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65536:
        raise ValueError(f"got {text!r}, wanted address:port, such as 127.0.0.1:8080")
    return text


HostAddress = Annotated[str, AfterValidator(_address_and_port)]


class ImageConfig(Config):
    """How a fetched image is stored. Stored images are upright RGB without metadata."""

    resize: Literal["no", "keep_ratio"] = "keep_ratio"
    """`keep_ratio` scales the short side to `size`."""
    size: Annotated[int, Field(ge=16, le=8192)] = 512
    """Pixels of the short side; smaller images are left alone."""
    format: Literal["jpg", "png", "webp"] = "jpg"
    """Stored images of URL sources have this one format."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Of JPEG and WebP."""


class LimitsConfig(Config):
    """Bounds on what a stranger may send. Over a bound, the row fails with its reason; nothing is cut short."""

    max_body_bytes: Annotated[int, Field(ge=1024)] = 20 * 2**20
    """A longer body fails as `too_large`."""
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000
    """A larger picture fails as `too_many_pixels`, before it is decoded."""
    max_side: Annotated[int, Field(ge=1)] = 20_000
    """A longer side fails as `too_many_pixels`."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 5
    """More hops fail as `redirects`."""


class FetchConfig(Config):
    """Pace and patience of one download worker."""

    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests in flight per worker."""
    per_host: Annotated[int, Field(ge=1)] = 8
    """Requests in flight per host, shared out over all workers; each worker makes one at least."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further attempts after a transient fault (DNS, connect, reset, 429, 5xx)."""
    connect_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Time to reach a server."""
    total_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Deadline for one URL, attempts and waits together."""
    min_bytes_per_second: Annotated[int, Field(ge=0)] = 1024
    """A body slower than this over five seconds is given up."""
    user_agent: Annotated[str, Field(pattern=r"^[\x20-\x7e]+\Z")] = "dataengine/0.1 (dataset builder)"
    """Who we say we are, best with an address to write to; robots.txt is matched by its first word."""


class DownloadConfig(Config):
    """Everything about getting image bytes."""

    image: ImageConfig = ImageConfig()
    """How images are stored."""
    limits: LimitsConfig = LimitsConfig()
    """What a stranger may send."""
    honor_opt_out: bool = True
    """Refuse images under X-Robots-Tag noai, noimageai, noindex, noimageindex, noml, or a robots.txt that disallows."""
    fetch: Annotated[FetchConfig, Field(json_schema_extra=EXECUTION)] = FetchConfig()
    """Pace and patience."""
    hosts: Annotated[dict[str, HostAddress], Field(json_schema_extra=EXECUTION)] = {}
    """Host → address:port to connect to without DNS, for tests and intranets; exempt from the address guard."""
    max_failed_share: Annotated[float, Field(ge=0, le=1, json_schema_extra=EXECUTION)] = 1.0
    """Stop the run (exit code 65) when a source loses more than this share of its candidates."""
