"""The HTTP service before those who send what no client would."""

from __future__ import annotations

import hmac
import json
import logging
import re
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from teguh.server import _auth
from teguh.server._app import PREFIX
from teguh.server._routes import ROUTES
from tests.server.support import SECRETS, Api, api

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTHORIZATION = f"Authorization: Bearer {SECRETS['admin']}\r\n"
MEGABYTE = "x" * (1 << 20)


@pytest.fixture
def service(dsn: str) -> Iterator[Api]:
    """A service with one connection to its database."""
    with api(dsn, pool_size=1, ticker_interval=0) as caller:
        caller.put("/queues/jobs")
        yield caller


@contextmanager
def sending(service: Api, head: str, seconds: float = 20.0) -> Iterator[socket.socket]:
    """Send the beginning of a request."""
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname or "", address.port or 0), seconds) as link:
        link.sendall(head.replace("HOST", address.netloc).encode("latin-1"))
        yield link


def status(link: socket.socket) -> int:
    """Return the status of the answer, 0 if the connection is closed without one."""
    try:
        found = re.match(rb"HTTP/1\.1 (\d{3})", link.recv(4096))
    except ConnectionError:
        return 0
    return int(found[1]) if found else 0


def test_megabytes_of_headers_are_refused_before_all_of_them_have_come(service: Api) -> None:
    for head in (
        "GET /health HTTP/1.1\r\nHost: HOST\r\nX: ",
        "GET /health HTTP/1.1\r\nHost: HOST\r\n" + "X: y\r\n" * 100_000,
        "GET /health?",
    ):
        with sending(service, head) as link:
            try:
                for _ in range(10):
                    link.sendall(MEGABYTE.encode())
            except ConnectionError:
                continue  # closed in our face
            assert status(link) in (0, 400, 431)
    assert len(service.get("/queues")) == 1


@pytest.mark.parametrize(
    "head",
    [
        f"GET {PREFIX}/queues HTTP/1.1\r\nHost: HOST\r\nX-Bad: a\nb: c\r\n\x00: d\r\n\r\n",
        f"GET {PREFIX}/queues HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        f"GET {PREFIX}/queues HTTP/1.1\r\n\r\n",
        f"GET {PREFIX}/queues\x00 HTTP/1.1\r\nHost: HOST\r\n\r\n",
        f"POST {PREFIX}/queues HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n",
        (
            f"POST {PREFIX}/queues HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n"
            "Content-Length: 2\r\n\r\n"
        ),
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(service: Api, head: str) -> None:
    with sending(service, head) as link:
        assert status(link) in (0, 400)


def test_requests_that_never_end_keep_nobody_from_being_served(service: Api) -> None:
    links = [
        sending(service, head).__enter__()
        for head in (
            "GET /health HTTP/1.1\r\nHost: HOST\r\nX-Slow: ",
            (
                f"POST {PREFIX}/queues/jobs/tasks HTTP/1.1\r\nHost: HOST\r\n{AUTHORIZATION}"
                'Content-Length: 1000\r\n\r\n{"task_name":'
            ),
        )
        for _ in range(100)
    ]
    try:
        assert len(service.get("/queues")) == 1  # its one connection to the database is free
    finally:
        for link in links:
            link.close()


def test_no_body_is_read_of_who_has_no_token_nor_more_than_is_allowed(service: Api) -> None:
    head = f"POST {PREFIX}/queues/jobs/tasks HTTP/1.1\r\nHost: HOST\r\n"
    with sending(service, f"{head}Content-Length: 99999999999\r\n\r\n") as link:
        assert status(link) == 401
    with sending(service, f"{head}{AUTHORIZATION}Content-Length: 99999999999\r\n\r\n") as link:
        for _ in range(2):
            link.sendall(MEGABYTE.encode())
        assert status(link) == 413


@pytest.mark.parametrize(
    "path",
    [
        "/docs/../../../../etc/passwd", "/docs/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "/docs%2f..%2fopenapi.json", "//etc/passwd", "/docs/%00", "/docs.html", "/static/",
        f"{PREFIX}/../../etc/passwd", f"{PREFIX}/%2e%2e/health", f"{PREFIX}/queues/..",
        f"{PREFIX}/queues/..%2f..%2fetc%2fpasswd", f"{PREFIX}//queues",
    ],
)  # fmt: skip
def test_a_path_leads_to_an_endpoint_and_never_to_a_file(service: Api, path: str) -> None:
    with sending(
        service, f"GET {path} HTTP/1.1\r\nHost: HOST\r\n{AUTHORIZATION}Connection: close\r\n\r\n"
    ) as link:
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert re.match(rb"HTTP/1\.1 4\d\d ", answer), answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] in {"42883", "TG001", "TG005"}


def test_a_query_nested_without_end_is_refused(service: Api) -> None:
    for key in ("limit", "attributes", "older_than_seconds"):
        answer = service.call("GET", "/queues/jobs/tasks", params={key: "[" * 3_000})
        assert (answer.status_code, answer.json()["code"]) == (400, "TG005"), key


def test_neither_secrets_nor_line_breaks_get_into_the_log(
    service: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)
    headers = {"Authorization": f"Bearer {SECRETS['admin']}", "X-Other": "a"}
    for path in ("/queues/a%0aERROR%3A%20forged", "/queues/%1b%5b31m", "/queues/jobs?x=%0d%0ay"):
        httpx.get(f"{service.url}{PREFIX}{path}", headers=headers)
        httpx.get(f"{service.url}{PREFIX}{path}", headers={"Authorization": "Bearer wrong-secret"})
    ours = [r for r in caplog.records if r.name.startswith(("teguh", "uvicorn"))]
    for record in ours:
        assert not re.search(r"[\r\n\x1b]", record.getMessage()), record
        assert "secret" not in record.getMessage()
    assert "secret" not in "".join(str(r.exc_info) for r in ours)


def test_a_secret_is_compared_with_all_tokens_in_constant_time(
    service: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def compare(one: bytes, two: bytes) -> bool:
        compared.append(len(one))
        assert len(one) == len(two) == 32  # digests, so that no length tells anything either
        return hmac.compare_digest(one, two)

    class Watched:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(_auth, "hmac", Watched)
    for secret, status_ in ((SECRETS["client"], 200), (SECRETS["admin"], 200), ("wrong", 401)):
        compared.clear()
        headers = {"Authorization": f"Bearer {secret}"}
        assert httpx.get(f"{service.url}{PREFIX}/queues", headers=headers).status_code == status_
        assert len(compared) == len(SECRETS)


def test_a_get_changes_nothing_that_an_observer_could_not() -> None:
    """What a page makes a browser fetch as an image or a script comes as a GET."""
    for route in ROUTES:
        if route.method == "GET" and route.scopes:
            assert "observer" in route.scopes or route.path.endswith("/next-due"), route.path
