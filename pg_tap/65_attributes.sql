-- A task is found by what it has said of itself.
begin;
select plan(75);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

-- Given a queue with tasks that are held
select teguh.create_queue('q');
create function pg_temp.task(p_name text)
  returns uuid
  language sql
as $$
  select t.task_id from teguh.t_q as t where t.task_name = p_name;
$$;
create function pg_temp.run(p_name text)
  returns uuid
  language sql
as $$
  select t.run_id from teguh.t_q as t where t.task_name = p_name;
$$;
create function pg_temp.set(p_name text, p_attributes jsonb)
  returns void
  language sql
as $$
  select teguh.set_attributes('q', pg_temp.run(p_name), p_attributes);
$$;
create function pg_temp.of(p_name text)
  returns jsonb
  language sql
as $$
  select teguh.get_attributes('q', pg_temp.task(p_name));
$$;
create function pg_temp.found(p_attributes jsonb, p_filter jsonb default '{}')
  returns text[]
  language sql
as $$
  select array(
    select l.task_name
    from teguh.list_tasks('q', p_filter || jsonb_build_object('attributes', p_attributes)) as l
    order by l.task_name
  );
$$;
select teguh.spawn_tasks('q', '[
  {"task_name": "a"}, {"task_name": "b", "options": {"tags": ["eu"]}}, {"task_name": "c"},
  {"task_name": "d", "options": {"max_attempts": 1}}
]');
select count(*) from teguh.claim_task('q', 'w', 3600, 10);

-- When it says nothing
select is(pg_temp.of('a'), '{}', 'at first a task has no attributes');
select is((select count(*) from teguh.v_q), 0::bigint, 'and no row of that');

-- When it says something
select pg_temp.set('a', '{"customer": "c-17", "amount": 250, "express": true, "note": ""}');
select is(
  pg_temp.of('a'), '{"customer": "c-17", "amount": 250, "express": true, "note": ""}',
  'strings, numbers and booleans are kept'
);
select pg_temp.set('a', '{"amount": 300, "express": null, "never": null}');
select is(
  pg_temp.of('a'), '{"customer": "c-17", "amount": 300, "note": ""}',
  'what is named is set or taken away, the rest stays'
);
select pg_temp.set('a', '{}');
select is(
  pg_temp.of('a'), '{"customer": "c-17", "amount": 300, "note": ""}', 'nothing changes nothing'
);
select is(
  (select t.attributes from teguh.get_task('q', pg_temp.task('a')) as t), pg_temp.of('a'),
  'get_task shows them'
);
select results_eq(
  $$ select l.task_name, l.attributes from teguh.list_tasks('q') as l order by l.task_name limit 2 $$,
  $$ values ('a', pg_temp.of('a')), ('b', '{}') $$,
  'list_tasks shows them, too'
);

-- When others say the same
select pg_temp.set('b', '{"customer": "c-17", "amount": 300.00}');
select pg_temp.set('c', '{"customer": "c-1", "amount": "300", "express": false}');
select pg_temp.set('d', '{"customer": "c-2", "größe ☃": "a\"b", "long": 12345678901234567890.5}');
select is(pg_temp.found(f.attributes), f.names::text[], f.attributes::text || ' finds what it says')
from (
  values
    ('{"customer": "c-17"}'::jsonb, '{a,b}'),
    ('{"customer": "c-1"}', '{c}'),
    ('{"customer": "c"}', '{}'),
    ('{"amount": 300}', '{a,b}'),
    ('{"amount": 3e2}', '{a,b}'),
    ('{"amount": "300"}', '{c}'),
    ('{"amount": 250}', '{}'),
    ('{"express": false}', '{c}'),
    ('{"express": true}', '{}'),
    ('{"note": ""}', '{a}'),
    ('{"customer": "c-17", "note": ""}', '{a}'),
    ('{"customer": "c-17", "note": "x"}', '{}'),
    ('{"größe ☃": "a\"b"}', '{d}'),
    ('{"long": 12345678901234567890.50}', '{d}'),
    ('{"Customer": "c-17"}', '{}'),
    ('{}', '{a,b,c,d}'),
    ('null', '{a,b,c,d}')
) as f(attributes, names);
select is(
  pg_temp.found('{"customer": "c-17"}', f.filter), f.names::text[], 'together with ' || f.filter::text
)
from (
  values
    ('{"tag": "eu"}'::jsonb, '{b}'),
    ('{"task_name": "a"}', '{a}'),
    ('{"state": "running"}', '{a,b}'),
    ('{"state": ["pending", "completed"]}', '{}'),
    ('{"created_before": "2031-05-01T12:00:00+00"}', '{}')
) as f(filter, names);

