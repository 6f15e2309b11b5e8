"""Threads for sync handlers."""

from __future__ import annotations

import threading
from collections import deque
from contextvars import Context
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

    from teguh._worker.run import Run
    from teguh.registry import SyncHandler

    Report = Callable[[Run, object, BaseException | None], None]


class Threads:
    """Up to `limit` threads, started when all others are busy.

    What handlers return is handed to the event loop many at a time: a wake-up of the loop per
    task would cost more than a short handler. The threads are daemons: a handler that does not
    end cannot keep the process from ending once its run has been handed back.
    """

    def __init__(self, loop: AbstractEventLoop, limit: int, report: Report) -> None:
        self._loop = loop
        self._limit = limit
        self._report = report
        self._jobs: SimpleQueue[tuple[Run, SyncHandler] | None] = SimpleQueue()
        self._done: deque[tuple[Run, object, BaseException | None]] = deque()
        self._busy = 0
        self._started = 0
        self._signalled = False

    def submit(self, run: Run, handler: SyncHandler) -> None:
        """Execute a handler in a thread; called on the event loop, as is the report."""
        self._busy += 1
        if self._busy > self._started and self._started < self._limit:
            self._started += 1
            threading.Thread(
                target=self._work, name=f"teguh-handler-{self._started}", daemon=True
            ).start()
        self._jobs.put((run, handler))

    def close(self) -> None:
        """Let every thread end after what it is doing."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            run, handler = job
            result, error = None, None
            try:
                # What it sets in contextvars is not for the next one in this thread.
                result = Context().run(_call, run, handler)
            except BaseException as raised:  # noqa: BLE001 - the run is failed with it
                error = raised
            self._done.append((run, result, error))
            job = run = result = error = None  # type: ignore[assignment]
            if not self._signalled:
                self._signalled = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:  # the loop is closed: the run was handed back
                    return

    def _collect(self) -> None:
        # Cleared first: whatever is appended from here on signals again or is seen below.
        self._signalled = False
        while self._done:
            self._busy -= 1
            self._report(*self._done.popleft())


def _call(run: Run, handler: SyncHandler) -> object:
    run.enter()
    return handler(run.context)  # type: ignore[arg-type]
