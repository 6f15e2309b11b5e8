"""tools/servers.py starts servers that survive what tests do to them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from tools.servers import OTHERS, OWNER, ROOT, Server, ServerError, find_build

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_committed_survives_a_killed_server(own_server: Server) -> None:
    dsn = own_server.create_database("shop", owner=OWNER)
    with psycopg.connect(dsn) as connection:
        connection.execute("create table kept as select 1 as a")
    session = psycopg.connect(dsn)
    own_server.kill()
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    session.close()
    own_server.start()
    with psycopg.connect(dsn) as connection:
        assert connection.execute("select a from kept").fetchone() == (1,)


def test_the_roles_of_tests_are_no_superusers(own_server: Server) -> None:
    rows = own_server.execute(
        "select rolname, rolsuper or rolcreatedb or rolcreaterole or rolbypassrls"
        " from pg_catalog.pg_roles where rolname ~ '^teguh_' order by 1"
    )
    assert rows == [(role, False) for role in sorted([OWNER, *OTHERS])]


def test_nothing_is_left_of_a_closed_server(own_server: Server) -> None:
    home, pid = own_server.home, own_server.pid
    own_server.close()
    assert not home.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_settings_reach_the_server(own_server: Server) -> None:
    with Server(own_server.kind, {"application_name": "it's"}) as server:
        assert server.execute("show application_name") == [("it's",)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must hand binaries to another account")
def test_binaries_out_of_reach_of_the_servers_account_are_copied(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = find_build(own_server.kind)
    hidden = build.copy_to(tmp_path)
    tmp_path.chmod(0o700)
    monkeypatch.setattr("tools.servers.find_build", lambda _: hidden)
    with Server(own_server.kind) as server:
        assert server.execute("select 1") == [(1,)]
        assert server.programs.is_relative_to(server.home)


def test_a_server_started_from_the_shell_is_gone_after_sigterm(own_server: Server) -> None:
    command = [sys.executable, "-m", "tools.servers", "run", own_server.kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        dsn = process.stdout.readline().strip()
        psycopg.connect(dsn).close()
        process.terminate()
        assert process.wait(30) == 0
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)


@pytest.mark.parametrize("kind", ["", "oracle", "npm", "npm:x", "npm:9", "debian:7"])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(ServerError):
        find_build(kind)


def test_a_server_that_cannot_start_says_why(own_server: Server) -> None:
    with pytest.raises(ServerError, match="shared_buffers"):
        Server(own_server.kind, {"shared_buffers": "much"}).start()
