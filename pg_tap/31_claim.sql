-- A claim hands out the oldest due runs, each to one worker, with all that the worker needs.
begin;
select plan(57);

-- Given three tasks, spawned one after the other
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('q');
create temporary table job (n serial, task_id uuid, run_id uuid);
insert into job (task_id, run_id)
select s.task_id, s.run_id
from teguh.spawn_tasks('q', '[
  {"task_name": "one", "params": {"a": 1}, "options": {
    "headers": {"traceparent": "00-1"}, "max_attempts": 4,
    "retry_strategy": {"kind": "fixed", "base_seconds": 5}}},
  {"task_name": "two"},
  {"task_name": "three"}
]') as s;

-- When one is claimed
create temporary table run as select * from teguh.claim_task('q', 'worker 1', 30);

-- Then
select results_eq(
  $$
    select r.run_id, r.task_id, r.attempt, r.task_name, r.params, r.retry_strategy, r.max_attempts,
      r.headers, r.wake_event, r.event_payload, r.failures, r.checkpoints, r.lease_expires_at
    from run as r
  $$,
  $$
    select j.run_id, j.task_id, 1, 'one', '{"a": 1}'::jsonb,
      '{"kind": "fixed", "base_seconds": 5}'::jsonb, 4, '{"traceparent": "00-1"}'::jsonb,
      null::text, null::jsonb, 0, '{}'::jsonb, '2031-05-01 12:00:30+00'::timestamptz
    from job as j
    where j.n = 1
  $$,
  'a claim returns the run id of the spawn and all that the worker needs'
);

select results_eq(
  $$
    select t.state, t.claimed_by, t.attempt, t.started_at, t.first_started_at, t.lease_expires_at
    from teguh.t_q as t
    where t.task_name = 'one'
  $$,
  $$
    values ('running', 'worker 1', 1, '2031-05-01 12:00:00+00'::timestamptz,
      '2031-05-01 12:00:00+00'::timestamptz, '2031-05-01 12:00:30+00'::timestamptz)
  $$,
  'the task says who has it and until when'
);

-- When two more are claimed by one call
insert into run select * from teguh.claim_task('q', 'w', 30, 2);

-- Then
select is(
  array(select r.task_name from run as r),
  '{one,two,three}',
  'runs are handed out oldest first, up to p_qty of them'
);

select is_empty(
  $$ select * from teguh.claim_task('q', 'w', 30, 10) $$,
  'a run is handed to one worker only'
);

-- Given ways to say who claims, how long and how many
select teguh.spawn_task('q', n::text, '{}') from generate_series(1, 30) as n;

-- Then
create function pg_temp.called(p_worker text)
  returns text
  language plpgsql
as $$
declare
  v_task_id uuid;
begin
  select c.task_id into v_task_id from teguh.claim_task('q', p_worker) as c;
  return (select t.claimed_by from teguh.t_q as t where t.task_id = v_task_id);
end;
$$;

select is(
  pg_temp.called(n.worker),
  'worker',
  format('a worker whose id is %s is called worker', n.why)
)
from (values (null, 'null'), ('', 'empty'), ('   ', 'blank')) as n(worker, why);

select results_eq(
  format($$ select c.lease_expires_at from teguh.claim_task('q', 'w', %s) as c $$, n.timeout),
  format($$ values (%L::timestamptz) $$, n.until),
  format('a claim timeout of %s: %s', n.timeout, n.why)
)
from (
  values
    ('0', null, 'the lease never ends'),
    ('-1', null, 'the lease never ends'),
    ('null', null, 'the lease never ends'),
    ($$'NaN'$$, null, 'the lease never ends'),
    ($$'-Infinity'$$, null, 'the lease never ends'),
    ('1e300', 'infinity', 'the lease ends at infinity'),
    ('1.5', '2031-05-01 12:00:01.5+00', 'fractions of a second count'),
    ('60::integer', '2031-05-01 12:01:00+00', 'an integer is accepted'),
    ('60::bigint', '2031-05-01 12:01:00+00', 'a bigint is accepted')
) as n(timeout, until, why);

