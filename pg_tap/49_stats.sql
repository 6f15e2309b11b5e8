-- Counts, ages and durations are shown per queue, as metrics, and as one verdict.
begin;
select plan(43);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

-- Given an empty queue
select teguh.create_queue('a');

-- Then
select results_eq(
  $$ select * from teguh.queue_stats('a') $$,
  $$
    values (
      'a', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
      0::bigint, null::double precision, null::double precision, false, 0::bigint
    )
  $$,
  'an empty queue has every state, at zero'
);

-- Given a task in every state
select teguh.spawn_task('a', n.name, '1', n.options)
from (
  values
    (1, 'done', '{}'::jsonb), (2, 'failed', '{"max_attempts": 1}'), (3, 'sleeping', '{}'),
    (4, 'waiting', '{}'), (5, 'running', '{}'), (6, 'stale', '{"ttl_seconds": 1}')
) as n(place, name, options)
order by n.place;
set local teguh.fake_now = '2031-05-01 12:00:02+00';
create temporary table run as
select c.* from teguh.claim_task('a', 'w', 100, 5) as c;
set local teguh.fake_now = '2031-05-01 12:00:05+00';
select teguh.complete_run('a', r.run_id) from run as r where r.task_name = 'done';
select teguh.fail_run('a', r.run_id, '"no"') from run as r where r.task_name = 'failed';
select teguh.schedule_run('a', r.run_id, '2032-01-01 00:00+00')
from run as r where r.task_name = 'sleeping';
select teguh.await_event('a', r.task_id, r.run_id, 's', 'e')
from run as r where r.task_name = 'waiting';
select teguh.spawn_task('a', 'delayed', '1', '{"delay_seconds": 1000}');
select teguh.spawn_task('a', 'ready', '1');
select teguh.cancel_task('a', s.task_id) from teguh.spawn_task('a', 'unwanted', '1') as s;
select teguh.ticker('a');
set local teguh.fake_now = '2031-05-01 12:00:12+00';

-- Then
select results_eq(
  $$ select * from teguh.queue_stats('a') $$,
  $$
    values (
      'a', 1::bigint, 1::bigint, 1::bigint, 1::bigint, 1::bigint, 1::bigint, 1::bigint, 1::bigint,
      1::bigint, 7::double precision, 10::double precision, false, 0::bigint
    )
  $$,
  'each state is counted; the first in line has been ready for 7 s, the run held for 10'
);

-- When another queue is paused
select teguh.create_queue('b');
select teguh.pause_queue('b');
select results_eq(
  $$ select s.queue_name, s.paused, s.pending from teguh.queue_stats() as s order by 1 $$,
  $$ values ('a', false, 1::bigint), ('b', true, 0) $$,
  'without a name all queues are shown, and whether they are paused'
);
select throws_ok($$ select teguh.queue_stats('nowhere') $$, 'TG001', null, 'a queue must exist');

-- Then
create temporary table metric as select m.* from teguh.metrics() as m;
create function pg_temp.metric(p_name text, p_labels jsonb)
  returns double precision
  language sql
as $$
  select m.value from metric as m where m.name = p_name and m.labels = p_labels;
$$;
select is(
  pg_temp.metric('teguh_tasks', '{"queue": "a", "state": "waiting"}'), 1::double precision,
  'tasks by queue and state'
);
select results_eq(
  $$
    select m.name, m.value from metric as m
    where m.labels = '{"queue": "a", "task": "failed"}' order by 1
  $$,
  $$
    values
      ('teguh_run_duration_seconds_count', 1::double precision),
      ('teguh_run_duration_seconds_sum', 3),
      ('teguh_tasks_created_total', 1),
      ('teguh_tasks_failed_total', 1),
      ('teguh_tasks_started_total', 1)
  $$,
  'totals by task'
);
select is(
  pg_temp.metric(n.name, jsonb_build_object('queue', 'a', 'task', n.task)), 1::double precision,
  n.name || ' counts'
)
from (
  values
    ('teguh_tasks_completed_total', 'done'), ('teguh_tasks_cancelled_total', 'unwanted'),
    ('teguh_tasks_expired_total', 'stale')
) as n(name, task);
select results_eq(
  $$
    select m.labels ->> 'le', m.value from metric as m
    where m.name = 'teguh_run_duration_seconds_bucket' and m.labels ->> 'task' = 'done'
      and m.labels ->> 'le' in ('1', '5', '+Inf')
    order by 2, 1
  $$,
  $$ values ('1', 0::double precision), ('+Inf', 1), ('5', 1) $$,
  'durations as a cumulative histogram'
);
select is(
  pg_temp.metric('teguh_oldest_pending_age_seconds', '{"queue": "a"}'), 7::double precision,
  'ages'
);
select is(
  pg_temp.metric('teguh_oldest_pending_age_seconds', '{"queue": "b"}'), null,
  'a queue without a task in line has no age'
);
select is(
  (select count(*) from metric as m where m.name = 'teguh_ticker_lag_seconds'), 1::bigint,
  'the lag of the ticker'
);

