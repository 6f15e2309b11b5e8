"""Tokens and scopes, and this machine without tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.requests import Request

import teguh
from teguh.server import Token, create_app, read_tokens
from teguh.server._app import PREFIX
from teguh.server._auth import Gatekeeper
from teguh.server._errors import Problem
from teguh.server._openapi import takes_body
from teguh.server._routes import BARE, ROUTES
from tests.server.support import SECRETS, Api, serving

if TYPE_CHECKING:
    from pathlib import Path

    from teguh.server._routes import Route

NIL = "00000000-0000-0000-0000-000000000000"


def send(service: Api, route: Route, authorization: bytes) -> httpx.Response:
    """Send a request to an endpoint that cannot succeed: it has a parameter that is unknown."""
    path = ("" if route.path in BARE else PREFIX) + route.path
    path = path.replace("{queue}", "jobs")
    for name in ("task_id", "run_id", "name", "step_name", "task_name", "workflow_run_id"):
        path = path.replace(f"{{{name}}}", NIL)
    body = {"json": {"unknown": 1}} if takes_body(route.method) else {"params": {"unknown": 1}}
    headers = {"Authorization": authorization}
    return service.http.request(route.method, path, headers=headers, **body)  # type: ignore[arg-type]


def test_a_token_opens_what_its_scope_allows_and_nothing_else(service: Api) -> None:
    for scope, secret in SECRETS.items():
        for route in ROUTES:
            if route.scopes:
                answer = send(service, route, f"bearer {secret}".encode())
                wanted = (400, "TG005") if scope in route.scopes else (403, "42501")
                assert (answer.status_code, answer.json()["code"]) == wanted, (route.path, scope)


@pytest.mark.parametrize(
    "value",
    [b"", b"Bearer", b"Bearer admin", b"Basic YWRtaW46YWRtaW4=", b"Bearer \xe9\xff" + b"\xe9" * 20],
)
def test_who_has_no_token_is_not_let_in(service: Api, value: bytes) -> None:
    for route in ROUTES:
        if route.scopes:
            answer = send(service, route, value)
            assert (answer.status_code, answer.json()["code"]) == (401, "28000"), route.path
            assert answer.headers["www-authenticate"] == 'Bearer realm="teguh"'


def test_who_may_not_do_something_changes_nothing(service: Api) -> None:
    observer = {"Authorization": f"Bearer {SECRETS['observer']}"}
    assert httpx.delete(f"{service.url}{PREFIX}/queues/jobs", headers=observer).status_code == 403
    assert httpx.delete(f"{service.url}{PREFIX}/queues/jobs").status_code == 401
    assert len(service.get("/queues")) == 1


def test_a_token_may_have_several_scopes_and_a_file_several_tokens(
    dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text(
        "# of the shop\nclient, observer = secret-of-the-shop\n\nworker=secret-of-=-workers\n"
    )
    tokens = read_tokens(file.read_text().splitlines())
    assert [sorted(token.scopes) for token in tokens] == [["client", "observer"], ["worker"]]
    assert "secret" not in repr(tokens)
    with serving(create_app(dsn, tokens=tokens)) as url:
        for secret, claims in (("secret-of-the-shop", 403), ("secret-of-=-workers", 404)):
            answer = httpx.post(
                f"{url}{PREFIX}/queues/jobs/tasks/claim",
                headers={"Authorization": f"Bearer {secret}"},
            )
            assert answer.status_code == claims


@pytest.mark.parametrize("secret", ["short", "spaces are not allowed", "\u00e9" * 20])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(teguh.ConfigurationError, match="16 characters"):
        Token(secret, frozenset({"admin"}))


def test_without_tokens_this_machine_is_served(dsn: str) -> None:
    with serving(create_app(dsn)) as url:
        assert httpx.get(f"{url}{PREFIX}/queues").json() == []
        assert httpx.get(f"{url}{PREFIX}/queues", headers={"Origin": url}).json() == []
        assert "problems" in httpx.get(f"{url}/health").json()
        # a page of another site, and one whose name has come to mean this machine
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            for method in ("GET", "POST"):
                answer = httpx.request(method, f"{url}{PREFIX}/queues/x/tasks", headers=headers)
                assert answer.status_code == 401


@pytest.mark.parametrize(
    ("sender", "host", "served"),
    [
        ("127.0.0.1", "localhost:8080", True),
        ("127.8.9.1", "127.0.0.1", True),
        ("::1", "[::1]:8080", True),
        ("10.0.0.1", "localhost:8080", False),
        ("127.0.0.1", "10.0.0.1:8080", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "", False),
        (None, "localhost", False),
    ],
)
def test_this_machine_is_known_by_its_addresses(
    sender: str | None, host: str, served: bool
) -> None:
    scope = {
        "type": "http",
        "headers": [(b"host", host.encode())],
        "client": sender and (sender, 1),
    }
    gate = Gatekeeper([])
    if served:
        gate.check(Request(scope), ("admin",))
    else:
        with pytest.raises(Problem):
            gate.check(Request(scope), ("admin",))
