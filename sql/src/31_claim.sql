-- Claim up to p_qty ready tasks of one segment, oldest first, and set the timers of
-- their leases, of runs that have a timeout and, at a first start, of max_duration.  A lease
-- without end has a timer, too, one that is never due: by it the run is found.  Moves the scan
-- position on when it has fallen 32 rows behind.  Returns the tasks claimed.
create or replace function teguh._claim0_template(
  p_worker text,
  p_now    timestamptz,
  p_until  timestamptz,
  p_qty    integer
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from   teguh.k0_template;
  v_picked teguh._picked;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;
  if not found then
    v_from.xid := '0';
    v_from.seq := 0;
  end if;

  v_picked := teguh._pick0_template(p_worker, p_now, p_until, p_qty, v_from);

  if v_picked.woke > pg_sequence_last_value('teguh.woken_template'::regclass)
    and v_picked.woke < teguh._beyond()
  then
    perform setval('teguh.woken_template'::regclass, v_picked.woke);
  end if;
  if v_picked.task_ids is not null then
    if v_picked.names[1] = all (v_picked.names) and v_picked.was[1] = all (v_picked.was) then
      insert into teguh.n0_template as n (task_name, was, became, qty, most, seconds)
      values (
        v_picked.names[1], v_picked.was[1], 'r', cardinality(v_picked.task_ids), 0, 0
      );
    else
      perform teguh._reckon_template(v_picked.names, v_picked.was, 'r');
    end if;
    perform teguh._push_template(
      'l', v_picked.task_ids, v_picked.turns, array[coalesce(p_until, 'infinity')]
    );
  end if;
  if v_picked.limited then
    perform teguh._limits_template(v_picked.task_ids);
  end if;

  -- numbers that are close tell of few rows between them, seldom wrongly
  if coalesce((v_picked.first).low_seq - v_from.seq not between 0 and 31, true)
    and teguh._many0_template(
      32, v_from.xid, v_from.seq,
      coalesce((v_picked.first).xid, '18446744073709551615'),
      coalesce((v_picked.first).low_seq, 0)
    )
  then
    perform teguh._move0_template(
      v_from.xid, v_from.seq, v_from.gaps,
      (v_picked.first).xid, (v_picked.first).low_seq
    );
  end if;

  return v_picked.task_ids;
end;
$$;

-- Claim up to p_qty tasks among the ready rows that lie in a gap or from a place on.
--
-- The task's row is the arbiter.  A dispatch row only says where to look; the row
-- lock, taken with skip locked, re-reads the task, so that one which was claimed or
-- cancelled since the statement's snapshot is passed over.
create or replace function teguh._pick0_template(
  p_worker text,
  p_now    timestamptz,
  p_until  timestamptz,
  p_qty    integer,
  p_from   teguh.k0_template
)
  returns teguh._picked
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_picked teguh._picked;
begin
  with ready as materialized (
    select p.xid, p.seq, p.woke, t.task_id, t.was
    from (
      select p.*
      from unnest(p_from.gaps) as g
      cross join lateral (
        select p.*
        from teguh.p0_template as p
        where p.kind = 'r'
          and p.xid = g.xid
          and p.seq between g.low_seq and g.high_seq
        order by p.seq
      ) as p
      union all
      (
        select p.*
        from teguh.p0_template as p
        where p.kind = 'r'
          and (p.xid, p.seq) >= (p_from.xid, p_from.seq)
        order by p.xid, p.seq
      )
    ) as p
    cross join lateral (
      select t.task_id, teguh._letter(t.state, t.attempt, t.wake_event) as was
      from teguh.t_template as t
      where (t.task_id, t.turn) = (p.task_id, p.turn)
        and t.state in ('pending', 'sleeping')
        and not t.laned
        and (t.deadline_at is null or t.deadline_at > p_now)
      for no key update skip locked
    ) as t
    limit p_qty
  ),

  claimed as (
    update teguh.t_template as t
    set
      state = 'running',
      attempt = t.attempt + 1,
      claimed_by = p_worker,
      started_at = p_now,
      first_started_at = coalesce(t.first_started_at, p_now),
      lease_expires_at = least(p_until, teguh._after(p_now, t.timeout_seconds)),
      deadline_at = case
        when t.attempt > 0 or t.cancellation is null then t.deadline_at
        else least(t.expires_at, teguh._after(p_now, (t.cancellation ->> 'max_duration')::float8))
      end
    from ready as r
    where t.task_id = r.task_id
    returning t.task_id, t.turn, t.task_name, r.was, r.xid, r.seq, r.woke,
      t.timeout_seconds is not null or t.attempt = 1 and t.deadline_at is not null as limited
  )

  select
    array_agg(c.task_id), array_agg(c.turn), array_agg(c.task_name), array_agg(c.was),
    bool_or(c.limited),
    (array_agg(row(c.xid, c.seq, null)::teguh._gap)
      filter (where (c.xid, c.seq) >= (p_from.xid, p_from.seq)))[1],
    max(c.woke)
  into v_picked
  from claimed as c;

  return v_picked;
end;
$$;

-- Set the timers of claimed tasks that end of themselves: the deadline of one that starts, and
-- the timeout of a run.
create or replace function teguh._limits_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_begun     uuid[];
  v_deadlines timestamptz[];
  v_timed     uuid[];
  v_turns     integer[];
  v_ends      timestamptz[];
begin
  select
    array_agg(t.task_id) filter (where t.begins),
    array_agg(t.deadline_at) filter (where t.begins),
    array_agg(t.task_id) filter (where t.timeout_seconds is not null),
    array_agg(t.turn) filter (where t.timeout_seconds is not null),
    array_agg(t.lease_expires_at) filter (where t.timeout_seconds is not null)
  into v_begun, v_deadlines, v_timed, v_turns, v_ends
  from (
    select t.*, t.attempt = 1 and t.deadline_at is not null as begins
    from teguh.t_template as t
    where t.task_id = any (p_task_ids)
  ) as t;

  perform teguh._push_template('l', v_begun, teguh._fill(0, v_begun), v_deadlines);
  perform teguh._push_template('l', v_timed, v_turns, v_ends);
end;
$$;

-- Move the scan position of a segment to its first row that is still to be had.
--
-- What is written must stay true: every row before the position, visible now or
-- later, is claimed or stale, unless it lies in a gap.  So the position never
-- passes the id of a transaction that may still insert rows, and it is looked up
-- after the list of those was taken.  What would hold it back for long becomes a
-- gap once 256 rows have come to lie behind it: rows that an open claim keeps
-- locked, or an open transaction, whose rows are claimed right after it commits.
--
-- p_first_xid and p_first_seq: the first row this claim took past the position.
create or replace function teguh._move0_template(
  p_xid       xid8,
  p_seq       bigint,
  p_gaps      teguh._gap[],
  p_first_xid xid8,
  p_first_seq bigint
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_n        bigint := nextval('teguh.seq_template'::regclass);
  v_snapshot pg_snapshot := pg_current_snapshot();
  v_open     xid8[] := teguh._open_xids(v_snapshot);
  v_gaps     teguh._gap[] := teguh._trim0_template(p_gaps, v_open);
  v_room     integer := 128 - coalesce(cardinality(v_gaps), 0);
  v_xid      xid8;
  v_seq      bigint;
  v_writer   xid8;
begin
  select r.xid, r.seq into v_xid, v_seq
  from teguh._next0_template(p_xid, p_seq) as r;
  while v_room > 0 and teguh._many0_template(256, v_xid, v_seq, p_first_xid, p_first_seq) loop
    v_gaps := v_gaps || teguh._stuck0_template(v_xid, v_seq, p_first_xid, p_first_seq);
    v_room := v_room - 1;
    select r.xid, r.seq into v_xid, v_seq
    from teguh._next0_template(v_xid, (v_gaps[cardinality(v_gaps)]).high_seq + 1) as r;
  end loop;

  if v_xid is null or v_xid >= pg_snapshot_xmax(v_snapshot) then
    v_xid := pg_snapshot_xmax(v_snapshot);
    v_seq := 0;
  end if;

  foreach v_writer in array v_open loop
    exit when (v_writer, 0) >= (v_xid, v_seq);
    continue when exists (
      select from unnest(v_gaps) as g
      where g.xid = v_writer and g.low_seq = 0
    );
    if v_room > 0 and teguh._many0_template(256, v_writer, 0, v_xid, v_seq) then
      v_gaps := v_gaps || row(v_writer, 0, 9223372036854775807)::teguh._gap;
      v_room := v_room - 1;
    else
      v_xid := v_writer;
      v_seq := 0;
      exit;
    end if;
  end loop;

  if (v_xid, v_seq) > (p_xid, p_seq)
    or ((v_xid, v_seq) = (p_xid, p_seq) and v_gaps is distinct from p_gaps)
  then
    insert into teguh.k0_template as k (n, kind, xid, seq, gaps)
    values (v_n, 'r', v_xid, v_seq, v_gaps);
  end if;
end;
$$;

-- The transactions that may still insert rows, ascending; our own is one of them.
create or replace function teguh._open_xids(p_snapshot pg_snapshot)
  returns xid8[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select x.xid
    from (
      select pg_snapshot_xip(p_snapshot) as xid
      union
      select pg_current_xact_id()
    ) as x
    order by x.xid
  );
end;
$$;

-- The first row of a segment, from a place on, whose task is still to be had.
create or replace function teguh._next0_template(
  p_xid   xid8,
  p_seq   bigint,
  out xid xid8,
  out seq bigint
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  select p.xid, p.seq into xid, seq
  from teguh.p0_template as p
  where p.kind = 'r'
    and (p.xid, p.seq) >= (p_xid, p_seq)
    and exists (
      select from teguh.t_template as t
      where t.task_id = p.task_id
        and t.turn = p.turn
        and t.state in ('pending', 'sleeping')
        and not t.laned
      offset 0
    )
  order by p.xid, p.seq
  limit 1;
end;
$$;

-- Whether at least so many rows lie between two places; false if one is null.
create or replace function teguh._many0_template(
  p_count   integer,
  p_xid     xid8,
  p_seq     bigint,
  p_end_xid xid8,
  p_end_seq bigint
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_xid xid8;
  v_seq bigint;
begin
  -- an upper bound in the query would not end the scan inside one transaction
  select p.xid, p.seq into v_xid, v_seq
  from teguh.p0_template as p
  where p.kind = 'r'
    and (p.xid, p.seq) >= (p_xid, p_seq)
  order by p.xid, p.seq
  limit 1 offset p_count - 1;
  return coalesce((v_xid, v_seq) < (p_end_xid, p_end_seq), false);
end;
$$;

-- The stretch from a row that is still to be had to the last such row of the same
-- transaction before another place: what open claims hold locked.
create or replace function teguh._stuck0_template(
  p_xid     xid8,
  p_seq     bigint,
  p_end_xid xid8,
  p_end_seq bigint
)
  returns teguh._gap
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last bigint;
begin
  select p.seq into v_last
  from teguh.p0_template as p
  where p.kind = 'r'
    and p.xid = p_xid
    and p.seq >= p_seq
    and p.seq < case when p_xid = p_end_xid then p_end_seq else 9223372036854775807 end
    and exists (
      select from teguh.t_template as t
      where t.task_id = p.task_id
        and t.turn = p.turn
        and t.state in ('pending', 'sleeping')
        and not t.laned
      offset 0
    )
  order by p.xid desc, p.seq desc
  limit 1;

  -- none: they were claimed or given up a moment ago
  return row(p_xid, p_seq, coalesce(v_last, p_seq))::teguh._gap;
end;
$$;

-- Bring each gap's low end up to its first row that is still to be had, and drop a
-- gap that has none, unless its transaction is still open.
create or replace function teguh._trim0_template(p_gaps teguh._gap[], p_open xid8[])
  returns teguh._gap[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_gap  teguh._gap;
  v_gaps teguh._gap[];
begin
  foreach v_gap in array coalesce(p_gaps, '{}') loop
    if v_gap.xid <> all (p_open) then
      select p.seq into v_gap.low_seq
      from teguh.p0_template as p
      where p.kind = 'r'
        and p.xid = v_gap.xid
        and p.seq between v_gap.low_seq and v_gap.high_seq
        and exists (
          select from teguh.t_template as t
          where t.task_id = p.task_id
            and t.turn = p.turn
            and t.state in ('pending', 'sleeping')
            and not t.laned
          offset 0
        )
      order by p.seq
      limit 1;
    end if;

    if v_gap.low_seq is not null then
      v_gaps := v_gaps || v_gap;
    end if;
  end loop;

  return v_gaps;
end;
$$;

-- Deal for a claim with schedules and timers that are due.  Returns how many tasks there are more
-- to be claimed.  p_first: the claim has no task yet.  Schedules may wait for a unique key, which
-- comes before any task.
create or replace function teguh._bring_template(
  p_now   timestamptz,
  p_first boolean,
  p_limit integer
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer := 0;
begin
  if p_first
    and coalesce(
      pg_sequence_last_value('teguh.agenda_template'::regclass) <= teguh._micros(p_now), true
    )
  then
    v_count := teguh._strike_template(p_now, false, 100);
  end if;
  return v_count + teguh._fire_template(p_now, p_limit);
end;
$$;

-- Claim up to p_qty runs of the queue.
--
-- Due timers are looked at first when no claim has done so for 20 ms, and in any
-- case before a claim comes back short: nothing due waits for a ticker.  A claim
-- that does come back short counts its worker as waiting, so that the next spawn
-- notifies.  p_ruled: the queue goes by lanes, where tasks of some names (null: of all) may be
-- asked for.
create or replace function teguh._take_template(
  p_worker  text,
  p_timeout double precision,
  p_qty     integer,
  p_ruled   boolean,
  p_names   text[]
)
  returns table(
    run_id           uuid,
    task_id          uuid,
    attempt          integer,
    task_name        text,
    params           jsonb,
    retry_strategy   jsonb,
    max_attempts     integer,
    headers          jsonb,
    wake_event       text,
    event_payload    jsonb,
    failures         integer,
    checkpoints      jsonb,
    lease_expires_at timestamptz,
    timeout_seconds  double precision
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now      timestamptz := teguh.current_time();
  v_until    timestamptz := case when p_timeout > 0 then teguh._after(v_now, p_timeout) end;
  v_millis   bigint := teguh._micros(clock_timestamp()) / 1000;
  v_fired    integer := -1;
  v_left     integer := p_qty;
  v_before   integer;
  v_ring     bigint;
  v_task_ids uuid[] := '{}';
begin
  if v_millis - pg_sequence_last_value('teguh.fired_template'::regclass) not between 0 and 19 then
    perform setval('teguh.fired_template'::regclass, v_millis);
    v_fired := teguh._bring_template(v_now, true, 1000);
  end if;
  loop
    v_before := v_left;
    v_ring := pg_sequence_last_value('teguh.ring_template'::regclass);
    for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
      exit when v_left <= 0;
      v_task_ids := v_task_ids || case
        when p_ruled then teguh._admit_template(p_worker, v_now, v_until, v_left, p_names)
        when v_gen % 2 = 0 then teguh._claim0_template(p_worker, v_now, v_until, v_left)
        else teguh._claim1_template(p_worker, v_now, v_until, v_left)
      end;
      v_left := p_qty - cardinality(v_task_ids);
    end loop;

    -- what was fired and could not be had is locked by somebody else
    exit when v_left <= 0 or v_fired = 0 or (v_fired > 0 and v_left = v_before);
    v_fired := teguh._bring_template(v_now, v_left = p_qty, least(v_left, 1000) + 100);
    exit when v_fired = 0;
  end loop;
  if v_left > 0 then
    perform nextval('teguh.parked_template'::regclass);
  end if;

  return query
  select
    t.run_id, t.task_id, t.attempt, t.task_name, t.params, t.retry_strategy, t.max_attempts,
    t.headers, t.wake_event, t.event_payload, t.failures, t.known, t.lease_expires_at,
    t.timeout_seconds
  from unnest(v_task_ids) as u(task_id)
  cross join lateral (
    select
      t.*,
      case when t.turn = 1 then '{}' else teguh._known_template(t.task_id, t.run_id) end as known
    from teguh.t_template as t where t.task_id = u.task_id offset 0
  ) as t
  where t.known is not null;
end;
$$;

-- All checkpoints of a task that was just claimed, as one object.  If that is larger than a jsonb
-- can be, the run fails, and null is returned: others must be had all the same.
create or replace function teguh._known_template(p_task_id uuid, p_run_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(
    (
      select jsonb_object_agg(c.checkpoint_name, c.state)
      from teguh.c_template as c
      where c.task_id = p_task_id
        and c.status = 'committed'
    ),
    '{}'
  );
exception
  when program_limit_exceeded then
    perform teguh._fail_template(
      p_run_id,
      jsonb_build_object(
        'name', '$Checkpoints', 'message', 'the checkpoints are together larger than a jsonb can be'
      ),
      null
    );
    return null;
end;
$$;

-- Until when a queue is paused, by its policy; null if it is not.
create or replace function teguh._paused_until(p_policy jsonb)
  returns timestamptz
  language sql
  volatile
as $$
  select case
    when pg_catalog.jsonb_object_field_text(p_policy, 'paused_until')::timestamp with time zone
      operator(pg_catalog.>) teguh.current_time()
      then pg_catalog.jsonb_object_field_text(p_policy, 'paused_until')::timestamp with time zone
  end;
$$;

-- Claim runs of a queue.
create or replace function teguh.claim_task(
  p_queue_name    text,
  p_worker_id     text,
  p_claim_timeout double precision default 30,
  p_qty           integer default 1
)
  returns table(
    run_id           uuid,
    task_id          uuid,
    attempt          integer,
    task_name        text,
    params           jsonb,
    retry_strategy   jsonb,
    max_attempts     integer,
    headers          jsonb,
    wake_event       text,
    event_payload    jsonb,
    failures         integer,
    checkpoints      jsonb,
    lease_expires_at timestamptz,
    timeout_seconds  double precision
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
begin
  perform teguh._check_isolation('claim_task');
  if teguh._paused_until(v_policy) is not null then
    return;
  end if;

  return query execute 'select * from teguh._take_' || p_queue_name || '($1, $2, $3, $4, null)'
  using
    coalesce(nullif(btrim(p_worker_id), ''), 'worker'),
    nullif(p_claim_timeout, 'NaN'),
    greatest(coalesce(p_qty, 1), 1),
    v_policy ? 'ruled';
end;
$$;

comment on function teguh.claim_task(text, text, double precision, integer) is
  'Hands up to p_qty due runs to a worker, oldest due first, under a lease of '
  'p_claim_timeout seconds (zero, less or null: without end). A blank worker id counts '
  'as "worker", a quantity below 1 as 1. attempt is how often the task has been '
  'handed out, this time included; checkpoints maps step names to their stored '
  'states; wake_event is the event that woke the run, with its payload, or the '
  'event whose wait timed out, with payload SQL null; timeout_seconds is how long the run '
  'may be held at a time, and the lease ends no later. Raises TG001 for an unknown '
  'queue, 25001 unless the transaction is READ COMMITTED.';

-- When the next sleeper is due, and whether it is safe to wait until then.
--
-- A caller that waits for a notification must hear of every task that was spawned
-- without one.  Such a spawn was made before this worker was counted as waiting,
-- so its transaction either is still open, seen by its lock on the newest segment,
-- or has committed, seen by the look for ready tasks that comes after.  Likewise for
-- sleepers: while the register of the next planned look says never, each one that is
-- spawned notifies; so that is what it says before the look.
create or replace function teguh._next_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := teguh.current_time();
  v_ring  bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_due   timestamptz;
  v_first timestamptz;
begin
  perform setval('teguh.plan_template'::regclass, teguh._beyond());
  if exists (
    select from pg_locks as l
    where l.relation in ('teguh.p0_template'::regclass, 'teguh.p1_template'::regclass)
      and l.mode = 'RowExclusiveLock'
      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
      and l.pid is distinct from pg_backend_pid()
  ) then
    v_due := v_now + interval '10 milliseconds';
  end if;

  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    v_first := case
      when v_gen % 2 = 0 then teguh._soon0_template(v_now)
      else teguh._soon1_template(v_now)
    end;
    v_due := least(v_due, v_first);
  end loop;

  v_due := least(v_due, teguh._chance_template(v_now), teguh._future_template(v_now));
  if v_due is not null then
    perform setval('teguh.plan_template'::regclass, greatest(teguh._micros(v_due), 0));
  end if;
  return v_due;
end;
$$;

-- When a segment next has a task for a worker: now, when a timer is due, or null.
-- Timers whose task was woken before them are passed over, the first hundred of
-- them; past that the moment may come too early, never too late.
create or replace function teguh._soon0_template(p_now timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ready  teguh.k0_template;
  v_timers teguh.k0_template := teguh._last0_template('s');
  v_timer  record;
  v_count  integer := 0;
begin
  select k.* into v_ready
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;

  perform from teguh._next0_template(coalesce(v_ready.xid, '0'), coalesce(v_ready.seq, 0)) as r
  where r.xid is not null;
  if found or teguh._trim0_template(v_ready.gaps, '{}') is not null then
    return p_now;
  end if;

  perform from unnest(v_timers.late) as l
  join teguh.p0_template as p on p.xid = l.xid
  where p.kind = 's'
    and p.kind <> 'r'
    and p.due_at >= l.since
    and p.due_at <= v_timers.due_at;
  if found then
    return p_now;
  end if;

  for v_timer in
    select p.due_at, p.task_id, p.turn
    from teguh.p0_template as p
    where p.kind = 's'
      and p.kind <> 'r'
      and (p.due_at, p.seq) > (v_timers.due_at, v_timers.seq)
    order by p.due_at, p.seq
    limit 100
  loop
    v_count := v_count + 1;
    perform from teguh.t_template as t
    where t.task_id = v_timer.task_id
      and t.state = 'sleeping'
      and v_timer.turn in (-1, t.turn);
    if found or v_count = 100 then
      return nullif(v_timer.due_at, 'infinity');
    end if;
  end loop;

  return null;
end;
$$;

-- When the next delayed task of a queue is due, or its next schedule.
create or replace function teguh.next_due(p_queue_name text)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_due    timestamptz := teguh._paused_until(v_policy);
begin
  if v_due is not null then
    return nullif(v_due, 'infinity');
  end if;

  execute 'select teguh._next_' || p_queue_name || '()' into v_due;
  return v_due;
end;
$$;

comment on function teguh.next_due(text) is
  'When the next delayed task of the queue or its next schedule is due; null if none is. A worker '
  'calls it before it waits, and waits no longer: the answer is the present moment if a task is '
  'ready, and 10 ms from it while spawns are being committed. While the queue is paused: when that '
  'ends, null if not by itself. Raises TG001 for an unknown queue.';
