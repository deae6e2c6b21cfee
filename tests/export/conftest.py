"""A server, a client, and an exported folder for all tests of the room."""

import pytest
from support.exports import exported
from support.hub_fixtures import hub, process  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("exports"))[0]
