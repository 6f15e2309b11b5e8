"""Whatever is called in whatever order, the engine does what the model of composition says.

Chance calls both and compares all that can be seen after each call: the same chance each time,
unless TEGUH_MODEL_STEPS says how many calls each of more examples is to make (`make test-model`).
A test that fails is shown with the fewest draws that still make it fail.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.model.engine import SETTINGS, START, STEPS, Engine
from tests.model.model import OVER, Model, Schedule, Spec, Task, Wait

if TYPE_CHECKING:
    from psycopg.rows import DictRow

    from tests.cluster import Cluster

QUEUES = ("a", "b")
REASON = {"name": "Broken", "message": "it broke"}

# What may be done, and how often.  One rule draws from these: hypothesis would switch rules off.
ACTIONS = {
    "spawn": 4,
    "claim": 8,
    "complete": 8,
    "fail": 4,
    "cancel": 1,
    "repeat": 1,
    "spawn_children": 5,
    "await_children": 6,
    "receive": 3,
    "send": 2,
    "set_attributes": 1,
    "create_schedule": 1,
    "pause_or_resume": 1,
    "wait": 2,
}
OF_WORKERS = {"complete", "fail", "repeat", "spawn_children", "receive", "set_attributes"}
DELAYS = (0, 0, 0, 0, 5, 90)
TIMEOUTS = (None, None, None, None, 0, 3, 60)
RESULTS = (None, 7, {"r": 1}, {"r": 2, "s": [3]})
TOPICS = ("x", "x", "x", "y")
STEPS_OF_RUNS = ("one", "two")


class Composed(Engine):
    """The engine; tasks go by the names that the model has for them."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self.names: dict[str, str] = {}
        self.runs: dict[str, Any] = {}

    def tick(self, now: int) -> None:
        """Set the clock, and do what has come due."""
        self.set_clock(now)
        for _ in range(20):
            if self.call("ticker")[0]["ticker"] == 0:
                return
        raise AssertionError("the ticker has always something to do")

    def tasks(self) -> list[DictRow]:
        """All tasks of all queues."""
        rows = self.connection.execute(
            "select q.queue_name, t.*, array("
            "  select jsonb_build_array(m.topic, m.payload)"
            "  from teguh.list_messages(q.queue_name, l.task_id) as m"
            " ) as mailbox"
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

    cluster: ClassVar[Cluster]

    def __init__(self) -> None:
        super().__init__()
        self.engine = Composed(self.cluster)
        self.model = Model(START)
        self.count = 0
        self.engine.tick(START)
        for queue in QUEUES:
            self.engine.call("create_queue", queue)
        self.workflows = {
            name: str(self.engine.call("create_workflow_run", name)[0]["workflow_run_id"])
            for name in ("one", "two")
        }

    def teardown(self) -> None:
        """Drop the database."""
        self.engine.stack.close()

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """Do something in both, and let a second pass."""
        self.data = data
        tasks = self.model.tasks.values()
        running = any(t.state == "running" for t in tasks)
        possible = {
            "spawn": sum(not t.over for t in tasks) < 4,
            "cancel": bool(tasks),
            "send": bool(tasks),
            "claim": any(self.model.claimable(queue) for queue in QUEUES),
            "await_children": any(t.broods for t in tasks if t.state == "running"),
            "create_schedule": len(self.model.schedules) < 2,
            "pause_or_resume": bool(self.model.schedules),
        } | dict.fromkeys(OF_WORKERS, running)
        action = self.draw(
            "action",
            [a for a, often in ACTIONS.items() if possible.get(a, True) for _ in range(often)],
        )
        getattr(self, action)()
        self.pass_time()

    def draw(self, what: str, among: Any) -> Any:
        """Draw one of some values."""
        return self.data.draw(st.sampled_from(list(among)), what)

    def draw_task(self, *states: str) -> Task:
        """Draw one of the tasks that are in some state, most often one that others depend on."""
        tasks = [t for t in self.model.tasks.values() if t.state in states]
        names = [t.name for t in tasks for _ in range(5 if t.connected else 1)]
        return self.model.tasks[self.draw("task", names or self.model.tasks)]

    def draw_spec(self, kind: str) -> Spec:
        """Draw a task to spawn, with a name that no other has."""
        self.count += 1
        name = f"{kind}-{self.count:04}"
        return Spec(
            name,
            self.draw("queue", QUEUES),
            self.draw("params", ({}, {"r": name}, {name: 1})),
            max_attempts=self.draw("max_attempts", (1, 1, 1, 2, None)),
            retry_after=self.draw("retry_after", DELAYS),
            delay=self.draw("delay", DELAYS),
        )

    def maybe(self, kind: str) -> Spec | None:
        """Draw a task to spawn, or none."""
        return self.draw_spec(kind) if self.draw(kind, (False, True)) else None

    def pass_time(self, seconds: int = 1) -> None:
        """Let time pass in both."""
        self.model.advance(seconds)
        self.engine.tick(self.model.now)

    def call(self, function: str, task: Task, *values: Any) -> list[DictRow]:
        """Call a function of a worker for a task that it has."""
        return self.engine.call(function, task.spec.queue, self.engine.runs[task.name], *values)

    def spawn(self) -> None:
        spec = replace(
            self.draw_spec("root"),
            sequence=tuple(
                replace(self.draw_spec("next"), compensate=self.maybe("undo"))
                for _ in range(self.draw("length", range(4)))
            ),
            on_failure=self.maybe("amend"),
            compensate=self.maybe("undo"),
            workflow=self.workflows.get(self.draw("workflow", ("none", "one", "two"))),
        )
        self.engine.call("spawn_task", spec.queue, spec.name, spec.params, spec.options())
        self.model.spawn_root(spec)

    def claim(self) -> None:
        # most often of a queue that has something
        full = [queue for queue in QUEUES if self.model.claimable(queue)]
        queue = self.draw("queue", (*QUEUES, *full * 4))
        for _ in range(self.draw("times", range(1, 4))):
            rows = self.engine.call("claim_task", queue, "w", 0)
            may = {task.name: task for task in self.model.claimable(queue)}
            if not rows:
                assert not may, "something may be claimed"
                return
            (row,) = rows
            task = may[self.engine.names[str(row["task_id"])]]
            self.model.claim(task)
            assert row["attempt"] == task.attempts
            assert row["failures"] == task.failures
            assert self.engine.named(row["params"]) == task.params
            assert row["wake_event"] == (task.wait.event if task.wait else None)
            assert self.engine.named(row["checkpoints"]) == {
                step: payload
                for step, (_, payload, timed_out) in task.checkpoints.items()
                if not timed_out
            }
            if task.wait:
                self.ask(task, task.wait)
            self.pass_time()
            self.all_tasks_are_alike()

    def complete(self) -> None:
        task, result = self.draw_task("running"), self.draw("result", RESULTS)
        self.call("complete_run", task, json.dumps(result))
        self.model.complete(task, result)

    def fail(self) -> None:
        task = self.draw_task("running")
        self.call("fail_run", task, REASON)
        self.model.fail(task, REASON)

    def cancel(self) -> None:
        task = self.draw_task("pending", "running", "sleeping")
        self.engine.call("cancel_task", task.spec.queue, self.engine.id_of(task))
        self.model.cancel(task)

    def repeat(self) -> None:
        task, after = self.draw_task("running"), self.draw("after", DELAYS)
        self.call("repeat_run", task, after)
        self.model.repeat(task, after)

    def spawn_children(self) -> None:
        task, step = self.draw_task("running"), self.draw("step", STEPS_OF_RUNS)
        cancel = self.draw("on_parent_end", ("leave", "cancel"))
        specs = [
            replace(
                self.draw_spec("child"),
                on_failure=self.maybe("amend"),
                workflow=self.workflows.get(self.draw("workflow", ("parent's", "parent's", "two"))),
            )
            for _ in range(self.draw("count", range(1, 4)))
        ]
        given = [spec.follows() for spec in specs]
        rows = self.call("spawn_children", task, step, given, {"on_parent_end": cancel})
        new = self.model.spawn_children(task, step, specs, cancel == "cancel")
        assert [row["created"] for row in rows] == new
        if self.draw("await them", (True, False)):
            self.pass_time()
            self.all_tasks_are_alike()
            self.await_step(task, step)

    def await_children(self) -> None:
        parents = [t for t in self.model.tasks.values() if t.state == "running" and t.broods]
        task = self.model.tasks[self.draw("task", [t.name for t in parents])]
        self.await_step(task, self.draw("step", task.broods))

    def await_step(self, task: Task, step: str) -> None:
        """Wait for the children of a step, in some way."""
        mode = self.draw("mode", ("all", "any", "1", "2"))
        if mode == "2" and len(task.broods[step].names) < 2:
            mode = "all"
        wait = Wait(step, "$children", self.draw("timeout", TIMEOUTS), mode)
        wait.fail_fast = self.draw("fail_fast", (False, True))
        wait.cancel_rest = self.draw("cancel_rest", (False, True))
        self.ask(task, wait)

    def receive(self) -> None:
        task, step = self.draw_task("running"), self.draw("step", STEPS_OF_RUNS)
        event = f"$message:{self.draw('topic', TOPICS)}"
        self.ask(task, Wait(f"receive {step}", event, self.draw("timeout", TIMEOUTS)))

    def ask(self, task: Task, wait: Wait) -> None:
        """Wait in both."""
        ids = (task.spec.queue, self.engine.id_of(task), self.engine.runs[task.name])
        if wait.event == "$children":
            options = {
                "on_failure": "fail_fast" if wait.fail_fast else "collect",
                "cancel_rest": wait.cancel_rest,
            }
            (row,) = self.engine.call(
                "await_children", *ids, wait.step, wait.mode, wait.timeout, options
            )
        else:
            topic = wait.event.removeprefix("$message:")
            (row,) = self.engine.call("receive_message", *ids, wait.step, topic, wait.timeout)
        found = (row["should_suspend"], self.engine.named(row["payload"]), row["timed_out"])
        assert found == self.model.ask(task, wait)

    def send(self) -> None:
        task = self.draw_task("pending", "running", "sleeping")
        for _ in range(self.draw("times", range(1, 4))):
            topic = self.draw("topic", TOPICS)
            self.count += 1
            message = self.draw("message", (None, self.count, {"n": self.count}))
            values = (task.spec.queue, self.engine.id_of(task), topic, json.dumps(message))
            if task.over:
                with pytest.raises(psycopg.Error) as raised:
                    self.engine.call("send_message", *values)
                assert raised.value.sqlstate == "TG004"
            else:
                self.engine.call("send_message", *values)
                task.mailbox.append((topic, message))

    def set_attributes(self) -> None:
        task = self.draw_task("running")
        given = {self.draw("attribute", ("c", "d")): self.draw("value", (None, 1, "v", True))}
        self.call("set_attributes", task, given)
        task.attributes = {
            name: value for name, value in (task.attributes | given).items() if value is not None
        }

    def create_schedule(self) -> None:
        name = f"plan-{len(self.model.schedules)}"
        schedule = Schedule(
            name,
            self.draw("queue", QUEUES),
            self.draw("every", (50, 120)),
            self.draw("catch_up", ("one", "all", "skip")),
        )
        times = f"every {schedule.every} seconds"
        options = {
            "catch_up": schedule.catch_up,
            "params": {},
            "task_options": {"max_attempts": 1},
        }
        self.engine.call("create_schedule", name, schedule.queue, name, times, options)
        schedule.next_at = schedule.after(self.model.now)
        self.model.schedules[name] = schedule

    def pause_or_resume(self) -> None:
        schedule = self.model.schedules[self.draw("schedule", self.model.schedules)]
        if self.draw("to do", ("pause", "resume")) == "pause":
            self.engine.call("pause_schedule", schedule.name)
            schedule.paused = True
        else:
            self.engine.call("resume_schedule", schedule.name)
            if schedule.paused:
                schedule.next_at = schedule.after(self.model.now)
            schedule.paused = False

    def wait(self) -> None:
        self.pass_time(self.draw("seconds", (4, 30, 61, 200)))

    @invariant()
    def all_tasks_are_alike(self) -> None:
        rows = self.engine.tasks()
        names = [self.engine.names[str(row["task_id"])] for row in rows]
        assert sorted(names) == sorted(self.model.tasks), "each is spawned once"
        for name, row in zip(names, rows, strict=True):
            task = self.model.tasks[name]
            if task.state == "sleeping" and row["state"] == "pending" and self.model.due(task):
                task.state = "pending"  # either will do
            assert {
                "queue": row["queue_name"],
                "state": row["state"],
                "attempts": row["attempts"],
                "failures": row["failures"],
                "result": row["completed_payload"],
                "reason": row["failure_reason"],
                "params": self.engine.named(row["params"]),
                "parent": self.engine.names.get(str(row["parent_task_id"])),
                "workflow": row["workflow_run_id"] and str(row["workflow_run_id"]),
                "attributes": row["attributes"] or {},
                "mailbox": [tuple(message) for message in row["mailbox"]],
            } == {
                "queue": task.spec.queue,
                "state": task.state,
                "attempts": task.attempts,
                "failures": task.failures,
                "result": task.result,
                "reason": task.reason,
                "params": task.params,
                "parent": task.parent,
                "workflow": task.workflow,
                "attributes": task.attributes,
                "mailbox": task.mailbox,
            }, name

    @invariant()
    def workflow_runs_are_alike(self) -> None:
        for workflow in self.workflows.values():
            (row,) = self.engine.call("get_workflow_run", workflow)
            assert row["status"] == self.model.status(workflow)
            counts = {one: row[one] for one in ("pending", "running", "sleeping", *OVER)}
            assert counts == self.model.counts(workflow)

    @invariant()
    def schedules_are_alike(self) -> None:
        rows = self.engine.call("list_schedules")
        assert {
            row["schedule_name"]: row["next_fire_at"] and int(row["next_fire_at"].timestamp())
            for row in rows
        } == {s.name: None if s.paused else s.next_at for s in self.model.schedules.values()}

    @invariant()
    def attributes_find_their_tasks(self) -> None:
        for queue in QUEUES:
            for wanted in ({"c": 1}, {"d": "v"}, {"c": True, "d": 1}):
                rows = self.engine.call("list_tasks", queue, {"attributes": wanted})
                assert {row["task_name"] for row in rows} == {
                    task.spec.name.split("@")[0]
                    for task in self.model.tasks.values()
                    if task.spec.queue == queue and alike(wanted, task.attributes)
                }


def alike(wanted: dict[str, Any], attributes: dict[str, Any]) -> bool:
    """Whether attributes have all that is wanted; to JSON, true is not 1."""
    return all(json.dumps(attributes.get(k)) == json.dumps(v) for k, v in wanted.items())


@pytest.mark.timeout(0 if STEPS else 900)  # to find the fewest draws takes up to five minutes
def test_the_engine_does_what_the_model_says(cluster: Cluster) -> None:
    Composition.cluster = cluster
    run_state_machine_as_test(Composition, settings=SETTINGS)
