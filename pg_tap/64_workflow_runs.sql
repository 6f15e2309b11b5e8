-- A workflow run stands as its tasks do, of whatever queues, and outlives them for a while.
begin;
select plan(114);

create function pg_temp.at(p_minutes double precision)
  returns void
  language sql
as $$
  select set_config(
    'teguh.fake_now',
    ('2031-05-01 12:00:00+00'::timestamptz + make_interval(secs => 60 * p_minutes))::text,
    false
  );
$$;

-- Given two queues and workflow runs
select pg_temp.at(0);
select teguh.create_queue('q');
select teguh.create_queue('other');

create function pg_temp.id(p_name text)
  returns uuid
  language sql
as $$
  select w.workflow_run_id from teguh.workflow_runs as w where w.name = p_name;
$$;
create function pg_temp.make(p_name text)
  returns uuid
  language sql
as $$
  select w.workflow_run_id from teguh.create_workflow_run(p_name) as w;
$$;
create function pg_temp.spawn(p_run text, p_name text, p_options jsonb default '{}')
  returns uuid
  language sql
as $$
  select s.task_id
  from teguh.spawn_task('q', p_name, '{"n": 1}', p_options || jsonb_build_object(
    'workflow_run_id', pg_temp.id(p_run), 'max_attempts', 1
  )) as s;
$$;
create function pg_temp.tasks()
  returns setof teguh.t_q
  language sql
as $$
  select t.* from teguh.t_q as t union all select t.* from teguh.t_other as t;
$$;
create function pg_temp.task(p_name text)
  returns teguh.t_q
  language sql
as $$
  select t.* from pg_temp.tasks() as t where t.task_name = p_name;
$$;
create function pg_temp.claim(p_name text, p_queue_name text default 'q')
  returns void
  language plpgsql
as $$
begin
  while (pg_temp.task(p_name)).state <> 'running' loop
    perform from teguh.claim_task(p_queue_name, 'w', 1e6);
  end loop;
end;
$$;
create function pg_temp.complete(p_name text, p_queue_name text default 'q')
  returns void
  language plpgsql
as $$
begin
  perform pg_temp.claim(p_name, p_queue_name);
  perform teguh.complete_run(p_queue_name, (pg_temp.task(p_name)).run_id);
end;
$$;
create function pg_temp.fail(p_name text, p_queue_name text default 'q')
  returns void
  language plpgsql
as $$
begin
  perform pg_temp.claim(p_name, p_queue_name);
  perform teguh.fail_run(p_queue_name, (pg_temp.task(p_name)).run_id, '"no"');
end;
$$;
-- The status of a run, and how many tasks stand where.
create function pg_temp.stands(p_run text)
  returns text
  language sql
as $$
  select concat_ws(' ', r.status, string_agg(c.key || c.value, ' ' order by c.key))
  from teguh.get_workflow_run(pg_temp.id(p_run)) as r
  cross join lateral jsonb_each_text(to_jsonb(r)) as c
  where c.key in (
      'pending', 'running', 'sleeping', 'completed', 'failed', 'cancelled', 'expired'
    )
    and c.value <> '0'
  group by r.status;
$$;
create function pg_temp.tree(p_run_id uuid, p_limit integer default 1000)
  returns text
  language sql
as $$
  select string_agg(
    repeat('-', t.depth) || t.queue_name || '.' || t.task_name || case when t.cut then '!' else '' end,
    ' ' order by t.n
  )
  from teguh.get_workflow_tree(p_run_id, p_limit) with ordinality as t(
    depth, queue_name, task_id, parent_task_id, task_name, state, attempts, failures, created_at,
    started_at, finished_at, failure_reason, attributes, cut, n
  );
$$;
create function pg_temp.found(p_filter jsonb, p_cursor text default null, p_limit integer default 50)
  returns text[]
  language sql
as $$
  select array(select l.name from teguh.list_workflow_runs(p_filter, p_cursor, p_limit) as l);
$$;

