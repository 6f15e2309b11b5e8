-- A task spawns children once, waits for them, and is woken when enough of them are over.
select plan(78);

create function pg_temp.at(p_seconds double precision)
  returns void
  language sql
as $$
  select set_config(
    'teguh.fake_now',
    ('2031-05-01 12:00:00+00'::timestamptz + make_interval(secs => p_seconds))::text,
    false
  );
$$;

-- Given two queues, and a parent
select pg_temp.at(0);
select teguh.create_queue('q');
select teguh.create_queue('other');

create function pg_temp.parent(p_name text, p_options jsonb default '{}')
  returns void
  language plpgsql
as $$
begin
  perform teguh.spawn_task(
    'q', p_name, '1', '{"retry_strategy": {"kind": "none"}}'::jsonb || p_options
  );
  perform from teguh.claim_task('q', 'w', 1000, 100);
end;
$$;
create function pg_temp.run(p_name text)
  returns uuid
  language sql
as $$
  select t.run_id from teguh.t_q as t where t.task_name = p_name;
$$;
create function pg_temp.task(p_name text)
  returns uuid
  language sql
as $$
  select t.task_id from teguh.t_q as t where t.task_name = p_name;
$$;
-- Spawn children, and say which were spawned.
create function pg_temp.bear(
  p_name text, p_step text, p_tasks jsonb, p_options jsonb default '{}'
)
  returns text
  language plpgsql
as $$
declare
  v_said text;
begin
  select string_agg(s.queue_name || case when s.created then '+' else '' end, ' ' order by s.n)
  into v_said
  from teguh.spawn_children('q', pg_temp.run(p_name), p_step, p_tasks, p_options)
    with ordinality as s(queue_name, task_id, created, n);
  return v_said;
end;
$$;
-- Wait for children, and say what became of them.
create function pg_temp.wait(
  p_name    text,
  p_step    text,
  p_mode    text default 'all',
  p_timeout double precision default null,
  p_options jsonb default '{}'
)
  returns text
  language sql
as $$
  select case
    when a.should_suspend then 'suspended'
    when a.timed_out then 'timed out'
    else coalesce(
      (
        select string_agg(
          coalesce(e.one ->> 'state', 'null') || coalesce(' ' || (e.one ->> 'result'), ''),
          ', ' order by e.n
        )
        from jsonb_array_elements(a.payload) with ordinality as e(one, n)
      ),
      'none'
    )
  end
  from teguh.await_children(
    'q', pg_temp.task(p_name), pg_temp.run(p_name), p_step, p_mode, p_timeout, p_options
  ) as a;
$$;
-- Claim what there is; say which tasks those are.
create function pg_temp.claim(p_queue_name text default 'q')
  returns text
  language sql
as $$
  select string_agg(
    concat_ws(' ', c.task_name, c.wake_event), ', ' order by c.task_name
  )
  from teguh.claim_task(p_queue_name, 'w', 1000, 100) as c;
$$;
create function pg_temp.done(p_name text, p_result jsonb default null)
  returns void
  language sql
as $$
  select teguh.complete_run('q', pg_temp.run(p_name), p_result);
$$;
create function pg_temp.census()
  returns text
  language sql
as $$
  select string_agg(s.letter || s.qty, ' ' order by s.letter)
  from (
    select teguh._letter(t.state, t.attempt, t.wake_event) as letter, count(*) as qty
    from teguh.t_q as t
    group by 1
  ) as s;
$$;
create function pg_temp.counted()
  returns text
  language sql
as $$
  select string_agg(s.letter || s.qty, ' ' order by s.letter)
  from (
    select s.letter, sum(s.qty) as qty
    from teguh._count_q() as c
    cross join lateral (values (c.became, c.qty), (c.was, - c.qty)) as s(letter, qty)
    where s.letter <> '-'
    group by s.letter
    having sum(s.qty) <> 0
  ) as s;
$$;

select pg_temp.parent('a', '{"tags": ["eu"], "correlation_id": "m"}');

