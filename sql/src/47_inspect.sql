-- Read a filter, or raise TG005.  p_states: the only states meant, which the filter then must
-- not name; null if it may.
create or replace function teguh._read_filter(p_filter jsonb, p_states text[] default null)
  returns teguh._filter
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_input  jsonb := coalesce(p_filter, '{}');
  v_filter teguh._filter;
begin
  perform teguh._check_keys('filter', v_input, array_remove(array[
    case when p_states is null then 'state' end, 'task_name', 'tag', 'tags', 'correlation_id',
    'parent_task_id', 'workflow_run_id', 'attributes', 'created_after', 'created_before',
    'older_than_seconds'
  ], null));
  v_filter.states := coalesce(p_states, teguh._states_option(v_input));
  v_filter.task_name := teguh._text_option(v_input, 'task_name');
  v_filter.tags := nullif(array_remove(
    teguh._tags_option(v_input) || teguh._text_option(v_input, 'tag'), null
  ), '{}');
  v_filter.correlation_id := teguh._text_option(v_input, 'correlation_id');
  v_filter.parent_task_id := teguh._uuid_option(v_input, 'parent_task_id');
  v_filter.workflow_run_id := teguh._uuid_option(v_input, 'workflow_run_id');
  v_filter.attributes := teguh._attributes_option(v_input);
  v_filter.created_after := teguh._time_option(v_input, 'created_after');
  v_filter.created_before := least(
    teguh._time_option(v_input, 'created_before'),
    teguh._after(
      teguh.current_time(), -teguh._number_option(v_input, 'older_than_seconds', 0, 1e12)
    )
  );
  return v_filter;
end;
$$;

