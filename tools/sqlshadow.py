"""Write shadows of .sql files that sqlfluff can lint inside function bodies.

sqlfluff takes a dollar-quoted body for one string.  A shadow has the line numbers of its source
and holds only the plain SQL found inside such bodies: each statement from its first word, its
later lines moved left by as much, `perform` written as `select`, `lateral` left out, and the
targets of `select ... into` blanked out.

usage: python tools/sqlshadow.py --into DIRECTORY FILE...

The directory also gets a .sqlfluff, which is merged over the one at the top of the project.  Rules
about blank lines and the ends of files mean nothing in a shadow; references (RF01) may be to
records of PL/pgSQL; `= any (...)` is no function (LT06); and sqlfluff's own idea of brackets that
open at the end of a line (`where exists (`) is not ours.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pglast.parser import Token, scan

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTS = {"select", "insert", "update", "delete", "with", "merge", "perform"}
# What stands before a statement, in PL/pgSQL's grammar; `in` opens the query of a loop.
OPENERS = {"begin", "then", "else", "loop", ";", "query", "in"}
COMMENTS = {"SQL_COMMENT", "C_COMMENT"}

CONFIG = """\
# Merged over the file at the top of the project, see tools/sqlshadow.py.
[sqlfluff]
exclude_rules =
  AL03, AM04, AM05, AM09, CV12, LT05, LT06, LT09, LT12, LT13, LT14, LT15, RF01, RF02, RF03, ST06,
  ST09

[sqlfluff:indentation]
skip_indentation_in = script_content, conflict_action, bracketed
"""


class Span(NamedTuple):
    """From `start` up to, not including, `end`."""

    start: int
    end: int


def word(source: str, token: Token) -> str:
    """Return a token's text in lower case."""
    return source[token.start : token.end + 1].lower()


def bodies(source: str) -> Iterator[Span]:
    """Yield the spans between dollar quotes that run over lines, in the order of the file."""
    for token in scan(source):
        quote = re.match(r"\$\w*\$", source[token.start : token.end + 1])
        if token.name == "SCONST" and quote and "\n" in source[token.start : token.end]:
            width = len(quote.group())
            yield Span(token.start + width, token.end + 1 - width)


def statements(body: str) -> Iterator[Span]:
    """Yield the plain SQL statements of a PL/pgSQL or SQL body."""
    tokens = [token for token in scan(body) if token.name not in COMMENTS]
    words = [word(body, token) for token in tokens]
    previous, start = ";", 0
    while start < len(tokens):
        if words[start] in STARTS and previous in OPENERS:
            end = _end(words, start)
            if end is not None:
                yield Span(tokens[start].start, tokens[end - 1].end + 1)
                start = end
        if start < len(tokens):
            previous = words[start]
        start += 1


def _end(words: list[str], start: int) -> int | None:
    """Return the index behind a statement's last word; None if a bracket closes before it ends."""
    depth = 0
    for index in range(start, len(words)):
        if words[index] == "(":
            depth += 1
        elif words[index] == ")":
            depth -= 1
        if depth < 0:
            return None
        if depth == 0 and words[index] in (";", "loop"):
            return index
    return len(words) if depth == 0 else None


def without_targets(statement: str) -> str:
    """Blank `into a, b` (not `insert into t`), and turn `perform` into `select`."""
    statement = re.sub(r"^perform\b", "select", statement)
    # sqlfluff asks for a line break between `join` and `lateral`.
    statement = re.sub(r"\bjoin lateral\b", "join", statement)
    tokens, depth = scan(statement), 0
    words = [word(statement, token) for token in tokens]
    for index, token in enumerate(tokens):
        depth += (words[index] == "(") - (words[index] == ")")
        if words[index] != "into" or depth or words[index - 1] in ("insert", "merge"):
            continue
        last = index + 1 + (words[index + 1] == "strict")
        while last + 2 < len(words) and words[last + 1] in (",", "."):
            last += 2
        begin = len(statement[: token.start].rstrip())
        end = tokens[last].end + 1
        return statement[:begin] + re.sub(r"[^\n]", "", statement[begin:end]) + statement[end:]
    return statement


def shadow(source: str) -> str:
    """Return the shadow of a whole file."""
    out = [""] * (source.count("\n") + 1)
    for begin, end in bodies(source):
        body = source[begin:end]
        for span in statements(body):
            start = begin + span.start
            line = source.count("\n", 0, start)
            indent = start - (source.rfind("\n", 0, start) + 1)
            first, *rest = without_targets(body[span.start : span.end]).split("\n")
            moved = [first, *(re.sub(rf"^ {{0,{indent}}}", "", text) for text in rest)]
            moved[-1] += ";"
            out[line : line + len(moved)] = [text.rstrip() for text in moved]
    return "\n".join(out).rstrip("\n") + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write one shadow per file, under the file's name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--into", type=Path, required=True, metavar="DIRECTORY")
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    for old in options.into.glob("*.sql"):
        old.unlink()
    (options.into / ".sqlfluff").write_text(CONFIG, encoding="utf-8")
    for path in options.files:
        text = shadow(path.read_text(encoding="utf-8"))
        if text.strip():
            (options.into / path.name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
