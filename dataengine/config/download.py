"""Download: what is fetched, what is refused, and what is stored."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dataengine.config.base import EXECUTION, Config, FilePattern


def _address_and_port(text: str) -> str:
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65536:
        raise ValueError(f"got {text!r}, wanted address:port, such as 127.0.0.1:8080")
    return text


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))


def _name_server(text: str) -> str:
    address, colon, port = text.rpartition(":")
    if not colon or (":" in address.strip("[]") and not text.startswith("[")):
        return str(ipaddress.ip_address(text))
    ipaddress.ip_address(address.strip("[]"))
    return f"{address}:{int(port)}"


Network = Annotated[str, AfterValidator(_network)]
NameServer = Annotated[str, AfterValidator(_name_server)]
HostAddress = Annotated[str, AfterValidator(_address_and_port)]


class ImageConfig(Config):
    """How a fetched image is stored. Stored images are upright RGB without metadata."""

    resize: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep_ratio"
    """What becomes `size` pixels: nothing; the short side; the long side; a square, its longer ends cut off; a square,
    filled up with white."""
    size: Annotated[int, Field(ge=16, le=8192)] = 512
    """Pixels of a side."""
    only_if_bigger: bool = True
    """Leave an image alone whose side in question is no longer than `size`, also where a square is asked for; false
    enlarges it."""
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
    decode_seconds: Annotated[float, Field(gt=0, json_schema_extra=EXECUTION)] = 20.0
    """A picture that takes longer to decode fails as `decoder_timeout`."""
    decode_memory_bytes: Annotated[int, Field(ge=256 * 2**20, json_schema_extra=EXECUTION)] = 2 * 2**30
    """Memory of a decoder beyond its start; a picture that needs more, twice, fails as `decoder_memory`."""


class FetchConfig(Config):
    """Pace and patience of one download worker."""

    concurrency: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests in flight per worker."""
    per_host: Annotated[int, Field(ge=1)] = 8
    """Requests in flight per host, over all workers: each makes its share, and rests when that is less than one."""
    per_host_rate: Annotated[float, Field(gt=0)] | None = 50.0
    """Requests per second and host, over all workers; null: as many as `per_host` gives."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further attempts after a transient fault (DNS, connect, reset, 429, 5xx)."""
    connect_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Time to reach a server."""
    first_byte_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Time from the request to the response's headers."""
    total_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Deadline for one URL, attempts and waits together."""
    min_bytes_per_second: Annotated[int, Field(ge=0)] = 1024
    """A body slower than this over five seconds is given up."""
    user_agent: Annotated[str, Field(pattern=r"^[\x20-\x7e]+\Z")] = "dataengine/0.1 (dataset builder)"
    """Who we say we are, best with an address to write to; robots.txt is matched by its first word."""
    nameservers: tuple[NameServer, ...] = ()
    """DNS servers to ask, as address or address:port; none: those of the system."""
    dns_cache_seconds: Annotated[float, Field(ge=0)] = 300.0
    """How long an answer of DNS is kept, and a tenth of it for a name that does not exist."""


class GuardConfig(Config):
    """Where a download worker may connect to. URL lists are hostile, and workers sit next to private networks."""

    allow_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (80, 443)
    """Other ports fail as `blocked_port`."""
    allow_hosts: tuple[str, ...] = ()
    """Names of an intranet, as in the URL: exempt from the checks of address and port."""
    deny_networks: tuple[Network, ...] = ()
    """Networks refused besides those that are not public, such as a cluster's own: CIDR."""
    hosts: dict[str, HostAddress] = {}
    """Host → address:port to connect to without DNS, exempt from the checks, for tests and mirrors."""


class HealthConfig(Config):
    """When a worker stops (exit code 75) rather than record a million false deaths. Shares are of the last `window`
    URLs, which key order spreads over all hosts."""

    window: Annotated[int, Field(ge=50)] = 500
    """URLs looked at; fewer outcomes are never judged."""
    max_dns_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    """Of URLs whose host does not resolve."""
    min_ok_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Of URLs that gave what only a living network gives: a body, an opt-out, 404 or 410; 0 never stops."""


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
    guard: Annotated[GuardConfig, Field(json_schema_extra=EXECUTION)] = GuardConfig()
    """Where workers may connect to."""
    health: Annotated[HealthConfig, Field(json_schema_extra=EXECUTION)] = HealthConfig()
    """When to stop."""
    integrity: Literal["require", "prefer", "record"] = "prefer"
    """What an expected hash is worth: `require` drops rows that have none or another one, `prefer` those that have
    another one, `record` none (see the column `hash_matches`)."""
    blocklists: Annotated[tuple[FilePattern, ...], Field(json_schema_extra=EXECUTION)] = ()
    """Files of what must not be stored, an entry a line: a domain (with all below it), a URL, or an MD5, SHA-1 or
    SHA-256 in hex. They hold for what is fetched from now on."""
    max_failed_share: Annotated[float, Field(ge=0, le=1, json_schema_extra=EXECUTION)] = 1.0
    """Stop the run (exit code 65) when a source loses more than this share of its candidates."""
