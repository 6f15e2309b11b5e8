"""Workflow runs and attributes, with several sessions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.test_races import (
    HAMMERS,
    Connection,
    Sessions,
    ask,
    at,
    claim,
    sessions,
    spawn,
    value,
)

if TYPE_CHECKING:
    from concurrent.futures import Future
    from uuid import UUID

__all__ = ["sessions"]

CREATE = "select workflow_run_id, created from teguh.create_workflow_run(%s, %s)"
KEY = json.dumps({"idempotency_key": "k"})


def create(connection: Connection, name: str = "order", **options: Any) -> UUID:
    """Create a workflow run; return its id."""
    run: UUID
    ((run, _),) = ask(connection, CREATE, (name, json.dumps(options)))
    return run


def run_state(connection: Connection, run: UUID) -> tuple[Any, ...]:
    """Return the status of a workflow run, and how many of its tasks are completed."""
    (row,) = ask(connection, "select status, completed from teguh.get_workflow_run(%s)", (run,))
    return row


def clean(connection: Connection, ttl: float = 0) -> int:
    """Clean up workflow runs; return how many were removed."""
    return int(value(connection, "select teguh.cleanup_workflow_runs(%s)", (ttl,)))


def completed(connection: Connection, run: UUID, queue: str = "q") -> None:
    """Spawn a task of a workflow run and complete it."""
    spawn(connection, queue=queue, workflow_run_id=str(run))
    ((claimed, _, _),) = claim(connection, queue=queue)
    ask(connection, "select teguh.complete_run(%s, %s)", (queue, claimed))


def created_by_two(sessions: Sessions, end: str) -> tuple[list[Any], Future[list[Any]]]:
    """Let a session create a run by a key while another has, which then ends its transaction."""
    one, two = sessions.open(), sessions.open()
    ask(one, "begin")
    first = ask(one, CREATE, ("order", KEY))
    second = sessions.start(two, CREATE, ("order", KEY))
    sessions.wait_until_blocked(two)
    ask(one, end)
    return first, second


def test_whoever_comes_second_with_a_key_gets_the_run_of_the_first(sessions: Sessions) -> None:
    first, second = created_by_two(sessions, "commit")
    assert [first[0][1], second.result()[0]] == [True, (first[0][0], False)]


def test_a_key_is_free_again_when_the_first_rolls_back(sessions: Sessions) -> None:
    first, second = created_by_two(sessions, "rollback")
    ((run, created),) = second.result()
    assert (created, run == first[0][0]) == (True, False)
    assert ask(sessions.watcher, "select workflow_run_id from teguh.workflow_runs") == [(run,)]


def test_the_second_with_a_key_and_another_name_is_refused(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    ask(one, "begin")
    ask(one, CREATE, ("order", KEY))
    second = sessions.start(two, CREATE, ("refund", KEY))
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    with pytest.raises(psycopg.Error, match="belongs to another workflow run") as caught:
        second.result()
    assert caught.value.sqlstate == "TG006"


def test_many_sessions_create_one_run_by_one_key(sessions: Sessions) -> None:
    found = [sessions.start(sessions.open(), CREATE, ("order", KEY)) for _ in range(HAMMERS)]
    rows = [future.result()[0] for future in found]
    assert len({run for run, _ in rows}) == 1
    assert sorted(created for _, created in rows) == [False] * (HAMMERS - 1) + [True]


def test_in_a_repeatable_read_transaction_a_key_is_an_error_to_try_again(
    sessions: Sessions,
) -> None:
    one, two = sessions.open(), sessions.open()
    ask(two, "begin isolation level repeatable read")
    ask(two, "select count(*) from teguh.workflow_runs")
    ask(one, CREATE, ("order", KEY))
    with pytest.raises(psycopg.errors.SerializationFailure):
        ask(two, CREATE, ("order", KEY))


def test_two_changes_of_different_parts_both_last(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    run = create(one)
    update = "select teguh.update_workflow_run(%s, %s)"
    ask(one, "begin")
    ask(one, update, (run, '{"version": "2"}'))
    second = sessions.start(two, update, (run, '{"created_by": "ada"}'))
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    second.result()
    assert ask(
        one, "select version, created_by from teguh.get_workflow_run(%s)", (run,)
    ) == [("2", "ada")]  # fmt: skip


def test_a_run_and_its_tasks_roll_back_together(sessions: Sessions) -> None:
    one = sessions.open()
    ask(one, "begin")
    run = create(one)
    spawn(one, workflow_run_id=str(run))
    assert run_state(one, run) == ("pending", 0)
    ask(one, "rollback")
    with pytest.raises(psycopg.Error) as caught:
        run_state(one, run)
    assert caught.value.sqlstate == "TG009"


def test_a_run_is_in_use_until_the_removal_of_its_last_task_is_committed(
    sessions: Sessions,
) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:00:01")
    run = create(one)
    completed(one, run)
    at(one, "12:00:01")
    ask(one, "begin")
    assert value(one, "select teguh.cleanup_tasks('q', 0)") == 1
    assert clean(two) == 0
    ask(one, "commit")
    assert run_state(two, run) == ("completed", 1)
    at(two, "12:00:02")
    assert clean(two) == 1
    assert ask(two, "select * from teguh.workflow_tallies") == []


def test_a_cleanup_that_rolls_back_has_settled_nothing(sessions: Sessions) -> None:
    one = sessions.open("12:00:00")
    run = create(one)
    completed(one, run)
    at(one, "12:00:01")
    ask(one, "begin")
    assert value(one, "select teguh.cleanup_tasks('q', 0)") == 1
    assert run_state(one, run) == ("completed", 1)
    ask(one, "rollback")
    assert run_state(one, run) == ("completed", 1)
    assert value(one, "select teguh.cleanup_tasks('q', 0)") == 1
    assert run_state(one, run) == ("completed", 1)


def test_two_queues_of_one_run_are_cleaned_up_side_by_side(sessions: Sessions) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:00:01")
    ask(one, "select teguh.create_queue('other')")
    run = create(one)
    completed(one, run)
    completed(one, run, "other")
    at(one, "12:00:01")
    ask(two, "set lock_timeout = '5s'")
    ask(one, "begin")
    assert value(one, "select teguh.cleanup_tasks('q', 0)") == 1
    assert value(two, "select teguh.cleanup_tasks('other', 0)") == 1
    ask(two, "select teguh.update_workflow_run(%s, '{}')", (run,))
    ask(one, "commit")
    assert run_state(two, run) == ("completed", 2)


def test_two_cleanups_of_runs_do_not_wait_for_each_other(sessions: Sessions) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:00:01")
    for _ in range(3):
        create(one)
    at(one, "12:00:01")
    ask(two, "set lock_timeout = '5s'")
    ask(one, "begin")
    assert clean(one) == 3
    assert clean(two) == 0
    ask(one, "rollback")
    assert clean(two) == 3


def test_no_run_is_removed_while_a_queue_is_being_dropped(sessions: Sessions) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:00:01")
    run = create(one)
    completed(one, run)
    at(one, "12:00:01")
    ask(two, "set lock_timeout = '5s'")
    ask(one, "begin")
    ask(one, "select teguh.drop_queue('q')")
    assert run_state(one, run) == ("completed", 1)
    assert clean(two) == 0
    ask(one, "rollback")
    assert run_state(two, run) == ("completed", 1)


def test_a_run_whose_task_is_retried_is_in_use_again(sessions: Sessions) -> None:
    one = sessions.open("12:00:00")
    run = create(one)
    task, _ = spawn(one, workflow_run_id=str(run))
    ask(one, "select teguh.cancel_task('q', %s)", (task,))
    assert run_state(one, run) == ("cancelled", 0)
    at(one, "12:00:01")
    ask(one, "select teguh.retry_task('q', %s)", (task,))
    assert value(one, "select teguh.cleanup_tasks('q', 0)") == 0
    assert clean(one) == 0
    ((claimed, _, _),) = claim(one)
    ask(one, "select teguh.complete_run('q', %s)", (claimed,))
    assert run_state(one, run) == ("completed", 1)


SET = "select teguh.set_attributes('q', %s, %s)"


def test_a_worker_that_lost_its_lease_publishes_nothing(sessions: Sessions) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:00:31")
    task, _ = spawn(one, retry_strategy={"kind": "none"})
    ((lost, _, _),) = claim(one)
    ask(one, SET, (lost, '{"by": "one"}'))
    ((held, _, _),) = claim(two)
    ask(two, SET, (held, '{"by": "two", "n": 2}'))
    with pytest.raises(psycopg.Error) as caught:
        ask(one, SET, (lost, '{"by": "one", "late": true}'))
    assert caught.value.sqlstate == "AB002"
    found = value(one, "select teguh.get_attributes('q', %s)", (task,))
    assert found == {"by": "two", "n": 2}


def test_attributes_set_while_the_task_is_being_cancelled_are_refused(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    task, _ = spawn(one)
    ((run, _, _),) = claim(one)
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (task,))
    late = sessions.start(two, SET, (run, '{"a": 1}'))
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    with pytest.raises(psycopg.Error) as caught:
        late.result()
    assert caught.value.sqlstate == "AB001"


def test_attributes_commit_and_roll_back_with_the_caller(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn(one)
    ((run, task, _),) = claim(one)
    listed = "select task_id from teguh.list_tasks('q', '{\"attributes\": {\"a\": 1}}')"
    for end, found in (("rollback", []), ("commit", [(task,)])):
        ask(one, "begin")
        ask(one, SET, (run, '{"a": 1}'))
        assert ask(one, listed) == [(task,)]
        assert ask(two, listed) == []
        ask(one, end)
        assert ask(two, listed) == found
