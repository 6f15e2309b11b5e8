-- Policies are read and set; a paused queue hands nothing out and goes on with all else.
begin;
select plan(65);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

-- Given a queue
select teguh.create_queue('q', '{"cleanup_ttl": 60}');
create function pg_temp.claimed()
  returns bigint
  language sql
as $$
  select count(*) from teguh.claim_task('q', 'w', 30, 10);
$$;

-- Then
select is(
  teguh.get_queue_policy('q'),
  '{"notify": "auto", "cleanup_ttl": 60, "cleanup_limit": 1000, "default_max_attempts": null,
    "default_retry_strategy": null, "default_timeout": null, "default_ttl": null,
    "namespace": "default", "max_pending": null, "on_full": "reject", "max_messages": null,
    "history": true, "duration_buckets": [
      0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800
    ]}',
  'a policy shows what was set and the defaults for the rest'
);

-- When keys are set
select teguh.set_queue_policy('q', '{"cleanup_limit": 5, "default_max_attempts": 3}');
select is(
  jsonb_strip_nulls(
    teguh.get_queue_policy('q') - '{notify,on_full,duration_buckets,namespace,history}'::text[]
  ),
  '{"cleanup_ttl": 60, "cleanup_limit": 5, "default_max_attempts": 3}',
  'the keys given are set, the others stay'
);
select teguh.set_queue_policy('q', '{"cleanup_limit": null, "default_max_attempts": null}');
select is(
  (select l.policy from teguh.list_queues() as l), '{"cleanup_ttl": 60}',
  'null sets a key back to its default'
);
select teguh.set_queue_policy('other', '{"notify": "off"}');
select is(
  teguh.get_queue_policy('other') ->> 'notify', 'off',
  'a queue that is not there is created'
);
select throws_ok(
  $$ select teguh.set_queue_policy('q', '{"cleanup_tll": 1}') $$, 'TG005', null,
  'an unknown key is refused'
);
select throws_ok(
  $$ select teguh.set_queue_policy('q', '{"on_full": "wait"}') $$, 'TG005', null,
  'a full queue rejects or drops'
);
select throws_ok(
  $$ select teguh.get_queue_policy('nowhere') $$, 'TG001', null, 'an unknown queue has no policy'
);

-- When the queue is paused
select teguh.spawn_task('q', 'before', '{}');
select c.run_id from teguh.claim_task('q', 'w', 10) as c;
select teguh.pause_queue('q');

-- Then
select lives_ok($$ select teguh.spawn_task('q', 'meanwhile', '{}') $$, 'spawns go on');
select is(pg_temp.claimed(), 0::bigint, 'claims return nothing');
select is(teguh.next_due('q'), null::timestamptz, 'a worker has nothing to wait for');
select is(
  (select l.paused_until from teguh.list_queues() as l where l.queue_name = 'q'),
  'infinity'::timestamptz, 'the list says until when'
);
select is(
  teguh.get_queue_policy('q') ? 'paused_until', false, 'a pause is no part of the policy'
);
set local teguh.fake_now = '2031-05-01 12:00:10+00';
select is(teguh.ticker('q'), 1, 'leases end all the same');

-- When it is resumed
select teguh.resume_queue('q');
select is(pg_temp.claimed(), 1::bigint, 'claims go on once it is resumed');
select lives_ok($$ select teguh.resume_queue('q') $$, 'to resume it again is no error');

-- When it is paused until a time
set local teguh.fake_now = '2031-05-01 12:01:00+00';
select teguh.pause_queue('q', '2031-05-01 12:02:00+00');

-- Then
select is(pg_temp.claimed(), 0::bigint, 'a pause lasts');
select is(
  teguh.next_due('q'), '2031-05-01 12:02:00+00'::timestamptz,
  'next_due says when it ends: a worker wakes by itself'
);
set local teguh.fake_now = '2031-05-01 12:02:00+00';
select isnt(pg_temp.claimed(), 0::bigint, 'it ends by itself');
select throws_ok(
  $$ select teguh.pause_queue('q', null) $$, '22004', null, 'a pause without a time is refused'
);
select throws_ok(
  $$ select teguh.pause_queue('nowhere') $$, 'TG001', null, 'an unknown queue is not paused'
);
select throws_ok($$ select teguh.resume_queue('nowhere') $$, 'TG001', null, 'nor resumed');

