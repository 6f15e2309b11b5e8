-- What comes due: sleepers are queued, expired leases fail their runs, deadlines cancel.
-- Each statement commits by itself: timers set by an open transaction are looked at again.
select plan(60);

-- Given a clock to set and a look at tasks
create function pg_temp.at(p_seconds double precision)
  returns void
  language sql
as $$
  select set_config(
    'teguh.fake_now',
    ('2031-05-01 12:00:00+00'::timestamptz + make_interval(secs => p_seconds))::text,
    false
  );
$$;

select pg_temp.at(0);
select teguh.create_queue('q');

create function pg_temp.state(p_task_name text)
  returns text
  language sql
as $$
  select t.state || ', ' || t.failures || ' failures'
  from teguh.t_q as t
  where t.task_name = p_task_name;
$$;

create function pg_temp.take(p_task_name text, p_options jsonb, p_timeout double precision)
  returns uuid
  language plpgsql
as $$
declare
  v_run_id uuid;
begin
  perform teguh.spawn_task('q', p_task_name, '{}', p_options);
  select c.run_id into strict v_run_id from teguh.claim_task('q', 'w1', p_timeout, 100) as c;
  return v_run_id;
end;
$$;

-- When a lease of 10 seconds is not extended
create temporary table run (name text, run_id uuid);
insert into run
values (
  'lost', pg_temp.take('lost', '{"retry_strategy": {"kind": "fixed", "base_seconds": 5}}', 10)
);
select pg_temp.at(9.999);

-- Then
select is(teguh.ticker('q'), 0, 'a lease lasts as long as it was granted');
select is(pg_temp.state('lost'), 'running, 0 failures', 'the run goes on until then');

select pg_temp.at(10);
select is(teguh.ticker('q'), 1, 'the ticker ends a run whose lease has expired');
select is(
  pg_temp.state('lost'), 'sleeping, 1 failures',
  'expiry consumes an attempt and its backoff, in SQL'
);

select throws_ok(
  $$ select teguh.complete_run('q', (select r.run_id from run as r)) $$,
  'AB002', null,
  'the worker that lost its lease cannot complete the run'
);

select is(
  (select t.failure_reason from teguh.t_q as t),
  '{"name": "$ClaimTimeout", "message": "the lease of worker w1 expired"}',
  'the reason names the worker whose lease expired'
);

select is(
  (select h.claimed_by || ' ' || h.state || ' ' || h.attempt from teguh.r_q as h), 'w1 failed 1',
  'the run is kept in the history'
);

select is(teguh.next_due('q'), '2031-05-01 12:00:15+00', 'the next run is due after the backoff');

select pg_temp.at(15);
select is(
  (select c.run_id <> r.run_id from teguh.claim_task('q', 'w2', 10) as c cross join run as r), true,
  'another run follows'
);

-- When it is lost for good
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t;

-- Given three heartbeats of 30 seconds each, one second apart
truncate run;
insert into run values ('kept', pg_temp.take('kept', '{"retry_strategy": {"kind": "none"}}', 10));
select pg_temp.at(16);
select teguh.extend_claim('q', (select r.run_id from run as r), 30);
select pg_temp.at(17);
select teguh.extend_claim('q', (select r.run_id from run as r), 30);
select pg_temp.at(18);
select teguh.extend_claim('q', (select r.run_id from run as r), 30);

-- Then
select is(
  (select t.lease_expires_at from teguh.t_q as t where t.task_name = 'kept'),
  '2031-05-01 12:00:48+00',
  'a heartbeat sets the lease to now + extend, never adds'
);

select pg_temp.at(47);
select is(teguh.ticker('q'), 0, 'an extended lease is not ended by its first timer');
select is(pg_temp.state('kept'), 'running, 0 failures', 'its run goes on');

select pg_temp.at(48);
select is(teguh.ticker('q'), 1, 'an extended lease expires as well');
select is(pg_temp.state('kept'), 'pending, 1 failures', 'its run has failed');

-- When a lease is made shorter
truncate run;
select c.task_name from teguh.claim_task('q', 'w', 0, 100) as c;
insert into run
values ('short', pg_temp.take('short', '{"retry_strategy": {"kind": "none"}}', 1000));
select teguh.extend_claim('q', (select r.run_id from run as r), 2);
select pg_temp.at(50);

-- Then
select is(teguh.ticker('q'), 1, 'a lease that was made shorter expires at its new end');

