"""An order in Python whose money moves inside the database.

    python examples/mixed.py postgresql://...

in a database with teguh; without an argument TEGUH_DSN says which. The workflow is Python; its
payment is a child task in a queue of its own, whose handler is an SQL function. There the booking
and the completion are one transaction without any step: a payment is booked exactly once, whoever
dies. It makes a schema and two queues `mixed_orders` and `mixed_payments`, anew each time.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import teguh

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg

ORDERS, PAYMENTS = "mixed_orders", "mixed_payments"

SETUP = """
drop schema if exists mixed_story cascade;
create schema mixed_story;
create table mixed_story.ledger (number integer not null, step text not null, what text not null);
create table mixed_story.accounts (name text primary key, balance numeric not null);
insert into mixed_story.accounts values ('customer', 100), ('shop', 0);

create function mixed_story.book(job teguh.job) returns jsonb
language plpgsql as $$
begin
  update mixed_story.accounts as a
  set balance = a.balance
    + case a.name when 'shop' then 1 else -1 end * (job.params ->> 'amount')::numeric;
  insert into mixed_story.ledger
  values ((job.params ->> 'number')::integer, 'charge', 'booked ' || (job.params ->> 'amount'));
  if job.failures = 0 then
    raise exception 'the bank did not answer';  -- takes the booking back; the retry books it
  end if;
  return jsonb_build_object('receipt', job.params -> 'number');
end $$;
"""

tasks = teguh.Registry()


@tasks.task("order")
def order(ctx: teguh.TaskContext) -> dict[str, Any]:
    """Have the order paid, let it rest, await the courier, ship it."""
    payment: teguh.FollowUp = {
        "queue_name": PAYMENTS,
        "task_name": "book",
        "params": ctx.params,
        "options": {"max_attempts": 5, "retry_strategy": {"kind": "none"}},
    }
    ctx.spawn_children([payment], step="payment")
    (paid,) = ctx.await_children("payment")
    ctx.sleep_for(0.1)
    courier = ctx.await_event(f"courier:{ctx.params['number']}")
    ctx.transaction("ship", ship, ctx.params["number"], courier["name"])
    return {"paid": paid.result, "courier": courier["name"]}


def ship(db: psycopg.Connection, number: int, courier: str) -> None:
    """Hand the parcel over."""
    db.execute(
        "insert into mixed_story.ledger values (%s, 'ship', %s)", (number, f"handed to {courier}")
    )


def set_up(client: teguh.Client) -> None:
    """Make schema, queues and handler anew."""
    for queue in (ORDERS, PAYMENTS):
        if queue in [one.queue_name for one in client.list_queues()]:
            client.drop_queue(queue)
        client.create_queue(queue)
    client.connection.execute(SETUP)
    client.register_handler(PAYMENTS, "book", "mixed_story.book")


def finished(client: teguh.Client, task_id: UUID) -> teguh.TaskResult:
    """Wait for an order."""
    while (result := client.get_task_result(ORDERS, task_id)).finished_at is None:
        time.sleep(0.05)
    return result


def main(dsn: str) -> int:
    """Tell the story; return 0 if every step happened exactly once."""
    with teguh.Client.connect(dsn) as client:
        set_up(client)
        worker = teguh.Worker(dsn, ORDERS, tasks)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            task = client.spawn_task(
                ORDERS, "order", {"number": 42, "amount": "30.00"}, max_attempts=5
            )
            print("order 42 is taken up by a worker in Python, and sends for its payment")
            client.work(PAYMENTS, limit=2, max_seconds=30, poll_seconds=0.05)
            print("the database has booked it; its first try was taken back")
            client.emit_event(ORDERS, "courier:42", {"name": "Ayu"})
            result = finished(client, task.task_id)
        finally:
            worker.stop()
            thread.join()
        print(f"the order is {result.state}: {result.completed_payload}")
        ledger = client.connection.execute("select step, what from mixed_story.ledger").fetchall()
        accounts = client.connection.execute("select * from mixed_story.accounts").fetchall()
    for row in [*ledger, *accounts]:
        print(*row, sep=": ")
    return int([step for step, _ in ledger] != ["charge", "ship"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TEGUH_DSN", "")))
