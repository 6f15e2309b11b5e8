-- What is to follow a task follows it once, in the transaction that ends it.
begin;
select plan(60);

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

-- Given two queues
select pg_temp.at(0);
select teguh.create_queue('q');
select teguh.create_queue('other');

-- Claim all there is of a queue; complete or fail what has this name.
create function pg_temp.claim(p_queue_name text default 'q')
  returns text
  language sql
as $$
  select string_agg(c.task_name || ' ' || c.params::text, ', ' order by c.task_name, c.params::text)
  from teguh.claim_task(p_queue_name, 'w', 100, 100) as c;
$$;
create function pg_temp.task(p_name text)
  returns uuid
  language sql
as $$
  select t.task_id
  from teguh.t_q as t
  where t.task_name = p_name
  order by t.finished_at desc nulls first, t.state <> 'running', t.task_id desc
  limit 1;
$$;
create function pg_temp.run(p_name text)
  returns uuid
  language sql
as $$
  select t.run_id from teguh.t_q as t where t.task_id = pg_temp.task(p_name);
$$;
create function pg_temp.done(p_name text, p_result jsonb default null)
  returns void
  language sql
as $$
  select teguh.complete_run('q', pg_temp.run(p_name), p_result);
$$;
create function pg_temp.fail(p_name text)
  returns void
  language sql
as $$
  select teguh.fail_run('q', pg_temp.run(p_name), '{"message": "no"}');
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

-- Given a task with a sequence
select teguh.spawn_task('q', 'pack', '{"order": 1, "gift": null}', '{
  "tags": ["eu"], "correlation_id": "order-1",
  "sequence": [
    {
      "task_name": "ship", "params": {"fast": true, "note": null},
      "options": {"max_attempts": null}
    },
    {"task_name": "bill", "queue_name": "other"}
  ]
}');

-- When it is completed
select is(
  pg_temp.claim(), 'pack {"gift": null, "order": 1}', 'the first task of a sequence comes alone'
);
select is(pg_temp.claim(), null, 'nothing follows it before it is completed');
select pg_temp.done('pack', '{"boxes": 2}');

-- Then
select is(
  pg_temp.claim(),
  'ship {"fast": true, "gift": null, "note": null, "boxes": 2, "order": 1}',
  'the next has the params and the result of the one before, and its own'
);
select results_eq(
  $$
    select t.tags, t.correlation_id, t.parent_task_id, t.max_attempts
    from teguh.t_q as t
    where t.task_name = 'ship'
  $$,
  $$ select '{eu}'::text[], 'order-1', pg_temp.task('pack'), null::integer $$,
  'it is of the same matter, and has the options it was given'
);

-- When that is completed with something that is no object
select pg_temp.done('ship', '"parcel 7"');

-- Then
select is(
  pg_temp.claim('other'),
  'bill {"fast": true, "gift": null, "note": null, "ship": "parcel 7", "boxes": 2, "order": 1}',
  'such a result comes under the name of its task, in whatever queue'
);
select is(
  (select t.links - 'data' from teguh.t_other as t), '{}', 'after the last there is nothing more'
);
select lives_ok(
  $$ select teguh.complete_run('other', t.run_id) from teguh.t_other as t $$,
  'the last one is completed like any other'
);

-- When tasks with sequences are completed together
select teguh.spawn_tasks('q', '[
  {"task_name": "a", "params": {"n": 1}, "options": {"sequence": [{"task_name": "b"}]}},
  {"task_name": "a", "params": {"n": 2}, "options": {"sequence": [{"task_name": "b"}]}},
  {"task_name": "a", "params": {"n": 3}}
]');
select count(*) from teguh.complete_runs('q', (
  select jsonb_agg(jsonb_build_object('run_id', c.run_id))
  from teguh.claim_task('q', 'w', 100, 100) as c
));

-- Then
select is(pg_temp.claim(), 'b {"n": 1}, b {"n": 2}', 'each of them is followed');
select is(pg_temp.counted(), pg_temp.census(), 'all of them are counted');
select teguh.complete_run('q', t.run_id) from teguh.t_q as t where t.task_name = 'b';

-- When a step of a sequence fails for good
select teguh.spawn_task('q', 'first', '{"n": 1}', '{
  "sequence": [{"task_name": "second", "options": {"max_attempts": 1}}, {"task_name": "third"}],
  "on_failure": {"task_name": "sorry", "params": {"to": "Ada"}}
}');
select pg_temp.claim();
select pg_temp.done('first');
select pg_temp.claim();
select pg_temp.fail('second');