-- When timers of one lease come due twice at once, as by two claims at the same time
select c.task_name from teguh.claim_task('q', 'w', 0, 100) as c;
truncate run;
insert into run
values ('double', pg_temp.take('double', '{"retry_strategy": {"kind": "none"}}', 1000));
create temporary table before as
select count(*) as rows from teguh.p0_q as p where p.kind = 'l';
select teguh._expire_q(
  array[row(t.task_id, t.turn)::teguh._timer, row(t.task_id, t.turn)::teguh._timer,
    row(t.task_id, t.turn)::teguh._timer],
  teguh.current_time()
)
from teguh.t_q as t
where t.task_name = 'double';

-- Then
select is(
  (select count(*) from teguh.p0_q as p where p.kind = 'l') - (select b.rows from before as b),
  1::bigint,
  'timers do not multiply: three of a lease that was extended become one'
);

-- When it fails after its last attempt by losing its lease
select teguh.cancel_task('q', t.task_id)
from teguh.t_q as t
where t.state in ('running', 'sleeping', 'pending');
select pg_temp.take('last', '{"max_attempts": 1}', 5);
select pg_temp.at(60);
select teguh.ticker('q');

-- Then
select is(
  pg_temp.state('last'), 'failed, 1 failures',
  'a poison task that kills its worker ends as failed when its attempts are used up'
);

-- Given a lease without end
select pg_temp.take('endless', '{}', 0);
select pg_temp.at(1e9);

-- Then
select is(teguh.ticker('q'), 0, 'a lease without end never expires');
select is(pg_temp.state('endless'), 'running, 0 failures', 'its run goes on');

-- Given a task that must start within 10 seconds of its time, delayed by 60
select pg_temp.at(100);
select teguh.spawn_task(
  'q', 'delayed', '{}', '{"delay_seconds": 60, "cancellation": {"max_delay": 10}}'
);
select pg_temp.at(165);

-- Then
select is(
  (select c.attempt from teguh.claim_task('q', 'w', 0) as c), 1,
  'max_delay counts from available_at: a delayed task is not cancelled before it was due'
);

select pg_temp.at(1000);
select teguh.ticker('q');
select is(
  pg_temp.state('delayed'), 'running, 0 failures',
  'max_delay does not matter any more once the task has started'
);

select teguh.spawn_task('q', 'too late', '{}', '{"cancellation": {"max_delay": 0.5}}');
select pg_temp.at(1000.4);
select is(teguh.ticker('q'), 0, 'before max_delay has passed nothing is cancelled');
select pg_temp.at(1000.5);
select is(teguh.ticker('q'), 1, 'the ticker cancels what did not start within max_delay');
select is(
  pg_temp.state('too late'),
  'cancelled, 0 failures',
  'max_delay takes fractions: 0.5 seconds'
);

-- Given a task that must finish within 20 seconds of its first start
truncate run;
insert into run values (
  'slow',
  pg_temp.take(
    'slow', '{"cancellation": {"max_duration": 20}, "retry_strategy": {"kind": "none"}}', 8
  )
);
select pg_temp.at(1009);
select teguh.ticker('q');
select is(pg_temp.state('slow'), 'pending, 1 failures', 'a retry within max_duration is fine');
select c.task_name from teguh.claim_task('q', 'w', 0) as c;
select pg_temp.at(1020.4);
select teguh.ticker('q');
select is(pg_temp.state('slow'), 'running, 1 failures', 'until max_duration has passed it may run');
select pg_temp.at(1020.5);
select is(teguh.ticker('q'), 1, 'the ticker cancels a run that takes longer than max_duration');
select is(
  pg_temp.state('slow'),
  'cancelled, 1 failures',
  'max_duration counts from the first start'
);
select throws_ok(
  $$
    select teguh.complete_run('q', (select t.run_id from teguh.t_q as t where t.task_name = 'slow'))
  $$,
  'AB001', null,
  'its worker meets AB001'
);

-- Given a sleeper past max_duration
truncate run;
insert into run
values ('asleep', pg_temp.take('asleep', '{"cancellation": {"max_duration": 20}}', 0));
select teguh.schedule_run(
  'q', (select r.run_id from run as r), teguh.current_time() + interval '1 hour'
);
select pg_temp.at(1100);
select teguh.ticker('q');
select is(pg_temp.state('asleep'), 'cancelled, 0 failures', 'max_duration ends a sleep, too');

