"""Streams of server-sent events: what they show is asked for once, however many look."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from teguh.server._errors import problem_of
from teguh.server._shape import write

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

# A stream without news says so often that it is alive.
_ALIVE_SECONDS = 15.0


class Feed:
    """Rows that are fetched every so many seconds while somebody looks.

    A reader gets an event for each row at first, and later for each that is new or has changed;
    ``gone`` for one that is no more, and ``error`` when they cannot be fetched.
    """

    def __init__(
        self, event: str, key: str, fetch: Callable[[], Awaitable[Sequence[Any]]], seconds: float
    ) -> None:
        self._event = event
        self._key = key
        self._fetch = fetch
        self._seconds = seconds
        self._rows: dict[str, Any] = {}
        self._trouble: bytes | None = None
        self._round = 0
        self._changed = asyncio.Condition()
        self._readers = 0
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def stream(self, wanted: Callable[[Any], bool]) -> AsyncIterator[bytes]:
        """Yield the events of the rows wanted, until the feed is closed."""
        self._readers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        seen: dict[str, Any] = {}
        told = None
        round_ = self._round
        try:
            yield b"retry: 1000\n\n"
            while not self._closing:
                try:
                    async with asyncio.timeout(_ALIVE_SECONDS), self._changed:
                        while self._round == round_:
                            await self._changed.wait()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                round_ = self._round
                if self._trouble:
                    if self._trouble != told:
                        yield _event("error", self._trouble)
                else:
                    for news in self._news(seen, wanted):
                        yield news
                told = self._trouble
        finally:
            self._readers -= 1

    def _news(self, seen: dict[str, Any], wanted: Callable[[Any], bool]) -> Iterator[bytes]:
        rows = {key: row for key, row in self._rows.items() if wanted(row)}
        for key, row in rows.items():
            if seen.get(key) != row:
                yield _event(self._event, write(row))
        for key in seen.keys() - rows.keys():
            yield _event("gone", write({self._key: key}))
        seen.clear()
        seen.update(rows)

    async def _run(self) -> None:
        try:
            while self._readers and not self._closing:
                try:
                    rows = await self._fetch()
                    self._rows = {getattr(row, self._key): row for row in rows}
                    self._trouble = None
                except Exception as error:  # noqa: BLE001 - whatever it is, readers are told
                    self._trouble = write(problem_of(error)[1])
                await self._tell()
                await asyncio.sleep(self._seconds)
        finally:
            self._task = None

    async def _tell(self) -> None:
        self._round += 1
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        """End all streams."""
        self._closing = True
        await self._tell()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
