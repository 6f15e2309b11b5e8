-- The letter by which tallies know where a task stands.
create or replace function teguh._letter(p_state text, p_attempt integer, p_wake_event text)
  returns "char"
  language sql
  immutable
as $$
  select case
    when p_state operator(pg_catalog.=) 'pending' then 'p'
    when p_state operator(pg_catalog.=) 'running' then 'r'
    when p_state operator(pg_catalog.=) 'completed' then 'c'
    when p_state operator(pg_catalog.=) 'failed' then 'f'
    when p_state operator(pg_catalog.=) 'cancelled' then 'x'
    when p_state operator(pg_catalog.=) 'expired' then 'e'
    when p_attempt operator(pg_catalog.=) 0 then 'd'
    when p_wake_event is null then 's'
    else 'w'
  end::pg_catalog."char";
$$;

-- A letter as often as there are tasks.
create or replace function teguh._letters(p_letter "char", p_task_ids uuid[])
  returns "char"[]
  language sql
  immutable
as $$
  select pg_catalog.array_fill(
    p_letter, array[coalesce(pg_catalog.cardinality(p_task_ids), 0)]
  );
$$;

-- The least bound of the duration buckets that a duration does not exceed.  What would be less
-- than a nanosecond too long counts as equal.
create or replace function teguh._bound(p_seconds double precision, p_buckets double precision[])
  returns double precision
  language sql
  immutable
as $$
  select coalesce(
    p_buckets[
      pg_catalog.width_bucket(
        p_seconds operator(pg_catalog.-) 1e-9::double precision, p_buckets
      ) operator(pg_catalog.+) 1
    ],
    'infinity'::double precision
  );
$$;

