-- Tasks, their runs and what happened to them can be looked at, and found by what they are.
begin;
select plan(79);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

-- Given a queue with tasks in every state, a minute apart
select teguh.create_queue('q');
create function pg_temp.task(p_task_name text)
  returns uuid
  language sql
as $$
  select t.task_id from teguh.t_q as t where t.task_name = p_task_name;
$$;
create function pg_temp.run(p_task_name text)
  returns uuid
  language sql
as $$
  select t.run_id from teguh.t_q as t where t.task_name = p_task_name;
$$;
create function pg_temp.found(p_filter jsonb, p_cursor text default null, p_limit integer default 50)
  returns text[]
  language sql
as $$
  select array(select l.task_name from teguh.list_tasks('q', p_filter, p_cursor, p_limit) as l);
$$;

select teguh.spawn_task('q', 'completed', '{"n": 1}', '{"tags": ["a", "b"], "headers": {"h": 1}}');
select teguh.claim_task('q', 'w1', 60);
select teguh.complete_run('q', pg_temp.run('completed'), '{"ok": 1}');
set local teguh.fake_now = '2031-05-01 12:01:00+00';
select teguh.spawn_task('q', 'failed', '{}', '{"max_attempts": 1, "tags": ["b"]}');
select teguh.claim_task('q', 'w1', 60);
select teguh.fail_run('q', pg_temp.run('failed'), '{"message": "no"}');
set local teguh.fake_now = '2031-05-01 12:02:00+00';
select teguh.spawn_task('q', 'cancelled', '{}', '{"correlation_id": "c"}');
select teguh.cancel_task('q', pg_temp.task('cancelled'), 'not wanted');
set local teguh.fake_now = '2031-05-01 12:03:00+00';
select teguh.spawn_task('q', 'expired', '{}', '{"ttl_seconds": 1}');
set local teguh.fake_now = '2031-05-01 12:04:00+00';
select teguh.ticker('q');
select teguh.spawn_task('q', 'running', '{}', jsonb_build_object(
  'parent_task_id', pg_temp.task('completed'), 'correlation_id', 'c', 'idempotency_key', 'once',
  'workflow_run_id', '01890000-0000-7000-8000-000000000000', 'timeout_seconds', 30, 'key', 'k'
));
select teguh.claim_task('q', 'w2', 60);
set local teguh.fake_now = '2031-05-01 12:04:05+00';
select teguh.spawn_task('q', 'endless', '{}');
select teguh.claim_task('q', 'w2', 0);
set local teguh.fake_now = '2031-05-01 12:04:06+00';
select teguh.spawn_task('q', 'waiting', '{}', '{"tags": ["a"]}');
select teguh.claim_task('q', 'w3', 60);
select teguh.await_event('q', pg_temp.task('waiting'), pg_temp.run('waiting'), 's', 'e');
set local teguh.fake_now = '2031-05-01 12:04:07+00';
select teguh.spawn_task('q', 'sleeping', '{}', '{"delay_seconds": 3600}');
set local teguh.fake_now = '2031-05-01 12:04:08+00';
select teguh.spawn_task('q', 'pending', '{}');

-- Then
select results_eq(
  $$
    select r.state, r.attempts, r.completed_payload, r.params, r.headers, r.started_at, r.claimed_by,
      r.tags
    from teguh.get_task('q', pg_temp.task('completed')) as r
  $$,
  $$
    values ('completed', 1, '{"ok": 1}'::jsonb, '{"n": 1}'::jsonb, '{"h": 1}'::jsonb,
      '2031-05-01 12:00:00+00'::timestamptz, 'w1', '{a,b}'::text[])
  $$,
  'get_task shows what a task was asked for and what came of it'
);
select results_eq(
  $$
    select r.run_id, r.claimed_by, r.lease_expires_at, r.idempotency_key, r.correlation_id,
      r.timeout_seconds, r.priority::integer, r.flow_key
    from teguh.get_task('q', pg_temp.task('running')) as r
  $$,
  $$
    values (pg_temp.run('running'), 'w2', '2031-05-01 12:04:30+00'::timestamptz, 'once', 'c',
      30::double precision, 0, 'k')
  $$,
  'and of one that is running, who holds it until when'
);
select is(
  (select r.wake_event from teguh.get_task('q', pg_temp.task('waiting')) as r), 'e',
  'and of one that waits, for what'
);