-- When one is created
select is(
  (
    select w.created
    from teguh.create_workflow_run('order', '{
      "version": "2", "inputs": {"n": 17}, "tags": ["eu", "big"], "created_by": "ada",
      "idempotency_key": "order-17"
    }') as w
  ),
  true, 'a workflow run is created'
);
select results_eq(
  $$
    select r.workflow_run_id, r.name, r.version, r.status, r.tags, r.created_by, r.created_at,
      r.started_at, r.finished_at, r.inputs
    from teguh.get_workflow_run(pg_temp.id('order')) as r
  $$,
  $$
    values (pg_temp.id('order'), 'order', '2', 'pending', '{eu,big}'::text[], 'ada',
      '2031-05-01 12:00:00+00'::timestamptz, null::timestamptz, null::timestamptz,
      '{"n": 17}'::jsonb)
  $$,
  'it is what it was created as, and pending'
);
select is(
  teguh.uuidv7_timestamp(pg_temp.id('order')), '2031-05-01 12:00:00+00'::timestamptz,
  'its id is in the order of time'
);

-- When it is created again
select results_eq(
  $$
    select w.workflow_run_id, w.created
    from teguh.create_workflow_run('order', '{"version": "3", "idempotency_key": "order-17"}') as w
  $$,
  $$ values (pg_temp.id('order'), false) $$,
  'by the same key it is the same'
);
select is(
  (select r.version from teguh.get_workflow_run(pg_temp.id('order')) as r), '2', 'and unchanged'
);
select throws_ok(
  $$ select teguh.create_workflow_run('refund', '{"idempotency_key": "order-17"}') $$,
  'TG006', null, 'a key cannot be that of a run of another name'
);
select lives_ok(
  $$ select teguh.create_workflow_run('plain', null) $$, 'options may be null'
);
select results_eq(
  $$
    select w.version, w.inputs, w.tags, w.created_by, w.idempotency_key
    from teguh.workflow_runs as w where w.name = 'plain'
  $$,
  $$ values (null::text, null::jsonb, null::text[], null::text, null::text) $$,
  'and nothing need be given but a name'
);
select throws_ok(
  format($$ select teguh.create_workflow_run('bad', %L) $$, o.options), 'TG005', null,
  format('a workflow run cannot have %s', o.options)
)
from unnest(array[
  '[]', '5', '{"versions": 1}', '{"version": 2}', '{"version": " "}', '{"tags": "eu"}',
  '{"tags": [1]}', '{"created_by": 7}', '{"idempotency_key": ""}', '{"name": "x"}'
]) as o(options);
select throws_ok(
  format($$ select teguh.create_workflow_run(%L) $$, n.name), 'TG005', null, 'nor such a name'
)
from unnest(array[null, '', ' ', repeat('n', 1025)]) as n(name);

-- When it is changed
select teguh.update_workflow_run(pg_temp.id('order'), '{"version": "4", "tags": ["us"]}');
select results_eq(
  $$
    select r.version, r.tags, r.created_by, r.inputs
    from teguh.get_workflow_run(pg_temp.id('order')) as r
  $$,
  $$ values ('4', '{us}'::text[], 'ada', '{"n": 17}'::jsonb) $$,
  'what is given is set, the rest stays'
);
select teguh.update_workflow_run(
  pg_temp.id('order'), '{"version": null, "tags": null, "created_by": null, "inputs": null}'
);
select results_eq(
  $$
    select r.version, r.tags, r.created_by, r.inputs
    from teguh.get_workflow_run(pg_temp.id('order')) as r
  $$,
  $$ values (null::text, null::text[], null::text, null::jsonb) $$,
  'null takes it away'
);
select throws_ok(
  format($$ select teguh.update_workflow_run(pg_temp.id('order'), %L) $$, o.options), 'TG005', null,
  format('it cannot be given %s', o.options)
)
from unnest(array[null, '[]', '{"name": "x"}', '{"idempotency_key": "x"}', '{"version": 2}'])
  as o(options);
