-- A queue that goes by rules hands tasks out by priority, by key and in turns, and loses none.
-- Each statement commits by itself: positions pass only what is committed.
select plan(106);

create function pg_temp.at(p_second double precision)
  returns void
  language plpgsql
as $$
begin
  perform set_config(
    'teguh.fake_now', (timestamptz '2031-05-01 12:00+00' + make_interval(secs => p_second))::text,
    false
  );
end;
$$;
create function pg_temp.spawn(p_queue text, p_label text, p_options jsonb default '{}')
  returns void
  language sql
as $$
  select from teguh.spawn_task(
    p_queue, coalesce(p_options ->> 'name', 'a'), to_jsonb(p_label), p_options - 'name'
  );
$$;

-- What a claim gets, in the order in which it does.
create function pg_temp.claim(
  p_queue text, p_qty integer default 1, p_lease double precision default 1000
)
  returns text
  language sql
as $$
  select string_agg(c.params ->> 0, ' ')
  from teguh.claim_task(p_queue, 'w', p_lease, p_qty) as c;
$$;
create function pg_temp.task(p_queue text, p_label text)
  returns uuid
  language plpgsql
as $$
declare
  v_task_id uuid;
begin
  execute format('select t.task_id from teguh.t_%s as t where t.params ->> 0 = $1', p_queue)
  into strict v_task_id
  using p_label;
  return v_task_id;
end;
$$;
create function pg_temp.run(p_queue text, p_label text)
  returns uuid
  language sql
as $$
  select t.run_id from teguh.get_task(p_queue, pg_temp.task(p_queue, p_label)) as t;
$$;
create function pg_temp.complete(p_queue text, p_labels text[])
  returns void
  language sql
as $$
  select teguh.complete_run(p_queue, pg_temp.run(p_queue, u.label)) from unnest(p_labels) as u(label);
$$;
create function pg_temp.ruled(p_queue text)
  returns boolean
  language sql
as $$
  select q.ruled from teguh.queues as q where q.queue_name = p_queue;
$$;

-- Whether the counters say what there is.
create function pg_temp.exact(p_queue text)
  returns boolean
  language plpgsql
as $$
declare
  v_exact boolean;
begin
  execute format(
    $sql$
      select not exists (
        select s.letter
        from (
          select s.letter, s.qty
          from teguh._count_%1$s() as c
          cross join lateral (values (c.became, c.qty), (c.was, - c.qty)) as s(letter, qty)
          where s.letter <> '-'
          union all
          select teguh._letter(t.state, t.attempt, t.wake_event), -1
          from teguh.t_%1$s as t
        ) as s
        group by s.letter
        having sum(s.qty) <> 0
      )
    $sql$,
    p_queue
  ) into v_exact;
  return v_exact;
end;
$$;

-- Given a queue without rules
select pg_temp.at(0);
select teguh.create_queue('q');
select pg_temp.spawn('q', 'plain');
select is(pg_temp.ruled('q'), false, 'a queue goes by no rules of itself');
select pg_temp.spawn('q', 'none', '{"priority": 0}');
select pg_temp.spawn('q', 'keyed', '{"key": "k"}');
select is(pg_temp.ruled('q'), false, 'priority 0 and a key without a limit make none');

-- When a task has a priority
select pg_temp.spawn('q', 'high', '{"priority": 1}');
select pg_temp.spawn('q', 'low', '{"priority": -1}');
select pg_temp.spawn('q', 'higher', '{"priority": 2}');
select pg_temp.spawn('q', 'high too', '{"priority": 1}');

-- Then
select is(pg_temp.ruled('q'), true, 'a task with a priority makes the queue go by rules');
select is(
  pg_temp.claim('q', 10), 'higher high high too plain none keyed low',
  'the higher priority goes first, equal ones as they came, a negative one last'
);
select is(pg_temp.claim('q', 10), null, 'each is handed out once');

