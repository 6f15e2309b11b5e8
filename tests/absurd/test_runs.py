"""Runs, attempts, errors, leases and retries, the same on teguh and on absurd itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

if TYPE_CHECKING:
    from psycopg.rows import DictRow

    from tests.absurd.calls import Calls

START = datetime(2027, 1, 1, tzinfo=UTC)
NOBODY = UUID("01a20f05-a735-7000-9783-b1efc6b93f01")


def at(seconds: float) -> datetime:
    """So many seconds after the start."""
    return START + timedelta(seconds=seconds)


def ids(rows: list[DictRow]) -> list[UUID]:
    """The ids of runs."""
    return [row["run_id"] for row in rows]


# A run and its attempt


def test_a_run_is_the_one_that_spawn_returned(jobs: Calls) -> None:
    spawned = jobs.spawn()
    assert (spawned["attempt"], spawned["created"]) == (1, True)
    claimed = jobs.claim_one()
    assert claimed["run_id"] == spawned["run_id"]
    assert claimed["task_id"] == spawned["task_id"]
    assert claimed["attempt"] == 1


def test_a_run_keeps_its_id_and_attempt_over_sleeps_awaits_and_wake_ups(jobs: Calls) -> None:
    spawned = jobs.spawn()
    jobs.claim_one()
    jobs.call("schedule_run", spawned["run_id"], at(10))
    assert jobs.claim() == []
    jobs.set_time(10)
    slept = jobs.claim_one()
    assert jobs.wait(slept, "e")["should_suspend"]
    jobs.call("emit_event", "e", {"n": 1})
    woken = jobs.claim_one()
    assert jobs.wait(woken, "never", 5)["should_suspend"]
    jobs.set_time(20)
    timed_out = jobs.claim_one()
    for row in (slept, woken, timed_out):
        assert (row["run_id"], row["attempt"]) == (spawned["run_id"], 1)
    assert jobs.task(spawned["task_id"])["attempts"] == 1
    assert len(jobs.relation("r")) == 1


def test_only_a_failure_makes_a_new_run(jobs: Calls) -> None:
    spawned = jobs.spawn()
    jobs.claim_one()
    jobs.fail(spawned["run_id"])
    again = jobs.claim_one()
    assert again["run_id"] != spawned["run_id"]
    assert again["task_id"] == spawned["task_id"]
    assert again["attempt"] == 2


@pytest.mark.parametrize(("seconds", "state"), [(0, "pending"), (30, "sleeping")])
def test_a_task_counts_attempts_that_were_created_and_names_the_newest_run(
    jobs: Calls, seconds: int, state: str
) -> None:
    spawned = jobs.spawn(retry_strategy={"kind": "fixed", "base_seconds": seconds})
    task = jobs.task(spawned["task_id"])
    assert (task["attempts"], task["last_attempt_run"]) == (1, spawned["run_id"])
    jobs.claim_one()
    jobs.fail(spawned["run_id"])
    task = jobs.task(spawned["task_id"])
    assert (task["attempts"], task["state"]) == (2, state)
    newest = task["last_attempt_run"]
    assert newest != spawned["run_id"]
    run = jobs.run(newest)
    assert (run["attempt"], run["state"], run["available_at"]) == (2, state, at(seconds))
    assert (run["claimed_by"], run["started_at"], run["created_at"]) == (None, None, at(0))
    jobs.set_time(seconds)
    assert jobs.claim_one()["run_id"] == newest
    task = jobs.task(spawned["task_id"])
    assert (task["attempts"], task["last_attempt_run"]) == (2, newest)


def test_the_history_has_one_row_per_attempt(jobs: Calls) -> None:
    spawned = jobs.spawn(max_attempts=3)
    jobs.set_time(1)
    jobs.claim(60, worker="first")
    jobs.set_time(2)
    jobs.fail(spawned["run_id"])
    jobs.set_time(3)
    second = jobs.claim(60, worker="second")[0]
    jobs.set_time(63)
    third = jobs.claim(60, worker="third")[0]
    jobs.set_time(70)
    jobs.call("complete_run", third["run_id"], {"done": True})

    runs = sorted(jobs.relation("r"), key=lambda row: int(row["attempt"]))
    assert ids(runs) == [spawned["run_id"], second["run_id"], third["run_id"]]
    assert [row["state"] for row in runs] == ["failed", "failed", "completed"]
    assert [row["claimed_by"] for row in runs] == ["first", "second", "third"]
    assert [row["claim_expires_at"] for row in runs] == [at(61), at(63), at(123)]
    assert [row["started_at"] for row in runs] == [at(1), at(3), at(63)]
    assert [row["failed_at"] for row in runs] == [at(2), at(63), None]
    assert [row["completed_at"] for row in runs] == [None, None, at(70)]
    assert [row["created_at"] for row in runs] == [at(0), at(2), at(63)]
    assert runs[0]["failure_reason"] == {"message": "no"}
    assert runs[1]["failure_reason"]["name"] == "$ClaimTimeout"
    assert [row["result"] for row in runs] == [None, None, {"done": True}]
    task = jobs.task(spawned["task_id"])
    assert (task["state"], task["completed_payload"]) == ("completed", {"done": True})


# Errors

# function -> arguments after the run's id
ON_A_RUN: dict[str, tuple[Any, ...]] = {
    "complete_run": (None,),
    "schedule_run": (at(100),),
    "fail_run": ({"message": "no"},),
    "extend_claim": (10,),
}


def errors(jobs: Calls, row: DictRow) -> dict[str, str]:
    """What every function of a worker says to a run that is over."""
    task_id, run_id = row["task_id"], row["run_id"]
    found = {name: jobs.error(name, run_id, *rest) for name, rest in ON_A_RUN.items()}
    found["checkpoint"] = jobs.error("set_task_checkpoint_state", task_id, "s", {}, run_id)
    found["await_event"] = jobs.error("await_event", task_id, run_id, "w", "e")
    return found


def test_what_a_cancelled_run_is_told(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.claim_one()
    jobs.call("cancel_task", row["task_id"])
    wanted = dict.fromkeys(("complete_run", "fail_run", "extend_claim"), "AB001")
    wanted |= {"schedule_run": "P0001", "checkpoint": "AB001", "await_event": "AB001"}
    assert errors(jobs, row) == wanted
    jobs.set_time(1000)
    assert errors(jobs, row) == wanted


def test_what_a_failed_run_is_told(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.claim_one()
    jobs.fail(row["run_id"])
    wanted = dict.fromkeys(("complete_run", "fail_run", "extend_claim"), "AB002")
    wanted |= {"schedule_run": "P0001", "checkpoint": "AB002", "await_event": "P0001"}
    assert errors(jobs, row) == wanted
    jobs.call("complete_run", jobs.claim_one()["run_id"])
    assert errors(jobs, row) == wanted


def test_what_a_run_that_failed_for_good_is_told(jobs: Calls) -> None:
    row = jobs.spawn(max_attempts=1)
    jobs.claim_one()
    jobs.fail(row["run_id"])
    assert jobs.task(row["task_id"])["state"] == "failed"
    assert errors(jobs, row)["complete_run"] == "AB002"
    assert errors(jobs, row)["checkpoint"] == "AB002"


def test_what_a_failed_run_of_a_task_that_was_then_cancelled_is_told(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.claim_one()
    jobs.fail(row["run_id"])
    jobs.call("cancel_task", row["task_id"])
    assert errors(jobs, row) == {
        "complete_run": "AB002",
        "fail_run": "AB002",
        "schedule_run": "P0001",
        "extend_claim": "AB001",
        "checkpoint": "AB001",
        "await_event": "AB001",
    }


def test_what_a_completed_run_is_told(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.claim_one()
    jobs.call("complete_run", row["run_id"])
    for name, rest in ON_A_RUN.items():
        assert jobs.error(name, row["run_id"], *rest) == "P0001"
    assert jobs.error("await_event", row["task_id"], row["run_id"], "w", "e") == "P0001"
    jobs.checkpoint(row, "late", 1, 10)
    assert jobs.relation("c")[0]["state"] == 1


def test_what_a_sleeping_run_is_told(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.claim_one()
    jobs.call("schedule_run", row["run_id"], at(100))
    for name in ("complete_run", "schedule_run", "extend_claim"):
        assert jobs.error(name, row["run_id"], *ON_A_RUN[name]) == "P0001"
    assert jobs.error("await_event", row["task_id"], row["run_id"], "w", "e") == "P0001"
    jobs.checkpoint(row, "s", 1, 10)
    jobs.call("fail_run", row["run_id"], *ON_A_RUN["fail_run"])


def test_what_a_run_that_nobody_holds_is_told(jobs: Calls) -> None:
    row = jobs.spawn()
    for name, rest in ON_A_RUN.items():
        assert jobs.error(name, row["run_id"], *rest) == "P0001"
    assert jobs.error("await_event", row["task_id"], row["run_id"], "w", "e") == "P0001"


def test_what_an_unknown_run_or_task_is_told(jobs: Calls) -> None:
    for name, rest in ON_A_RUN.items():
        assert jobs.error(name, NOBODY, *rest) == "P0001"
    assert jobs.error("set_task_checkpoint_state", NOBODY, "s", {}, NOBODY) == "P0001"
    assert jobs.error("await_event", NOBODY, NOBODY, "w", "e") == "P0001"
    assert jobs.error("get_task_checkpoint_states", NOBODY, NOBODY) == "P0001"
    assert jobs.error("cancel_task", NOBODY) == "P0001"
    assert jobs.error("retry_task", NOBODY) == "P0001"
    assert jobs.call("get_task_result", NOBODY) == []


@pytest.mark.parametrize(
    "strategy",
    [
        [],
        {"kind": "linear"},
        {"kind": "fixed", "base_seconds": -1},
        {"kind": "fixed", "base_seconds": 86401},
        {"kind": "fixed", "base_seconds": "soon"},
        {"kind": "fixed", "base_seconds": "NaN"},
        {"kind": "exponential", "factor": -1},
        {"kind": "exponential", "factor": "Infinity"},
        {"kind": "exponential", "max_seconds": 86401},
    ],
)
def test_a_bad_retry_strategy_is_refused(jobs: Calls, strategy: Any) -> None:
    assert jobs.error("spawn_task", "job", {}, {"retry_strategy": strategy}) == "AB003"
    assert jobs.relation("t") == []
    with pytest.raises(psycopg.Error) as caught:
        jobs.rows("select absurd.retry_delay_seconds(%s, 1)", Jsonb(strategy))
    assert caught.value.sqlstate == "AB003"


def test_plain_errors_of_a_spawn(jobs: Calls) -> None:
    assert jobs.error("spawn_task", " ", {}, {}) == "P0001"
    assert jobs.error("spawn_task", "job", {}, {"max_attempts": 0}) == "P0001"
    jobs.queue = "nowhere"
    assert jobs.error("spawn_task", "job", {}, {}) == "42P01"


# Leases


def test_a_heartbeat_sets_the_lease_to_now_plus_n(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.claim(60)
    jobs.set_time(10)
    for seconds in (600, 5):
        jobs.call("extend_claim", row["run_id"], seconds)
        assert jobs.run(row["run_id"])["claim_expires_at"] == at(10 + seconds)


def test_a_checkpoint_sets_the_lease_to_now_plus_n(jobs: Calls) -> None:
    jobs.spawn()
    row = jobs.claim_one()
    jobs.set_time(10)
    for seconds in (600, 5):
        jobs.checkpoint(row, "s", 1, seconds)
        assert jobs.run(row["run_id"])["claim_expires_at"] == at(10 + seconds)


@pytest.mark.parametrize("seconds", [0, -1, None])
def test_a_heartbeat_of_nothing_is_an_error(jobs: Calls, seconds: int | None) -> None:
    jobs.spawn()
    assert jobs.error("extend_claim", jobs.claim_one()["run_id"], seconds) == "P0001"


@pytest.mark.parametrize("seconds", [0, -1, None])
def test_a_checkpoint_with_nothing_leaves_the_lease(jobs: Calls, seconds: int | None) -> None:
    jobs.spawn()
    row = jobs.claim_one()
    jobs.set_time(10)
    jobs.checkpoint(row, "s", 1, seconds)
    assert jobs.run(row["run_id"])["claim_expires_at"] == at(60)


@pytest.mark.parametrize("timeout", [0, -5])
def test_a_claim_without_timeout_has_no_end(jobs: Calls, timeout: int) -> None:
    jobs.spawn()
    [row] = jobs.claim(timeout)
    assert jobs.run(row["run_id"])["claim_expires_at"] is None
    jobs.set_time(1e8)
    assert jobs.claim() == []
    assert jobs.error("extend_claim", row["run_id"], 10) == "P0001"
    jobs.checkpoint(row, "s", 1, 10)
    assert jobs.run(row["run_id"])["claim_expires_at"] is None


def test_a_lease_that_expires_is_a_failed_attempt_and_the_same_claim_returns_the_retry(
    jobs: Calls,
) -> None:
    row = jobs.spawn(max_attempts=2)
    jobs.claim(30)
    jobs.set_time(30)
    again = jobs.claim_one(30)
    assert (again["task_id"], again["attempt"]) == (row["task_id"], 2)
    first = jobs.run(row["run_id"])
    assert first["state"] == "failed"
    reason = first["failure_reason"]
    assert (reason["name"], reason["workerId"], reason["attempt"]) == ("$ClaimTimeout", "w", 1)
    assert datetime.fromisoformat(reason["claimExpiredAt"]) == at(30)
    jobs.set_time(60)
    assert jobs.claim() == []
    [result] = jobs.call("get_task_result", row["task_id"])
    assert result["state"] == "failed"
    assert result["failure_reason"]["name"] == "$ClaimTimeout"
    assert result["failure_reason"]["workerId"] == "w"
    assert result["failure_reason"]["attempt"] == 2


# Retries


def test_without_a_strategy_a_retry_is_due_at_once_and_without_limit(jobs: Calls) -> None:
    row = jobs.spawn()
    assert jobs.task(row["task_id"])["retry_strategy"] is None
    for attempt in range(1, 12):
        claimed = jobs.claim_one()
        assert claimed["attempt"] == attempt
        assert claimed["retry_strategy"] is None
        assert claimed["max_attempts"] is None
        jobs.fail(claimed["run_id"])
    assert jobs.task(row["task_id"])["state"] == "pending"


@pytest.mark.parametrize(
    ("strategy", "delays"),
    [
        ({"kind": "none"}, [0, 0, 0]),
        ({"kind": "fixed"}, [60, 60, 60]),
        ({"kind": "fixed", "base_seconds": 5}, [5, 5, 5]),
        ({"kind": "exponential"}, [30, 60, 120]),
        ({"kind": "exponential", "base_seconds": 2, "factor": 3}, [2, 6, 18]),
        ({"kind": "exponential", "base_seconds": 2, "factor": 3, "max_seconds": 7}, [2, 6, 7]),
        ({"kind": "exponential", "base_seconds": 0}, [0, 0, 0]),
        ({"kind": "exponential", "base_seconds": 8, "factor": 0.5}, [8, 4, 2]),
        ({"kind": "exponential", "base_seconds": 8, "factor": 0}, [8, 0, 0]),
        ({"kind": "exponential", "base_seconds": 40000, "factor": 2}, [40000, 80000, 86400]),
    ],
)
def test_the_delay_of_a_strategy(
    jobs: Calls, strategy: dict[str, Any], delays: list[float]
) -> None:
    row = jobs.spawn(retry_strategy=strategy)
    assert jobs.task(row["task_id"])["retry_strategy"] == strategy
    now = 0.0
    for delay in delays:
        jobs.set_time(now)
        claimed = jobs.claim_one()
        assert claimed["retry_strategy"] == strategy
        jobs.fail(claimed["run_id"])
        newest = jobs.task(row["task_id"])["last_attempt_run"]
        assert jobs.run(newest)["available_at"] == at(now + delay)
        now += delay


def test_max_attempts_null_is_no_limit(jobs: Calls) -> None:
    row = jobs.spawn(max_attempts=None)
    jobs.fail(jobs.claim_one()["run_id"])
    assert jobs.task(row["task_id"])["max_attempts"] is None
    assert jobs.claim_one()["attempt"] == 2


def test_max_attempts_bounds_the_runs(jobs: Calls) -> None:
    row = jobs.spawn(max_attempts=2)
    jobs.fail(jobs.claim_one()["run_id"])
    last = jobs.claim_one()
    jobs.fail(last["run_id"])
    task = jobs.task(row["task_id"])
    assert (task["state"], task["attempts"]) == ("failed", 2)
    assert task["last_attempt_run"] == last["run_id"]
    assert jobs.claim() == []


def test_a_given_retry_time_counts_but_is_never_in_the_past(jobs: Calls) -> None:
    row = jobs.spawn(retry_strategy={"kind": "fixed", "base_seconds": 30})
    jobs.set_time(100)
    jobs.fail(jobs.claim_one()["run_id"], at(7))
    newest = jobs.task(row["task_id"])["last_attempt_run"]
    assert jobs.run(newest)["available_at"] == at(100)
    assert jobs.run(newest)["state"] == "pending"
    jobs.fail(jobs.claim_one()["run_id"], at(500))
    newest = jobs.task(row["task_id"])["last_attempt_run"]
    assert jobs.run(newest)["available_at"] == at(500)


def test_a_sleeping_run_may_be_failed_a_pending_one_may_not(jobs: Calls) -> None:
    row = jobs.spawn()
    assert jobs.error("fail_run", row["run_id"], {}) == "P0001"
    jobs.claim_one()
    jobs.call("schedule_run", row["run_id"], at(100))
    jobs.fail(row["run_id"])
    assert jobs.run(row["run_id"])["state"] == "failed"
    assert jobs.claim_one()["attempt"] == 2


def test_a_waiting_run_may_be_failed_and_the_event_does_not_find_it(jobs: Calls) -> None:
    row = jobs.spawn(retry_strategy={"kind": "fixed", "base_seconds": 30})
    jobs.wait(jobs.claim_one(), "e", 10)
    jobs.fail(row["run_id"])
    assert jobs.relation("w") == []
    jobs.call("emit_event", "e", {"n": 1})
    assert jobs.relation("c") == []
    assert jobs.claim() == []
    jobs.set_time(30)
    again = jobs.claim_one()
    assert (again["attempt"], again["wake_event"], again["event_payload"]) == (2, None, None)


# Limits of time


def test_max_delay_cancels_in_a_claim(jobs: Calls) -> None:
    row = jobs.spawn(cancellation={"max_delay": 10})
    jobs.set_time(10)
    assert jobs.claim() == []
    task = jobs.task(row["task_id"])
    assert (task["state"], task["cancelled_at"]) == ("cancelled", at(10))
    assert jobs.run(row["run_id"])["state"] == "cancelled"


def test_max_duration_cancels_in_a_claim(jobs: Calls) -> None:
    row = jobs.spawn(cancellation={"max_duration": 10})
    jobs.claim(60)
    jobs.set_time(10)
    assert jobs.claim() == []
    task = jobs.task(row["task_id"])
    assert (task["state"], task["cancelled_at"]) == ("cancelled", at(10))
    run = jobs.run(row["run_id"])
    assert (run["state"], run["claimed_by"], run["claim_expires_at"]) == ("cancelled", None, None)
    assert jobs.error("extend_claim", row["run_id"], 10) == "AB001"


def test_max_duration_cancels_in_a_failure_and_the_run_stays_failed(jobs: Calls) -> None:
    row = jobs.spawn(
        cancellation={"max_duration": 30}, retry_strategy={"kind": "fixed", "base_seconds": 25}
    )
    jobs.claim_one()
    jobs.set_time(10)
    jobs.fail(row["run_id"])
    task = jobs.task(row["task_id"])
    assert (task["state"], task["cancelled_at"], task["attempts"]) == ("cancelled", at(10), 1)
    assert task["last_attempt_run"] == row["run_id"]
    [run] = jobs.relation("r")
    assert (run["state"], run["failed_at"]) == ("failed", at(10))
    assert run["failure_reason"] == {"message": "no"}
    assert jobs.error("complete_run", row["run_id"]) == "AB002"
    assert jobs.error("extend_claim", row["run_id"], 10) == "AB001"


def test_a_failed_run_is_never_rewritten_to_cancelled(jobs: Calls) -> None:
    row = jobs.spawn(max_attempts=1)
    jobs.claim_one()
    jobs.fail(row["run_id"])
    jobs.call("cancel_task", row["task_id"])
    assert jobs.task(row["task_id"])["state"] == "failed"
    assert jobs.run(row["run_id"])["state"] == "failed"

    row = jobs.spawn(retry_strategy={"kind": "fixed", "base_seconds": 30})
    jobs.claim_one()
    jobs.fail(row["run_id"])
    jobs.call("cancel_task", row["task_id"])
    assert jobs.task(row["task_id"])["state"] == "cancelled"
    states = {run["attempt"]: run["state"] for run in jobs.relation("r", task_id=row["task_id"])}
    assert states == {1: "failed", 2: "cancelled"}


def test_cancelling_what_is_over_changes_nothing(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.call("complete_run", jobs.claim_one()["run_id"])
    jobs.call("cancel_task", row["task_id"])
    assert jobs.task(row["task_id"])["state"] == "completed"


# Retrying a task


def failed(jobs: Calls, **options: Any) -> DictRow:
    """A task that has failed."""
    row = jobs.spawn("job", {"n": 1}, max_attempts=1, **options)
    jobs.claim_one()
    jobs.fail(row["run_id"])
    return row


def test_a_task_is_retried_in_place(jobs: Calls) -> None:
    row = failed(jobs)
    [again] = jobs.call("retry_task", row["task_id"])
    assert (again["task_id"], again["attempt"], again["created"]) == (row["task_id"], 2, False)
    assert again["run_id"] != row["run_id"]
    task = jobs.task(row["task_id"])
    assert (task["state"], task["max_attempts"], task["attempts"]) == ("pending", 2, 2)
    claimed = jobs.claim_one()
    assert (claimed["run_id"], claimed["attempt"]) == (again["run_id"], 2)
    jobs.fail(claimed["run_id"])
    [again] = jobs.call("retry_task", row["task_id"], {"max_attempts": 5})
    assert again["attempt"] == 3
    assert jobs.task(row["task_id"])["max_attempts"] == 5


def test_a_retry_needs_room_for_another_attempt(jobs: Calls) -> None:
    row = failed(jobs)
    assert jobs.error("retry_task", row["task_id"], {"max_attempts": 1}) == "P0001"
    assert jobs.error("retry_task", row["task_id"], {"max_attempts": 0}) == "P0001"


def test_only_a_failed_task_can_be_retried(jobs: Calls) -> None:
    row = jobs.spawn()
    for options in ({}, {"spawn_new": True}):
        assert jobs.error("retry_task", row["task_id"], options) == "P0001"
    jobs.claim_one()
    assert jobs.error("retry_task", row["task_id"]) == "P0001"
    jobs.call("cancel_task", row["task_id"])
    assert jobs.error("retry_task", row["task_id"]) == "P0001"
    row = jobs.spawn()
    jobs.call("complete_run", jobs.claim_one()["run_id"])
    assert jobs.error("retry_task", row["task_id"], {"spawn_new": True}) == "P0001"


def test_spawn_new_copies_everything_but_the_idempotency_key(jobs: Calls) -> None:
    options = {
        "headers": {"h": 1},
        "retry_strategy": {"kind": "exponential", "base_seconds": 7},
        "cancellation": {"max_duration": 99},
        "idempotency_key": "once",
    }
    row = failed(jobs, **options)
    [again] = jobs.call("retry_task", row["task_id"], {"spawn_new": True})
    assert (again["created"], again["attempt"]) == (True, 1)
    assert again["task_id"] != row["task_id"]
    task = jobs.task(again["task_id"])
    for name in ("headers", "retry_strategy", "cancellation"):
        assert task[name] == options[name]
    assert (task["task_name"], task["params"], task["max_attempts"]) == ("job", {"n": 1}, 1)
    assert task["idempotency_key"] is None
    assert set(task) == set(jobs.task(row["task_id"]))
    assert jobs.task(row["task_id"])["state"] == "failed"


# Idempotency


def test_the_same_key_finds_the_same_task(jobs: Calls) -> None:
    row = jobs.spawn(idempotency_key="k")
    again = jobs.spawn("other", {"other": 1}, idempotency_key="k")
    assert again == {**row, "created": False}
    jobs.claim_one()
    jobs.fail(row["run_id"])
    again = jobs.spawn(idempotency_key="k")
    task = jobs.task(row["task_id"])
    assert (again["run_id"], again["attempt"]) == (task["last_attempt_run"], 2)
    assert len(jobs.relation("t")) == 1


# Order


def test_a_claim_takes_the_oldest_first_up_to_a_quantity(jobs: Calls) -> None:
    spawned = []
    for second in range(5):
        jobs.set_time(second)
        spawned.append(jobs.spawn()["run_id"])
    assert ids(jobs.claim(60, 3)) == spawned[:3]
    assert ids(jobs.claim(60, 0)) == spawned[3:4]
    assert ids(jobs.claim(60, 9)) == spawned[4:]


def test_a_blank_worker_is_called_worker(jobs: Calls) -> None:
    row = jobs.spawn()
    jobs.claim(60, worker="")
    assert jobs.run(row["run_id"])["claimed_by"] == "worker"


# Drivers that leave the types of arguments to the server, as Go's does


def test_every_argument_may_be_text(jobs: Calls) -> None:
    def call(function: str, *values: str | None) -> DictRow:
        marks = ", ".join("%s" for _ in values)
        [row] = jobs.rows(f"select * from absurd.{function}({marks})", *values)
        return row

    row = call("spawn_task", "jobs", "job", '{"n": 1}', '{"max_attempts": 2}')
    task_id, run_id = str(row["task_id"]), str(row["run_id"])
    assert call("claim_task", "jobs", "w", "30", "1")["params"] == {"n": 1}
    call("set_task_checkpoint_state", "jobs", task_id, "s", '{"a": 1}', run_id, "60")
    call("extend_claim", "jobs", run_id, "60")
    assert call("get_task_checkpoint_state", "jobs", task_id, "s")["state"] == {"a": 1}
    assert call("get_task_checkpoint_states", "jobs", task_id, run_id)["status"] == "committed"
    call("schedule_run", "jobs", run_id, "2027-01-01 00:00:05+00")
    jobs.set_time(5)
    jobs.claim_one()
    assert call("await_event", "jobs", task_id, run_id, "w", "e", None)["should_suspend"]
    call("emit_event", "jobs", "e", "7")
    jobs.claim_one()
    assert call("await_event", "jobs", task_id, run_id, "w", "e", None)["payload"] == 7
    call("fail_run", "jobs", run_id, '{"message": "no"}', None)
    call("complete_run", "jobs", str(jobs.claim_one()["run_id"]), '{"ok": true}')
    assert call("get_task_result", "jobs", task_id)["result"] == {"ok": True}
    call("cancel_task", "jobs", task_id)
    call("create_queue", "other")
    call("drop_queue", "other")
