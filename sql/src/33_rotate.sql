-- Bytes a segment may grow to before the other one is opened.
create or replace function teguh._segment_bytes()
  returns bigint
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    nullif(btrim(current_setting('teguh.segment_bytes', true)), '')::bigint,
    67108864
  );
$$;

-- Take one step in the use of the two segments, if one is due:
--
--   one in use, grown large             -> open the other, if that is empty
--   two in use, the older has no say    -> stop looking at the older
--   one in use, the other not empty     -> truncate the other
--
-- The ring moves only on what is committed, because a register does not roll
-- back.  Nothing waits for a lock: a step that cannot have it is left to a later
-- call.
create or replace function teguh._turn_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring   bigint;
  v_limit  bigint;
  v_newest bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('teguh.ring_template', 0)) then
    return;
  end if;

  v_ring := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_newest := (v_ring + 1) / 2 % 2;
  -- what was carried over does not count, or the next change would come at once
  v_limit := greatest(
    teguh._segment_bytes(),
    3 * pg_sequence_last_value('teguh.carry_template'::regclass)
  );

  if v_newest = 0 then
    perform teguh._turn0_template(v_ring, v_limit);
  else
    perform teguh._turn1_template(v_ring, v_limit);
  end if;
end;
$$;

-- The step to take while segment 0 gets the new rows.
create or replace function teguh._turn0_template(p_ring bigint, p_limit bigint)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_full boolean := pg_relation_size('teguh.p0_template'::regclass) >= p_limit;
begin
  if p_ring % 2 = 1 then
    -- nobody inserts into the older segment any more, and nobody still might
    lock table teguh.p1_template in share mode nowait;
    if not teguh._spent1_template() then
      if v_full then
        perform teguh._carry1_template();
      end if;
      return;
    end if;
    perform setval('teguh.ring_template'::regclass, p_ring + 1);
  elsif pg_relation_size('teguh.p1_template'::regclass) > 0
    or pg_relation_size('teguh.k1_template'::regclass) > 0
    or pg_relation_size('teguh.n1_template'::regclass) > 0
  then
    lock table teguh.p1_template, teguh.k1_template, teguh.n1_template
      in access exclusive mode nowait;
    perform teguh._bank1_template();
    truncate teguh.p1_template, teguh.k1_template, teguh.n1_template;
  elsif v_full then
    perform setval('teguh.ring_template'::regclass, p_ring + 1);
  end if;
exception
  when lock_not_available then
    return;
end;
$$;

-- Whether a segment into which nobody inserts has nothing left to say: every
-- ready row is stale or claimed, every timer collected.
create or replace function teguh._spent0_template()
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._dry0_template()
         and not exists (select from teguh._left0_template('s', 1))
         and not exists (select from teguh._left0_template('l', 1));
end;
$$;

-- Whether no ready row of a segment is still to be had.
create or replace function teguh._dry0_template()
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from teguh.k0_template;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;

  return teguh._trim0_template(v_from.gaps, '{}') is null
         and not exists (
           select
           from teguh._next0_template(
             coalesce(v_from.xid, '0'), coalesce(v_from.seq, 0)
           ) as r
           where r.xid is not null
         );
end;
$$;

-- The timers of a segment that have not been collected, up to p_limit (null: all).
create or replace function teguh._left0_template(p_kind "char", p_limit integer)
  returns setof teguh.p0_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from teguh.k0_template := teguh._last0_template(p_kind);
begin
  return query
  select p.*
  from teguh.p0_template as p
  where p.kind = p_kind
    and p.kind <> 'r'
    and (p.due_at, p.seq) > (v_from.due_at, v_from.seq)
  order by p.due_at, p.seq
  limit p_limit;

  return query
  select p.*
  from unnest(v_from.late) as l
  join teguh.p0_template as p on p.xid = l.xid
  where p.kind = p_kind
    and p.kind <> 'r'
    and p.due_at between l.since and v_from.due_at
  limit p_limit;
end;
$$;

-- Carry the timers of a drained segment over to the newest one, so that long
-- sleepers do not keep it.  Timers that mean nothing any more stay behind.
create or replace function teguh._carry0_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind     "char";
  v_task_ids uuid[];
  v_turns    integer[];
  v_due_at   timestamptz[];
  v_count    bigint := 0;
begin
  if not teguh._dry0_template() then
    return;
  end if;

  foreach v_kind in array array['s', 'l']::"char"[] loop
    select array_agg(u.task_id), array_agg(u.turn), array_agg(p.due_at)
    into v_task_ids, v_turns, v_due_at
    from teguh._left0_template(v_kind, null) as p
    cross join lateral unnest(p.task_id || p.more_ids, p.turn || p.more_turns) as u(task_id, turn)
    where exists (
      select from teguh.t_template as t
      where t.task_id = u.task_id
        and u.turn in (-1, 0, t.turn)
        and t.state in ('pending', 'running', 'sleeping')
      offset 0
    );
    if v_task_ids is not null then
      perform teguh._push_template(v_kind, v_task_ids, v_turns, v_due_at);
      v_count := v_count + cardinality(v_task_ids);
    end if;

    insert into teguh.k0_template as k (n, kind, due_at, seq)
    values (
      nextval('teguh.seq_template'::regclass), v_kind, 'infinity', 9223372036854775807
    );
  end loop;

  perform setval('teguh.carry_template'::regclass, v_count * 100);
end;
$$;
