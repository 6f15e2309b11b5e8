-- Limits hold for queues, task names, keys and all queues together; usage says how far they are.
begin;
select plan(103);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

create function pg_temp.spawn(p_queue text, p_labels text[], p_options jsonb default '{}')
  returns void
  language sql
as $$
  select from unnest(p_labels) as u(label)
  cross join lateral teguh.spawn_task(
    p_queue, coalesce(p_options ->> 'name', left(u.label, 1)), to_jsonb(u.label), p_options - 'name'
  );
$$;
create function pg_temp.claim(p_queue text, p_qty integer default 99)
  returns text
  language sql
as $$
  select string_agg(c.params ->> 0, ' ')
  from teguh.claim_task(p_queue, 'w', 1e6, p_qty) as c;
$$;
create function pg_temp.complete(p_queue text, p_labels text[])
  returns void
  language plpgsql
as $$
begin
  execute format(
    $sql$
      select teguh.complete_run(%1$L, t.run_id)
      from teguh.t_%1$s as t
      where t.params ->> 0 = any ($1) and t.state = 'running'
    $sql$,
    p_queue
  ) using p_labels;
end;
$$;

-- What limit_usage says: limit, how much runs, was started and waits.
create function pg_temp.usage(p_queue text)
  returns setof text
  language sql
as $$
  select concat_ws(
    ' ', u.scope, coalesce(u.name, '-'), coalesce(u.max_running::text, '-'), u.running,
    u.rate || '/' || u.period_seconds || ': ' || u.started, 'waiting', u.waiting
  )
  from teguh.limit_usage(p_queue) as u;
$$;

-- Given a queue
select teguh.create_queue('q');

-- Then
select throws_ok(
  format('select teguh.set_limit(%L, %L, %L, %L)', b.queue, b.scope, b.name, b.cap), b.sqlstate,
  null, 'set_limit refuses ' || b.what
)
from (
  values
    ('nowhere', 'queue', null, '{"max_running": 1}', 'TG001', 'an unknown queue'),
    ('q', 'kew', null, '{"max_running": 1}', 'TG005', 'an unknown scope'),
    ('q', null, null, '{"max_running": 1}', 'TG005', 'no scope'),
    ('q', 'all', null, '{"max_running": 1}', 'TG005', 'a queue for the limit of all'),
    (null, 'queue', null, '{"max_running": 1}', 'TG005', 'no queue for the limit of one'),
    (null, 'key', 'k', '{"max_running": 1}', 'TG005', 'a key of no queue'),
    ('q', 'queue', 'a', '{"max_running": 1}', 'TG005', 'a name for the limit of a queue'),
    (null, 'all', 'a', '{"max_running": 1}', 'TG005', 'a name for the limit of all'),
    ('q', 'task', ' ', '{"max_running": 1}', 'TG005', 'a blank name'),
    ('q', 'key', repeat('k', 1025), '{"max_running": 1}', 'TG005', 'a name that is too long'),
    ('q', 'queue', null, '[]', 'TG005', 'an array'),
    ('q', 'queue', null, '7', 'TG005', 'a number'),
    ('q', 'queue', null, 'null', 'TG005', 'JSON null'),
    ('q', 'queue', null, '{"max": 1}', 'TG005', 'an unknown key'),
    ('q', 'queue', null, '{"max_running": -1}', 'TG005', 'fewer than none'),
    ('q', 'queue', null, '{"max_running": 1.5}', 'TG005', 'one and a half'),
    ('q', 'queue', null, '{"max_running": "1"}', 'TG005', 'a number as a string'),
    ('q', 'queue', null, '{"max_running": 3000000000}', 'TG005', 'more than can be'),
    ('q', 'queue', null, '{"rate": 1}', 'TG005', 'a rate without a period'),
    ('q', 'queue', null, '{"period_seconds": 1}', 'TG005', 'a period without a rate'),
    ('q', 'queue', null, '{"rate": -1, "period_seconds": 1}', 'TG005', 'a negative rate'),
    ('q', 'queue', null, '{"rate": 1, "period_seconds": 0}', 'TG005', 'a period of nothing'),
    ('q', 'queue', null, '{"rate": 1, "period_seconds": 1e12}', 'TG005', 'a period without end'),
    ('q', 'task', 'a', '{"fifo": true}', 'TG005', 'fifo for a task name'),
    ('q', 'queue', null, '{"fifo": true}', 'TG005', 'fifo for a queue'),
    ('q', 'key', '*', '{"fifo": "yes"}', 'TG005', 'fifo that is no boolean'),
    ('q', 'key', '*', '{"fifo": true, "max_running": 2}', 'TG005', 'fifo with a number'),
    ('q', 'key', 'k', '{"fair": true}', 'TG005', 'fair for one key'),
    ('q', 'task', '*', '{"fair": true}', 'TG005', 'fair for task names')
) as b(queue, scope, name, cap, sqlstate, what);
select throws_ok(
  $$ select teguh.limit_usage('nowhere') $$, 'TG001', null, 'an unknown queue has no usage'
);
select is(
  (select q.ruled from teguh.queues as q where q.queue_name = 'q'), false,
  'what was refused has changed nothing'
);
select is_empty($$ select * from teguh.limit_usage('q') $$, 'a queue has no limits of itself');