-- Then every state is found
select is(
  pg_temp.found('{}'),
  '{pending,sleeping,waiting,endless,running,expired,cancelled,failed,completed}'::text[],
  'without a filter all tasks are listed, the newest first'
);
select is(
  pg_temp.found(jsonb_build_object('state', s.state)), s.names::text[],
  'state finds tasks that are ' || s.state
)
from (
  values
    ('pending', '{pending}'), ('sleeping', '{sleeping,waiting}'), ('running', '{endless,running}'),
    ('completed', '{completed}'), ('failed', '{failed}'), ('cancelled', '{cancelled}'),
    ('expired', '{expired}')
) as s(state, names);
select is(
  pg_temp.found('{"state": ["failed", "running"]}'), '{endless,running,failed}'::text[],
  'several states may be named'
);
select is(
  pg_temp.found('{"state": ["completed", "running"]}'), '{endless,running,completed}'::text[],
  'completed among them'
);
select is(pg_temp.found(f.filter), f.names::text[], f.filter::text || ' finds what it says')
from (
  values
    ('{"task_name": "failed"}'::jsonb, '{failed}'),
    ('{"task_name": "none"}', '{}'),
    ('{"tag": "a"}', '{waiting,completed}'),
    ('{"tags": ["a"]}', '{waiting,completed}'),
    ('{"tags": ["b", "a"]}', '{completed}'),
    ('{"tag": "b", "tags": ["a"]}', '{completed}'),
    ('{"tag": "z"}', '{}'),
    ('{"correlation_id": "c"}', '{running,cancelled}'),
    ('{"correlation_id": "c", "state": "running"}', '{running}'),
    ('{"correlation_id": "c", "state": "failed"}', '{}'),
    ('{"workflow_run_id": "01890000-0000-7000-8000-000000000000"}', '{running}'),
    ('{"created_after": "2031-05-01T12:04:05+00"}', '{pending,sleeping,waiting,endless}'),
    ('{"created_before": "2031-05-01T12:01:00+00"}', '{completed}'),
    ('{"created_after": "2031-05-01T12:01:00+00", "created_before": "2031-05-01T12:02:00+00"}',
      '{failed}'),
    ('{"created_after": "infinity"}', '{}'),
    ('{"created_before": "infinity", "state": "failed"}', '{failed}'),
    ('{"created_before": "-infinity"}', '{}'),
    ('{"older_than_seconds": 180, "tag": "b"}', '{failed,completed}'),
    ('{"older_than_seconds": 180}', '{failed,completed}'),
    ('{"older_than_seconds": null, "state": null, "tag": null, "task_name": "failed"}', '{failed}')
) as f(filter, names);
select is(
  pg_temp.found(jsonb_build_object('parent_task_id', pg_temp.task('completed'))),
  '{running}'::text[], 'parent_task_id finds the tasks it was the parent of'
);

-- Then pages follow each other
select is(
  pg_temp.found('{}', (
    select l.cursor from teguh.list_tasks('q', '{}', null, 2) as l offset 1
  ), 3),
  '{waiting,endless,running}'::text[],
  'the cursor of a page''s last row leads to the next page'
);
select is(
  pg_temp.found('{}', (select l.cursor from teguh.list_tasks('q') as l offset 8)), '{}'::text[],
  'after the last page comes an empty one'
);

