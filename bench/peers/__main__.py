"""Teguh beside its peers, all in one run on one server, within a time.

Every peer is measured in every cell once before any is measured twice; who begins changes from
round to round. What is over the budget is left out, and the tables say how often each was measured.

usage: python -m bench.peers [--quick | --long] [--budget MINUTES] [--rounds 3]
                             [--only CELL,...] [--peers NAME,...] [--into DIRECTORY]
                             [--server KIND | --dsn DSN]

Without --into, a whole run writes bench/peers.json and bench/peers.txt, the plots in docs/images
and the tables in docs/benchmarks.md; any other one writes into build/peers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.common import SETTINGS, SHOWN, add_server_options, connect, scalar
from bench.peers.base import ROOT
from bench.peers.install import CACHE, NODE, Environment, NotInstalled, install, interpreter
from bench.peers.machine import describe
from bench.peers.measure import CELLS, LONG, QUICK, SHORT, Bench, Failed
from bench.peers.registry import NAMES, NOT_MEASURED, load
from bench.peers.report import publish, write
from tools.servers import ExistingServer, Server, ServerError, find_build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.peers.base import Peer
    from tools.servers import Databases

MINUTES = {"quick": 6.0, "short": 56.0, "long": 240.0}
GRACE = 180  # seconds after the budget until everything is killed
RESERVE = 20  # seconds for the tables


def log(text: str) -> None:
    """Say what is going on."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Run:
    """The measurements of a run, as they are written to the file."""

    def __init__(self, file: Path, options: argparse.Namespace, budget: float) -> None:
        self.file, self.form, self._end = file, options.form, time.monotonic() + budget
        self._took: dict[tuple[str, str, str], float] = {}
        self.data: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "form": options.form,
            "peers": {},
            "not_measured": NOT_MEASURED,
            "left_out": 0,
            "measurements": [],
        }

    def left(self) -> float:
        """Return the seconds that are left of the budget."""
        return self._end - time.monotonic()

    def add(self, peer: Peer, versions: Sequence[str], absent: str | None) -> None:
        """Note who is measured; `absent` says why not."""
        self.data["peers"][peer.name] = {
            "title": peer.title, "versions": list(versions), "settings": peer.settings,
            "keeps": peer.keeps, "absent": peer.absent, "not_installed": absent,
        }  # fmt: skip

    def measure(self, bench: Bench, cell: str, peer: Peer, setting: str, round_: int) -> None:
        """Measure once and write everything to the file, or leave it out if time is short."""
        key = (cell, peer.name, setting)
        if self.left() < self._took.get(key, 5) + RESERVE:
            self.data["left_out"] += 1
            return
        began = time.monotonic()
        found: dict[str, Any] = {
            "cell": cell, "peer": peer.name, "setting": setting, "round": round_,
        }  # fmt: skip
        try:
            found["figures"] = CELLS[cell][0](bench, peer, setting)
        except Failed as error:
            found["error"] = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a peer does, the others go on
            found["error"] = f"{type(error).__name__}: {error}".split("\n")[0]
        self._took[key] = found["seconds"] = round(time.monotonic() - began, 2)
        self.data["measurements"].append(found)
        self.save()
        log(f"{round_} {cell} {peer.name} {setting} {found['seconds']:.1f} s: {_short(found)}")

    def save(self) -> None:
        """Write the file."""
        draft = self.file.with_suffix(".draft")
        draft.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.file)


def _short(found: dict[str, Any]) -> str:
    numbers = [(k, v) for k, v in found.get("figures", {}).items() if isinstance(v, int | float)]
    return ", ".join(f"{k} {v:.4g}" for k, v in numbers) or found.get("error", "")


@contextmanager
def server_of(options: argparse.Namespace) -> Iterator[Databases]:
    """Yield the server that is asked for; it counts statements if it can."""
    if options.dsn:
        with ExistingServer(options.dsn) as existing:
            yield existing
        return
    settings = dict(SETTINGS)
    if (find_build(options.server).extensions / "pg_stat_statements.control").exists():
        settings["shared_preload_libraries"] = "pg_stat_statements"
    with Server(options.server, settings) as server:
        yield server


