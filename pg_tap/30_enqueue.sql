-- What is queued lies in the segment in use, as a ready row or a timer, and tells waiting workers.
begin;
select plan(23);

-- Given a queue and a stopped clock
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('q');

-- When a task is spawned
select teguh.spawn_task('q', 'now', '{}');

-- Then
select results_eq(
  $$ select p.kind::text collate "C", p.turn, p.due_at, p.xid from teguh.p0_q as p $$,
  $$ values ('r' collate "C", 1, null::timestamptz, pg_current_xact_id()) $$,
  'a task that may run has one ready row, which bears its transaction''s id'
);

-- When a delayed one is
select teguh.spawn_task('q', 'later', '{}', '{"delay_seconds": 1.5}');

-- Then
select results_eq(
  $$
    select p.kind::text collate "C", p.due_at
    from teguh.p0_q as p
    where p.turn = 1 and p.kind <> 'r'
  $$,
  $$ values ('s' collate "C", '2031-05-01 12:00:01.5+00'::timestamptz) $$,
  'a delayed task has one timer, to the fraction of a second'
);

-- When one is spawned in a part of the transaction that is rolled back
savepoint part;
select teguh.spawn_task('q', 'never', '{}');
rollback to part;

-- Then
select is(
  (select count(*) from teguh.p0_q), 2::bigint,
  'a spawn that is rolled back leaves no dispatch row'
);

-- When a task is claimed
create temporary table run as select * from teguh.claim_task('q', 'w', 10);

-- Then
select results_eq(
  $$ select p.kind::text collate "C", p.turn, p.due_at from teguh.p0_q as p where p.kind = 'l' $$,
  $$ values ('l' collate "C", 1, '2031-05-01 12:00:10+00'::timestamptz) $$,
  'a lease has a timer'
);

-- When the run is put to sleep until a moment that has passed
select teguh.schedule_run('q', (select run_id from run), '2031-05-01 11:00:00+00');

-- Then
select is(
  (select count(*) from teguh.p0_q as p where p.kind = 'r' and p.turn = 2), 1::bigint,
  'a sleep that is over at once makes a ready row, not a timer'
);

-- When timers are set for the past or the present
select teguh._push_q('s', array[gen_random_uuid(), gen_random_uuid()], '{1,1}',
  '{2031-05-01 11:59:00+00,2031-05-01 12:00:00+00}');

-- Then
select is(
  (select min(p.due_at) from teguh.p0_q as p where p.kind = 's'),
  '2031-05-01 12:00:00.000001+00',
  'a timer is never due at the moment at which it is set'
);

-- Given rows in order
-- Then
select is(
  (select count(distinct p.seq) = count(*) from teguh.p0_q as p), true,
  'no two dispatch rows have the same number'
);

select is(
  (select count(*) from teguh.p1_q), 0::bigint,
  'the segment that is not in use is empty'
);

-- Given queues that notify when somebody waits, always, and never.  A row names the
-- waiting workers that are notified of it; no row is named when nobody is notified.
select teguh.create_queue('auto');
select teguh.create_queue('always', '{"notify": "always"}');
select teguh.create_queue('off', '{"notify": "off"}');

create function pg_temp.notifies(p_queue_name text)
  returns boolean
  language plpgsql
as $$
declare
  v_told boolean;
begin
  perform teguh.spawn_task(p_queue_name, 'a', '{}');
  execute format(
    $sql$
      select p.woke is not null
      from teguh.p0_%s as p
      where p.kind = 'r'
      order by p.seq desc
      limit 1
    $sql$,
    p_queue_name
  )
  into v_told;
  return v_told;
end;
$$;

-- Then
select ok(
  not pg_temp.notifies('auto'),
  'auto: a spawn is silent while nobody waits'
);

-- When a worker has come away with fewer runs than it asked for
select * from teguh.claim_task('auto', 'w', 30, 10);

