"""How long to wait before the next try."""

from __future__ import annotations

import random


class Backoff:
    """Waits in seconds that double from `first` up to `limit`, shortened by up to a quarter."""

    def __init__(self, first: float = 0.05, limit: float = 5.0) -> None:
        self._first = first
        self._limit = limit
        self.tries = 0

    def next(self) -> float:
        """Return the next wait."""
        wait = min(self._limit, self._first * 2.0 ** min(self.tries, 30))
        self.tries += 1
        return wait * (1 - random.random() / 4)

    def reset(self) -> None:
        """Begin again with the first wait."""
        self.tries = 0
