-- A task waits for an event, is woken by it or by its timeout, and always sees the same outcome.
begin;
select plan(79);

-- Given a queue, tasks that wait, and a clock to set
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

select pg_temp.at(0);
select teguh.create_queue('q');

create function pg_temp.take(p_task_name text)
  returns void
  language plpgsql
as $$
begin
  perform teguh.spawn_task('q', p_task_name, '{}', '{"retry_strategy": {"kind": "none"}}');
  perform from teguh.claim_task('q', 'w', 0, 100);
end;
$$;

create function pg_temp.wait(
  p_task_name text,
  p_step      text,
  p_event     text,
  p_timeout   double precision default null
)
  returns text
  language sql
as $$
  select case
    when a.should_suspend then 'suspended'
    when a.timed_out then 'timed out' || coalesce(' with payload ' || a.payload::text, '')
    else 'got ' || coalesce(a.payload::text, 'SQL null')
  end
  from teguh.t_q as t
  cross join lateral teguh.await_event('q', t.task_id, t.run_id, p_step, p_event, p_timeout) as a
  where t.task_name = p_task_name;
$$;

create function pg_temp.claim()
  returns text
  language sql
as $$
  select string_agg(
    concat_ws(
      ' ', c.task_name, coalesce(c.wake_event, '-'), coalesce(c.event_payload::text, '-')
    ),
    ', ' order by c.task_name
  )
  from teguh.claim_task('q', 'w', 0, 100) as c;
$$;

-- When an event is emitted before the await
select teguh.emit_event('q', 'early', '{"n": 1}');
select pg_temp.take('a');

-- Then
select is(
  pg_temp.wait('a', 's1', 'early'),
  'got {"n": 1}',
  'an event that was emitted before the await is seen'
);
select is(
  (select t.state from teguh.t_q as t where t.task_name = 'a'),
  'running',
  'the run goes on'
);

-- When it is emitted again
select teguh.emit_event('q', 'early', '{"n": 2}');

-- Then
select is(
  pg_temp.wait('a', 's2', 'early'),
  'got {"n": 1}',
  'the first emit counts, later ones change nothing'
);

-- When a task waits
select is(pg_temp.wait('a', 's3', 'late'), 'suspended', 'a task that waits is suspended');

-- Then
select results_eq(
  $$
    select t.state, t.available_at, t.lease_expires_at, t.wake_event
    from teguh.t_q as t
    where t.task_name = 'a'
  $$,
  $$ values ('sleeping', null::timestamptz, null::timestamptz, 'late') $$,
  'while it waits without timeout it sleeps, and available_at is null'
);
select is(teguh.ticker('q'), 0, 'the ticker leaves a waiter without timeout alone');
select is(teguh.next_due('q'), null, 'a waiter without timeout is never due');
select is(pg_temp.claim(), null, 'nobody can claim it');
select throws_ok(
  $$ select pg_temp.wait('a', 's3', 'late') $$,
  'TG004',
  null,
  'nobody holds its run'
);

-- When the event is emitted
select teguh.emit_event('q', 'late', '{"n": 3}');

-- Then
select is(pg_temp.claim(), 'a late {"n": 3}', 'the event wakes the task and comes with the claim');
select is(pg_temp.wait('a', 's3', 'late'), 'got {"n": 3}', 'the step that waited gets the payload');
select is(
  pg_temp.wait('a', 's3', 'other'),
  'got {"n": 3}',
  'the outcome is a checkpoint of the step'
);
select is(
  teguh.get_task_checkpoint_state('q', t.task_id, 's3'),
  '{"n": 3}',
  'it is read like any checkpoint'
)
from teguh.t_q as t
where t.task_name = 'a';
select is((select count(*) from teguh.w_q), 0::bigint, 'no wait is left');

-- When payloads are null
select is(pg_temp.wait('a', 's4', 'void'), 'suspended', 'it waits for an event without payload');
select teguh.emit_event('q', 'void');
select is(pg_temp.claim(), 'a void null', 'a null payload is JSON null');
select is(
  pg_temp.wait('a', 's4', 'void'), 'got null',
  'an event with JSON null payload does not look like a timeout: timeout is its own outcome'
);

