"""The workflow of the demo: `teguh worker teguh.demo.orders:tasks --queue orders`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import teguh

if TYPE_CHECKING:
    import psycopg

tasks = teguh.Registry()


@tasks.task("order", max_attempts=5, retry_strategy={"kind": "fixed", "base_seconds": 0.5})
def order(ctx: teguh.TaskContext) -> dict[str, Any]:
    """Charge the card, let the order rest, pack it, wait for the courier, ship it."""
    number, amount = ctx.params["number"], ctx.params["amount"]

    receipt = ctx.transaction("charge", charge, number, amount, ctx.failures == 0)
    ctx.sleep_for(ctx.params.get("rest", 1.5))
    ctx.transaction("pack", pack, number, ctx.params.get("packing", 0.8))
    courier = ctx.await_event(f"courier:{number}", timeout=30)
    parcel = ctx.transaction("ship", ship, number, courier["name"])

    return {"receipt": receipt, "parcel": parcel}


def charge(db: psycopg.Connection, number: int, amount: str, terminal_fails: bool) -> str:
    """Take the money. The first time the card terminal gives up after the ledger was written."""
    write(db, number, "charge", f"took {amount}")
    if terminal_fails:
        raise TimeoutError("the card terminal did not answer")
    return f"receipt-{number}"


def pack(db: psycopg.Connection, number: int, seconds: float) -> None:
    """Pack the order, which takes a while."""
    write(db, number, "pack", "packed one box")
    time.sleep(seconds)


def ship(db: psycopg.Connection, number: int, courier: str) -> str:
    """Hand the parcel over."""
    write(db, number, "ship", f"handed to {courier}")
    return f"parcel-{number}"


def write(db: psycopg.Connection, number: int, step: str, what: str) -> None:
    """Note in the ledger what was done. It counts if and only if the step does."""
    print(step, flush=True)
    db.execute("insert into ledger (number, step, what) values (%s, %s, %s)", (number, step, what))
