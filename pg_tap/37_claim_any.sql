-- One claim looks through several queues, and may ask for what the worker knows only.
begin;
select plan(53);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

create function pg_temp.spawn(p_queue text, p_names text[], p_options jsonb default '{}')
  returns void
  language sql
as $$
  select from unnest(p_names) as u(name)
  cross join lateral teguh.spawn_task(p_queue, u.name, '1', p_options);
$$;

-- What a claim gets, queue and name, in the order in which it does.
create function pg_temp.claim(p_queues text[], p_options jsonb default '{}', p_qty integer default 9)
  returns text
  language sql
as $$
  select string_agg(c.queue_name || '.' || c.task_name, ' ')
  from teguh.claim_any(p_queues, 'w', 1e6, p_qty, p_options) as c;
$$;

-- Given no queue
-- Then
select is(pg_temp.claim(null), null, 'where no queue is nothing is to be had');
select is(pg_temp.claim('{}'), null, 'nor where none is asked for');

-- Given three queues
select teguh.create_queue(n) from unnest('{a,b,c}'::text[]) as n;
select pg_temp.spawn('a', '{one,two,three}');
select pg_temp.spawn('b', '{one,two,three}');

-- Then
select throws_ok(
  format('select * from teguh.claim_any(%L, %L, 30, 1, %L)', b.queues, 'w', b.options), b.sqlstate,
  null, 'claim_any refuses ' || b.what
)
from (
  values
    ('{a,nowhere}', '{"order": "oldest"}', 'TG001', 'an unknown queue'),
    ('{nowhere}', '{"task_names": ["x"]}', 'TG001', 'an unknown queue, whatever is asked of it'),
    ('{nowhere,a}', '{"order": "strict"}', 'TG001', 'an unknown queue that is first'),
    ('{null}', '{}', 'TG001', 'a null queue'),
    ('{"a; --"}', '{}', 'TG001', 'what cannot be a queue'),
    ('{a}', '[]', 'TG005', 'options that are an array'),
    ('{a}', '{"names": ["x"]}', 'TG005', 'an unknown option'),
    ('{a}', '{"order": "random"}', 'TG005', 'an unknown order'),
    ('{a}', '{"order": 1}', 'TG005', 'an order that is no string'),
    ('{a}', '{"task_names": "x"}', 'TG005', 'names that are no array'),
    ('{a}', '{"task_names": []}', 'TG005', 'no names'),
    ('{a}', '{"task_names": ["x", 1]}', 'TG005', 'a name that is no string'),
    ('{a}', '{"task_names": ["x", null]}', 'TG005', 'a name that is null'),
    ('{a}', '{"task_names": [" "]}', 'TG005', 'a blank name')
) as b(queues, options, sqlstate, what);
select is(
  (select count(*) from teguh.wanted), 0::bigint, 'what was refused has been noted nowhere'
);

-- When a worker claims from the queues in turn
set teguh.turn = '';
select is(pg_temp.claim('{a,b}', '{}', 2), 'a.one a.two', 'the first of them is first');
select is(pg_temp.claim('{a,b}', '{}', 2), 'b.one b.two', 'then the second');
select is(
  pg_temp.claim('{a,b}', null, 2), 'a.three b.three', 'what one does not have the next one gives'
);
select pg_temp.spawn('a', '{four}');
select is(pg_temp.claim('{b,a,b,a}', '{"order": null}'), 'a.four', 'a queue may be named twice');
select is(
  (
    select (c.attempt, c.params, c.headers, c.checkpoints, c.lease_expires_at, c.queue_name)::text
    from teguh.spawn_task('c', 't', '{"x": 1}', '{"headers": {"h": 2}}') as s
    cross join lateral teguh.claim_any('{a,b,c}', 'w', 60) as c
    where c.task_id = s.task_id
  ),
  '(1,"{""x"": 1}","{""h"": 2}",{},"2031-05-01 12:01:00+00",c)',
  'rows are those of claim_task with the queue'
);

-- When the order is strict
select pg_temp.spawn('a', '{s1,s2,s3}');
select pg_temp.spawn('b', '{s1,s2}');
select is(
  pg_temp.claim('{b,a}', '{"order": "strict"}', 1), 'b.s1', 'strictly, the first is first'
);
select is(
  pg_temp.claim('{b,a}', '{"order": "strict"}', 1), 'b.s2', 'as long as it has something'
);
select is(pg_temp.claim('{b,a}', '{"order": "strict"}', 2), 'a.s1 a.s2', 'then the second');

-- When the order is by age
set local teguh.fake_now = '2031-05-01 12:00:10+00';
select pg_temp.spawn('b', '{young}');
set local teguh.fake_now = '2031-05-01 12:00:20+00';
select pg_temp.spawn('c', '{delayed}', '{"delay_seconds": 100}');
select is(
  pg_temp.claim('{c,b,a}', '{"order": "oldest"}'), 'a.s3 b.young',
  'the one whose first task has waited longest is first'
);
select pg_temp.spawn('a', '{late}');
set local teguh.fake_now = '2031-05-01 12:02:00+00';
select is(
  pg_temp.claim('{c,a}', '{"order": "oldest"}'), 'a.late c.delayed',
  'what has just come due has waited least'
);

-- When queues are paused
select pg_temp.spawn(q, '{p}') from unnest('{a,b,c}'::text[]) as q;
select teguh.pause_queue('b');
select is(pg_temp.claim('{b}'), null, 'a paused queue is passed over');
select is(pg_temp.claim('{b,c}', '{"order": "strict"}', 1), 'c.p', 'and the next one looked at');
select is(pg_temp.claim(null, '{"order": "oldest"}'), 'a.p', 'whatever the order');
select teguh.resume_queue('b');
select is(pg_temp.claim(null), 'b.p', 'no names of queues mean all of them');

