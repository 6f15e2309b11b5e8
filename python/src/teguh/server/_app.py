"""The service: an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from urllib.parse import unquote

import psycopg
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route as Endpoint

from teguh._async.client import AsyncClient
from teguh._async.pool import AsyncPool
from teguh._connect import open_async, worker_conninfo
from teguh._install import check_version, package_version
from teguh.errors import ConfigurationError, TeguhError
from teguh.server._auth import Gatekeeper
from teguh.server._claims import Claims
from teguh.server._errors import Problem, problem_of, told
from teguh.server._feeds import Feed
from teguh.server._openapi import describe, in_path, takes_body
from teguh.server._pages import Dashboard
from teguh.server._pages.samples import Samples
from teguh.server._routes import BARE, LONG_POLLS, LOOK, ROUTES, SSE, stream_schedules, stream_stats
from teguh.server._shape import Misshapen, from_text, parameters, parse, read, write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from starlette.types import Receive, Scope, Send

    from teguh._connect import AsyncConn
    from teguh.server._auth import Token
    from teguh.server._routes import Route

log = logging.getLogger("teguh.server")

PREFIX = "/api/v1"

# A request waits so long for one of the connections.
_CONNECTION_SECONDS = 5.0


class ServiceOptions(TypedDict, total=False):
    """How to serve. Intervals in seconds.

    ``pool_size`` connections do what is asked; one more listens for all that wait. A request's
    body has at most ``max_body`` bytes. The ticker runs every ``ticker_interval``, with 0 never:
    somebody has to. Streams show every ``stream_interval`` what has changed, and the dashboard's
    plots have a point every ``sample_interval``, with 0 none. With ``read_only`` nothing is served
    that changes anything, and there is no ticker.
    """

    pool_size: int
    max_body: int
    ticker_interval: float
    stream_interval: float
    sample_interval: float
    read_only: bool


class Service(Starlette):
    """The SQL functions of teguh over HTTP.

    It serves while its lifespan, or a block ``async with service.running()``, is open: the latter
    is for an application that it is mounted in.
    """

    def __init__(
        self,
        dsn: str = "",
        *,
        tokens: Iterable[Token] = (),
        **options: Unpack[ServiceOptions],
    ) -> None:
        """Say what to serve; nothing is opened yet.

        Without `tokens`, only this machine is served, at a loopback address.
        """
        pool_size = options.get("pool_size", 10)
        self._max_body = options.get("max_body", 1 << 20)
        self._read_only = options.get("read_only", False)
        if self._read_only and options.get("ticker_interval"):
            raise ConfigurationError("a service that is read_only has no ticker_interval")
        self._ticker_interval = options.get("ticker_interval", 0 if self._read_only else 10.0)
        sample_interval = options.get("sample_interval", 10.0)
        stream_interval = options.get("stream_interval", 1.0)
        for name, value, least in (
            ("pool_size", pool_size, 1),
            ("max_body", self._max_body, 1),
            ("ticker_interval", self._ticker_interval, 0),
            ("stream_interval", stream_interval, 0.01),
            ("sample_interval", sample_interval, 0),
        ):
            if not least <= value < math.inf:
                raise ConfigurationError(f"{name} must be at least {least}, and is {value}")
        self._conninfo = worker_conninfo(dsn, "serve")
        self._gate = Gatekeeper(tokens)
        self._pool = AsyncPool(self._connect, pool_size)
        self._claims = Claims(self._client, self._open)
        self._feeds: dict[Callable[..., Any], Feed] = {
            stream_stats: Feed("stats", "queue_name", self._stats, stream_interval),
            stream_schedules: Feed("schedule", "schedule_name", self._schedules, stream_interval),
        }
        self._samples = Samples(sample_interval)
        self._sample_after = 0.0
        dashboard = Dashboard(
            self._client, self._read_body, self._gate, self._samples, read_only=self._read_only
        )
        self._description = describe(ROUTES, PREFIX, package_version())
        super().__init__(
            routes=[
                *self._endpoints(),
                Endpoint("/openapi.json", self._openapi),
                Endpoint("/docs", self._docs),
                *dashboard.routes(),
            ],
            exception_handlers={HTTPException: partial(_no_endpoint, dashboard)},
            lifespan=lambda _: self.running(),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve during the block; at its end, end what waits and close all connections."""
        upkeep = [
            asyncio.create_task(self._often("the ticker", self._ticker_interval, self._tick)),
            asyncio.create_task(self._often("sampling", self._samples.seconds, self._sample)),
        ]
        try:
            yield
        finally:
            for task in upkeep:
                task.cancel()
            await asyncio.wait(upkeep)
            await self.end_waits()
            await self._claims.close()
            await self._pool.close()

    async def end_waits(self) -> None:
        """Answer all long polls and end all streams, so that a graceful shutdown can begin."""
        self._claims.end_waits()
        for feed in self._feeds.values():
            await feed.close()

    # The database

    async def _open(self) -> AsyncConn:
        return await open_async(self._conninfo)

    async def _connect(self) -> AsyncConn:
        connection = await self._open()
        try:
            check_version(await AsyncClient(connection).version())
        except BaseException:
            await connection.close()
            raise
        return connection

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncClient]:
        """Lend a client; raise TimeoutError if all are lent for too long."""
        lent = self._pool.connection()
        async with asyncio.timeout(_CONNECTION_SECONDS):
            connection = await lent.__aenter__()
        try:
            yield AsyncClient(connection)
        finally:
            await lent.__aexit__(None, None, None)

    async def _often(
        self, what: str, seconds: float, act: Callable[[AsyncClient], Awaitable[None]]
    ) -> None:
        """Do something every so many seconds, never with 0."""
        failing = False
        while seconds > 0:
            try:
                async with self._client() as client:
                    await act(client)
                failing = False
            except (psycopg.Error, TeguhError, TimeoutError) as error:
                if not failing:
                    log.warning("%s failed: %s", what, error)
                failing = True
            await asyncio.sleep(seconds)

    async def _tick(self, client: AsyncClient) -> None:
        await client.ticker()

    async def _sample(self, client: AsyncClient) -> None:
        begun = time.monotonic()
        if begun >= self._sample_after:
            self._samples.add(time.time(), await client.metrics())
            ended = time.monotonic()  # of many queues it takes long: rest, then
            self._sample_after = ended + 20 * (ended - begun)

    async def _stats(self) -> list[Any]:
        async with self._client() as client:
            return list(await client.queue_stats())

    async def _schedules(self) -> list[Any]:
        async with self._client() as client:
            return list(await client.list_schedules())

    # Endpoints

    def _endpoints(self) -> list[Endpoint]:
        by_path: dict[str, dict[str, Route]] = {}
        for route in ROUTES:
            path = ("" if route.path in BARE else PREFIX) + route.path
            by_path.setdefault(path, {})[route.method] = route
        # /tasks/claim is no task
        paths = sorted(by_path, key=lambda path: [part[:1] == "{" for part in path.split("/")])
        return [Endpoint(path, _Resource(self, by_path[path])) for path in paths]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve; a slash within a name comes encoded, and is no slash of the path."""
        if scope["type"] == "http" and (raw := scope.get("raw_path")):
            scope = {**scope, "path": raw.decode("ascii", "replace")}
        await super().__call__(scope, receive, send)

    async def respond(self, request: Request, routes: dict[str, Route]) -> Response:
        """Answer a request for one of the paths, which has these methods."""
        route = routes.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            allowed = ", ".join([*routes, "HEAD"] if "GET" in routes else routes)
            return told(405, Problem("there is no such method here", "42883"), {"Allow": allowed})
        try:
            return await self._answer(request, route)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
            return told(*problem_of(error))

    async def _answer(self, request: Request, route: Route) -> Response:
        if route.scopes:
            self._gate.check(request, route.scopes)
        if self._read_only and route.scopes not in ((), LOOK):
            raise Problem("this service only shows", "42501", hint="It runs with --read-only.")
        arguments = await self._arguments(request, route)
        if route.media == SSE:
            if request.method == "HEAD":
                return Response(media_type=SSE)
            feed = self._feeds[route.call]
            return StreamingResponse(
                route.call(feed, **arguments),
                media_type=SSE,
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        if route.call in LONG_POLLS:
            return await self._long_poll(request, route, arguments)
        async with self._client() as client:
            result = await route.call(client, **arguments)
        if not route.scopes:
            result = self._for_all(request, result)
        if route.media != "application/json":
            return Response(result, media_type=route.media)
        return _json(route, result)

    def _for_all(self, request: Request, result: dict[str, Any]) -> dict[str, Any]:
        """Return of the health what the sender of a request may see."""
        try:
            self._gate.check(request, LOOK)
        except Problem:
            return {"status": result["status"]}
        return result

    async def _long_poll(
        self, request: Request, route: Route, arguments: dict[str, Any]
    ) -> Response:
        """Answer when there is something."""
        gone = asyncio.create_task(_gone(request))
        try:
            result = await route.call(partial(self._claims.claim, gone), **arguments)
        finally:
            gone.cancel()
        return _json(route, result)

    async def _arguments(self, request: Request, route: Route) -> dict[str, Any]:
        """Read the parameters of an endpoint out of a request."""
        fields = parameters(route.call)
        inside = [field.name for field in fields if in_path(field, route.path)]
        found = {
            field.name: from_text([_decoded(request, field.name)], field.kind, field.name)
            for field in fields
            if field.name in inside
        }
        others = {field.name: field for field in fields if field.name not in inside}
        query = request.query_params
        body = takes_body(route.method)
        given = await self._body(request) if body else {key: query.getlist(key) for key in query}
        for name in (*given, *(query if body else ())):
            if name not in others or (body and name in query):
                raise Misshapen(name, "is no parameter here")
        for name, field in others.items():
            if name in given:
                reader = read if body else from_text
                found[name] = reader(given[name], field.kind, name)
            elif field.required:
                raise Misshapen(name, "is missing")
        return found

    async def _body(self, request: Request) -> dict[str, Any]:
        text = await self._read_body(request)
        body = parse(text) if text.strip() else {}
        if not isinstance(body, dict):
            raise Misshapen("the body", "is no object")
        return body

    async def _read_body(self, request: Request) -> bytes:
        chunks = bytearray()
        async for chunk in request.stream():
            chunks += chunk
            if len(chunks) > self._max_body:
                raise Problem(
                    f"the body has more than {self._max_body} bytes",
                    "54000",
                    hint="Keep large data elsewhere and pass a reference to it.",
                )
        return bytes(chunks)

    # The description

    async def _openapi(self, request: Request) -> Response:
        servers = [{"url": request.scope.get("root_path") or "/"}]
        return Response(
            write({**self._description, "servers": servers}), media_type="application/json"
        )

    async def _docs(self, request: Request) -> Response:
        del request
        page = files("teguh.server").joinpath("docs.html").read_bytes()
        policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})


class _Resource:
    """One path, as an ASGI application: of all methods, so that it can refuse some itself."""

    def __init__(self, service: Service, routes: dict[str, Route]) -> None:
        self._service = service
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._service.respond(Request(scope, receive), self._routes)
        await response(scope, receive, send)


# What one expects to be called to get an ASGI application.
create_app = Service


def _json(route: Route, result: Any) -> Response:
    if route.value:
        result = {route.value: result}
    elif result is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return Response(write(result), media_type="application/json")


def _decoded(request: Request, name: str) -> str:
    """Return a part of the path."""
    try:
        return unquote(request.path_params[name], errors="strict")
    except UnicodeDecodeError:
        raise Misshapen(name, "is not in UTF-8") from None


async def _gone(request: Request) -> None:
    """Return when the client has closed its end."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _no_endpoint(dashboard: Dashboard, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = Problem(error.detail.lower(), "42883")
    if error.status_code == 404 and "text/html" in request.headers.get("accept", ""):
        return dashboard.trouble(request, problem)
    return told(error.status_code, problem, error.headers)
