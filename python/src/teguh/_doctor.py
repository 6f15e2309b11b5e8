"""What is wrong with an installation and the server it is on, and what to do about it.

The engine's functions say what they can; the rest is asked of PostgreSQL's catalogs (`_catalog`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from teguh import _catalog
from teguh._install import check_version, installed_version, package_version
from teguh._sync.client import Client
from teguh.errors import EngineError, VersionMismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from teguh._types import ListedTask, Status

Severity = Literal["ok", "info", "warning", "error"]

OLD_XIDS = 10_000_000  # how old a snapshot may be, as in health()
MANY_ROWS = 10_000  # fewer dead rows are no bloat
LONG_LEASE = timedelta(days=1)  # for one without end
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found, or with severity ok that a check found nothing."""

    check: str
    severity: Severity
    message: str
    hint: str | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether something has to be done."""
        return self.severity in ("warning", "error")


Found = tuple[Severity, str, str | None]


def _error(message: str, hint: str) -> Found:
    return "error", message, hint


def _warning(message: str, hint: str) -> Found:
    return "warning", message, hint


def _info(message: str, hint: str) -> Found:
    return "info", message, hint


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at. `patience` is from how many seconds on something is late."""

    client: Client
    patience: float

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a catalog query."""
        params = {"patience": self.patience, "old_xids": OLD_XIDS, "many_rows": MANY_ROWS}
        return self.client.connection.execute(query.encode(), params).fetchall()


def examine(dsn: str, patience: float = 300) -> list[Finding]:
    """Look at everything; without teguh, or with an older one, only at the server."""
    with Client.connect(dsn) as client:
        findings = [Finding("version", *_version(client))]
        checks = SERVER if findings[0].is_wrong else {**SERVER, **ENGINE}
        for check, (examined, look) in checks.items():
            found = _look(look, Patient(client, patience))
            findings += [Finding(check, *one) for one in found or [("ok", examined, None)]]
    return findings


def _look(look: Callable[[Patient], Iterator[Found]], patient: Patient) -> list[Found]:
    try:
        return list(look(patient))
    except (EngineError, psycopg.Error) as error:
        return [_error(f"cannot be looked at: {error}", "See to this first.")]


def _version(client: Client) -> Found:
    installed, packaged = installed_version(client.connection), package_version()
    if installed is None:
        return _error("teguh is not installed in this database", "Run `teguh install`.")
    try:
        check_version(installed)
    except VersionMismatch as error:
        return "error", error.message, error.hint
    if installed != packaged:
        return _info(
            f"the database has teguh {installed}, this package is {packaged}",
            "That works. Upgrade the package, too.",
        )
    return "ok", f"teguh {installed}", None


def _at(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds")


# The server


def _autovacuum(patient: Patient) -> Iterator[Found]:
    for name, value in patient.ask(_catalog.SWITCHED_OFF):
        yield _error(
            f"{name} is {value}: nobody removes dead rows",
            f"Run: alter system set {name} = on; select pg_reload_conf();",
        )
    for (table,) in patient.ask(_catalog.SLEEPING_TABLES):
        yield _warning(
            f"autovacuum is off for teguh.{table}",
            f"Run: alter table teguh.{table} reset (autovacuum_enabled);",
        )


def _isolation(patient: Patient) -> Iterator[Found]:
    why = "claims refuse all but read committed"
    settings = patient.ask(_catalog.ISOLATION_SETTINGS)
    for level, role, database in settings:
        whose = " ".join(
            [*([f'role "{role}"'] if role else []), *(["in"] if role and database else []),
             *([f'database "{database}"'] if database else [])]
        ) or "role all"  # fmt: skip
        yield _warning(
            f"default_transaction_isolation of {whose} is {level}: {why}",
            f"Run: alter {whose} reset default_transaction_isolation;",
        )
    [(level,)] = patient.ask(_catalog.ISOLATION)
    if level != "read committed" and not settings:
        yield _warning(
            f"default_transaction_isolation is {level}: {why}",
            "Set it back in postgresql.conf, or in the options of the connection.",
        )


def _snapshots(patient: Patient) -> Iterator[Found]:
    ways = {
        "session": "End its transaction, or run: select pg_terminate_backend({});",
        "prepared transaction": "Run: commit prepared '{0}'; or rollback prepared '{0}';",
        "replication slot": "If nobody needs it, run: select pg_drop_replication_slot('{}');",
    }
    for kind, name, more, since, age in patient.ask(_catalog.HOLDERS):
        when = f" since {_at(since)}" if since else ""
        back = f", {age} transactions back" if age else ""
        yield _warning(
            f"{kind} {name} {more} keeps dead rows from being removed{when}{back}",
            ways[kind].format(name),
        )
    [(sees_all,)] = patient.ask(_catalog.SEES_SESSIONS)
    if not sees_all:
        yield _info(
            "this role does not see what sessions of others hold",
            "Run the doctor as a member of pg_monitor.",
        )


def _pgcrypto(patient: Patient) -> Iterator[Found]:
    [(misses,)] = patient.ask(_catalog.MISSES_PGCRYPTO)
    if misses:
        yield _info(
            "pgcrypto is not installed: ids are made with gen_random_uuid() instead",
            "They are as random. To use pgcrypto, create it, then run `teguh install` again.",
        )


# The engine


def _health(patient: Patient) -> Iterator[Found]:
    for problem in patient.client.health()["problems"]:
        yield _warning(problem["problem"], problem["hint"])


def _scheduler(patient: Patient) -> Iterator[Found]:
    status = patient.client.status()
    ticked = f"last tick at {_at(status.last_tick_at)}" if status.last_tick_at else "no tick yet"
    if status.scheduler is None:
        yield "ok", f"{ticked}; pg_cron is not here, so workers tick", None
        return
    wrong = list(_pg_cron(patient, status))
    yield from wrong or [("ok", f"{ticked}; pg_cron runs", None)]


def _pg_cron(patient: Patient, status: Status) -> Iterator[Found]:
    if status.ticker_job is None:
        yield _warning("pg_cron is here, but has no job that ticks", "Run: select teguh.start();")
    [(runs,)] = patient.ask(_catalog.CRON_RUNS)
    if not runs:
        yield _error(
            "pg_cron is installed, but does not run",
            "Put pg_cron into shared_preload_libraries and restart the server.",
        )
    for job, active, error in patient.ask(_catalog.CRON_JOBS):
        if not active:
            yield _warning(f"job {job} of pg_cron is not active", "Run: select teguh.start();")
        elif error:
            yield _warning(
                f"job {job} of pg_cron failed: {error.strip()}", "Look at cron.job_run_details."
            )


_RIGHTS = {
    "owned": _warning(
        "of teguh does not belong to the owner of its schema: {}",
        "Functions run with the rights of their owner. Run: alter … owner to …;",
    ),
    "created": _error(
        "others may create objects in the schema teguh: {}",
        "Run: revoke create on schema teguh from …;",
    ),
    "executed": _error(
        "everybody may execute functions of teguh: {}",
        "Run: revoke execute on function teguh.… from public;",
    ),
    "granted": _warning(
        "tables of teguh are granted to others: {}",
        "What is written there, nobody checks: revoke it, and use teguh.grant_access().",
    ),
}


def _rights(patient: Patient) -> Iterator[Found]:
    for what, names in patient.ask(_catalog.RIGHTS):
        severity, message, hint = _RIGHTS[what]
        yield severity, message.format(names), hint
    [(owner, sees_grants)] = patient.ask(_catalog.SEES_GRANTS)
    if not sees_grants:
        yield _info(
            "this role does not see whether roles have what they were granted",
            f"Run the doctor as {owner}.",
        )
        return
    for role, access, queue in patient.ask(_catalog.LOST_GRANTS):
        queues = "" if queue == "*" else f", '{{{queue}}}'"
        yield _warning(
            f'role "{role}" was granted access as {access}, and does not have it',
            f"Run: select teguh.grant_access('{role}', '{access}'{queues});",
        )


def _bloat(patient: Patient) -> Iterator[Found]:
    for table, dead, live, vacuumed in patient.ask(_catalog.DEAD_ROWS):
        when = f"vacuumed at {_at(vacuumed)}" if vacuumed else "never vacuumed"
        yield _warning(
            f"teguh.{table} has {dead} dead rows and {live} live ones, {when}",
            f"See to old snapshots and to autovacuum, then run: vacuum teguh.{table};",
        )


def _leases(patient: Patient) -> Iterator[Found]:
    client, now = patient.client, patient.client.current_time()
    late, long = now - timedelta(seconds=patient.patience), now - LONG_LEASE
    for queue in [stats.queue_name for stats in client.queue_stats() if stats.running]:
        over = 0
        for task in _running(client, queue):
            if task.lease_expires_at:
                over += task.lease_expires_at < late
            elif task.started_at and task.started_at < long:
                yield _warning(
                    f'{task.claimed_by} holds a task of queue "{queue}" since'
                    f" {_at(task.started_at)}, by a lease without end",
                    f"If it is dead, run: select teguh.requeue_task('{queue}', '{task.task_id}');",
                )
        if over:
            yield _warning(
                f'leases of queue "{queue}" that are over, and nobody has noticed: {over}',
                f"Start a worker, or run: select teguh.ticker('{queue}');",
            )


def _running(client: Client, queue: str) -> Iterator[ListedTask]:
    cursor = None
    while page := client.list_tasks(queue, state="running", cursor=cursor, limit=PAGE):
        yield from page
        cursor = page[-1].cursor


def _schedules(patient: Patient) -> Iterator[Found]:
    late = patient.client.current_time() - timedelta(seconds=patient.patience)
    for schedule in patient.client.list_schedules():
        if schedule.last_error:
            yield _warning(
                f'schedule "{schedule.schedule_name}" cannot fire: {schedule.last_error}',
                "It is tried again every 10 seconds. See to the cause, or pause it.",
            )
        elif schedule.next_fire_at and schedule.next_fire_at < late:
            yield _warning(
                f'schedule "{schedule.schedule_name}" was to fire at {_at(schedule.next_fire_at)}',
                f"Start a worker, or run: select teguh.ticker('{schedule.queue_name}');",
            )


Checks = dict[str, tuple[str, "Callable[[Patient], Iterator[Found]]"]]

# Each check: what is so when it finds nothing, and how it looks.
SERVER: Checks = {
    "autovacuum": ("on", _autovacuum),
    "isolation": ("read committed", _isolation),
    "snapshots": ("nothing keeps dead rows for long", _snapshots),
    "pgcrypto": ("there, or not needed", _pgcrypto),
}
ENGINE: Checks = {
    "health": ("somebody ticks, and where there is work, somebody works", _health),
    "scheduler": ("somebody ticks", _scheduler),
    "rights": ("teguh is its owner's, and others have what they were granted", _rights),
    "bloat": ("no table has more dead rows than live ones", _bloat),
    "leases": ("none is over, none without end is old", _leases),
    "schedules": ("none is late", _schedules),
}
