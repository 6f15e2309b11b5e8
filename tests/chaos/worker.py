"""A worker process of the storm: threads that claim runs by plain SQL and do what their plans say.

Before the calm it now and then rolls a claim or a step back, holds a claim open, stalls past its
lease and goes on, hands runs back, fails them, forgets them, or has the wrong time.

usage: python -m tests.chaos.worker DSN SEED THREADS storm|calm
Errors that nobody should see go to standard output, one line each.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from tests.chaos.actors import CLOCK_OFF, QUEUE, Conn, act, send

if TYPE_CHECKING:
    from random import Random
    from uuid import UUID

CLAIM = """
with claimed as materialized (
  select c.run_id, c.task_id, c.params, c.checkpoints
  from teguh.claim_task(%(queue)s, %(worker)s, %(timeout)s, %(qty)s) as c
),

noted as (
  insert into chaos.claimed (run_id, task_id, worker)
  select c.run_id, c.task_id, %(worker)s from claimed as c
)

select c.run_id, c.task_id, c.params, c.checkpoints from claimed as c
"""

SPAWN = """
insert into chaos.spawned (task_id)
select s.task_id
from teguh.spawn_task(
  %s, 'child', '{"plan": ["write-0"]}',
  '{"retry_strategy": {"kind": "fixed", "base_seconds": 0.1}}'
) as s
"""

CHILDREN = json.dumps(
    [
        {
            "task_name": "bred",
            "params": {"plan": ["write-0"]},
            "options": {"retry_strategy": {"kind": "fixed", "base_seconds": 0.1}},
        }
    ]
    * 3
)

BREED = """
insert into chaos.spawned (task_id)
select s.task_id
from teguh.spawn_children(%s, %s, %s, %s, %s) as s
where s.created
"""

COMPLETE = """
insert into chaos.completed (run_id, task_id)
select c.run_id, r.task_id
from teguh.complete_runs(%s, %s) as c
join unnest(%s::uuid[], %s::uuid[]) as r(run_id, task_id) on r.run_id = c.run_id
where c.applied
"""

# The run is no longer ours: its task was cancelled, or its lease was lost.
GONE = {"AB001", "AB002"}


class Run(NamedTuple):
    """A claimed run."""

    run_id: UUID
    task_id: UUID
    params: dict[str, Any]
    checkpoints: dict[str, Any]


class Worker:
    """Claims and works off runs on one connection."""

    def __init__(self, name: str, *, calm: bool) -> None:
        self.name = name
        self.calm = calm

    def whim(self, rng: Random, chance: float) -> bool:
        """Tell whether to misbehave this time."""
        return not self.calm and rng.random() < chance

    def turn(self, connection: Conn, rng: Random) -> None:
        """Claim some runs and work them off, or wait a little."""
        lease = 30 if self.calm else rng.choice([0.3, 0.6, 1])
        arguments = {
            "queue": QUEUE,
            "worker": self.name,
            "timeout": lease,
            "qty": rng.choice([1, 1, 2, 5, 20]),
        }
        roll_back = self.whim(rng, 0.1)
        if roll_back or self.whim(rng, 0.05):
            with connection.transaction(force_rollback=roll_back):
                runs = [Run(*row) for row in connection.execute(CLAIM, arguments)]
                time.sleep(rng.choice([0, 0, 0.05, 0.5]))
                if runs and set(runs[0].params["plan"]) <= runs[0].checkpoints.keys():
                    self.complete_one(connection, runs.pop(0))
            if roll_back:
                return
        else:
            runs = [Run(*row) for row in connection.execute(CLAIM, arguments)]

        if not runs:
            connection.execute("select teguh.next_due(%s)", (QUEUE,))
            time.sleep(0.01)
            return
        rng.shuffle(runs)
        done = [run for run in runs if self.handled(connection, rng, run, lease)]
        self.complete_many(connection, done)

    def handled(self, connection: Conn, rng: Random, run: Run, lease: float) -> bool:
        """Do a run's steps; tell whether it is to be completed with the others."""
        try:
            finished = self.steps(connection, rng, run, lease)
            if finished and rng.random() < 0.5:
                with connection.transaction():
                    self.complete_one(connection, run)
                return False
        except psycopg.Error as error:
            if error.sqlstate not in GONE:
                raise
            return False
        return finished

    def steps(self, connection: Conn, rng: Random, run: Run, lease: float) -> bool:
        """Do the steps that have no checkpoint yet; tell whether the end was reached."""
        for step in run.params["plan"]:
            if step in run.checkpoints:
                continue
            if self.whim(rng, 0.02):
                return False
            if self.whim(rng, 0.04):
                time.sleep(lease + 0.3)
            if self.whim(rng, 0.03):
                connection.execute("select teguh.extend_claim(%s, %s, 1)", (QUEUE, run.run_id))
            if self.whim(rng, 0.03):
                with connection.transaction():
                    delay = rng.choice([0, 0, 0.1])
                    connection.execute(
                        "select teguh.release_run(%s, %s, %s)", (QUEUE, run.run_id, delay)
                    )
                    note_return(connection, run, "released")
                return False
            if self.whim(rng, 0.05):
                connection.execute(
                    "select teguh.fail_run(%s, %s, %s)", (QUEUE, run.run_id, '{"message": "whim"}')
                )
                return False
            if self.whim(rng, 0.05):
                with connection.transaction(force_rollback=True):
                    self.step(connection, rng, run, step)
            with connection.transaction():
                goes_on = self.step(connection, rng, run, step)
            if not goes_on:
                return False
        return True

    def step(self, connection: Conn, rng: Random, run: Run, step: str) -> bool:
        """Do one step in the caller's transaction; tell whether the run goes on."""
        kind = step.partition("-")[0]
        if kind == "wait":
            return self.wait(connection, run, step)
        if kind == "brood":
            return self.breed(connection, run, step)
        if kind == "hear":
            return self.hear(connection, run, step)
        if kind == "spawn":
            connection.execute(SPAWN, (QUEUE,))
        connection.execute(
            "insert into chaos.steps (run_id, task_id, step) values (%s, %s, %s)",
            (run.run_id, run.task_id, step),
        )
        connection.execute(
            "select teguh.set_task_checkpoint_state(%s, %s, %s, '1', %s)",
            (QUEUE, run.task_id, step, run.run_id),
        )
        if kind == "tell":
            connection.execute(
                "select teguh.set_attributes(%s, %s, %s)",
                (QUEUE, run.run_id, json.dumps({step: 1})),
            )
        if kind == "say":
            send(connection, self.name, run.task_id, run.params["topic"])
        if kind != "sleep":
            return True
        connection.execute(
            "select teguh.schedule_run(%s, %s, clock_timestamp() + make_interval(secs => %s))",
            (QUEUE, run.run_id, rng.choice([0, 0.01, 0.2, 0.6])),
        )
        note_return(connection, run, "sleeps")
        return False

    def wait(self, connection: Conn, run: Run, step: str) -> bool:
        """Wait for the task's event."""
        row = connection.execute(
            "select should_suspend, payload, timed_out"
            " from teguh.await_event(%s, %s, %s, %s, %s, %s)",
            (QUEUE, run.task_id, run.run_id, step, run.params["event"], run.params["timeout"]),
        ).fetchone()
        assert row is not None
        if row[0]:
            note_return(connection, run, "waits")
            return False
        connection.execute(
            "insert into chaos.outcomes (task_id, step, outcome) values (%s, %s, %s)",
            (run.task_id, step, "timeout" if row[2] else row[1]),
        )
        return True

    def hear(self, connection: Conn, run: Run, step: str) -> bool:
        """Receive a message."""
        row = connection.execute(
            "select should_suspend, payload, timed_out"
            " from teguh.receive_message(%s, %s, %s, %s, %s, %s)",
            (QUEUE, run.task_id, run.run_id, step, run.params["topic"], run.params["timeout"]),
        ).fetchone()
        assert row is not None
        if row[0]:
            note_return(connection, run, "waits")
            return False
        connection.execute(
            "insert into chaos.outcomes (task_id, step, outcome) values (%s, %s, %s)",
            (run.task_id, step, "timeout" if row[2] else row[1]),
        )
        return True

    def breed(self, connection: Conn, run: Run, step: str) -> bool:
        """Spawn children and wait for them."""
        connection.execute(
            BREED, (QUEUE, run.run_id, step, CHILDREN, json.dumps(run.params["brood"]))
        )
        row = connection.execute(
            "select should_suspend, payload, timed_out"
            " from teguh.await_children(%s, %s, %s, %s, %s, %s, %s)",
            (
                QUEUE, run.task_id, run.run_id, step, run.params["mode"], run.params["timeout"],
                json.dumps(run.params["options"]),
            ),
        ).fetchone()  # fmt: skip
        assert row is not None
        if row[0]:
            note_return(connection, run, "waits")
            return False
        outcome = "timeout" if row[2] else " ".join(str(child["state"]) for child in row[1])
        connection.execute(
            "insert into chaos.outcomes (task_id, step, outcome) values (%s, %s, %s)",
            (run.task_id, step, outcome),
        )
        return True

    def complete_one(self, connection: Conn, run: Run) -> None:
        """Complete a run in the caller's transaction."""
        connection.execute("select teguh.complete_run(%s, %s, %s)", (QUEUE, run.run_id, '"one"'))
        connection.execute(
            "insert into chaos.completed (run_id, task_id) values (%s, %s)",
            (run.run_id, run.task_id),
        )

    def complete_many(self, connection: Conn, runs: list[Run]) -> None:
        """Complete those of these runs that are still ours."""
        if runs:
            done = json.dumps([{"run_id": str(run.run_id), "state": "many"} for run in runs])
            task_ids = [run.task_id for run in runs]
            run_ids = [run.run_id for run in runs]
            connection.execute(COMPLETE, (QUEUE, done, run_ids, task_ids))


def note_return(connection: Conn, run: Run, how: str) -> None:
    """Note that a run was handed back."""
    connection.execute(
        "insert into chaos.returned (run_id, task_id, how) values (%s, %s, %s)",
        (run.run_id, run.task_id, how),
    )


def main() -> None:
    """Work until killed."""
    dsn, seed, threads, mood = sys.argv[1:]
    # warns when a rollback finds its connection gone
    logging.getLogger("psycopg").setLevel(logging.ERROR)

    def report(line: str) -> None:
        print(line.replace("\n", " | "), flush=True)

    started = []
    for number in range(int(threads)):
        worker = Worker(f"worker {seed}.{number}", calm=mood == "calm")
        thread = threading.Thread(
            target=act,
            args=(dsn, worker.name, int(seed), worker.turn),
            kwargs={
                "until": lambda: False,
                "report": report,
                "clock_off": 0 if worker.calm else CLOCK_OFF,
            },
        )
        thread.start()
        started.append(thread)
    for thread in started:
        thread.join()


if __name__ == "__main__":
    main()