-- When it cannot be said
select throws_ok(
  format($$ select pg_temp.set('a', %L) $$, a.attributes), 'TG005', null,
  format('attributes cannot be %s', left(a.attributes, 60))
)
from unnest(array[
  null, '[]', '5', 'null', '{"": 1}', '{" ": 1}', '{"a": []}', '{"a": {"b": 1}}',
  jsonb_build_object(repeat('n', 1025), 1)::text, jsonb_build_object('a', repeat('v', 1023))::text,
  '{"a": 1e1024}', '{"b": 1, "a": [1]}'
]) as a(attributes);
select throws_ok(
  format($$ select teguh.list_tasks('q', %L) $$, a.filter), 'TG005', null,
  format('a filter cannot have %s', a.filter)
)
from unnest(array[
  '{"attributes": "a"}', '{"attributes": ["a"]}', '{"attributes": {"a": null}}',
  '{"attributes": {"a": {}}}', '{"attributes": {"": 1}}'
]) as a(filter);
select is(
  pg_temp.of('a'), '{"customer": "c-17", "amount": 300, "note": ""}', 'and nothing was changed'
);
select lives_ok(
  $$
    select pg_temp.set('c', jsonb_build_object(repeat('n', 1024), repeat('v', 1022)))
  $$,
  'names and values may be long'
);
select is(
  pg_temp.found(jsonb_build_object(repeat('n', 1024), repeat('v', 1022))), '{c}'::text[],
  'and are found'
);

-- When it says more and more
select pg_temp.set('c', (
  select jsonb_object_agg('n' || g.n, g.n) from generate_series(1, 60) as g(n)
));
select is(
  (select count(*) from jsonb_object_keys(pg_temp.of('c'))), 64::bigint,
  'a task has up to 64 attributes'
);
select throws_ok(
  $$ select pg_temp.set('c', '{"one more": 1}') $$, 'TG005', null, 'and no more'
);
select lives_ok(
  $$ select pg_temp.set('c', '{"one more": 1, "n1": null}') $$, 'unless one goes'
);

-- When others say it for it
select throws_ok(
  format($$ select teguh.set_attributes('q', %s, '{"a": 1}') $$, r.run), r.code, null, r.says
)
from (
  values
    ('null', 'TG002', 'a run is needed'),
    ('gen_random_uuid()', 'TG002', 'one that exists'),
    ('pg_temp.task(''a'')', 'TG002', 'not a task')
) as r(run, code, says);
select throws_ok(
  $$ select teguh.set_attributes('none', pg_temp.run('a'), '{}') $$, 'TG001', null,
  'in a queue that exists'
);
select throws_ok(
  $$ select teguh.get_attributes('q', gen_random_uuid()) $$, 'TG003', null,
  'only a task that exists is asked'
);
select throws_ok(
  $$ select teguh.get_attributes('none', pg_temp.task('a')) $$, 'TG001', null,
  'in a queue that exists, too'
);

