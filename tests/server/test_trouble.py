"""The database crashes, the service stops: nothing is lost, and all goes on by itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import pytest

import teguh
from teguh.server._app import PREFIX
from tests.python.support import until
from tests.server.support import SECRETS, Api, api
from tests.server.test_waiting import CLAIM, at_rest, waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.servers import Server


class Load:
    """Clients that spawn, and workers that claim by long polls and complete, until it is over.

    A client keeps what it was told, and tries again after an error, with a key. ``answers`` are
    the statuses, and the names of the errors below HTTP.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.over = threading.Event()
        self.answers: Counter[int | str] = Counter()
        self.spawned: set[str] = set()
        self._headers = {"Authorization": f"Bearer {SECRETS['admin']}"}

    def send(self, http: httpx.Client, path: str, **body: Any) -> Any:
        """Return what an endpoint answers, None if it is no success."""
        try:
            answer = http.post(f"{PREFIX}{path}", json=body)
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            time.sleep(0.02)
            return None
        self.answers[answer.status_code] += 1
        if answer.status_code >= 500:
            assert answer.json()["code"], answer.text
            time.sleep(0.02)
            return None
        return answer.json() if answer.content else {}

    def spawn(self, name: str) -> None:
        """Spawn one task after the other."""
        number = 0
        with self._client() as http:
            while not self.over.is_set():
                key = f"{name}-{number}"
                task = self.send(
                    http, "/queues/jobs/tasks", task_name="ship", params=key, idempotency_key=key
                )
                if task is not None:
                    self.spawned.add(task["task_id"])
                    number += 1
                time.sleep(0.005)

    def work(self) -> None:
        """Work on whatever there is."""
        with self._client() as http:
            while not self.over.is_set():
                runs = self.send(http, CLAIM, qty=5, claim_timeout=2, wait_seconds=0.5) or []
                for run in runs:
                    self.send(http, f"/queues/jobs/runs/{run['run_id']}/complete", state="done")

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self._headers, timeout=30)


@contextmanager
def under_load(url: str) -> Iterator[Load]:
    """Put a service under load, and wait until that has ended."""
    load = Load(url)
    with ThreadPoolExecutor() as pool:
        threads = [pool.submit(load.spawn, f"client{n}") for n in range(2)]
        threads += [pool.submit(load.work) for _ in range(2)]
        try:
            yield load
        finally:
            load.over.set()
    for thread in threads:
        thread.result()


def worked_off(dsn: str, load: Load) -> bool:
    """Complete what is left; tell whether all that was spawned has been completed."""
    drain(dsn)
    with teguh.Client.connect(dsn) as client:
        client.ticker()
        (stats,) = client.queue_stats("jobs")
        assert stats.completed + stats.pending + stats.running + stats.sleeping >= len(load.spawned)
        return stats.pending + stats.running + stats.sleeping == 0


def drain(dsn: str) -> None:
    """Complete what is left."""
    with teguh.Client.connect(dsn) as client:
        for run in client.claim_task("jobs", qty=1000):
            client.complete_run("jobs", run.run_id, "done")


def all_completed(dsn: str, load: Load) -> None:
    """Every task that a client was told of has been completed, and no other is there."""
    until(lambda: worked_off(dsn, load), "the end of the work")
    with teguh.Client.connect(dsn) as client:
        rows = client.connection.execute("select task_id::text, state from teguh.t_jobs").fetchall()
    assert load.spawned <= {task for task, _ in rows}
    assert {state for _, state in rows} == {"completed"}