-- Given a failure whose retry could not start before max_duration
truncate run;
insert into run values (
  'hopeless',
  pg_temp.take(
    'hopeless',
    '{"cancellation": {"max_duration": 20}, "retry_strategy": {"kind": "fixed"}}',
    0
  )
);
select teguh.fail_run('q', (select r.run_id from run as r), '"no"');
select is(
  pg_temp.state('hopeless'), 'cancelled, 1 failures',
  'a retry that could not start before max_duration is a cancellation'
);

-- When a first run is handed back after max_delay, and the task is not started again
truncate run;
insert into run
values ('returned', pg_temp.take('returned', '{"cancellation": {"max_delay": 10}}', 0));
select pg_temp.at(1111);
select teguh.ticker('q');
select teguh.release_run('q', r.run_id) from run as r;
select pg_temp.at(1121);
select teguh.ticker('q');

-- Then
select is(
  pg_temp.state('returned'), 'cancelled, 0 failures', 'max_delay has a timer anew after a release'
);

-- Given more sleepers than one call deals with
select teguh.create_queue('many');
select count(*) from teguh.spawn_tasks('many', (
  select jsonb_agg(
    jsonb_build_object('task_name', n::text, 'options', '{"delay_seconds": 1}'::jsonb)
  )
  from generate_series(1, 2500) as n
));
select pg_temp.at(2000);
create temporary table taken as
select c.task_id from teguh.claim_task('many', 'w', 0, 1) as c;

-- Then
select ok(
  (select count(*) < 1500 from teguh.p0_many as p where p.kind = 'r'),
  'every sweep is bounded: a claim of one task does not wake all of 2500 sleepers'
);

select is(
  teguh.next_due('many') <= teguh.current_time(), true,
  'next_due tells the worker to come again at once'
);

insert into taken select c.task_id from teguh.claim_task('many', 'w', 0, 5000) as c;
insert into taken select c.task_id from teguh.claim_task('many', 'w', 0, 5000) as c;

select results_eq(
  $$ select count(*), count(distinct t.task_id) from taken as t $$,
  $$ values (2500::bigint, 2500::bigint) $$,
  'the rest come with the next claims: none is lost, none comes twice'
);

-- Given 200 tasks that were claimed at once
select teguh.create_queue('bulk');
select count(*) from teguh.spawn_tasks('bulk', (
  select jsonb_agg('{"task_name": "t", "options": {"max_attempts": 1}}'::jsonb)
  from generate_series(1, 200)
));
create temporary table bulk as
select c.run_id from teguh.claim_task('bulk', 'w', 10, 200) as c;

-- Then
select results_eq(
  $$
    select count(*), sum(1 + cardinality(p.more_ids)), max(pg_column_size(p.*)) < 2000
    from teguh.p0_bulk as p
    where p.kind = 'l'
  $$,
  $$ values (4::bigint, 200::bigint, true) $$,
  'the leases of a claim share rows, 64 tasks in each, none so large that it is moved out of line'
);

-- When some of them are completed, and some extended
select count(*)
from teguh.complete_runs('bulk', (
  select jsonb_agg(jsonb_build_object('run_id', b.run_id))
  from (select * from bulk limit 70) as b
));
select teguh.extend_claim('bulk', b.run_id, 20)
from (select * from bulk offset 190) as b;
select pg_temp.at(2010);
select teguh.ticker('bulk');

-- Then
select results_eq(
  $$ select t.state, count(*) from teguh.t_bulk as t group by 1 order by 1 $$,
  $$ values ('completed', 70::bigint), ('failed', 120), ('running', 10) $$,
  'each lease ends by itself all the same'
);

select pg_temp.at(2020);
select is(teguh.ticker('bulk'), 10, 'also one that was extended');

-- Given a task whose run has a timeout, under a lease that is longer
select teguh.create_queue('limits');
set teguh.fake_now = '2031-05-02 12:00:00+00';
select teguh.spawn_task('limits', 'slow', '1', '{
  "timeout_seconds": 10, "retry_strategy": {"kind": "none"}, "max_attempts": 3
}');
create temporary table slow as
select c.* from teguh.claim_task('limits', 'w', 30) as c;

-- Then
select results_eq(
  $$ select s.timeout_seconds, s.lease_expires_at from slow as s $$,
  $$ values (10::double precision, '2031-05-02 12:00:10+00'::timestamptz) $$,
  'a lease ends no later than the timeout'
);

