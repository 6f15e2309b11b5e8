"""Installing the schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus

from teguh._sync.client import Client
from teguh.errors import translated

if TYPE_CHECKING:
    from teguh._connect import Conn


def schema_sql() -> str:
    """Return the text of teguh.sql: the packaged file, or the checkout's."""
    return _packaged("teguh.sql", "teguh.sql")


def absurd_sql() -> str:
    """Return the text of absurd.sql, the schema for clients of absurd."""
    return _packaged("absurd.sql", "compat/absurd.sql")


def _packaged(name: str, source: str) -> str:
    here = Path(__file__).resolve()
    packaged = here.with_name(name)
    if packaged.exists():
        return packaged.read_text(encoding="utf-8")
    return (here.parents[3] / "sql" / source).read_text(encoding="utf-8")


def install(target: str | Conn = "", *, absurd: bool = False) -> str:
    """Install teguh into a database and return the version.

    `target` is a conninfo, or a connection outside of any transaction: the schema comes as a
    transaction of its own. The role needs the right to create a schema, nothing more.
    With `absurd` it also installs the schema for clients of absurd.
    Installing the same version again is safe. Raise :class:`teguh.VersionMismatch` if another
    version is there and has to be upgraded instead.
    """
    if isinstance(target, str):
        with psycopg.connect(target) as connection:
            return install(connection, absurd=absurd)
    if target.info.transaction_status != TransactionStatus.IDLE:
        raise ValueError("teguh is installed in a transaction of its own: end yours first")
    autocommit = target.autocommit
    target.autocommit = True
    try:
        with translated():
            target.execute(schema_sql().encode())
            if absurd:
                target.execute(absurd_sql().encode())
        return Client(target).version()
    finally:
        target.rollback()  # of what a failed script has left open
        target.autocommit = autocommit
