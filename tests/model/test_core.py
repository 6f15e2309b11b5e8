"""Whatever is called in whatever order, the engine does what the model of its core says.

Chance calls both and compares the outcome of each call, the SQLSTATE of an error included, and
all that can be seen after it.  Some calls are taken back, alone or with others; then both are as
they were.  TEGUH_MODEL_STEPS makes it more and longer, as for the model of composition.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.model.core import LIVE, LOST, OVER, Core, Refused, Task
from tests.model.engine import SETTINGS, START, STEPS, Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.rows import DictRow

    from tests.cluster import Cluster

BEGINNING = datetime.fromtimestamp(START, UTC)
NOW = 1000
QUEUES = ("a", "b")
NAMES = ("n1", "n2")
KEYS = ("k1", "k2")
EVENTS = ("e1", "e1", "e2")
STEP_NAMES = ("s1", "s2")
NOWHERE = "019ec0de-0000-7000-8000-000000000000"

# What may be done, and how often.
ACTIONS = {
    "spawn": 6,
    "spawn_many": 2,
    "claim": 10,
    "claim_any": 2,
    "complete": 4,
    "complete_many": 2,
    "fail": 5,
    "nap": 2,
    "release": 3,
    "extend": 2,
    "checkpoint": 3,
    "await_event": 4,
    "emit": 2,
    "cancel": 1,
    "cancel_many": 1,
    "retry": 4,
    "requeue": 1,
    "requeue_many": 1,
    "replay": 2,
    "pause": 1,
    "limit": 2,
    "policy": 1,
    "clean": 1,
    "tick": 4,
    "look": 1,
    "misuse": 1,
}
MODES = ("alone",) * 12 + ("taken back", "taken back", "together", "partly taken back")

OPTIONS: dict[str, tuple[Any, ...]] = {
    "delay_seconds": (0, 5, 30),
    "available_at": (-20, 0, 12),
    "max_attempts": (1, 2, 2, None),
    "retry_strategy": (
        {"kind": "none"},
        {"kind": "fixed", "base_seconds": 4},
        {"kind": "exponential", "base_seconds": 3, "factor": 3, "max_seconds": 20},
        {"kind": "linear", "base_seconds": 5},
        {"kind": "quadratic", "base_seconds": 2, "max_seconds": 9},
        {"kind": "fixed", "base_seconds": 10, "jitter": 0.5},
    ),
    "cancellation": ({"max_delay": 20}, {"max_duration": 60}, {"max_delay": 9, "max_duration": 25}),
    "timeout_seconds": (7, 40),
    "ttl_seconds": (15, 60),
    "deadline_at": (-5, 20),
    "on_expired": (False, True),
    "idempotency_key": ("i1", "i2"),
    "idempotency_mismatch": ("return", "error"),
    "unique": (
        {"key": "u1"},
        {"key": "u1", "on_conflict": "return", "window_seconds": 30},
        {"key": "u1", "on_conflict": "return", "states": ["running", "completed"]},
        {"key": "u1", "on_conflict": "replace"},
        {"key": "u2", "on_conflict": "replace"},
        {"key": "u2", "on_conflict": "debounce", "max_wait_seconds": 12},
    ),
    "priority": (-1, 1),
    "key": KEYS,
    "tags": (["t1"], ["t1", "t2"]),
    "correlation_id": ("c1",),
    "headers": ({"h": 1},),
}
FILTERS: tuple[dict[str, Any], ...] = (
    {"state": "pending"},
    {"state": "running"},
    {"state": ["failed", "expired", "sleeping"]},
    {"state": "completed", "task_name": "n1"},
    {"task_name": "n2"},
    {"tag": "t1"},
    {"tags": ["t1", "t2"]},
    {"correlation_id": "c1"},
    {"older_than_seconds": 10},
)
LIMITS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"max_running": 1},
    {"max_running": 2},
    {"rate": 1, "period_seconds": 10},
    {"rate": 2, "period_seconds": 20, "max_running": 2},
)
POLICIES: tuple[dict[str, Any], ...] = (
    {"max_pending": 3},
    {"max_pending": 3, "on_full": "drop_oldest"},
    {"max_pending": None, "on_full": None},
    {"default_max_attempts": 2, "default_retry_strategy": {"kind": "none"}},
    {"default_ttl": 40, "default_timeout": 15},
    {"default_max_attempts": None, "default_retry_strategy": None},
    {"default_ttl": None, "default_timeout": None},
)
# Calls that must be refused.
MISUSES: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("TG001", "spawn_task", ("nowhere", "n1", {}, {})),
    ("TG001", "claim_task", ("nowhere", "w1")),
    ("TG001", "ticker", ("nowhere",)),
    ("TG001", "claim_any", ("{a,nowhere}", "w1", 30, 100)),
    ("TG002", "complete_run", ("a", NOWHERE)),
    ("TG002", "extend_claim", ("a", NOWHERE, 5)),
    ("TG003", "cancel_task", ("a", NOWHERE)),
    ("TG003", "retry_task", ("a", NOWHERE)),
    ("TG003", "requeue_task", ("a", NOWHERE)),
    ("TG003", "get_task_result", ("a", NOWHERE)),
    ("TG003", "list_runs", ("a", NOWHERE)),
    ("TG005", "spawn_task", ("a", " ", {}, {})),
    ("TG005", "spawn_task", ("a", "n1", {}, {"delay": 5})),
    ("TG005", "spawn_task", ("a", "n1", {}, {"max_attempts": 0})),
    ("TG005", "spawn_tasks", ("a", [{"task_name": "n1"}, {"name": "n2"}])),
    ("TG005", "cancel_tasks", ("a", {})),
    ("TG005", "list_tasks", ("a", {}, None, 0)),
    ("TG005", "cleanup_tasks", ("a", -1)),
    ("TG005", "set_limit", ("b", "key", "k1", {"rate": 1})),
    ("22004", "pause_queue", ("a", None)),
)


class Moments:
    """Times of the engine as seconds, and back."""

    @staticmethod
    def seconds(found: Any) -> float | None:
        """Seconds since the beginning of a timestamp, or of its text."""
        if isinstance(found, str):
            found = datetime.fromisoformat(found)
        return None if found is None else round((found - BEGINNING).total_seconds(), 6)

    @staticmethod
    def text(seconds: float) -> str:
        """A moment as text."""
        return (BEGINNING + timedelta(seconds=seconds)).isoformat()


class Calls(RuleBasedStateMachine):
    """Calls both."""

    cluster: ClassVar[Cluster]
    template: ClassVar[str]
    calls: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(self.cluster, self.template)
        self.take(Core(NOW, QUEUES))
        self.engine.set_clock(START + NOW)
        self.engine.call("ticker")  # in a copy of a database the first one builds dispatch anew
        self.count = 0
        # the options that spawns have in this example: a few, which then meet each other
        self.theme: list[str] = []

    def teardown(self) -> None:
        """Drop the database."""
        self.engine.stack.close()

    def take(self, model: Core) -> None:
        """Go on with a model."""
        self.model = model
        model.fraction = self.fraction
        model.lease_first = self.lease_came_first

    def fraction(self, text: str) -> float:
        """What jitter goes by."""
        row = self.engine.connection.execute(
            "select (hashtextextended(%s, 0) & 1048575) / 1048576.0::float8 as part", [text]
        ).fetchone()
        assert row
        return float(row["part"])

    def lease_came_first(self, task: Task) -> bool:
        """Whether the engine has counted a failure."""
        (row,) = self.engine.call("get_task_result", task.queue, task.id)
        return bool(row["failures"] > task.failures)

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """Do something in both, and let time pass, or not."""
        self.data = data
        mode = self.draw("mode", MODES)
        if mode == "alone":
            self.do_something()
        else:
            self.do_together(mode)
        passed = self.draw("seconds", (0, 1, 1, 1, 4, 10, 31, -3))
        self.model.now += passed
        self.engine.set_clock(START + self.model.now)

    def do_together(self, mode: str) -> None:
        """Do several things in one transaction, of which none or not all may stay."""
        before = self.model.save()
        with self.engine.connection.transaction() as transaction:
            self.do_something()
            if mode == "partly taken back":
                middle = self.model.save()
                with self.engine.connection.transaction() as savepoint:
                    self.do_something()
                    raise psycopg.Rollback(savepoint)
                self.take(Core.load(middle))
                self.all_is_alike()
            self.do_something()
            if mode == "taken back":
                raise psycopg.Rollback(transaction)
        if mode == "taken back":
            self.take(Core.load(before))

    def do_something(self) -> None:
        """Do one thing that makes sense, as a rule."""
        states = [t.state for t in self.model.all_tasks()]
        running, live = "running" in states, sum(state in LIVE for state in states)
        possible = dict.fromkeys(
            ("complete", "complete_many", "fail", "nap", "release", "extend", "checkpoint",
             "await_event", "requeue", "requeue_many"), running,
        ) | dict.fromkeys(("cancel", "cancel_many"), live > 1) | {
            "retry": any(state in OVER for state in states), "replay": "failed" in states,
            "spawn": live < 5 and len(states) < 14, "spawn_many": live < 3,
        }  # fmt: skip
        action = self.draw(
            "action",
            [a for a, often in ACTIONS.items() if possible.get(a, True) for _ in range(often)],
        )
        getattr(self, action)()

    def draw(self, what: str, among: Any) -> Any:
        """Draw one of some values."""
        return self.data.draw(st.sampled_from(list(among)), what)

    def chance(self, what: str, of: int) -> bool:
        """Whether something happens, once in so many times."""
        return bool(self.draw(what, [False] * (of - 1) + [True]))

    def some_task(self, *states: str) -> Task:
        """One of the tasks in some states, or now and then any."""
        tasks = list(self.model.all_tasks())
        fit = [i for i, t in enumerate(tasks) if t.state in states]
        if not fit or self.chance("any task", 8):
            fit = list(range(len(tasks)))
        place: int = self.draw("task", fit)
        return tasks[place]

    def some_run(self) -> tuple[str, str, int]:
        """A run, most often one that is held: its queue, task and number."""
        task = self.some_task("running")
        numbers = (task.number,) * 6 + (max(task.number - 1, 1), task.number + 1)
        return task.queue, task.id, self.draw("run", numbers)

    def both(
        self, function: str, values: tuple[Any, ...], expected: Callable[[], Any]
    ) -> tuple[list[DictRow], Any]:
        """Call both: both refuse it for the same reason, or none does."""
        Calls.calls += 1
        before = self.model.save()
        code, rows, answer = None, [], None
        try:
            with self.engine.connection.transaction():
                rows = self.engine.call(function, *values)
        except psycopg.Error as error:
            code = error.sqlstate
        try:
            answer, wanted = expected(), None
        except Refused as refused:
            wanted = refused.code
            self.take(Core.load(before))
        assert code == wanted, f"{function}{values}: the engine says {code}, the model {wanted}"
        return rows, answer

    def of_run(
        self, function: str, values: tuple[Any, ...], then: Callable[[Task], Any]
    ) -> tuple[list[DictRow], Any]:
        """Call a function of a worker in both."""
        queue, task_id, number = self.some_run()
        ids: tuple[str, ...] = (run_id(task_id, number),)
        if function == "await_event":
            ids = (task_id, *ids)
        return self.both(
            function, (queue, *ids, *values),
            lambda: then(self.model.held(queue, task_id, number)),
        )  # fmt: skip

    # spawning

    def some_options(self, queue: str) -> dict[str, Any]:
        """Options of a spawn; times are seconds from now."""
        if not self.theme:
            self.theme = [self.draw("theme", OPTIONS) for _ in range(5)]
        known = [o for o in self.theme if queue == "b" or o != "priority"] or ["tags"]
        chosen = [self.draw("option", known) for _ in range(self.draw("options", range(4)))]
        options = {o: self.draw(o, OPTIONS[o]) for o in chosen}
        for at in ("available_at", "deadline_at"):
            if at in options:
                options[at] += self.model.now
        if "unique" in options:
            options.pop("idempotency_key", None)
        if "on_expired" in options:
            self.count += 1
            options["on_expired"] = {"queue_name": "a", "task_name": f"after-{self.count}"}
            options["on_expired"] |= {"params": 1} if self.chance("params", 2) else {}
            options |= {"tags": ["t1"]} | ({} if "deadline_at" in options else {"ttl_seconds": 15})
        return options

    def some_spawn(self, queue: str) -> tuple[str, Any, dict[str, Any]]:
        return (
            self.draw("name", NAMES),
            self.draw("params", (None, {"p": 1})),
            self.some_options(queue),
        )

    def given(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options as the engine takes them."""
        return {k: Moments.text(v) if k.endswith("_at") else v for k, v in options.items()}

    def check_spawned(self, rows: list[DictRow], answers: list[tuple[Task, int, bool]]) -> None:
        """Check what spawns gave; learn the ids of new tasks."""
        for row, (task, attempt, created) in zip(rows, answers, strict=True):
            task.id = task.id or str(row["task_id"])
            found = (str(row["task_id"]), str(row["run_id"]), row["attempt"], row["created"])
            assert found == (task.id, run_id(task.id, task.number), attempt, created)

    def spawn(self) -> None:
        queue = self.draw("queue", QUEUES)
        name, params, options = self.some_spawn(queue)
        rows, answer = self.both(
            "spawn_task", (queue, name, json.dumps(params), self.given(options)),
            lambda: self.model.spawn(queue, name, params, options),
        )  # fmt: skip
        self.check_spawned(rows, [answer] if answer else [])

    def spawn_many(self) -> None:
        queue = self.draw("queue", QUEUES)
        given = [self.some_spawn(queue) for _ in range(self.draw("count", range(4)))]
        tasks = [{"task_name": n, "params": p, "options": self.given(o)} for n, p, o in given]
        rows, answers = self.both(
            "spawn_tasks", (queue, tasks), lambda: self.model.spawn_many(queue, given)
        )
        self.check_spawned(rows, answers or [])

    # workers

    def prepare_claim(self, *queues: str) -> int:
        """Draw how many runs to claim.

        A claim sees to what has come due at first, when none has done so for 20 ms, or when it
        would come back with less than it wants.  That comes to the same if it wants much, but not
        in a queue that goes by rules, as "b" may.
        """
        qty: int = self.draw("how many", (1, 1, 2, 3, 100))
        at_first = qty < 100 or "b" in queues or self.chance("at first", 2)
        then = "0" if at_first else "extract(epoch from clock_timestamp()) * 1000"
        for queue in queues:
            self.engine.connection.execute(
                f"select setval('teguh.fired_{queue}', ({then})::bigint)".encode()
            )
        return qty

    def claim(self) -> None:
        queue = self.draw("queue", QUEUES)
        worker, timeout = self.draw("worker", ("w1", "w2")), self.draw("lease", (30, 8, 0))
        qty = self.prepare_claim(queue)
        rows, tasks = self.both(
            "claim_task", (queue, worker, timeout, qty),
            lambda: self.model.take(self.model.queue(queue), worker, timeout, qty),
        )  # fmt: skip
        self.check_claimed(rows, tasks)

    def claim_any(self) -> None:
        names = [self.draw("known", NAMES)] if self.chance("by name", 3) else None
        order = ["b"] if names else self.draw("order", (["a", "b"], ["b", "a"], ["b"]))
        qty = self.prepare_claim(*order)
        options = {"order": "strict"} | ({"task_names": names} if names else {})

        def expected() -> list[Task]:
            found: list[Task] = []
            for name in order:
                queue = self.model.queue(name)
                queue.ruled |= names is not None
                if len(found) < qty:
                    found += self.model.take(queue, "w1", 30, qty - len(found), names)
            return found

        marks = "{" + ",".join(order) + "}"
        rows, tasks = self.both("claim_any", (marks, "w1", 30, qty, options), expected)
        assert [row["queue_name"] for row in rows] == [t.queue for t in tasks]
        self.check_claimed(rows, tasks)

    def check_claimed(self, rows: list[DictRow], tasks: list[Task]) -> None:
        """Check what a claim gave."""
        self.adopt()
        found = [
            row | {"run_id": str(row["run_id"]), "task_id": str(row["task_id"]),
                   "lease_expires_at": Moments.seconds(row["lease_expires_at"])}
            for row in rows
        ]  # fmt: skip
        for row in found:
            row.pop("queue_name", None)
        assert found == [
            {
                "run_id": run_id(t.id, t.number),
                "task_id": t.id,
                "attempt": t.attempts,
                "task_name": t.name,
                "params": t.params,
                "retry_strategy": t.o["retry_strategy"],
                "max_attempts": t.o["max_attempts"],
                "headers": t.o.get("headers"),
                "wake_event": t.wake,
                "event_payload": t.payload,
                "failures": t.failures,
                "checkpoints": {n: c.state for n, c in t.checkpoints.items() if not c.timed_out},
                "lease_expires_at": t.lease,
                "timeout_seconds": t.o["timeout_seconds"],
            }
            for t in tasks
        ]

    def complete(self) -> None:
        result = self.draw("result", (None, 7, {"r": 1}))
        self.of_run(
            "complete_run", (json.dumps(result),), lambda task: self.model.complete(task, result)
        )

    def complete_many(self) -> None:
        queue = self.draw("queue", QUEUES)
        drawn = [self.some_run() for _ in range(self.draw("count", range(4)))]
        runs = {
            (task, number): self.draw("result", (None, 8))
            for where, task, number in drawn
            if where == queue
        }
        given = [{"run_id": run_id(t, n), "state": result} for (t, n), result in runs.items()]

        def expected() -> list[tuple[str, bool, str | None]]:
            answers: list[tuple[str, bool, str | None]] = []
            for (task, number), result in runs.items():
                try:
                    self.model.complete(self.model.held(queue, task, number), result)
                    answers.append((run_id(task, number), True, None))
                except Refused as refused:
                    answers.append((run_id(task, number), False, refused.code))
            return answers

        rows, answers = self.both("complete_runs", (queue, given), expected)
        assert [(str(row["run_id"]), row["applied"], row["error"]) for row in rows] == answers

    def fail(self) -> None:
        self.count += 1
        reason = {"name": f"Broken {self.count}"}
        at = self.draw("retry at", (None, None, None, -5, 15))
        moment = None if at is None else self.model.now + at
        self.of_run(
            "fail_run", (reason, moment and Moments.text(moment)),
            lambda task: self.model.end(task, reason, moment),
        )  # fmt: skip

    def nap(self) -> None:
        moment = self.model.now + self.draw("seconds", (-2, 0, 5, 40))
        self.of_run("schedule_run", (Moments.text(moment),), lambda t: self.model.nap(t, moment))

    def release(self) -> None:
        delay = self.draw("delay", (0, 0, 3, 12))
        self.of_run("release_run", (delay,), lambda task: self.model.release(task, delay))

    def extend(self) -> None:
        seconds = self.draw("seconds", (2, 15, 60))
        self.of_run("extend_claim", (seconds,), lambda task: self.model.extend(task, seconds))

    def checkpoint(self) -> None:
        queue, task_id, number = self.some_run()
        step, state = self.draw("step", STEP_NAMES), self.draw("state", (None, 1, {"s": 2}))
        longer = self.draw("longer", (None, None, 20))

        def expected() -> None:
            task = self.model.held(queue, task_id, number)
            self.model.mark(task, step, state)
            if longer is not None:
                self.model.extend(task, longer)

        values = (queue, task_id, step, json.dumps(state), run_id(task_id, number), longer)
        self.both("set_task_checkpoint_state", values, expected)

    def await_event(self) -> None:
        step, event = self.draw("step", STEP_NAMES), self.draw("event", EVENTS)
        timeout = self.draw("timeout", (None, None, 0, 0, 6, 20))
        rows, answer = self.of_run(
            "await_event", (step, event, timeout),
            lambda task: self.model.ask(task, step, event, timeout),
        )  # fmt: skip
        found = [(row["should_suspend"], row["payload"], row["timed_out"]) for row in rows]
        assert found == ([answer] if answer else [])

    def emit(self) -> None:
        queue, event = self.draw("queue", QUEUES), self.draw("event", EVENTS)
        payload = self.draw("payload", (None, {"e": 1}))
        values = (queue, event, json.dumps(payload))
        self.both("emit_event", values, lambda: self.model.emit(queue, event, payload))

    # from outside

    def cancel(self) -> None:
        task = self.some_task(*LIVE)
        self.both("cancel_task", (task.queue, task.id), lambda: self.model.cancel(task))

    def cancel_many(self) -> None:
        queue, wanted = self.draw("queue", QUEUES), self.draw("filter", FILTERS)
        limit = self.draw("limit", (1, 1000))

        def expected() -> int:
            found = [t for t in self.model.meant(queue, wanted) if t.live][:limit]
            for task in found:
                self.model.cancel(task)
            return len(found)

        rows, count = self.both("cancel_tasks", (queue, wanted, {"limit": limit}), expected)
        assert rows == [{"cancel_tasks": count}]

    def retry(self) -> None:
        task = self.some_task(*LOST)
        options: dict[str, Any] = {}
        if self.chance("anew", 4):
            options["spawn_new"] = True
        elif self.chance("from step", 4):
            options["from_step"] = self.draw("step", STEP_NAMES)
        if self.chance("attempts", 4):
            options["max_attempts"] = self.draw("max_attempts", (1, 3))
        rows, answer = self.both(
            "retry_task", (task.queue, task.id, options), lambda: self.model.retry(task, options)
        )
        self.check_spawned(rows, [answer] if answer else [])

    def requeue(self) -> None:
        task = self.some_task("running")
        rows, _ = self.both("requeue_task", (task.queue, task.id), lambda: self.model.requeue(task))
        if rows:
            assert str(rows[0]["requeue_task"]) == run_id(task.id, task.number)

    def requeue_many(self) -> None:
        queue, worker = self.draw("queue", QUEUES), self.draw("worker", ("w1", "w2"))

        def expected() -> int:
            found = [
                t for t in self.model.queue(queue).by_id()
                if t.state == "running" and t.worker == worker
            ]  # fmt: skip
            for task in found:
                self.model.requeue(task)
            return len(found)

        rows, count = self.both("requeue_tasks", (queue, {}, {"worker_id": worker}), expected)
        assert rows == [{"requeue_tasks": count}]

    def replay(self) -> None:
        queue, wanted = self.draw("queue", QUEUES), self.draw("filter", ({}, {"task_name": "n1"}))
        options = self.draw("options", (
            {}, {"limit": 1}, {"per_second": 0.5}, {"max_attempts": 3}, {"from_step": "s1"},
        ))  # fmt: skip
        rows, count = self.both(
            "replay_dead_letters", (queue, wanted, options),
            lambda: self.model.replay(queue, wanted, options),
        )  # fmt: skip
        assert rows == [{"replay_dead_letters": count}]

    def pause(self) -> None:
        queue = self.model.queue(self.draw("queue", QUEUES))
        until = self.draw("until", (None, self.model.now + 6, math.inf))
        only = None
        if queue.name == "b":
            only = self.draw("only", (None, {"task_name": "n1"}, {"key": "k1"}, {"key": "*"}))

        def expected() -> None:
            if only is None:
                queue.paused = -math.inf if until is None else until
                return
            scope = "task" if "task_name" in only else "key"
            queue.pauses.pop((scope, *only.values()), None)
            if until is not None:
                queue.pauses[(scope, *only.values())] = until
            self.model.rule(queue)

        if until is None:
            self.both("resume_queue", (queue.name, None, only), expected)
        else:
            moment = "infinity" if until == math.inf else Moments.text(until)
            self.both("pause_queue", (queue.name, moment, None, only), expected)

    def limit(self) -> None:
        scope = self.draw("scope", ("queue", "task", "key"))
        name = {"queue": None, "task": "n1", "key": self.draw("key", ("*", "k1"))}[scope]
        limit = self.draw("limit", LIMITS)
        queue = self.model.queue("b")

        def expected() -> None:
            queue.limits.pop((scope, name or ""), None)
            if limit:
                queue.limits[(scope, name or "")] = limit
            self.model.rule(queue)

        self.both("set_limit", ("b", scope, name, limit), expected)

    def policy(self) -> None:
        queue, policy = self.model.queue(self.draw("queue", QUEUES)), self.draw("policy", POLICIES)
        if queue.name == "a":  # tasks follow others into it, and always find room
            policy = {k: v for k, v in policy.items() if k not in ("max_pending", "on_full")}

        def expected() -> None:
            changed = {**queue.policy, **policy}
            queue.policy = {k: v for k, v in changed.items() if v is not None}

        self.both("set_queue_policy", (queue.name, policy), expected)

    def clean(self) -> None:
        queue, ttl = self.draw("queue", QUEUES), self.draw("ttl", (0, 20))
        function = self.draw("what", ("cleanup_tasks", "cleanup_events", "purge_dead_letters"))
        limit = self.draw("limit", (1, 1000))
        if function == "cleanup_events":
            limit = 1000
        expected = {
            "cleanup_tasks": lambda: self.model.clean(queue, ttl, limit, *OVER),
            "cleanup_events": lambda: self.model.sweep(queue, ttl),
            "purge_dead_letters": lambda: self.model.clean(queue, ttl, limit, "failed"),
        }[function]
        rows, count = self.both(function, (queue, ttl, limit), expected)
        assert rows == [{function: count}]

    def tick(self) -> None:
        # a step in the rotation puts off what is due until the next moment
        size = "" if self.model.is_due() else "8192"
        self.engine.connection.execute(
            "select set_config('teguh.segment_bytes', %s, false)", [size]
        )
        rows, count = self.both(
            "ticker", (), lambda: sum(map(self.model.collect, self.model.queues.values()))
        )
        assert rows[0]["ticker"] >= count

    def look(self) -> None:
        queue, wanted = self.draw("queue", QUEUES), self.draw("filter", FILTERS)
        rows, tasks = self.both(
            "list_tasks", (queue, wanted), lambda: self.model.meant(queue, wanted)
        )
        assert [str(row["task_id"]) for row in rows] == [t.id for t in tasks]

    def misuse(self) -> None:
        wanted, function, values = self.draw("misuse", MISUSES)

        def refuse() -> None:
            raise Refused(wanted)

        self.both(function, values, refuse)

    # what can be seen

    def adopt(self) -> list[DictRow]:
        """All tasks of the engine, whose ids the model learns if it does not know them."""
        rows = self.engine.connection.execute(
            "select q.queue_name, t.*, array("
            "  select to_jsonb(r) from teguh.list_runs(q.queue_name, l.task_id) as r"
            " ) as runs, array("
            "  select jsonb_build_array(c.checkpoint_name, c.state, c.status = 'timed_out')"
            "  from teguh.get_task_checkpoint_states(q.queue_name, l.task_id, null) as c"
            " ) as checkpoints"
            " from unnest(%s::text[]) as q(queue_name),"
            " teguh.list_tasks(q.queue_name, '{}', null, 10000) as l,"
            " teguh.get_task(q.queue_name, l.task_id) as t",
            [list(QUEUES)],
        ).fetchall()
        new = {t.name: t for t in self.model.all_tasks() if not t.id}
        known = {t.id for t in self.model.all_tasks()}
        for row in rows:
            if str(row["task_id"]) not in known and row["task_name"] in new:
                new[row["task_name"]].id = str(row["task_id"])
        return rows

    @invariant()
    def all_is_alike(self) -> None:
        found = {str(row["task_id"]): seen_task(row) for row in self.adopt()}
        tasks = {t.id: t for t in self.model.all_tasks()}
        assert set(found) == set(tasks)
        for task_id, task in tasks.items():
            wanted = self.shown_task(task)
            assert found[task_id] == wanted, {
                k: (found[task_id][k], wanted[k]) for k in wanted if found[task_id][k] != wanted[k]
            }
        rows = self.engine.connection.execute(
            "select s.*, teguh.next_due(s.queue_name) as next_due from teguh.queue_stats() as s"
        ).fetchall()
        for row in rows:
            queue = self.model.queue(row["queue_name"])
            dues = (Moments.seconds(row["next_due"]), self.model.next_due(queue.name))
            found_due, due = (d and max(round(d, 6), self.model.now) for d in dues)
            # what stands in the lanes may have a timer that is looked at once more
            again = any(t.laned and t.state == "sleeping" for t in queue.tasks)
            assert found_due == due or (again and found_due == self.model.now), (
                f"{queue.name} is next due at {found_due}, not {due}"
            )
            wanted_stats = {k: rounded(v) for k, v in self.model.stats(queue).items()}
            assert {k: rounded(row[k]) for k in wanted_stats} == wanted_stats, queue.name
            if not queue.ruled:
                ages = [rounded(age) for age in self.model.ages(queue)]
                age = rounded(row["oldest_pending_age_seconds"])
                assert age in ages, f"{queue.name}: {age} is none of {ages}"

    def shown_task(self, t: Task) -> dict[str, Any]:
        """A task as get_task() and its like should show it."""
        times = {
            "created_at": t.created, "available_at": t.due, "first_started_at": t.first_started,
            "finished_at": t.finished, "started_at": t.started, "deadline_at": t.deadline,
            "expires_at": t.expires, "lease_expires_at": t.lease if t.state == "running" else None,
        }  # fmt: skip
        return {k: rounded(v) for k, v in times.items()} | {
            "queue_name": t.queue,
            "run_id": run_id(t.id, t.number),
            "state": t.state,
            "attempts": t.attempts,
            "failures": t.failures,
            "completed_payload": t.result,
            "failure_reason": t.reason,
            "task_name": t.name,
            "params": t.params,
            "headers": t.o.get("headers"),
            "tags": t.o.get("tags"),
            "correlation_id": t.o.get("correlation_id"),
            "parent_task_id": t.o.get("parent_task_id"),
            "claimed_by": t.worker,
            "wake_event": t.wake,
            "event_payload": t.payload,
            "max_attempts": t.o["max_attempts"],
            "retry_strategy": t.o["retry_strategy"],
            "timeout_seconds": t.o["timeout_seconds"],
            "cancellation": t.o.get("cancellation"),
            "idempotency_key": t.o.get("idempotency_key"),
            "priority": t.o.get("priority", 0),
            "flow_key": t.o.get("key"),
            "runs": [[rounded(v) for v in r] for r in (*t.runs, self.model.shown_run(t, t.state))],
            "checkpoints": [
                [name, c.state, c.timed_out]
                for name, c in sorted(t.checkpoints.items(), key=lambda i: (i[1].at, i[0]))
            ],
        }


