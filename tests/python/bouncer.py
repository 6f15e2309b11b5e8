"""A PgBouncer in transaction mode before the session's server."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.python.support import POOLER_PORT, until
from tools.servers import WORKER

if TYPE_CHECKING:
    from collections.abc import Iterator

# Tests of the worker that do not run through a pooler in transaction mode, each with the reason.
# All others do: a worker that polls only must behave as one that listens.
NOT_POOLED = {
    "test_an_idle_worker_is_woken_by_a_notification": "there are no notifications to wake it",
    "test_a_worker_wakes_at_the_exact_next_due_time": "waits until the worker listens",
    "test_a_worker_of_a_paused_queue_goes_on_at_once_when_it_is_resumed": "it waits likewise",
    "test_an_idle_worker_sends_less_than_one_statement_a_second": "counts the pooler's, too",
    "test_poll_only_mode_needs_no_session": "looks at the worker's own sessions by their names",
}


@contextmanager
def bouncer(dsn: str) -> Iterator[Path]:
    """Run a PgBouncer before the server of `dsn`; yield the directory of its socket."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    settings = conninfo_to_dict(dsn)
    host = str(settings.get("host", ""))
    if program is None or not host.startswith("/"):
        pytest.skip("needs pgbouncer, and a server on a socket of its own")
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "users").write_text(f'"{WORKER}" ""\n')
        (home / "ini").write_text(
            f"[databases]\n* = host={host}\n"
            f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {home}\nlisten_port = {POOLER_PORT}\n"
            f"auth_type = trust\nauth_file = {home}/users\npool_mode = transaction\n"
            "default_pool_size = 3\n"
        )
        command = [program, str(home / "ini")]
        if os.geteuid() == 0:  # which it refuses to run as
            os.chown(home, pwd.getpwnam("nobody").pw_uid, -1)
            command[1:1] = ["-u", "nobody"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until((home / f".s.PGSQL.{POOLER_PORT}").exists, "pgbouncer's socket")
            yield home
        finally:
            process.terminate()
            process.wait()


def through(home: Path, dsn: str) -> str:
    """Return the address of the same database behind the bouncer."""
    settings = conninfo_to_dict(dsn)
    return f"postgresql://{settings['user']}@/{settings['dbname']}?host={home}&port={POOLER_PORT}"