-- When a task has waited long
select pg_temp.spawn('q', 'two minutes old');
select pg_temp.at(61);
select pg_temp.spawn('q', 'a minute less than that', '{"priority": 1}');
select pg_temp.at(120);
select pg_temp.spawn('q', 'new', '{"priority": 1}');
select pg_temp.spawn('q', 'urgent', '{"priority": 3}');

-- Then
select is(
  pg_temp.claim('q', 10), 'urgent two minutes old a minute less than that new',
  'each degree of priority passes what is a minute older, no more'
);

-- When priorities are as far apart as they can be
select teguh.spawn_tasks('q', '[
  {"task_name": "a", "params": "least", "options": {"priority": -32768}},
  {"task_name": "a", "params": "most", "options": {"priority": 32767}}
]');
select is(pg_temp.claim('q', 1), 'most', 'spawn_tasks() has priorities, too: the greatest goes first');
select is(pg_temp.claim('q', 1), 'least', 'and the least when nothing else is there');

-- When a delayed task and a retry come due in a queue by rules
select pg_temp.spawn('q', 'delayed', '{"delay_seconds": 10}');
select pg_temp.spawn('q', 'delayed high', '{"delay_seconds": 20, "priority": 1}');
select pg_temp.spawn('q', 'retried', '{"retry_strategy": {"kind": "fixed", "base_seconds": 5}}');
select pg_temp.claim('q', 10);
select teguh.fail_run('q', pg_temp.run('q', 'retried'), '"no"');
select is(pg_temp.claim('q', 10), null, 'what is not due is not handed out');
select is(
  teguh.next_due('q'), '2031-05-01 12:02:05+00'::timestamptz, 'next_due says when the first is'
);
select pg_temp.at(145);
select is(
  pg_temp.claim('q', 10), 'delayed high retried delayed',
  'then all are, and rank by when they came due'
);
select is(pg_temp.exact('q'), true, 'the counters are exact so far');

-- When a task is deleted, cancelled, expired or replaced while it stands in a lane
select pg_temp.complete('q', array[
  'plain', 'none', 'keyed', 'high', 'low', 'higher', 'high too'
]);
select pg_temp.spawn('q', 'cancelled');
select pg_temp.spawn('q', 'expired', '{"ttl_seconds": 10}');
select pg_temp.spawn('q', 'replaced', '{"unique": {"key": "u", "on_conflict": "replace"}}');
select pg_temp.spawn('q', 'first', '{"priority": 100}');
select is(pg_temp.claim('q'), 'first', 'given that a claim has put them in lanes');
select is(
  (select count(*) from teguh.l_q), 3::bigint, 'where those stay that were not handed out'
);
select teguh.cancel_task('q', pg_temp.task('q', 'cancelled'));
select pg_temp.spawn('q', 'replacement', '{"unique": {"key": "u", "on_conflict": "replace"}}');
select pg_temp.at(155);
select is(pg_temp.claim('q', 10), 'replacement', 'only the replacement is handed out');
select is((select count(*) from teguh.l_q), 0::bigint, 'and nothing of the others is left');
select is(
  (
    select array_agg(t.state order by t.state) from teguh.t_q as t
    where t.params ->> 0 in ('cancelled', 'expired')
  ),
  '{cancelled,expired}', 'they are what they are'
);
select teguh.retry_task('q', pg_temp.task('q', 'cancelled'));
select teguh.retry_task('q', pg_temp.task('q', 'expired'));
select is(
  pg_temp.claim('q', 10), 'cancelled expired',
  'a task that was cancelled or expired in a lane can be retried'
);
select pg_temp.spawn('q', 'again');
select pg_temp.spawn('q', 'at once', '{"priority": 1}');
select pg_temp.claim('q');
select teguh.cancel_task('q', pg_temp.task('q', 'again'));
select teguh.retry_task('q', pg_temp.task('q', 'again'));
select is(
  pg_temp.claim('q', 10), 'again', 'also before a claim has come by its place in the lane'
);

