"""Plots as SVG, on a logarithmic axis, readable on light and dark ground."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, ROW = 760, 170, 24
COLOURS = ("#2f81f7", "#d29922", "#3fb950", "#f85149", "#a371f7", "#db61a2", "#39c5cf", "#8b949e")

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; }
.small { font-size: 11px; }
.line { stroke: #d0d7de; stroke-width: 1; }
.bar { fill: #8b949e; }
.own { fill: #2f81f7; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .line { stroke: #30363d; }
}
"""


@dataclass(frozen=True)
class Series:
    """A line of a plot."""

    name: str
    points: list[tuple[float, float]]


def _svg(height: float, body: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}"'
        f' width="{WIDTH}" height="{height:.0f}" role="img">\n<style>{STYLE}</style>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _decades(values: list[float]) -> tuple[int, int]:
    """Return the powers of ten around the values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def bars(title: str, rows: list[tuple[str, float]]) -> str:
    """Draw a bar for each row; those of teguh stand out."""
    body = [_text(10, 20, f"{title} (logarithmic)", "title")]
    if not rows:
        return _svg(30, body)
    low, high = _decades([value for _, value in rows])
    width = WIDTH - LEFT - 90
    bottom = 36 + ROW * len(rows)

    def x(value: float) -> float:
        return LEFT + width * (math.log10(value) - low) / (high - low)

    for power in range(low, high + 1):
        at = x(10.0**power)
        body.append(f'<line class="line" x1="{at:.1f}" x2="{at:.1f}" y1="32" y2="{bottom}"/>')
        body.append(_text(at, bottom + 14, _number(10.0**power), "small", "middle"))
    for place, (name, value) in enumerate(rows):
        y = 36 + ROW * place
        kind = "own" if name.startswith("teguh") else "bar"
        length = max(x(value) - LEFT, 1)
        body.append(_text(LEFT - 8, y + 14, name, "", "end"))
        body.append(
            f'<rect class="{kind}" x="{LEFT}" y="{y + 2}" width="{length:.1f}" height="{ROW - 6}"/>'
        )
        body.append(_text(LEFT + length + 6, y + 14, _number(value), "small"))
    return _svg(bottom + 24, body)


def curves(title: str, series: list[Series]) -> str:
    """Draw a line for each series."""
    body = [_text(10, 20, f"{title} (logarithmic)", "title")]
    points = [(x, y) for one in series for x, y in one.points if x > 0 and y > 0]
    if not points:
        return _svg(30, body)
    left, right, top, bottom = 60, WIDTH - 190, 36, 300
    x_low, x_high = _decades([x for x, _ in points])
    y_low, y_high = _decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * (math.log10(x) - x_low) / (x_high - x_low),
            bottom - (bottom - top) * (math.log10(y) - y_low) / (y_high - y_low),
        )

    for power in range(x_low, x_high + 1):
        at = place(10.0**power, 10.0**y_low)[0]
        body.append(f'<line class="line" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        body.append(_text(at, bottom + 16, _number(10.0**power), "small", "middle"))
    for power in range(y_low, y_high + 1):
        at = place(10.0**x_low, 10.0**power)[1]
        body.append(f'<line class="line" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        body.append(_text(left - 6, at + 4, _number(10.0**power), "small", "end"))
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(
            "{:.1f},{:.1f}".format(*place(x, y)) for x, y in one.points if x > 0 and y > 0
        )
        body.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = top + 10 + 20 * number
        body.append(f'<rect x="{right + 14}" y="{y - 8}" width="12" height="4" fill="{colour}"/>')
        body.append(_text(right + 32, y, one.name, "small"))
    return _svg(bottom + 28, body)
