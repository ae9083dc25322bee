from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

from retrieval.errors import PictureError
from retrieval.images.addresses import Network, is_public, resolve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.1",
        "0.0.0.0",
        "10.0.0.8",
        "172.16.4.1",
        "192.168.1.1",
        "100.64.0.1",  # shared by the customers of a provider
        "169.254.169.254",  # where clouds keep their credentials
        "192.0.2.7",
        "198.18.0.1",
        "224.0.0.251",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1%eth0",
        "fc00::17",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.1.2.3",
        "2002:7f00:0001::",  # 6to4 of 127.0.0.1
        "64:ff9b::a00:1",  # NAT64 of 10.0.0.1
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    ],
)
def test_addresses_of_this_side_of_the_internet_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_only_permitted_addresses_of_a_host_are_returned() -> None:
    network = Network(resolve=lambda host, port: ["10.0.0.1", "8.8.8.8", "::1"])
    assert network.addresses("mixed.test", 80) == ["8.8.8.8"]


def test_a_host_without_a_permitted_address_is_refused() -> None:
    network = Network(resolve=lambda host, port: ["127.0.0.1", "::1"])
    with pytest.raises(PictureError, match=r"rebound\.test resolves to 127\.0\.0\.1, ::1") as found:
        network.addresses("rebound.test", 80)
    assert found.value.reason == "forbidden address"


def test_a_host_that_nobody_knows_is_refused() -> None:
    def unknown(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(PictureError, match=r"nowhere\.test can't be resolved") as found:
        Network(resolve=unknown).addresses("nowhere.test", 80)
    assert found.value.reason == "unknown host"


def test_numbers_in_other_notations_are_judged_as_what_they_resolve_to() -> None:
    assert resolve("127.0.0.1", 80) == ["127.0.0.1"]
    for host in ("127.1", "2130706433", "0x7f000001", "localhost"):
        with pytest.raises(PictureError):
            Network().addresses(host, 80)
