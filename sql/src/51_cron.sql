-- Whether pg_cron is installed in this database.
create or replace function teguh._has_cron()
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_extension as e where e.extname = 'pg_cron');
$$;

-- Whether the server's pg_cron can run a job every second, as it can from 1.5 on.
create or replace function teguh._cron_has_seconds()
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    bool_and(
      string_to_array(
        substring(coalesce(a.installed_version, a.default_version) from '^[0-9]+[.][0-9]+'), '.'
      )::integer[] >= array[1, 5]
    ),
    true
  )
  from pg_available_extensions as a
  where a.name = 'pg_cron';
$$;

-- The jobs that start() schedules.
create or replace function teguh._plan_cron(p_options jsonb)
  returns table(job_name text, schedule text, command text)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  job_name := 'teguh_ticker';
  schedule := coalesce(
    teguh._text_option(p_options, 'ticker_schedule'),
    case when teguh._cron_has_seconds() then '1 seconds' else '* * * * *' end
  );
  command := case schedule
    when '* * * * *' then 'call teguh.ticker_loop(''{"tick_seconds": 1}'')'
    else 'select teguh.ticker()'
  end;
  return next;

  job_name := 'teguh_maint';
  schedule := coalesce(teguh._text_option(p_options, 'cleanup_schedule'), '*/5 * * * *');
  command := 'select teguh._maintain()';
  return next;

  for job_name, schedule, command in
    select
      'teguh_work_' || u.queue_name, '* * * * *',
      format('call teguh.work(%L, %L)', u.queue_name, '{"max_seconds": 59}')
    from unnest(teguh._work_option(p_options)) as u(queue_name)
  loop
    return next;
  end loop;
end;
$$;

-- The queues whose handlers are to be run: those given, or all that have handlers.
create or replace function teguh._work_option(p_options jsonb)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_given jsonb := nullif(p_options -> 'work', 'null');
  v_names text[];
begin
  if v_given is null then
    v_names := array(select distinct h.queue_name from teguh.handlers as h order by 1);
  elsif jsonb_typeof(v_given) <> 'array'
    or jsonb_path_exists(v_given, 'strict $[*] ? (@.type() <> "string")')
  then
    raise exception '"work" must be an array of queues'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_given::text, 200)),
        hint = 'For instance ["orders"]; leave it out for every queue that has handlers.';
  else
    v_names := array(select distinct q.name from jsonb_array_elements_text(v_given) as q(name));
  end if;

  perform teguh._crew(u.queue_name)
  from unnest(v_names) as u(queue_name);
  return v_names;
end;
$$;

