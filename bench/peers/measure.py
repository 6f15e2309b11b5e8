"""The cells: each measures one thing of one peer in a fresh database, and gives up in time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from bench.common import percentile
from bench.peers.machine import Processors
from tools.servers import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.peers.base import Peer
    from bench.peers.install import Environment
    from tools.servers import Databases

Figures = dict[str, Any]


class Failed(Exception):
    """A cell gives no figures; the text says why."""


@dataclass(frozen=True)
class Sizes:
    """How much is done in a cell; times in seconds."""

    single: int = 500
    bulk: int = 10_000
    drain: int = 10_000
    drain_seconds: float = 12
    flows: float = 1.0  # share of a peer's flows
    backlog: int = 100_000
    sleeping: int = 200_000
    pickups: int = 50
    settle_seconds: float = 2
    idle_seconds: float = 8
    client_seconds: float = 3
    pinned_seconds: float = 30
    clients: int = 16
    limit: float = 60  # for a cell without its fill
    fill_limit: float = 120


QUICK = Sizes(
    single=100, bulk=1000, drain=1000, drain_seconds=3, flows=0.2, backlog=5000, sleeping=5000,
    pickups=10, idle_seconds=2, client_seconds=1, pinned_seconds=4, limit=30, fill_limit=30,
)  # fmt: skip
SHORT = Sizes()
LONG = Sizes(backlog=1_000_000, drain_seconds=20, pinned_seconds=120, limit=180, fill_limit=1200)


@dataclass
class Deadline:
    """When to give up."""

    seconds: float
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Return the seconds that are left; raise if there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise Failed(f"not done in {self.seconds:.0f} s")
        return left


class Bench:
    """A server, and what is started beside it."""

    def __init__(self, server: Databases, sizes: Sizes, logs: Path) -> None:
        self.server, self.sizes, self.logs = server, sizes, logs
        self.environments: dict[str, Environment] = {}
        self._children: set[subprocess.Popen[bytes]] = set()
        self._templates: set[str] = set()
        self._broken: dict[str, str] = {}  # why a template could not be made
        self._watch = self._connect("postgres", sizes.fill_limit)
        self._with_strategy = self._watch.info.server_version >= 150_000
        self.counts_statements = self._prepare_statements()

    def _prepare_statements(self) -> bool:
        [preloaded] = self._row("show shared_preload_libraries")
        if "pg_stat_statements" not in preloaded:
            return False
        self._watch.execute("create extension if not exists pg_stat_statements")
        return True

    # What is asked of the server

    def _connect(self, database: str, seconds: float) -> psycopg.Connection[Any]:
        connection = psycopg.connect(
            self.server.dsn(database), autocommit=True, connect_timeout=10,
            options=f"-c statement_timeout={int(seconds * 1000)}",
        )  # fmt: skip
        connection.prepare_threshold = None
        return connection

    def _row(self, statement: str, *arguments: object) -> Any:
        row = self._watch.execute(statement.encode(), arguments or None).fetchone()
        assert row is not None
        return row

    def wal(self) -> int:
        """Return the bytes of write-ahead log so far."""
        return int(self._row("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")[0])

    def statements(self, database: str) -> int | None:
        """Return how many statements clients have sent to a database; null if nobody counts."""
        if not self.counts_statements:
            return None
        return int(
            self._row(
                "select coalesce(sum(s.calls), 0) from pg_stat_statements as s"
                " join pg_database as d on d.oid = s.dbid where d.datname = %s and s.toplevel",
                database,
            )[0]
        )

    def checkpoint(self) -> None:
        """Let the images of the first pages fall where they are not counted."""
        self._watch.execute("checkpoint")

    # Databases

    @contextmanager
    def database(self, peer: Peer, kind: str = "") -> Iterator[str]:
        """Yield a fresh database with the peer, of kind backlog or sleeping filled."""
        name = f"bench_{peer.name}_{os.getpid()}"
        self._copy(self._template(peer, kind), name, peer, large=bool(kind))
        try:
            yield name
        finally:
            self._drop(name)

    def _template(self, peer: Peer, kind: str) -> str:
        """Return the name of the database that copies are made of."""
        name = f"peer_{peer.name}_{kind}_{os.getpid()}"
        if name in self._templates:
            return name
        if name in self._broken:
            raise Failed(self._broken[name])
        deadline = Deadline(self.sizes.fill_limit)
        if kind:
            self._copy(self._template(peer, ""), name, peer, large=False)
        else:
            self._watch.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        self._templates.add(name)
        try:
            if not kind:
                self.run(peer, deadline, "install", self.server.dsn(name))
            else:
                self.fill(peer, deadline, name, 0, self.sizes.drain)
                if kind == "backlog":
                    more, delay = self.sizes.backlog - self.sizes.drain, None
                else:
                    more, delay = self.sizes.sleeping, 86_400.0
                self.fill(peer, deadline, name, self.sizes.drain, more, delay)
                self.vacuum(name, deadline)
        except BaseException as error:
            self._broken[name] = str(error)
            self._templates.discard(name)
            self._drop(name)
            raise
        return name

    def _copy(self, source: str, name: str, peer: Peer, *, large: bool) -> None:
        statement = sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(source)
        )
        if large and self._with_strategy:
            statement += sql.SQL(" strategy file_copy")
        self._drop(name)
        for _ in range(50):
            try:
                self._watch.execute(statement)
                break
            except psycopg.errors.ObjectInUse:  # somebody's last connection is being closed
                time.sleep(0.1)
        else:
            raise Failed(f"{source} cannot be copied: it is in use")
        if peer.copied:
            with self._connect(name, self.sizes.fill_limit) as connection:
                connection.execute(peer.copied.encode())

    def _drop(self, name: str) -> None:
        self._watch.execute(
            sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
        )

    def fill(
        self, peer: Peer, deadline: Deadline, database: str, first: int, number: int,
        delay: float | None = None,
    ) -> None:  # fmt: skip
        """Leave so many jobs in a database."""
        due = "-" if delay is None else str(delay)
        if number > 0:
            dsn = self.server.dsn(database)
            self.run(peer, deadline, "fill", dsn, str(first), str(number), due)

    def vacuum(self, database: str, deadline: Deadline) -> None:
        """Vacuum and analyze, so that no plan depends on when autovacuum comes."""
        with self._connect(database, deadline.left()) as connection:
            connection.execute("vacuum (analyze)")

    # Processes

    def start(self, peer: Peer, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of the peer's processes; it ends with its standard input."""
        environment = self.environments[peer.name]
        if arguments[0] in peer.scripted and environment.node:
            command = [environment.node, str(peer.script)]
        else:
            command = [environment.python, "-m", "bench.peers.child", peer.name]
        with (self.logs / f"{peer.name}.log").open("ab") as log:
            output = log if arguments[0] == "work" else subprocess.PIPE
            log.write(f"--- {' '.join((arguments[0], *arguments[2:]))}\n".encode())
            log.flush()
            child = subprocess.Popen(
                [*command, *arguments], stdin=subprocess.PIPE, stdout=output, stderr=log,
                cwd=self.logs, env=environment.variables(), start_new_session=True, bufsize=0,
            )  # fmt: skip
        self._children.add(child)
        return child

    def end(self, child: subprocess.Popen[bytes]) -> None:
        """Kill a process and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        child.wait()
        self._children.discard(child)

    def run(self, peer: Peer, deadline: Deadline, *arguments: str) -> Any:
        """Run one of the peer's commands to its end; return what it printed last."""
        child = self.start(peer, *arguments)
        try:
            return self.result(peer, child, deadline)
        finally:
            self.end(child)

    def result(self, peer: Peer, child: subprocess.Popen[bytes], deadline: Deadline) -> Any:
        """Wait for the end of a process; return what it printed last."""
        try:
            output, _ = child.communicate(timeout=deadline.left())
        except subprocess.TimeoutExpired:
            raise Failed(f"not done in {deadline.seconds:.0f} s") from None
        if child.returncode != 0:
            raise Failed(self.last_words(peer))
        lines = output.decode().strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    def last_words(self, peer: Peer) -> str:
        """Return the last line of the peer's log."""
        text = (self.logs / f"{peer.name}.log").read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"ended: {lines[-1][:200]}" if lines else "ended without a word"

    def close(self) -> None:
        """Kill what runs, drop what was made."""
        for child in list(self._children):
            self.end(child)
        with suppress(psycopg.OperationalError):  # the server may have been killed
            for name in self._templates:
                self._drop(name)
        self._watch.close()

    def kill(self) -> None:
        """Kill what runs, from another thread."""
        for child in list(self._children):
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    @property
    def postmaster(self) -> int | None:
        """The server's process, if it is ours."""
        return self.server.pid if isinstance(self.server, Server) else None

    # Pieces of cells

    @contextmanager
    def worker(self, peer: Peer, database: str, setting: str) -> Iterator[Worker]:
        """Run one worker process."""
        with tempfile.TemporaryDirectory(prefix="bench-peers-") as directory:
            file = Path(directory) / "hits"
            file.touch()
            child = self.start(peer, "work", self.server.dsn(database), setting, str(file))
            try:
                yield Worker(child, file, lambda: self.last_words(peer))
            finally:
                self.end(child)

    @contextmanager
    def upkeep(self, peer: Peer, database: str) -> Iterator[None]:
        """Call every second what somebody has to call."""
        if not peer.upkeep:
            yield
            return
        over = threading.Event()

        def call() -> None:
            with self._connect(database, 10) as connection:
                while not over.wait(1):
                    connection.execute(peer.upkeep.encode())

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(15)

    @contextmanager
    def snapshot(self, database: str) -> Iterator[None]:
        """Hold an old snapshot."""
        with self._connect(database, 0) as connection:
            connection.execute("begin isolation level repeatable read")
            connection.execute("select count(*) from pg_class")
            yield

    def cycles(
        self, peer: Peer, database: str, clients: int, seconds: float, deadline: Deadline
    ) -> list[tuple[float, float]]:
        """Let clients enqueue, claim and complete; return ends and times, in order."""
        dsn = self.server.dsn(database)
        with ExitStack() as stack:
            children = [
                stack.enter_context(self.readied(peer, deadline, "cycle", dsn, str(seconds)))
                for _ in range(clients)
            ]
            for child in children:
                self._tell(child)
            parts = [self.result(peer, child, deadline) for child in children]
        samples = sorted((end, took) for part in parts for end, took in part or ())
        if not samples:
            raise Failed("nothing was claimed")
        return samples

    @contextmanager
    def readied(
        self, peer: Peer, deadline: Deadline, *arguments: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Yield one of the peer's processes that waits to be told to begin."""
        child = self.start(peer, *arguments)
        try:
            assert child.stdout is not None
            line = b""
            while b"ready" not in line:
                if select.select([child.stdout], [], [], deadline.left())[0]:
                    line = child.stdout.readline()
                    if not line:
                        raise Failed(self.last_words(peer))
            yield child
        finally:
            self.end(child)

    def _tell(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        child.stdin.write(b"go\n")

    def told(self, peer: Peer, child: subprocess.Popen[bytes], deadline: Deadline) -> Any:
        """Tell a process to begin; return what it printed last."""
        self._tell(child)
        return self.result(peer, child, deadline)


class Worker:
    """A worker process, and the file in which its handlers note that they begin."""

    def __init__(
        self, child: subprocess.Popen[bytes], file: Path, last_words: Callable[[], str]
    ) -> None:
        self.pid = child.pid
        self._child, self._file, self._last_words = child, file, last_words

    def hits(self) -> list[tuple[int, float]]:
        """Return number and time of what has begun, in order."""
        lines = self._file.read_bytes().split(b"\n")[:-1]
        pairs = [(int(n), float(at)) for n, at in (line.split() for line in lines)]
        return sorted(pairs, key=lambda pair: pair[1])

    def wait_for(self, number: int, seconds: float) -> bool:
        """Wait until so many have begun; false if the time is over."""
        end = time.monotonic() + seconds
        seen = 0
        with self._file.open("rb", buffering=0) as file:
            while True:
                seen += (file.read() or b"").count(b"\n")
                if seen >= number:
                    return True
                if self._child.poll() is not None:
                    raise Failed(self._last_words())
                if time.monotonic() > end:
                    return False
                time.sleep(0.002)


def enqueue(bench: Bench, peer: Peer, setting: str) -> Figures:
    """Enqueue one by one, and in bulk."""
    sizes = bench.sizes
    figures: Figures = {}
    deadline = Deadline(sizes.limit)
    with bench.database(peer) as database:
        dsn = bench.server.dsn(database)
        for how, number in (("single", sizes.single), ("bulk", sizes.bulk)):
            bench.checkpoint()
            with bench.readied(peer, deadline, how, dsn, str(number)) as child:
                before = bench.wal()
                use = Processors(server=bench.postmaster, own=os.getpid())
                seconds = bench.told(peer, child, deadline)["seconds"]
            figures[f"{how}_rate"] = number / seconds
            figures[f"{how}_wal"] = (bench.wal() - before) / number
            figures["others"] = max(figures.get("others", 0), use.used().get("others", 0))
    return figures


def _drained(
    bench: Bench, peer: Peer, setting: str, database: str, number: int, *, to_the_end: bool
) -> Figures:
    """Let one worker work off so many jobs that are there; return rate and costs."""
    sizes = bench.sizes
    wal, statements = bench.wal(), bench.statements(database)
    with ExitStack() as stack:
        watch = stack.enter_context(bench._connect(database, sizes.limit))
        worker = stack.enter_context(bench.worker(peer, database, setting))
        if not worker.wait_for(1, 30):
            raise Failed("nothing began in 30 s")
        use = Processors(server=bench.postmaster, worker=worker.pid, own=os.getpid())
        began = worker.hits()[0][1]
        all_began = worker.wait_for(number, sizes.drain_seconds)
        ended = time.time()
        finished = False
        while all_began and to_the_end and not finished and time.time() < ended + 20:
            asked = time.time()
            row = watch.execute(peer.waiting.encode()).fetchone()
            finished = row is not None and row[0] == 0
            ended = asked if finished else ended
            time.sleep(0 if finished else max(0.005, 3 * (time.time() - asked)))
        used = use.used()
        hits = worker.hits()
    if to_the_end and all_began and not finished:
        raise Failed("all jobs began, but some did not end")
    done = number if all_began else len(hits)
    last = hits[number - 1][1] if all_began else ended
    figures: Figures = {
        "rate": done / max((ended if to_the_end else last) - began, 1e-6),
        "begun_rate": done / max(last - began, 1e-6),
        "jobs": done,
        "stopped": not all_began,
        "twice": len(hits) - len({n for n, _ in hits}),
        "wal": (bench.wal() - wal) / done,
        "others": used.get("others"),
        "server_us": used["server"] * 1e6 / done if "server" in used else None,
        "worker_us": used["worker"] * 1e6 / done if "worker" in used else None,
    }
    after = bench.statements(database)
    if after is not None and statements is not None:
        figures["statements"] = (after - statements) / done
    return figures


def drain(bench: Bench, peer: Peer, setting: str) -> Figures:
    """One worker process, jobs that are there when it starts."""
    with bench.database(peer) as database:
        bench.checkpoint()
        deadline = Deadline(bench.sizes.fill_limit)
        bench.fill(peer, deadline, database, 0, bench.sizes.drain)
        bench.vacuum(database, deadline)
        return _drained(bench, peer, setting, database, bench.sizes.drain, to_the_end=True)


def backlog(bench: Bench, peer: Peer, setting: str) -> Figures:
    """The first jobs of many more."""
    with bench.database(peer, "backlog") as database:
        number = min(bench.sizes.drain, bench.sizes.backlog)
        return _drained(bench, peer, setting, database, number, to_the_end=False)


def sleeping(bench: Bench, peer: Peer, setting: str) -> Figures:
    """Jobs beside many that are not due."""
    with bench.database(peer, "sleeping") as database:
        return _drained(bench, peer, setting, database, bench.sizes.drain, to_the_end=False)


def steps(bench: Bench, peer: Peer, setting: str) -> Figures:
    """Workflows of three steps, each stored before the next begins."""
    number = max(20, int(peer.flows * bench.sizes.flows))
    with bench.database(peer) as database:
        bench.checkpoint()
        deadline = Deadline(bench.sizes.fill_limit)
        bench.run(peer, deadline, "flows", bench.server.dsn(database), str(number))
        bench.vacuum(database, deadline)
        return _drained(bench, peer, setting, database, number, to_the_end=True)


def pickup(bench: Bench, peer: Peer, setting: str) -> Figures:
    """What an idle worker costs, and how soon it begins what comes."""
    sizes = bench.sizes
    deadline = Deadline(sizes.limit)
    with bench.database(peer) as database, bench.worker(peer, database, setting) as worker:
        dsn = bench.server.dsn(database)
        with bench.readied(peer, deadline, "single", dsn, "1") as child:
            bench.told(peer, child, deadline)
        if not worker.wait_for(21, 30):  # 20 come before those that are counted
            raise Failed("the first jobs did not begin in 30 s")
        time.sleep(sizes.settle_seconds)
        statements = bench.statements(database)
        use = Processors(worker=worker.pid, server=bench.postmaster, own=os.getpid())
        time.sleep(sizes.idle_seconds)
        idle, after = use.used(), bench.statements(database)
        seen = len(worker.hits())
        arguments = (str(sizes.pickups), "0.08", "0.16")
        returned = bench.run(peer, deadline, "paced", dsn, *arguments)["returned"]
        worker.wait_for(seen + sizes.pickups, 5)
        begun: dict[int, float] = {}
        for number, at in worker.hits()[seen:]:
            begun.setdefault(number, at)
    waits = [max(0.0, begun[n] - at) * 1000 for n, at in enumerate(returned) if n in begun]
    if len(waits) < len(returned) / 2:
        raise Failed(f"{len(waits)} of {len(returned)} jobs began within 5 s")
    figures: Figures = {
        "waits": [round(wait, 3) for wait in waits],
        "lost": len(returned) - len(waits),
        "others": idle.get("others"),
        "worker_share": idle["worker"] / sizes.idle_seconds if "worker" in idle else None,
    }
    if statements is not None and after is not None:
        figures["statements_per_s"] = (after - statements) / sizes.idle_seconds
    return figures


def _rate(samples: list[tuple[float, float]]) -> float:
    return len(samples) / max(samples[-1][0] - samples[0][0] + samples[0][1], 1e-6)


def clients(bench: Bench, peer: Peer, setting: str) -> Figures:
    """One client that enqueues, claims and completes one job after another, and sixteen."""
    sizes = bench.sizes
    figures: Figures = {}
    for number in (1, sizes.clients):
        deadline = Deadline(sizes.limit)
        with bench.database(peer) as database, bench.upkeep(peer, database):
            use = Processors(server=bench.postmaster, own=os.getpid())
            samples = bench.cycles(peer, database, number, sizes.client_seconds, deadline)
            took = [sample[1] * 1000 for sample in samples]
            name = "one" if number == 1 else "many"
            figures |= {
                f"{name}_rate": _rate(samples),
                f"{name}_p50": median(took),
                f"{name}_p99": percentile(took, 0.99),
                "others": max(figures.get("others", 0), use.used().get("others", 0)),
            }
    return figures


def pinned(bench: Bench, peer: Peer, setting: str) -> Figures:
    """Four clients while an old snapshot is held: jobs per second after so many jobs."""
    sizes = bench.sizes
    deadline = Deadline(sizes.limit + sizes.pinned_seconds)
    with ExitStack() as stack:
        database = stack.enter_context(bench.database(peer))
        stack.enter_context(bench.snapshot(database))
        stack.enter_context(bench.upkeep(peer, database))
        use = Processors(server=bench.postmaster, own=os.getpid())
        samples = bench.cycles(peer, database, 4, sizes.pinned_seconds, deadline)
        used = use.used()
    began = samples[0][0]
    width = sizes.pinned_seconds / 10
    curve, done = [], 0
    for window in range(10):
        low, high = began + window * width, began + (window + 1) * width
        number = sum(low <= end < high for end, _ in samples)
        curve.append([done + number // 2, round(number / width, 1)])
        done += number
    return {"curve": curve, "jobs": len(samples), "others": used.get("others")}


# By the order in which they are measured; which settings of the worker; what a peer may lack.
CELLS: dict[str, tuple[Callable[[Bench, Peer, str], Figures], tuple[str, ...], str]] = {
    "enqueue": (enqueue, ("",), ""),
    "drain": (drain, ("default", "tuned"), ""),
    "steps": (steps, ("default", "tuned"), "steps"),
    "pickup": (pickup, ("tuned",), ""),
    "backlog": (backlog, ("tuned",), ""),
    "sleeping": (sleeping, ("tuned",), ""),
    "clients": (clients, ("",), "cycle"),
    "pinned": (pinned, ("",), "cycle"),
}
