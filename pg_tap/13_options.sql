-- Options are checked at the call: an unknown key or a bad value raises TG005.
begin;
select plan(107);

-- Given a queue, and each way to get an option of spawn_task wrong
select teguh.create_queue('q');

create temporary table bad (place serial, options jsonb, why text);

insert into bad (options, why)
values
  ('[]', 'options that are an array are refused'),
  ('"x"', 'options that are a string are refused'),
  ('{"max_attempt": 3}', 'a misspelt key is refused, not ignored'),
  ('{"queue": "q"}', 'an option of another library is refused'),
  ('{"priority": "high"}', 'a priority is a number'),
  ('{"priority": 1.5}', 'a priority is a whole number'),
  ('{"priority": 32768}', 'a priority has a greatest'),
  ('{"priority": -32769}', 'a priority has a least'),
  ('{"priority": true}', 'a priority is no boolean'),
  ('{"key": 7}', 'a key is a string'),
  ('{"key": ""}', 'a key is not blank'),
  ('{"key": " "}', 'a key is not only spaces'),
  ('{"key": ["k"]}', 'a key is no array'),
  ('{"headers": []}', 'headers must be an object'),
  ('{"headers": "a"}', 'headers must not be a string'),
  ('{"max_attempts": 0}', 'max_attempts is at least 1'),
  ('{"max_attempts": -1}', 'max_attempts is not negative'),
  ('{"max_attempts": 1.5}', 'max_attempts is a whole number'),
  ('{"max_attempts": "3"}', 'max_attempts is not a string'),
  ('{"max_attempts": 3000000000}', 'max_attempts fits an integer'),
  ('{"max_attempts": 1e400}', 'max_attempts beyond all measure is refused'),
  ('{"retry_strategy": "fixed"}', 'a retry strategy is an object'),
  ('{"retry_strategy": {}}', 'a retry strategy has a kind'),
  ('{"retry_strategy": {"kind": "sometimes"}}', 'the kind of a retry strategy is known'),
  ('{"retry_strategy": {"kind": 1}}', 'the kind of a retry strategy is a string'),
  ('{"retry_strategy": {"kind": "fixed", "base": 1}}', 'a retry strategy has no unknown key'),
  ('{"retry_strategy": {"kind": "fixed", "base_seconds": -1}}', 'base_seconds is not negative'),
  ('{"retry_strategy": {"kind": "fixed", "base_seconds": "1"}}', 'base_seconds is a number'),
  ('{"retry_strategy": {"kind": "fixed", "base_seconds": 1e13}}', 'base_seconds has a limit'),
  ('{"retry_strategy": {"kind": "exponential", "factor": -0.5}}', 'factor is at least 0'),
  ('{"retry_strategy": {"kind": "exponential", "factor": 1e7}}', 'factor has a limit'),
  ('{"retry_strategy": {"kind": "exponential", "max_seconds": -1}}', 'max_seconds is positive'),
  ('{"retry_strategy": {"kind": "exponential", "jitter": 1.1}}', 'jitter is at most 1'),
  ('{"retry_strategy": {"kind": "exponential", "jitter": -0.1}}', 'jitter is not negative'),
  ('{"cancellation": []}', 'cancellation is an object'),
  ('{"cancellation": {"max_wait": 1}}', 'cancellation has no unknown key'),
  ('{"cancellation": {"max_delay": 0}}', 'max_delay is positive'),
  ('{"cancellation": {"max_delay": -0.5}}', 'max_delay is not negative'),
  ('{"cancellation": {"max_duration": "1"}}', 'max_duration is a number'),
  ('{"cancellation": {"max_duration": 0}}', 'max_duration is positive'),
  ('{"idempotency_key": ""}', 'an idempotency key is not blank'),
  ('{"idempotency_key": "  "}', 'an idempotency key is not only spaces'),
  ('{"idempotency_key": 7}', 'an idempotency key is a string'),
  ('{"idempotency_mismatch": "ignore"}', 'idempotency_mismatch is error or return'),
  ('{"idempotency_mismatch": true}', 'idempotency_mismatch is a string'),
  ('{"delay_seconds": -1}', 'delay_seconds is not negative'),
  ('{"delay_seconds": "1 hour"}', 'delay_seconds is a number'),
  ('{"delay_seconds": 1e13}', 'delay_seconds has a limit'),
  ('{"available_at": 5}', 'available_at is a string'),
  ('{"available_at": "soon"}', 'available_at is a timestamp'),
  ('{"available_at": "2031-02-30 00:00+00"}', 'available_at is a day that exists'),
  ('{"available_at": "2031-01-01 00:00 Nowhere/City"}', 'available_at is in a zone that exists'),
  ('{"available_at": "2031-01-01T00:00:00Z", "delay_seconds": 5}',
   'available_at and delay_seconds are not given together');

insert into bad (options, why)
select jsonb_build_object('idempotency_key', repeat('k', 1025)), 'an idempotency key has a limit'
union all
select jsonb_build_object('key', repeat('k', 1025)), 'a key has a limit';

-- Then
select throws_ok(
  format($$ select teguh.spawn_task('q', 'a', '{}', %L) $$, b.options), 'TG005', null, b.why
)
from bad as b
order by b.place;

select is_empty(
  $$ select * from teguh.t_q $$,
  'no refused spawn left a task'
);

