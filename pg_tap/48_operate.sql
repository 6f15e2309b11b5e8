-- Tasks are cancelled, taken back, replayed and purged from outside, many at a time.
begin;
select plan(86);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

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
create function pg_temp.states()
  returns text
  language sql
as $$
  select string_agg(t.task_name || ' ' || t.state, ', ' order by t.task_name) from teguh.t_q as t;
$$;
create function pg_temp.fail(p_task_name text, p_at timestamptz)
  returns void
  language plpgsql
as $$
begin
  perform set_config('teguh.fake_now', p_at::text, true);
  perform teguh.spawn_task('q', p_task_name, '{}', '{"max_attempts": 1, "tags": ["f"]}');
  perform teguh.claim_task('q', 'w', 60);
  for v_second in 1..3 loop
    perform set_config('teguh.fake_now', (p_at + v_second * interval '1 second')::text, true);
    perform teguh.set_task_checkpoint_state(
      'q', pg_temp.task(p_task_name), ('{one,two,three}'::text[])[v_second],
      to_jsonb(v_second), pg_temp.run(p_task_name)
    );
  end loop;
  perform teguh.fail_run('q', pg_temp.run(p_task_name), '{"message": "no"}');
end;
$$;

-- Given a task that is over, one that runs, one that waits, one that is ready
select teguh.spawn_task('q', n, '{}', '{"correlation_id": "c"}')
from unnest('{done,held,waiting}'::text[]) as n;
select teguh.claim_task('q', 'w', 60, 3);
select teguh.complete_run('q', pg_temp.run('done'));
select teguh.await_event('q', pg_temp.task('waiting'), pg_temp.run('waiting'), 's', 'e');
select teguh.spawn_task('q', 'ready', '{}', '{"tags": ["t"]}');

-- Then
select throws_ok(
  format('select teguh.cancel_tasks(%L, %L, %L)', b.queue, b.filter, b.options),
  b.sqlstate, null, 'cancel_tasks refuses ' || b.what
)
from (
  values
    ('q', '{}', '{}', 'TG005', 'an empty filter'),
    ('q', null, '{}', 'TG005', 'a null filter'),
    ('q', '{"tag": null}', '{}', 'TG005', 'a filter of nulls'),
    ('q', '{"stat": "x"}', '{}', 'TG005', 'an unknown key'),
    ('q', '{"tag": "t"}', '{"limits": 1}', 'TG005', 'an unknown option'),
    ('q', '{"tag": "t"}', '{"limit": 0}', 'TG005', 'a limit of 0'),
    ('q', '{}', '{"all": "yes"}', 'TG005', 'an all that is neither true nor false'),
    ('q', '[]', '{}', 'TG005', 'a filter that is no object'),
    ('q', '{"tag": "t"}', '{"reason": 1}', 'TG005', 'a reason that is no text'),
    ('nowhere', '{"tag": "t"}', '{}', 'TG001', 'an unknown queue')
) as b(queue, filter, options, sqlstate, what);
select is(
  teguh.cancel_tasks('q', '{"state": "completed"}'), 0, 'a task that is over cannot be meant'
);

-- When tasks are cancelled by what they are
select is(
  teguh.cancel_tasks('q', '{"correlation_id": "c"}', '{"limit": 1, "reason": "gone"}'), 1,
  'cancel_tasks cancels no more than limit'
);
select is(
  teguh.cancel_tasks('q', '{"correlation_id": "c"}', '{"reason": "gone"}'), 1,
  'the next call goes on'
);
select is(teguh.cancel_tasks('q', '{"correlation_id": "c"}'), 0, 'until none is left');

-- Then
select is(
  pg_temp.states(), 'done completed, held cancelled, ready pending, waiting cancelled',
  'what is over stays as it is, and so does what the filter does not mean'
);
select throws_ok(
  $$ select teguh.complete_run('q', pg_temp.run('held')) $$, 'AB001', null,
  'the worker that held one meets AB001'
);
select is((select count(*) from teguh.w_q), 0::bigint, 'a cancelled task does not wait');
select results_eq(
  $$
    select a.action, a.by_role = session_user, a.reason, a.task_id
    from teguh.list_actions('q') as a
    order by a.task_id <> pg_temp.task('held')
  $$,
  $$
    values
      ('cancel', true, 'gone', pg_temp.task('held')),
      ('cancel', true, 'gone', pg_temp.task('waiting'))
  $$,
  'each is recorded with who and why'
);
select is(teguh.cancel_tasks('q', '{}', '{"all": true}'), 1, 'all cancels all');

