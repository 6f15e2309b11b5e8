"""The command line. Its core needs psycopg only; all else is in `_cli`, the extra `cli`."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import psycopg

from teguh._install import install, package_version, upgrade
from teguh._sync.client import Client
from teguh.errors import (
    ConfigurationError,
    EngineError,
    NotStorable,
    TeguhError,
    VersionMismatch,
)
from teguh.logs import JsonFormatter, TaskFilter
from teguh.registry import Registry
from teguh.worker import Worker, WorkerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from teguh._types import SpawnOptions

# What there is, in the order of its help.
CORE = {
    "install": "install teguh into a database",
    "upgrade": "bring an installed teguh to this version",
    "worker": "execute tasks until SIGTERM or Ctrl-C",
    "serve": "serve HTTP until SIGTERM or Ctrl-C",
    "spawn": "spawn a task",
    "demo": "an order survives its worker being killed",
}
EXTRA = {
    "doctor": "find what is wrong, and say what to do",
    "queues": "create, look at, pause and delete queues",
    "tasks": "spawn, find, cancel, retry and claim tasks",
    "runs": "look at and end runs",
    "checkpoints": "look at and store the states of steps",
    "children": "spawn the children of a step, and wait for them",
    "events": "emit, find and await events",
    "messages": "send messages to tasks, see what waits, and receive",
    "attributes": "look at and publish what tasks say of themselves",
    "workflows": "see how tasks stand that belong together",
    "handlers": "say which SQL functions handle tasks",
    "schedules": "spawn tasks by cron or interval",
    "dlq": "look at, replay and purge tasks that failed",
    "limits": "limit what runs, and see what does",
    "workers": "see who holds runs",
    "namespaces": "see how queues are grouped",
    "access": "say which roles may do what",
    "ticker": "do the housekeeping, or have pg_cron do it",
}

REFUSED, USAGE = 1, 2


class UsageError(Exception):
    """What was asked for cannot be done; the text says why and what to do instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0: done. 1: the database refused, or something is wrong. 2: what was asked for makes no sense.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except (UsageError, ConfigurationError, NotStorable) as error:
        return _complain(str(error), USAGE)
    except EngineError as error:
        return _complain(_told(error.message, error.sqlstate, error.detail, error.hint))
    except TeguhError as error:
        return _complain(str(error))
    except psycopg.errors.InvalidSchemaName:
        return _complain("teguh is not installed in this database\nhint: run `teguh install`")
    except psycopg.Error as error:
        about = error.diag
        message = about.message_primary or str(error).strip()
        hint = about.message_hint
        if error.sqlstate == "42501" and not hint:
            hint = _RIGHTS.get(arguments[0], "teguh.grant_access() gives a role what it needs")
        return _complain(_told(message, error.sqlstate, about.message_detail, hint))
    return status


_RIGHTS = {
    "install": "the role needs the right to create a schema: grant create on database … to …",
    "upgrade": "run it as the role that owns the schema teguh",
}


def _told(message: str, sqlstate: str | None, detail: str | None, hint: str | None) -> str:
    lines = [f"{message} ({sqlstate})" if sqlstate else message]
    lines += [f"{name}: {text}" for name, text in (("detail", detail), ("hint", hint)) if text]
    return "\n".join(lines)


def _complain(text: str, status: int = REFUSED) -> int:
    print(f"teguh: {printable(text)}", file=sys.stderr)
    return status


# What would steer a terminal, or turn the direction of what is read.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text with all control characters but tabs and line feeds as JSON writes them."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _run(arguments: list[str]) -> int:
    """Run a verb of the core by itself, so that a worker never loads the extra; or the extra."""
    if re.search("[\udc80-\udcff]", "".join(arguments)):
        raise UsageError("the arguments are not in UTF-8")
    verb = arguments[0] if arguments else ""
    extra = None if verb in CORE or verb == "--version" else _extra()
    if extra is not None:
        return extra(arguments)
    if verb in EXTRA:
        raise UsageError(
            f"`teguh {verb}` is not part of the core\nhint: run `pip install 'teguh[cli]'`"
        )
    args = parser().parse_args(arguments)
    status: int = args.command(args)
    return status


