"""JSON in and out of jsonb, with errors that say which value was at fault."""

from __future__ import annotations

import json
import re
from typing import Any

from teguh.errors import NotStorable

# An escaped NUL: a run of backslashes of odd length before "u0000".
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_decode = json.JSONDecoder().decode


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text in UTF-8."""
    if text == b"{}":  # what most params and checkpoints are
        return {}
    return _decode(text if isinstance(text, str) else text.decode())


def dumps(value: object, what: str) -> str:
    """Return the JSON text of a value. `what` names the value in the error."""
    if value is None:
        return "null"
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        raise NotStorable(f"{what} holds half of a surrogate pair, which is no text") from None
    except RecursionError:
        raise NotStorable(f"{what} is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise NotStorable(f"{what} is not JSON: {error}") from None
    if "\\u0000" in text and _NUL.search(text):
        raise NotStorable(f"{what} holds a NUL character, which PostgreSQL cannot store")
    return text


def stored(value: Any, text: str) -> Any:
    """Return a value as a replay will see it: tuples as lists, keys as strings."""
    if value is None or isinstance(value, str | int | float):
        return value
    return loads(text)


def printable(text: str) -> str:
    """Return a text without what jsonb refuses, for error messages of other people's code."""
    return text.replace("\0", "\ufffd").encode(errors="backslashreplace").decode()
