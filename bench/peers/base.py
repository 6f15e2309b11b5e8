"""What an adapter is. Its peer's packages are imported inside its methods, in the peer's Python."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# In every peer's environment: fills tables, and holds connections of peers that are plain SQL.
DRIVER = "psycopg[binary,pool]==3.3.9"


class Producer(Protocol):
    """Enqueues jobs with the payload {"i": number}."""

    def one(self, i: int) -> object:
        """Enqueue one job, committed when this returns."""

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> object:
        """Enqueue jobs, or workflows of three steps, by the best call for many."""

    def close(self) -> None:
        """Close what was opened."""


class Sink:
    """Where handlers say that they have begun: a file, since they may be in several processes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def hit(self, i: int) -> None:
        """Note that job `i` has begun."""
        os.write(self._fd, f"{i} {time.time():.6f}\n".encode())


class Peer:
    """A system that is measured."""

    name: str
    title: str
    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    # The settings of its worker, in words: what its documentation starts with, and one for speed.
    settings: ClassVar[dict[str, str]]
    keeps: str  # what is left of a job that is over
    # What is not measured, and why: steps, cycle.
    absent: ClassVar[dict[str, str]] = {}
    flows = 1000  # how many workflows of three steps are drained
    waiting: str  # statement: how many jobs are ready or running
    # Statement for a database that was copied, before it is used.
    copied = ""
    # Statement that somebody has to call every second, if no worker does.
    upkeep = ""
    # Commands that its own script carries out in Node.js, if it has one.
    script: Path | None = None
    scripted: frozenset[str] = frozenset()

    def install(self, dsn: str) -> None:
        """Create the schema in an empty database."""
        raise NotImplementedError

    def producer(self, dsn: str) -> Producer:
        """Return what enqueues."""
        raise NotImplementedError

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Leave what so many enqueued jobs leave, due after `delay` seconds, by any means."""
        raise NotImplementedError

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Work until killed; handlers call `sink.hit`, then those of workflows do three steps."""
        raise NotImplementedError

    def cycle(self, dsn: str) -> Callable[[], bool]:
        """Return a call that enqueues a job, claims one and completes it; whether it got one."""
        raise NotImplementedError


class SqlProducer:
    """Enqueues by two statements: one takes a number, the other an array of numbers."""

    def __init__(self, dsn: str, one: str, many: str, flows: str = "") -> None:
        self.connection = connect(dsn)
        self._one, self._many, self._flows = one.encode(), many.encode(), flows.encode()

    def one(self, i: int) -> None:
        """Enqueue one job."""
        self.connection.execute(self._one, (json.dumps({"i": i}),))

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Enqueue jobs by a thousand."""
        for at in range(0, len(numbers), 1000):
            part = list(numbers[at : at + 1000])
            self.connection.execute(self._flows if flow else self._many, (part,))

    def close(self) -> None:
        """Disconnect."""
        self.connection.close()


def connect(dsn: str) -> psycopg.Connection[Any]:
    """Connect in autocommit; every statement is prepared at its first use."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.prepare_threshold = 0
    return connection


def chunks(first: int, number: int, size: int) -> list[tuple[int, int]]:
    """Return the first and last of each `size` numbers."""
    return [(n, min(n + size, first + number) - 1) for n in range(first, first + number, size)]


def fill_by(dsn: str, statement: str, first: int, number: int, delay: float | None) -> None:
    """Execute a statement for numbers in chunks; it has the parameters first, last and delay."""
    with connect(dsn) as connection:
        for low, high in chunks(first, number, 20_000):
            connection.execute(
                statement.encode(), {"first": low, "last": high, "delay": delay or 0}
            )