select throws_ok(
  $$ select teguh.update_workflow_run(gen_random_uuid(), '{"version": "1"}') $$,
  'TG009', null, 'one that nobody knows cannot be changed'
);
select throws_ok(
  $$ select teguh.update_workflow_run(null, '{"version": "1"}') $$, 'TG009', null, 'nor can null'
);
select throws_ok(
  $$ select teguh.get_workflow_run(gen_random_uuid()) $$, 'TG009', null, 'or be looked at'
);
select throws_ok(
  $$ select teguh.get_workflow_tree(gen_random_uuid()) $$, 'TG009', null, 'as a tree, too'
);
select is(
  pg_temp.tree(pg_temp.id('order')), null, 'the tree of a run without tasks is empty'
);

-- When it has tasks
select pg_temp.spawn('order', 'charge');
select pg_temp.spawn('order', 'remind', '{"delay_seconds": 86400}');
select is(
  pg_temp.stands('order'), 'pending pending1 sleeping1', 'until one is begun the run is pending'
);
select pg_temp.at(1);
select pg_temp.claim('charge');
select is(pg_temp.stands('order'), 'running running1 sleeping1', 'then it is running');
select pg_temp.at(2);
select pg_temp.complete('charge');
select is(
  pg_temp.stands('order'), 'sleeping completed1 sleeping1', 'and sleeping when all the rest does'
);
select teguh.cancel_task('q', (pg_temp.task('remind')).task_id);
select is(pg_temp.stands('order'), 'cancelled cancelled1 completed1', 'in the end it is over');
select results_eq(
  $$
    select r.started_at, r.finished_at
    from teguh.get_workflow_run(pg_temp.id('order')) as r
  $$,
  $$ values ('2031-05-01 12:01:00+00'::timestamptz, '2031-05-01 12:02:00+00'::timestamptz) $$,
  'from when its first task started until its last one ended'
);
select teguh.retry_task('q', (pg_temp.task('remind')).task_id);
select is(
  pg_temp.stands('order'), 'running completed1 pending1', 'a retried task takes it up again'
);
select pg_temp.complete('remind');
select is(pg_temp.stands('order'), 'completed completed2', 'so that it may still succeed');

-- Given a run for each set of states that tasks can be in together
create temporary table subset as
select
  g.n,
  array(
    select s.state
    from unnest(
      '{fresh,later,pending,running,sleeping,completed,failed,expired,cancelled}'::text[]
    ) with ordinality as s(state, place)
    where g.n & (1 << s.place::integer - 1) > 0
  ) as states
from generate_series(0, 511) as g(n);
select count(pg_temp.make('set ' || s.n)) from subset as s;
select count(*)
from teguh.spawn_tasks('q', (
  select jsonb_agg(jsonb_build_object(
    'task_name', u.state, 'options', jsonb_build_object('workflow_run_id', w.workflow_run_id)
  ))
  from subset as s
  join teguh.workflow_runs as w on w.name = 'set ' || s.n
  cross join lateral unnest(s.states) as u(state)
));
update teguh.t_q as t
set
  state = case t.task_name when 'fresh' then 'pending' when 'later' then 'sleeping'
    else t.task_name end,
  attempt = case when t.task_name in ('fresh', 'later') then 0 else 1 end
where t.task_name = any ((select s.states from subset as s where s.n = 511)::text[]);

-- Then
select is(
  (select count(*) from teguh.list_workflow_runs('{}', null, 1000) as r where r.name ~ '^set '),
  512::bigint, 'a page may have that many'
);
select is_empty(
  $$
    select s.states, r.status
    from subset as s
    join teguh.list_workflow_runs('{}', null, 1000) as r on r.name = 'set ' || s.n
    where r.status is distinct from case
        when s.states <@ '{fresh,later}' then 'pending'
        when s.states && '{running,pending,fresh}' then 'running'
        when s.states && '{sleeping,later}' then 'sleeping'
        when s.states && '{failed,expired}' then 'failed'
        when s.states && '{cancelled}' then 'cancelled'
        else 'completed'
      end
  $$,
  'the status is worked out from every set of states as it should be'
);
select is(
  (select count(*) from teguh.list_workflow_runs('{"status": "sleeping"}', null, 1000) as r),
  (
    select count(*)
    from subset as s
    where s.states && '{sleeping,later}'
      and not s.states && '{running,pending,fresh}'
      and not s.states <@ '{later}'
  ),
  'a status finds all that have it'
);
select is(
  pg_temp.found('{"status": ["completed", "cancelled"]}', null, 3)
  || pg_temp.found(
    '{"status": ["completed", "cancelled"]}',
    (
      select min(r.cursor)
      from teguh.list_workflow_runs('{"status": ["completed", "cancelled"]}', null, 3) as r
    )
  ),
  pg_temp.found('{"status": ["completed", "cancelled"]}'),
  'page after page'
);
delete from teguh.t_q as t where t.task_name not in ('charge', 'remind');
delete from teguh.workflow_runs as w where w.name ~ '^set ';

