"""Bad input gives a clear error, or works, and leaves nothing half done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import psycopg
import pytest

from tests.catalog import definitions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Connection = psycopg.Connection[tuple[Any, ...]]
Values: TypeAlias = "Sequence[Any] | Mapping[str, Any]"

NOWHERE = uuid4()

HOSTILE = [
    "", " ", "Orders", "1a", "_a", "a-b", "a b", "a.b", "größe", "a\n", "a\t", "\uff41",
    "q" * 56, "q" * 5000,
    'a"; drop table teguh.queues; --', "a'; drop schema teguh cascade; --", "%s", "%I", "$1", "a\\",
    "'||pg_sleep(1)||'", "../../etc/passwd", "teguh.queues", "t_q, teguh.queues",
]  # fmt: skip


class Held:
    """A queue `q` with a run that is held, and a task of another run."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.ask("select teguh.create_queue('q')")
        self.ask("select count(*) from teguh.spawn_tasks('q', %s)", [self.tasks(3)])
        rows = self.ask("select run_id, task_id from teguh.claim_task('q', 'w', 30, 2)")
        (self.run, self.task), (self.other_run, self.other_task) = rows

    @staticmethod
    def tasks(count: int) -> str:
        return json.dumps([{"task_name": str(n)} for n in range(count)])

    def ask(self, query: str, values: Values = ()) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(query.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def rows(self) -> dict[str, list[str]]:
        """Return every row of every table; counters may have moved, rows may not."""
        tables = self.ask(
            "select relname from pg_class"
            " where relnamespace = 'teguh'::regnamespace and relkind = 'r' order by 1"
        )
        return {
            str(table): [
                str(r) for r in self.ask(f'select x::text from teguh."{table}" x order by 1')
            ]
            for (table,) in tables
        }

    def refused(self, query: str, values: Values = ()) -> psycopg.errors.Diagnostic:
        """Return what an error says; nothing may have changed by the call."""
        before = self.rows(), definitions(self.connection)
        with pytest.raises(psycopg.Error) as caught:
            self.ask(query, values)
        assert (self.rows(), definitions(self.connection)) == before
        return caught.value.diag


@pytest.fixture
def held(conn: Connection) -> Held:
    """A queue with a run that is held."""
    return Held(conn)


def assert_clear(said: psycopg.errors.Diagnostic, *states: str) -> None:
    """An error has one of these codes, and says what, why and what to do."""
    assert said.sqlstate in states
    assert said.message_primary
    assert said.message_detail
    assert said.message_hint
    assert not said.message_primary.endswith(".")
    assert said.message_primary[0] == said.message_primary[0].lower()


# Calls of every public function that names a queue, a run or a task: %s is the queue.
QUEUE_CALLS = [
    "select * from teguh.spawn_task({q}, 'a', '{{}}')",
    "select * from teguh.spawn_tasks({q}, '[]')",
    "select * from teguh.claim_task({q}, 'w')",
    "select teguh.next_due({q})",
    "select teguh.complete_run({q}, {run})",
    "select * from teguh.complete_runs({q}, '[]')",
    "select teguh.fail_run({q}, {run}, '1')",
    "select teguh.schedule_run({q}, {run}, now())",
    "select teguh.release_run({q}, {run})",
    "select teguh.extend_claim({q}, {run}, 5)",
    "select teguh.set_task_checkpoint_state({q}, {task}, 's', '1', {run})",
    "select teguh.get_task_checkpoint_state({q}, {task}, 's')",
    "select * from teguh.get_task_checkpoint_states({q}, {task}, {run})",
    "select * from teguh.await_event({q}, {task}, {run}, 's', 'e')",
    "select * from teguh.receive_message({q}, {task}, {run}, 's', 't')",
    "select * from teguh.send_message({q}, {task}, 't')",
    "select * from teguh.list_messages({q}, {task})",
    "select teguh.emit_event({q}, 'e')",
    "select * from teguh.list_events({q})",
    "select teguh.cancel_task({q}, {task})",
    "select * from teguh.retry_task({q}, {task})",
    "select * from teguh.get_task_result({q}, {task})",
    "select teguh.set_attributes({q}, {run}, '{{}}')",
    "select teguh.get_attributes({q}, {task})",
    "select teguh.cleanup_tasks({q})",
    "select teguh.cleanup_events({q})",
    "select * from teguh.cleanup_all_queues({q})",
    "select teguh.register_handler({q}, 'a', 'nowhere.a')",
    "select teguh.unregister_handler({q}, 'a')",
    "select * from teguh.list_handlers({q})",
    "call teguh.work({q})",
    "select teguh.ticker({q})",
    "select teguh.drop_queue({q})",
]
RUN_CALLS = [call for call in QUEUE_CALLS if "{run}" in call and "states" not in call]
TASK_CALLS = [call for call in QUEUE_CALLS if "{task}" in call and "{run}" not in call]


def filled(call: str, queue: str = "q", run: object = NOWHERE, task: object = NOWHERE) -> str:
    """Return a call with its arguments, which are ours, as literals."""
    return call.format(q=f"'{queue}'", run=f"'{run}'", task=f"'{task}'")


@pytest.mark.parametrize("call", QUEUE_CALLS)
def test_an_unknown_queue_is_named_with_a_hint(held: Held, call: str) -> None:
    said = held.refused(filled(call, queue="nowhere", run=held.run, task=held.task))
    assert_clear(said, "TG001")
    assert said.message_primary == 'queue "nowhere" does not exist'
    assert "create_queue('nowhere')" in str(said.message_hint)


@pytest.mark.parametrize("call", QUEUE_CALLS)
def test_the_template_is_no_queue(held: Held, call: str) -> None:
    said = held.refused(filled(call, queue="template", run=held.run, task=held.task))
    assert_clear(said, "TG001")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_queue_name_does_nothing(held: Held, name: str) -> None:
    assert_clear(held.refused("select teguh.create_queue(%s)", (name,)), "42602")
    for call in (
        "select * from teguh.spawn_task(%s, 'a', '{}')",
        "select * from teguh.claim_task(%s, 'w')",
        "select teguh.ticker(%s)",
        "select teguh.next_due(%s)",
        "select teguh.emit_event(%s, 'e')",
        "select * from teguh.cleanup_all_queues(%s)",
        "select teguh.drop_queue(%s)",
    ):
        assert_clear(held.refused(call, (name,)), "TG001")


@pytest.mark.parametrize("call", RUN_CALLS)
def test_an_unknown_run_is_refused(held: Held, call: str) -> None:
    said = held.refused(filled(call, task=held.task))
    assert_clear(said, "TG002")


@pytest.mark.parametrize("call", TASK_CALLS)
def test_an_unknown_task_is_refused(held: Held, call: str) -> None:
    said = held.refused(filled(call))
    assert_clear(said, "TG003")
    assert str(NOWHERE) in str(said.message_primary)


@pytest.mark.parametrize(
    "call",
    [
        "select teguh.set_task_checkpoint_state('q', %s, 's', '1', %s)",
        "select * from teguh.await_event('q', %s, %s, 's', 'e')",
        "select * from teguh.receive_message('q', %s, %s, 's', 't')",
    ],
)
def test_a_run_may_not_write_to_the_task_of_another(held: Held, call: str) -> None:
    said = held.refused(call, (held.task, held.other_run))
    assert_clear(said, "TG002")


def test_a_run_of_another_queue_is_unknown(held: Held) -> None:
    held.ask("select teguh.create_queue('other')")
    for call in RUN_CALLS:
        said = held.refused(filled(call, queue="other", run=held.run, task=held.task))
        assert_clear(said, "TG002")


@pytest.mark.parametrize("name", ["", "   ", None, "n" * 1025])
def test_blank_and_endless_names_are_refused(held: Held, name: str | None) -> None:
    values = {"name": name, "run": held.run, "task": held.task}
    for call in (
        "select * from teguh.spawn_task('q', %(name)s, '{}')",
        "select * from teguh.spawn_tasks('q',"  # noqa: ISC004 - one statement
        " '[{\"task_name\": \"good\"}]' || jsonb_build_object('task_name', %(name)s::text))",
        "select teguh.emit_event('q', %(name)s)",
        "select * from teguh.await_event('q', %(task)s, %(run)s, %(name)s, 'e')",
        "select * from teguh.await_event('q', %(task)s, %(run)s, 's', %(name)s)",
        "select * from teguh.receive_message('q', %(task)s, %(run)s, %(name)s, 't')",
        "select * from teguh.receive_message('q', %(task)s, %(run)s, 's', %(name)s)",
        "select * from teguh.send_message('q', %(task)s, %(name)s)",
        "select teguh.set_task_checkpoint_state('q', %(task)s, %(name)s, '1', %(run)s)",
    ):
        assert_clear(held.refused(call, values), "TG005")


@pytest.mark.parametrize(
    "options",
    [
        [], "x", 5, {"max_attempt": 1}, {"max_attempts": 0}, {"max_attempts": 1.5},
        {"retry_strategy": {"kind": "never"}}, {"retry_strategy": {"kind": "fixed", "base": 1}},
        {"cancellation": {"max_delay": 0}}, {"cancellation": {"max_duration": -1}},
        {"cancellation": {"max": 1}}, {"headers": []}, {"idempotency_key": ""},
        {"idempotency_mismatch": "x"}, {"delay_seconds": -1}, {"delay_seconds": "1"},
        {"available_at": "soon"}, {"available_at": "2031-01-01", "delay_seconds": 1},
    ],
)  # fmt: skip
def test_a_malformed_option_is_refused(held: Held, options: object) -> None:
    text = json.dumps(options)
    said = held.refused("select * from teguh.spawn_task('q', 'a', '{}', %s)", (text,))
    assert_clear(said, "TG005")
    tasks = [{"task_name": "good"}, {"task_name": "a", "options": options}]
    said = held.refused("select * from teguh.spawn_tasks('q', %s)", (json.dumps(tasks),))
    assert_clear(said, "TG005")


@pytest.mark.parametrize(
    "policy",
    [[], "x", {"notified": 1}, {"notify": "x"}, {"cleanup_ttl": -1}, {"cleanup_limit": 0}],
)
def test_a_malformed_policy_is_refused(held: Held, policy: object) -> None:
    text = json.dumps(policy)
    assert_clear(held.refused("select teguh.create_queue('new', %s)", (text,)), "TG005")
    assert_clear(held.refused("select teguh.create_queue('q', %s)", (text,)), "TG005")


@pytest.mark.parametrize(
    "call",
    [
        "select teguh.release_run('q', %(run)s, {seconds})",
        "select teguh.extend_claim('q', %(run)s, {seconds})",
        "select * from teguh.await_event('q', %(task)s, %(run)s, 's', 'e', {seconds})",
        "select * from teguh.receive_message('q', %(task)s, %(run)s, 's', 't', {seconds})",
        "select teguh.set_task_checkpoint_state('q', %(task)s, 's', '1', %(run)s, {seconds})",
        "select teguh.cleanup_tasks('q', {seconds})",
        "select teguh.cleanup_events('q', {seconds})",
    ],
)
@pytest.mark.parametrize("seconds", ["-1", "-0.001", "'-Infinity'", "'NaN'"])
def test_a_negative_duration_is_refused(held: Held, call: str, seconds: str) -> None:
    values = {"run": held.run, "task": held.task}
    said = held.refused(call.format(seconds=seconds), values)
    assert_clear(said, "TG005")


def test_a_worker_with_a_negative_timeout_has_a_lease_without_end(held: Held) -> None:
    found = held.ask("select lease_expires_at from teguh.claim_task('q', 'w', -5)")
    assert found == [(None,)]


@pytest.mark.parametrize(
    "runs", [{}, None, [1], ["x"], [{}], [{"run_id": "x"}], [{"run_id": str(NOWHERE), "sate": 1}]]
)
def test_a_malformed_batch_is_refused(held: Held, runs: object) -> None:
    said = held.refused("select * from teguh.complete_runs('q', %s)", (json.dumps(runs),))
    assert_clear(said, "TG005")


@pytest.mark.parametrize("tasks", [{}, None, 5, [1], [{}], [{"name": "a"}], [{"task_name": 5}]])
def test_a_malformed_array_of_tasks_is_refused(held: Held, tasks: object) -> None:
    said = held.refused("select * from teguh.spawn_tasks('q', %s)", (json.dumps(tasks),))
    assert_clear(said, "TG005")


def test_an_id_that_is_no_uuid_is_refused(held: Held) -> None:
    for call in RUN_CALLS + TASK_CALLS:
        said = held.refused(filled(call, run="not an id", task="not an id"))
        assert said.sqlstate == "22P02"
        assert "not an id" in str(said.message_primary)


def test_a_null_id_is_refused(held: Held) -> None:
    for call in RUN_CALLS + TASK_CALLS:
        text = (
            filled(call, run="RUN", task="TASK").replace("'RUN'", "null").replace("'TASK'", "null")
        )
        assert_clear(held.refused(text), "TG002", "TG003")


def test_a_sleep_without_end_of_its_own_is_refused(held: Held) -> None:
    said = held.refused("select teguh.schedule_run('q', %s, null)", (held.run,))
    assert_clear(said, "22004")


@pytest.mark.parametrize(
    "call",
    [
        "select * from teguh.spawn_task('q', 'a', %(bad)s)",
        "select * from teguh.spawn_tasks('q', jsonb_build_array(%(bad)s::jsonb))",
        "select teguh.complete_run('q', %(run)s, %(bad)s)",
        "select teguh.fail_run('q', %(run)s, %(bad)s)",
        "select teguh.set_task_checkpoint_state('q', %(task)s, 's', %(bad)s, %(run)s)",
        "select teguh.emit_event('q', 'e', %(bad)s)",
        "select * from teguh.send_message('q', %(task)s, 't', %(bad)s)",
    ],
)
def test_a_nul_in_a_value_is_refused_by_the_database(held: Held, call: str) -> None:
    values = {"bad": '{"text": "a\\u0000b"}', "run": held.run, "task": held.task}
    said = held.refused(call, values)
    assert said.sqlstate == "22P05"
    assert said.message_detail


def test_megabytes_go_through_every_value(held: Held) -> None:
    great = json.dumps({"text": "x" * 1_048_576, "more": list(range(1000))})
    values = {"great": great, "run": held.run, "task": held.task}
    held.ask("select * from teguh.spawn_task('q', 'great', %s)", (great,))
    for call in (
        "select teguh.set_task_checkpoint_state('q', %(task)s, 's', %(great)s, %(run)s)",
        "select teguh.emit_event('q', 'e', %(great)s)",
        "select * from teguh.await_event('q', %(task)s, %(run)s, 'w', 'e')",
        "select * from teguh.send_message('q', %(task)s, 't', %(great)s)",
        "select * from teguh.receive_message('q', %(task)s, %(run)s, 'm', 't')",
        "select teguh.complete_run('q', %(run)s, %(great)s)",
    ):
        held.ask(call, values)
    held.ask("select teguh.fail_run('q', %s, %s)", (held.other_run, great))
    assert held.ask(
        "select params from teguh.claim_task('q', 'w', 30, 10) where task_name = 'great'"
    ) == [(json.loads(great),)]
    assert held.ask(
        "select completed_payload from teguh.get_task_result('q', %s)", (held.task,)
    ) == [(json.loads(great),)]
    assert held.ask("select teguh.get_task_checkpoint_state('q', %s, 'w')", (held.task,)) == [
        (json.loads(great),)
    ]


@pytest.mark.parametrize(
    "text",
    ["", "größe ☃ 𝄞", "'; drop table teguh.queues; --", "%s %I $1", "\\", "a\n\tb", "null", "{}"],
)
def test_any_text_goes_through_every_name_and_value(held: Held, text: str) -> None:
    name = f"name {text}"
    options = json.dumps({"idempotency_key": name, "headers": {name: text}})
    held.ask("select * from teguh.spawn_task('q', %s, %s, %s)", (name, json.dumps(text), options))
    ((run, task, worker_params, headers),) = held.ask(
        "select run_id, task_id, params, headers from teguh.claim_task('q', %s, 30, 10)"
        " where task_name = %s",
        (name, name),
    )
    assert (worker_params, headers) == (text, {name: text})
    held.ask(
        "select teguh.set_task_checkpoint_state('q', %s, %s, %s, %s)",
        (task, name, json.dumps(text), run),
    )
    held.ask("select teguh.emit_event('q', %s, %s)", (name, json.dumps(text)))
    ((payload,),) = held.ask(
        "select payload from teguh.await_event('q', %s, %s, %s, %s)", (task, run, f"w{name}", name)
    )
    assert payload == text
    held.ask("select teguh.complete_run('q', %s, %s)", (run, json.dumps(text)))
    ((found,),) = held.ask("select completed_payload from teguh.get_task_result('q', %s)", (task,))
    assert found == text


def test_a_queue_name_of_55_bytes_works_from_spawn_to_drop(held: Held) -> None:
    name = "a" * 55
    held.ask("select teguh.create_queue(%s)", (name,))
    held.ask("select * from teguh.spawn_task(%s, 'a', '{}', '{\"delay_seconds\": 0}')", (name,))
    ((run, task),) = held.ask("select run_id, task_id from teguh.claim_task(%s, 'w')", (name,))
    held.ask("select * from teguh.await_event(%s, %s, %s, 's', 'e')", (name, task, run))
    held.ask("select teguh.emit_event(%s, 'e')", (name,))
    held.ask("select * from teguh.claim_task(%s, 'w')", (name,))
    held.ask("select teguh.fail_run(%s, %s, '1')", (name, run))
    held.ask("select teguh.ticker(%s)", (name,))
    held.ask("select teguh.next_due(%s)", (name,))
    held.ask("select * from teguh.cleanup_all_queues(%s)", (name,))
    held.ask("select teguh.drop_queue(%s)", (name,))
    assert held.ask("select 1 from pg_class where relname like %s", (f"%{name[:40]}%",)) == []


@pytest.mark.parametrize(
    "names", [("q_d",), ("p0",), ("task",), ("t_q", "q_template"), ("x", "x_template", "x_x")]
)
def test_queues_named_like_each_others_tables_keep_apart(
    held: Held, names: tuple[str, ...]
) -> None:
    for name in names:
        held.ask("select teguh.create_queue(%s)", (name,))
    left = set(names)
    for name in names:
        for queue in left:
            held.ask("select * from teguh.spawn_task(%s, %s, '{}')", (queue, f"for {queue}"))
            claimed = "select task_name from teguh.claim_task(%s, 'w', 30, 9)"
            assert held.ask(claimed, (queue,)) == [(f"for {queue}",)]
        held.ask("select teguh.drop_queue(%s)", (name,))
        left.remove(name)
    assert held.ask("select queue_name from teguh.list_queues()") == [("q",)]
    held.ask("select teguh.complete_run('q', %s)", (held.run,))


def test_a_poison_option_cannot_stop_a_queue(held: Held) -> None:
    # Options at the limits of what a spawn takes, whose leases expire together.
    for base in (0, 1e-307, 1e12):
        for kind in ("none", "fixed", "exponential"):
            strategy = {"kind": kind, "base_seconds": base, "factor": 1e6, "jitter": 1}
            limits = {"max_delay": 1e12, "max_duration": 1e12}
            options = json.dumps({"retry_strategy": strategy, "cancellation": limits})
            held.ask("select * from teguh.spawn_task('q', 'a', '{}', %s)", (options,))
    hasty = json.dumps({"cancellation": {"max_delay": 0.5}})
    held.ask("select * from teguh.spawn_task('q', 'b', '{}', %s)", (hasty,))
    held.ask("select * from teguh.claim_task('q', 'w', 1, 5)")
    for year in (2040, 2041, 2050, 9000):
        held.ask("select set_config('teguh.fake_now', %s, false)", (f"{year}-01-01 00:00+00",))
        held.ask("update teguh.t_q set failures = failures + 10000000 where failures > 0")
        held.ask("select teguh.ticker('q')")
        held.ask("select * from teguh.claim_task('q', 'w', 1, 100)")
    held.ask("select * from teguh.spawn_task('q', 'good', '{}')")
    held.ask("select teguh.ticker('q')")
    found = held.ask("select task_name from teguh.claim_task('q', 'w', 1, 100)")
    assert ("good",) in found


def test_errors_of_a_call_leave_the_callers_savepoint_usable(held: Held) -> None:
    held.ask("begin")
    held.ask("select * from teguh.spawn_task('q', 'kept', '{}')")
    with pytest.raises(psycopg.Error), held.connection.transaction():
        held.ask("select * from teguh.spawn_task('q', 'bad', '{}', '{\"x\": 1}')")
    held.ask("commit")
    assert held.ask("select task_name from teguh.t_q where task_name in ('kept', 'bad')") == [
        ("kept",)
    ]
