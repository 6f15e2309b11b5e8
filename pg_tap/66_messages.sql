-- A message waits in its task's mailbox until a step receives it, once.
select plan(91);

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

-- Given a queue, and tasks that are claimed
select pg_temp.at(0);
select teguh.create_queue('q');
create function pg_temp.spawn(p_name text, p_options jsonb default '{}')
  returns void
  language sql
as $$
  select teguh.spawn_task(
    'q', p_name, '1', '{"retry_strategy": {"kind": "none"}}'::jsonb || p_options
  );
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
-- Send a message, and say whether it was created.
create function pg_temp.send(
  p_name text, p_topic text, p_payload jsonb, p_options jsonb default '{}'
)
  returns boolean
  language sql
as $$
  select s.created
  from teguh.send_message('q', pg_temp.task(p_name), p_topic, p_payload, p_options) as s;
$$;
-- Receive a message, and say what it was.
create function pg_temp.hear(
  p_name text, p_step text, p_topic text, p_timeout double precision default null
)
  returns text
  language sql
as $$
  select case
    when r.should_suspend then 'suspended' when r.timed_out then 'timed out' else r.payload::text
  end
  from teguh.receive_message(
    'q', pg_temp.task(p_name), pg_temp.run(p_name), p_step, p_topic, p_timeout
  ) as r;
$$;
-- The messages that wait for a task.
create function pg_temp.box(p_name text)
  returns text
  language sql
as $$
  select string_agg(
    concat_ws(' ', l.topic, l.payload, l.idempotency_key), ', ' order by l.message_id
  )
  from teguh.list_messages('q', pg_temp.task(p_name)) as l;
$$;
-- Claim what there is; say which tasks those are.
create function pg_temp.claim()
  returns text
  language sql
as $$
  select string_agg(concat_ws(' ', c.task_name, c.wake_event), ', ' order by c.task_name)
  from teguh.claim_task('q', 'w', 1000, 100) as c;
$$;
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

-- When messages are sent to a task that nobody has claimed, and to one that runs
select pg_temp.spawn('a');
select is(pg_temp.box('a'), null, 'a mailbox is empty at first');
create temporary table sent as
select s.message_id, s.created
from teguh.send_message('q', pg_temp.task('a'), 'note', '"one"') as s;
select results_eq(
  $$ select l.message_id, l.sent_at from teguh.list_messages('q', pg_temp.task('a')) as l $$,
  $$ select s.message_id, teguh.current_time() from sent as s where s.created $$,
  'a message has an id and a time'
);
select pg_temp.send('a', 'note', '"two"');
select pg_temp.claim();
select pg_temp.send('a', 'other', '{"x": [1]}');
select pg_temp.send('a', 'note', null);
select is(
  pg_temp.box('a'), 'note "one", note "two", other {"x": [1]}, note null',
  'messages lie in the mailbox in the order in which they were sent'
);

-- When they are received
select is(pg_temp.hear('a', 's1', 'note'), '"one"', 'the first of a topic is received first');
select is(pg_temp.hear('a', 's1', 'note'), '"one"', 'by one step, which has it for ever');
select is(pg_temp.hear('a', 's1', 'other'), '"one"', 'whatever it asks for');
select is(
  teguh.get_task_checkpoint_state('q', pg_temp.task('a'), 's1'), '"one"', 'it is its checkpoint'
);
select is(pg_temp.hear('a', 's2', 'note'), '"two"', 'the next step has the next message');
select is(pg_temp.hear('a', 's3', 'note', 0), 'null', 'a null payload is JSON null');
select is(pg_temp.box('a'), 'other {"x": [1]}', 'what was received is not in the mailbox');
select is(pg_temp.hear('a', 's4', 'note', 0), 'timed out', 'no time is no wait');
select pg_temp.send('a', 'note', '"late"');
select is(pg_temp.hear('a', 's4', 'note', 0), 'timed out', 'and stays so for that step');
select is(pg_temp.hear('a', 's5', 'note', 0), '"late"', 'the message is there for another');
select is(pg_temp.hear('a', 's6', 'other'), '{"x": [1]}', 'topics do not wait for each other');

