"""Task names and their handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any, TypeVar, Unpack

from teguh._async.context import AsyncTaskContext
from teguh._sync.context import TaskContext
from teguh._types import SpawnOptions
from teguh.errors import ConfigurationError

SyncHandler = Callable[[TaskContext], Any]
AsyncHandler = Callable[[AsyncTaskContext], Awaitable[Any]]

H = TypeVar("H", bound=SyncHandler | AsyncHandler)


class Registry:
    """The tasks a worker knows.

    ::

        tasks = teguh.Registry()

        @tasks.task("send-email")
        def send_email(ctx: teguh.TaskContext) -> None:
            ctx.step("send", mail.send, ctx.params["to"])

    A handler may be sync, and then runs in a thread of its own and is given a
    :class:`teguh.TaskContext`; or async, and then runs on the worker's event loop and is given
    a :class:`teguh.AsyncTaskContext`. What it returns is the task's result.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, tuple[SyncHandler | AsyncHandler, bool]] = {}
        self._options: dict[str, SpawnOptions] = {}

    def task(self, name: str, **options: Unpack[SpawnOptions]) -> Callable[[H], H]:
        """Register the decorated function under a name; ``*`` takes every name not registered.

        The options are the defaults of what a handler of this registry spawns by that name. What
        others spawn has their options and the queue's. Raise :class:`teguh.ConfigurationError` for
        an option that there is not.
        """
        known = SpawnOptions.__annotations__
        for option in options:
            if option not in known:
                raise ConfigurationError(
                    f"task {name!r}: no option {option!r}; there are {', '.join(known)}"
                )
        if name in self._handlers:
            raise ValueError(f"task {name!r} is registered twice")

        def register(handler: H) -> H:
            is_async = iscoroutinefunction(handler) or iscoroutinefunction(
                getattr(handler, "__call__", None)  # noqa: B004 - asks for an async one
            )
            self._handlers[name] = (handler, is_async)
            self._options[name] = options
            return handler

        return register

    def find(self, name: str) -> tuple[SyncHandler | AsyncHandler, bool] | None:
        """Return the handler for a task name and whether it is async; None if there is none."""
        return self._handlers.get(name) or self._handlers.get("*")

    def options(self, name: str) -> SpawnOptions:
        """Return the spawn options registered with a name."""
        return self._options.get(name, {})

    def names(self) -> list[str]:
        """Return the registered names."""
        return sorted(self._handlers)
