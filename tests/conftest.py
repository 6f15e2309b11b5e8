"""Fixtures: a server for the session, and a fresh database for each test that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.cluster import Cluster, cluster_of
from tools.servers import Databases, Server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Cluster:
    """The session's server with its template databases."""
    return cluster_of(pytestconfig)


@pytest.fixture(scope="session")
def server(cluster: Cluster) -> Databases:
    """The session's server; tests that would stop it take `own_server`."""
    return cluster.server


@pytest.fixture
def database(cluster: Cluster) -> Iterator[str]:
    """The name of a fresh database with teguh in it."""
    with cluster.database("teguh") as name:
        yield name


@pytest.fixture
def dsn(cluster: Cluster, database: str) -> str:
    """A fresh database with teguh, as the role that installed it (no superuser)."""
    return cluster.owner_dsn(database)


@pytest.fixture
def superuser_dsn(cluster: Cluster, database: str) -> str:
    """The same database as `dsn`, as superuser."""
    return cluster.server.dsn(database)


@pytest.fixture
def guest_dsn(cluster: Cluster, database: str) -> str:
    """The same database as `dsn`, as a role without any right."""
    return cluster.guest_dsn(database)


@pytest.fixture
def empty_dsn(cluster: Cluster) -> Iterator[str]:
    """A fresh database without teguh, as its owner (no superuser)."""
    with cluster.database("empty") as name:
        yield cluster.owner_dsn(name)


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection to `dsn` in autocommit."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def own_server(server: Databases) -> Iterator[Server]:
    """A second server of the session's kind, for tests that kill, stop or configure it."""
    if not isinstance(server, Server):
        pytest.skip("an existing server is not ours to stop")
    with Server(server.kind) as own:
        yield own