-- When tasks follow from a run's, they belong to it
select pg_temp.at(10);
select pg_temp.make('trip');
select pg_temp.spawn('trip', 'trip', '{"tags": ["eu"]}');
select pg_temp.claim('trip');
select pg_temp.at(10.5);
select teguh.spawn_children('q', (pg_temp.task('trip')).run_id, 's', '[
  {"task_name": "a"}, {"task_name": "b", "queue_name": "other"}
]');
select teguh.spawn_task('other', 'spawned', '1', jsonb_build_object(
  'parent_run_id', (pg_temp.task('trip')).run_id, 'parent_queue_name', 'q'
));
select pg_temp.at(11);
select pg_temp.spawn('trip', 'book', '{
  "sequence": [{"task_name": "pay", "queue_name": "other", "options": {"max_attempts": 1}}],
  "compensate": {"task_name": "unbook"}, "on_failure": {"task_name": "tell"}
}');
select pg_temp.spawn('trip', 'brief', '{"ttl_seconds": 60, "on_expired": {"task_name": "late"}}');
select pg_temp.complete('book');
select pg_temp.at(12);
select pg_temp.fail('pay', 'other');
select pg_temp.at(13);
select teguh.ticker('q');
select is(
  array(
    select t.task_name
    from pg_temp.tasks() as t
    where t.workflow_run_id = pg_temp.id('trip')
    order by t.task_name
  ),
  '{a,b,book,brief,late,pay,spawned,tell,trip,unbook}'::text[],
  'children, the next of a sequence, compensations and all else that follows'
);
select is(
  array(
    select repeat('-', t.depth) || t.queue_name || '.' || t.task_name
    from teguh.get_workflow_tree(pg_temp.id('trip')) as t
    order by (repeat('-', t.depth) || t.queue_name || '.' || t.task_name) collate "C"
  ),
  '{--q.tell,--q.unbook,-other.b,-other.pay,-other.spawned,-q.a,-q.late,q.book,q.brief,q.trip}'
  ::text[],
  'each one level below its parent'
);
select is(
  (
    select bool_and(t.parent_task_id is null or t.above)
    from (
      select
        t.parent_task_id,
        t.parent_task_id = any (array_agg(t.task_id) over (
          order by t.n rows between unbounded preceding and 1 preceding
        )) as above
      from teguh.get_workflow_tree(pg_temp.id('trip')) with ordinality as t(
        depth, queue_name, task_id, parent_task_id, task_name, state, attempts, failures,
        created_at, started_at, finished_at, failure_reason, attributes, cut, n
      )
    ) as t
  ),
  true, 'and after it'
);
select results_eq(
  $$
    select t.queue_name, t.state, t.attempts, t.failures, t.created_at, t.started_at,
      t.finished_at, t.failure_reason, t.attributes, t.parent_task_id, t.cut
    from teguh.get_workflow_tree(pg_temp.id('trip')) as t
    where t.task_name = 'pay'
  $$,
  $$
    values ('other', 'failed', 1, 1, '2031-05-01 12:11:00+00'::timestamptz,
      '2031-05-01 12:12:00+00'::timestamptz, '2031-05-01 12:12:00+00'::timestamptz, '"no"'::jsonb,
      '{}'::jsonb, (pg_temp.task('book')).task_id, false)
  $$,
  'with what became of it'
);
select is(
  (
    select array_agg(t.depth || case when t.cut then ' cut' else '' end)
    from teguh.get_workflow_tree(pg_temp.id('trip'), 1) as t
  ),
  '{"0 cut"}', 'a tree is cut where it is too large, and says so'
);
select is(
  (select bool_or(t.cut) from teguh.get_workflow_tree(pg_temp.id('trip'), 10) as t), false,
  'but not where it is just large enough'
);
select throws_ok(
  $$ select teguh.get_workflow_tree(pg_temp.id('trip'), 0) $$, 'TG005', null,
  'there is no tree of nothing'
);
update teguh.t_q as t
set parent_task_id = (pg_temp.task('tell')).task_id
where t.task_name = 'book';
select is(
  (select count(*) from teguh.get_workflow_tree(pg_temp.id('trip')) as t), 10::bigint,
  'a task whose parent descends from it is shown all the same'
);
select is(
  (
    select c.workflow_run_id
    from teguh.retry_task('other', (pg_temp.task('pay')).task_id, '{"spawn_new": true}') as r
    cross join lateral teguh.get_task('other', r.task_id) as c
  ),
  pg_temp.id('trip'), 'a new task in the place of one belongs to the same run'
);

