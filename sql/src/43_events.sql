-- Wait for an event, or learn how the wait ended.
--
-- The event's row is locked first, the task's second, as emit does: of an emit
-- and an await at the same time one sees what the other did.  The outcome, also
-- that the wait timed out, becomes a checkpoint, so that a replay sees the same.
-- A wait whose time is over has timed out even if the event came a moment later.
create or replace function teguh._wait_template(
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_event_name text,
  p_timeout    double precision
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := teguh.current_time();
  v_event teguh.e_template;
  v_task  teguh.t_template;
  v_wait  teguh.w_template;
  v_over  boolean;
begin
  select false, c.state, c.status = 'timed_out' into should_suspend, payload, timed_out
  from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name;
  if found then
    perform teguh._own_template(p_task_id, p_run_id);
    payload := case when not timed_out then payload end;
    return next;
    return;
  end if;

  -- cleanup may remove the row in between
  loop
    insert into teguh.e_template as e (event_name, created_at)
    values (p_event_name, v_now)
    on conflict (event_name) do nothing;
    select e.* into v_event
    from teguh.e_template as e
    where e.event_name = p_event_name
    for share;
    exit when found;
  end loop;

  v_task := teguh._own_template(p_task_id, p_run_id);
  select w.* into v_wait
  from teguh.w_template as w
  where w.task_id = p_task_id
    and w.step_name = p_step_name
    and w.event_name = p_event_name;
  v_over := coalesce(v_wait.timeout_at <= v_now, false)
            or coalesce(p_timeout = 0 and v_event.emitted_at is null, false);

  if v_event.emitted_at is null and not v_over then
    perform teguh._park_template(
      v_task, p_step_name, p_event_name,
      coalesce(v_wait.timeout_at, teguh._after(v_now, p_timeout))
    );
    return query select true, null::jsonb, false;
    return;
  end if;

  payload := case when not v_over then v_event.payload end;
  perform teguh._note_template(
    p_task_id, p_step_name, payload, case when v_over then 'timed_out' else 'committed' end,
    p_run_id
  );
  delete from teguh.w_template as w
  where w.task_id = p_task_id;
  return query select false, payload, v_over;
end;
$$;

-- Put a locked task to sleep until an event is emitted, or its timeout has come.
create or replace function teguh._park_template(
  p_task       teguh.t_template,
  p_step_name  text,
  p_event_name text,
  p_timeout_at timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  update teguh.t_template as t
  set
    turn = p_task.turn + 1,
    state = 'sleeping',
    available_at = p_timeout_at,
    claimed_by = null,
    lease_expires_at = null,
    wake_event = p_event_name,
    event_payload = null
  where t.task_id = p_task.task_id;

  insert into teguh.w_template as w (task_id, event_name, step_name, turn, timeout_at)
  values (p_task.task_id, p_event_name, p_step_name, p_task.turn + 1, p_timeout_at)
  on conflict (task_id) do update
  set
    event_name = excluded.event_name,
    step_name = excluded.step_name,
    turn = excluded.turn,
    timeout_at = excluded.timeout_at;

  if p_timeout_at is not null then
    perform teguh._push_template(
      's', array[p_task.task_id], array[p_task.turn + 1], array[p_timeout_at]
    );
  end if;
  perform teguh._moved_template(p_task, 'w');
end;
$$;

-- Refuse what is no name of an event.
create or replace function teguh._check_event(p_event_name text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_name('event name', p_event_name);
  if p_event_name = '$children' or starts_with(p_event_name, '$message:') then
    raise exception 'an event cannot be named "%"', left(p_event_name, 200)
      using
        errcode = 'TG005',
        detail = 'That is what a task waits for in await_children() or receive_message().',
        hint = 'Give it another name.';
  end if;
end;
$$;

-- Wait for an event.
create or replace function teguh.await_event(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_event_name text,
  p_timeout    double precision default null
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_isolation('await_event');
  perform teguh._check_name('step name', p_step_name);
  perform teguh._check_event(p_event_name);
  if p_timeout is not null then
    perform teguh._check_seconds('timeout', p_timeout, true);
  end if;

  return query execute teguh._call('wait', p_queue_name, 5)
  using p_task_id, p_run_id, p_step_name, p_event_name, p_timeout;
end;
$$;

comment on function teguh.await_event(text, uuid, uuid, text, text, double precision) is
  'Waits for an event in a step of a run. should_suspend: the run now sleeps until '
  'the event is emitted or p_timeout seconds (null: for ever) have passed; the worker '
  'lets go of it and calls again when it is claimed next. Otherwise the wait is over, '
  'with the payload or timed_out, and stays so for this step. Raises TG001 for an '
  'unknown queue, TG002 for an unknown run or one of another task, TG004 if nobody '
  'holds the run, TG005 for a bad name or timeout, AB001 if the task is cancelled, '
  'AB002 if the run has ended, 25001 unless the transaction is READ COMMITTED.';

-- Emit an event and wake every task that waits for it.  Tasks are locked in the
-- order of their ids.  Each waiter gets its checkpoint here.
create or replace function teguh._emit_template(p_event_name text, p_payload jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_wait     teguh.w_template;
  v_task     teguh.t_template;
  v_task_ids uuid[] := '{}';
  v_turns    integer[] := '{}';
  v_names    text[] := '{}';
begin
  insert into teguh.e_template as e (event_name, created_at, emitted_at, payload)
  values (p_event_name, v_now, v_now, p_payload)
  on conflict (event_name) do update
  set
    emitted_at = excluded.emitted_at,
    payload = excluded.payload
  where e.emitted_at is null;
  if not found then
    return;
  end if;

  for v_wait in
    select w.*
    from teguh.w_template as w
    where w.event_name = p_event_name
    order by w.task_id
  loop
    continue when v_wait.timeout_at <= v_now;
    update teguh.t_template as t
    set
      turn = t.turn + 1,
      laned = false,
      state = 'pending',
      available_at = v_now,
      event_payload = p_payload
    where t.task_id = v_wait.task_id
      and t.turn = v_wait.turn
      and t.state = 'sleeping'
    returning t.* into v_task;
    if found then
      perform teguh._note_template(
        v_task.task_id, v_wait.step_name, p_payload, 'committed', v_task.run_id
      );
      delete from teguh.w_template as w
      where w.task_id = v_wait.task_id;
      v_task_ids := v_task_ids || v_task.task_id;
      v_turns := v_turns || v_task.turn;
      v_names := v_names || v_task.task_name;
    end if;
  end loop;

  if v_task_ids <> '{}' then
    perform teguh._push_template('r', v_task_ids, v_turns);
    perform teguh._reckon_template(v_names, teguh._letters('w', v_task_ids), 'p');
  end if;
end;
$$;

-- Emit an event.
create or replace function teguh.emit_event(
  p_queue_name text,
  p_event_name text,
  p_payload    jsonb default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_isolation('emit_event');
  perform teguh._check_event(p_event_name);
  execute teguh._call('emit', p_queue_name, 2)
  using p_event_name, coalesce(p_payload, 'null');
end;
$$;

comment on function teguh.emit_event(text, text, jsonb) is
  'Emits an event in the caller''s transaction: every task that waits for it becomes '
  'claimable, every task that will wait for it goes on at once. The first emit of a '
  'name counts, later ones change nothing; a null payload is JSON null. Raises TG001 '
  'for an unknown queue, TG005 for a bad name, 25001 unless the transaction is READ '
  'COMMITTED.';

-- Read the cursor of a page of events: the event before which it begins.
create or replace function teguh._read_event_cursor(p_cursor text)
  returns teguh.e_template
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_place text[];
  v_event teguh.e_template;
begin
  if p_cursor is null then
    v_event.created_at := 'infinity';
    v_event.event_name := '';
    return v_event;
  end if;

  begin
    v_place := regexp_match(convert_from(decode(p_cursor, 'hex'), 'UTF8'), '^([^ ]+ [^ ]+) (.+)$');
    v_event.created_at := v_place[1]::timestamptz;
    v_event.event_name := v_place[2];
  exception
    when data_exception then
      v_event.event_name := null;
  end;
  if v_event.event_name is null then
    raise exception 'not a cursor'
      using
        errcode = 'TG005',
        detail = format('Found: "%s".', left(p_cursor, 200)),
        hint = 'Pass the cursor of the last row of the page before, or null for the first page.';
  end if;

  return v_event;
end;
$$;

-- The names that may be meant when they begin so, or are awaited; null if these are many, and
-- events are better looked through by age.
create or replace function teguh._meant_template(p_prefix text, p_awaited boolean)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[];
begin
  if p_prefix is not null then
    v_names := array(
      select e.event_name
      from teguh.e_template as e
      where e.event_name collate "C" >= p_prefix
      order by e.event_name collate "C"
      limit 2000
    );
    if not coalesce(starts_with(v_names[2000], p_prefix), false) then
      return v_names;
    end if;
  end if;

  if p_awaited then
    v_names := array(
      with recursive awaited as (
        (select w.event_name from teguh.w_template as w order by w.event_name limit 1)
        union all
        select n.event_name
        from awaited as a
        cross join lateral (
          select w.event_name
          from teguh.w_template as w
          where w.event_name > a.event_name
          order by w.event_name
          limit 1
        ) as n
      )

      select a.event_name
      from awaited as a
      limit 2000
    );
    if cardinality(v_names) < 2000 then
      return v_names;
    end if;
  end if;

  return null;
end;
$$;

-- The names of a page of events, the newest first.  p_before, p_name: the event before which it
-- begins.
create or replace function teguh._leaf_template(
  p_prefix  text,
  p_emitted boolean,
  p_awaited boolean,
  p_after   timestamptz,
  p_before  timestamptz,
  p_name    text,
  p_limit   integer
)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := teguh.current_time();
  v_names text[] := teguh._meant_template(p_prefix, p_awaited);
begin
  if v_names is null then
    return array(
      select e.event_name
      from teguh.e_template as e
      where (e.created_at, e.event_name) < (p_before, p_name)
        and e.created_at >= p_after
        and (p_prefix is null or starts_with(e.event_name, p_prefix))
        and (p_emitted is null or (e.emitted_at is not null) = p_emitted)
        and (p_awaited is null or teguh._sought_template(e.event_name, v_now) = p_awaited)
      order by e.created_at desc, e.event_name desc
      limit p_limit
    );
  end if;

  return array(
    select e.event_name
    from unnest(v_names) as u(event_name)
    cross join lateral (
      select e.*
      from teguh.e_template as e
      where e.event_name = u.event_name
      offset 0
    ) as e
    where (e.created_at, e.event_name) < (p_before, p_name)
      and e.created_at >= p_after
      and (p_prefix is null or starts_with(e.event_name, p_prefix))
      and (p_emitted is null or (e.emitted_at is not null) = p_emitted)
      and (p_awaited is null or teguh._sought_template(e.event_name, v_now) = p_awaited)
    order by e.created_at desc, e.event_name desc
    limit p_limit
  );
end;
$$;

-- Whether an emit of this event would wake a task.
create or replace function teguh._sought_template(p_event_name text, p_now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (
    select from teguh.w_template as w
    where w.event_name = p_event_name
      and (w.timeout_at > p_now or w.timeout_at is null)
  );
end;
$$;

-- A page of events, as rows.
create or replace function teguh._news_template(
  p_prefix  text,
  p_emitted boolean,
  p_awaited boolean,
  p_after   timestamptz,
  p_before  timestamptz,
  p_name    text,
  p_limit   integer
)
  returns table(
    event_name text,
    created_at timestamptz,
    emitted_at timestamptz,
    payload    jsonb,
    waiters    bigint,
    cursor     text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now   timestamptz := teguh.current_time();
  v_names text[] := teguh._leaf_template(
    p_prefix, p_emitted, p_awaited, p_after, p_before, p_name, p_limit
  );
begin
  return query
  select
    e.event_name, e.created_at, e.emitted_at, e.payload, w.waiters,
    encode(convert_to(
      to_char(e.created_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00 ') || e.event_name,
      'UTF8'
    ), 'hex')
  from unnest(v_names) with ordinality as u(event_name, place)
  cross join lateral (
    select e.*
    from teguh.e_template as e
    where e.event_name = u.event_name
    offset 0
  ) as e
  cross join lateral (
    select count(*) as waiters
    from teguh.w_template as w
    where w.event_name = e.event_name
      and (w.timeout_at > v_now or w.timeout_at is null)
  ) as w
  order by u.place;
end;
$$;

-- List events.
create or replace function teguh.list_events(
  p_queue_name text,
  p_filter     jsonb default '{}',
  p_cursor     text default null,
  p_limit      integer default 50
)
  returns table(
    event_name text,
    created_at timestamptz,
    emitted_at timestamptz,
    payload    jsonb,
    waiters    bigint,
    cursor     text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_filter jsonb := coalesce(p_filter, '{}');
  v_place  teguh.e_template := teguh._read_event_cursor(p_cursor);
  v_until  timestamptz;
begin
  perform teguh._check_keys('filter of events', v_filter, array[
    'prefix', 'emitted', 'awaited', 'created_after', 'created_before', 'older_than_seconds'
  ]);
  v_until := least(
    teguh._time_option(v_filter, 'created_before'),
    teguh._after(
      teguh.current_time(), -teguh._number_option(v_filter, 'older_than_seconds', 0, 1e12)
    )
  );
  if v_until <= v_place.created_at then
    v_place.created_at := v_until;
    v_place.event_name := '';
  end if;

  return query execute teguh._call('news', p_queue_name, 7)
  using
    teguh._text_option(v_filter, 'prefix'),
    case when v_filter -> 'emitted' <> 'null' then teguh._flag_option(v_filter, 'emitted') end,
    case when v_filter -> 'awaited' <> 'null' then teguh._flag_option(v_filter, 'awaited') end,
    coalesce(teguh._time_option(v_filter, 'created_after'), '-infinity'),
    v_place.created_at,
    v_place.event_name,
    teguh._check_limit(p_limit);
end;
$$;

comment on function teguh.list_events(text, jsonb, text, integer) is
  'The events of a queue that were emitted or awaited, the newest first, a page at a time. '
  'created_at is when that was first, emitted_at null while it is only awaited, waiters how many '
  'tasks an emit would wake. The filter may have prefix (of the name), emitted, awaited (whether '
  'there are waiters), created_after, created_before, older_than_seconds. p_cursor is the cursor '
  'of the last row of the page before, null for the first page. What no index leads to (emitted, '
  'a prefix of very many) is looked for from the newest on. Rows go when cleanup removes events. '
  'Raises TG001 for an unknown queue, TG005 for a bad filter, cursor or limit.';
