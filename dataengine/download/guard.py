"""Decides which network addresses a downloader may connect to.

URL lists are hostile, and workers sit next to cloud metadata services and private networks. In goes a host
name or an address; out come addresses that are public without doubt, or BlockedAddress. Every answer of DNS
is checked and the checked answer is the one connected to, so a name cannot change its mind in between.
Nothing here knows about HTTP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

# What ipaddress calls global although a packet sent there can end at home.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata wire server
        "192.0.0.0/24",  # protocol assignments, among them Oracle's metadata service
        "::/96",  # IPv4-compatible
        "64:ff9b::/96",  # NAT64: any IPv4 address, loopback and metadata included
        "64:ff9b:1::/48",
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "fec0::/10",  # site-local
    )
)
_DNS_THREADS = 32  # getaddrinfo blocks for seconds on dead names; asyncio's own pool has a few threads per core


class BlockedAddress(Exception):
    """A URL leads to an address that is not public."""


def refused(address: str) -> bool:
    """Whether `address` is anything but a public unicast IPv4 or IPv6 address in canonical text."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    if not parsed.is_global or parsed.is_multicast or parsed.is_reserved:
        return True
    return any(parsed in network for network in _REFUSED if network.version == parsed.version)


def check_literal(host: str) -> None:
    """Raises BlockedAddress when `host` spells a refused address itself, in any form that libc understands.

    HTTP clients connect to spelled-out addresses without asking a resolver, so this has to be asked as well.
    """
    address = host
    if ":" not in host:
        try:
            address = socket.inet_ntoa(socket.inet_aton(host))  # understands 127.1, 0x7f.1 and 2130706433
        except (OSError, UnicodeError):
            return
    if refused(address):
        raise BlockedAddress(f"{host} is not a public address")


class GuardedResolver(AbstractResolver):
    """Resolves names to public addresses only; names in `hosts` go to their "address:port" unchecked."""

    def __init__(self, hosts: Mapping[str, str]) -> None:
        self._hosts = {name.lower(): _split_port(target) for name, target in hosts.items()}
        self._threads = ThreadPoolExecutor(_DNS_THREADS, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Every address of `host`.

        Raises OSError when DNS has none, BlockedAddress when any of them is refused: a name that leads to a
        public and a private address is an attack or a mistake.
        """
        name = host.rstrip(".").lower()
        if name in self._hosts:
            return await self._look_up(*self._hosts[name], family)
        found = await self._look_up(host, port, family)
        blocked = [result["host"] for result in found if refused(result["host"])]
        if blocked:
            raise BlockedAddress(f"{host} leads to {blocked[0]}, which is not a public address")
        return found

    async def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(
                self._threads, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
            )
        except ValueError as error:  # a label is empty or too long
            raise OSError(f"{host!r} cannot be a host name") from error
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=family, proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for family, _, proto, _, address in answers
        ]  # fmt: skip

    async def close(self) -> None:
        """Gives the threads back; look-ups under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _split_port(target: str) -> tuple[str, int]:
    address, _, port = target.rpartition(":")
    return address.strip("[]"), int(port)