-- Given each way to get a policy wrong
truncate bad;
insert into bad (options, why)
values
  ('[]', 'a policy is an object'),
  ('{"notified": "off"}', 'a policy has no unknown key'),
  ('{"notify": "sometimes"}', 'the notify policy is known'),
  ('{"notify": 1}', 'the notify policy is a string'),
  ('{"cleanup_ttl": -1}', 'cleanup_ttl is not negative'),
  ('{"cleanup_ttl": "1 day"}', 'cleanup_ttl is a number'),
  ('{"cleanup_limit": 0}', 'cleanup_limit is at least 1'),
  ('{"cleanup_limit": 2.5}', 'cleanup_limit is a whole number'),
  ('{"default_max_attempts": 0}', 'default_max_attempts is at least 1'),
  ('{"default_retry_strategy": {"kind": "often"}}', 'default_retry_strategy is checked');

-- Then
select throws_ok(
  format($$ select teguh.create_queue('p', %L) $$, b.options), 'TG005', null, b.why
)
from bad as b
order by b.place;

select is_empty(
  $$ select q.queue_name from teguh.list_queues() as q where q.queue_name = 'p' $$,
  'no refused policy left a queue'
);

-- Given options that are absent, null or at their limits
-- Then
select lives_ok(
  $$ select teguh.spawn_task('q', 'a', '{}', null) $$,
  'options may be null'
);

select lives_ok(
  $$
    select teguh.spawn_task('q', 'a', '{}', '{
      "headers": null, "retry_strategy": null, "max_attempts": null, "cancellation": null,
      "idempotency_key": null, "idempotency_mismatch": null, "available_at": null,
      "delay_seconds": null, "priority": null, "key": null
    }')
  $$,
  'every option may be JSON null, which is as if it was absent'
);

select lives_ok(
  $$
    select teguh.spawn_task('q', 'a', '{}', '{
      "max_attempts": 2147483647, "delay_seconds": 1e12,
      "retry_strategy": {"kind": "exponential", "base_seconds": 1e12, "factor": 1e6,
        "max_seconds": 1e12, "jitter": 1},
      "cancellation": {"max_delay": 1e12, "max_duration": 1e12}
    }')
  $$,
  'every option may be at its limit'
);

select lives_ok(
  $$ select teguh.spawn_task('q', 'a', '{}', '{"available_at": "infinity"}') $$,
  'a task may be delayed for ever'
);

select lives_ok(
  $$ select teguh.spawn_task('q', 'a', '{}', '{"available_at": "294276-12-31 00:00+00"}') $$,
  'a task may be delayed to the last day of the calendar'
);

select lives_ok(
  $$ select teguh.spawn_task('q', 'a', '{}', '{"delay_seconds": 1e-400}') $$,
  'a delay too small to be one is none'
);

-- Given names
-- Then
select throws_ok(
  $$ select teguh.spawn_task('q', ' ', '{}') $$,
  'TG005', null,
  'a task has a name'
);

select throws_ok(
  $$ select teguh.spawn_task('q', null, '{}') $$,
  'TG005', null,
  'a task''s name is not null'
);

select throws_ok(
  $$ select teguh.spawn_task('q', repeat('n', 1025), '{}') $$,
  'TG005', null,
  'a task''s name has a limit'
);

select throws_ok(
  $$ select teguh.release_run('q', gen_random_uuid(), 'NaN') $$,
  'TG005', null,
  'a duration is a number'
);

-- Given what only a fresh snapshot per statement can do
-- Then
select lives_ok(
  $$ select teguh._check_isolation('claim_task') $$,
  'READ COMMITTED is fine for every function'
);

select is(
  (
    select array_agg(p.proname::text order by p.proname)
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and p.prosrc ~ 'perform teguh._check_isolation'
  ),
  '{await_children,await_event,claim_any,claim_task,emit_event,receive_message,set_limit,ticker}',
  'eight functions ask for READ COMMITTED'
);

-- Given tags and ids that say where a task belongs
-- Then
select throws_ok(
  format($$ select teguh._check_spawn('q', 'a', '1', %L, '{}') $$, n.options),
  'TG005', null,
  format('a spawn refuses %s', n.options)
)
from unnest(array[
  '{"tags": "a"}', '{"tags": {"a": 1}}', '{"tags": ["a", 1]}', '{"tags": ["a", null]}',
  '{"tags": ["a", " "]}', '{"correlation_id": ""}', '{"correlation_id": 7}',
  '{"parent_task_id": "a"}', '{"parent_task_id": 7}', '{"workflow_run_id": "a"}',
  '{"parent_run_id": "a"}', '{"timeout_seconds": 0}', '{"timeout_seconds": "1"}',
  '{"ttl_seconds": 0}', '{"deadline_at": "soon"}', '{"on_expired": "a"}',
  '{"on_expired": {"params": 1}}', '{"on_expired": {"task_name": "a", "x": 1}}',
  '{"on_expired": {"task_name": "a", "options": {"x": 1}}}'
]) as n(options);

select is(
  (teguh._check_spawn('q', 'a', '1', n.options, '{}')).tags, null,
  format('%s gives no tags', n.options)
)
from unnest(array['{}', '{"tags": null}', '{"tags": []}']::jsonb[]) as n(options);

select is(
  (teguh._check_spawn('q', 'a', '1', '{"tags": ["b", "a"]}', '{}')).tags, '{b,a}',
  'tags stay in their order'
);

select results_eq(
  format(
    $$ select s.priority, s.flow_key from teguh._check_spawn('q', 'a', '1', %L, '{}') as s $$, n.options
  ),
  format('values (%L::smallint, %L)', n.priority, n.key),
  format('%s is priority %s and key %s', n.options, n.priority, n.key)
)
from (
  values
    ('{}', null, null), ('{"priority": 0}', null, null), ('{"priority": 32767}', 32767, null),
    ('{"priority": -32768}', -32768, null), ('{"priority": 2.0, "key": " k "}', 2, ' k ')
) as n(options, priority, key);

select * from finish();
rollback;
