-- Rights are given by function and queue, and nobody gets at the tables.
begin;
select plan(47);

create function pg_temp.claimed(p_queue_name text)
  returns bigint
  language sql
as $$
  select count(*) from teguh.claim_task(p_queue_name, 'w', 30, 10);
$$;

-- Given two queues with a task each
select teguh.create_queue('a');
select teguh.create_queue('b');
create temporary table task as
select q.queue_name, s.task_id
from unnest('{a,b}'::text[]) as q(queue_name)
cross join lateral teguh.spawn_task(q.queue_name, 't', '{}') as s;
grant select on task to teguh_guest;

-- When a role has no access
set local role teguh_guest;

-- Then
select throws_ok('select teguh.version()', '42501', null, 'without access nothing is to be had');

-- When it is a client of queue a
reset role;
select teguh.grant_access('teguh_guest', 'client', '{a}');
set local role teguh_guest;

-- Then
select lives_ok(
  $$ select teguh.spawn_task('a', 't', '{}', '{"idempotency_key": "k", "headers": {"h": 1}}') $$,
  'a client spawns'
);
select lives_ok($$ select teguh.spawn_tasks('a', '[{"task_name": "t"}]') $$, 'one or many');
select lives_ok(
  $$ select teguh.cancel_task('a', s.task_id) from teguh.spawn_task('a', 't', '{}', '{"priority": 1, "key": "k"}') as s $$,
  'the first with a priority, too'
);
select lives_ok($$ select teguh.limit_usage('a') $$, 'a client reads how far limits are used');
select throws_ok(
  format('select %s', f.call), '42501', null, 'a client may not call ' || f.call
)
from unnest(array[
  $$teguh.set_limit('a', 'queue', null, '{"max_running": 1}')$$,
  $$teguh.pause_queue('a', p_only => '{"key": "k"}')$$,
  $$teguh.resume_queue('a', p_only => '{"key": "k"}')$$,
  $$teguh.claim_any('{a}', 'w')$$,
  $$teguh.requeue_tasks('a', '{"tag": "t"}')$$
]) as f(call);
select lives_ok($$ select teguh.emit_event('a', 'e') $$, 'a client emits events');
select is(
  (select r.state from task as t, teguh.get_task_result('a', t.task_id) as r
   where t.queue_name = 'a'),
  'pending', 'a client reads results'
);
select lives_ok(
  $$ select teguh.cancel_task('a', t.task_id) from task as t where t.queue_name = 'a' $$,
  'a client cancels'
);
select lives_ok(
  $$ select teguh.retry_task('a', t.task_id) from task as t where t.queue_name = 'a' $$,
  'a client retries'
);
select throws_ok($$ select teguh.claim_task('a', 'w') $$, '42501', null, 'a client claims nothing');
select throws_ok($$ select teguh.ticker('a') $$, '42501', null, 'a client does not tick');
select throws_ok(
  $$ select teguh.spawn_task('b', 't', '{}') $$, '42501', null, 'another queue is not touched'
);
select throws_ok(
  $$ select teguh.get_task_result('b', t.task_id) from task as t where t.queue_name = 'b' $$,
  '42501', null, 'nor read'
);
select throws_ok('select * from teguh.t_a', '42501', null, 'nobody reads the tables');
select throws_ok('delete from teguh.t_a', '42501', null, 'nobody writes the tables');
select throws_ok(
  'select last_value from teguh.ring_a', '42501', null, 'nobody gets at the registers'
);
select throws_ok(
  $$ select teguh.grant_access('teguh_guest', 'admin') $$, '42501', null,
  'nobody gives himself more'
);

-- When it is a worker of queue a, too
reset role;
select teguh.grant_access('teguh_guest', 'worker', '{a}');
set local role teguh_guest;

-- Then
select is(pg_temp.claimed('a'), 3::bigint, 'a worker claims');
select throws_ok($$ select pg_temp.claimed('b') $$, '42501', null, 'not from another queue');
select throws_ok(
  format('select %s', f.call), '42501', null, 'a worker may not call ' || f.call
)
from unnest(array[
  $$teguh.set_limit('a', 'queue', null, '{"max_running": 1}')$$,
  $$teguh.set_limit(null, 'all', null, '{"max_running": 1}')$$,
  $$teguh.pause_queue('a', p_only => '{"key": "k"}')$$,
  $$teguh.requeue_tasks('a', '{"tag": "t"}')$$,
  $$teguh.limit_usage('b')$$
]) as f(call);
select lives_ok('select teguh.ticker()', 'a worker ticks the queues it works on');
select throws_ok($$ select teguh.ticker('b') $$, '42501', null, 'no other');
select throws_ok($$ select teguh.cleanup_tasks('a') $$, '42501', null, 'a worker removes nothing');
select throws_ok($$ select teguh.drop_queue('a') $$, '42501', null, 'and drops nothing');

-- When it is an observer of all queues and nothing else
reset role;
select teguh.revoke_access('teguh_guest');
select teguh.grant_access('teguh_guest', 'observer');
select teguh.create_queue('c');
set local role teguh_guest;

-- Then
select throws_ok(
  $$ select teguh.spawn_task('a', 't', '{}') $$, '42501', null, 'what is revoked is gone'
);
select throws_ok(
  $$ select teguh.get_task_result('c', '00000000-0000-7000-8000-000000000000') $$, 'TG003', null,
  'access to all queues includes those to come'
);

-- When it is admin of one queue
reset role;
select teguh.grant_access('teguh_guest', 'admin', '{a}');
set local role teguh_guest;

-- Then
select lives_ok($$ select teguh.cleanup_tasks('a') $$, 'an admin of a queue cleans it up');
select throws_ok(
  $$ select teguh.create_queue('d') $$, '42501', null, 'an admin of a queue creates none'
);
select throws_ok($$ select teguh.drop_queue('b') $$, '42501', null, 'and drops none');

-- When it is admin of all
reset role;
select teguh.grant_access('teguh_guest', 'admin');
set local role teguh_guest;

-- Then
select lives_ok(
  $$ select teguh.create_queue('d'), teguh.spawn_task('d', 't', '{}') $$,
  'an admin creates queues and may use them'
);
select lives_ok($$ select teguh.drop_queue('d') $$, 'an admin drops queues');

-- When access is taken away
reset role;
select throws_ok(
  $$ select teguh.revoke_access('teguh_guest', 'observer', '{a}') $$, 'TG004', null,
  'access to all queues is not taken away for one'
);
select throws_ok(
  format('select teguh.revoke_access(%L)', current_user), 'TG004', null,
  'nor is what the owner of teguh has'
);
select teguh.revoke_access('teguh_guest', 'admin');
select teguh.revoke_access('teguh_guest');

-- Then
select is_empty(
  $$
    select p.oid::regprocedure
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and has_function_privilege('teguh_guest', p.oid, 'execute')
  $$,
  'nothing is left of it'
);

select throws_ok(
  $$ select teguh.grant_access('nobody at all', 'client') $$, '42704', null,
  'an unknown role is refused'
);
select throws_ok(
  $$ select teguh.grant_access('teguh_guest', 'owner') $$, 'TG005', null,
  'an unknown kind of access is refused'
);
select throws_ok(
  $$ select teguh.grant_access('teguh_guest', 'client', '{a,nowhere}') $$, 'TG001', null,
  'an unknown queue is refused'
);
select is_empty('select * from teguh.grants', 'and nothing was granted by it');

select * from finish();
rollback;
