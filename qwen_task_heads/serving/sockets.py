"""Listen on an address before a model is loaded, which takes longer than to find the port in use."""

from __future__ import annotations

import socket

from qwen_task_heads.errors import error_at


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Args:
        host: address or name of this machine.
        port: port; 0 for a free one.

    Raises:
        TaskHeadsError: a port in use, or an address of another machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise error_at(
            f"--host {host} --port {port}",
            f"found {error.strerror or error}",
            "an address of this machine and a free port",
            "pass --port 0 for a free port",
            code="option-value",
        ) from error


def address_of(listener: socket.socket) -> str:
    """Return the address of a listening socket as `http://host:port`."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
