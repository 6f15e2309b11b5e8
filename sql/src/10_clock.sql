-- The one clock of the engine.  The setting teguh.fake_now stops it for tests.
create or replace function teguh.current_time()
  returns timestamptz
  language sql
  volatile
as $$
  select case
    when pg_catalog.length(pg_catalog.btrim(pg_catalog.current_setting('teguh.fake_now', true)))
      operator(pg_catalog.>) 0
      then pg_catalog.current_setting('teguh.fake_now', true)::timestamp with time zone
    else pg_catalog.clock_timestamp()
  end;
$$;

comment on function teguh.current_time() is
  'The time every part of teguh goes by but the lag of the ticker: the setting '
  'teguh.fake_now when it is not blank (a clock for tests), else '
  'clock_timestamp(). Raises 22007 when teguh.fake_now is not a timestamp.';

-- A moment some seconds after another.  Saturates instead of overflowing.
create or replace function teguh._after(p_from timestamptz, p_seconds double precision)
  returns timestamptz
  language sql
  stable
as $$
  select case
    when p_seconds operator(pg_catalog.>) 3e9::double precision
      then 'infinity'::timestamp with time zone
    when p_seconds operator(pg_catalog.<) '-3e9'::double precision
      then '-infinity'::timestamp with time zone
    else p_from operator(pg_catalog.+) pg_catalog.make_interval(secs => p_seconds)
  end;
$$;

-- A moment as microseconds since 1970, the form in which a register keeps it.
create or replace function teguh._micros(p_at timestamptz)
  returns bigint
  language sql
  stable
as $$
  select (
    pg_catalog.date_part('epoch', least(p_at, '9999-12-31 00:00:00+00'::timestamp with time zone))
    operator(pg_catalog.*) 1000000
  )::bigint;
$$;