-- When a run fails and is retried
select teguh.fail_run('a', c.run_id, '"no"') from teguh.claim_task('a', 'w') as c;
select is(
  (
    select m.value from teguh.metrics() as m
    where m.name = 'teguh_tasks_retried_total' and m.labels ->> 'task' = 'ready'
  ),
  1::double precision,
  'retries are counted'
);

-- When the buckets are others
select teguh.set_queue_policy('b', '{"duration_buckets": [1, 10]}');
select teguh.resume_queue('b');
select teguh.spawn_task('b', n.name, '1') from unnest(array['q"u\o', 'slow']) as n(name);
create temporary table timed as
select c.* from teguh.claim_task('b', 'w', 100, 2) as c;
set local teguh.fake_now = '2031-05-01 12:00:13+00';
select teguh.complete_run('b', t.run_id) from timed as t where t.task_name <> 'slow';
set local teguh.fake_now = '2031-05-01 12:01:00+00';
select teguh.complete_run('b', t.run_id) from timed as t where t.task_name = 'slow';
select results_eq(
  $$
    select m.labels ->> 'task', m.labels ->> 'le', m.value from teguh.metrics() as m
    where m.name = 'teguh_run_duration_seconds_bucket' and m.labels ->> 'queue' = 'b'
    order by 1, 3, 2
  $$,
  $$
    values
      ('q"u\o', '+Inf', 1::double precision), ('q"u\o', '1', 1), ('q"u\o', '10', 1),
      ('slow', '1', 0), ('slow', '10', 0), ('slow', '+Inf', 1)
  $$,
  'durations are counted by them; a duration that equals a bound counts there'
);
select throws_ok(
  format($$ select teguh.set_queue_policy('b', '{"duration_buckets": %s}') $$, n.buckets),
  'TG005', null,
  format('buckets cannot be %s', n.buckets)
)
from unnest(array['[]', '[2, 1]', '[0]', '["1"]', '1', '[1, 1]']) as n(buckets);
select teguh.set_queue_policy('b', '{"duration_buckets": null}');
select is(
  (select cardinality(q.buckets) from teguh.queues as q where q.queue_name = 'b'), 12,
  'null sets them back'
);

-- Then
select is(
  teguh.prometheus() like
    e'%# TYPE teguh_run_duration_seconds histogram\nteguh_run_duration_seconds_bucket{le="0.005",%',
  true,
  'Prometheus is told what is a histogram'
);
select is(
  teguh.prometheus() like e'%teguh_tasks_completed_total{queue="b",task="q\\\\"u\\\\\\\\o"} 1\n%',
  true,
  'names are escaped'
);

-- When nobody has ticked or worked for long
select is(
  (teguh.health() ->> 'status', teguh.health() -> 'problems' = '[]')::text, '(ok,t)', 'all is well'
);
select is(
  (select array_agg(k.key order by k.key) from jsonb_object_keys(teguh.health()) as k(key)),
  '{oldest_xmin_age,problems,status,ticker_lag_seconds,version}',
  'health says what it looked at'
);
select teguh.spawn_task('b', 'left', '1');
set local teguh.fake_now = '2031-05-01 12:10:00+00';
select is(
  teguh.health() #>> '{problems,0,problem}', 'nobody works on queue "b"',
  'a queue that nobody works on is a problem'
);
select is(teguh.health() ->> 'status', 'degraded', 'and all is not well');
select setval('teguh._ticked', 0);
select is(
  teguh.health() #>> '{problems,0,problem}', 'nobody ticks', 'a ticker that stands still is one'
);

-- When schedules are late
create function pg_temp.now_metric(p_name text, p_queue_name text)
  returns double precision
  language sql
as $$
  select m.value
  from teguh.metrics() as m
  where m.name = p_name and m.labels = jsonb_build_object('queue', p_queue_name);
$$;
create function pg_temp.problem(p_like text)
  returns text
  language sql
as $$
  select concat_ws(': ', p.one ->> 'problem', p.one ->> 'hint')
  from jsonb_array_elements(teguh.health() -> 'problems') as p(one)
  where p.one ->> 'problem' ~ p_like;
