"""The server of a test session and the databases that tests get on it.

One server is started when the first test asks for one.  Teguh is installed into a template
database once, by a role that is no superuser; each test gets a copy, which takes some 20 ms.

    TEGUH_PG         the kind of server: embedded (default), npm:14 .. npm:18, debian
    TEGUH_TEST_DSN   an existing server instead, as superuser
    TEGUH_PGCRYPTO   where pgcrypto is: public, extensions (a schema of that name) or absent;
                     by default in public where the server has it
    TEGUH_INSTALL    how teguh gets there: fresh (default, through the driver), psql, upgraded (from
                     the oldest release), extension, extension-upgraded (alter extension update)
    TEGUH_SQL        another teguh.sql than that of the checkout: tools/mutants.py
"""

from __future__ import annotations

import itertools
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

import teguh
from tools.build_extension import files as extension_files
from tools.build_sql import RELEASED
from tools.servers import (
    GUEST,
    OWNER,
    Databases,
    ExistingServer,
    Server,
    find_build,
    server_from_environment,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
TEGUH_SQL = Path(os.environ.get("TEGUH_SQL") or ROOT / "sql" / "teguh.sql")
ABSURD_SQL = ROOT / "sql" / "compat" / "absurd.sql"
PGTAP_SQL = ROOT / "pg_tap" / "vendor" / "pgtap.sql"
PGCRYPTO_PLACES = ("public", "extensions", "absent")
WAYS = ("fresh", "psql", "upgraded", "extension", "extension-upgraded")
RELEASES = sorted(
    (path.name for path in (ROOT / RELEASED).iterdir()),
    key=lambda name: [int(number) for number in name.split(".")],
)


def released_sql(release: str) -> str:
    """Return the teguh.sql of a release."""
    return (ROOT / RELEASED / release / "teguh.sql").read_text(encoding="utf-8")


def install(dsn: str, way: str) -> None:
    """Get teguh into a database in one of the WAYS."""
    if way == "fresh":
        send(dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    elif way == "psql":
        build = find_build("embedded")  # of any version, psql talks to servers of all
        subprocess.run(
            [build.bin / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1",
             f"--dbname={dsn}", f"--file={TEGUH_SQL}"],
            env={**os.environ, **build.libraries}, check=True,
        )  # fmt: skip
    elif way == "upgraded":
        send(dsn, released_sql(RELEASES[0]))
        teguh.upgrade(dsn)
    elif way == "extension":
        send(dsn, "create extension teguh")
    elif way == "extension-upgraded":
        send(dsn, f"create extension teguh version '{RELEASES[0]}'")
        send(dsn, "alter extension teguh update")
    else:
        raise pytest.UsageError(f"TEGUH_INSTALL is one of {', '.join(WAYS)}")


def send(dsn: str, text: str) -> None:
    """Send a whole file as one string of the simple protocol, which makes it one transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(text.encode())


def add_pgcrypto(superuser_dsn: str, place: str) -> None:
    """Put pgcrypto where `place` says."""
    if place == "public":
        send(superuser_dsn, "create extension pgcrypto schema public")
    elif place == "extensions":
        send(
            superuser_dsn,
            "create schema extensions; create extension pgcrypto schema extensions;"
            " grant usage on schema extensions to public",
        )


class Cluster:
    """A running server, the template databases on it, and copies of them."""

    def __init__(self, server: Databases, way: str = "fresh") -> None:
        self.server = server
        self.way = way
        self.prefix = f"teguh_test_{os.getpid()}"
        self._numbers = itertools.count(1)
        self._templates: dict[str, str] = {}
        available = server.has_extension("pgcrypto")
        self.pgcrypto = os.environ.get("TEGUH_PGCRYPTO") or ("public" if available else "absent")
        if self.pgcrypto not in PGCRYPTO_PLACES:
            raise pytest.UsageError(f"TEGUH_PGCRYPTO is one of {', '.join(PGCRYPTO_PLACES)}")
        if self.pgcrypto != "absent" and not available:
            raise pytest.UsageError(f"the server {server.kind!r} has no pgcrypto to install")

    def close(self) -> None:
        """Drop the templates: an existing server is left as it was found."""
        for name in self._templates.values():
            self.server.drop_database(name)

    def template(self, kind: str) -> str:
        """Return the name of a template database: empty, teguh, pgtap, absurd or real_absurd."""
        if kind not in self._templates:
            name = f"{self.prefix}_{kind}"
            if kind == "empty":
                self.server.create_database(name, owner=OWNER)
                add_pgcrypto(self.server.dsn(name), self.pgcrypto)
            elif kind == "teguh":
                self.server.create_database(name, template=self.template("empty"), owner=OWNER)
                install(self.server.dsn(name, OWNER), self.way)
            elif kind == "absurd":
                self.server.create_database(name, template=self.template("teguh"), owner=OWNER)
                send(self.server.dsn(name, OWNER), ABSURD_SQL.read_text(encoding="utf-8"))
            elif kind == "real_absurd":
                from absurdctl import BUNDLED_SCHEMA_SQL

                self.server.create_database(name, template=self.template("empty"), owner=OWNER)
                send(self.server.dsn(name, OWNER), BUNDLED_SCHEMA_SQL)
            else:
                self.server.create_database(name, template=self.template("teguh"), owner=OWNER)
                send(self.server.dsn(name), PGTAP_SQL.read_text(encoding="utf-8"))
            self._templates[kind] = name
        return self._templates[kind]

    @contextmanager
    def database(self, kind: str) -> Iterator[str]:
        """Yield the name of a fresh copy of a template database, dropped afterwards."""
        with self.copy(self.template(kind)) as name:
            yield name

    @contextmanager
    def copy(self, database: str) -> Iterator[str]:
        """Yield the name of a copy of a database without sessions, dropped afterwards."""
        name = f"{self.prefix}_{next(self._numbers)}"
        self.server.create_database(name, template=database, owner=OWNER)
        try:
            yield name
        finally:
            self.server.drop_database(name)

    def owner_dsn(self, database: str) -> str:
        """Return a connection string for the role that installed teguh; it is no superuser."""
        return self.server.dsn(database, OWNER)

    def guest_dsn(self, database: str) -> str:
        """Return a connection string for a role without any right."""
        return self.server.dsn(database, GUEST)


_CLUSTER = pytest.StashKey[Cluster]()


def cluster_of(config: pytest.Config) -> Cluster:
    """Return the session's cluster; the first call starts its server."""
    if _CLUSTER not in config.stash:
        way = os.environ.get("TEGUH_INSTALL") or "fresh"
        extension = extension_files(released=True) if way.startswith("extension") else None
        server = server_from_environment(extension=extension)
        keep_cluster(config, server, lambda: Cluster(server, way))
    return config.stash[_CLUSTER]


def keep_cluster(
    config: pytest.Config, server: Server | ExistingServer, cluster: Callable[[], Cluster]
) -> None:
    """Start a server and keep the cluster on it until the session ends."""
    config.add_cleanup(lambda: server.__exit__(None, None, None))
    server.__enter__()
    config.stash[_CLUSTER] = cluster()
    config.add_cleanup(config.stash[_CLUSTER].close)
