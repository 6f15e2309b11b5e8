"""Claims that wait, and streams."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import teguh
from teguh.server import _claims
from teguh.server._app import PREFIX
from teguh.server._routes import stream_stats
from teguh.server._run import allow_connections
from tests.python.support import until
from tests.server.support import Api, api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.servers import Server

CLAIM = "/queues/jobs/tasks/claim"


def waiting(service: Api) -> int:
    """How many claims wait."""
    lines = service.service._claims.lines.values()
    return sum(len(line._waiters) for line in lines)


def at_rest(service: Api) -> bool:
    """Tell whether no line looks, or means to look again before long."""
    lines = [line for line in service.service._claims.lines.values() if line._waiters]
    return all(
        line._look_at > 0
        and not line._changed.is_set()
        and not any(waiter.served for waiter in line._waiters)
        for line in lines
    )


def test_a_task_that_is_spawned_meanwhile_is_handed_to_the_one_who_waits(service: Api) -> None:
    with ThreadPoolExecutor() as pool:
        for number in range(3):
            answer = pool.submit(service.post, CLAIM, wait_seconds=30)
            until(lambda: waiting(service) == 1 and at_rest(service), "the wait")
            service.post("/queues/jobs/tasks", task_name="ship", params=number)
            assert [run["params"] for run in answer.result()] == [number]
    assert waiting(service) == 0


def test_each_of_many_who_wait_gets_one_and_the_first_come_is_the_first_served(
    service: Api,
) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = []
        for number in range(20):
            answers.append(
                pool.submit(service.post, CLAIM, worker_id=f"w{number}", wait_seconds=30)
            )
            until(lambda n=number: waiting(service) == n + 1, "the wait")  # type: ignore[misc]
        until(lambda: at_rest(service), "the end of the first look")
        tasks = [{"task_name": "ship", "params": number} for number in range(20)]
        service.post("/queues/jobs/tasks/batch", tasks=tasks)
        assert [answer.result()[0]["params"] for answer in answers] == list(range(20))


def test_a_wait_ends_empty_when_its_time_is_up(service: Api) -> None:
    assert service.post(CLAIM, wait_seconds=0.05) == []
    assert waiting(service) == 0


def test_who_waits_gets_a_task_when_it_is_due(service: Api) -> None:
    service.post("/queues/jobs/tasks", task_name="later", delay_seconds=0.3)
    assert [run["task_name"] for run in service.post(CLAIM, wait_seconds=30)] == ["later"]


def test_who_waits_gets_a_task_that_is_delayed_meanwhile(service: Api) -> None:
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(service.post, CLAIM, wait_seconds=30)
        until(lambda: waiting(service) == 1 and at_rest(service), "the wait")
        service.post("/queues/jobs/tasks", task_name="later", delay_seconds=0.3)
        assert [run["task_name"] for run in answer.result()] == ["later"]


def test_claims_of_several_queues_and_by_name_wait_too(service: Api) -> None:
    service.put("/queues/mail")
    with ThreadPoolExecutor() as pool:
        every = pool.submit(service.post, "/claim", wait_seconds=30, order="oldest")
        until(lambda: waiting(service) == 1 and at_rest(service), "the wait")
        service.post("/queues/mail/tasks", task_name="send")
        assert [run["queue_name"] for run in every.result()] == ["mail"]
        named = pool.submit(
            service.post, "/claim", wait_seconds=30, queues=["jobs", "mail"], task_names=["pack"]
        )
        until(lambda: waiting(service) == 1 and at_rest(service), "the wait")
        service.post("/queues/jobs/tasks", task_name="ship")
        service.post("/queues/jobs/tasks", task_name="pack")
        assert [run["task_name"] for run in named.result()] == ["pack"]


def test_a_wait_for_a_queue_that_does_not_exist_is_refused_at_once(service: Api) -> None:
    answer = service.call("POST", "/queues/nowhere/tasks/claim", json={"wait_seconds": 30})
    assert (answer.status_code, answer.json()["code"]) == (404, "TG001")
    until(lambda: not service.service._claims.lines, "the end of the line")


def test_a_wait_of_more_than_a_minute_is_refused(service: Api) -> None:
    for seconds in (-1, 60.5):
        answer = service.call("POST", CLAIM, json={"wait_seconds": seconds})
        assert (answer.status_code, answer.json()["code"]) == (400, "TG005")


def hang_up(service: Api, when: Callable[[], object]) -> None:
    """Begin a wait, and close the connection when something holds."""
    url = httpx.URL(service.url)
    body = b'{"wait_seconds": 30, "claim_timeout": 3600}'
    head = (
        f"POST {PREFIX}{CLAIM} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: {service.headers['Authorization']}\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80)) as client:
        client.sendall(head.encode() + body)
        until(when)


def test_who_has_hung_up_waits_no_more(service: Api) -> None:
    hang_up(service, lambda: waiting(service) == 1 and at_rest(service))
    until(lambda: waiting(service) == 0, "the end of the wait")
    service.post("/queues/jobs/tasks", task_name="ship")
    assert len(service.post(CLAIM)) == 1


def test_what_was_claimed_for_one_who_has_gone_meanwhile_is_handed_back(
    service: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = threading.Event(), threading.Event()
    real = _claims.claim

    async def slow(*arguments: Any) -> list[teguh.ClaimedRun]:
        found = await real(*arguments)
        if found and not go.is_set():
            reached.set()
            await asyncio.to_thread(go.wait)
        return found

    monkeypatch.setattr(_claims, "claim", slow)
    with ThreadPoolExecutor() as pool:
        gone = pool.submit(hang_up, service, reached.is_set)
        until(lambda: waiting(service) == 1 and at_rest(service), "the wait")
        service.post("/queues/jobs/tasks", task_name="ship")
        gone.result()
        until(lambda: waiting(service) == 0, "that it is noticed")
        go.set()
        (run,) = service.post(CLAIM, wait_seconds=30)
    assert (run["task_name"], run["failures"]) == ("ship", 0)


IDLE_SECONDS = 6


async def poll(url: str, headers: dict[str, str], seconds: float) -> list[Any]:
    """Send one claim that waits, without a thread."""
    at = httpx.URL(url)
    body = json.dumps({"wait_seconds": seconds}).encode()
    head = (
        f"POST {PREFIX}{CLAIM} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\nAuthorization: {headers['Authorization']}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    lines, _, found = answer.partition(b"\r\n\r\n")
    assert lines.startswith(b"HTTP/1.1 200"), answer
    return list(json.loads(found))


def test_500_who_wait_and_come_again_take_no_thread_and_no_statement_a_second(
    own_server: Server, own_dsn: str
) -> None:
    if allow_connections() < 1200:
        pytest.skip("both ends of 500 connections are in this process, which may not have so many")
    own_server.execute("alter database shop set log_statement = 'all'")

    def statements() -> int:
        return len(re.findall(r"LOG:  (?:statement|execute [^:]+):", own_server.log()))

    async def come_again(until_: float) -> int:
        times = 0
        while time.monotonic() < until_:
            assert await poll(caller.url, caller.headers, 2) == []
            times += 1
        return times

    async def crowd(until_: float) -> list[int]:
        return await asyncio.gather(*(come_again(until_) for _ in range(500)))

    with api(own_dsn) as caller, ThreadPoolExecutor() as pool:
        threads = threading.active_count()
        polls = pool.submit(asyncio.run, crowd(time.monotonic() + 3 * IDLE_SECONDS))
        until(lambda: waiting(caller) == 500 and at_rest(caller), "the crowd")
        before = statements()
        assert before > 0, "the log is not read right"
        time.sleep(IDLE_SECONDS)
        assert statements() - before < IDLE_SECONDS
        assert threading.active_count() == threads + 1  # that of the crowd
        assert min(polls.result()) >= 2


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Yield the events of a stream, with their data."""
    for line in lines:
        if line.startswith("event: "):
            yield line.removeprefix("event: "), json.loads(next(lines).removeprefix("data: "))


