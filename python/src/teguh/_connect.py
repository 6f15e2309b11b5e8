"""Opening connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ConnStatus
from psycopg.types.json import set_json_loads

from teguh._json import loads

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

AsyncConn = psycopg.AsyncConnection[tuple[Any, ...]]
Conn = psycopg.Connection[tuple[Any, ...]]

# A dead peer is noticed within about a minute instead of the kernel's two hours. All of this
# is the client's side of the socket: a pooler in between sees none of it.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

# psycopg prepares a statement on its fifth use.
_PREPARE_AFTER = 5


def worker_conninfo(conninfo: str, worker_id: str) -> str:
    """Return a conninfo with the defaults of a worker; what the caller has set stays."""
    given = conninfo_to_dict(conninfo)
    defaults = {**_DEFAULTS, "fallback_application_name": f"teguh {worker_id}"[:63]}
    return make_conninfo(conninfo, **{k: v for k, v in defaults.items() if k not in given})


async def open_async(conninfo: str, *, prepare: bool = True) -> AsyncConn:
    """Open a connection in autocommit mode; without `prepare`, with no prepared statements."""
    connection = await psycopg.AsyncConnection.connect(
        conninfo,
        autocommit=True,
        prepare_threshold=_PREPARE_AFTER if prepare else None,
        client_encoding="utf8",  # what JSON is written in
    )
    set_json_loads(loads, connection)
    return connection


def open_sync(conninfo: str, *, prepare: bool = True) -> Conn:
    """Open a connection in autocommit mode; without `prepare`, with no prepared statements."""
    connection = psycopg.Connection.connect(
        conninfo,
        autocommit=True,
        prepare_threshold=_PREPARE_AFTER if prepare else None,
        client_encoding="utf8",  # what JSON is written in
    )
    set_json_loads(loads, connection)
    return connection


def is_alive(pgconn: PGconn) -> bool:
    """Tell whether the server has not hung up on an idle connection, without asking it."""
    try:
        pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return pgconn.status == ConnStatus.OK


def is_lost(error: psycopg.Error) -> bool:
    """Tell whether the same statement may succeed later, perhaps on a new connection.

    Lost connections, servers that stop, start or run out of something, standbys after a
    failover, serialization failures, deadlocks and lock timeouts.
    """
    sqlstate = error.sqlstate
    if sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return sqlstate[:2] in {"08", "40", "53", "57", "58"} or sqlstate in {"25006", "55P03"}
