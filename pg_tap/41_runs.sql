-- A worker completes, fails, sleeps, keeps or hands back the run it holds, and no other.
begin;
select plan(98);

-- Given a queue, tasks that are held, and a look at them
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('q');

create function pg_temp.take(p_task_name text, p_options jsonb default '{}')
  returns uuid
  language plpgsql
as $$
declare
  v_run_id uuid;
begin
  perform teguh.spawn_task('q', p_task_name, '{}', p_options);
  select c.run_id into strict v_run_id from teguh.claim_task('q', 'w', 30, 100) as c;
  return v_run_id;
end;
$$;

create function pg_temp.run(p_task_name text)
  returns uuid
  language sql
as $$
  select t.run_id from teguh.t_q as t where t.task_name = p_task_name;
$$;

create function pg_temp.state(p_task_name text)
  returns text
  language sql
as $$
  select format('%s, attempt %s, %s failures', t.state, t.attempt, t.failures)
  from teguh.t_q as t
  where t.task_name = p_task_name;
$$;

-- Every call that a worker may make for a run.
create temporary table call (place serial, name text, code text);
insert into call (name, code)
values
  ('complete_run', $$ select teguh.complete_run('q', %1$L) $$),
  ('fail_run', $$ select teguh.fail_run('q', %1$L, '"no"') $$),
  ('schedule_run', $$ select teguh.schedule_run('q', %1$L, '2031-05-01 13:00+00') $$),
  ('release_run', $$ select teguh.release_run('q', %1$L) $$),
  ('extend_claim', $$ select teguh.extend_claim('q', %1$L, 30) $$),
  ('set_task_checkpoint_state',
   $$ select teguh.set_task_checkpoint_state('q', teguh._run_task(%1$L), 's', '1', %1$L) $$),
  ('await_event', $$ select teguh.await_event('q', teguh._run_task(%1$L), %1$L, 's', 'e') $$);

-- When a run is completed
select pg_temp.take('done');
select teguh.complete_run('q', pg_temp.run('done'), '{"paid": true}');

-- Then
select results_eq(
  $$
    select t.state, t.result, t.finished_at, t.lease_expires_at
    from teguh.t_q as t
    where t.task_name = 'done'
  $$,
  $$
    values (
      'completed', '{"paid": true}'::jsonb, '2031-05-01 12:00:00+00'::timestamptz,
      '2031-05-01 12:00:30+00'::timestamptz
    )
  $$,
  'a completed task holds the result and the end of its last lease'
);

select throws_ok(
  format(c.code, pg_temp.run('done')), 'AB002', null,
  format('%s: a run that has completed answers AB002', c.name)
)
from call as c
order by c.place;

select is_empty(
  $$ select * from teguh.r_q $$,
  'a task that succeeds the first time costs no history row'
);

select pg_temp.take('null');
select teguh.complete_run('q', pg_temp.run('null'));
select is(
  (select t.result from teguh.t_q as t where t.task_name = 'null'), null,
  'a run may complete without a result'
);

-- When a task is cancelled while a worker holds it
select pg_temp.take('stopped');
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t where t.task_name = 'stopped';

-- Then
select throws_ok(
  format(c.code, pg_temp.run('stopped')), 'AB001', null,
  format('%s: a cancelled run answers AB001 on every call', c.name)
)
from call as c
order by c.place;

-- When a lease is lost
create temporary table old as
select pg_temp.take('stale', '{"retry_strategy": {"kind": "none"}}') as run_id;
set teguh.fake_now = '2031-05-01 12:00:30+00';
select teguh.ticker('q');
select c.task_name from teguh.claim_task('q', 'w2', 1000, 100) as c;

-- Then
select throws_ok(
  format(c.code, (select o.run_id from old as o)), 'AB002', null,
  format('%s: a stale worker whose lease was taken meets AB002', c.name)
)
from call as c
order by c.place;

select is(
  pg_temp.state('stale'), 'running, attempt 2, 1 failures',
  'the worker that has the task now is not disturbed by it'
);
select teguh.complete_run('q', pg_temp.run('stale'));

-- Given runs that do not exist
-- Then
select throws_ok(
  format(c.code, n.run_id), 'TG002', null,
  format('%s: %s does not exist', c.name, n.why)
)
from call as c
cross join (
  select gen_random_uuid() as run_id, 'a run of no task' as why
  union all
  select t.task_id, 'a run whose id is the task''s' from teguh.t_q as t where t.task_name = 'done'
  union all
  select teguh._run_id(t.task_id, 2), 'a run that is still to come'
  from teguh.t_q as t
  where t.task_name = 'done'
) as n
order by c.place;