-- Then what cannot be is refused
select throws_ok(
  format('select * from teguh.list_tasks(%L, %L, %L, %L)', b.queue, b.filter, b.cursor, b.page),
  b.sqlstate, null, 'list_tasks refuses ' || b.what
)
from (
  values
    ('q', '{"stat": "failed"}', null, '1', 'TG005', 'an unknown key'),
    ('q', '{"state": "fail"}', null, '1', 'TG005', 'an unknown state'),
    ('q', '{"state": []}', null, '1', 'TG005', 'no state'),
    ('q', '{"state": 1}', null, '1', 'TG005', 'a number for a state'),
    ('q', '{"tags": "a"}', null, '1', 'TG005', 'tags that are no array'),
    ('q', '{"parent_task_id": "x"}', null, '1', 'TG005', 'an id that is none'),
    ('q', '{"created_after": "soon"}', null, '1', 'TG005', 'a time that is none'),
    ('q', '{"older_than_seconds": -1}', null, '1', 'TG005', 'a negative age'),
    ('q', '[]', null, '1', 'TG005', 'a filter that is no object'),
    ('q', '{}', 'x', '1', 'TG005', 'a cursor that is none'),
    ('q', '{}', null, '0', 'TG005', 'a limit of 0'),
    ('q', '{}', null, null, 'TG005', 'no limit'),
    ('nowhere', '{}', null, '1', 'TG001', 'an unknown queue')
) as b(queue, filter, cursor, page, sqlstate, what);
select throws_ok(
  format('select * from teguh.%s(''q'', gen_random_uuid())', f.name), 'TG003', null,
  f.name || ' refuses an unknown task'
)
from unnest('{get_task,list_runs,get_task_history}'::text[]) as f(name);
select throws_ok(
  format('select * from teguh.%s(''nowhere'', gen_random_uuid())', f.name), 'TG001', null,
  f.name || ' refuses an unknown queue'
)
from unnest('{get_task,list_runs,get_task_history}'::text[]) as f(name);

-- Then
select results_eq(
  $$ select * from teguh.list_workers('q') $$,
  $$
    values ('w2', 'q', 2::bigint, '2031-05-01 12:04:00+00'::timestamptz,
      '2031-05-01 12:04:30+00'::timestamptz)
  $$,
  'list_workers shows who holds runs, since when and until when'
);
select throws_ok(
  $$ select * from teguh.list_workers('nowhere') $$, 'TG001', null, 'of a queue that is there'
);

-- When the lease of one expires and the task is taken up again
set local teguh.fake_now = '2031-05-01 12:05:00+00';
select teguh.claim_task('q', 'w4', 3600, 5);
set local teguh.fake_now = '2031-05-01 12:05:10+00';
select teguh.claim_task('q', 'w4', 3600, 5);

-- Then
select results_eq(
  $$
    select l.number, l.state, l.attempt, l.claimed_by, l.started_at, l.finished_at,
      l.failure_reason ->> 'name'
    from teguh.list_runs('q', pg_temp.task('running')) as l
  $$,
  $$
    values
      (1, 'failed', 1, 'w2', '2031-05-01 12:04:00+00'::timestamptz,
        '2031-05-01 12:05:00+00'::timestamptz, '$RunTimeout'),
      (2, 'running', 2, 'w4', '2031-05-01 12:05:10+00', null, null)
  $$,
  'list_runs shows the run that was lost and the current one'
);
select results_eq(
  $$
    select h.at, h.event, h.detail ->> 'claimed_by'
    from teguh.get_task_history('q', pg_temp.task('running')) as h
  $$,
  $$
    values
      ('2031-05-01 12:04:00+00'::timestamptz, 'created', null),
      ('2031-05-01 12:04:00+00', 'started', 'w2'),
      ('2031-05-01 12:05:00+00', 'failed', null),
      ('2031-05-01 12:05:00+00', 'retrying', null),
      ('2031-05-01 12:05:10+00', 'recovered', 'w4')
  $$,
  'its history says that it was recovered'
);
select is(
  array(select h.event from teguh.get_task_history('q', pg_temp.task(n.name)) as h), n.events::text[],
  format('the history of a task that is %s is told', n.name)
)
from (
  values
    ('completed', '{created,started,completed}'), ('failed', '{created,started,failed}'),
    ('cancelled', '{created,cancelled}'), ('expired', '{created,expired}'),
    ('waiting', '{created,started,sleeping}'), ('sleeping', '{created,sleeping}')
) as n(name, events);
select results_eq(
  $$
    select h.at, h.detail
    from teguh.get_task_history('q', pg_temp.task('waiting')) as h
    where h.event = 'sleeping'
  $$,
  $$ values ('2031-05-01 12:04:06+00'::timestamptz, '{"event": "e"}'::jsonb) $$,
  'a sleep says what it waits for'
);
select is(
  (
    select h.detail
    from teguh.get_task_history('q', pg_temp.task('cancelled')) as h
    where h.event = 'cancelled'
  ),
  jsonb_build_object('action', 'cancel', 'by_role', session_user, 'reason', 'not wanted'),
  'a cancellation says by whom and why'
);
select results_eq(
  $$ select a.action, a.reason, a.task_id, a.run_id from teguh.list_actions('q') as a $$,
  $$ values ('cancel', 'not wanted', pg_temp.task('cancelled'), pg_temp.run('cancelled')) $$,
  'and is listed among the actions'
);
select teguh.pause_queue('q');
select is(
  array(
    select b.action
    from teguh.list_actions('q', null, 1) as a
    cross join lateral teguh.list_actions('q', a.cursor) as b
  ),
  '{cancel}'::text[],
  'which come in pages, the latest first'
);
select throws_ok(
  format('select * from teguh.list_actions(%L, %L, %L)', b.queue, b.cursor, b.page),
  b.sqlstate, null, 'list_actions refuses ' || b.what
)
from (
  values
    ('q', 'x', 1, 'TG005', 'a cursor that is none'), ('q', null, 0, 'TG005', 'a limit of 0'),
    ('nowhere', null, 1, 'TG001', 'an unknown queue')
) as b(queue, cursor, page, sqlstate, what);