-- When a debounced task is replaced for later
select pg_temp.spawn('q', 'called', '{"unique": {"key": "d", "on_conflict": "debounce"}}');
select pg_temp.spawn('q', 'meanwhile', '{"priority": 1}');
select pg_temp.claim('q');
select pg_temp.spawn('q', 'called back', '{
  "unique": {"key": "d", "on_conflict": "debounce"}, "delay_seconds": 5, "priority": 1
}');
select is(pg_temp.claim('q', 10), null, 'a task that is put off leaves its lane');
select pg_temp.at(160);
select is(pg_temp.claim('q', 10), 'called back', 'and comes back when it is due');

-- When a task that has waited in vain for an event stands in a lane, and then the event comes
select pg_temp.spawn('q', 'waiting');
select pg_temp.claim('q');
select teguh.await_event('q', pg_temp.task('q', 'waiting'), pg_temp.run('q', 'waiting'), 's', 'e', 5);
select pg_temp.at(165);
select pg_temp.spawn('q', 'before', '{"priority": 1}');
select is(pg_temp.claim('q'), 'before', 'given that another was handed out before it');
select teguh.emit_event('q', 'e', '"late"');
select is(
  (select (c.params ->> 0, c.wake_event, c.event_payload)::text from teguh.claim_task('q', 'w', 10) as c),
  '(waiting,e,)', 'it is handed out as one whose time is out'
);
select is(pg_temp.claim('q', 10), null, 'and not again');
select is(pg_temp.exact('q'), true, 'the counters are exact after all of that');

-- When nothing runs any more
select teguh.cancel_tasks('q', '{}', '{"all": true}');
select pg_temp.claim('q', 10);
select is((select count(*) from teguh.h_q), 0::bigint, 'the next claim forgets what ran');
select is(teguh.next_due('q'), null, 'and there is nothing to wait for');

-- Given many tasks in lanes: more than a look takes
select teguh.create_queue('many');
select count(*) from teguh.spawn_tasks('many', (
  select jsonb_agg(jsonb_build_object(
    'task_name', 'a', 'params', g.i::text, 'options', jsonb_build_object('priority', g.i % 2)
  ))
  from generate_series(1, 1500) as g(i)
));

-- When one is claimed, and another
select is(pg_temp.claim('many'), '1', 'the first of the higher priority goes first');
select is((select count(*) from teguh.l_many), 1499::bigint, 'a claim moves what is ready into lanes');
select is(pg_temp.claim('many'), '3', 'then the second');
select is((select count(*) from teguh.l_many), 1498::bigint, 'and the next finds them there');

-- Then
select is(
  (select count(*) from teguh.list_tasks('many', '{"state": "pending"}', null, 2000)),
  1498::bigint, 'tasks in lanes are listed'
);
select is(
  (select count(*) from teguh.list_tasks('many', '{"state": ["pending", "running"]}', null, 2000)),
  1500::bigint, 'with those that run'
);
select is(
  (select count(*) from teguh.list_tasks('many', '{"state": "sleeping"}', null, 2000)), 0::bigint,
  'and not as sleeping'
);
select is(
  (select s.pending from teguh.queue_stats('many') as s), 1498::bigint, 'they count as pending'
);

-- When dispatch is built anew
select is(teguh.rebuild_dispatch('many'), 1498::bigint, 'rebuild_dispatch finds them');
select is(
  (select count(*) from teguh.l_many) + (select count(*) from teguh.t_many as t where t.laned),
  0::bigint, 'and takes them out of their lanes'
);
select isnt(pg_temp.claim('many'), null, 'to which the next claims bring them back');
select is(
  (
    select count(*) filter (where (c.params ->> 0)::integer % 2 = 1)
    from teguh.claim_task('many', 'w', 1000, 747) as c
  ),
  747::bigint, 'the higher priority goes first, as before'
);

-- When they are cancelled where they stand
select is(
  teguh.cancel_tasks('many', '{"state": "pending"}', '{"limit": 2000}'), 750,
  'cancel_tasks finds them, too'
);
select pg_temp.spawn('many', 'new');
select is(pg_temp.claim('many', 10), 'new', 'one claim passes whatever is stale');
select is((select count(*) from teguh.l_many), 0::bigint, 'and removes it');
select is(pg_temp.exact('many'), true, 'the counters are exact');