-- Tell how to get a ticker without pg_cron at hand.  pg_cron lives in one database
-- of a server and can run jobs in the others, but must be asked there.  Which one
-- that is, an ordinary role cannot know.
create or replace function teguh._explain_no_cron(p_options jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_loaded boolean;
begin
  if not exists (select from pg_available_extensions as a where a.name = 'pg_cron') then
    raise notice 'pg_cron is not installed: nothing was scheduled'
      using
        detail = 'Workers see to due tasks themselves, and tick while they run.',
        hint = 'Install pg_cron, or call teguh.ticker() and teguh.cleanup_all_queues() yourself, '
               'and teguh.work() for queues whose handlers are SQL functions.';
    return;
  end if;

  begin
    v_loaded := current_setting('cron.database_name', true) is not null;
  exception
    when insufficient_privilege then
      v_loaded := true;  -- only superusers may read what is there
  end;
  if not v_loaded then
    raise notice 'pg_cron is not loaded: nothing was scheduled'
      using
        detail = 'Its files are on the server, but it is not in shared_preload_libraries.',
        hint = 'Add pg_cron there, restart, create extension pg_cron.';
    return;
  end if;

  raise notice 'pg_cron is not in this database: nothing was scheduled'
    using
      detail = 'It lives in one database of the server and can run jobs in the others.',
      hint = (
        select 'In that database: ' || string_agg(
          format(
            'select cron.schedule_in_database(%L, %L, %L, %L);',
            j.job_name, j.schedule, j.command, current_database()
          ),
          ' '
        )
        from teguh._plan_cron(p_options) as j
      );
end;
$$;

-- Schedule ticker, cleanup and the work on queues.
create or replace function teguh.start(p_options jsonb default '{}')
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_jobs    text[];
begin
  perform teguh._check_keys(
    'start options', v_options, array['ticker_schedule', 'cleanup_schedule', 'work']
  );
  v_jobs := array(select j.job_name from teguh._plan_cron(v_options) as j);
  if not teguh._has_cron() then
    perform teguh._explain_no_cron(v_options);
    return;
  end if;

  perform teguh._unschedule(v_jobs);
  perform cron.schedule(j.job_name, j.schedule, j.command)
  from teguh._plan_cron(v_options) as j;
end;
$$;

comment on function teguh.start(jsonb) is
  'Schedules the jobs teguh_ticker and teguh_maint by pg_cron: ticker() every second '
  '(before pg_cron 1.5: a loop every minute that ticks every second), cleanup every '
  'five minutes; and for each queue that has handlers teguh_work_<queue>, a session that '
  'calls work() minute after minute, as teguh''s owner. Options: ticker_schedule, '
  'cleanup_schedule, in pg_cron''s syntax; work, an array of the queues to work on instead. '
  'Calling it again changes the jobs. Without pg_cron in this database: a notice, with '
  'the statements to run where it is. Raises TG005 for a bad option and, for a queue to work '
  'on, what work() raises.';

-- Unschedule our jobs in this database but those named.
create or replace function teguh._unschedule(p_but text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform cron.unschedule(j.jobid)
  from cron.job as j
  where teguh._is_ours(j.jobname)
    and j.database = current_database()
    and j.jobname <> all (p_but);
end;
$$;

-- Whether a job of pg_cron is one that start() schedules.
create or replace function teguh._is_ours(p_job_name text)
  returns boolean
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select p_job_name in ('teguh_ticker', 'teguh_maint') or starts_with(p_job_name, 'teguh_work_');
$$;

-- Unschedule the work on a queue, which is being dropped.
create or replace function teguh._drop_job(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not teguh._has_cron() or not has_schema_privilege('cron', 'usage') then
    return;
  end if;

  perform cron.unschedule(j.jobid)
  from cron.job as j
  where j.jobname = 'teguh_work_' || p_queue_name
    and j.database = current_database();
end;
$$;

-- Unschedule what start() has.
create or replace function teguh.stop()
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if teguh._has_cron() then
    perform teguh._unschedule('{}');
  end if;
end;
$$;

comment on function teguh.stop() is
  'Unschedules what start() scheduled. A job that is already gone, or pg_cron not '
  'being there, is no error.';

-- The maintenance job: cleanup of all queues, and of pg_cron's log of our own jobs,
-- which nobody else clears.
create or replace function teguh._maintain()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh.cleanup_all_queues();

  if teguh._has_cron() then
    delete from cron.job_run_details as d
    where d.jobid in (
        select j.jobid
        from cron.job as j
        where teguh._is_ours(j.jobname)
      )
      and d.end_time < clock_timestamp() - interval '1 hour';
  end if;
end;
$$;

-- Show whether somebody ticks.
create or replace function teguh.status()
  returns table(
    scheduler    text,
    ticker_job   text,
    cleanup_job  text,
    last_tick_at timestamptz,
    lag_seconds  double precision,
    work_jobs    text[]
  )
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if teguh._has_cron() then
    scheduler := 'pg_cron';
    select
      max(j.schedule) filter (where j.jobname = 'teguh_ticker'),
      max(j.schedule) filter (where j.jobname = 'teguh_maint'),
      array_agg(substr(j.jobname, 12) order by j.jobname)
        filter (where starts_with(j.jobname, 'teguh_work_'))
    into ticker_job, cleanup_job, work_jobs
    from cron.job as j
    where j.database = current_database();
  end if;

  last_tick_at := timestamptz 'epoch'
                  + pg_sequence_last_value('teguh._ticked'::regclass) * interval '1 microsecond';
  lag_seconds := extract(epoch from clock_timestamp() - last_tick_at);
  return next;
end;
$$;

comment on function teguh.status() is
  'One row: scheduler is pg_cron where that is installed, else null; the schedules of '
  'the two jobs, null where not scheduled; when ticker() last ran, by whomever, and '
  'how many seconds ago, both null if never; the queues that jobs work on, null if none.';
