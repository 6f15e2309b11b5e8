"""Build the SQL files that are committed from the modules of sql/src.

usage: python tools/build_sql.py [--check]

sql/teguh.sql
    All modules in the order of their names, with a map on top.
sql/upgrade/teguh--A--B.sql
    For each release A in tests/upgrade/released that has a delta sql/upgrade/src/A--B.sql to the
    present version B: wait until nobody is in the middle of a call, the delta, the modules again,
    remove what is left over.  What of A cannot be replaced (routines with other arguments or
    results, views and types with another text) is found by comparing the two versions.

META.json
    The version that the archive provides is the archive's own.

``--check`` writes nothing and fails when a file that is there differs from what the sources
give.  A source may say ``@TEGUH_VERSION@``: the version stands in META.json and nowhere else.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
import textwrap
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


# Opens a fresh installation and nothing else: transaction, settings, version guard, schema.
OPENING = "00_install.sql"
UPGRADES = "sql/upgrade"
SETTINGS = """\
set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
set local check_function_bodies = off;
"""

# What a text says of the objects in it that `create or replace` may not be able to change.
ROUTINE = re.compile(
    r"create or replace (?:function|procedure) teguh\.(\w+)(\(.*?)\n +language ", re.DOTALL
)
VIEW_OR_TYPE = re.compile(
    r"create (?:or replace )?(?:view|type) teguh\.(\w+) as\b(.*?);\n", re.DOTALL
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

UPGRADE_HEADER = """\
-- Upgrade teguh @FROM@ to @TO@: one transaction, with workers running.
--
-- Run it with `psql -v ON_ERROR_STOP=1 -f`, send it through any driver as one string, or say
-- `teguh upgrade`; as the role that owns the schema teguh, or as superuser.
--
-- Generated from sql/upgrade/src and sql/src by tools/build_sql.py (`make sql`).
"""


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


def modules(root: Path = ROOT, *, opening: bool = True) -> str:
    """Return the modules under their names, with or without what frames an installation."""
    text: list[str] = []
    for path in sorted((root / "sql" / "src").glob("*.sql")):
        if opening or path.name != OPENING:
            text += ["", f"-- sql/src/{path.name}", *Module.read(path).lines]
    whole = "\n".join([*text, ""])
    if not opening:
        whole = whole.removesuffix("\ncommit;\n")
    return whole.replace(PLACEHOLDER, version(root))


def changed(old: str, new: str) -> list[str]:
    """Return the names of what the old text has and the new one has otherwise or not at all."""
    names: set[str] = set()
    for pattern in (ROUTINE, VIEW_OR_TYPE):
        before, after = (
            {name: " ".join(rest.split()) for name, rest in pattern.findall(text)}
            for text in (old, new)
        )
        names |= {name for name in before if after.get(name) != before[name]}
    # 90_finish.sql derives the functions of segment 1.
    names |= {n.replace("0_template", "1_template") for n in names}
    return sorted(names)


def upgrade(old: str, root: Path = ROOT) -> str:
    """Return the statements that upgrade release `old` to the present version, unframed."""
    new = version(root)
    source = root / UPGRADES / "src"
    delta = (source / f"{old}--{new}.sql").read_text(encoding="utf-8")
    released = (root / RELEASED / old / "teguh.sql").read_text(encoding="utf-8")
    names = {
        "@FROM@": old,
        "@TO@": new,
        "@TABLES@": array(sorted(set(re.findall(r"table teguh\.([a-z0-9]+)_template\b", delta)))),
        "@CHANGED@": array(changed(released, build(root))),
    }
    parts = [
        SETTINGS,
        (source / "before.sql").read_text(encoding="utf-8"),
        f"-- {UPGRADES}/src/{old}--{new}.sql\n{delta}",
        modules(root, opening=False).strip("\n") + "\n",
        (source / "after.sql").read_text(encoding="utf-8"),
    ]
    text = "\n".join(parts)
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def array(words: list[str]) -> str:
    """Return words as the text of an array, on lines of a readable width."""
    return textwrap.fill(
        "{" + ", ".join(words) + "}", 90, subsequent_indent="    ", break_long_words=False
    )


def upgrades(root: Path = ROOT) -> list[str]:
    """Return the releases from which there is a delta to the present version."""
    deltas = sorted((root / UPGRADES / "src").glob(f"*--{version(root)}.sql"))
    return [path.name.split("--")[0] for path in deltas]


def committed(root: Path = ROOT) -> dict[Path, str]:
    """Return every file that is built and committed, with its text."""
    new = version(root)
    meta = (root / "META.json").read_text(encoding="utf-8")
    files = {
        root / "sql" / "teguh.sql": build(root),
        # What the archive provides has its version.
        root / "META.json": re.sub(r'(?m)^(      "version": )"[^"]*"', rf'\1"{new}"', meta),
    }
    for old in upgrades(root):
        head = UPGRADE_HEADER.replace("@FROM@", old).replace("@TO@", new)
        files[root / UPGRADES / f"teguh--{old}--{new}.sql"] = (
            f"{head}\nbegin;\n\n{upgrade(old, root)}\ncommit;\n"
        )
    return files


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Build or check; the exit code says whether the files are what they should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    options = parser.parse_args(arguments)
    try:
        files = committed(root)
    except (BuildError, FileNotFoundError) as error:
        print(f"build_sql: {error}", file=sys.stderr)
        return 1
    stale = False
    for target, wanted in files.items():
        found = target.read_text(encoding="utf-8") if target.exists() else ""
        if found == wanted:
            continue
        if not options.check:
            target.write_text(wanted, encoding="utf-8")
            continue
        stale = True
        name = str(target.relative_to(root))
        changes = difflib.unified_diff(
            found.splitlines(), wanted.splitlines(), name, "sql/src", lineterm="", n=0
        )
        print("\n".join(list(changes)[:20]), file=sys.stderr)
        print(f"build_sql: {name} is stale: run `make sql` and commit it", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
