-- Attributes: what a task says of itself while it runs, so that it can be found by it.

-- A value as text, the same for equal values: 1.0 is 1.
create or replace function teguh._word(p_value jsonb)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case jsonb_typeof(p_value)
    when 'number' then trim_scale(p_value::numeric)::text
    else p_value::text
  end;
$$;

-- Refuse attributes that cannot be.  Both name and value are in the key of an index, hence the
-- limits.
create or replace function teguh._check_attributes(p_attributes jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_bad record;
begin
  if jsonb_typeof(p_attributes) is distinct from 'object' then
    raise exception 'attributes must be a JSON object'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_attributes::text, 'null'), 200)),
        hint = 'For instance {"customer": "c-17", "amount": 250}.';
  end if;

  perform teguh._check_name('name of an attribute', a.key)
  from jsonb_each(p_attributes) as a;

  select a.key, a.value into v_bad
  from jsonb_each(p_attributes) as a
  where jsonb_typeof(a.value) not in ('string', 'number', 'boolean')
    or octet_length(teguh._word(a.value)) > 1024
  limit 1;
  if found then
    raise exception 'attribute "%" must be a string, a number, true or false',
      left(v_bad.key, 200)
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_bad.value::text, 200)),
        hint = 'As JSON text it may have 1024 bytes.';
  end if;
end;
$$;

-- Read the attributes of a filter; null when absent, null or empty.
create or replace function teguh._attributes_option(p_filter jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_attributes jsonb := nullif(p_filter -> 'attributes', 'null');
begin
  if v_attributes is not null then
    perform teguh._check_attributes(v_attributes);
  end if;
  return nullif(v_attributes, '{}');
end;
$$;

-- The attributes of a task, as an object.
create or replace function teguh._pinned_template(p_task_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(
    (
      select jsonb_object_agg(v.name, v.word::jsonb)
      from teguh.v_template as v
      where v.task_id = p_task_id
    ),
    '{}'
  );
end;
$$;

-- Set attributes of the task of a run that is held.
create or replace function teguh._pin_template(p_run_id uuid, p_attributes jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._hold_template(p_run_id);
begin
  delete from teguh.v_template as v
  where v.task_id = v_task.task_id
    and p_attributes -> v.name = 'null';
  insert into teguh.v_template as v (task_id, name, word)
  select v_task.task_id, a.key, teguh._word(a.value)
  from jsonb_each(p_attributes) as a
  where a.value <> 'null'
  on conflict (task_id, name) do update
  set word = excluded.word
  where v.word <> excluded.word;

  if (select count(*) from teguh.v_template as v where v.task_id = v_task.task_id) > 64 then
    raise exception 'task "%" would have more than 64 attributes', v_task.task_id
      using
        errcode = 'TG005',
        detail = 'Each is a row of an index, to find the task by.',
        hint = 'Take away what nobody looks for: {"name": null}.';
  end if;
end;
$$;

-- Set attributes of a run's task.
create or replace function teguh.set_attributes(
  p_queue_name text,
  p_run_id     uuid,
  p_attributes jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_attributes(case
    when jsonb_typeof(p_attributes) = 'object' then coalesce(teguh._present(p_attributes), '{}')
    else p_attributes
  end);
  execute teguh._call('pin', p_queue_name, 2) using p_run_id, p_attributes;
end;
$$;

comment on function teguh.set_attributes(text, uuid, jsonb) is
  'Publishes attributes of a run''s task, in the caller''s transaction: names with strings, '
  'numbers, true or false, by which list_tasks() and all that takes its filter find the task. '
  'Those not named stay as they are; null takes one away. They stay with the task until it is '
  'cleaned up, also when it is retried or repeated. Names and values have up to 1024 bytes, a '
  'task up to 64 attributes. Raises TG001 for an unknown queue, TG002 for an unknown run, TG004 '
  'if nobody holds the run, TG005 for a bad attribute or too many, AB001 if the task is '
  'cancelled, AB002 if the run has ended.';

-- The attributes of a task that exists.
create or replace function teguh._told_template(p_task_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._fetch_template(p_task_id);
  return teguh._pinned_template(p_task_id);
end;
$$;

-- Read the attributes of a task.
create or replace function teguh.get_attributes(p_queue_name text, p_task_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_attributes jsonb;
begin
  execute teguh._call('told', p_queue_name, 1) into v_attributes using p_task_id;
  return v_attributes;
end;
$$;

comment on function teguh.get_attributes(text, uuid) is
  'What a task has published by set_attributes(), as an object; {} if nothing. Raises TG001 for '
  'an unknown queue, TG003 for an unknown task.';
