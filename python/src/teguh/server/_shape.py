"""JSON values of the types that the client takes and returns, and the JSON Schema of these.

Only shapes are looked at here: whether a value makes sense is for the engine to say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable

# What modules import for type checkers only.
_NAMES = {"Mapping": Mapping, "Sequence": Sequence, "datetime": datetime}

_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1


class Misshapen(ValueError):
    """A request is not what its endpoint takes; `where` names the part."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where} {problem}" if where else problem)


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter of an endpoint."""

    name: str
    kind: Any
    required: bool
    default: Any


def hints(annotated: Any) -> dict[str, Any]:
    """Return the types of a function's parameters, or of the fields of a class."""
    return get_type_hints(annotated, localns=_NAMES)


def parameters(call: Callable[..., Any]) -> list[Field]:
    """Return what a method takes; a TypedDict of options is a field for each of its keys."""
    kinds = hints(call)
    found = []
    for parameter in list(signature(call).parameters.values())[1:]:
        kind = kinds[parameter.name]
        if parameter.kind is Parameter.VAR_KEYWORD:
            (options,) = get_args(kind)
            found += [Field(key, value, False, None) for key, value in hints(options).items()]
        else:
            required = parameter.default is Parameter.empty
            found.append(
                Field(parameter.name, kind, required, None if required else parameter.default)
            )
    return found


