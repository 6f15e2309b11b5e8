"""A run in a worker's hands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from teguh import logs

if TYPE_CHECKING:
    import asyncio

    from teguh._async.context import AsyncTaskContext
    from teguh._sync.context import TaskContext
    from teguh._traces import RunTrace
    from teguh._types import ClaimedRun


class Run:
    """A claimed run: its context, the task that executes it, and when its lease was renewed."""

    __slots__ = (
        "began_at", "claim", "context", "ended", "released", "renewed_at", "task", "trace",
        "worker_id",
    )  # fmt: skip

    def __init__(
        self,
        claim: ClaimedRun,
        context: TaskContext | AsyncTaskContext,
        renewed_at: float,
        worker_id: str,
    ) -> None:
        self.claim = claim
        self.context = context
        self.renewed_at = renewed_at  # monotonic
        self.worker_id = worker_id
        self.began_at = renewed_at  # monotonic
        self.ended = False  # the handler has returned
        self.released = False  # the run is handed back
        self.task: asyncio.Task[object] | None = None
        self.trace: RunTrace | None = None

    def __str__(self) -> str:
        return f"task {self.claim.task_name!r} {self.claim.task_id}"

    def enter(self) -> None:
        """Let what runs here from now on log and trace as part of this run."""
        logs.current.set(self)
        if self.trace is not None:
            self.trace.enter()

    def fields(self) -> dict[str, Any]:
        """Return what its log records carry."""
        return logs.fields_of(self.claim, self.context.queue, self.worker_id)
