"""Children, sequences, compensations and repetitions, with several sessions and with crashes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.test_races import (
    PATIENCE,
    Connection,
    Row,
    Sessions,
    ask,
    at,
    claim,
    names,
    spawn,
    states,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Two moments: what is due a moment after the first is due at the second.
NOW, LATER, MUCH_LATER = "12:00:00", "12:00:01", "12:00:10"


class Family(Sessions):
    """Sessions, and a parent in queue `q` with two children that are claimed."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        at(self.watcher, NOW)
        ask(self.watcher, "select teguh.create_queue('q')")

    def bear(self, count: int = 2, **options: Any) -> None:
        spawn(self.watcher, "parent")
        ((self.run, self.parent, _),) = claim(self.watcher, timeout=3600)
        children(self.watcher, self.run, count, **options)
        self.runs = {row[2]: row[0] for row in claim(self.watcher, count, timeout=3600)}

    def wait(self, connection: Connection | None = None) -> bool:
        """Let the parent wait; return whether it has to."""
        return bool(
            value(
                connection or self.watcher,
                "select should_suspend from teguh.await_children('q', %s, %s, 's')",
                (self.parent, self.run),
            )
        )

    def complete(self, connection: Connection, child: str) -> None:
        ask(connection, "select teguh.complete_run('q', %s)", (self.runs[child],))


def children(connection: Connection, run: object, count: int, **options: Any) -> list[Row]:
    """Spawn children; return their ids, and which of them are new."""
    tasks = [{"task_name": str(n)} for n in range(count)]
    return ask(
        connection,
        "select task_id, created from teguh.spawn_children('q', %s, 's', %s, %s)",
        (run, json.dumps(tasks), json.dumps(options)),
    )


@pytest.fixture
def family(dsn: str) -> Iterator[Family]:
    """Sessions of a fresh database with a queue `q`."""
    opened = Family(dsn)
    try:
        yield opened
    finally:
        opened.close()


def test_a_child_that_ends_while_the_wait_is_being_written_wakes_its_parent(
    family: Family,
) -> None:
    one, two = family.open(NOW), family.open(NOW)
    family.bear(1)
    ask(one, "begin")
    assert family.wait(one)
    family.complete(two, "0")
    at(two, LATER)
    assert claim(two, 5) == []
    ask(one, "commit")
    assert names(claim(two, 5)) == ["parent"]
    assert not family.wait()


def test_a_wait_that_is_written_while_a_child_ends_is_ended_by_it(family: Family) -> None:
    one, two = family.open(NOW), family.open(NOW)
    family.bear(1)
    ask(one, "begin")
    family.complete(one, "0")
    assert family.wait()
    at(two, LATER)
    assert claim(two, 5) == []
    ask(one, "commit")
    assert names(claim(two, 5)) == ["parent"]


@pytest.mark.parametrize("looked", [True, False])
def test_the_last_two_children_may_end_together(family: Family, looked: bool) -> None:
    one, two, three = (family.open(NOW) for _ in range(3))
    family.bear()
    assert family.wait()
    at(three, LATER)
    ask(one, "begin")
    ask(two, "begin")
    family.complete(one, "0")
    family.complete(two, "1")
    for connection in (one, two):
        if looked:
            assert claim(three, 5) == []
        ask(connection, "commit")
    assert names(claim(three, 5)) == ["parent"]


def test_children_end_beside_a_parent_that_is_being_cancelled(family: Family) -> None:
    one, two = family.open(NOW), family.open(NOW)
    family.bear()
    assert family.wait()
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (family.parent,))
    family.complete(two, "0")
    family.complete(two, "1")
    at(two, LATER)
    assert claim(two, 5) == []
    ask(one, "commit")
    at(two, MUCH_LATER)
    assert claim(two, 5) == []
    assert states(two) == {"cancelled": 1, "completed": 2}


def test_a_parent_that_was_locked_when_its_children_were_counted_is_woken(family: Family) -> None:
    one, two = family.open(NOW), family.open(NOW)
    family.bear()
    assert family.wait()
    family.complete(two, "0")
    family.complete(two, "1")
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (family.parent,))
    at(two, LATER)
    assert claim(two, 5) == []
    ask(one, "rollback")
    at(two, MUCH_LATER)
    assert names(claim(two, 5)) == ["parent"]


def test_a_claim_of_a_woken_parent_that_dies_gives_it_back(family: Family) -> None:
    one, two = family.open(LATER), family.open(NOW)
    family.bear(1)
    assert family.wait()
    family.complete(two, "0")
    ask(one, "begin")
    assert names(claim(one)) == ["parent"]
    ask(two, "select pg_terminate_backend(%s, 10000)", (one.info.backend_pid,))
    at(two, MUCH_LATER)
    assert names(claim(two)) == ["parent"]


