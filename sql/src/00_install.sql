begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
set local check_function_bodies = off;

-- Refuse to run over another version: tables change only through sql/upgrade.
do $$
declare
  v_found text;
begin
  if to_regprocedure('teguh.version()') is not null then
    execute 'select teguh.version()' into v_found;
    if v_found <> '@TEGUH_VERSION@' then
      raise exception 'teguh % is installed, this file is version @TEGUH_VERSION@', v_found
        using
          errcode = 'TG010',
          detail = 'Re-running the file refreshes one version and never changes tables.',
          hint = format(
            'Run sql/upgrade/teguh--%s--@TEGUH_VERSION@.sql, or install into another database.',
            v_found
          );
    end if;
  end if;
end;
$$;

create schema if not exists teguh;

comment on schema teguh is
  'Durable execution as SQL functions: tasks, retries, steps, sleeps, events. '
  'One set of tables and functions per queue, stamped from the queue "template".';

-- The version of the installed schema.
create or replace function teguh.version()
  returns text
  language sql
  immutable
  parallel safe
as $$
  select '@TEGUH_VERSION@'::pg_catalog.text;
$$;

comment on function teguh.version() is
  'The version of the installed schema.';
