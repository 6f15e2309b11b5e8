"""docs/http.md says what the service does."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from psycopg.conninfo import make_conninfo

from teguh.cli import parser
from teguh.server import create_app
from teguh.server._app import PREFIX
from teguh.server._errors import STATUS
from teguh.server._routes import ROUTES
from tests.server.support import SECRETS, TOKENS, serving
from tests.test_docs import ROOT, UUID, snippets, typed

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs" / "http.md"
TEXT = PAGE.read_text()
ADDRESS = "http://127.0.0.1:8080"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_walk_with_curl_shows_what_is_answered(dsn: str, tmp_path: Path) -> None:
    then = make_conninfo(dsn, options="-c teguh.fake_now=2031-05-01T12:00:00Z")
    with serving(create_app(then, tokens=TOKENS)) as url:
        text = TEXT.replace(ADDRESS, url).replace("/tmp/", f"{tmp_path}/")  # noqa: S108
        environment = {"PATH": os.environ["PATH"], "TOKEN": SECRETS["admin"]}
        played = typed(text, environment)
    played = played.replace(f"{tmp_path}/", "/tmp/").replace(url, ADDRESS)  # noqa: S108
    assert UUID.sub("an id", played) == UUID.sub("an id", TEXT)


def test_the_page_names_every_endpoint_its_function_and_its_scopes() -> None:
    said = re.findall(r"^\| `([A-Z]+ /[^`]*)` \| `(\w+)` \| ([^|]*) \|$", TEXT, re.MULTILINE)
    functions = {"stream_stats": "queue_stats", "stream_schedules": "list_schedules"}
    assert said == [
        (
            f"{route.method} {route.path}",
            functions.get(route.call.__name__, route.call.__name__),
            ", ".join(route.scopes) or "none",
        )
        for route in ROUTES
    ]


def test_the_page_names_every_status_of_the_table() -> None:
    rows = re.findall(r"^\| (\d{3}[, \d]*) \| (.*) \|$", TEXT, re.MULTILINE)
    said = {code: statuses for statuses, text in rows for code in re.findall(r"`(\w+)`", text)}
    for code, status in STATUS.items():
        if code.startswith(("TG", "AB")):
            assert str(status) in said[code], code


def test_the_page_names_every_option() -> None:
    commands: Any = parser()._subparsers
    serve = commands._group_actions[0].choices["serve"]
    options = {name for action in serve._actions for name in action.option_strings[-1:]}
    table = TEXT.partition("| option |")[2]
    assert set(re.findall(r"`(--[a-z-]+)", table.partition("\n\n")[0])) == options - {
        "--help", "--dsn"
    }  # fmt: skip


def test_the_python_of_the_page_mounts_the_service(dsn: str) -> None:
    (source,) = snippets("python", TEXT)
    space: dict[str, Any] = {"dsn": dsn, "secret": SECRETS["client"]}
    exec(source, space)  # noqa: S102 - our own document
    headers = {"Authorization": f"Bearer {SECRETS['client']}"}
    with serving(space["service"], space["app"]) as url:
        assert httpx.get(f"{url}/durable{PREFIX}/queues", headers=headers).json() == []
        description = httpx.get(f"{url}/durable/openapi.json").json()
        assert description["servers"] == [{"url": "/durable"}]
        assert httpx.get(f"{url}/durable/docs").status_code == 200