-- Then
select is(
  pg_temp.claim(),
  'sorry ' || jsonb_build_object(
    'to', 'Ada', '$error', '{"message": "no"}'::jsonb, '$state', 'failed',
    '$params', '{"n": 1}'::jsonb, '$task_id', pg_temp.task('second'), '$task_name', 'second'
  )::text,
  'the sequence ends there, and what is to follow a failure knows what failed'
);
select pg_temp.done('sorry');

-- When a task fails that has attempts left
select teguh.spawn_task('q', 'tough', '1', '{
  "max_attempts": 2, "retry_strategy": {"kind": "none"}, "on_failure": {"task_name": "sorry"}
}');
select pg_temp.claim();
select pg_temp.fail('tough');

-- Then
select is(pg_temp.claim(), 'tough 1', 'a failure that is followed by a retry is none');

-- When its lease expires, the last time
select pg_temp.at(200);
select teguh.ticker('q');
select is(
  (select c.params ->> '$state' from teguh.claim_task('q', 'w', 1000, 100) as c), 'failed',
  'a lost lease is a failure, too'
);
select pg_temp.done('sorry');

-- When it is retried in place and fails again
select teguh.retry_task('q', pg_temp.task('tough'));
select pg_temp.claim();
select pg_temp.fail('tough');
select is(
  (select count(*) from teguh.claim_task('q', 'w', 1000, 100) as c where c.task_name = 'sorry'),
  1::bigint, 'each failure for good is followed once'
);
select pg_temp.done('sorry');

-- When tasks are cancelled and expire
select teguh.cancel_task('q', s.task_id)
from teguh.spawn_task('q', 'c', '1', '{"on_failure": {"task_name": "sorry"}}') as s;
select teguh.cancel_task('q', pg_temp.task('c'));
select is(
  (select c.params ->> '$state' from teguh.claim_task('q', 'w', 1000, 100) as c), 'cancelled',
  'a cancelled task is followed, once'
);
select pg_temp.done('sorry');
select teguh.spawn_task('q', 'e', '1', '{"ttl_seconds": 5, "on_failure": {"task_name": "sorry"}}');
select pg_temp.at(210);
select teguh.ticker('q');
select is(
  (select c.params ->> '$state' from teguh.claim_task('q', 'w', 1000, 100) as c), 'expired',
  'so is one that expires'
);
select pg_temp.done('sorry');
select is(pg_temp.counted(), pg_temp.census(), 'the counts are right');

-- Given a saga
create function pg_temp.saga()
  returns void
  language sql
as $$
  select teguh.spawn_task('q', 'reserve', '{"trip": 5}', '{
    "compensate": {"task_name": "unreserve", "params": {"why": "saga"}},
    "sequence": [
      {"task_name": "charge", "compensate": {"task_name": "refund"}},
      {"task_name": "post", "options": {"max_attempts": 1}, "compensate": {"task_name": "unpost"}}
    ]
  }');
$$;
select pg_temp.saga();
select pg_temp.claim();
select pg_temp.done('reserve', '{"seat": 9}');
select pg_temp.claim();
select pg_temp.done('charge', '{"paid": 10}');
select pg_temp.claim();

-- When its last step fails
select pg_temp.fail('post');

-- Then
select is(
  pg_temp.claim(),
  'refund ' || jsonb_build_object(
    '$task_id', pg_temp.task('charge'), '$task_name', 'charge',
    '$params', '{"trip": 5, "seat": 9}'::jsonb, '$result', '{"paid": 10}'::jsonb
  )::text,
  'the last step that was done is undone first; the one that failed is not'
);
select is(pg_temp.claim(), null, 'the others wait for that');
select pg_temp.done('refund', '{"ignored": true}');
select is(
  pg_temp.claim(),
  'unreserve ' || jsonb_build_object(
    'why', 'saga', '$task_id', pg_temp.task('reserve'), '$task_name', 'reserve',
    '$params', '{"trip": 5}'::jsonb, '$result', '{"seat": 9}'::jsonb
  )::text,
  'then the one before'
);
select pg_temp.done('unreserve');
select is(pg_temp.claim(), null, 'and that is all');