-- When a wait times out
select is(
  pg_temp.wait('a', 's5', 'never', 1.5),
  'suspended',
  'a timeout takes fractions of a second'
);
select is(
  (select t.available_at from teguh.t_q as t where t.task_name = 'a'), '2031-05-01 12:00:01.5+00',
  'while it waits with a timeout available_at is when that has passed'
);
select is(teguh.next_due('q'), '2031-05-01 12:00:01.5+00', 'it is due then');
select pg_temp.at(1.5);
select is(pg_temp.claim(), 'a never -', 'a timeout wakes the task, with payload SQL null');
select is(
  pg_temp.wait('a', 's5', 'never', 1.5),
  'timed out',
  'the second await after a timeout returns at once'
);
select is(
  (
    select s.status || ' ' || s.state
    from teguh.t_q as t
    cross join lateral teguh.get_task_checkpoint_states('q', t.task_id, t.run_id) as s
    where s.checkpoint_name = 's5'
  ),
  'timed_out null', 'the timeout is checkpointed'
);

-- When the event comes after all
select teguh.emit_event('q', 'never', '{"n": 5}');

-- Then
select is(pg_temp.wait('a', 's5', 'never', 1.5), 'timed out', 'a replay sees the same outcome');
select is(
  pg_temp.wait('a', 's6', 'never'),
  'got {"n": 5}',
  'each await is its own step: the next one gets the event'
);

-- When a step waits anew for an event whose wait has timed out before
select is(pg_temp.wait('a', 's7', 'rare', 1), 'suspended', 'a wait for a rare event');
select pg_temp.at(3);
select is(pg_temp.claim(), 'a rare -', 'times out');
select is(pg_temp.wait('a', 's7', 'rare', 1), 'timed out', 'which the step learns');
select is(
  pg_temp.wait('a', 's8', 'rare', 1), 'suspended',
  'after a caught timeout the next await of the same event waits, and does not return at once'
);
select teguh.emit_event('q', 'rare', '8');
select is(pg_temp.claim(), 'a rare 8', 'and is woken');

-- When a worker dies after a timeout, before it could ask again
select pg_temp.take('b');
select is(pg_temp.wait('b', 's', 'slow', 10), 'suspended', 'a wait of ten seconds');
select pg_temp.at(13);
select is(pg_temp.claim(), 'b slow -', 'has timed out');
select teguh.fail_run('q', t.run_id, '"crash"') from teguh.t_q as t where t.task_name = 'b';
select pg_temp.claim();

-- Then
select is(
  pg_temp.wait('b', 's', 'slow', 10), 'timed out',
  'a timeout is durable: a retry does not wait again in full'
);

-- When the event comes after the deadline, before the task was claimed
select is(pg_temp.wait('b', 's2', 'slower', 10), 'suspended', 'another wait of ten seconds');
select pg_temp.at(30);
select teguh.emit_event('q', 'slower', '"too late"');
select is(pg_temp.claim(), 'b slower -', 'is over before its event comes');
select is(
  pg_temp.wait('b', 's2', 'slower', 10),
  'timed out',
  'a wait whose time is over has timed out'
);

-- When many wait for one event
select pg_temp.take('w' || n) from generate_series(1, 5) as n;
select pg_temp.wait('w' || n, 's', 'all', case when n < 3 then 60 end)
from generate_series(1, 5) as n;
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t where t.task_name = 'w5';
select teguh.emit_event('q', 'all', '"up"');

-- Then
select is(
  pg_temp.claim(), 'w1 all "up", w2 all "up", w3 all "up", w4 all "up"',
  'an event wakes every waiter, but none that was cancelled'
);
select pg_temp.at(100);
select is(teguh.ticker('q'), 0, 'a waiter that was woken is not woken again by its timeout');

-- Given a wait of no time
-- Then
select is(pg_temp.wait('b', 's3', 'unseen', 0), 'timed out', 'a timeout of zero only looks');
select is(pg_temp.wait('b', 's4', 'early', 0), 'got {"n": 1}', 'and gets an event that is there');

