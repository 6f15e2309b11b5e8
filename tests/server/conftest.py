"""Fixtures: a service of a fresh database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.server.support import Api, api

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def service(dsn: str) -> Iterator[Api]:
    """A service of a fresh database with a queue, called with the token of an admin."""
    with api(dsn, stream_interval=0.05) as caller:
        caller.put("/queues/jobs", default_max_attempts=2)
        yield caller
