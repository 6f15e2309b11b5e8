-- A queue's tables are such that the hot path leaves nothing to vacuum.
begin;
select plan(17);

-- Given the tables of the template, as queues have them
create temporary table relation as
select c.oid, c.relname::text as name, c.relkind::text as kind, c.reloptions
from pg_class as c
where c.relnamespace = 'teguh'::regnamespace
  and c.relname ~ '^[a-z0-9]+_template$';

-- Then
select is(
  array(
    select replace(r.name, '_template', '')
    from relation as r
    where r.kind = 'r'
    order by r.name collate "C"
  ),
  '{a,c,d,e,f,g,h,j,k0,k1,l,m,n0,n1,n,p0,p1,r,t,u,v,w}',
  'a queue has twenty-two tables'
);

select is_empty(
  $$
    select s.sequencename
    from pg_sequences as s
    where s.schemaname = 'teguh' and s.sequencename like '%_template' and s.last_value is null
  $$,
  'every register of a queue has a value'
);

select is(
  array(
    select distinct a.attname::text
    from pg_index as i
    join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = any (i.indkey)
    where i.indrelid = 'teguh.t_template'::regclass
    order by 1
  ),
  '{correlation_id,idempotency_key,parent_task_id,task_id,task_name,workflow_run_id}',
  'no column of a task that changes has an index, so that every update is HOT'
);

select is(
  (
    select o.option_value::integer
    from relation as r
    cross join pg_options_to_table(r.reloptions) as o
    where r.name = 't_template' and o.option_name = 'fillfactor'
  ),
  25,
  'a task''s page has room for the versions of its life'
);

select is_empty(
  $$
    select r.name
    from relation as r
    where r.kind = 'r'
      and r.name ~ '^[pk][01]_'
      and not 'autovacuum_enabled=off' = any (r.reloptions)
  $$,
  'the append-only tables are not vacuumed'
);

select is(
  array(
    select a.attname::text
    from pg_attribute as a
    where a.attrelid = 'teguh.p0_template'::regclass and a.attnum > 0
    order by a.attnum
  ),
  array(
    select a.attname::text
    from pg_attribute as a
    where a.attrelid = 'teguh.p1_template'::regclass and a.attnum > 0
    order by a.attnum
  ),
  'both segments have the same columns'
);

select is(
  array(
    select replace(pg_get_indexdef(i.indexrelid), '0', '1')
    from pg_index as i
    where i.indrelid in ('teguh.p0_template'::regclass, 'teguh.k0_template'::regclass)
    order by 1
  ),
  array(
    select pg_get_indexdef(i.indexrelid)
    from pg_index as i
    where i.indrelid in ('teguh.p1_template'::regclass, 'teguh.k1_template'::regclass)
    order by 1
  ),
  'both segments have the same indexes'
);

select is_empty(
  $$ select r.name from relation as r where r.kind = 'r' and obj_description(r.oid) is null $$,
  'every table says what it holds'
);

select is_empty(
  $$
    select k.conrelid::regclass
    from pg_constraint as k
    join relation as r on r.oid = k.conrelid
    where k.contype = 'f'
  $$,
  'there is no foreign key to lock rows behind one''s back'
);

select is_empty(
  $$
    select a.attrelid::regclass, a.attname
    from pg_attribute as a
    join relation as r on r.oid = a.attrelid and r.kind = 'r'
    where a.attnum > 0
      and (a.attname ~ '_id$' and a.attname <> 'correlation_id' and a.atttypid <> 'uuid'::regtype
        or a.attname in ('n', 'seq', 'woke') and a.atttypid <> 'bigint'::regtype
        or a.attname = 'xid' and a.atttypid <> 'xid8'::regtype)
  $$,
  'no id can overflow: it is a bigint, an xid8 or a uuid'
);

-- Given a task in a table
-- Then
select is_empty(
  $$
    select c.conname
    from pg_constraint as c
    where c.contype = 'c' and c.conrelid::regclass::text ~ '^teguh[.].*_template$'
  $$,
  'no table is written to at the cost of a check'
);

select throws_ok(
  $$
    insert into teguh.t_template (
      task_id, run_id, turn, state, created_at, task_name, params, idempotency_key
    )
    select gen_random_uuid(), gen_random_uuid(), 1, 'pending', now(), 'a', '{}', 'once'
    from generate_series(1, 2)
  $$,
  '23505', null,
  'an idempotency key belongs to one task'
);

-- Given a dispatch row
insert into teguh.p0_template (seq, turn, kind, task_id)
values (1, 1, 'r', gen_random_uuid());

-- Then
select is(
  (select p.xid from teguh.p0_template as p), pg_current_xact_id(),
  'a dispatch row bears the id of its transaction'
);

-- Given the template itself
-- Then
select is_empty(
  $$ select q.queue_name from teguh.list_queues() as q where q.queue_name = 'template' $$,
  'the template is no queue that anybody sees'
);

select throws_ok(
  $$ select teguh.spawn_task('template', 'a', '{}') $$,
  'TG001', null,
  'the template takes no task'
);

select is(
  pg_sequence_last_value('teguh.ring_template'::regclass), 0::bigint,
  'the first segment in use is number 0'
);

select col_is_pk(
  'teguh', 'queues', 'queue_name',
  'a queue has its name to itself'
);

select * from finish();
rollback;
