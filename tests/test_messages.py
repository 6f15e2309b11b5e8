"""Messages, with several sessions and with crashes."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.test_composition import Killed, Mortal
from tests.test_races import PATIENCE, Connection, Sessions, ask, at, claim, names, spawn, value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SEND = "select created from teguh.send_message('q', %s, 'note', %s, %s)"
HEAR = (
    "select should_suspend, payload, timed_out"
    " from teguh.receive_message('q', %s, %s, %s, 'note', %s)"
)


def send(connection: Connection, task: object, payload: object = "hello", **options: Any) -> bool:
    """Send a message; return whether it was created."""
    return bool(value(connection, SEND, (task, json.dumps(payload), json.dumps(options))))


def hear(connection: Connection, run: object, task: object, step: str = "s") -> Any:
    """Receive a message; return its payload, or "suspended"."""
    ((suspended, payload, _),) = ask(connection, HEAR, (task, run, step, None))
    return "suspended" if suspended else payload


@pytest.fixture
def mail(dsn: str) -> Iterator[Sessions]:
    """Sessions of a fresh database with a queue `q`."""
    opened = Sessions(dsn)
    ask(opened.watcher, "select teguh.create_queue('q')")
    try:
        yield opened
    finally:
        opened.close()


class Clock:
    """One clock for all sessions, which goes on by a second before each statement."""

    def __init__(self) -> None:
        self.now = datetime(2031, 5, 1, tzinfo=UTC)

    def tick(self, connection: Connection) -> Connection:
        self.now += timedelta(seconds=1)
        ask(connection, "select set_config('teguh.fake_now', %s, false)", (self.now.isoformat(),))
        return connection


def orders(*lengths: int) -> Iterator[tuple[int, ...]]:
    """Every order in which sessions can take their statements, so many each."""
    if not any(lengths):
        yield ()
    for session, length in enumerate(lengths):
        if length > 0:
            less = [n - (other == session) for other, n in enumerate(lengths)]
            for rest in orders(*less):
                yield (session, *rest)


@pytest.mark.parametrize("sent", ["commit", "rollback"])
@pytest.mark.parametrize("heard", ["commit", "rollback"])
def test_no_wake_up_is_lost_in_whatever_order_statements_come(
    mail: Sessions, sent: str, heard: str
) -> None:
    # someone sends and ends, someone receives and ends, a third looks twice what is due
    clock = Clock()
    sender, receiver, looker = (mail.open() for _ in range(3))
    count = 0
    for order in orders(2, 2, 2):
        clock.tick(receiver)
        task, _ = spawn(receiver)
        ((run, _, _),) = claim(receiver, timeout=3600)
        turns = [0, 0, 0]
        got = []
        for session in order:
            connection = clock.tick((sender, receiver, looker)[session])
            first = turns[session] == 0
            turns[session] += 1
            if session == 2:
                got += claim(looker, timeout=3600)
            elif not first:
                ask(connection, (sent, heard)[session])
            else:
                ask(connection, "begin")
                if session == 0:
                    send(sender, task)
                else:
                    hear(receiver, run, task)

        if sent == "rollback":
            assert claim(clock.tick(looker), timeout=3600) == got == [], order
            send(clock.tick(looker), task)
        clock.tick(looker)
        if value(looker, "select state = 'sleeping' from teguh.t_q where task_id = %s", (task,)):
            got += claim(clock.tick(looker), timeout=3600)
            assert [row[0] for row in got] == [run], order
        assert hear(clock.tick(looker), run, task) == "hello", order
        assert hear(clock.tick(looker), run, task) == "hello", order
        assert value(looker, "select count(*) from teguh.list_messages('q', %s)", (task,)) == 0
        ask(looker, "select teguh.complete_run('q', %s)", (run,))
        count += 1
    assert count == 90


def test_a_receiver_that_was_locked_when_its_mailbox_was_looked_into_is_woken(
    mail: Sessions,
) -> None:
    one, two = mail.open("12:00:00"), mail.open("12:00:00")
    task, _ = spawn(one)
    ((run, _, _),) = claim(one)
    assert hear(one, run, task) == "suspended"
    send(two, task)
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (task,))
    at(two, "12:00:01")
    assert claim(two) == []
    ask(one, "rollback")
    at(two, "12:00:10")
    assert names(claim(two)) == ["a"]


def test_a_sender_waits_for_nobody_and_keeps_nobody_waiting(mail: Sessions) -> None:
    one, two, three = (mail.open() for _ in range(3))
    for connection in (one, two, three):
        ask(connection, "set statement_timeout = '10s'")
    task, _ = spawn(one)
    ((run, _, _),) = claim(one)
    for connection in (one, two, three):
        ask(connection, "begin")
    assert hear(one, run, task) == "suspended"
    assert send(two, task, "two")
    assert send(three, task, "three")
    for connection in (three, two, one):
        ask(connection, "commit")
    found = ask(one, "select payload from teguh.list_messages('q', %s)", (task,))
    assert found == [("two",), ("three",)]


@pytest.mark.parametrize(("end", "created"), [("commit", False), ("rollback", True)])
def test_two_that_send_a_message_of_one_key_send_it_once(
    mail: Sessions, end: str, created: bool
) -> None:
    one, two = mail.open(), mail.open()
    task, _ = spawn(one)
    ask(one, "begin")
    assert send(one, task, idempotency_key="k")
    late = mail.pool.submit(send, two, task, idempotency_key="k")
    mail.wait_until_blocked(two)
    ask(one, end)
    assert late.result(PATIENCE) is created
    assert value(one, "select count(*) from teguh.list_messages('q', %s)", (task,)) == 1


def test_a_sender_with_an_old_snapshot_is_told_to_try_again(mail: Sessions) -> None:
    one, two = mail.open(), mail.open()
    task, _ = spawn(one)
    ask(one, "begin isolation level repeatable read")
    ask(one, "select 1")
    assert send(two, task, idempotency_key="k")
    with pytest.raises(psycopg.errors.SerializationFailure):
        send(one, task, idempotency_key="k")
    ask(one, "rollback")
    ask(one, "begin isolation level repeatable read")
    assert not send(one, task, idempotency_key="k")
    assert send(one, task)
    ask(one, "commit")
    ((run, _, _),) = claim(two)
    assert [hear(two, run, task, step) for step in "abc"] == ["hello", "hello", "suspended"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_workers_that_receive_for_one_step_receive_one_message(
    mail: Sessions, end: str
) -> None:
    one, two = mail.open(), mail.open()
    task, _ = spawn(one)
    ((run, _, _),) = claim(one)
    send(one, task, 1)
    send(one, task, 2)
    ask(one, "begin")
    assert hear(one, run, task) == 1
    late = mail.pool.submit(hear, two, run, task)
    mail.wait_until_blocked(two)
    ask(one, end)
    assert late.result(PATIENCE) == 1
    assert value(one, "select count(*) from teguh.list_messages('q', %s)", (task,)) == 1


def test_a_worker_whose_run_was_taken_receives_nothing(mail: Sessions) -> None:
    one, two = mail.open("12:00:00"), mail.open("12:01:00")
    task, _ = spawn(one, retry_strategy={"kind": "none"})
    ((stale, _, _),) = claim(one, timeout=30)
    send(one, task)
    ask(two, "select teguh.ticker('q')")
    ((run, _, _),) = claim(two)
    with pytest.raises(psycopg.DatabaseError) as raised:
        hear(one, stale, task)
    assert raised.value.sqlstate == "AB002"
    assert hear(two, run, task) == "hello"


def test_a_message_that_was_being_sent_while_its_task_was_removed_is_removed(
    mail: Sessions,
) -> None:
    one, two = mail.open("12:00:00"), mail.open("12:00:00")
    task, _ = spawn(one)
    ask(one, "begin")
    send(one, task)
    ask(two, "select teguh.cancel_task('q', %s)", (task,))
    at(two, "12:00:01")
    assert value(two, "select teguh.cleanup_tasks('q', 0)") == 1
    ask(one, "commit")
    ask(two, "select teguh.ticker('q')")
    assert value(two, "select count(*) from teguh.m_q") == 0


SENDERS, EACH, RECEIVERS = 4, 100, 3


def test_what_many_send_at_once_is_received_once_and_in_the_order_of_each(mail: Sessions) -> None:
    tasks = [spawn(mail.watcher, str(n))[0] for n in range(RECEIVERS)]

    def post(number: int) -> None:
        connection = mail.open()
        for n in range(EACH):
            for task in tasks:
                send(connection, task, [number, n])

    def listen(_: int) -> dict[object, list[Any]]:
        connection = mail.open()
        got: dict[object, list[Any]] = defaultdict(list)
        while not sent.done() or value(
            connection, "select exists (select from teguh.m_q where received_by = '')"
        ):
            for run, task, _ in claim(connection, 2, timeout=600):
                step = value(
                    connection, "select count(*) from teguh.c_q where task_id = %s", [task]
                )
                while hear(connection, run, task, f"s{step}") != "suspended":
                    step += 1
        return got

    sent = mail.pool.submit(lambda: [*mail.pool.map(post, range(SENDERS))])
    for listener in [mail.pool.submit(listen, n) for n in range(2)]:
        listener.result()
    for task in tasks:
        got = [
            tuple(state)
            for (state,) in ask(
                mail.watcher,
                "select state from teguh.c_q where task_id = %s"
                " order by substr(checkpoint_name, 2)::integer",
                (task,),
            )
        ]
        assert Counter(got) == Counter(itertools.product(range(SENDERS), range(EACH)))
        for number in range(SENDERS):
            own = [n for sender, n in got if sender == number]
            assert own == sorted(own)


class Talker(Mortal):
    """A worker of two tasks that talk with each other, whose session is killed once."""

    def say(self, run: object, task: object, step: str, payload: object) -> None:
        """Send the other task a message, and remember that."""
        self.do("begin")
        self.do(
            "select s.created from teguh.t_q as t, teguh.send_message('q', t.task_id, 'note', %s)"
            " as s where t.task_id <> %s",
            json.dumps(payload), task,
        )  # fmt: skip
        self.do("select teguh.set_task_checkpoint_state('q', %s, %s, '1', %s)", task, step, run)
        self.do("commit")

    def listen(self, run: object, task: object, step: str) -> bool:
        """Receive a message and have an effect; return whether there was one."""
        self.do("begin")
        rows = self.do(HEAR, task, run, step, None)
        if not rows[0][0]:
            self.do(
                "insert into effects values (%s, %s) on conflict do nothing",
                step, json.dumps(rows[0][1]),
            )  # fmt: skip
        self.do("commit")
        return not rows[0][0]

    def other(self, run: object, task: object, name: str) -> None:
        known = {
            row[0]
            for row in self.do("select checkpoint_name from teguh.c_q where task_id = %s", task)
        }
        for n in range(2):
            for kind in ("say", "hear") if name == "asks" else ("hear", "say"):
                step = f"{name} {kind} {n}"
                if step in known:
                    continue
                if kind == "say":
                    self.say(run, task, step, step)
                elif not self.listen(run, task, step):
                    return
        self.do("select teguh.complete_run('q', %s)", run)


def test_a_crash_between_any_two_statements_loses_and_doubles_no_message(mail: Sessions) -> None:
    ask(mail.watcher, "create table effects (step text primary key, what jsonb not null)")
    for fuse in itertools.count(1):
        worker = Talker(mail, fuse)
        for name in ("asks", "answers"):
            spawn(worker.connection, name, retry_strategy={"kind": "none"})
        idle = 0
        while idle < 3:
            try:
                idle = 0 if worker.work() else idle + 1
            except Killed:
                worker.connect()
        assert dict(ask(mail.watcher, "select step, what from effects")) == {
            f"{one} hear {n}": f"{other} say {n}"
            for one, other in (("asks", "answers"), ("answers", "asks"))
            for n in range(2)
        }, fuse
        rows: Sequence[Any] = ask(mail.watcher, "select state, count(*) from teguh.t_q group by 1")
        assert rows == [("completed", 2)], fuse
        assert value(mail.watcher, "select count(*) from teguh.m_q where received_by = ''") == 0
        if worker.fuse > 0:
            assert fuse > 40
            return
        ask(mail.watcher, "truncate effects")
        ask(worker.connection, "select teguh.cleanup_tasks('q', 0)")