-- When it spawns children, of several queues
select is(
  pg_temp.bear('a', 's', '[
    {"task_name": "a1"}, {"task_name": "ax", "queue_name": "other", "params": {"n": 1}},
    {"task_name": "a2", "options": {"tags": [], "correlation_id": "own", "max_attempts": 1}}
  ]'),
  'q+ other+ q+',
  'children come back in the order given'
);
select is(
  pg_temp.bear('a', 's', '[{"task_name": "something else"}]'), 'q other q',
  'the second time nothing is spawned'
);
select results_eq(
  $$
    select t.task_name, t.parent_task_id = pg_temp.task('a'), t.tags, t.correlation_id
    from (select * from teguh.t_q union all select * from teguh.t_other) as t
    where t.task_name <> 'a'
    order by t.task_name
  $$,
  $$
    values ('a1', true, '{eu}'::text[], 'm'), ('a2', true, null, 'own'), ('ax', true, '{eu}', 'm')
  $$,
  'they are of the same matter unless they say otherwise'
);

-- When it waits
select is(pg_temp.wait('a', 's'), 'suspended', 'a parent that waits is suspended');
select results_eq(
  $$
    select t.state, t.available_at, t.lease_expires_at, t.wake_event
    from teguh.t_q as t
    where t.task_name = 'a'
  $$,
  $$ values ('sleeping', null::timestamptz, null::timestamptz, '$children') $$,
  'it sleeps without a time to wake at'
);
select is(pg_temp.counted(), pg_temp.census(), 'the wait is counted');
select pg_temp.at(1);
select is(pg_temp.claim(), 'a1, a2', 'its children can be claimed, it cannot');
select is(teguh.next_due('q'), null, 'and is not due');

-- When one child is completed, another fails
select pg_temp.done('a1', '{"n": 1}');
select pg_temp.at(2);
select is(pg_temp.claim(), null, 'it waits while any child is not over');
select teguh.fail_run('q', pg_temp.run('a2'), '"no"');
select pg_temp.claim('other');
select teguh.complete_runs('other', (
  select jsonb_build_array(jsonb_build_object('run_id', t.run_id, 'state', 5))
  from teguh.t_other as t
));
select is(
  teguh.next_due('q') - teguh.current_time(), interval '20 milliseconds',
  'the last one makes its parent due in a moment'
);
select pg_temp.at(3);

-- Then
select is(pg_temp.claim(), 'a $children', 'when all are over, it goes on');
select is(pg_temp.counted(), pg_temp.census(), 'which is counted');
select is(
  pg_temp.wait('a', 's'), 'completed {"n": 1}, completed 5, failed',
  'it learns what became of them, in the order in which they were spawned'
);
select results_eq(
  $$
    select c.state -> 2 ->> 'failure_reason', c.state -> 1 ->> 'queue_name', c.status
    from teguh.c_q as c
  $$,
  $$ values ('no', 'other', 'committed') $$,
  'with the reasons of those that failed, as a checkpoint'
);
select pg_temp.done('a');
select is(
  (select count(*) from teguh.w_q), 0::bigint, 'in the end nobody waits'
);

-- When there is no child
select pg_temp.parent('b');
select is(pg_temp.bear('b', 's', '[]'), null, 'there may be no child');
select is(pg_temp.wait('b', 's'), 'none', 'for which nobody waits');
select throws_ok(
  $$ select pg_temp.wait('b', 'other') $$, 'TG004', null, 'children are spawned before one waits'
);

-- When one waits for any, or for some
select pg_temp.bear('b', 'any', '[{"task_name": "b1"}, {"task_name": "b2"}, {"task_name": "b3"}]');
select is(pg_temp.wait('b', 'any', 'any'), 'suspended', 'none is over');
select pg_temp.claim();
select teguh.cancel_task('q', pg_temp.task('b1'));
select pg_temp.at(4);
select is(pg_temp.claim(), null, 'a child that was cancelled is not any');
select pg_temp.done('b2', '2');
select pg_temp.at(5);
select is(pg_temp.claim(), 'b $children', 'one that was completed is');
select is(
  pg_temp.wait('b', 'any', 'any'), 'cancelled, completed 2, running',
  'the others stand where they are'
);
select pg_temp.done('b3', '3');
select is(
  pg_temp.wait('b', 'any', 'any'), 'cancelled, completed 2, running',
  'what a step has seen it sees for ever'
);
select pg_temp.bear('b', 'two', '[{"task_name": "b4"}, {"task_name": "b5"}, {"task_name": "b6"}]');
select pg_temp.wait('b', 'two', '2');
select pg_temp.claim();
select pg_temp.done('b4');
select pg_temp.at(6);
select is(pg_temp.claim(), null, 'one of two is not enough');
select pg_temp.done('b6');
select pg_temp.at(7);
select is(pg_temp.claim(), 'b $children', 'two are');
select is(
  pg_temp.wait('b', 'two', '2', null, '{"cancel_rest": true}'), 'completed, cancelled, completed',
  'those that are not needed can be cancelled'
);
select is(
  pg_temp.wait('b', 'two', '9'), 'completed, cancelled, completed', 'and stay so'
);

