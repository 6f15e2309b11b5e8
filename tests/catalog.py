"""Everything a database knows about teguh, as text that can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

if TYPE_CHECKING:
    import psycopg

# One row of text per object: its kind, its name, and all that defines it.
DEFINITIONS: LiteralString = """
select 'schema', n.nspname::text, format('%s %s', n.nspacl, obj_description(n.oid, 'pg_namespace'))
from pg_namespace as n
where n.nspname = 'teguh'
union all
select
  'function',
  p.oid::regprocedure::text,
  format(
    '%s %s %s %s', case when p.prokind in ('f', 'p') then pg_get_functiondef(p.oid) end,
    p.proacl, p.proowner::regrole, obj_description(p.oid, 'pg_proc')
  )
from pg_proc as p
where p.pronamespace = 'teguh'::regnamespace
union all
select
  'relation',
  c.relname,
  format(
    '%s %s %s %s %s %s', c.relkind, c.reloptions, c.relacl, c.relowner::regrole,
    obj_description(c.oid, 'pg_class'), case when c.relkind = 'v' then pg_get_viewdef(c.oid) end
  )
from pg_class as c
where c.relnamespace = 'teguh'::regnamespace
union all
select
  'column',
  format('%s.%s', c.relname, a.attname),
  format(
    '%s %s %s %s %s %s',
    (
      -- the place among those that are there: a column that was dropped has left a gap
      select count(*) from pg_attribute as b
      where b.attrelid = a.attrelid and b.attnum between 1 and a.attnum and not b.attisdropped
    ),
    format_type(a.atttypid, a.atttypmod), a.attnotnull,
    a.attstorage, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
  )
from pg_class as c
join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relnamespace = 'teguh'::regnamespace and c.relkind <> 'i'
union all
select 'constraint', k.conname, format('%s %s', k.conrelid::regclass, pg_get_constraintdef(k.oid))
from pg_constraint as k
where k.connamespace = 'teguh'::regnamespace
union all
select 'index', i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
from pg_index as i
join pg_class as c on c.oid = i.indexrelid
where c.relnamespace = 'teguh'::regnamespace
union all
select
  'sequence',
  s.sequencename,
  format(
    '%s %s %s %s %s %s %s %s', s.data_type, s.start_value, s.min_value, s.max_value,
    s.increment_by, s.cycle, s.cache_size, s.sequenceowner
  )
from pg_sequences as s
where s.schemaname = 'teguh'
union all
select 'type', t.typname, format('%s %s', t.typtype, obj_description(t.oid, 'pg_type'))
from pg_type as t
where t.typnamespace = 'teguh'::regnamespace and t.typtype <> 'b'
"""


def definitions(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[tuple[str, str], str]:
    """Return what defines each object of the schema, by kind and name."""
    rows = connection.execute(DEFINITIONS).fetchall()
    return {(str(kind), str(name)): str(text) for kind, name, text in rows}


def contents(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, list[str]]:
    """Return the rows of every table and the value of every sequence."""
    relations = connection.execute(
        "select relname, relkind::text from pg_class"
        " where relnamespace = 'teguh'::regnamespace and relkind in ('r', 'S')"
    ).fetchall()
    found: dict[str, list[str]] = {}
    for name, kind in relations:
        value = "(x.last_value, x.is_called)" if kind == "S" else "x"
        rows = connection.execute(
            sql.SQL("select ({})::text from {} as x order by 1").format(
                sql.SQL(value), sql.Identifier("teguh", str(name))
            )
        ).fetchall()
        found[str(name)] = [str(row[0]) for row in rows]
    return found
