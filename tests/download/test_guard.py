"""The guard lets public addresses through and nothing else, however they are spelled."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.download.guard import BlockedAddress, GuardedResolver, check_literal, refused

PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "192.168.1.1", "192.0.0.192", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "fe80::1",
    "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2001::1", "2001:db8::1", "2002:7f00:1::", "", "localhost", "127.1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert refused(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert not refused(address)


@given(st.ip_addresses())
def test_nothing_passes_that_python_calls_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert refused(str(address)) or address.is_global


@given(st.ip_addresses(v=4))
def test_mapping_into_ipv6_changes_no_verdict(address: ipaddress.IPv4Address) -> None:
    assert refused(f"::ffff:{address}") == refused(str(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "0x7f000001", "0", "::1", "fe80::1%25eth0"],
)
def test_spelled_out_private_addresses_are_blocked(host: str) -> None:
    with pytest.raises(BlockedAddress):
        check_literal(host)


@pytest.mark.parametrize("host", ["1.1.1.1", "0x01010101", "2606:4700:4700::1111", "example.com", "1.example"])
def test_public_addresses_and_names_are_no_literals_to_block(host: str) -> None:
    check_literal(host)


def resolve(hosts: dict[str, str], name: str) -> list[tuple[str, int]]:
    async def run() -> list[tuple[str, int]]:
        resolver = GuardedResolver(hosts)
        try:
            return [(found["host"], found["port"]) for found in await resolver.resolve(name, 80)]
        finally:
            await resolver.close()

    return asyncio.run(run())


def test_mapped_names_go_where_the_map_says() -> None:
    hosts = {"Photos.test": "127.0.0.1:8123", "six.test": "[::1]:9"}
    assert resolve(hosts, "photos.test") == [("127.0.0.1", 8123)]
    assert resolve(hosts, "photos.test.") == [("127.0.0.1", 8123)]
    assert resolve(hosts, "six.test") == [("::1", 9)]


def test_a_name_that_leads_home_is_blocked() -> None:
    with pytest.raises(BlockedAddress, match="localhost"):
        resolve({"photos.test": "127.0.0.1:8123"}, "localhost")


def test_one_private_answer_among_public_ones_blocks_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answers)
    with pytest.raises(BlockedAddress, match=r"10\.0\.0\.1"):
        resolve({}, "rebind.test")


@pytest.mark.parametrize("name", ["a" * 64 + ".test", "a..test"])
def test_impossible_names_are_dns_faults(name: str) -> None:
    with pytest.raises(OSError, match="cannot be a host name"):
        resolve({}, name)
