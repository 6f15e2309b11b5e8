-- The one clock of the engine.  The setting teguh.fake_now stops it for tests.
create or replace function teguh.current_time()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(
    nullif(btrim(current_setting('teguh.fake_now', true)), '')::timestamptz,
    clock_timestamp()
  );
end;
$$;

comment on function teguh.current_time() is
  'The time every part of teguh goes by: the setting teguh.fake_now when it is '
  'not blank (a clock for tests), else clock_timestamp(). Raises 22007 when '
  'teguh.fake_now is not a timestamp.';

-- A moment some seconds after another.  Saturates instead of overflowing.
create or replace function teguh._after(p_from timestamptz, p_seconds double precision)
  returns timestamptz
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_seconds >= 3e9 then 'infinity'::timestamptz
    when p_seconds <= -3e9 then '-infinity'::timestamptz
    else p_from + make_interval(secs => p_seconds)
  end;
end;
$$;

-- A moment as microseconds since 1970, the form in which a register keeps it.
create or replace function teguh._micros(p_at timestamptz)
  returns bigint
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return date_part('epoch', least(p_at, '9999-12-31 00:00:00+00'::timestamptz)) * 1000000;
end;
$$;
