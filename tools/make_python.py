"""What docs/python.md says: the public names of the Python package, from its docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import griffe

from tools.sqltext import parts

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(__file__).resolve().parent.parent / "python" / "src"

OPENING = """
# Python reference

The public names of the package `teguh`, from their docstrings. `AsyncClient`, `AsyncTaskContext`
and `AsyncWorker` have the methods of `Client`, `TaskContext` and `Worker` as coroutines. How to
run a worker is in [worker.md](worker.md).
"""

CHAPTERS = ("Client", "Registry", "TaskContext", "Worker", "WorkerOptions")
# Of these is said what is said of the sync half.
TWINS = ("AsyncClient", "AsyncTaskContext", "AsyncWorker")
ERRORS = "teguh.errors"


def python() -> str:
    """Return docs/python.md, without its first line."""
    package = griffe.load("teguh", search_paths=[str(SOURCES)], resolve_aliases=True)
    names = [str(name) for name in package.exports or ()]
    errors = [name for name in names if package[name].canonical_path.startswith(ERRORS)]
    others = [name for name in names if name not in {*errors, *CHAPTERS, *TWINS}]
    text = OPENING + "\n## Installing\n"
    text += "".join(_member(name, package[name]) for name in others if package[name].is_function)
    for name in CHAPTERS:
        text += f"\n## {name}\n\n{_made(package[name])}{_told(package[name])}" + "".join(
            _member(f"{name}.{member}", value)
            for member, value in package[name].members.items()
            if not member.startswith("_") and value.docstring
        )
    text += f"\n## Errors\n\n{_told(package['errors'])}"
    text += "\n| class | raised when |\n| --- | --- |\n"
    text += "".join(f"| `{name}` | {_told(package[name], inline=True)} |\n" for name in errors)
    text += "\n## Types\n\nWhat methods take (all keys are optional) and give.\n"
    return text + "".join(
        _type(name, package[name]) for name in others if not package[name].is_function
    )


def _told(value: griffe.Object | griffe.Alias, *, inline: bool = False) -> str:
    """Return a docstring as Markdown."""
    text = value.docstring.value if value.docstring else ""
    text = re.sub(r":\w+:`~?(?:teguh\.)?([^`]+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"(?<=\n)(?=`\w+` \([^)]*\):)", "- ", text)
    text = re.sub(r"(?m)^::\n\n((?:    .*\n|\n)+)", _block, f"{text}\n")
    return " ".join(text.split()).replace("|", "\\|") if inline else text


def _block(match: re.Match[str]) -> str:
    lines = re.sub(r"(?m)^    ", "", match[1]).rstrip()
    if "@" in lines:
        return "```python\n" + re.sub(r"\n+(?=@)", r"\n\n\n", lines) + "\n```\n\n"
    return f"```text\n{lines}\n```\n\n"


def _made(value: griffe.Object | griffe.Alias) -> str:
    """Return how an instance is made; nothing for a dictionary."""
    init = value.members.get("__init__")
    return f"```python\n{_call(init, value.name)}\n```\n\n" if init else ""


def _member(name: str, value: griffe.Object | griffe.Alias) -> str:
    """Return what is said of a function, method or attribute."""
    if value.is_function:
        head = f"```python\n{_call(value, name.rpartition('.')[2])}\n```\n\n"
    else:
        head = f"`{_attribute(value).annotation}`\n\n"
    return f"\n### {name}\n\n{head}{_told(value)}"


def _call(value: griffe.Object | griffe.Alias, name: str) -> str:
    """Return a function's signature under a name, one parameter a line if it is long."""
    function = value.final_target if isinstance(value, griffe.Alias) else value
    assert isinstance(function, griffe.Function)
    result = "" if function.name == "__init__" else f" -> {function.returns}"
    text = function.signature(name=name, return_type=False)
    given = re.sub(r"^self(, )?", "", text.partition("(")[2][:-1])
    if len(f"{name}({given}){result}") <= 96:
        return f"{name}({given}){result}"
    return f"{name}(\n" + "".join(f"    {one},\n" for one in parts(given)) + f"){result}"


def _type(name: str, value: griffe.Object | griffe.Alias) -> str:
    """Return what is said of a class that holds values, or of a name for a type."""
    if value.is_attribute:
        return f"\n### {name}\n\n`{_attribute(value).value}`\n"
    fields = _fields(value)
    return f"\n### {name}\n\n{_told(value)}\n| | |\n| --- | --- |\n" + "".join(
        f"| `{field}` | `{annotation}` |\n" for field, annotation in fields
    )


def _fields(value: griffe.Object | griffe.Alias) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class and their types, those of its bases first."""
    for member, held in value.all_members.items():
        if held.is_attribute and not member.startswith("_"):
            yield member, str(_attribute(held).annotation).replace("|", "\\|")


def _attribute(value: griffe.Object | griffe.Alias) -> griffe.Attribute:
    target = value.final_target if isinstance(value, griffe.Alias) else value
    assert isinstance(target, griffe.Attribute)
    return target
