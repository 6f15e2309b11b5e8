"""Fixtures of the package's tests: a queue, clients of roles, and a way through PgBouncer.

The owner only sets up what a test needs and looks at tables.  Whatever is tested is called by a
role that may do that and as little else as possible.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest

import teguh
from tests.python.bouncer import NOT_POOLED, bouncer, through
from tests.python.support import ACCESS, EachByItsRole, let_in
from tools.servers import CLIENT, OWNER, WORKER

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
def database(cluster: Cluster, database: str) -> str:
    """The name of a fresh database with teguh, where roles have their access."""
    let_in(cluster.owner_dsn(database))
    return database


@pytest.fixture
def owner_dsn(cluster: Cluster, database: str) -> str:
    """That database, as its owner."""
    return cluster.owner_dsn(database)


@pytest.fixture
def client_dsn(cluster: Cluster, database: str) -> str:
    """That database, as a role with a client's access."""
    return cluster.server.dsn(database, CLIENT)


@pytest.fixture
def dsn(request: pytest.FixtureRequest, cluster: Cluster, database: str) -> str:
    """That database, as a role with a worker's access; perhaps through PgBouncer."""
    direct = cluster.server.dsn(database, WORKER)
    if getattr(request, "param", "direct") == "direct":
        return direct
    if reason := NOT_POOLED.get(request.node.originalname):
        pytest.skip(reason)
    return through(request.getfixturevalue("bouncer_home"), direct)


@pytest.fixture
def client(cluster: Cluster, database: str) -> Iterator[teguh.Client]:
    """A client whose every method is called by the role with the least access for it."""
    with ExitStack() as stack:
        clients = {
            role: stack.enter_context(teguh.Client.connect(cluster.server.dsn(database, role)))
            for role in (OWNER, *ACCESS)
        }
        yield cast("teguh.Client", EachByItsRole(clients))


@pytest.fixture
def queue(client: teguh.Client) -> str:
    """A fresh queue."""
    client.create_queue("jobs")
    return "jobs"


@pytest.fixture
def tasks() -> teguh.Registry:
    """A fresh registry."""
    return teguh.Registry()
