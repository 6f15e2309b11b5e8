"""Plots, as the numbers that a template draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from teguh.server._pages.samples import KEPT_SECONDS
from teguh.server._pages.text import duration, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from teguh.server._pages.samples import Point

# A plot shows the first of these that holds all samples.
_SPANS = (300.0, 900.0, KEPT_SECONDS)

# The size of a plot's own coordinates; the page stretches it.
WIDTH, HEIGHT = 600, 120


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot: its parts between gaps, and what it says in words."""

    name: str
    parts: list[str]
    latest: str
    mean: str
    peak: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines over the last so many seconds. `top` is the value at the upper edge."""

    name: str
    seconds: float
    top: str
    lines: list[Line]


def throughput(points: Sequence[Point], now: float) -> Plot:
    """Plot what was started, completed and failed per second."""
    return _plot(
        "Throughput", "per second", points, now, ("started", "completed", "failed"), number
    )


def durations(points: Sequence[Point], now: float) -> Plot:
    """Plot how long half of the runs, and all but a twentieth, took in the minute before."""
    return _plot("Run duration", "", points, now, ("p50", "p95"), duration)


def spark(values: Sequence[tuple[float, float | None]], now: float) -> list[str]:
    """Return a line without anything around it."""
    top = max((value for _, value in values if value is not None), default=0.0)
    return _parts(values, now, _span(values[0][0], now), top) if top else []


def _plot(
    name: str,
    unit: str,
    points: Sequence[Point],
    now: float,
    keys: Sequence[str],
    told: Callable[[float | None], str],
) -> Plot:
    values = {key: [(point.at, point.rates[key]) for point in points] for key in keys}
    known = {key: [v for _, v in line if v is not None] for key, line in values.items()}
    seconds = _span(points[0].at if points else now, now)
    top = _round_up(max((max(line) for line in known.values() if line), default=0.0))
    lines = [
        Line(
            key,
            _parts(values[key], now, seconds, top),
            told(values[key][-1][1] if values[key] else None),
            told(sum(known[key]) / len(known[key]) if known[key] else None),
            told(max(known[key], default=None)),
        )
        for key in keys
    ]
    return Plot(name, seconds, f"{told(top)} {unit}".strip(), lines)


def _span(first: float, now: float) -> float:
    return next((span for span in _SPANS if now - first < span), KEPT_SECONDS)


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, … so that the edge does not move all the time."""
    if value <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(step * size for step in (1, 2, 5, 10) if value <= step * size * (1 + 1e-9))


def _parts(
    values: Sequence[tuple[float, float | None]], now: float, seconds: float, top: float
) -> list[str]:
    """Return the points of each stretch without a gap."""
    parts: list[list[str]] = [[]]
    for at, value in values:
        x = WIDTH * (1 - (now - at) / seconds)
        if value is None:
            parts.append([])
        elif x >= 0:
            parts[-1].append(f"{x:.1f},{HEIGHT * (1 - value / top):.1f}")
    # a single point is a line of no length, which round ends make a dot
    return [" ".join(part if len(part) > 1 else part * 2) for part in parts if part]