-- Given a queue whose segments are used up quickly
set teguh.segment_bytes = 8192;
select teguh.create_queue('ring');
select teguh.set_limit('ring', 'queue', null, '{"max_running": 20}');

-- When it is worked off under its limit
do $$
begin
  for v_round in 1..30 loop
    perform pg_temp.spawn('ring', 'r' || v_round || '.' || n, jsonb_build_object(
      'priority', n % 3, 'delay_seconds', n % 2 * 100
    ))
    from generate_series(1, 20) as n;
    commit;
    perform pg_temp.at(1000 + v_round * 40);
    perform teguh.complete_run('ring', c.run_id)
    from teguh.claim_task('ring', 'w', 1000, 15) as c
    where c.params ->> 0 not like '%.7';
    perform teguh.schedule_run('ring', t.run_id, teguh.current_time() + interval '1 hour')
    from teguh.t_ring as t
    where t.state = 'running';
    commit;
    perform teguh.ticker('ring');
    commit;
  end loop;
end;
$$;
select is(
  pg_sequence_last_value('teguh.ring_ring'::regclass) >= 4, true, 'given that segments were changed'
);
select is(
  (select count(*) > 32 from teguh.l_ring), true, 'while tasks stood in lanes'
);
select is(pg_temp.exact('ring'), true, 'the counters are exact');
do $$
begin
  for v_round in 1..20 loop
    perform pg_temp.at(10000 + v_round);
    perform teguh.complete_run('ring', c.run_id) from teguh.claim_task('ring', 'w', 1000, 50) as c;
    commit;
    perform teguh.ticker('ring');
    commit;
  end loop;
end;
$$;
select is(
  (select s.completed from teguh.queue_stats('ring') as s), 600::bigint, 'none is lost by that'
);
select is(
  (select count(*) from teguh.list_tasks('ring', '{"state": ["pending", "sleeping", "running"]}')),
  0::bigint, 'and none is left'
);
reset teguh.segment_bytes;

-- Given a queue that drops the oldest when it is full
select teguh.create_queue('full', '{"max_pending": 3, "on_full": "drop_oldest"}');
select teguh.set_limit('full', 'queue', null, '{"max_running": 0}');
select pg_temp.spawn('full', 'f1');
select pg_temp.spawn('full', 'f2', '{"priority": 5}');
select is(pg_temp.claim('full'), null, 'given tasks in lanes');
select pg_temp.spawn('full', 'f3');

-- When more come
select pg_temp.spawn('full', 'f4');
select is(
  (select string_agg(l.task_id::text, ',') from teguh.list_tasks('full', '{"state": "cancelled"}') as l),
  pg_temp.task('full', 'f1')::text, 'the oldest is dropped, which stands in a lane'
);
select pg_temp.spawn('full', 'f5');
select pg_temp.spawn('full', 'f6');
select teguh.set_limit('full', 'queue');
select is(pg_temp.claim('full', 10), 'f4 f5 f6', 'then the next, whatever its priority');
select is(pg_temp.exact('full'), true, 'the counters are exact');
select teguh.set_queue_policy('full', '{"on_full": "reject"}');
select teguh.set_limit('full', 'queue', null, '{"max_running": 0}');
select pg_temp.spawn('full', 'g' || n) from generate_series(1, 3) as n;
select pg_temp.claim('full');
select throws_ok(
  $$ select pg_temp.spawn('full', 'g4') $$, 'TG007', null, 'tasks in lanes make a queue full'
);


-- Given keys that are first in, first out
select pg_temp.at(20000);
select teguh.create_queue('fifo');
select teguh.set_limit('fifo', 'key', '*', '{"fifo": true}');
select pg_temp.spawn('fifo', 'x1', '{
  "key": "x", "retry_strategy": {"kind": "fixed", "base_seconds": 10}
}');
select pg_temp.spawn('fifo', 'x2', '{"key": "x", "priority": 9}');
select pg_temp.spawn('fifo', 'x3', '{"key": "x"}');
select pg_temp.spawn('fifo', 'y1', '{"key": "y"}');
select pg_temp.spawn('fifo', 'free 1');
select pg_temp.spawn('fifo', 'free 2');

