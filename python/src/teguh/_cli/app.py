"""The whole command line, as a Typer app."""

from __future__ import annotations

import argparse
import io
import re
import sys
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from teguh import cli
from teguh._cli.options import given, parameters, row_type
from teguh._cli.show import Format, show, show_findings
from teguh._cli.verbs import VERBS
from teguh._doctor import examine
from teguh._install import check_version
from teguh._sync.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Dsn = Annotated[
    str,
    typer.Option(
        envvar="TEGUH_DSN",
        show_default=False,
        help="connection string or URI; without it, the PG* environment variables",
    ),
]
AsFormat = Annotated[Format, typer.Option("--format", help="how results are printed")]

# What every verb takes besides its own.
_SHARED = [
    Parameter("dsn", Parameter.KEYWORD_ONLY, default="", annotation=Dsn),
    Parameter("form", Parameter.KEYWORD_ONLY, default="table", annotation=AsFormat),
]


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status; what a verb raises is the caller's."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        get_command(build())(list(arguments), prog_name="teguh")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else cli.REFUSED
    return 0


def build() -> typer.Typer:
    """Return the app."""
    app = typer.Typer(
        help="Durable execution as a SQL library for PostgreSQL.",
        epilog="Exit status: 0 done, 1 refused by the database or something is wrong, 2 usage.",
        no_args_is_help=True,
    )
    core = argparse.ArgumentParser().add_subparsers()
    cli.add_core(core)
    for name, parser in core.choices.items():
        app.command(name, help=cli.CORE[name])(_of_core(parser))
    app.command("doctor", help=cli.EXTRA["doctor"])(doctor)
    for group, verbs in VERBS.items():
        commands = typer.Typer(no_args_is_help=True)
        for name, verb in verbs.items():
            commands.command(name, help=_about(verb))(_command(group, name, verb))
        app.add_typer(commands, name=group, help=cli.EXTRA[group])
    return app


def doctor(
    *,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="from when on something is late")
    ] = 300,
    dsn: Dsn = "",
    form: AsFormat = "table",
) -> None:
    """Look at everything and end with status 1 if there is an error or a warning."""
    if not 0 <= patience <= 1e9:
        raise typer.BadParameter("the patience is a number of seconds")
    findings = examine(dsn, patience)
    show_findings(findings, form)
    raise typer.Exit(cli.REFUSED if any(finding.is_wrong for finding in findings) else 0)


def _about(verb: Callable[..., Any]) -> str:
    """Return the first line of a docstring in the words of the command line."""
    line = (verb.__doc__ or "").partition("\n")[0].partition(" SQL:")[0]
    options = {p.name for p in signature(verb).parameters.values() if p.kind is p.KEYWORD_ONLY}
    line = re.sub(
        r"`+(\w+)`+",
        lambda name: f"--{name[1].replace('_', '-')}" if name[1] in options else name[1],
        line,
    )
    return re.sub(r"^Return\b", "Show", line).replace("None", "null")


def _command(group: str, name: str, verb: Callable[..., Any]) -> Callable[..., None]:
    """Return the command that calls a verb and shows what it returns."""
    taken = list(parameters(verb))
    needed = [parameter.name for parameter in taken if parameter.default is Parameter.empty]
    asked = signature(verb).parameters
    page = asked["limit"].default if "cursor" in asked else None

    def command(*, dsn: str, form: Format, **values: Any) -> None:
        said = given(taken, values)
        with Client.connect(dsn) as client:
            check_version(client.version())
            result = verb(client, **said)
            if result is None:
                result = {"done": f"{group} {name}", **{key: said[key] for key in needed}}
            elif isinstance(result, int):
                result = {name: result}
            full = page and isinstance(result, list) and len(result) == said.get("limit", page)
            more = f"--cursor {result[-1].cursor}" if full else None
            show(result, row_type(verb), form, more)

    command.__signature__ = Signature([*taken, *_SHARED])  # type: ignore[attr-defined]
    return command


def _of_core(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Return a verb of the core as a command, for help and completion (`cli` runs it itself)."""
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}

    def command(**values: Any) -> None:
        said = {
            name: action.default if values[name] is None else values[name]
            for name, action in actions.items()
        }
        raise typer.Exit(parser.get_default("command")(argparse.Namespace(**said)))

    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [_of_action(action) for action in actions.values()]
    )
    return command


def _of_action(action: argparse.Action) -> Parameter:
    annotation: Any = {int: int, float: float}.get(action.type, str)  # type: ignore[call-overload]
    if action.nargs == 0:
        annotation = bool
    elif isinstance(action.default, list):
        annotation = list[str]
    metavar = str(action.metavar) if action.metavar and action.nargs != 0 else None
    info: Any = (
        typer.Option(*action.option_strings, help=action.help, metavar=metavar)
        if action.option_strings
        else typer.Argument(help=action.help)
    )
    return Parameter(
        action.dest,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if action.required else None,
        annotation=Annotated[annotation, info],
    )