-- Given a task whose worker is dead
select teguh.spawn_task('q', 'stuck', '{}', '{"max_attempts": 1}');
select teguh.claim_task('q', 'dead', 3600);
create temporary table dead as select pg_temp.run('stuck') as run_id;
select teguh.set_task_checkpoint_state('q', pg_temp.task('stuck'), 's', '1', d.run_id) from dead as d;

-- When it is taken back
select isnt(
  teguh.requeue_task('q', pg_temp.task('stuck'), 'host lost'), (select d.run_id from dead as d),
  'requeue_task begins another run'
);

-- Then
select throws_ok(
  $$ select teguh.complete_run('q', d.run_id) from dead as d $$, 'AB002', null,
  'the old worker meets AB002'
);
select results_eq(
  $$
    select c.task_name, c.run_id, c.attempt, c.failures, c.checkpoints
    from teguh.claim_task('q', 'w', 60) as c
  $$,
  $$ values ('stuck', pg_temp.run('stuck'), 2, 0, '{"s": 1}'::jsonb) $$,
  'the task can be claimed at once, has not failed, and keeps its checkpoints'
);
select is(
  array(select h.event from teguh.get_task_history('q', pg_temp.task('stuck')) as h),
  '{created,started,released,started}'::text[],
  'its history says that it was released'
);
select is(
  (
    select h.detail
    from teguh.get_task_history('q', pg_temp.task('stuck')) as h
    where h.event = 'released'
  ),
  jsonb_build_object('action', 'requeue', 'by_role', session_user, 'reason', 'host lost'),
  'and by whom and why'
);
select lives_ok(
  $$ select teguh.complete_run('q', pg_temp.run('stuck')) $$, 'the new run can be completed'
);
select throws_ok(
  $$ select teguh.requeue_task('q', pg_temp.task('stuck')) $$, 'TG004', null,
  'a task that nobody holds cannot be taken back'
);
select throws_ok(
  $$ select teguh.requeue_task('q', gen_random_uuid()) $$, 'TG003', null, 'nor an unknown one'
);
select throws_ok(
  $$ select teguh.requeue_task('nowhere', gen_random_uuid()) $$, 'TG001', null,
  'nor one of an unknown queue'
);

-- Given three tasks that failed
select pg_temp.fail('f' || n, '2031-05-01 12:10:00+00'::timestamptz + n * interval '1 minute')
from generate_series(1, 3) as n;

-- Then
select is(
  array(select l.task_name from teguh.list_dead_letters('q') as l order by 1), '{f1,f2,f3}'::text[],
  'list_dead_letters lists the tasks that failed'
);
select is(
  array(select l.task_name from teguh.list_dead_letters('q', '{"task_name": "f2"}') as l),
  '{f2}'::text[],
  'those that the filter means'
);
select is(
  (
    select count(*)
    from teguh.list_dead_letters('q', '{}', null, 1) as a
    cross join lateral teguh.list_dead_letters('q', '{}', a.cursor) as b
  ),
  2::bigint,
  'in pages'
);
select throws_ok(
  format('select * from teguh.list_dead_letters(%L, %L, %L, %s)', b.queue, b.filter, b.cursor, b.page),
  b.sqlstate, null, 'list_dead_letters refuses ' || b.what
)
from (
  values
    ('q', '{"state": "failed"}', null, 1, 'TG005', 'a state'),
    ('q', '{}', 'x', 1, 'TG005', 'a cursor that is none'),
    ('q', '{}', null, 0, 'TG005', 'a limit of 0'),
    ('nowhere', '{}', null, 1, 'TG001', 'an unknown queue')
) as b(queue, filter, cursor, page, sqlstate, what);
select throws_ok(
  format('select teguh.replay_dead_letters(%L, %L, %L)', b.queue, b.filter, b.options),
  b.sqlstate, null, 'replay_dead_letters refuses ' || b.what
)
from (
  values
    ('q', '{"state": "failed"}', '{}', 'TG005', 'a state'),
    ('q', '{}', '{"rate": 1}', 'TG005', 'an unknown option'),
    ('q', '{}', '{"per_second": 0}', 'TG005', 'a rate of 0'),
    ('q', '{}', '{"max_attempts": 0}', 'TG005', 'max_attempts of 0'),
    ('q', '{}', '{"limit": 10001}', 'TG005', 'a limit that is too large'),
    ('q', '{}', '{"from_step": 1}', 'TG005', 'a step that is no name'),
    ('nowhere', '{}', '{}', 'TG001', 'an unknown queue')
) as b(queue, filter, options, sqlstate, what);