-- Then
select is(
  pg_temp.claim('fifo', 10), 'x1 y1 free 1 free 2',
  'of each key the first is handed out, whatever has no key at once'
);

-- When the first fails and is to be retried
select teguh.fail_run('fifo', pg_temp.run('fifo', 'x1'), '"no"');
select is(pg_temp.claim('fifo', 10), null, 'the next waits while it waits for its retry');
select pg_temp.at(20010);
select is(pg_temp.claim('fifo', 10, 5), 'x1', 'which is the first again');

-- When its lease expires
select pg_temp.at(20015);
select is(pg_temp.claim('fifo', 10, 100), null, 'the next still waits');
select pg_temp.at(20025);
select is(pg_temp.claim('fifo', 10, 100), 'x1', 'a lost run is retried before the next');

-- When it sleeps, waits and is released
select teguh.schedule_run('fifo', pg_temp.run('fifo', 'x1'), '2031-05-01 18:00:00+00');
select pg_temp.at(20030);
select is(pg_temp.claim('fifo', 10), null, 'the next waits while it sleeps');
select pg_temp.complete('fifo', '{y1,free 1,free 2}');
select pg_temp.at(21600);
select is(pg_temp.claim('fifo', 10), 'x1', 'and when it has woken');
select teguh.await_event('fifo', pg_temp.task('fifo', 'x1'), pg_temp.run('fifo', 'x1'), 's', 'go');
select is(pg_temp.claim('fifo', 10), null, 'and while it waits for an event');
select teguh.emit_event('fifo', 'go');
select is(pg_temp.claim('fifo', 10), 'x1', 'and when that has come');
select teguh.release_run('fifo', pg_temp.run('fifo', 'x1'));
select is(pg_temp.claim('fifo', 10), 'x1', 'and when it was given back');

-- When it is over
select pg_temp.complete('fifo', '{x1}');
select is(pg_temp.claim('fifo', 10), 'x2', 'the second goes when the first is over');

-- When the second is cancelled while it sleeps
select teguh.schedule_run('fifo', pg_temp.run('fifo', 'x2'), '2032-01-01 00:00:00+00');
select teguh.cancel_task('fifo', pg_temp.task('fifo', 'x2'));
select is(pg_temp.claim('fifo', 10), 'x3', 'a cancelled one lets the next go');

-- When the first is cancelled before it has begun
select pg_temp.spawn('fifo', 'x' || n, '{"key": "x"}') from generate_series(4, 6) as n;
select pg_temp.complete('fifo', '{x3}');
select is(
  (select count(*) from teguh.claim_any('{fifo}', 'w', 9, 9, '{"task_names": ["none"]}')), 0::bigint,
  'given that the lanes are arranged'
);
select teguh.cancel_task('fifo', pg_temp.task('fifo', 'x4'));
select is(pg_temp.claim('fifo', 10), 'x5', 'it lets the next go, too');

-- When the first fails for good
select teguh.fail_run('fifo', pg_temp.run('fifo', 'x5'), '"no"', p_retry_at => null);
select teguh.cancel_task('fifo', pg_temp.task('fifo', 'x5'));
select is(pg_temp.claim('fifo', 10), 'x6', 'so does one that failed');
select pg_temp.complete('fifo', '{x6}');
select teguh.retry_task('fifo', pg_temp.task('fifo', 'x5'));
select pg_temp.spawn('fifo', 'x7', '{"key": "x"}');
select is(pg_temp.claim('fifo', 10), 'x5', 'one that is retried by hand queues up as if it was new');
select pg_temp.complete('fifo', '{x5}');
select is(pg_temp.claim('fifo', 10), 'x7', 'and the next follows');
select is(pg_temp.exact('fifo'), true, 'the counters are exact');

