"""A service in a thread, and what the tests of it share."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import httpx
import uvicorn

from teguh.server import Token, create_app
from teguh.server._app import PREFIX
from teguh.server._run import Server
from tests.python.support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

    from teguh.server._app import Service, ServiceOptions

SECRETS = {scope: f"{scope}-secret-of-tests" for scope in ("client", "worker", "observer", "admin")}
TOKENS = [Token(secret, frozenset({scope})) for scope, secret in SECRETS.items()]
PATIENCE = 30.0


@contextmanager
def serving(service: Service, app: ASGIApp | None = None) -> Iterator[str]:
    """Serve in a thread, and yield the URL; with `app`, that is served, and ends the service."""
    config = uvicorn.Config(
        app or service, "127.0.0.1", 0, log_level="warning", lifespan="on", http="h11", ws="none"
    )
    server = Server(config, service)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the service's start")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the service did not stop"


class Api:
    """Calls the endpoints with the token of a scope."""

    def __init__(self, url: str, service: Service, scope: str = "admin") -> None:
        self.url = url
        self.service = service
        self.headers = {"Authorization": f"Bearer {SECRETS[scope]}"}
        self.http = httpx.Client(base_url=url, headers=self.headers, timeout=PATIENCE)

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request to an endpoint of the prefix."""
        return self.http.request(method, PREFIX + path, **options)

    def get(self, path: str, **query: Any) -> Any:
        """Return what a GET finds."""
        return self._found("GET", path, params=query)

    def post(self, path: str, **body: Any) -> Any:
        """Return what a POST finds."""
        return self._found("POST", path, json=body)

    def put(self, path: str, **body: Any) -> Any:
        """Return what a PUT finds."""
        return self._found("PUT", path, json=body)

    def patch(self, path: str, **body: Any) -> Any:
        """Return what a PATCH finds."""
        return self._found("PATCH", path, json=body)

    def delete(self, path: str, **query: Any) -> Any:
        """Return what a DELETE finds."""
        return self._found("DELETE", path, params=query)

    def _found(self, method: str, path: str, **options: Any) -> Any:
        answer = self.call(method, path, **options)
        assert answer.status_code in (200, 204), (answer.status_code, answer.text)
        return answer.json() if answer.content else None


@contextmanager
def api(dsn: str, scope: str = "admin", **options: Unpack[ServiceOptions]) -> Iterator[Api]:
    """Serve a database, and yield who calls."""
    service = create_app(dsn, tokens=TOKENS, **options)
    with serving(service) as url:
        caller = Api(url, service, scope)
        with caller.http:
            yield caller
