"""Teguh: durable execution as a SQL library for PostgreSQL.

Spawn tasks and look at them with a :class:`Client` (or :class:`AsyncClient`), execute them
with a :class:`Worker` (or :class:`AsyncWorker`), write them against a :class:`TaskContext` (or
:class:`AsyncTaskContext`), and install the schema with :func:`install`, or bring it up to this
package's version with :func:`upgrade`.
"""

from teguh._async.client import AsyncClient
from teguh._async.context import AsyncTaskContext
from teguh._install import install, upgrade
from teguh._sync.client import Client
from teguh._sync.context import TaskContext
from teguh._types import (
    Action,
    Awaited,
    Cancellation,
    Checkpoint,
    ClaimedRun,
    Cleaned,
    CompletedRun,
    Filter,
    Happening,
    Holder,
    ListedTask,
    NewTask,
    Queue,
    QueuePolicy,
    RetryStrategy,
    Run,
    Spawned,
    SpawnOptions,
    State,
    Status,
    Task,
    TaskResult,
)
from teguh.errors import (
    Abandoned,
    ConfigurationError,
    Conflict,
    EngineError,
    EventTimeout,
    Interrupt,
    InvalidOption,
    NotStorable,
    QueueFull,
    QueueNotFound,
    RunEnded,
    RunLost,
    RunNotFound,
    Suspended,
    TaskCancelled,
    TaskNotFound,
    TeguhError,
    VersionMismatch,
    WrongState,
)
from teguh.registry import Registry
from teguh.worker import AsyncWorker, Worker, WorkerOptions

__all__ = [
    "Abandoned",
    "Action",
    "AsyncClient",
    "AsyncTaskContext",
    "AsyncWorker",
    "Awaited",
    "Cancellation",
    "Checkpoint",
    "ClaimedRun",
    "Cleaned",
    "Client",
    "CompletedRun",
    "ConfigurationError",
    "Conflict",
    "EngineError",
    "EventTimeout",
    "Filter",
    "Happening",
    "Holder",
    "Interrupt",
    "InvalidOption",
    "ListedTask",
    "NewTask",
    "NotStorable",
    "Queue",
    "QueueFull",
    "QueueNotFound",
    "QueuePolicy",
    "Registry",
    "RetryStrategy",
    "Run",
    "RunEnded",
    "RunLost",
    "RunNotFound",
    "SpawnOptions",
    "Spawned",
    "State",
    "Status",
    "Suspended",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskNotFound",
    "TaskResult",
    "TeguhError",
    "VersionMismatch",
    "Worker",
    "WorkerOptions",
    "WrongState",
    "install",
    "upgrade",
]