-- Retry strategies that grow by number
select is(
  array(
    select teguh._backoff(
      '{"kind": "linear", "base_seconds": 2, "max_seconds": 7}', n, gen_random_uuid()
    )
    from generate_series(1, 5) as n
  ),
  '{2,4,6,7,7}', 'linear: the base times the failures, up to the cap'
);
select is(
  array(
    select teguh._backoff(
      '{"kind": "quadratic", "base_seconds": 2, "max_seconds": 1e9}', n, gen_random_uuid()
    )
    from unnest('{1,2,3,2147483647}'::integer[]) as n
  ),
  '{2,8,18,1e9}', 'quadratic: the base times their square, and no overflow'
);

-- When queues are put into namespaces
select teguh.create_queue('billing', '{"namespace": "finance"}');
select teguh.create_queue('audit', '{"namespace": "finance"}');

-- Then
select results_eq(
  $$ select n.namespace, n.queues from teguh.list_namespaces() as n $$,
  $$ values ('default', 2::bigint), ('finance', 2) $$,
  'list_namespaces counts the queues of each'
);
select results_eq(
  $$ select l.queue_name, l.namespace from teguh.list_queues() as l order by 1 $$,
  $$ values ('audit', 'finance'), ('billing', 'finance'), ('other', 'default'), ('q', 'default') $$,
  'list_queues says in which one a queue is'
);
select teguh.set_queue_policy('audit', '{"namespace": null}');
select is(
  teguh.get_queue_policy('audit') ->> 'namespace', 'default', 'null puts a queue back'
);
select throws_ok(
  format($$ select teguh.set_queue_policy('audit', %L) $$, p.policy), 'TG005', null,
  'a namespace is a name, not ' || p.policy
)
from unnest('{"{\"namespace\": \"\"}","{\"namespace\": 1}"}'::text[]) as p(policy);

-- When a queue is paused and resumed with a reason
select teguh.pause_queue('billing', '2031-06-01 00:00:00+00', 'month''s end');
select teguh.resume_queue('billing', p_reason => 'done');

-- Then
select results_eq(
  $$ select a.action, a.by_role = session_user, a.reason, a.detail from teguh.list_actions('billing') as a $$,
  $$
    values
      ('resume', true, 'done', '{}'::jsonb),
      ('pause', true, 'month''s end', '{"until": "2031-06-01T00:00:00+00:00"}')
  $$,
  'list_actions tells who did it and why'
);
select teguh.resume_queue('billing');
select is(
  (select a.reason from teguh.list_actions('billing') as a limit 1), null, 'a reason need not be given'
);

-- Given a queue whose tasks have names and keys
select teguh.create_queue('part');
create function pg_temp.part()
  returns text
  language sql
as $$
  select string_agg(c.params ->> 0, ' ') from teguh.claim_task('part', 'w', 1e6, 99) as c;
$$;
create function pg_temp.pauses()
  returns text
  language sql
as $$
  select string_agg(concat_ws(' ', u.scope, u.name, u.max_running, u.paused_until), ', ')
  from teguh.limit_usage('part') as u;
$$;
create function pg_temp.fill()
  returns void
  language sql
as $$
  select from (
    values ('a', 'a', '{}'::jsonb), ('a', 'ak', '{"key": "k"}'), ('b', 'bk', '{"key": "k"}'),
      ('b', 'bl', '{"key": "l"}'), ('b', 'b', '{}')
  ) as s(name, label, options)
  cross join lateral teguh.spawn_task('part', s.name, to_jsonb(s.label), s.options);
$$;
select pg_temp.fill();

-- When a task name is paused, then a key
select teguh.pause_queue('part', p_reason => 'bug', p_only => '{"task_name": "a"}');

-- Then
select is(pg_temp.part(), 'bk bl b', 'nothing of the name is handed out, all else is');
select is(pg_temp.pauses(), 'task a infinity', 'limit_usage says until when');
select is(
  (select l.paused_until from teguh.list_queues() as l where l.queue_name = 'part'), null,
  'the queue itself is not paused'
);
select pg_temp.fill();
select teguh.pause_queue('part', '2031-05-01 12:10:00+00', p_only => '{"key": "k"}');
select is(pg_temp.part(), 'bl b', 'a name and a key can be paused at once');
select is(
  teguh.next_due('part') <= '2031-05-01 12:10:00+00', true, 'a worker looks when a pause ends'
);