-- Given a run that nobody holds
select teguh.spawn_task('q', 'waiting', '{}', '{"delay_seconds": 60}');

-- Then
select throws_ok(
  format(c.code, pg_temp.run('waiting')), 'TG004', null,
  format('%s: a run that nobody holds must be claimed first', c.name)
)
from call as c
order by c.place;

select teguh.cancel_task('q', t.task_id) from teguh.t_q as t where t.task_name = 'waiting';

-- When a run fails
select pg_temp.take(
  'fails', '{"max_attempts": 3, "retry_strategy": {"kind": "fixed", "base_seconds": 10}}'
);
select teguh.fail_run('q', pg_temp.run('fails'), '{"message": "first"}');

-- Then
select is(
  pg_temp.state('fails'),
  'sleeping, attempt 1, 1 failures',
  'a failed run is followed by another'
);
select is(
  (select t.available_at from teguh.t_q as t where t.task_name = 'fails'), '2031-05-01 12:00:40+00',
  'it starts after the delay of its strategy'
);

-- When it fails with a time of its own for the retry
set teguh.fake_now = '2031-05-01 12:00:40+00';
select c.task_name from teguh.claim_task('q', 'w', 30) as c;
select teguh.fail_run('q', pg_temp.run('fails'), '{"message": "second"}', '2031-05-01 12:05:00+00');

-- Then
select is(
  (select t.available_at from teguh.t_q as t where t.task_name = 'fails'), '2031-05-01 12:05:00+00',
  'p_retry_at goes before the strategy'
);

-- When it fails for the third time
set teguh.fake_now = '2031-05-01 12:05:00+00';
select c.task_name from teguh.claim_task('q', 'w', 30) as c;
select teguh.fail_run('q', pg_temp.run('fails'), '{"message": "third"}');

-- Then
select is(pg_temp.state('fails'), 'failed, attempt 3, 3 failures', 'max_attempts bounds runs');
select is(
  array(
    select h.failure_reason ->> 'message'
    from teguh.r_q as h
    join teguh.t_q as t on t.task_id = h.task_id and t.task_name = 'fails'
    order by h.run_id
  )
  || (select t.failure_reason ->> 'message' from teguh.t_q as t where t.task_name = 'fails'),
  '{first,second,third}',
  'the reason of every failed run is kept'
);

-- When a run fails without limit and without strategy
select pg_temp.take('forever');
select teguh.fail_run('q', pg_temp.run('forever'), null);

-- Then
select is(
  pg_temp.state('forever'),
  'sleeping, attempt 1, 1 failures',
  'without max_attempts there is always another run'
);
select ok(
  (
    select t.available_at between '2031-05-01 12:05:00.9+00' and '2031-05-01 12:05:01+00'
    from teguh.t_q as t
    where t.task_name = 'forever'
  ),
  'the default strategy begins with a second'
);
select is(
  (select t.failure_reason from teguh.t_q as t where t.task_name = 'forever'), 'null',
  'a reason of null is JSON null'
);
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t where t.task_name = 'forever';

-- When the only run fails
select pg_temp.take('once', '{"max_attempts": 1}');
select teguh.fail_run('q', pg_temp.run('once'), '"no"', '2031-05-01 13:00+00');

-- Then
select is(
  pg_temp.state('once'), 'failed, attempt 1, 1 failures',
  'p_retry_at gives no attempt beyond max_attempts'
);

-- When a run sleeps three times
select pg_temp.take('sleepy', '{"max_attempts": 2, "retry_strategy": {"kind": "none"}}');
select teguh.schedule_run('q', pg_temp.run('sleepy'), '2031-05-01 12:05:10.25+00');
select is(
  teguh.next_due('q'), '2031-05-01 12:05:10.25+00',
  'a sleep ends when it should, to the fraction of a second'
);
set teguh.fake_now = '2031-05-01 12:05:10.25+00';
select c.task_name from teguh.claim_task('q', 'w') as c;
select teguh.schedule_run('q', pg_temp.run('sleepy'), '-infinity');
select is(
  pg_temp.state('sleepy'),
  'pending, attempt 2, 0 failures',
  'a sleep that is over wakes at once'
);
select c.task_name from teguh.claim_task('q', 'w') as c;
select teguh.schedule_run('q', pg_temp.run('sleepy'), '2031-05-01 12:05:11+00');
set teguh.fake_now = '2031-05-01 12:05:11+00';
select c.task_name from teguh.claim_task('q', 'w') as c;

