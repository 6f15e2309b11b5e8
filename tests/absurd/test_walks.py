"""Whatever is called in whatever order, absurd itself answers alike and shows the same.

What chance does not do here is what docs/absurd.md says is different.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.absurd.calls import Calls
from tests.absurd.test_runs import at

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from psycopg.rows import DictRow

    # a task's place in the order of spawns, and an attempt
    Number = tuple[int, int]

STRATEGIES = (
    None,
    {"kind": "none"},
    {"kind": "fixed", "base_seconds": 7},
    {"kind": "exponential", "base_seconds": 3},
)
CANCELLATIONS = (None, None, {"max_delay": 10}, {"max_duration": 20}, {"max_duration": 60})
EVENTS = ("e", "f", "g")
OVER = ("completed", "failed", "cancelled")
# The seldom ones first, the others twice.
SELDOM = ("spawn", "claim", "claim", "time", "time", "emit", "cancel", "retry")
OFTEN = ("complete", "fail", "schedule", "extend", "checkpoint", "wait", "wait", "read")


class Side:
    """One of the two, with numbers instead of ids."""

    def __init__(self, dsn: str) -> None:
        self.calls = Calls(dsn)
        self.calls.call("create_queue")
        self.calls.set_time(0)
        self.tasks: list[UUID] = []

    def runs(self) -> dict[Number, UUID]:
        """The ids of the runs there are."""
        rows = self.calls.rows("select r.task_id, r.attempt, r.run_id from absurd.r_jobs as r")
        return {(self.tasks.index(r["task_id"]), r["attempt"]): r["run_id"] for r in rows}

    def call(self, function: str, *values: Any) -> Any:
        """Call a function; return its rows, or its SQLSTATE."""
        try:
            rows = self.calls.call(function, *values)
        except psycopg.Error as error:
            return error.sqlstate
        self.tasks += [row["task_id"] for row in rows if row.get("created")]
        return sorted(map(plain, map(self.numbered, rows)), key=str)

    def numbered(self, row: DictRow) -> dict[str, Any]:
        """A row with numbers instead of ids."""
        known: dict[str, int | Number] = {str(one): n for n, one in enumerate(self.tasks)}
        known |= {str(run_id): number for number, run_id in self.runs().items()}
        return {k: known.get(str(v), v) for k, v in row.items()}

    def shown(self, now: int) -> dict[str, list[dict[str, Any]]]:
        """What the relations show."""
        found = {}
        for letter in "trcew":
            rows = self.calls.rows(f"select to_jsonb(o) as row from absurd.{letter}_jobs as o")
            found[letter] = sorted((plain(self.numbered(row["row"])) for row in rows), key=str)
        # teguh keeps a wait that is over until its run comes back
        found["w"] = [w for w in found["w"] if (w["timeout_at"] or "9") > at(now).isoformat()]
        return found


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what teguh does not keep, or words differently."""
    if row.get("state") in OVER:
        row.pop("available_at", None)
    if row.get("state") == "failed":
        # gone when the failure cancelled the task
        row.pop("claim_expires_at", None)
        if isinstance(row.get("failure_reason"), dict):
            row["failure_reason"].pop("claimExpiredAt", None)
    if row.get("state") in ("running", *OVER):
        # what woke it stays after it was asked for
        row.pop("wake_event", None)
        row.pop("event_payload", None)
    if row.get("attempt", 1) > 1 or "step_name" in row:
        row.pop("created_at", None)
    if isinstance(row.get("failure_reason"), dict):
        row["failure_reason"].pop("message", None)
    return row


