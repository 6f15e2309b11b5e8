"""Whatever is called in whatever order, the engine does what the model of composition says.

Chance calls both and compares all that can be seen after each call.  `make test-model` lets it
go on for longer: TEGUH_MODEL_STEPS says how many calls each of the examples makes.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import DictRow, dict_row

from tests.model.model import Model, Spec, Task

if TYPE_CHECKING:
    from tests.cluster import Cluster

STEPS = int(os.environ.get("TEGUH_MODEL_STEPS") or 0)
SETTINGS = settings(
    derandomize=not STEPS,
    max_examples=200 if STEPS else 30,
    stateful_step_count=STEPS or 30,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

START = int(datetime(2031, 5, 1, 12, tzinfo=UTC).timestamp())
QUEUES = ("a", "b")
REASON = {"name": "Broken", "message": "it broke"}

queues = st.sampled_from(QUEUES)
# which of those that there are
picks = st.integers(0, 99)
delays = st.sampled_from((0, 0, 0, 5, 90))
results = st.sampled_from((None, 7, {"r": 1}, {"r": 2, "s": [3]}))
attempts = st.sampled_from((1, 1, 2, None))


class Engine:
    """The engine, in a database of its own; tasks go by the names that the model has for them."""

    def __init__(self, cluster: Cluster) -> None:
        self.stack = ExitStack()
        dsn = cluster.owner_dsn(self.stack.enter_context(cluster.database("teguh")))
        self.connection = self.stack.enter_context(
            psycopg.connect(dsn, autocommit=True, row_factory=dict_row)
        )
        self.names: dict[str, str] = {}
        self.runs: dict[str, Any] = {}

    def call(self, function: str, *values: Any) -> list[DictRow]:
        """Call a function; return its rows, with names instead of ids."""
        marks = ", ".join("%s::jsonb" if isinstance(v, dict | list) else "%s" for v in values)
        given = [json.dumps(v) if isinstance(v, dict | list) else v for v in values]
        query = f"select * from teguh.{function}({marks})"
        return self.connection.execute(query.encode(), given).fetchall()

    def tick(self, now: int) -> None:
        """Set the clock, and do what has come due."""
        moment = datetime.fromtimestamp(now, UTC).isoformat()
        self.connection.execute("select set_config('teguh.fake_now', %s, false)", [moment])
        for _ in range(20):
            if self.call("ticker")[0]["ticker"] == 0:
                return
        raise AssertionError("the ticker has always something to do")

    def tasks(self) -> list[DictRow]:
        """All tasks of all queues."""
        rows = self.connection.execute(
            "select q.queue_name, t.*"
            " from unnest(%s::text[]) as q(queue_name),"
            " teguh.list_tasks(q.queue_name, '{}', null, 10000) as l,"
            " teguh.get_task(q.queue_name, l.task_id) as t",
            [list(QUEUES)],
        ).fetchall()
        for row in rows:
            name = row["task_name"]
            if row["headers"] and "planned_at" in row["headers"]:
                name += f"@{int(datetime.fromisoformat(row['headers']['planned_at']).timestamp())}"
            self.names[str(row["task_id"])] = name
            self.runs[name] = row["run_id"]
        return rows

    def id_of(self, task: Task) -> str:
        """The id of a task."""
        return next(one for one, name in self.names.items() if name == task.name)

    def named(self, found: Any) -> Any:
        """What was found, with names instead of ids."""
        text = json.dumps(found)
        for one, name in self.names.items():
            text = text.replace(one, name)
        return json.loads(text)


class Composition(RuleBasedStateMachine):
    """Calls both."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.engine = Engine(cluster)
        self.model = Model(START)
        self.count = 0
        self.engine.tick(START)
        for queue in QUEUES:
            self.engine.call("create_queue", queue)

    def teardown(self) -> None:
        """Drop the database."""
        self.engine.stack.close()

    def pass_time(self, seconds: int = 1) -> None:
        """Let time pass in both."""
        self.model.advance(seconds)
        self.engine.tick(self.model.now)

    def running(self) -> list[Task]:
        """What workers have."""
        return [t for t in self.model.tasks.values() if t.state == "running"]

    def pick(self, which: int) -> Task:
        """One of the running tasks."""
        running = self.running()
        return running[which % len(running)]

    def name(self, kind: str) -> str:
        """A name that no other task has."""
        self.count += 1
        return f"{kind}-{self.count:04}"

    def draw(self, data: st.DataObject, kind: str) -> Spec:
        """A task to spawn."""
        name = self.name(kind)
        return Spec(
            name,
            data.draw(queues),
            data.draw(st.sampled_from(({}, {"r": name}, {name: 1}))),
            max_attempts=data.draw(attempts),
            retry_after=data.draw(delays),
            delay=data.draw(delays),
        )

    def maybe(self, data: st.DataObject, kind: str) -> Spec | None:
        """A task to spawn, or none."""
        return self.draw(data, kind) if data.draw(st.booleans()) else None

    @rule(data=st.data(), length=st.integers(0, 3))
    def spawn(self, data: st.DataObject, length: int) -> None:
        sequence = []
        for _ in range(length):
            one = self.draw(data, "next")
            sequence.append(Spec(**{**vars(one), "compensate": self.maybe(data, "undo")}))
        spec = Spec(
            **{
                **vars(self.draw(data, "root")),
                "sequence": tuple(sequence),
                "on_failure": self.maybe(data, "amend"),
                "compensate": self.maybe(data, "undo"),
            }
        )
        self.engine.call("spawn_task", spec.queue, spec.name, spec.params, spec.options())
        self.model.spawn_root(spec)
        self.pass_time()

    @rule(queue=queues, count=st.integers(1, 3))
    def claim(self, queue: str, count: int) -> None:
        for _ in range(count):
            rows = self.engine.call("claim_task", queue, "w", 0)
            may = {task.name: task for task in self.model.claimable(queue)}
            if not rows:
                assert not may
                return
            (row,) = rows
            task = may[self.engine.names[str(row["task_id"])]]
            self.model.claim(task)
            assert row["attempt"] == task.attempts
            assert row["failures"] == task.failures
            assert self.engine.named(row["params"]) == task.params
            assert row["wake_event"] == (task.wait.event if task.wait else None)
            self.pass_time()

    @precondition(lambda self: self.running())
    @rule(which=picks, result=results)
    def complete(self, which: int, result: Any) -> None:
        task = self.pick(which)
        self.engine.call(
            "complete_run", task.spec.queue, self.engine.runs[task.name], json.dumps(result)
        )
        self.model.complete(task, result)
        self.pass_time()

    @precondition(lambda self: self.running())
    @rule(which=picks)
    def fail(self, which: int) -> None:
        task = self.pick(which)
        self.engine.call("fail_run", task.spec.queue, self.engine.runs[task.name], REASON)
        self.model.fail(task, REASON)
        self.pass_time()

    @precondition(lambda self: self.model.tasks)
    @rule(which=picks)
    def cancel(self, which: int) -> None:
        task = list(self.model.tasks.values())[which % len(self.model.tasks)]
        self.engine.call("cancel_task", task.spec.queue, self.engine.id_of(task))
        self.model.cancel(task)
        self.pass_time()

    @rule(seconds=st.sampled_from((4, 30, 61, 200)))
    def wait(self, seconds: int) -> None:
        self.pass_time(seconds)

    def state_of(self, row: DictRow) -> str:
        """The state of a task; the model adopts it where either will do."""
        task = self.model.tasks.get(self.engine.names[str(row["task_id"])])
        state: str = row["state"]
        if task and task.state == "sleeping" and state == "pending" and self.model.due(task):
            task.state = state
        return state

    @invariant()
    def all_tasks_are_alike(self) -> None:
        rows = self.engine.tasks()
        found = {
            self.engine.names[str(row["task_id"])]: {
                "queue": row["queue_name"],
                "state": self.state_of(row),
                "attempts": row["attempts"],
                "failures": row["failures"],
                "result": row["completed_payload"],
                "reason": row["failure_reason"],
                "params": self.engine.named(row["params"]),
                "parent": self.engine.names.get(str(row["parent_task_id"])),
            }
            for row in rows
        }
        assert len(found) == len(rows), "a task was spawned twice"
        assert found == {
            name: {
                "queue": task.spec.queue,
                "state": task.state,
                "attempts": task.attempts,
                "failures": task.failures,
                "result": task.result,
                "reason": task.reason,
                "params": task.params,
                "parent": task.parent,
            }
            for name, task in self.model.tasks.items()
        }


def test_the_engine_does_what_the_model_says(cluster: Cluster) -> None:
    run_state_machine_as_test(lambda: Composition(cluster), settings=SETTINGS)