def test_a_stream_tells_what_stands_where_whenever_that_changes(service: Api) -> None:
    service.put("/queues/mail")
    path = f"{PREFIX}/streams/stats"
    with service.http.stream("GET", path, params={"queue": "jobs"}) as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        told = events(stream.iter_lines())
        name, row = next(told)
        assert (name, row["queue_name"], row["pending"]) == ("stats", "jobs", 0)
        with Api(service.url, service.service).http as other:
            other.post(f"{PREFIX}/queues/mail/tasks", json={"task_name": "send"})
            other.post(f"{PREFIX}/queues/jobs/tasks", json={"task_name": "ship"})
            name, row = next(told)
            assert (name, row["queue_name"], row["pending"]) == ("stats", "jobs", 1)
            other.delete(f"{PREFIX}/queues/jobs")
            assert ("gone", {"queue_name": "jobs"}) in told


def test_a_stream_tells_when_a_schedule_has_fired(service: Api) -> None:
    at = {"queue": "jobs", "task_name": "tick", "schedule": "@daily"}
    service.put("/schedules/daily", **at)
    with service.http.stream("GET", f"{PREFIX}/streams/schedules") as stream:
        told = events(stream.iter_lines())
        name, row = next(told)
        assert (name, row["schedule_name"], row["last_fired_at"]) == ("schedule", "daily", None)
        with Api(service.url, service.service).http as other:
            fired = other.post(f"{PREFIX}/schedules/daily/trigger").json()
            name, row = next(told)
            assert (name, row["last_task_id"]) == ("schedule", fired["task_id"])


def test_however_many_look_a_stream_asks_once_and_nobody_looks_nothing_is_asked(
    service: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = service.service._feeds[stream_stats]
    real = feed._fetch
    asked: list[int] = []

    async def fetch() -> Any:
        asked.append(len(asked))
        return await real()

    monkeypatch.setattr(feed, "_fetch", fetch)
    with ExitStack() as stack:
        streams = []
        for _ in range(10):
            http = stack.enter_context(Api(service.url, service.service).http)
            stream = stack.enter_context(http.stream("GET", f"{PREFIX}/streams/stats"))
            streams.append(events(stream.iter_lines()))
            assert next(streams[-1])[0] == "stats"
        assert feed._readers == 10
        assert len(asked) <= feed._round + 1
    until(lambda: feed._readers == 0 and feed._task is None, "the end of the feed")


def test_a_stream_tells_that_the_database_does_not_answer_and_goes_on(
    own_server: Server, own_dsn: str
) -> None:
    with (
        api(own_dsn, stream_interval=0.05) as caller,
        caller.http.stream("GET", f"{PREFIX}/streams/stats") as stream,
    ):
        told = events(stream.iter_lines())
        assert next(told)[0] == "stats"
        own_server.kill()
        name, problem = next(told)
        assert name == "error"
        assert set(problem) == {"error", "code", "detail", "hint"}
        own_server.start()
        with teguh.Client.connect(own_dsn) as client:
            client.spawn_task("jobs", "ship")
        assert any(name == "stats" and row["pending"] == 1 for name, row in told)
