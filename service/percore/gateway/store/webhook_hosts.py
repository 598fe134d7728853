"""Decides to which receivers webhooks may be sent. Pure.

There are two checks. ``allows_host``: is the host of a URL on the operator's list? ``allows_address``: may a connection be made
to this address? The second check protects the operator's own network, because a name may resolve to an address in it. So it
checks the address of the connection itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

LONGEST_NAME = 253
LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
NAME = re.compile(rf"({LABEL}\.)*(?=[a-z]){LABEL}")
"""The last part of a name must begin with a letter, because resolvers read a name such as `127.1` as an address."""
PORT = r"(?::(\d{1,5}))?"
ENTRY = re.compile(rf"\[([^\]]+)\]{PORT}|([^:]+){PORT}|([^\]]+)", re.ASCII)
"""An IPv6 address or network in brackets; anything without colons; an IPv6 address or network without a port."""
NUMBERS = re.compile(r"[0-9a-fA-F:./]+")

UNICAST = IPv6Network("2000::/3")
"""This network has all public IPv6 addresses."""
NAT64 = IPv6Network("64:ff9b::/96")
SIX_TO_FOUR = IPv6Network("2002::/16")
AZURE_WIRESERVER = IPv4Address("168.63.129.16")
"""Azure's platform answers every machine of Azure at this address. The address is in a public range, but the
internet cannot reach it."""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Host:
    """One entry of the list: a name, all names below one, or a network."""

    name: str = ""
    """`receiver.example.com`; `.example.com` means every name below it."""
    network: IPv4Network | IPv6Network | None = None
    port: int | None = None
    """None: every port."""

    def has_name(self, name: str, port: int) -> bool:
        """Return whether the entry is for this name and port."""
        known = bool(self.name) and (name.endswith(self.name) if self.name.startswith(".") else name == self.name)
        return known and self.port in (None, port)

    def has_address(self, address: Address, port: int) -> bool:
        """Return whether the entry is for this address and port."""
        return self.network is not None and address in self.network and self.port in (None, port)


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Return the entries of a list with commas; raise ValueError if one is not a host."""
    return tuple(_entry(each.strip().lower()) for each in text.split(",")) if text.strip() else ()


def _entry(text: str) -> Host:
    found = ENTRY.fullmatch(text)
    if not found:
        raise ValueError(f"not a host: {text!r}")
    bracketed, bracketed_port, plain, plain_port, ipv6 = found.groups()
    digits = bracketed_port or plain_port
    port = int(digits) if digits else None
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"not a port: {text!r}")
    host = bracketed or plain or ipv6
    if NUMBERS.fullmatch(host) and not NAME.fullmatch(host):
        return Host(network=ip_network(host), port=port)
    name = host.removeprefix("*.")
    if bracketed or not is_name(name):
        raise ValueError(f"not a host: {text!r}")
    return Host(name=f".{name}" if name != host else name, port=port)


def is_name(text: str) -> bool:
    """Return whether this is the name of a host, in lower case."""
    return len(text) <= LONGEST_NAME and NAME.fullmatch(text) is not None


def allows_host(hosts: Iterable[Host], host: str, port: int) -> bool:
    """Return whether a URL may have this host, a name in lower case or an address."""
    if is_name(host):
        return any(each.has_name(host, port) for each in hosts)
    try:
        address = _address(host)
    except ValueError:
        return False
    return any(each.has_address(address, port) for each in hosts)


def allows_address(hosts: Iterable[Host], address: str, port: int) -> bool:
    """Return whether a connection may be made to this address: it is public, or an entry of the list has it."""
    hosts = tuple(hosts)
    found = _address(address)
    if not is_public(found) and not any(each.has_address(found, port) for each in hosts):
        return False
    inner = _translated(found)
    return inner is None or allows_address(hosts, str(inner), port)


def is_public(address: Address) -> bool:
    """Return whether an address is public: reachable in the whole internet."""
    if isinstance(address, IPv6Address):
        return address in UNICAST and address not in SIX_TO_FOUR and address.is_global
    return address.is_global and not address.is_multicast and address != AZURE_WIRESERVER


def _address(text: str) -> Address:
    """Return an address. `::ffff:127.0.0.1` becomes `127.0.0.1`, because the kernel connects to it by IPv4."""
    address = ip_address(text)
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _translated(address: Address) -> IPv4Address | None:
    """Return the IPv4 address to which a translator in the network would connect for an IPv6 address."""
    if not isinstance(address, IPv6Address):
        return None
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else address.sixtofour
