"""What a task did when, as rows of a table with bars."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from teguh._types import Checkpoint, Happening, Run, Task
    from teguh.server._pages.family import Member

# So many rows are shown; the page says if there are more.
MOST = 200

# What the Python client and work() call the steps that wait, unless they are given other names.
_WAITS = re.compile(r"(sleep|await|receive|children)\b")

Kind = Literal["task", "run", "step", "wait", "child"]


@dataclass(frozen=True, slots=True)
class Span:
    """Something that began, and ended unless `ended` is None."""

    kind: Kind
    label: str
    state: str
    began: datetime
    ended: datetime | None
    of: Member | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """A span, how long it took, and where its bar is, in percent."""

    span: Span
    seconds: float
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The bars of a task, and how many more there are."""

    bars: list[Bar]
    began: datetime
    ended: datetime
    more: int


def timeline(
    task: Task,
    runs: Sequence[Run],
    steps: Sequence[Checkpoint],
    history: Sequence[Happening],
    children: Sequence[Member],
    now: datetime,
) -> Timeline:
    """Return what a task, its runs, steps and waits, and its children did."""
    spans = [
        Span("task", task.task_name, task.state, task.created_at, task.finished_at),
        *_runs(task, runs, steps, history, now),
        *(
            Span("child", child.task_name, child.state, child.created_at, child.finished_at, child)
            for child in children
        ),
    ]
    began = min(span.began for span in spans)
    ended = max(span.ended or now for span in spans)
    whole = max((ended - began).total_seconds(), 1e-6)

    def bar(span: Span) -> Bar:
        seconds = max(0.0, ((span.ended or max(now, span.began)) - span.began).total_seconds())
        left = 100 * (span.began - began).total_seconds() / whole
        return Bar(span, seconds, min(left, 99.6), max(0.4, min(100 * seconds / whole, 100 - left)))

    return Timeline([bar(s) for s in spans[:MOST]], began, ended, max(0, len(spans) - MOST))


def _runs(
    task: Task,
    runs: Sequence[Run],
    steps: Sequence[Checkpoint],
    history: Sequence[Happening],
    now: datetime,
) -> Iterator[Span]:
    free_since = task.created_at
    for run in runs:
        own = [step for step in steps if step.owner_run_id == run.run_id]
        known = [step.updated_at for step in own] + [at for at in (run.started_at,) if at]
        if run is runs[0] and task.first_started_at:
            known.append(task.first_started_at)
        began = min(known, default=None)
        until = began or run.finished_at or (task.finished_at if run is runs[-1] else None)
        if began is None or (began - free_since).total_seconds() >= 1:
            yield Span("wait", f"before run {run.number}", "waiting", free_since, until)
        if began is not None:
            yield Span("run", f"run {run.number}", run.state, began, run.finished_at)
            yield from _steps(run, own, began, now)
        free_since = run.finished_at or free_since
    if task.state == "sleeping" and history and history[-1].event == "sleeping":
        event = history[-1].detail.get("event")
        what = f"waiting for {event}" if event else "asleep"
        yield Span("wait", what, "sleeping", history[-1].at, None)


def _steps(run: Run, steps: Sequence[Checkpoint], began: datetime, now: datetime) -> Iterator[Span]:
    """Return a run's steps: each from the one before it, a sleep until its wake time."""
    since = began
    for step in steps:
        wake = _wake_time(step)
        if wake is None:
            kind: Kind = "wait" if _WAITS.match(step.checkpoint_name) else "step"
            yield Span(kind, step.checkpoint_name, step.status, since, step.updated_at)
            since = step.updated_at
        else:
            over = min(wake, run.finished_at or now)
            ended = max(step.updated_at, over)
            yield Span("wait", step.checkpoint_name, step.status, step.updated_at, ended)
            since = ended


def _wake_time(step: Checkpoint) -> datetime | None:
    """Return until when a step sleeps, None if it does not."""
    if not step.checkpoint_name.startswith("sleep") or not isinstance(step.state, str):
        return None
    try:
        at = datetime.fromisoformat(step.state)
    except ValueError:
        return None
    return at if at.tzinfo else None
