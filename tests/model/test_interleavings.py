"""Two calls at the same time come out as one after the other, in one of the two orders.

Each of two sessions begins, calls, and commits, in every order of these statements.  A session that
has to wait for a lock goes on when the other has committed.  What the calls give, what can be
seen afterwards, and what comes of it a day later must be as after one of the two serial orders.
"""

from __future__ import annotations

import difflib
import itertools
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import Cluster

Connection = psycopg.Connection[tuple[Any, ...]]

PATIENCE = 30.0
NOON = "2031-05-01 12:00:00+00"
LATER = "2031-05-01 12:01:00+00"
TOMORROW = "2031-05-02 12:00:00+00"

# Calls find tasks and runs by the names of the tasks; the two that meet, as they were before.
HELPERS = """
create schema x;
create table x.known (task_name text, task_id uuid, run_id uuid);
create view x.ids as
  select * from x.known
  union all
  select task_name, task_id, run_id from teguh.t_q where not exists (select from x.known);
create function x.task(p_name text) returns uuid language sql volatile as
  'select task_id from x.ids where task_name = p_name';
create function x.run(p_name text) returns uuid language sql volatile as
  'select run_id from x.ids where task_name = p_name';
create function x.spawn(p_name text, p_options jsonb default '{}') returns boolean
  language sql volatile as
  'select created from teguh.spawn_task(''q'', p_name, ''{}'', p_options)';
create function x.claim(p_qty integer default 1) returns setof text language sql volatile as
  'select task_name from teguh.claim_task(''q'', ''w'', 30, p_qty)';
create function x.tick() returns integer language sql volatile as 'select teguh.ticker(''q'')';
"""


@dataclass(frozen=True)
class Pair:
    """What is there, and two calls; between the two, time may pass."""

    given: tuple[str, ...]
    one: str
    other: str
    later: bool = False


SPAWN = 'x.spawn(\'t\', \'{"retry_strategy": {"kind": "none"}}\')'
CLAIM, TICK = "x.claim()", "x.tick()"
KEYED = "x.spawn('t', '{\"idempotency_key\": \"i\"}')"
PENDING = (SPAWN,)
RUNNING = (SPAWN, CLAIM)
FAILED = ("x.spawn('t', '{\"max_attempts\": 1}')", CLAIM, "teguh.fail_run('q', x.run('t'), '1')")
WAITING = (*RUNNING, "teguh.await_event('q', x.task('t'), x.run('t'), 's', 'e', 20)")
FAMILY = (
    *RUNNING,
    "teguh.spawn_children('q', x.run('t'), 'c', '[{\"task_name\": \"kid\"}]')",
    CLAIM,
)
RULED = (
    "teguh.set_limit('q', 'key', '*', '{\"max_running\": 1}')",
    "x.spawn('t', '{\"key\": \"k\"}')",
    "x.spawn('u', '{\"key\": \"k\"}')",
)
COMPLETE = "teguh.complete_run('q', x.run('t'), '7')"
CANCEL = "teguh.cancel_task('q', x.task('t'))"
FAIL = "teguh.fail_run('q', x.run('t'), '\"broken\"')"
EXTEND = "teguh.extend_claim('q', x.run('t'), 100)"
RELEASE = "teguh.release_run('q', x.run('t'))"
SLEEP = "teguh.schedule_run('q', x.run('t'), teguh.current_time() + interval '5 s')"
RETRY = "teguh.retry_task('q', x.task('t'))"
REQUEUE = "teguh.requeue_task('q', x.task('t'))"
CLEANUP = "teguh.cleanup_tasks('q', 0)"
SWEEP = "teguh.cleanup_events('q', 0)"
EMIT = "teguh.emit_event('q', 'e', '1')"
AWAIT = "teguh.await_event('q', x.task('t'), x.run('t'), 's', 'e', 20)"
AWAIT_KIDS = "teguh.await_children('q', x.task('t'), x.run('t'), 'c')"
PAUSE = "teguh.pause_queue('q', teguh.current_time() + interval '1 hour')"
REPLACE = 'x.spawn(\'n\', \'{"unique": {"key": "k", "on_conflict": "replace"}}\')'
SEND = "(select created from teguh.send_message('q', x.task('t'), 'topic', '1')) as s"
RECEIVE = "teguh.receive_message('q', x.task('t'), x.run('t'), 'r', 'topic')"

