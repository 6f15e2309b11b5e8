"""What composition promises, in memory: tasks, what follows them, what they wait for.

Written from the documentation.  Tasks go by their names, which are all different; those that a
schedule spawns, by its name and the planned time.  Times are seconds since 1970.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

OVER = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Spec:
    """A task to spawn."""

    name: str
    queue: str
    params: dict[str, Any] = field(default_factory=dict)
    max_attempts: int | None = 1
    retry_after: int = 0
    delay: int = 0
    sequence: tuple[Spec, ...] = ()
    on_failure: Spec | None = None
    compensate: Spec | None = None
    workflow: str | None = None

    def follows(self) -> dict[str, Any]:
        """As it is given to be spawned later, or as a child."""
        options: dict[str, Any] = {
            "max_attempts": self.max_attempts,
            "retry_strategy": {"kind": "fixed", "base_seconds": self.retry_after},
            "delay_seconds": self.delay,
        }
        if self.on_failure:
            options["on_failure"] = self.on_failure.follows()
        if self.workflow:
            options["workflow_run_id"] = self.workflow
        return {
            "task_name": self.name,
            "queue_name": self.queue,
            "params": self.params,
            "options": options,
        }

    def options(self) -> dict[str, Any]:
        """As the options of spawn_task()."""
        options: dict[str, Any] = self.follows()["options"]
        if self.sequence:
            options["sequence"] = [
                one.follows() | ({"compensate": one.compensate.follows()} if one.compensate else {})
                for one in self.sequence
            ]
        if self.compensate:
            options["compensate"] = self.compensate.follows()
        return options


@dataclass
class Wait:
    """What a sleeping run, or a running one that has not asked again, waits for."""

    step: str
    event: str
    timeout: int | None
    mode: str = "all"
    fail_fast: bool = False
    cancel_rest: bool = False
    until: int | None = None


@dataclass
class Brood:
    """The children of a step."""

    names: list[str]
    cancel: bool


@dataclass
class Task:
    """A task as the model knows it."""

    spec: Spec
    due: int
    params: dict[str, Any]
    parent: str | None = None
    child: bool = False
    workflow: str | None = None
    state: str = "pending"
    attempts: int = 0
    failures: int = 0
    result: Any = None
    reason: Any = None
    sequence: tuple[Spec, ...] = ()
    on_failure: Spec | None = None
    compensate: Spec | None = None
    undo: tuple[Spec, ...] = ()
    wait: Wait | None = None
    broods: dict[str, Brood] = field(default_factory=dict)
    checkpoints: dict[str, Any] = field(default_factory=dict)
    mailbox: list[tuple[str, Any]] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def over(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.state in OVER

    @property
    def connected(self) -> bool:
        """Whether others depend on it, or it on others."""
        return bool(self.child or self.broods or self.undo or self.wait or self.mailbox)


@dataclass
class Schedule:
    """Spawns a task each so many seconds, counted from 1970 on."""

    name: str
    queue: str
    every: int
    catch_up: str
    next_at: int = 0
    paused: bool = False

    def after(self, moment: int) -> int:
        """The first time after a moment."""
        return moment - moment % self.every + self.every


class Model:
    """All tasks of all queues, and the clock."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.tasks: dict[str, Task] = {}
        self.schedules: dict[str, Schedule] = {}

    # the life of a task

    def spawn(self, spec: Spec, parent: Task | None = None, **known: Any) -> Task:
        """Spawn a task; one for another belongs to its workflow run."""
        assert spec.name not in self.tasks, f"{spec.name} is spawned twice"
        task = Task(
            spec,
            self.now + spec.delay,
            known.pop("params", spec.params),
            parent=parent.name if parent else None,
            workflow=spec.workflow or (parent.workflow if parent else None),
            **known,
        )
        task.state = "sleeping" if spec.delay else "pending"
        self.tasks[spec.name] = task
        return task

    def spawn_root(self, spec: Spec) -> None:
        """Spawn a task with all that is to follow it."""
        self.spawn(
            spec,
            sequence=spec.sequence,
            on_failure=spec.on_failure,
            compensate=spec.compensate,
        )

    def claimable(self, queue: str) -> list[Task]:
        """What a worker of a queue may get."""
        return [t for t in self.tasks.values() if t.spec.queue == queue and self.due(t)]

    def claim(self, task: Task) -> None:
        """Hand a task to a worker."""
        task.state = "running"
        task.attempts += 1

    def complete(self, task: Task, result: Any) -> None:
        """End a task with success; the next of its sequence follows."""
        task.state, task.result, task.reason = "completed", result, None
        if not task.sequence:
            return
        following, *rest = task.sequence
        undo = task.undo
        if task.compensate:
            about = {"$params": task.params, "$result": result}
            undo = (self.about(task.compensate, task, about), *undo)
        self.spawn(
            following,
            task,
            params=self.passed_on(task, following),
            sequence=tuple(rest),
            on_failure=task.on_failure,
            compensate=following.compensate,
            undo=undo,
        )

    def passed_on(self, task: Task, following: Spec) -> dict[str, Any]:
        """The params of what follows a completed task in its sequence."""
        if task.spec.name.startswith("undo"):
            return following.params
        result = task.result
        if result is None:
            result = {}
        elif not isinstance(result, dict):
            result = {task.name: result}
        return {**task.params, **result, **following.params}

    def about(self, spec: Spec, task: Task, what: dict[str, Any]) -> Spec:
        """A task that is told about another one."""
        params = {**spec.params, "$task_id": task.name, "$task_name": task.name, **what}
        return replace(spec, params=params)

    def fail(self, task: Task, reason: Any) -> None:
        """End a run with failure: another one follows, or the task has failed."""
        task.failures += 1
        task.reason = reason
        if task.spec.max_attempts is None or task.failures < task.spec.max_attempts:
            self.rest(task, task.spec.retry_after)
        else:
            self.end_badly(task, "failed")

    def cancel(self, task: Task) -> None:
        """Cancel a task unless it is over."""
        if not task.over:
            self.end_badly(task, "cancelled")

    def end_badly(self, task: Task, state: str) -> None:
        """End a task without success: undo what was done before it, and do what then follows."""
        task.state = state
        if task.undo:
            first, *rest = task.undo
            self.spawn(first, task, sequence=tuple(rest))
        if task.on_failure:
            about = {"$error": task.reason, "$state": state, "$params": task.params}
            self.spawn(self.about(task.on_failure, task, about), task)
        for brood in task.broods.values():
            if brood.cancel:
                self.cancel_all(brood)

    def repeat(self, task: Task, after: int) -> None:
        """Begin a task anew, with nothing of before but its messages and attributes."""
        task.failures, task.reason = 0, None
        task.wait, task.broods, task.checkpoints = None, {}, {}
        self.rest(task, after)

    def rest(self, task: Task, seconds: int) -> None:
        """Let go of a task until it is due."""
        task.due = self.now + seconds
        task.state = "sleeping" if seconds else "pending"

    # waiting

    def spawn_children(self, task: Task, step: str, specs: list[Spec], cancel: bool) -> list[bool]:
        """Spawn the children of a step, once; return which are new."""
        if step in task.broods:
            return [False for _ in task.broods[step].names]
        task.broods[step] = Brood([spec.name for spec in specs], cancel)
        for spec in specs:
            apart = spec.workflow not in (None, task.workflow)
            self.spawn(spec, task, child=not apart, on_failure=spec.on_failure)
        return [True for _ in specs]

    def cancel_all(self, brood: Brood) -> None:
        """Cancel the children of a step that are not over."""
        for name in brood.names:
            self.cancel(self.tasks[name])

    def settled(self, task: Task, wait: Wait) -> bool:
        """Whether what is waited for is there."""
        if wait.event != "$children":
            return any(f"$message:{topic}" == wait.event for topic, _ in task.mailbox)
        states = [self.tasks[name].state for name in task.broods[wait.step].names]
        over = sum(state in OVER for state in states)
        good = states.count("completed")
        want = {"all": len(states), "any": 1}.get(wait.mode) or int(wait.mode)
        return (
            over == len(states)
            or (wait.mode != "all" and good >= want)
            or (wait.fail_fast and len(states) - (over - good) < want)
        )

    def ask(self, task: Task, wait: Wait) -> tuple[bool, Any, bool]:
        """Wait, or learn what came of it: (should_suspend, payload, timed_out)."""
        if wait.step in task.checkpoints:
            return task.checkpoints[wait.step]  # type: ignore[no-any-return]
        if wait.until is None and wait.timeout is not None:
            wait.until = self.now + wait.timeout
        settled = self.settled(task, wait)
        if not settled and (wait.until is None or wait.until > self.now):
            task.wait, task.state = wait, "sleeping"
            return True, None, False
        task.wait = None
        answer = (False, self.taken(task, wait, settled), not settled)
        task.checkpoints[wait.step] = answer
        return answer

    def taken(self, task: Task, wait: Wait, settled: bool) -> Any:
        """What a wait that is over gives."""
        if wait.event == "$children":
            brood = task.broods[wait.step]
            if wait.cancel_rest:
                self.cancel_all(brood)
            return [self.told(self.tasks[name]) for name in brood.names] if settled else None
        if not settled:
            return None
        message = next(m for m in task.mailbox if f"$message:{m[0]}" == wait.event)
        task.mailbox.remove(message)
        return message[1]

    def told(self, child: Task) -> dict[str, Any]:
        """What a parent is told of a child."""
        return {
            "task_id": child.name,
            "queue_name": child.spec.queue,
            "state": child.state,
            "result": child.result,
            "failure_reason": child.reason,
        }

    # time

    def advance(self, seconds: int) -> None:
        """Let time pass: what has come due may be claimed, and schedules fire."""
        self.now += seconds
        for schedule in self.schedules.values():
            self.fire(schedule)

    def due(self, task: Task) -> bool:
        """Whether a task may be claimed; until it is, one that slept may be sleeping or pending."""
        if task.state not in ("pending", "sleeping"):
            return False
        if task.wait is None:
            return task.due <= self.now
        late = task.wait.until is not None and task.wait.until <= self.now
        return late or self.settled(task, task.wait)

    def fire(self, schedule: Schedule) -> None:
        """Spawn what a schedule has planned up to here."""
        if schedule.paused or schedule.next_at > self.now:
            return
        times = list(range(schedule.next_at, self.now + 1, schedule.every))
        if schedule.catch_up != "all":
            times = times[-1:]
        if schedule.catch_up == "skip" and times[0] < self.now - 60:
            times = []
        schedule.next_at = schedule.after(self.now)
        for time in times:
            self.spawn(Spec(f"{schedule.name}@{time}", schedule.queue))

    # workflow runs

    def counts(self, workflow: str) -> dict[str, int]:
        """How many tasks of a workflow run stand where."""
        states = [t.state for t in self.tasks.values() if t.workflow == workflow]
        return {one: states.count(one) for one in ("pending", "running", "sleeping", *OVER)}

    def status(self, workflow: str) -> str:
        """How a workflow run stands."""
        tasks = [t for t in self.tasks.values() if t.workflow == workflow]
        if not any(t.attempts or t.over for t in tasks):
            return "pending"
        left = {t.state for t in tasks if not t.over}
        if left:
            return "sleeping" if left == {"sleeping"} else "running"
        ends = {t.state for t in tasks if not t.child}
        return next((one for one in ("failed", "cancelled") if one in ends), "completed")