-- When a queue is limited while tasks run
select pg_temp.spawn('q', '{a1,a2,a3,a4,a5}');
select is(pg_temp.claim('q', 2), 'a1 a2', 'given two that run');
select teguh.set_limit('q', 'queue', null, '{"max_running": 3}');
select is(pg_temp.claim('q'), 'a3', 'what runs already counts');
select is(pg_temp.claim('q'), null, 'no more than the limit run');
select results_eq(
  $$ select pg_temp.usage('q') $$, $$ values ('queue - 3 3 waiting 2') $$, 'limit_usage says so'
);

-- When the limit is lowered, raised and taken away while tasks wait
select teguh.set_limit('q', 'queue', null, '{"max_running": 1}');
select pg_temp.complete('q', '{a1,a2}');
select is(pg_temp.claim('q'), null, 'a lower limit holds although more run');
select teguh.set_limit('q', 'queue', null, '{"max_running": 2}');
select is(pg_temp.claim('q'), 'a4', 'a higher one lets as many in as it says');
select teguh.set_limit('q', 'queue', null, '{"max_running": 0}');
select pg_temp.complete('q', '{a3,a4}');
select is(pg_temp.claim('q'), null, 'zero lets nothing in');
select is(
  teguh.next_due('q'), '2031-05-01 12:00:01+00'::timestamptz,
  'while tasks stand in lanes a worker looks again in a second'
);
select teguh.set_limit('q', 'queue');
select is(pg_temp.claim('q'), 'a5', 'without limit all go');
select is_empty($$ select * from teguh.limit_usage('q') $$, 'and none is shown');
select pg_temp.complete('q', '{a5}');

-- When task names are limited: one by its own, the others by that for each
select teguh.set_limit('q', 'task', '*', '{"max_running": 1}');
select teguh.set_limit('q', 'task', 'b', '{"max_running": 2}');
select pg_temp.spawn('q', '{a1,a2,b1,b2,b3,c1}');
select is(pg_temp.claim('q'), 'a1 b1 b2 c1', 'a name''s own limit holds, else that for each');
select results_eq(
  $$ select pg_temp.usage('q') $$,
  $$ values ('task a 1 1 waiting 1'), ('task b 2 2 waiting 1'), ('task c 1 1 waiting 0') $$,
  'limit_usage has a row for each name'
);
select teguh.set_limit('q', 'task', 'b', null);
select pg_temp.complete('q', '{b1}');
select is(pg_temp.claim('q'), null, 'null takes its own limit away: that for each holds');
select pg_temp.complete('q', '{b2}');
select is(pg_temp.claim('q'), 'b3', 'for it, too');
select teguh.set_limit('q', 'task', null, '{"max_running": 2}');
select is(pg_temp.claim('q'), 'a2', 'no name is each of them');
select teguh.set_limit('q', 'task', '*', '{}');
select pg_temp.complete('q', '{a1,a2,b3,c1}');