-- Then
select is(
  pg_temp.state('sleepy'), 'running, attempt 4, 0 failures',
  'sleeping consumes no attempt of max_attempts'
);
select is(
  teguh._run_number(pg_temp.run('sleepy')), 1,
  'a run keeps its id while it sleeps'
);
select throws_ok(
  format($$ select teguh.schedule_run('q', %L, null) $$, pg_temp.run('sleepy')), '22004', null,
  'a run that sleeps must have a time to wake at'
);
select lives_ok(
  format($$ select teguh.schedule_run('q', %L, 'infinity') $$, pg_temp.run('sleepy')),
  'a run may sleep for ever'
);
select is(teguh.next_due('q'), null, 'one that sleeps for ever is never due');
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t where t.task_name = 'sleepy';

-- When a run is handed back
select pg_temp.take('returned', '{"max_attempts": 1, "cancellation": {"max_delay": 60}}');
select teguh.release_run('q', pg_temp.run('returned'));

-- Then
select is(
  pg_temp.state('returned'), 'pending, attempt 0, 0 failures',
  'an unknown task name burns no attempt: the run is handed back without consuming one'
);
select c.task_name from teguh.claim_task('q', 'w') as c;
select is(
  pg_temp.state('returned'),
  'running, attempt 1, 0 failures',
  'the next claim is the first attempt again'
);
select teguh.release_run('q', pg_temp.run('returned'), 2.5);
select is(
  (
    select format('%s %s', t.state, t.available_at at time zone 'UTC')
    from teguh.t_q as t
    where t.task_name = 'returned'
  ),
  'sleeping 2031-05-01 12:05:13.5', 'it may be handed back with a delay, in fractions of a second'
);
select is(
  (select t.deadline_at from teguh.t_q as t where t.task_name = 'returned'),
  '2031-05-01 12:06:13.5+00',
  'max_delay counts anew for a run that was handed back unbegun'
);
select is(
  (select t.first_started_at from teguh.t_q as t where t.task_name = 'returned'), null,
  'a task that was only handed back has not started'
);
set teguh.fake_now = '2031-05-01 12:05:14+00';
select c.task_name from teguh.claim_task('q', 'w') as c;
select throws_ok(
  format($$ select teguh.release_run('q', %L, %L) $$, pg_temp.run('returned'), n.delay),
  'TG005',
  null,
  format('a run cannot be handed back with a delay of %s', coalesce(n.delay, 'null'))
)
from unnest('{-1,NaN,null}'::text[]) as n(delay);

-- When leases are extended
select throws_ok(
  format($$ select teguh.extend_claim('q', %L, %L) $$, pg_temp.run('returned'), n.seconds),
  'TG005',
  null,
  format('a lease cannot be extended by %s', coalesce(n.seconds, 'null'))
)
from unnest('{0,-5,NaN,null}'::text[]) as n(seconds);

select lives_ok(
  format($$ select teguh.extend_claim('q', %L, 'Infinity') $$, pg_temp.run('returned')),
  'a lease may be extended for ever'
);
select teguh.extend_claim('q', pg_temp.run('returned'), 0.75);
select is(
  (select t.lease_expires_at from teguh.t_q as t where t.task_name = 'returned'),
  '2031-05-01 12:05:14.75+00',
  'a heartbeat takes fractions of a second'
);

-- When many runs are completed at once, some of which are not to be had
truncate call;
select teguh.complete_run('q', pg_temp.run('returned'));
select teguh.spawn_task('q', n, '{}') from unnest('{b1,b2,b3}'::text[]) as n;
select c.task_name from teguh.claim_task('q', 'w', 30, 3) as c;
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t where t.task_name = 'b2';
select teguh.spawn_task('q', 'b4', '{}');
create temporary table batch as
select c.run_id, c.applied, c.error
from teguh.complete_runs('q', jsonb_build_array(
  jsonb_build_object('run_id', pg_temp.run('b3'), 'state', 3),
  jsonb_build_object('run_id', pg_temp.run('b2'), 'state', 2),
  jsonb_build_object('run_id', (select o.run_id from old as o)),
  jsonb_build_object('run_id', '01950000-0000-7000-8000-000000000001'),
  jsonb_build_object('run_id', pg_temp.run('b4')),
  jsonb_build_object('run_id', pg_temp.run('b1'))
)) as c;

