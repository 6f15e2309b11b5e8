"""The command line: install, upgrade, worker, spawn, demo."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import psycopg

from teguh._install import install, upgrade
from teguh._sync.client import Client
from teguh.errors import TeguhError
from teguh.registry import Registry
from teguh.worker import Worker, WorkerOptions

if TYPE_CHECKING:
    from teguh._types import SpawnOptions


class UsageError(Exception):
    """What was asked for cannot be done; the text says why and what to do instead."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    args = _parser().parse_args(argv)
    try:
        status: int = args.command(args)
    except (UsageError, TeguhError) as error:
        return _complain(str(error))
    except psycopg.errors.InvalidSchemaName:
        return _complain("teguh is not installed in this database\nhint: run `teguh install`")
    except psycopg.Error as error:
        return _complain(str(error).strip())
    return status


def _complain(text: str) -> int:
    print(f"teguh: {text}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="teguh", description="Durable execution as a SQL library for PostgreSQL."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    database = argparse.ArgumentParser(add_help=False)
    database.add_argument(
        "--dsn",
        default=os.environ.get("TEGUH_DSN", ""),
        help="connection string or URI; default: TEGUH_DSN, else the PG* environment variables",
    )

    command = commands.add_parser(
        "install", parents=[database], help="install teguh into a database"
    )
    command.add_argument(
        "--queue", action="append", default=[], help="also create this queue; may be repeated"
    )
    command.add_argument(
        "--absurd", action="store_true", help="also the schema absurd, for clients of absurd"
    )
    command.set_defaults(command=_install)

    command = commands.add_parser(
        "upgrade", parents=[database], help="bring an installed teguh to this version"
    )
    command.set_defaults(command=_upgrade)

    command = commands.add_parser(
        "worker", parents=[database], help="execute tasks until SIGTERM or Ctrl-C"
    )
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
    command.add_argument("-v", "--verbose", action="store_true", help="log everything")
    command.set_defaults(command=_worker)

    command = commands.add_parser("spawn", parents=[database], help="spawn a task")
    command.add_argument("queue")
    command.add_argument("task_name")
    command.add_argument("params", nargs="?", default="null", help="JSON; default: null")
    command.add_argument("--max-attempts", type=int, metavar="N")
    command.add_argument("--delay", type=float, metavar="S", help="start in S seconds")
    command.add_argument("--idempotency-key", metavar="KEY")
    command.set_defaults(command=_spawn)

    command = commands.add_parser("demo", help="an order survives its worker being killed")
    command.set_defaults(command=_demo)
    return parser


def _install(args: argparse.Namespace) -> int:
    version = install(args.dsn, absurd=args.absurd)
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
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    registry = _load(args.registry)
    given = {name: getattr(args, name, None) for name in WorkerOptions.__annotations__}
    options: WorkerOptions = {k: v for k, v in given.items() if v is not None}  # type: ignore[assignment]
    logging.getLogger("teguh.worker").info(
        "working on queue %s: %s", args.queue, ", ".join(registry.names())
    )
    Worker(args.dsn, args.queue, registry, **options).run()
    return 0


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
    except ValueError as error:
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