-- When keys are limited
select teguh.set_limit('q', 'key', '*', '{"max_running": 1}');
select teguh.set_limit('q', 'key', 'y', '{"max_running": 2}');
select pg_temp.spawn('q', '{x1,x2}', '{"key": "x"}');
select pg_temp.spawn('q', '{y1,y2,y3}', '{"key": "y"}');
select pg_temp.spawn('q', '{n1,n2,n3}');
select is(pg_temp.claim('q'), 'x1 y1 y2 n1 n2 n3', 'tasks without a key are not limited by keys');
select results_eq(
  $$ select pg_temp.usage('q') $$,
  $$ values ('key x 1 1 waiting 1'), ('key y 2 2 waiting 1') $$, 'limit_usage has a row for each key'
);
select pg_temp.complete('q', '{x1,y1}');
select is(pg_temp.claim('q'), 'x2 y3', 'what is over makes room for its key');
select pg_temp.spawn('q', '{x3,x4,x5}', '{"key": "x"}');
select is(pg_temp.claim('q'), null, 'given that more wait');
select teguh.set_limit('q', 'key', '*', '{"max_running": 3}');
select is(pg_temp.claim('q'), 'x3 x4', 'a higher limit opens the lane');
select teguh.set_limit('q', 'key', 'x', '{"max_running": 1}');
select pg_temp.complete('q', '{x2,x3}');
select is(pg_temp.claim('q'), null, 'a lower one of its own closes it');
select teguh.set_limit('q', 'key', n.name) from unnest('{x,y,*}'::text[]) as n(name);
select is(pg_temp.claim('q'), 'x5', 'without one it is open');
select pg_temp.complete('q', '{x4,x5,y2,y3,n1,n2,n3}');

-- When a task waits that is cancelled
select teguh.set_limit('q', 'key', 'x', '{"max_running": 1}');
select pg_temp.spawn('q', '{x1,x2,x3}', '{"key": "x", "max_attempts": 3}');
select is(pg_temp.claim('q'), 'x1', 'given one that runs and two that wait');
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t
where t.params = '"x2"' and t.state = 'pending';
select results_eq(
  $$ select pg_temp.usage('q') $$, $$ values ('key x 1 1 waiting 1') $$,
  'it waits no longer, says limit_usage'
);
select pg_temp.complete('q', '{x1}');
select is(pg_temp.claim('q'), 'x3', 'and is passed over');
select pg_temp.complete('q', '{x3}');

-- When several limits hold at once
select teguh.set_limit('q', 'queue', null, '{"max_running": 4}');
select teguh.set_limit('q', 'task', 'a', '{"max_running": 2}');
select pg_temp.spawn('q', '{a1,a2}', '{"key": "x"}');
select pg_temp.spawn('q', '{a3,a4,b1,b2,b3}');
select is(pg_temp.claim('q'), 'a1 a3 b1 b2', 'the least of them decides');
select results_eq(
  $$ select pg_temp.usage('q') $$,
  $$
    values ('key x 1 1 waiting 1'), ('queue - 4 4 waiting 3'), ('task a 2 2 waiting 2')
  $$,
  'limit_usage has them all'
);
select pg_temp.complete('q', '{a1}');
select is(pg_temp.claim('q'), 'a2', 'as soon as all of them leave room the next goes');
select teguh.set_limit('q', s.scope, s.name)
from (values ('key', 'x'), ('queue', null), ('task', 'a')) as s(scope, name);
select is(pg_temp.claim('q'), 'a4 b3', 'all of them can be taken away');
select pg_temp.complete('q', '{a2,a3,a4,b1,b2,b3}');

