"""Fixtures of the package's tests: a queue, and a client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import teguh

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def client(dsn: str) -> Iterator[teguh.Client]:
    """A client on a connection of its own, in a fresh database."""
    with teguh.Client.connect(dsn) as client:
        yield client


@pytest.fixture
def queue(client: teguh.Client) -> str:
    """A fresh queue."""
    client.create_queue("jobs")
    return "jobs"


@pytest.fixture
def tasks() -> teguh.Registry:
    """A fresh registry."""
    return teguh.Registry()