PAIRS = {
    "claim, claim": Pair((SPAWN, "x.spawn('u')"), CLAIM, CLAIM),
    "claim, claim of one": Pair(PENDING, CLAIM, CLAIM),
    "claim, cancel": Pair(PENDING, CLAIM, CANCEL),
    "claim, cancel many": Pair(PENDING, CLAIM, "teguh.cancel_tasks('q', '{\"task_name\": \"t\"}')"),
    "claim, spawn": Pair((), CLAIM, SPAWN),
    "claim, tick": Pair(("x.spawn('t', '{\"delay_seconds\": 5}')",), CLAIM, TICK, later=True),
    "claim, pause": Pair(PENDING, CLAIM, PAUSE),
    "claim, release": Pair(RUNNING, CLAIM, RELEASE),
    "claim, retry": Pair(FAILED, CLAIM, RETRY),
    "claim, emit": Pair(WAITING, CLAIM, EMIT),
    "claim, emit too late": Pair(WAITING, CLAIM, EMIT, later=True),
    "claim, claim with room for one": Pair(RULED, CLAIM, CLAIM),
    "claim, complete with room for one": Pair((*RULED, CLAIM), CLAIM, COMPLETE),
    "claim, limit": Pair(
        (SPAWN, "x.spawn('u')", CLAIM),
        CLAIM,
        "teguh.set_limit('q', 'queue', null, '{\"max_running\": 1}')",
    ),
    "complete, cancel": Pair(RUNNING, COMPLETE, CANCEL),
    "complete, end of the lease": Pair(RUNNING, COMPLETE, TICK, later=True),
    "complete, claim after the lease": Pair(RUNNING, COMPLETE, CLAIM, later=True),
    "complete, complete": Pair(RUNNING, COMPLETE, COMPLETE),
    "complete, complete many": Pair(
        RUNNING,
        COMPLETE,
        "teguh.complete_runs('q', jsonb_build_array(jsonb_build_object('run_id', x.run('t'))))",
    ),
    "complete, requeue": Pair(RUNNING, COMPLETE, REQUEUE),
    "fail, extend": Pair(RUNNING, FAIL, EXTEND),
    "fail, cancel": Pair(RUNNING, FAIL, CANCEL),
    "fail, end of the lease": Pair(RUNNING, FAIL, TICK, later=True),
    "extend, end of the lease": Pair(RUNNING, EXTEND, TICK, later=True),
    "sleep, cancel": Pair(RUNNING, SLEEP, CANCEL),
    "step, cancel": Pair(
        RUNNING,
        "teguh.set_task_checkpoint_state('q', x.task('t'), 's', '1', x.run('t'))",
        CANCEL,
    ),
    "deadline, complete": Pair(
        ("x.spawn('t', '{\"ttl_seconds\": 20}')", CLAIM), TICK, COMPLETE, later=True
    ),
    "tick, tick": Pair(RUNNING, TICK, TICK, later=True),
    "cancel, cancel": Pair(RUNNING, CANCEL, CANCEL),
    "cancel, emit": Pair(WAITING, CANCEL, EMIT),
    "retry, retry": Pair(FAILED, RETRY, RETRY),
    "retry, cleanup": Pair(FAILED, RETRY, CLEANUP),
    "retry, replay": Pair(FAILED, RETRY, "teguh.replay_dead_letters('q')"),
    "retry, purge": Pair(FAILED, RETRY, "teguh.purge_dead_letters('q', 0)"),
    "cleanup, cleanup": Pair(FAILED, CLEANUP, CLEANUP),
    "emit, await": Pair(RUNNING, EMIT, AWAIT),
    "emit, emit": Pair(WAITING, EMIT, "teguh.emit_event('q', 'e', '2')"),
    "emit, timeout": Pair(WAITING, EMIT, TICK, later=True),
    "sweep, await": Pair(
        (*RUNNING, EMIT), SWEEP, AWAIT
    ),
    "spawn, spawn of a key": Pair((), KEYED, KEYED),
    "spawn, spawn of another's key": Pair(
        (),
        KEYED,
        "x.spawn('u', '{\"idempotency_key\": \"i\"}')",
    ),
    "spawn, cleanup of a key": Pair(
        (KEYED, CANCEL),
        KEYED,
        CLEANUP,
    ),
    "spawn, spawn of a unique key": Pair((), REPLACE, REPLACE),
    "spawn, spawn of a unique key in use": Pair(
        (),
        "x.spawn('t', '{\"unique\": {\"key\": \"k\"}}')",
        "x.spawn('u', '{\"unique\": {\"key\": \"k\"}}')",
    ),
    "replace, claim": Pair(
        ("x.spawn('t', '{\"unique\": {\"key\": \"k\"}}')",), REPLACE, CLAIM
    ),
    "replace, cancel": Pair(
        ("x.spawn('t', '{\"unique\": {\"key\": \"k\"}}')",), REPLACE, CANCEL
    ),
    "schedule, schedule": Pair(
        ("teguh.create_schedule('p', 'q', 'planned', 'every 30 seconds')",), TICK, TICK, later=True
    ),
    "schedule, claim": Pair(
        ("teguh.create_schedule('p', 'q', 'planned', 'every 30 seconds')",), TICK, CLAIM, later=True
    ),
    "await children, the last child": Pair(
        FAMILY, AWAIT_KIDS, "teguh.complete_run('q', x.run('kid'), '1')"
    ),
    "end of a parent, the last child": Pair(
        (*FAMILY, AWAIT_KIDS), CANCEL, "teguh.complete_run('q', x.run('kid'), '1')"
    ),
    "collect children, the last child": Pair(
        (*FAMILY, AWAIT_KIDS), TICK, "teguh.complete_run('q', x.run('kid'), '1')"
    ),
    "receive, send": Pair(RUNNING, RECEIVE, SEND),
    "receive, send, cancelled": Pair((*RUNNING, RECEIVE), CANCEL, SEND),
}  # fmt: skip


