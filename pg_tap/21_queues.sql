-- Queues are created, changed, listed and dropped by name, and never meet.
begin;
select plan(53);

-- Given names that a queue may have
-- Then
select is(teguh.validate_queue_name(n.name), n.name, format('a queue may be called %s', n.why))
from (
  values
    ('a', 'a single letter'), ('orders', 'orders'), ('a1_b2_', 'with digits and underscores'),
    (repeat('q', 55), 'by 55 letters'), ('select', 'by a keyword'), ('pg_x', 'pg_x')
) as n(name, why);

-- Given names that a queue may not have
-- Then
select throws_ok(
  format('select teguh.validate_queue_name(%L)', n.name), '42602', null,
  format('a queue may not be called %s', n.why)
)
from (
  values
    (null, 'null'), ('', 'nothing'), ('   ', 'by spaces'), ('Orders', 'with a capital'),
    ('1a', 'with a digit first'), ('_a', 'with an underscore first'), ('a-b', 'with a hyphen'),
    ('a b', 'with a space'), ('a.b', 'with a point'), ('größe', 'with an umlaut'),
    ('a"; drop table teguh.queues; --', 'by an injection'), (repeat('q', 56), 'by 56 letters'),
    (E'a\n', 'with a line break')
) as n(name, why);

select throws_ok(
  $$ select teguh.create_queue('template') $$,
  '42939', null,
  'the name template is reserved'
);

select throws_ok(
  $$ select teguh.create_queue('a"; drop table teguh.queues; --') $$,
  '42602', null,
  'create_queue checks the name'
);

-- When a queue is created
select lives_ok(
  $$ select teguh.create_queue('jobs', '{"cleanup_ttl": 60, "notify": "off"}') $$,
  'a queue can be created with a policy'
);

-- Then
select results_eq(
  $$ select q.queue_name, q.policy from teguh.list_queues() as q $$,
  $$ values ('jobs', '{"cleanup_ttl": 60, "notify": "off"}'::jsonb) $$,
  'it is listed with its policy'
);

select is(
  array(
    select replace(c.relname, '_jobs', '')::text
    from pg_class as c
    where c.relnamespace = 'teguh'::regnamespace and c.relname ~ '^[a-z0-9]+_jobs$'
    order by 1
  ),
  array(
    select replace(c.relname, '_template', '')::text
    from pg_class as c
    where c.relnamespace = 'teguh'::regnamespace and c.relname ~ '^[a-z0-9]+_template$'
    order by 1
  ),
  'it has every table, index and sequence of the template'
);

select is(
  array(
    select replace(p.proname, '_jobs', '')::text
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname ~ '_jobs$'
    order by 1
  ),
  array(
    select replace(p.proname, '_template', '')::text
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname ~ '_template$'
    order by 1
  ),
  'it has every function of the template'
);

select is(
  (select c.reloptions from pg_class as c where c.oid = 'teguh.t_jobs'::regclass),
  (select c.reloptions from pg_class as c where c.oid = 'teguh.t_template'::regclass),
  'its tables have the storage options of the template'
);

select is_empty(
  $$
    select p.oid::regprocedure
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and p.proname ~ '_jobs$'
      and has_function_privilege('public', p.oid, 'execute')
  $$,
  'PUBLIC may execute no function of it'
);

-- When it is created again
select teguh.spawn_task('jobs', 'a', '{}');
select lives_ok(
  $$ select teguh.create_queue('jobs') $$,
  'creating a queue that exists is no error'
);

-- Then
select is(
  (select count(*) from teguh.t_jobs), 1::bigint,
  'its tasks stay'
);

select is(
  (select q.policy from teguh.list_queues() as q), '{"cleanup_ttl": 60, "notify": "off"}',
  'its policy stays'
);

-- When it is created again with another policy
select teguh.create_queue('jobs', '{"notify": "always", "cleanup_limit": 5}');

-- Then
select is(
  (select q.policy from teguh.list_queues() as q),
  '{"cleanup_ttl": 60, "cleanup_limit": 5, "notify": "always"}',
  'the keys given are set, the others stay'
);

select lives_ok(
  $$ select teguh.create_queue('jobs', null) $$,
  'a null policy is an empty one'
);

-- Given defaults for spawns in the policy
select teguh.create_queue(
  'careful',
  '{"default_max_attempts": 3, "default_retry_strategy": {"kind": "fixed", "base_seconds": 7}}'
);
select teguh.spawn_task('careful', 'plain', '{}');
select teguh.spawn_task(
  'careful', 'own', '{}', '{"max_attempts": 9, "retry_strategy": {"kind": "none"}}'
);
select teguh.spawn_task('careful', 'unlimited', '{}', '{"max_attempts": null}');
select teguh.spawn_tasks('careful', '[{"task_name": "many"}]');

-- Then
select is(
  array(
    select format('%s %s %s', t.task_name, t.max_attempts, t.retry_strategy ->> 'kind')
    from teguh.t_careful as t
    order by t.task_name
  ),
  '{"many 3 fixed","own 9 none","plain 3 fixed","unlimited  fixed"}',
  'default_max_attempts and default_retry_strategy hold where a spawn says nothing'
);

