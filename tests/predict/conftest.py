"""A server and a client for all tests of the room."""

from support.hub_fixtures import hub, process  # noqa: F401 - fixtures
