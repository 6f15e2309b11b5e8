"""A server that has the files of the extension, those of releases included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster import Cluster
from tools.build_extension import files
from tools.servers import Server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def extension_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """A server of the session's kind with the extension's files."""
    if cluster.way.startswith("extension"):
        yield cluster
        return
    if not isinstance(cluster.server, Server):
        pytest.skip("files cannot be put beside a server that is not ours")
    with Server(cluster.server.kind, extension=files(released=True)) as server:
        own = Cluster(server, "extension")
        yield own
        own.close()


@pytest.fixture
def bare_dsn(extension_cluster: Cluster) -> Iterator[str]:
    """An empty database where the extension can be created, as its owner (no superuser)."""
    with extension_cluster.database("empty") as name:
        yield extension_cluster.owner_dsn(name)
