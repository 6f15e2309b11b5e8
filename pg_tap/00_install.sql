-- An installation is nobody's by default.
begin;
select plan(4);

-- Given an installed schema
-- Then
select ok(
  not has_schema_privilege('public', 'teguh', 'usage'),
  'the schema is not open to everybody'
);

select is_empty(
  $$
    select p.oid::regprocedure
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and has_function_privilege('public', p.oid, 'execute')
  $$,
  'PUBLIC may execute no function: not drop_queue(), not any other'
);

select is_empty(
  $$
    select c.oid::regclass
    from pg_class as c
    where c.relnamespace = 'teguh'::regnamespace
      and c.relkind in ('r', 'v')
      and has_table_privilege('public', c.oid, 'select, insert, update, delete, truncate')
  $$,
  'PUBLIC may read and write no table'
);

select is_empty(
  $$
    select e.extname
    from pg_extension as e
    where e.extname not in ('plpgsql', 'pgcrypto', 'pgtap', 'pg_cron', 'plpgsql_check', 'teguh')
  $$,
  'no other extension is needed'
);

select * from finish();
rollback;
