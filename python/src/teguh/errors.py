"""Everything teguh raises, as one tree.

::

    Exception
    └── TeguhError
        ├── EngineError                 the database refused: sqlstate, detail, hint
        │   ├── RunEnded                this run is over for this worker: stop quietly
        │   │   ├── TaskCancelled       AB001
        │   │   └── RunLost             AB002
        │   ├── QueueNotFound           TG001
        │   ├── RunNotFound             TG002
        │   ├── TaskNotFound            TG003
        │   ├── WrongState              TG004
        │   ├── InvalidOption           TG005
        │   ├── Conflict                TG006
        │   ├── QueueFull               TG007
        │   ├── ScheduleNotFound        TG008
        │   ├── WorkflowRunNotFound     TG009
        │   └── VersionMismatch         TG010
        ├── ConfigurationError          a worker's options contradict each other (a ValueError)
        ├── EventTimeout                an awaited event did not come in time (a TimeoutError)
        └── NotStorable                 a value cannot be stored as jsonb (a ValueError)

    BaseException
    └── Interrupt                       raised by a task context to end the handler
        ├── Suspended                   asleep or awaiting: the handler will be replayed
        └── Abandoned                   lease lost, task cancelled or worker stopping

An ``Interrupt`` is a ``BaseException`` so that ``except Exception`` in a handler lets it pass:
a handler that has lost its lease must not go on to compensate. Clean up in ``finally``.

Errors of PostgreSQL that are not teguh's own stay what psycopg makes of them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator


class TeguhError(Exception):
    """The root of the tree."""


class EngineError(TeguhError):
    """An error raised by an SQL function of teguh. The text holds message, detail and hint."""

    def __init__(
        self, message: str, *, sqlstate: str, detail: str | None = None, hint: str | None = None
    ) -> None:
        lines = [message]
        if detail:
            lines.append(f"detail: {detail}")
        if hint:
            lines.append(f"hint: {hint}")
        super().__init__("\n".join(lines))
        self.message = message
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint


class RunEnded(EngineError):
    """The run is over for whoever made this call: stop quietly."""


class TaskCancelled(RunEnded):
    """The task is cancelled (AB001)."""


class RunLost(RunEnded):
    """The run has ended, or its lease was taken by another worker (AB002)."""


class QueueNotFound(EngineError):
    """The queue does not exist (TG001)."""


class RunNotFound(EngineError):
    """The run does not exist (TG002)."""


class TaskNotFound(EngineError):
    """The task does not exist (TG003)."""


class WrongState(EngineError):
    """The task is not in a state that allows this (TG004)."""


class InvalidOption(EngineError):
    """An option is unknown or its value is bad (TG005)."""


class Conflict(EngineError):
    """The idempotency key belongs to a task with another name or other params (TG006)."""


class QueueFull(EngineError):
    """The queue holds as many pending tasks as its policy allows (TG007): back off."""


class ScheduleNotFound(EngineError):
    """The schedule does not exist (TG008)."""


class WorkflowRunNotFound(EngineError):
    """The workflow run does not exist (TG009)."""


class VersionMismatch(EngineError):
    """The schema in the database does not fit this package (TG010)."""


class ConfigurationError(TeguhError, ValueError):
    """A worker's options contradict each other."""


class EventTimeout(TeguhError, TimeoutError):
    """An awaited event did not come in time. The outcome is durable: a replay meets it again."""


class NotStorable(TeguhError, ValueError):
    """A value cannot be stored: it is not JSON, or holds what jsonb refuses."""


class Interrupt(BaseException):
    """Ends a handler from inside a context call. Let it pass; clean up in ``finally``."""


class Suspended(Interrupt):
    """The task sleeps or awaits an event. The handler is replayed when it is due."""


class Abandoned(Interrupt):
    """The run is no longer this handler's: its result would be discarded."""


_BY_SQLSTATE: dict[str, type[EngineError]] = {
    "AB001": TaskCancelled,
    "AB002": RunLost,
    "TG001": QueueNotFound,
    "TG002": RunNotFound,
    "TG003": TaskNotFound,
    "TG004": WrongState,
    "TG005": InvalidOption,
    "TG006": Conflict,
    "TG007": QueueFull,
    "TG008": ScheduleNotFound,
    "TG009": WorkflowRunNotFound,
    "TG010": VersionMismatch,
}


def from_psycopg(error: psycopg.Error) -> EngineError | None:
    """Return the class of this tree for a database error, or None if it is not teguh's."""
    sqlstate = error.sqlstate
    if sqlstate is None or sqlstate not in _BY_SQLSTATE:
        return None
    diag = error.diag
    return _BY_SQLSTATE[sqlstate](
        diag.message_primary or str(error),
        sqlstate=sqlstate,
        detail=diag.message_detail,
        hint=diag.message_hint,
    )


@contextmanager
def translated() -> Iterator[None]:
    """Raise teguh's errors in place of psycopg's, which stay their cause."""
    try:
        yield
    except psycopg.Error as error:
        known = from_psycopg(error)
        if known is None:
            raise
        raise known from error
