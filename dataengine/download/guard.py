"""Decides which addresses and ports a downloader may connect to.

URL lists are hostile, and workers sit next to cloud metadata services and private networks. In goes a host as a
URL names it, or an address as DNS gives it; out comes silence, or BlockedAddress or BlockedPort. What is decided
here: that an address must be public without doubt, and which hosts the config exempts from that. Nothing here
asks DNS, connects, or knows about HTTP.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from yarl import URL

if TYPE_CHECKING:
    from dataengine.config.download import GuardConfig

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What IANA's registries of special-purpose addresses hold, and what clouds serve themselves on.
_REFUSED = (
    "0.0.0.0/8",  # this host
    "10.0.0.0/8",
    "100.64.0.0/10",  # carrier-grade NAT, among them Alibaba's metadata service
    "127.0.0.0/8",
    "168.63.129.16/32",  # Azure's wire server; Python calls it global
    "169.254.0.0/16",  # link-local, among them the metadata services of most clouds
    "172.16.0.0/12",
    "192.0.0.0/24",  # protocol assignments, among them Oracle's metadata service
    "192.0.2.0/24",
    "192.88.99.0/24",  # relays of 6to4
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",  # multicast; Python calls it global
    "240.0.0.0/4",  # reserved, and broadcast
    "2001::/23",  # Teredo, ORCHID and other protocols
    "2001:db8::/32",
    "2002::/16",  # 6to4 reaches any IPv4 address
    "3fff::/20",
)
# All of IPv6 that is handed out. NAT64, IPv4-compatible, link-local, site-local, unique local and multicast
# addresses lie outside, whatever the Python at hand says of them.
_UNICAST_V6 = ipaddress.ip_network("2000::/3")


class BlockedAddress(Exception):
    """A URL leads to an address that is not public."""


class BlockedPort(Exception):
    """A URL names a port that the config does not allow."""


def refused(address: str, deny_networks: Sequence[str] = ()) -> bool:
    """Whether `address` is anything but a public unicast IPv4 or IPv6 address outside `deny_networks` (CIDR).

    `address` is canonical text, as DNS look-ups give it; other spellings, and addresses with a zone, are refused.
    An IPv4-mapped address is what it maps (RFC 4291, 2.5.5.2).
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    target = mapped or parsed
    if "%" in address or not target.is_global or (target.version == 6 and target not in _UNICAST_V6):
        return True
    return any(each in network for network in _networks(tuple(deny_networks)) for each in (target, parsed))


def canonical_host(host: str) -> str:
    """`host` in the form in which hosts are compared: lower case, IDNA, without a trailing dot or brackets."""
    name = host.strip("[]").rstrip(".")
    if name.isascii() and ":" not in name:
        return name.lower()
    try:
        return (URL.build(scheme="http", host=name).raw_host or "").rstrip(".")
    except ValueError:
        return name.lower()  # no URL spells such a host, so it equals none


def literal_address(host: str) -> str | None:
    """The address that `host` spells itself, in any form that libc understands; None when it is a name."""
    if ":" in host:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host))  # understands 127.1, 0x7f.1 and 2130706433
    except (OSError, ValueError):
        return None


def is_exempt(host: str, guard: GuardConfig) -> bool:
    """Whether the config excuses `host` from the checks of address and port, by `allow_hosts` or `hosts`.

    An address in `hosts` excuses nothing: HTTP clients connect to it without asking where it is mapped to.
    """
    name = canonical_host(host)
    if any(name == canonical_host(allowed) for allowed in guard.allow_hosts):
        return True
    return literal_address(name) is None and any(name == canonical_host(mapped) for mapped in guard.hosts)


def check_literal(host: str, guard: GuardConfig) -> None:
    """Raises BlockedAddress when `host` spells a refused address itself, in any form that libc understands.

    HTTP clients connect to spelled-out addresses without asking a resolver, so this has to be asked as well.
    """
    address = literal_address(host.rstrip("."))
    if address is not None and refused(address, guard.deny_networks) and not is_exempt(host, guard):
        raise BlockedAddress(f"{host} is not a public address; if it is yours, add it to download.guard.allow_hosts")


def check_port(host: str, port: int | None, guard: GuardConfig) -> None:
    """Raises BlockedPort when `port` is not one that `host` may be asked on."""
    if port not in guard.allow_ports and not is_exempt(host, guard):
        allowed = ", ".join(map(str, guard.allow_ports))
        raise BlockedPort(f"{host}:{port}: wanted port {allowed}; others are added to download.guard.allow_ports")


@lru_cache(maxsize=16)  # a config has one list; parsing it costs microseconds a network
def _networks(deny_networks: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(network) for network in _REFUSED + deny_networks)