-- When there is none
select is(pg_temp.hear('a', 's7', 'note'), 'suspended', 'a task sleeps until there is a message');
select is(
  (
    select format('%s %s %s', t.state, t.available_at, t.wake_event)
    from teguh.t_q as t
    where t.task_name = 'a'
  ),
  'sleeping  $message:note',
  'and for nothing else'
);
select is(pg_temp.counted(), pg_temp.census(), 'it is counted as waiting');
select pg_temp.send('a', 'other', '1');
select pg_temp.at(1);
select is(pg_temp.claim(), null, 'a message of another topic does not wake it');
select teguh.emit_event('q', 'note');
select is(pg_temp.claim(), null, 'neither does an event of that name');
select pg_temp.send('a', 'note', '"awaited"');
select is(
  teguh.next_due('q'), teguh.current_time() + interval '20 milliseconds',
  'a worker knows when to look'
);
select pg_temp.at(2);
select is(pg_temp.claim(), 'a $message:note', 'one of its topic does');
select is(pg_temp.counted(), pg_temp.census(), 'and is counted');
select is(pg_temp.hear('a', 's7', 'note'), '"awaited"', 'which it receives');
select is((select count(*) from teguh.w_q), 0::bigint, 'the wait is over');
select is(pg_temp.hear('a', 's8', 'other', 0), '1', 'what did not wake it was kept');

-- When it waits for a time
select is(pg_temp.hear('a', 's9', 'note', 10), 'suspended', 'one may wait for a time');
select pg_temp.at(11);
select is(pg_temp.claim(), null, 'not for less');
select pg_temp.at(12);
select is(pg_temp.claim(), 'a $message:note', 'then one goes on');
select is(pg_temp.hear('a', 's9', 'note', 10), 'timed out', 'and learns that none came');
select pg_temp.hear('a', 's10', 'note', 10);
select pg_temp.at(22);
select is(pg_temp.claim(), 'a $message:note', 'when the time is over');
select pg_temp.send('a', 'note', '"just"');
select is(pg_temp.hear('a', 's10', 'note', 10), '"just"', 'a message that is there is in time');
select pg_temp.hear('a', 's11', 'note', 10);
select pg_temp.send('a', 'note', '"soon"');
select pg_temp.at(23);
select pg_temp.claim();
select teguh.release_run('q', pg_temp.run('a'));
select is(pg_temp.claim(), 'a $message:note', 'a woken task that is released');
select is(pg_temp.hear('a', 's11', 'note', 10), '"soon"', 'has its message');
select pg_temp.hear('a', 's12', 'note', 10);
select pg_temp.send('a', 'note', '"again"');
select pg_temp.at(24);
select pg_temp.claim();
select teguh.fail_run('q', pg_temp.run('a'), '"no"');
select is(pg_temp.claim(), 'a', 'another run');
select is(pg_temp.hear('a', 's11', 'note'), '"soon"', 'finds what the one before has received');
select is(pg_temp.hear('a', 's12', 'note', 10), '"again"', 'and what it has not');

-- When a message has a key
select is(
  array[
    pg_temp.send('a', 'note', '"k"', '{"idempotency_key": "k"}'),
    pg_temp.send('a', 'note', '"k"', '{"idempotency_key": "k"}'),
    pg_temp.send('a', 'note', '"l"', '{"idempotency_key": "l"}')
  ],
  '{t,f,t}',
  'it is sent once'
);
select is(pg_temp.box('a'), 'note "k" k, note "l" l', 'and lies there once');
select pg_temp.hear('a', 's13', 'note');
select is(
  pg_temp.send('a', 'note', '"k"', '{"idempotency_key": "k"}'), false,
  'once received it is not sent again'
);
select is(
  array[
    pg_temp.bad($$ select pg_temp.send('a', 'note', '"x"', '{"idempotency_key": "k"}') $$),
    pg_temp.bad($$ select pg_temp.send('a', 'other', '"k"', '{"idempotency_key": "k"}') $$)
  ],
  '{TG006,TG006}',
  'a key is for one message'
);
select pg_temp.spawn('b');
select pg_temp.claim();
select is(
  pg_temp.send('b', 'note', '"x"', '{"idempotency_key": "k"}'), true, 'of one task'
);