-- When one is retried from a step
select throws_ok(
  $$ select teguh.retry_task('q', pg_temp.task('f1'), '{"from_step": "none"}') $$, 'TG005', null,
  'a task is not retried from a step that it never took'
);
select throws_ok(
  $$ select teguh.retry_task('q', pg_temp.task('f1'), '{"from_step": "two", "spawn_new": true}') $$,
  'TG005', null,
  'nor a new task'
);
select teguh.retry_task('q', pg_temp.task('f1'), '{"from_step": "two", "reason": "fixed"}');

-- Then
select is(
  (select c.checkpoints from teguh.claim_task('q', 'w', 60) as c), '{"one": 1}'::jsonb,
  'a retry from a step forgets that step and all after it'
);
select is(
  (
    select h.detail ->> 'reason'
    from teguh.get_task_history('q', pg_temp.task('f1')) as h
    where h.event = 'retrying'
  ),
  'fixed',
  'and says why'
);
select is(
  (select count(*) from teguh.list_dead_letters('q') as l), 2::bigint,
  'what is retried is no dead letter any more'
);
select teguh.complete_run('q', pg_temp.run('f1'));

-- When dead letters are replayed at a rate
set local teguh.fake_now = '2031-05-01 13:00:00+00';
select is(
  teguh.replay_dead_letters(
    'q', '{"tag": "f"}',
    '{"per_second": 0.1, "max_attempts": 3, "from_step": "three", "reason": "again"}'
  ),
  2,
  'replay_dead_letters runs the tasks that the filter means'
);

-- Then
select is(
  array(
    select t.available_at
    from teguh.t_q as t
    where t.task_name in ('f2', 'f3')
    order by t.task_id
  ),
  '{2031-05-01 13:00:00+00,2031-05-01 13:00:10+00}'::timestamptz[],
  'one after the other'
);
select results_eq(
  $$ select c.checkpoints, c.max_attempts, c.failures from teguh.claim_task('q', 'w', 60, 9) as c $$,
  $$ values ('{"one": 1, "two": 2}'::jsonb, 3, 1) $$,
  'with the checkpoints before the step, and max_attempts'
);
set local teguh.fake_now = '2031-05-01 13:00:10+00';
select is((select count(*) from teguh.claim_task('q', 'w', 60, 9)), 1::bigint, 'the second in its time');
select is(
  (select count(*) from teguh.list_actions('q') as a where (a.action, a.reason) = ('replay', 'again')),
  2::bigint,
  'each is recorded with why'
);
select is(teguh.replay_dead_letters('q'), 0, 'then no dead letter is left');

-- When old dead letters are purged
select teguh.complete_run('q', pg_temp.run(n)) from unnest('{f2,f3}'::text[]) as n;
select pg_temp.fail(n, '2031-05-01 14:00:00+00') from unnest('{g1,g2}'::text[]) as n;
select pg_temp.fail('g3', '2031-05-01 15:00:00+00');
set local teguh.fake_now = '2031-05-01 15:30:00+00';
select is(teguh.purge_dead_letters('q', 3600, 1), 1, 'purge_dead_letters removes up to limit');
select is(
  teguh.purge_dead_letters('q', 3600, p_reason => 'old'), 1,
  'and only what failed longer ago than that'
);

-- Then
select is(
  array(select l.task_name from teguh.list_dead_letters('q') as l), '{g3}'::text[], 'the rest is kept'
);
select is(
  array[
    (select count(*) from teguh.c_q as c where c.task_id not in (select t.task_id from teguh.t_q as t)),
    (select count(*) from teguh.g_q as g where g.task_id not in (select t.task_id from teguh.t_q as t)),
    (select count(*) from teguh.d_q as d where d.task_id not in (select t.task_id from teguh.t_q as t))
  ],
  '{0,0,0}'::bigint[],
  'checkpoints, tags and notes go with the task'
);
select results_eq(
  $$ select a.action, a.reason, a.detail from teguh.list_actions('q', null, 1) as a $$,
  $$ values ('purge', 'old', '{"tasks": 1}'::jsonb) $$,
  'a purge is recorded as one action'
);
select throws_ok(
  format('select teguh.purge_dead_letters(%L, %s, %s)', b.queue, b.ttl, b.page), b.sqlstate, null,
  'purge_dead_letters refuses ' || b.what
)
from (
  values
    ('q', '-1', '1', 'TG005', 'a negative age'), ('q', '1', '0', 'TG005', 'a limit of 0'),
    ('nowhere', '1', '1', 'TG001', 'an unknown queue')
) as b(queue, ttl, page, sqlstate, what);

