-- Set or take away a limit of a queue, arrange its lanes by it, and tell the workers that wait.
create or replace function teguh._cap_template(p_limit teguh.limits)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := teguh.current_time();
  v_old teguh.limits;
  v_new teguh.limits;
begin
  perform teguh._reign_template();
  select l.* into v_old
  from teguh._limit_of(p_limit.queue_name, p_limit.scope, p_limit.name) as l;
  perform teguh._write_limit(p_limit);
  select l.* into v_new
  from teguh._limit_of(p_limit.queue_name, p_limit.scope, p_limit.name) as l;
  perform teguh._align_template(
    p_limit.scope = 'key'
    and (coalesce(v_old.fair, false), coalesce(v_old.fifo, false))
        <> (coalesce(v_new.fair, false), coalesce(v_new.fifo, false)),
    v_now
  );
  perform pg_notify('teguh_template', '');
end;
$$;

-- Write a limit down; one that limits nothing goes, as does what was noted for rates that are no
-- more.
create or replace function teguh._write_limit(p_limit teguh.limits)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.limits as l
  where (l.queue_name, l.scope, l.name) = (p_limit.queue_name, p_limit.scope, p_limit.name);
  if p_limit.fifo or p_limit.fair or num_nonnulls(p_limit.max_running, p_limit.rate) > 0 then
    insert into teguh.limits select p_limit.*;
  end if;
  delete from teguh.starts as s
  where (s.queue_name, s.scope) = (p_limit.queue_name, p_limit.scope)
    and not exists (
      select
      from teguh._limit_of(s.queue_name, s.scope, s.name) as l
      where l.rate is not null
    );
end;
$$;

-- Read a limit, or raise TG005.
create or replace function teguh._read_limit(
  p_queue_name text,
  p_scope      text,
  p_name       text,
  p_limit      jsonb
)
  returns teguh.limits
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit teguh.limits;
  v_given jsonb := coalesce(p_limit, '{}');
begin
  if coalesce(p_scope, '') not in ('all', 'queue', 'task', 'key')
    or (p_scope = 'all') <> (p_queue_name is null)
    or p_scope in ('all', 'queue') and p_name is not null
  then
    raise exception 'no limit can be on that'
      using
        errcode = 'TG005',
        detail = 'Scopes: all (no queue, no name), queue (no name), task, key (a name or *).',
        hint = 'For instance set_limit(''default'', ''key'', ''*'', ''{"max_running": 1}'').';
  end if;

  perform teguh._check_keys('limit', v_given, array[
    'max_running', 'rate', 'period_seconds', 'fifo', 'fair'
  ]);
  if p_scope in ('task', 'key') then
    v_limit.name := coalesce(p_name, '*');
    perform teguh._check_name('name', v_limit.name);
  else
    v_limit.name := '';
  end if;
  v_limit.queue_name := coalesce(p_queue_name, '*');
  v_limit.scope := p_scope;
  v_limit.max_running := teguh._integer_option(v_given, 'max_running', 0);
  v_limit.rate := teguh._integer_option(v_given, 'rate', 0);
  v_limit.period_seconds := teguh._number_option(v_given, 'period_seconds', 1e-3, 1e9);
  v_limit.fifo := coalesce(teguh._flag_option(v_given, 'fifo'), false);
  v_limit.fair := coalesce(teguh._flag_option(v_given, 'fair'), false);
  perform teguh._check_limit_keys(v_limit);
  return v_limit;
end;
$$;

-- Refuse what does not go together in a limit.
create or replace function teguh._check_limit_keys(p_limit teguh.limits)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if (p_limit.rate is null) <> (p_limit.period_seconds is null)
    or p_limit.fifo and (p_limit.scope <> 'key' or p_limit.max_running is not null)
    or p_limit.fair and (p_limit.scope <> 'key' or p_limit.name <> '*')
  then
    raise exception 'the limit has keys that do not go together'
      using
        errcode = 'TG005',
        detail = 'rate goes with period_seconds; fifo is for keys, and lets one run at a time by '
          'itself; fair is for all keys (*).',
        hint = 'For instance {"rate": 10, "period_seconds": 1}.';
  end if;
end;
$$;

