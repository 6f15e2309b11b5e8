-- A worker knows its handlers, reads its options, and tells orders from errors.
begin;
select plan(57);

-- Given
create schema shop;
create function shop.order(job teguh.job) returns jsonb language sql return null::jsonb;
create function shop."Ship; it"(job teguh.job) returns jsonb language sql return null::jsonb;
create function shop.charge(jsonb) returns jsonb language sql return $1;
create function shop.either(jsonb) returns jsonb language sql return $1;
create function shop.either(teguh.job, jsonb) returns jsonb language sql return $2;
create function shop.with_job(teguh.job, jsonb) returns jsonb language sql return $2;
select teguh.create_queue('q');

-- Then
select throws_ok(
  $$ select teguh._crew('q') $$, 'TG004', null, 'a queue without handlers is for others'
);
select throws_ok($$ select teguh._crew('nowhere') $$, 'TG001', null, 'an unknown queue is told');

-- When
select teguh.register_handler('q', 'order', 'shop.order');
select teguh.register_handler('q', '*', 'shop."Ship; it"');

-- Then
select is(
  teguh._crew('q'), '{"order": "shop.\"order\"", "*": "shop.\"Ship; it\""}',
  'handlers are known by task name'
);
select is(
  teguh._handler_of(teguh._crew('q'), n.name), n.handler,
  format('%s is handled by %s', n.name, n.handler)
)
from (
  values ('order', 'shop."order"'), ('ship', 'shop."Ship; it"')
) as n(name, handler);
select is(teguh._handler_of('{"a": "shop.a"}', 'b'), null, 'a name may have none');

-- When a handler is somebody else's
grant create on schema shop to teguh_guest;
alter function shop.order owner to teguh_guest;

-- Then
select throws_ok(
  $$ select teguh._crew('q') $$, '42501', null,
  'a function of somebody without the caller''s rights is not run'
);

-- When a function is dropped
select teguh.unregister_handler('q', 'order');
drop function shop."Ship; it";

-- Then
select throws_ok($$ select teguh._crew('q') $$, '42883', null, 'a handler that is gone is told');

-- Given functions for steps
-- Then
select is(
  teguh._step_call(jsonb_build_object('function', n.name)), n.call,
  format('the step %s is called by: %s', n.name, n.call)
)
from (
  values ('shop.charge', 'select shop.charge($1)'), ('shop.with_job', 'select shop.with_job($2, $1)')
) as n(name, call);
select throws_ok(
  format($$ select teguh._step_call(jsonb_build_object('function', %L)) $$, n.name), n.state, null,
  format('%L is no step', n.name)
)
from (
  values
    ('shop.either', 'TG005'), ('shop.order', '42883'), ('shop.nothing', '42883'),
    ('charge', 'TG005'), (null, 'TG005'),
    ('shop.charge($1), pg_sleep(1); --', 'TG005')
) as n(name, state);

-- Given errors
-- Then
select is(
  teguh._read_error('22012', 'division by zero', '', '', 'line 1'),
  '{"do": "fail", "reason": {"name": "22012", "message": "division by zero", "traceback": "line 1"}}',
  'an error fails the run with what it says'
);
select is(
  teguh._read_error('22012', 'm', 'd', 'h', 'c') -> 'reason',
  '{"name": "22012", "message": "m", "detail": "d", "hint": "h", "traceback": "c"}',
  'with detail and hint, if there are'
);
select is(
  teguh._read_error('P0004', 'assertion failed', '{}', '', '') ->> 'do', 'fail',
  'a failed assertion is an error, no order'
);
select is(
  teguh._read_error('P0004', 'an order for teguh.work()', '{"do": "sleep"}', '', ''),
  '{"do": "sleep"}', 'an order is what its detail says'
);

-- Given options
-- Then
select is(
  to_jsonb(teguh._begin_shift(null)) - 'worker_id',
  '{"batch": 1, "lease": 30, "known_only": false, "unknown_delay": 10, "poll_seconds": 1,
    "until": null, "ticks_at": null, "left_to_claim": 2147483647, "pause": null}',
  'every option has a default'
);
select matches(
  (teguh._begin_shift('{}')).worker_id, '^work:[0-9]+$', 'a worker is named after its process'
);
select is(
  to_jsonb(teguh._begin_shift(
    '{"batch": 5, "claim_timeout": 0.5, "known_only": true, "unknown_delay": 3, "limit": 7,
      "poll_seconds": 0.1, "worker_id": "night shift"}'
  )),
  '{"batch": 5, "lease": 0.5, "known_only": true, "unknown_delay": 3, "left_to_claim": 7,
    "poll_seconds": 0.1, "worker_id": "night shift", "until": null, "ticks_at": null,
    "pause": null}',
  'every option can be set'
);
select ok(
  (teguh._begin_shift('{"max_seconds": 60}')).until
  between clock_timestamp() and clock_timestamp() + interval '1 minute',
  'max_seconds are counted from the beginning'
);
select throws_ok(
  format($$ select teguh._begin_shift(%L) $$, n.options), 'TG005', null,
  format('%s is refused', n.options)
)
from unnest(array[
  '[]', '{"max": 1}', '{"limit": 0}', '{"batch": 1.5}', '{"claim_timeout": 0}',
  '{"max_seconds": -1}', '{"poll_seconds": 0}', '{"unknown_delay": 0}', '{"known_only": 1}',
  '{"worker_id": " "}'
]) as n(options);
select throws_ok(
  $$ select teguh._claim_batch('q', '{"*": "shop.order"}', teguh._begin_shift('{"known_only": true}')) $$,
  'TG005', null, 'known_only does not go with a handler for *'
);

