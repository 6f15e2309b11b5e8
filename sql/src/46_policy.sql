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

-- Pause a queue.
create or replace function teguh.pause_queue(
  p_queue_name text,
  p_until      timestamptz default 'infinity',
  p_reason     text default null
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

  execute teguh._call('pause', p_queue_name, 2) using p_until, p_reason;
end;
$$;

comment on function teguh.pause_queue(text, timestamptz, text) is
  'Lets claims of a queue return nothing until p_until, or until resume_queue(). Spawns, '
  'events, running tasks and timers go on. list_actions() shows p_reason. Raises '
  'TG001 for an unknown queue, 22004 for a null time.';

-- Resume a queue.
create or replace function teguh.resume_queue(p_queue_name text, p_reason text default null)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('pause', p_queue_name, 2) using null::timestamptz, p_reason;
end;
$$;

comment on function teguh.resume_queue(text, text) is
  'Ends the pause of a queue and wakes its workers; one that is not paused stays as it is. '
  'list_actions() shows p_reason. '
  'Raises TG001 for an unknown queue.';

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
    "max_pending": null, "on_full": "reject", "duration_buckets": [
      0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800
    ]
  }'::jsonb || (teguh._policy(p_queue_name) - 'paused_until');
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
