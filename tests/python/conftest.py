"""Fixtures of the package's tests: a queue, a client, and a way through PgBouncer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import teguh
from tests.python.bouncer import NOT_POOLED, bouncer, through

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cluster import Cluster

POOLED_MODULES = {"test_worker"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the worker's tests twice: on the server, and through PgBouncer by polling only."""
    module = metafunc.module.__name__.rpartition(".")[2]
    if module in POOLED_MODULES and "dsn" in metafunc.fixturenames:
        metafunc.parametrize("dsn", ["direct", "pgbouncer"], indirect=True)


@pytest.fixture(scope="session")
def bouncer_home(cluster: Cluster) -> Iterator[Path]:
    """The directory of the socket of a PgBouncer in transaction mode."""
    with bouncer(cluster.owner_dsn("postgres")) as home:
        yield home


@pytest.fixture
def dsn(request: pytest.FixtureRequest, cluster: Cluster, database: str) -> str:
    """A fresh database with teguh, as the role that installed it; perhaps through PgBouncer."""
    direct = cluster.owner_dsn(database)
    if getattr(request, "param", "direct") == "direct":
        return direct
    if reason := NOT_POOLED.get(request.node.originalname):
        pytest.skip(reason)
    return through(request.getfixturevalue("bouncer_home"), direct)


@pytest.fixture
def client(cluster: Cluster, database: str) -> Iterator[teguh.Client]:
    """A client on a connection of its own, in a fresh database."""
    with teguh.Client.connect(cluster.owner_dsn(database)) as client:
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