-- When a child fails
select pg_temp.at(20);
select pg_temp.make('family');
select pg_temp.spawn('family', 'parent');
select pg_temp.claim('parent');
select teguh.spawn_children('q', (pg_temp.task('parent')).run_id, 's', '[
  {"task_name": "bad child", "options": {"max_attempts": 1}}, {"task_name": "left child"}
]');
select pg_temp.fail('bad child');
select teguh.cancel_task('q', (pg_temp.task('left child')).task_id);
select is(pg_temp.stands('family'), 'running cancelled1 failed1 running1', 'its parent goes on');
select pg_temp.complete('parent');
select is(
  pg_temp.stands('family'), 'completed cancelled1 completed1 failed1',
  'and if it succeeds, so does the run'
);
select pg_temp.at(21);
select pg_temp.make('apart');
select pg_temp.spawn('family', 'parent of another');
select pg_temp.claim('parent of another');
select teguh.spawn_children('q', (pg_temp.task('parent of another')).run_id, 's', (
  '[{"task_name": "apart", "options": {"max_attempts": 1, "workflow_run_id": "'
  || pg_temp.id('apart') || '"}}]'
)::jsonb);
select pg_temp.fail('apart');
select pg_temp.complete('parent of another');
select is(
  array[pg_temp.stands('apart'), pg_temp.stands('family')],
  '{failed failed1,completed cancelled1 completed2 failed1}',
  'a child in a run of its own counts there'
);

-- When tasks are given an id that no workflow run has
select pg_temp.at(30);
select teguh.spawn_task(
  'q', 'loose', '1', '{"workflow_run_id": "01890000-0000-7000-8000-000000000000"}'
);
select results_eq(
  $$
    select r.name, r.created_at, r.status, r.pending
    from teguh.get_workflow_run('01890000-0000-7000-8000-000000000000') as r
  $$,
  $$ values (null::text, null::timestamptz, 'pending', 1::bigint) $$,
  'they are looked at together by it'
);
select is(
  pg_temp.tree('01890000-0000-7000-8000-000000000000'), 'q.loose', 'as a tree, too'
);
select throws_ok(
  $$ select teguh.update_workflow_run('01890000-0000-7000-8000-000000000000', '{}') $$,
  'TG009', null, 'but there is nothing that could be changed'
);
select is(
  (select count(*) from teguh.list_workflow_runs() as r where r.name is null), 0::bigint,
  'or listed'
);

