"""How values read on a page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from markupsafe import Markup, escape

from teguh.cli import printable

# What is written for a value that there is not.
NONE = "\N{EN DASH}"

# Of a value so many characters are on the page; a link leads to the rest.
SHOWN = 8_000

_UNITS = ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def visible(value: object) -> object:
    """Return what a template is about to write, with control characters made visible."""
    if value is None:
        return ""
    return value if hasattr(value, "__html__") else printable(str(value))


def exact(value: object) -> Markup:
    """Return a value as it is, for what a form sends back."""
    return escape("" if value is None else str(value))


def duration(seconds: float | None) -> str:
    """Return seconds for people: two units at most."""
    if seconds is None:
        return NONE
    if abs(seconds) < 1:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 10:
        return f"{seconds:.1f} s"
    left = abs(round(seconds))
    sign = "-" if seconds < 0 else ""
    for place, (size, unit) in enumerate(_UNITS):
        if left >= size:
            much, rest = divmod(left, size)
            smaller, name = _UNITS[min(place + 1, 4)]
            more = f" {rest // smaller} {name}" if size > 1 and rest >= smaller else ""
            return f"{sign}{much} {unit}{more}"
    return "0 s"


def relative(at: datetime, now: datetime) -> str:
    """Return how long ago a time was, or in how long it will be."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    coarse = duration(abs(seconds)).split(" ")
    text = " ".join(coarse[:2])
    return f"{text} ago" if seconds > 0 else f"in {text}"


def utc(at: datetime, form: str = "") -> str:
    """Return a time in UTC, in ISO 8601 or to the millisecond for people."""
    at = at.astimezone(UTC)
    if form == "clock":
        return at.replace(tzinfo=None).isoformat(" ", "milliseconds")
    return at.isoformat().replace("+00:00", "Z")


def number(value: float | None) -> str:
    """Return a number with its thousands apart, and no more digits than one reads."""
    if value is None:
        return NONE
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.1f}".replace(",", "\u202f")


def pretty(value: Any) -> str:
    """Return a JSON value over several lines."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain)


def brief(value: Any, width: int = 120) -> str:
    """Return a JSON value, or why something failed, in one line."""
    if isinstance(value, dict) and "message" in value:
        name = value.get("name")
        text = f"{name}: {value['message']}" if name else str(value["message"])
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text[: 4 * width].split())
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def is_id(text: str) -> bool:
    """Tell whether a text is an id."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True
