"""What `teguh doctor` asks PostgreSQL's catalogs, one constant each.

``patience`` is in seconds; ``old_xids`` and ``many_rows`` are numbers of transactions and rows.
"""

from __future__ import annotations

# The server

SWITCHED_OFF = """
select s.name, s.setting
from pg_catalog.pg_settings as s
where s.name in ('autovacuum', 'track_counts')
  and s.setting <> 'on'
"""

# Compared with the tables of the template, of which some need no autovacuum.
SLEEPING_TABLES = """
with sleeping as (
  select c.relname
  from pg_catalog.pg_class as c
  cross join lateral pg_catalog.pg_options_to_table(c.reloptions) as o
  where c.relnamespace = to_regnamespace('teguh')
    and o.option_name = 'autovacuum_enabled'
    and not o.option_value::boolean
)

select s.relname
from sleeping as s
where split_part(s.relname, '_', 1) || '_template' not in (select m.relname from sleeping as m)
order by s.relname
"""

# Of which role, null for every; in which database, null for every.
ISOLATION_SETTINGS = """
select split_part(c.setting, '=', 2), r.rolname, d.datname
from pg_catalog.pg_db_role_setting as s
cross join lateral unnest(s.setconfig) as c(setting)
left join pg_catalog.pg_roles as r on r.oid = s.setrole
left join pg_catalog.pg_database as d on d.oid = s.setdatabase
where c.setting ~ '^default_transaction_isolation='
  and c.setting <> 'default_transaction_isolation=read committed'
  and (s.setdatabase = 0 or d.datname = current_database())
order by 2, 3
"""
ISOLATION = "select current_setting('default_transaction_isolation')"

# What keeps vacuum from removing dead rows: kind, name, what more there is to say, since when, and
# how many transactions back.
HOLDERS = """
select 'session', a.pid::text, format('of %%s (%%s)', a.usename, a.state), a.xact_start,
       greatest(age(a.backend_xmin), age(a.backend_xid))
from pg_catalog.pg_stat_activity as a
where a.pid <> pg_backend_pid()
  and coalesce(a.backend_xmin, a.backend_xid) is not null
  and coalesce(a.datname, current_database()) = current_database()
  and a.backend_type <> 'autovacuum worker'
  and (
    a.xact_start < clock_timestamp() - make_interval(secs => %(patience)s)
    or age(a.backend_xmin) > %(old_xids)s
  )
union all
select 'prepared transaction', p.gid, format('of %%s', p.owner), p.prepared, age(p.transaction)
from pg_catalog.pg_prepared_xacts as p
where p.database = current_database()
  and p.prepared < clock_timestamp() - make_interval(secs => %(patience)s)
union all
select 'replication slot', r.slot_name, case when r.active then 'in use' else 'not in use' end,
       null, greatest(age(r.xmin), age(r.catalog_xmin))
from pg_catalog.pg_replication_slots as r
where coalesce(r.xmin, r.catalog_xmin) is not null
  and coalesce(r.database, current_database()) = current_database()
  and (not r.active or greatest(age(r.xmin), age(r.catalog_xmin)) > %(old_xids)s)
order by 1, 4, 2
"""
SEES_SESSIONS = "select pg_has_role('pg_read_all_stats', 'usage')"

MISSES_PGCRYPTO = """
select current_setting('server_version_num')::integer < 180000
  and not exists (select from pg_catalog.pg_extension as e where e.extname = 'pgcrypto')
"""

# The engine

CRON_RUNS = """
select exists (
  select
  from pg_catalog.pg_stat_activity as a
  where 'pg_cron' in (split_part(a.application_name, ' ', 1), split_part(a.backend_type, ' ', 1))
)
"""

# The jobs that this role may see, and why the last run of each failed, if it did.
CRON_JOBS = """
select j.jobname, j.active, case when d.status = 'failed' then d.return_message end
from cron.job as j
left join lateral (
  select d.status, d.return_message
  from cron.job_run_details as d
  where d.jobid = j.jobid
    and d.end_time is not null
  order by d.runid desc
  limit 1
) as d on true
where j.jobname in ('teguh_ticker', 'teguh_maint')
  and j.database = current_database()
order by j.jobname
"""

# What is not as the installation left it, and the first five names.
RIGHTS = """
with things as (
  select n.nspowner, n.nspowner as owner, 'n' as kind, '' as name, n.nspacl as acl
  from pg_catalog.pg_namespace as n
  where n.nspname = 'teguh'
  union all
  select n.nspowner, p.proowner, 'f', p.proname::text,
         coalesce(p.proacl, acldefault('f', p.proowner))
  from pg_catalog.pg_namespace as n
  join pg_catalog.pg_proc as p on p.pronamespace = n.oid
  where n.nspname = 'teguh'
  union all
  select n.nspowner, c.relowner, 'r', c.relname::text, c.relacl
  from pg_catalog.pg_namespace as n
  join pg_catalog.pg_class as c on c.relnamespace = n.oid
  where n.nspname = 'teguh'
    and c.relkind in ('r', 'v', 'S')
),

found as (
  select 'owned' as what, t.name
  from things as t
  where t.owner <> t.nspowner
  union
  select case t.kind when 'n' then 'created' when 'f' then 'executed' else 'granted' end,
         case when t.kind <> 'n' then t.name when a.grantee = 0 then 'public'
           else pg_get_userbyid(a.grantee)::text end
  from things as t
  cross join lateral aclexplode(t.acl) as a
  where a.grantee <> t.owner
    and case t.kind when 'n' then a.privilege_type = 'CREATE' when 'f' then a.grantee = 0 else true
      end
)

select f.what,
       string_agg(f.name, ', ' order by f.name) filter (where f.place <= 5)
       || case when max(f.place) > 5 then format(' and %%s more', max(f.place) - 5) else '' end
from (
  select f.*, row_number() over (partition by f.what order by f.name) as place
  from found as f
) as f
group by f.what
order by f.what
"""
SEES_GRANTS = """
select pg_get_userbyid(n.nspowner), has_table_privilege('teguh.grants', 'select')
from pg_catalog.pg_namespace as n
where n.nspname = 'teguh'
"""
LOST_GRANTS = """
select r.rolname, g.access, g.queue_name
from teguh.grants as g
join pg_catalog.pg_roles as r on r.oid = g.grantee
where not has_schema_privilege(r.oid, 'teguh', 'usage')
order by 1, 2, 3
"""

DEAD_ROWS = """
select s.relname, s.n_dead_tup, s.n_live_tup, greatest(s.last_vacuum, s.last_autovacuum)
from pg_catalog.pg_stat_all_tables as s
where s.schemaname = 'teguh'
  and s.n_dead_tup > %(many_rows)s
  and s.n_dead_tup > s.n_live_tup
order by s.n_dead_tup desc
"""
