-- Workflow runs: what tasks of any queues belong to together.
--
-- A task names its workflow run by id, and whether there is one of that id does not matter to it.
-- How a run stands is worked out from its tasks, and from what those came to that are gone.

-- Refuse a workflow run that nobody knows.
create or replace function teguh._refuse_run(p_workflow_run_id uuid)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'workflow run "%" does not exist', p_workflow_run_id
    using
      errcode = 'TG009',
      detail = 'None of that id was created, or it was cleaned up.',
      hint = 'list_workflow_runs() shows those there are.';
end;
$$;

-- Read what is to be known of a workflow run.
create or replace function teguh._read_run(p_options jsonb, p_known text[])
  returns teguh.workflow_runs
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run teguh.workflow_runs;
begin
  perform teguh._check_keys('workflow run options', p_options, p_known);
  v_run.version := teguh._name_option(p_options, 'version');
  v_run.inputs := nullif(p_options -> 'inputs', 'null');
  v_run.tags := teguh._tags_option(p_options);
  v_run.created_by := teguh._name_option(p_options, 'created_by');
  v_run.idempotency_key := teguh._name_option(p_options, 'idempotency_key');
  return v_run;
end;
$$;

-- Create a workflow run.
create or replace function teguh.create_workflow_run(p_name text, p_options jsonb default '{}')
  returns table(workflow_run_id uuid, created boolean)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_run  teguh.workflow_runs := teguh._read_run(
    coalesce(p_options, '{}'),
    array['version', 'inputs', 'tags', 'created_by', 'idempotency_key']
  );
  v_name text;
begin
  perform teguh._check_name('name of a workflow run', p_name);
  v_run.name := p_name;
  v_run.created_at := teguh.current_time();
  v_run.kept_at := v_run.created_at;
  v_run.workflow_run_id := teguh._make_uuidv7(v_run.created_at);
  insert into teguh.workflow_runs as w
  select v_run.*
  on conflict (idempotency_key) where idempotency_key is not null do nothing;
  if found then
    return query select v_run.workflow_run_id, true;
    return;
  end if;

  select w.workflow_run_id, w.name into workflow_run_id, v_name
  from teguh.workflow_runs as w
  where w.idempotency_key = v_run.idempotency_key;
  if not found then
    raise exception 'the workflow run with idempotency key "%" was just removed',
      v_run.idempotency_key
      using
        errcode = '40001',
        detail = 'It was there when this call began, and is gone now.',
        hint = 'Create it again.';
  elsif v_name <> p_name then
    raise exception 'idempotency key "%" belongs to another workflow run', v_run.idempotency_key
      using
        errcode = 'TG006',
        detail = format('Workflow run %s has the name "%s".', workflow_run_id, left(v_name, 200)),
        hint = 'Use another key.';
  end if;
  created := false;
  return next;
end;
$$;

comment on function teguh.create_workflow_run(text, jsonb) is
  'Creates a workflow run, for tasks that are spawned with its id as workflow_run_id and for all '
  'that follow from them, in any queues. Options: version, inputs (any JSON), tags (array of '
  'strings), created_by, idempotency_key (if it is in use, created is false and nothing changes). '
  'Raises TG005 for a bad name or option, TG006 for a key that belongs to a run of another name, '
  '40001 if the run of that key is removed at that moment.';

-- Change a workflow run.
create or replace function teguh.update_workflow_run(p_workflow_run_id uuid, p_options jsonb)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run teguh.workflow_runs := teguh._read_run(
    p_options, array['version', 'inputs', 'tags', 'created_by']
  );
begin
  update teguh.workflow_runs as w
  set
    version = case when p_options ? 'version' then v_run.version else w.version end,
    inputs = case when p_options ? 'inputs' then v_run.inputs else w.inputs end,
    tags = case when p_options ? 'tags' then v_run.tags else w.tags end,
    created_by = case when p_options ? 'created_by' then v_run.created_by else w.created_by end
  where w.workflow_run_id = p_workflow_run_id;
  if not found then
    perform teguh._refuse_run(p_workflow_run_id);
  end if;
end;
$$;

comment on function teguh.update_workflow_run(uuid, jsonb) is
  'Sets what is given of a workflow run: version, inputs, tags, created_by; null takes it away. '
  'The rest stays as it is. Raises TG009 for an unknown workflow run, TG005 for a bad option.';

