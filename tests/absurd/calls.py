"""Calls of the schema absurd, as a client would make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.sql import SQL, Identifier
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from uuid import UUID

START = "2027-01-01 00:00:00+00"


class Calls:
    """The functions and relations of one queue, over one connection in autocommit."""

    def __init__(self, dsn: str, queue: str = "jobs") -> None:
        self.dsn = dsn
        self.queue = queue
        self.connection: psycopg.Connection[DictRow] = psycopg.connect(
            dsn, autocommit=True, row_factory=dict_row
        )

    def rows(self, statement: str, *values: Any) -> list[DictRow]:
        """The rows of a statement."""
        return self.connection.execute(statement.encode(), values).fetchall()

    def call(self, function: str, *values: Any) -> list[DictRow]:
        """Call a function of the schema on the queue."""
        given = [Jsonb(v) if isinstance(v, dict | list) else v for v in (self.queue, *values)]
        marks = ", ".join("%s" for _ in given)
        return self.rows(f"select * from absurd.{function}({marks})", *given)

    def error(self, function: str, *values: Any) -> str:
        """Call a function that must fail; return its SQLSTATE."""
        try:
            self.call(function, *values)
        except psycopg.Error as error:
            return str(error.sqlstate)
        raise AssertionError(f"{function} did not fail")

    def set_time(self, seconds: float) -> None:
        """Set absurd's clock to so many seconds after START."""
        self.rows(
            "select set_config('absurd.fake_now',"
            " (%s::timestamptz + make_interval(secs => %s))::text, false)",
            START,
            seconds,
        )

    def relation(self, letter: str, **where: Any) -> list[DictRow]:
        """The rows of one of the queue's relations; %% is psycopg's way to write %."""
        query = SQL("select * from absurd.{}").format(
            Identifier(f"{letter}_{self.queue}".replace("%", "%%"))
        )
        if where:
            query += SQL(" where ") + SQL(" and ").join(
                SQL("{} = %s").format(Identifier(name)) for name in where
            )
        return self.connection.execute(query, tuple(where.values())).fetchall()

    def spawn(self, name: str = "job", params: Any = None, **options: Any) -> DictRow:
        """Spawn a task."""
        [row] = self.call("spawn_task", name, Jsonb(params), options)
        return row

    def claim(self, timeout: int = 60, quantity: int = 1, worker: str = "w") -> list[DictRow]:
        """Claim runs."""
        return self.call("claim_task", worker, timeout, quantity)

    def claim_one(self, timeout: int = 60) -> DictRow:
        """Claim a run that must be there."""
        [row] = self.claim(timeout)
        return row

    def fail(self, run_id: UUID, at: Any = None) -> None:
        """Fail a run."""
        self.call("fail_run", run_id, {"message": "no"}, at)

    def checkpoint(self, row: DictRow, step: str, state: Any, by: int | None = None) -> None:
        """Store a checkpoint for a claimed run."""
        self.call(
            "set_task_checkpoint_state", row["task_id"], step, Jsonb(state), row["run_id"], by
        )

    def wait(self, row: DictRow, event: str, timeout: int | None = None) -> DictRow:
        """Await an event in a step named like it."""
        [result] = self.call(
            "await_event", row["task_id"], row["run_id"], f"wait {event}", event, timeout
        )
        return result

    def task(self, task_id: UUID) -> DictRow:
        """The task, as its relation shows it."""
        [row] = self.relation("t", task_id=task_id)
        return row

    def run(self, run_id: UUID) -> DictRow:
        """The run, as its relation shows it."""
        [row] = self.relation("r", run_id=run_id)
        return row
