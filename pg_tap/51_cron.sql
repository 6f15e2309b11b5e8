-- Without pg_cron, start and stop say so and break nothing.
begin;
select plan(13);

-- Given a database without pg_cron
select is(
  (select count(*) from pg_extension as e where e.extname = 'pg_cron'), 0::bigint,
  'pg_cron is not in this database'
);

-- Then
select lives_ok($$ select teguh.start() $$, 'start is no error without pg_cron');
select lives_ok($$ select teguh.start(null) $$, 'its options may be null');
select lives_ok(
  $$ select teguh.start('{"ticker_schedule": "5 seconds", "cleanup_schedule": "0 3 * * *"}') $$,
  'it takes schedules'
);
select throws_ok(
  $$ select teguh.start('{"ticker": "5 seconds"}') $$,
  'TG005',
  null,
  'it refuses an unknown option'
);
select throws_ok(
  $$ select teguh.start('{"ticker_schedule": 5}') $$,
  'TG005',
  null,
  'a schedule is a string'
);
select throws_ok(
  $$ select teguh.start('{"work": "orders"}') $$, 'TG005', null, 'queues to work on are an array'
);
select throws_ok(
  $$ select teguh.start('{"work": ["nowhere"]}') $$, 'TG001', null, 'and have to be there'
);
select throws_ok($$ select teguh.start('[]') $$, 'TG005', null, 'options are an object');
select lives_ok($$ select teguh.stop() $$, 'stop is no error without pg_cron');
select lives_ok($$ select teguh.stop() $$, 'nor is stopping twice');

-- When nobody has ticked
-- Then
select results_eq(
  $$
    select s.scheduler, s.ticker_job, s.cleanup_job, s.last_tick_at, s.lag_seconds
    from teguh.status() as s
  $$,
  $$ values (null::text, null::text, null::text, null::timestamptz, null::double precision) $$,
  'status shows that nobody ticks'
);

-- When somebody has
select teguh.ticker();

-- Then
select ok(
  (select s.scheduler is null and s.lag_seconds between 0 and 60 from teguh.status() as s),
  'status shows the lag since the last tick, by whomever'
);

select * from finish();
rollback;