-- When more are wanted than can be
select pg_temp.bear('b', 'many', '[{"task_name": "b7"}, {"task_name": "b8"}]');
select is(
  pg_temp.wait('b', 'many', '3', null, '{"on_failure": "fail_fast"}'), 'pending, pending',
  'what cannot come true is over at once, if asked for'
);
select pg_temp.bear('b', 'more', '[{"task_name": "b9"}]');
select is(pg_temp.wait('b', 'more', '3'), 'suspended', 'else one waits for all');
select pg_temp.claim();
select pg_temp.done('b9');
select pg_temp.at(8);
select is(pg_temp.claim(), 'b $children', 'until they are over');
select pg_temp.done('b');

-- When a child fails, and one waits for all to succeed
select pg_temp.parent('c');
select pg_temp.bear('c', 's', '[
  {"task_name": "c1", "options": {"ttl_seconds": 2}}, {"task_name": "c2"}
]');
select is(
  pg_temp.wait('c', 's', 'all', 50, '{"on_failure": "fail_fast"}'), 'suspended', 'none has failed'
);
select pg_temp.at(10);
select teguh.ticker('q');
select pg_temp.at(11);
select is(pg_temp.claim(), 'c $children, c2', 'one that expires is enough');
select is(
  pg_temp.wait('c', 's', 'all', 50, '{"on_failure": "fail_fast", "cancel_rest": true}'),
  'expired, cancelled', 'to give up'
);
select is(pg_temp.counted(), pg_temp.census(), 'all of that is counted');

-- When it takes too long
select pg_temp.bear('c', 'slow', '[{"task_name": "c3"}]');
select is(pg_temp.wait('c', 'slow', 'all', 10), 'suspended', 'one may wait for a time');
select pg_temp.at(20);
select is(pg_temp.claim(), 'c3', 'not for less');
select pg_temp.at(21);
select is(pg_temp.claim(), 'c $children', 'then one goes on');
select is(pg_temp.wait('c', 'slow', 'all', 10), 'timed out', 'and learns that it took too long');
select pg_temp.done('c3');
select is(pg_temp.wait('c', 'slow', 'all', 10), 'timed out', 'for ever');
select pg_temp.bear('c', 'close', '[{"task_name": "c4"}]');
select pg_temp.wait('c', 'close', 'all', 10);
select pg_temp.claim();
select pg_temp.at(31);
select pg_temp.done('c4', '4');
select is(pg_temp.claim(), 'c $children', 'if the last child ends just then');
select is(pg_temp.wait('c', 'close', 'all', 10), 'completed 4', 'it has ended in time');
select pg_temp.bear('c', 'now', '[{"task_name": "c5"}]');
select is(pg_temp.wait('c', 'now', 'all', 0), 'timed out', 'no time is no wait');
select pg_temp.claim();
select pg_temp.done('c5');
select pg_temp.done('c');

-- When a parent ends without success
select pg_temp.parent('d', '{"max_attempts": 2}');
select pg_temp.bear('d', 'kept', '[{"task_name": "d1"}]');
select pg_temp.bear('d', 'own', '[{"task_name": "d2"}, {"task_name": "d3", "queue_name": "other"}]',
  '{"on_parent_end": "cancel"}');
