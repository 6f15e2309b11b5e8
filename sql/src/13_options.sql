-- Refuse keys that are not options.  An option misspelt must never be ignored.
create or replace function teguh._check_keys(p_what text, p_options jsonb, p_known text[])
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  if jsonb_typeof(p_options) is distinct from 'object' then
    raise exception '% must be a JSON object', p_what
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_options::text, 'null'), 200)),
        hint = 'Pass an object such as {}.';
  end if;

  select k.key into v_unknown
  from jsonb_object_keys(p_options) as k(key)
  where k.key <> all (p_known)
  limit 1;

  if found then
    raise exception 'unknown key "%" in %', left(v_unknown, 200), p_what
      using
        errcode = 'TG005',
        detail = format('Known keys: %s.', array_to_string(p_known, ', ')),
        hint = 'Check the spelling.';
  end if;
end;
$$;

-- Read an option that must be a number within bounds; null when absent or null.
create or replace function teguh._number_option(
  p_options jsonb,
  p_key     text,
  p_least   double precision,
  p_most    double precision
)
  returns double precision
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value jsonb := p_options -> p_key;
begin
  if v_value is null or v_value = 'null' then
    return null;
  end if;

  if jsonb_typeof(v_value) <> 'number'
    or v_value::numeric < p_least::numeric
    or v_value::numeric > p_most::numeric
  then
    raise exception '"%" must be a number from % to %', p_key, p_least, p_most
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = 'Give a JSON number within these bounds; durations are in seconds.';
  end if;

  -- what is too small for a double precision is an error to the cast
  return case when abs(v_value::numeric) >= 1e-300 then v_value::double precision else 0 end;
end;
$$;

-- Read an option that must be a whole number within bounds; null when absent.
create or replace function teguh._integer_option(
  p_options jsonb,
  p_key     text,
  p_least   integer
)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._whole_option(p_options, p_key, p_least, 2147483647);
end;
$$;

-- The same up to another bound.
create or replace function teguh._whole_option(
  p_options jsonb,
  p_key     text,
  p_least   integer,
  p_most    integer
)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value double precision := teguh._number_option(p_options, p_key, p_least, p_most);
begin
  if v_value <> floor(v_value) then
    raise exception '"%" must be a whole number', p_key
      using
        errcode = 'TG005',
        detail = format('Found: %s.', p_options -> p_key),
        hint = format('Use %s or %s.', floor(v_value), ceil(v_value));
  end if;

  return v_value::integer;
end;
$$;