$$;
select teguh.ticker();
select teguh.complete_run('b', c.run_id) from teguh.claim_task('b', 'w') as c;
select teguh.create_queue('s', '{"max_pending": 1}');
select teguh.create_schedule('early', 's', 't', '0 13 * * *');
select teguh.create_schedule('hourly', 's', 't', '@hourly');
select teguh.create_schedule('later', 's', 't', '0 14 * * *');
select teguh.create_schedule('resting', 's', 't', '@hourly');
select teguh.pause_schedule('resting');
set local teguh.fake_now = '2031-05-01 12:59:00+00';
select teguh.ticker();
select is(
  array[
    pg_temp.now_metric('teguh_schedules_overdue', 's'),
    pg_temp.now_metric('teguh_schedule_lag_seconds', 's')
  ],
  '{0,0}', 'no schedule is late before its time'
);
set local teguh.fake_now = '2031-05-01 13:05:00+00';
select is(
  array[
    pg_temp.now_metric('teguh_schedules_overdue', 's'),
    pg_temp.now_metric('teguh_schedule_lag_seconds', 's')
  ],
  '{0,300}', 'one that is 5 minutes late is just about to be overdue'
);
set local teguh.fake_now = '2031-05-01 13:05:01+00';
select is(
  array[
    pg_temp.now_metric('teguh_schedules_overdue', 's'),
    pg_temp.now_metric('teguh_schedule_lag_seconds', 's')
  ],
  '{2,301}', 'those that are not paused are overdue then'
);
select is(
  pg_temp.problem('overdue'),
  'schedules of queue "s" are overdue: 2: "early" should have fired 301 s ago: '
  'nobody ticks this queue.',
  'that is a problem'
);
select teguh.ticker();
select is(pg_temp.now_metric('teguh_schedules_overdue', 's'), 1::double precision, 'one has fired');
select is(
  pg_temp.problem('overdue') like
    'schedules of queue "s" are overdue: 1: "hourly" should have fired 301 s ago: %full%',
  true,
  'and of one that cannot it is known why'
);
select teguh.set_queue_policy('s', '{"max_pending": null}');
set local teguh.fake_now = '2031-05-01 13:06:00+00';
select teguh.ticker();
select is(
  array[
    pg_temp.now_metric('teguh_schedules_overdue', 's'),
    pg_temp.now_metric('teguh_schedule_lag_seconds', 's')
  ],
  '{0,0}', 'what has fired is not late'
);
select is(pg_temp.problem('overdue'), null, 'and no problem');
select is(
  teguh.prometheus() like e'%# TYPE teguh_schedules_overdue gauge\nteguh_schedules_overdue{%', true,
  'Prometheus is told'
);
select teguh.drop_queue('s');

-- When tasks stand in lanes
select teguh.create_queue('l');
set local teguh.fake_now = '2031-05-01 13:00:00+00';
select teguh.spawn_task('l', 'known', '"old"');
set local teguh.fake_now = '2031-05-01 13:00:10+00';
select teguh.spawn_task('l', 'known', '"young"');
select teguh.spawn_task('l', 'unknown', '1');
select teguh.set_limit('l', 'queue', null, '{"max_running": 0}');
select teguh.claim_task('l', 'w', 100, 9);
set local teguh.fake_now = '2031-05-01 13:00:30+00';
select results_eq(
  $$
    select s.pending, s.oldest_pending_age_seconds, s.unclaimable
    from teguh.queue_stats('l') as s
  $$,
  $$ values (3::bigint, 30::double precision, 0::bigint) $$,
  'they are counted, and the first of them has an age'
);
select teguh.cancel_task('l', t.task_id) from teguh.t_l as t where t.params = '"old"';
select is(
  (select s.oldest_pending_age_seconds from teguh.queue_stats('l') as s), 20::double precision,
  'one that was cancelled has none'
);
select teguh.spawn_task('l', 'unknown', '2', '{"delay_seconds": 9}');
select teguh.claim_any('{l}', 'w', 30, 1, '{"task_names": ["known"]}');
select is(
  (select s.unclaimable from teguh.queue_stats('l') as s), 1::bigint,
  'pending of a name that no worker asks for is unclaimable, delayed is not'
);
select is(
  (
    select m.value from teguh.metrics() as m
    where m.name = 'teguh_tasks_unclaimable' and m.labels = '{"queue": "l"}'
  ),
  1::double precision, 'metrics() says so, too'
);
select teguh.set_limit('l', 'queue');
select teguh.complete_run('l', c.run_id) from teguh.claim_task('l', 'w', 100, 9) as c;
set local teguh.fake_now = '2031-05-01 13:00:39+00';
select results_eq(
  $$
    select s.pending, s.delayed, s.completed, s.oldest_pending_age_seconds, s.unclaimable
    from teguh.queue_stats('l') as s
  $$,
  $$ values (0::bigint, 1::bigint, 2::bigint, null::double precision, 0::bigint) $$,
  'when they are done none of it is left'
);
select teguh.drop_queue('l');

select * from finish();
rollback;