select teguh.fail_run('q', pg_temp.run('d'), '"no"');
select is(
  pg_temp.claim(), 'd, d1, d2', 'a failure that is followed by a retry leaves its children'
);
select is(pg_temp.bear('d', 'kept', '[]'), 'q', 'which has the same children');
select teguh.fail_run('q', pg_temp.run('d'), '"no"');
select results_eq(
  $$
    select t.task_name, t.state
    from (select * from teguh.t_q union all select * from teguh.t_other) as t
    where t.task_name ~ '^d[123]'
    order by t.task_name
  $$,
  $$ values ('d1', 'running'), ('d2', 'cancelled'), ('d3', 'cancelled') $$,
  'one for good ends those that are to end with it'
);
select pg_temp.done('d1');

-- When a child that is over is retried while its parent waits
select pg_temp.parent('e');
select pg_temp.bear('e', 's', '[
  {"task_name": "e1", "options": {"max_attempts": 1}}, {"task_name": "e2"}
]');
select pg_temp.wait('e', 's');
select pg_temp.claim();
select teguh.fail_run('q', pg_temp.run('e1'), '"no"');
select teguh.retry_task('q', pg_temp.task('e1'));
select pg_temp.done('e2');
select pg_temp.at(32);
select is(pg_temp.claim(), 'e1', 'it is not over any more');
select pg_temp.done('e1', '1');
select pg_temp.at(33);
select is(pg_temp.claim(), 'e $children', 'until it is over again');
select is(pg_temp.wait('e', 's'), 'completed 1, completed', 'as what it has become');

-- When the woken parent is released, taken away, loses its lease
select pg_temp.bear('e', 't', '[{"task_name": "e3"}]');
select pg_temp.wait('e', 't');
select pg_temp.claim();
select pg_temp.done('e3', '3');
select pg_temp.at(34);
select pg_temp.claim();
select teguh.release_run('q', pg_temp.run('e'));
select pg_temp.claim();
select teguh.requeue_task('q', pg_temp.task('e'));
select is(pg_temp.claim(), 'e', 'another run has it');
select is(pg_temp.wait('e', 't'), 'completed 3', 'which finds the children over');
select pg_temp.bear('e', 'u', '[{"task_name": "e4"}]');

-- When it starts again from a step
select pg_temp.claim();
select pg_temp.at(35);
select teguh.fail_run('q', pg_temp.run('e'), '"no"');
select teguh.cancel_task('q', pg_temp.task('e'));
select teguh.retry_task('q', pg_temp.task('e'), '{"from_step": "u"}');
select pg_temp.claim();
select is(
  pg_temp.bear('e', 'u', '[{"task_name": "e5"}]'), 'q+', 'the step has other children'
);
select pg_temp.wait('e', 'u');
select pg_temp.done('e4');
select pg_temp.at(36);
select is(pg_temp.claim(), 'e5', 'those from before do not count');
select pg_temp.done('e5', '5');
select pg_temp.at(37);
select pg_temp.claim();
select is(pg_temp.wait('e', 'u'), 'completed 5', 'its own do');

-- When it repeats
select pg_temp.bear('e', 'v', '[{"task_name": "e6"}]');
select teguh.repeat_run('q', pg_temp.run('e'));
select pg_temp.claim();
select is(pg_temp.bear('e', 'v', '[{"task_name": "e7"}]'), 'q+', 'each repetition has its own');
select pg_temp.done('e6');
select is((select count(*) from teguh.f_q as f where f.task_id = pg_temp.task('e')), 0::bigint,
  'those of an earlier one say nothing');
select pg_temp.wait('e', 'v');

-- When dispatch is built anew while it waits, and when segments change
select pg_temp.claim();
select pg_temp.done('e7', '7');
truncate teguh.p0_q, teguh.p1_q;
select teguh.rebuild_dispatch('q');
select pg_temp.at(38);
select is(pg_temp.claim(), 'e $children', 'a parent whose children are over is found');
select is(pg_temp.wait('e', 'v'), 'completed 7', 'and goes on');
select pg_temp.bear('e', 'w', '[{"task_name": "e8"}]');
select pg_temp.wait('e', 'w');
select pg_temp.claim();
select pg_temp.done('e8', '8');
set teguh.segment_bytes = 8192;
do $$
begin
  for v_round in 1..24 loop
    perform teguh.cancel_task('q', s.task_id)
    from generate_series(1, 20) as g(i), teguh.spawn_task('q', 'x', to_jsonb(g.i)) as s;
    commit;
    perform teguh.ticker('q');
    commit;
  end loop;