-- Then
select results_eq(
  $$ select b.run_id, b.applied, b.error from batch as b $$,
  $$
    values
      (pg_temp.run('b3'), true, null),
      (pg_temp.run('b2'), false, 'AB001'),
      ((select o.run_id from old as o), false, 'AB002'),
      ('01950000-0000-7000-8000-000000000001', false, 'TG002'),
      (pg_temp.run('b4'), false, 'TG004'),
      (pg_temp.run('b1'), true, null)
  $$,
  'complete_runs tells per run whether it was applied: one lost lease does not fail the batch'
);

select results_eq(
  $$
    select t.state, t.result
    from teguh.t_q as t
    where t.task_name in ('b1', 'b3')
    order by t.task_name
  $$,
  $$ values ('completed', null::jsonb), ('completed', '3'::jsonb) $$,
  'the others are completed with their results'
);

select is_empty(
  $$ select * from teguh.complete_runs('q', '[]') $$,
  'an empty batch completes nothing'
);

select throws_ok(
  format($$ select * from teguh.complete_runs('q', %L) $$, n.runs), 'TG005', null,
  format('complete_runs refuses %s', n.why)
)
from (
  values
    ('{}', 'an object'), (null, 'null'), ('[1]', 'a number'),
    ('[{"run_id": "x"}]', 'an id that is no uuid'),
    ('[{"runid": "01950000-0000-7000-8000-000000000001"}]', 'a misspelt key'),
    ('[{"run_id": "01950000-0000-7000-8000-000000000001", "sate": 1}]', 'an unknown key'),
    ('[{"run_id": "01950000-0000-7000-8000-000000000001"},
       {"run_id": "01950000-0000-7000-8000-000000000001"}]',
     'a run that is listed twice')
) as n(runs, why);

-- When a queue keeps no history, then a run that another follows leaves none
select teguh.create_queue('h', '{"history": false, "default_retry_strategy": {"kind": "none"}}');
select teguh.spawn_task('h', 'brief', '{}');
select teguh.fail_run('h', c.run_id, '{"message": "1"}') from teguh.claim_task('h', 'w') as c;
select is_empty(
  $$ select * from teguh.r_h $$,
  'history false keeps no run that was followed by another'
);
select teguh.set_queue_policy('h', '{"history": null}');
select teguh.fail_run('h', c.run_id, '{"message": "2"}') from teguh.claim_task('h', 'w') as c;
select results_eq(
  $$ select r.failure_reason ->> 'message' from teguh.r_h as r $$,
  $$ values ('2') $$,
  'and from then on those that end'
);
select throws_ok(
  $$ select teguh.set_queue_policy('h', '{"history": "no"}') $$, 'TG005', null,
  'history is true or false'
);

-- When a retry would begin just when its task expires
select teguh.create_queue('e');
select teguh.spawn_task('e', 'edge', '{}', '{
  "ttl_seconds": 10, "retry_strategy": {"kind": "fixed", "base_seconds": 10}
}');
select teguh.fail_run('e', c.run_id, '1') from teguh.claim_task('e', 'w') as c;
select is((select t.state from teguh.t_e as t), 'expired', 'no retry begins at the deadline');

-- When runs that an event has woken sleep, and fail
select teguh.spawn_task('e', n.name, '{}', '{"retry_strategy": {"kind": "none"}}')
from unnest('{fails,sleeps}'::text[]) as n(name);
select teguh.await_event('e', c.task_id, c.run_id, 's', 'go')
from teguh.claim_task('e', 'w', 0, 2) as c;
select teguh.emit_event('e', 'go', '1');
create temporary table woken as select * from teguh.claim_task('e', 'w', 0, 2);
select teguh.schedule_run('e', w.run_id, '2031-05-01 13:00:00+00')
from woken as w
where w.task_name = 'sleeps';
select teguh.fail_run('e', w.run_id, '1') from woken as w where w.task_name = 'fails';

-- Then
select results_eq(
  $$
    select w.wake_event, w.event_payload, t.wake_event, t.event_payload
    from woken as w
    cross join lateral teguh.get_task('e', w.task_id) as t
    order by w.task_name
  $$,
  $$ values ('go', '1'::jsonb, null::text, null::jsonb), ('go', '1', null, null) $$,
  'the event that woke a run, and its payload, are forgotten when that sleeps or fails'
);

select * from finish();
rollback;