-- When starts are limited by a rate
select teguh.set_limit('q', 'task', 'r', '{"rate": 2, "period_seconds": 10}');
select pg_temp.spawn('q', '{r1,r2,r3,r4,r5,r6}');
select is(pg_temp.claim('q', 1), 'r1', 'given one that was started');
set local teguh.fake_now = '2031-05-01 12:00:04+00';
select is(pg_temp.claim('q'), 'r2', 'as many are started as the rate says');
select pg_temp.complete('q', '{r1,r2}');
select is(pg_temp.claim('q'), null, 'although none of them runs any more');
select results_eq(
  $$ select pg_temp.usage('q') $$, $$ values ('task r - 0 2/10: 2 waiting 4') $$,
  'limit_usage says how many were'
);
set local teguh.fake_now = '2031-05-01 12:00:09.9+00';
select is(
  teguh.next_due('q'), '2031-05-01 12:00:10+00'::timestamptz, 'next_due says when the period is over'
);
set local teguh.fake_now = '2031-05-01 12:00:10+00';
select is(pg_temp.claim('q'), 'r3', 'the period is that before each start');
select is(pg_temp.claim('q'), null, 'in which no more are started');
set local teguh.fake_now = '2031-05-01 12:00:20+00';
select is(pg_temp.claim('q'), 'r4 r5', 'when it is over they are');
select teguh.set_limit('q', 'task', 'r', '{"rate": 3, "period_seconds": 10, "max_running": 3}');
select is(pg_temp.claim('q'), null, 'a rate and a number go together');
select pg_temp.complete('q', '{r3,r4,r5}');
select is(pg_temp.claim('q'), 'r6', 'what was started counts under a new rate');
select pg_temp.complete('q', '{r6}');
select teguh.set_limit('q', 'task', 'r');
set local teguh.fake_now = '2031-05-01 12:01:00+00';
select pg_temp.claim('q');
select is((select count(*) from teguh.starts), 0::bigint, 'old starts are forgotten');

-- When keys and the queue have rates
select teguh.set_limit('q', 'queue', null, '{"rate": 3, "period_seconds": 60}');
select teguh.set_limit('q', 'key', '*', '{"rate": 1, "period_seconds": 30}');
select pg_temp.spawn('q', '{k1,k2,k3}', '{"key": "k"}');
select pg_temp.spawn('q', '{l1}', '{"key": "l"}');
select is(pg_temp.claim('q'), 'k1 l1', 'each key has its rate');
set local teguh.fake_now = '2031-05-01 12:01:30+00';
select is(pg_temp.claim('q'), 'k2', 'which lets the next in after its period');
set local teguh.fake_now = '2031-05-01 12:02:00+00';
select results_eq(
  $$ select pg_temp.usage('q') $$,
  $$
    values
      ('key k - 2 1/30: 0 waiting 1'), ('key l - 1 1/30: 0 waiting 0'),
      ('queue - - 3 3/60: 1 waiting 1')
  $$,
  'each has its own period'
);
select is(pg_temp.claim('q'), 'k3', 'the queue, too');
select is(
  (select count(*) from teguh.starts as s where s.scope = 'queue'), 2::bigint,
  'what was started is kept for as long as it counts'
);
select teguh.set_limit('q', 'queue', null, '{"rate": 0, "period_seconds": 60}');
select teguh.set_limit('q', 'key', '*');
select pg_temp.spawn('q', '{m1}');
set local teguh.fake_now = '2031-05-01 13:00:00+00';
select is(pg_temp.claim('q'), null, 'a rate of zero lets nothing start');
select teguh.set_limit('q', 'queue');
select is(pg_temp.claim('q'), 'm1', 'until it is taken away');

