"""What goes wrong is told in one form, with the status that fits, and changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest

import teguh
from teguh.server._errors import problem_of
from teguh.server._shape import Misshapen, from_text, parse, read
from tests.python.support import until
from tests.server.support import Api, api

if TYPE_CHECKING:
    import httpx

    from tests.cluster import Cluster

NIL = str(UUID(int=0))
TASKS = "/queues/jobs/tasks"


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the problem that an answer tells."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) == {"error", "code", "detail", "hint"}
    assert problem["code"] == code
    assert problem["error"]
    return problem


def test_what_the_engine_refuses_comes_with_detail_and_hint(service: Api) -> None:
    answer = service.call("POST", TASKS, json={"task_name": "x", "max_attempts": 0})
    problem = refused(answer, 400, "TG005")
    assert problem["detail"]
    assert problem["hint"]
    assert service.get(TASKS) == []


def test_each_kind_of_refusal_has_its_status(service: Api) -> None:
    service.patch("/queues/jobs", max_pending=1)
    task = service.post(TASKS, task_name="x", idempotency_key="k")["task_id"]
    run = service.post(f"{TASKS}/claim")[0]["run_id"]
    at = f"/queues/jobs/runs/{run}"
    call = service.call
    refused(call("GET", "/queues/nowhere"), 404, "TG001")
    refused(call("POST", f"/queues/jobs/runs/{NIL}/complete"), 404, "TG002")
    refused(call("GET", f"{TASKS}/{NIL}"), 404, "TG003")
    refused(call("POST", f"{TASKS}/{task}/retry"), 409, "TG004")
    refused(call("POST", TASKS, json={"task_name": "y", "idempotency_key": "k"}), 409, "TG006")
    service.post(TASKS, task_name="x")
    full = call("POST", TASKS, json={"task_name": "x"})
    refused(full, 429, "TG007")
    assert full.headers["Retry-After"] == "1"
    refused(call("GET", "/schedules/nightly"), 404, "TG008")
    service.post(at + "/complete")
    refused(call("POST", at + "/complete"), 409, "AB002")
    other = service.post(f"{TASKS}/claim")[0]
    service.post(f"{TASKS}/{other['task_id']}/cancel")
    refused(call("POST", f"/queues/jobs/runs/{other['run_id']}/heartbeat", json={"extend_by": 9}),
            409, "AB001")  # fmt: skip
    refused(call("PUT", "/queues/No-Name"), 400, "42602")


NONSENSE: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", TASKS, {"content": b"{"}),
    ("POST", TASKS, {"content": b"[]"}),
    ("POST", TASKS, {"content": b'{"task_name": "x", "params": NaN}'}),
    ("POST", TASKS, {"content": b'{"task_name": "\\ud800"}'}),
    ("POST", TASKS, {"content": b'{"task_name": "x", "params": "\\ud800"}'}),
    ("POST", TASKS, {"content": b'{"task_name": "x", "params": "\\u0000"}'}),
    ("POST", TASKS, {"content": b'{"task_name": "x\\u0000"}'}),
    ("POST", TASKS, {"content": b'{"task_name": "\xff"}'}),
    ("POST", TASKS, {"content": b'{"task_name": "x", "params": ' + b"[" * 100_000 + b"]}"}),
    ("POST", TASKS, {"content": b'{"task_name": "x", "priority": 1' + b"0" * 5000 + b"}"}),
    ("POST", TASKS, {"json": {}}),
    ("POST", TASKS, {"json": {"task_name": None}}),
    ("POST", TASKS, {"json": {"task_name": 1}}),
    ("POST", TASKS, {"json": {"task_name": "x", "colour": "red"}}),
    ("POST", TASKS, {"json": {"task_name": "x", "unique": {"colour": "red"}}}),
    ("POST", TASKS, {"json": {"task_name": "x", "priority": 1.5}}),
    ("POST", TASKS, {"json": {"task_name": "x", "priority": True}}),
    ("POST", TASKS, {"json": {"task_name": "x", "available_at": "2031-05-01T12:00:00"}}),
    ("POST", TASKS, {"json": {"task_name": "x", "available_at": "noon"}}),
    ("POST", TASKS, {"json": {"task_name": "x", "tags": "eu"}}),
    ("POST", TASKS, {"json": {"task_name": "x"}, "params": {"task_name": "y"}}),
    ("POST", TASKS + "/batch", {"json": {"tasks": [{}]}}),
    ("POST", TASKS + "/claim", {"json": {"qty": 2**31}}),
    ("POST", TASKS + "/claim", {"content": b'{"claim_timeout": 1e999}'}),
    ("POST", TASKS + "/claim", {"content": b'{"claim_timeout": 1' + b"0" * 400 + b"}"}),
    ("GET", TASKS, {"params": {"limit": "many"}}),
    ("GET", TASKS, {"params": {"limit": "NaN"}}),
    ("GET", TASKS, {"params": {"limit": [1, 2]}}),
    ("GET", TASKS, {"params": {"colour": "red"}}),
    ("GET", TASKS, {"params": {"state": "lost"}}),
    ("GET", TASKS, {"params": {"state": ["failed", "lost"]}}),
    ("GET", TASKS, {"params": {"older_than_seconds": "Infinity"}}),
    ("GET", TASKS + "/no-uuid", {}),
    ("GET", "/next-fire-time", {"params": {"schedule": "@daily"}}),
    ("POST", "/queues/jobs/pause", {"json": {"only": {"task": "x"}}}),
    ("PUT", "/queues/a%00b", {}),
    ("PUT", "/queues/a%ffb", {}),
]


def test_what_makes_no_sense_is_refused(service: Api) -> None:
    for method, path, options in NONSENSE:
        refused(service.call(method, path, **options), 400, "TG005")
    assert service.get(TASKS) == []
    assert [queue["queue_name"] for queue in service.get("/queues")] == ["jobs"]


def test_a_body_is_limited_also_when_its_length_is_not_said(dsn: str) -> None:
    with api(dsn, max_body=1000) as service:
        service.put("/queues/jobs")
        body = b'{"task_name": "x", "params": "' + b"x" * 1000 + b'"}'
        refused(service.call("POST", TASKS, content=body), 413, "54000")
        refused(service.call("POST", TASKS, content=iter([body[:500], body[500:]])), 413, "54000")
        assert service.get(TASKS) == []
        service.post(TASKS, task_name="x", params="x" * 900)


def test_a_path_or_method_that_does_not_exist_is_told_in_the_same_form(service: Api) -> None:
    refused(service.http.get("/nowhere"), 404, "42883")
    refused(service.call("GET", "/nowhere"), 404, "42883")
    for method, path, allowed in (
        ("POST", "/queues/jobs", {"GET", "HEAD", "PUT", "PATCH", "DELETE"}),
        ("GET", "/queues/jobs/tasks/claim", {"POST"}),
        ("PUT", "/schedules/x/pause", {"POST"}),
    ):
        answer = service.call(method, path)
        refused(answer, 405, "42883")
        assert set(answer.headers["allow"].split(", ")) == allowed


def test_a_database_without_teguh_is_told(empty_dsn: str) -> None:
    with api(empty_dsn) as service:
        problem = refused(service.call("GET", "/queues"), 503, "3F000")
        assert problem["hint"] == "Install teguh with `teguh install`."
        teguh.install(empty_dsn)
        assert service.get("/queues") == []


def test_an_older_schema_is_told(dsn: str) -> None:
    with teguh.Client.connect(dsn) as client:
        client.connection.execute(
            "create or replace function teguh.version() returns text language sql"
            " as $$ select '0.0.1' $$"
        )
    with api(dsn) as service:
        assert refused(service.call("GET", "/queues"), 503, "TG010")["hint"]


def test_a_role_without_rights_is_told(cluster: Cluster, database: str) -> None:
    with api(cluster.guest_dsn(database)) as service:
        assert refused(service.call("GET", "/queues"), 403, "42501")["hint"]


def test_a_database_that_does_not_exist_is_told(cluster: Cluster) -> None:
    with api(cluster.server.dsn("nowhere")) as service:
        assert service.call("GET", "/queues").status_code == 503


def test_who_gets_no_connection_in_time_is_told(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teguh.server._app._CONNECTION_SECONDS", 0.1)
    with (
        api(dsn, pool_size=1) as service,
        psycopg.connect(dsn) as holder,
        ThreadPoolExecutor() as pool,
    ):
        service.put("/queues/jobs")
        holder.execute("lock table teguh.queues")
        first = pool.submit(service.get, "/queues")
        until(lambda: waits_for_lock(dsn), "the lock")
        refused(service.call("GET", "/queues"), 503, "53300")
        holder.rollback()
        assert len(first.result()) == 1


def waits_for_lock(dsn: str) -> bool:
    """Tell whether somebody waits for a lock."""
    with psycopg.connect(dsn) as looker:
        return looker.execute("select from pg_locks where not granted").fetchone() is not None


def test_a_defect_is_told_without_what_it_was(
    service: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise LookupError("a secret")

    monkeypatch.setattr("teguh.server._claims.claim", broken)
    for wait in (0, 5):
        answer = service.call("POST", TASKS + "/claim", json={"wait_seconds": wait})
        refused(answer, 500, "XX000")
        assert "secret" not in answer.text
    assert "a secret" in caplog.text


def test_what_may_succeed_later_is_503() -> None:
    for error in (psycopg.errors.InternalError_(), psycopg.errors.LockNotAvailable()):
        assert problem_of(error)[0] == 503


def test_an_error_of_nobody_is_a_defect() -> None:
    for error in (LookupError("a secret"), psycopg.errors.UndefinedColumn("a secret")):
        status, problem = problem_of(error)
        assert (status, problem.code) == (500, "XX000")
        assert "secret" not in problem.error


def test_shapes_are_read_as_json_means_them() -> None:
    assert read(1.0, int, "x") == 1
    assert read(1, float, "x") == 1.0
    assert read(None, int | None, "x") is None
    assert from_text(["1e3"], float, "x") == 1000.0
    assert from_text(["true"], bool, "x") is True
    assert parse(b'{"a": 1}') == {"a": 1}
    with pytest.raises(Misshapen, match="x is neither true nor false"):
        read(1, bool, "x")
    with pytest.raises(Misshapen, match=r"x\[1\] is no string"):
        read(["a", 1], list[str], "x")