-- When the task starts again from a step
select pg_temp.at(30);
select is(pg_temp.hear('a', 't1', 'note'), '"l"', 'given a step that has received a message');
select pg_temp.send('a', 'note', '"m"');
select pg_temp.send('a', 'note', '"n"');
select pg_temp.at(31);
select is(pg_temp.hear('a', 't2', 'note'), '"m"', 'another');
select pg_temp.at(32);
select is(pg_temp.hear('a', 't3', 'other', 0), 'timed out', 'and one that has not');
select teguh.cancel_task('q', pg_temp.task('a'));
select is(pg_temp.box('a'), 'note "n"', 'a task that is over keeps its mailbox');
select is(
  pg_temp.bad($$ select pg_temp.send('a', 'note', '"o"') $$), 'TG004', 'and gets no more'
);
select is(
  pg_temp.send('a', 'note', '"l"', '{"idempotency_key": "l"}'), false,
  'that a message was sent can be learned all the same'
);
select teguh.retry_task('q', pg_temp.task('a'));
select pg_temp.claim();
select is(pg_temp.hear('a', 't2', 'note'), '"m"', 'when it is retried its steps have what they had');
select teguh.cancel_task('q', pg_temp.task('a'));
select teguh.retry_task('q', pg_temp.task('a'), '{"from_step": "t2"}');
select is(
  pg_temp.box('a'), 'note "m", note "n"',
  'from a step on, its messages are in the mailbox as if it had not been'
);
select pg_temp.claim();
select is(pg_temp.hear('a', 't1', 'note'), '"l"', 'what earlier steps have stays theirs');
select is(pg_temp.hear('a', 't2', 'note'), '"m"', 'and it receives the same');
select is(pg_temp.hear('a', 't3', 'note'), '"n"', 'and the next');

-- When it repeats
select pg_temp.send('a', 'note', '"r"');
select teguh.repeat_run('q', pg_temp.run('a'));
select pg_temp.claim();
select is(pg_temp.box('a'), 'note "r"', 'what was not received is for the repetition');
select is(pg_temp.hear('a', 't1', 'note'), '"r"', 'whose steps have messages of their own');
select is(
  pg_temp.send('a', 'note', '"l"', '{"idempotency_key": "l"}'), false, 'keys are remembered'
);
select is(
  pg_temp.bad($$ select pg_temp.send('a', 'note', '"x"', '{"idempotency_key": "l"}') $$), 'TG006',
  'as are their messages'
);
select teguh.cancel_task('q', pg_temp.task('a'));
select teguh.retry_task('q', pg_temp.task('a'), '{"from_step": "t1"}');
select pg_temp.claim();
select is(pg_temp.box('a'), 'note "r"', 'those of an earlier repetition do not come back');
select is(pg_temp.hear('a', 't1', 'note'), '"r"', 'its own do');
select teguh.set_queue_policy('q', '{"cleanup_ttl": 60}');
select pg_temp.at(92);
select teguh.repeat_run('q', pg_temp.run('a'));
select is(
  (select count(*) from teguh.m_q as m where m.task_id = pg_temp.task('a')), 0::bigint,
  'nothing is remembered for ever'
);
select pg_temp.claim();

-- When it is retried as a new task
select pg_temp.send('a', 'note', '"old"');
select teguh.cancel_task('q', pg_temp.task('a'));
select is(
  (
    select count(*)
    from teguh.retry_task('q', pg_temp.task('a'), '{"spawn_new": true}') as r
    cross join lateral teguh.list_messages('q', r.task_id) as l
  ),
  0::bigint,
  'a new task has a mailbox of its own'
);
select teguh.cancel_tasks('q', '{"task_name": "a"}');

