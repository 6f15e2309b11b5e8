-- Cleanup removes what has been over for long enough, and nothing that is needed.
begin;
select plan(33);

-- Given tasks that end at different times
create function pg_temp.at(p_hours double precision)
  returns void
  language sql
as $$
  select set_config(
    'teguh.fake_now',
    ('2031-05-01 12:00:00+00'::timestamptz + make_interval(secs => 3600 * p_hours))::text,
    false
  );
$$;

select pg_temp.at(0);
select teguh.create_queue('q');
select teguh.spawn_task('q', n, '{}', '{"max_attempts": 1}')
from unnest('{completed,failed,cancelled,late,running}'::text[]) as n;
create temporary table run as select c.* from teguh.claim_task('q', 'w', 0, 10) as c;
select teguh.spawn_task('q', 'sleeping', '{}', '{"delay_seconds": 1e9}');
select teguh.set_task_checkpoint_state('q', r.task_id, 's', '1', r.run_id) from run as r;

create function pg_temp.run(p_task_name text)
  returns uuid
  language sql
as $$
  select r.run_id from run as r where r.task_name = p_task_name;
$$;

select teguh.complete_run('q', pg_temp.run('completed'));
select teguh.fail_run('q', pg_temp.run('failed'), '1');
select teguh.cancel_task('q', r.task_id) from run as r where r.task_name = 'cancelled';
select pg_temp.at(10);
select teguh.complete_run('q', pg_temp.run('late'));

-- When cleanup runs half an hour later
select pg_temp.at(10.5);

-- Then
select is(teguh.cleanup_tasks('q', 11 * 3600), 0, 'what is younger than the ttl stays');
select is(
  teguh.cleanup_tasks('q', 3600, 1),
  1,
  'no more than p_limit tasks are removed by one call'
);
select is(
  teguh.cleanup_tasks('q', 3600),
  2,
  'what completed, failed or was cancelled before is removed'
);
select is(
  array(select t.task_name from teguh.t_q as t order by t.task_name), '{late,running,sleeping}',
  'retention goes by terminal time: a task that has just finished stays, however old it is'
);
select is(
  (
    select count(*)
    from teguh.c_q as c
    where not exists (select from teguh.t_q as t where t.task_id = c.task_id)
  ),
  0::bigint, 'checkpoints go with their task'
);
select is((select count(*) from teguh.c_q), 2::bigint, 'those of other tasks stay');
select throws_ok(
  format($$ select teguh.complete_run('q', %L) $$, pg_temp.run('completed')), 'TG002', null,
  'a run of a task that was removed does not exist'
);

-- When a task that failed is retried while it is due for cleanup
select teguh.spawn_task('q', 'retried', '{}', '{"max_attempts": 1}');
truncate run;
insert into run select c.* from teguh.claim_task('q', 'w', 0, 10) as c;
select teguh.fail_run('q', pg_temp.run('retried'), '1');
select pg_temp.at(20);
select teguh.retry_task('q', r.task_id) from run as r;

-- Then
select is(teguh.cleanup_tasks('q', 3600), 1, 'cleanup re-checks the state');
select is(
  array(select t.task_name from teguh.t_q as t order by t.task_name), '{retried,running,sleeping}',
  'a task that was retried stays'
);
select is(
  (select c.task_name from teguh.claim_task('q', 'w', 0, 10) as c), 'retried', 'and runs'
);
select is((select count(*) from teguh.r_q), 1::bigint, 'its history stays with it');
select teguh.complete_run('q', t.run_id) from teguh.t_q as t where t.task_name = 'retried';
select is(teguh.cleanup_tasks('q', 0), 1, 'a ttl of zero removes all that is over');
select is((select count(*) from teguh.r_q), 0::bigint, 'history goes with its task');

-- Given events
select teguh.emit_event('q', 'old', '1');
select teguh.await_event('q', t.task_id, t.run_id, 's2', 'awaited')
from teguh.t_q as t
where t.task_name = 'running';
select pg_temp.at(30);
select teguh.emit_event('q', 'new', '1');
select pg_temp.at(30.5);

