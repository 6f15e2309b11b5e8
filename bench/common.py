"""What the benchmarks share: a server with default durability, databases on it, percentiles."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from tools.servers import ExistingServer, Server

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from tools.servers import Databases

Conn = psycopg.Connection[Any]

HERE = Path(__file__).resolve().parent
TEGUH_SQL = HERE.parent / "sql" / "teguh.sql"

# Durability as PostgreSQL ships it, and memory enough that the disk is not what is measured.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
}
SHOWN = ("server_version", *SETTINGS, "full_page_writes", "autovacuum", "jit")

_NUMBERS = itertools.count(1)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which server is measured."""
    parser.add_argument(
        "--server",
        default=os.environ.get("TEGUH_PG") or "embedded",
        help="kind of server to start: embedded (default), npm:MAJOR, debian",
    )
    parser.add_argument("--dsn", help="use this running server instead, as superuser")


@contextmanager
def server_of(options: argparse.Namespace) -> Iterator[Databases]:
    """Yield the server that the options ask for; print what it is set to."""
    server = ExistingServer(options.dsn) if options.dsn else Server(options.server, SETTINGS)
    with server, server.connect() as connection:
        values = [f"{name} {scalar(connection, f'show {name}')}" for name in SHOWN]
        print(
            f"PostgreSQL ({server.kind}): {', '.join(values)}; {os.cpu_count()} cores", flush=True
        )
        yield server


@contextmanager
def database_of(server: Databases, name: str, *files: Path) -> Iterator[str]:
    """Yield the address of a fresh database into which the files were sent."""
    name = f"{name}_{os.getpid()}_{next(_NUMBERS)}"
    server.create_database(name)
    try:
        with connect(server.dsn(name)) as connection:
            for file in files:
                connection.execute(file.read_bytes(), prepare=False)
        yield server.dsn(name)
    finally:
        server.drop_database(name)


def connect(dsn: str) -> Conn:
    """Connect in autocommit; every statement is prepared at its first use."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.prepare_threshold = 0
    return connection


def scalar(connection: psycopg.Connection[Any], statement: str, *arguments: object) -> Any:
    """Return the first value of the first row."""
    row = connection.execute(statement.encode(), arguments or None).fetchone()
    return row[0] if row else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