def test_a_child_that_its_parent_takes_along_is_not_completed(family: Family) -> None:
    one, two = family.open(NOW), family.open(NOW)
    family.bear(on_parent_end="cancel")
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (family.parent,))
    late = family.start(two, "select teguh.complete_run('q', %s)", (family.runs["0"],))
    family.wait_until_blocked(two)
    ask(one, "commit")
    with pytest.raises(psycopg.DatabaseError) as raised:
        late.result(PATIENCE)
    assert raised.value.sqlstate == "AB001"
    assert states(one) == {"cancelled": 3}


@pytest.mark.parametrize(("end", "outcome"), [("commit", "completed"), ("rollback", "cancelled")])
def test_a_child_that_somebody_holds_ends_with_its_parent_a_moment_later(
    family: Family, end: str, outcome: str
) -> None:
    one, two = family.open(NOW), family.open(NOW)
    family.bear(on_parent_end="cancel")
    ask(one, "begin")
    family.complete(one, "0")
    ask(two, "select teguh.cancel_task('q', %s)", (family.parent,))
    assert states(two) == {"cancelled": 2, "running": 1}
    at(two, LATER)
    assert claim(two, 5) == []
    ask(one, end)
    at(two, MUCH_LATER)
    assert claim(two, 5) == []
    assert states(two) == Counter(["cancelled", "cancelled", outcome])


@pytest.mark.parametrize(("end", "created"), [("commit", False), ("rollback", True)])
def test_two_workers_that_spawn_the_children_of_one_step_spawn_them_once(
    family: Family, end: str, created: bool
) -> None:
    one, two = family.open(NOW), family.open(NOW)
    spawn(one, "parent")
    ((run, _, _),) = claim(one)
    ask(one, "begin")
    first = children(one, run, 3)
    second = family.pool.submit(children, two, run, 3)
    family.wait_until_blocked(two)
    ask(one, end)
    found = second.result(PATIENCE)
    assert [row[1] for row in found] == [created] * 3
    assert ([row[0] for row in found] == [row[0] for row in first]) is not created
    assert states(one) == {"running": 1, "pending": 3}


def test_no_report_is_lost_while_somebody_tries_to_drop_the_parents_queue(family: Family) -> None:
    one, two = family.open(NOW), family.open(NOW)
    ask(one, "select teguh.create_queue('other')")
    spawn(one, "parent")
    ((run, parent, _),) = claim(one)
    tasks = [{"task_name": "c", "queue_name": "other"}] * 30
    ask(
        one,
        "select count(*) from teguh.spawn_children('q', %s, 's', %s)",
        (run, json.dumps(tasks)),
    )
    ask(one, "begin")
    ask(one, "lock table teguh.t_q in access share mode")
    drop = family.start(two, "select teguh.drop_queue('q')")
    family.wait_until_blocked(two)
    for run_id, _, _ in claim(family.watcher, 30, "other"):
        ask(family.watcher, "select teguh.complete_run('other', %s)", (run_id,))
    ask(family.watcher, "select pg_cancel_backend(%s)", (two.info.backend_pid,))
    with pytest.raises(psycopg.errors.QueryCanceled):
        drop.result(PATIENCE)
    ask(one, "commit")
    assert value(one, "select count(*) from teguh.f_q where task_id = %s", (parent,)) == 30


def test_ten_thousand_children_come_back_in_the_order_in_which_they_were_spawned(
    family: Family,
) -> None:
    ask(family.watcher, "select teguh.create_queue('small')")
    spawn(family.watcher, "parent")
    ((run, parent, _),) = claim(family.watcher, timeout=3600)
    family.run, family.parent = run, parent
    tasks = [
        {"task_name": "c", "queue_name": "q" if n % 3 else "small", "params": n}
        for n in range(10000)
    ]
    ask(
        family.watcher,
        "select count(*) from teguh.spawn_children('q', %s, 's', %s)",
        (run, json.dumps(tasks)),
    )
    assert family.wait()

    def work(queue: str) -> None:
        connection = family.open(NOW)
        while value(
            connection,
            "select count(*) from teguh.complete_runs(%(q)s, (select coalesce(jsonb_agg("
            " jsonb_build_object('run_id', c.run_id, 'state', c.params)), '[]')"
            " from teguh.claim_task(%(q)s, 'w', 3600, 250) as c))",
            {"q": queue},
        ):
            pass

    for done in [family.pool.submit(work, queue) for queue in ("q", "small", "q", "small")]:
        done.result()
    at(family.watcher, LATER)
    assert names(claim(family.watcher, 5)) == ["parent"]
    found = value(
        family.watcher,
        "select payload from teguh.await_children('q', %s, %s, 's')",
        (parent, run),
    )
    assert [(one["state"], one["result"]) for one in found] == [
        ("completed", n) for n in range(10000)
    ]