-- Given rounds that have claimed something, or nothing
-- Then
select is(
  (teguh._leave_round('q', teguh._begin_shift(n.options), n.claimed)).pause, n.pause::float8,
  format('%s: after %s the pause is %s', n.options, n.claimed, n.pause)
)
from (
  values
    ('{}'::jsonb, 0, null), ('{}', 1, 0), ('{"limit": 2}', 1, 0), ('{"limit": 2}', 2, null),
    ('{"max_seconds": 0}', 1, null), ('{"max_seconds": 60}', 1, 0),
    ('{"max_seconds": 60}', 0, 1), ('{"max_seconds": 60, "poll_seconds": 20}', 0, 20)
) as n(options, claimed, pause);

-- When a task is about to be due
select teguh.spawn_task('q', 'a', '{}', '{"delay_seconds": 9}');

-- Then
select ok(
  (teguh._leave_round('q', teguh._begin_shift('{"max_seconds": 60, "poll_seconds": 20}'), 0)).pause
  between 0.01 and 9,
  'the pause ends when it is'
);
select ok(
  (teguh._leave_round('q', teguh._begin_shift('{"max_seconds": 5, "poll_seconds": 20}'), 0)).pause
  between 4 and 5,
  'or when the time is over'
);
select ok(
  (teguh._begin_round('q', teguh._begin_shift('{}'))).ticks_at > clock_timestamp(),
  'a worker ticks'
);
select is(
  (teguh._begin_round('q', (teguh._begin_round('q', teguh._begin_shift('{}'))))).ticks_at
  < clock_timestamp() + interval '10 seconds', true,
  'every ten seconds'
);

-- Given a run, and its time
set local teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('timed');
select teguh.spawn_task('timed', 'a', '{}', '{"timeout_seconds": 60, "max_attempts": 1}');
create temporary table run as
select (
  'timed', c.task_id, c.run_id, c.task_name, c.params, c.headers, c.attempt, c.failures, null, null,
  '{}'
)::teguh.job as job
from teguh.claim_task('timed', 'w', 600) as c;

-- Then
select is(teguh._begin_pass(r.job, 'shop.order', 1), true, 'a pass begins')
from run as r;
set local teguh.fake_now = '2031-05-01 12:01:00+00';
select is(teguh._begin_pass(r.job, 'shop.order', 1), false, 'no pass begins when its time is over')
from run as r;
select is(
  teguh._carry_out(
    r.job, jsonb_build_object('do', 'await', 'step', 's', 'event', 'e', 'timeout', 0), null, 30
  ),
  '{"s": []}', 'a wait that has timed out gives nothing'
)
from run as r;
select is(
  teguh._carry_out(r.job, '{"do": "step", "step": "t"}', '7', 30), '{"t": [7]}', 'a step gives something'
)
from run as r;
select is(
  teguh._steps_given('timed', (r.job).task_id, (r.job).run_id), '{"s": [], "t": [7]}',
  'so it is for the next worker'
)
from run as r;

-- When there is no handler
select is(teguh._begin_pass(r.job, null, 5), false, 'nor for a task without a handler')
from run as r;

-- Then
select results_eq(
  $$ select t.state, t.available_at, t.failures from teguh.t_timed as t $$,
  $$ values ('sleeping', timestamptz '2031-05-01 12:01:05+00', 0) $$,
  'which is handed back'
);
select is(teguh._begin_pass(r.job, 'shop.order', 1), false, 'nor for a run that is not held')
from run as r;
select is(
  teguh._carry_out(r.job, '{"do": "complete"}', null, null), null,
  'a run that is not held cannot be completed'
)
from run as r;
select is(
  (select t.state from teguh.t_timed as t), 'sleeping', 'and nothing happens to it'
);

select * from finish();
rollback;