-- When the failed step is retried and fails again
select teguh.retry_task('q', pg_temp.task('post'));
select pg_temp.claim();
select pg_temp.fail('post');
select is(pg_temp.claim(), null, 'what was undone is not undone again');

-- When a compensation fails
select pg_temp.at(220);
select pg_temp.saga();
select pg_temp.claim();
select pg_temp.done('reserve');
select pg_temp.claim();
select pg_temp.done('charge');
select teguh.cancel_task('q', pg_temp.task('post'));
select pg_temp.claim();
select teguh.cancel_task('q', pg_temp.task('refund'));
select is(pg_temp.claim(), null, 'the others do not go on without it');
select teguh.retry_task('q', pg_temp.task('refund'));
select pg_temp.claim();
select pg_temp.done('refund');
select is(
  (select c.task_name from teguh.claim_task('q', 'w', 1000, 100) as c), 'unreserve',
  'once it is retried they do'
);
select pg_temp.done('unreserve');

-- When a saga ends well
select pg_temp.at(230);
select pg_temp.saga();
select pg_temp.claim();
select pg_temp.done('reserve');
select pg_temp.claim();
select pg_temp.done('charge');
select pg_temp.claim();
select pg_temp.done('post');
select is(pg_temp.claim(), null, 'nothing is undone');
select is(pg_temp.counted(), pg_temp.census(), 'and all of it is counted');

-- Given a run that registers compensations of its steps
select pg_temp.at(240);
select teguh.spawn_task('q', 'trip', '{"who": "Ada"}', '{
  "max_attempts": 2, "retry_strategy": {"kind": "none"}
}');
select pg_temp.claim();
create function pg_temp.repent(p_step text, p_task jsonb)
  returns void
  language sql
as $$
  select teguh.add_compensation('q', pg_temp.task('trip'), pg_temp.run('trip'), p_step, p_task);
$$;
select pg_temp.repent('car', '{"task_name": "no car", "params": {"car": 1}}');
select pg_temp.repent('hotel', '{"task_name": "no hotel"}');

-- When it fails, and its second run registers them again
select pg_temp.fail('trip');
select is(pg_temp.claim(), 'trip {"who": "Ada"}', 'they stay where they are while it is retried');
select pg_temp.repent('car', '{"task_name": "no car", "params": {"car": 2}}');
select pg_temp.fail('trip');

-- Then
select is(
  pg_temp.claim(),
  'no hotel ' || jsonb_build_object(
    '$task_id', pg_temp.task('trip'), '$task_name', 'trip', '$step', 'hotel'
  )::text,
  'the last step is undone first'
);
select pg_temp.done('no hotel');
select is(
  pg_temp.claim(),
  'no car ' || jsonb_build_object(
    'car', 1, '$task_id', pg_temp.task('trip'), '$task_name', 'trip', '$step', 'car'
  )::text,
  'each is undone once, as it was registered first'
);
select pg_temp.done('no car');
select is(pg_temp.claim(), null, 'and that is all of them');

-- When steps were taken by an earlier task of a sequence
select pg_temp.at(250);
select teguh.spawn_task('q', 'trip', '1', '{"sequence": [{"task_name": "post"}]}');
select pg_temp.claim();
select pg_temp.repent('car', '{"task_name": "no car"}');
select pg_temp.done('trip');
select teguh.cancel_task('q', pg_temp.task('post'));
select is(
  (select c.task_name from teguh.claim_task('q', 'w', 1000, 100) as c), 'no car',
  'they are undone when a later one fails'
);
select pg_temp.done('no car');

-- When the arguments are bad
select teguh.spawn_task('q', 'trip', '1');
select throws_ok(
  $$ select pg_temp.repent('car', '{"task_name": "x"}') $$, 'TG004', null, 'the run must be held'
);
select pg_temp.claim();
select throws_ok(
  $$ select pg_temp.repent('', '{"task_name": "x"}') $$, 'TG005', null, 'a step has a name'
);
select throws_ok(
  $$ select pg_temp.repent('s', null) $$, '22004', null, 'there is a task to spawn'
);
select throws_ok(
  $$ select pg_temp.repent('s', '{"task_name": "x", "step": "y"}') $$, 'TG005', null,
  'with keys that are known'
);
select throws_ok(
  $$
    select teguh.add_compensation(
      'q', pg_temp.task('c'), pg_temp.run('trip'), 's', '{"task_name": "x"}'
    )
  $$,
  'TG002', null, 'the run is one of the task'
);
select pg_temp.done('trip');
select throws_ok(
  $$ select pg_temp.repent('s', '{"task_name": "x"}') $$, 'AB002', null,
  'a run that ended has no steps'
);

