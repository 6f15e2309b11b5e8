"""What the tests of the models share: how long they go on, and the engine that they call."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
from hypothesis import HealthCheck, Phase, settings
from psycopg.rows import DictRow, dict_row

if TYPE_CHECKING:
    from tests.cluster import Cluster

STEPS = int(os.environ.get("TEGUH_MODEL_STEPS") or 0)
SETTINGS = settings(
    derandomize=not STEPS,
    max_examples=200 if STEPS else 30,
    stateful_step_count=STEPS or 40,
    deadline=None,
    database=None,
    # of a mutant nobody wants to know the fewest draws that show it
    phases=(Phase.generate,) if os.environ.get("TEGUH_SQL") else (Phase.generate, Phase.shrink),
    print_blob=bool(STEPS),
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

START = int(datetime(2031, 5, 1, 12, tzinfo=UTC).timestamp())

# Ids decide about order and jitter: the same calls must come to the same.
PREDICTABLE = """
    create sequence public.drawn;
    do $$
    begin
      execute replace(
        pg_get_functiondef('teguh._task_id'::regproc),
        'pg_catalog.gen_random_uuid()',
        'overlay(md5(nextval(''public.drawn'')::text) placing ''8'' from 17)::uuid'
      );
    end;
    $$;
"""


class Engine:
    """The engine, in a database of its own: a copy of a template of the cluster, or of another."""

    def __init__(self, cluster: Cluster, template: str | None = None) -> None:
        self.stack = ExitStack()
        database = self.stack.enter_context(
            cluster.copy(template) if template else cluster.database("teguh")
        )
        dsn = cluster.owner_dsn(database)
        self.connection = self.stack.enter_context(
            # to compile queries takes longer than they do
            psycopg.connect(dsn, autocommit=True, row_factory=dict_row, options="-c jit=off")
        )
        self.connection.execute(PREDICTABLE)

    def call(self, function: str, *values: Any) -> list[DictRow]:
        """Call a function; return its rows."""
        marks = ", ".join("%s::jsonb" if isinstance(v, dict | list) else "%s" for v in values)
        given = [json.dumps(v) if isinstance(v, dict | list) else v for v in values]
        query = f"select * from teguh.{function}({marks})"
        return self.connection.execute(query.encode(), given).fetchall()

    def set_clock(self, now: float) -> None:
        """Stop the clock at a moment."""
        moment = datetime.fromtimestamp(now, UTC).isoformat()
        self.connection.execute("select set_config('teguh.fake_now', %s, false)", [moment])
