-- The usual queue: a task's row, a narrow ready row that a claim deletes with skip locked, a
-- lease row that completion deletes. Static SQL, three tables, no more indexes than it needs.
create schema baseline;

create table baseline.task (
  task_id bigint generated always as identity primary key,
  state text not null default 'pending',
  params jsonb not null,
  result jsonb
) with (fillfactor = 45);

create table baseline.ready (
  available_at timestamptz not null default clock_timestamp(),
  task_id bigint not null,
  primary key (available_at, task_id)
);

create table baseline.lease (
  task_id bigint primary key,
  worker text not null,
  expires_at timestamptz not null
);

create index on baseline.lease (expires_at);

create function baseline.spawn(p_params jsonb)
  returns bigint
  language sql
as $$
  with task as (
    insert into baseline.task (params) values (p_params) returning task_id
  )

  insert into baseline.ready (task_id) select task_id from task returning task_id;
$$;

create function baseline.claim(p_worker text, p_seconds double precision, p_qty integer)
  returns setof bigint
  language plpgsql
as $$
declare
  v_now    timestamptz := clock_timestamp();
  v_places tid[];
begin
  -- locked rows stay where they are
  v_places := array(
    select r.ctid
    from baseline.ready as r
    where r.available_at <= v_now
    order by r.available_at, r.task_id
    limit p_qty
    for update skip locked
  );

  return query
  with taken as (
    delete from baseline.ready as r where r.ctid = any (v_places) returning r.task_id
  )

  insert into baseline.lease (task_id, worker, expires_at)
  select k.task_id, p_worker, v_now + make_interval(secs => p_seconds)
  from taken as k
  returning baseline.lease.task_id;
end;
$$;

create function baseline.complete(p_task_id bigint, p_result jsonb)
  returns void
  language plpgsql
as $$
begin
  delete from baseline.lease as l where l.task_id = p_task_id;
  if not found then
    raise exception 'task % is not leased', p_task_id;
  end if;

  update baseline.task as t
  set state = 'completed', result = p_result
  where t.task_id = p_task_id;
end;
$$;