-- When the key is paused while its first is to be retried
select pg_temp.spawn('fifo', 'x8', '{"key": "x"}');
select teguh.fail_run('fifo', pg_temp.run('fifo', 'x7'), '"no"', '2031-05-01 18:00:05+00');
select pg_temp.at(21606);
select teguh.pause_queue('fifo', '2031-05-01 18:01:00+00', p_only => '{"key": "x"}');
select is(pg_temp.claim('fifo', 10), null, 'nothing of it is handed out, not even what has begun');
select pg_temp.at(21661);
select is(pg_temp.claim('fifo', 10), 'x7', 'then it goes on where it was');
select pg_temp.complete('fifo', '{x7}');
select is(pg_temp.claim('fifo', 10), 'x8', 'in its order');
select pg_temp.complete('fifo', '{x8}');

-- When keys have a rate as well
select teguh.set_limit('fifo', 'key', 'z', '{"fifo": true, "rate": 1, "period_seconds": 60}');
select pg_temp.spawn('fifo', 'z1', '{"key": "z"}');
select pg_temp.spawn('fifo', 'z2', '{"key": "z"}');
select is(pg_temp.claim('fifo', 10), 'z1', 'one is started');
select teguh.release_run('fifo', pg_temp.run('fifo', 'z1'));
select is(pg_temp.claim('fifo', 10), null, 'not again within the period');
select pg_temp.at(21721);
select is(pg_temp.claim('fifo', 10), 'z1', 'then again, and before the second');
select pg_temp.complete('fifo', '{z1}');
select pg_temp.at(21781);
select is(pg_temp.claim('fifo', 10), 'z2', 'which goes in its time');

-- When a limit becomes first in, first out while tasks of a key run
select teguh.create_queue('late');
select pg_temp.spawn('late', 'k' || n, '{"key": "k"}') from generate_series(1, 3) as n;
select is(pg_temp.claim('late', 2), 'k1 k2', 'given two tasks of a key that run');
select teguh.set_limit('late', 'key', '*', '{"fifo": true}');
select teguh.schedule_run('late', pg_temp.run('late', 'k1'), teguh.current_time() + interval '10 s');
select pg_temp.complete('late', '{k2}');
select is(pg_temp.claim('late', 10), null, 'the third waits for both, also for the one that sleeps');
select pg_temp.at(21791);
select is(pg_temp.claim('late', 10), 'k1', 'which goes on');
select teguh.schedule_run('late', pg_temp.run('late', 'k1'), teguh.current_time() + interval '10 s');
select teguh.set_limit('late', 'key', '*');
select is(pg_temp.claim('late', 10), 'k3', 'once the limit is gone, nothing waits');

-- Given keys that take turns
select teguh.create_queue('fair');
select teguh.set_limit('fair', 'key', '*', '{"fair": true}');
select pg_temp.spawn('fair', 'a' || n, '{"key": "a"}') from generate_series(1, 4) as n;
select pg_temp.spawn('fair', 'b' || n, '{"key": "b", "priority": 9}') from generate_series(1, 2) as n;
select pg_temp.spawn('fair', 'n' || n) from generate_series(1, 2) as n;

-- Then
select is(
  pg_temp.claim('fair', 5), 'a1 b1 n1 a2 b2',
  'one of each in turn, those without a key as if they had one; priorities mean nothing'
);
select pg_temp.spawn('fair', 'c' || n, '{"key": "c"}') from generate_series(1, 2) as n;
select pg_temp.spawn('fair', 'a5', '{"key": "a"}');
select is(
  pg_temp.claim('fair', 10), 'n2 a3 c1 a4 c2 a5',
  'a key that comes later joins the round that is on'
);

-- When each key may have one at a time
select pg_temp.at(22000);
select teguh.set_limit('fair', 'key', '*', '{"fair": true, "max_running": 1}');
select teguh.cancel_tasks('fair', '{}', '{"all": true}');
select pg_temp.spawn('fair', 'd' || n, '{"key": "d"}') from generate_series(1, 3) as n;
select pg_temp.spawn('fair', 'e' || n, '{"key": "e"}') from generate_series(1, 3) as n;
select is(pg_temp.claim('fair', 10), 'd1 e1', 'turns and limits go together');
select pg_temp.complete('fair', '{d1,e1}');
select is(pg_temp.claim('fair', 1), 'd2', 'round after round');
select pg_temp.complete('fair', '{d2}');
select is(pg_temp.claim('fair', 1), 'e2', 'nobody comes twice before the others');