-- Read an option that must be a string; null when absent or null.
create or replace function teguh._text_option(p_options jsonb, p_key text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value jsonb := p_options -> p_key;
begin
  if v_value is null or v_value = 'null' then
    return null;
  end if;

  if jsonb_typeof(v_value) <> 'string' then
    raise exception '"%" must be a string', p_key
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = 'Put the value in double quotes.';
  end if;

  return p_options ->> p_key;
end;
$$;

-- Read an option that must be true or false; false when absent or null.
create or replace function teguh._flag_option(p_options jsonb, p_key text)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value jsonb := coalesce(nullif(p_options -> p_key, 'null'), 'false');
begin
  if jsonb_typeof(v_value) <> 'boolean' then
    raise exception '"%" must be true or false', p_key
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = 'Without quotes.';
  end if;

  return v_value::boolean;
end;
$$;

-- An object without those of its keys that are null; what is inside them stays as it is.
create or replace function teguh._present(p_object jsonb)
  returns jsonb
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(e.key, e.value) filter (where e.value <> 'null')
  from jsonb_each(p_object) as e(key, value);
$$;

-- Read an option that must be a name; null when absent or null.
create or replace function teguh._name_option(p_options jsonb, p_key text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := teguh._text_option(p_options, p_key);
begin
  if v_name is not null then
    perform teguh._check_name(replace(p_key, '_', ' '), v_name);
  end if;
  return v_name;
end;
$$;

-- Read an option that must be a uuid; null when absent or null.
create or replace function teguh._uuid_option(p_options jsonb, p_key text)
  returns uuid
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value text := teguh._text_option(p_options, p_key);
begin
  if v_value is null then
    return null;
  end if;

  begin
    return v_value::uuid;
  exception
    when invalid_text_representation then
      raise exception '"%" must be a uuid', p_key
        using
          errcode = 'TG005',
          detail = format('Found: "%s".', left(v_value, 200)),
          hint = 'For instance the task_id that spawn_task() returned.';
  end;
end;
$$;

-- Read the tags of a spawn: an array of names; null when absent, null or empty.
create or replace function teguh._tags_option(p_options jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value jsonb := nullif(p_options -> 'tags', 'null');
  v_tags  text[];
begin
  if jsonb_typeof(v_value) <> 'array'
    or jsonb_path_exists(v_value, 'strict $[*] ? (@.type() <> "string")')
  then
    raise exception '"tags" must be an array of strings'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = 'For instance ["nightly", "billing"].';
  end if;

  select array_agg(a.tag order by a.place) into v_tags
  from jsonb_array_elements_text(v_value) with ordinality as a(tag, place);
  perform teguh._check_name('tag', t.tag)
  from unnest(v_tags) as t(tag);
  return v_tags;
end;
$$;

-- Refuse a blank or overlong name.  Names are index keys, hence the limit.
create or replace function teguh._check_name(p_what text, p_name text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_name is null or btrim(p_name) = '' then
    raise exception '% must not be blank', p_what
      using
        errcode = 'TG005',
        detail = 'The name is null, empty or only spaces.',
        hint = 'Give it a name.';
  end if;

  if octet_length(p_name) > 1024 then
    raise exception '% is longer than 1024 bytes', p_what
      using
        errcode = 'TG005',
        detail = format('It has %s bytes and begins with "%s".', octet_length(p_name),
          left(p_name, 60)),
        hint = 'Put the data into params or the payload, and a short name here.';
  end if;
end;
$$;

-- Refuse a duration that is null, not a number, or below a bound.
create or replace function teguh._check_seconds(
  p_what    text,
  p_seconds double precision,
  p_zero_ok boolean
)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_seconds is null
    or p_seconds = 'NaN'
    or p_seconds < 0
    or (p_seconds = 0 and not p_zero_ok)
  then
    raise exception '% must be % of seconds', p_what,
      case when p_zero_ok then 'zero or a positive number' else 'a positive number' end
      using
        errcode = 'TG005',
        detail = format('Found: %s.', coalesce(p_seconds::text, 'null')),
        hint = 'Fractions such as 0.5 are fine.';
  end if;
end;
$$;

-- Functions that look at what others have just committed need a fresh snapshot
-- per statement.
create or replace function teguh._check_isolation(p_function text)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception '% must run in a READ COMMITTED transaction', p_function
      using
        errcode = '25001',
        detail = format('The isolation level is %s: what others commit meanwhile cannot be seen.',
          upper(current_setting('transaction_isolation'))),
        hint = 'Call it outside of the transaction, or begin that with READ COMMITTED.';
  end if;
end;
$$;

-- Read the bounds of a queue's duration buckets; null when absent or null.
create or replace function teguh._buckets_option(p_policy jsonb)
  returns double precision[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value  jsonb := nullif(p_policy -> 'duration_buckets', 'null');
  v_bounds double precision[];
begin
  if v_value is null then
    return null;
  end if;

  if jsonb_path_exists(
      v_value, 'strict $ ? (@.type() == "array" && @.size() >= 1 && @.size() <= 50)'
    )
    and not jsonb_path_exists(v_value, 'strict $[*] ? (@.type() <> "number" || @ <= 0 || @ > 1e12)')
  then
    v_bounds := array(
      select distinct b.bound::double precision as bound
      from jsonb_array_elements_text(v_value) as b(bound)
      order by bound
    );
  end if;
  if to_jsonb(v_bounds) = v_value then
    return v_bounds;
  end if;

  raise exception '"duration_buckets" must be an ascending array of seconds'
    using
      errcode = 'TG005',
      detail = format('Found: %s.', left(v_value::text, 200)),
      hint = 'For instance [0.1, 1, 10, 60]: at most 50 bounds, each above zero.';
end;
$$;

-- Read the options of a queue's policy, refusing what is not understood.
create or replace function teguh._check_policy(p_policy jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_notify text;
begin
  perform teguh._check_keys('queue policy', p_policy, array[
    'notify', 'cleanup_ttl', 'cleanup_limit', 'default_max_attempts', 'default_retry_strategy',
    'default_timeout', 'default_ttl', 'duration_buckets', 'max_pending', 'on_full', 'max_messages',
    'namespace', 'history'
  ]);
  perform teguh._number_option(p_policy, 'cleanup_ttl', 0, 1e12);
  perform teguh._integer_option(p_policy, 'cleanup_limit', 1);
  perform teguh._integer_option(p_policy, 'default_max_attempts', 1);
  perform teguh._check_retry_strategy(p_policy -> 'default_retry_strategy');
  perform teguh._number_option(p_policy, 'default_timeout', 1e-3, 1e12);
  perform teguh._number_option(p_policy, 'default_ttl', 1e-3, 1e12);
  perform teguh._buckets_option(p_policy);
  perform teguh._integer_option(p_policy, 'max_pending', 1);
  perform teguh._integer_option(p_policy, 'max_messages', 1);
  perform teguh._flag_option(p_policy, 'history');

  if teguh._text_option(p_policy, 'on_full') not in ('reject', 'drop_oldest') then
    raise exception 'unknown on_full "%"', left(p_policy ->> 'on_full', 200)
      using
        errcode = 'TG005',
        detail = 'Known values: reject, drop_oldest.',
        hint = 'reject raises TG007 at the spawn, drop_oldest cancels what is first in line.';
  end if;

  if teguh._text_option(p_policy, 'namespace') is not null then
    perform teguh._check_name('namespace', p_policy ->> 'namespace');
  end if;

  v_notify := teguh._text_option(p_policy, 'notify');
  if v_notify not in ('auto', 'always', 'off') then
    raise exception 'unknown notify policy "%"', left(v_notify, 200)
      using
        errcode = 'TG005',
        detail = 'Known policies: auto, always, off.',
        hint = 'auto notifies when a worker is waiting.';
  end if;
end;
$$;

-- Turn one task and its options into a row to insert, or raise.  p_policy gives
-- the defaults of the queue.
create or replace function teguh._check_spawn(
  p_queue_name text,
  p_task_name  text,
  p_params     jsonb,
  p_options    jsonb,
  p_policy     jsonb
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_spawn   teguh._spawn;
begin
  perform teguh._check_name('task name', p_task_name);
  v_spawn.task_name := p_task_name;
  v_spawn.params := coalesce(p_params, 'null');
  v_spawn.return_mismatch := false;

  if v_options <> '{}' then
    v_spawn := teguh._read_spawn_options(p_queue_name, v_spawn, v_options);
  end if;

  if p_policy <> '{}' then
    if v_spawn.retry_strategy is null then
      v_spawn.retry_strategy := nullif(p_policy -> 'default_retry_strategy', 'null');
    end if;
    if not v_options ? 'max_attempts' then
      v_spawn.max_attempts := (p_policy ->> 'default_max_attempts')::integer;
    end if;
    if not v_options ? 'timeout_seconds' then
      v_spawn.timeout_seconds := (p_policy ->> 'default_timeout')::double precision;
    end if;
    if not v_options ?| '{ttl_seconds,deadline_at}' then
      v_spawn.expires_at := teguh._after(
        greatest(v_spawn.available_at, teguh.current_time()),
        (p_policy ->> 'default_ttl')::double precision
      );
    end if;
  end if;
  return v_spawn;
end;
$$;

-- Read the options of one spawn into the row.
create or replace function teguh._read_spawn_options(
  p_queue_name text,
  p_spawn      teguh._spawn,
  p_options    jsonb
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn    teguh._spawn := p_spawn;
  v_mismatch text;
begin
  perform teguh._check_keys('spawn options', p_options, array[
    'headers', 'retry_strategy', 'max_attempts', 'cancellation', 'idempotency_key',
    'idempotency_mismatch', 'available_at', 'delay_seconds', 'tags', 'correlation_id',
    'parent_task_id', 'parent_run_id', 'parent_queue_name', 'workflow_run_id', 'timeout_seconds',
    'ttl_seconds', 'deadline_at', 'on_expired', 'unique', 'priority', 'key',
    'sequence', 'on_failure', 'compensate'
  ]);

  v_spawn.headers := nullif(p_options -> 'headers', 'null');
  if jsonb_typeof(v_spawn.headers) <> 'object' then
    raise exception '"headers" must be a JSON object'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_spawn.headers::text, 200)),
        hint = 'For instance {"traceparent": "00-…"}.';
  end if;

  v_spawn.retry_strategy := nullif(p_options -> 'retry_strategy', 'null');
  perform teguh._check_retry_strategy(v_spawn.retry_strategy);
  v_spawn.max_attempts := teguh._integer_option(p_options, 'max_attempts', 1);
  v_spawn.cancellation := nullif(p_options -> 'cancellation', 'null');
  perform teguh._check_cancellation(v_spawn.cancellation);

  v_spawn.idempotency_key := teguh._text_option(p_options, 'idempotency_key');
  if v_spawn.idempotency_key is not null then
    perform teguh._check_name('idempotency key', v_spawn.idempotency_key);
  end if;
  v_mismatch := teguh._text_option(p_options, 'idempotency_mismatch');
  if v_mismatch not in ('return', 'error') then
    raise exception 'unknown idempotency_mismatch "%"', left(v_mismatch, 200)
      using
        errcode = 'TG005',
        detail = 'Known values: error, return.',
        hint = 'With return the existing task is returned whatever it was spawned with.';
  end if;
  v_spawn.return_mismatch := coalesce(v_mismatch = 'return', false);

  v_spawn.available_at := teguh._moment_option(
    p_options, 'available_at', 'delay_seconds', 0, teguh.current_time()
  );
  v_spawn.tags := teguh._tags_option(p_options);
  v_spawn.correlation_id := teguh._name_option(p_options, 'correlation_id');
  v_spawn.parent_task_id := teguh._uuid_option(p_options, 'parent_task_id');
  v_spawn.workflow_run_id := teguh._uuid_option(p_options, 'workflow_run_id');
  if p_options ?| '{timeout_seconds,ttl_seconds,deadline_at,on_expired}' then
    v_spawn := teguh._read_time_options(p_queue_name, v_spawn, p_options);
  end if;
  v_spawn.priority := nullif(teguh._whole_option(p_options, 'priority', -32768, 32767), 0);
  v_spawn.flow_key := teguh._name_option(p_options, 'key');
  if p_options ? 'unique' then
    v_spawn.uniqueness := teguh._unique_option(p_options);
  end if;
  if p_options ?| '{sequence,on_failure,compensate}' then
    v_spawn.links := teguh._links_option(p_queue_name, p_options);
  end if;
  if p_options ? 'parent_run_id' then
    v_spawn := teguh._inherit(p_queue_name, v_spawn, p_options);
  end if;
  return v_spawn;
end;
$$;

-- Read an option that must be a timestamp; null when absent or null.
create or replace function teguh._time_option(p_options jsonb, p_key text)
  returns timestamptz
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value text := teguh._text_option(p_options, p_key);
begin
  return v_value::timestamptz;
exception
  when invalid_datetime_format or datetime_field_overflow or invalid_parameter_value then
    raise exception '"%" is not a timestamp', p_key
      using
        errcode = 'TG005',
        detail = format('Found: "%s".', left(v_value, 200)),
        hint = 'Use ISO 8601 with an offset, for instance 2027-01-31T09:00:00+00.';
end;
$$;

-- Read a moment that is given as such or in seconds from another; null when neither is.
create or replace function teguh._moment_option(
  p_options jsonb,
  p_at      text,
  p_seconds text,
  p_least   double precision,
  p_from    timestamptz
)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_seconds double precision := teguh._number_option(p_options, p_seconds, p_least, 1e12);
begin
  if p_options ->> p_at is null then
    return teguh._after(p_from, v_seconds);
  end if;

  if v_seconds is not null then
    raise exception 'both "%" and "%" are given', p_at, p_seconds
      using
        errcode = 'TG005',
        detail = 'They name the same moment in two ways.',
        hint = 'Give one of them.';
  end if;

  return teguh._time_option(p_options, p_at);
end;
$$;

-- Read how long a task may take, at a time and altogether, and what follows when it expires.
create or replace function teguh._read_time_options(
  p_queue_name text,
  p_spawn      teguh._spawn,
  p_options    jsonb
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn      teguh._spawn := p_spawn;
  v_queue_name text;
begin
  v_spawn.timeout_seconds := teguh._number_option(p_options, 'timeout_seconds', 1e-3, 1e12);
  v_spawn.expires_at := teguh._moment_option(
    p_options, 'deadline_at', 'ttl_seconds', 1e-3,
    greatest(v_spawn.available_at, teguh.current_time())
  );
  v_spawn.on_expired := nullif(p_options -> 'on_expired', 'null');
  if v_spawn.on_expired is null then
    return v_spawn;
  end if;

  perform teguh._check_keys(
    'on_expired', v_spawn.on_expired, array['queue_name', 'task_name', 'params', 'options']
  );
  v_queue_name := coalesce(
    teguh._text_option(v_spawn.on_expired, 'queue_name'), p_queue_name
  );
  perform teguh._read_task(
    v_queue_name, v_spawn.on_expired - 'queue_name', teguh._policy(v_queue_name)
  );
  perform teguh._check_spawner(p_queue_name, v_queue_name);
  return v_spawn;
end;
$$;

-- Read in what way a task is to be the only one of its key; null when absent or null.
create or replace function teguh._unique_option(p_options jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_unique   jsonb := nullif(p_options -> 'unique', 'null');
  v_conflict text;
begin
  if v_unique is null then
    return null;
  end if;

  perform teguh._check_keys('unique', v_unique, array[
    'key', 'states', 'on_conflict', 'window_seconds', 'max_wait_seconds'
  ]);
  perform teguh._check_name('unique key', teguh._text_option(v_unique, 'key'));
  perform teguh._number_option(v_unique, 'window_seconds', 1e-3, 1e12);
  perform teguh._number_option(v_unique, 'max_wait_seconds', 1e-3, 1e12);
  v_conflict := coalesce(teguh._text_option(v_unique, 'on_conflict'), 'error');

  if v_conflict not in ('error', 'return', 'replace', 'debounce') then
    raise exception 'unknown on_conflict "%"', left(v_conflict, 200)
      using
        errcode = 'TG005',
        detail = 'Known values: error, return, replace, debounce.',
        hint = 'replace and debounce change a task that has not started yet.';
  elsif v_conflict in ('replace', 'debounce') and v_unique ?| '{states,window_seconds}'
    or v_conflict <> 'debounce' and v_unique ? 'max_wait_seconds'
  then
    raise exception '"unique" has keys that do not go together'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_unique::text, 200)),
        hint = 'states, window_seconds: error and return; max_wait_seconds: debounce.';
  elsif v_unique ? 'states' and not coalesce(
    jsonb_typeof(v_unique -> 'states') = 'array'
    and v_unique -> 'states' <@ '["pending", "running", "sleeping", "completed", "failed",
      "cancelled", "expired"]', false
  ) then
    raise exception '"states" must be an array of states'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left((v_unique -> 'states')::text, 200)),
        hint = 'For instance ["pending", "running", "sleeping"], which is the default.';
  end if;

  return v_unique || jsonb_build_object('on_conflict', v_conflict);
end;
$$;

-- Take from the run that spawns a task what the options do not say: the task it is for, the
-- workflow run, the matter, the tags.
create or replace function teguh._inherit(
  p_queue_name text,
  p_spawn      teguh._spawn,
  p_options    jsonb
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn  teguh._spawn := p_spawn;
  v_run_id uuid := teguh._uuid_option(p_options, 'parent_run_id');
  v_queue  text := coalesce(teguh._text_option(p_options, 'parent_queue_name'), p_queue_name);
  v_parent record;
begin
  select r.* into v_parent
  from teguh.get_task_result(v_queue, teguh._run_task(v_run_id)) as r;

  v_spawn.parent_task_id := coalesce(v_spawn.parent_task_id, v_parent.task_id);
  v_spawn.workflow_run_id := coalesce(v_spawn.workflow_run_id, v_parent.workflow_run_id);
  v_spawn.correlation_id := coalesce(v_spawn.correlation_id, v_parent.correlation_id);
  if not p_options ? 'tags' then
    v_spawn.tags := v_parent.tags;
  end if;
  return v_spawn;
end;
$$;

-- Refuse a cancellation policy with anything but positive seconds.
create or replace function teguh._check_cancellation(p_cancellation jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_cancellation is null then
    return;
  end if;

  perform teguh._check_keys('cancellation', p_cancellation, array['max_delay', 'max_duration']);
  perform teguh._number_option(p_cancellation, 'max_delay', 1e-6, 1e12);
  perform teguh._number_option(p_cancellation, 'max_duration', 1e-6, 1e12);
end;
$$;
