"""Queues, policies and upkeep, the same on teguh and on absurd itself."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.absurd.test_runs import at

if TYPE_CHECKING:
    from tests.absurd.calls import Calls

# Some are fine with teguh, the others get another name there.
NAMES = [
  "a", "my_template", "template", "Jobs", "with space", 'quo"te', "it's", "%I", "日本語の行列",
  "ü" * 28 + "x", "x" * 55, "x" * 57,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_queue_may_have_any_name_of_57_bytes(jobs: Calls, name: str) -> None:
    jobs.queue = name
    jobs.call("create_queue")
    jobs.call("create_queue")
    names = [row["queue_name"] for row in jobs.rows("select * from absurd.list_queues()")]
    assert sorted(names) == sorted(["jobs", name])
    row = jobs.spawn(params={"n": 1})
    claimed = jobs.claim_one()
    jobs.checkpoint(claimed, "s", 1)
    jobs.wait(claimed, "e", 5)
    jobs.call("emit_event", "e")
    jobs.call("complete_run", jobs.claim_one()["run_id"], {"n": 2})
    assert jobs.task(row["task_id"])["completed_payload"] == {"n": 2}
    assert [len(jobs.relation(letter)) for letter in "trcew"] == [1, 1, 2, 1, 0]
    jobs.call("drop_queue")
    jobs.call("drop_queue")
    assert jobs.error("spawn_task", "job", {}, {}) == "42P01"
    assert jobs.rows("select * from absurd.list_queues()") == [{"queue_name": "jobs"}]
    jobs.call("create_queue")
    assert jobs.relation("t") == []


@pytest.mark.parametrize("name", ["", None, "x" * 58, "ü" * 29])
def test_other_names_are_refused(jobs: Calls, name: str | None) -> None:
    jobs.queue = name  # type: ignore[assignment]
    assert jobs.error("create_queue") == "P0001"
    assert jobs.error("validate_queue_name") == "P0001"


def test_a_partitioned_queue_is_accepted_and_keeps_its_mode(jobs: Calls) -> None:
    jobs.queue = "parts"
    jobs.set_time(0)
    jobs.call("create_queue", " Partitioned ")
    jobs.call("create_queue", "partitioned")
    assert jobs.error("create_queue", "unpartitioned") == "P0001"
    assert jobs.error("create_queue", "both") == "P0001"
    [policy] = jobs.call("get_queue_policy")
    assert (policy["storage_mode"], policy["default_partition"]) == ("partitioned", "enabled")
    row = jobs.spawn(idempotency_key="k")
    assert jobs.spawn(idempotency_key="k")["created"] is False
    assert jobs.claim_one()["run_id"] == row["run_id"]


def test_the_policy_of_a_queue(jobs: Calls) -> None:
    [policy] = jobs.call("get_queue_policy")
    assert policy == {
        "queue_name": "jobs",
        "storage_mode": "unpartitioned",
        "default_partition": "enabled",
        "partition_lookahead": timedelta(days=28),
        "partition_lookback": timedelta(days=1),
        "cleanup_ttl": timedelta(days=30),
        "cleanup_limit": 1000,
        "detach_mode": "none",
        "detach_min_age": timedelta(days=30),
    }
    changes: dict[str, Any] = {
        "cleanup_ttl": "2 hours",
        "cleanup_limit": 5,
        "detach_mode": "EMPTY",
        "detach_min_age": "1 day",
        "partition_lookahead": "3 days",
        "partition_lookback": "0",
    }
    jobs.call("set_queue_policy", changes)
    jobs.call("set_queue_policy", {"cleanup_limit": 6})
    [policy] = jobs.call("get_queue_policy")
    assert policy["cleanup_ttl"] == timedelta(hours=2)
    assert policy["cleanup_limit"] == 6
    assert (policy["detach_mode"], policy["detach_min_age"]) == ("empty", timedelta(days=1))
    assert policy["partition_lookahead"] == timedelta(days=3)
    assert policy["partition_lookback"] == timedelta()
    [row] = jobs.rows("select * from absurd.queues")
    assert {name: row[name] for name in policy} == policy
    assert row["created_at"] is not None


@pytest.mark.parametrize(
    "policy",
    [
        [],
        {"cleanup_tll": "1 day"},
        {"cleanup_ttl": "-1 day"},
        {"cleanup_limit": 0},
        {"detach_mode": "all"},
        {"detach_min_age": "-1 second"},
        {"partition_lookahead": "-1 second"},
        {"partition_lookback": "-1 second"},
        {"default_partition": "disabled"},
    ],
)
def test_a_policy_that_cannot_be(jobs: Calls, policy: Any) -> None:
    assert jobs.error("set_queue_policy", policy) == "P0001"


def test_the_policy_of_no_queue(jobs: Calls) -> None:
    jobs.queue = "nowhere"
    assert jobs.call("get_queue_policy") == []
    for function, values in (
        ("set_queue_policy", ({},)),
        ("cleanup_all_queues", ()),
        ("ensure_partitions", ()),
        ("list_detach_candidates", ()),
        ("enable_cron", ()),
    ):
        assert jobs.error(function, *values) == "P0001"
    jobs.call("drop_queue")


def test_cleanup_removes_what_is_over_long_enough(jobs: Calls) -> None:
    done = jobs.spawn()
    jobs.checkpoint(jobs.claim_one(), "s", 1)
    jobs.call("complete_run", done["run_id"])
    gone = jobs.spawn()
    jobs.call("cancel_task", gone["task_id"])
    jobs.call("emit_event", "e")
    alive = jobs.spawn()
    jobs.set_time(100)
    assert jobs.call("cleanup_tasks", 200) == [{"cleanup_tasks": 0}]
    assert jobs.call("cleanup_events", 200) == [{"cleanup_events": 0}]
    assert jobs.call("cleanup_tasks", 50, 1) == [{"cleanup_tasks": 1}]
    assert jobs.call("cleanup_tasks", 50) == [{"cleanup_tasks": 1}]
    assert jobs.call("cleanup_events", 50) == [{"cleanup_events": 1}]
    assert [row["task_id"] for row in jobs.relation("t")] == [alive["task_id"]]
    assert [row["task_id"] for row in jobs.relation("r")] == [alive["task_id"]]
    assert jobs.relation("c") == jobs.relation("e") == []
    assert jobs.error("cleanup_tasks", -1) == "P0001"
    assert jobs.error("cleanup_events", None) == "P0001"


def test_cleanup_of_all_queues_goes_by_their_policies(jobs: Calls) -> None:
    jobs.call("set_queue_policy", {"cleanup_ttl": "1 minute"})
    jobs.spawn()
    jobs.call("complete_run", jobs.claim_one()["run_id"])
    jobs.call("emit_event", "e")
    jobs.queue = "Other one"
    jobs.call("create_queue")
    jobs.spawn()
    jobs.call("complete_run", jobs.claim_one()["run_id"])
    jobs.set_time(100)
    rows = jobs.rows("select * from absurd.cleanup_all_queues()")
    found = {r["queue_name"]: (r["tasks_deleted"], r["events_deleted"]) for r in rows}
    assert found == {"Other one": (0, 0), "jobs": (1, 1)}
    assert jobs.call("cleanup_all_queues") == [
        {"queue_name": "Other one", "tasks_deleted": 0, "events_deleted": 0}
    ]


def test_the_version_is_one_that_the_tools_know(jobs: Calls) -> None:
    assert jobs.rows("select absurd.get_schema_version() as v") == [{"v": "0.5.1"}]


def test_the_clock_can_be_set(jobs: Calls) -> None:
    jobs.set_time(42)
    assert jobs.rows("select absurd.current_time() as t") == [{"t": at(42)}]
    assert jobs.task(jobs.spawn()["task_id"])["enqueue_at"] == at(42)
    jobs.rows("select set_config('absurd.fake_now', '', false)")
    [row] = jobs.rows("select absurd.current_time() - clock_timestamp() < interval '1 second' as t")
    assert row == {"t": True}
    [row] = jobs.rows(
        "select t.enqueue_at - clock_timestamp() < interval '1 second' as t"
        " from absurd.t_jobs as t where t.task_id = %s",
        jobs.spawn()["task_id"],
    )
    assert row == {"t": True}


def test_the_clock_is_set_for_the_call_only(ours: Calls) -> None:
    with ours.connection.transaction():
        ours.rows("select set_config('absurd.fake_now', '2027-01-01 00:00:42+00', true)")
        ours.spawn()
        assert ours.rows("select teguh.current_time() as t") == [{"t": at(42)}]
        ours.rows("select set_config('absurd.fake_now', '', true)")
        ours.spawn()
        [row] = ours.rows("select teguh.current_time() - now() < interval '1 minute' as t")
        assert row == {"t": True}
    ours.rows("select set_config('absurd.fake_now', '', false)")
    ours.rows("select set_config('teguh.fake_now', '2027-01-01 00:01:00+00', false)")
    ours.spawn()
    assert ours.rows("select absurd.current_time() as t") == [{"t": at(60)}]
    assert [row["enqueue_at"] for row in ours.relation("t")].count(at(60)) == 1


@pytest.mark.parametrize(
    ("day", "week", "tag"),
    [
        ("2024-01-01 00:00+00", "2024-01-01 00:00+00", "401"),
        ("2021-01-01 12:00+00", "2020-12-28 00:00+00", "053"),
        ("2026-06-30 23:59+00", "2026-06-29 00:00+00", "627"),
        ("2025-12-29 00:30+01", "2025-12-22 00:00+00", "552"),
    ],
)
def test_weeks_of_a_time(jobs: Calls, day: str, week: str, tag: str) -> None:
    [row] = jobs.rows(
        "select absurd.week_bucket_utc(%s) = %s::timestamptz as same,"
        " absurd.partition_week_tag(%s) as tag",
        day,
        week,
        day,
    )
    assert row == {"same": True, "tag": tag}


def test_uuids(jobs: Calls) -> None:
    [row] = jobs.rows(
        "select absurd.portable_uuidv7() as new,"
        " absurd.uuidv7_timestamp(absurd.uuidv7_floor('2027-01-01 00:00:00.123+00')) as back,"
        " absurd.uuidv7_floor('2027-01-01 00:00:00.123+00') as floor,"
        " absurd.uuidv7_timestamp(gen_random_uuid()) as other"
    )
    assert row["new"].version == 7
    assert row["back"] == at(0.123)
    assert str(row["floor"])[13:] == "-7000-8000-000000000000"
    assert row["other"] is None
    jobs.queue = "0001-01-01"
    assert jobs.error("uuidv7_floor") == "P0001"


def test_the_delay_of_a_strategy_can_be_asked_for(jobs: Calls) -> None:
    for strategy, attempt, delay in (
        (None, 1, 0),
        ('{"kind": "none"}', 3, 0),
        ('{"kind": "fixed"}', 3, 60),
        ('{"kind": "exponential", "base_seconds": 1}', 4, 8),
        ('{"kind": "exponential", "base_seconds": 1}', 5000, 86400),
        ('{"kind": "exponential", "base_seconds": 1}', 0, 1),
    ):
        [row] = jobs.rows("select absurd.retry_delay_seconds(%s, %s) as d", strategy, attempt)
        assert row["d"] == delay


# Ours only: what partitions and cron do where there is nothing for them to do.


def test_partition_functions_say_that_there_are_none_and_do_nothing(ours: Calls) -> None:
    heard: list[str | None] = []
    ours.connection.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    row = ours.spawn()
    ours.call("ensure_partitions")
    assert ours.call("list_detach_candidates") == []
    assert ours.call("schedule_detach_jobs") == []
    for table in ("t_jobs", "absurd.t_jobs", "teguh.t_jobs"):
        [dropped] = ours.rows("select absurd.drop_detached_partition(%s) as d", table)
        assert dropped == {"d": False}
    assert heard == ["teguh needs no partitions: nothing to do"] * 6
    assert ours.claim_one()["run_id"] == row["run_id"]


def test_cron_needs_pg_cron(ours: Calls) -> None:
    assert ours.error("enable_cron") == "P0001"
    assert ours.error("disable_cron") == "P0001"


def test_claims_tick_so_that_the_dispatch_tables_are_truncated(ours: Calls) -> None:
    ours.rows("select set_config('teguh.segment_bytes', '1', false)")
    for _ in range(12):
        ours.spawn()
        ours.call("complete_run", ours.claim_one()["run_id"])
        # as if ten seconds had passed
        ours.rows("select setval('teguh._ticked', 0)")
    [row] = ours.rows(
        "select pg_sequence_last_value('teguh.ring_jobs') as turns,"
        " (select count(*) from teguh.p0_jobs) + (select count(*) from teguh.p1_jobs) as rows"
    )
    assert row["turns"] > 1
    assert row["rows"] < 24


def test_a_claim_ticks_once_in_ten_seconds(ours: Calls) -> None:
    ours.claim()
    [before] = ours.rows("select pg_sequence_last_value('teguh._ticked') as at")
    ours.claim()
    assert ours.rows("select pg_sequence_last_value('teguh._ticked') as at") == [before]