class Walk:
    """The same calls of both, in an order that chance gives."""

    def __init__(self, seed: int, ours: Side, real: Side) -> None:
        self.random = random.Random(seed)
        self.ours = ours
        self.real = real
        self.now = 0
        self.said: list[Any] = []

    def call(self, function: str, *values: Any) -> None:
        """Call a function of both; they must answer alike."""
        answers = []
        for side in (self.ours, self.real):
            given = [value(side) if callable(value) else value for value in values]
            answers.append(side.call(function, *given))
        shown = [value for value in values if not callable(value)]
        self.said.append((self.now, function, shown, answers[1]))
        self.check("answers", answers[0], answers[1])

    def check(self, what: str, ours: Any, real: Any) -> None:
        """Fail, with what was done before, if the two differ."""
        if ours != real:
            pytest.fail("\n".join(map(str, [*self.said[-40:], f"{what}:", ours, "absurd:", real])))

    def step(self) -> None:
        """Do one thing."""
        choose = self.random.choice
        kind = choose(SELDOM + 2 * OFTEN)
        if kind == "time":
            self.now += choose([1, 2, 5, 11])
            for side in (self.ours, self.real):
                side.calls.set_time(self.now)
        elif kind == "spawn" or not self.real.tasks:
            options = {
                "max_attempts": choose([None, 1, 2, 3]),
                "retry_strategy": choose(STRATEGIES),
                "cancellation": choose(CANCELLATIONS),
                "idempotency_key": choose([None, None, None, "k", "l"]),
            }
            given = {k: v for k, v in options.items() if v is not None}
            self.call("spawn_task", "job", Jsonb(len(self.said)), given)
        elif kind == "claim":
            # all there is: the order among those that are due differs
            self.call("claim_task", "w", choose([0, 5, 30]), 1000)
        elif kind == "emit":
            self.call("emit_event", choose(EVENTS), Jsonb(choose([None, len(self.said)])))
        else:
            self.act(kind, *self.any_run())

    def any_run(self) -> tuple[Number, DictRow]:
        """A run, most often one that is running, as absurd has it."""
        rows = self.real.calls.rows(
            "select r.task_id, r.attempt, r.state, r.wake_event, r.event_payload, t.cancellation"
            " from absurd.r_jobs as r join absurd.t_jobs as t on t.task_id = r.task_id"
            " order by r.run_id"
        )
        running = [row for row in rows if row["state"] == "running"]
        row = self.random.choice(running if running and self.random.random() < 0.8 else rows)
        number = (self.real.tasks.index(row["task_id"]), row["attempt"])
        self.said.append(number)
        return number, row

    def act(self, kind: str, number: Number, row: DictRow) -> None:
        """Do something to a task or a run."""
        choose = self.random.choice
        value = Jsonb({"place": len(self.said)})

        def task(side: Side) -> UUID:
            return side.tasks[number[0]]

        def run(side: Side) -> UUID:
            return side.runs()[number]

        acts: dict[str, Callable[[], None]] = {
            "cancel": lambda: self.call("cancel_task", task),
            "retry": lambda: self.retry(task, row),
            "complete": lambda: self.call("complete_run", run, value),
            "fail": lambda: self.call(
                "fail_run", run, value, choose([None, None, at(self.now - 5), at(self.now + 9)])
            ),
            "schedule": lambda: self.schedule(run, row),
            "extend": lambda: self.call("extend_claim", run, choose([None, 0, -1, 4, 50])),
            "checkpoint": lambda: self.call(
                "set_task_checkpoint_state",
                *(task, choose(["a", "b"]), value, run, choose([None, 0, -1, 4, 50])),
            ),
            "wait": lambda: self.wait(task, run, row),
            "read": lambda: self.read(task, run),
        }
        acts[kind]()

    def retry(self, task: Any, row: DictRow) -> None:
        """Retry a task; teguh gives it its max_duration again."""
        options = [{"spawn_new": True}, {"spawn_new": True, "max_attempts": 4}]
        if "max_duration" not in (row["cancellation"] or {}):
            options += [{}, {"max_attempts": 3}]
        self.call("retry_task", task, self.random.choice(options))

    def schedule(self, run: Any, row: DictRow) -> None:
        """Let a run sleep; absurd keeps a payload that it did not ask for."""
        if row["event_payload"] is None:
            self.call("schedule_run", run, at(self.now + self.random.choice([1, 4, 30])))

    def wait(self, task: Any, run: Any, row: DictRow) -> None:
        """Await an event; teguh forgets a timeout when another event is awaited."""
        event = row["wake_event"] or self.random.choice(EVENTS)
        timeout = self.random.choice([None, 1, 4, 30])
        self.call("await_event", task, run, f"wait {event}", event, timeout)

    def read(self, task: Any, run: Any) -> None:
        """Ask for a result and for checkpoints."""
        self.call("get_task_result", task)
        self.call("get_task_checkpoint_states", task, run)
        self.call("get_task_checkpoint_state", task, self.random.choice(["a", "wait e"]))


@pytest.mark.parametrize("seed", range(6))
def test_random_walks_are_alike(absurd_dsn: str, real_dsn: str, seed: int) -> None:
    ours, real = Side(absurd_dsn), Side(real_dsn)
    with ours.calls.connection, real.calls.connection:
        walk = Walk(seed, ours, real)
        for _ in range(150):
            walk.step()
            seen, wanted = ours.shown(walk.now), real.shown(walk.now)
            for letter in "trcew":
                walk.check(
                    f"shown in {letter}",
                    [row for row in seen[letter] if row not in wanted[letter]],
                    [row for row in wanted[letter] if row not in seen[letter]],
                )