end;
$$;
reset teguh.segment_bytes;
select is(
  pg_sequence_last_value('teguh.ring_q'::regclass) >= 2, true, 'given that segments were used up'
);
select pg_temp.at(39);
select is(pg_temp.claim(), 'e $children', 'the count is carried over');
select pg_temp.wait('e', 'w');

-- When a queue of children is dropped
select pg_temp.bear('e', 'gone', '[{"task_name": "ex", "queue_name": "other"}]');
select pg_temp.wait('e', 'gone');
select teguh.drop_queue('other');
select pg_temp.at(40);
select is(pg_temp.claim(), 'e $children', 'nobody waits for them any more');
select is(pg_temp.wait('e', 'gone'), 'cancelled', 'they count as cancelled');
select pg_temp.done('e');

-- When a queue goes by rules
select teguh.set_limit('q', 'task', 'f1', '{"max_running": 5}');
select pg_temp.parent('f');
select pg_temp.bear('f', 's', '[{"task_name": "f1"}, {"task_name": "f1"}]');
select pg_temp.wait('f', 's');
select pg_temp.at(41);
select teguh.complete_run('q', c.run_id) from teguh.claim_task('q', 'w', 1000, 9) as c;
select pg_temp.at(42);
select is(pg_temp.claim(), 'f $children', 'a parent is woken in lanes, too');
select is(pg_temp.wait('f', 's'), 'completed, completed', 'with its children');
select is(pg_temp.counted(), pg_temp.census(), 'and counted');

-- When children are removed before anybody asks, and their parent is
select pg_temp.bear('f', 't', '[{"task_name": "f2"}, {"task_name": "f3"}]');
select pg_temp.claim();
select pg_temp.done('f2');
select pg_temp.at(50);
select teguh.cleanup_tasks('q', 5);
select pg_temp.done('f3', '3');
select is(
  pg_temp.wait('f', 't'), 'completed, completed 3', 'of one that is gone the state is known'
);
select pg_temp.bear('f', 'u', '[{"task_name": "f4"}]');
select pg_temp.done('f');
select pg_temp.at(60);
select teguh.cleanup_tasks('q', 0);
select pg_temp.claim();
select pg_temp.done('f4');
select is(
  (select count(*) from teguh.j_q) + (select count(*) from teguh.f_q), 0::bigint,
  'when a parent is removed nothing stays of its children, not even what ends later'
);

-- When the parent's queue is dropped, with a name as long as can be
select teguh.create_queue(repeat('p', 55));
select teguh.spawn_task(repeat('p', 55), 'g', '1');
select teguh.spawn_children(repeat('p', 55), c.run_id, 's', '[
  {"task_name": "g1", "queue_name": "q"}, {"task_name": "g2"}
]') from teguh.claim_task(repeat('p', 55), 'w') as c;
select teguh.complete_run(repeat('p', 55), c.run_id)
from teguh.claim_task(repeat('p', 55), 'w') as c;
select teguh.drop_queue(repeat('p', 55));
select pg_temp.claim();
select lives_ok($$ select pg_temp.done('g1') $$, 'its children go on');

-- When arguments are bad
select pg_temp.parent('h');
create function pg_temp.bad(p_query text)
  returns text
  language plpgsql
as $$
begin
  execute p_query;
  return 'taken';
exception
  when others then
    return sqlstate;