-- Limit what runs.
create or replace function teguh.set_limit(
  p_queue_name text,
  p_scope      text,
  p_name       text default null,
  p_limit      jsonb default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit      teguh.limits;
  v_queue_name text;
begin
  perform teguh._check_isolation('set_limit');
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;
  v_limit := teguh._read_limit(p_queue_name, p_scope, p_name, p_limit);

  if p_queue_name is not null then
    execute format('select teguh._cap_%s($1)', p_queue_name) using v_limit;
    return;
  end if;

  perform pg_advisory_xact_lock(teguh._gate_number('*'));
  perform teguh._write_limit(v_limit);
  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
    order by q.queue_name
  loop
    if teguh._share_queue(v_queue_name) then
      execute format('select teguh._reign_%s()', v_queue_name);
      perform pg_notify('teguh_' || v_queue_name, '');
    end if;
  end loop;
end;
$$;

comment on function teguh.set_limit(text, text, text, jsonb) is
  'Limits what runs at a time. p_scope: all (all queues together; p_queue_name is null), queue, '
  'task (a task name) or key (the option "key" of spawn_task); p_name: which, or * or null for '
  'each of them by itself, but those that have one of their own. p_limit: '
  'max_running; rate with period_seconds (starts in any such period); for keys '
  'fifo (tasks of a key run one at a time in the order in which they came due, the next when the '
  'one before is over, retries and sleeps included), and for all keys (*) fair (they take turns). '
  'Replaces the limit that was; null takes it away. It holds for every claim that begins after '
  'the commit, and counts what runs already. From then on the queue is claimed from in another '
  'way, which costs each claim more. Raises TG001 for an unknown queue, TG005 for a bad limit, '
  '25001 unless the transaction is READ COMMITTED.';

-- How much of the limits of a queue is used.
create or replace function teguh._usage_template()
  returns table(
    scope          text,
    name           text,
    max_running    integer,
    running        bigint,
    rate           integer,
    period_seconds double precision,
    started        bigint,
    waiting        bigint,
    fifo           boolean,
    fair           boolean,
    paused_until   timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := teguh.current_time();
begin
  return query
  with counted as materialized (
    select c.scope, c.name, sum(u.running) as running, sum(u.waiting) as waiting
    from (
      select r.task_name, r.flow_key, 1 as running, 0 as waiting
      from teguh._going_template() as r
      union all
      select l.task_name, l.flow_key, 0, 1
      from teguh.l_template as l
      cross join lateral (
        select t.* from teguh.t_template as t where t.task_id = l.task_id offset 0
      ) as t
      where t.turn = l.turn
        and t.state in ('pending', 'sleeping')
        and t.laned
    ) as u
    cross join lateral (
      values ('queue', ''), ('task', u.task_name), ('key', u.flow_key)
    ) as c(scope, name)
    group by c.scope, c.name
  ),

  shown as (
    select l.scope, coalesce(c.name, l.name) as name, c.running, c.waiting
    from teguh.limits as l
    left join counted as c on c.scope = l.scope and case
      when l.name <> '*' then c.name = l.name
      else c.name <> '' and not exists (
        select
        from teguh.limits as o
        where (o.queue_name, o.scope, o.name) = (l.queue_name, l.scope, c.name)
      )
    end
    where l.queue_name = substr('_template', 2)
    union all
    select p.scope, p.name, c.running, c.waiting
    from teguh.pauses as p
    left join counted as c on (c.scope, c.name) = (p.scope, p.name)
    where p.queue_name = substr('_template', 2)
      and not exists (select from teguh._limit_of(p.queue_name, p.scope, p.name))
  )

  select
    s.scope, nullif(s.name, ''), l.max_running, coalesce(s.running, 0)::bigint, l.rate,
    l.period_seconds, teguh._started(l, s.name, v_now), coalesce(s.waiting, 0)::bigint,
    coalesce(l.fifo, false), coalesce(l.fair, false),
    teguh._closed_until(substr('_template', 2), s.scope, s.name, v_now)
  from shown as s
  left join lateral (
    select l.* from teguh._limit_of(substr('_template', 2), s.scope, s.name) as l
  ) as l on true
  order by s.scope, s.name;
end;
$$;

-- How much of the limit over all queues is used.
create or replace function teguh._overall_usage()
  returns table(
    scope          text,
    name           text,
    max_running    integer,
    running        bigint,
    rate           integer,
    period_seconds double precision,
    started        bigint,
    waiting        bigint,
    fifo           boolean,
    fair           boolean,
    paused_until   timestamptz
  )
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
  v_waiting    bigint := 0;
  v_some       bigint;
begin
  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
  loop
    if teguh._share_queue(v_queue_name) then
      execute format('select count(*) from teguh.l_%s', v_queue_name) into v_some;
      v_waiting := v_waiting + v_some;
    end if;
  end loop;

  return query
  select
    l.scope, null::text, l.max_running, teguh._everywhere_busy(), l.rate, l.period_seconds,
    teguh._started(l, '', teguh.current_time()), v_waiting, l.fifo, l.fair, null::timestamptz
  from teguh.limits as l
  where l.queue_name = '*';
end;
$$;

-- How much of its limits a queue uses.
create or replace function teguh.limit_usage(p_queue_name text)
  returns table(
    scope          text,
    name           text,
    max_running    integer,
    running        bigint,
    rate           integer,
    period_seconds double precision,
    started        bigint,
    waiting        bigint,
    fifo           boolean,
    fair           boolean,
    paused_until   timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is not null then
    return query execute teguh._call('usage', p_queue_name, 0);
  else
    return query select u.* from teguh._overall_usage() as u;
  end if;
end;
$$;

comment on function teguh.limit_usage(text) is
  'The limits of a queue (null: the one over all queues), one for each name or key (*) once per '
  'name or key that runs or waits: how many of them run, how many were started within the period, '
  'and how many wait in the lanes for their turn; tasks that no claim has come to yet are not '
  'among these. paused_until: see pause_queue(). Raises TG001 for an unknown queue.';