-- When keys take turns and are first in, first out
select pg_temp.complete('fair', '{e2}');
select teguh.set_limit('fair', 'key', '*', '{"fair": true, "fifo": true}');
select pg_temp.spawn('fair', 'd' || n, '{"key": "d"}') from generate_series(4, 9) as n;
select pg_temp.spawn('fair', 'e' || n, '{"key": "e"}') from generate_series(4, 9) as n;
select is(pg_temp.claim('fair', 1), 'd3', 'given one of them that runs');
select teguh.fail_run('fair', pg_temp.run('fair', 'd3'), '"no"', teguh.current_time());
select is(pg_temp.claim('fair', 1), 'e3', 'when it is to be retried the other is next');
select pg_temp.complete('fair', '{e3}');
select is(
  pg_temp.claim('fair', 1), 'd3', 'then it, and not only after all that the other has'
);
select pg_temp.complete('fair', '{d3}');
select is(pg_temp.claim('fair', 10), 'd4 e4', 'and so on, one of each');
select is(pg_temp.exact('fair'), true, 'the counters are exact');

-- When they take turns no more
select pg_temp.complete('fair', '{d4,e4}');
select teguh.set_limit('fair', 'key', '*');
select is(
  pg_temp.claim('fair', 10), 'd5 d6 d7 d8 d9 e5 e6 e7 e8 e9', 'all go as they came'
);

-- When an expired lease gives its place away
select pg_temp.at(23000);
select teguh.create_queue('slots');
select teguh.set_limit('slots', 'queue', null, '{"max_running": 1}');
select pg_temp.spawn('slots', 's' || n) from generate_series(1, 9) as n;
select is(pg_temp.claim('slots', 9, 10), 's1', 'given a queue that runs one task at a time');
select is(pg_temp.claim('slots', 9, 10), null, 'no other is handed out');

-- Then
select pg_temp.complete('slots', '{s1}');
select is(pg_temp.claim('slots', 9, 10), 's2', 'a completion makes room');
select teguh.fail_run('slots', pg_temp.run('slots', 's2'), '"no"', teguh.current_time() + interval '1 h');
select is(pg_temp.claim('slots', 9, 10), 's3', 'so does a failure');
select teguh.cancel_task('slots', pg_temp.task('slots', 's3'));
select is(pg_temp.claim('slots', 9, 10), 's4', 'a cancellation');
select teguh.schedule_run('slots', pg_temp.run('slots', 's4'), teguh.current_time() + interval '1 h');
select is(pg_temp.claim('slots', 9, 10), 's5', 'a sleep');
select teguh.await_event('slots', pg_temp.task('slots', 's5'), pg_temp.run('slots', 's5'), 's', 'never');
select is(pg_temp.claim('slots', 9, 10), 's6', 'a wait');
select teguh.release_run('slots', pg_temp.run('slots', 's6'), 3600);
select is(pg_temp.claim('slots', 9, 10), 's7', 'a release');
select pg_temp.at(23010);
select is(pg_temp.claim('slots', 9, 10), 's8', 'the end of a lease');
select teguh.extend_claim('slots', pg_temp.run('slots', 's8'), 100);
select pg_temp.at(23020);
select is(pg_temp.claim('slots', 9, 10), null, 'but not of one that was extended');
select teguh.requeue_task('slots', pg_temp.task('slots', 's8'));
select isnt(pg_temp.claim('slots', 9, 10), null, 'and that a task is taken back');
select is(pg_temp.exact('slots'), true, 'the counters are exact');

-- Then
select is(
  (select string_agg(q.queue_name, ' ') from teguh.list_queues() as q where not pg_temp.exact(q.queue_name)),
  null, 'they are everywhere'
);

select teguh.drop_queue(q.queue_name) from teguh.list_queues() as q;
select * from finish();
