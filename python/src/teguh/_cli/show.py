"""What verbs return, as a table, JSON or CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from teguh import _types
from teguh._doctor import Finding
from teguh.cli import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Format = Literal["table", "json", "csv"]
Row = dict[str, Any]

# What a table shows of rows that are too wide for one. JSON and CSV have all.
_COLUMNS: dict[type, str] = {
    _types.Queue: "queue_name namespace created_at paused_until",
    _types.ListedTask: "task_id task_name state attempts created_at claimed_by failure_reason",
    _types.Event: "event_name created_at emitted_at payload waiters",
    _types.Action: "at action by_role reason task_id run_id detail",
    _types.ClaimedRun: "run_id task_id task_name attempt params lease_expires_at",
    _types.Schedule: "schedule_name queue_name task_name schedule next_fire_at last_error",
}  # fmt: skip

_STYLES = {
    "completed": "green", "ok": "green", "running": "cyan", "failed": "red", "error": "red",
    "expired": "red", "cancelled": "yellow", "warning": "yellow",
}  # fmt: skip


def show(result: object, row_type: type | None, form: Format, more: str | None = None) -> None:
    """Print rows, one row, or row after row as an iterator yields them."""
    if isinstance(result, list):
        rows = [_row(row) for row in result]
        columns = _names(row_type, rows)
        if form == "json":
            print(_json(rows, indent=2))
        elif form == "csv":
            _csv(columns, rows)
        else:
            shown = _COLUMNS[row_type].split() if row_type in _COLUMNS else columns
            _table(shown, rows, more)
    elif hasattr(result, "__next__"):
        _stream(result, row_type, form)
    elif form == "json":
        print(_json(_row(result), indent=2))
    elif form == "csv":
        _csv(list(_row(result)), [_row(result)])
    else:
        _record(_row(result))


def _row(row: object) -> Row:
    if dataclasses.is_dataclass(row):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    assert isinstance(row, dict)
    return row


def _names(row_type: type | None, rows: Sequence[Row]) -> list[str]:
    if row_type is not None and dataclasses.is_dataclass(row_type):
        return [field.name for field in dataclasses.fields(row_type)]
    return list(rows[0]) if rows else []


def _json(value: object, indent: int | None = None) -> str:
    def plain(value: object) -> object:
        if dataclasses.is_dataclass(value):
            return _row(value)
        return value.isoformat() if isinstance(value, datetime) else str(value)

    wide = sys.stdout.encoding.lower().startswith("utf")
    return printable(json.dumps(value, default=plain, ensure_ascii=not wide, indent=indent))


def _csv(columns: Sequence[str], rows: Sequence[Row], *, header: bool = True) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows([[_plain(row[name]) for name in columns] for row in rows])


def _plain(value: object) -> str:
    """Return a value as CSV has it."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, str | UUID) else _json(value)


def _cell(value: object) -> Text:
    """Return a value as a table shows it: no markup, nothing that steers a terminal."""
    if isinstance(value, datetime):
        precision = "milliseconds" if value.microsecond else "seconds"
        text = value.isoformat(sep=" ", timespec=precision).removesuffix(":00")  # of the offset
    else:
        text = printable(_plain(value).replace("\n", "\\n"))
    return Text(text, style=_STYLES.get(text, ""))


def _brief(name: str, value: Any) -> Any:
    """Return a column's value, a failure without its traceback."""
    if name in {"failure_reason", "detail"} and isinstance(value, dict):
        return {key: _brief(key, part) for key, part in value.items() if key != "traceback"}
    return value


def _console() -> Console:
    """Return the terminal, or what takes lines of any length."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100_000)


def _table(columns: Sequence[str], rows: Sequence[Row], more: str | None) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        number = any(type(row[name]) in (int, float) for row in rows)
        table.add_column(
            name,
            justify="right" if number else "left",
            no_wrap=name.endswith("_id"),
            min_width=len("12:00:00+00") if name.endswith("_at") else None,  # under its date
            overflow="fold",
        )
    for row in rows:
        table.add_row(*[_cell(_brief(name, row[name])) for name in columns])
    console = _console()
    if rows:
        console.print(table)
    print(f"({len(rows)} row{'' if len(rows) == 1 else 's'})")
    if more:
        print(f"more: {more}")


def _record(row: Row) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    any_said = any(value is not None for value in row.values())
    for name, value in row.items():
        if value is not None or not any_said:
            table.add_row(name, _cell(value))
    _console().print(table)


def _stream(rows: Any, row_type: type | None, form: Format) -> None:
    """Print each row when it comes; JSON is one object per line."""
    columns = _names(row_type, [])
    if form == "csv":
        _csv(columns, [])
    for row in map(_row, rows):
        if form == "json":
            print(_json(row))
        elif form == "csv":
            _csv(columns, [row], header=False)
        else:
            cells = [_cell(_brief(n, row[n])) for n in columns if row[n] not in (None, {})]
            _console().print(Text("  ").join(cells))
        sys.stdout.flush()


def show_findings(findings: Sequence[Finding], form: Format) -> None:
    """Print what the doctor found: in a table, each with its hint below it."""
    if form != "table":
        show(list(findings), Finding, form)
        return
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(_cell(finding.severity), _cell(finding.check), _cell(finding.message))
        if finding.hint:
            table.add_row("", "", _cell(f"hint: {finding.hint}"))
    _console().print(table)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], object]]:
    """Show on a terminal how far something long is; yield what is told how many more are done."""
    columns = [TextColumn(what), BarColumn() if total else SpinnerColumn(), MofNCompleteColumn()]
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.advance(task, done)
