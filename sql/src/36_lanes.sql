-- Lanes: how a queue that goes by rules is claimed from.
--
-- A claim of such a queue first moves what is ready from dispatch into lanes, and then takes
-- from these what priorities, limits and the worker leave.  All of it happens under one lock
-- per queue, held until the claim's transaction ends: what was decided is committed before
-- anybody decides again.

-- Number of the advisory lock under which lanes and limits are read and written; of all queues
-- together: *.  That of all is taken first.
create or replace function teguh._gate_number(p_queue_name text)
  returns bigint
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended('teguh.gate_' || p_queue_name, 0);
$$;

-- Take a queue's lock (*: that of all queues).  A transaction that has one already does not wait
-- for another: of two which took them in different orders neither could go on.  Then false.
create or replace function teguh._enter_gate(p_queue_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_number bigint := teguh._gate_number(p_queue_name);
begin
  if p_queue_name <> '*' and coalesce(current_setting('teguh.gate', true), '') in ('', '*')
    or p_queue_name = '*' and coalesce(current_setting('teguh.gate', true), '') = ''
  then
    perform pg_advisory_xact_lock(v_number);
    perform set_config('teguh.gate', p_queue_name, true);
    return true;
  end if;

  return pg_try_advisory_xact_lock(v_number);
end;
$$;

-- The limit for a task name, a key or a queue: its own, or that for each.
create or replace function teguh._limit_of(p_queue_name text, p_scope text, p_name text)
  returns setof teguh.limits
  language sql
  stable
  rows 1
  set search_path = pg_catalog, pg_temp
as $$
  select l.*
  from teguh.limits as l
  where l.queue_name = p_queue_name
    and l.scope = p_scope
    and l.name in (p_name, '*')
  order by l.name = '*'
  limit 1;
$$;

-- Let a queue go by rules from now on.  p_wait: even if somebody else is just about to; else that
-- is left to them.
create or replace function teguh._rule_template(p_wait boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not p_wait then
    perform from teguh.queues as q
    where q.queue_name = substr('_template', 2)
      and not q.ruled
    for no key update skip locked;
    if not found then
      return;
    end if;
  end if;

  update teguh.queues as q
  set ruled = true
  where q.queue_name = substr('_template', 2)
    and not q.ruled;
end;
$$;

-- Let a queue go by rules, take its lock, and count what runs already: while it had no limits,
-- nobody did.
create or replace function teguh._reign_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._rule_template(true);
  perform pg_advisory_xact_lock(teguh._gate_number(substr('_template', 2)));

  insert into teguh.h_template as h (task_id, turn, fifo, task_name, flow_key)
  select distinct t.task_id, t.turn, false, t.task_name, coalesce(t.flow_key, '')
  from (
    (select p.* from teguh._left0_template('l', null) as p)
    union all
    (select p.* from teguh._left1_template('l', null) as p)
  ) as p
  cross join lateral unnest(p.task_id || p.more_ids, p.turn || p.more_turns) as u(task_id, turn)
  cross join lateral (
    select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
  ) as t
  where t.turn = u.turn
    and t.state = 'running'
    and not exists (
      select from teguh.h_template as h where (h.task_id, h.turn) = (t.task_id, t.turn)
    );
end;
$$;

-- The runs that are held, by what they are limited by.
create or replace function teguh._going_template()
  returns table(task_name text, flow_key text)
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select h.task_name, h.flow_key
  from teguh.h_template as h
  cross join lateral (
    select t.* from teguh.t_template as t where t.task_id = h.task_id offset 0
  ) as t
  where t.turn = h.turn
    and t.state = 'running';
$$;

-- How many runs are held, of one task name or of all (null).
create or replace function teguh._busy_template(p_task_name text)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select count(*)
    from teguh._going_template() as r
    where r.task_name = coalesce(p_task_name, r.task_name)
  );
end;
$$;

-- The same of all queues together.
create or replace function teguh._everywhere_busy()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
  v_one        bigint;
  v_all        bigint := 0;
begin
  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
  loop
    if teguh._share_queue(v_queue_name) then
      execute format('select teguh._busy_%s(null)', v_queue_name) into v_one;
      v_all := v_all + v_one;
    end if;
  end loop;

  return v_all;
end;
$$;

-- Until when a task name or a key is paused, by itself or as each of them (*); null if it is not.
create or replace function teguh._closed_until(
  p_queue_name text,
  p_scope      text,
  p_name       text,
  p_now        timestamptz
)
  returns timestamptz
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select max(p.paused_until)
  from teguh.pauses as p
  where p.queue_name = p_queue_name
    and p.scope = p_scope
    and p.name in (p_name, '*')
    and p.paused_until > p_now;
$$;

-- Whether a queue has limits of its own, or pauses.
create or replace function teguh._is_limited(p_queue_name text)
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (select from teguh.limits as l where l.queue_name = p_queue_name)
    or exists (select from teguh.pauses as p where p.queue_name = p_queue_name);
$$;

-- How many tasks were started within the period of a rate.
create or replace function teguh._started(
  p_limit teguh.limits,
  p_name  text,
  p_now   timestamptz
)
  returns bigint
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(sum(s.qty), 0)::bigint
  from teguh.starts as s
  where (s.queue_name, s.scope, s.name) = (p_limit.queue_name, p_limit.scope, p_name)
    and s.started_at > teguh._after(p_now, -p_limit.period_seconds);
$$;

-- How many more tasks may start under a limit; null if it says nothing.
create or replace function teguh._left_over(
  p_limit   teguh.limits,
  p_name    text,
  p_running bigint,
  p_now     timestamptz
)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return least(
    case when p_limit.fifo then 1 else p_limit.max_running end - p_running,
    p_limit.rate - teguh._started(p_limit, p_name, p_now)
  );
end;
$$;

-- How many more tasks of each key may be open: those that are, and those that run, take up room.
-- So do those that are kept first in line, but when they stand in a lane themselves.
create or replace function teguh._slots_template(p_keys text[], p_now timestamptz)
  returns table(flow_key text, slots bigint)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select
    k.flow_key,
    least(
      teguh._left_over(l, k.flow_key, h.qty, p_now) - o.qty,
      case
        when teguh._closed_until(substr('_template', 2), 'key', k.flow_key, p_now) > p_now then 0
      end
    )
  from (
    select distinct u.flow_key
    from unnest(p_keys) as u(flow_key)
    where u.flow_key <> ''
  ) as k
  left join lateral (
    select l.* from teguh._limit_of(substr('_template', 2), 'key', k.flow_key) as l
  ) as l on true
  cross join lateral (
    select count(*) as qty
    from teguh.h_template as h
    where h.flow_key collate "C" = k.flow_key
      and l.queue_name is not null
      and not (h.fifo and exists (
        select
        from teguh.t_template as t
        where t.task_id = h.task_id
          and t.laned
          and t.state in ('pending', 'sleeping')
      ))
  ) as h
  cross join lateral (
    select count(*) as qty
    from teguh.l_template as o
    where o.flow_key collate "C" = k.flow_key
      and o.gate = 'o'
      and l.queue_name is not null
  ) as o;
end;
$$;

-- Forget what no longer takes up room.  Returns the keys that may have room since.  p_everywhere:
-- there is a limit over all queues.
create or replace function teguh._vacate_template(p_everywhere boolean, p_now timestamptz)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys   text[];
  v_rated  text[];
  v_paused text[];
begin
  with over as (
    delete from teguh.h_template as h
    where not exists (
      select
      from teguh.t_template as t
      where t.task_id = h.task_id
        and (
          t.state = 'running'
          and t.turn = h.turn
          or h.fifo
          and t.state in ('pending', 'running', 'sleeping')
        )
      offset 0
    )
    returning h.flow_key
  )

  select array_agg(distinct o.flow_key) into v_keys
  from over as o;

  with past as (
    delete from teguh.starts as s
    where s.queue_name in (substr('_template', 2), case when p_everywhere then '*' end)
      and s.started_at <= teguh._after(
        p_now,
        -coalesce(
          (select l.period_seconds from teguh._limit_of(s.queue_name, s.scope, s.name) as l), 0
        )
      )
    returning s.scope, s.name
  )

  select array_agg(distinct p.name) filter (where p.scope = 'key') into v_rated
  from past as p;

  with over as (
    delete from teguh.pauses as p
    where p.queue_name = substr('_template', 2)
      and p.paused_until <= p_now
    returning p.scope, p.name
  )

  select array_agg(o.name) filter (where o.scope = 'key') into v_paused
  from over as o;
  if '*' = any (v_paused) then
    v_paused := array(select distinct l.flow_key from teguh.l_template as l where l.gate = 'w');
  end if;
  return v_keys || v_rated || v_paused;
end;
$$;

-- Open the first tasks of each key's lane, as far as there is room.
create or replace function teguh._unbar_template(p_keys text[], p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_keys is null then
    return;
  end if;

  update teguh.l_template as l
  set gate = 'o'
  where l.ctid = any (array(
    select w.place
    from teguh._slots_template(p_keys, p_now) as s
    cross join lateral (
      select w.ctid as place
      from teguh.l_template as w
      where w.flow_key collate "C" = s.flow_key
        and w.gate = 'w'
      order by w.ranking, w.seq
      limit case when s.slots is not null then greatest(s.slots, 0) end
    ) as w
  ));
end;
$$;

-- Move tasks that are ready from dispatch into the lanes, ten thousand at most.
create or replace function teguh._intake_template(p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
begin
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    if v_gen % 2 = 0 then
      perform teguh._line_template(teguh._sift0_template(p_now), p_now);
    else
      perform teguh._line_template(teguh._sift1_template(p_now), p_now);
    end if;
  end loop;
end;
$$;

-- Mark the first ready tasks of a segment as standing in a lane, and move its scan position past
-- them.  Returns them in the order in which they were queued.
create or replace function teguh._sift0_template(p_now timestamptz)
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

  with ready as materialized (
    select p.xid, p.seq, t.task_id
    from (
      select p.*
      from unnest(v_from.gaps) as g
      join teguh.p0_template as p on p.xid = g.xid and p.seq between g.low_seq and g.high_seq
      where p.kind = 'r'
      union all
      (
        select p.*
        from teguh.p0_template as p
        where p.kind = 'r'
          and (p.xid, p.seq) >= (v_from.xid, v_from.seq)
        order by p.xid, p.seq
      )
    ) as p
    cross join lateral (
      select t.task_id
      from teguh.t_template as t
      where (t.task_id, t.turn) = (p.task_id, p.turn)
        and t.state in ('pending', 'sleeping')
        and not t.laned
        and (t.deadline_at is null or t.deadline_at > p_now)
      for no key update skip locked
    ) as t
    limit 10000
  ),

  moved as (
    update teguh.t_template as t
    set laned = true
    from ready as r
    where t.task_id = r.task_id
    returning t.task_id, r.xid, r.seq
  )

  select
    array_agg(m.task_id order by m.xid, m.seq),
    (
      array_agg(row(m.xid, m.seq, null)::teguh._gap order by m.xid, m.seq)
        filter (where (m.xid, m.seq) >= (v_from.xid, v_from.seq))
    )[1]
  into v_picked.task_ids, v_picked.first
  from moved as m;

  if teguh._many0_template(
    32, v_from.xid, v_from.seq,
    coalesce((v_picked.first).xid, '18446744073709551615'),
    coalesce((v_picked.first).low_seq, 0)
  ) then
    perform teguh._move0_template(
      v_from.xid, v_from.seq, v_from.gaps,
      (v_picked.first).xid, (v_picked.first).low_seq
    );
  end if;
  return v_picked.task_ids;
end;
$$;

-- Put tasks into the lanes, in the order given.
--
-- A task ranks by its virtual due time: when it became due, a minute earlier for each degree of
-- priority; so it passes what is not as much older, and is itself passed in the end by nothing.
-- In a fair queue it ranks by rounds, one task of each key in each.  A key that is first in,
-- first out ranks by arrival; a task of it that has begun ranks before all of the key.
create or replace function teguh._line_template(p_task_ids uuid[], p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := substr('_template', 2);
  v_fair       boolean := exists (
    select from teguh.limits as l where l.queue_name = v_queue_name and l.fair
  );
  v_round      double precision := coalesce(
    pg_sequence_last_value('teguh.round_template'::regclass), 0
  );
begin
  insert into teguh.l_template as l (ranking, seq, task_id, turn, gate, task_name, flow_key)
  select
    n.ranking, nextval('teguh.seq_template'::regclass), n.task_id, n.turn,
    case when coalesce(n.nth <= n.slots, true) then 'o' else 'w' end::"char",
    n.task_name, n.flow_key
  from (
    select
      t.*, k.slots,
      row_number() over (partition by t.flow_key order by not t.kept, t.place) as nth,
      case
        when t.kept then
          least(
            k.earliest,
            case
              when v_fair then v_round + 1 else min(t.due) over (partition by t.flow_key)
            end
          ) - 0.001
        when v_fair then
          greatest(k.latest, v_round)
          + row_number() over (partition by t.flow_key, t.kept order by t.place)
        when k.fifo then
          greatest(k.latest, max(t.due) over (partition by t.flow_key order by t.place))
        else t.due
      end as ranking
    from (
      select
        u.place, t.task_id, t.turn, t.task_name, coalesce(t.flow_key, '') as flow_key,
        date_part('epoch', t.available_at) - 60 * coalesce(t.priority, 0) as due,
        exists (
          select from teguh.h_template as h where h.fifo and h.task_id = t.task_id
        ) as kept
      from unnest(p_task_ids) with ordinality as u(task_id, place)
      cross join lateral (
        select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
      ) as t
    ) as t
    join teguh._keys_template(p_task_ids, p_now) as k on k.flow_key = t.flow_key
    order by t.place
  ) as n;
end;
$$;

-- What is to be known of the keys of tasks: how many of each may be opened (null: all), the first
-- and last ranking there is, whether it is first in, first out.
create or replace function teguh._keys_template(p_task_ids uuid[], p_now timestamptz)
  returns table(
    flow_key text,
    slots    bigint,
    earliest double precision,
    latest   double precision,
    fifo     boolean
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_keys text[] := array(
    select distinct coalesce(t.flow_key, '')
    from unnest(p_task_ids) as u(task_id)
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
  );
begin
  return query
  select k.flow_key, s.slots, r.earliest, r.latest, coalesce(l.fifo, false)
  from unnest(v_keys) as k(flow_key)
  left join teguh._slots_template(v_keys, p_now) as s on s.flow_key = k.flow_key
  left join lateral (
    select l.fifo from teguh._limit_of(substr('_template', 2), 'key', k.flow_key) as l
  ) as l on k.flow_key <> ''
  cross join lateral (
    select min(f.ranking) as earliest, max(r.ranking) as latest
    from unnest('{o,w}'::"char"[]) as g(gate)
    cross join lateral (
      select f.ranking
      from teguh.l_template as f
      where f.flow_key collate "C" = k.flow_key
        and f.gate = g.gate
      order by f.ranking, f.seq
      limit 1
    ) as f
    cross join lateral (
      select r.ranking
      from teguh.l_template as r
      where r.flow_key collate "C" = k.flow_key
        and r.gate = g.gate
      order by r.ranking desc, r.seq desc
      limit 1
    ) as r
  ) as r;
end;
$$;

-- Claim up to p_qty tasks of the lanes, of the names given or of all (null).
create or replace function teguh._admit_template(
  p_worker     text,
  p_now        timestamptz,
  p_until      timestamptz,
  p_qty        integer,
  p_task_names text[]
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_everywhere boolean := exists (select from teguh.limits as l where l.queue_name = '*');
  v_limited    boolean;
  v_task_ids   uuid[] := '{}';
  v_claimed    uuid[];
  v_locked     tid[] := '{}';
  v_room       bigint;
  v_picks      record;
begin
  if v_everywhere and not teguh._enter_gate('*')
    or not teguh._enter_gate(substr('_template', 2))
  then
    return '{}';
  end if;
  v_limited := v_everywhere or teguh._is_limited(substr('_template', 2));
  if v_limited then
    perform teguh._unbar_template(teguh._vacate_template(v_everywhere, p_now), p_now);
  end if;
  perform teguh._intake_template(p_now);

  loop
    v_room := teguh._spare_template(v_everywhere, p_now);
    v_picks := teguh._choose_template(
      least(p_qty - cardinality(v_task_ids), v_room)::integer, v_locked, p_task_names, p_now
    );
    exit when v_picks.task_ids is null;
    if teguh._weed_template(v_picks.places, p_now) then
      -- where there is one, there may be many
      v_picks := teguh._choose_template(1000, v_locked, p_task_names, p_now);
      perform teguh._weed_template(v_picks.places, p_now);
      continue;
    end if;

    v_claimed := teguh._seize_template(
      p_worker, p_now, p_until, v_picks.task_ids, v_picks.turns, v_picks.places, v_limited
    );
    v_task_ids := v_task_ids || v_claimed;
    if cardinality(v_claimed) < cardinality(v_picks.task_ids) then
      v_locked := v_locked || v_picks.places;
    end if;
  end loop;

  return v_task_ids;
end;
$$;

-- How many more tasks the limits of the queue and of all queues leave; null is without limit.
create or replace function teguh._spare_template(p_everywhere boolean, p_now timestamptz)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return least(
    (
      select teguh._left_over(l, '', teguh._busy_template(null), p_now)
      from teguh._limit_of(substr('_template', 2), 'queue', '') as l
    ),
    case when p_everywhere then (
      select teguh._left_over(l, '', teguh._everywhere_busy(), p_now)
      from teguh._limit_of('*', 'all', '') as l
    ) end
  );
end;
$$;

-- The first tasks of the lanes, up to p_qty, that limits leave and the worker knows, but for those
-- in places where somebody holds them locked.
create or replace function teguh._choose_template(
  p_qty        integer,
  p_locked     tid[],
  p_task_names text[],
  p_now        timestamptz,
  out places   tid[],
  out task_ids uuid[],
  out turns    integer[]
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[] := coalesce(p_task_names, teguh._named_template());
begin
  if p_qty <= 0 then
    return;
  end if;

  select array_agg(c.place), array_agg(c.task_id), array_agg(c.turn)
  into places, task_ids, turns
  from (
    select l.*
    from unnest(v_names) as n(task_name)
    left join lateral (
      select teguh._left_over(m, n.task_name, teguh._busy_template(n.task_name), p_now) as qty
      from teguh._limit_of(substr('_template', 2), 'task', n.task_name) as m
    ) as s on true
    cross join lateral (
      select l.ctid as place, l.task_id, l.turn, l.ranking, l.seq
      from teguh.l_template as l
      where l.gate = 'o'
        and l.task_name collate "C" = n.task_name
        and l.ctid <> all (p_locked)
      order by l.ranking, l.seq
      limit least(p_qty, case when s.qty is not null then greatest(s.qty, 0) end)
    ) as l
    where teguh._closed_until(substr('_template', 2), 'task', n.task_name, p_now) is null
    order by l.ranking, l.seq
    limit p_qty
  ) as c;
end;
$$;

-- The names of the tasks that are open.
create or replace function teguh._named_template()
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name  text;
  v_names text[];
begin
  loop
    select l.task_name into v_name
    from teguh.l_template as l
    where l.gate = 'o'
      and l.task_name collate "C" > coalesce(v_name, '')
    order by l.task_name collate "C"
    limit 1;
    exit when not found;
    v_names := v_names || v_name;
  end loop;

  return v_names;
end;
$$;

-- Delete the rows among some of the lanes whose tasks are not to be had any more, and let others
-- of their keys take their places.  False if there was none.
create or replace function teguh._weed_template(p_places tid[], p_now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys text[] := teguh._cull_template(p_places, p_now);
begin
  if v_keys is null then
    return false;
  end if;

  -- where one was there may be many, such as all of a key that were cancelled
  perform teguh._cull_template(
    array(
      select w.place
      from unnest(v_keys) as k(flow_key)
      cross join lateral (
        select l.ctid as place
        from teguh.l_template as l
        where l.flow_key collate "C" = k.flow_key
          and l.gate = 'w'
        order by l.ranking, l.seq
        limit 1000
      ) as w
    ),
    p_now
  );
  perform teguh._unbar_template(v_keys, p_now);
  return true;
end;
$$;

-- Delete the rows among some of the lanes whose tasks are not to be had any more.  Returns their
-- keys, null if there was none.
create or replace function teguh._cull_template(p_places tid[], p_now timestamptz)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys text[];
begin
  with stale as (
    delete from teguh.l_template as l
    where l.ctid = any (p_places)
      and not exists (
        select
        from teguh.t_template as t
        where (t.task_id, t.turn) = (l.task_id, l.turn)
          and t.state in ('pending', 'sleeping')
          and t.laned
          and (t.deadline_at is null or t.deadline_at > p_now)
        offset 0
      )
    returning l.flow_key
  )

  select array_agg(distinct s.flow_key) into v_keys
  from stale as s;
  return v_keys;
end;
$$;

-- Claim chosen tasks, but for those that somebody holds locked.
create or replace function teguh._seize_template(
  p_worker   text,
  p_now      timestamptz,
  p_until    timestamptz,
  p_task_ids uuid[],
  p_turns    integer[],
  p_places   tid[],
  p_limited  boolean
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_picked teguh._picked;
begin
  with free as materialized (
    select t.task_id, t.was
    from unnest(p_task_ids, p_turns) as u(task_id, turn)
    cross join lateral (
      select t.task_id, teguh._letter(t.state, t.attempt, t.wake_event) as was
      from teguh.t_template as t
      where (t.task_id, t.turn) = (u.task_id, u.turn)
        and t.state in ('pending', 'sleeping')
        and t.laned
      for no key update skip locked
    ) as t
  ),

  claimed as (
    update teguh.t_template as t
    set
      state = 'running',
      laned = false,
      attempt = t.attempt + 1,
      claimed_by = p_worker,
      started_at = p_now,
      first_started_at = coalesce(t.first_started_at, p_now),
      lease_expires_at = least(p_until, teguh._after(p_now, t.timeout_seconds)),
      deadline_at = case
        when t.attempt > 0 or t.cancellation is null then t.deadline_at
        else least(t.expires_at, teguh._after(p_now, (t.cancellation ->> 'max_duration')::float8))
      end
    from free as f
    where t.task_id = f.task_id
    returning t.task_id, t.turn, t.task_name, f.was,
      t.timeout_seconds is not null or t.attempt = 1 and t.deadline_at is not null as limited
  )

  select
    array_agg(c.task_id), array_agg(c.turn), array_agg(c.task_name), array_agg(c.was),
    bool_or(c.limited)
  into v_picked.task_ids, v_picked.turns, v_picked.names, v_picked.was, v_picked.limited
  from claimed as c;
  if v_picked.task_ids is null then
    return '{}';
  end if;

  perform teguh._quit_template(v_picked.task_ids, p_places);
  if p_limited then
    perform teguh._occupy_template(v_picked.task_ids, p_now);
  end if;
  perform teguh._reckon_template(v_picked.names, v_picked.was, 'r');
  perform teguh._push_template(
    'l', v_picked.task_ids, v_picked.turns, array[coalesce(p_until, 'infinity')]
  );
  if v_picked.limited then
    perform teguh._limits_template(v_picked.task_ids);
  end if;
  return v_picked.task_ids;
end;
$$;

-- Take claimed tasks out of their lanes.
create or replace function teguh._quit_template(p_task_ids uuid[], p_places tid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_round bigint;
begin
  with gone as (
    delete from teguh.l_template as l
    where l.ctid = any (p_places)
      and l.task_id = any (p_task_ids)
    returning l.ranking
  )

  select max(g.ranking)::bigint into v_round
  from gone as g;
  perform from teguh.limits as l
  where l.queue_name = substr('_template', 2)
    and l.fair;
  if found and v_round > coalesce(pg_sequence_last_value('teguh.round_template'::regclass), -1) then
    perform setval('teguh.round_template'::regclass, v_round);
  end if;
end;
$$;

-- Count claimed tasks against the limits.
create or replace function teguh._occupy_template(p_task_ids uuid[], p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := substr('_template', 2);
begin
  delete from teguh.h_template as h
  where h.fifo
    and h.task_id = any (p_task_ids);
  insert into teguh.h_template as h (task_id, turn, fifo, task_name, flow_key)
  select
    t.task_id, t.turn, coalesce(l.fifo, false), t.task_name, coalesce(t.flow_key, '')
  from teguh.t_template as t
  left join lateral (
    select l.fifo from teguh._limit_of(v_queue_name, 'key', t.flow_key) as l
  ) as l on t.flow_key is not null
  where t.task_id = any (p_task_ids);

  insert into teguh.starts as s (queue_name, scope, name, started_at, qty)
  select l.queue_name, l.scope, c.name, p_now, count(*)
  from teguh.t_template as t
  cross join lateral (
    values (v_queue_name, 'queue', ''), (v_queue_name, 'task', t.task_name),
      (v_queue_name, 'key', t.flow_key), ('*', 'all', '')
  ) as c(queue_name, scope, name)
  cross join lateral (
    select l.* from teguh._limit_of(c.queue_name, c.scope, c.name) as l
  ) as l
  where t.task_id = any (p_task_ids)
    and l.rate is not null
    and c.name is not null
  group by l.queue_name, l.scope, c.name;
end;
$$;

-- When a claim may find something in the lanes that it did not find now: when the period of a rate
-- is over, or in a second; null if they are empty.
create or replace function teguh._chance_template(p_now timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform from teguh.l_template
  limit 1;
  if not found then
    return null;
  end if;

  return least(
    teguh._after(p_now, 1),
    (
      select min(teguh._after(s.started_at, l.period_seconds))
      from teguh.starts as s
      cross join lateral (
        select l.period_seconds from teguh._limit_of(s.queue_name, s.scope, s.name) as l
      ) as l
      where s.queue_name in (substr('_template', 2), '*')
        and teguh._after(s.started_at, l.period_seconds) > p_now
    )
  );
end;
$$;

-- Arrange the lanes anew: limits have changed.  p_rank: so may have what they rank by, and what
-- is kept first in line.
create or replace function teguh._align_template(p_rank boolean, p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_ids uuid[];
begin
  if p_rank then
    update teguh.h_template as h
    set fifo = not h.fifo
    where h.fifo <> coalesce(
      (
        select l.fifo
        from teguh._limit_of(substr('_template', 2), 'key', nullif(h.flow_key, '')) as l
      ),
      false
    );

    with gone as (
      delete from teguh.l_template as l
      returning l.task_id, l.turn, l.seq
    )

    select array_agg(t.task_id order by g.seq) into v_task_ids
    from gone as g
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = g.task_id offset 0
    ) as t
    where t.turn = g.turn
      and t.laned;
    perform teguh._line_template(v_task_ids, p_now);
  else
    update teguh.l_template as l
    set gate = 'w'
    where l.gate = 'o'
      and l.flow_key <> '';
    perform teguh._unbar_template(
      array(select distinct l.flow_key from teguh.l_template as l), p_now
    );
  end if;
end;
$$;