-- When the lease is extended
select teguh.extend_claim('limits', s.run_id, 300) from slow as s;
select is(
  (select t.lease_expires_at from teguh.t_limits as t), '2031-05-02 12:00:10+00',
  'it is not extended past the timeout'
);
select teguh.set_task_checkpoint_state('limits', s.task_id, 'step', '1', s.run_id, 300)
from slow as s;
select is(
  (select t.lease_expires_at from teguh.t_limits as t), '2031-05-02 12:00:10+00',
  'nor by a checkpoint'
);

-- When the time is over
set teguh.fake_now = '2031-05-02 12:00:09.9+00';
select is(teguh.ticker('limits'), 0, 'before the timeout nothing happens');
set teguh.fake_now = '2031-05-02 12:00:10+00';
select is(teguh.ticker('limits'), 1, 'at the timeout the run ends');
select throws_ok(
  $$ select teguh.complete_run('limits', s.run_id) from slow as s $$,
  'AB002', null,
  'a worker that comes too late is told so'
);
select results_eq(
  $$ select t.state, t.failures, t.failure_reason ->> 'name' from teguh.t_limits as t $$,
  $$ values ('pending', 1, '$RunTimeout') $$,
  'the run has failed, and is retried'
);

-- When the retry is claimed without an end to its lease, and sleeps in between
create temporary table again as
select c.* from teguh.claim_task('limits', 'w', 0) as c;
select is(
  (select a.lease_expires_at from again as a), '2031-05-02 12:00:20+00',
  'a lease without end has the timeout, too'
);
set teguh.fake_now = '2031-05-02 12:00:15+00';
select teguh.schedule_run('limits', a.run_id, '2031-05-02 12:01:00+00') from again as a;
set teguh.fake_now = '2031-05-02 12:01:00+00';
select is(
  (select c.lease_expires_at from teguh.claim_task('limits', 'w', 30) as c),
  '2031-05-02 12:01:10+00',
  'a run that has slept may be held as long again'
);

-- When its worker falls silent with a lease that is shorter than the timeout
select teguh.extend_claim('limits', a.run_id, 2) from again as a;
set teguh.fake_now = '2031-05-02 12:01:02+00';
select teguh.ticker('limits');
select is(
  (select t.failure_reason ->> 'name' from teguh.t_limits as t), '$ClaimTimeout',
  'that is a lease that expired'
);

-- Given tasks that expire: pending, sleeping, running, and one that is over by then
select teguh.create_queue('mortal');
select teguh.create_queue('heirs');
set teguh.fake_now = '2031-05-03 12:00:00+00';
select teguh.spawn_task('mortal', n.name, '7', '{"ttl_seconds": 60, "on_expired": {
  "queue_name": "heirs", "task_name": "expired", "options": {"tags": ["late"]}
}}')
from unnest(array['over', 'running', 'sleeping', 'pending']) as n(name);
select teguh.complete_run('mortal', c.run_id) from teguh.claim_task('mortal', 'w', 300) as c;
create temporary table mortal as
select c.* from teguh.claim_task('mortal', 'w', 300, 2) as c;
select teguh.schedule_run('mortal', m.run_id, '2032-01-01 00:00+00')
from mortal as m
where m.task_name = 'sleeping';

-- When their time has come
set teguh.fake_now = '2031-05-03 12:01:00+00';
select is_empty(
  $$ select * from teguh.claim_task('mortal', 'w') $$,
  'what has expired is not claimed'
);

-- Then
select results_eq(
  $$ select t.task_name, t.state, t.finished_at from teguh.t_mortal as t order by 1 $$,
  $$
    values
      ('over', 'completed', '2031-05-03 12:00:00+00'::timestamptz),
      ('pending', 'expired', '2031-05-03 12:01:00+00'),
      ('running', 'expired', '2031-05-03 12:01:00+00'),
      ('sleeping', 'expired', '2031-05-03 12:01:00+00')
  $$,
  'whatever is not over expires'
);
select throws_ok(
  $$ select teguh.complete_run('mortal', m.run_id) from mortal as m where m.task_name = 'running' $$,
  'AB002', null,
  'the worker that held it is told so'
);
select results_eq(
  $$
    select t.task_name, t.params ->> '$task_name', t.params -> '$params', t.tags,
      t.parent_task_id = (t.params ->> '$task_id')::uuid
    from teguh.t_heirs as t
    order by 2
  $$,
  $$
    values
      ('expired', 'pending', '7'::jsonb, '{late}'::text[], true),
      ('expired', 'running', '7', '{late}', true),
      ('expired', 'sleeping', '7', '{late}', true)
  $$,
  'for each its follow-up is spawned, and knows what it is for'
);