def parse(text: bytes, where: str = "the body") -> Any:
    """Return the value of a JSON text, which has neither NaN nor infinities."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Misshapen(where, f"is not JSON: {error}") from None


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def read(value: Any, kind: Any, where: str) -> Any:
    """Return a JSON value as a type has it, or raise Misshapen."""
    origin, members = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return value
    if origin in (Union, UnionType):
        return _read_union(value, members, where)
    if origin is Literal:
        if value not in members or isinstance(value, bool):
            raise Misshapen(where, f"is not one of {', '.join(map(repr, members))}")
        return value
    if origin in (Sequence, list):
        if not isinstance(value, list):
            raise Misshapen(where, "is no array")
        return [read(item, members[0], f"{where}[{n}]") for n, item in enumerate(value)]
    if origin in (Mapping, dict):
        items = _object(value, where).items()
        return {key: read(item, members[1], f"{where}.{key}") for key, item in items}
    if is_typeddict(kind) or is_dataclass(kind):
        return _read_object(value, kind, where)
    return _read_scalar(value, kind, where)


def _read_union(value: Any, members: tuple[Any, ...], where: str) -> Any:
    if value is None and NoneType in members:
        return None
    problems = []
    for member in members:
        if member is str and UUID in members:  # an id, in whatever form
            continue
        try:
            return read(value, member, where)
        except Misshapen as problem:
            problems.append(problem)
    raise problems[0]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Misshapen(where, "is no object")
    return value


def _read_object(value: Any, kind: Any, where: str) -> Any:
    kinds = hints(kind)
    for key in _object(value, where):
        if key not in kinds:
            raise Misshapen(f"{where}.{key}", "is unknown")
    for key in required(kind):
        if key not in value:
            raise Misshapen(f"{where}.{key}", "is missing")
    found = {key: read(item, kinds[key], f"{where}.{key}") for key, item in value.items()}
    return found if is_typeddict(kind) else kind(**found)


def required(kind: Any) -> list[str]:
    """Return the fields that an object of a type cannot lack."""
    if is_dataclass(kind):
        return [f.name for f in fields(kind) if f.default is MISSING]
    return sorted(kind.__required_keys__)


def _read_scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is NoneType:
        if value is not None:
            raise Misshapen(where, "is not null")
    elif kind is bool:
        if not isinstance(value, bool):
            raise Misshapen(where, "is neither true nor false")
    elif kind is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # to JSON, 1.0 is one, too
        if not isinstance(value, int) or isinstance(value, bool):
            raise Misshapen(where, "is no integer")
        if not _INT_MIN <= value <= _INT_MAX:
            raise Misshapen(where, "is out of range")
    elif kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Misshapen(where, "is no number")
        value = _finite(value, where)
    else:
        if not isinstance(value, str):
            raise Misshapen(where, "is no string")
        return _read_text(value, kind, where)
    return value


def _finite(value: float, where: str) -> float:
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise Misshapen(where, "is out of range")
    return value


def _read_text(value: str, kind: Any, where: str) -> Any:
    try:
        if kind is UUID:
            return UUID(value)
        if kind is datetime:
            at = datetime.fromisoformat(value)
            if at.tzinfo is None:
                raise Misshapen(where, "needs an offset, such as Z")
            return at
        value.encode()
    except UnicodeEncodeError:
        raise Misshapen(where, "holds half of a surrogate pair, which is no text") from None
    except ValueError as error:
        if isinstance(error, Misshapen):
            raise
        raise Misshapen(where, "is no UUID" if kind is UUID else "is no time in ISO 8601") from None
    if "\0" in value:
        raise Misshapen(where, "holds a NUL character, which PostgreSQL cannot store")
    return value


def from_text(texts: Sequence[str], kind: Any, where: str) -> Any:
    """Return what the values of one name in a query, or a part of a path, stand for."""
    members = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        several = [member for member in members if get_origin(member) in (Sequence, list)]
        one = [member for member in members if member not in (*several, NoneType)]
        if several and (len(texts) > 1 or not one):
            return from_text(texts, several[0], where)
        kind = UUID if UUID in one else one[0]
    if get_origin(kind) in (Sequence, list):
        return [from_text([text], get_args(kind)[0], where) for text in texts]
    if len(texts) != 1:
        raise Misshapen(where, "is given more than once")
    if get_origin(kind) in (Mapping, dict):
        return read(parse(texts[0].encode("utf-8", "surrogatepass"), where), kind, where)
    if kind in (bool, int, float):
        try:
            return read(json.loads(texts[0], parse_constant=_refuse), kind, where)
        except (ValueError, RecursionError) as error:
            if isinstance(error, Misshapen):
                raise
            raise Misshapen(where, f"is no {kind.__name__}") from None
    return read(texts[0], kind, where)


def write(value: Any) -> bytes:
    """Return a result of the client as JSON."""
    return json.dumps(
        value, default=_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID):
        return str(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}


_SCALARS: dict[Any, dict[str, Any]] = {
    Any: {},
    object: {},
    NoneType: {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": _INT_MIN, "maximum": _INT_MAX},
    float: {"type": "number"},
    str: {"type": "string"},
    UUID: {"type": "string", "format": "uuid"},
    datetime: {"type": "string", "format": "date-time"},
}


def schema(kind: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a type; those of objects go into `named`, by name."""
    origin, members = get_origin(kind), get_args(kind)
    if kind in _SCALARS:
        return _SCALARS[kind]
    if origin in (Union, UnionType):
        ids = UUID in members
        return {"anyOf": [schema(m, named) for m in members if not (ids and m is str)]}
    if origin is Literal:
        return {"type": "string", "enum": list(members)}
    if origin in (Sequence, list):
        return {"type": "array", "items": schema(members[0], named)}
    if origin in (Mapping, dict):
        return {"type": "object", "additionalProperties": schema(members[1], named)}
    name = kind.__name__
    if name not in named:
        named[name] = {}  # it may hold itself
        named[name] = {
            "type": "object",
            "description": (kind.__doc__ or "").strip(),
            "properties": {key: schema(value, named) for key, value in hints(kind).items()},
            "required": _always(kind),
            "additionalProperties": False,
        }
    return {"$ref": f"#/components/schemas/{name}"}


def _always(kind: Any) -> list[str]:
    """Return the fields that a schema calls required: of a result, all."""
    inputs = is_typeddict(kind) or kind.__name__ == "NewTask"
    return required(kind) if inputs else [field.name for field in fields(kind)]
