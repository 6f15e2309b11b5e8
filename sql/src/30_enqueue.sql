-- Queue tasks: ready to be claimed (kind r), or as timers that come due later
-- (kinds s and l, with p_due_at: one moment for each, or one for all).  Without tasks
-- (null) nothing is done.
--
-- The transaction gets its id before it has the row, so whoever takes a snapshot
-- meanwhile sees it running.  The ring is read again after the insert: if a new
-- segment was opened in between, the rows go there as well; the first ones are
-- doubles, which do no harm.
create or replace function teguh._push_template(
  p_kind     "char",
  p_task_ids uuid[],
  p_turns    integer[],
  p_due_at   timestamptz[] default '{}'
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_newest bigint;
  v_seen   bigint;
  v_woke   bigint;
begin
  if p_task_ids is null then
    return;
  end if;

  perform pg_current_xact_id();
  v_newest := (pg_sequence_last_value('teguh.ring_template'::regclass) + 1) / 2;
  loop
    v_seen := v_newest;
    if v_seen % 2 = 0 then
      v_woke := teguh._add0_template(p_kind, p_task_ids, p_turns, p_due_at);
    else
      v_woke := teguh._add1_template(p_kind, p_task_ids, p_turns, p_due_at);
    end if;

    v_newest := (pg_sequence_last_value('teguh.ring_template'::regclass) + 1) / 2;
    exit when v_newest = v_seen;
  end loop;

  if v_woke is not null then
    perform pg_notify('teguh_template', '');
  end if;
end;
$$;

-- A number as often as there are tasks.
create or replace function teguh._fill(p_number integer, p_task_ids uuid[])
  returns integer[]
  language sql
  immutable
as $$
  select pg_catalog.array_fill(p_number, array[coalesce(pg_catalog.cardinality(p_task_ids), 0)]);
$$;

-- Insert dispatch rows into one segment.  Returns null unless a waiting worker must
-- be notified: for ready rows, if some have not been since they were counted, the
-- count; for a sleeper, if it is due before any of them would look again.
--
-- The registers are read when the insert already holds its lock on the segment.  A
-- worker about to wait counts itself first and looks for such locks second
-- (_next_template): one of the two always sees the other.
--
-- A timer is never due at the present moment, so that a timer position, which is
-- a moment that has passed, cannot be ahead of it.  Timers that are due together share
-- rows, 64 tasks in each: what a claim hands out is seldom there any more when its lease
-- would end, and should cost little.
create or replace function teguh._add0_template(
  p_kind     "char",
  p_task_ids uuid[],
  p_turns    integer[],
  p_due_at   timestamptz[]
)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_soonest timestamptz := teguh.current_time() + interval '1 microsecond';
  v_first   timestamptz;
  v_woke    bigint;
begin
  if p_kind = 'l' and cardinality(p_task_ids) > cardinality(p_due_at) then
    v_first := greatest(p_due_at[1], v_soonest);
    insert into teguh.p0_template as p (seq, due_at, kind, task_id, turn, more_ids, more_turns)
    select
      nextval('teguh.seq_template'::regclass), v_first, p_kind,
      p_task_ids[g.i], p_turns[g.i], p_task_ids[g.i + 1:g.i + 63], p_turns[g.i + 1:g.i + 63]
    from generate_series(1, cardinality(p_task_ids), 64) as g(i);
  else
    with added as (
      insert into teguh.p0_template as p (seq, woke, due_at, kind, task_id, turn)
      select
        nextval('teguh.seq_template'::regclass),
        (
          select nullif(greatest(w.parked, w.woken), w.woken)
          from (
            select
              pg_sequence_last_value('teguh.parked_template'::regclass) as parked,
              pg_sequence_last_value('teguh.woken_template'::regclass) as woken
            where p_kind <> 'l'
          ) as w
        ),
        case when p_kind <> 'r' then greatest(u.due_at, v_soonest) end,
        p_kind,
        u.task_id,
        u.turn
      from unnest(p_task_ids, p_turns, p_due_at) as u(task_id, turn, due_at)
      returning p.woke, p.due_at
    )

    select max(a.woke), min(a.due_at) into v_woke, v_first
    from added as a;
  end if;

  if v_first < 'infinity'
    and teguh._micros(v_first) <= pg_sequence_last_value('teguh.clock_template'::regclass)
  then
    perform teguh._back0_template(p_kind, v_first);
  end if;

  if p_kind = 's'
    and teguh._micros(v_first) >= pg_sequence_last_value('teguh.plan_template'::regclass)
    and v_woke < teguh._beyond()
  then
    return null;
  end if;
  return v_woke;
end;
$$;

-- Note that our transaction has set a timer with a clock behind the one by which a timer position
-- was, or is just being, moved: who reads that goes back before the timer (_last0_template). n is
-- our transaction's id.
create or replace function teguh._back0_template(p_kind "char", p_due_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.k0_template as k (n, kind, seq, due_at)
  values (pg_current_xact_id()::text::bigint, upper(p_kind::text)::"char", 0, p_due_at);
end;
$$;