-- When a worker says which tasks it knows
select pg_temp.spawn('a', '{x,y,z,x}');
select is(
  pg_temp.claim('{a}', '{"task_names": ["x", "z", "x", "other"]}'), 'a.x a.z a.x',
  'it gets only those'
);
select is(pg_temp.claim('{a}', '{"task_names": ["x"]}'), null, 'and nothing else, ever');
select pg_temp.spawn('a', '{x}', '{"priority": -5}');
select pg_temp.spawn('b', '{x,y}');
select is(
  pg_temp.claim('{b,a}', '{"task_names": ["x"], "order": "strict"}'), 'b.x a.x', 'from any queue'
);
select is(
  (select string_agg(c.task_name, ' ') from teguh.claim_task('a', 'w') as c), 'y',
  'a worker that does not say so gets whatever there is'
);
select is(pg_temp.claim('{b}', '{"task_names": ["y"]}', 0), 'b.y', 'a quantity below 1 counts as 1');

-- When nobody asks for a name
select pg_temp.spawn('a', '{x,unknown,unknown}');
select pg_temp.spawn('a', '{unknown}', '{"delay_seconds": 500}');
select is(
  (select s.unclaimable from teguh.queue_stats('a') as s), 2::bigint,
  'what is pending of it is unclaimable'
);
select is(pg_temp.claim('{a}', '{"task_names": ["unknown"]}', 1), 'a.unknown', 'when somebody asks');
select is(
  (select s.unclaimable from teguh.queue_stats('a') as s), 0::bigint, 'it is so no longer'
);
set local teguh.fake_now = '2031-05-01 12:06:00+00';
select pg_temp.claim('{a}', '{"task_names": ["other"]}');
select is(
  (select s.unclaimable from teguh.queue_stats('a') as s), 0::bigint, 'what was asked for lately counts'
);
set local teguh.fake_now = '2031-05-01 12:08:00+00';
select is(
  (select s.unclaimable from teguh.queue_stats('a') as s), 2::bigint,
  'after five minutes it does not'
);
set local teguh.fake_now = '2031-05-01 12:12:00+00';
select is(
  (select s.unclaimable from teguh.queue_stats('a') as s), 0::bigint,
  'if nobody says what he knows nothing is unclaimable'
);
select is(
  (
    select m.value from teguh.metrics() as m
    where m.name = 'teguh_tasks_unclaimable' and m.labels = '{"queue": "a"}'
  ),
  0::double precision, 'metrics() has it, too'
);

-- When it is noted what is asked for
truncate teguh.wanted;
set local teguh.fake_now = '2031-05-01 12:20:00+00';
select pg_temp.claim('{c,b}', '{"task_names": ["m", "k"]}');
set local teguh.fake_now = '2031-05-01 12:20:59+00';
select pg_temp.claim('{c}', '{"task_names": ["k"]}');
select results_eq(
  $$
    select w.queue_name, w.task_name, to_char(w.seen_at at time zone 'UTC', 'MI:SS')
    from teguh.wanted as w order by 1, 2
  $$,
  $$
    values ('b', 'k', '20:00'), ('b', 'm', '20:00'), ('c', 'k', '20:00'), ('c', 'm', '20:00')
  $$,
  'each queue has the names, once a minute'
);
set local teguh.fake_now = '2031-05-01 12:21:01+00';
select pg_temp.claim('{c}', '{"task_names": ["k"]}');
select is(
  (select count(*) from teguh.wanted as w where w.seen_at = teguh.current_time()), 1::bigint,
  'and anew after that'
);
select teguh.drop_queue('c');
select is(
  (select count(*) from teguh.wanted as w where w.queue_name = 'c'), 0::bigint,
  'a queue that is dropped wants nothing'
);

-- When names and limits go together
select teguh.create_queue('d');
select teguh.set_limit('d', 'task', 'x', '{"max_running": 1}');
select teguh.set_limit('d', 'queue', null, '{"max_running": 2}');
select pg_temp.spawn('d', '{x,x,y,y}');
select is(pg_temp.claim('{d}', '{"task_names": ["x"]}'), 'd.x', 'the limit of a name holds');
select is(pg_temp.claim('{d}', '{"task_names": ["x", "y"]}'), 'd.y', 'and that of the queue');

-- When a role may work on one queue only
select pg_temp.spawn('a', '{g}');
select pg_temp.spawn('b', '{g}');
select teguh.grant_access('teguh_guest', 'worker', '{b}');
set local role teguh_guest;
select results_eq(
  $$ select c.queue_name from teguh.claim_any(null, 'w', 30, 9) as c $$, $$ values ('b') $$,
  'all queues are those it may claim from'
);
select lives_ok(
  $$ select teguh.claim_any('{b}', 'w', 30, 9, '{"task_names": ["g"], "order": "oldest"}') $$,
  'with every option'
);
select throws_ok(
  $$ select teguh.claim_any('{a}', 'w', 30, 9) $$, '42501', null, 'it gets nothing from others'
);
select throws_ok(
  $$ select teguh.claim_any('{a}', 'w', 30, 9, '{"task_names": ["g"]}') $$, '42501', null,
  'whatever it asks for'
);
select throws_ok(
  $$ select teguh.claim_any('{a}', 'w', 30, 9, '{"order": "oldest"}') $$, '42501', null,
  'and does not even learn their age'
);
reset role;

select * from finish();
rollback;