def _extra() -> Callable[[list[str]], int] | None:
    """Return what runs the whole command line, or None without the extra."""
    try:
        from teguh._cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"rich", "typer"}:
            raise
        return None
    return run


def parser() -> argparse.ArgumentParser:
    """Return the parser of the core's command line."""
    parser = argparse.ArgumentParser(
        prog="teguh",
        description="Durable execution as a SQL library for PostgreSQL.",
        epilog=f"With `pip install 'teguh[cli]'` also: {', '.join(EXTRA)}.",
    )
    parser.add_argument("--version", action="version", version=f"teguh {package_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_core(commands)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"not a port: {text!r}")
    return int(text)


def add_core(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs of the core."""

    def add(verb: str, **options: Any) -> argparse.ArgumentParser:
        return commands.add_parser(
            verb, help=CORE[verb], description=CORE[verb], allow_abbrev=False, **options
        )

    database = argparse.ArgumentParser(add_help=False)
    database.add_argument(
        "--dsn",
        default=os.environ.get("TEGUH_DSN", ""),
        help="connection string or URI; default: TEGUH_DSN, else the PG* environment variables",
    )

    command = add("install", parents=[database])
    command.add_argument(
        "--queue", action="append", default=[], help="also create this queue; may be repeated"
    )
    command.add_argument(
        "--absurd", action="store_true", help="also the schema absurd, for clients of absurd"
    )
    command.set_defaults(command=_install)

    command = add("upgrade", parents=[database])
    command.set_defaults(command=_upgrade)

    command = add("worker", parents=[database])
    command.add_argument("registry", help="a teguh.Registry, as module:name")
    command.add_argument("--queue", required=True)
    command.add_argument("--concurrency", type=int, metavar="N", help="handlers at a time (10)")
    command.add_argument("--batch-size", type=int, metavar="N", help="runs per claim (free slots)")
    command.add_argument("--claim-timeout", type=float, metavar="S", help="lease in seconds (30)")
    command.add_argument("--heartbeat", type=float, metavar="S", help="renew leases every S (10)")
    command.add_argument("--poll-interval", type=float, metavar="S", help="look every S (30)")
    command.add_argument("--ticker-interval", type=float, metavar="S", help="tick every S (10)")
    command.add_argument(
        "--shutdown-timeout", type=float, metavar="S", help="wait S for handlers to end (10)"
    )
    command.add_argument(
        "--unknown-delay", type=float, metavar="S", help="leave unknown tasks alone for S (10)"
    )
    command.add_argument("--worker-id", help="the name that holds the lease (host:pid)")
    command.add_argument(
        "--known-only",
        action="store_true",
        default=None,
        help="claim only tasks that the registry knows",
    )
    command.add_argument(
        "--no-listen",
        dest="listen",
        action="store_false",
        default=None,
        help="poll only: for a pooler in transaction mode",
    )
    command.add_argument(
        "--metrics", metavar="HOST:PORT", help="serve /metrics and /health there (needs an extra)"
    )
    command.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="how to log (text)"
    )
    command.add_argument("-v", "--verbose", action="store_true", help="log everything")
    command.set_defaults(command=_worker)

    command = add("serve", parents=[database])
    command.add_argument("--host", default="127.0.0.1", help="address to serve at (127.0.0.1)")
    command.add_argument("--port", type=_port, default=8080, metavar="N", help="its port (8080)")
    command.add_argument(
        "--tokens",
        metavar="FILE",
        help="whom to serve, each line like client,worker=SECRET; also TEGUH_TOKENS",
    )
    command.add_argument(
        "--token", action="append", default=[], metavar="SCOPES=SECRET", help="one more of them"
    )
    command.add_argument("--pool-size", type=int, metavar="N", help="connections (10)")
    command.add_argument("--max-body", type=int, metavar="N", help="bytes of a request (1048576)")
    command.add_argument(
        "--ticker-interval", type=float, metavar="S", help="tick every S, 0: never (10)"
    )
    command.add_argument(
        "--read-only", action="store_true", default=None, help="change nothing, and do not tick"
    )
    command.add_argument("-v", "--verbose", action="store_true", help="log every request")
    command.set_defaults(command=_serve)

    command = add("spawn", parents=[database])
    command.add_argument("queue")
    command.add_argument("task_name")
    command.add_argument("params", nargs="?", default="null", help="JSON; default: null")
    command.add_argument("--max-attempts", type=int, metavar="N")
    command.add_argument("--delay", type=float, metavar="S", help="start in S seconds")
    command.add_argument("--idempotency-key", metavar="KEY")
    command.set_defaults(command=_spawn)

    command = add("demo")
    command.set_defaults(command=_demo)


def _install(args: argparse.Namespace) -> int:
    try:
        version = install(args.dsn, absurd=args.absurd)
    except VersionMismatch as error:
        error.hint = "Run `teguh upgrade`."  # the file names a script
        raise
    print(f"teguh {version} is installed")
    if args.queue:
        with Client.connect(args.dsn) as client:
            for queue in args.queue:
                client.create_queue(queue)
                print(f"queue {queue} exists")
    return 0


def _upgrade(args: argparse.Namespace) -> int:
    print(f"teguh {upgrade(args.dsn)} is installed")
    return 0


def _worker(args: argparse.Namespace) -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if args.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    handler.addFilter(TaskFilter())
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.INFO, handlers=[handler])
    registry = _load(args.registry)
    given = {name: getattr(args, name, None) for name in WorkerOptions.__annotations__}
    options: WorkerOptions = {k: v for k, v in given.items() if v is not None}  # type: ignore[assignment]
    worker = Worker(args.dsn, args.queue, registry, **options)
    log = logging.getLogger("teguh.worker")
    log.info("starting on queue %s: %s", args.queue, ", ".join(registry.names()))
    worker.run()
    log.info("stopped")
    return 0


def _serve(args: argparse.Namespace) -> int:
    try:
        from teguh.server import _run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"jinja2", "starlette", "uvicorn"}:
            raise
        raise UsageError(
            "`teguh serve` needs an extra\nhint: run `pip install 'teguh[server]'`"
        ) from None
    names = ("pool_size", "max_body", "ticker_interval", "read_only")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    tokens = _run.tokens_given(args.token, args.tokens)
    return _run.serve(args.dsn, args.host, args.port, tokens, verbose=args.verbose, **given)


def _load(path: str) -> Registry:
    """Import module:name, from the current directory, too."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise UsageError(f"{path!r} is no module:registry")
    sys.path.insert(0, "")
    try:
        registry = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise UsageError(f"there is no module {error.name!r}") from None
    except AttributeError:
        raise UsageError(f"module {module!r} has no {name!r}") from None
    if not isinstance(registry, Registry):
        raise UsageError(f"{path} is no teguh.Registry")
    return registry


def _spawn(args: argparse.Namespace) -> int:
    try:
        params: Any = json.loads(args.params)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"params are not JSON: {error}") from None
    options: SpawnOptions = {}
    if args.max_attempts is not None:
        options["max_attempts"] = args.max_attempts
    if args.delay is not None:
        options["delay_seconds"] = args.delay
    if args.idempotency_key is not None:
        options["idempotency_key"] = args.idempotency_key
    with Client.connect(args.dsn) as client:
        task = client.spawn_task(args.queue, args.task_name, params, **options)
    print(task.task_id)
    return 0


def _demo(args: argparse.Namespace) -> int:
    del args
    from teguh.demo import tell

    return tell()


if __name__ == "__main__":
    sys.exit(main())
