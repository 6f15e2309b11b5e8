-- The ticker deals with all that has come due in all queues, and says how much.
-- Each statement commits by itself: timers set by an open transaction are looked at again.
select plan(16);

-- Given two queues with sleepers, a lease and a deadline
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('a');
select teguh.create_queue('b');
select teguh.spawn_task('a', 'leased', '{}', '{"retry_strategy": {"kind": "none"}}');
select c.task_name from teguh.claim_task('a', 'w', 10) as c;
select teguh.spawn_task('a', 'sleeper', '{}', '{"delay_seconds": 10}');
select teguh.spawn_task('b', 'sleeper', '{}', '{"delay_seconds": 10}');
select teguh.spawn_task('b', 'overdue', '{}', '{"cancellation": {"max_delay": 5}}');
select teguh.spawn_task('b', 'waiter', '{}');
select teguh.claim_task('b', 'w', 0, 2);
select teguh.release_run('b', t.run_id) from teguh.t_b as t where t.task_name = 'overdue';
select teguh.await_event('b', t.task_id, t.run_id, 's', 'e', 10)
from teguh.t_b as t
where t.task_name = 'waiter';

-- Then
select is(teguh.ticker(), 0, 'nothing is due yet');

-- When ten seconds have passed
set teguh.fake_now = '2031-05-01 12:00:10+00';

-- Then
select is(
  teguh.ticker('a'),
  2,
  'the ticker of one queue deals with that queue: a sleeper and a lease'
);
select is(
  teguh.ticker(),
  3,
  'the ticker of all deals with the others: a sleeper, a wait, a deadline'
);
select is(teguh.ticker(), 0, 'it does nothing twice');
select is(
  array(select t.task_name || ' ' || t.state from teguh.t_b as t order by t.task_name),
  '{"overdue cancelled","sleeper sleeping","waiter sleeping"}',
  'cancellation policies are applied'
);
select is(
  array(select c.task_name from teguh.claim_task('b', 'w', 0, 10) as c order by 1),
  '{sleeper,waiter}',
  'sleepers and timed-out waits are claimable'
);
select is(
  array(select c.task_name from teguh.claim_task('a', 'w', 0, 10) as c order by 1),
  '{leased,sleeper}',
  'so is the run that follows a lost lease'
);

-- Given waiters without timeout
select teguh.schedule_run('a', t.run_id, '2031-05-01 12:00:20+00')
from teguh.t_a as t
where t.task_name = 'sleeper';
select teguh.await_event('a', t.task_id, t.run_id, 's', 'e')
from teguh.t_a as t
where t.task_name = 'leased';
set teguh.fake_now = '2031-05-01 12:00:30+00';

-- Then
select is(teguh.ticker(), 1, 'ticker returns at least 1 when a due sleeper is unclaimed');
select is(
  (select c.task_name from teguh.claim_task('a', 'w', 0, 10) as c),
  'sleeper',
  'which is claimable then'
);
select is(teguh.ticker(), 0, 'ticker returns 0 when only waiters without timeout exist');

-- Given no queue
select teguh.drop_queue('a');
select teguh.drop_queue('b');
select is(teguh.ticker(), 0, 'without queues there is nothing to do');
select throws_ok(
  $$ select teguh.ticker('nowhere') $$,
  'TG001',
  null,
  'an unknown queue is an error'
);

-- Given what the ticker leaves behind
-- Then
select ok(
  (
    select s.last_tick_at between clock_timestamp() - interval '1 minute' and clock_timestamp()
    from teguh.status() as s
  ),
  'the ticker notes when it last ran, by the real clock'
);

-- Given the loop
-- Then
select throws_ok(
  $$ call teguh.ticker_loop('{"ticks": 1}') $$,
  'TG005',
  null,
  'the loop refuses an unknown option'
);
select throws_ok(
  $$ call teguh.ticker_loop('{"tick_seconds": 0}') $$,
  'TG005',
  null,
  'the loop refuses a pause of zero'
);
select throws_ok(
  $$ call teguh.ticker_loop('{"max_seconds": -1}') $$,
  'TG005',
  null,
  'the loop refuses a negative time'
);

select * from finish();
