"""Tables and plots of what was measured: peers.txt, docs/benchmarks.md, docs/images.

usage: python -m bench.peers.report [bench/peers.json]
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.common import percentile
from bench.peers.base import ROOT
from bench.peers.measure import CELLS
from bench.peers.plots import Series, bars, curves

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- made from bench/peers.json: begin -->", "<!-- end -->"
OURS = ("teguh", "teguh_sql")


@dataclass
class Table:
    """A table with what has to be said of it."""

    title: str
    text: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


class Results:
    """What a run has measured."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.peers: dict[str, Any] = data["peers"]
        self._found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        self._errors: dict[tuple[str, str, str], str] = {}
        for one in data["measurements"]:
            key = (one["cell"], one["peer"], one["setting"])
            if "figures" in one:
                self._found.setdefault(key, []).append(one["figures"])
            else:
                self._errors[key] = one["error"]

    def title(self, peer: str) -> str:
        """Return what the tables call a peer."""
        return str(self.peers[peer]["title"])

    def all(self, cell: str, peer: str, setting: str = "") -> list[dict[str, Any]]:
        """Return the figures of all rounds."""
        return self._found.get((cell, peer, setting), [])

    def figure(self, cell: str, peer: str, name: str, setting: str = "") -> float | None:
        """Return the median of a figure, null if it was not measured."""
        values = [one[name] for one in self.all(cell, peer, setting) if one.get(name) is not None]
        return median(values) if values else None

    def best(self, cell: str, peer: str, name: str) -> float | None:
        """Return the highest of the settings' figures."""
        values = [self.figure(cell, peer, name, setting) for setting in ("", "default", "tuned")]
        return max((value for value in values if value is not None), default=None)

    def waits(self, peer: str, share: float) -> float | None:
        """Return a percentile of the pick-up times of all rounds, in ms."""
        waits = [wait for one in self.all("pickup", peer, "tuned") for wait in one["waits"]]
        return percentile(waits, share) if waits else None

    def notes(self, *cells: str, lacks: str = "") -> list[str]:
        """Say how often was measured and who else was busy, what is empty, and why."""
        notes: list[str] = []
        counts, others = set(), []
        for peer, about in self.peers.items():
            if lacks in about["absent"]:
                notes.append(f"{about['title']}: not measured, {about['absent'][lacks]}.")
                continue
            for cell, setting in ((c, s) for c in cells for s in CELLS[c][1]):
                who = f"{about['title']}{f' ({setting})' if setting else ''}"
                found = self.all(cell, peer, setting)
                error = self._errors.get((cell, peer, setting))
                if found:
                    counts.add(len(found))
                    others += [one["others"] for one in found if one.get("others") is not None]
                elif error:
                    notes.append(f"{who}: no figure in {cell}, {error}.")
                elif not about["not_installed"]:
                    notes.append(f"{who}: {cell} was left out for want of time.")
                if any(one.get("stopped") for one in found):
                    jobs = median(one["jobs"] for one in found)
                    notes.append(f"{who}: stopped in {cell} after {jobs:,.0f} jobs.")
        if others:
            notes.insert(
                0,
                f"Other processes kept {median(others):.2f} cores busy (median),"
                f" {max(others):.2f} at most.",
            )
        if counts:
            times = "-".join(map(str, sorted({min(counts), max(counts)})))
            notes.insert(0, f"Medians of {times} measurements.")
        return notes


