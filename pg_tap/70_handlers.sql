-- Handlers are SQL functions; outside of work() their steps say so and do nothing.
begin;
select plan(42);
set local teguh.fake_now = '2031-05-01 12:00:00+00';

-- Given
create schema shop;
create function shop.order(job teguh.job) returns jsonb language sql return null::jsonb;
create function shop.strange(job text) returns jsonb language sql return null::jsonb;
create function shop.order_text(job teguh.job) returns text language sql return null::text;
create function shop.orders(job teguh.job) returns setof jsonb language sql as 'select null::jsonb';
create function shop."Ship; it"(job teguh.job) returns jsonb language sql return null::jsonb;
create function shop.charge(jsonb) returns jsonb language sql return $1;
create procedure shop.proceed(job teguh.job) language sql as 'select 1';
select teguh.create_queue('q');
select teguh.create_queue('other');

-- When handlers are registered
select teguh.register_handler('q', 'order', 'shop.order');
select teguh.register_handler('q', '*', 'shop . "Ship; it"');
select teguh.register_handler('other', 'order', 'shop.order');

-- Then
select results_eq(
  $$ select h.queue_name, h.task_name, h.function_name, h.registered_at from teguh.list_handlers('q') as h $$,
  $$
    values
      ('q', '*', 'shop."Ship; it"', timestamptz '2031-05-01 12:00:00+00'),
      ('q', 'order', 'shop."order"', timestamptz '2031-05-01 12:00:00+00')
  $$,
  'handlers are listed by task name, each function as it is to be called'
);

select is(
  (select count(*) from teguh.list_handlers()), 3::bigint,
  'they are listed for all queues'
);

-- When one is registered again, and one is taken away
select teguh.register_handler('q', 'order', 'shop."Ship; it"');

-- Then
select is(
  (select h.function_name from teguh.list_handlers('q') as h where h.task_name = 'order'),
  'shop."Ship; it"', 'registering a handler again replaces it'
);
select is(teguh.unregister_handler('q', 'order'), true, 'unregistering says that there was one');
select is(teguh.unregister_handler('q', 'order'), false, 'and that there was none');
select is(
  (select array_agg(h.task_name) from teguh.list_handlers('q') as h), '{*}',
  'what is unregistered is gone'
);

-- Given what is no handler
-- Then
select throws_ok(
  format($$ select teguh.register_handler('q', 'a', %L) $$, n.name), 'TG005', null,
  format('a handler is not named %L', n.name)
)
from unnest(array[
  null, '', 'order', 'shop.', '.order', 'a.shop.order', 'shop.order(teguh.job)', 'shop.order; --',
  'shop."order'
]) as n(name);

create function pg_temp.detail(p_function text)
  returns text
  language plpgsql
as $$
declare
  v_detail text;
begin
  perform teguh.register_handler('q', 'a', p_function);
  return null;
exception when undefined_function then
  get stacked diagnostics v_detail = pg_exception_detail;
  return v_detail;
end;
$$;

select results_eq(
  $$
    select pg_temp.detail(n.name) from unnest(array['shop.nothing', 'shop.order_text']) as n(name)
  $$,
  array[
    'There is none of that name.', 'There is: shop.order_text(teguh.job) returning text.'
  ],
  'what there is of that name is said'
);

select throws_ok(
  format($$ select teguh.register_handler('q', 'a', %L) $$, n.name), '42883', null,
  format('%s is no handler: %s', n.name, n.reason)
)
from (
  values
    ('shop.nothing', 'it does not exist'), ('nowhere.order', 'its schema does not exist'),
    ('shop.strange', 'it takes text'), ('shop.order_text', 'it returns text'),
    ('shop.orders', 'it returns a set'), ('shop.proceed', 'it is a procedure'),
    ('shop.charge', 'it is a step')
) as n(name, reason);

select throws_ok(
  $$ select teguh.register_handler('q', ' ', 'shop.order') $$, 'TG005', null,
  'a handler is for a task'
);
select throws_ok(
  $$ select teguh.register_handler('nowhere', 'a', 'shop.order') $$, 'TG001', null,
  'a handler is for a queue'
);
select throws_ok(
  $$ select teguh.unregister_handler('nowhere', 'a') $$, 'TG001', null,
  'unregistering knows its queues'
);
select throws_ok(
  $$ select teguh.list_handlers('nowhere') $$, 'TG001', null,
  'so does the list'
);

-- When a queue is dropped
select teguh.drop_queue('other');

-- Then
select is_empty(
  $$ select * from teguh.handlers as h where h.queue_name = 'other' $$,
  'the handlers of a queue go with it');

-- Given no pass of a handler
-- Then
select throws_ok(
  n.call, 'TG004', null, format('outside of a handler there is no %s', n.call)
)
from unnest(array[
  $$ select teguh.step(null, 'a', 'shop.charge') $$, $$ select teguh.sleep_for(null, 'a', 1) $$,
  $$ select teguh.sleep_until(null, 'a', now()) $$, $$ select teguh.await(null, 'a', 'e') $$,
  $$ select teguh.receive(null, 'a', 't') $$, $$ select teguh.children(null, 'a', '[]') $$
]) as n(call);

-- When a pass begins
select set_config('teguh.steps', '{}', true);

-- Then
select is(
  array[
    teguh._number_step('a'), teguh._number_step('b,"c'), teguh._number_step('a'),
    teguh._number_step('a'), teguh._number_step('b,"c')
  ],
  array['a', 'b,"c', 'a#2', 'a#3', 'b,"c#2'],
  'names that come again are numbered'
);
select throws_ok(
  $$ select teguh._number_step('a#2') $$, 'TG005', null,
  'a name that looks numbered is refused'
);
select is(
  teguh.step(row('q', null, null, 'a', null, null, 1, 0, null, null, '{"s": [7]}'), 's', 'x.y'),
  '7',
  'a step gives what it gave before'
);
select throws_ok(
  $$ select teguh.step(row('q', null, null, 'a', null, null, 1, 0, null, null, '{}'), 's', 'x.y') $$,
  'P0004', 'an order for teguh.work()',
  'one that has given nothing raises an order'
);
select throws_ok(
  n.call, n.state, null, format('%s is refused', n.call)
)
from (
  values
    ($$ select teguh.sleep_for(null, 'a', -1) $$, 'TG005'),
    ($$ select teguh.sleep_until(null, 'a', null) $$, '22004'),
    ($$ select teguh.await(null, 'a', '$children') $$, 'TG005'),
    ($$ select teguh.await(null, 'a', 'e', -1) $$, 'TG005')
) as n(call, state);

select * from finish();
rollback;
