"""Which endpoint calls what, and whose tokens may: each a method of the client.

The parameters of an endpoint are those of its method. They are in the path, else in the query of a
GET or DELETE and in the JSON body of all others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from teguh._async.client import AsyncClient as Client
from teguh._types import ClaimedRun, Order
from teguh.server._claims import Terms, Wanted
from teguh.server._feeds import Feed  # noqa: TC001
from teguh.server._shape import Misshapen

if TYPE_CHECKING:
    from collections.abc import Sequence

# Claims, or waits for so many seconds.
Claim = Callable[[Wanted, Terms, float], Awaitable[list[ClaimedRun]]]

MAX_WAIT_SECONDS = 60.0

LOOK = ("client", "worker", "observer", "admin")
USE = ("client", "worker", "admin")
WORK = ("worker", "admin")
RULE = ("admin",)


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint: its path, what it calls, and the scopes of which a token needs one.

    What is called gets a client; a claim gets what claims and waits, a stream its feed. `value`
    names what it returns, if that is one bare value.
    """

    scopes: tuple[str, ...]
    method: str
    path: str
    call: Callable[..., Any]
    value: str = ""
    media: str = "application/json"


async def claim_task(
    claim: Claim,
    queue: str,
    worker_id: str = "worker",
    *,
    claim_timeout: float = 30,
    qty: int = 1,
    wait_seconds: float = 0,
) -> list[ClaimedRun]:
    """Claim up to `qty` runs under a lease of `claim_timeout` seconds, oldest due first.

    While there are none, wait up to `wait_seconds` (at most 60) for one; an empty array says that
    none came. A timeout of 0 or less is a lease without end. SQL: ``claim_task``.
    """
    terms = Terms(worker_id, claim_timeout, qty)
    return await claim(Wanted((queue,)), terms, _wait(wait_seconds))


async def claim_any(
    claim: Claim,
    queues: list[str] | None = None,
    worker_id: str = "worker",
    *,
    claim_timeout: float = 30,
    qty: int = 1,
    task_names: list[str] | None = None,
    order: Order | None = None,
    wait_seconds: float = 0,
) -> list[ClaimedRun]:
    """Claim up to `qty` runs of several queues, by default of all; they say of which.

    With `task_names`, no others. `order` (by default round_robin) is that in which the queues are
    looked through. While there are none, wait up to `wait_seconds` (at most 60).
    SQL: ``claim_any``.
    """
    wanted = Wanted(_tuple(queues), _tuple(task_names), order, any=True)
    return await claim(wanted, Terms(worker_id, claim_timeout, qty), _wait(wait_seconds))


def stream_stats(feed: Feed, queue: str | None = None) -> AsyncIterator[bytes]:
    """Stream how many tasks of each queue, or of one, stand where, whenever that changes.

    Server-sent events: ``stats`` with what ``queue_stats`` returns of a queue; ``gone`` when it is
    no more; ``error`` when the database does not answer.
    """
    return feed.stream(lambda row: queue in (None, row.queue_name))


def stream_schedules(feed: Feed, queue: str | None = None) -> AsyncIterator[bytes]:
    """Stream the schedules of each queue, or of one, whenever one has fired or changed.

    Server-sent events: ``schedule`` with what ``list_schedules`` returns of a schedule; ``gone``
    when it is no more; ``error`` when the database does not answer.
    """
    return feed.stream(lambda row: queue in (None, row.queue_name))


async def health(client: Client) -> dict[str, Any]:
    """Return whether all is well; to those who may look, also what is not, and what to do.

    The status is 200 whenever the database answers. SQL: ``health``.
    """
    return await client.health()


def _wait(seconds: float) -> float:
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise Misshapen("wait_seconds", f"is not between 0 and {MAX_WAIT_SECONDS:g}")
    return seconds


