"""Build sql/teguh.sql: the modules of sql/src in the order of their names, with a map on top.

usage: python tools/build_sql.py [--check]

``--check`` writes nothing and fails when the file that is there differs from what the sources
give.  A source may say ``@TEGUH_VERSION@``: the version stands in META.json and nowhere else.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = "@TEGUH_VERSION@"
RELEASED = "tests/upgrade/released"
MODULE_NAME = re.compile(r"\d\d_[a-z0-9_]+\.sql")
OBJECT = re.compile(
    r"^ *create (?:or replace )?(?:unlogged )?(?P<kind>function|procedure|table|view|type|sequence)"
    r" (?:if not exists )?teguh\.(?P<name>\w+)"
)

HEADER = """\
-- Teguh @TEGUH_VERSION@: durable execution as a SQL library for PostgreSQL 14 and later.
--
-- This one file makes a database a workflow engine: schema teguh with its tables and functions.
-- Install it with `psql -f teguh.sql`, or send it through any driver as one string: it holds no
-- psql command.  It needs CREATE on the database, no superuser and no extension.  Running it again
-- over the same version changes nothing but refreshes the functions.
--
-- Generated from sql/src by tools/build_sql.py (`make sql`): edit the modules, not this file.
--
-- Line  What stands there"""


class BuildError(Exception):
    """The sources cannot be put together; the text says which and why."""


@dataclass(frozen=True)
class Module:
    """One file of sql/src: its name, the sentence it opens with, its text and its objects."""

    name: str
    title: str
    lines: list[str]
    objects: list[tuple[int, str]]  # (index of the line inside the module, what is created)

    @classmethod
    def read(cls, path: Path) -> Module:
        """Read one module, or raise BuildError."""
        if not MODULE_NAME.fullmatch(path.name):
            raise BuildError(f"{path.name}: a module is named NN_topic.sql")
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        objects: list[tuple[int, str]] = []
        for index, line in enumerate(lines):
            if line.startswith("\\"):
                raise BuildError(f"{path.name}:{index + 1}: psql commands do not pass a driver")
            found = OBJECT.match(line)
            if found:
                kind = "" if found["kind"] == "function" else f" ({found['kind']})"
                objects.append((index, found["name"] + kind))
        title = lines[0].removeprefix("--").strip().rstrip(".") if lines[0].startswith("--") else ""
        return cls(path.name, title, lines, objects)

    def contents(self, start: int) -> list[str]:
        """This module's part of the table of contents; its banner stands at line `start`."""
        title = f": {self.title}" if self.title else ""
        rows = [f"-- {start:>4}  {self.name}{title}"]
        rows += [f"-- {start + 1 + index:>4}    {name}" for index, name in self.objects]
        return rows


def version(root: Path = ROOT) -> str:
    """Return the version that META.json gives."""
    return str(json.loads((root / "META.json").read_text(encoding="utf-8"))["version"])


def build(root: Path = ROOT) -> str:
    """Return the text of sql/teguh.sql."""
    modules = [Module.read(path) for path in sorted((root / "sql" / "src").glob("*.sql"))]
    if not modules:
        raise BuildError("sql/src holds no module")
    header = HEADER.split("\n")
    contents_length = sum(1 + len(module.objects) for module in modules)
    line = len(header) + contents_length + 2  # the first banner, after one blank line
    contents: list[str] = []
    text: list[str] = []
    for module in modules:
        contents += module.contents(line)
        text += ["", f"-- sql/src/{module.name}", *module.lines]
        line += len(module.lines) + 2
    whole = "\n".join([*header, *contents, *text, ""])
    return whole.replace(PLACEHOLDER, version(root))


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Build or check; the exit code says whether the file is what it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    options = parser.parse_args(arguments)
    target = root / "sql" / "teguh.sql"
    try:
        wanted = build(root)
    except BuildError as error:
        print(f"build_sql: {error}", file=sys.stderr)
        return 1
    found = target.read_text(encoding="utf-8") if target.exists() else ""
    if found == wanted:
        return 0
    if not options.check:
        target.write_text(wanted, encoding="utf-8")
        return 0
    changes = difflib.unified_diff(
        found.splitlines(), wanted.splitlines(), "sql/teguh.sql", "sql/src", lineterm="", n=0
    )
    print("\n".join(list(changes)[:20]), file=sys.stderr)
    print("build_sql: sql/teguh.sql is stale: run `make sql` and commit it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
