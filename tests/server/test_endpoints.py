"""Every endpoint does what its function does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from tests.server.support import Api

NOBODY = str(UUID(int=0))


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