def run_id(task_id: str, number: int) -> str:
    """The id of a task's run: the number is in 20 bits that the task's id leaves zero."""
    digits = f"{number:05x}"
    return f"{task_id[:15]}{digits[:3]}{task_id[18:34]}{digits[3:]}"


def rounded(found: Any) -> Any:
    """A number of seconds to the microsecond; whatever else it is as it is."""
    return round(found, 6) if isinstance(found, float) else found


def named(reason: Any) -> Any:
    """A failure's reason; of the engine's own only the name."""
    if isinstance(reason, dict) and str(reason.get("name", "")).startswith("$"):
        return {"name": reason["name"]}
    return reason


def seen_task(row: DictRow) -> dict[str, Any]:
    """A task as the engine shows it."""
    seen = {
        k: Moments.seconds(v) if k.endswith("_at") else v
        for k, v in row.items()
        if k not in ("cancelled_at", "workflow_run_id", "on_expired", "attributes", "task_id")
    }
    seen["run_id"] = str(seen["run_id"])
    seen["parent_task_id"] = seen["parent_task_id"] and str(seen["parent_task_id"])
    seen["failure_reason"] = named(seen["failure_reason"])
    if seen["state"] != "running":
        seen["lease_expires_at"] = None
    seen["runs"] = [
        [
            r["number"], r["state"], r["attempt"], r["claimed_by"],
            Moments.seconds(r["started_at"]), Moments.seconds(r["finished_at"]),
            named(r["failure_reason"]),
        ]
        for r in row["runs"]
    ]  # fmt: skip
    return seen


@pytest.mark.timeout(0 if STEPS else 900)  # to find the fewest draws takes up to five minutes
def test_the_engine_does_what_the_model_of_its_core_says(cluster: Cluster) -> None:
    Calls.cluster = cluster
    with cluster.database("teguh") as Calls.template:
        with psycopg.connect(cluster.owner_dsn(Calls.template), autocommit=True) as connection:
            for queue in QUEUES:
                connection.execute("select teguh.create_queue(%s)", [queue])
        try:
            examples = SETTINGS.max_examples if STEPS else 50
            run_state_machine_as_test(Calls, settings=settings(SETTINGS, max_examples=examples))
        except Exception:
            print(f"noticed after {Calls.calls} calls")
            raise
