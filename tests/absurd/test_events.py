"""Events, waits and checkpoints, the same on teguh and on absurd itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg.types.json import Jsonb

from tests.absurd.test_runs import NOBODY, at

if TYPE_CHECKING:
    from tests.absurd.calls import Calls


def test_a_delivery_clears_wake_event_and_sets_the_payload(jobs: Calls) -> None:
    row = jobs.spawn()
    assert jobs.wait(jobs.claim_one(), "e", 9) == {"should_suspend": True, "payload": None}
    assert jobs.run(row["run_id"])["wake_event"] == "e"
    jobs.call("emit_event", "e", {"n": 1})
    run = jobs.run(row["run_id"])
    assert (run["state"], run["wake_event"], run["event_payload"]) == ("pending", None, {"n": 1})
    woken = jobs.claim_one()
    assert (woken["wake_event"], woken["event_payload"]) == (None, {"n": 1})
    assert jobs.wait(woken, "e") == {"should_suspend": False, "payload": {"n": 1}}


def test_json_null_is_a_delivery(jobs: Calls) -> None:
    jobs.spawn()
    jobs.wait(jobs.claim_one(), "e", 10)
    jobs.call("emit_event", "e", None)
    woken = jobs.claim_one()
    assert woken["wake_event"] is None
    [seen] = jobs.rows("select r.event_payload::text as payload from absurd.r_jobs as r")
    assert seen["payload"] == "null"
    [step] = jobs.relation("c")
    assert (step["checkpoint_name"], step["state"]) == ("wait e", None)
    [result] = jobs.rows(
        "select a.should_suspend, a.payload::text as payload"
        " from absurd.await_event('jobs', %s, %s, 'wait e', 'e') as a",
        woken["task_id"],
        woken["run_id"],
    )
    assert result == {"should_suspend": False, "payload": "null"}


def test_wake_event_is_returned_when_a_wait_timed_out(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.wait(jobs.claim_one(), "e", 10)
    assert jobs.run(row["run_id"])["available_at"] == at(10)
    jobs.set_time(10)
    woken = jobs.claim_one()
    assert (woken["wake_event"], woken["event_payload"]) == ("e", None)
    assert jobs.relation("w") == []
    assert jobs.wait(woken, "e", 10) == {"should_suspend": False, "payload": None}
    assert jobs.relation("c") == []
    assert jobs.wait(woken, "e", 10)["should_suspend"]


def test_wake_event_is_not_returned_for_any_other_reason(jobs: Calls) -> None:
    row = jobs.spawn()
    first = jobs.claim_one()
    jobs.call("schedule_run", row["run_id"], at(5))
    jobs.set_time(5)
    slept = jobs.claim_one()
    jobs.wait(slept, "e", 60)
    jobs.call("emit_event", "e", Jsonb(1))
    delivered = jobs.claim_one()
    jobs.wait(delivered, "e")
    jobs.wait(delivered, "never", 5)
    jobs.fail(row["run_id"])
    retried = jobs.claim_one()
    claims = [first, slept, delivered, retried]
    assert [claim["wake_event"] for claim in claims] == [None] * 4
    assert [claim["event_payload"] for claim in claims] == [None, None, 1, None]


def test_a_later_attempt_waits_anew_after_a_timeout(jobs: Calls) -> None:
    jobs.spawn()
    jobs.wait(jobs.claim_one(), "e", 10)
    jobs.set_time(10)
    timed_out = jobs.claim_one()
    assert timed_out["wake_event"] == "e"
    jobs.fail(timed_out["run_id"])
    again = jobs.claim_one()
    assert again["wake_event"] is None
    assert jobs.wait(again, "e", 10)["should_suspend"]
    [wait] = jobs.relation("w")
    assert (wait["run_id"], wait["timeout_at"]) == (again["run_id"], at(20))
    jobs.call("emit_event", "e", {"n": 1})
    assert jobs.wait(jobs.claim_one(), "e") == {"should_suspend": False, "payload": {"n": 1}}


def test_a_later_attempt_waits_anew_after_its_lease_expired(jobs: Calls) -> None:
    jobs.spawn()
    jobs.wait(jobs.claim_one(), "e", 10)
    jobs.set_time(10)
    jobs.claim(5)
    jobs.set_time(15)
    again = jobs.claim_one()
    assert (again["attempt"], again["wake_event"]) == (2, None)
    assert jobs.wait(again, "e", 10)["should_suspend"]


def test_an_event_after_the_deadline_wakes_nobody_but_counts_when_asked(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.wait(jobs.claim_one(), "e", 10)
    jobs.set_time(11)
    jobs.call("emit_event", "e", {"n": 1})
    assert jobs.run(row["run_id"])["state"] == "sleeping"
    woken = jobs.claim_one()
    assert (woken["wake_event"], woken["event_payload"]) == ("e", None)
    assert jobs.wait(woken, "e") == {"should_suspend": False, "payload": {"n": 1}}


def test_a_timeout_of_nothing_suspends(jobs: Calls) -> None:
    jobs.spawn()
    assert jobs.wait(jobs.claim_one(), "e", 0)["should_suspend"]
    jobs.set_time(1)
    assert jobs.claim_one()["wake_event"] == "e"


def test_a_wait_without_timeout_sleeps_until_infinity(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.wait(jobs.claim_one(), "e")
    [seen] = jobs.rows(
        "select r.state, r.available_at::text as at from absurd.r_jobs as r where r.run_id = %s",
        row["run_id"],
    )
    assert seen == {"state": "sleeping", "at": "infinity"}
    [wait] = jobs.relation("w")
    assert wait["task_id"] == row["task_id"]
    assert wait["run_id"] == row["run_id"]
    assert (wait["step_name"], wait["event_name"]) == ("wait e", "e")
    assert wait["timeout_at"] is None


def test_an_emit_writes_the_waiters_checkpoint(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.wait(jobs.claim_one(), "e")
    jobs.set_time(5)
    jobs.call("emit_event", "e", {"n": 1})
    [step] = jobs.relation("c")
    assert step == {
        "task_id": row["task_id"],
        "checkpoint_name": "wait e",
        "state": {"n": 1},
        "status": "committed",
        "owner_run_id": row["run_id"],
        "updated_at": at(5),
    }
    assert jobs.relation("w") == []


def test_the_first_emit_wins(jobs: Calls) -> None:
    jobs.call("emit_event", "e", {"n": 1})
    jobs.set_time(5)
    jobs.call("emit_event", "e", {"n": 2})
    assert jobs.relation("e") == [{"event_name": "e", "payload": {"n": 1}, "emitted_at": at(0)}]
    jobs.spawn()
    assert jobs.wait(jobs.claim_one(), "e") == {"should_suspend": False, "payload": {"n": 1}}
    assert jobs.relation("c")[0]["state"] == {"n": 1}


def test_an_event_that_is_only_awaited_has_no_payload(jobs: Calls) -> None:
    jobs.spawn()
    jobs.wait(jobs.claim_one(), "e")
    [event] = jobs.relation("e")
    assert event["payload"] is None
    assert event["emitted_at"].timestamp() == 0


def test_one_event_wakes_all_who_wait(jobs: Calls) -> None:
    for _ in range(3):
        jobs.spawn()
    for row in jobs.claim(60, 3):
        jobs.wait(row, "e")
    jobs.call("emit_event", "e", {"n": 1})
    assert len(jobs.claim(60, 5)) == 3


@pytest.mark.parametrize(("name", "timeout"), [("", None), (None, None), (" ", 1), ("e", -1)])
def test_plain_errors_of_a_wait(jobs: Calls, name: str | None, timeout: int | None) -> None:
    jobs.spawn()
    row = jobs.claim_one()
    error = jobs.error("await_event", row["task_id"], row["run_id"], "s", name, timeout)
    assert error == "P0001"
    if timeout is None:
        assert jobs.error("emit_event", name) == "P0001"


def test_a_checkpoint_that_exists_ends_the_wait_whatever_became_of_the_run(jobs: Calls) -> None:
    jobs.spawn()
    row = jobs.claim_one()
    jobs.checkpoint(row, "wait e", 7)
    jobs.call("cancel_task", row["task_id"])
    assert jobs.wait(row, "e") == {"should_suspend": False, "payload": 7}


# Checkpoints


def test_a_checkpoint_is_read_by_name(jobs: Calls) -> None:
    jobs.spawn()
    row = jobs.claim_one()
    assert jobs.call("get_task_checkpoint_state", row["task_id"], "s") == []
    jobs.checkpoint(row, "s", {"a": 1})
    wanted = {
        "checkpoint_name": "s",
        "state": {"a": 1},
        "status": "committed",
        "owner_run_id": row["run_id"],
        "updated_at": at(0),
    }
    assert jobs.call("get_task_checkpoint_state", row["task_id"], "s") == [wanted]
    assert jobs.call("get_task_checkpoint_states", row["task_id"], row["run_id"]) == [wanted]
    assert jobs.call("get_task_checkpoint_state", NOBODY, "s") == []


def test_checkpoints_of_later_attempts_are_hidden_from_older_runs(jobs: Calls) -> None:
    jobs.spawn()
    first = jobs.claim_one()
    jobs.checkpoint(first, "a", 1)
    jobs.fail(first["run_id"])
    jobs.set_time(1)
    second = jobs.claim_one()
    jobs.checkpoint(second, "b", 2)

    def names(run_id: object) -> list[str]:
        rows = jobs.call("get_task_checkpoint_states", first["task_id"], run_id)
        return [row["checkpoint_name"] for row in rows]

    assert names(first["run_id"]) == ["a"]
    assert names(second["run_id"]) == ["a", "b"]


def test_an_older_attempt_never_overwrites_a_newer_one(jobs: Calls) -> None:
    jobs.spawn()
    first = jobs.claim_one()
    jobs.checkpoint(first, "s", "first")
    jobs.fail(first["run_id"])
    second = jobs.claim_one()
    jobs.checkpoint(second, "s", "second")
    error = jobs.error(
        "set_task_checkpoint_state", first["task_id"], "s", {"late": True}, first["run_id"]
    )
    assert error == "AB002"
    [step] = jobs.relation("c")
    assert (step["state"], step["owner_run_id"]) == ("second", second["run_id"])


def test_checkpoints_are_shown_to_a_run_of_their_task_only(jobs: Calls) -> None:
    jobs.spawn()
    jobs.spawn()
    one, other = jobs.claim(60, 2)
    error = jobs.error("get_task_checkpoint_states", one["task_id"], other["run_id"])
    assert error == "P0001"


def test_a_run_that_sleeps_may_store_a_checkpoint(jobs: Calls) -> None:
    row = jobs.spawn()
    claimed = jobs.claim_one()
    jobs.call("schedule_run", row["run_id"], at(10))
    jobs.checkpoint(claimed, "s", 1, 60)
    assert jobs.relation("c")[0]["state"] == 1
    assert jobs.run(row["run_id"])["state"] == "sleeping"


def test_plain_errors_of_a_checkpoint(jobs: Calls) -> None:
    jobs.spawn()
    row = jobs.claim_one()
    error = jobs.error("set_task_checkpoint_state", row["task_id"], " ", {}, row["run_id"])
    assert error == "P0001"


# Results


def test_the_result_of_a_task(jobs: Calls) -> None:
    row = jobs.spawn(max_attempts=1)

    def result() -> tuple[object, ...]:
        [found] = jobs.call("get_task_result", row["task_id"])
        assert list(found) == ["task_id", "state", "result", "failure_reason"]
        assert found["task_id"] == row["task_id"]
        return found["state"], found["result"], found["failure_reason"]

    assert result() == ("pending", None, None)
    jobs.claim_one()
    assert result() == ("running", None, None)
    jobs.call("schedule_run", row["run_id"], at(1))
    assert result() == ("sleeping", None, None)
    jobs.set_time(1)
    jobs.claim_one()
    jobs.fail(row["run_id"])
    assert result() == ("failed", None, {"message": "no"})
    jobs.call("retry_task", row["task_id"])
    assert result() == ("pending", None, None)
    jobs.call("complete_run", jobs.claim_one()["run_id"], {"ok": True})
    assert result() == ("completed", {"ok": True}, None)


def test_the_result_of_a_cancelled_task(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.claim_one()
    jobs.fail(row["run_id"])
    jobs.call("cancel_task", row["task_id"])
    [found] = jobs.call("get_task_result", row["task_id"])
    assert (found["state"], found["result"], found["failure_reason"]) == ("cancelled", None, None)
