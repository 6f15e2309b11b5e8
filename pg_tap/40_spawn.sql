-- A spawn makes a task of what it was given, once per idempotency key, in the caller's transaction.
begin;
select plan(95);

-- Given a queue
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('q');

-- When a task is spawned with every option
create temporary table spawned as
select * from teguh.spawn_task('q', 'bill', '{"order": 7}', '{
  "headers": {"traceparent": "00-4bf9-01", "tracestate": "a=1", "baggage": "b=2"},
  "retry_strategy": {
    "kind": "exponential", "base_seconds": 1.5, "factor": 3, "max_seconds": 60, "jitter": 0.5
  },
  "max_attempts": 5,
  "cancellation": {"max_delay": 60, "max_duration": 600},
  "idempotency_key": "order 7",
  "idempotency_mismatch": "error",
  "delay_seconds": 0.5
}');

-- Then
select results_eq(
  $$ select s.attempt, s.created from spawned as s $$,
  $$ values (1, true) $$,
  'a spawn tells that it has created the task'
);

select is(
  (select s.task_id <> s.run_id from spawned as s), true,
  'a task and its first run have ids of their own'
);

select results_eq(
  $$
    select t.task_id, t.run_id, t.state, t.task_name, t.params, t.headers, t.max_attempts,
      t.retry_strategy,
      t.cancellation,
      t.idempotency_key,
      t.created_at,
      t.available_at,
      t.deadline_at
    from teguh.t_q as t
  $$,
  $$
    select s.task_id, s.run_id, 'sleeping', 'bill', '{"order": 7}'::jsonb,
      '{"traceparent": "00-4bf9-01", "tracestate": "a=1", "baggage": "b=2"}'::jsonb, 5,
      '{
        "kind": "exponential", "base_seconds": 1.5, "factor": 3, "max_seconds": 60, "jitter": 0.5
      }'::jsonb,
      '{"max_delay": 60, "max_duration": 600}'::jsonb, 'order 7',
      '2031-05-01 12:00:00+00'::timestamptz, '2031-05-01 12:00:00.5+00'::timestamptz,
      '2031-05-01 12:01:00.5+00'::timestamptz
    from spawned as s
  $$,
  'every option is kept with the task'
);

-- When it is spawned again
-- Then
select results_eq(
  $$
    select a.task_id, a.run_id, a.attempt, a.created
    from teguh.spawn_task('q', 'bill', '{"order": 7}', '{"idempotency_key": "order 7"}') as a
  $$,
  $$ select s.task_id, s.run_id, 1, false from spawned as s $$,
  'a second spawn with the key returns the existing task and created = false'
);

select throws_ok(
  $$ select teguh.spawn_task('q', 'bill', '{"order": 8}', '{"idempotency_key": "order 7"}') $$,
  'TG006', null,
  'the same key with other params raises'
);

select throws_ok(
  $$ select teguh.spawn_task('q', 'send', '{"order": 7}', '{"idempotency_key": "order 7"}') $$,
  'TG006', null,
  'the same key with another name raises'
);

select is(
  (
    select a.task_id
    from teguh.spawn_task(
      'q', 'send', '1', '{"idempotency_key": "order 7", "idempotency_mismatch": "return"}'
    ) as a
  ),
  (select s.task_id from spawned as s),
  'idempotency_mismatch return gives the existing task'
);

select is(
  (
    select a.created
    from teguh.spawn_task('q', 'bill', '{"order": 7}', '{"idempotency_key": "order 8"}') as a
  ),
  true,
  'another key makes another task'
);

-- When the task has ended
set teguh.fake_now = '2031-05-01 12:00:01+00';
select teguh.claim_task('q', 'w', 30, 5);
select teguh.complete_run('q', s.run_id) from spawned as s;

-- Then
select is(
  (
    select a.task_id
    from teguh.spawn_task('q', 'bill', '{"order": 7}', '{"idempotency_key": "order 7"}') as a
  ),
  (select s.task_id from spawned as s),
  'a key belongs to its task after the end as well'
);

