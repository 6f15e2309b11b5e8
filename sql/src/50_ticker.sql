-- One tick of one queue: take a step in the rotation, build dispatch anew if the queue was
-- restored from a dump, sum up the statistics, deal with schedules and timers that are due, as
-- _bring_template does.  The step comes first, and only when the caller has written nothing yet: it
-- moves a register, and must not go by what may be rolled back.
create or replace function teguh._tick_template(
  p_now   timestamptz,
  p_fresh boolean,
  p_limit integer
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_fired integer;
begin
  if p_fresh then
    perform teguh._turn_template();
    perform teguh._settle_template();
    perform teguh._sum0_template();
    perform teguh._sum1_template();
  end if;
  v_fired := teguh._strike_template(p_now, p_fresh, p_limit);
  return v_fired + teguh._fire_template(p_now, p_limit);
end;
$$;

-- When the ticker last ran, in microseconds since 1970.
create sequence if not exists teguh._ticked minvalue 0 start 0;

comment on sequence teguh._ticked is
  'When the ticker last ran, in microseconds since 1970.';

-- Note that the ticker has run.
create or replace function teguh._set_ticked()
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform setval('teguh._ticked'::regclass, teguh._micros(clock_timestamp()));
end;
$$;

-- Tick one queue or all.
create or replace function teguh.ticker(p_queue_name text default null)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now        timestamptz := teguh.current_time();
  v_fresh      boolean := pg_current_xact_id_if_assigned() is null;
  v_queue_name text;
  v_one        integer;
  v_count      integer := 0;
begin
  perform teguh._check_isolation('ticker');
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('tick', q.queue_name))
  loop
    continue when not teguh._share_queue(v_queue_name);
    execute teguh._call('tick', v_queue_name, 3) into v_one
    using v_now, v_fresh, 10000;
    v_count := v_count + v_one;
  end loop;

  perform teguh._set_ticked();
  return v_count;
end;
$$;

comment on function teguh.ticker(text) is
  'Does for a queue (null: for every queue the caller may tick) what has come due: spawns what is '
  'scheduled, queues sleepers, ends waits and leases that timed out, applies cancellation '
  'policies, takes a step in the rotation of the dispatch tables, builds them anew in a restored '
  'database, notifies. Bounded per call. Returns how many tasks became claimable or changed state. '
  'Claims see to due tasks themselves; rotation needs this called every few seconds or minutes, by '
  'pg_cron or a worker, and does not happen in a transaction that has written before. Raises TG001 '
  'for an unknown queue, 25001 unless the transaction is READ COMMITTED.';

-- Tick all queues again and again, with a commit after each round.
--
-- A procedure that commits cannot pin its search_path: every name is qualified.
create or replace procedure teguh.ticker_loop(p_options jsonb default '{}')
  language plpgsql
as $$
declare
  v_pause pg_catalog.float8;
  v_until pg_catalog.timestamptz;
begin
  perform teguh._check_keys('ticker options', p_options, array['tick_seconds', 'max_seconds']);
  v_pause := coalesce(teguh._number_option(p_options, 'tick_seconds', 0.001, 3600), 0.1);
  v_until := pg_catalog.clock_timestamp() operator(pg_catalog.+) pg_catalog.make_interval(
    secs => coalesce(teguh._number_option(p_options, 'max_seconds', 0, 86400), 55)
  );

  loop
    perform teguh.ticker();
    commit;
    exit when pg_catalog.clock_timestamp() operator(pg_catalog.>=) v_until;
    perform pg_catalog.pg_sleep(v_pause);
  end loop;
end;
$$;

comment on procedure teguh.ticker_loop(jsonb) is
  'Calls ticker() every tick_seconds (default 0.1) for max_seconds (default 55), '
  'committing in between. Raises TG005 for a bad option.';
