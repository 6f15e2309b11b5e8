"""What the tests of the package share."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, Unpack

from psycopg.conninfo import conninfo_to_dict

import teguh
from tools.servers import ADMIN, CLIENT, OWNER, WORKER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from uuid import UUID

    from teguh._types import Access

T = TypeVar("T")

PATIENCE = 20.0
POOLER_PORT = "6432"

# The access of each role, the least first.
ACCESS: Mapping[str, Access] = {CLIENT: "client", WORKER: "worker", ADMIN: "admin"}


def until(condition: Callable[[], T], what: str = "the condition") -> T:
    """Wait until a condition holds and return what it returned."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true")
        time.sleep(0.005)
    return value


def let_in(owner_dsn: str) -> None:
    """Give each role the access it is named after, and all of them what tests put into public."""
    with teguh.Client.connect(owner_dsn) as owner:
        for role, access in ACCESS.items():
            owner.grant_access(role, access)
        owner.connection.execute(
            "alter default privileges in schema public grant all on tables to public"
        )


class EachByItsRole:
    """A client whose methods are called by roles, each by the one with the least access for it.

    All else is the owner's: the connection, with which a test sets up what it needs and looks.
    """

    def __init__(self, clients: Mapping[str, teguh.Client]) -> None:
        """Take a client of each role."""
        self._owner = clients[OWNER]
        rows = self._owner.connection.execute("select routine, access from teguh._rights")
        self._callers = {
            str(routine): next(clients[role] for role in ACCESS if ACCESS[role] in access)
            for routine, access in rows
        }

    def __getattr__(self, name: str) -> object:
        return getattr(self._callers.get(name, self._owner), name)


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
    worker = teguh.Worker(dsn, queue, tasks, **options)
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
    """Let a run's lease end before its time and have that noticed, between two heartbeats."""

    def lost() -> bool:
        try:
            client.extend_claim(queue, run_id, 0.001)
        except teguh.RunLost:
            return True
        time.sleep(0.005)
        client.ticker(queue)
        return False

    until(lost, "the loss of the lease")


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