-- When a mailbox is full
select teguh.set_queue_policy('q', '{"max_messages": 2}');
select is(pg_temp.send('b', 'note', '"y"'), true, 'given as many messages as there may be');
select is(pg_temp.bad($$ select pg_temp.send('b', 'other', '1') $$), 'TG007', 'none is sent');
select is(
  pg_temp.send('b', 'note', '"x"', '{"idempotency_key": "k"}'), false,
  'but what was sent already'
);
select pg_temp.hear('b', 's1', 'note');
select is(pg_temp.send('b', 'other', '1'), true, 'what was received takes no room');
select teguh.set_queue_policy('q', '{"max_messages": null}');
select is(pg_temp.send('b', 'other', '2'), true, 'without the policy there is room for all');
select is(
  array[
    pg_temp.bad($$ select teguh.set_queue_policy('q', '{"max_messages": 0}') $$),
    pg_temp.bad($$ select teguh.set_queue_policy('q', '{"max_messages": "2"}') $$)
  ],
  '{TG005,TG005}',
  'a mailbox has room for one at least'
);

-- When dispatch is built anew while a task waits, and when segments change
select pg_temp.hear('b', 's2', 'rare');
select pg_temp.send('b', 'rare', '1');
truncate teguh.p0_q, teguh.p1_q;
select teguh.rebuild_dispatch('q');
select pg_temp.at(93);
select is(pg_temp.claim(), 'b $message:rare', 'a task that has got its message is found');
select is(pg_temp.hear('b', 's2', 'rare'), '1', 'and receives it');
select pg_temp.hear('b', 's3', 'rare');
select pg_temp.send('b', 'rare', '2');
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
select pg_temp.at(94);
select is(pg_temp.claim(), 'b $message:rare', 'the look into the mailbox is carried over');
select is(pg_temp.hear('b', 's3', 'rare'), '2', 'a message is never too late');

-- When a queue goes by rules
select pg_temp.hear('b', 's4', 'rare');
select teguh.set_limit('q', 'task', 'b', '{"max_running": 5}');
select pg_temp.send('b', 'rare', '3');
select pg_temp.at(95);
select is(pg_temp.claim(), 'b $message:rare', 'a task is woken in lanes, too');
select is(pg_temp.hear('b', 's4', 'rare'), '3', 'for its message');
select is(pg_temp.counted(), pg_temp.census(), 'and counted');

-- When tasks are removed
select teguh.complete_run('q', pg_temp.run('b'));
select is(
  pg_temp.bad($$ select pg_temp.send('b', 'note', '1') $$), 'TG004',
  'a completed task gets no messages'
);
select pg_temp.at(200);
select teguh.cleanup_tasks('q', 0);
select is((select count(*) from teguh.m_q), 0::bigint, 'their messages go with them');
select pg_temp.spawn('c');
select pg_temp.send('c', 'note', '1');
delete from teguh.t_q as t where t.task_name = 'c';
select pg_temp.at(201);
select teguh.ticker('q');
select is(
  (select count(*) from teguh.m_q), 0::bigint, 'one that was sent while its task was removed, too'
);

