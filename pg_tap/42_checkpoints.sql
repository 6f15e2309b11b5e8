-- A step's state is stored under the fence of its run, with the caller's own writes.
begin;
select plan(30);

-- Given two tasks that are held
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('q');
create temporary table job (n serial, task_id uuid, run_id uuid);
insert into job (task_id, run_id)
select s.task_id, s.run_id
from teguh.spawn_tasks('q', '[
  {"task_name": "a", "options": {"retry_strategy": {"kind": "none"}}}, {"task_name": "b"}
]') as s;
select c.task_name from teguh.claim_task('q', 'w', 30, 2) as c;

create function pg_temp.mark(
  p_task  integer,
  p_run   integer,
  p_step  text,
  p_state jsonb,
  p_by    double precision default null
)
  returns void
  language sql
as $$
  select teguh.set_task_checkpoint_state(
    'q', (select j.task_id from job as j where j.n = p_task), p_step, p_state,
    (select j.run_id from job as j where j.n = p_run), p_by
  );
$$;

create function pg_temp.read(p_task integer, p_step text)
  returns jsonb
  language sql
as $$
  select teguh.get_task_checkpoint_state(
    'q', (select j.task_id from job as j where j.n = p_task), p_step
  );
$$;

-- When a step is stored
select pg_temp.mark(1, 1, 'charge', '{"paid": 1}');

-- Then
select is(pg_temp.read(1, 'charge'), '{"paid": 1}', 'a step''s state is read back');
select is(pg_temp.read(1, 'ship'), null, 'a step that was not stored has no state');
select is(pg_temp.read(2, 'charge'), null, 'a step belongs to its task');

select results_eq(
  $$
    select s.checkpoint_name, s.state, s.status, s.owner_run_id, s.updated_at
    from job as j
    cross join lateral teguh.get_task_checkpoint_states('q', j.task_id, j.run_id) as s
    where j.n = 1
  $$,
  $$
    select
      'charge', '{"paid": 1}'::jsonb, 'committed', j.run_id,
      '2031-05-01 12:00:00+00'::timestamptz
    from job as j
    where j.n = 1
  $$,
  'the steps of a task are listed with who stored them and when'
);

-- When it is stored again
select pg_temp.mark(1, 1, 'charge', '{"paid": 2}');

-- Then
select is(pg_temp.read(1, 'charge'), '{"paid": 2}', 'the same run may store a step again');

-- When null is stored
select pg_temp.mark(1, 1, 'nothing', null);

-- Then
select is(pg_temp.read(1, 'nothing'), 'null', 'a state of null is JSON null');

-- When the lease is extended with it
select pg_temp.mark(1, 1, 'long', '1', 99.5);

-- Then
select is(
  (select t.lease_expires_at from teguh.t_q as t where t.task_name = 'a'),
  '2031-05-01 12:01:39.5+00',
  'a checkpoint can extend the lease, to now plus the seconds given'
);
select pg_temp.mark(1, 1, 'short', '1', 10);
select is(
  (select t.lease_expires_at from teguh.t_q as t where t.task_name = 'a'), '2031-05-01 12:00:10+00',
  'it never adds up'
);
select pg_temp.mark(1, 1, 'same', '1');
select is(
  (select t.lease_expires_at from teguh.t_q as t where t.task_name = 'a'), '2031-05-01 12:00:10+00',
  'without seconds the lease stays as it is'
);

-- Given what cannot be stored
-- Then
select throws_ok(
  $$ select pg_temp.mark(1, 2, 'charge', '0') $$, 'TG002', null,
  'a checkpoint is not accepted for a task that the run does not own'
);
select throws_ok(
  $$
    select teguh.set_task_checkpoint_state(
      'q', null, 's', '1', (select j.run_id from job as j where j.n = 1)
    )
  $$,
  'TG002', null, 'a checkpoint needs a task'
);
select throws_ok(
  $$
    select teguh.set_task_checkpoint_state(
      'q', (select j.task_id from job as j where j.n = 1), 's', '1', null
    )
  $$,
  'TG002', null, 'a checkpoint needs a run'
);
select throws_ok(
  format($$ select pg_temp.mark(1, 1, %L, '0') $$, n.name),
  'TG005',
  null,
  format('a step is not called %s', n.why)
)
from (
  values
    ('', 'nothing'), ('  ', 'by spaces'), (null, 'null'), (repeat('s', 1025), 'by 1025 bytes')
) as n(name, why);
select throws_ok(
  format($$ select pg_temp.mark(1, 1, 's', '0', %L) $$, n.seconds), 'TG005', null,
  format('a checkpoint cannot extend a lease by %s seconds', n.seconds)
)
from unnest('{0,-1,NaN}'::text[]) as n(seconds);
select throws_ok(
  $$
    select teguh.set_task_checkpoint_state(
      'nowhere', gen_random_uuid(), 's', '1', gen_random_uuid()
    )
  $$,
  'TG001', null, 'a checkpoint needs a queue'
);
select is(pg_temp.read(1, 'charge'), '{"paid": 2}', 'nothing of this has changed a step');
select is(pg_temp.read(1, 's'), null, 'nor made one');

-- Given a step and a business write in one transaction
create temporary table account (amount integer);
savepoint step;
insert into account values (100);
select pg_temp.mark(1, 1, 'transfer', '100');
rollback to step;

-- Then
select is(
  format(
    '%s %s', (select count(*) from account), coalesce(pg_temp.read(1, 'transfer')::text, 'none')
  ),
  '0 none', 'business writes and the checkpoint stand or fall together'
);

-- Given an attempt to read what is not there
-- Then
select throws_ok(
  $$ select teguh.get_task_checkpoint_state('q', gen_random_uuid(), 's') $$,
  'TG003', null, 'the step of an unknown task cannot be read'
);
select throws_ok(
  $$ select * from teguh.get_task_checkpoint_states('q', gen_random_uuid(), null) $$,
  'TG003', null, 'the steps of an unknown task cannot be listed'
);
select is_empty(
  $$
    select *
    from teguh.get_task_checkpoint_states('q', (select j.task_id from job as j where j.n = 2), null)
  $$,
  'a task without steps has an empty list'
);

-- When the next run has taken over
select teguh.fail_run('q', j.run_id, '"crash"') from job as j where j.n = 1;
insert into job (task_id, run_id) select c.task_id, c.run_id from teguh.claim_task('q', 'w2') as c;

-- Then
select is(
  (
    select count(*)
    from job as j
    cross join lateral teguh.get_task_checkpoint_states('q', j.task_id, j.run_id) as s
    where j.n = 3
  ),
  5::bigint,
  'the next run sees the steps of the run before'
);
select throws_ok(
  $$ select pg_temp.mark(1, 1, 'charge', '"stale"') $$, 'AB002', null,
  'a stale worker cannot store a step'
);
select pg_temp.mark(3, 3, 'charge', '"second run"');
select pg_temp.mark(3, 3, 'ship', '"second run"');
select is(
  pg_temp.read(1, 'charge'),
  '"second run"',
  'the run that holds the task may store it anew'
);
select is(
  array(
    select s.checkpoint_name
    from job as j
    cross join lateral teguh.get_task_checkpoint_states('q', j.task_id, j.run_id) as s
    where j.n = 1
    order by 1
  ),
  '{long,nothing,same,short}',
  'a run is not shown what a later one has stored'
);

select * from finish();
rollback;
