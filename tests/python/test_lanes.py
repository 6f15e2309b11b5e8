"""Workers of queues that go by rules: limits, rates, order within a key."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import teguh
from teguh._worker.engine import Engine
from tests.python.support import finished, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from teguh._types import Scope

AT_ONCE: teguh.RetryStrategy = {"kind": "none"}


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each claim of a worker has brought."""
    counts: list[int] = []
    claim = Engine._claim

    async def counted(engine: Engine, qty: int) -> int:
        counts.append(await claim(engine, qty))
        return counts[-1]

    monkeypatch.setattr(Engine, "_claim", counted)
    return counts


class Meter:
    """Counts what runs at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count as running meanwhile."""
        with self._lock:
            self._now[name] += 1
            self.most[name] = max(self.most[name], self._now[name])
        try:
            yield
        finally:
            with self._lock:
                self._now[name] -= 1


def all_finished(client: teguh.Client, queue: str, count: int) -> None:
    """Wait until so many tasks are completed."""

    def completed() -> bool:
        (stats,) = client.queue_stats(queue)
        return stats.completed == count

    until(completed, f"the end of {count} tasks")


def test_several_workers_keep_the_limits_of_keys_and_waste_no_time(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    meter = Meter()

    @tasks.task("n")
    def work(ctx: teguh.TaskContext) -> None:
        with meter.of(str(ctx.params)):
            time.sleep(0.005)

    client.set_limit(queue, "key", "*", max_running=2)
    client.spawn_tasks(queue, [teguh.NewTask("n", key, {"key": key}) for key in "abc" * 40])
    began = time.monotonic()
    with ExitStack() as workers:
        for name in "xyz":
            workers.enter_context(running(dsn, queue, tasks, concurrency=5, worker_id=name))
        all_finished(client, queue, 120)
    assert time.monotonic() - began < 10, "20 turns of each key, without a wait for any"
    assert meter.most == {"a": 2, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("scope", "name"), [("queue", None), ("task", "n"), ("key", "k"), ("all", None)]
)
def test_the_end_of_a_run_lets_the_next_start_at_once(
    dsn: str,
    client: teguh.Client,
    queue: str,
    tasks: teguh.Registry,
    scope: Scope,
    name: str | None,
) -> None:
    meter = Meter()

    @tasks.task("n")
    async def work(ctx: teguh.AsyncTaskContext) -> None:
        with meter.of("n"):
            await asyncio.sleep(0)

    client.set_limit(None if scope == "all" else queue, scope, name, max_running=1)
    client.spawn_tasks(queue, [teguh.NewTask("n", None, {"key": "k"}) for _ in range(30)])
    began = time.monotonic()
    with running(dsn, queue, tasks):
        all_finished(client, queue, 30)
    assert time.monotonic() - began < 5
    assert meter.most == {"n": 1}


def test_a_rate_is_kept_and_not_polled_for(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, claims: list[int]
) -> None:
    tasks.task("n")(lambda _: None)
    client.set_limit(queue, "queue", rate=3, period_seconds=0.7)
    client.spawn_tasks(queue, [teguh.NewTask("n") for _ in range(12)])
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60):
        all_finished(client, queue, 12)
    rows = client.connection.execute("select started_at from teguh.t_jobs order by 1").fetchall()
    starts = [at for (at,) in rows]
    for first, fourth in zip(starts, starts[3:], strict=False):
        assert (fourth - first).total_seconds() >= 0.7
    # four times three; after each of these the completions may ask, and next_due does once
    assert len(claims) <= 4 * 5 + 3, claims


def test_an_idle_worker_looks_once_a_second_for_what_a_limit_holds_back(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry, claims: list[int]
) -> None:
    tasks.task("n")(lambda _: None)
    client.set_limit(queue, "key", max_running=1)
    client.spawn_tasks(queue, [teguh.NewTask("n", None, {"key": "k"}) for _ in range(2)])
    (held,) = client.claim_task(queue, "another", claim_timeout=60)
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60):
        until(lambda: claims)
        began, before = time.monotonic(), len(claims)
        until(lambda: len(claims) >= before + 4)
        assert time.monotonic() - began > 1  # of four looks, two at least waited a second
        client.complete_run(queue, held.run_id)
        all_finished(client, queue, 2)