end;
$$;
select is(
  array(
    select pg_temp.bad(format('select pg_temp.bear(''h'', ''bad'', %L)', t.tasks))
    from (values
      ('{}'), ('[1]'), ('[{}]'), ('[{"task_name": "x", "step": 1}]'),
      ('[{"task_name": "x", "options": {"idempotency_key": "k"}}]'),
      ('[{"task_name": "x", "options": {"unique": {"key": "k"}}}]'),
      ('[{"task_name": "x", "options": {"sequence": [{"task_name": "y"}]}}]'), (null)
    ) as t(tasks)
  ),
  array_fill('TG005'::text, array[8]),
  'children are tasks without keys or sequence'
);
select is(
  array[
    pg_temp.bad($$ select pg_temp.bear('h', 's', '[{"task_name": "x", "queue_name": "none"}]') $$),
    pg_temp.bad($$ select pg_temp.bear('h', '', '[]') $$),
    pg_temp.bad($$ select pg_temp.bear('h', 's', '[]', '{"on_parent_end": "kill"}') $$),
    pg_temp.bad($$ select pg_temp.bear('h', 's', '[]', '{"on_end": "leave"}') $$),
    pg_temp.bad($$ select pg_temp.bear('g1', 's', '[]') $$)
  ],
  '{TG001,TG005,TG005,TG005,AB002}',
  'queues, steps, options and runs are what they should be'
);
select pg_temp.bear('h', 's', '[{"task_name": "h1"}]');
select is(
  array[
    pg_temp.bad($$ select pg_temp.wait('h', 's', 'none') $$),
    pg_temp.bad($$ select pg_temp.wait('h', 's', '0') $$),
    pg_temp.bad($$ select pg_temp.wait('h', 's', null) $$),
    pg_temp.bad($$ select pg_temp.wait('h', 's', 'all', -1) $$),
    pg_temp.bad($$ select pg_temp.wait('h', 's', 'all', null, '{"on_failure": "cry"}') $$),
    pg_temp.bad($$ select pg_temp.wait('h', 's', 'all', null, '{"cancel_rest": 1}') $$),
    pg_temp.bad($$ select pg_temp.wait('h', 's', 'all', null, '{"rest": true}') $$),
    pg_temp.bad($$ select pg_temp.wait('h', '') $$)
  ],
  array_fill('TG005'::text, array[8]),
  'so are modes, times and options of a wait'
);
select is(
  array[
    pg_temp.bad($$ select teguh.emit_event('q', '$children') $$),
    pg_temp.bad(
      $$ select teguh.await_event('q', pg_temp.task('h'), pg_temp.run('h'), 'x', '$children') $$
    )
  ],
  '{TG005,TG005}',
  'an event cannot take the place of children'
);

-- When a queue is full, and when a child has a priority
select teguh.set_queue_policy('q', '{"max_pending": 1}');
select is(
  pg_temp.bad($$ select pg_temp.bear('h', 'full', '[{"task_name": "x"}]') $$), 'TG007',
  'a full queue takes no children'
);
select teguh.set_queue_policy('q', '{"max_pending": null}');
select teguh.create_queue('calm');
select pg_temp.bear('h', 'calm', '[
  {"task_name": "x", "queue_name": "calm", "options": {"priority": 1}}
]');
select is(
  (select q.ruled from teguh.queues as q where q.queue_name = 'calm'), true,
  'one with a priority is ranked by it'
);

-- When a role has access to one queue only
select teguh.grant_access('teguh_guest', 'worker', '{q}');
select set_config('test.run', pg_temp.run('h')::text, false);
select set_config('test.task', pg_temp.task('h')::text, false);
set role teguh_guest;
select is(
  (
    select count(*)
    from teguh.spawn_children(
      'q', current_setting('test.run')::uuid, 'mine', '[{"task_name": "h2"}]',
      '{"on_parent_end": "cancel"}'
    )
  ),
  1::bigint,
  'it may spawn children there'
);
select throws_ok(
  $$
    select teguh.spawn_children(
      'q', current_setting('test.run')::uuid, 'yours', '[{"task_name": "h", "queue_name": "calm"}]'
    )
  $$,
  '42501', null, 'not elsewhere'
);
select is(
  (
    select a.should_suspend
    from teguh.await_children(
      'q', current_setting('test.task')::uuid, current_setting('test.run')::uuid, 'mine'
    ) as a
  ),
  true,
  'and wait for them'
);
select teguh.cancel_task('q', current_setting('test.task')::uuid);
reset role;
select is(
  (select t.state from teguh.t_q as t where t.task_name = 'h2'), 'cancelled',
  'what becomes of them is not a matter of rights'
);
select is(pg_temp.counted(), pg_temp.census(), 'the counts are right to the end');

select teguh.revoke_access('teguh_guest');
select teguh.drop_queue('q');
select teguh.drop_queue('calm');
select * from finish();
