"""What the engine counts, sampled: how many runs a second, and how long they took."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from teguh._types import Metric

KEPT_SECONDS = 3600.0

# A quantile is that of so many seconds.
_WINDOW = 60.0

_COUNTED = {f"teguh_tasks_{name}_total": name for name in ("started", "completed", "failed")}
_BUCKET = "teguh_run_duration_seconds_bucket"

Rates = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Totals:
    """What a queue has counted: tasks by what became of them, and ended runs.

    ``ended`` says by the upper bounds in seconds how many took more than the bound before.
    """

    counts: dict[str, float]
    ended: dict[float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """What happened between two samples, of which the second was taken at `at`."""

    at: float
    rates: Rates


_NOTHING = Totals(dict.fromkeys(_COUNTED.values(), 0.0), {})


class Samples:
    """The totals of each queue, and as None of all, in the last hour.

    Those of a queue in which nothing happens are kept once.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        size = max(2, math.ceil(KEPT_SECONDS / seconds) + 1) if seconds else 2
        self._kept: deque[tuple[float, dict[str | None, Totals]]] = deque(maxlen=size)

    def add(self, at: float, metrics: Iterable[Metric]) -> None:
        """Keep what was measured at a time, in seconds."""
        before = self._kept[-1][1] if self._kept else {}
        of_queues = totals(metrics)
        queues: dict[str | None, Totals] = {None: _sum(of_queues.values())}
        queues.update(of_queues)
        for queue, found in queues.items():
            if before.get(queue) == found:
                queues[queue] = before[queue]
        self._kept.append((at, queues))

    def points(self, queue: str | None = None) -> list[Point]:
        """Return what happened in a queue, or in all, between any two samples."""
        history = [(at, queues.get(queue, _NOTHING)) for at, queues in self._kept]
        found = []
        first = 0
        for place, ((was_at, was), (at, become)) in enumerate(pairwise(history), 1):
            while first < place - 1 and history[first][0] < at - _WINDOW:
                first += 1
            rates: Rates = {name: _rate(name, was, become, at - was_at) for name in was.counts}
            ended = _difference(history[first][1].ended, become.ended)
            rates["p50"], rates["p95"] = quantile(ended, 0.5), quantile(ended, 0.95)
            found.append(Point(at, rates))
        return found

    def completed(self, queue: str) -> list[tuple[float, float | None]]:
        """Return how many tasks of a queue were completed a second, between any two samples."""
        history = [(at, queues.get(queue, _NOTHING)) for at, queues in self._kept]
        if not history or history[0][1] is history[-1][1]:
            return []
        return [
            (at, _rate("completed", was, become, at - was_at))
            for (was_at, was), (at, become) in pairwise(history)
        ]


def totals(metrics: Iterable[Metric]) -> dict[str, Totals]:
    """Return the totals of each queue over all task names."""
    counts: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_COUNTED.values(), 0.0))
    below: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for metric in metrics:
        if name := _COUNTED.get(metric.name):
            counts[metric.labels["queue"]][name] += metric.value
        elif metric.name == _BUCKET:
            labels = metric.labels
            bound = math.inf if labels["le"] == "+Inf" else float(labels["le"])
            below[labels["queue"]][labels["task"]].append((bound, metric.value))
    found = {}
    for queue, counted in counts.items():
        ended: dict[float, float] = defaultdict(float)
        for buckets in below[queue].values():
            last = 0.0
            for bound, value in sorted(buckets):
                ended[bound] += value - last
                last = value
        found[queue] = Totals(counted, dict(ended))
    return found


def _sum(queues: Iterable[Totals]) -> Totals:
    counts = dict.fromkeys(_COUNTED.values(), 0.0)
    ended: dict[float, float] = defaultdict(float)
    for found in queues:
        for name, value in found.counts.items():
            counts[name] += value
        for bound, value in found.ended.items():
            ended[bound] += value
    return Totals(counts, dict(ended))


def _rate(name: str, was: Totals, become: Totals, seconds: float) -> float | None:
    """Return how many more there were a second; None if less, of a queue that was made anew."""
    more = become.counts[name] - was.counts[name]
    return more / seconds if more >= 0 and seconds > 0 else None


def _difference(was: dict[float, float], become: dict[float, float]) -> list[tuple[float, float]]:
    return sorted((bound, max(0.0, qty - was.get(bound, 0.0))) for bound, qty in become.items())


def quantile(ended: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return how long a share of the runs took at most, None without runs.

    Within a bucket they count as evenly spread; beyond the last bound, as that bound.
    """
    wanted = share * sum(qty for _, qty in ended)
    if not wanted:
        return None
    lower = 0.0
    for bound, qty in ended:
        if wanted <= qty:
            return lower if math.isinf(bound) else lower + (bound - lower) * wanted / qty
        wanted -= qty
        lower = lower if math.isinf(bound) else bound
    return lower
