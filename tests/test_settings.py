"""What sessions have set changes nothing: what is made, what is stored, how it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.catalog import definitions
from tests.every_state import fill, go_on

if TYPE_CHECKING:
    from tests.cluster import Cluster

Connection = psycopg.Connection[tuple[Any, ...]]

# Settings that any role may change and that bear upon how SQL is read, planned or written.  Dates
# stay in the format that psycopg can read.
SETTINGS = {
    "array_nulls": "off",
    "bytea_output": "escape",
    "datestyle": "ISO, DMY",
    "enable_indexscan": "off",
    "enable_nestloop": "off",
    "escape_string_warning": "off",
    "extra_float_digits": "-15",
    "from_collapse_limit": "1",
    "intervalstyle": "sql_standard",
    "join_collapse_limit": "1",
    "plan_cache_mode": "force_custom_plan",
    "quote_all_identifiers": "on",
    "search_path": "public",
    "standard_conforming_strings": "off",
    "timezone": "Asia/Kathmandu",
    "transform_null_equals": "on",
    "xmlbinary": "hex",
}


@pytest.fixture
def odd_dsn(conn: Connection, dsn: str) -> str:
    """A database whose sessions begin with these settings."""
    for name, value in SETTINGS.items():
        conn.execute(f"alter database {conn.info.dbname} set {name} = {value!r}".encode())
    return dsn


def test_with_any_settings_a_queue_is_made_alike_and_every_task_comes_to_its_end(
    cluster: Cluster, odd_dsn: str
) -> None:
    fill(odd_dsn, "jobs")
    go_on(odd_dsn, "jobs")
    with cluster.database("teguh") as name:
        plain_dsn = cluster.owner_dsn(name)
        fill(plain_dsn, "jobs")
        with psycopg.connect(odd_dsn) as odd, psycopg.connect(plain_dsn) as plain:
            for setting in SETTINGS:
                ((value,),) = plain.execute(f"show {setting}".encode()).fetchall()
                odd.execute("select set_config(%s, %s, false)", (setting, value))
            assert definitions(odd) == definitions(plain)