select is(
  (select c.lease_expires_at from teguh.claim_task('q', 'w') as c), '2031-05-01 12:00:30+00',
  'the claim timeout is 30 seconds by default'
);

select is(
  (select count(*) from teguh.claim_task('q', 'w', 30, n.qty)), 1::bigint,
  format('a quantity of %s counts as 1', coalesce(n.qty::text, 'null'))
)
from unnest('{0,-5,null}'::integer[]) as n(qty);

select lives_ok(
  $$
    select count(*) from teguh.claim_task('q', 'w', 30, 2147483647);
    select count(*) from teguh.claim_task('q', 'w', 30, 2147483647);
  $$,
  'the greatest quantity is all that is due'
);

select is(
  (select count(*) from teguh.t_q as t where t.state <> 'running'), 0::bigint,
  'nothing was left'
);

-- Given dispatch rows that are stale or double
select teguh.create_queue('d');
insert into job (task_id, run_id)
select s.task_id, s.run_id
from teguh.spawn_tasks('d', (
  select jsonb_agg(jsonb_build_object('task_name', t.name))
  from unnest('{done,failed,cancelled,running,asleep}'::text[]) as t(name)
)) as s;
update teguh.t_d set max_attempts = 1;
create temporary table held as select * from teguh.claim_task('d', 'w', 30, 5);
select teguh.complete_run('d', (select h.run_id from held as h where h.task_name = 'done'));
select teguh.fail_run('d', (select h.run_id from held as h where h.task_name = 'failed'), '1');
select teguh.cancel_task('d', (select h.task_id from held as h where h.task_name = 'cancelled'));
select teguh.schedule_run(
  'd', (select h.run_id from held as h where h.task_name = 'asleep'), '2031-05-01 12:05+00'
);
select teguh._push_d('r', array_agg(t.task_id), array_agg(n.turn))
from teguh.t_d as t
cross join generate_series(0, 1) as n(turn);
select teguh._push_d('r', array_agg(t.task_id), array_agg(t.turn))
from teguh.t_d as t
where t.state <> 'sleeping';

-- Then
select is_empty(
  $$ select c.task_name from teguh.claim_task('d', 'w', 30, 50) as c $$,
  'a finished run can never become claimable, whatever dispatch rows there are'
);

select is(
  teguh.next_due('d'), '2031-05-01 12:05+00',
  'next_due sees through stale rows'
);

select teguh.spawn_task('d', 'twice', '{}');
select teguh._push_d('r', array[t.task_id, t.task_id], array[t.turn, t.turn])
from teguh.t_d as t
where t.task_name = 'twice';

select is(
  array(select c.task_name from teguh.claim_task('d', 'w', 30, 50) as c), '{twice}',
  'a task with several dispatch rows is handed out once'
);

select teguh.spawn_task('d', 'given up', '{}');
select teguh.cancel_task('d', t.task_id)
from teguh.t_d as t
where t.task_name = 'given up';

select is_empty(
  $$ select * from teguh.claim_task('d', 'w', 30, 50) $$,
  'a claim never returns a task that is not claimable: it was cancelled before'
);

-- Given due sleepers and no ticker
select teguh.create_queue('s');
select teguh.spawn_task('s', 'sleeper ' || n, '{}', jsonb_build_object('delay_seconds', 10 - n))
from generate_series(1, 5) as n;
select teguh.spawn_task('s', 'ready', '{}');

-- Then
select is(
  teguh.next_due('s'), '2031-05-01 12:00:00+00',
  'next_due is the present moment when a task is ready'
);

select is(
  array(select c.task_name from teguh.claim_task('s', 'w', 0, 50) as c), '{ready}',
  'a delayed task is not handed out before its time'
);

select is(
  teguh.next_due('s'), '2031-05-01 12:00:05+00',
  'next_due is when the first delayed task is due'
);

set teguh.fake_now = '2031-05-01 12:00:07+00';