-- When defaults are taken back
select teguh.create_queue(
  'careful', '{"default_max_attempts": null, "default_retry_strategy": null}'
);
select teguh.spawn_task('careful', 'later', '{}');

-- Then
select results_eq(
  $$
    select t.max_attempts, t.retry_strategy
    from teguh.t_careful as t
    where t.task_name = 'later'
  $$,
  $$ values (null::integer, null::jsonb) $$,
  'a policy key is taken back by null'
);

-- Given queues whose names look like tables, functions, or the template of each other
create temporary table name (place serial, name text);
insert into name (name)
select unnest(
  '{q,q_d,p0,task,key,x,x_template,x_x,q_template,p0_q,take,id,delay,queue,_call}'::text[]
);
delete from name as n where n.name = '_call';
select teguh.create_queue(n.name) from name as n order by n.place;
select teguh.spawn_task(n.name, 'for ' || n.name, '{}') from name as n;

-- Then
select is(
  array(
    select c.task_name
    from name as n
    cross join lateral teguh.claim_task(n.name, 'w', 30, 5) as c
    order by n.place
  ),
  array(select 'for ' || n.name from name as n order by n.place),
  'a queue''s tables cannot collide with those of another: each has its own task'
);

-- When some are dropped
select teguh.drop_queue(n.name)
from unnest('{q,x,p0,q_template}'::text[]) as n(name);

-- Then
select is(
  array(
    select q.queue_name
    from teguh.list_queues() as q
    where q.queue_name in (select name from name)
  ),
  array(
    select n.name from name as n where n.name <> all ('{q,x,p0,q_template}') order by n.name
  ),
  'a queue is dropped by name'
);

select lives_ok(
  format($$ select teguh.spawn_task(%L, 'again', '{}') $$, n.name),
  format('queue %s lives on when queues of like names are dropped', n.name)
)
from name as n
where n.name in ('q_d', 'x_x', 'x_template', 'p0_q');

select is_empty(
  $$
    select c.relname
    from pg_class as c
    where c.relnamespace = 'teguh'::regnamespace
      and c.relname ~ '^[a-z0-9]+_(q|x|p0|q_template)$'
  $$,
  'nothing of a dropped queue is left'
);

-- Given a queue with rows in every state
select teguh.create_queue('full');
select teguh.spawn_task('full', 't', '{}', '{"max_attempts": 1, "cancellation": {"max_delay": 9}}')
from generate_series(1, 6);
select teguh.spawn_task('full', 'd', '{}', '{"delay_seconds": 60}');
create temporary table run as
select row_number() over () as n, c.* from teguh.claim_task('full', 'w', 60, 5) as c;
select teguh.complete_run('full', (select run_id from run where n = 1));
select teguh.fail_run('full', (select run_id from run where n = 2), '{}');
select teguh.cancel_task('full', (select task_id from run where n = 3));
select teguh.await_event(
  'full', (select task_id from run where n = 4), (select run_id from run where n = 4), 's', 'e'
);
select teguh.emit_event('full', 'other');

-- Then
select is(
  array(select distinct t.state from teguh.t_full as t order by 1),
  '{cancelled,completed,failed,pending,running,sleeping}',
  'a queue can have tasks in every state'
);

select lives_ok(
  $$ select teguh.drop_queue('full') $$,
  'drop_queue works with rows in every state'
);

select throws_ok(
  $$ select teguh.drop_queue('full') $$,
  'TG001', 'queue "full" does not exist',
  'a queue cannot be dropped twice'
);

select lives_ok(
  $$ select teguh.create_queue('full') $$,
  'a queue can be created again after it was dropped'
);

select is(
  (select count(*) from teguh.t_full), 0::bigint,
  'it is empty then'
);

-- Given no such queue
-- Then
select throws_ok(
  format('select * from teguh.%s', c.call), 'TG001', 'queue "nowhere" does not exist',
  format('an unknown queue gives TG001 with the queue''s name: %s', split_part(c.call, '(', 1))
)
from (
  values
    ($$spawn_task('nowhere', 'a', '{}')$$),
    ($$claim_task('nowhere', 'w')$$),
    ($$ticker('nowhere')$$),
    ($$next_due('nowhere')$$)
) as c(call);

-- Given two queues of the longest names that differ in the last letter
-- Then
select lives_ok(
  $$
    select teguh.create_queue(repeat('z', 54) || 'a');
    select teguh.create_queue(repeat('z', 54) || 'b');
    select teguh.spawn_task(repeat('z', 54) || 'b', 'a', '{}');
  $$,
  'two queues whose names differ in the 55th letter do not meet'
);

-- Given a statement for every queue, as upgrade scripts have them
select teguh._each_queue('alter table teguh.e_template add column note_template text');

-- Then
select is(
  (
    select count(*)
    from pg_attribute as a
    where a.attname like 'note\_%' and a.attrelid::regclass::text ~ '^teguh.e_'
  ),
  (select count(*) + 1 from teguh.list_queues()),
  'an upgrade reaches the template and every queue'
);

-- Given another version, come while a call waited
create or replace function teguh.version()
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select '99.0.0'::text;
$$;

-- Then
select throws_ok(
  $$ select * from teguh.spawn_task('jobs', 'late', '{}') $$,
  '40001', null,
  'a call that was overtaken by an upgrade is to be tried again'
);

select * from finish();
rollback;