-- Then
select ok(
  pg_temp.notifies('auto'),
  'auto: a spawn notifies when a worker has come away with fewer runs than it asked for'
);

select ok(
  pg_temp.notifies('auto'),
  'auto: a spawn notifies as long as no worker has come for what it was notified of'
);

-- When that worker has come for it
select * from teguh.claim_task('auto', 'w');

-- Then
select ok(
  not pg_temp.notifies('auto'),
  'auto: a spawn is silent when the waiting worker has been notified since'
);

-- When many have waited, and some policy is changed that has nothing to do with it
select * from teguh.claim_task('auto', 'w', 30, 10);
select count(*) from generate_series(1, 20) as n, teguh.claim_task('auto', 'w' || n) as c;
select pg_temp.notifies('auto');
select teguh.create_queue('auto', '{"cleanup_ttl": 77}');
select * from teguh.claim_task('auto', 'w');
select * from teguh.claim_task('auto', 'w');

-- Then
select ok(
  pg_temp.notifies('auto'),
  'auto: a change of policy loses no waiting worker'
);

-- When policies stay as they are
-- Then
select ok(
  pg_temp.notifies('always') and pg_temp.notifies('always'),
  'always: every spawn notifies'
);

select * from teguh.claim_task('always', 'w', 30, 10);
select ok(
  pg_temp.notifies('always'),
  'always: every spawn notifies after a claim, too'
);

select ok(
  not pg_temp.notifies('off'),
  'off: no spawn notifies'
);

select * from teguh.claim_task('off', 'w', 30, 10);
select ok(
  not pg_temp.notifies('off'),
  'off: no spawn notifies a worker that waits'
);

-- When policies are changed
select teguh.create_queue('off', '{"notify": "auto"}');
select teguh.create_queue('always', '{"notify": "off"}');

-- Then
select ok(
  pg_temp.notifies('off'),
  'from off to auto: the next spawn notifies, for somebody may wait'
);

select ok(
  not pg_temp.notifies('always'),
  'from always to off: the next spawn is silent'
);

-- When a policy is changed from always to auto, and a worker waits
select teguh.create_queue('always', '{"notify": "always"}');
select pg_temp.notifies('always');
select teguh.create_queue('always', '{"notify": "auto"}');
select * from teguh.claim_task('always', 'w', 30, 100);

-- Then
select ok(
  pg_temp.notifies('always'),
  'from always to auto: rows of before hide no worker that waits'
);

-- Given a clock that is stepped back by an hour after timers have fired
select teguh.create_queue('back');
select teguh.spawn_task('back', 'first', '{}', '{"delay_seconds": 1}');
set teguh.fake_now = '2031-05-01 13:00:00+00';
select * from teguh.claim_task('back', 'w', 0);
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.spawn_task('back', 'second', '{}', '{"delay_seconds": 10}');

-- Then
select is(
  teguh.next_due('back'), '2031-05-01 12:00:10+00',
  'a clock that steps back: the next timer is seen'
);

set teguh.fake_now = '2031-05-01 12:00:10+00';
select is(
  (select c.task_name from teguh.claim_task('back', 'w') as c), 'second',
  'a clock that steps back: no timer is lost'
);

-- When the ring turns between the look at it and the insert, and the older segment is given up
select teguh.create_queue('turn');
alter function teguh._add0_turn("char", uuid[], integer[], timestamptz[]) rename to _late0_turn;
create function teguh._add0_turn("char", uuid[], integer[], timestamptz[])
  returns bigint
  language plpgsql
as $$
begin
  perform setval('teguh.ring_turn', 2 + pg_sequence_last_value('teguh.ring_turn'::regclass));
  return teguh._late0_turn($1, $2, $3, $4);
end;
$$;
select teguh.spawn_task('turn', 'a', '{}');

-- Then
select is(
  (select c.task_name from teguh.claim_task('turn', 'w') as c), 'a',
  'rows go to a segment that is opened meanwhile, too'
);

select * from finish();
rollback;
