-- Tasks are cancelled, retried and looked at from outside.
begin;
select plan(47);

-- Given a queue with tasks in every state
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('q');
select teguh.spawn_task(
  'q', n, jsonb_build_object('name', n), '{
    "max_attempts": 1, "headers": {"h": 1}, "tags": ["t"], "correlation_id": "c",
    "parent_task_id": "00000000-0000-7000-8000-000000000001"
  }'
)
from unnest('{completed,failed,running,waiting}'::text[]) as n;
select c.task_name from teguh.claim_task('q', 'w', 30, 4) as c;
select teguh.spawn_task('q', 'pending', '{}');
select teguh.spawn_task('q', 'sleeping', '{}', '{"delay_seconds": 3600}');

create function pg_temp.task(p_task_name text)
  returns uuid
  language sql
as $$
  select t.task_id from teguh.t_q as t where t.task_name = p_task_name order by t.task_id limit 1;
$$;

create function pg_temp.run(p_task_name text)
  returns uuid
  language sql
as $$
  select t.run_id from teguh.t_q as t where t.task_name = p_task_name order by t.task_id limit 1;
$$;

create function pg_temp.state(p_task_name text)
  returns text
  language sql
as $$
  select r.state from teguh.get_task_result('q', pg_temp.task(p_task_name)) as r;
$$;

select teguh.set_task_checkpoint_state(
  'q', pg_temp.task('failed'), 'charge', '1', pg_temp.run('failed')
);
select teguh.complete_run('q', pg_temp.run('completed'), '{"ok": 1}');
select teguh.fail_run('q', pg_temp.run('failed'), '{"message": "no"}');
select teguh.await_event('q', pg_temp.task('waiting'), pg_temp.run('waiting'), 's', 'e');

-- Then
select results_eq(
  $$
    select r.task_id, r.state, r.attempts, r.completed_payload, r.cancelled_at,
      r.failure_reason, r.failures, r.task_name, r.created_at,
      r.available_at, r.first_started_at, r.finished_at
    from teguh.get_task_result('q', pg_temp.task('completed')) as r
  $$,
  $$
    values (pg_temp.task('completed'), 'completed', 1, '{"ok": 1}'::jsonb, null::timestamptz,
      null::jsonb, 0, 'completed', '2031-05-01 12:00:00+00'::timestamptz,
      '2031-05-01 12:00:00+00'::timestamptz,
      '2031-05-01 12:00:00+00'::timestamptz, '2031-05-01 12:00:00+00'::timestamptz)
  $$,
  'get_task_result shows a completed task with its result'
);
select results_eq(
  $$
    select r.state, r.failure_reason, r.failures
    from teguh.get_task_result('q', pg_temp.task('failed')) as r
  $$,
  $$ values ('failed', '{"message": "no"}'::jsonb, 1) $$,
  'get_task_result shows why a task has failed'
);
select is(pg_temp.state(n), n, format('get_task_result shows a %s task', n))
from unnest('{running,pending,sleeping}'::text[]) as n;
select is(
  (select r.attempts from teguh.get_task_result('q', pg_temp.task('pending')) as r), 0,
  'a task that was never handed out has no attempt'
);
select throws_ok(
  $$ select * from teguh.get_task_result('q', gen_random_uuid()) $$, 'TG003', null,
  'the result of an unknown task is an error'
);
select throws_ok(
  $$ select * from teguh.get_task_result('nowhere', gen_random_uuid()) $$, 'TG001', null,
  'a result needs a queue'
);

-- When tasks are cancelled
select lives_ok(
  format($$ select teguh.cancel_task('q', %L) $$, pg_temp.task(n)),
  format('a task that is %s can be cancelled', n)
)
from unnest('{pending,sleeping,waiting,running}'::text[]) as n;

-- Then
select is(pg_temp.state(n), 'cancelled', format('the task that was %s is cancelled', n))
from unnest('{pending,sleeping,waiting,running}'::text[]) as n;
select is(
  (select r.cancelled_at from teguh.get_task_result('q', pg_temp.task('running')) as r),
  '2031-05-01 12:00:00+00', 'get_task_result shows when'
);
select throws_ok(
  $$ select teguh.complete_run('q', pg_temp.run('running')) $$, 'AB001', null,
  'the worker that held it meets AB001'
);
select teguh.emit_event('q', 'e');
select is(
  (select count(*) from teguh.claim_task('q', 'w', 30, 100)), 0::bigint,
  'a cancel beside an emit leaves nothing to claim: the cancelled task does not run'
);
set teguh.fake_now = '2031-05-01 14:00:00+00';
select is(
  (select count(*) from teguh.claim_task('q', 'w', 30, 100)), 0::bigint,
  'nor does a cancelled sleeper when its time has come'
);
select is((select count(*) from teguh.w_q), 0::bigint, 'a cancelled task does not wait');

