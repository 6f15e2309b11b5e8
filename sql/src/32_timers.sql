-- Collect the timers of one kind that have come due in a segment, up to p_limit,
-- and move that kind's timer position past them.
--
-- What is written must stay true: every timer at or before the position, visible
-- now or later, was collected by a transaction that commits with it, unless the
-- transaction that set it is in "late".  Those were open when the position
-- moved; when one has ended, its timers are looked for once.
--
-- A transaction that gets its id after the clock was set notes the timers that it sets
-- behind it.  So ids from before are all that matter: those below our own, if we have none
-- yet, or else those that a new snapshot is made to list.  If somebody else is just about
-- to set the clock, the position stays, and sleepers that were collected and claimed are
-- passed over instead.
create or replace function teguh._due0_template(
  p_kind  "char",
  p_now   timestamptz,
  p_limit integer
)
  returns teguh._timer[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_moves    boolean;
  v_n        bigint;
  v_snapshot pg_snapshot;
  v_from     teguh.k0_template;
  v_to       teguh.k0_template;
  v_due      teguh._timer[];
  v_rows     bigint;
begin
  if not teguh._any0_template(p_kind, p_now, teguh._last0_template(p_kind)) then
    return '{}';
  end if;

  -- in this order: whoever sets a timer with a clock behind ours then either has an
  -- open transaction in the snapshot, or is seen in the position read after it, or
  -- finds the clock, and goes back behind this position
  v_moves := teguh._wind_template(p_now);
  if v_moves and pg_current_xact_id_if_assigned() is not null then
    perform teguh._raise_xmax();
  end if;
  v_n := nextval('teguh.seq_template'::regclass);
  v_snapshot := pg_current_snapshot();
  v_from := teguh._last0_template(p_kind);

  select
    array_agg(row(u.task_id, u.turn)::teguh._timer order by d.due_at, d.seq),
    count(distinct d.seq)
  into v_due, v_rows
  from (
    select p.task_id, p.turn, p.more_ids, p.more_turns, p.due_at, p.seq
    from teguh.p0_template as p
    where p.kind = p_kind
      and p.kind <> 'r'
      and (p.due_at, p.seq) > (v_from.due_at, v_from.seq)
      and p.due_at <= p_now
      and (v_moves or p_kind = 'l' or exists (
        select from teguh.t_template as t
        where t.task_id = p.task_id
          and p.turn in (-1, t.turn)
          and t.state = 'sleeping'
        offset 0
      ))
    order by p.due_at, p.seq
    limit p_limit
  ) as d
  cross join lateral unnest(d.task_id || d.more_ids, d.turn || d.more_turns) as u(task_id, turn);

  if not v_moves then
    return coalesce(v_due, '{}') || teguh._miss0_template(v_from, v_snapshot);
  end if;

  v_to.due_at := greatest(v_from.due_at, p_now);
  v_to.seq := 9223372036854775807;
  if v_rows = p_limit then
    select p.due_at, p.seq into v_to.due_at, v_to.seq
    from teguh.p0_template as p
    where p.kind = p_kind
      and p.kind <> 'r'
      and (p.due_at, p.seq) > (v_from.due_at, v_from.seq)
    order by p.due_at, p.seq
    limit 1 offset p_limit - 1;
  end if;
  perform teguh._pass0_template(v_n, p_kind, v_snapshot, v_from, v_to);

  return coalesce(v_due, '{}') || teguh._miss0_template(v_from, v_snapshot);
end;
$$;

-- Have new snapshots list every transaction that is open and has an id by now, newer ones than
-- ours, too: snapshots reach up to the newest id that has ended, so give one to a subtransaction,
-- by a message that goes nowhere, and roll it back.
create or replace function teguh._raise_xmax()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_logical_emit_message(true, 'teguh', '');
  raise sqlstate 'TG000';
exception
  when sqlstate 'TG000' then
    null;
end;
$$;

-- Set the clock by which timer positions are moved to a moment, unless it is past it.  The clock
-- never goes back: one at a time sets it, under a lock that is given up at once whatever happens.
-- False if that is somebody else.
create or replace function teguh._wind_template(p_now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now    bigint := teguh._micros(p_now);
  v_number bigint := hashtextextended('teguh.clock_template', 0);
  v_locked boolean := false;
begin
  if v_now <= pg_sequence_last_value('teguh.clock_template'::regclass) then
    return true;
  end if;

  begin
    v_locked := pg_try_advisory_lock(v_number);
    if not v_locked then
      return false;
    end if;
    if v_now > pg_sequence_last_value('teguh.clock_template'::regclass) then
      perform setval('teguh.clock_template'::regclass, v_now);
    end if;
    v_locked := not pg_advisory_unlock(v_number);
  exception
    when others or query_canceled then
      if v_locked then
        perform pg_advisory_unlock(v_number);
      end if;
      raise;
  end;

  return true;
end;
$$;

-- The latest timer position of one kind, or before it what the position does not account for
-- because it was set with a clock behind: by its own transaction, by later ones, and by those in
-- "late". The beginning of time if there is none.
create or replace function teguh._last0_template(p_kind "char")
  returns teguh.k0_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last  teguh.k0_template;
  v_slow  "char" := upper(p_kind::text);
  v_early timestamptz;
begin
  select k.* into v_last
  from teguh.k0_template as k
  where k.kind = p_kind
  order by k.kind desc, k.n desc
  limit 1;
  if not found then
    v_last.kind := p_kind;
    v_last.seq := 0;
    v_last.due_at := '-infinity';
    return v_last;
  end if;

  v_early := least(
    (
      select min(k.due_at)
      from teguh.k0_template as k
      where k.kind = v_slow
        and k.n >= v_last.xid::text::bigint
    ),
    case when v_last.late is not null then (
      select min(k.due_at)
      from unnest(v_last.late) as l
      join teguh.k0_template as k on k.kind = v_slow and k.n = l.xid::text::bigint
    ) end
  );
  if v_early <= v_last.due_at then
    v_last.due_at := v_early - interval '1 microsecond';
    v_last.seq := 0;
  end if;
  return v_last;
end;
$$;

-- Whether there is a timer to collect after a position, or may be one before it.
create or replace function teguh._any0_template(
  p_kind "char",
  p_now  timestamptz,
  p_from teguh.k0_template
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform from teguh.p0_template as p
  where p.kind = p_kind
    and p.kind <> 'r'
    and (p.due_at, p.seq) > (p_from.due_at, p_from.seq)
    and p.due_at <= p_now
  order by p.due_at, p.seq
  limit 1;
  return found or exists (
    select from unnest(p_from.late) as l
    where pg_visible_in_snapshot(l.xid, pg_current_snapshot())
  );
end;
$$;

-- The timers before a position whose transactions were open when it moved, and have
-- ended by now.
create or replace function teguh._miss0_template(
  p_from     teguh.k0_template,
  p_snapshot pg_snapshot
)
  returns teguh._timer[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ended xid8[];
  v_since timestamptz;
begin
  select array_agg(l.xid), min(l.since) into v_ended, v_since
  from unnest(p_from.late) as l
  where pg_visible_in_snapshot(l.xid, p_snapshot);
  if v_ended is null then
    return '{}';
  end if;

  return array(
    select row(u.task_id, u.turn)::teguh._timer
    from teguh.p0_template as p
    cross join lateral unnest(p.task_id || p.more_ids, p.turn || p.more_turns) as u(task_id, turn)
    where p.kind = p_from.kind
      and p.kind <> 'r'
      and p.due_at >= v_since
      and p.due_at <= p_from.due_at
      and p.xid = any (v_ended)
  );
end;
$$;

-- Write a timer position, with the transactions that may still insert timers
-- before it.  With very many of them open the position stays where it is, and
-- timers already collected are collected again, which does no harm.
create or replace function teguh._pass0_template(
  p_n        bigint,
  p_kind     "char",
  p_snapshot pg_snapshot,
  p_from     teguh.k0_template,
  p_to       teguh.k0_template
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_after bigint := pg_snapshot_xmax(p_snapshot)::text::bigint;
  v_own   bigint := pg_current_xact_id()::text::bigint;
  v_late  teguh._late[];
begin
  if v_own - v_after > 128 then
    return;
  end if;

  -- transactions that are open with an id past xmax are not in the snapshot's list
  select array_agg(row(x.xid, coalesce(l.since, p_from.due_at))::teguh._late) into v_late
  from (
    select pg_snapshot_xip(p_snapshot) as xid
    union
    select g.id::text::xid8
    from generate_series(v_after, v_own - 1) as g(id)
  ) as x
  left join unnest(p_from.late) as l on l.xid = x.xid;
  if cardinality(v_late) > 128 then
    return;
  end if;

  insert into teguh.k0_template as k (n, kind, xid, due_at, seq, late)
  values (p_n, p_kind, pg_current_xact_id(), p_to.due_at, p_to.seq, v_late);
end;
$$;

-- Deal with the timers that have come due: queue sleepers, end runs whose lease
-- expired, cancel tasks past their deadline.  Up to p_limit of each kind per
-- segment.  Returns how many tasks have become claimable or changed.
--
-- A timer is a hint like any dispatch row.  Several transactions may deal with
-- the same one; the task's turn and state decide.
create or replace function teguh._fire_template(p_now timestamptz, p_limit integer)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring     bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_sleepers teguh._timer[] := '{}';
  v_leases   teguh._timer[] := '{}';
  v_joined   uuid[];
  v_task_ids uuid[];
  v_turns    integer[];
begin
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    if v_gen % 2 = 0 then
      v_sleepers := v_sleepers || teguh._due0_template('s', p_now, p_limit);
      v_leases := v_leases || teguh._due0_template('l', p_now, p_limit);
    else
      v_sleepers := v_sleepers || teguh._due1_template('s', p_now, p_limit);
      v_leases := v_leases || teguh._due1_template('l', p_now, p_limit);
    end if;
  end loop;

  if v_sleepers <> '{}' then
    -- what came due first is queued first, in whichever segment its timer is
    select
      array_agg(d.task_id order by t.available_at, d.task_id),
      array_agg(d.turn order by t.available_at, d.task_id)
    into v_task_ids, v_turns
    from (select distinct u.task_id, u.turn from unnest(v_sleepers) as u) as d
    cross join lateral (
      select t.available_at
      from teguh.t_template as t
      where (t.task_id, t.turn, t.state) = (d.task_id, d.turn, 'sleeping')
      offset 0
    ) as t;
    if v_task_ids is not null then
      perform teguh._push_template('r', v_task_ids, v_turns);
    end if;
    v_joined := array(
      select distinct u.task_id
      from unnest(v_sleepers) as u
      where u.turn = -1
      order by u.task_id
    );
  end if;

  return coalesce(cardinality(v_task_ids), 0)
         + teguh._gather_template(v_joined, p_now)
         + teguh._expire_template(v_leases, p_now);
end;
$$;

-- Deal with timers of leases, of deadlines (turn 0), and of children whose parent has ended
-- (turn -1).  A lease that was extended gets a new timer; so does a task that somebody holds
-- locked, to be looked at again in a second.  Returns how many tasks have changed.
create or replace function teguh._expire_template(p_timers teguh._timer[], p_now timestamptz)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_timer record;
  v_task  teguh.t_template;
  v_count integer := 0;
begin
  for v_timer in
    select
      d.task_id,
      d.turn,
      case d.turn when -1 then p_now when 0 then t.deadline_at else t.lease_expires_at end
        as due_at
    from (select distinct u.task_id, u.turn from unnest(p_timers) as u) as d
    cross join lateral (
      select t.turn, t.state, t.deadline_at, t.lease_expires_at
      from teguh.t_template as t
      where t.task_id = d.task_id
      offset 0
    ) as t
    where (d.turn = t.turn and t.state = 'running')
      or (d.turn in (-1, 0) and t.state in ('pending', 'running', 'sleeping'))
    order by d.task_id
  loop
    continue when v_timer.due_at is null;
    if v_timer.due_at > p_now then
      perform teguh._push_template(
        'l', array[v_timer.task_id], array[v_timer.turn], array[v_timer.due_at]
      );
      continue;
    end if;

    select t.* into v_task
    from teguh.t_template as t
    where t.task_id = v_timer.task_id
    for no key update skip locked;
    if not found then
      perform teguh._push_template(
        'l', array[v_timer.task_id], array[v_timer.turn], array[p_now + interval '1 second']
      );
    elsif v_timer.turn = -1 then
      v_count := v_count + (teguh._stop_template(v_task.task_id, p_now) is not null)::integer;
    elsif v_timer.turn = 0 then
      v_count := v_count + teguh._over_template(v_task, p_now);
    elsif v_task.lease_expires_at > p_now then
      -- extended since the loop began
      perform teguh._push_template(
        'l', array[v_timer.task_id], array[v_timer.turn], array[v_task.lease_expires_at]
      );
    elsif v_task.state = 'running'
      and v_task.turn = v_timer.turn
      and v_task.lease_expires_at <= p_now
    then
      perform teguh._end_template(
        v_task,
        teguh._timeout_reason(
          v_task.lease_expires_at
          >= teguh._after(v_task.started_at, v_task.timeout_seconds),
          v_task.claimed_by
        ),
        null,
        p_now
      );
      v_count := v_count + 1;
    end if;
  end loop;

  return v_count;
end;
$$;

-- Why a run that was not reported on in time has failed.
create or replace function teguh._timeout_reason(p_overtime boolean, p_worker text)
  returns jsonb
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_overtime then jsonb_build_object(
      'name', '$RunTimeout',
      'message', format('worker %s did not end the run within its timeout', p_worker)
    )
    else jsonb_build_object(
      'name', '$ClaimTimeout',
      'message', format('the lease of worker %s expired', p_worker)
    )
  end;
$$;

-- End a locked task whose deadline has passed: it expires, or is cancelled.
create or replace function teguh._over_template(
  p_task teguh.t_template,
  p_now  timestamptz
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task.deadline_at > p_now
    or p_task.state not in ('pending', 'running', 'sleeping')
  then
    return 0;
  end if;

  perform teguh._close_template(p_task, p_now);
  return 1;
end;
$$;

-- End a locked task that cannot go on before its deadline.
create or replace function teguh._close_template(
  p_task teguh.t_template,
  p_now  timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task.expires_at > p_task.deadline_at or p_task.expires_at is null then
    perform teguh._stop_template(p_task.task_id, p_now);
    return;
  end if;

  update teguh.t_template as t
  set
    state = 'expired',
    lease_expires_at = null,
    finished_at = p_now
  where t.task_id = p_task.task_id;
  perform teguh._lost_template(p_task.task_id, 'expired', p_now);
  perform teguh._moved_template(p_task, 'e');
  if p_task.on_expired is not null then
    perform teguh._follow_template(p_task);
  end if;
end;
$$;

-- Spawn what is to follow an expired task.  If that cannot be, the task says why.
create or replace function teguh._follow_template(p_task teguh.t_template)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_detail text;
begin
  perform teguh.spawn_task(
    coalesce(p_task.on_expired ->> 'queue_name', substr('_template', 2)),
    p_task.on_expired ->> 'task_name',
    coalesce(
      p_task.on_expired -> 'params',
      jsonb_build_object(
        '$task_id', p_task.task_id, '$task_name', p_task.task_name, '$params', p_task.params
      )
    ),
    teguh._present(jsonb_build_object(
      'parent_task_id', p_task.task_id, 'workflow_run_id', p_task.workflow_run_id,
      'correlation_id', p_task.correlation_id, 'tags', p_task.tags
    ))
    || coalesce(p_task.on_expired -> 'options', '{}')
  );
exception
  when sqlstate 'TG001' or sqlstate 'TG005' or sqlstate 'TG006' or sqlstate 'TG007'
    or program_limit_exceeded
  then
    get stacked diagnostics v_detail = message_text;
    update teguh.t_template as t
    set failure_reason = jsonb_build_object('name', '$OnExpired', 'message', v_detail)
    where t.task_id = p_task.task_id;
end;
$$;
