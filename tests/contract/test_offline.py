"""The suite has no network: connections to other machines are errors, connections to this one are not."""

from __future__ import annotations

import os
import socket

import pytest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("huggingface.co", 443)])
def test_connections_to_other_machines_are_errors(address: tuple[str, int]) -> None:
    with socket.socket() as client:
        for connect in (client.connect, client.connect_ex):
            with pytest.raises(OSError, match="tests have no network"):
                connect(address)
    with socket.socket(type=socket.SOCK_DGRAM) as client, pytest.raises(OSError, match="no network"):
        client.sendto(b"", address)
    with pytest.raises(OSError, match="tests have no network"):
        socket.create_connection(address, timeout=1)


def test_names_are_not_looked_up() -> None:
    with pytest.raises(OSError, match=r"getaddrinfo of 'huggingface\.co'"):
        socket.getaddrinfo("huggingface.co", 443)


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), timeout=5)
        connection, _ = server.accept()
        client.sendall(b"here")
        assert connection.recv(4) == b"here"
        client.close()
        connection.close()


def test_the_hub_client_is_offline_with_a_separate_cache() -> None:
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HOME"] == constants.HF_HOME
    assert "task-heads-cache-" in constants.HF_HUB_CACHE