-- Whether a workflow run depends on how a task ended.  It does not on a child's end: that is for
-- the child's parent to judge, provided that it belongs to the same run.
create or replace function teguh._is_own(p_links jsonb)
  returns boolean
  language sql
  immutable
as $$
  select
    p_links is null
    or not (p_links operator(pg_catalog.?) 'join')
    or (p_links operator(pg_catalog.->) 'join') operator(pg_catalog.?) 'apart';
$$;

-- How many tasks of workflow runs stand where in this queue.  begun: whether they were ever
-- handed to a worker, or are over.
create or replace function teguh._flow_template(p_run_ids uuid[])
  returns table(
    workflow_run_id uuid,
    state           text,
    own             boolean,
    begun           boolean,
    qty             bigint,
    started_at      timestamptz,
    finished_at     timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    u.run_id, t.state, teguh._is_own(t.links) as is_own,
    t.attempt > 0 or t.state in ('completed', 'failed', 'cancelled', 'expired') as has_begun,
    count(*), min(t.first_started_at), max(t.finished_at)
  from unnest(p_run_ids) as u(run_id)
  cross join lateral (
    select t.*
    from teguh.t_template as t
    where t.workflow_run_id = u.run_id
    offset 0
  ) as t
  group by u.run_id, t.state, is_own, has_begun;
end;
$$;

-- Write down what tasks come to that are about to be deleted, for their workflow runs.  Those that
-- are not over are cancelled, as far as the run is concerned.
create or replace function teguh._score_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := teguh.current_time();
begin
  insert into teguh.workflow_tallies as w (
    workflow_run_id, queue_name, state, own, qty, started_at, finished_at
  )
  select
    t.workflow_run_id, substr('_template', 2), t.state, t.own, count(*), min(t.first_started_at),
    max(t.finished_at)
  from (
    select
      t.workflow_run_id, t.first_started_at, teguh._is_own(t.links) as own,
      coalesce(t.finished_at, v_now) as finished_at,
      case
        when t.state in ('pending', 'running', 'sleeping') then 'cancelled'
        else t.state
      end as state
    from unnest(p_task_ids) as u(task_id)
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
    where t.workflow_run_id is not null
  ) as t
  where exists (
    select from teguh.workflow_runs as w where w.workflow_run_id = t.workflow_run_id offset 0
  )
  group by t.workflow_run_id, t.state, t.own;
end;
$$;

-- A workflow run as it was created.
create or replace function teguh._recorded_run(p_run_id uuid)
  returns setof teguh.workflow_runs
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select w.* from teguh.workflow_runs as w where w.workflow_run_id = p_run_id;
$$;

-- What the tasks of workflow runs came to that are gone.
create or replace function teguh._recorded_tallies(p_run_ids uuid[])
  returns setof teguh.workflow_tallies
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select t.* from teguh.workflow_tallies as t where t.workflow_run_id = any (p_run_ids);
$$;

-- How many tasks of workflow runs stand where, in all queues that the caller may look at; those
-- included that are gone, also with their queue.
create or replace function teguh._flows(p_run_ids uuid[])
  returns table(
    workflow_run_id uuid,
    state           text,
    own             boolean,
    begun           boolean,
    qty             bigint,
    started_at      timestamptz,
    finished_at     timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
begin
  for v_queue in
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('flow', q.queue_name)
  loop
    continue when not teguh._share_queue(v_queue);
    return query execute teguh._call('flow', v_queue, 1) using p_run_ids;
  end loop;

  return query
  select t.workflow_run_id, t.state, t.own, true, t.qty, t.started_at, t.finished_at
  from teguh._recorded_tallies(p_run_ids) as t
  where teguh._may('flow', t.queue_name)
    or to_regclass('teguh.t_' || t.queue_name) is null;
end;
$$;

-- How workflow runs stand, by their tasks.
create or replace function teguh._survey(p_run_ids uuid[])
  returns table(
    workflow_run_id uuid,
    status          text,
    started_at      timestamptz,
    finished_at     timestamptz,
    pending         bigint,
    running         bigint,
    sleeping        bigint,
    completed       bigint,
    failed          bigint,
    cancelled       bigint,
    expired         bigint
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    s.run_id,
    case
      when s.running > 0 or s.pending > 0 and s.begun then 'running'
      when s.pending > 0 or not s.begun then 'pending'
      when s.sleeping > 0 then 'sleeping'
      when s.lost then 'failed'
      when s.stopped then 'cancelled'
      else 'completed'
    end,
    s.started_at,
    case when s.pending + s.running + s.sleeping = 0 then s.finished_at end,
    s.pending, s.running, s.sleeping, s.completed, s.failed, s.cancelled, s.expired
  from (
    select
      u.run_id,
      coalesce(bool_or(f.begun), false) as begun,
      coalesce(bool_or(f.own and f.state in ('failed', 'expired')), false) as lost,
      coalesce(bool_or(f.own and f.state = 'cancelled'), false) as stopped,
      min(f.started_at) as started_at,
      max(f.finished_at) as finished_at,
      coalesce(sum(f.qty) filter (where f.state = 'pending'), 0)::bigint as pending,
      coalesce(sum(f.qty) filter (where f.state = 'running'), 0)::bigint as running,
      coalesce(sum(f.qty) filter (where f.state = 'sleeping'), 0)::bigint as sleeping,
      coalesce(sum(f.qty) filter (where f.state = 'completed'), 0)::bigint as completed,
      coalesce(sum(f.qty) filter (where f.state = 'failed'), 0)::bigint as failed,
      coalesce(sum(f.qty) filter (where f.state = 'cancelled'), 0)::bigint as cancelled,
      coalesce(sum(f.qty) filter (where f.state = 'expired'), 0)::bigint as expired
    from unnest(p_run_ids) as u(run_id)
    left join teguh._flows(p_run_ids) as f on f.workflow_run_id = u.run_id
    group by u.run_id
  ) as s;
end;
$$;

-- Look at a workflow run.
create or replace function teguh.get_workflow_run(p_workflow_run_id uuid)
  returns table(
    workflow_run_id uuid,
    name            text,
    version         text,
    status          text,
    tags            text[],
    created_by      text,
    created_at      timestamptz,
    started_at      timestamptz,
    finished_at     timestamptz,
    pending         bigint,
    running         bigint,
    sleeping        bigint,
    completed       bigint,
    failed          bigint,
    cancelled       bigint,
    expired         bigint,
    inputs          jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    s.workflow_run_id, w.name, w.version, s.status, w.tags, w.created_by, w.created_at,
    s.started_at, s.finished_at, s.pending, s.running, s.sleeping, s.completed, s.failed,
    s.cancelled, s.expired, w.inputs
  from teguh._survey(array[p_workflow_run_id]) as s
  left join teguh._recorded_run(p_workflow_run_id) as w on true
  where w.workflow_run_id is not null
    or s.pending + s.running + s.sleeping + s.completed + s.failed + s.cancelled + s.expired > 0;
  if not found then
    perform teguh._refuse_run(p_workflow_run_id);
  end if;
end;
$$;

comment on function teguh.get_workflow_run(uuid) is
  'A workflow run, and how many of its tasks, in the queues that the caller may look at, stand '
  'where, those included that were cleaned up. status is worked out from that. pending: none was '
  'ever handed to a worker; running: one runs, or may be claimed; sleeping: all that are not over '
  'sleep; if all are over, failed if one failed or expired, else cancelled if one was, else '
  'completed. How a child ended is for its parent to judge and does not matter here. It costs as '
  'much as the run has tasks. For an id that was only given to tasks, name and created_at are '
  'null. Raises TG009 for an id that is neither a workflow run''s nor any task''s.';

-- Whether a workflow run is like another in what that one names.
create or replace function teguh._is_alike(p_run teguh.workflow_runs, p_like teguh.workflow_runs)
  returns boolean
  language sql
  immutable
as $$
  select
    (p_like.version is null or p_run.version operator(pg_catalog.=) p_like.version)
    and (
      p_like.created_by is null
      or p_run.created_by operator(pg_catalog.=) p_like.created_by
    )
    and (p_like.tags is null or p_run.tags operator(pg_catalog.@>) p_like.tags);
$$;

-- Up to p_limit workflow runs like one, from p_after up to p_before, the newest first.
create or replace function teguh._recorded_runs(
  p_like   teguh.workflow_runs,
  p_after  uuid,
  p_before uuid,
  p_limit  integer
)
  returns setof teguh.workflow_runs
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_like.name is not null then
    return query
    select w.*
    from teguh.workflow_runs as w
    where w.name collate "C" = p_like.name
      and w.workflow_run_id >= p_after and w.workflow_run_id < p_before
      and teguh._is_alike(w, p_like)
    order by w.name collate "C" desc, w.workflow_run_id desc
    limit p_limit;
  else
    return query
    select w.*
    from teguh.workflow_runs as w
    where w.workflow_run_id >= p_after and w.workflow_run_id < p_before
      and teguh._is_alike(w, p_like)
    order by w.workflow_run_id desc
    limit p_limit;
  end if;
end;
$$;

-- Read which statuses a filter names: one, or an array; null if none.
create or replace function teguh._status_option(p_filter jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value    jsonb := nullif(p_filter -> 'status', 'null');
  v_known    text[] := '{pending,running,sleeping,completed,failed,cancelled}';
  v_statuses jsonb := case
    when jsonb_typeof(v_value) = 'array' then v_value
    else jsonb_build_array(v_value)
  end;
begin
  if v_value is null then
    return null;
  end if;

  if v_statuses = '[]' or not v_statuses <@ to_jsonb(v_known) then
    raise exception '"status" must be a status or an array of them'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = format('Known: %s.', array_to_string(v_known, ', '));
  end if;

  return array(select s.status from jsonb_array_elements_text(v_statuses) as s(status));
end;
$$;

-- List workflow runs.
create or replace function teguh.list_workflow_runs(
  p_filter jsonb default '{}',
  p_cursor text default null,
  p_limit  integer default 50
)
  returns table(
    workflow_run_id uuid,
    name            text,
    version         text,
    status          text,
    tags            text[],
    created_by      text,
    created_at      timestamptz,
    started_at      timestamptz,
    finished_at     timestamptz,
    pending         bigint,
    running         bigint,
    sleeping        bigint,
    completed       bigint,
    failed          bigint,
    cancelled       bigint,
    expired         bigint,
    cursor          text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_filter   jsonb := coalesce(p_filter, '{}');
  v_like     teguh.workflow_runs := teguh._read_run(v_filter, array[
    'name', 'version', 'tags', 'created_by', 'created_after', 'created_before', 'status'
  ]);
  v_since    timestamptz := teguh._time_option(v_filter, 'created_after');
  v_until    timestamptz := teguh._time_option(v_filter, 'created_before');
  v_statuses text[] := teguh._status_option(v_filter);
  v_after    uuid := coalesce(
    teguh._first_uuid(v_since), '00000000-0000-0000-0000-000000000000'
  );
  v_before   uuid := least(
    teguh._read_cursor(p_cursor), teguh._first_uuid(v_until + interval '1 millisecond')
  );
  v_left     integer := teguh._check_limit(p_limit);
  v_stretch  integer;
  v_page     teguh.workflow_runs[];
  v_count    integer;
begin
  v_like.name := teguh._name_option(v_filter, 'name');
  loop
    v_stretch := case when v_statuses is null then least(v_left, 200) else 200 end;
    v_page := array(
      select w from teguh._recorded_runs(v_like, v_after, v_before, v_stretch) as w
    );
    return query
    select
      w.workflow_run_id, w.name, w.version, s.status, w.tags, w.created_by, w.created_at,
      s.started_at, s.finished_at, s.pending, s.running, s.sleeping, s.completed, s.failed,
      s.cancelled, s.expired, w.workflow_run_id::text
    from unnest(v_page) as w
    join teguh._survey(array(select w.workflow_run_id from unnest(v_page) as w)) as s
      on s.workflow_run_id = w.workflow_run_id
    where (v_statuses is null or s.status = any (v_statuses))
      and (v_since is null or w.created_at >= v_since)
      and (v_until is null or w.created_at < v_until)
    order by w.workflow_run_id desc
    limit v_left;
    get diagnostics v_count = row_count;
    v_left := v_left - v_count;
    exit when v_left = 0 or cardinality(v_page) < v_stretch;
    v_before := (v_page[v_stretch]).workflow_run_id;
  end loop;
end;
$$;

comment on function teguh.list_workflow_runs(jsonb, text, integer) is
  'Workflow runs, the newest first, a page at a time: pass the cursor of a page''s last row for '
  'the next one. The filter may have name, version, tags (an array: all of them), created_by, '
  'created_after (at or after), created_before, status (one, or an array). status and counts are '
  'those of get_workflow_run(): a page costs as much as its runs have tasks, and with status in '
  'the filter also what the runs in between have. name has an index. Raises TG005 for an unknown '
  'key, a bad value, a bad cursor, or a limit that is not from 1 to 10000.';

-- The first tasks of a workflow run in this queue.
create or replace function teguh._member_template(p_run_id uuid, p_limit integer)
  returns table(
    queue_name     text,
    task_id        uuid,
    parent_task_id uuid,
    task_name      text,
    state          text,
    attempts       integer,
    failures       integer,
    created_at     timestamptz,
    started_at     timestamptz,
    finished_at    timestamptz,
    failure_reason jsonb,
    attributes     jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    substr('_template', 2), t.task_id, t.parent_task_id, t.task_name, t.state, t.attempt,
    t.failures, t.created_at, t.first_started_at, t.finished_at, t.failure_reason,
    teguh._pinned_template(t.task_id)
  from teguh.t_template as t
  where t.workflow_run_id = p_run_id
  order by t.workflow_run_id, t.task_id
  limit p_limit;
end;
$$;

-- The first tasks of a workflow run in each queue that the caller may look at.
create or replace function teguh._members(p_run_id uuid, p_limit integer)
  returns table(
    queue_name     text,
    task_id        uuid,
    parent_task_id uuid,
    task_name      text,
    state          text,
    attempts       integer,
    failures       integer,
    created_at     timestamptz,
    started_at     timestamptz,
    finished_at    timestamptz,
    failure_reason jsonb,
    attributes     jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
begin
  for v_queue in
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('member', q.queue_name)
  loop
    continue when not teguh._share_queue(v_queue);
    return query execute teguh._call('member', v_queue, 2) using p_run_id, p_limit;
  end loop;
end;
$$;

-- Show the tasks of a workflow run as a tree, each right below its parent.
--
-- A parent is older than its task, so that nothing is above itself.
create or replace function teguh.get_workflow_tree(
  p_workflow_run_id uuid,
  p_limit           integer default 1000
)
  returns table(
    depth          integer,
    queue_name     text,
    task_id        uuid,
    parent_task_id uuid,
    task_name      text,
    state          text,
    attempts       integer,
    failures       integer,
    created_at     timestamptz,
    started_at     timestamptz,
    finished_at    timestamptz,
    failure_reason jsonb,
    attributes     jsonb,
    cut            boolean
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  with recursive members as materialized (
    select m.*, row_number() over (order by m.created_at, m.task_id) as place
    from teguh._members(p_workflow_run_id, teguh._check_limit(p_limit) + 1) as m
  ),

  shown as materialized (
    select m.*
    from members as m
    where m.place <= p_limit
  ),

  tree as (
    select s.task_id, s.created_at, 0 as steps, array[s.place] as places
    from shown as s
    where not exists (
      select
      from shown as p
      where p.task_id = s.parent_task_id and p.created_at <= s.created_at
    )
    union all
    select s.task_id, s.created_at, p.steps + 1, p.places || s.place
    from tree as p
    join shown as s on s.parent_task_id = p.task_id and s.created_at >= p.created_at
  )

  select
    t.steps, s.queue_name, s.task_id, s.parent_task_id, s.task_name, s.state, s.attempts,
    s.failures, s.created_at, s.started_at, s.finished_at, s.failure_reason, s.attributes,
    (select count(*) from members) > p_limit
  from tree as t
  join shown as s on s.task_id = t.task_id
  order by t.places;
  if not found then
    perform from teguh._recorded_run(p_workflow_run_id);
    if not found then
      perform teguh._refuse_run(p_workflow_run_id);
    end if;
  end if;
end;
$$;

comment on function teguh.get_workflow_tree(uuid, integer) is
  'The tasks of a workflow run in the queues that the caller may look at, as a tree: a task is '
  'followed by those that have it as parent, one level deeper, the oldest first. One whose parent '
  'is not in the run, or gone, is at level 0. No more than the p_limit oldest; cut tells, in every '
  'row, that there are more. started_at is when it was first handed to a worker. Raises TG005 for '
  'a limit that is not from 1 to 10000, TG009 for an id that is neither a workflow run''s nor any '
  'task''s.';

-- Those of some workflow runs that have a task in this queue.
create or replace function teguh._used_template(p_run_ids uuid[])
  returns setof uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select u.run_id
  from unnest(p_run_ids) as u(run_id)
  where exists (
    select from teguh.t_template as t where t.workflow_run_id = u.run_id offset 0
  );
end;
$$;

-- Those of some workflow runs that have a task; null when a queue cannot be looked at.
create or replace function teguh._needed_runs(p_run_ids uuid[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
  v_some  uuid[];
  v_used  uuid[] := '{}';
begin
  for v_queue in
    select q.queue_name
    from teguh.list_queues() as q
  loop
    if not teguh._share_queue(v_queue) then
      return null;
    end if;
    execute format('select array(%s)', teguh._call('used', v_queue, 1))
    into v_some
    using array(
      select u.run_id from unnest(p_run_ids) as u(run_id) where u.run_id <> all (v_used)
    );
    v_used := v_used || v_some;
  end loop;

  return v_used;
end;
$$;

-- Add up what tasks of workflow runs came to that are gone, so that a run without end does not
-- gather more and more of it.
create or replace function teguh._merge_tallies(p_run_ids uuid[])
  returns void
  language sql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
  with taken as (
    delete from teguh.workflow_tallies as t
    where t.workflow_run_id = any (p_run_ids)
    returning t.*
  )

  insert into teguh.workflow_tallies as w (
    workflow_run_id, queue_name, state, own, qty, started_at, finished_at
  )
  select
    t.workflow_run_id, t.queue_name, t.state, t.own, sum(t.qty), min(t.started_at),
    max(t.finished_at)
  from taken as t
  group by t.workflow_run_id, t.queue_name, t.state, t.own;
$$;

-- Remove old workflow runs.  What is in use is looked at again after another p_ttl_seconds.
create or replace function teguh.cleanup_workflow_runs(
  p_ttl_seconds double precision default null,
  p_limit       integer default null
)
  returns integer
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := teguh.current_time();
  v_ttl     double precision := coalesce(p_ttl_seconds, (
    select greatest(2592000, max((q.policy ->> 'cleanup_ttl')::double precision))
    from teguh.queues as q
  ));
  v_limit   integer := teguh._check_limit(coalesce(p_limit, 1000));
  v_before  timestamptz;
  v_run_ids uuid[];
  v_used    uuid[];
begin
  perform teguh._check_seconds('ttl', v_ttl, true);
  v_before := teguh._after(v_now, -v_ttl);
  v_run_ids := array(
    select w.workflow_run_id
    from teguh.workflow_runs as w
    where w.kept_at <= v_before
    order by w.kept_at
    limit v_limit
    for update skip locked
  );
  v_used := teguh._needed_runs(v_run_ids);
  if v_used is null then
    return 0;
  end if;

  update teguh.workflow_runs as w
  set kept_at = v_now
  where w.workflow_run_id = any (v_used);
  perform teguh._merge_tallies(v_used);
  v_run_ids := array(
    select u.run_id from unnest(v_run_ids) as u(run_id) where u.run_id <> all (v_used)
  );
  update teguh.workflow_runs as w
  set kept_at = t.ended_at
  from (
    select t.workflow_run_id, max(t.finished_at) as ended_at
    from teguh.workflow_tallies as t
    where t.workflow_run_id = any (v_run_ids)
    group by t.workflow_run_id
  ) as t
  where w.workflow_run_id = t.workflow_run_id
    and t.ended_at > v_before;
  v_run_ids := array(
    select w.workflow_run_id
    from teguh.workflow_runs as w
    where w.workflow_run_id = any (v_run_ids)
      and w.kept_at <= v_before
  );

  delete from teguh.workflow_tallies as t
  where t.workflow_run_id = any (v_run_ids);
  delete from teguh.workflow_runs as w
  where w.workflow_run_id = any (v_run_ids);
  return cardinality(v_run_ids);
end;
$$;

comment on function teguh.cleanup_workflow_runs(double precision, integer) is
  'Removes workflow runs that have no task in any queue and were created, and had their last task '
  'end, more than p_ttl_seconds ago; looks at up to p_limit, and returns how many it removed. One '
  'that still has tasks is looked at again after another p_ttl_seconds. Null: 30 days, or the '
  'longest cleanup_ttl of any queue if that is longer, and 1000. cleanup_all_queues() calls it. '
  'Raises TG005 for a bad argument.';
