"""The peers, in the order of the tables, and those that cannot be had."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from bench.peers.base import Peer

NAMES = (
    "teguh", "teguh_sql", "limit", "absurd", "dbos", "pgtask", "pgqueuer", "graphile", "pgboss",
    "oban", "chancy", "procrastinate", "pgmq",
)  # fmt: skip

NOT_MEASURED = {
    "river": "a Go library; its modules come from no registry that this run uses",
    "oban (Elixir)": "Hex is no registry that this run uses; its Python edition is measured",
}


def load(name: str) -> Peer:
    """Return the adapter of that name."""
    return cast("Peer", import_module(f"bench.peers.{name}").PEER)
