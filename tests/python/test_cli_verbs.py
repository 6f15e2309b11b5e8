"""Every verb of the command line, in every format, and what it has done."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.conninfo import make_conninfo

import teguh
from teguh._cli.verbs import VERBS
from teguh.cli import main
from tools.servers import GUEST, OWNER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cluster import Cluster

    Check = Callable[[teguh.Client, "World"], object]

NOON = "2031-05-01T12:00:00+00:00"


@dataclass
class World:
    """A queue that has been at work: a task pending, one running, one failed, one completed."""

    dsn: str
    pending: str = ""
    running: str = ""
    run: str = ""
    failed: str = ""
    completed: str = ""
    flow: str = ""
    file: str = ""

    def named(self, value: Any) -> Any:
        """Return a value with {pending} and the like replaced by ids."""
        for name, id_ in vars(self).items():
            value = value.replace(f"{{{name}}}", id_) if isinstance(value, str) else value
        return value


@pytest.fixture(scope="module")
def made(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, World]]:
    """A database with such a queue; its clock stands still at noon."""
    file = tmp_path_factory.mktemp("cli") / "tasks"
    file.write_text('{"task_name": "one", "params": 1}\n{"task_name": "two"}\n')
    with cluster.database("teguh") as name:
        world = World(at_noon(cluster.owner_dsn(name)), file=str(file))
        fill(world)
        yield name, world


def at_noon(dsn: str) -> str:
    return make_conninfo(dsn, options=f"-c teguh.fake_now={NOON} -c timezone=UTC")


def fill(world: World) -> None:
    with teguh.Client.connect(world.dsn) as client:
        client.create_queue("jobs", default_max_attempts=1, namespace="shop")
        world.flow = str(client.create_workflow_run("order").workflow_run_id)
        for name in ("failed", "completed", "running"):
            task = client.spawn_task(
                "jobs", name, {"n": [1]}, tags=["eu"], workflow_run_id=world.flow
            )
            (claimed,) = client.claim_task("jobs", "host-1", claim_timeout=60)
            setattr(world, name, str(task.task_id))
            if name == "failed":
                client.fail_run("jobs", claimed.run_id, {"message": "no printer"})
            elif name == "completed":
                client.complete_run("jobs", claimed.run_id, {"parcel": 1})
            else:
                world.run = str(claimed.run_id)
        world.pending = str(client.spawn_task("jobs", "pending").task_id)
        client.send_message("jobs", world.running, "note", 7)
        client.emit_event("jobs", "shop:open", {"by": "ann"})
        client.set_attributes("jobs", world.run, {"shop": "x"})
        client.set_task_checkpoint_state("jobs", world.running, "label", "printed", world.run)
        client.spawn_children("jobs", world.run, "parts", [])
        client.connection.execute(
            "create function public.handle(teguh.job) returns jsonb return 'null'::jsonb"
        )
        client.register_handler("jobs", "report", "public.handle")
        client.create_schedule("daily", "jobs", "report", "@daily")
        client.set_limit("jobs", "queue", max_running=9)


@pytest.fixture
def world(cluster: Cluster, made: tuple[str, World]) -> Iterator[World]:
    """A copy of it."""
    name, world = f"{made[0]}_copy", made[1]
    cluster.server.create_database(name, template=made[0], owner=OWNER)
    yield replace(world, dsn=at_noon(cluster.owner_dsn(name)))
    cluster.server.drop_database(name)


def state(task: str, is_: str) -> Check:
    return lambda client, world: client.get_task("jobs", getattr(world, task)).state == is_


def granted(client: teguh.Client) -> list[str]:
    """Return what the guest may do."""
    rows = client.connection.execute("select access from teguh.grants")
    return [str(access) for (access,) in rows]


def compensated(client: teguh.Client, run: str) -> bool:
    """Let a run fail, and return whether it is undone."""
    client.fail_run("jobs", run, "no")
    return client.list_tasks("jobs", task_name="refund") != []


def nothing(_: teguh.Client, __: World) -> bool:
    return True


# What is said after the verb (with | between the words if any has a space), what its first row has,
# and what is so then.
CASES: dict[str, tuple[str, dict[str, Any], Check]] = {
    "queues create": (
        "new --max-pending 5 --duration-buckets 0.5 --duration-buckets 2",
        {"done": "queues create", "queue": "new"},
        lambda client, _: client.get_queue_policy("new")["duration_buckets"] == [0.5, 2],
    ),
    "queues list": ("", {"queue_name": "jobs", "namespace": "shop"}, nothing),
    "queues get": ("jobs", {"default_max_attempts": 1, "namespace": "shop"}, nothing),
    "queues update": (
        "jobs --default-max-attempts null --notify always --no-history",
        {"done": "queues update", "queue": "jobs"},
        lambda client, _: (
            client.get_queue_policy("jobs")["default_max_attempts"] is None
            and client.get_queue_policy("jobs")["history"] is False
        ),
    ),
    "queues delete": (
        "jobs --yes", {"done": "queues delete", "queue": "jobs"},
        lambda client, _: client.list_queues() == [],
    ),
    "queues stats": ("jobs", {"queue_name": "jobs", "pending": 1, "failed": 1}, nothing),
    "queues pause": (
        "jobs 2031-05-01T13:00:00Z --reason cleaning", {"done": "queues pause", "queue": "jobs"},
        lambda client, _: client.claim_task("jobs") == [],
    ),
    "queues resume": (
        "jobs", {"done": "queues resume", "queue": "jobs"},
        lambda client, _: client.claim_task("jobs") != [],
    ),
    "queues actions": ("jobs", {"action": "create_schedule"}, nothing),
    "queues metrics": ("", {"name": "teguh_tasks"}, nothing),
    "queues next-due": ("jobs", {"next_due": NOON}, nothing),
    "queues rebuild": ("jobs", {"rebuild": 1}, lambda client, _: client.claim_task("jobs") != []),
    "queues cleanup": (
        "jobs", {"queue_name": "jobs", "tasks_deleted": 0, "events_deleted": 0}, nothing
    ),
    "tasks spawn": (
        "jobs report {\"d\":1} --tags eu --tags us --delay-seconds 60 --unique {\"key\":\"k\"}",
        {"attempt": 1, "created": True},
        lambda client, _: client.list_tasks("jobs", tags=["eu", "us"])[0].task_name == "report",
    ),
    "tasks spawn-many": (
        "jobs {file}", {"spawn-many": 2},
        lambda client, _: [len(client.list_tasks("jobs", task_name=n)) for n in ("one", "two")]
        == [1, 1],
    ),
    "tasks list": (
        "jobs --state failed --state expired --task-name failed --created-after 2031-01-01",
        {"task_id": "{failed}", "state": "failed", "attempts": 1}, nothing,
    ),
    "tasks get": ("jobs {running}", {"state": "running", "params": {"n": [1]}}, nothing),
    "tasks result": (
        "jobs {completed}", {"state": "completed", "completed_payload": {"parcel": 1}}, nothing
    ),
    "tasks history": ("jobs {failed}", {"event": "created", "detail": {}}, nothing),
    "tasks watch": ("jobs {completed}", {"event": "created", "detail": {}}, nothing),
    "tasks retry": (
        "jobs {failed} --max-attempts 3 --reason again", {"task_id": "{failed}", "created": False},
        state("failed", "pending"),
    ),
    "tasks cancel": (
        "jobs {pending} --reason late",
        {"done": "tasks cancel", "queue": "jobs", "task_id": "{pending}"},
        state("pending", "cancelled"),
    ),
    "tasks cancel-many": (
        "jobs --task-name pending --reason late", {"cancel-many": 1}, state("pending", "cancelled")
    ),
    "tasks requeue": ("jobs {running} --reason lost", {}, state("running", "pending")),
    "tasks requeue-many": (
        "jobs --worker-id host-1", {"requeue-many": 1}, state("running", "pending")
    ),
    "tasks claim-any": (
        "host-2 --queues jobs --task-names pending --order oldest",
        {"task_id": "{pending}", "attempt": 1}, state("pending", "running"),
    ),
    "tasks cleanup": (
        "jobs --ttl-seconds 0", {"cleanup": 2},
        lambda client, _: len(client.list_tasks("jobs")) == 2,
    ),
    "tasks claim": (
        "jobs host-2 --qty 5 --claim-timeout 60", {"task_id": "{pending}", "attempt": 1},
        state("pending", "running"),
    ),
    "runs list": ("jobs {running}", {"run_id": "{run}", "claimed_by": "host-1"}, nothing),
    "runs complete": (
        "jobs {run} {\"ok\":true}", {"done": "runs complete", "queue": "jobs", "run_id": "{run}"},
        lambda client, world:
            client.get_task("jobs", world.running).completed_payload == {"ok": True},
    ),
    "runs complete-many": (
        "jobs {\"{run}\":1}", {"run_id": "{run}", "applied": True}, state("running", "completed")
    ),
    "runs release": (
        "jobs {run} --delay-seconds 5", {"done": "runs release"}, state("running", "sleeping")
    ),
    "runs extend": (
        "jobs {run} 120", {"done": "runs extend", "run_id": "{run}"},
        lambda client, world: client.get_task("jobs", world.running).lease_expires_at
        == datetime.fromisoformat(NOON) + timedelta(minutes=2),
    ),
    "runs repeat": ("jobs {run} --after-seconds 60", {}, state("running", "sleeping")),
    "runs compensate": (
        "jobs {running} {run} charge {\"task_name\":\"refund\"}",
        {"done": "runs compensate", "step_name": "charge"},
        lambda client, world: compensated(client, world.run),
    ),
    "checkpoints list": (
        "jobs {running} {run}", {"checkpoint_name": "label", "state": "printed"}, nothing
    ),
    "checkpoints get": ("jobs {running} label", {"state": "printed"}, nothing),
    "checkpoints set": (
        "jobs {running} charge [1] {run} --extend-claim-by 60",
        {"done": "checkpoints set", "step_name": "charge"},
        lambda client, world:
            client.get_task_checkpoint_state("jobs", world.running, "charge") == [1],
    ),
    "children spawn": (
        "jobs {run} more {\"task_name\":\"child\"} {\"task_name\":\"other\"}",
        {"queue_name": "jobs", "created": True},
        lambda client, _: [len(client.list_tasks("jobs", task_name=n)) for n in ("child", "other")]
        == [1, 1],
    ),
    "children await": (
        "jobs {running} {run} parts --on-failure fail_fast --cancel-rest",
        {"should_suspend": False, "children": []}, lambda _, __: True,
    ),
    "attributes get": ("jobs {running}", {"shop": "x"}, nothing),
    "attributes set": (
        "jobs {run} {\"paid\":true,\"shop\":null}", {"done": "attributes set"},
        lambda client, world: client.get_attributes("jobs", world.running) == {"paid": True},
    ),
    "runs fail": (
        "jobs {run} {\"message\":\"no\"}",
        {"done": "runs fail", "queue": "jobs", "run_id": "{run}"}, state("running", "failed"),
    ),
    "runs schedule": (
        "jobs {run} 2031-05-01T13:00:00Z", {"done": "runs schedule", "run_id": "{run}"},
        state("running", "sleeping"),
    ),
    "events emit": (
        "jobs paid {\"by\":\"card\"}",
        {"done": "events emit", "queue": "jobs", "event_name": "paid"},
        lambda client, _: client.list_events("jobs", prefix="paid")[0].payload == {"by": "card"},
    ),
    "events list": (
        "jobs --prefix shop --emitted --no-awaited",
        {"event_name": "shop:open", "payload": {"by": "ann"}, "waiters": 0}, nothing,
    ),
    "events await": (
        "jobs {running} {run} paid paid:1 --timeout 60", {"should_suspend": True},
        lambda client, _: client.list_events("jobs", awaited=True)[0].waiters == 1,
    ),
    "events cleanup": (
        "jobs --ttl-seconds 0", {"cleanup": 1}, lambda client, _: client.list_events("jobs") == []
    ),
    "messages send": (
        "jobs {pending} approval {\"by\":\"ann\"} --idempotency-key k", {"created": True},
        lambda client, world:
            client.list_messages("jobs", world.pending)[0].payload == {"by": "ann"},
    ),
    "messages receive": (
        "jobs {running} {run} hear note", {"should_suspend": False, "payload": 7},
        lambda client, world: client.list_messages("jobs", world.running) == [],
    ),
    "messages list": ("jobs {running}", {"topic": "note", "payload": 7}, nothing),
    "workflows create": (
        "checkout --version 2 --tags eu --tags web --created-by ann", {"created": True},
        lambda client, _: client.list_workflow_runs(name="checkout")[0].tags == ["eu", "web"],
    ),
    "workflows list": (
        "--name order --status running --status pending", {"name": "order", "completed": 1},
        nothing,
    ),
    "workflows get": ("{flow}", {"name": "order", "status": "running", "failed": 1}, nothing),
    "workflows tree": (
        "{flow} --limit 2", {"queue_name": "jobs", "depth": 0, "attempts": 1}, nothing
    ),
    "workflows update": (
        "{flow} --version 3", {"done": "workflows update", "workflow_run_id": "{flow}"},
        lambda client, world: client.get_workflow_run(world.flow).version == "3",
    ),
    "workflows cleanup": ("--ttl-seconds 0", {"cleanup": 0}, nothing),
    "handlers register": (
        "jobs|*|public.handle", {"done": "handlers register", "queue": "jobs"},
        lambda client, _: [h.task_name for h in client.list_handlers()] == ["*", "report"],
    ),
    "handlers unregister": (
        "jobs report", {"unregister": True}, lambda client, _: client.list_handlers() == []
    ),
    "handlers list": (
        "jobs", {"task_name": "report", "function_name": "public.handle"}, nothing
    ),
    "handlers work": (
        "jobs --limit 1 --unknown-delay 60", {"done": "handlers work"}, state("pending", "sleeping")
    ),
    "schedules create": (
        "nightly|jobs|report|30 2 * * mon-fri|--overlap|skip|--params|[]",
        {"done": "schedules create", "name": "nightly"},
        lambda client, _: client.get_schedule("nightly").options["params"] == [],
    ),
    "schedules list": ("jobs", {"schedule_name": "daily", "schedule": "@daily"}, nothing),
    "schedules get": ("daily", {"task_name": "report", "queue_name": "jobs"}, nothing),
    "schedules update": (
        "daily --timezone Europe/Berlin --jitter-seconds 5",
        {"done": "schedules update", "name": "daily"},
        lambda client, _: client.get_schedule("daily").options["timezone"] == "Europe/Berlin",
    ),
    "schedules pause": (
        "daily", {"done": "schedules pause", "name": "daily"},
        lambda client, _: client.get_schedule("daily").paused_at is not None,
    ),
    "schedules resume": (
        "daily", {"done": "schedules resume", "name": "daily"},
        lambda client, _: client.get_schedule("daily").paused_at is None,
    ),
    "schedules trigger": (
        "daily --reason now", {"created": True},
        lambda client, _: client.list_tasks("jobs", task_name="report") != [],
    ),
    "schedules delete": (
        "daily", {"done": "schedules delete", "name": "daily"},
        lambda client, _: client.list_schedules() == [],
    ),
    "schedules next": ("@daily", {"fires_at": "2031-05-02T00:00:00+00:00"}, nothing),
    "dlq list": ("jobs --tag eu", {"task_id": "{failed}", "task_name": "failed"}, nothing),
    "dlq replay": ("jobs --tag eu", {"replay": 1}, state("failed", "pending")),
    "dlq purge": (
        "jobs --ttl-seconds 0 --yes", {"purge": 1},
        lambda client, _: client.list_dead_letters("jobs") == [],
    ),
    "limits set": (
        "task report --queue jobs --rate 5 --period-seconds 60",
        {"done": "limits set", "scope": "task"},
        lambda client, _: "task" in [limit.scope for limit in client.limit_usage("jobs")],
    ),
    "limits usage": ("jobs", {"scope": "queue", "max_running": 9, "running": 1}, nothing),
    "workers list": ("jobs", {"worker_id": "host-1", "queue_name": "jobs", "runs": 1}, nothing),
    "namespaces list": ("", {"namespace": "shop", "queues": 1}, nothing),
    "access grant": (
        f"{GUEST} client jobs", {"done": "access grant", "role": GUEST},
        lambda client, _: granted(client) == ["client"],
    ),
    "access revoke": (
        GUEST, {"done": "access revoke", "role": GUEST}, lambda client, _: granted(client) == []
    ),
    "ticker run": (
        "jobs", {"run": 0}, lambda client, _: client.status().last_tick_at is not None
    ),
    "ticker loop": (
        "--tick-seconds 0.01 --max-seconds 0.05", {"done": "ticker loop"},
        lambda client, _: client.status().last_tick_at is not None,
    ),
    "ticker start": ("", {"scheduler": None}, nothing),
    "ticker stop": ("", {"done": "ticker stop"}, nothing),
    "ticker status": ("", {"scheduler": None}, nothing),
}  # fmt: skip


def rows(form: str, text: str) -> list[dict[str, Any]]:
    """Read what was printed as JSON or CSV."""
    if form == "csv":
        return list(csv.DictReader(io.StringIO(text)))
    if text.startswith("[\n") or text == "[]\n":
        return list(json.loads(text))
    if text.startswith("{\n"):
        return [json.loads(text)]
    return [json.loads(line) for line in text.splitlines()]


def plain(value: object) -> str:
    """A value as CSV and tables have it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def test_every_verb_has_a_case() -> None:
    assert set(CASES) == {f"{group} {verb}" for group in VERBS for verb in VERBS[group]}


