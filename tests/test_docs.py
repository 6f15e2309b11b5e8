"""The snippets of the documents do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.string import TextLoader

import teguh
from teguh._cli.verbs import VERBS
from teguh._doctor import ENGINE, SERVER
from tools.servers import CLIENT, WORKER

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def snippets(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a document, by default the README, in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


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


OPERATING = ROOT / "docs" / "operating.md"

# What has happened in the queue of docs/operating.md before its first example.
ORDERS = """
set teguh.fake_now = '2031-05-01 09:00:00+00';
set timezone = 'UTC';
select teguh.create_queue('orders');
select teguh.spawn_task('orders', 'charge', '{"order": 1}', '{
  "max_attempts": 2, "tags": ["eu"], "retry_strategy": {"kind": "fixed", "base_seconds": 60}
}');
select teguh.claim_task('orders', 'worker-1');
set teguh.fake_now = '2031-05-01 09:05:00+00';
select teguh.ticker('orders');
set teguh.fake_now = '2031-05-01 09:06:00+00';
select teguh.fail_run('orders', c.run_id, '{"message": "card declined"}')
from teguh.claim_task('orders', 'worker-2') as c;
set teguh.fake_now = '2031-05-01 10:00:00+00';
select teguh.spawn_task('orders', 'invoice', '{"order": 1}', '{"max_attempts": 1, "tags": ["eu"]}');
select teguh.fail_run('orders', c.run_id, '{"message": "no printer"}')
from teguh.claim_task('orders', 'worker-2') as c;
set teguh.fake_now = '2031-05-01 11:00:00+00';
select teguh.spawn_task('orders', 'ship', '{"order": 2}');
select teguh.complete_run('orders', c.run_id) from teguh.claim_task('orders', 'worker-2') as c;
set teguh.fake_now = '2031-05-01 11:30:00+00';
select teguh.spawn_task('orders', 'pack', '{"order": 2}');
select teguh.claim_task('orders', 'worker-1', 3600);
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.spawn_task('orders', 'remind', '{"order": 3}', '{
  "delay_seconds": 86400, "correlation_id": "order-3"
}');
"""


def aligned(cursor: psycopg.Cursor[tuple[Any, ...]]) -> str:
    """Show a result as psql does."""
    columns = cursor.description or []
    right = [column.type_code in (20, 21, 23, 701) for column in columns]
    rows = [["" if value is None else str(value) for value in row] for row in cursor.fetchall()]
    heads = [column.name for column in columns]
    wide = [max(len(row[n]) for row in [heads, *rows]) for n in range(len(heads))]
    lines = [" | ".join(head.center(width) for head, width in zip(heads, wide, strict=True))]
    lines.append("-+-".join("-" * width for width in wide))
    lines += [
        " | ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, wide, right, strict=True)
        )
        for row in rows
    ]
    shown = [f" {line}".rstrip() for line in lines]
    shown[1] = f"-{lines[1]}-"
    return "\n".join([*shown, f"({len(rows)} row{'s' if len(rows) != 1 else ''})"])


def played(
    db: psycopg.Connection[tuple[Any, ...]], text: str, moments: Iterator[str] | None = None
) -> str:
    """Return a document with the results that its examples have now, or at these moments.

    The values come as text, as they do to psql; \\gset keeps those of the only row.
    """
    for oid in [info.oid for info in db.adapters.types]:
        db.adapters.register_loader(oid, TextLoader)
    kept: dict[str, str] = {}

    def example(match: re.Match[str]) -> str:
        return "```console\n" + "\n".join(answers(match[1])) + "```"

    def answers(block: str) -> Iterator[str]:
        for prompt in re.findall(r"^=> .*", block, re.MULTILINE):
            statement = prompt[3:].removesuffix(" \\gset").rstrip(";")
            for name, value in kept.items():
                statement = statement.replace(f":'{name}'", f"'{value}'")
            if moments is not None:
                db.execute("select set_config('teguh.fake_now', %s, false)", [next(moments)])
            cursor = psycopg.RawCursor(db)
            cursor.execute(statement.encode())
            yield prompt
            if cursor.description is None:
                yield ""
            elif prompt.endswith("\\gset"):
                names = [column.name for column in cursor.description or []]
                kept.update(zip(names, map(str, cursor.fetchone() or ()), strict=True))
            else:
                yield aligned(cursor) + "\n"

    return re.sub(r"```console\n(.*?)```", example, text, flags=re.DOTALL)


def test_operating_shows_what_its_examples_answer(dsn: str) -> None:
    text = OPERATING.read_text()
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(ORDERS.encode())
        assert played(db, text) == text


SCHEDULES = ROOT / "docs" / "patterns" / "schedules.md"


def test_the_page_on_schedules_shows_what_its_examples_answer(dsn: str) -> None:
    text = SCHEDULES.read_text()
    with psycopg.connect(dsn, autocommit=True) as db:
        for oid in [info.oid for info in db.adapters.types]:
            db.adapters.register_loader(oid, TextLoader)
        db.execute("set teguh.fake_now = '2031-05-01 12:00:00+00'; set timezone = 'UTC'")
        assert played(db, text) == text


CHILDREN = ROOT / "docs" / "patterns" / "children.md"
SAGAS = ROOT / "docs" / "patterns" / "sagas.md"
MESSAGES = ROOT / "docs" / "patterns" / "messages.md"
WORKFLOW_RUNS = ROOT / "docs" / "patterns" / "workflow-runs.md"


def execute(dsn: str, sources: list[str], task_name: str, state: str) -> Any:
    """Run the Python of a document and one of its tasks; return its log, or the result."""
    space: dict[str, Any] = {}
    for source in sources:
        exec(source.replace("3600", "0.01"), space)  # noqa: S102 - our own document
    with teguh.Client.connect(dsn) as client:
        client.create_queue("python")
        task = client.spawn_task("python", task_name, **space["tasks"].options(task_name))
        worker = teguh.Worker(dsn, "python", space["tasks"], poll_interval=0.1)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while client.list_tasks("python", state=["pending", "running", "sleeping"]):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            worker.stop()
            thread.join()
        result = client.get_task_result("python", task.task_id)
        assert result.state == state
        return space.get("log", result.completed_payload)


@pytest.mark.parametrize(
    ("page", "queue"),
    [(CHILDREN, "photos"), (SAGAS, "trips"), (MESSAGES, "refunds"), (WORKFLOW_RUNS, "orders")],
)
def test_the_patterns_show_what_their_examples_answer(dsn: str, page: Path, queue: str) -> None:
    text = page.read_text()
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("select teguh.create_queue(%s)", [queue])
        if page == CHILDREN:
            db.execute("select teguh.spawn_task(%s, 'album', '{}')", [queue])
        if page == MESSAGES:
            db.execute("select teguh.spawn_task(%s, 'refund', '{}')", [queue])
        moments = (f"2031-05-01 12:00:{second}+00" for second in range(10, 60))
        assert played(db, text, moments) == text


IN_DATABASE = ROOT / "docs" / "patterns" / "in-database.md"


def test_the_handlers_in_the_database_do_what_their_page_says(dsn: str) -> None:
    text = IN_DATABASE.read_text()
    (made,) = snippets("sql", text)
    moments = [f"2031-05-01 {hour}:00:00+00" for hour in (12, 12, 12, 13, 13, 13)]
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("set timezone = 'UTC'")
        db.execute(made.encode())
        assert played(db, text, iter(moments)) == text


def test_the_python_of_the_patterns_does_what_they_say(dsn: str) -> None:
    (album,) = snippets("python", CHILDREN.read_text())
    assert execute(dsn, [album], "album", "completed") == [100, 200, 300]


def test_the_python_of_the_saga_undoes_its_steps(dsn: str) -> None:
    trip, _ = snippets("python", SAGAS.read_text())
    assert execute(dsn, [trip], "trip", "failed") == [
        "booked car", "booked hotel", "cancelled flight", "cancelled hotel", "cancelled car"
    ]  # fmt: skip


def test_the_python_of_the_repetition_looks_three_times(dsn: str) -> None:
    assert (
        execute(dsn, snippets("python", SAGAS.read_text()), "watch", "completed") == ["looked"] * 3
    )


def test_the_python_of_the_page_on_messages_lets_a_person_decide(dsn: str) -> None:
    refund, answer, _ = snippets("python", MESSAGES.read_text())
    space: dict[str, Any] = {}
    exec(refund, space)  # noqa: S102 - our own document
    with teguh.Client.connect(dsn) as client:
        client.create_queue("refunds")
        task_id = client.spawn_task("refunds", "refund").task_id
        worker = teguh.Worker(dsn, "refunds", space["tasks"], poll_interval=0.1)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            deadline = time.monotonic() + 30
            for state in ("sleeping", "completed"):
                while client.get_task_result("refunds", task_id).state != state:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                exec(answer, {"client": client, "task_id": task_id})  # noqa: S102
        finally:
            worker.stop()
            thread.join()
        assert client.get_task_result("refunds", task_id).completed_payload == "paid"


def test_the_python_of_the_page_on_messages_strikes_a_bargain(dsn: str) -> None:
    refund, _, bargain = snippets("python", MESSAGES.read_text())
    assert execute(dsn, [refund, bargain], "buyer", "completed") == 90


def test_the_python_of_the_attributes_publishes_them(dsn: str) -> None:
    (invoice,) = snippets("python", WORKFLOW_RUNS.read_text())
    assert execute(dsn, [invoice], "invoice", "completed") == 90
    with teguh.Client.connect(dsn) as client:
        (task,) = client.list_tasks("python", attributes={"customer": "c-17"})
    assert task.attributes == {"customer": "c-17", "amount": 90}


CLI = ROOT / "docs" / "cli.md"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def typed(text: str, environment: dict[str, str]) -> str:
    """Return a document with what its commands print in one shell; one line ends the output."""
    mark = "-- end of the output --"
    commands = re.findall(r"^\$ (.*)", text, re.MULTILINE)
    script = "".join(f"{line}\nstatus=$?; echo '{mark}'; (exit $status)\n" for line in commands)
    done = subprocess.run(
        ["bash", "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    outputs = iter(done.stdout.split(f"{mark}\n"))

    def block(match: re.Match[str]) -> str:
        prompts = re.findall(r"^\$ .*", match[1], re.MULTILINE)
        answers = [re.sub(" +$", "", next(outputs), flags=re.MULTILINE) for _ in prompts]
        shown = [f"{p}\n{a}" for p, a in zip(prompts, answers, strict=True)]
        return "```console\n" + "\n".join(shown) + "```"

    return re.sub(r"```console\n(.*?)```", block, text, flags=re.DOTALL)


def test_the_command_line_prints_what_its_page_shows(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(ORDERS.encode())
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "TEGUH_DSN": dsn,
        "PGOPTIONS": "-c teguh.fake_now=2031-05-01T12:00:00Z -c timezone=UTC",
        "PYTHONUTF8": "1",
    }
    text = CLI.read_text()
    assert UUID.sub("an id", typed(text, environment)) == UUID.sub("an id", text)


def test_the_page_on_the_command_line_names_every_verb_and_what_it_calls() -> None:
    rows = re.findall(r"^\| `(\w+) ([^|]*) \| ([^|]*) \|$", CLI.read_text(), re.MULTILINE)
    named = {f"{group} {verb}" for group, verbs, _ in rows for verb in re.findall(r"(\w+)`", verbs)}
    assert named == {f"{group} {verb}" for group, verbs in VERBS.items() for verb in verbs}
    called = {name for _, _, calls in rows for name in re.findall(r"`([a-z_]+)`", calls)}
    sent = {
        verb.__name__ for verbs in VERBS.values() for verb in verbs.values()
        if verb.__qualname__.startswith("Client.")
    }  # fmt: skip
    assert sent <= called
    assert called <= set(vars(teguh.Client))


def test_the_page_on_the_command_line_names_every_check() -> None:
    text = CLI.read_text().partition("| check |")[2]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == ["version", *SERVER, *ENGINE]


DOCUMENTS = [
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/cli.md", "docs/dashboard.md",
    "docs/http.md", "docs/managed.md", "docs/upgrading.md", "docs/operating.md",
    "docs/patterns/children.md", "docs/patterns/in-database.md", "docs/patterns/messages.md",
    "docs/patterns/sagas.md", "docs/patterns/schedules.md", "docs/patterns/workflow-runs.md",
]  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_links_to_exists(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)[)#]", path.read_text()):
        assert (path.parent / target).exists(), target


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
