"""Which HTTP status an error has, and how it is told."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from starlette.responses import Response

from teguh._connect import is_lost
from teguh.errors import EngineError, NotStorable
from teguh.server._shape import Misshapen, write

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("teguh.server")

# By SQLSTATE, or by its class.
STATUS = {
    "AB001": 409,  # the task is cancelled
    "AB002": 409,  # the run has ended, or its lease was taken
    "TG001": 404,  # no such queue
    "TG002": 404,  # no such run
    "TG003": 404,  # no such task
    "TG004": 409,  # not in a state for that
    "TG005": 400,  # unknown option or bad value
    "TG006": 409,  # idempotency or unique key
    "TG007": 429,  # the queue is full
    "TG008": 404,  # no such schedule
    "TG009": 404,  # no such workflow run
    "TG010": 503,  # the schema does not fit the package
    "22": 400,  # a value that PostgreSQL refuses
    "23": 409,
    "28000": 401,
    "28": 503,  # the service cannot log in
    "3F000": 503,  # teguh is not installed
    "3D000": 503,  # there is no such database
    "42501": 403,
    "42602": 400,  # no name for a queue
    "42704": 400,
    "42883": 404,  # no such path
    "54000": 413,  # the body is too large
    "54": 400,
}

HINTS = {
    "3F000": "Install teguh with `teguh install`.",
    "42501": "teguh.grant_access() gives the service's role what it needs.",
}


@dataclass(eq=False)
class Problem(Exception):
    """What went wrong; ``code`` is an SQLSTATE, ``error`` is for people."""

    error: str
    code: str
    detail: str | None = None
    hint: str | None = None


def status_of(code: str) -> int:
    """Return the HTTP status of an SQLSTATE."""
    return STATUS.get(code) or STATUS.get(code[:2]) or 500


def problem_of(error: Exception) -> tuple[int, Problem]:
    """Return status and description of an error; what nobody expects is logged, and is 500."""
    if isinstance(error, Problem):
        return status_of(error.code), error
    if isinstance(error, Misshapen | NotStorable):
        return 400, Problem(str(error), "TG005")
    if isinstance(error, EngineError):
        return status_of(error.sqlstate), Problem(
            error.message, error.sqlstate, error.detail, error.hint
        )
    if isinstance(error, TimeoutError):
        return 503, Problem("no connection to the database was free in time", "53300")
    if isinstance(error, psycopg.Error):
        code = error.sqlstate or "08006"
        # XX000 is what a statement meets whose queue is dropped meanwhile
        status = 503 if is_lost(error) or code == "XX000" else status_of(code)
        if status == 503 and code.startswith("08"):  # the rest is between the service and libpq
            return status, Problem("the database does not answer", code)
        if status != 500:
            about = error.diag
            message = about.message_primary or str(error)
            hint = about.message_hint or HINTS.get(code)
            return status, Problem(message, code, about.message_detail, hint)
    log.error("the service has a defect", exc_info=error)
    return 500, Problem("the service has a defect; its log says more", "XX000")


def told(status: int, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response that tells a problem."""
    more = dict(headers or {})
    if status in (429, 503):
        more["Retry-After"] = "1"
    if status == 401:
        more["WWW-Authenticate"] = 'Bearer realm="teguh"'
    return Response(write(problem), status, more, "application/json")