-- When there are more tasks than one look at an index gives
select teguh.create_queue('many');
select count(*)
from teguh.spawn_tasks('many', (
  select jsonb_agg(jsonb_build_object(
    'task_name', case when n.n % 2 = 0 then 'even' else 'odd' end,
    'params', n.n,
    'options', jsonb_build_object(
      'max_attempts', 1, 'tags', jsonb_build_array('t', 'm' || n.n % 700)
    )
  ))
  from generate_series(1, 1400) as n(n)
));
create temporary table held as select c.* from teguh.claim_task('many', 'w', 60, 1400) as c;
select teguh.fail_run('many', h.run_id, '1') from held as h where h.params::integer <= 3;
select teguh.complete_runs('many', (
  select jsonb_agg(jsonb_build_object('run_id', h.run_id))
  from held as h
  where h.params::integer between 4 and 1300
));

-- Then
select is(
  (select count(*) from teguh.list_tasks('many', f.filter, null, 1000)), f.count::bigint,
  f.filter::text || ' finds them all'
)
from (
  values
    ('{"state": "failed"}'::jsonb, 3), ('{"state": "running"}', 100),
    ('{"state": ["failed", "running"], "task_name": "even"}', 51),
    ('{"task_name": "odd"}', 700), ('{"tags": ["t", "m5"]}', 2), ('{"tag": "m1", "state": "failed"}', 1)
) as f(filter, count);

-- When a task fails, is taken from its worker, is cancelled and is retried
select teguh.create_queue('blame');
select teguh.spawn_task('blame', 'task', '{}', '{"retry_strategy": {"kind": "none"}}');
select teguh.fail_run('blame', c.run_id, '"broken"') from teguh.claim_task('blame', 'w') as c;
select teguh.requeue_task('blame', c.task_id) from teguh.claim_task('blame', 'w') as c;
select teguh.cancel_task('blame', t.task_id) from teguh.t_blame as t;
select teguh.retry_task('blame', t.task_id) from teguh.t_blame as t;

-- Then
select results_eq(
  $$
    select r.number, r.state, r.failure_reason
    from teguh.t_blame as t
    cross join lateral teguh.list_runs('blame', t.task_id) as r
  $$,
  $$
    values (1, 'failed', '"broken"'::jsonb), (2, 'released', null), (3, 'cancelled', null),
      (4, 'pending', null)
  $$,
  'a run has the reason why it failed, not why one before it did'
);

select * from finish();
rollback;