class Stage:
    """A database with a queue `q`, which is emptied for each play."""

    def __init__(self, dsn: str) -> None:
        self.watcher, *self.players = (psycopg.connect(dsn, autocommit=True) for _ in range(3))
        self.pool = ThreadPoolExecutor(2)
        self.watcher.execute(
            'select teguh.create_queue(\'q\', \'{"default_retry_strategy": {"kind": "none"}}\')'
        )
        self.watcher.execute(HELPERS.encode())
        self.tables = [
            str(name) for (name,) in self.watcher.execute(
                "select format('teguh.%I', relname) from pg_class where relkind = 'r'"
                " and relnamespace = 'teguh'::regnamespace and relname ~ '_q$'"
            )
        ]  # fmt: skip

    def close(self) -> None:
        """End all sessions."""
        self.pool.shutdown()
        for connection in (self.watcher, *self.players):
            connection.close()

    def at(self, moment: str) -> None:
        """Stop all clocks."""
        for connection in (self.watcher, *self.players):
            connection.execute("select set_config('teguh.fake_now', %s, false)", [moment])

    def set_up(self, pair: Pair) -> None:
        """Empty the queue, and do what is to be there."""
        empty = [f"delete from {name}" for name in ("x.known", *self.tables)]
        empty += [f"delete from teguh.{name}" for name in ("limits", "starts", "schedules")]
        empty.append("update teguh.queues set ruled = false, paused_until = null")
        self.watcher.execute("; ".join(empty).encode())
        self.at(NOON)
        for second, call in enumerate(pair.given):
            self.at(NOON.replace("00:00+", f"00:0{second}+"))  # ids are in the order of time
            self.watcher.execute(f"select {call}".encode())
        self.watcher.execute("insert into x.known select * from x.ids")
        self.at(LATER if pair.later else NOON.replace("00:00+", "00:09+"))

    def play(self, pair: Pair, order: tuple[int, ...], aged: bool) -> str:
        """Let both call in an order of their statements; return all that can be seen.

        aged: a transaction has its id from the beginning, not from when it first writes.
        """
        self.set_up(pair)
        begin = "begin; select pg_current_xact_id()" if aged else "begin"
        left = [[begin, f"select * from {call}", "commit"] for call in (pair.one, pair.other)]
        going: list[Future[Any] | None] = [None, None]
        outcomes: list[Any] = [None, None]
        queue = list(order)
        try:
            while queue:
                # whoever waits for the other comes later
                who = next(w for w in queue if going[w] is None)
                queue.remove(who)
                going[who] = self.pool.submit(self.call, who, left[who].pop(0))
                self.settle(going, outcomes, queue)
            return self.seen(outcomes)
        finally:
            self.clear(going)

    def clear(self, going: list[Future[Any] | None]) -> None:
        """End what is still going on."""
        for who, future in enumerate(going):
            if future is not None:
                self.players[who].cancel()
                future.result(PATIENCE)
            self.players[who].execute("rollback")

    def settle(
        self, going: list[Future[Any] | None], outcomes: list[Any], queue: list[int]
    ) -> None:
        """Wait until each session has an answer, or is seen waiting while the other goes on."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for who, future in enumerate(going):
                if future is not None and future.done():
                    outcomes[who] = future.result() or outcomes[who]
                    going[who] = None
            pids = [self.players[w].info.backend_pid for w, f in enumerate(going) if f is not None]
            if not pids or (any(going[w] is None for w in queue) and self.waits(pids)):
                return
            assert time.monotonic() < deadline, "a session neither ends nor waits for the other"

    def waits(self, pids: list[int]) -> bool:
        """Whether sessions wait for a lock."""
        row = self.watcher.execute(
            "select count(*) from pg_stat_activity"
            " where pid = any (%s) and wait_event_type = 'Lock'",
            [pids],
        ).fetchone()
        return row == (len(pids),)

    def call(self, who: int, statement: str) -> Any:
        """Run a statement; return its rows, or the SQLSTATE of its error."""
        try:
            cursor = self.players[who].execute(statement.encode())
        except psycopg.Error as error:
            return error.sqlstate or str(error)
        if statement.startswith("begin") or not cursor.description:
            return None
        return [[*row] for row in cursor]

    def seen(self, outcomes: list[Any]) -> str:
        """What the calls gave, and what is there then and a day later."""
        found = [outcomes, self.rows()]
        self.at(TOMORROW)
        for _ in range(20):
            ((changed,),) = self.watcher.execute("select teguh.ticker('q')").fetchall()
            if not changed:
                break
        else:
            raise AssertionError("the ticker has always something to do")
        found.append(self.rows())
        self.watcher.execute("select teguh.resume_queue('q')")
        claimed = self.watcher.execute("select x.claim(100)").fetchall()
        found += [sorted(str(name) for (name,) in claimed), self.rows()]
        text = json.dumps(found, default=str, sort_keys=True, indent=0)
        for task_id, name in self.watcher.execute(
            "select l.task_id, l.task_name from teguh.list_tasks('q', '{}', null, 100) as l"
        ):
            for number in range(8):
                digits = f"{number:05x}"
                one = f"{str(task_id)[:15]}{digits[:3]}{str(task_id)[18:34]}{digits[3:]}"
                text = text.replace(one, f"{name}-{number}")
        return text

    def rows(self) -> list[Any]:
        """All tasks, where they stand, and what they wait for."""
        tasks = (
            "select to_jsonb(t) || jsonb_build_object('runs', array("
            "  select to_jsonb(r) from teguh.list_runs('q', l.task_id) as r"
            " ), 'steps', array("
            "  select to_jsonb(c) from teguh.get_task_checkpoint_states('q', l.task_id, null) as c"
            " ), 'messages', array("
            "  select to_jsonb(m) - 'message_id' from teguh.list_messages('q', l.task_id) as m))"
            " from teguh.list_tasks('q', '{}', null, 100) as l,"
            " teguh.get_task('q', l.task_id) as t order by t.task_name, t.created_at"
        )
        queries = (
            tasks,
            "select to_jsonb(s) from teguh.queue_stats('q') as s",
            "select to_jsonb(e) - 'created_at' from teguh.e_q as e order by e.event_name",
            "select s.next_fire_at::text from teguh.list_schedules() as s",
        )
        return [self.watcher.execute(query.encode()).fetchall() for query in queries]


def unlike(one: str, other: str) -> list[str]:
    """The lines in which they differ."""
    lines = difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=0)
    return ["unlike this:", *(line for line in lines if len(line) > 4)]


@pytest.fixture(scope="module")
def stage(cluster: Cluster) -> Iterator[Stage]:
    """The stage of all plays."""
    with cluster.database("teguh") as database:
        opened = Stage(cluster.owner_dsn(database))
        try:
            yield opened
        finally:
            opened.close()


ORDERS = sorted(set(itertools.permutations((0, 0, 0, 1, 1, 1))))
SKIPPING = {CLAIM: "(select null where false) as n"} | dict.fromkeys(
    (TICK, CLEANUP, SWEEP), "(select 0) as n"
)
SERIAL = ((0, 0, 0, 1, 1, 1), (1, 1, 1, 0, 0, 0))


@pytest.mark.parametrize("name", PAIRS)
def test_two_at_a_time_come_out_as_one_after_the_other(stage: Stage, name: str) -> None:
    pair = PAIRS[name]
    serial = [stage.play(pair, order, aged=False) for order in SERIAL]
    # what waits for nobody passes over what somebody holds locked
    if pair.one in SKIPPING:
        serial.append(stage.play(replace(pair, one=SKIPPING[pair.one]), SERIAL[0], aged=False))
    if pair.other in SKIPPING:
        serial.append(stage.play(replace(pair, other=SKIPPING[pair.other]), SERIAL[0], aged=False))
    for aged, order in itertools.product((False, True), ORDERS):
        # without an id, where a transaction begins makes no difference
        if aged or (order[0], order[1]) in ((0, 1), (1, 0)):
            seen = stage.play(pair, order, aged)
            assert seen in serial, "\n".join(
                [f"{order}, aged: {aged}", *(line for s in serial for line in unlike(seen, s))]
            )
