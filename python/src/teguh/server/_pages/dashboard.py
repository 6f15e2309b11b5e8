"""The dashboard's requests: who asks, what they are shown, what they may send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode
from uuid import UUID

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route as Endpoint

from teguh._async.client import AsyncClient
from teguh.server._auth import (
    COOKIE,
    SESSION_SECONDS,
    Gatekeeper,
    Visitor,
    check_same_origin,
    is_seal,
)
from teguh.server._errors import Problem, problem_of
from teguh.server._pages import text, views
from teguh.server._pages.acts import ACTS, Act
from teguh.server._pages.filters import fields_of
from teguh.server._pages.plots import HEIGHT, WIDTH
from teguh.server._pages.views import Ask, Moved, Usage, View
from teguh.server._routes import LOOK
from teguh.server._shape import Misshapen

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams
    from starlette.requests import Request

    from teguh.server._pages.samples import Samples

Lend = Callable[[], AbstractAsyncContextManager[AsyncClient]]
Body = Callable[["Request"], Awaitable[bytes]]
Answer = Callable[["Request"], Awaitable[Response]]

THEMES = ("auto", "light", "dark")
_THEME_COOKIE = "teguh_theme"
_YEAR = 365 * 86400

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # with no-referrer, browsers would not tell our own forms' origin
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_ASSETS = {
    "style.css": "text/css",
    "script.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}

# Each is shown by the template of its name.
PAGES: dict[str, View] = {
    "/": views.overview,
    "/queues/{queue}": views.queue,
    "/queues/{queue}/actions": views.actions,
    "/queues/{queue}/tasks": views.tasks,
    "/queues/{queue}/tasks/{task_id}": views.task,
    "/queues/{queue}/dead-letters": views.dead_letters,
    "/queues/{queue}/events": views.events,
    "/schedules": views.schedules,
    "/schedule": views.schedule,
    "/workers": views.workers,
    "/workflow-runs": views.workflow_runs,
    "/workflow-runs/{workflow_run_id}": views.workflow_run,
    "/find": views.search,
}

_VALUES: dict[str, View] = {
    "/queues/{queue}/tasks/{task_id}/value": views.task_value,
    "/workflow-runs/{workflow_run_id}/value": views.workflow_run_value,
    "/schedule/value": views.schedule_value,
}

# What an action is about: names in the query of its page.
_TARGETS = {
    "task": ("queue", "task_id"),
    "queue": ("queue",),
    "filter": ("queue",),
    "worker": ("queue", "worker_id"),
    "schedule": ("name",),
}


class Dashboard:
    """The pages of a service. `lend` lends a client, `body` reads what was sent."""

    def __init__(
        self, lend: Lend, body: Body, gate: Gatekeeper, samples: Samples, *, read_only: bool
    ) -> None:
        self._lend = lend
        self._body = body
        self._gate = gate
        self._samples = samples
        self._read_only = read_only
        self._usage = Usage()
        here = files("teguh.server._pages").joinpath("assets")
        self._assets = {name: here.joinpath(name).read_bytes() for name in _ASSETS}
        digests = {name: sha256(data).hexdigest()[:12] for name, data in self._assets.items()}
        self._templates = Environment(
            loader=PackageLoader("teguh.server._pages"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=text.visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "brief": text.brief, "duration": text.duration, "exact": text.exact,
            "number": text.number, "pretty": text.pretty, "relative": text.relative,
            "utc": text.utc,
        }  # fmt: skip
        self._templates.globals |= {
            "acts": ACTS, "assets": digests, "read_only": read_only, "shown": text.SHOWN,
            "themes": THEMES, "plot_size": (WIDTH, HEIGHT),
        }  # fmt: skip

    def routes(self) -> list[Endpoint]:
        """Return what is to be served."""

        def route(path: str, answer: Answer, *methods: str) -> Endpoint:
            return Endpoint(path, partial(self._tell, answer), methods=methods or ["GET"])

        return [
            *(route(path, partial(self._page, view)) for path, view in PAGES.items()),
            *(route(path, partial(self._value, view)) for path, view in _VALUES.items()),
            route("/act/{act}", self._act, "GET", "POST"),
            route("/sign-in", self._sign_in, "GET", "POST"),
            route("/sign-out", self._sign_out, "POST"),
            route("/theme", self._theme, "POST"),
            route("/assets/{name}", self._asset),
        ]

    async def _tell(self, answer: Answer, request: Request) -> Response:
        """Answer a request, with a page that tells of the trouble if there is some."""
        try:
            return await answer(request)
        except Moved as moved:
            return _moved(_url(request, *moved.parts, **moved.query))
        except Exception as error:  # noqa: BLE001 - whatever it is, the visitor is told
            return self.trouble(request, error)

    # Pages

    async def _page(self, view: View, request: Request) -> Response:
        visitor = self._visitor(request)
        async with self._lend() as client:
            ask = await self._ask(client, request)
            values = await view(ask)
        common = {"visitor": visitor, "now": ask.now, "cursor": ask.cursor, **ask.path}
        return self._show(request, f"{view.__name__}.html", common | values)

    async def _value(self, view: View, request: Request) -> Response:
        self._visitor(request)
        async with self._lend() as client:
            value = text.pretty(await view(await self._ask(client, request)))
        policy = {"Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'"}
        return Response(value, media_type="text/plain", headers={**_HEADERS, **policy})

    async def _ask(self, client: AsyncClient, request: Request) -> Ask:
        try:
            path = {k: unquote(v, errors="strict") for k, v in request.path_params.items()}
        except UnicodeDecodeError:
            raise Misshapen("the path", "is not in UTF-8") from None
        query = request.query_params
        for given in (path.items(), query.multi_items()):
            _check_text("".join(name + value for name, value in given))
        now = await client.current_time()
        return Ask(client, path, query, now, self._samples, self._usage)

    def _visitor(self, request: Request) -> Visitor:
        visitor = self._gate.visitor(request)
        assert visitor.scopes & set(LOOK), "every scope may look"
        return visitor

    # Actions

    async def _act(self, request: Request) -> Response:
        visitor = self._visitor(request)
        act = ACTS.get(request.path_params["act"])
        if act is None:
            raise Problem("there is no such action", "42883")
        self._check_allowed(visitor, act)
        if request.method != "POST":
            return await self._ask_before(request, visitor, act, {})
        typed = await self._form(request, visitor)
        try:
            return await self._carry_out(request, act, typed)
        except Exception as error:
            status, problem = problem_of(error)
            if status >= 500:
                raise
            return await self._ask_before(request, visitor, act, typed, status, problem)

    def _check_allowed(self, visitor: Visitor, act: Act) -> None:
        if self._read_only:
            raise Problem("this service only shows", "42501", hint="It runs with --read-only.")
        if not visitor.scopes & set(act.scopes):
            raise Problem(
                "the token does not allow this",
                "42501",
                f"It has: {', '.join(sorted(visitor.scopes))}.",
                f"This takes one of: {', '.join(sorted(act.scopes))}.",
            )

    def _target(self, ask: Ask, act: Act) -> dict[str, Any]:
        target: dict[str, Any] = {}
        for name in _TARGETS[act.about]:
            if name not in ask.query:
                raise Misshapen(name, "is missing")
            target[name] = ask.query[name]
        if "task_id" in target:
            target["task_id"] = ask.uuid("task_id", target["task_id"])
        if act.about == "filter":
            target["fields"] = fields_of(ask.query)
        return target

    async def _ask_before(
        self,
        request: Request,
        visitor: Visitor,
        act: Act,
        typed: dict[str, str],
        status: int = 200,
        problem: Problem | None = None,
    ) -> Response:
        """Show what would be done, and ask whether it is to be."""
        async with self._lend() as client:
            ask = await self._ask(client, request)
            target = self._target(ask, act)
            values = await views.about(ask, act, target)
        parts, query = _place(act, target)
        common = {
            "visitor": visitor, "act": act, "target": target, "typed": typed, "problem": problem,
            "now": ask.now, "query": request.query_params, "back": _url(request, *parts, **query),
            "queue": target.get("queue"),
        }  # fmt: skip
        return self._show(request, "act.html", common | values, status)

    async def _carry_out(self, request: Request, act: Act, typed: dict[str, str]) -> Response:
        async with self._lend() as client:
            ask = await self._ask(client, request)
            target = self._target(ask, act)
            outcome = await act.call(client, target, typed)
            self._usage.forget()
            queue = target.get("queue")
            if isinstance(outcome, UUID) and queue is None:
                queue = (await client.get_schedule(target["name"])).queue_name
        parts, query = _place(act, target)
        if isinstance(outcome, UUID):
            assert queue is not None
            parts, query = ("queues", queue, "tasks", str(outcome)), {}
        elif act.name == "drop-schedule":
            parts, query = ("schedules",), {}
        done = {"done": act.name} | ({"n": str(outcome)} if isinstance(outcome, int) else {})
        return _moved(_url(request, *parts, **query, **done))

    async def _form(self, request: Request, visitor: Visitor | None) -> dict[str, str]:
        """Return what a form of ours holds, or raise."""
        check_same_origin(request)
        try:
            found = parse_qs(
                (await self._body(request)).decode(),
                keep_blank_values=True, max_num_fields=100, errors="strict",
            )  # fmt: skip
        except ValueError:
            raise Misshapen("the form", "cannot be read") from None
        typed = {name: values[-1] for name, values in found.items()}
        for value in typed.values():
            _check_text(value)
        if visitor and not is_seal(visitor.seal, typed.pop("seal", "")):
            raise Problem(
                "the form is out of date",
                "42501",
                hint="Go back, load the page again, and send it once more.",
            )
        return typed

    # Signing in and out, and looks

    async def _sign_in(self, request: Request) -> Response:
        if not self._gate.has_tokens:
            return _moved(_url(request))
        if request.method != "POST":
            where = _next(request, request.query_params.get("next", ""))
            return self._show(request, "sign_in.html", {"wrong": False, "next": where})
        typed = await self._form(request, None)
        cookie = self._gate.sign_in(typed.get("token", ""))
        where = _next(request, typed.get("next", ""))
        if cookie is None:
            return self._show(request, "sign_in.html", {"wrong": True, "next": where}, 401)
        return _with_cookie(request, _moved(where), COOKIE, cookie, SESSION_SECONDS)

    async def _sign_out(self, request: Request) -> Response:
        await self._form(request, self._visitor(request))
        return _with_cookie(request, _moved(_url(request, "sign-in")), COOKIE, "", 0)

    async def _theme(self, request: Request) -> Response:
        typed = await self._form(request, None)
        theme = typed.get("theme", "")
        if theme not in THEMES:
            raise Misshapen("theme", f"is not one of {', '.join(THEMES)}")
        where = _next(request, typed.get("next", ""))
        return _with_cookie(request, _moved(where), _THEME_COOKIE, theme, _YEAR)

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._assets:
            raise Problem("there is no such path", "42883")
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self._assets[name], media_type=_ASSETS[name], headers={**_HEADERS, **kept})

    # Answers

    def _show(
        self, request: Request, name: str, values: dict[str, Any], status: int = 200
    ) -> Response:
        theme = request.cookies.get(_THEME_COOKIE)
        visitor = values.get("visitor")
        common = {
            "url": partial(_url, request),
            "here": _here(request),
            "theme": theme if theme in THEMES else "auto",
            "visitor": visitor,
            "queue": None,
            "said": _said(request.query_params),
            "may": partial(self._may, visitor),
        }
        page = self._templates.get_template(name).render(common | values)
        retry = {"Retry-After": "1"} if status in (429, 503) else {}
        return Response(page, status, {**_HEADERS, **retry}, "text/html")

    def _may(self, visitor: Visitor | None, act: str) -> bool:
        return bool(visitor and not self._read_only and visitor.scopes & set(ACTS[act].scopes))

    def trouble(self, request: Request, error: Exception) -> Response:
        """Return the page that tells what went wrong."""
        status, problem = problem_of(error)
        if status == 401 and self._gate.has_tokens:
            here = _here(request) if request.method == "GET" else None
            query = {"next": here} if here and here != _url(request) else {}
            return _moved(_url(request, "sign-in", **query))
        visitor = None
        if status != 401:
            with suppress(Problem):
                visitor = self._gate.visitor(request)
        values = {"visitor": visitor, "problem": problem, "status": status}
        return self._show(request, "trouble.html", values, status)


def _url(request: Request, *parts: str, **query: Any) -> str:
    """Return the address of a page, wherever the service is mounted."""
    root = quote(request.scope.get("root_path", ""), safe="/%")
    path = "/".join(quote(str(part), safe="") for part in parts)
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{root}/{path}" + (f"?{urlencode(given, doseq=True)}" if given else "")


def _here(request: Request) -> str:
    """Return the address of the page that is asked for, without what was said of an action."""
    query = [(k, v) for k, v in request.query_params.multi_items() if k not in ("done", "n")]
    path = quote(request.scope["path"], safe="/%")
    return path + (f"?{urlencode(query)}" if query else "")


def _next(request: Request, wanted: str) -> str:
    """Return where to go on: an address of this service, whatever was asked for."""
    home = _url(request)
    plain = wanted.isprintable() and wanted.isascii() and "\\" not in wanted
    ours = plain and wanted.startswith(home) and not wanted.startswith("//")
    return wanted if ours else home


def _place(act: Act, target: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the page that an action belongs to."""
    if act.about == "schedule":
        return ("schedule",), {"name": target["name"]}
    parts: tuple[str, ...] = ("queues", target["queue"])
    if act.about == "task":
        return (*parts, "tasks", str(target["task_id"])), {}
    if act.about == "worker":
        return ("workers",), {}
    if act.name in ("replay-dead-letters", "purge-dead-letters"):
        return (*parts, "dead-letters"), target.get("fields", {})
    if act.name == "cancel-tasks":
        return (*parts, "tasks"), target["fields"]
    return ((*parts, "events") if act.name == "emit-event" else parts), {}


def _said(query: QueryParams) -> str:
    """Return what has been done, as the address says after an action."""
    act = ACTS.get(query.get("done", ""))
    n = query.get("n", "")
    much = text.number(int(n)) if n.isascii() and n.isdecimal() and len(n) < 10 else ""
    return act.done.format(much) if act else ""


def _check_text(value: str) -> None:
    """Raise unless a text can be sent to PostgreSQL."""
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise Misshapen("the request", "holds a character that PostgreSQL cannot store")


def _moved(where: str) -> Response:
    return RedirectResponse(where, 303, _HEADERS)


def _with_cookie(
    request: Request, response: Response, name: str, value: str, seconds: int
) -> Response:
    # behind a proxy that speaks TLS, only the browser knows
    secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=request.scope.get("root_path", "") or "/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )
    return response
