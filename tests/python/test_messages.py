"""Messages: what handlers and clients send to a task, and what it receives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import teguh
from tests.python.support import finished, running, until

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE: teguh.RetryStrategy = {"kind": "none"}


def registry(**handlers: Callable[[Any], Any]) -> teguh.Registry:
    tasks = teguh.Registry()
    for name, handler in handlers.items():
        tasks.task(name)(handler)
    return tasks


def test_a_client_sends_lists_and_receives(client: teguh.Client, queue: str) -> None:
    task = client.spawn_task(queue, "it")
    first = client.send_message(queue, task.task_id, "note", {"n": 1}, idempotency_key="k")
    again = client.send_message(queue, str(task.task_id), "note", {"n": 1}, idempotency_key="k")
    client.send_message(queue, task.task_id, "note")
    assert (first.created, again.created) == (True, False)
    assert first.message_id == again.message_id
    listed = client.list_messages(queue, task.task_id)
    assert [(one.topic, one.payload, one.idempotency_key) for one in listed] == [
        ("note", {"n": 1}, "k"),
        ("note", None, None),
    ]
    assert listed[0].message_id == first.message_id < listed[1].message_id
    assert listed[0].sent_at <= listed[1].sent_at

    (run,) = client.claim_task(queue, "w")
    step = (queue, run.task_id, run.run_id)
    assert client.receive_message(*step, "one", "note").payload == {"n": 1}
    two = client.receive_message(*step, "two", "note")
    assert (two.should_suspend, two.payload, two.timed_out) == (False, None, False)
    assert client.receive_message(*step, "three", "note", 0).timed_out
    assert client.receive_message(*step, "four", "note", 60).should_suspend
    assert client.list_messages(queue, task.task_id) == []


def test_errors_of_messages_have_classes(client: teguh.Client, queue: str) -> None:
    task = client.spawn_task(queue, "it")
    client.send_message(queue, task.task_id, "note", 1, idempotency_key="k")
    with pytest.raises(teguh.Conflict):
        client.send_message(queue, task.task_id, "note", 2, idempotency_key="k")
    with pytest.raises(teguh.TaskNotFound):
        client.send_message(queue, "00000000-0000-7000-8000-000000000000", "note")
    with pytest.raises(teguh.TaskNotFound):
        client.list_messages(queue, "00000000-0000-7000-8000-000000000000")
    with pytest.raises(teguh.InvalidOption):
        client.send_message(queue, task.task_id, "")
    with pytest.raises(teguh.NotStorable):
        client.send_message(queue, task.task_id, "note", object())
    client.set_queue_policy(queue, max_messages=1)
    with pytest.raises(teguh.QueueFull):
        client.send_message(queue, task.task_id, "note")
    client.cancel_task(queue, task.task_id)
    with pytest.raises(teguh.WrongState):
        client.send_message(queue, task.task_id, "note")


def test_a_message_is_sent_if_and_only_if_the_caller_commits(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    task = client.spawn_task(queue, "it")
    with psycopg.connect(dsn) as connection:
        teguh.Client(connection).send_message(queue, task.task_id, "note")
        connection.rollback()
        teguh.Client(connection).send_message(queue, task.task_id, "note", "kept")
    assert [one.payload for one in client.list_messages(queue, task.task_id)] == ["kept"]


def test_a_handler_receives_each_message_once_and_a_replay_the_same(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    seen: list[list[Any]] = []

    def handler(ctx: teguh.TaskContext) -> list[Any]:
        found = [ctx.receive("note") for _ in range(3)]
        seen.append(found)
        if ctx.failures == 0:
            raise ValueError("replay")
        return found

    task = client.spawn_task(queue, "it", max_attempts=2, retry_strategy=AT_ONCE)
    client.send_message(queue, task.task_id, "note", "before")
    with running(dsn, queue, registry(it=handler)):
        until(lambda: client.get_task_result(queue, task.task_id).state == "sleeping")
        client.send_message(queue, task.task_id, "note", None)
        client.send_message(queue, task.task_id, "note", "after")
        result = finished(client, queue, task.task_id)
    assert result.completed_payload == ["before", None, "after"]
    assert seen == [["before", None, "after"]] * 2


def test_a_message_wakes_an_idle_worker_that_does_not_poll(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    task = client.spawn_task(queue, "it")
    with running(dsn, queue, registry(it=lambda ctx: ctx.receive("note")), poll_interval=3600):
        until(lambda: client.get_task_result(queue, task.task_id).state == "sleeping")
        client.send_message(queue, task.task_id, "note", "hello")
        assert finished(client, queue, task.task_id).completed_payload == "hello"


def test_a_message_that_does_not_come_in_time_is_an_event_that_did_not(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    def handler(ctx: teguh.TaskContext) -> str:
        try:
            ctx.receive("note", timeout=0.1)
        except teguh.EventTimeout:
            client.send_message(queue, ctx.task_id, "note", "late")
            if ctx.failures == 0:
                raise ValueError("replay") from None
            return str(ctx.receive("note", timeout=0))
        return "in time"

    task = client.spawn_task(queue, "it", max_attempts=2, retry_strategy=AT_ONCE)
    with running(dsn, queue, registry(it=handler), poll_interval=0.1):
        assert finished(client, queue, task.task_id).completed_payload == "late"


def test_two_tasks_talk_with_each_other(dsn: str, client: teguh.Client, queue: str) -> None:
    def asks(ctx: teguh.TaskContext) -> list[Any]:
        answers = []
        for n in range(3):
            ctx.send(ctx.params["to"], "question", {"from": str(ctx.task_id), "n": n})
            answers.append(ctx.receive("answer", timeout=60))
            if ctx.failures == n:
                raise ValueError("replay")
        return answers

    async def answers(ctx: teguh.AsyncTaskContext) -> None:
        for _ in range(3):
            question = await ctx.receive("question")
            await ctx.send(question["from"], "answer", question["n"] * 2, queue=queue)

    other = client.spawn_task(queue, "answers")
    task = client.spawn_task(
        queue, "asks", {"to": str(other.task_id)}, max_attempts=4, retry_strategy=AT_ONCE
    )
    with running(dsn, queue, registry(asks=asks, answers=answers), poll_interval=0.1):
        assert finished(client, queue, task.task_id).completed_payload == [0, 2, 4]
        assert finished(client, queue, other.task_id).state == "completed"
    assert client.list_messages(queue, other.task_id) == []


def test_a_task_that_repeats_works_its_mailbox_off(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    def handler(ctx: teguh.TaskContext) -> int:
        work = ctx.receive("work", step="next")
        with psycopg.connect(dsn) as connection:
            connection.execute("insert into done values (%s)", [work])
        if work < 3:
            ctx.repeat()
        return int(work)

    client.connection.execute("create table done (work integer not null)")
    task = client.spawn_task(queue, "it", max_attempts=1)
    for work in (1, 2):
        client.send_message(queue, task.task_id, "work", work)
    with running(dsn, queue, registry(it=handler)):
        until(lambda: client.get_task_result(queue, task.task_id).state == "sleeping")
        client.send_message(queue, task.task_id, "work", 3)
        assert finished(client, queue, task.task_id).completed_payload == 3
    rows = client.connection.execute("select work from done").fetchall()
    assert rows == [(1,), (2,), (3,)]


def test_a_message_to_a_task_that_is_over_is_the_handlers_error(
    dsn: str, client: teguh.Client, queue: str
) -> None:
    def handler(ctx: teguh.TaskContext) -> str:
        try:
            ctx.send(ctx.params, "note", step="tell")
        except teguh.WrongState:
            return "over"
        return "sent"

    gone = client.spawn_task(queue, "gone")
    client.cancel_task(queue, gone.task_id)
    task = client.spawn_task(queue, "it", str(gone.task_id), max_attempts=1)
    with running(dsn, queue, registry(it=handler)):
        assert finished(client, queue, task.task_id).completed_payload == "over"
    assert client.get_task_checkpoint_state(queue, task.task_id, "tell") is None
