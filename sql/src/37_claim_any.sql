-- Remember which task names workers ask for.  Once a minute is often enough, and one at a time:
-- nobody waits for another.
create or replace function teguh._want_template(p_task_names text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := teguh.current_time();
  v_names text[] := array(
    select distinct u.task_name
    from unnest(p_task_names) as u(task_name)
    where not exists (
      select
      from teguh.wanted as w
      where (w.queue_name, w.task_name) = (substr('_template', 2), u.task_name)
        and w.seen_at between v_now - interval '1 minute' and v_now
    )
    order by u.task_name
  );
begin
  if v_names <> '{}'
    and pg_try_advisory_xact_lock(hashtextextended('teguh.wanted_template', 0))
  then
    insert into teguh.wanted as w (queue_name, task_name, seen_at)
    select substr('_template', 2), u.task_name, v_now
    from unnest(v_names) as u(task_name)
    on conflict (queue_name, task_name) do update
    set seen_at = excluded.seen_at;
  end if;
  perform teguh._rule_template(false);
end;
$$;

-- Read an array of task names; null when absent or null.
create or replace function teguh._names_option(p_options jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names jsonb := nullif(p_options -> 'task_names', 'null');
  v_name  text;
begin
  if v_names is null then
    return null;
  end if;

  if jsonb_typeof(v_names) <> 'array'
    or jsonb_path_exists(v_names, '$[*] ? (@.type() != "string")')
    or v_names = '[]'
  then
    raise exception '"task_names" must be an array of names'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_names::text, 200)),
        hint = 'For instance ["charge", "ship"]; leave it out to claim whatever there is.';
  end if;
  for v_name in
    select n.name
    from jsonb_array_elements_text(v_names) as n(name)
  loop
    perform teguh._check_name('task name', v_name);
  end loop;
  return array(select distinct n.name from jsonb_array_elements_text(v_names) as n(name));
end;
$$;

-- The queues that a worker claims from, in the order in which it does.
create or replace function teguh._order_queues(p_queue_names text[], p_order text)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names  text[] := coalesce(p_queue_names, array(
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('take', q.queue_name) and teguh._share_queue(q.queue_name)
  ));
  v_count  integer := cardinality(v_names);
  v_turn   integer;
  v_oldest timestamptz;
  v_ages   timestamptz[];
begin
  if p_order = 'round_robin' and v_count > 1 then
    v_turn := coalesce(nullif(current_setting('teguh.turn', true), ''), '0')::integer % v_count;
    perform set_config('teguh.turn', ((v_turn + 1) % v_count)::text, false);
    return v_names[v_turn + 1:] || v_names[:v_turn];
  elsif p_order = 'oldest' then
    for v_place in 1 .. v_count loop
      execute 'select * from ' || teguh._from('oldest', v_names[v_place]) into v_oldest;
      v_ages[v_place] := v_oldest;
    end loop;
    return array(
      select u.name
      from unnest(v_names, v_ages) with ordinality as u(name, oldest, place)
      order by u.oldest nulls last, u.place
    );
  end if;

  return v_names;
end;
$$;

-- Remember of several queues which task names are asked for.
create or replace function teguh._remember_names(p_queue_names text[], p_task_names text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  for v_queue_name in
    select distinct u.name
    from unnest(p_queue_names) as u(name)
  loop
    perform teguh._policy(v_queue_name);
    execute format('select teguh._want_%s($1)', v_queue_name) using p_task_names;
  end loop;
end;
$$;

-- Claim runs of several queues.
create or replace function teguh.claim_any(
  p_queue_names   text[],
  p_worker_id     text,
  p_claim_timeout double precision default 30,
  p_qty           integer default 1,
  p_options       jsonb default '{}'
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
    timeout_seconds  double precision,
    queue_name       text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_names   text[];
  v_queues  text[];
  v_queue   text;
  v_policy  jsonb;
  v_left    integer := greatest(coalesce(p_qty, 1), 1);
  v_count   integer;
begin
  perform teguh._check_isolation('claim_any');
  perform teguh._check_keys('claim options', v_options, array['task_names', 'order']);
  v_names := teguh._names_option(v_options);
  perform teguh._check_order(teguh._text_option(v_options, 'order'));

  v_queues := teguh._order_queues(
    p_queue_names, coalesce(v_options ->> 'order', 'round_robin')
  );
  if v_names is not null then
    perform teguh._remember_names(v_queues, v_names);
  end if;

  foreach v_queue in array v_queues loop
    exit when v_left <= 0;
    v_policy := teguh._policy(v_queue);
    continue when teguh._paused_until(v_policy) is not null;
    return query execute format(
      'select t.*, $6 from teguh._take_%s($1, $2, $3, $4, $5) as t', v_queue
    )
    using
      coalesce(nullif(btrim(p_worker_id), ''), 'worker'), nullif(p_claim_timeout, 'NaN'), v_left,
      v_policy ? 'ruled' or v_names is not null, v_names, v_queue;
    get diagnostics v_count = row_count;
    v_left := v_left - v_count;
  end loop;
end;
$$;

comment on function teguh.claim_any(text[], text, double precision, integer, jsonb) is
  'Claims like claim_task(), from several queues (null: all that the caller may claim from), up to '
  'p_qty runs in all, each with its queue_name; a queue that another worker is just claiming from '
  'may be passed over. Options: order, in which queues are looked through: '
  'round_robin (the default; each call of a session begins with the next), strict (as given), '
  'oldest (the one whose first ready task has waited longest); task_names, which the worker '
  'knows: it gets no other, and queue_stats() counts as unclaimable what nobody asks for. A '
  'queue for which task_names was ever given is claimed from in another way from then on, which '
  'costs each claim more: see set_limit(). Raises TG001 for an unknown queue, TG005 for a bad '
  'option, 25001 unless the transaction is READ COMMITTED.';

-- Refuse an order that is none.
create or replace function teguh._check_order(p_order text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_order not in ('round_robin', 'strict', 'oldest') then
    raise exception 'unknown order "%"', left(p_order, 200)
      using
        errcode = 'TG005',
        detail = 'Known orders: round_robin, strict, oldest.',
        hint = 'round_robin is the default.';
  end if;
end;
$$;