def environments(
    run: Run, peers: Sequence[Peer], logs: Path, python: str
) -> dict[str, Environment]:
    """Install the peers; whoever cannot be had is left out and said so."""
    found = {}
    for peer in peers:
        began = time.monotonic()
        versions = [*peer.pip, *peer.npm]
        try:
            found[peer.name] = install(peer, python, logs / f"install-{peer.name}.log")
        except NotInstalled as error:
            run.add(peer, versions, str(error))
            log(f"{peer.name} is not there: {error}")
            continue
        run.add(peer, versions, None)
        log(f"{peer.name} is there after {time.monotonic() - began:.0f} s")
    return found


def rounds(run: Run, bench: Bench, peers: Sequence[Peer], options: argparse.Namespace) -> None:
    """Measure in rounds."""
    for round_ in range(1, options.rounds + 1):
        for cell in options.only.split(","):
            _, settings, lacks = CELLS[cell]
            turn = list(peers[round_ % len(peers) :]) + list(peers[: round_ % len(peers)])
            for peer in turn:
                for setting in settings if lacks not in peer.absent else ():
                    run.measure(bench, cell, peer, setting, round_)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.peers", description=(__doc__ or "").split("\n")[0])
    form = parser.add_mutually_exclusive_group()
    for name in ("quick", "long"):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name)
    parser.add_argument("--budget", type=float, help="minutes for everything")
    parser.add_argument("--rounds", type=int, help="how often (default: 3, quick: 1)")
    parser.add_argument("--only", default=",".join(CELLS), help="cells: %(default)s")
    parser.add_argument("--peers", default=",".join(NAMES), help="peers: %(default)s")
    parser.add_argument("--into", type=Path, help="where peers.json and peers.txt go")
    add_server_options(parser)
    options = parser.parse_args()
    for given, known in ((options.only, CELLS), (options.peers, NAMES)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    whole = options.form != "quick" and set(options.only.split(",")) == set(CELLS)
    whole = whole and set(options.peers.split(",")) == set(NAMES)
    options.publish = options.into is None and whole
    options.form = options.form or "short"
    options.rounds = options.rounds or (1 if options.form == "quick" else 3)
    options.into = options.into or (ROOT / "bench" if whole else ROOT / "build" / "peers")
    return options


def main() -> int:
    """Measure."""
    options = parse()
    budget = 60 * (options.budget or MINUTES[options.form])
    logs = CACHE / "logs"
    for directory in (logs, options.into):
        directory.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("*.log"):
        old.unlink()
    run = Run(options.into / "peers.json", options, budget)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peers = [load(name) for name in options.peers.split(",")]
    python = interpreter()
    try:
        found = environments(run, peers, logs, python)
        with server_of(options) as server:
            sizes = {"quick": QUICK, "short": SHORT, "long": LONG}[options.form]
            bench = Bench(server, sizes, logs)
            bench.environments = found
            watchdog = threading.Timer(run.left() + GRACE, abort, [bench, server])
            watchdog.daemon = True
            watchdog.start()
            try:
                run.data["machine"] = machine(server, python, bench)
                rounds(run, bench, [peer for peer in peers if peer.name in found], options)
            finally:
                bench.close()
                watchdog.cancel()
    except ServerError as error:
        log(str(error))
        return 1
    finally:
        run.data["minutes"] = round((budget - run.left()) / 60, 1)
        run.save()
    log(f"{run.data['minutes']} minutes; {run.data['left_out']} measurements left out for time")
    (publish if options.publish else write)(run.file)
    print((options.into / "peers.txt").read_text(encoding="utf-8"))
    return 0


def machine(server: Databases, python: str, bench: Bench) -> dict[str, Any]:
    """Return what is measured on."""
    with connect(server.dsn("postgres")) as connection:
        settings = {name: scalar(connection, f"show {name}") for name in SHOWN}
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout
    return {
        **describe(server.data if isinstance(server, Server) else None),
        "server": server.kind,
        "settings": settings,
        "counts_statements": bench.counts_statements,
        "python": version.strip(),
        "node": NODE,
        "load_before": round(os.getloadavg()[0], 1),
    }


def abort(bench: Bench, server: Databases) -> None:
    """End everything: the budget is long over."""
    log("over the budget: killed")
    bench.kill()
    if isinstance(server, Server):
        server.close()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
