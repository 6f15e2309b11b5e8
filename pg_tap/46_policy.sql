-- Policies are read and set; a paused queue hands nothing out and goes on with all else.
begin;
select plan(29);
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
    "namespace": "default", "max_pending": null, "on_full": "reject", "duration_buckets": [
      0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800
    ]}',
  'a policy shows what was set and the defaults for the rest'
);

-- When keys are set
select teguh.set_queue_policy('q', '{"cleanup_limit": 5, "default_max_attempts": 3}');
select is(
  jsonb_strip_nulls(
    teguh.get_queue_policy('q') - '{notify,on_full,duration_buckets,namespace}'::text[]
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

select * from finish();
rollback;
