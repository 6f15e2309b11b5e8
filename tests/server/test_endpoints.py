"""Every endpoint does what its function does."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
import psycopg

import teguh
from teguh._install import package_version
from teguh.server._routes import ROUTES
from tests.python.support import until
from tests.server.support import Api, api


def claim(service: Api, **options: Any) -> dict[str, Any]:
    """Claim the only task there is."""
    (run,) = service.post("/queues/jobs/tasks/claim", **options)
    return dict(run)


def spawn(service: Api, **options: Any) -> str:
    """Spawn a task and return its id."""
    task = service.post("/queues/jobs/tasks", task_name="ship", params={"order": 1}, **options)
    return str(task["task_id"])


def test_a_queue_is_created_looked_at_changed_and_dropped(service: Api) -> None:
    service.put("/queues/mail", namespace="shop")
    assert [queue["queue_name"] for queue in service.get("/queues")] == ["jobs", "mail"]
    assert service.get("/queues/mail")["namespace"] == "shop"
    service.patch("/queues/mail", max_pending=3, default_max_attempts=None)
    assert service.get("/queues/mail")["max_pending"] == 3
    assert service.get("/namespaces") == {"default": 1, "shop": 1}
    service.delete("/queues/mail")
    assert service.call("GET", "/queues/mail").status_code == 404


def test_a_paused_queue_hands_out_nothing(service: Api) -> None:
    spawn(service)
    service.post("/queues/jobs/pause", reason="a closed shop")
    assert service.post("/queues/jobs/tasks/claim") == []
    assert service.get("/queues/jobs/stats")[0]["paused"] is True
    assert service.get("/queues")[0]["paused_until"] == "9999-12-31T00:00:00Z"
    service.post("/queues/jobs/resume")
    assert claim(service)["task_name"] == "ship"
    assert [(a["action"], a["reason"]) for a in service.get("/queues/jobs/actions")] == [
        ("resume", None), ("pause", "a closed shop")
    ]  # fmt: skip


def test_a_task_is_spawned_claimed_and_completed(service: Api) -> None:
    task = spawn(service, tags=["eu"], headers={"traceparent": "x"})
    run = claim(service, worker_id="curl", claim_timeout=60)
    assert (run["task_id"], run["params"], run["attempt"]) == (task, {"order": 1}, 1)
    assert service.get("/workers")[0]["worker_id"] == "curl"
    service.post(f"/queues/jobs/runs/{run['run_id']}/heartbeat", extend_by=90)
    service.post(f"/queues/jobs/runs/{run['run_id']}/complete", state={"parcel": 7})
    result = service.get(f"/queues/jobs/tasks/{task}/result")
    assert (result["state"], result["completed_payload"]) == ("completed", {"parcel": 7})
    assert service.get(f"/queues/jobs/tasks/{task}")["headers"] == {"traceparent": "x"}
    assert [h["event"] for h in service.get(f"/queues/jobs/tasks/{task}/history")] == [
        "created", "started", "completed"
    ]  # fmt: skip
    assert [r["state"] for r in service.get(f"/queues/jobs/tasks/{task}/runs")] == ["completed"]
    assert service.get("/stats")[0]["completed"] == 1


def test_a_run_fails_is_retried_and_ends_among_the_dead_letters(service: Api) -> None:
    task = spawn(service, retry_strategy={"kind": "none"})
    for number in (1, 2):
        run = claim(service)
        assert run["failures"] == number - 1
        service.post(f"/queues/jobs/runs/{run['run_id']}/fail", reason={"message": "no"})
    (dead,) = service.get("/queues/jobs/dead-letters", task_name="ship")
    assert (dead["task_id"], dead["failure_reason"]) == (task, {"message": "no"})
    assert service.post("/queues/jobs/dead-letters/replay", task_name="pack") == {"replayed": 0}
    assert service.post("/queues/jobs/dead-letters/replay", max_attempts=3) == {"replayed": 1}
    service.post(f"/queues/jobs/runs/{claim(service)['run_id']}/fail", reason="no")
    assert service.post("/queues/jobs/dead-letters/purge", ttl_seconds=0) == {"purged": 1}


def test_a_run_fails_until_a_time_sleeps_and_is_released(service: Api) -> None:
    task = spawn(service)
    run = claim(service)["run_id"]
    service.post(f"/queues/jobs/runs/{run}/release")
    run = claim(service)["run_id"]
    service.post(f"/queues/jobs/runs/{run}/schedule", wake_at="2001-01-01T00:00:00Z")
    run = claim(service)["run_id"]
    service.post(f"/queues/jobs/runs/{run}/fail", reason=None, retry_at="2031-05-01T12:00:00+02:00")
    found = service.get(f"/queues/jobs/tasks/{task}")
    assert (found["state"], found["available_at"]) == ("sleeping", "2031-05-01T10:00:00Z")
    assert service.get("/queues/jobs/next-due") == {"next_due": "2031-05-01T10:00:00Z"}


def test_several_runs_are_completed_at_once(service: Api) -> None:
    service.post("/queues/jobs/tasks/batch", tasks=[{"task_name": "a"}, {"task_name": "b"}])
    first, second = service.post("/queues/jobs/tasks/claim", qty=2)
    lost = first["run_id"]
    service.post(f"/queues/jobs/runs/{lost}/complete")
    done = service.post(
        "/queues/jobs/runs/complete", results={lost: None, second["run_id"]: {"n": 2}}
    )
    assert {d["run_id"]: (d["applied"], d["error"]) for d in done} == {
        lost: (False, "AB002"), second["run_id"]: (True, None)
    }  # fmt: skip


def test_a_run_repeats_and_is_taken_from_its_worker(service: Api) -> None:
    task = spawn(service)
    again = service.post(f"/queues/jobs/runs/{claim(service)['run_id']}/repeat", after_seconds=0)
    assert claim(service)["run_id"] == again["run_id"]
    taken = service.post(f"/queues/jobs/tasks/{task}/requeue", reason="the worker is dead")
    assert claim(service, worker_id="w2")["run_id"] == taken["run_id"]
    assert service.post("/queues/jobs/tasks/requeue", worker_id="w2") == {"requeued": 1}


def test_checkpoints_are_kept_and_found(service: Api) -> None:
    task = spawn(service)
    run = claim(service)["run_id"]
    at = f"/queues/jobs/tasks/{task}/checkpoints"
    for step in ("charge", "a/b c?"):
        path = f"{at}/{quote(step, safe='')}"
        service.put(path, state={"of": step}, owner_run=run, extend_claim_by=60)
        assert service.get(path) == {"state": {"of": step}}
    found = service.get(at, run_id=run)
    assert {c["checkpoint_name"]: c["state"] for c in found} == {
        "charge": {"of": "charge"}, "a/b c?": {"of": "a/b c?"}
    }  # fmt: skip
    assert service.get(f"{at}/unknown") == {"state": None}


def test_a_run_waits_for_an_event(service: Api) -> None:
    task = spawn(service)
    run = claim(service)["run_id"]
    wait = {"task_id": task, "step_name": "paid", "event_name": "paid:1"}
    answer = service.post(f"/queues/jobs/runs/{run}/wait-for-event", **wait, timeout=60)
    assert answer == {"should_suspend": True, "payload": None, "timed_out": False}
    service.post("/queues/jobs/events", event_name="paid:1", payload={"by": "card"})
    woken = claim(service)
    assert (woken["wake_event"], woken["event_payload"]) == ("paid:1", {"by": "card"})
    answer = service.post(f"/queues/jobs/runs/{run}/wait-for-event", **wait)
    assert answer == {"should_suspend": False, "payload": {"by": "card"}, "timed_out": False}


def test_events_are_found_page_by_page(service: Api) -> None:
    for name in ("paid:1", "paid:2", "sent:1", "paid:ä b"):
        service.post("/queues/jobs/events", event_name=name, payload={"of": name})
    at = "/queues/jobs/events"
    page = service.get(at, prefix="paid:", limit=2, emitted=True, created_after="2001-01-01T00:00Z")
    rest = service.get(at, prefix="paid:", limit=2, cursor=page[-1]["cursor"])
    assert [event["event_name"] for event in page + rest] == ["paid:ä b", "paid:2", "paid:1"]
    assert (rest[0]["payload"], rest[0]["waiters"]) == ({"of": "paid:1"}, 0)
    assert service.get(at, awaited=True) == service.get(at, older_than_seconds=60) == []
    assert service.call("GET", at, params={"cursor": "x"}).json()["code"] == "TG005"
    assert service.call("GET", at, params={"emitted": "perhaps"}).status_code == 400


def test_a_run_spawns_children_and_waits_for_them(service: Api) -> None:
    task = spawn(service)
    run = claim(service)["run_id"]
    at = f"/queues/jobs/runs/{run}"
    children = service.post(at + "/children", step_name="all", tasks=[{"task_name": "child"}])
    wait = {"task_id": task, "step_name": "all", "mode": 1, "on_failure": "collect"}
    assert service.post(at + "/wait-for-children", **wait)["should_suspend"] is True
    child = claim(service)
    assert child["task_id"] == children[0]["task_id"]
    service.post(f"/queues/jobs/runs/{child['run_id']}/complete", state=7)
    assert claim(service, wait_seconds=30)["run_id"] == run
    (result,) = service.post(at + "/wait-for-children", **wait)["children"]
    assert (result["state"], result["result"]) == ("completed", 7)


def test_what_a_run_did_is_undone_when_it_fails(service: Api) -> None:
    task = spawn(service, max_attempts=1)
    at = f"/queues/jobs/runs/{claim(service)['run_id']}"
    undo = {"task_name": "refund"}
    service.post(at + "/compensations", task_id=task, step_name="charge", task=undo)
    service.post(at + "/fail", reason="no")
    assert claim(service)["task_name"] == "refund"


def test_tasks_are_cancelled_and_retried(service: Api) -> None:
    task = spawn(service)
    service.post(f"/queues/jobs/tasks/{task}/cancel", reason="a mistake")
    service.post(f"/queues/jobs/tasks/{task}/retry")
    again = service.post("/queues/jobs/tasks/cancel", tags=[], task_name="ship")
    assert again == {"cancelled": 1}
    assert service.post("/queues/jobs/tasks/cancel", everything=True) == {"cancelled": 0}
    new = service.post(f"/queues/jobs/tasks/{task}/retry", spawn_new=True)
    assert new["task_id"] != task


def test_tasks_are_found_page_by_page(service: Api) -> None:
    for number in range(5):
        spawn(service, tags=["odd" if number % 2 else "even"], correlation_id="o")
    query = {"tag": "even", "state": ["pending", "running"], "created_after": "2001-01-01T00:00Z"}
    page = service.get("/queues/jobs/tasks", limit=2, **query)
    rest = service.get("/queues/jobs/tasks", limit=2, cursor=page[-1]["cursor"], **query)
    assert (len(page), len(rest)) == (2, 1)
    assert len({task["task_id"] for task in page + rest}) == 3
    assert service.get("/queues/jobs/tasks", state="failed", older_than_seconds=0.5) == []


def test_a_task_gets_messages_and_waits_for_them(service: Api) -> None:
    task = spawn(service)
    run = claim(service)["run_id"]
    wait = {"task_id": task, "step_name": "first", "topic": "chat"}
    answer = service.post(f"/queues/jobs/runs/{run}/wait-for-message", **wait, timeout=60)
    assert answer["should_suspend"] is True
    at = f"/queues/jobs/tasks/{task}/messages"
    service.post(at, topic="chat", payload="hello", idempotency_key="1")
    assert claim(service, wait_seconds=30)["run_id"] == run
    answer = service.post(f"/queues/jobs/runs/{run}/wait-for-message", **wait)
    assert answer == {"should_suspend": False, "payload": "hello", "timed_out": False}
    service.post(at, topic="other", payload=[1])
    assert [message["topic"] for message in service.get(at)][-1] == "other"


def test_a_task_publishes_attributes_and_is_found_by_them(service: Api) -> None:
    task = spawn(service)
    run = claim(service)["run_id"]
    service.patch(f"/queues/jobs/runs/{run}/attributes", attributes={"shop": "x", "paid": True})
    service.patch(f"/queues/jobs/runs/{run}/attributes", attributes={"shop": None, "parcels": 2})
    found = service.get(f"/queues/jobs/tasks/{task}/attributes")
    assert found == {"paid": True, "parcels": 2}
    for attributes, number in (('{"parcels": 2}', 1), ('{"parcels": 3}', 0)):
        assert len(service.get("/queues/jobs/tasks", attributes=attributes)) == number
    assert service.call("GET", "/queues/jobs/tasks", params={"attributes": "x"}).status_code == 400


def test_workflow_runs_are_created_changed_and_found(service: Api) -> None:
    created = service.post("/workflow-runs", name="order", inputs={"n": 1}, tags=["eu"])
    at = f"/workflow-runs/{created['workflow_run_id']}"
    task = spawn(service, workflow_run_id=created["workflow_run_id"])
    service.patch(at, version="2")
    assert service.get(at)["version"] == "2"
    assert [row["task_id"] for row in service.get(at + "/tasks")] == [task]
    assert len(service.get("/workflow-runs", name="order")) == 1
    assert service.call("GET", f"/workflow-runs/{task}").json()["code"] == "TG009"
    assert service.post("/cleanup-workflow-runs", ttl_seconds=0) == {"deleted": 0}


def test_handlers_of_the_database_are_registered_and_listed(service: Api, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("create schema shop")
        owner.execute(
            "create function shop.ship(job teguh.job) returns jsonb language sql"
            " as $$ select 'null'::jsonb $$"
        )
    at = "/queues/jobs/handlers/ship"
    service.put(at, function="shop.ship")
    assert service.get("/handlers", queue="jobs")[0]["task_name"] == "ship"
    assert service.delete(at) == {"removed": True}
    assert service.delete(at) == {"removed": False}


def test_limits_are_set_and_shown(service: Api) -> None:
    service.put("/limits", queue="jobs", scope="task", name="ship", max_running=1)
    spawn(service)
    spawn(service)
    assert len(service.post("/queues/jobs/tasks/claim", qty=2)) == 1
    (usage,) = service.get("/queues/jobs/limits")
    assert (usage["running"], usage["waiting"]) == (1, 1)


def test_schedules_are_created_changed_fired_and_dropped(service: Api) -> None:
    at = "/schedules/every%2Fnight"
    created = {"queue": "jobs", "task_name": "report", "schedule": "0 3 * * *"}
    service.put(at, **created, timezone="Asia/Tokyo", params={"of": "yesterday"})
    assert service.get(at)["options"]["timezone"] == "Asia/Tokyo"
    service.patch(at, schedule="every 90 seconds")
    service.post(at + "/pause", reason="holidays")
    assert service.get("/schedules", queue="jobs")[0]["paused_at"] is not None
    service.post(at + "/resume")
    fired = service.post(at + "/trigger")
    assert claim(service)["task_id"] == fired["task_id"]
    service.delete(at, reason="no more")
    assert service.get("/schedules") == []
    times = service.get("/next-fire-time", schedule="@daily", after="2031-05-01T12:00:00Z")
    assert times == {"next_fire_time": "2031-05-02T00:00:00Z"}


def test_upkeep_is_done_when_asked_for(service: Api) -> None:
    spawn(service)
    service.post(f"/queues/jobs/runs/{claim(service)['run_id']}/complete")
    service.post("/queues/jobs/events", event_name="paid:1")
    assert service.post("/queues/jobs/cleanup-tasks", ttl_seconds=0) == {"deleted": 1}
    assert service.post("/queues/jobs/cleanup-events", ttl_seconds=0) == {"deleted": 1}
    (cleaned,) = service.post("/cleanup")
    assert cleaned == {"queue_name": "jobs", "tasks_deleted": 0, "events_deleted": 0}
    assert service.post("/queues/jobs/rebuild") == {"waiting": 0}
    assert service.post("/ticker", queue="jobs") == {"claimable": 0}
    assert service.get("/status")["last_tick_at"] is not None
    assert service.get("/version") == {"version": package_version()}


def test_the_service_ticks(dsn: str) -> None:
    with api(dsn, ticker_interval=0.01) as service:
        until(lambda: service.get("/status")["last_tick_at"], "a tick")
    with api(dsn, ticker_interval=0) as service, teguh.Client.connect(dsn) as client:
        before = client.status().last_tick_at
        service.put("/queues/jobs")
        assert client.status().last_tick_at == before


def test_metrics_and_health_are_where_monitoring_looks(service: Api) -> None:
    spawn(service)
    metrics = service.http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'teguh_tasks{queue="jobs",state="pending"' in metrics.text
    health = service.http.get("/health")
    assert health.json()["status"] in ("ok", "degraded")
    assert health.json()["version"] == package_version()
    # whoever has no token is told no more than that
    bare = httpx.get(service.url + "/health")
    assert (bare.status_code, list(bare.json())) == (200, ["status"])
    assert httpx.get(service.url + "/metrics").status_code == 401


def test_every_function_that_a_role_may_call_has_an_endpoint_for_the_same_scopes(
    conn: psycopg.Connection[Any],
) -> None:
    rights = {
        str(name): set(access)
        for name, access in conn.execute("select routine, access from teguh._rights")
    }
    ours = {
        "stream_stats": "queue_stats", "stream_schedules": "list_schedules", "health": "health"
    }  # fmt: skip
    served = {}
    for route in ROUTES:
        name = ours.get(route.call.__name__, route.call.__name__)
        served[name] = set(route.scopes or rights[name])
    assert served == {name: rights[name] for name in served}
    # for roles and servers, and not for those who would rather curl
    assert rights.keys() - served.keys() == {
        "current_time", "portable_uuidv7", "uuidv7_timestamp", "validate_queue_name", "metrics",
        "ticker_loop", "start", "stop", "grant_access", "revoke_access", "work",
        # for handlers in the database
        "step", "sleep_for", "sleep_until", "await", "receive", "children",
    }  # fmt: skip