class Killed(Exception):
    """The session of the worker was terminated."""


class Mortal:
    """A worker whose session is killed, once, after a number of statements."""

    def __init__(self, sessions: Sessions, fuse: int) -> None:
        self.sessions = sessions
        self.fuse = fuse
        self.now = datetime(2031, 5, 1, tzinfo=UTC)
        self.connect()

    def connect(self) -> None:
        self.connection = self.sessions.open()
        self.tick(60)

    def tick(self, seconds: int = 1) -> None:
        self.now += timedelta(seconds=seconds)
        ask(
            self.connection,
            "select set_config('teguh.fake_now', %s, false)",
            (self.now.isoformat(),),
        )

    def do(self, query: str, *values: Any) -> list[Row]:
        rows = ask(self.connection, query, values)
        self.fuse -= 1
        if self.fuse == 0:
            ask(
                self.sessions.watcher,
                "select pg_terminate_backend(%s, 10000)",
                (self.connection.info.backend_pid,),
            )
            raise Killed
        return rows

    def end(self, name: str, query: str, *values: Any) -> None:
        """End a run and have an effect, both or neither."""
        self.do("begin")
        self.do("insert into effects values (%s)", name)
        self.do(query, *values)
        self.do("commit")

    def work(self) -> bool:
        """Work on one run; return whether there was one."""
        self.tick()
        rows = self.do("select run_id, task_id, task_name from teguh.claim_task('q', 'w', 30)")
        for run, task, name in rows:
            getattr(self, name, self.other)(run, task, name)
        return len(rows) > 0

    def other(self, run: object, task: object, name: str) -> None:
        self.end(name, "select teguh.complete_run('q', %s)", run)

    def order(self, run: object, task: object, name: str) -> None:
        items = json.dumps([{"task_name": f"item{n}"} for n in range(3)])
        self.do("select count(*) from teguh.spawn_children('q', %s, 's', %s)", run, items)
        ((suspended,),) = self.do(
            "select should_suspend from teguh.await_children('q', %s, %s, 's')", task, run
        )
        if not suspended:
            self.other(run, task, name)

    def ship(self, run: object, task: object, name: str) -> None:
        for step in ("one", "two"):
            self.do(
                "select teguh.add_compensation('q', %s, %s, %s, %s)",
                task, run, step, json.dumps({"task_name": f"un{step}"}),
            )  # fmt: skip
        self.end(name, "select teguh.cancel_task('q', %s)", task)

    def poll(self, run: object, task: object, name: str) -> None:
        ((count,),) = self.do("select count(*) from effects where what = 'poll'")
        if count < 2:
            self.end(name, "select teguh.repeat_run('q', %s, 1)", run)
        else:
            self.other(run, task, name)


SAGA = {
    "sequence": [{"task_name": "poll"}, {"task_name": "ship", "options": {"max_attempts": None}}],
    "compensate": {"task_name": "unorder"},
    "on_failure": {"task_name": "sorry"},
    "max_attempts": None,
    "retry_strategy": {"kind": "none"},
}


def test_a_crash_between_any_two_statements_loses_nothing_and_doubles_nothing(
    family: Family,
) -> None:
    watcher = family.watcher
    ask(watcher, "create table effects (what text not null)")
    for fuse in itertools.count(1):
        worker = Mortal(family, fuse)
        ask(
            worker.connection, "select teguh.spawn_task('q', 'order', '{}', %s)", [json.dumps(SAGA)]
        )
        idle = 0
        while idle < 3:
            try:
                idle = 0 if worker.work() else idle + 1
            except Killed:
                worker.connect()
        effects = Counter(row[0] for row in ask(watcher, "select what from effects"))
        assert effects == dict.fromkeys(
            ["order", "item0", "item1", "item2", "ship", "unone", "untwo", "unorder", "sorry"], 1
        ) | {"poll": 3}, fuse
        tasks = ask(watcher, "select task_name, state, count(*) from teguh.t_q group by 1, 2")
        assert {(name, state) for name, state, _ in tasks} == {
            (name, "cancelled" if name == "ship" else "completed") for name in effects
        }, fuse
        assert {count for _, _, count in tasks} == {1}, fuse
        if worker.fuse > 0:
            assert fuse > 40
            return
        ask(watcher, "truncate effects")
        ask(worker.connection, "select teguh.cleanup_tasks('q', 0)")