select teguh.create_queue('r');
select teguh.spawn_task(
  'r', 'a', '{}', '{"idempotency_key": "k", "retry_strategy": {"kind": "none"}}'
);
select teguh.claim_task('r', 'w');
select lives_ok(
  $$ select teguh.fail_run('r', t.run_id, '"no"') from teguh.t_r as t $$,
  'a key does not conflict with its own retry'
);

-- Given nulls
-- Then
select is(
  (
    select t.params
    from teguh.t_q as t
    join teguh.spawn_task('q', 'null', null) as s using (task_id)
  ),
  null,
  'a spawn is not seen by its own statement'
);

select is(
  (select t.params from teguh.t_q as t where t.task_name = 'null'), 'null',
  'null params are JSON null'
);

select results_eq(
  $$
    select t.headers, t.retry_strategy, t.max_attempts, t.cancellation, t.idempotency_key
    from teguh.t_q as t
    where t.task_name = 'null'
  $$,
  $$ values (null::jsonb, null::jsonb, null::integer, null::jsonb, null::text) $$,
  'without options a task has none: its attempts are unlimited'
);

-- Given times to start
select teguh.spawn_task('q', n.name, '{}', n.options::jsonb)
from (
  values
    ('past', '{"available_at": "2020-01-01T00:00:00Z"}'),
    ('zone', '{"available_at": "2031-05-01T15:00:00+02:00"}'),
    ('zero', '{"delay_seconds": 0}'),
    ('some', '{"delay_seconds": 90}')
) as n(name, options);

select is(
  (
    select t.state || ' ' || (t.available_at at time zone 'UTC')::text
    from teguh.t_q as t
    where t.task_name = n.name
  ),
  n.wanted,
  n.why
)
from (
  values
    ('past', 'pending 2020-01-01 00:00:00', 'a start in the past is at once'),
    ('zone', 'sleeping 2031-05-01 13:00:00', 'a start has its offset'),
    ('zero', 'pending 2031-05-01 12:00:01', 'a delay of zero is none'),
    ('some', 'sleeping 2031-05-01 12:01:31', 'a delay counts from now')
) as n(name, wanted, why);

-- Given many tasks
select teguh.create_queue('m');
create temporary table many as
select row_number() over () as place, s.*
from teguh.spawn_tasks('m', '[
  {"task_name": "d", "options": {"idempotency_key": "z"}},
  {"task_name": "a", "params": {"n": 1}},
  {"task_name": "c", "options": {"delay_seconds": 60}},
  {"task_name": "b", "params": null, "options": null},
  {"task_name": "d", "options": {"idempotency_key": "z"}},
  {"task_name": "e", "options": {"idempotency_key": "y"}}
]') as s;

-- Then
select is(
  array(select t.task_name from many as m join teguh.t_m as t using (task_id) order by m.place),
  '{d,a,c,b,d,e}',
  'spawn_tasks returns its rows in the order of its input'
);

select is(
  array(select m.created from many as m order by m.place), '{t,t,t,t,f,t}',
  'of two tasks with one key in one call the first is created'
);

select is(
  (select count(distinct m.task_id) from many as m where m.place in (1, 5)), 1::bigint,
  'both get that task'
);

select is(
  (select t.params from teguh.t_m as t where t.task_name = 'b'), 'null',
  'null params in an array are JSON null'
);

