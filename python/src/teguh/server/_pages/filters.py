"""Which tasks a page is about: the fields of its form, and the filter that they mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

from teguh._types import Filter, State
from teguh.server._shape import Misshapen, read

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams

STATES: tuple[State, ...] = get_args(State)
LIVE: tuple[State, ...] = ("pending", "running", "sleeping")

TEXTS = ("task_name", "tag", "correlation_id", "workflow_run_id", "parent_task_id")
TIMES = ("created_after", "created_before")
FIELDS = ("state", *TEXTS, "attributes", *TIMES)


def fields_of(query: QueryParams) -> dict[str, Any]:
    """Return what a form of a filter holds: texts, and a list of states."""
    fields: dict[str, Any] = {
        key: query[key] for key in FIELDS if key != "state" and query.get(key)
    }
    if states := query.getlist("state"):
        fields["state"] = states
    return fields


def filter_of(fields: dict[str, Any]) -> Filter:
    """Return what the fields mean, or raise Misshapen."""
    found = dict(fields)
    for key in TIMES:
        if key in found:
            found[key] = moment(found[key], key)
    if "attributes" in found:
        found["attributes"] = attributes(found["attributes"])
    which: Filter = read({k: v for k, v in found.items() if k not in TIMES}, Filter, "the filter")
    for key in TIMES:
        if key in found:
            which[key] = found[key]  # type: ignore[literal-required]
    return which


def moment(text: str, where: str) -> datetime:
    """Return a time in ISO 8601; without an offset it is in UTC, as the form says."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Misshapen(where, "is no time in ISO 8601") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def attributes(text: str) -> dict[str, Any]:
    """Return attributes out of a JSON object, or out of ``name=value, name=value``."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Misshapen("attributes", f"is not JSON: {error}") from None
        assert isinstance(found, dict)
        return found
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise Misshapen("attributes", "is written like region=eu, vip=true")
        found[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    """Return the number or truth value that a text is, else the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str) else text
