"""The arguments and options that the signature of a verb becomes.

What can be given by position in Python is an argument, what only by name is an option; a
``TypedDict`` of options is one option for each of its keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin
from typing import get_type_hints as type_hints
from uuid import UUID

import typer

from teguh._cli.help import HELP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# What modules import for type checkers only.
_NAMES = {"Iterator": Iterator, "Mapping": Mapping, "Sequence": Sequence, "datetime": datetime}


class Null:
    """The word null, which sets a value back: not the same as nothing said."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How the values of a parameter are written and read."""

    metavar: str
    read: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    nullable: bool = False
    many: bool = False
    flag: bool = False

    def parse(self, text: Any) -> Any:
        """Return a value, or raise typer.BadParameter."""
        if not isinstance(text, str):
            return text  # is read already
        if self.nullable and text == "null":
            return Null
        if self.choices and text not in self.choices:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(self.choices)}")
        try:
            return self.read(text)
        except (ValueError, OverflowError, RecursionError) as error:
            raise typer.BadParameter(f"{text!r} is no {self.metavar}: {error}") from None


def moment(text: str) -> datetime:
    """Read an instant in ISO 8601; without an offset it is the clock's on the wall."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.astimezone()


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def kind_of(name: str, annotation: Any, *, nullable: bool = False) -> Kind:
    """Return how values of a type are written."""
    members = [m for m in get_args(annotation) if m is not NoneType]
    if _is_union(annotation) and len(members) < len(get_args(annotation)):
        return kind_of(name, Union[tuple(members)], nullable=nullable)  # noqa: UP007
    if _is_union(annotation) and set(members) == {UUID, str}:
        return Kind("UUID", lambda text: str(UUID(text)), nullable=nullable)
    if _is_union(annotation) and len(members) == 2:  # one, or several
        return kind_of(name, next(m for m in members if get_origin(m) is Sequence))
    if get_origin(annotation) is Sequence:
        each = kind_of(name, members[0], nullable=nullable)
        return Kind(each.metavar, each.read, each.choices, nullable, many=True)
    if get_origin(annotation) is Literal:
        return Kind("|".join(members), choices=tuple(members), nullable=nullable)
    seconds = name.endswith(("_seconds", "_ttl", "timeout", "interval", "_by", "_delay"))
    simple = {
        bool: Kind("", flag=True),
        str: Kind("TEXT", nullable=nullable),
        int: Kind("N", int, nullable=nullable),
        float: Kind("SECONDS" if seconds else "NUMBER", float, nullable=nullable),
        datetime: Kind("TIME", moment, nullable=nullable),
    }
    return simple.get(annotation) or Kind("JSON", _json, nullable=nullable)


def _json(text: str) -> Any:
    value = json.loads(text)
    return Null if value is None else value


def row_type(verb: Callable[..., Any]) -> type | None:
    """Return of what a verb returns several, None if it returns one thing."""
    returned = type_hints(verb, localns=_NAMES)["return"]
    return get_args(returned)[0] if get_origin(returned) in (list, Iterator) else None


def parameters(verb: Callable[..., Any]) -> Iterator[Parameter]:
    """Yield what the command of a verb takes."""
    hints = type_hints(verb, localns=_NAMES)
    for parameter in list(signature(verb).parameters.values())[1:]:
        name, annotation = parameter.name, hints[parameter.name]
        if parameter.kind is Parameter.VAR_KEYWORD:
            (options,) = get_args(annotation)
            for key, value in type_hints(options, localns=_NAMES).items():
                nullable = NoneType in get_args(value)
                yield _parameter(verb, key, kind_of(key, value, nullable=nullable), option=True)
        else:
            required = parameter.default is Parameter.empty
            option = parameter.kind is Parameter.KEYWORD_ONLY or (
                required and NoneType in get_args(annotation)
            )
            default = None if required else parameter.default
            kind = kind_of(name, annotation)
            yield _parameter(verb, name, kind, option, required and not option, default)


def _parameter(
    verb: Callable[..., Any],
    name: str,
    kind: Kind,
    option: bool,
    required: bool = False,
    default: object = None,
) -> Parameter:
    about = HELP.get(f"{verb.__name__}.{name}", HELP.get(name, ""))
    if not option:  # its place shows no metavar
        about += f": {', '.join(kind.choices)}" if kind.choices else ""
        about += {"JSON": ", in JSON", "TIME": ", in ISO 8601"}.get(kind.metavar, "")
    elif kind.nullable:
        about += "; may be null"
    shared: dict[str, Any] = {
        "help": about + ("; may be repeated" if kind.many else ""),
        "show_default": str(default) if default not in (None, False) else False,
    }
    if not kind.flag:
        shared |= {"parser": kind.parse, "metavar": kind.metavar if option else None}
        if kind.choices:
            shared["autocompletion"] = _completing(kind.choices)
    if option:
        spelled = "--" + name.replace("_", "-")
        if kind.flag and default is None:
            spelled += "/--no-" + name.replace("_", "-")
        info: Any = typer.Option(spelled, **shared)
    else:
        info = typer.Argument(**shared)
    annotation: Any = bool | None if kind.flag else list[str] if kind.many else str
    return Parameter(
        name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if required else None,
        annotation=Annotated[annotation, info],
    )


def _completing(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def given(taken: Iterable[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was said, without what was not; null has become None."""
    many = {p.name for p in taken if get_args(p.annotation)[0] == list[str]}
    said = {
        name: value
        for name, value in values.items()
        if value is not None and not (name in many and not value)
    }
    return {name: None if value in (Null, [Null]) else value for name, value in said.items()}
