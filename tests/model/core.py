"""What the core of the engine promises, in memory: tasks and their runs, from spawn to cleanup.

Written from the documentation.  Times are seconds from some moment on.  A task has the id that
the engine gave it: what is queued together is queued in the order of ids.  A call that the engine
refuses raises Refused with the SQLSTATE, and may leave anything behind: who calls takes it back.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LIVE = ("pending", "running", "sleeping")
OVER = ("completed", "failed", "cancelled", "expired")
LOST = ("failed", "cancelled", "expired")
TICK = 1e-6


class Refused(Exception):
    """What the engine raises."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def require(holds: bool, code: str) -> None:
    """Refuse a call unless something holds."""
    if not holds:
        raise Refused(code)


def least(*moments: float | None) -> float | None:
    """The first of some moments, of which some may be none."""
    return min((m for m in moments if m is not None), default=None)


def after(moment: float, seconds: float | None) -> float | None:
    """A moment some seconds later; none if it is not said how many."""
    return None if seconds is None else moment + seconds


@dataclass
class Wait:
    """What a task waits for, or has waited for in vain until a moment."""

    step: str
    event: str
    until: float | None
    asleep: bool = True


@dataclass
class Checkpoint:
    """What a step has given, or that its wait timed out."""

    state: Any
    timed_out: bool
    at: float


@dataclass
class Event:
    """An event that was awaited or emitted."""

    created: float
    emitted: float | None = None
    payload: Any = None


@dataclass(eq=False)
class Task:
    """A task; `o` is what it was asked for."""

    queue: str
    name: str
    params: Any
    o: dict[str, Any]
    created: float
    due: float | None
    deadline: float | None
    expires: float | None
    id: str = ""
    state: str = "pending"
    number: int = 1
    turn: int = 1
    attempts: int = 0
    claims: int = 0  # of the current run
    failures: int = 0
    worker: str | None = None
    first_started: float | None = None
    started: float | None = None
    lease: float | None = None
    finished: float | None = None
    result: Any = None
    reason: Any = None
    own_reason: Any = None  # of the current run
    wake: str | None = None
    payload: Any = None
    wait: Wait | None = None
    timer: float | None = None
    alarms: list[float] = field(default_factory=list)  # when the deadline is looked at
    laned: bool = False
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    runs: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """Whether it is not over."""
        return self.state in LIVE

    @property
    def standing(self) -> str:
        """As what statistics count it.  A run that was handed back counts by what woke it."""
        if self.state != "sleeping":
            return self.state
        return "delayed" if not self.attempts else "waiting" if self.wake else "sleeping"

    def has(self, turn: int) -> bool:
        """Whether it is still to be had by what was queued for a turn."""
        return self.turn == turn and self.state in ("pending", "sleeping")

    def under(self, scope: str) -> str | None:
        """By what it is limited."""
        key: str | None = self.o.get("key")
        return {"queue": "", "task": self.name, "key": key}[scope]

    def in_time(self, now: float) -> bool:
        """Whether it may still be claimed."""
        return self.deadline is None or self.deadline > now


@dataclass
class Place:
    """A task's place in the lanes.  An open one takes up room of its key until it is claimed."""

    rank: float
    task: Task
    turn: int
    name: str
    key: str | None
    open: bool


@dataclass
class Queue:
    """A queue: its tasks, in the order of which what is ready was queued, and its lanes."""

    name: str
    policy: dict[str, Any] = field(default_factory=dict)
    paused: float = -math.inf
    ruled: bool = False
    tasks: list[Task] = field(default_factory=list)
    ready: list[tuple[Task, int]] = field(default_factory=list)
    lanes: list[Place] = field(default_factory=list)
    events: dict[str, Event] = field(default_factory=dict)
    unique: dict[str, Task] = field(default_factory=dict)
    limits: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    pauses: dict[tuple[str, str], float] = field(default_factory=dict)
    starts: list[tuple[str, str, float]] = field(default_factory=list)

    def by_id(self) -> list[Task]:
        """Its tasks in the order of their ids."""
        return sorted(self.tasks, key=lambda t: t.id)

    def line(self) -> list[Task]:
        """What stands in line outside of the lanes, the first first."""
        return list(dict.fromkeys(t for t, n in self.ready if t.has(n) and not t.laned))