select is(
  array(
    select format('%s, attempt %s', c.task_name, c.attempt)
    from teguh.claim_task('s', 'w', 0, 50) as c
  ),
  '{"sleeper 5, attempt 1","sleeper 4, attempt 1","sleeper 3, attempt 1"}',
  'a sleeping task that is due is claimable without a ticker; first claim is attempt 1'
);

select is(
  teguh.next_due('s'), '2031-05-01 12:00:08+00',
  'next_due goes on to the next'
);

set teguh.fake_now = '2031-05-01 13:00:00+00';
select is(
  array(select c.task_name from teguh.claim_task('s', 'w', 0, 2) as c),
  '{"sleeper 2","sleeper 1"}',
  'sleepers are handed out in the order in which they came due'
);

select is(
  teguh.next_due('s'), null,
  'next_due is null when nothing is delayed'
);

-- Given tasks whose first claim was handed back, failed, slept, awaited
select teguh.create_queue('a');
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.spawn_task('a', 'a', '{}', '{"max_attempts": 2}');

create function pg_temp.claim()
  returns text
  language sql
as $$
  select format('attempt %s, %s failures', c.attempt, c.failures)
  from teguh.claim_task('a', 'w', 0) as c;
$$;

-- Then
select is(pg_temp.claim(), 'attempt 1, 0 failures', 'the first time is attempt 1');

select teguh.release_run('a', (select t.run_id from teguh.t_a as t));
select is(pg_temp.claim(), 'attempt 1, 0 failures', 'a run handed back was no attempt');

select teguh.schedule_run('a', (select t.run_id from teguh.t_a as t), '2031-05-01 12:00+00');
select is(pg_temp.claim(), 'attempt 2, 0 failures', 'attempt grows after a sleep');

create temporary table first_run as select t.run_id from teguh.t_a as t;
select is(
  (
    select should_suspend
    from teguh.t_a as t, teguh.await_event('a', t.task_id, t.run_id, 's', 'e')
  ),
  true, 'the run awaits an event'
);
select teguh.emit_event('a', 'e', '{"n": 1}');
select is(
  (
    select format('%s %s %s %s', c.attempt, c.failures, c.wake_event, c.event_payload)
    from teguh.claim_task('a', 'w', 0) as c
  ),
  '3 0 e {"n": 1}',
  'attempt grows after a wait; the event that woke the run comes with its payload'
);

select is(
  (select t.run_id from teguh.t_a as t), (select f.run_id from first_run as f),
  'a run keeps its id while it sleeps and awaits'
);

select teguh.fail_run('a', (select t.run_id from teguh.t_a as t), '"oops"', '2031-05-01 12:00+00');
select is(
  pg_temp.claim(), 'attempt 4, 1 failures',
  'only failures consume max_attempts: three sleeps and waits left a retry'
);

select isnt(
  (select t.run_id from teguh.t_a as t), (select f.run_id from first_run as f),
  'a failure starts a new run'
);

-- When it has checkpoints
select teguh.set_task_checkpoint_state('a', t.task_id, 'charge', '{"paid": 1}', t.run_id)
from teguh.t_a as t;
select teguh.release_run('a', t.run_id) from teguh.t_a as t;

-- Then
select is(
  (select c.checkpoints from teguh.claim_task('a', 'w') as c),
  '{"s": {"n": 1}, "charge": {"paid": 1}}',
  'a claim brings the checkpoints of all runs of the task'
);

-- Given a wait that times out
select teguh.create_queue('t');
select teguh.spawn_task('t', 't', '{}');
select teguh.claim_task('t', 'w');
select teguh.await_event('t', t.task_id, t.run_id, 's', 'late', 5) from teguh.t_t as t;
set teguh.fake_now = '2031-05-01 12:00:05+00';

-- Then
select results_eq(
  $$ select c.wake_event, c.event_payload from teguh.claim_task('t', 'w') as c $$,
  $$ values ('late', null::jsonb) $$,
  'wake_event is the event whose wait timed out, with payload SQL null'
);

-- When its task asks, and is handed back
select teguh.await_event('t', t.task_id, t.run_id, 's', 'late', 5) from teguh.t_t as t;
select teguh.release_run('t', t.run_id) from teguh.t_t as t;

