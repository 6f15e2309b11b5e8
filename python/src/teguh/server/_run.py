"""Running the service by itself."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import psycopg
import uvicorn

from teguh._sync.client import Client
from teguh.errors import ConfigurationError
from teguh.server._app import Service
from teguh.server._auth import is_loopback, read_tokens

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from types import FrameType

    from teguh.server._app import ServiceOptions
    from teguh.server._auth import Token

# Requests that are under way have so long to end.
_GRACE_SECONDS = 10


class Server(uvicorn.Server):
    """A server that ends what waits before it waits for what is under way."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down, or on a second Ctrl-C at once; the signal has no other effect after that."""
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.end_waits()
        await super().shutdown(sockets)


def allow_connections() -> int:
    """Let this process have as many open connections as it may raise the limit to; return that.

    Shells often start with 1024, and each client that waits takes one.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return sys.maxsize
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return sys.maxsize if most == resource.RLIM_INFINITY else most


def tokens_given(options: Iterable[str], file: str | None) -> list[Token]:
    """Return the tokens of the command line, of a file, and of TEGUH_TOKENS."""
    lines = [*options, *os.environ.get("TEGUH_TOKENS", "").split()]
    if file is not None:
        try:
            lines += Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"no tokens can be read from {file}: {error}") from None
    tokens = read_tokens(lines)
    if file is not None and not tokens:
        raise ConfigurationError(f"{file} holds no token")
    return tokens


def serve(
    dsn: str,
    host: str,
    port: int,
    tokens: list[Token],
    *,
    verbose: bool = False,
    **options: Unpack[ServiceOptions],
) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit status."""
    if not tokens and not is_loopback(host):
        raise ConfigurationError(
            f"without tokens only this machine is served, and {host} is not a loopback address\n"
            "hint: say --tokens FILE, or --host 127.0.0.1"
        )
    with suppress(psycopg.OperationalError), Client.connect(dsn) as client:  # it may come up later
        client.version()
    allow_connections()
    service = Service(dsn, tokens=tokens, **options)
    config = uvicorn.Config(
        service,
        host,
        port,
        log_level="debug" if verbose else "info",
        access_log=verbose,
        server_header=False,
        proxy_headers=False,
        http="h11",  # refuses headers of more than 16 kB, as httptools would not
        ws="none",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    try:
        Server(config, service).run()
    except SystemExit:  # what is wrong has been logged
        return 1
    return 0