-- Given what cannot be
select pg_temp.take('c');
select throws_ok(
  format($$ select pg_temp.wait('c', %L, %L, %L) $$, n.step, n.event, n.timeout),
  'TG005',
  null,
  n.why
)
from (
  values
    ('', 'e', null, 'a wait needs a step name'),
    ('s', ' ', null, 'a wait needs the name of an event'),
    ('s', repeat('e', 1025), null, 'the name of an event has a limit'),
    ('s', 'e', '-1', 'a timeout is not negative'),
    ('s', 'e', 'NaN', 'a timeout is a number')
) as n(step, event, timeout, why);
select throws_ok($$ select teguh.emit_event('q', '') $$, 'TG005', null, 'an event has a name');
select throws_ok(
  $$ select teguh.emit_event('nowhere', 'e') $$,
  'TG001',
  null,
  'an event needs a queue'
);
select throws_ok(
  $$
    select teguh.await_event('q', c.task_id, b.run_id, 's', 'e')
    from teguh.t_q as c
    cross join teguh.t_q as b
    where c.task_name = 'c' and b.task_name = 'b'
  $$,
  'TG002', null, 'a run cannot wait for another task'
);
select is(
  (select t.state from teguh.t_q as t where t.task_name = 'c'), 'running',
  'none of this has suspended a run'
);

-- When a task that has waited in vain is completed without asking again
select pg_temp.wait('c', 's', 'vain', 1);
select pg_temp.at(200);
select pg_temp.claim();
select teguh.fail_run('q', t.run_id, '1') from teguh.t_q as t where t.task_name = 'c';
select pg_temp.claim();
select teguh.complete_run('q', t.run_id) from teguh.t_q as t where t.task_name = 'c';

-- Then
select is(
  (select count(*) from teguh.w_q as w join teguh.t_q as t using (task_id) where t.task_name = 'c'),
  0::bigint,
  'no wait outlives its task'
);

-- Given events a second apart, of which some are awaited, one for longer than its wait lasts
select teguh.create_queue('l');
create function pg_temp.await(p_event_name text, p_timeout double precision default null)
  returns void
  language plpgsql
as $$
declare
  v_run record;
begin
  perform teguh.spawn_task('l', p_event_name, '{}');
  select c.* into v_run from teguh.claim_task('l', 'w', 0, 100) as c where c.task_name = p_event_name;
  perform teguh.await_event('l', v_run.task_id, v_run.run_id, 's', p_event_name, p_timeout);
end;
$$;
create function pg_temp.events(
  p_filter jsonb default '{}',
  p_cursor text default null,
  p_limit  integer default 50
)
  returns text[]
  language sql
as $$
  select array(select e.event_name from teguh.list_events('l', p_filter, p_cursor, p_limit) as e);
$$;
select pg_temp.at(300);
select teguh.emit_event('l', 'order:1', '{"n": 1}');
select pg_temp.at(301);
select pg_temp.await('order:2');
select pg_temp.await('order:2', 3600);
select pg_temp.at(302);
select teguh.emit_event('l', 'order 3'), teguh.emit_event('l', E'größe\n%_'), teguh.emit_event('l', 'Order');
select pg_temp.at(303);
select pg_temp.await('late', 10);
select pg_temp.at(304);
select pg_temp.await('paid');
select teguh.emit_event('l', 'paid');
select pg_temp.at(400);

-- Then
select results_eq(
  $$
    select e.event_name, e.created_at, e.emitted_at, e.payload, e.waiters
    from teguh.list_events('l', '{"prefix": "order:"}') as e
  $$,
  $$
    values
      ('order:2', '2031-05-01 12:05:01+00'::timestamptz, null::timestamptz, null::jsonb, 2::bigint),
      ('order:1', '2031-05-01 12:05:00+00', '2031-05-01 12:05:00+00', '{"n": 1}', 0)
  $$,
  'list_events shows what was emitted, and how many tasks wait for what was not'
);
select is(pg_temp.events(f.filter), f.names::text[], f.filter::text || ' finds the events it means')
from (
  values
    ('{"prefix": "order"}'::jsonb, '{order 3,order:2,order:1}'),
    ('{"prefix": "order:1"}', '{order:1}'),
    ('{"prefix": "größe"}', E'{"größe\n%_"}'),
    ('{"prefix": "%"}', '{}'),
    ('{"prefix": "zz"}', '{}'),
    ('{"emitted": false}', '{late,order:2}'),
    ('{"emitted": true, "prefix": "pa"}', '{paid}'),
    ('{"awaited": true}', '{order:2}'),
    ('{"awaited": false, "emitted": false}', '{late}'),
    ('{"awaited": true, "prefix": "late"}', '{}'),
    ('{"created_after": "2031-05-01T12:05:03+00"}', '{paid,late}'),
    ('{"created_before": "2031-05-01T12:05:02+00"}', '{order:2,order:1}'),
    ('{"older_than_seconds": 98, "emitted": null, "prefix": null}', '{order:2,order:1}')
) as f(filter, names);