-- When options are bad
create function pg_temp.bad(p_options text)
  returns text
  language plpgsql
as $$
begin
  perform teguh.spawn_task('q', 'bad', '1', p_options::jsonb);
  return 'taken';
exception
  when others then
    return sqlstate;
end;
$$;
select is(
  array[
    pg_temp.bad('{"sequence": {"task_name": "x"}}'),
    pg_temp.bad('{"sequence": [1]}'),
    pg_temp.bad('{"sequence": [{"task_name": ""}]}'),
    pg_temp.bad('{"sequence": [{"task_name": "x", "params": [1]}]}'),
    pg_temp.bad('{"sequence": [{"task_name": "x", "options": {"max_attempts": 0}}]}'),
    pg_temp.bad('{"sequence": [{"task_name": "x", "options": {"idempotency_key": "k"}}]}'),
    pg_temp.bad('{"sequence": [{"task_name": "x", "compensate": {"name": "y"}}]}'),
    pg_temp.bad('{"on_failure": {"task_name": "x", "options": {"sequence": []}}}'),
    pg_temp.bad('{"on_failure": {"task_name": "x", "options": {"on_failure": null}}}'),
    pg_temp.bad('{"on_failure": "x"}'),
    pg_temp.bad('{"compensate": []}')
  ],
  array_fill('TG005'::text, array[11]),
  'what is wrong with a task that follows is known when the first is spawned'
);
select is(
  pg_temp.bad('{"on_failure": {"task_name": "x", "queue_name": "none"}}'), 'TG001',
  'its queue must be there'
);
select is(
  pg_temp.bad('{"sequence": null, "on_failure": null, "compensate": null}'), 'taken',
  'null is nothing'
);
select teguh.cancel_task('q', pg_temp.task('bad'));

-- Given a role that may spawn in one queue only
select teguh.grant_access('teguh_guest', 'client', '{q}');
set local role teguh_guest;
select is(
  array[
    pg_temp.bad('{"on_failure": {"task_name": "x", "queue_name": "other"}}'),
    pg_temp.bad('{"ttl_seconds": 9, "on_expired": {"task_name": "x", "queue_name": "other"}}'),
    pg_temp.bad('{"on_failure": {"task_name": "x", "queue_name": "q"}}')
  ],
  '{42501,42501,taken}',
  'nobody has tasks spawned where he may not spawn them'
);
reset role;
select teguh.cancel_task('q', pg_temp.task('bad'));
select pg_temp.claim();
select pg_temp.done('x');

-- When the queue of the next task is dropped
select teguh.spawn_task('q', 'lone', '1', '{
  "sequence": [{"task_name": "x", "queue_name": "other"}]
}');
select teguh.drop_queue('other');
select pg_temp.claim();
select pg_temp.done('lone', '7');

-- Then
select results_eq(
  $$ select t.state, t.failure_reason ->> 'name' from teguh.t_q as t where t.task_name = 'lone' $$,
  $$ values ('completed', '$Sequence') $$,
  'the task is completed all the same, and says that it was not followed'
);

-- When the queue is full, and the next task has a priority
select teguh.set_queue_policy('q', '{"max_pending": 1}');
select teguh.spawn_task('q', 'full', '1', '{
  "sequence": [{"task_name": "next", "options": {"priority": 5}}]
}');
select pg_temp.claim();
select teguh.spawn_task('q', 'in the way', '1');
select pg_temp.done('full');
select is(
  (select t.state from teguh.t_q as t where t.task_name = 'next'), 'pending',
  'what follows comes in all the same'
);
select is(
  (select q.ruled from teguh.queues as q where q.queue_name = 'q'), true,
  'and is ranked by its priority'
);
select pg_temp.claim();
select pg_temp.done('next');
select pg_temp.done('in the way');
select teguh.set_queue_policy('q', '{"max_pending": null}');

-- When a completed task is run again as a new one
select teguh.retry_task('q', pg_temp.task('full'), '{"spawn_new": true}');
select pg_temp.claim();
select pg_temp.done('full');
select is(
  (select c.task_name from teguh.claim_task('q', 'w', 1000, 100) as c), 'next',
  'its sequence is, too'
);
select pg_temp.done('next');