-- Note how many tasks of a name changed, for the statistics, in the transaction that changes
-- them.  p_most and p_seconds: how long their runs took if that ended runs, else 0.
--
-- It does no harm if a segment is no longer the newest.  What is in it is counted for as long as
-- it is there, and added to the totals by whoever truncates it.
create or replace function teguh._tally_template(
  p_task_name text,
  p_was       "char",
  p_became    "char",
  p_qty       integer default 1,
  p_most      double precision default 0,
  p_seconds   double precision default 0
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if (pg_sequence_last_value('teguh.ring_template'::regclass) + 1) / 2 % 2 = 0 then
    insert into teguh.n0_template as n (task_name, was, became, qty, most, seconds)
    values (p_task_name, p_was, p_became, p_qty, p_most, p_seconds);
  else
    insert into teguh.n1_template as n (task_name, was, became, qty, most, seconds)
    values (p_task_name, p_was, p_became, p_qty, p_most, p_seconds);
  end if;
end;
$$;

-- Note changes of several tasks to the same, one row for all that are alike.
create or replace function teguh._reckon_template(
  p_task_names text[],
  p_was        "char"[],
  p_became     "char"
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task_names[1] = all (p_task_names) and p_was[1] = all (p_was) then
    perform teguh._tally_template(
      p_task_names[1], p_was[1], p_became, cardinality(p_task_names)
    );
  else
    perform teguh._tally_template(c.task_name, c.was, p_became, c.qty)
    from (
      select u.task_name, u.was, count(*)::integer as qty
      from unnest(p_task_names, p_was) as u(task_name, was)
      group by u.task_name, u.was
    ) as c;
  end if;
end;
$$;

-- Note that runs have ended with success, one row for all that are alike.
create or replace function teguh._finish_template(
  p_task_names text[],
  p_seconds    double precision[]
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_buckets double precision[];
begin
  select q.buckets into v_buckets
  from teguh.queues as q
  where q.queue_name = substr('_template', 2);

  perform teguh._tally_template(c.task_name, 'r', 'c', c.qty, c.most, c.seconds)
  from (
    select
      u.task_name, teguh._bound(u.seconds, v_buckets) as most, count(*)::integer as qty,
      sum(u.seconds) as seconds
    from unnest(p_task_names, p_seconds) as u(task_name, seconds)
    group by u.task_name, teguh._bound(u.seconds, v_buckets)
  ) as c;
end;
$$;

-- Note the change of a task that was as given.  p_now: a run ended then.
create or replace function teguh._moved_template(
  p_task   teguh.t_template,
  p_became "char",
  p_now    timestamptz default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_was     "char" := teguh._letter(p_task.state, p_task.attempt, p_task.wake_event);
  v_seconds double precision := date_part('epoch', p_now - p_task.started_at);
begin
  if v_seconds is null then
    perform teguh._tally_template(p_task.task_name, v_was, p_became);
  else
    perform teguh._tally_template(
      p_task.task_name, v_was, p_became, 1, teguh._bound(v_seconds, q.buckets), v_seconds
    )
    from teguh.queues as q
    where q.queue_name = substr('_template', 2);
  end if;
end;
$$;

-- Sum up the notes of a segment, so that readers need not, once a thousand have been made since
-- that was done last.
--
-- The sum holds what was visible to its snapshot, and says which that is.  A transaction that has
-- an id by then leaves it to another: what it notes later would look as if it had been seen.
create or replace function teguh._sum0_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last pg_snapshot := (
    select k.snapshot
    from teguh.k0_template as k
    where k.kind = 'n'
    order by k.kind desc, k.n desc
    limit 1
  );
begin
  perform from teguh.n0_template as n
  where n.xid >= coalesce(pg_snapshot_xmax(v_last), '0')
  order by n.xid
  limit 1 offset 999;
  if not found or pg_current_xact_id_if_assigned() is not null then
    return;
  end if;

  insert into teguh.k0_template as k (n, kind, seq, snapshot, tallies)
  select
    nextval('teguh.seq_template'::regclass), 'n', 0, pg_current_snapshot(),
    array_agg(row(c.task_name, c.was, c.became, c.most, c.qty, c.seconds)::teguh._tally)
  from (
    select c.task_name, c.was, c.became, c.most, sum(c.qty) as qty, sum(c.seconds) as seconds
    from teguh._noted0_template() as c
    group by c.task_name, c.was, c.became, c.most
  ) as c;
end;
$$;

-- The notes of a segment: its latest sum, and what that did not see.
create or replace function teguh._noted0_template()
  returns setof teguh._tally
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  with last as materialized (
    select k.snapshot, k.tallies
    from teguh.k0_template as k
    where k.kind = 'n'
    order by k.kind desc, k.n desc
    limit 1
  ),

  unseen as (
    select n.*
    from teguh.n0_template as n
    where n.xid >= coalesce((select pg_snapshot_xmax(l.snapshot) from last as l), '0')
    union all
    select n.*
    from last as l
    cross join lateral pg_snapshot_xip(l.snapshot) as x(xid)
    join teguh.n0_template as n on n.xid = x.xid
  )

  select t.task_name, t.was, t.became, t.most, t.qty, t.seconds
  from last as l
  cross join lateral unnest(l.tallies) as t
  union all
  select u.task_name, u.was, u.became, u.most, u.qty, u.seconds
  from unseen as u;
$$;

-- Add the notes of a segment to the totals, which is about to be truncated under a lock that
-- nobody shares.
create or replace function teguh._bank0_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.n_template as n (task_name, was, became, most, qty, seconds)
  select o.task_name, o.was, o.became, o.most, sum(o.qty), sum(o.seconds)
  from teguh.n0_template as o
  group by o.task_name, o.was, o.became, o.most
  on conflict (task_name, was, became, most) do update
  set
    qty = n.qty + excluded.qty,
    seconds = n.seconds + excluded.seconds;
end;
$$;

-- Count the tasks that are there, for a queue whose changes were never noted: it is from an
-- older version, or was copied by other means.
create or replace function teguh._census_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.n_template as n (task_name, was, became, most, qty, seconds)
  select
    t.task_name, '-', teguh._letter(t.state, t.attempt, t.wake_event) as became, 0, count(*), 0
  from teguh.t_template as t
  where not exists (select from teguh.n_template)
    and not exists (select from teguh.n0_template)
    and not exists (select from teguh.n1_template)
  group by t.task_name, teguh._letter(t.state, t.attempt, t.wake_event);
end;
$$;

-- What became of how many tasks, by name: totals and all notes.
--
-- The locks come first, and make sure that the statement that counts sees the totals as they are
-- after a segment was truncated.
create or replace function teguh._count_template()
  returns setof teguh._tally
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  lock table teguh.n0_template, teguh.n1_template in access share mode;
  return query
  select c.task_name, c.was, c.became, c.most, sum(c.qty)::bigint, sum(c.seconds)
  from (
    select n.task_name, n.was, n.became, n.most, n.qty, n.seconds
    from teguh.n_template as n
    union all
    select * from teguh._noted0_template()
    union all
    select * from teguh._noted1_template()
  ) as c
  group by c.task_name, c.was, c.became, c.most;
end;
$$;
