"""The guard lets public addresses through and nothing else, however they are spelled."""

from __future__ import annotations

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.config.download import GuardConfig
from dataengine.download.guard import (
    BlockedAddress,
    BlockedPort,
    canonical_host,
    check_literal,
    check_port,
    is_exempt,
    refused,
)

PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "192.168.1.1", "192.0.0.192", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "fe80::1",
    "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2001::1", "2001:db8::1", "2002:7f00:1::", "192.0.2.1", "192.88.99.1", "198.51.100.1", "203.0.113.1",
    "100.100.100.200", "fd00:ec2::254", "fd20:ce::254", "::ffff:0:127.0.0.1", "100::1", "2001:20::1", "3fff::1",
    "4000::1", "5f00::1", "2606:4700::1%1", "", "localhost", "127.1",
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


@given(st.ip_addresses(v=4), st.integers(0, 96))
def test_ipv4_addresses_inside_ipv6_pass_only_when_mapped(address: ipaddress.IPv4Address, shift: int) -> None:
    inside = ipaddress.IPv6Address(int(address) << shift)
    assert refused(str(inside)) or inside in ipaddress.ip_network("2000::/3") or inside.ipv4_mapped


def test_a_configs_networks_are_refused_in_both_families() -> None:
    networks = ("20.0.0.0/8", "2a00:1450::/32", "::ffff:30.0.0.0/104")
    assert [refused(address, networks) for address in ("20.1.2.3", "::ffff:20.1.2.3", "2a00:1450::1", "30.1.2.3")] == [
        True, True, True, False,
    ]  # fmt: skip
    assert refused("::ffff:30.1.2.3", networks)
    assert not refused("21.0.0.1", networks)


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("Photos.Test", "photos.test"), ("photos.test.", "photos.test"), ("b\u00fccher.test", "xn--bcher-kva.test"),
        ("B\u00dcCHER.test.", "xn--bcher-kva.test"), ("XN--BCHER-KVA.test", "xn--bcher-kva.test"),
        ("\uff11\uff12\uff17.0.0.1", "127.0.0.1"), ("photos\u3002test", "photos.test"),
        ("[0:0::0:1]", "::1"), ("::FFFF:127.0.0.1", "::ffff:7f00:1"), ("", ""), ("\u00ad", "\u00ad"),
    ],
)  # fmt: skip
def test_hosts_are_compared_in_one_form(host: str, canonical: str) -> None:
    assert canonical_host(host) == canonical
    assert canonical_host(canonical) == canonical


@given(st.text())
def test_any_host_has_one_form(host: str) -> None:
    assert isinstance(canonical_host(host), str)
    check_literal(canonical_host(host), GuardConfig(allow_hosts=(host,)))


OPEN = GuardConfig()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "0x7f000001", "0", "::1", "fe80::1%25eth0",
     "127.0.0.1.", "127.0.0.1 x", "2606:4700:4700::1111%1", "v1.fe80::"],
)  # fmt: skip
def test_spelled_out_private_addresses_are_blocked(host: str) -> None:
    with pytest.raises(BlockedAddress, match="not a public address"):
        check_literal(host, OPEN)


@pytest.mark.parametrize(
    "host", ["1.1.1.1", "0x01010101", "2606:4700:4700::1111", "example.com", "1.example", "a\0b", "\ud800"]
)
def test_public_addresses_and_names_are_no_literals_to_block(host: str) -> None:
    check_literal(host, OPEN)


def test_a_denied_network_blocks_its_literals() -> None:
    with pytest.raises(BlockedAddress):
        check_literal("1.1.1.1", GuardConfig(deny_networks=("1.1.0.0/16",)))


def test_only_named_hosts_are_exempt() -> None:
    guard = GuardConfig(
        allow_hosts=("Intra.test", "10.0.0.5", "[::1]"),
        hosts={"photos.test.": "127.0.0.1:1", "10.0.0.6": "127.0.0.1:1"},
    )
    for host in ("intra.test", "INTRA.test.", "10.0.0.5", "::1", "photos.test"):
        assert is_exempt(host, guard)
        check_literal(host, guard)
        check_port(host, 8080, guard)
    for host in ("10.0.0.6", "x.intra.test", "test", "10.0.0.7", ""):
        assert not is_exempt(host, guard)
        with pytest.raises(BlockedPort, match="wanted port 80, 443"):
            check_port(host, 8080, guard)
    with pytest.raises(BlockedAddress):  # an HTTP client goes there itself, whatever the map says
        check_literal("10.0.0.6", guard)


@pytest.mark.parametrize(("port", "passes"), [(80, True), (443, True), (22, False), (8443, False), (None, False)])
def test_ports_are_those_of_the_config(port: int | None, passes: bool) -> None:
    if passes:
        check_port("photos.test", port, OPEN)
        return
    with pytest.raises(BlockedPort, match=r"photos\.test"):
        check_port("photos.test", port, OPEN)


def test_a_check_costs_microseconds() -> None:
    guard = GuardConfig(hosts={f"host{n}.test": "127.0.0.1:1" for n in range(100)})
    started = time.process_time()
    for _ in range(5000):
        check_literal("photos.test", guard)
        check_port("photos.test", 80, guard)
    assert (time.process_time() - started) / 5000 < 20e-6
