"""What the tests of the package share."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, Unpack

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import teguh
from tools.servers import OWNER, WORKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

T = TypeVar("T")

PATIENCE = 20.0
POOLER_PORT = "6432"


def until(condition: Callable[[], T], what: str = "the condition") -> T:
    """Wait until a condition holds and return what it returned."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true")
        time.sleep(0.005)
    return value


def as_worker(dsn: str) -> str:
    """Return the owner's address for a role that may do what a worker may, and nothing else.

    What tests have put into schema public is for everybody.
    """
    if conninfo_to_dict(dsn)["user"] != OWNER:
        return dsn
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select teguh.grant_access(%s, 'worker')", (WORKER,))
        connection.execute("grant all on all tables in schema public to public")
        connection.execute("alter default privileges grant all on tables to public")
    return make_conninfo(dsn, user=WORKER)


@contextmanager
def running(
    dsn: str, queue: str, tasks: teguh.Registry, **options: Unpack[teguh.WorkerOptions]
) -> Iterator[teguh.Worker]:
    """Run a worker in a thread; stop it at the end, and raise what it raised.

    Behind PgBouncer it polls only, and often: what a notification would tell it finds late.
    """
    if conninfo_to_dict(dsn).get("port") == POOLER_PORT:
        often = min(options.get("poll_interval", 0.05), 0.05)
        options = {**options, "listen": False, "poll_interval": often}
    worker = teguh.Worker(as_worker(dsn), queue, tasks, **options)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the worker did not stop"
    if raised:
        raise raised[0]


def finished(client: teguh.Client, queue: str, task_id: UUID) -> teguh.TaskResult:
    """Wait until a task has ended and return it."""

    def ended() -> teguh.TaskResult | None:
        result = client.get_task_result(queue, task_id)
        return result if result.finished_at is not None else None

    return until(ended, "the task's end")  # type: ignore[return-value]


def state(client: teguh.Client, queue: str, task_id: UUID) -> str:
    """Return a task's state."""
    result = client.get_task_result(queue, task_id)
    return result.state


def lose_lease(client: teguh.Client, queue: str, run_id: UUID) -> None:
    """Let a run's lease end before its time and have that noticed."""
    client.extend_claim(queue, run_id, 0.001)
    time.sleep(0.005)
    client.ticker(queue)


class Gate:
    """Lets handlers wait for the test, and the test for handlers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._opened = 0
        self.waiting = 0
        self.entered = 0

    def wait(self) -> None:
        """Wait, in a handler's thread, to be let through."""
        with self._condition:
            self.entered += 1
            self.waiting += 1
            assert self._condition.wait_for(lambda: self._opened > 0, PATIENCE)
            self._opened -= 1
            self.waiting -= 1

    def open(self, times: int = 1) -> None:
        """Let so many through, now or later."""
        with self._condition:
            self._opened += times
            self._condition.notify_all()
