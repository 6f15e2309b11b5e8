"""Run a pgTAP file without psql, and read the lines that it gives."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from psycopg import pq

# What may hide a semicolon, and the semicolon.
TOKEN = re.compile(
    r"""--[^\n]* | /\*.*?\*/ | (?P<tag>\$\w*\$).*?(?P=tag) | \b[eE]'(?:\\.|''|[^'\\])*'
      | '(?:''|[^'])*' | "(?:""|[^"])*" | (?P<end>;)""",
    re.VERBOSE | re.DOTALL,
)
RESULT = re.compile(r"(?P<not>not )?ok\b(?: +(?P<number>\d+))?(?P<rest>.*)")
DIRECTIVE = re.compile(r"#\s*(?:todo|skip)\b", re.IGNORECASE)


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the statements of a file with the numbers of their first lines."""
    start = 0
    ends = [found.end() for found in TOKEN.finditer(text) if found["end"]]
    for end in [*ends, len(text)]:
        statement = text[start:end]
        body = re.sub(r"\A(?:\s+|--[^\n]*\n?|/\*.*?\*/)+", "", statement, flags=re.DOTALL)
        if body:
            yield text.count("\n", 0, end - len(body)) + 1, body
        start = end


@dataclass
class Tap:
    """The lines a file produced, and what they say."""

    lines: list[str] = field(default_factory=list)
    planned: int | None = None
    ran: int = 0
    failed: list[int] = field(default_factory=list)
    skip_all: str | None = None
    bailed: bool = False

    def add(self, line: str) -> None:
        """Take in one line of output; what is not TAP is dropped."""
        if plan := re.fullmatch(r"1\.\.(\d+)(?:\s*#\s*(.*))?", line):
            self.planned = int(plan[1])
            self.skip_all = plan[2] if self.planned == 0 and plan[2] else None
        elif result := RESULT.match(line):
            self.ran += 1
            if result["not"] and not DIRECTIVE.search(result["rest"]):
                self.failed.append(self.ran)
        elif line.startswith("Bail out!"):
            self.bailed = True
        elif not line.startswith("#"):
            return
        self.lines.append(line)

    def problem(self) -> str | None:
        """Return why the file failed, or None."""
        if self.bailed:
            return "bailed out"
        if self.failed:
            return f"failed: {', '.join(map(str, self.failed))}"
        if self.planned is None:
            return "no plan: a file says `select plan(n);` first"
        if self.planned != self.ran:
            return f"{self.planned} tests planned, {self.ran} ran"
        return None

    def failures(self) -> str:
        """Return the failed lines with the diagnostics below each."""
        shown, showing = [], False
        for line in self.lines:
            if not line.startswith("#"):
                showing = line.startswith("not ok") and not DIRECTIVE.search(line)
            if showing or line.startswith("Bail out!"):
                shown.append(line)
        return "\n".join(shown)


class TapError(Exception):
    """A file did not pass; the text is what the report shows."""


def cells(result: pq.abc.PGresult) -> Iterable[str]:
    """Yield the lines of text in a result's rows."""
    for row in range(result.ntuples):
        for column in range(result.nfields):
            value = result.get_value(row, column)
            if value is not None:
                yield from bytes(value).decode().splitlines()


def run(dsn: str, path: Path) -> Tap:
    """Run a file and return its lines; raise TapError at a statement that fails."""
    tap = Tap()
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        for line, statement in statements(path.read_text(encoding="utf-8")):
            if statement.startswith("\\"):
                raise TapError(f"{path.name}:{line}: psql commands are not for these files")
            try:
                result = connection.execute(statement.encode()).pgresult
            except psycopg.Error as error:
                before = tap.failures()
                raise TapError(
                    f"{path.name}:{line}: {error.sqlstate} {error}\n"
                    f"after {tap.ran} of {tap.planned} tests" + (f"\n{before}" if before else "")
                ) from error
            if result is not None:
                for text in cells(result):
                    tap.add(text)
    return tap