def _tuple(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


SSE = "text/event-stream"
LONG_POLLS = (claim_task, claim_any)

# Where monitoring looks for them, and not under the prefix.
BARE = ("/metrics", "/health")

_look = partial(Route, LOOK)
_use = partial(Route, USE)
_work = partial(Route, WORK)
_rule = partial(Route, RULE)

_TASK = "/queues/{queue}/tasks/{task_id}"
_RUN = "/queues/{queue}/runs/{run_id}"
_SCHEDULE = "/schedules/{name}"
_WORKFLOW = "/workflow-runs/{workflow_run_id}"

# fmt: off
ROUTES = [
    # queues
    _look("GET", "/queues", Client.list_queues),
    _rule("PUT", "/queues/{queue}", Client.create_queue),
    _rule("PATCH", "/queues/{queue}", Client.set_queue_policy),
    _rule("DELETE", "/queues/{queue}", Client.drop_queue),
    _look("GET", "/queues/{queue}", Client.get_queue_policy),
    _look("GET", "/queues/{queue}/stats", Client.queue_stats),
    _rule("POST", "/queues/{queue}/pause", Client.pause_queue),
    _rule("POST", "/queues/{queue}/resume", Client.resume_queue),
    _look("GET", "/queues/{queue}/actions", Client.list_actions),
    _rule("POST", "/queues/{queue}/cleanup-tasks", Client.cleanup_tasks, "deleted"),
    _rule("POST", "/queues/{queue}/cleanup-events", Client.cleanup_events, "deleted"),
    _rule("POST", "/queues/{queue}/rebuild", Client.rebuild_dispatch, "waiting"),
    _look("GET", "/stats", Client.queue_stats),
    _rule("POST", "/cleanup", Client.cleanup_all_queues),
    _look("GET", "/namespaces", Client.list_namespaces),
    _look("GET", "/workers", Client.list_workers),
    # limits
    _look("GET", "/queues/{queue}/limits", Client.limit_usage),
    _rule("PUT", "/limits", Client.set_limit),
    # tasks
    _use("POST", "/queues/{queue}/tasks", Client.spawn_task),
    _use("POST", "/queues/{queue}/tasks/batch", Client.spawn_tasks),
    _look("GET", "/queues/{queue}/tasks", Client.list_tasks),
    _use("POST", "/queues/{queue}/tasks/cancel", Client.cancel_tasks, "cancelled"),
    _rule("POST", "/queues/{queue}/tasks/requeue", Client.requeue_tasks, "requeued"),
    _look("GET", _TASK, Client.get_task),
    _look("GET", _TASK + "/result", Client.get_task_result),
    _look("GET", _TASK + "/runs", Client.list_runs),
    _look("GET", _TASK + "/history", Client.get_task_history),
    _use("POST", _TASK + "/cancel", Client.cancel_task),
    _use("POST", _TASK + "/retry", Client.retry_task),
    _rule("POST", _TASK + "/requeue", Client.requeue_task, "run_id"),
    # dead letters
    _look("GET", "/queues/{queue}/dead-letters", Client.list_dead_letters),
    _rule("POST", "/queues/{queue}/dead-letters/replay", Client.replay_dead_letters, "replayed"),
    _rule("POST", "/queues/{queue}/dead-letters/purge", Client.purge_dead_letters, "purged"),
    # claims and runs
    _work("POST", "/queues/{queue}/tasks/claim", claim_task),
    _work("POST", "/claim", claim_any),
    _work("GET", "/queues/{queue}/next-due", Client.next_due, "next_due"),
    _work("POST", "/queues/{queue}/runs/complete", Client.complete_runs),
    _work("POST", _RUN + "/complete", Client.complete_run),
    _work("POST", _RUN + "/fail", Client.fail_run),
    _work("POST", _RUN + "/schedule", Client.schedule_run),
    _work("POST", _RUN + "/release", Client.release_run),
    _work("POST", _RUN + "/heartbeat", Client.extend_claim),
    _work("POST", _RUN + "/repeat", Client.repeat_run, "run_id"),
    _work("POST", _RUN + "/wait-for-event", Client.await_event),
    _work("POST", _RUN + "/children", Client.spawn_children),
    _work("POST", _RUN + "/wait-for-children", Client.await_children),
    _work("POST", _RUN + "/compensations", Client.add_compensation),
    # checkpoints
    _look("GET", _TASK + "/checkpoints", Client.get_task_checkpoint_states),
    _look("GET", _TASK + "/checkpoints/{step_name}", Client.get_task_checkpoint_state,
          "state"),
    _work("PUT", _TASK + "/checkpoints/{step_name}", Client.set_task_checkpoint_state),
    # messages and attributes
    _use("POST", _TASK + "/messages", Client.send_message),
    _look("GET", _TASK + "/messages", Client.list_messages),
    _work("POST", _RUN + "/wait-for-message", Client.receive_message),
    _look("GET", _TASK + "/attributes", Client.get_attributes),
    _work("PATCH", _RUN + "/attributes", Client.set_attributes),
    # workflow runs
    _use("POST", "/workflow-runs", Client.create_workflow_run),
    _look("GET", "/workflow-runs", Client.list_workflow_runs),
    _look("GET", _WORKFLOW, Client.get_workflow_run),
    _use("PATCH", _WORKFLOW, Client.update_workflow_run),
    _look("GET", _WORKFLOW + "/tasks", Client.get_workflow_tree),
    _rule("POST", "/cleanup-workflow-runs", Client.cleanup_workflow_runs, "deleted"),
    # handlers in the database
    _look("GET", "/handlers", Client.list_handlers),
    _rule("PUT", "/queues/{queue}/handlers/{task_name}", Client.register_handler),
    _rule("DELETE", "/queues/{queue}/handlers/{task_name}", Client.unregister_handler, "removed"),
    # events
    _use("POST", "/queues/{queue}/events", Client.emit_event),
    _look("GET", "/queues/{queue}/events", Client.list_events),
    # schedules
    _look("GET", "/schedules", Client.list_schedules),
    _look("GET", "/next-fire-time", Client.next_fire_time, "next_fire_time"),
    _rule("POST", _SCHEDULE + "/pause", Client.pause_schedule),
    _rule("POST", _SCHEDULE + "/resume", Client.resume_schedule),
    _rule("POST", _SCHEDULE + "/trigger", Client.trigger_schedule),
    _rule("PUT", _SCHEDULE, Client.create_schedule),
    _rule("PATCH", _SCHEDULE, Client.update_schedule),
    _rule("DELETE", _SCHEDULE, Client.drop_schedule),
    _look("GET", _SCHEDULE, Client.get_schedule),
    # upkeep
    _work("POST", "/ticker", Client.ticker, "claimable"),
    _look("GET", "/status", Client.status),
    _look("GET", "/version", Client.version, "version"),
    _look("GET", "/streams/stats", stream_stats, media=SSE),
    _look("GET", "/streams/schedules", stream_schedules, media=SSE),
    _look("GET", "/metrics", Client.prometheus, media="text/plain; version=0.0.4; charset=utf-8"),
    Route((), "GET", "/health", health),
]
# fmt: on