def test_tasks_of_a_fifo_key_end_in_their_order_whatever_fails(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    dice = random.Random(1)
    ended: defaultdict[str, list[int]] = defaultdict(list)
    meter = Meter()

    @tasks.task("n")
    async def work(ctx: teguh.AsyncTaskContext) -> None:
        with meter.of(ctx.params["key"]):
            if dice.random() < 0.3:
                raise ValueError("bad luck")
            if dice.random() < 0.2 and ctx.attempt < 3:
                await ctx.sleep_for(0.01)
            ended[ctx.params["key"]].append(ctx.params["n"])

    client.set_limit(queue, "key", fifo=True)
    client.spawn_tasks(
        queue,
        [
            teguh.NewTask(
                "n",
                {"key": key, "n": n},
                {"key": key, "retry_strategy": AT_ONCE, "max_attempts": None},
            )
            for n in range(15)
            for key in "ab"
        ],
    )
    with running(dsn, queue, tasks), running(dsn, queue, tasks, worker_id="other"):
        all_finished(client, queue, 30)
    assert meter.most == {"a": 1, "b": 1}
    assert ended == {"a": list(range(15)), "b": list(range(15))}


def test_priorities_and_fair_keys_order_what_a_worker_takes(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    taken: list[str] = []

    @tasks.task("n")
    async def work(ctx: teguh.AsyncTaskContext) -> None:
        taken.append(ctx.params)

    client.set_limit(queue, "key", fair=True)
    client.spawn_tasks(queue, [teguh.NewTask("n", key, {"key": key}) for key in "aaaaaabb"])
    with running(dsn, queue, tasks, concurrency=1):
        all_finished(client, queue, 8)
    assert "".join(taken[:4]) in {"abab", "baba"}
    client.set_limit(queue, "key")
    taken.clear()
    client.spawn_tasks(queue, [teguh.NewTask("n", str(n), {"priority": n}) for n in (1, 5, -3, 2)])
    with running(dsn, queue, tasks, concurrency=1):
        all_finished(client, queue, 12)
    assert taken == ["5", "2", "1", "-3"]


def test_a_limit_of_none_holds_everything_until_it_is_lifted(
    dsn: str, client: teguh.Client, queue: str, tasks: teguh.Registry
) -> None:
    tasks.task("n")(lambda ctx: ctx.params)
    client.set_limit(queue, "task", "n", max_running=0)
    task = client.spawn_task(queue, "n", 7)
    with running(dsn, queue, tasks, poll_interval=60, claim_timeout=60):
        time.sleep(0.3)
        assert client.get_task_result(queue, task.task_id).attempts == 0
        client.set_limit(queue, "task", "n")
        assert finished(client, queue, task.task_id).completed_payload == 7


def test_claims_of_several_queues_do_not_wait_for_each_other_in_a_circle(
    dsn: str, client: teguh.Client
) -> None:
    queues = ["one", "two", "three"]
    for queue in queues:
        client.create_queue(queue)
        client.set_limit(queue, "queue", max_running=1000)
    client.spawn_tasks("one", [teguh.NewTask("n") for _ in range(100)])
    client.spawn_tasks("two", [teguh.NewTask("n") for _ in range(100)])
    failed: list[BaseException] = []

    def work(turn: int) -> None:
        order = queues[turn:] + queues[:turn]
        try:
            with teguh.Client.connect(dsn) as mine:
                for _ in range(60):
                    names = ["n", "m"] if turn else None
                    mine.claim_any(order, qty=3, order="strict", task_names=names)
        except BaseException as error:  # noqa: BLE001 - looked at in the test's thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    while client.claim_any(qty=50):  # a queue in use is passed over
        pass
    assert sum(stats.running for stats in client.queue_stats()) == 200


def test_the_order_of_claims_is_that_of_ids_when_all_is_equal(
    client: teguh.Client, queue: str
) -> None:
    client.set_limit(queue, "queue", max_running=1000)
    client.spawn_tasks(queue, [teguh.NewTask("n", n) for n in range(100)])
    taken = [run.params for _ in range(10) for run in client.claim_task(queue, qty=10)]
    assert all(one < next_one for one, next_one in pairwise(taken))