-- Given running tasks of two workers, and others
select teguh.create_queue('r');
select teguh.spawn_task('r', n, '{}', jsonb_build_object('tags', jsonb_build_array(left(n, 1))))
from unnest('{a1,a2,a3,b1,b2,b3}'::text[]) as n;
select teguh.claim_task('r', 'one', 1000, 2);
select teguh.claim_task('r', 'two', 1000, 2);
create function pg_temp.held()
  returns text
  language sql
as $$
  select string_agg(t.task_name || ' ' || t.claimed_by, ', ' order by t.task_name)
  from teguh.t_r as t
  where t.state = 'running';
$$;
select is(
  pg_temp.held(), 'a1 one, a2 one, a3 two, b1 two', 'given which worker holds which tasks'
);

-- Then
select throws_ok(
  format('select teguh.requeue_tasks(%L, %L, %L)', b.queue, b.filter, b.options),
  b.sqlstate, null, 'requeue_tasks refuses ' || b.what
)
from (
  values
    ('r', '{}', '{}', 'TG005', 'an empty filter'),
    ('r', null, null, 'TG005', 'no filter'),
    ('r', '{"tag": null}', '{"all": false}', 'TG005', 'a filter of nulls'),
    ('r', '{"tag": "a"}', '{"worker": "one"}', 'TG005', 'an unknown option'),
    ('r', '{"tag": "a"}', '{"worker_id": 1}', 'TG005', 'a worker that is no string'),
    ('r', '{"tag": "a"}', '{"limit": 0}', 'TG005', 'a limit of 0'),
    ('r', '{"tag": "a"}', '[]', 'TG005', 'options that are an array'),
    ('r', '{"tagg": "a"}', '{}', 'TG005', 'an unknown key'),
    ('r', '[]', '{}', 'TG005', 'a filter that is an array'),
    ('nowhere', '{"tag": "a"}', '{}', 'TG001', 'an unknown queue')
) as b(queue, filter, options, sqlstate, what);
select is(teguh.requeue_tasks('r', '{"tag": "none"}'), 0, 'where nothing is meant nothing is done');
select is(
  teguh.requeue_tasks('r', '{}', '{"worker_id": "three"}'), 0, 'nor for a worker that holds nothing'
);

-- When tasks are taken back by a filter, from a worker, or both
create temporary table lost as select t.run_id from teguh.t_r as t where t.task_name = 'a1';
select is(
  teguh.requeue_tasks('r', '{"tag": "a"}', '{"worker_id": "one", "limit": 1, "reason": "stuck"}'), 1,
  'up to limit of those that are meant'
);
select is(
  teguh.requeue_tasks('r', '{"tag": "a"}', '{"worker_id": "one"}'), 1, 'then the rest'
);
select is(pg_temp.held(), 'a3 two, b1 two', 'those of the other worker stay');
select throws_ok(
  $$ select teguh.complete_run('r', l.run_id) from lost as l $$, 'AB002', null,
  'a worker that is alive after all meets AB002'
);
select is(
  (select (t.state, t.failures)::text from teguh.t_r as t where t.task_name = 'a2'), '(pending,0)',
  'what was taken back may be claimed at once, and has not failed'
);
select is(
  (
    select count(*) from teguh.list_actions('r') as a
    where (a.action, a.reason) = ('requeue', 'stuck')
  ),
  1::bigint, 'it is recorded with why'
);
select is(
  teguh.requeue_tasks('r', '{"state": "completed", "tag": "b"}'), 1,
  'whatever the filter says of states, only running tasks are meant'
);
select is(teguh.requeue_tasks('r', '{}', '{"all": true}'), 1, 'or all, if that is said');
select is(teguh.requeue_tasks('r', '{}', '{"all": true}'), 0, 'until none is left');
select is(
  (select s.pending from teguh.queue_stats('r') as s), 6::bigint, 'all of them are counted as pending'
);
select is(
  (select count(*) from teguh.claim_task('r', 'w', 1000, 9)), 6::bigint, 'and can be had'
);
select teguh.drop_queue('r');

-- When everything is cleaned up
set local teguh.fake_now = '2032-05-01 12:00:00+00';
select teguh.cancel_tasks('q', '{}', '{"all": true}');
set local teguh.fake_now = '2033-05-01 12:00:00+00';
select teguh.cleanup_tasks('q', 1, 1000);

-- Then
select is(
  (select count(*) from teguh.t_q) + (select count(*) from teguh.a_q) + (select count(*) from teguh.d_q)
  + (select count(*) from teguh.g_q),
  0::bigint,
  'cleanup removes actions, notes and tags with the tasks'
);

select * from finish();
rollback;