-- Read the states of a filter: one, or an array; null if it names none.
create or replace function teguh._states_option(p_filter jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value  jsonb := nullif(p_filter -> 'state', 'null');
  v_known  text[] := '{pending,running,sleeping,completed,failed,cancelled,expired}';
  v_states jsonb := case
    when jsonb_typeof(v_value) = 'array' then v_value
    else jsonb_build_array(v_value)
  end;
begin
  if v_value is null then
    return null;
  end if;

  if v_states = '[]' or not v_states <@ to_jsonb(v_known) then
    raise exception '"state" must be a state or an array of states'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = format('States: %s.', array_to_string(v_known, ', '));
  end if;

  return array(select s.state from jsonb_array_elements_text(v_states) as s(state));
end;
$$;

-- Read the cursor of a page: the id before which it begins.
create or replace function teguh._read_cursor(p_cursor text)
  returns uuid
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(p_cursor, 'ffffffff-ffff-ffff-ffff-ffffffffffff')::uuid;
exception
  when invalid_text_representation then
    raise exception 'not a cursor'
      using
        errcode = 'TG005',
        detail = format('Found: "%s".', left(p_cursor, 200)),
        hint = 'Pass the cursor of the last row of the page before, or null for the first page.';
end;
$$;

-- Refuse a limit that is none.
create or replace function teguh._check_limit(p_limit integer)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_limit between 1 and 10000 then
    return p_limit;
  end if;

  raise exception 'limit must be a number from 1 to 10000'
    using
      errcode = 'TG005',
      detail = format('Found: %s.', coalesce(p_limit::text, 'null')),
      hint = 'Take page after page, or call again.';
end;
$$;

-- Find tasks, the newest first: the ids of up to p_limit that were made before p_before.
--
-- Candidates are taken from an index in stretches of 500, from whichever is the sparsest there,
-- and are looked at one by one.  Live tasks are found by dispatch, all at once; so before that
-- a stretch of the newest tasks is tried.
create or replace function teguh._find_template(
  p_filter teguh._filter,
  p_before uuid,
  p_limit  integer
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_after  uuid := coalesce(
    teguh._first_uuid(p_filter.created_after), '00000000-0000-0000-0000-000000000000'
  );
  v_before uuid := least(
    p_before, teguh._first_uuid(p_filter.created_before + interval '1 millisecond')
  );
  v_live   uuid[] := case
    when not p_filter.states && '{pending,running,sleeping}' then '{}'::uuid[]
  end;
  v_first  boolean := p_filter.states && '{pending,running,sleeping}';
  v_page   uuid[];
  v_found  uuid[] := '{}';
begin
  loop
    if v_first then
      v_page := teguh._page_template('task', null, p_filter, null, v_after, v_before);
    else
      v_page := teguh._seek_template(p_filter, v_live, v_after, v_before);
    end if;
    v_found := v_found
               || teguh._fit_template(p_filter, v_page, p_limit - cardinality(v_found));
    exit when cardinality(v_found) >= p_limit or cardinality(v_page) < 500;
    v_before := v_page[500];

    if v_first
      and 'completed' <> all (p_filter.states)
      and num_nonnulls(
        p_filter.correlation_id, p_filter.parent_task_id, p_filter.workflow_run_id
      ) = 0
    then
      v_live := teguh._live_template(p_filter.states);
    end if;
    v_first := false;
  end loop;

  return v_found;
end;
$$;

-- The next 500 candidates for a filter, by that way on which they go back the farthest.  By
-- state it leads only when the live tasks in question are known.
create or replace function teguh._seek_template(
  p_filter teguh._filter,
  p_live   uuid[],
  p_after  uuid,
  p_before uuid
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_way  record;
  v_page uuid[];
  v_best uuid[];
begin
  for v_way in
    select w.kind, w.tag
    from (
      values
        ('matter', null::text, p_filter.correlation_id is not null),
        ('parent', null, p_filter.parent_task_id is not null),
        ('flow', null, p_filter.workflow_run_id is not null),
        ('state', null, 'completed' <> all (p_filter.states) and p_live is not null),
        ('name', null, p_filter.task_name is not null)
    ) as w(kind, tag, given)
    where w.given
    union all
    select 'tag', u.tag
    from unnest(p_filter.tags) as u(tag)
    union all
    select 'attribute', k.name
    from jsonb_object_keys(p_filter.attributes) as k(name)
  loop
    v_page := teguh._page_template(v_way.kind, v_way.tag, p_filter, p_live, p_after, p_before);
    if v_best is null
      or cardinality(v_page) < cardinality(v_best)
      or v_page[500] < v_best[500]
    then
      v_best := v_page;
    end if;
    exit when cardinality(v_best) < 100;
  end loop;

  return coalesce(
    v_best, teguh._page_template('task', null, p_filter, null, p_after, p_before)
  );
end;
$$;

-- Up to 500 ids from p_after up to p_before, the greatest first, of one kind: tasks of a
-- matter, of a name, and so on.  p_tag: of which tag, or by which of the attributes.
create or replace function teguh._page_template(
  p_kind   text,
  p_tag    text,
  p_filter teguh._filter,
  p_live   uuid[],
  p_after  uuid,
  p_before uuid
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case p_kind
    when 'task' then array(
      select t.task_id
      from teguh.t_template as t
      where t.task_id >= p_after and t.task_id < p_before
      order by t.task_id desc
      limit 500
    )
    when 'name' then array(
      select t.task_id
      from teguh.t_template as t
      where t.task_name collate "C" = p_filter.task_name
        and t.task_id >= p_after and t.task_id < p_before
      order by t.task_name collate "C" desc, t.task_id desc
      limit 500
    )
    when 'matter' then array(
      select t.task_id
      from teguh.t_template as t
      where t.correlation_id collate "C" = p_filter.correlation_id
        and t.task_id >= p_after and t.task_id < p_before
      order by t.correlation_id collate "C" desc, t.task_id desc
      limit 500
    )
    when 'parent' then array(
      select t.task_id
      from teguh.t_template as t
      where t.parent_task_id = p_filter.parent_task_id
        and t.task_id >= p_after and t.task_id < p_before
      order by t.parent_task_id desc, t.task_id desc
      limit 500
    )
    when 'flow' then array(
      select t.task_id
      from teguh.t_template as t
      where t.workflow_run_id = p_filter.workflow_run_id
        and t.task_id >= p_after and t.task_id < p_before
      order by t.workflow_run_id desc, t.task_id desc
      limit 500
    )
    when 'tag' then array(
      select g.task_id
      from teguh.g_template as g
      where g.tag collate "C" = p_tag
        and g.task_id >= p_after and g.task_id < p_before
      order by g.tag collate "C" desc, g.task_id desc
      limit 500
    )
    when 'attribute' then array(
      select v.task_id
      from teguh.v_template as v
      where v.name collate "C" = p_tag
        and v.word collate "C" = teguh._word(p_filter.attributes -> p_tag)
        and v.task_id >= p_after and v.task_id < p_before
      order by v.name collate "C" desc, v.word collate "C" desc, v.task_id desc
      limit 500
    )
    else teguh._ended_template(p_filter.states, p_live, p_after, p_before)
  end;
end;
$$;

-- The same for states other than completed: of the tasks that are alive, and those that ended
-- without success.
create or replace function teguh._ended_template(
  p_states text[],
  p_live   uuid[],
  p_after  uuid,
  p_before uuid
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select e.task_id
    from (
      select u.task_id
      from unnest(p_live) as u(task_id)
      where u.task_id >= p_after and u.task_id < p_before
      union
      select d.task_id
      from unnest(p_states) as s(state)
      cross join lateral (
        select d.task_id
        from teguh.d_template as d
        where d.state = s.state
          and d.task_id >= p_after and d.task_id < p_before
        order by d.state desc, d.task_id desc
        limit 500
      ) as d
    ) as e
    order by e.task_id desc
    limit 500
  );
end;
$$;

-- Those among the candidates that the filter means, in the order given, up to p_limit.
create or replace function teguh._fit_template(
  p_filter   teguh._filter,
  p_task_ids uuid[],
  p_limit    integer
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select t.task_id
    from unnest(p_task_ids) with ordinality as u(task_id, place)
    cross join lateral (
      select t.*
      from teguh.t_template as t
      where t.task_id = u.task_id
      offset 0
    ) as t
    where (p_filter.states is null or t.state = any (p_filter.states))
      and (p_filter.task_name is null or t.task_name = p_filter.task_name)
      and (p_filter.tags is null or t.tags @> p_filter.tags)
      and (p_filter.correlation_id is null or t.correlation_id = p_filter.correlation_id)
      and (p_filter.parent_task_id is null or t.parent_task_id = p_filter.parent_task_id)
      and (p_filter.workflow_run_id is null or t.workflow_run_id = p_filter.workflow_run_id)
      and (p_filter.created_after is null or t.created_at >= p_filter.created_after)
      and (p_filter.created_before is null or t.created_at < p_filter.created_before)
      and (p_filter.claimed_by is null or t.claimed_by = p_filter.claimed_by)
      and (
        p_filter.attributes is null
        or teguh._pinned_template(t.task_id) @> p_filter.attributes
      )
    order by u.place
    limit p_limit
  );
end;
$$;

-- The tasks in these states, of pending, running and sleeping: all that dispatch and lanes know
-- of, and those that only an event can wake.
create or replace function teguh._live_template(p_states text[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hints uuid[] := '{}';
begin
  -- in the order in which a task goes from one to the next, or it might slip through
  if 'sleeping' = any (p_states) then
    v_hints := array(select w.task_id from teguh.w_template as w);
  end if;
  if p_states && '{pending,sleeping}' then
    v_hints := v_hints || teguh._hints_template('sr');
    v_hints := v_hints || array(select l.task_id from teguh.l_template as l);
  end if;
  if 'running' = any (p_states) then
    v_hints := v_hints || teguh._hints_template('l');
  end if;

  return array(
    select h.task_id
    from (select distinct u.task_id from unnest(v_hints) as u(task_id)) as h
    cross join lateral (
      select t.state
      from teguh.t_template as t
      where t.task_id = h.task_id
      offset 0
    ) as t
    where t.state = any (p_states)
    order by h.task_id desc
  );
end;
$$;

-- The tasks of the rows of both segments that their positions have not passed.
create or replace function teguh._hints_template(p_kinds text)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring  bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_hints uuid[] := '{}';
begin
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    v_hints := v_hints || case
      when v_gen % 2 = 0 then teguh._hints0_template(p_kinds)
      else teguh._hints1_template(p_kinds)
    end;
  end loop;

  return v_hints;
end;
$$;

-- The tasks of the rows of a segment that its positions have not passed.  p_kinds: s and l for
-- timers of sleepers and leases, r for what is ready.
create or replace function teguh._hints0_template(p_kinds text)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hints uuid[] := '{}';
  v_ready teguh.k0_template := teguh._last0_template('r');
begin
  if strpos(p_kinds, 's') > 0 then
    v_hints := array(select p.task_id from teguh._left0_template('s', null) as p);
  end if;

  if strpos(p_kinds, 'r') > 0 then
    v_hints := v_hints || array(
      select p.task_id
      from teguh.p0_template as p
      where p.kind = 'r'
        and (p.xid, p.seq) >= (coalesce(v_ready.xid, '0'), v_ready.seq)
      union all
      select p.task_id
      from unnest(v_ready.gaps) as g
      join teguh.p0_template as p on p.xid = g.xid
      where p.kind = 'r'
        and p.seq between g.low_seq and g.high_seq
    );
  end if;

  if strpos(p_kinds, 'l') > 0 then
    v_hints := v_hints || array(
      select u.task_id
      from teguh._left0_template('l', null) as p
      cross join lateral unnest(p.task_id || p.more_ids) as u(task_id)
    );
  end if;

  return v_hints;
end;
$$;

-- A page of tasks, as rows.
create or replace function teguh._rows_template(
  p_filter teguh._filter,
  p_before uuid,
  p_limit  integer
)
  returns table(
    task_id          uuid,
    task_name        text,
    state            text,
    attempts         integer,
    failures         integer,
    created_at       timestamptz,
    available_at     timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    claimed_by       text,
    lease_expires_at timestamptz,
    failure_reason   jsonb,
    tags             text[],
    correlation_id   text,
    parent_task_id   uuid,
    workflow_run_id  uuid,
    cursor           text,
    attributes       jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task_ids uuid[] := teguh._find_template(p_filter, p_before, p_limit);
begin
  return query
  select
    t.task_id, t.task_name, t.state, t.attempt, t.failures, t.created_at, t.available_at,
    t.started_at, t.finished_at, t.claimed_by, t.lease_expires_at, t.failure_reason, t.tags,
    t.correlation_id, t.parent_task_id, t.workflow_run_id, t.task_id::text,
    teguh._pinned_template(t.task_id)
  from unnest(v_task_ids) with ordinality as u(task_id, place)
  cross join lateral (
    select t.*
    from teguh.t_template as t
    where t.task_id = u.task_id
    offset 0
  ) as t
  order by u.place;
end;
$$;

-- List tasks.
create or replace function teguh.list_tasks(
  p_queue_name text,
  p_filter     jsonb default '{}',
  p_cursor     text default null,
  p_limit      integer default 50
)
  returns table(
    task_id          uuid,
    task_name        text,
    state            text,
    attempts         integer,
    failures         integer,
    created_at       timestamptz,
    available_at     timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    claimed_by       text,
    lease_expires_at timestamptz,
    failure_reason   jsonb,
    tags             text[],
    correlation_id   text,
    parent_task_id   uuid,
    workflow_run_id  uuid,
    cursor           text,
    attributes       jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('rows', p_queue_name, 3)
  using
    teguh._read_filter(p_filter), teguh._read_cursor(p_cursor), teguh._check_limit(p_limit);
end;
$$;

comment on function teguh.list_tasks(text, jsonb, text, integer) is
  'Tasks of a queue, the newest first, a page at a time: pass the cursor of a page''s last row for '
  'the next one. The filter may have state (one, or an array), task_name, tag, tags (an '
  'array: all of them), correlation_id, parent_task_id, workflow_run_id, attributes (an '
  'object: all of them, with these values), created_after (at or after), created_before, '
  'older_than_seconds; all that is given must hold. started_at is when it was last handed to a '
  'worker; attributes are what set_attributes() has published. Raises TG001 for an unknown queue, '
  'TG005 for an unknown key, a bad value, a bad cursor, or a limit that is not from 1 to 10000.';

-- All about a task.
create or replace function teguh._peek_template(p_task_id uuid)
  returns table(
    task_id           uuid,
    state             text,
    attempts          integer,
    completed_payload jsonb,
    cancelled_at      timestamptz,
    failure_reason    jsonb,
    failures          integer,
    task_name         text,
    created_at        timestamptz,
    available_at      timestamptz,
    first_started_at  timestamptz,
    finished_at       timestamptz,
    tags              text[],
    correlation_id    text,
    parent_task_id    uuid,
    workflow_run_id   uuid,
    run_id            uuid,
    params            jsonb,
    headers           jsonb,
    started_at        timestamptz,
    claimed_by        text,
    lease_expires_at  timestamptz,
    wake_event        text,
    event_payload     jsonb,
    max_attempts      integer,
    retry_strategy    jsonb,
    timeout_seconds   double precision,
    cancellation      jsonb,
    deadline_at       timestamptz,
    expires_at        timestamptz,
    on_expired        jsonb,
    idempotency_key   text,
    priority          smallint,
    flow_key          text,
    attributes        jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
begin
  return query
  select
    r.*, v_task.run_id, v_task.params, v_task.headers, v_task.started_at, v_task.claimed_by,
    v_task.lease_expires_at, v_task.wake_event, v_task.event_payload, v_task.max_attempts,
    v_task.retry_strategy, v_task.timeout_seconds, v_task.cancellation, v_task.deadline_at,
    v_task.expires_at, v_task.on_expired, v_task.idempotency_key,
    coalesce(v_task.priority, 0::smallint), v_task.flow_key,
    teguh._pinned_template(p_task_id)
  from teguh._show_template(p_task_id) as r;
end;
$$;

-- Look at a task.
create or replace function teguh.get_task(p_queue_name text, p_task_id uuid)
  returns table(
    task_id           uuid,
    state             text,
    attempts          integer,
    completed_payload jsonb,
    cancelled_at      timestamptz,
    failure_reason    jsonb,
    failures          integer,
    task_name         text,
    created_at        timestamptz,
    available_at      timestamptz,
    first_started_at  timestamptz,
    finished_at       timestamptz,
    tags              text[],
    correlation_id    text,
    parent_task_id    uuid,
    workflow_run_id   uuid,
    run_id            uuid,
    params            jsonb,
    headers           jsonb,
    started_at        timestamptz,
    claimed_by        text,
    lease_expires_at  timestamptz,
    wake_event        text,
    event_payload     jsonb,
    max_attempts      integer,
    retry_strategy    jsonb,
    timeout_seconds   double precision,
    cancellation      jsonb,
    deadline_at       timestamptz,
    expires_at        timestamptz,
    on_expired        jsonb,
    idempotency_key   text,
    priority          smallint,
    flow_key          text,
    attributes        jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('peek', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.get_task(text, uuid) is
  'All about a task: what get_task_result() tells, and what it was asked for. run_id is the '
  'current run; started_at is when the task was last handed to a worker, claimed_by to whom; '
  'wake_event is the event that is awaited, or that woke it; deadline_at is when it ends of '
  'itself, by its own policy or because it expires; flow_key is the option "key"; attributes are '
  'what set_attributes() has published. Raises TG001 for an unknown queue, TG003 for '
  'an unknown task.';

-- The runs of a task: those that were followed by another, and the current one.
create or replace function teguh._runs_template(p_task_id uuid)
  returns table(
    run_id           uuid,
    number           integer,
    state            text,
    attempt          integer,
    claimed_by       text,
    started_at       timestamptz,
    lease_expires_at timestamptz,
    finished_at      timestamptz,
    failure_reason   jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
  v_last teguh.r_template;
begin
  return query
  select
    r.run_id, teguh._run_number(r.run_id), r.state, r.attempt, r.claimed_by,
    case when r.attempt > r.attempt_before then r.started_at end,
    r.lease_expires_at, r.finished_at, r.failure_reason
  from (
    select r.*, lag(r.attempt, 1, 0) over (order by r.run_id) as attempt_before
    from teguh.r_template as r
    where r.task_id = p_task_id
  ) as r
  order by r.run_id;

  -- until the current run starts, the task's row says what was true of the last one
  select r.* into v_last
  from teguh.r_template as r
  where r.task_id = p_task_id
  order by r.run_id desc
  limit 1;
  return query
  select
    v_task.run_id, teguh._run_number(v_task.run_id), v_task.state, v_task.attempt,
    v_task.claimed_by,
    case when v_task.attempt > coalesce(v_last.attempt, 0) then v_task.started_at end,
    v_task.lease_expires_at, v_task.finished_at, teguh._blame_template(v_task);
end;
$$;

-- List the runs of a task.
create or replace function teguh.list_runs(p_queue_name text, p_task_id uuid)
  returns table(
    run_id           uuid,
    number           integer,
    state            text,
    attempt          integer,
    claimed_by       text,
    started_at       timestamptz,
    lease_expires_at timestamptz,
    finished_at      timestamptz,
    failure_reason   jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('runs', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.list_runs(text, uuid) is
  'The runs of a task, the oldest first; the last one is the current run, in the task''s own '
  'state. A run that was followed by another is failed, cancelled, expired or released '
  '(requeue_task). started_at is when it was last handed to a worker, null if never. Raises '
  'TG001 for an unknown queue, TG003 for an unknown task.';

-- What happened to a task, put together from its row, its runs, and the actions on it.
--
-- Of its sleeps only the present one is known, and not when it began: it is shown at the
-- time of the last thing before it.
create or replace function teguh._past_template(p_task_id uuid)
  returns table(at timestamptz, event text, run_id uuid, attempt integer, detail jsonb)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
begin
  return query
  with runs as materialized (
    select
      r.*,
      lead(r.run_id) over by_number as next_id,
      lag(r.failure_reason ->> 'name') over by_number as lost
    from teguh._runs_template(p_task_id) as r
    window by_number as (order by r.number)
  ),

  actions as materialized (
    select
      a.run_id, a.deed, a.acted_at,
      jsonb_strip_nulls(
        jsonb_build_object('action', a.deed, 'by_role', a.by_role, 'reason', a.reason)
      ) as detail
    from teguh.a_template as a
    where a.task_id = p_task_id
  ),

  events as (
    select
      0 as number, 0 as place, v_task.created_at as happened_at, 'created' as happening,
      null::uuid as run_id, null::integer as attempt, '{}'::jsonb as detail
    union all
    select
      r.number, 1, r.started_at,
      case when r.lost in ('$ClaimTimeout', '$RunTimeout') then 'recovered' else 'started' end,
      r.run_id, r.attempt, jsonb_strip_nulls(jsonb_build_object('claimed_by', r.claimed_by))
    from runs as r
    where r.started_at is not null
    union all
    select
      r.number, 3, r.finished_at, r.state, r.run_id, r.attempt,
      case when r.failure_reason is null then '{}'
        else jsonb_build_object('failure_reason', r.failure_reason)
      end || coalesce(a.detail, '{}')
    from runs as r
    left join actions as a
      on (a.deed, a.run_id) in (('cancel', r.run_id), ('requeue', r.next_id))
    where r.finished_at is not null
    union all
    select
      r.number, 4, coalesce(a.acted_at, r.finished_at),
      case when r.state = 'completed' then 'repeating' else 'retrying' end, r.next_id, r.attempt,
      coalesce(a.detail, '{}')
    from runs as r
    left join actions as a on a.run_id = r.next_id and a.deed <> 'cancel'
    where r.next_id is not null and r.state <> 'released'
    union all
    select
      r.number, 2, teguh._since_template(p_task_id, r.started_at), 'sleeping', r.run_id, r.attempt,
      jsonb_strip_nulls(
        jsonb_build_object('until', v_task.available_at, 'event', v_task.wake_event)
      )
    from runs as r
    where r.next_id is null and r.state = 'sleeping'
  )

  select e.happened_at, e.happening, e.run_id, e.attempt, e.detail
  from events as e
  order by e.number, e.place;
end;
$$;

-- The time of the last thing that is known to have happened to a task before it went to sleep.
create or replace function teguh._since_template(p_task_id uuid, p_started_at timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return greatest(
    p_started_at,
    (select t.created_at from teguh.t_template as t where t.task_id = p_task_id),
    (select max(r.finished_at) from teguh.r_template as r where r.task_id = p_task_id),
    (select max(a.acted_at) from teguh.a_template as a where a.task_id = p_task_id),
    (select max(c.updated_at) from teguh.c_template as c where c.task_id = p_task_id)
  );
end;
$$;

-- Tell what happened to a task.
create or replace function teguh.get_task_history(p_queue_name text, p_task_id uuid)
  returns table(at timestamptz, event text, run_id uuid, attempt integer, detail jsonb)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('past', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.get_task_history(text, uuid) is
  'What happened to a task, in order. Events: created, started (the last time in a run that a '
  'worker was handed it), recovered (the same, after a run whose worker was lost), sleeping '
  '(the present sleep, not those that are over), released, completed, failed, cancelled, '
  'expired, retrying (another run follows), repeating (the same, after success). detail has, '
  'where it applies, claimed_by, failure_reason, until, event, and of what somebody did action, '
  'by_role, reason. Raises TG001 for an unknown queue, TG003 for an unknown task.';

-- The workers that hold a lease.
create or replace function teguh._held_template()
  returns table(
    worker_id         text,
    runs              bigint,
    oldest_start      timestamptz,
    soonest_lease_end timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_task_ids uuid[] := teguh._live_template('{running}');
begin
  return query
  select t.claimed_by, count(*), min(t.started_at), min(t.lease_expires_at)
  from unnest(v_task_ids) as u(task_id)
  cross join lateral (
    select t.*
    from teguh.t_template as t
    where t.task_id = u.task_id
    offset 0
  ) as t
  where t.state = 'running'
    and coalesce(t.lease_expires_at, 'infinity') > v_now
  group by t.claimed_by
  order by t.claimed_by;
end;
$$;

-- List workers.
create or replace function teguh.list_workers(p_queue_name text default null)
  returns table(
    worker_id         text,
    queue_name        text,
    runs              bigint,
    oldest_start      timestamptz,
    soonest_lease_end timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('held', q.queue_name))
  loop
    continue when p_queue_name is null and not teguh._share_queue(queue_name);
    for worker_id, runs, oldest_start, soonest_lease_end in
      execute teguh._call('held', queue_name, 0)
    loop
      return next;
    end loop;
  end loop;
end;
$$;

comment on function teguh.list_workers(text) is
  'The workers that hold runs of a queue (null: of each queue the caller may look at) under a '
  'lease that has not expired: how many, since when the oldest, and when the next lease ends, '
  'null if none ever does. A worker that has nothing to do is not known here. Raises TG001 '
  'for an unknown queue.';

-- Read the cursor of a page of actions: the number before which it begins.
create or replace function teguh._read_place(p_cursor text)
  returns bigint
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(p_cursor::bigint, 9223372036854775807);
exception
  when invalid_text_representation or numeric_value_out_of_range then
    raise exception 'not a cursor'
      using
        errcode = 'TG005',
        detail = format('Found: "%s".', left(p_cursor, 200)),
        hint = 'Pass the cursor of the last row of the page before, or null for the first page.';
end;
$$;

-- A page of actions.
create or replace function teguh._acts_template(p_before bigint, p_limit integer)
  returns table(
    at      timestamptz,
    action  text,
    by_role text,
    reason  text,
    task_id uuid,
    run_id  uuid,
    detail  jsonb,
    cursor  text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select a.acted_at, a.deed, a.by_role, a.reason, a.task_id, a.run_id, a.detail, a.n::text
  from teguh.a_template as a
  where a.n < p_before
  order by a.n desc
  limit p_limit;
end;
$$;

-- List actions.
create or replace function teguh.list_actions(
  p_queue_name text,
  p_cursor     text default null,
  p_limit      integer default 50
)
  returns table(
    at      timestamptz,
    action  text,
    by_role text,
    reason  text,
    task_id uuid,
    run_id  uuid,
    detail  jsonb,
    cursor  text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('acts', p_queue_name, 2)
  using teguh._read_place(p_cursor), teguh._check_limit(p_limit);
end;
$$;

comment on function teguh.list_actions(text, text, integer) is
  'What was done to a queue and its tasks from outside, the latest first, a page at a time: '
  'cancel, retry, replay, requeue, purge, pause, resume; by which role, and why if a reason was '
  'given. run_id is the run that was cancelled, or that the action began. Rows go with their '
  'task; those about no task when cleanup removes tasks of that age. Raises TG001 for an '
  'unknown queue, TG005 for a bad cursor or limit.';
