"""Fixtures: a service of a fresh database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import teguh
from tests.server.support import Api, api
from tools.servers import OWNER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.servers import Server


@pytest.fixture
def service(dsn: str) -> Iterator[Api]:
    """A service of a fresh database with a queue, called with the token of an admin."""
    with api(dsn, stream_interval=0.05) as caller:
        caller.put("/queues/jobs", default_max_attempts=2)
        yield caller


@pytest.fixture
def own_dsn(own_server: Server) -> str:
    """A database with a queue on a server of our own."""
    dsn = own_server.create_database("shop", owner=OWNER)
    teguh.install(dsn)
    with teguh.Client.connect(dsn) as owner:
        owner.create_queue("jobs")
    return dsn