select is(
  array(select s.created from teguh.spawn_tasks('m', '[
    {"task_name": "new"}, {"task_name": "e", "options": {"idempotency_key": "y"}}
  ]') as s),
  '{t,f}',
  'spawn_tasks may meet tasks that exist'
);

select is_empty(
  $$ select * from teguh.spawn_tasks('m', '[]') $$,
  'an empty array spawns nothing'
);

-- When one of many is not good
create temporary table before as select count(*) as n from teguh.t_m;

-- Then
select throws_ok(
  format($$ select teguh.spawn_tasks('m', %L) $$, n.tasks), n.code, null, n.why
)
from (
  values
    ('[{"task_name": "x"}, {"task_name": ""}]', 'TG005', 'a blank name among many is refused'),
    ('[{"task_name": "x"}, {"name": "y"}]', 'TG005', 'an unknown key among many is refused'),
    ('[{"task_name": "x"}, {"params": {}}]', 'TG005',
     'a name that is missing among many is refused'),
    ('[{"task_name": "x"}, {"task_name": 5}]', 'TG005', 'a name that is no string is refused'),
    ('[{"task_name": "x"}, {"task_name": "y", "options": {"max_attempts": 0}}]', 'TG005',
     'a bad option among many is refused'),
    ('[{"task_name": "x"}, {"task_name": "y", "options": []}]', 'TG005',
     'options that are no object are refused'),
    ('[{"task_name": "x"}, 5]', 'TG005', 'what is no task is refused'),
    ('[{"task_name": "x"}, {"task_name": "other", "options": {"idempotency_key": "y"}}]', 'TG006',
     'a key of another task among many is refused'),
    ('{"task_name": "x"}', 'TG005', 'a single object is refused'),
    ('null', 'TG005', 'JSON null is refused'),
    (null, 'TG005', 'null is refused')
) as n(tasks, code, why);

select is(
  (select count(*) from teguh.t_m), (select b.n from before as b),
  'spawn_tasks spawns all or none'
);

select throws_ok(
  $$ select teguh.spawn_tasks('nowhere', '[]') $$,
  'TG001', null,
  'spawn_tasks needs a queue'
);

-- Given a spawn beside the caller's own writes
create temporary table business (note text);
savepoint sale;
insert into business values ('sold');
select teguh.spawn_task('m', 'ship', '{}');
rollback to sale;

-- Then
select is(
  array(
    select b.note from business as b
    union all
    select t.task_name from teguh.t_m as t where t.task_name = 'ship'
  ),
  '{}',
  'a task and the caller''s own writes stand or fall together'
);

-- Given great params
select teguh.spawn_task('m', 'great', jsonb_build_object('text', repeat('x', 1048576)));

-- Then
select is(
  (
    select octet_length(c.params ->> 'text')
    from teguh.claim_task('m', 'w', 30, 100) as c
    where c.task_name = 'great'
  ),
  1048576,
  'params of a megabyte arrive as they were'
);

-- Given the absence of a strategy
-- Then
select is(
  (select t.retry_strategy from teguh.t_m as t where t.task_name = 'great'), null,
  'a task without a strategy of its own has the default one'
);

-- Given untyped calls, as drivers make them
-- Then
select lives_ok(
  $$ select teguh.spawn_task('m', 'plain', '{}') $$,
  'spawn_task is called with three arguments'
);

select is(
  (
    select count(*)
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname in ('spawn_task', 'spawn_tasks')
  ),
  2::bigint,
  'no spawn function is overloaded'
);

-- Given tasks that say where they belong, one of them with an idempotency key
create temporary table belonging as
select s.task_id
from teguh.spawn_tasks('m', '[
  {"task_name": "a", "options": {"tags": ["x", "y"], "correlation_id": "c",
    "parent_task_id": "00000000-0000-7000-8000-000000000001"}},
  {"task_name": "b", "options": {"tags": ["z"], "idempotency_key": "belongs"}}
]') as s;
insert into belonging select s.task_id
from teguh.spawn_task('m', 'c', '1', '{"tags": ["t"], "correlation_id": "c"}') as s;

-- Then
select results_eq(
  $$
    select r.task_name, r.tags, r.correlation_id, r.parent_task_id
    from belonging as b
    cross join lateral teguh.get_task_result('m', b.task_id) as r
    order by 1
  $$,
  $$
    values
      ('a', '{x,y}'::text[], 'c', '00000000-0000-7000-8000-000000000001'::uuid),
      ('b', '{z}', null, null),
      ('c', '{t}', 'c', null)
  $$,
  'tags, correlation and parent are kept and shown, however a task was spawned'
);

select is(
  (select r.tags from teguh.get_task_result('m', (
    select t.task_id from teguh.t_m as t where t.task_name = 'plain'
  )) as r),
  null,
  'a task without tags has none'
);

-- When a run spawns a task, also into another queue
select teguh.create_queue('kin');
create temporary table parent as
select c.*
from teguh.spawn_task('kin', 'parent', '1', '{
  "tags": ["p"], "correlation_id": "matter",
  "workflow_run_id": "00000000-0000-7000-8000-000000000009"
}') as s
cross join lateral teguh.claim_task('kin', 'w') as c;

create function pg_temp.child(p_queue text, p_options jsonb)
  returns table(parent uuid, workflow uuid, correlation text, tags text[])
  language sql
as $$
  select r.parent_task_id, r.workflow_run_id, r.correlation_id, r.tags
  from parent as p
  cross join lateral teguh.spawn_task(
    p_queue, 'child', '1', jsonb_build_object('parent_run_id', p.run_id) || p_options
  ) as s
  cross join lateral teguh.get_task_result(p_queue, s.task_id) as r;
$$;

-- Then
select results_eq(
  $$ select * from pg_temp.child('kin', '{}') $$,
  $$
    select p.task_id, '00000000-0000-7000-8000-000000000009'::uuid, 'matter', '{p}'::text[]
    from parent as p
  $$,
  'a task inherits its parent, workflow run, correlation and tags from the run that spawns it'
);
select results_eq(
  $$ select * from pg_temp.child('m', '{"parent_queue_name": "kin"}') $$,
  $$
    select p.task_id, '00000000-0000-7000-8000-000000000009'::uuid, 'matter', '{p}'::text[]
    from parent as p
  $$,
  'also from a run of another queue'
);
select results_eq(
  $$
    select * from pg_temp.child('kin', '{
      "tags": [], "correlation_id": "own", "parent_task_id": "00000000-0000-7000-8000-000000000001",
      "workflow_run_id": "00000000-0000-7000-8000-000000000002"
    }')
  $$,
  $$
    values (
      '00000000-0000-7000-8000-000000000001'::uuid, '00000000-0000-7000-8000-000000000002'::uuid,
      'own', null::text[]
    )
  $$,
  'what the options say is not inherited'
);
select throws_ok(
  $$ select pg_temp.child('m', '{}') $$,
  'TG003', null,
  'the run must be of a task that exists'
);

-- When a queue's policy sets a timeout and a time to live
select teguh.create_queue('strict', '{"default_timeout": 5, "default_ttl": 60}');
set local teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.spawn_task('strict', 'plain', '1', '{"delay_seconds": 10}');
select teguh.spawn_task('strict', 'own', '1', '{"timeout_seconds": null, "ttl_seconds": null}');
select results_eq(
  $$ select t.task_name, t.timeout_seconds, t.expires_at from teguh.t_strict as t order by 1 $$,
  $$
    values
      ('own', null::double precision, null::timestamptz),
      ('plain', 5, '2031-05-01 12:01:10+00')
  $$,
  'the policy counts unless the spawn says otherwise; time to live begins when a task may start'
);
select throws_ok(
  format($$ select teguh.spawn_task('strict', 'bad', '1', %L) $$, n.options),
  'TG005', null,
  format('a spawn refuses %s', n.options)
)
from unnest(array['{"ttl_seconds": 5, "deadline_at": "2031-05-01"}']) as n(options);

-- Given a queue whose tasks have unique keys
select teguh.create_queue('u');
set local teguh.fake_now = '2031-05-04 12:00:00+00';
create function pg_temp.unique(p_params jsonb, p_unique jsonb, p_more jsonb default '{}')
  returns boolean
  language sql
as $$
  select s.created
  from teguh.spawn_task(
    'u', 't', p_params, jsonb_build_object('unique', '{"key": "k"}' || p_unique) || p_more
  ) as s;
$$;
create function pg_temp.now(p_second integer)
  returns void
  language plpgsql
as $$
begin
  perform set_config(
    'teguh.fake_now', (timestamptz '2031-05-04 12:00+00' + make_interval(secs => p_second))::text,
    true
  );
end;
$$;

-- Then
select is(pg_temp.unique('1', '{}'), true, 'the first task of a key is spawned');
select throws_ok(
  $$ select pg_temp.unique('2', '{}') $$, 'TG006', null, 'the second raises'
);
select is(
  pg_temp.unique('2', '{"on_conflict": "return"}'), false, 'or returns the first if asked to'
);
select is(
  (select s.created from teguh.spawn_task('u', 't', '2', '{"unique": {"key": "other"}}') as s),
  true, 'another key is another matter'
);
select results_eq(
  $$
    select s.created from teguh.spawn_tasks('u', '[
      {"task_name": "a", "options": {"unique": {"key": "z"}}},
      {"task_name": "b"},
      {"task_name": "c", "options": {"unique": {"key": "k", "on_conflict": "return"}}},
      {"task_name": "d", "options": {"unique": {"key": "z", "on_conflict": "return"}}}
    ]') as s
  $$,
  $$ values (true), (true), (false), (false) $$,
  'many are looked at one by one, and come back in their order'
);
select is(
  (select array_agg(t.task_name order by t.task_name) from teguh.t_u as t), '{a,b,t,t}',
  'what was there is not spawned'
);

-- When the first is running, and over
create temporary table held as
select c.* from teguh.claim_task('u', 'w', 100, 10) as c;
select throws_ok($$ select pg_temp.unique('3', '{}') $$, 'TG006', null, 'a running task counts');
select is(
  pg_temp.unique('3', '{"on_conflict": "return", "states": ["running"]}'), false,
  'also when it is named'
);
select teguh.complete_run('u', h.run_id) from held as h;
select is(
  pg_temp.unique('3', '{"on_conflict": "return", "states": ["completed"]}'), false,
  'one that is over counts if that is asked for'
);
select is(
  pg_temp.unique('3', '{"on_conflict": "return", "window_seconds": 10}'), false,
  'or within the window'
);
select pg_temp.now(10);
select is(pg_temp.unique('3', '{"window_seconds": 10}'), true, 'after it a new one is spawned');

-- When a task that has not started is replaced
select is(
  pg_temp.unique('4', '{"on_conflict": "replace"}', '{"delay_seconds": 5, "tags": ["new"],
    "max_attempts": 2}'),
  false, 'a task that has not started is replaced'
);
select results_eq(
  $$
    select t.params, t.state, t.available_at, t.tags, t.max_attempts from teguh.t_u as t
    where t.state in ('pending', 'sleeping')
  $$,
  $$
    values ('4'::jsonb, 'sleeping', '2031-05-04 12:00:15+00'::timestamptz, '{new}'::text[], 2)
  $$,
  'by what was spawned last'
);
select is_empty(
  $$ select * from teguh.claim_task('u', 'w', 100, 10) $$, 'its old place in line is void'
);
select results_eq(
  $$ select s.pending, s.delayed, s.completed from teguh.queue_stats('u') as s $$,
  $$ values (0::bigint, 1::bigint, 4::bigint) $$,
  'and it is counted as one'
);
select pg_temp.now(15);
select is(
  (select c.params from teguh.claim_task('u', 'w', 100, 10) as c), '4', 'it comes when it is due'
);
select is(
  pg_temp.unique('5', '{"on_conflict": "replace"}'), true,
  'what runs is not replaced: the next one is spawned beside it'
);
select is(
  (select c.params from teguh.claim_task('u', 'w', 100, 10) as c), '5', 'and comes'
);

-- When spawns are debounced
select pg_temp.now(100);
select pg_temp.unique(
  to_jsonb(g.i), '{"on_conflict": "debounce", "max_wait_seconds": 25}', '{"delay_seconds": 10}'
)
from generate_series(100, 118, 6) as g(i)
cross join lateral pg_temp.now(g.i);
select results_eq(
  $$
    select t.params, t.available_at from teguh.t_u as t
    where t.state = 'sleeping'
  $$,
  $$ values ('118'::jsonb, '2031-05-04 12:02:05+00'::timestamptz) $$,
  'each puts the task off, but no longer than max_wait_seconds from the first'
);
select pg_temp.now(125);
select is(
  (select c.params from teguh.claim_task('u', 'w', 100, 10) as c), '118',
  'the last of them counts'
);

-- When the task of a key was removed
select teguh.complete_run('u', t.run_id) from teguh.t_u as t where t.state = 'running';
select pg_temp.now(1000);
select teguh.cleanup_tasks('u', 1);
select is((select count(*) from teguh.u_u), 0::bigint, 'cleanup removes keys with their tasks');
select is(
  pg_temp.unique('6', '{"states": ["completed"], "window_seconds": 1e6}'), true,
  'and a new one is spawned'
);

-- When the options are no good
select throws_ok(
  format($$ select pg_temp.unique('7', %L) $$, n.options),
  'TG005', null, format('unique refuses %s', n.options)
)
from unnest(array[
  '{"key": ""}', '{"on_conflict": "x"}', '{"states": ["gone"]}', '{"states": "pending"}',
  '{"window_seconds": 0}', '{"max_wait_seconds": 1}',
  '{"on_conflict": "replace", "states": ["failed"]}', '{"keys": 1}'
]) as n(options);

-- Given a queue that may hold two tasks that wait for their start
select teguh.create_queue('full', '{"max_pending": 2}');
select teguh.spawn_task('full', 'a', '1', '{"idempotency_key": "a"}');
select teguh.spawn_task('full', 'b', '1', '{"delay_seconds": 9}');

-- Then
select throws_ok(
  $$ select teguh.spawn_task('full', 'c', '1') $$, 'TG007', null, 'the third is rejected'
);
select is(
  (select s.created from teguh.spawn_task('full', 'a', '1', '{"idempotency_key": "a"}') as s),
  false, 'one that is there already is still found'
);
select count(*) from teguh.claim_task('full', 'w');
select lives_ok(
  $$ select teguh.spawn_task('full', 'c', '1') $$, 'what has started makes room'
);

-- When it drops what is first in line
select teguh.set_queue_policy('full', '{"on_full": "drop_oldest"}');
select teguh.spawn_tasks('full', '[{"task_name": "d"}]');
select results_eq(
  $$
    select t.task_name, t.state, t.failure_reason ->> 'name' from teguh.t_full as t order by 1
  $$,
  $$
    values ('a', 'running', null), ('b', 'sleeping', null), ('c', 'cancelled', '$QueueFull'),
      ('d', 'pending', null)
  $$,
  'the one that has been ready longest goes'
);

-- When the first in line is a task that has run before
select teguh.create_queue('begun', '{"max_pending": 2, "on_full": "drop_oldest"}');
select teguh.spawn_task('begun', 'a', '1', '{"retry_strategy": {"kind": "none"}}');
select teguh.fail_run('begun', c.run_id, '1') from teguh.claim_task('begun', 'w') as c;
select teguh.spawn_task('begun', n.name, '1') from unnest('{b,c}'::text[]) as n(name);
select results_eq(
  $$ select t.task_name, t.state from teguh.t_begun as t order by 1 $$,
  $$ values ('a', 'pending'), ('b', 'cancelled'), ('c', 'pending') $$,
  'what has begun stays'
);

-- When tasks have a priority and a key, spawned in every way
select teguh.create_queue('lanes');
select teguh.create_queue('after');
select teguh.spawn_task('lanes', 'one', '{}', '{"key": "k"}');
select is(
  (select q.ruled from teguh.queues as q where q.queue_name = 'lanes'), false,
  'a key alone changes nothing in how a queue is claimed from'
);
select teguh.spawn_task('lanes', 'once', '{}', '{"priority": 3, "idempotency_key": "i"}');
select teguh.spawn_task('lanes', 'once', '{}', '{"priority": 4, "idempotency_key": "i"}');
select teguh.spawn_tasks('lanes', '[
  {"task_name": "many", "options": {"priority": -1, "key": "m"}}, {"task_name": "many too"}
]');
select teguh.spawn_task('lanes', 'only', '{}', '{
  "priority": 5, "key": "old", "unique": {"key": "u", "on_conflict": "replace"}
}');
select teguh.spawn_task('lanes', 'only', '{}', '{
  "key": "new", "unique": {"key": "u", "on_conflict": "replace"}
}');
select teguh.spawn_task('lanes', 'mortal', '{}', '{
  "ttl_seconds": 1, "on_expired": {
    "queue_name": "after", "task_name": "heir", "options": {"priority": 7, "key": "h"}
  }
}');

-- Then
select results_eq(
  $$ select t.task_name, t.priority::integer, t.flow_key from teguh.t_lanes as t order by 1 $$,
  $$
    values ('many', -1, 'm'), ('many too', null, null), ('mortal', null, null), ('once', 3, null),
      ('one', null, 'k'), ('only', null, 'new')
  $$,
  'each keeps its own; what was there keeps its own, too, and what is replaced gets the new ones'
);
select set_config('teguh.fake_now', (teguh.current_time() + interval '2 s')::text, true);
select teguh.ticker('lanes');
select is(
  (select (t.task_name, t.priority, t.flow_key)::text from teguh.t_after as t), '(heir,7,h)',
  'what follows an expired task has its own'
);
select is(
  (select q.ruled from teguh.queues as q where q.queue_name = 'after'), true,
  'and lets its queue go by rules'
);
select teguh.complete_run('after', c.run_id) from teguh.claim_task('after', 'w') as c;
select teguh.retry_task('after', t.task_id, '{"spawn_new": true}') from teguh.t_after as t;
select is(
  (select (t.task_name, t.priority, t.flow_key)::text from teguh.t_after as t where t.state = 'pending'),
  '(heir,7,h)', 'a copy of a task has those of the task'
);

-- When a task that may be replaced is handed back, before it has done anything and after
select teguh.create_queue('back');
create function pg_temp.replaced(p_params jsonb)
  returns boolean
  language sql
as $$
  select not s.created
  from teguh.spawn_task(
    'back', 'sync', p_params, '{"unique": {"key": "u", "on_conflict": "replace"}}'
  ) as s;
$$;
select pg_temp.replaced('1');
select teguh.release_run('back', c.run_id) from teguh.claim_task('back', 'w') as c;
select ok(pg_temp.replaced('2'), 'one that was handed back untouched has not begun');
select teguh.set_task_checkpoint_state('back', c.task_id, 'charge', '2', c.run_id)
from teguh.claim_task('back', 'w') as c;
select teguh.release_run('back', t.run_id) from teguh.t_back as t;

-- Then
select pg_temp.replaced('3');
select set_eq(
  $$ select c.params, c.checkpoints from teguh.claim_task('back', 'w', 30, 5) as c $$,
  $$ values ('2'::jsonb, '{"charge": 2}'::jsonb), ('3', '{}') $$,
  'one that has taken a step has begun, and goes on beside the new one'
);

-- When a queue has more in line than it may, and a task that is there is spawned again
select teguh.create_queue('over');
select teguh.spawn_task('over', 'a', '{}', '{"idempotency_key": "i"}');
select teguh.spawn_task('over', 'b', '{}');
select teguh.set_queue_policy('over', '{"max_pending": 1, "on_full": "drop_oldest"}');
select is(s.created, false, 'a task that is there is found in a full queue, too')
from teguh.spawn_task('over', 'a', '{}', '{"idempotency_key": "i"}') as s;
select is(s.created, false, 'so it is among many')
from teguh.spawn_tasks(
  'over', '[{"task_name": "a", "params": {}, "options": {"idempotency_key": "i"}}]'
) as s;

-- Then
select is(
  (select count(*) from teguh.t_over as t where t.state = 'pending'), 2::bigint,
  'which takes no other one''s place'
);

-- When a task is replaced by one with a time to live, beside one whose key is null
select teguh.create_queue('brief');
select teguh.spawn_task('brief', 'kept', '1', '{"unique": null}');
select teguh.spawn_task('brief', 'old', '2', '{"unique": {"key": "k"}}');
select teguh.spawn_task(
  'brief', 'new', '3', '{"unique": {"key": "k", "on_conflict": "replace"}, "ttl_seconds": 5}'
);
select set_config(
  'teguh.fake_now', (teguh.current_time() + interval '6 seconds')::text, true
);
select teguh.ticker('brief');

-- Then
select set_eq(
  $$ select t.task_name, t.state from teguh.t_brief as t $$,
  $$ values ('kept', 'pending'), ('new', 'expired') $$,
  'what was replaced expires when the new one says so'
);

select * from finish();
rollback;
