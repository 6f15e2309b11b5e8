-- What the schema is, and its version.
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
