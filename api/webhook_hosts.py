"""Where webhooks may be sent: URLs in plain form, and addresses of the public internet.

A client chooses the URL, but our network makes the connection: it must not reach what only we can reach (server-side
request forgery). A name says nothing of where it leads, and may lead elsewhere a moment later. So what is judged is
the very address that a socket is about to connect to.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

#: Look-ups of names at once: threads of their own, so that a server of names that is slow holds up nothing else.
LOOKUPS_MAX = 8
#: IPv4 as reached from networks that have none (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


class PrivateAddress(OSError):
    """A webhook's host is not on the public internet."""


def url_fault(text: str, *, private_hosts: bool) -> str | None:
    """Why this cannot be a webhook's URL, or None. Whom a name leads to is found out when it is used."""
    try:
        url = URL(text)
        host, port = url.host, url.port
    except ValueError:
        return "is not a URL"
    if url.scheme not in ("http", "https") or not host or port == 0 or not text.isprintable() or " " in text:
        return "must look like https://host/path"
    if url.user is not None or url.password is not None:
        return "must not carry a user or password: deliveries are signed instead"
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return None if private_hosts or is_public(address) else "is no address of the public internet"


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is one of the public internet; of IPv4 within IPv6, whether that is."""
    if isinstance(address, IPv6Address):
        within = _ipv4_within(address)
        if within is not None:
            return all(is_public(each) for each in within)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _ipv4_within(address: IPv6Address) -> tuple[IPv4Address, ...] | None:
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    return address.teredo


def public_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for this address (as getaddrinfo tells of it), made just before it connects. Raises PrivateAddress."""
    family, kind, protocol, _, where = info
    if not is_public(ip_address(where[0])):
        raise PrivateAddress(errno.EACCES, f"{where[0]} is no address of the public internet")
    return socket.socket(family, kind, protocol)


class Lookups(AbstractResolver):
    """The system's look-up of names, in threads of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(LOOKUPS_MAX, thread_name_prefix="webhook-lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        look: Callable[[], list[Any]] = partial(
            socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG
        )
        infos = await asyncio.get_running_loop().run_in_executor(self._pool, look)
        return [_found(host, *info) for info in infos]

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _found(host: str, family: int, _kind: int, protocol: int, _name: str, where: tuple[Any, ...]) -> ResolveResult:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=where[0], port=where[1], family=family, proto=protocol, flags=flags)


def new_session(lookups: Lookups, *, private_hosts: bool, connections_max: int) -> aiohttp.ClientSession:
    """A session to send deliveries with: no cookies, no proxy of the environment, answers neither kept nor unpacked.

    The look-ups stay the caller's to close.
    """
    connector = aiohttp.TCPConnector(
        limit=connections_max,
        keepalive_timeout=15.0,
        resolver=lookups,
        socket_factory=None if private_hosts else public_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=1024,
        trust_env=False,
    )
