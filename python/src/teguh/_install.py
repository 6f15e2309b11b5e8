"""Installing and upgrading the schema, and the version it has to have."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus

from teguh import _sql
from teguh.errors import VersionMismatch, translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from teguh._connect import Conn

_SCRIPT = re.compile(r"teguh--(?P<old>[\w.]+)--(?P<new>[\w.]+)\.sql")


def _sources(name: str) -> Path:
    """Return what is packaged under a name, or lies in the checkout's sql directory."""
    here = Path(__file__).resolve()
    packaged = here.parent / name
    return packaged if packaged.exists() else here.parents[3] / "sql" / name


def schema_sql() -> str:
    """Return the text of teguh.sql: the packaged file, or the checkout's."""
    return _sources("teguh.sql").read_text(encoding="utf-8")


def absurd_sql() -> str:
    """Return the text of absurd.sql, the schema for clients of absurd."""
    return _sources("compat/absurd.sql").read_text(encoding="utf-8")


def package_version() -> str:
    """Return the version of the schema that this package installs and is made for."""
    found = re.match(r"-- Teguh (\S+):", schema_sql())
    if found is None:
        raise RuntimeError("teguh.sql does not say which version it is")
    return found[1]


def scripts() -> dict[tuple[str, str], str]:
    """Return the upgrade scripts that come with this package, by (from, to)."""
    found = ((_SCRIPT.fullmatch(path.name), path) for path in _sources("upgrade").iterdir())
    return {(m["old"], m["new"]): path.read_text(encoding="utf-8") for m, path in found if m}


def path(old: str, new: str, steps: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the shortest way from one version to another, or raise VersionMismatch."""
    ways: list[list[tuple[str, str]]] = [[]]
    seen = {old}
    for way in ways:
        here = way[-1][1] if way else old
        if here == new:
            return way
        onward = sorted(step for step in steps if step[0] == here and step[1] not in seen)
        seen.update(step[1] for step in onward)
        ways += [[*way, step] for step in onward]
    raise VersionMismatch(
        f"there is no way from teguh {old} to {new}",
        sqlstate="TG010",
        detail=f"Upgrades from: {', '.join(sorted({step[0] for step in steps})) or 'none'}.",
        hint="A newer schema needs a newer package; an older one may need an older package first.",
    )


@contextmanager
def _connected(target: str | Conn) -> Iterator[Conn]:
    """Yield a connection outside of any transaction, in autocommit mode."""
    if isinstance(target, str):
        # else text comes as bytes where the database is SQL_ASCII
        with psycopg.connect(target, autocommit=True, client_encoding="utf8") as connection:
            yield connection
        return
    if target.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("teguh is installed in a transaction of its own: end yours first")
    autocommit = target.autocommit
    target.autocommit = True
    try:
        yield target
    finally:
        target.rollback()  # of what a failed script has left open
        target.autocommit = autocommit


def installed_version(connection: Conn) -> str | None:
    """Return the version that a database holds, None without teguh."""
    found = connection.execute(
        "select pg_catalog.to_regprocedure('teguh.version()') is not null"
    ).fetchone()
    if found is None or not found[0]:
        return None
    row = connection.execute(_sql.VERSION.encode()).fetchone()
    return None if row is None else str(row[0])


def _is_extension(connection: Conn) -> bool:
    rows = connection.execute(
        "select 1 from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'teguh'"
    )
    return rows.fetchone() is not None


def check_version(found: str, wanted: str | None = None) -> None:
    """Raise VersionMismatch if a schema is older than this package: it lacks what we call.

    A newer one is fine: a schema serves the clients of the version before it.
    """
    wanted = wanted or package_version()
    if _numbers(found) < _numbers(wanted):
        raise VersionMismatch(
            f"the database has teguh {found}, this package needs {wanted}",
            sqlstate="TG010",
            detail="The schema is upgraded first, then the clients.",
            hint="Run `teguh upgrade`.",
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def install(target: str | Conn = "", *, absurd: bool = False) -> str:
    """Install teguh into a database and return the version.

    `target` is a conninfo, or a connection outside of any transaction: the schema comes as a
    transaction of its own. The role needs the right to create a schema, nothing more.
    With `absurd` it also installs the schema for clients of absurd.
    Installing the same version again is safe. Raise :class:`teguh.VersionMismatch` if another
    version is there: :func:`upgrade` it instead.
    """
    with _connected(target) as connection, translated():
        connection.execute(schema_sql().encode())
        if absurd:
            connection.execute(absurd_sql().encode())
        return installed_version(connection) or ""


def upgrade(target: str | Conn = "") -> str:
    """Upgrade the teguh of a database to this package's version and return that.

    `target` is a conninfo, or a connection outside of any transaction, as the owner of the schema
    or a superuser. Workers may go on. Each step is a transaction; where there is nothing
    to do nothing is done. Raise :class:`teguh.VersionMismatch` if no teguh is installed or no
    script leads from its version to this one, and psycopg's ``LockNotAvailable`` if long
    transactions kept the tables locked: then nothing has changed, and it can be tried again.
    """
    new = package_version()
    with _connected(target) as connection, translated():
        found = installed_version(connection)
        if found is None:
            raise VersionMismatch(
                "teguh is not installed in this database",
                sqlstate="TG010",
                hint="Run `teguh install`.",
            )
        known = scripts()
        steps = path(found, new, set(known))
        if steps and _is_extension(connection):
            raise VersionMismatch(
                "teguh is installed as an extension here",
                sqlstate="TG010",
                detail="What a script made would not be the extension's.",
                hint="Run: alter extension teguh update;",
            )
        for step in steps:
            connection.execute(known[step].encode())
        return installed_version(connection) or ""