-- Then
select is(teguh.cleanup_events('q', 3600), 1, 'events go by the time of their emit');
select is(
  array(select e.event_name from teguh.e_q as e order by e.event_name), '{awaited,new}',
  'an event that a task waits for is never removed, emitted or not'
);
select teguh.emit_event('q', 'awaited', '"at last"');
select is(
  (select c.event_payload from teguh.claim_task('q', 'w', 0) as c), '"at last"',
  'cleaning loses no wake-up'
);
select pg_temp.at(40);
select is(
  teguh.cleanup_events('q', 3600, 1),
  1,
  'no more than p_limit events are removed by one call'
);
select is(teguh.cleanup_events('q', 3600), 1, 'the rest comes with the next');

-- When a waiter is gone
select teguh.await_event('q', t.task_id, t.run_id, 's3', 'forgotten')
from teguh.t_q as t
where t.task_name = 'running';
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t where t.task_name = 'running';
select pg_temp.at(50);

-- Then
select is(
  teguh.cleanup_events('q', 3600), 1,
  'what was awaited and never emitted lives as long as a waiter does'
);

-- Given policies
select teguh.create_queue('p', '{"cleanup_ttl": 60, "cleanup_limit": 2}');
select teguh.create_queue('z', '{"cleanup_ttl": 1e12}');
select count(*)
from teguh.spawn_tasks('p', '[{"task_name": "a"}, {"task_name": "b"}, {"task_name": "c"}]');
select count(*) from teguh.spawn_tasks('z', '[{"task_name": "a"}]');
select teguh.cancel_task('p', t.task_id) from teguh.t_p as t;
select teguh.cancel_task('z', t.task_id) from teguh.t_z as t;
select teguh.emit_event('p', 'e');
select pg_temp.at(51);

-- Then
select is(teguh.cleanup_tasks('p', 7200), 0, 'an argument goes before the policy');
select results_eq(
  $$
    select c.queue_name, c.tasks_deleted, c.events_deleted
    from teguh.cleanup_all_queues('p') as c
  $$,
  $$ values ('p', 2, 1) $$,
  'cleanup_all_queues goes by the policy of the queue'
);
select results_eq(
  $$ select c.queue_name, c.tasks_deleted, c.events_deleted from teguh.cleanup_all_queues() as c $$,
  $$ values ('p', 1, 0), ('q', 0, 0), ('z', 0, 0) $$,
  'without a name it does all queues; the greatest ttl keeps everything'
);
select pg_temp.at(50 + 24 * 30 + 1);
select is(teguh.cleanup_tasks('q'), 1, 'without a policy tasks are kept for thirty days');

-- Given old actions: upon a queue, and upon a task that stays
select teguh.create_queue('acts');
select teguh.spawn_task('acts', 'a', '{}');
select teguh.cancel_task('acts', t.task_id) from teguh.t_acts as t;
select teguh.retry_task('acts', t.task_id) from teguh.t_acts as t;
select teguh.pause_queue('acts');
select pg_temp.at(50 + 24 * 30 + 2);
select teguh.cleanup_tasks('acts', 60);
select is(
  array(select a.deed from teguh.a_acts as a order by a.n), '{cancel,retry}',
  'actions upon a task go with it, all others by their age'
);

-- Given what cannot be
select throws_ok(
  format($$ select teguh.%s('q', %L) $$, f.name, n.ttl),
  'TG005',
  null,
  format('%s refuses a ttl of %s', f.name, n.ttl)
)
from unnest('{-1,NaN}'::text[]) as n(ttl)
cross join unnest('{cleanup_tasks,cleanup_events}'::text[]) as f(name);
select throws_ok(
  $$ select teguh.cleanup_tasks('q', 0, 0) $$,
  'TG005',
  null,
  'a limit is at least 1'
);
select lives_ok($$ select teguh.cleanup_tasks('q', 'Infinity') $$, 'a ttl may be infinite');
select throws_ok(
  $$ select teguh.cleanup_tasks('nowhere') $$,
  'TG001',
  null,
  'cleanup_tasks needs a queue'
);
select throws_ok(
  $$ select teguh.cleanup_events('nowhere') $$,
  'TG001',
  null,
  'cleanup_events needs a queue'
);
select throws_ok(
  $$ select * from teguh.cleanup_all_queues('nowhere') $$,
  'TG001',
  null,
  'cleanup_all_queues needs a queue that exists'
);

select * from finish();
rollback;
