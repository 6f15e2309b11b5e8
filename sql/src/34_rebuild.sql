-- Build the dispatch tables of a queue anew from its tasks.  Returns how many tasks wait
-- for a worker or a time.
--
-- All of it happens under exclusive locks: nobody sees a queue half built.  The ring
-- stays where it is, because a register does not roll back; both segments are empty.
create or replace function teguh._remake_template()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint := 0;
  v_after uuid := uuid '00000000-0000-0000-0000-000000000000';
  v_batch record;
begin
  lock table
    teguh.t_template, teguh.p0_template, teguh.p1_template, teguh.k0_template, teguh.k1_template,
    teguh.n0_template, teguh.n1_template
    in access exclusive mode;
  perform teguh._init_template();
  perform teguh._census_template();
  perform teguh._bank0_template();
  perform teguh._bank1_template();
  truncate
    teguh.p0_template, teguh.p1_template, teguh.k0_template, teguh.k1_template,
    teguh.n0_template, teguh.n1_template;
  perform setval('teguh.plan_template'::regclass, teguh._beyond());
  perform setval('teguh.agenda_template'::regclass, 0);
  delete from teguh.l_template;
  update teguh.t_template as t
  set laned = false
  where t.laned;

  loop
    v_batch := teguh._alive_template(v_after, 10000);
    exit when v_batch.last is null;
    v_after := v_batch.last;
    v_count := v_count
               + coalesce(cardinality(v_batch.ready), 0)
               + coalesce(cardinality(v_batch.sleepers), 0);
    perform teguh._push_template('r', v_batch.ready, v_batch.ready_turns);
    perform teguh._push_template('s', v_batch.sleepers, v_batch.sleeper_turns, v_batch.due_at);
    perform teguh._push_template('l', v_batch.leased, v_batch.lease_turns, v_batch.leases);
    perform teguh._push_template(
      'l', v_batch.limited, teguh._fill(0, v_batch.limited), v_batch.limits
    );
  end loop;

  perform teguh._tell_template(w.task_id)
  from teguh.w_template as w
  where w.event_name = '$children'
    or starts_with(w.event_name, '$message:');

  update teguh.queues as q
  set built_for = teguh._home('teguh.p0_template'::regclass)
  where q.queue_name = substr('_template', 2);
  return v_count;
end;
$$;

-- The next tasks, in the order of their ids, that dispatch has to know of: those that are
-- ready, that sleep until a time, that a worker holds, that have a deadline.
create or replace function teguh._alive_template(
  p_after           uuid,
  p_limit           integer,
  out last          uuid,
  out ready         uuid[],
  out ready_turns   integer[],
  out sleepers      uuid[],
  out sleeper_turns integer[],
  out due_at        timestamptz[],
  out leased        uuid[],
  out lease_turns   integer[],
  out leases        timestamptz[],
  out limited       uuid[],
  out limits        timestamptz[]
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  with batch as materialized (
    select t.task_id, t.turn, t.state, t.available_at, t.lease_expires_at, t.deadline_at
    from teguh.t_template as t
    where t.task_id > p_after
    order by t.task_id
    limit p_limit
  )

  select
    (select t.task_id from batch as t order by t.task_id desc limit 1),
    array_agg(b.task_id) filter (where b.state = 'pending'),
    array_agg(b.turn) filter (where b.state = 'pending'),
    array_agg(b.task_id) filter (where b.state = 'sleeping' and b.available_at is not null),
    array_agg(b.turn) filter (where b.state = 'sleeping' and b.available_at is not null),
    array_agg(b.available_at) filter (where b.state = 'sleeping' and b.available_at is not null),
    array_agg(b.task_id) filter (where b.state = 'running'),
    array_agg(b.turn) filter (where b.state = 'running'),
    array_agg(coalesce(b.lease_expires_at, 'infinity')) filter (where b.state = 'running'),
    array_agg(b.task_id) filter (where b.limited),
    array_agg(b.deadline_at) filter (where b.limited)
  into
    last, ready, ready_turns, sleepers, sleeper_turns, due_at, leased, lease_turns, leases,
    limited, limits
  from (
    select
      t.*,
      t.deadline_at is not null and t.state in ('pending', 'running', 'sleeping') as limited
    from batch as t
  ) as b;
end;
$$;

-- What dispatch was built for: this database and table.  Transaction ids, which the
-- dispatch tables are made of, mean nothing in the copy that a restored dump is.
create or replace function teguh._home(p_table regclass)
  returns bigint
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended(d.oid::text || '/' || p_table::oid::text, 0)
  from pg_database as d
  where d.datname = current_database();
$$;

-- Build dispatch anew if the queue was brought here by a dump or a copy.  If the locks are
-- not to be had, a later call will do it.
create or replace function teguh._settle_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '100ms'
as $$
begin
  perform from teguh.queues as q
  where q.queue_name = substr('_template', 2)
    and q.built_for = teguh._home('teguh.p0_template'::regclass)
    and pg_sequence_last_value('teguh.ring_template'::regclass) is not null;
  if not found then
    perform teguh._remake_template();
  end if;
exception
  when lock_not_available then
    return;
end;
$$;

-- Build dispatch anew.
create or replace function teguh.rebuild_dispatch(p_queue_name text)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '100ms'
as $$
declare
  v_call  text := teguh._call('remake', p_queue_name, 0);
  v_count bigint;
begin
  for v_try in 1..300 loop
    begin
      execute v_call into v_count;
      return v_count;
    exception
      when lock_not_available then
        perform pg_sleep(0.1 * random());
    end;
  end loop;

  perform teguh._refuse_busy(p_queue_name);
  return null;
end;
$$;

comment on function teguh.rebuild_dispatch(text) is
  'Builds the dispatch tables of a queue anew from its tasks: what is ready, what sleeps '
  'until when, what is leased until when. ticker() does so by itself in a database '
  'that was restored from a dump; call this after a copy by other means, or when those '
  'tables were damaged. Waits up to a minute for transactions that are using the '
  'queue. Returns how many tasks wait for a worker or a time. Raises TG001 for an unknown '
  'queue, 55P03 if it stays busy.';

-- Write down what a queue from before 0.2.0 lacks: which tasks ended without success, and the
-- timers of leases without end, by which their runs are found.  Called while a version is
-- being installed; where it was already, nothing lacks.
create or replace function teguh._recap_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_ids uuid[];
  v_turns    integer[];
begin
  perform from teguh.versions as v
  where v.version = teguh.version();
  if found or exists (select from teguh.d_template) then
    return;
  end if;

  insert into teguh.d_template as d (state, task_id, ended_at)
  select t.state, t.task_id, t.finished_at
  from teguh.t_template as t
  where t.state in ('failed', 'cancelled');

  select array_agg(t.task_id), array_agg(t.turn) into v_task_ids, v_turns
  from teguh.t_template as t
  where t.state = 'running'
    and t.lease_expires_at is null;
  perform teguh._push_template(
    'l', v_task_ids, v_turns, array['infinity'::timestamptz]
  );
end;
$$;
