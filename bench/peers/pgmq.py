"""pgmq: its SQL, as its Python client carries it, and that client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bench.peers.base import Peer, connect, fill_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.peers.base import Producer, Sink

FILL = """
select count(*) from pgmq.send_batch('bench', (
  select array_agg(jsonb_build_object('i', i))
  from generate_series(%(first)s::integer, %(last)s::integer) as i
), %(delay)s::float8::integer)
"""


def _client(dsn: str) -> Any:
    from pgmq import PGMQueue

    # of a URI it does not see where the socket is
    address = make_conninfo("", **conninfo_to_dict(dsn))
    return PGMQueue(conn_string=address, init_extension=False, pool_size=2)


class PgmqProducer:
    """Sends by the client."""

    def __init__(self, dsn: str) -> None:
        self._client = _client(dsn)

    def one(self, i: int) -> None:
        """Send one message."""
        self._client.send("bench", {"i": i})

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Send by a thousand."""
        for at in range(0, len(numbers), 1000):
            self._client.send_batch("bench", [{"i": i} for i in numbers[at : at + 1000]])

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


class Pgmq(Peer):
    """A queue of messages; who reads them is a loop of a few lines."""

    name = "pgmq"
    title = "pgmq"
    pip = ("pgmq==1.1.4",)
    settings: ClassVar = {
        "default": "read_with_poll(qty=10), poll 100 ms; archive_batch",
        "tuned": "qty=100",
    }
    keeps = "no state, no result; the message, in an archive"
    absent: ClassVar = {"steps": "has no steps"}
    waiting = """
      select (select count(*) from pgmq.q_bench where read_ct = 0 and vt <= now())
        + (select count(*) from pgmq.q_bench where read_ct > 0)
    """

    def install(self, dsn: str) -> None:
        """Send the SQL of the package."""
        from pgmq.install import get_embedded_install_sql, install_pgmq_sql

        install_pgmq_sql(get_embedded_install_sql(), dsn=dsn)
        with connect(dsn) as connection:
            connection.execute("select pgmq.create('bench')")

    def producer(self, dsn: str) -> Producer:
        """Send by the client."""
        return PgmqProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Call the SQL function."""
        fill_by(dsn, FILL, first, number, delay)

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Read and archive in batches."""
        client = _client(dsn)
        batch = 100 if setting == "tuned" else 10
        while True:
            messages = client.read_with_poll("bench", vt=30, qty=batch)
            for message in messages or ():
                sink.hit(message.message["i"])
            if messages:
                client.archive_batch("bench", [message.msg_id for message in messages])

    def cycle(self, dsn: str) -> Callable[[], bool]:
        """Three calls, each its own commit."""
        client = _client(dsn)

        def once() -> bool:
            client.send("bench", {"i": 1})
            message = client.read("bench", vt=30)
            if message is not None:
                client.archive("bench", message.msg_id)
            return message is not None

        return once


PEER = Pgmq()
