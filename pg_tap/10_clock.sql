-- There is one clock: the setting teguh.fake_now stops it, and everything goes by it.
begin;
select plan(25);

-- Given no setting
-- Then
select ok(
  teguh.current_time() between clock_timestamp() - interval '1 minute' and clock_timestamp(),
  'without a setting the time is that of the clock'
);

select ok(
  (select teguh.current_time() from pg_sleep(0.002)) > now(),
  'the time goes on within a transaction'
);

-- When the setting is blank
set teguh.fake_now = '  ';

-- Then
select ok(
  teguh.current_time() between clock_timestamp() - interval '1 minute' and clock_timestamp(),
  'a blank setting is none'
);

-- When it is not a timestamp
set teguh.fake_now = 'noon or so';

-- Then
select throws_ok(
  $$ select teguh.current_time() $$,
  '22007', null,
  'a setting that is no timestamp is an error'
);

-- When it is one, in 2031
set teguh.fake_now = '2031-05-01 12:00:00.123456+00';

-- Then
select is(
  teguh.current_time(), '2031-05-01 12:00:00.123456+00'::timestamptz,
  'the setting is the time, to the microsecond'
);

select teguh.create_queue('q');
select is(
  (select q.created_at from teguh.list_queues() as q), '2031-05-01 12:00:00.123456+00',
  'a queue is created at the time of the test clock'
);

create temporary table job as
select * from teguh.spawn_task('q', 'a', '{}', '{"delay_seconds": 60}');

select is(
  teguh.uuidv7_timestamp((select task_id from job)), '2031-05-01 12:00:00.123+00',
  'ids carry the time of the test clock'
);

select results_eq(
  $$ select t.created_at, t.available_at from teguh.t_q as t $$,
  $$ values ('2031-05-01 12:00:00.123456+00'::timestamptz,
             '2031-05-01 12:01:00.123456+00'::timestamptz) $$,
  'relative times are computed by the database from the test clock'
);

select is_empty(
  $$ select * from teguh.claim_task('q', 'w') $$,
  'before its time by the test clock a task is not to be had'
);

select is(
  teguh.ticker('q'), 0,
  'before its time by the test clock the ticker leaves a task alone'
);

select is(
  teguh.next_due('q'), '2031-05-01 12:01:00.123456+00',
  'next_due tells the time by the test clock'
);

-- When a minute has passed
set teguh.fake_now = '2031-05-01 12:01:00.123456+00';

-- Then
select is(
  teguh.ticker('q'), 1,
  'the ticker goes by the test clock'
);

select results_eq(
  $$ select c.attempt, c.lease_expires_at from teguh.claim_task('q', 'w', 10) as c $$,
  $$ values (1, '2031-05-01 12:01:10.123456+00'::timestamptz) $$,
  'a lease ends by the test clock'
);

select teguh.extend_claim('q', (select run_id from job), 20);
select is(
  (select t.lease_expires_at from teguh.t_q as t), '2031-05-01 12:01:20.123456+00',
  'a heartbeat goes by the test clock'
);

select teguh.set_task_checkpoint_state(
  'q', (select task_id from job), 's', '1', (select run_id from job)
);
select is(
  (
    select s.updated_at
    from teguh.get_task_checkpoint_states('q', (select task_id from job), null) as s
  ),
  '2031-05-01 12:01:00.123456+00',
  'a checkpoint is written at the time of the test clock'
);

select teguh.complete_run('q', (select run_id from job));
select is(
  (select r.finished_at from teguh.get_task_result('q', (select task_id from job)) as r),
  '2031-05-01 12:01:00.123456+00',
  'a task finishes at the time of the test clock'
);

select is(
  teguh.cleanup_tasks('q', 3600), 0,
  'cleanup leaves a task that has just finished by the test clock'
);

-- When an hour has passed
set teguh.fake_now = '2031-05-01 13:01:00.123456+00';

-- Then
select is(
  teguh.cleanup_tasks('q', 3600), 1,
  'cleanup goes by the test clock'
);

-- Given moments and seconds
-- Then
select is(
  teguh._after('2031-01-01 00:00+00', 0.25), '2031-01-01 00:00:00.25+00',
  'a duration may have fractions'
);

select is(
  teguh._after('2031-01-01 00:00+00', 1e300), 'infinity',
  'a duration beyond all measure saturates'
);

select is(
  teguh._after('2031-01-01 00:00+00', 'Infinity'), 'infinity',
  'an infinite duration saturates'
);

select is(
  teguh._after('infinity', 10), 'infinity',
  'infinity stays infinity'
);

select is(
  teguh._after('2031-01-01 00:00+00', null), null,
  'no duration gives no moment'
);

select lives_ok(
  $$ select teguh._after('2031-01-01 00:00+00', -1e12) $$,
  'a moment beyond all measure in the past is no error'
);

select is(
  teguh._micros('1970-01-02 00:00:00.000001+00'), 86400000001,
  'a register keeps a moment in microseconds'
);

select * from finish();
rollback;
