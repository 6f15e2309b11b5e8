"""What everybody in the storm has in common: a connection that may break at any moment."""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

Conn = psycopg.Connection[tuple[Any, ...]]

QUEUE = "storm"
INSIDE = "inside"  # whose handlers are SQL functions
SEGMENT_BYTES = 65536
CLOCK_OFF = 1.5  # seconds that clocks are wrong, at most

# How pg_stat_activity tells those who may be shot at from those who watch.
TARGET = "chaos target"

SEND = """
insert into chaos.sent (sender, n, task_id, topic, payload)
select %(sender)s, nextval('chaos.n'), %(task)s, %(topic)s, %(payload)s
from teguh.send_message(
  %(queue)s, %(task)s, %(topic)s, to_jsonb(%(payload)s::text),
  jsonb_build_object('idempotency_key', %(key)s::text)) as s
where s.created
"""

WRONG_CLOCK = """
select set_config(
  'teguh.fake_now', (clock_timestamp() + %s * interval '1 second')::text, false
)
"""

# The connection was cut, or the server is on its way down or up.
_CUT = {None, "57P01", "57P02", "57P03"}


def is_cut(error: psycopg.Error) -> bool:
    """Tell whether an error only says that the connection is gone."""
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and (
        error.sqlstate in _CUT or str(error.sqlstate).startswith("08")
    )


def send(connection: Conn, sender: str, task_id: object, topic: str) -> bool:
    """Send a new message, half of the time twice by its key; return False if that is too late."""
    payload = str(uuid4())
    twice = payload < "8"
    arguments = {
        "sender": sender,
        "queue": QUEUE,
        "task": task_id,
        "topic": topic,
        "payload": payload,
        "key": payload if twice else None,
    }
    try:
        with connection.transaction():
            for _ in range(1 + twice):
                connection.execute(SEND, arguments)
    except psycopg.Error as error:
        if error.sqlstate != "TG004":  # the task has ended meanwhile
            raise
        return False
    return True


def act(
    dsn: str,
    name: str,
    seed: int,
    body: Callable[[Conn, Random], None],
    *,
    until: Callable[[], bool],
    report: Callable[[str], None],
    clock_off: float = 0,
) -> None:
    """Call `body` again and again, over broken connections; report every other error.

    Now and then the clock is wrong during a call, by up to `clock_off` seconds.
    """
    rng = Random(f"{seed}/{name}")
    options = f"-c teguh.segment_bytes={SEGMENT_BYTES}"
    while not until():
        try:
            with psycopg.connect(
                dsn, autocommit=True, application_name=TARGET, options=options, connect_timeout=5
            ) as connection:
                while not until():
                    if clock_off and rng.random() < 0.1:
                        connection.execute(WRONG_CLOCK, (rng.uniform(-clock_off, clock_off),))
                        body(connection, rng)
                        connection.execute("reset teguh.fake_now")
                    else:
                        body(connection, rng)
        except psycopg.Error as error:
            if not is_cut(error):
                report(f"{name}: {error.sqlstate} {error}")
            time.sleep(0.02)
