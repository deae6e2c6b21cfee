"""One server and one client process for all tests of a room, emptied before each; a room's conftest.py imports them."""

import pytest

from .hub_client import hub_client
from .hub_server import HubServer


@pytest.fixture(scope="session")
def process(tmp_path_factory):
    """A server and a client that share no process."""
    home = str(tmp_path_factory.mktemp("home"))
    with HubServer() as server, hub_client(HF_ENDPOINT=server.url, HF_HOME=home) as call:
        yield server, call


@pytest.fixture
def hub(process):
    server, call = process
    server.repositories.clear()
    server.blobs.clear()
    server.faults.clear()
    server.requests.clear()
    return server, call