-- Given a task that repeats
select pg_temp.at(1000);
select teguh.spawn_task('q', 'poll', '{"n": 1}', '{
  "max_attempts": 2, "retry_strategy": {"kind": "none"}, "ttl_seconds": 500,
  "cancellation": {"max_duration": 100}
}');
select pg_temp.claim();
select pg_temp.fail('poll');
select pg_temp.claim();
select teguh.set_task_checkpoint_state('q', pg_temp.task('poll'), 's', '1', pg_temp.run('poll'));
select teguh.add_compensation(
  'q', pg_temp.task('poll'), pg_temp.run('poll'), 's', '{"task_name": "undone"}'
);

-- When its run has ended with success
select is(
  teguh.repeat_run('q', pg_temp.run('poll'), 60),
  teguh._run_id(pg_temp.task('poll'), 3),
  'the same task has another run'
);

-- Then
select results_eq(
  $$
    select
      t.state, t.failures, t.available_at = teguh.current_time() + interval '60 seconds',
      t.deadline_at = teguh.current_time() + interval '160 seconds', t.result
    from teguh.t_q as t
    where t.task_name = 'poll'
  $$,
  $$ values ('sleeping', 0, true, true, null::jsonb) $$,
  'after its period, with all its attempts and time'
);
select is(pg_temp.claim(), null, 'not before');
select is(pg_temp.counted(), pg_temp.census(), 'the repetition is counted');
select is(
  (
    select sum(c.qty)::bigint from teguh._count_q() as c
    where c.task_name = 'poll' and c.was = 'r' and c.became = 'c'
  ),
  1::bigint, 'as a run that was completed'
);
select pg_temp.at(1060);
select is(
  (
    select (c.checkpoints, c.failures, c.params)::text
    from teguh.claim_task('q', 'w', 1000, 100) as c
  ),
  ('{}'::jsonb, 0, '{"n": 1}'::jsonb)::text,
  'it begins anew, without checkpoints'
);
select is(
  (
    select string_agg(h.event, ' ' order by h.n)
    from teguh.get_task_history('q', pg_temp.task('poll')) with ordinality
      as h(at, event, run_id, attempt, detail, n)
  ),
  'created started failed retrying started completed repeating started',
  'its history shows it'
);
select throws_ok(
  $$ select teguh.repeat_run('q', teguh._run_id(pg_temp.task('poll'), 2), 1) $$, 'AB002', null,
  'a run is repeated once'
);

-- When the repetition is cancelled
select teguh.cancel_task('q', pg_temp.task('poll'));
select is(pg_temp.claim(), null, 'what an earlier one did is not undone');

-- When one is repeated at once, beyond its time to live
select teguh.spawn_task('q', 'tick', '1', '{"ttl_seconds": 10}');
select pg_temp.claim();
select teguh.repeat_run('q', pg_temp.run('tick'));
select is(pg_temp.claim(), 'tick 1', 'without a period it comes at once');
select teguh.repeat_run('q', pg_temp.run('tick'), 60);
select pg_temp.at(1200);
select teguh.ticker('q');
select is(
  (select t.state from teguh.t_q as t where t.task_name = 'tick'), 'expired',
  'its time to live ends all of them'
);

-- When arguments are bad
select teguh.spawn_task('q', 'tick', '1');
select throws_ok(
  $$ select teguh.repeat_run('q', pg_temp.run('tick')) $$, 'TG004', null, 'the run must be held'
);
select pg_temp.claim();
select throws_ok(
  $$ select teguh.repeat_run('q', pg_temp.run('tick'), -1) $$, 'TG005', null,
  'a period is not negative'
);
select throws_ok(
  $$ select teguh.repeat_run('none', pg_temp.run('tick')) $$, 'TG001', null, 'the queue is there'
);
update teguh.t_q as t
set run_id = teguh._run_id(t.task_id, 1048575)
where t.task_id = pg_temp.task('tick');
select throws_ok(
  $$ select teguh.repeat_run('q', pg_temp.run('tick')) $$, 'TG004', null, 'runs have an end'
);
select is(pg_temp.counted(), pg_temp.census(), 'the counts are right to the end');

select * from finish();
rollback;
