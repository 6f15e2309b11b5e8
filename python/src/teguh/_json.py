"""JSON in and out of jsonb, with errors that say which value was at fault."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from teguh.errors import NotStorable

# An escaped NUL: a run of backslashes of odd length before "u0000".
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _real(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _whole(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:  # more digits than Python reads
        return text


_decode = json.JSONDecoder(parse_float=_real).decode
_decode_any = json.JSONDecoder(parse_float=_real, parse_int=_whole).decode


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    jsonb holds what Python does not read: a number too large for it comes as a string of its
    digits, a value nested too deeply as a string of all its JSON. So one task's params cannot keep
    a worker from its other tasks.
    """
    if text == b"{}":  # what most params and checkpoints are
        return {}
    text = text if isinstance(text, str) else text.decode()
    try:
        return _decode(text)
    except RecursionError:
        return text
    except ValueError:
        return _decode_any(text)


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
