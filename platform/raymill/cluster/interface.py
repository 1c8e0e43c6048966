"""Network interface of a node: the one that torch's process groups must use there.

By themselves, gloo takes the address that the host's own name stands for, often a loopback address,
and NCCL takes the first interface that isn't one.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raymill.errors import GroupError

GLOO = "GLOO_SOCKET_IFNAME"
NCCL = "NCCL_SOCKET_IFNAME"


@dataclass(frozen=True)
class GroupEndpoint:
    """Interface that a process uses for process groups, and the address that gloo takes there."""

    host: str
    interface: str
    address: str


def set_interface(node_address: str) -> GroupEndpoint:
    """Let the process groups of this process use the interface that holds its node's address.

    A user's own settings win.

    Raises:
        GroupError: no interface has the address, or the name that the user has set.
    """
    host, addresses = socket.gethostname(), addresses_by_interface()
    stated = os.environ.get(GLOO, "").partition(",")[0]
    if stated and stated not in addresses:
        raise GroupError(
            f"{GLOO}={stated} names no interface of {host}, which has {_listed(addresses)}"
        )
    interface = stated or find_interface(node_address, addresses)
    if interface is None:
        raise GroupError(
            f"no interface of {host} has the address {node_address} of its Ray node; it has "
            f"{_listed(addresses)}. Start Ray there with --node-ip-address, or set {GLOO} and {NCCL} "
            "to the interface that reaches the other hosts"
        )
    os.environ[GLOO] = os.environ.get(GLOO) or interface
    # Without the equals sign NCCL would take every interface whose name begins so.
    os.environ[NCCL] = os.environ.get(NCCL) or f"={interface}"
    return GroupEndpoint(host, interface, addresses[interface][0])


def find_interface(address: str, addresses: Mapping[str, Sequence[str]]) -> str | None:
    """Return the interface that has the address, preferably as its first; None if none has it."""
    wanted = _parsed(address)
    having = [
        (list(map(_parsed, held)).index(wanted), name)
        for name, held in addresses.items()
        if wanted in map(_parsed, held)
    ]
    return min(having)[1] if having else None


def addresses_by_interface() -> dict[str, tuple[str, ...]]:
    """Return the IP addresses of each interface that is up, in the system's order, IPv4 first."""
    import psutil

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = {
        name: tuple(one.address for one in held if one.family in (socket.AF_INET, socket.AF_INET6))
        for name, held in psutil.net_if_addrs().items()
        if name in up
    }
    return {name: held for name, held in found.items() if held}


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    # The scope of a link-local address is written as in fe80::1%eth0.
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _listed(addresses: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name} ({', '.join(held)})" for name, held in addresses.items())
