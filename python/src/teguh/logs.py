"""Log records that say which task they are about.

The records of a worker do by themselves. :class:`TaskFilter` sees to those that handlers write
through loggers of their own, :class:`JsonFormatter` writes all as JSON.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from teguh._types import ClaimedRun
    from teguh._worker.run import Run

FIELDS = ("queue", "task_name", "task_id", "run_id", "attempt", "worker_id")

# The run whose handler executes here.
current: ContextVar[Run | None] = ContextVar("teguh_run", default=None)


def fields_of(claim: ClaimedRun, queue: str, worker_id: str) -> dict[str, Any]:
    """Return the fields of a claimed run."""
    return {
        "queue": queue,
        "task_name": claim.task_name,
        "task_id": str(claim.task_id),
        "run_id": str(claim.run_id),
        "attempt": claim.attempt,
        "worker_id": worker_id,
    }


class TaskFilter(logging.Filter):
    """Gives each record the fields of the task whose handler has written it.

    Add it to a logging handler, not to a logger, which would not ask it about the records of
    loggers below. It lets every record pass. ``queue``, ``task_name``, ``task_id``, ``run_id``,
    ``attempt`` and ``worker_id`` are None outside of handlers; those that a record has, stay.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Fill in the fields that the record has not."""
        run = current.get()
        fields = dict.fromkeys(FIELDS) if run is None else run.fields()
        for name, value in fields.items():
            record.__dict__.setdefault(name, value)
        return True


class JsonFormatter(logging.Formatter):
    """Writes a record as one line, a JSON object.

    It has time (ISO 8601, UTC), level, logger, message, the fields of :class:`TaskFilter` that
    the record has and that are not None, and the traceback of an exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        values = record.__dict__
        line |= {name: values[name] for name in FIELDS if values.get(name) is not None}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)


class WorkerLog(logging.LoggerAdapter[logging.Logger]):
    """The log of one worker: its records carry all fields, also in a call with a run's."""

    def __init__(self, queue: str, worker_id: str) -> None:
        fields = dict.fromkeys(FIELDS) | {"queue": queue, "worker_id": worker_id}
        super().__init__(logging.getLogger("teguh.worker"), fields)

    def process(
        self, msg: object, kwargs: MutableMapping[str, Any]
    ) -> tuple[object, MutableMapping[str, Any]]:
        """Add the fields."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