-- Then those of the same moment have an order, too
select is(pg_temp.events(), a.names, 'all are listed, the newest first, a page at a time')
from (
  with recursive page as (
    (select e.event_name, e.cursor, 1 as n from teguh.list_events('l', p_limit => 1) as e)
    union all
    select e.event_name, e.cursor, p.n + 1
    from page as p
    cross join lateral teguh.list_events('l', '{}', p.cursor, 1) as e
  )

  select array_agg(p.event_name order by p.n) as names from page as p
) as a
where cardinality(a.names) = 7;
select is(
  pg_temp.events('{"created_before": "2031-05-01T12:05:01+00"}', (
    select e.cursor from teguh.list_events('l', '{}', null, 1) as e
  )),
  '{order:1}'::text[],
  'a page begins where its cursor and its filter allow'
);
select pg_temp.await('paid:new');
select teguh.emit_event('l', 'paid:newer');
select is(
  pg_temp.events('{}', (select e.cursor from teguh.list_events('l', '{"prefix": "late"}') as e)),
  (pg_temp.events('{"created_before": "2031-05-01T12:05:03+00"}')),
  'and what is emitted meanwhile moves no page'
);

-- Then what tasks wait for besides is no event
select teguh.spawn_task('l', 'asks', '{}');
select teguh.receive_message('l', c.task_id, c.run_id, 's', 'topic')
from teguh.claim_task('l', 'w', 0) as c;
select is(
  pg_temp.events('{"prefix": "$"}') || pg_temp.events('{"awaited": true, "created_after": "-infinity"}'),
  '{paid:new,order:2}'::text[],
  'a wait for a message is not listed'
);

-- When there are more than are looked for by name
insert into teguh.e_l as e (event_name, created_at)
select 'many:' || n.n, '2031-05-02 00:00:00+00'::timestamptz + n.n * interval '1 second'
from generate_series(1, 2500) as n(n);

-- Then
select is(
  pg_temp.events('{"prefix": "many:"}', null, 2) || pg_temp.events('{"prefix": "many:25"}', null, 2)
  || pg_temp.events('{"prefix": "m", "awaited": true}'),
  '{many:2500,many:2499,many:2500,many:259}'::text[],
  'a prefix of many is found from the newest on'
);

-- Then what cannot be is refused
select throws_ok(
  format('select * from teguh.list_events(%L, %L, %L, %L)', b.queue, b.filter, b.cursor, b.page),
  b.sqlstate, null, 'list_events refuses ' || b.what
)
from (
  values
    ('l', '{"name": "a"}', null, '1', 'TG005', 'an unknown key'),
    ('l', '{"prefix": 1}', null, '1', 'TG005', 'a prefix that is no text'),
    ('l', '{"emitted": "yes"}', null, '1', 'TG005', 'a word for true'),
    ('l', '{"created_after": "soon"}', null, '1', 'TG005', 'a time that is none'),
    ('l', '[]', null, '1', 'TG005', 'a filter that is no object'),
    ('l', '{}', 'x', '1', 'TG005', 'a cursor that is none'),
    ('l', '{}', '00', '1', 'TG005', 'a cursor with a byte that is no text'),
    ('l', '{}', '61', '1', 'TG005', 'a cursor without a time'),
    ('l', '{}', null, '0', 'TG005', 'a limit of 0'),
    ('nowhere', '{}', null, '1', 'TG001', 'an unknown queue')
) as b(queue, filter, cursor, page, sqlstate, what);

select * from finish();
rollback;