@pytest.mark.parametrize("form", ["table", "json", "csv"])
@pytest.mark.parametrize("verb", [verb for verb in CASES if CASES[verb][2] is nothing])
def test_a_verb_that_looks_shows_it_in_the_format_asked_for(
    made: tuple[str, World], capsys: pytest.CaptureFixture[str], verb: str, form: str
) -> None:
    run(made[1], verb, form)
    check(made[1], verb, form, capsys.readouterr().out)


@pytest.mark.parametrize("form", ["table", "json", "csv"])
@pytest.mark.parametrize("verb", [verb for verb in CASES if CASES[verb][2] is not nothing])
def test_a_verb_that_changes_something_does_and_says_so_in_the_format_asked_for(
    world: World, capsys: pytest.CaptureFixture[str], verb: str, form: str
) -> None:
    run(world, verb, form)
    check(world, verb, form, capsys.readouterr().out)
    with teguh.Client.connect(world.dsn) as client:
        assert CASES[verb][2](client, world)


def run(world: World, verb: str, form: str) -> None:
    """Run a verb with the arguments of its case."""
    said = CASES[verb][0]
    arguments = [world.named(word) for word in (said.split("|") if "|" in said else said.split())]
    assert main([*verb.split(), *arguments, "--dsn", world.dsn, "--format", form]) == 0


def check(world: World, verb: str, form: str, out: str) -> None:
    """See that what was printed has what is wanted in its first row."""
    expected = {name: world.named(value) for name, value in CASES[verb][1].items()}
    if form == "table":
        for value in expected.values():
            shown = plain(value)
            if shown.startswith("2031"):
                shown = shown.replace("T", " ").removesuffix(":00")
            assert value == {} or shown in out
        return
    first = rows(form, out)[0]
    if form == "csv":
        expected = {name: plain(value) for name, value in expected.items()}
    assert {name: first[name] for name in expected} == expected
