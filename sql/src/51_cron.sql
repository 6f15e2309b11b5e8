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

-- Tell how to get a ticker without pg_cron at hand.  pg_cron lives in one database
-- of a server and can run jobs in the others, but must be asked there.  Which one
-- that is, an ordinary role cannot know.
create or replace function teguh._explain_no_cron(
  p_ticker  text,
  p_command text,
  p_cleanup text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg_available_extensions as a where a.name = 'pg_cron') then
    raise notice 'pg_cron is not installed: nothing was scheduled'
      using
        detail = 'Workers see to due tasks themselves, and tick while they run.',
        hint = 'Install pg_cron, or call teguh.ticker() and teguh.cleanup_all_queues() yourself.';
    return;
  end if;

  raise notice 'pg_cron is not in this database: nothing was scheduled'
    using
      detail = 'It lives in one database of the server and can run jobs in the others.',
      hint = format(
        'In that database: select cron.schedule_in_database(%L, %L, %L, %L); '
        'select cron.schedule_in_database(%L, %L, %L, %L);',
        'teguh_ticker', p_ticker, p_command, current_database(),
        'teguh_maint', p_cleanup, 'select teguh._maintain()', current_database()
      );
end;
$$;

-- Schedule ticker and cleanup.
create or replace function teguh.start(p_options jsonb default '{}')
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_ticker  text;
  v_command text := 'select teguh.ticker()';
  v_cleanup text;
begin
  perform teguh._check_keys(
    'start options', v_options, array['ticker_schedule', 'cleanup_schedule']
  );
  v_ticker := coalesce(
    teguh._text_option(v_options, 'ticker_schedule'),
    case when teguh._cron_has_seconds() then '1 seconds' else '* * * * *' end
  );
  if v_ticker = '* * * * *' then
    v_command := 'call teguh.ticker_loop(''{"tick_seconds": 1}'')';
  end if;
  v_cleanup := coalesce(teguh._text_option(v_options, 'cleanup_schedule'), '*/5 * * * *');

  if not teguh._has_cron() then
    perform teguh._explain_no_cron(v_ticker, v_command, v_cleanup);
    return;
  end if;

  perform cron.schedule('teguh_ticker', v_ticker, v_command);
  perform cron.schedule('teguh_maint', v_cleanup, 'select teguh._maintain()');
end;
$$;

comment on function teguh.start(jsonb) is
  'Schedules the jobs teguh_ticker and teguh_maint by pg_cron: ticker() every second '
  '(before pg_cron 1.5: a loop every minute that ticks every second), cleanup every '
  'five minutes. Options: ticker_schedule, cleanup_schedule, in pg_cron''s syntax. Calling '
  'it again changes the schedules. Without pg_cron in this database: a notice, with '
  'the statements to run where it is. Raises TG005 for an unknown option.';

-- Unschedule ticker and cleanup.
create or replace function teguh.stop()
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not teguh._has_cron() then
    return;
  end if;

  perform cron.unschedule(j.jobid)
  from cron.job as j
  where j.jobname in ('teguh_ticker', 'teguh_maint')
    and j.database = current_database();
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
        where j.jobname in ('teguh_ticker', 'teguh_maint')
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
    lag_seconds  double precision
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
      max(j.schedule) filter (where j.jobname = 'teguh_maint')
    into ticker_job, cleanup_job
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
  'how many seconds ago, both null if never.';