-- When its run is over
select teguh.fail_run('q', pg_temp.run('d'), '"no"');
select throws_ok(
  $$ select pg_temp.set('d', '{"a": 1}') $$, 'AB002', null, 'it has no more to say'
);
select teguh.cancel_task('q', pg_temp.task('b'));
select throws_ok(
  $$ select pg_temp.set('b', '{"a": 1}') $$, 'AB001', null, 'nor has one that is cancelled'
);
select is(
  array(
    select l.task_name
    from teguh.list_dead_letters('q', '{"attributes": {"customer": "c-2"}}') as l
    where l.attributes ->> 'customer' = 'c-2'
  ),
  '{d}'::text[], 'dead letters are found by what they said'
);
select is(
  teguh.replay_dead_letters('q', '{"attributes": {"customer": "c-2"}}'), 1, 'and replayed'
);
select is(pg_temp.of('d') ->> 'customer', 'c-2', 'they keep it');
select throws_ok(
  $$ select pg_temp.set('d', '{"a": 1}') $$, 'TG004', null, 'and add to it when they run again'
);
select teguh.repeat_run('q', pg_temp.run('a'));
select is(pg_temp.of('a') ->> 'customer', 'c-17', 'so do those that repeat');
select is(
  teguh.cancel_tasks('q', '{"attributes": {"customer": "c-17"}}'), 1,
  'tasks are cancelled by what they said'
);
select is(
  teguh.requeue_tasks('q', '{"attributes": {"customer": "c-1"}}'), 1, 'or requeued'
);
select throws_ok(
  format($$ select teguh.cancel_tasks('q', %L) $$, f.filter), 'TG005', null,
  format('%s would cancel all and is refused', f.filter)
)
from unnest(array['{"attributes": {}}', '{"attributes": null}', '{"tags": []}']) as f(filter);

-- When tasks are cleaned up
set local teguh.fake_now = '2031-05-01 13:00:00+00';
select teguh.cleanup_tasks('q', 0);
select is(
  array(
    select distinct t.task_name
    from teguh.v_q as v
    left join teguh.t_q as t on t.task_id = v.task_id
    order by 1
  ),
  '{c,d}'::text[], 'what they said is forgotten with them'
);

-- Given a thousand tasks of one customer, and of many
select teguh.create_queue('many');
create function pg_temp.scans()
  returns bigint
  language sql
as $$
  select s.seq_scan from pg_stat_xact_user_tables as s where s.relname = 'v_many';
$$;
create temporary table at_first as select pg_temp.scans() as scans;
select count(*)
from teguh.spawn_tasks('many', (
  select jsonb_agg(jsonb_build_object('task_name', 'n' || g.n % 10))
  from generate_series(1, 1500) as g(n)
));
select count(teguh.set_attributes('many', c.run_id, jsonb_build_object(
  'all', 'x', 'one', c.task_name, 'n', ('x' || right(c.task_id::text, 3))::bit(12)::integer
)))
from teguh.claim_task('many', 'w', 3600, 1500) as c;

-- Then
select is(
  (
    select count(*)
    from teguh.list_tasks('many', '{"attributes": {"all": "x"}}', null, 10000) as l
  ),
  1500::bigint, 'all are found, stretch by stretch'
);
select is(
  (
    select count(*)
    from teguh.list_tasks(
      'many', '{"attributes": {"all": "x", "one": "n7"}, "state": "running"}', null, 10000
    ) as l
    where l.task_name = 'n7'
  ),
  150::bigint, 'by more than one'
);
select is(
  array(
    select l.task_id
    from teguh.list_tasks('many', '{"attributes": {"one": "n7"}}', null, 100) as l
  ) || array(
    select l.task_id
    from teguh.list_tasks('many', '{"attributes": {"one": "n7"}}', (
      select min(f.cursor)
      from teguh.list_tasks('many', '{"attributes": {"one": "n7"}}', null, 100) as f
    ), 100) as l
  ),
  array(
    select l.task_id
    from teguh.list_tasks('many', '{"task_name": "n7"}', null, 1000) as l
  ),
  'page after page, the newest first'
);
select is(
  pg_temp.scans(), (select f.scans from at_first as f),
  'the table of attributes is never read from end to end'
);

select * from finish();
rollback;