-- When runs are listed
select pg_temp.at(40);
select teguh.create_workflow_run('one', '{"version": "1", "tags": ["a", "b"], "created_by": "x"}');
select pg_temp.at(41);
select teguh.create_workflow_run('two', '{"version": "2", "tags": ["b"], "created_by": "x"}');
select pg_temp.at(42);
select teguh.create_workflow_run('three', '{"version": "1", "created_by": "y"}');
select is(pg_temp.found(f.filter), f.names::text[], f.filter::text || ' finds what it says')
from (
  values
    ('{"name": "two"}'::jsonb, '{two}'),
    ('{"name": "none"}', '{}'),
    ('{"version": "1"}', '{three,one}'),
    ('{"version": "1", "name": "one"}', '{one}'),
    ('{"tags": ["b"]}', '{two,one}'),
    ('{"tags": ["b", "a"]}', '{one}'),
    ('{"created_by": "x"}', '{two,one}'),
    ('{"created_by": "x", "tags": ["b"], "version": "2"}', '{two}'),
    ('{"created_after": "2031-05-01T12:41:00+00"}', '{three,two}'),
    ('{"created_after": "2031-05-01T12:40:00+00", "created_before": "2031-05-01T12:42:00+00"}',
      '{two,one}'),
    ('{"created_after": "2031-05-01T12:41:00.0001+00"}', '{three}'),
    ('{"created_before": "2031-05-01T11:00:00+00"}', '{}'),
    ('{"status": "completed"}', '{family,order}'),
    ('{"status": "completed", "name": "order"}', '{order}'),
    ('{"created_by": "x", "status": "failed"}', '{}'),
    ('{"name": null, "status": null, "version": null, "created_by": "y"}', '{three}')
) as f(filter, names);
select is(
  pg_temp.found('{}', null, 2), '{three,two}'::text[], 'a page has the newest first'
);
select is(
  pg_temp.found('{}', pg_temp.id('two')::text, 2), '{one,apart}'::text[], 'the next page goes on'
);
select throws_ok(
  format($$ select teguh.list_workflow_runs(%L) $$, f.filter), 'TG005', null,
  format('no run is %s', f.filter)
)
from unnest(array[
  '[]', '{"names": "x"}', '{"name": 1}', '{"tags": "b"}', '{"created_after": "soon"}',
  '{"status": "expired"}', '{"status": []}', '{"status": {"a": 1}}', '{"idempotency_key": "x"}'
]) as f(filter);
select throws_ok(
  $$ select teguh.list_workflow_runs('{}', 'x') $$, 'TG005', null, 'a cursor is one of a row'
);
select throws_ok(
  $$ select teguh.list_workflow_runs('{}', null, 0) $$, 'TG005', null, 'a page has rows'
);

-- When its tasks are cleaned up
select pg_temp.at(50);
select teguh.purge_dead_letters('q', 0, 1000);
select is(
  array[pg_temp.stands('apart'), pg_temp.stands('family')],
  '{failed failed1,completed cancelled1 completed2 failed1}',
  'a failure stays one when the dead letter is purged'
);
select teguh.cleanup_tasks('q', 0), teguh.cleanup_tasks('other', 0);
select is(
  pg_temp.stands('family'), 'completed cancelled1 completed2 failed1',
  'and the run stands as it did when no task is left'
);
select results_eq(
  $$
    select r.started_at, r.finished_at
    from teguh.get_workflow_run(pg_temp.id('order')) as r
  $$,
  $$ values ('2031-05-01 12:01:00+00'::timestamptz, '2031-05-01 12:02:00+00'::timestamptz) $$,
  'with its times'
);
select is(pg_temp.tree(pg_temp.id('family')), null, 'only the tree has nothing to show');
select is(
  array(
    select distinct t.workflow_run_id
    from teguh.workflow_tallies as t
    except
    select w.workflow_run_id
    from teguh.workflow_runs as w
  ),
  '{}', 'of other ids nothing is kept'
);

-- When a queue is dropped
select pg_temp.make('doomed');
select teguh.create_queue('doomed');
select teguh.spawn_tasks('doomed', (
  '[{"task_name": "d1", "options": {"workflow_run_id": "' || pg_temp.id('doomed') || '"}},
    {"task_name": "d2", "options": {"workflow_run_id": "' || pg_temp.id('doomed') || '"}}]'
)::jsonb);
select teguh.complete_run('doomed', c.run_id) from teguh.claim_task('doomed', 'w') as c;
select is(pg_temp.stands('doomed'), 'running completed1 pending1', 'with its tasks in a queue');
select teguh.drop_queue('doomed');
select is(
  pg_temp.stands('doomed'), 'cancelled cancelled1 completed1',
  'a run has those cancelled that went down with it'
);

