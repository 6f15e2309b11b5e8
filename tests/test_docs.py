"""The snippets of the documents do what they say."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

import teguh
from tools.servers import CLIENT, WORKER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    """The fenced blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_sql_of_the_readme_runs_in_order(dsn: str) -> None:
    # the owner may not create roles: those of the tests play the README's
    with psycopg.connect(dsn, autocommit=True) as db:
        rows = [
            db.execute(
                sql.replace("'shop_workers'", f"'{WORKER}'")
                .replace("'shop'", f"'{CLIENT}'")
                .encode()
            )
            for sql in snippets("sql")
        ]
        assert rows[2].fetchall() == [("completed", 1, {"parcel": 1})]
        assert len(rows) == 5
        assert db.execute("select access from teguh.grants order by 1").fetchall() == [
            ("client",),
            ("worker",),
        ]


def test_the_python_of_the_readme_runs_an_order(dsn: str) -> None:
    space: dict[str, Any] = {}
    for source in snippets("python"):
        exec(source.replace("3600", "0.01"), space)  # noqa: S102 - our own README
    worker = teguh.Worker(dsn, "orders", space["tasks"])
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("create table shipments (courier text)")
        client = teguh.Client(db)
        client.create_queue("orders")
        spawned = client.spawn_task("orders", "order", {})
        client.emit_event("orders", "courier:4711", {"name": "Ada"})
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while client.get_task_result("orders", spawned.task_id).state != "completed":
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            worker.stop()
            thread.join()
        assert db.execute("select courier from shipments").fetchall() == [("Ada",)]


DOCUMENTS = [
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/managed.md", "docs/upgrading.md",
]  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for module in (ROOT / "sql" / "src").glob("*.sql"):
        assert f"`{module.stem}`" in text, module.stem


def test_every_make_target_of_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_every_test_that_a_document_names_exists() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for document in DOCUMENTS:
        for name in re.findall(r"`(test_\w+)`", (ROOT / document).read_text()):
            assert f"def {name}(" in tests, name


def test_the_providers_cite_documents_that_are_listed_and_restrictions_that_are_tested() -> None:
    text = (ROOT / "docs" / "managed.md").read_text()
    listed = set(re.findall(r"(?m)^(\d+)\. ", text))
    assert set(re.findall(r"\[(\d+)\]", text)) == listed
    tested = set(re.findall(r"(?m)^\| (R\d+) \|", text))
    assert set(re.findall(r"\bR\d+\b", text)) == tested
    assert len(re.findall(r"(?m)^\| [A-Z][^|]* \| [^|]* \| R", text)) == 12
