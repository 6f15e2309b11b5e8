-- An order is charged, packed and shipped by the database alone, which is killed half-way.
--
--   psql -f examples/order.sql
--
-- in a database with teguh.  It makes a schema and a queue `order_story`, anew each time.  Workers
-- are psql processes of their own, which connect as this one does.

\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned
\setenv PGHOST :HOST
\setenv PGPORT :PORT
\setenv PGUSER :USER
\setenv PGDATABASE :DBNAME
set client_min_messages = warning;

drop schema if exists order_story cascade;
select count(teguh.drop_queue(q.queue_name)) as dropped
from teguh.list_queues() as q
where q.queue_name = 'order_story' \gset

create schema order_story;

-- What the business knows, and how often a step was tried: a sequence does not roll back.
create table order_story.ledger (number integer not null, step text not null, what text not null);
create sequence order_story.charge minvalue 0 start 0;
create sequence order_story.pack minvalue 0 start 0;
create sequence order_story.ship minvalue 0 start 0;

create function order_story.write(p_number jsonb, p_step text, p_what text) returns void
language plpgsql as $$
begin
  perform nextval('order_story.' || p_step);
  insert into order_story.ledger values (p_number::integer, p_step, p_what);
end;
$$;

-- Take the money.  The first time the card terminal gives up after the ledger was written.
create function order_story.charge(job teguh.job, params jsonb) returns jsonb
language plpgsql as $$
begin
  perform order_story.write(params -> 'number', 'charge', 'took ' || (params ->> 'amount'));
  if job.failures = 0 then
    raise exception 'the card terminal did not answer';
  end if;
  return jsonb_build_object('receipt', params -> 'number');
end;
$$;

-- Pack the order.  The very first time the power goes out.
create function order_story.pack(params jsonb) returns jsonb
language plpgsql as $$
begin
  perform order_story.write(params -> 'number', 'pack', 'packed one box');
  if currval('order_story.pack') = 0 then
    perform pg_terminate_backend(pg_backend_pid());
  end if;
  return 'true';
end;
$$;

-- Hand the parcel over.
create function order_story.ship(job teguh.job, courier jsonb) returns jsonb
language plpgsql as $$
begin
  perform order_story.write(job.params -> 'number', 'ship', 'handed to ' || (courier ->> 'name'));
  return jsonb_build_object('parcel', job.params -> 'number');
end;
$$;

-- The workflow.
create function order_story.place_order(job teguh.job) returns jsonb
language plpgsql as $$
declare
  v_receipt jsonb;
  v_courier jsonb;
begin
  v_receipt := teguh.step(job, 'charge', 'order_story.charge', job.params);
  perform teguh.sleep_for(job, 'rest', 1);
  perform teguh.step(job, 'pack', 'order_story.pack', job.params);
  v_courier := teguh.await(job, 'courier', 'courier:' || (job.params ->> 'number'));
  return v_receipt || teguh.step(job, 'ship', 'order_story.ship', v_courier);
end;
$$;

-- A worker: a lease of a second, and at most so many times that an order is taken up.
create procedure order_story.worker(p_limit integer)
language plpgsql as $$
begin
  call teguh.work('order_story', jsonb_build_object(
    'limit', p_limit, 'max_seconds', 30, 'poll_seconds', 0.1, 'claim_timeout', 1
  ));
end;
$$;

do $$
begin
  perform teguh.create_queue('order_story');
  perform teguh.register_handler('order_story', 'order', 'order_story.place_order');
end;
$$;

\echo '\nAn order is charged, packed and shipped; its worker is killed half-way.\n'
select task_id
from teguh.spawn_task(
  'order_story', 'order', '{"number": 42, "amount": "30.00"}',
  '{"max_attempts": 5, "retry_strategy": {"kind": "fixed", "base_seconds": 0.5}}'
) \gset
\echo 'order 42: charge, rest a second, pack, await the courier, ship'

\echo 'worker 1 charges the card; the terminal times out, and what was written is taken back'
call order_story.worker(1);
\echo 'worker 1 retries: charged; the order sleeps, and nobody holds it'
call order_story.worker(1);
\echo 'worker 1 is woken, begins to pack, and is killed in the middle of it:'
\! psql --no-psqlrc --quiet --command "call order_story.worker(1)" 2>&1 | head -n 1

\echo 'worker 2 takes over when the lease ends: charging is remembered, packing starts afresh'
call order_story.worker(1);
\echo 'the order awaits its courier; another process emits the event with one SELECT'
\setenv EMIT 'select teguh.emit_event($$order_story$$, $$courier:42$$, $${\"name\": \"Ayu\"}$$)'
\! echo "$EMIT" | psql --no-psqlrc --quiet --output=/dev/null
\echo 'worker 2 ships'
call order_story.worker(1);

select state || ' after ' || failures || ' failed runs: ' || completed_payload as outcome
from teguh.get_task_result('order_story', :'task_id') \gset
\echo 'the order is' :outcome '\n'

\pset tuples_only off
\pset format aligned
\pset footer off
select s.step, 1 + s.last_value as tried, (
  select count(*) from order_story.ledger as l where l.step = s.step
) as "in the ledger"
from (
  select 'charge' as step, last_value from order_story.charge
  union all select 'pack', last_value from order_story.pack
  union all select 'ship', last_value from order_story.ship
) as s;

do $$
begin
  if (select array_agg(l.step order by l.step) from order_story.ledger as l)
    is distinct from array['charge', 'pack', 'ship']
  then
    raise exception 'this is wrong: every step should be in the ledger exactly once';
  end if;
end;
$$;
\echo 'Every step happened exactly once.\n'
