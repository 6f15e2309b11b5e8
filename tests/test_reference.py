"""The references that are generated are what the sources, the catalog and the docstrings say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.test_contract import SQLSTATES
from tools import make_reference
from tools.sqltext import SOURCES, known_keys, raised, routines

if TYPE_CHECKING:
    import psycopg


def test_the_references_are_current(conn: psycopg.Connection[Any]) -> None:
    stale = [
        path.name
        for path, text in make_reference.documents(conn).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run make docs"


def test_every_error_of_the_sources_is_found() -> None:
    found = list(raised())
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.sql"))
    assert len(found) == len(re.findall(r"^ *raise exception ", text, re.MULTILINE))
    assert {one.sqlstate for one in found} == set(SQLSTATES) == set(make_reference.CONDITIONS)


def test_every_error_says_something_of_each_kind() -> None:
    for one in raised():
        assert one.message
        assert one.detail
        assert one.hint


def test_every_list_of_known_keys_is_found() -> None:
    checks = sum(
        len(re.findall(r"teguh\._check_keys\(", text)) for _, name, text in routines()
        if name not in ("_check_keys", "_read_run")
    )  # fmt: skip
    runs = {"create_workflow_run", "update_workflow_run", "list_workflow_runs"}
    assert len(known_keys().keys() - runs) == checks
