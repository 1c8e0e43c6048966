"""The interface of process groups is the one with the Ray node's address, unless the user says otherwise."""

from __future__ import annotations

import os

import pytest

from raymill.cluster import interface
from raymill.cluster.interface import GLOO, NCCL, find_interface, set_interface
from raymill.errors import GroupError

HOST = {
    "lo": ("127.0.0.1", "::1"),
    "docker0": ("172.17.0.1",),
    "eth0": ("10.0.0.7", "10.0.0.8", "fd00::7", "fe80::7%eth0"),
    "eth1": ("10.0.0.8", "192.168.0.7"),
}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.7", "eth0"),
        ("10.0.0.8", "eth1"),  # its first address, so gloo takes it
        ("fd00:0:0:0::0007", "eth0"),
        ("fe80::7", "eth0"),
        ("::ffff:192.168.0.7", "eth1"),
        ("127.0.0.1", "lo"),
        ("203.0.113.5", None),
    ],
)
def test_the_interface_with_an_address(address: str, expected: str | None) -> None:
    assert find_interface(address, HOST) == expected


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(interface, "addresses_by_interface", lambda: HOST)
    monkeypatch.setattr("socket.gethostname", lambda: "mill-1")
    # Set first, so that they are restored whatever the test leaves.
    for name in (GLOO, NCCL):
        monkeypatch.setenv(name, "")
    return monkeypatch


def test_both_libraries_are_told(host: pytest.MonkeyPatch) -> None:
    assert set_interface("10.0.0.7") == interface.GroupEndpoint("mill-1", "eth0", "10.0.0.7")
    assert (os.environ[GLOO], os.environ[NCCL]) == ("eth0", "=eth0")


def test_a_users_settings_win(host: pytest.MonkeyPatch) -> None:
    host.setenv(GLOO, "docker0,eth0")
    host.setenv(NCCL, "ib0")
    assert set_interface("10.0.0.7").interface == "docker0"
    assert (os.environ[GLOO], os.environ[NCCL]) == ("docker0,eth0", "ib0")


def test_what_a_host_lacks_is_told_with_what_it_has(host: pytest.MonkeyPatch) -> None:
    has = r"lo \(127.0.0.1, ::1\), docker0 \(172.17.0.1\), eth0 \(.*\), eth1 \(10.0.0.8, 192.168.0.7\)"
    with pytest.raises(
        GroupError, match=f"no interface of mill-1 has the address 203.0.113.5 .* {has}. Start Ray"
    ):
        set_interface("203.0.113.5")
    host.setenv(GLOO, "nowhere")
    with pytest.raises(GroupError, match=f"{GLOO}=nowhere names no interface of mill-1, .* {has}"):
        set_interface("10.0.0.7")


def test_this_machine_has_a_loopback_interface() -> None:
    assert find_interface("127.0.0.1", interface.addresses_by_interface()) is not None