class Core:
    """All queues, and the clock."""

    def __init__(self, now: float, queues: Iterable[str]) -> None:
        self.now = now
        self.queues = {name: Queue(name) for name in queues}
        # Where the contract leaves it open: whether the end of the lease came before the deadline.
        self.lease_first: Callable[[Task], bool] = lambda _: False
        # A number from 0 up to 1 that is always the same for the same text.
        self.fraction: Callable[[str], float] = lambda _: 0

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("lease_first", "fraction")}

    def save(self) -> bytes:
        """All that it knows, for load()."""
        return pickle.dumps(self)

    @staticmethod
    def load(saved: bytes) -> Core:
        """A model as it was."""
        model = pickle.loads(saved)  # noqa: S301 - it is our own
        assert isinstance(model, Core)
        return model

    def queue(self, name: str) -> Queue:
        """A queue."""
        require(name in self.queues, "TG001")
        return self.queues[name]

    def held(self, queue: str, task_id: str, number: int) -> Task:
        """The task of a run that is held."""
        task = next((t for t in self.queue(queue).tasks if t.id == task_id), None)
        if task is None or not 1 <= number <= task.number:
            raise Refused("TG002")
        if number == task.number and task.state == "running":
            return task
        require(task.state != "cancelled", "AB001")
        require(number == task.number and task.state not in OVER, "AB002")
        raise Refused("TG004")

    # spawning

    def made(self, queue: Queue, name: str, params: Any, options: dict[str, Any]) -> Task:
        """A task as it is asked for."""
        policy, o = queue.policy, dict(options)
        o["retry_strategy"] = o.get("retry_strategy") or policy.get("default_retry_strategy")
        o.setdefault("max_attempts", policy.get("default_max_attempts"))
        o.setdefault("timeout_seconds", policy.get("default_timeout"))
        require(not {"available_at", "delay_seconds"} <= set(o), "TG005")
        require(not {"ttl_seconds", "deadline_at"} <= set(o), "TG005")
        if not {"ttl_seconds", "deadline_at"} & set(o):
            o["ttl_seconds"] = policy.get("default_ttl")
        due = o.get("available_at", after(self.now, o.get("delay_seconds")))
        start = self.now if due is None else max(due, self.now)
        expires = o.get("deadline_at") or after(start, o.get("ttl_seconds"))
        deadline = least(expires, after(start, (o.get("cancellation") or {}).get("max_delay")))
        due = self.now if due is None else due
        return Task(queue.name, name, params, o, self.now, due, deadline, expires)

    def put(self, queue: Queue, task: Task) -> Task:
        """Put a task into its queue."""
        queue.tasks.append(task)
        assert task.due is not None
        self.enqueue(task, task.due)
        self.limit(task, task.deadline)
        return task

    def spawn(
        self, queue_name: str, name: str, params: Any, options: dict[str, Any], alone: bool = True
    ) -> tuple[Task, int, bool]:
        """Spawn a task: the task, the attempt that is its next, whether it is new."""
        queue = self.queue(queue_name)
        task = self.made(queue, name, params, options)
        unique, key = task.o.get("unique"), task.o.get("idempotency_key")
        there = queue.unique.get(unique["key"]) if unique else None
        if there is None and key:
            there = next((t for t in queue.tasks if t.o.get("idempotency_key") == key), None)
        if there is not None and (unique is None or self.blocks(unique, there)):
            if unique:
                self.meet(unique, there, task)
            elif task.o.get("idempotency_mismatch") != "return":
                require((there.name, there.params) == (name, params), "TG006")
            answer = there, max(there.attempts, 1), False
        else:
            answer = self.put(queue, task), 1, True
            if unique:
                queue.unique[unique["key"]] = task
        queue.ruled |= bool(task.o.get("priority"))
        if alone and answer[2]:
            self.make_room(queue)
        return answer

    def spawn_many(
        self, queue_name: str, given: list[tuple[str, Any, dict[str, Any]]]
    ) -> list[tuple[Task, int, bool]]:
        """Spawn tasks, those with unique keys in the order of these, the others before."""
        order = sorted(
            range(len(given)),
            key=lambda i: (given[i][2].get("unique") or {"key": ""})["key"],
        )
        if not any("unique" in options for _, _, options in given):
            order.sort(key=lambda i: given[i][2].get("idempotency_key") or "")
        answers = {i: self.spawn(queue_name, *given[i], alone=False) for i in order}
        if any(created for _, _, created in answers.values()):
            self.make_room(self.queue(queue_name))
        return [answers[i] for i in range(len(given))]

    def blocks(self, unique: dict[str, Any], there: Task) -> bool:
        """Whether a task stands in the way of another one of its unique key."""
        if unique.get("on_conflict") in ("replace", "debounce"):
            begun = there.attempts or there.checkpoints
            return not begun and there.state in ("pending", "sleeping")
        window = unique.get("window_seconds")
        return there.state in unique.get("states", LIVE) or (
            window is not None and self.now < there.created + window
        )

    def meet(self, unique: dict[str, Any], there: Task, task: Task) -> None:
        """Do with the task of a unique key what the spawn of another says."""
        way = unique.get("on_conflict", "error")
        require(way != "error", "TG006")
        if way == "return":
            return
        assert task.due is not None
        due = max(task.due, self.now)
        if "max_wait_seconds" in unique:
            due = min(due, max(self.now, there.created + unique["max_wait_seconds"]))
        delay = (task.o.get("cancellation") or {}).get("max_delay")
        key = there.o.get("idempotency_key")
        there.name, there.params, there.o = task.name, task.params, task.o
        there.o["idempotency_key"] = key
        there.expires, there.turn = task.expires, there.turn + 1
        there.due = due
        self.enqueue(there, due)
        self.limit(there, least(there.expires, after(due, delay)))

    def make_room(self, queue: Queue) -> None:
        """See to it that no more wait for their start than may."""
        most = queue.policy.get("max_pending")
        if most is None:
            return
        extra = sum(t.standing in ("pending", "delayed") for t in queue.tasks) - most
        if extra > 0 and queue.policy.get("on_full") == "drop_oldest":
            laned = [p.task for p in queue.lanes if p.task.has(p.turn) and p.task.laned]
            first = [t for t in (*laned, *queue.line()) if not t.attempts][:extra]
            for task in first:
                task.reason = task.own_reason = {"name": "$QueueFull"}
                self.cancel(task)
            extra -= len(first)
        require(extra <= 0, "TG007")

    def enqueue(self, task: Task, moment: float) -> None:
        """Queue a task for its turn, or let it sleep until that is due."""
        task.laned, task.timer = False, None
        task.state = "sleeping" if moment > self.now else "pending"
        if task.state == "sleeping":
            task.timer = moment
        else:
            self.queues[task.queue].ready.append((task, task.turn))

    def limit(self, task: Task, moment: float | None) -> None:
        """Set when a task ends of itself.  What has passed is noticed as soon as time passes."""
        task.deadline = moment
        if moment is not None:
            task.alarms.append(max(moment, self.now + TICK))

    # time

    def collect(self, queue: Queue) -> int:
        """Do what has come due; return how many tasks changed or may be claimed now."""
        due = [
            t for t in queue.tasks
            if t.state == "sleeping" and t.timer is not None and t.timer <= self.now
        ]  # fmt: skip
        for task in sorted(due, key=lambda t: (t.timer or 0, t.id)):
            queue.ready.append((task, task.turn))
            task.timer = None
        ended = [t for t in queue.by_id() if t.live and self.expire(t)]
        return len(due) + len(ended)

    def is_due(self) -> bool:
        """Whether a sleeper, a lease or a deadline has come due."""
        return any(
            (t.state == "sleeping" and t.timer is not None and t.timer <= self.now)
            or min(*t.alarms, t.lease or self.now + 1, self.now + 1) <= self.now
            for t in self.all_tasks()
            if t.live
        )

    def expire(self, task: Task) -> bool:
        """End a task past its deadline, or the run of one whose lease is over."""
        late = False
        if task.deadline is not None and any(at <= self.now for at in task.alarms):
            late = task.deadline <= self.now
            task.alarms.append(task.deadline)
        task.alarms = [at for at in task.alarms if at > self.now]
        lost = task.state == "running" and task.lease is not None and task.lease <= self.now
        if lost and (not late or self.lease_first(task)):
            assert task.lease is not None
            assert task.started is not None
            timeout = after(task.started, task.o.get("timeout_seconds"))
            overtime = timeout is not None and task.lease >= timeout
            self.end(task, {"name": "$RunTimeout" if overtime else "$ClaimTimeout"}, None)
        elif late:
            self.close(task)
        return late or lost

    def close(self, task: Task) -> None:
        """End a task that cannot go on before its deadline."""
        assert task.deadline is not None
        if task.expires is None or task.expires > task.deadline:
            self.cancel(task)
            return
        self.lose(task, "expired")
        if follower := task.o.get("on_expired"):
            about = {"$task_id": task.id, "$task_name": task.name, "$params": task.params}
            kept = {k: task.o[k] for k in ("tags", "correlation_id") if task.o.get(k)}
            self.spawn(
                follower["queue_name"],
                follower["task_name"],
                follower.get("params", about),
                kept | {"parent_task_id": task.id} | follower.get("options", {}),
            )

    def lose(self, task: Task, state: str) -> None:
        """End a task without success."""
        task.state, task.finished = state, self.now
        task.wait = task.timer = None

    def cancel(self, task: Task) -> None:
        """Cancel a task unless it is over."""
        if task.live:
            self.lose(task, "cancelled")

    def next_due(self, queue_name: str) -> float | None:
        """When a worker should look again."""
        queue = self.queue(queue_name)
        if queue.paused > self.now:
            return None if queue.paused == math.inf else queue.paused
        moments: list[float | None] = [t.timer for t in queue.tasks if t.state == "sleeping"]
        if queue.line():
            moments.append(self.now)
        if queue.lanes:
            ends = (
                after(at, (self.limit_of(queue, scope, name) or {}).get("period_seconds"))
                for scope, name, at in queue.starts
            )
            moments += [self.now + 1, *(e for e in ends if e is not None and e > self.now)]
        return least(*moments)

    def stats(self, queue: Queue) -> dict[str, Any]:
        """How many tasks of a queue stand where, and since when the first ones do."""
        states = ("pending", "delayed", "running", "sleeping", "waiting", *OVER)
        standing = [t.standing for t in queue.tasks]
        counts: dict[str, Any] = {state: standing.count(state) for state in states}
        starts = [t.started for t in queue.tasks if t.state == "running" and t.started is not None]
        longest = self.now - min(*starts, self.now) if starts else None
        return counts | {"paused": queue.paused > self.now, "oldest_lease_age_seconds": longest}

    def ages(self, queue: Queue) -> list[float | None]:
        """For how long the first in line may be ready: of two segments either has a line."""
        ages = [self.now - min(t.due or 0, self.now) for t in queue.line()]
        return [age for age in ages if age >= ages[0]] or [None]

    # claims

    def take(
        self, queue: Queue, worker: str, timeout: float, qty: int, names: list[str] | None = None
    ) -> list[Task]:
        """Hand out tasks, the first in line first."""
        if queue.paused > self.now:
            return []
        self.collect(queue)
        if queue.ruled or names is not None:
            return self.admit(queue, worker, timeout, qty, names)
        found = [t for t in queue.line() if t.in_time(self.now)][:qty]
        for task in found:
            self.hand(task, worker, timeout)
        return found

    def hand(self, task: Task, worker: str, timeout: float) -> None:
        """Hand a task to a worker."""
        task.state, task.laned, task.timer = "running", False, None
        task.attempts += 1
        task.claims += 1
        task.worker, task.started = worker, self.now
        until = self.now + timeout if timeout > 0 else None
        task.lease = least(until, after(self.now, task.o.get("timeout_seconds")))
        if task.first_started is None:
            task.first_started = self.now
        if task.attempts == 1:
            policy, deadline = task.o.get("cancellation"), task.deadline
            if policy:
                deadline = least(task.expires, after(self.now, policy.get("max_duration")))
            self.limit(task, deadline)
        if task.wait:
            task.wait.asleep = False

    # a queue that goes by rules

    def limit_of(self, queue: Queue, scope: str, name: str) -> dict[str, Any] | None:
        """The limit on a name: its own, or that on each."""
        return queue.limits.get((scope, name)) or queue.limits.get((scope, "*"))

    def room(self, queue: Queue, scope: str, name: str) -> float:
        """How many more may start under a limit."""
        limit = self.limit_of(queue, scope, name)
        if limit is None:
            return math.inf
        running = sum(t.state == "running" and t.under(scope) == name for t in queue.tasks)
        period = limit.get("period_seconds", 0)
        started = sum(
            (s, n) == (scope, name) and at > self.now - period for s, n, at in queue.starts
        )
        most: float = limit.get("max_running", math.inf)
        rate: float = limit.get("rate", math.inf)
        left: float = min(most - running, rate - started)
        return left

    def is_paused(self, queue: Queue, scope: str, name: str) -> bool:
        """Whether a name or key is paused."""
        return any(queue.pauses.get((scope, one), 0) > self.now for one in (name, "*"))

    def slots(self, queue: Queue, key: str) -> float:
        """How many more places of a key may be open."""
        if self.is_paused(queue, "key", key):
            return 0
        opened = sum(p.open for p in queue.lanes if p.key == key)
        return self.room(queue, "key", key) - opened

    def unbar(self, queue: Queue) -> None:
        """Open the first places of each key, as far as there is room."""
        for key in dict.fromkeys(p.key for p in queue.lanes if p.key is not None):
            places = [p for p in queue.lanes if p.key == key]
            room = self.slots(queue, key)
            for place in sorted((p for p in places if not p.open), key=lambda p: p.rank):
                if room >= 1:
                    place.open = True
                    room -= 1

    def intake(self, queue: Queue) -> None:
        """Move what is ready into the lanes."""
        for task in [t for t in queue.line() if t.in_time(self.now)]:
            assert task.due is not None
            task.laned = True
            rank = task.due - 60 * (task.o.get("priority") or 0)
            key = task.o.get("key")
            is_open = key is None or self.slots(queue, key) >= 1
            queue.lanes.append(Place(rank, task, task.turn, task.name, key, is_open))

    def choose(self, queue: Queue, qty: float, names: list[str] | None) -> list[Place]:
        """The first places that limits leave."""
        chosen: list[Place] = []
        left: dict[str, float] = {}
        for place in sorted(queue.lanes, key=lambda p: p.rank):
            name = place.name
            if not place.open or self.is_paused(queue, "task", name):
                continue
            if names is not None and name not in names:
                continue
            room = left.setdefault(name, self.room(queue, "task", name))
            if room >= 1 and len(chosen) < qty:
                left[name] -= 1
                chosen.append(place)
        return chosen

    def admit(
        self, queue: Queue, worker: str, timeout: float, qty: int, names: list[str] | None
    ) -> list[Task]:
        """Hand out what priorities, limits and pauses leave."""
        if queue.limits or queue.pauses:
            queue.starts = [
                (scope, name, at) for scope, name, at in queue.starts
                if at > self.now
                - (self.limit_of(queue, scope, name) or {}).get("period_seconds", 0)
            ]  # fmt: skip
            queue.pauses = {k: until for k, until in queue.pauses.items() if until > self.now}
        self.unbar(queue)
        self.intake(queue)
        found: list[Task] = []
        while True:
            room = self.room(queue, "queue", "")
            chosen = self.choose(queue, min(qty - len(found), room), names)
            if not chosen:
                return found
            if any(self.is_stale(p) for p in chosen):
                self.weed(queue, names)
                continue
            for place in chosen:
                queue.lanes.remove(place)
                self.hand(place.task, worker, timeout)
                self.start(queue, place.task)
                found.append(place.task)

    def is_stale(self, place: Place) -> bool:
        """Whether a place's task is not to be had any more."""
        task = place.task
        return not (task.has(place.turn) and task.laned and task.in_time(self.now))

    def weed(self, queue: Queue, names: list[str] | None) -> None:
        """Take away the places of tasks that are not to be had any more; others take them."""
        gone = [p for p in self.choose(queue, math.inf, names) if self.is_stale(p)]
        keys = {p.key for p in gone} - {None}
        queue.lanes = [
            p for p in queue.lanes
            if p not in gone
            and not (not p.open and p.key in keys and self.is_stale(p))
        ]  # fmt: skip
        self.unbar(queue)

    def start(self, queue: Queue, task: Task) -> None:
        """Count a start against rates."""
        for scope in ("queue", "task", "key"):
            name = task.under(scope)
            if name is not None and "rate" in (self.limit_of(queue, scope, name) or {}):
                queue.starts.append((scope, name, self.now))

    def rule(self, queue: Queue) -> None:
        """Arrange the lanes by limits or pauses that have changed."""
        queue.ruled = True
        queue.starts = [
            (scope, name, at) for scope, name, at in queue.starts
            if "rate" in (self.limit_of(queue, scope, name) or {})
        ]  # fmt: skip
        for place in queue.lanes:
            place.open = place.key is None
        self.unbar(queue)

    # runs

    def complete(self, task: Task, result: Any) -> None:
        """End a run with success."""
        task.state, task.result, task.finished = "completed", result, self.now
        task.reason = task.own_reason = task.wait = None

    def end(self, task: Task, reason: Any, retry_at: float | None) -> None:
        """End a run with failure: another follows, or the task is over."""
        task.failures += 1
        task.reason = task.own_reason = reason
        most = task.o.get("max_attempts")
        if retry_at is None:
            jitter = (task.o.get("retry_strategy") or {"jitter": 0.1}).get("jitter", 0)
            chance = self.fraction(f"{task.id}{task.failures}") if jitter else 0
            retry_at = self.now + round(backoff(task) * (1 - jitter * chance) * 1e6) / 1e6
        if most is not None and task.failures >= most:
            self.lose(task, "failed")
        elif task.deadline is not None and retry_at >= task.deadline:
            self.close(task)
        else:
            self.again(task, "failed", retry_at)

    def again(self, task: Task, ended: str, moment: float) -> None:
        """Begin the next run of a task."""
        task.runs.append(self.shown_run(task, ended))
        task.number += 1
        task.turn += 1
        task.claims = 0
        task.own_reason = task.worker = task.lease = task.finished = None
        task.wake = task.payload = None
        task.due = max(moment, self.now)
        self.enqueue(task, moment)

    def shown_run(self, task: Task, state: str) -> tuple[Any, ...]:
        """The current run as it is shown."""
        started = task.started if task.claims else None
        finished = self.now if task.state == "running" and state != "running" else task.finished
        reason = task.own_reason
        return (task.number, state, task.attempts, task.worker, started, finished, reason)

    def rest(self, task: Task, moment: float) -> None:
        """Let go of a task until a moment."""
        task.turn += 1
        task.worker = task.lease = None
        task.due = max(moment, self.now)
        self.enqueue(task, moment)

    def nap(self, task: Task, moment: float) -> None:
        """Let a run sleep."""
        task.wake = task.payload = None
        self.rest(task, moment)

    def release(self, task: Task, delay: float) -> None:
        """Hand a run back as if it had not been claimed."""
        task.attempts -= 1
        task.claims -= 1
        if not task.attempts:
            task.first_started = None
            longest = (task.o.get("cancellation") or {}).get("max_delay")
            self.limit(task, least(task.expires, after(self.now + delay, longest)))
        self.rest(task, self.now + delay)

    def extend(self, task: Task, seconds: float) -> None:
        """Move the end of a lease."""
        assert task.started is not None
        until = after(task.started, task.o.get("timeout_seconds"))
        task.lease = least(self.now + seconds, until)

    def mark(self, task: Task, step: str, state: Any, timed_out: bool = False) -> None:
        """Write a checkpoint."""
        task.checkpoints[step] = Checkpoint(state, timed_out, self.now)

    def ask(
        self, task: Task, step: str, event_name: str, timeout: float | None
    ) -> tuple[bool, Any, bool]:
        """Wait for an event, or learn how the wait ended."""
        if known := task.checkpoints.get(step):
            return False, known.state, known.timed_out
        event = self.queues[task.queue].events.setdefault(event_name, Event(self.now))
        wait = task.wait
        if wait and (wait.step, wait.event) != (step, event_name):
            wait = None
        over = bool(wait and wait.until is not None and wait.until <= self.now) or (
            timeout == 0 and event.emitted is None
        )
        if event.emitted is None and not over:
            known_until = wait.until if wait else None
            until = known_until if known_until is not None else after(self.now, timeout)
            task.wait = Wait(step, event_name, until)
            task.wake, task.payload = event_name, None
            task.worker = task.lease = None
            task.turn += 1
            task.due, task.timer, task.state = until, None, "sleeping"
            if until is not None:
                self.enqueue(task, until)
            return True, None, False
        payload = None if over else event.payload
        self.mark(task, step, payload, over)
        task.wait = None
        return False, payload, over

    def emit(self, queue_name: str, event_name: str, payload: Any) -> None:
        """Emit an event; the first time counts."""
        queue = self.queue(queue_name)
        event = queue.events.setdefault(event_name, Event(self.now))
        if event.emitted is not None:
            return
        event.emitted, event.payload = self.now, payload
        for task in queue.by_id():
            wait = task.wait
            if not (wait and wait.event == event_name and wait.asleep and task.state == "sleeping"):
                continue
            if wait.until is not None and wait.until <= self.now:
                continue
            self.mark(task, wait.step, payload)
            task.wait, task.payload = None, payload
            task.turn += 1
            task.due = self.now
            self.enqueue(task, self.now)

    # from outside

    def retry(self, task: Task, options: dict[str, Any]) -> tuple[Task, int, bool]:
        """Run a task that is over once more."""
        anew, most = options.get("spawn_new", False), options.get("max_attempts")
        require(task.state in LOST or (anew and task.state == "completed"), "TG004")
        if anew:
            o = {k: v for k, v in task.o.items() if k not in ("idempotency_key", "unique")}
            o |= {"max_attempts": most or o.get("max_attempts")}
            delay = (o.get("cancellation") or {}).get("max_delay")
            deadline = after(self.now, delay)
            new = Task(task.queue, task.name, task.params, o, self.now, self.now, deadline, None)
            return self.put(self.queues[task.queue], new), 1, True
        require(most is None or most > task.failures, "TG005")
        if step := options.get("from_step"):
            require(step in task.checkpoints, "TG005")
            self.forget(task, step)
        self.redo(task, most, self.now)
        return task, task.attempts + 1, False

    def forget(self, task: Task, step: str) -> None:
        """Forget a step and all that came after it."""
        if step in task.checkpoints:
            since = task.checkpoints[step].at
            task.checkpoints = {n: c for n, c in task.checkpoints.items() if c.at < since}

    def redo(self, task: Task, most: int | None, moment: float) -> None:
        """Begin another run of a task that ended without success."""
        self.again(task, task.state, moment)
        known = task.o.get("max_attempts")
        if most is not None:
            task.o = {**task.o, "max_attempts": most}
        elif known is not None and known <= task.failures:
            task.o = {**task.o, "max_attempts": task.failures + 1}
        which = "max_delay" if task.first_started is None else "max_duration"
        task.expires = None
        self.limit(task, after(moment, (task.o.get("cancellation") or {}).get(which)))

    def requeue(self, task: Task) -> None:
        """Take a task away from its worker."""
        require(task.state == "running", "TG004")
        task.own_reason = None
        self.again(task, "released", self.now)

    def replay(self, queue_name: str, wanted: dict[str, Any], o: dict[str, Any]) -> int:
        """Run failed tasks once more, so many a second."""
        found = self.meant(queue_name, {**wanted, "state": ["failed"]})[: o.get("limit", 1000)]
        for n, task in enumerate(reversed(found)):
            if "from_step" in o:
                self.forget(task, o["from_step"])
            most = max(o["max_attempts"], task.failures + 1) if "max_attempts" in o else None
            self.redo(task, most, self.now + (n / o["per_second"] if "per_second" in o else 0))
        return len(found)

    def meant(self, queue_name: str, wanted: dict[str, Any]) -> list[Task]:
        """The tasks that a filter means, the newest first."""
        states = wanted.get("state")
        states = [states] if isinstance(states, str) else states
        age = wanted.get("older_than_seconds")
        return [
            t
            for t in reversed(self.queue(queue_name).by_id())
            if (states is None or t.state in states)
            and wanted.get("task_name") in (None, t.name)
            and wanted.get("tag") in (None, *(t.o.get("tags") or ()))
            and set(wanted.get("tags") or ()) <= set(t.o.get("tags") or ())
            and wanted.get("correlation_id") in (None, t.o.get("correlation_id"))
            and (age is None or t.created < self.now - age)
        ]

    def clean(self, queue_name: str, ttl: float, limit: int, *states: str) -> int:
        """Remove tasks that have been over for some time, the oldest first."""
        queue = self.queue(queue_name)
        before = self.now - ttl
        old = [
            t for t in queue.by_id()
            if t.state in states and (t.finished or 0) <= before and t.created <= before
        ][:limit]  # fmt: skip
        queue.tasks = [t for t in queue.tasks if t not in old]
        queue.unique = {k: t for k, t in queue.unique.items() if t not in old}
        return len(old)

    def sweep(self, queue_name: str, ttl: float) -> int:
        """Remove old events that nobody waits for."""
        queue = self.queue(queue_name)
        awaited = {t.wait.event for t in queue.tasks if t.wait}
        before = self.now - ttl
        old = [
            name for name, event in queue.events.items()
            if name not in awaited
            and event.created <= before
            and (event.created if event.emitted is None else event.emitted) <= before
        ]  # fmt: skip
        for name in old:
            del queue.events[name]
        return len(old)

    def all_tasks(self) -> Iterator[Task]:
        """The tasks of all queues."""
        for queue in self.queues.values():
            yield from queue.tasks


def backoff(task: Task) -> float:
    """Seconds between a failure and the next run, but for jitter."""
    strategy = task.o.get("retry_strategy") or {"base_seconds": 1, "max_seconds": 300}
    kind = strategy.get("kind", "exponential")
    n = task.failures
    if kind == "none":
        return 0
    base = strategy.get("base_seconds", 60 if kind == "fixed" else 30)
    factor = strategy.get("factor", 2)
    seconds = {
        "fixed": base,
        "linear": base * n,
        "quadratic": base * n * n,
        "exponential": base * factor ** (n - 1),
    }[kind]
    return float(min(seconds, strategy.get("max_seconds", 1e9)))