-- When a task that is over is cancelled
select lives_ok(
  format($$ select teguh.cancel_task('q', %L) $$, pg_temp.task(n)),
  format('cancelling a %s task is no error', n)
)
from unnest('{completed,failed,running}'::text[]) as n;
select is(pg_temp.state('completed'), 'completed', 'a task that is over stays as it is');
select throws_ok(
  $$ select teguh.cancel_task('q', gen_random_uuid()) $$,
  'TG003',
  null,
  'an unknown task cannot be cancelled'
);
select throws_ok(
  $$ select teguh.cancel_task('q', null) $$,
  'TG003',
  null,
  'no task cannot be cancelled'
);

-- When a failed task is retried in place
create temporary table again as select * from teguh.retry_task('q', pg_temp.task('failed'));

-- Then
select results_eq(
  $$ select a.task_id, a.run_id, a.attempt, a.created from again as a $$,
  $$ values (pg_temp.task('failed'), pg_temp.run('failed'), 2, false) $$,
  'retry_task returns what spawn_task does, of the same task'
);
select results_eq(
  $$
    select c.run_id, c.attempt, c.failures, c.checkpoints, c.max_attempts
    from teguh.claim_task('q', 'w') as c
  $$,
  $$ select a.run_id, 2, 1, '{"charge": 1}'::jsonb, 2 from again as a $$,
  'it runs once more from its checkpoints on, with room for one more run'
);
select throws_ok(
  $$ select teguh.retry_task('q', pg_temp.task('failed')) $$,
  'TG004',
  null,
  'a running task cannot be retried'
);
select teguh.fail_run('q', pg_temp.run('failed'), '"again"');
select is(pg_temp.state('failed'), 'failed', 'when it fails again it has failed');
select is(
  (select a.attempt from teguh.retry_task('q', pg_temp.task('failed'), '{"max_attempts": 5}') as a),
  3,
  'it can be retried again, with max_attempts'
);
select is(
  (select t.max_attempts from teguh.t_q as t where t.task_id = pg_temp.task('failed')),
  5,
  'which are set'
);
select teguh.cancel_task('q', pg_temp.task('failed'));
select throws_ok(
  $$ select teguh.retry_task('q', pg_temp.task('failed'), '{"max_attempts": 2}') $$, 'TG005', null,
  'max_attempts that are used up are refused'
);
select lives_ok(
  $$ select teguh.retry_task('q', pg_temp.task('failed')) $$,
  'a cancelled task can be retried'
);

-- When a completed task is retried
select throws_ok(
  $$ select teguh.retry_task('q', pg_temp.task('completed')) $$, 'TG004', null,
  'a completed task cannot be retried in place: a finished run can never become claimable'
);
truncate again;
insert into again select *
from teguh.retry_task('q', pg_temp.task('completed'), '{"spawn_new": true, "max_attempts": 7}');

-- Then
select results_eq(
  $$
    select
      t.task_name, t.params, t.headers, t.max_attempts, t.attempt, t.state, t.tags,
      t.correlation_id, t.parent_task_id
    from teguh.t_q as t
    join again as a using (task_id)
  $$,
  $$
    values (
      'completed', '{"name": "completed"}'::jsonb, '{"h": 1}'::jsonb, 7, 0, 'pending', '{t}'::text[],
      'c', '00000000-0000-7000-8000-000000000001'::uuid
    )
  $$,
  'spawn_new makes a new task of the same name, params and options'
);
select is(
  (select a.task_id <> pg_temp.task('completed') and a.created from again as a), true,
  'which is another task'
);
select throws_ok(
  format($$ select teguh.retry_task('q', pg_temp.task('completed'), %L) $$, n.options),
  'TG005',
  null,
  format('retry_task refuses the options %s', n.options)
)
from unnest(
  array['{"spawnnew": true}', '{"spawn_new": 1}', '{"max_attempts": 0}', '[]']
) as n(options);
select throws_ok(
  $$ select teguh.retry_task('q', gen_random_uuid()) $$,
  'TG003',
  null,
  'an unknown task cannot be retried'
);
select throws_ok(
  $$ select teguh.retry_task('nowhere', gen_random_uuid()) $$,
  'TG001',
  null,
  'a retry needs a queue'
);

-- When a task with a deadline is retried
select teguh.create_queue('d');
select teguh.spawn_task('d', 'd', '{}', '{"cancellation": {"max_delay": 10, "max_duration": 20}}');
set teguh.fake_now = '2031-05-01 15:00:00+00';
select teguh.ticker('d');
select teguh.retry_task('d', t.task_id) from teguh.t_d as t;

-- Then
select is(
  (select t.deadline_at from teguh.t_d as t), '2031-05-01 15:00:10+00',
  'a task that is retried has its max_delay anew'
);
select is((select c.attempt from teguh.claim_task('d', 'w') as c), 1, 'it starts');
select is(
  (select t.deadline_at from teguh.t_d as t), '2031-05-01 15:00:20+00',
  'and has its max_duration from its first start'
);

select * from finish();
rollback;
