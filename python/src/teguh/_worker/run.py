"""A run in a worker's hands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from teguh._async.context import AsyncTaskContext
    from teguh._sync.context import TaskContext
    from teguh._types import ClaimedRun


class Run:
    """A claimed run: its context, the task that executes it, and when its lease was renewed."""

    __slots__ = ("claim", "context", "ended", "renewed_at", "task")

    def __init__(
        self, claim: ClaimedRun, context: TaskContext | AsyncTaskContext, renewed_at: float
    ) -> None:
        self.claim = claim
        self.context = context
        self.renewed_at = renewed_at  # monotonic
        self.ended = False  # the handler has returned
        self.task: asyncio.Task[object] | None = None

    def __str__(self) -> str:
        return f"task {self.claim.task_name!r} {self.claim.task_id}"