def test_a_crash_of_the_database_under_load_is_answered_by_503_and_mended(
    own_server: Server, own_dsn: str
) -> None:
    with api(own_dsn) as caller:
        with under_load(caller.url) as load:
            for crash in range(2):
                enough = len(load.spawned) + 50
                until(lambda n=enough: len(load.spawned) > n, "some work")  # type: ignore[misc]
                own_server.kill()
                until(lambda n=crash: load.answers[503] > 10 * (n + 1), "answers")  # type: ignore[misc]
                assert caller.http.get("/health").status_code == 503
                own_server.start()
            enough = len(load.spawned) + 50
            until(lambda: len(load.spawned) > enough, "work as before")
        assert set(load.answers) <= {200, 204, 409, 503}, load.answers
        with ThreadPoolExecutor() as pool:
            drain(own_dsn)
            answer = pool.submit(caller.post, CLAIM, wait_seconds=30)
            until(lambda: answer.done() or (waiting(caller) == 1 and at_rest(caller)), "the wait")
            if not answer.done():
                load.spawned.add(caller.post("/queues/jobs/tasks", task_name="ship")["task_id"])
            assert len(answer.result()) == 1
            (run,) = answer.result()
            caller.post(f"/queues/jobs/runs/{run['run_id']}/complete")
    all_completed(own_dsn, load)


def test_who_waits_while_the_database_crashes_is_told(own_server: Server, own_dsn: str) -> None:
    with api(own_dsn) as caller, ThreadPoolExecutor() as pool:
        answer = pool.submit(caller.call, "POST", CLAIM, json={"wait_seconds": 60})
        until(lambda: waiting(caller) == 1 and at_rest(caller), "the wait")
        own_server.kill()
        told = answer.result()
        assert (told.status_code, told.headers["Retry-After"]) == (503, "1")
        assert told.json()["error"]


def test_a_service_starts_without_its_database(own_server: Server, own_dsn: str) -> None:
    own_server.stop()
    with api(own_dsn) as caller:
        assert caller.call("GET", "/queues").status_code == 503
        assert caller.call("POST", CLAIM, json={"wait_seconds": 60}).status_code == 503
        own_server.start()
        assert len(caller.get("/queues")) == 1


