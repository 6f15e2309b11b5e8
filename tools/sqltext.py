"""Read what the SQL sources say: their routines, the errors they raise, the options they know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).resolve().parent.parent / "sql" / "src"


def end_of(text: str, start: int, stops: str) -> int:
    """Return where the first of some characters stands outside quotes and brackets."""
    depth, place = 0, start
    while place < len(text):
        sign = text[place]
        if sign in "'\"":
            place = text.index(sign, place + 1)
        elif depth == 0 and sign in stops:
            return place
        elif sign in "([":
            depth += 1
        elif sign in ")]":
            depth -= 1
        place += 1
    raise ValueError(f"none of {stops} after: {text[start : start + 80]}")


def parts(text: str) -> list[str]:
    """Split a list at its commas."""
    found, start = [], 0
    text += ","
    while start < len(text):
        end = end_of(text, start, ",")
        found.append(text[start:end].strip())
        start = end + 1
    return [part for part in found if part]


def literals(text: str) -> list[str]:
    """Return the string literals of an expression."""
    return [found.replace("''", "'") for found in re.findall(r"'((?:[^']|'')*)'", text)]


def routines() -> Iterator[tuple[str, str, str]]:
    """Yield module, name and text of each routine of the sources; a `do` block has no name."""
    for path in sorted(SOURCES.glob("*.sql")):
        texts = re.split(
            r"^(?=create or replace (?:function|procedure) |do \$)",
            re.sub(r"^ *--.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE),
            flags=re.MULTILINE,
        )
        for text in texts[1:]:
            name = re.match(r"create or replace \w+ teguh\.(\w+)", text)
            yield path.stem, name[1] if name else "", text


@dataclass(frozen=True, order=True)
class Raised:
    """An error that the sources raise; where a value stands there is an ellipsis."""

    sqlstate: str
    message: str
    detail: str
    hint: str


def raised() -> Iterator[Raised]:
    """Yield what is raised anywhere in the sources."""
    for _, _, text in routines():
        for match in re.finditer(r"\braise exception ", text):
            statement = text[match.end() : end_of(text, match.end(), ";")]
            message, _, using = statement.partition("using\n")
            fields = dict(re.split(r"\s*=\s*", part, maxsplit=1) for part in parts(using))
            yield Raised(
                literals(fields["errcode"])[0],
                literals(message)[0].replace("%", "…"),
                _said(fields["detail"]),
                _said(fields["hint"]),
            )


def _said(expression: str) -> str:
    """Return the sentences of an expression, alternatives one after another."""
    text = re.sub(r"'\s*\n\s*'", "", expression)
    found = [one for one in literals(text) if re.search(r"[a-zA-Z]{2}.*[ .;]", one.strip())]
    return " / ".join(re.sub(r"%\d*\$?[sILp]", "…", one.strip()) for one in found) or "…"


def known_keys() -> dict[str, dict[str, str]]:
    """Return the keys of each object that callers may pass, and how each key's value is read.

    Objects are called what errors call them, but those that are only called options: these by
    their function. A reader is the call of a ``_…_option`` function in the same routine; empty if
    the value is read otherwise.
    """
    found: dict[str, dict[str, str]] = {}
    for _, name, text in routines():
        for match in re.finditer(r"teguh\.(?:_check_keys|_read_run)\(", text):
            arguments = parts(text[match.end() : end_of(text, match.end(), ")")])
            what = "".join(literals(arguments[0])) if "check" in match[0] else "options"
            keys = literals(arguments[-1]) if "array[" in arguments[-1] else []
            if keys:
                title = name.lstrip("_") if what == "options" else what
                found.setdefault(title, {}).update({key: _reader(key, text) for key in keys})
    return found


def _reader(key: str, text: str) -> str:
    match = re.search(rf"teguh\._(\w+)_option\([^()]*, '{key}'([^()]*)\)", text)
    return f"{match[1]}{match[2]}" if match else ""
