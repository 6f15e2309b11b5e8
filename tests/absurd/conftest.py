"""Databases with the schema absurd, ours and the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.absurd.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import Cluster


@pytest.fixture
def absurd_dsn(cluster: Cluster) -> Iterator[str]:
    """A fresh database with teguh and its schema absurd."""
    with cluster.database("absurd") as name:
        yield cluster.owner_dsn(name)


@pytest.fixture
def real_dsn(cluster: Cluster) -> Iterator[str]:
    """A fresh database with absurd itself."""
    with cluster.database("real_absurd") as name:
        yield cluster.owner_dsn(name)


@pytest.fixture(params=["teguh", "absurd"])
def both_dsn(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """Ours, then absurd itself: what is true of one is true of the other."""
    kind = "absurd" if request.param == "teguh" else "real_absurd"
    with cluster.database(kind) as name:
        yield cluster.owner_dsn(name)


def calls_at_the_start(dsn: str) -> Iterator[Calls]:
    """Calls of a queue at a fixed time."""
    calls = Calls(dsn)
    with calls.connection:
        calls.call("create_queue")
        calls.set_time(0)
        yield calls


@pytest.fixture
def ours(absurd_dsn: str) -> Iterator[Calls]:
    """Calls of a queue of ours."""
    yield from calls_at_the_start(absurd_dsn)


@pytest.fixture
def jobs(both_dsn: str) -> Iterator[Calls]:
    """Calls of a queue, on ours and on absurd itself."""
    yield from calls_at_the_start(both_dsn)