@contextmanager
def process(dsn: str, port: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `teguh serve` on a port, and kill it if it has not ended by then."""
    tokens = " ".join(f"{scope}={secret}" for scope, secret in SECRETS.items())
    serve = subprocess.Popen(
        [sys.executable, "-m", "teguh.cli", "serve", "--dsn", dsn, "--port", str(port), *arguments],
        env={**os.environ, "TEGUH_TOKENS": tokens},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield serve
    finally:
        if serve.poll() is None:
            serve.kill()
        serve.communicate()


def started(serve: subprocess.Popen[str]) -> str:
    """Wait until a service is up, and return its URL."""
    assert serve.stderr is not None
    for line in serve.stderr:
        if found := re.search(r"running on (http://\S+)", line):
            threading.Thread(target=serve.stderr.read, daemon=True).start()
            return found[1]
    raise AssertionError(f"it ended with {serve.wait()}")


def test_a_restart_of_the_service_under_load_loses_nothing(dsn: str) -> None:
    with teguh.Client.connect(dsn) as owner:
        owner.create_queue("jobs")
    with process(dsn, 0) as first:
        url = started(first)
        with under_load(url) as load:
            until(lambda: len(load.spawned) > 50, "some work")
            first.send_signal(signal.SIGTERM)
            assert first.wait(30) == 0
            with process(dsn, int(url.rpartition(":")[2])) as second:
                assert started(second) == url
                enough = len(load.spawned) + 50
                until(lambda: len(load.spawned) > enough, "work as before")
                load.over.set()
    assert 500 not in load.answers
    assert not [answer for answer in load.answers if isinstance(answer, int) and answer > 503]
    all_completed(dsn, load)


def test_a_service_that_is_told_to_stop_ends_waits_and_streams(dsn: str) -> None:
    with teguh.Client.connect(dsn) as owner:
        owner.create_queue("jobs")
    headers = {"Authorization": f"Bearer {SECRETS['admin']}"}
    with process(dsn, 0) as serve, ThreadPoolExecutor() as pool:
        url = started(serve) + PREFIX
        claim = pool.submit(
            httpx.post, url + CLAIM, headers=headers, json={"wait_seconds": 60}, timeout=90
        )
        with httpx.stream("GET", url + "/streams/stats", headers=headers, timeout=90) as stream:
            lines = stream.iter_lines()
            assert "event: stats" in (next(lines) for _ in range(5))
            serve.send_signal(signal.SIGTERM)
            assert [line for line in lines if line.startswith("event")] == []
        answer = claim.result()
        assert (answer.status_code, answer.json()) == (200, [])
        assert serve.wait(30) == 0


def test_a_claim_that_is_under_way_at_the_end_does_not_wait_on(dsn: str) -> None:
    with teguh.Client.connect(dsn) as owner:
        owner.create_queue("jobs")
    headers = {"Authorization": f"Bearer {SECRETS['worker']}"}
    blocked = """
        select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query ~ 'claim_task'
    """
    with (
        process(dsn, 0, "--ticker-interval", "0") as serve,
        psycopg.connect(dsn) as blocker,
        psycopg.connect(dsn, autocommit=True) as watcher,
        ThreadPoolExecutor() as pool,
    ):
        url = started(serve) + PREFIX
        blocker.execute("lock table teguh.p0_jobs")
        claim = pool.submit(
            httpx.post, url + CLAIM, headers=headers, json={"wait_seconds": 60}, timeout=90
        )
        until(lambda: watcher.execute(blocked).fetchone() == (1,), "its wait")
        serve.send_signal(signal.SIGTERM)
        until(lambda: refuses(url), "the end of the service's listening")
        blocker.rollback()
        answer = claim.result()
        assert (answer.status_code, answer.json()) == (200, [])
        assert serve.wait(30) == 0


def refuses(url: str) -> bool:
    """Tell whether nobody takes connections there."""
    try:
        httpx.get(url)
    except httpx.ConnectError:
        return True
    return False


def test_a_port_that_is_taken_ends_with_status_1(service: Api) -> None:
    with process("", httpx.URL(service.url).port or 0) as serve:
        assert serve.wait(30) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "not a loopback address"),  # noqa: S104 - is refused
        (["--token", "client=short"], "at least 16 characters"),
        (["--token", "king=long-enough-a-secret"], "no scope 'king'"),
        (["--token", "long-enough-a-secret"], "client,worker=SECRET"),
        (["--tokens", "/nowhere"], "no tokens can be read"),
        (["--tokens", "/dev/null"], "holds no token"),
        (["--pool-size", "0"], "pool_size must be at least 1"),
        (["--max-body", "0"], "max_body must be at least 1"),
        (["--ticker-interval", "-1"], "ticker_interval must be at least 0"),
        (["--read-only", "--ticker-interval", "5"], "read_only has no ticker_interval"),
    ],
)
def test_what_makes_no_sense_ends_with_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from teguh.cli import main

    assert main(["serve", "--port", "0", *arguments]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "long-enough-a-secret" not in told


@pytest.mark.parametrize("port", ["99999", "-1", "http"])
def test_what_is_no_port_ends_with_status_2(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    from teguh.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["serve", f"--port={port}"])
    assert ended.value.code == 2
    assert f"not a port: '{port}'" in capsys.readouterr().err


def test_the_command_line_can_serve_read_only(dsn: str) -> None:
    with teguh.Client.connect(dsn) as owner:
        owner.create_queue("jobs")
    with process(dsn, 0, "--read-only") as serve, httpx.Client(base_url=started(serve)) as http:
        http.headers["Authorization"] = f"Bearer {SECRETS['admin']}"
        assert http.get(f"{PREFIX}/queues").status_code == 200
        assert http.post(f"{PREFIX}/queues/jobs/tasks", json={"task_name": "x"}).status_code == 403
        assert http.get(f"{PREFIX}/status").json()["last_tick_at"] is None


@pytest.mark.parametrize("module", ["jinja2", "starlette", "uvicorn"])
def test_without_the_extra_the_verb_says_how_to_get_it(module: str) -> None:
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from teguh.cli import main; sys.exit(main(['serve']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'teguh[server]'" in done.stderr
