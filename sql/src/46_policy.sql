-- Set a queue's pause, or end it (null) and tell the workers that wait.
create or replace function teguh._pause_template(p_until timestamptz, p_reason text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  update teguh.queues as q
  set paused_until = p_until
  where q.queue_name = substr('_template', 2);
  if p_until is null then
    perform pg_notify('teguh_template', '');
  end if;
  perform teguh._act_template(
    case when p_until is null then 'resume' else 'pause' end, p_reason, null, null,
    jsonb_strip_nulls(jsonb_build_object('until', p_until))
  );
end;
$$;

-- Set or end (null) the pause of one task name or key of a queue.
create or replace function teguh._halve_template(p_only jsonb, p_until timestamptz, p_reason text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := substr('_template', 2);
  v_scope      text := case when p_only ->> 'key' is null then 'task' else 'key' end;
  v_name       text := coalesce(p_only ->> 'key', p_only ->> 'task_name');
begin
  perform teguh._reign_template();
  delete from teguh.pauses as p
  where (p.queue_name, p.scope, p.name) = (v_queue_name, v_scope, v_name);
  if p_until is not null then
    insert into teguh.pauses as p (queue_name, scope, name, paused_until)
    values (v_queue_name, v_scope, v_name, p_until);
  end if;
  perform teguh._align_template(false, teguh.current_time());
  if p_until is null then
    perform pg_notify('teguh_template', '');
  end if;
  perform teguh._act_template(
    case when p_until is null then 'resume' else 'pause' end, p_reason, null, null,
    p_only || jsonb_strip_nulls(jsonb_build_object('until', p_until))
  );
end;
$$;

-- Read which task name or key is to be paused.
create or replace function teguh._check_only(p_only jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_keys('what to pause', p_only, array['task_name', 'key']);
  if num_nonnulls(
    teguh._text_option(p_only, 'task_name'), teguh._text_option(p_only, 'key')
  ) <> 1 then
    raise exception 'either a task name or a key can be paused'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(p_only::text, 200)),
        hint = 'For instance {"task_name": "send"}.';
  end if;

  perform teguh._check_name('name', coalesce(p_only ->> 'task_name', p_only ->> 'key'));
end;
$$;

-- Pause a queue.
create or replace function teguh.pause_queue(
  p_queue_name text,
  p_until      timestamptz default 'infinity',
  p_reason     text default null,
  p_only       jsonb default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_until is null then
    raise exception 'a pause must have an end'
      using
        errcode = '22004',
        detail = 'The time until which the queue is paused is null.',
        hint = 'Leave it out to pause until resume_queue() is called.';
  end if;

  if p_only is null then
    execute teguh._call('pause', p_queue_name, 2) using p_until, p_reason;
  else
    perform teguh._check_only(p_only);
    execute teguh._call('halve', p_queue_name, 3) using p_only, p_until, p_reason;
  end if;
end;
$$;

comment on function teguh.pause_queue(text, timestamptz, text, jsonb) is
  'Lets claims of a queue return nothing until p_until, or until resume_queue(); with p_only '
  '({"task_name"} or {"key"}) nothing of that name or key (*: of any), see set_limit(). Spawns, '
  'events, running tasks and timers go on. list_actions() shows p_reason. Raises '
  'TG001 for an unknown queue, TG005 for a bad p_only, 22004 for a null time.';

-- Resume a queue.
create or replace function teguh.resume_queue(
  p_queue_name text,
  p_reason     text default null,
  p_only       jsonb default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_only is null then
    execute teguh._call('pause', p_queue_name, 2) using null::timestamptz, p_reason;
  else
    perform teguh._check_only(p_only);
    execute teguh._call('halve', p_queue_name, 3) using p_only, null::timestamptz, p_reason;
  end if;
end;
$$;

comment on function teguh.resume_queue(text, text, jsonb) is
  'Ends the pause of a queue, or with p_only that of a task name or key, and wakes its workers; '
  'what is not paused stays as it is. list_actions() shows p_reason. '
  'Raises TG001 for an unknown queue, TG005 for a bad p_only.';

-- Read a queue's policy.
create or replace function teguh.get_queue_policy(p_queue_name text)
  returns jsonb
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return '{
    "notify": "auto", "cleanup_ttl": 2592000, "cleanup_limit": 1000,
    "default_max_attempts": null, "default_retry_strategy": null,
    "default_timeout": null, "default_ttl": null, "namespace": "default",
    "max_pending": null, "on_full": "reject", "max_messages": null, "history": true,
    "duration_buckets": [
      0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800
    ]
  }'::jsonb || (teguh._policy(p_queue_name) - '{paused_until,ruled}'::text[]);
end;
$$;

comment on function teguh.get_queue_policy(text) is
  'The policy of a queue, with the defaults for what was not set: see create_queue() for '
  'the keys. Raises TG001 for an unknown queue.';

-- Set keys of a queue's policy.
create or replace function teguh.set_queue_policy(p_queue_name text, p_policy jsonb)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh.create_queue(p_queue_name, p_policy);
end;
$$;

comment on function teguh.set_queue_policy(text, jsonb) is
  'Sets the keys given of a queue''s policy and leaves the others; null sets a key back to '
  'its default. Creates the queue if there is none: it is create_queue(). Raises 42602 or '
  '42939 for a name that cannot be, TG005 for a bad policy.';

-- Count queues by namespace.
create or replace function teguh.list_namespaces()
  returns table(namespace text, queues bigint)
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(q.policy ->> 'namespace', 'default'), count(*)
  from teguh.queues as q
  group by 1
  order by 1;
$$;

comment on function teguh.list_namespaces() is
  'The namespaces that queues are in, by name, and how many are in each. A queue''s namespace is '
  'a key of its policy.';