-- When one is retried
select teguh.retry_task('mortal', m.task_id) from mortal as m where m.task_name = 'running';
set teguh.fake_now = '2031-05-03 13:00:00+00';
select is(
  (select c.task_name from teguh.claim_task('mortal', 'w') as c), 'running',
  'an expired task can be retried, and does not expire again'
);

-- When the follow-up cannot be spawned any more
select teguh.spawn_task('mortal', 'orphan', '1', '{"ttl_seconds": 1, "on_expired": {
  "queue_name": "heirs", "task_name": "expired"
}}');
select teguh.drop_queue('heirs');
set teguh.fake_now = '2031-05-03 13:00:01+00';
select teguh.ticker('mortal');
select results_eq(
  $$
    select t.state, t.failure_reason ->> 'name' from teguh.t_mortal as t
    where t.task_name = 'orphan'
  $$,
  $$ values ('expired', '$OnExpired') $$,
  'the task expires all the same and says why nothing followed'
);

-- When a retry could not start before the time is over
select teguh.spawn_task('mortal', 'hopeless', '1', '{"ttl_seconds": 5, "retry_strategy": {
  "kind": "fixed", "base_seconds": 10
}}');
select teguh.fail_run('mortal', c.run_id, '"no"')
from teguh.claim_task('mortal', 'w') as c;
select is(
  (select t.state from teguh.t_mortal as t where t.task_name = 'hopeless'), 'expired',
  'it expires at once'
);

-- Given both a cancellation policy and a time to live
select teguh.spawn_task('mortal', n.name, '1', n.options)
from (
  values
    ('first', '{"ttl_seconds": 5, "cancellation": {"max_delay": 9}}'::jsonb),
    ('second', '{"ttl_seconds": 9, "cancellation": {"max_delay": 5}}')
) as n(name, options);
set teguh.fake_now = '2031-05-03 13:00:06+00';
select teguh.ticker('mortal');
select results_eq(
  $$
    select t.task_name, t.state from teguh.t_mortal as t
    where t.task_name in ('first', 'second') order by 1
  $$,
  $$ values ('first', 'expired'), ('second', 'cancelled') $$,
  'what comes first counts'
);

-- When expired tasks are old
set teguh.fake_now = '2031-05-05 13:00:00+00';
select is(
  (select teguh.cleanup_tasks('mortal', 3600) > 0), true, 'cleanup removes them'
);
select is_empty(
  $$ select 1 from teguh.t_mortal as t where t.state = 'expired' $$,
  'all of them'
);

-- When the second of two runs that fail alike is the end of its task
select teguh.create_queue('alike');
select teguh.spawn_task('alike', 'a', null, '{
  "ttl_seconds": 20, "retry_strategy": {"kind": "fixed", "base_seconds": 10}
}');
select teguh.fail_run('alike', c.run_id, '{"name": "Same"}')
from teguh.claim_task('alike', 'w') as c;
set teguh.fake_now = '2031-05-05 13:00:10+00';
select teguh.fail_run('alike', c.run_id, '{"name": "Same"}')
from teguh.claim_task('alike', 'w') as c;

-- Then
select results_eq(
  $$
    select r.state, r.failure_reason ->> 'name'
    from teguh.list_tasks('alike') as t
    cross join lateral teguh.list_runs('alike', t.task_id) as r
    order by r.attempt
  $$,
  $$ values ('failed', 'Same'), ('expired', 'Same') $$,
  'each says why it has failed'
);
set teguh.fake_now = '2031-05-05 13:00:00+00';

-- Given two tasks that are due at the same moment, of which the older went to sleep later
select teguh.create_queue('even');
select teguh.spawn_task('even', 'older', null);
set teguh.fake_now = '2031-05-05 13:00:01+00';
select teguh.spawn_task('even', 'younger', null, '{"delay_seconds": 9}');
select teguh.release_run('even', c.run_id, 9) from teguh.claim_task('even', 'w') as c;
set teguh.fake_now = '2031-05-05 13:00:10+00';

-- Then
select results_eq(
  $$ select c.task_name from teguh.claim_task('even', 'w', 0, 2) as c $$,
  array['older', 'younger'],
  'of tasks that are due at once the older is queued first'
);

select teguh.drop_queue(q.queue_name) from teguh.list_queues() as q;
select * from finish();
