"""The worker of the hand-written minimum: one claim and one completion statement per batch.

usage: python -m bench.limit DSN BATCH
"""

from __future__ import annotations

import sys

from bench.common import connect

INSERT = """
with added as (insert into job (task, params) values ('noop', %s) returning id)

select pg_notify('job', '') from added
"""

CLAIM = """
update job
set state = 1, attempt = attempt + 1, lease_until = now() + interval '30 seconds', worker = 'limit'
where id in (
  select id from job
  where state = 0 and run_at <= now()
  order by run_at, id
  limit %s
  for update skip locked
)
returning id, task, params
"""

COMPLETE = """
update job
set state = 2, result = done.result, lease_until = null
from unnest(%s::bigint[], %s::jsonb[]) as done(id, result)
where job.id = done.id and state = 1
"""


def noop(params: object) -> str:
    """Do nothing; return the result as JSON."""
    return "null"


def main() -> None:
    """Work until killed."""
    dsn, batch = sys.argv[1], int(sys.argv[2])
    listener = connect(dsn)
    listener.execute("listen job")
    connection = connect(dsn)
    while True:
        claimed = connection.execute(CLAIM, (batch,)).fetchall()
        if not claimed:
            for _ in listener.notifies(timeout=30, stop_after=1):
                pass
            continue
        results = [noop(params) for _, _, params in claimed]
        connection.execute(COMPLETE, ([row[0] for row in claimed], results))


if __name__ == "__main__":
    main()
