"""Which machines may be asked for a picture: those of the public internet, by their address.

The URLs of a gallery were written by strangers. A name is resolved once, each address judged, and
the connection goes to an address that was judged: a name that resolves otherwise a moment later
gains nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from ..errors import PictureError

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052, section 2.1: an IPv4 address in the last 32 bits.


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the public internet.

    Parameters
    ----------
    address : str
        IPv4 or IPv6, with or without a zone.

    Returns
    -------
    bool
        False for loopback, private, link-local, shared, multicast, reserved and unspecified
        addresses (the registries of RFC 6890), and for IPv6 addresses that lead to such an IPv4
        one (mapped, 6to4, NAT64).
    """
    return _is_public(ip_address(address.partition("%")[0]))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
    )


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as the system resolves it; its own time limit applies."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


@dataclass(frozen=True)
class Network:
    """How hosts are found, and which addresses may be connected to.

    Parameters
    ----------
    resolve : callable
        From host and port to addresses.
    permits : callable
        From an address to whether it may be connected to.
    """

    resolve: Callable[[str, int], Sequence[str]] = resolve
    permits: Callable[[str], bool] = is_public

    def addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that may be connected to, at least one.

        Raises
        ------
        PictureError
            If the host is unknown, or none of its addresses is permitted.
        """
        try:
            found = self.resolve(host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: labels that no name can have.
            raise PictureError("unknown host", f"{host} can't be resolved: {error}") from error
        permitted = [address for address in found if self.permits(address)]
        if not permitted:
            raise PictureError(
                "forbidden address",
                f"{host} resolves to {', '.join(found) or 'nothing'}; pictures are fetched from "
                f"public addresses alone.",
            )
        return permitted


PUBLIC = Network()
