-- The dispatch tables can be built anew from the tasks, and are when a queue was restored.
begin;
select plan(14);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

-- Given a queue with a task in every state
select teguh.create_queue('q');
create function pg_temp.take(p_task_name text, p_options jsonb default '{}')
  returns uuid
  language plpgsql
as $$
declare
  v_run_id uuid;
begin
  perform teguh.spawn_task('q', p_task_name, '{}', p_options);
  select c.run_id into strict v_run_id from teguh.claim_task('q', 'w', 60, 1) as c;
  return v_run_id;
end;
$$;
create temporary table run (name text, run_id uuid);
insert into run values ('completed', pg_temp.take('completed'));
insert into run values ('failed', pg_temp.take('failed', '{"max_attempts": 1}'));
insert into run values ('retrying', pg_temp.take('retrying'));
insert into run values ('asleep', pg_temp.take('asleep'));
insert into run values ('waiting', pg_temp.take('waiting'));
insert into run values ('patient', pg_temp.take('patient'));
insert into run values ('running', pg_temp.take('running'));
insert into run values ('forever', pg_temp.take('forever', '{"cancellation": {"max_duration": 900}}'));
select teguh.complete_run('q', r.run_id) from run as r where r.name = 'completed';
select teguh.fail_run('q', r.run_id, '{}') from run as r where r.name = 'failed';
select teguh.fail_run('q', r.run_id, '{}', '2031-05-01 12:00:10+00')
from run as r
where r.name = 'retrying';
select teguh.schedule_run('q', r.run_id, '2031-05-01 12:00:20+00')
from run as r
where r.name = 'asleep';
select teguh.await_event('q', teguh._run_task(r.run_id), r.run_id, 's', 'e', 30)
from run as r
where r.name = 'waiting';
select teguh.await_event('q', teguh._run_task(r.run_id), r.run_id, 's', 'never')
from run as r
where r.name = 'patient';
select teguh.extend_claim('q', r.run_id, 3600) from run as r where r.name = 'forever';
select teguh.spawn_task('q', 'ready 1', '{}');
set local teguh.fake_now = '2031-05-01 12:00:00.001+00';
select teguh.spawn_task('q', 'ready 2', '{}');
set local teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.spawn_task('q', 'delayed', '{}', '{"delay_seconds": 40}');
create temporary table before as select t.* from teguh.t_q as t;

-- When dispatch is lost and built anew
truncate teguh.p0_q, teguh.p1_q, teguh.k0_q, teguh.k1_q;

-- Then
select is_empty(
  $$ select * from teguh.claim_task('q', 'w', 30, 10) $$,
  'without dispatch rows nothing is claimed'
);
select is(
  teguh.rebuild_dispatch('q'), 6::bigint,
  'rebuild_dispatch counts what is ready or sleeps until a time'
);
select set_eq(
  'select * from before', 'select * from teguh.t_q',
  'no task is changed by it'
);
select results_eq(
  $$ select c.task_name from teguh.claim_task('q', 'w', 300, 10) as c $$,
  $$ values ('ready 1'), ('ready 2') $$,
  'what was ready is claimed, the oldest first'
);
select is(
  teguh.next_due('q'), '2031-05-01 12:00:10+00'::timestamptz,
  'the next sleeper is due when it was'
);

-- When time goes by
set local teguh.fake_now = '2031-05-01 12:00:40+00';

-- Then
select set_eq(
  $$ select c.task_name, c.wake_event from teguh.claim_task('q', 'w', 300, 10) as c $$,
  $$ values ('retrying', null), ('asleep', null), ('waiting', 'e'), ('delayed', null) $$,
  'retries, sleeps, waits and delays end in time'
);
set local teguh.fake_now = '2031-05-01 12:01:00+00';
select is(teguh.ticker('q'), 1, 'a lease ends when it would have');
select is(
  (select t.failures from teguh.t_q as t where t.task_name = 'running'), 1,
  'its run has failed'
);
set local teguh.fake_now = '2031-05-01 12:15:00+00';
select teguh.ticker('q');
select is(
  (select t.state from teguh.t_q as t where t.task_name = 'forever'), 'cancelled',
  'a deadline is kept'
);
select teguh.emit_event('q', 'never', '1');
select is(
  (select t.state from teguh.t_q as t where t.task_name = 'patient'), 'pending',
  'a wait without timeout still hears of its event'
);

select throws_ok(
  $$ select teguh.rebuild_dispatch('nowhere') $$, 'TG001', null,
  'an unknown queue is refused'
);

-- Given a queue as a restored dump leaves it: another table, ids of foreign transactions
select teguh.create_queue('copy');
select teguh.spawn_task('copy', 'old', '{}');
update teguh.p0_copy as p set xid = '1';
insert into teguh.k0_copy (n, kind, xid, seq) values (1, 'r', '9000000000000', 0);
update teguh.queues as q set built_for = 0 where q.queue_name = 'copy';
select is_empty(
  $$ select * from teguh.claim_task('copy', 'w') $$,
  'before it is put right, its tasks are not found'
);

-- When the ticker meets it (in a transaction of its own, it calls this)
select teguh._settle_copy();

-- Then
select is(
  (select c.task_name from teguh.claim_task('copy', 'w') as c), 'old',
  'the ticker builds the dispatch of a restored queue anew'
);
select is(
  (select q.built_for from teguh.queues as q where q.queue_name = 'copy'),
  teguh._home('teguh.p0_copy'::regclass),
  'and does so once'
);

select * from finish();
rollback;