def rate(value: float | None) -> str:
    """Write a rate or a number of bytes."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def exact(value: float | None) -> str:
    """Write milliseconds or something else that is small."""
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def factor(value: float | None, base: float | None) -> str:
    """Write a ratio; empty if a part of it is not there."""
    if value is None or not base:
        return ""
    return f"{value / base:.2f}" if value < 10 * base else f"{value / base:,.0f}"


def share(value: float | None) -> str:
    """Write a share of a core."""
    return "" if value is None else f"{value:.2%}"


def tables(results: Results) -> list[Table]:
    """Return all tables."""
    found = [
        _peers(results), _ratios(results), _behind(results), _enqueue(results), _drain(results),
        _backlog(results), _steps(results), _pickup(results), _clients(results), _pinned(results),
    ]  # fmt: skip
    return [table for table in found if table.rows]


def _rows(results: Results, cells: Callable[[str], list[str]]) -> list[list[str]]:
    """Return a row for each peer that has any figure."""
    rows = [[results.title(peer), *cells(peer)] for peer in results.peers]
    return [row for row in rows if any(row[1:])]


def _peers(results: Results) -> Table:
    rows = [
        [about["title"], ", ".join(about["versions"]) or "this checkout",
         about["settings"]["default"], about["settings"]["tuned"], about["keeps"]]
        for about in results.peers.values()
    ]  # fmt: skip
    notes = [
        f"{about['title']}: not installed, {about['not_installed']}."
        for about in results.peers.values()
        if about["not_installed"]
    ]
    notes += [f"{name}: not measured, {why}." for name, why in results.data["not_measured"].items()]
    header = ["system", "version", "default", "tuned", "keeps of a finished job"]
    return Table("Systems", "", header, rows, notes)


def _curve(results: Results, peer: str) -> list[tuple[float, float]]:
    found = results.all("pinned", peer)
    return [(jobs, value) for jobs, value in found[-1]["curve"]] if found else []


def _last(results: Results, peer: str) -> float | None:
    curve = _curve(results, peer)
    return curve[-1][1] if curve else None


# Name of a column, cell, figure; whether less is better.
COMPARED = (
    ("enqueue one", lambda r, p: r.figure("enqueue", p, "single_rate"), False),
    ("enqueue bulk", lambda r, p: r.figure("enqueue", p, "bulk_rate"), False),
    ("drain", lambda r, p: r.best("drain", p, "rate"), False),
    ("beside a backlog", lambda r, p: r.figure("backlog", p, "rate", "tuned"), False),
    ("beside sleepers", lambda r, p: r.figure("sleeping", p, "rate", "tuned"), False),
    ("3 steps", lambda r, p: r.best("steps", p, "rate"), False),
    ("pick-up p50", lambda r, p: r.waits(p, 0.5), True),
    ("pick-up p99", lambda r, p: r.waits(p, 0.99), True),
    ("WAL of a drain", lambda r, p: r.figure("drain", p, "wal", "tuned"), True),
    ("16 clients", lambda r, p: r.figure("clients", p, "many_rate"), False),
    ("old snapshot", _last, False),
)  # fmt: skip


def _times(results: Results, peer: str, column: int) -> tuple[float, str] | None:
    """Return how many times teguh does better, and which of its two ways."""
    _, get, less = COMPARED[column]
    theirs = get(results, peer)
    found = []
    for own in OURS:
        ours = get(results, own) if own in results.peers else None
        if theirs and ours:
            found.append((theirs / ours if less else ours / theirs, results.title(own)))
    return found[0] if found else None


def _ratios(results: Results) -> Table:
    rows = []
    for peer in results.peers:
        if peer not in OURS:
            times = [_times(results, peer, column) for column in range(len(COMPARED))]
            rows.append([results.title(peer), *(exact(t[0]) if t else "" for t in times)])
    text = (
        "How many times teguh does better than the system, in rates, times and bytes:"
        " above 1 teguh is ahead. Each in its better setting; teguh by its Python worker, or where"
        " that one is not measured by plain SQL."
    )
    header = ["system", *(column[0] for column in COMPARED)]
    return Table("Ratios", text, header, [row for row in rows if any(row[1:])])


def _behind(results: Results) -> Table:
    rows = []
    for column, (name, _, _) in enumerate(COMPARED):
        ahead = []
        for peer in results.peers:
            times = _times(results, peer, column) if peer not in OURS else None
            if times and times[0] < 0.95:
                ahead.append((times[0], f"{results.title(peer)} {1 / times[0]:.1f} x"))
        if ahead:
            rows.append([name, ", ".join(text for _, text in sorted(ahead))])
    text = "Who is ahead of teguh by more than 5 %, and how many times."
    return Table("Where teguh is behind", text, ["cell", "ahead"], rows)


def _enqueue(results: Results) -> Table:
    names = ("single_rate", "bulk_rate", "single_wal", "bulk_wal")
    return Table(
        "Enqueue",
        "One client. One by one, each its own commit; and in bulk by the best call that there is.",
        ["system", "one by one /s", "bulk /s", "WAL B/job, one by one", "bulk"],
        _rows(results, lambda p: [rate(results.figure("enqueue", p, name)) for name in names]),
        results.notes("enqueue"),
    )


def _drain(results: Results) -> Table:
    def cells(peer: str) -> list[str]:
        def tuned(name: str) -> float | None:
            return results.figure("drain", peer, name, "tuned")

        return [
            rate(results.figure("drain", peer, "rate", "default")), rate(tuned("rate")),
            rate(tuned("wal")), exact(tuned("statements")), rate(tuned("server_us")),
            rate(tuned("worker_us")),
        ]  # fmt: skip

    return Table(
        "Drain",
        "One worker process, handlers that do nothing, from the first job's start to the last"
        " one's durable end. The costs are those of the tuned setting.",
        ["system", "default /s", "tuned /s", "WAL B/job", "statements/job", "server µs/job",
         "worker µs/job"],
        _rows(results, cells),
        results.notes("drain"),
    )  # fmt: skip


def _backlog(results: Results) -> Table:
    def cells(peer: str) -> list[str]:
        alone = results.figure("drain", peer, "begun_rate", "tuned")
        many = results.figure("backlog", peer, "rate", "tuned")
        asleep = results.figure("sleeping", peer, "rate", "tuned")
        if many is None and asleep is None:
            return [""]
        return [rate(alone), rate(many), factor(many, alone), rate(asleep), factor(asleep, alone)]

    number = {"quick": "5,000", "short": "100,000", "long": "1,000,000"}[results.data["form"]]
    asleep = "5,000" if results.data["form"] == "quick" else "200,000"
    return Table(
        "Beside much else",
        f"The tuned worker, with a backlog of {number} ready jobs, and beside {asleep} that are"
        " due tomorrow; and as a share of its rate without them. Jobs begun, whenever they end.",
        ["system", "alone /s", "backlog /s", "share", "sleepers /s", "share"],
        _rows(results, cells),
        results.notes("backlog", "sleeping"),
    )


def _steps(results: Results) -> Table:
    def cells(peer: str) -> list[str]:
        found = [results.figure("steps", peer, "rate", s) for s in ("default", "tuned")]
        return [*map(rate, found), rate(results.figure("steps", peer, "wal", "tuned"))]

    return Table(
        "Workflows of three steps",
        "One worker process; each step is stored before the next begins.",
        ["system", "default /s", "tuned /s", "WAL B/workflow"],
        _rows(results, cells),
        results.notes("steps", lacks="steps"),
    )


def _pickup(results: Results) -> Table:
    def cells(peer: str) -> list[str]:
        def figure(name: str) -> float | None:
            return results.figure("pickup", peer, name, "tuned")

        return [
            exact(results.waits(peer, 0.5)), exact(results.waits(peer, 0.99)),
            exact(figure("statements_per_s")), share(figure("worker_share")),
        ]  # fmt: skip

    return Table(
        "An idle worker",
        "From the return of the enqueue to the start of the handler, one job every 0.08 to 0.16 s,"
        " percentiles over all rounds; and what the worker does while there is nothing.",
        ["system", "pick-up p50 ms", "p99 ms", "statements/s", "of a core"],
        _rows(results, cells),
        results.notes("pickup"),
    )


def _clients(results: Results) -> Table:
    names = ("one_rate", "many_rate")

    def cells(peer: str) -> list[str]:
        one, many = (results.figure("clients", peer, name) for name in names)
        p50, p99 = (results.figure("clients", peer, f"many_{name}") for name in ("p50", "p99"))
        return [rate(one), rate(many), factor(many, one), exact(p50), exact(p99)]

    return Table(
        "Sixteen clients",
        "Each enqueues a job, claims one and completes it, three commits, again and again.",
        ["system", "1 client /s", "16 clients /s", "ratio", "16: p50 ms", "p99 ms"],
        _rows(results, cells),
        results.notes("clients", lacks="cycle"),
    )


def _pinned(results: Results) -> Table:
    def cells(peer: str) -> list[str]:
        curve = _curve(results, peer)
        if not curve:
            return [""]
        first, last = curve[0][1], curve[-1][1]
        return [rate(first), rate(last), factor(last, first), f"{curve[-1][0]:,.0f}"]

    return Table(
        "Under an old snapshot",
        "Four clients as above while a snapshot is held from the start: the first tenth of the"
        " time, the last tenth, and how many jobs were done until then. The last round's.",
        ["system", "first /s", "last /s", "share", "after jobs"],
        _rows(results, cells),
        results.notes("pinned", lacks="cycle"),
    )


def machine(data: dict[str, Any]) -> list[str]:
    """Say in lines what was measured on."""
    about = data.get("machine", {})
    settings = ", ".join(f"{name} {value}" for name, value in about.get("settings", {}).items())
    counted = "; pg_stat_statements on" if about.get("counts_statements") else ""
    run = f"Run of {data['at']}, {data['form']} form, {data['minutes']} minutes"
    left = f"{data['left_out']} measurements left out for want of time"
    processor = about.get("processor") or about.get("machine")
    memory = f"{about.get('memory_gib')} GiB, {about.get('kernel')}"
    disk = f"data on {about.get('file_system')}; load before {about.get('load_before')}"
    lines = [
        f"{run}; {left}.",
        f"{about.get('cores')} cores ({processor}), {memory}, {disk}.",
        f"PostgreSQL ({about.get('server')}): {settings}{counted}.",
        f"{about.get('python')}, {about.get('node')}.",
    ]
    if data["form"] == "quick":
        lines.insert(0, "**A trial with few jobs: these figures say nothing.**")
    return lines


def as_markdown(results: Results) -> str:
    """Return the part of the page that is made from the figures."""
    parts = ["## This run", "\n".join(f"- {line}" for line in machine(results.data))]
    plots = {"Drain": "drain", "Workflows of three steps": "steps", "An idle worker": "pickup",
             "Under an old snapshot": "pinned", "Beside much else": "backlog"}  # fmt: skip
    for table in tables(results):
        parts.append(f"## {table.title}")
        if table.text:
            parts.append(table.text)
        if table.title in plots:
            parts.append(f"![{table.title}](images/{plots[table.title]}.svg)")
        lines = [table.header, ["---"] * len(table.header), *table.rows]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in lines))
        if table.notes:
            parts.append(" ".join(table.notes))
    return "\n\n".join(parts)


def as_text(results: Results) -> str:
    """Return everything in columns."""
    parts = ["make bench-peers", "\n".join(machine(results.data)).replace("**", "")]
    for table in tables(results):
        lines = [table.header, *table.rows]
        widths = [max(len(row[i]) for row in lines if i < len(row)) for i in range(len(lines[0]))]
        text = [f"{table.title}. {table.text}".strip()]
        for row in lines:
            cells = [
                cell.ljust(width) if i == 0 or table.title == "Systems" else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=False))
            ]
            text.append("  ".join(cells).rstrip())
        parts.append("\n".join([*text, *table.notes]))
    return "\n\n".join(parts) + "\n"


def images(results: Results) -> dict[str, str]:
    """Return the plots by their names."""

    def pairs(get: Callable[[str], float | None]) -> list[tuple[str, float]]:
        found = [(results.title(peer), get(peer)) for peer in results.peers]
        return [(title, value) for title, value in found if value]

    def drawn(title: str, get: Callable[[str], float | None], *, less: bool = False) -> str:
        return bars(title, sorted(pairs(get), key=lambda pair: pair[1], reverse=not less))

    found = {
        "drain": drawn(
            "Jobs per second of one worker, tuned", lambda p: results.best("drain", p, "rate")
        ),
        "backlog": drawn(
            "Jobs per second beside a backlog, tuned",
            lambda p: results.figure("backlog", p, "rate", "tuned"),
        ),
        "steps": drawn(
            "Workflows of three steps per second", lambda p: results.best("steps", p, "rate")
        ),
        "pickup": drawn(
            "Pick-up by an idle worker, median, ms", lambda p: results.waits(p, 0.5), less=True
        ),
    }
    series = [Series(results.title(peer), _curve(results, peer)) for peer in results.peers]
    found["pinned"] = curves(
        "Jobs per second after so many jobs, an old snapshot held",
        [one for one in series if one.points],
    )
    return found


def read(file: Path) -> Results:
    """Read what was measured."""
    return Results(json.loads(file.read_text(encoding="utf-8")))


def write(file: Path) -> None:
    """Write the tables and plots beside the file."""
    results = read(file)
    file.with_suffix(".txt").write_text(as_text(results), encoding="utf-8")
    for name, text in images(results).items():
        (file.parent / f"{name}.svg").write_text(text, encoding="utf-8")


def page(text: str, results: Results) -> str:
    """Return the page's text with the part between the marks made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{as_markdown(results)}\n\n{END}{after}"


def publish(file: Path) -> None:
    """Write tables beside the file, plots into docs/images, and the page."""
    results = read(file)
    file.with_suffix(".txt").write_text(as_text(results), encoding="utf-8")
    IMAGES.mkdir(exist_ok=True)
    for name, text in images(results).items():
        (IMAGES / f"{name}.svg").write_text(text, encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    publish(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench" / "peers.json")
