"""Which addresses calls may go to: private ones are for endpoints that the configuration names, unless it says more.

Decides by the address that a socket is about to be connected to, never by one that was looked up before: a name may
stand for another one the next time. Knows nothing of models but where they are called.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from aiohttp import ClientSession

__all__ = ["PrivateAddress", "Reach", "gives_credentials", "is_public", "open_session"]

_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_INSIDE: Final = frozenset({"168.63.129.16"})  # public by its number: Azure's own, for the machines in it
_METADATA: Final = frozenset({"100.100.100.200", "168.63.129.16", "fd00:ec2::254"})  # beside link-local addresses
_METADATA_NAMES: Final = frozenset({"metadata", "metadata.google.internal"})


class PrivateAddress(OSError):
    """A connection that was not made: it would have led into a private network, or to this machine."""

    def __init__(self) -> None:
        super().__init__("a private address")  # the same for each of a name's addresses, so that it is told as one


class Reach:
    """Says which endpoints are bounded to public addresses: all but those at an origin in `urls`, the configuration's.

    `private`: none is.
    """

    def __init__(self, urls: Iterable[str], *, private: bool) -> None:
        self._origins, self._private = {_origin(url) for url in urls}, private

    def bounds(self, url: str) -> bool:
        """Whether an endpoint at `url` may only be called at public addresses."""
        return not self._private and _origin(url) not in self._origins

    def forbids(self, url: str) -> bool:
        """Whether that can be told from `url` alone; what a name stands for is seen when it is called."""
        host = urlsplit(url).hostname or ""
        try:
            public = is_public(host)
        except ValueError:
            public = host.rstrip(".").rpartition(".")[2] != "localhost"
        return not public and self.bounds(url)


def is_public(address: str) -> bool:
    """Whether an IP address is reached over the public internet; raises ValueError for what is none.

    Not so: loopback, link-local, private and shared networks, multicast, what is reserved, and IPv6 addresses that
    carry such an IPv4 address in them (mapped, NAT64) or are tunnelled (6to4, Teredo).
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast and str(ip) not in _INSIDE
    if ip.ipv4_mapped is not None:
        return is_public(str(ip.ipv4_mapped))
    if ip in _NAT64:
        return is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast and ip.sixtofour is None and ip.teredo is None


def gives_credentials(host: str) -> bool:
    """Whether machines in a cloud get credentials at this host, as whoever can have a request sent to it does."""
    try:
        ip = ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") in _METADATA_NAMES
    return ip.is_link_local or str(ip) in _METADATA


def open_session(connections: int, timeout_s: float, *, public_only: bool) -> ClientSession:
    """A client's session for one endpoint: no cookies, no proxy of the environment, nothing decompressed."""
    import aiohttp

    connector = aiohttp.TCPConnector(
        limit=connections,
        keepalive_timeout=30,
        ttl_dns_cache=60,
        socket_factory=_public_socket if public_only else None,
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent",),
    )


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """The socket that is connected to the address in `info` next; raises PrivateAddress."""
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise PrivateAddress
    return socket.socket(family, kind, protocol)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
