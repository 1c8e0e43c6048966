"""Socket that a page or a service listens on, and its address as people type it."""

from __future__ import annotations

import socket

from raymill.errors import ConfigError


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a host's port; 0 stands for any free port.

    Raises:
        ConfigError: the address is in use, or isn't this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            [f"host={host} port={port}: can't listen there ({error.strerror or error})"]
        ) from error


def address(listening: socket.socket, host: str) -> str:
    """Return the address of a listening socket; a host that means all is this machine's name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{listening.getsockname()[1]}"