-- When all queues are limited together
select pg_temp.complete('q', '{k1,k2,k3,l1,m1}');
select teguh.create_queue('p');
select pg_temp.spawn('p', '{p1,p2,p3}');
select pg_temp.spawn('q', '{q1,q2,q3}');
select is(pg_temp.claim('p', 1), 'p1', 'given a task of one queue that runs');
select teguh.set_limit(null, 'all', null, '{"max_running": 3}');
select is(pg_temp.claim('q', 1), 'q1', 'then one of another is let in');
select is(pg_temp.claim('p'), 'p2', 'and one more');
select is(pg_temp.claim('q'), null, 'no queue gets more');
select is(pg_temp.claim('p'), null, 'neither of them');
select pg_temp.complete('p', '{p1}');
select is(pg_temp.claim('q'), 'q2', 'what is over in one makes room in another');
select teguh.create_queue('n');
select pg_temp.spawn('n', '{n1}');
select is(pg_temp.claim('n'), null, 'a queue that is made later is limited, too');
select is(
  (select count(*) from teguh.claim_any(null, 'w', 9, 9)), 0::bigint, 'claim_any, too'
);
select teguh.drop_queue('p');
select is(pg_temp.claim('n'), 'n1', 'what a dropped queue ran does not count');
select teguh.set_limit(null, 'all', null, '{"rate": 1, "period_seconds": 60}');
select is(pg_temp.claim('q'), 'q3', 'all of them may have a rate');
select pg_temp.spawn('q', '{q4}');
select pg_temp.spawn('n', '{n2}');
select is(pg_temp.claim('n'), null, 'which one alone can use up');
select is(
  teguh.next_due('n') <= '2031-05-01 13:01:00+00', true, 'and another knows when it is over'
);
set local teguh.fake_now = '2031-05-01 13:01:00+00';
select is(pg_temp.claim('n'), 'n2', 'then it goes on');
select teguh.set_limit(null, 'all');
select is(pg_temp.claim('q'), 'q4', 'without the limit nothing waits');
select teguh.create_queue('o');
select is(
  (select q.ruled from teguh.queues as q where q.queue_name = 'o'), false,
  'and a queue that is made then has no rules'
);

-- When a queue is dropped that has limits
select teguh.set_limit('o', 'queue', null, '{"max_running": 0}');
select teguh.set_limit('o', 'task', 'o', '{"rate": 1, "period_seconds": 60}');
select teguh.drop_queue('o');
select is(
  (select count(*) from teguh.limits as l) + (select count(*) from teguh.starts as s where s.queue_name = 'o'),
  0::bigint, 'they go with it'
);
select teguh.create_queue('o');
select pg_temp.spawn('o', '{o1}');
select is(pg_temp.claim('o'), 'o1', 'and one of the same name has none');

-- When a retry counts against limits
select teguh.set_limit('o', 'task', 'o', '{"max_running": 1}');
select pg_temp.spawn('o', '{o2}');
select is(pg_temp.claim('o'), null, 'given a task that waits');
select teguh.fail_run('o', t.run_id, '"no"', '2031-05-01 13:01:05+00')
from teguh.t_o as t
where t.state = 'running';
select is(pg_temp.claim('o'), 'o2', 'one that is to be retried takes up no room meanwhile');
set local teguh.fake_now = '2031-05-01 13:01:05+00';
select is(pg_temp.claim('o'), null, 'and waits for room when it is due');
select is(
  (select u.waiting from teguh.limit_usage('o') as u), 1::bigint, 'limit_usage counts it'
);
select pg_temp.complete('o', '{o2}');
select is(pg_temp.claim('o'), 'o1', 'then it is handed out again');

-- The limit over all queues is shown without a queue
select teguh.create_queue('over');
select teguh.set_limit(null, 'all', null, '{"max_running": 1}');
select teguh.spawn_task('over', 'a', '{}');
select teguh.spawn_task('over', 'a', '{}');
select teguh.claim_task('over', 'w', 30, 5);
select results_eq(
  $$ select u.scope, u.name, u.max_running, u.running > 0, u.waiting > 0 from teguh.limit_usage(null) as u $$,
  $$ values ('all', null::text, 1, true, true) $$,
  'limit_usage(null) shows the limit over all queues'
);
select teguh.set_limit(null, 'all');
select is_empty(
  $$ select * from teguh.limit_usage(null) $$, 'and nothing when there is none'
);

select * from finish();
rollback;
