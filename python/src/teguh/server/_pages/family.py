"""The tasks around a task: those it comes from, and those that come from it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from psycopg.errors import InsufficientPrivilege

from teguh.errors import QueueNotFound, TaskNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from teguh._async.client import AsyncClient as Client
    from teguh._types import ListedTask, Task, TaskResult

# A task's children may be in any queue; so many questions are asked for all of them.
_QUESTIONS = 60
_MOST_MEMBERS = 200
_MOST_ANCESTORS = 10

# The queue is another's, or was dropped meanwhile.
_NOT_HERE = (InsufficientPrivilege, QueueNotFound)


@dataclass(frozen=True, slots=True)
class Member:
    """A task around another, `depth` levels below the first of them."""

    depth: int
    queue_name: str
    task_id: UUID
    parent_task_id: UUID | None
    task_name: str
    state: str
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Family:
    """The tasks around a task and itself, each right below its parent; `cut` if there are more."""

    members: list[Member]
    cut: bool


async def family(client: Client, queue: str, task: Task, queues: Sequence[str]) -> Family:
    """Return the ancestors of a task and all below it, as far as a few questions show."""
    names = [queue, *(name for name in queues if name != queue)]
    ancestors: list[Member] = []
    parent_id = task.parent_task_id
    while parent_id and len(ancestors) < _MOST_ANCESTORS:
        found = await find(client, names[:_QUESTIONS], parent_id)
        if found is None or any(found[1].task_id == member.task_id for member in ancestors):
            break
        where, parent = found
        ancestors.insert(0, _member(0, where, parent))
        parent_id = parent.parent_task_id
    depth = len(ancestors)
    top = [replace(member, depth=n) for n, member in enumerate(ancestors)]
    below, cut = await _below(client, names, task, depth)
    return Family([*top, _member(depth, queue, task), *below], cut or parent_id is not None)


async def find(
    client: Client, queues: Sequence[str], task_id: UUID
) -> tuple[str, TaskResult] | None:
    """Return a task and its queue, None if no queue that one may look at has it."""
    for queue in queues:
        try:
            return queue, await client.get_task_result(queue, task_id)
        except (TaskNotFound, *_NOT_HERE):
            continue
    return None


async def _below(
    client: Client, queues: Sequence[str], task: Task, depth: int
) -> tuple[list[Member], bool]:
    """Return the children, right below each its own, as long as there are questions left."""
    children: dict[UUID, list[Member]] = {}
    asked = found = 0
    level = [task.task_id]
    cut = False
    while level and not cut:
        depth += 1
        following: list[UUID] = []
        for parent_id in level:
            if asked + len(queues) > _QUESTIONS and asked:
                cut = True
                break
            born: list[Member] = []
            for queue in queues[:_QUESTIONS]:
                asked += 1
                with suppress(*_NOT_HERE):
                    rows = await client.list_tasks(
                        queue, parent_task_id=parent_id, limit=_MOST_MEMBERS + 1
                    )
                    born += [_member(depth, queue, row) for row in rows]
            born.sort(key=lambda member: (member.created_at, member.task_id))
            room = _MOST_MEMBERS - found
            cut = cut or len(born) > room or len(queues) > _QUESTIONS
            children[parent_id] = born[:room]
            found += len(children[parent_id])
            following += [member.task_id for member in children[parent_id]]
        level = [task_id for task_id in following if task_id not in children]
    ordered: list[Member] = []
    stack = list(reversed(children.get(task.task_id, [])))
    while stack:
        member = stack.pop()
        ordered.append(member)
        stack += reversed(children.pop(member.task_id, []))
    return ordered, cut


def _member(depth: int, queue: str, task: TaskResult | ListedTask) -> Member:
    return Member(
        depth,
        queue,
        task.task_id,
        task.parent_task_id,
        task.task_name,
        task.state,
        task.created_at,
        task.finished_at,
    )