-- When runs are cleaned up
select pg_temp.at(50);
select is(teguh.cleanup_workflow_runs(3600), 0, 'what was created, or has ended, lately stays');
select pg_temp.at(62);
select pg_temp.spawn('plain', 'plain');
select is(
  teguh.cleanup_workflow_runs(3600), 1,
  'what ended long ago, and has no task, is removed'
);
select is(pg_temp.id('order'), null, 'that is the run whose last task ended first');
select is(
  (select w.kept_at from teguh.workflow_runs as w where w.name = 'plain'),
  '2031-05-01 13:02:00+00'::timestamptz, 'a run with a task is in use'
);
select throws_ok(
  format($$ select teguh.cleanup_workflow_runs(%s) $$, a.arguments), 'TG005', null,
  format('cleanup refuses %s', a.arguments)
)
from unnest(array['-1', '''NaN''', '0, 0']) as a(arguments);
select pg_temp.at(1e5);
select teguh.create_queue('q', '{"cleanup_ttl": 6e6}');
select is(
  teguh.cleanup_workflow_runs(), 0, 'a run is kept as long as the tasks of any queue, if not told'
);
select teguh.create_queue('q', '{"cleanup_ttl": null}');
select is(
  teguh.cleanup_workflow_runs(p_limit => 2), 1, 'it looks at so many at a time, in use or not'
);
select isnt(
  pg_temp.id('plain'), null, 'but never one with a task'
);
select count(*) from teguh.cleanup_all_queues();
select is(
  array(select w.name from teguh.workflow_runs as w order by w.name), '{plain,trip}'::text[],
  'all are removed when all queues are cleaned up, but those in use'
);
select is(
  array(
    select distinct w.name
    from teguh.workflow_tallies as t
    left join teguh.workflow_runs as w on w.workflow_run_id = t.workflow_run_id
  ),
  '{trip}'::text[], 'and with them what their tasks came to'
);

-- Given a run that goes on and on
select pg_temp.make('endless');
select pg_temp.spawn('endless', 'its last');
create function pg_temp.days(p_days integer)
  returns void
  language plpgsql
as $$
begin
  for v_day in 1 .. p_days loop
    perform pg_temp.at(2e5 + 1440 * v_day);
    perform teguh.cancel_task('q', pg_temp.spawn('endless', 'day'));
    perform teguh.cleanup_tasks('q', 0);
  end loop;
end;
$$;
select pg_temp.days(5);
select is(
  (
    select count(*) from teguh.workflow_tallies as t where t.workflow_run_id = pg_temp.id('endless')
  ),
  5::bigint, 'what became of its tasks is gathered'
);
select teguh.cleanup_workflow_runs(3600);
select results_eq(
  $$
    select t.qty, t.state, t.queue_name, t.finished_at
    from teguh.workflow_tallies as t
    where t.workflow_run_id = pg_temp.id('endless')
  $$,
  $$ values (5::bigint, 'cancelled', 'q', teguh.current_time()) $$,
  'and added up'
);
select is(pg_temp.stands('endless'), 'running cancelled5 pending1', 'which changes nothing');

-- Given a role that may look at one of two queues
select teguh.grant_access('teguh_guest', 'observer', '{other}');
select teguh.create_workflow_run('seen', '{"inputs": 1}');
select pg_temp.spawn('seen', 'not seen');
select teguh.spawn_task('other', 'seen', '1', jsonb_build_object(
  'workflow_run_id', pg_temp.id('seen')
));
select set_config('test.seen', pg_temp.id('seen')::text, true);
set local role teguh_guest;
select is(
  (
    select r.pending from teguh.get_workflow_run(current_setting('test.seen')::uuid) as r
  ),
  1::bigint, 'only the tasks that one may look at count'
);
select is(
  array(
    select t.task_name from teguh.get_workflow_tree(current_setting('test.seen')::uuid) as t
  ),
  '{seen}'::text[], 'or are shown'
);
reset role;

select * from finish();
rollback;