-- When arguments are bad
select pg_temp.spawn('d');
select pg_temp.claim();
select set_config('test.run', pg_temp.run('d')::text, false);
select set_config('test.task', pg_temp.task('d')::text, false);
select is(
  array[
    pg_temp.bad($$ select teguh.send_message('none', pg_temp.task('d'), 't') $$),
    pg_temp.bad($$ select teguh.send_message('q', portable_uuidv7, 't')
      from teguh.portable_uuidv7() $$),
    pg_temp.bad($$ select teguh.send_message('q', null, 't') $$),
    pg_temp.bad($$ select teguh.list_messages('none', null) $$),
    pg_temp.bad($$ select teguh.list_messages('q', null) $$)
  ],
  '{TG001,TG003,TG003,TG001,TG003}',
  'messages are for tasks that exist'
);
select is(
  array[
    pg_temp.bad($$ select pg_temp.send('d', '', '1') $$),
    pg_temp.bad($$ select pg_temp.send('d', null, '1') $$),
    pg_temp.bad($$ select pg_temp.send('d', repeat('t', 1025), '1') $$),
    pg_temp.bad($$ select pg_temp.send('d', 't', '1', '{"key": "k"}') $$),
    pg_temp.bad($$ select pg_temp.send('d', 't', '1', '{"idempotency_key": ""}') $$),
    pg_temp.bad($$ select pg_temp.send('d', 't', '1', '{"idempotency_key": 1}') $$),
    pg_temp.bad($$ select pg_temp.send('d', 't', '1', '[]') $$),
    pg_temp.bad($$ select pg_temp.hear('d', '', 't') $$),
    pg_temp.bad($$ select pg_temp.hear('d', 's', ' ') $$),
    pg_temp.bad($$ select pg_temp.hear('d', 's', 't', -1) $$)
  ],
  array_fill('TG005'::text, array[10]),
  'topics, options, steps and times are what they should be'
);
select is(
  array[
    pg_temp.bad($$ select teguh.emit_event('q', '$message:t') $$),
    pg_temp.bad(
      $$ select teguh.await_event('q', pg_temp.task('d'), pg_temp.run('d'), 'x', '$message:t') $$
    )
  ],
  '{TG005,TG005}',
  'an event cannot take the place of a message'
);
select is(pg_temp.box('d'), null, 'nothing of that was sent');
select is(
  pg_temp.send('d', repeat('t', 1024), '1', jsonb_build_object('idempotency_key', repeat('k', 1024))),
  true, 'names may be long'
);
select is(pg_temp.hear('d', repeat('s', 1024), repeat('t', 1024)), '1', 'all of them');
select is(
  array[
    pg_temp.bad(format(
      $$ select teguh.receive_message('q', %L, %L, 's', 't') $$, pg_temp.task('d'),
      pg_temp.task('d')
    )),
    pg_temp.bad(format(
      $$ select teguh.receive_message('q', %L, %L, 's', 't') $$, teguh.portable_uuidv7(),
      pg_temp.run('d')
    )),
    pg_temp.bad(format(
      $$ select teguh.receive_message('none', %L, %L, 's', 't') $$, pg_temp.task('d'),
      pg_temp.run('d')
    ))
  ],
  '{TG002,TG002,TG001}',
  'only a run receives, and only what is sent to its task'
);
select pg_temp.hear('d', 's', 't');
select is(
  pg_temp.bad($$ select pg_temp.hear('d', 's', 't') $$), 'TG004', 'a run that sleeps does not'
);
select teguh.cancel_task('q', pg_temp.task('d'));
select is(
  pg_temp.bad($$ select pg_temp.hear('d', 's', 't') $$), 'AB001', 'nor one that was cancelled'
);
select is(
  pg_temp.bad($$ select pg_temp.hear('d', repeat('s', 1024), 't') $$), 'AB001',
  'not even what it had'
);
begin isolation level repeatable read;
select throws_ok(
  $$ select teguh.receive_message('q', null, null, 's', 't') $$, '25001', null,
  'receiving takes a fresh look'
);
rollback;

-- When roles have access
select pg_temp.spawn('e');
select pg_temp.claim();
select set_config('test.run', pg_temp.run('e')::text, false);
select set_config('test.task', pg_temp.task('e')::text, false);
select teguh.grant_access('teguh_guest', 'client', '{q}');
set role teguh_guest;
select is(
  (
    select s.created
    from teguh.send_message('q', current_setting('test.task')::uuid, 't', '1') as s
  ),
  true,
  'a client sends'
);
select throws_ok(
  $$
    select teguh.receive_message(
      'q', current_setting('test.task')::uuid, current_setting('test.run')::uuid, 's', 't'
    )
  $$,
  '42501', null, 'and does not receive'
);
reset role;
select teguh.revoke_access('teguh_guest');

select teguh.drop_queue('q');
select is(
  (select count(*) from pg_class as c where c.relname = 'm_q'), 0::bigint,
  'a mailbox goes with its queue'
);
select * from finish();