-- When they end, one by hand, one by itself
select teguh.resume_queue('part', 'mended', '{"task_name": "a"}');
select is(pg_temp.part(), 'a a', 'a name that is resumed goes on, but for the key');
set local teguh.fake_now = '2031-05-01 12:10:00+00';
select is(pg_temp.part(), 'ak ak bk', 'a pause ends by itself');
select is(pg_temp.pauses(), null, 'and nothing is left of it');
select lives_ok(
  $$ select teguh.resume_queue('part', p_only => '{"key": "nothing"}') $$,
  'to resume what is not paused is no error'
);
select results_eq(
  $$ select a.action, a.reason, a.detail from teguh.list_actions('part') as a order by 1, 2 $$,
  $$
    values
      ('pause', 'bug', '{"task_name": "a", "until": "infinity"}'::jsonb),
      ('pause', null, '{"key": "k", "until": "2031-05-01T12:10:00+00:00"}'),
      ('resume', 'mended', '{"task_name": "a"}'), ('resume', null, '{"key": "nothing"}')
  $$,
  'list_actions tells what was paused'
);

-- When what is paused has a limit
select teguh.complete_run('part', t.run_id) from teguh.t_part as t where t.state = 'running';
select teguh.set_limit('part', 'key', '*', '{"max_running": 1}');
select teguh.set_limit('part', 'task', 'b', '{"max_running": 2}');
select pg_temp.fill();
select teguh.pause_queue('part', p_only => '{"key": "k"}');
select teguh.pause_queue('part', p_only => '{"task_name": "b"}');
select is(pg_temp.part(), 'a', 'the pause holds');
select is(
  pg_temp.pauses(), 'key k 1 infinity, key l 1, task b 2 infinity', 'the limit is shown with it'
);
select teguh.set_limit('part', 'task', 'b', '{"max_running": 3}');
select is(pg_temp.part(), null, 'a new limit does not end the pause');
select teguh.resume_queue('part', p_only => '{"task_name": "b"}');
select is(pg_temp.part(), 'bl b', 'the limit remains when the pause is over');
select teguh.set_limit('part', 'key', '*', '{"max_running": 2}');
select teguh.resume_queue('part', p_only => '{"key": "k"}');
select is(pg_temp.part(), 'ak bk', 'and a key has that for each, also if it changed meanwhile');
select is(
  (select string_agg(l.name, ' ' order by l.name) from teguh.limits as l where l.queue_name = 'part'),
  '* b', 'it has none of its own since'
);

-- When all names are paused, and one of them has a limit of its own
select teguh.complete_run('part', t.run_id) from teguh.t_part as t where t.state = 'running';
select pg_temp.fill();
select teguh.pause_queue('part', p_only => '{"task_name": "*"}');
select is(pg_temp.part(), null, '* pauses each of them');
select teguh.resume_queue('part', p_only => '{"task_name": "*"}');
select is(pg_temp.part(), 'a ak bk bl b', 'until that is resumed');

-- When all keys are paused until a time
select teguh.complete_run('part', t.run_id) from teguh.t_part as t where t.state = 'running';
select pg_temp.fill();
select teguh.pause_queue('part', '2031-05-01 12:20:00+00', p_only => '{"key": "*"}');
select is(pg_temp.part(), 'a b', 'what has a key waits');
set local teguh.fake_now = '2031-05-01 12:20:00+00';
select is(pg_temp.part(), 'ak bk bl', 'until the pause of all keys ends by itself');

-- Then
select throws_ok(
  format('select teguh.pause_queue(%L, p_only => %L)', b.queue, b.what), b.sqlstate, null,
  format('pause_queue refuses %s of %s', left(b.what, 50), b.queue)
)
from (
  values
    ('part', '{}', 'TG005'), ('part', '[]', 'TG005'), ('part', '"a"', 'TG005'),
    ('part', 'null', 'TG005'), ('part', '{"name": "a"}', 'TG005'),
    ('part', '{"task_name": null}', 'TG005'), ('part', '{"task_name": 1}', 'TG005'),
    ('part', '{"task_name": "a", "key": "k"}', 'TG005'), ('part', '{"key": " "}', 'TG005'),
    ('part', format('{"key": "%s"}', repeat('k', 1025)), 'TG005'),
    ('nowhere', '{"key": "k"}', 'TG001')
) as b(queue, what, sqlstate);
select throws_ok(
  format('select teguh.resume_queue(%L, p_only => %L)', b.queue, b.what), b.sqlstate, null,
  format('resume_queue refuses %s of %s', b.what, b.queue)
)
from (
  values
    ('part', '{}', 'TG005'), ('part', '{"task_name": "a", "key": "k"}', 'TG005'),
    ('nowhere', '{"key": "k"}', 'TG001')
) as b(queue, what, sqlstate);
select throws_ok(
  $$ select teguh.pause_queue('part', null, p_only => '{"key": "k"}') $$, '22004', null,
  'a pause of a part must have an end, too'
);

select * from finish();
rollback;