-- Then
select is(
  (select c.checkpoints from teguh.claim_task('t', 'w') as c), '{}'::jsonb,
  'a claim brings no checkpoint of a wait that timed out'
);
select is(
  (select t.first_started_at from teguh.t_t as t), '2031-05-01 12:00:00+00',
  'a task has started when it was claimed first'
);

-- Given claims that come right after another, which has looked at what is due
create function pg_temp.claim_at_once(p_queue_name text)
  returns text
  language plpgsql
as $$
begin
  perform setval('teguh.fired_' || p_queue_name, teguh._micros(clock_timestamp()) / 1000);
  return (select c.task_name from teguh.claim_task(p_queue_name, 'w') as c);
end;
$$;

-- When a sleeper is due, and a task past its deadline
select teguh.create_queue('o');
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.spawn_task('o', 'sleeper', '{}', '{"delay_seconds": 10}');
set teguh.fake_now = '2031-05-01 12:00:10+00';
select is(
  pg_temp.claim_at_once('o'), 'sleeper', 'a claim that would come back short looks at what is due'
);
select teguh.drop_queue('o');
select teguh.create_queue('o');
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.spawn_task('o', 'o', '{}', '{"cancellation": {"max_delay": 10}}');
set teguh.fake_now = '2031-05-01 12:00:10+00';

-- Then
select is(
  pg_temp.claim_at_once('o'), null,
  'a task that did not start in time is never handed out'
);

select is(
  (select t.state from teguh.t_o as t), 'cancelled',
  'the claim that looked for it has cancelled it'
);

-- Given many rows that are worked off
select teguh.create_queue('m');
select count(*) from teguh.spawn_tasks('m', (
  select jsonb_agg(jsonb_build_object('task_name', n::text)) from generate_series(1, 600) as n
));
create temporary table taken as
select c.task_id, c.task_name
from generate_series(1, 60) as n
cross join lateral teguh.claim_task('m', 'w' || n, 0, 10) as c;

-- Then
select results_eq(
  $$ select count(*), count(distinct t.task_id) from taken as t $$,
  $$ values (600::bigint, 600::bigint) $$,
  'sixty claims of ten hand out six hundred tasks once each'
);

-- Given no ready task at all
-- Then
select is(
  teguh.next_due('m'), null,
  'next_due is null when all is claimed'
);

select throws_ok(
  $$ select * from teguh.claim_task('nowhere', 'w') $$,
  'TG001', 'queue "nowhere" does not exist',
  'a claim on an unknown queue names it'
);

select throws_ok(
  $$ select * from teguh.claim_task(null, 'w') $$,
  'TG001', null,
  'a claim on no queue is an error'
);

select throws_ok(
  $$ select teguh.next_due('nowhere') $$,
  'TG001', null,
  'next_due of an unknown queue is an error'
);

-- Given what a poison task does
select teguh.create_queue('p');
select teguh.spawn_task(
  'p', 'poison', '{}', '{"max_attempts": 2, "retry_strategy": {"kind": "none"}}'
);
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.claim_task('p', 'w', 1);
set teguh.fake_now = '2031-05-01 12:00:02+00';
select is(
  (select format('%s %s', c.attempt, c.failures) from teguh.claim_task('p', 'w', 1, 2) as c), '2 1',
  'a claim hands out what it found with an expired lease; that run failed'
);
set teguh.fake_now = '2031-05-01 12:00:04+00';
select is_empty(
  $$ select * from teguh.claim_task('p', 'w', 1) $$,
  'a poison task that kills its worker is not re-run for ever'
);
select is(
  (select t.state from teguh.t_p as t), 'failed',
  'it has failed'
);

-- Given every statement of a claim
-- Then
select is_empty(
  $$
    select p.proname
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and p.proname ~ '^_claim[01]_q$'
      and p.prosrc ~* 'delete|execute'
  $$,
  'a claim deletes nothing and builds no statement out of strings'
);

select * from finish();
rollback;
