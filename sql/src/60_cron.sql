-- Refuse a schedule that cannot be read, or not followed.
create or replace function teguh._refuse_schedule(p_schedule text, p_detail text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'schedule "%" is not valid', left(coalesce(p_schedule, 'null'), 200)
    using
      errcode = 'TG005',
      detail = p_detail,
      hint = 'For instance "30 9 * * mon-fri" (minute, hour, day of month, month, day of week; '
        'six fields begin with the second), "@daily", "every 90 seconds".';
end;
$$;

-- The number that a part of a field stands for; null if it is none.
create or replace function teguh._cron_value(p_text text, p_least integer, p_names text[])
  returns integer
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_text ~ '^[0-9]+$' then p_text::integer
    else array_position(p_names, p_text) - 1 + p_least
  end;
$$;

-- Read one field, in lower case: which values it allows, as a string of 0 and 1 from the value 0
-- on; null if it is not valid.
create or replace function teguh._cron_field(
  p_field text,
  p_least integer,
  p_most  integer,
  p_names text[] default '{}'
)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_mask  text := repeat('0', p_most + 1);
  v_term  text;
  v_parts text[];
  v_from  integer;
  v_to    integer;
  v_step  integer;
begin
  foreach v_term in array string_to_array(p_field, ',') loop
    v_parts := regexp_match(
      v_term,
      '^(?:[*]|([0-9]{1,4}|[a-z]{3})(?:-([0-9]{1,4}|[a-z]{3}))?)(?:/([0-9]{1,4}))?$'
    );
    v_step := coalesce(v_parts[3]::integer, 1);
    if v_parts[1] is null then
      v_from := p_least;
      v_to := p_most;
    else
      v_from := teguh._cron_value(v_parts[1], p_least, p_names);
      v_to := case
        when v_parts[2] is not null then teguh._cron_value(v_parts[2], p_least, p_names)
        when v_parts[3] is not null then p_most
        else v_from
      end;
      -- only the days of the week have a 7, which is Sunday as 0 is
      if p_most = 7 and v_to = 0 and v_from > 0 then
        v_to := 7;
      end if;
    end if;
    if v_parts is null
      or v_from is null
      or v_to is null
      or v_from < p_least
      or v_to > p_most
      or v_to < v_from
      or v_step not between 1 and p_most - p_least + 1
    then
      return null;
    end if;

    for v_value in v_from .. v_to by v_step loop
      v_mask := overlay(v_mask placing '1' from v_value + 1);
    end loop;
  end loop;

  return v_mask;
end;
$$;

-- Read "every 90 seconds"; null if the schedule is no such.
create or replace function teguh._read_every(p_schedule text)
  returns bigint
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := regexp_match(
    p_schedule, '^every (?:([0-9]{1,9}) )?(second|minute|hour|day|week)s?$'
  );
begin
  return coalesce(v_parts[1], '1')::bigint * case v_parts[2]
    when 'second' then 1
    when 'minute' then 60
    when 'hour' then 3600
    when 'day' then 86400
    when 'week' then 604800
  end;
end;
$$;

-- Read a schedule, or raise TG005.
create or replace function teguh._read_schedule(p_schedule text)
  returns teguh._cron
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_text   text := lower(btrim(regexp_replace(p_schedule, '[[:space:]]+', ' ', 'g')) collate "C");
  v_fields text[];
  v_masks  text[];
  v_cron   teguh._cron;
begin
  v_cron.every_seconds := teguh._read_every(v_text);
  if v_cron.every_seconds between 1 and 3155760000 then
    return v_cron;
  end if;

  v_fields := string_to_array(
    case v_text
      when '@hourly' then '0 * * * *'
      when '@daily' then '0 0 * * *'
      when '@midnight' then '0 0 * * *'
      when '@weekly' then '0 0 * * 0'
      when '@monthly' then '0 0 1 * *'
      when '@yearly' then '0 0 1 1 *'
      when '@annually' then '0 0 1 1 *'
      else v_text
    end, ' '
  );
  if cardinality(v_fields) = 5 then
    v_fields := '0'::text || v_fields;
  end if;
  if v_fields is null or v_cron.every_seconds is not null or cardinality(v_fields) <> 6 then
    perform teguh._refuse_schedule(
      p_schedule, 'It is neither five or six fields nor one of the known words.'
    );
  end if;

  v_masks := array[
    teguh._cron_field(v_fields[1], 0, 59),
    teguh._cron_field(v_fields[2], 0, 59),
    teguh._cron_field(v_fields[3], 0, 23),
    teguh._cron_field(v_fields[4], 1, 31),
    teguh._cron_field(
      v_fields[5], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'
    ),
    teguh._cron_field(v_fields[6], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}')
  ];
  if array_position(v_masks, null) is not null then
    perform teguh._refuse_schedule(p_schedule, format(
      'The %s "%s" is not valid.',
      (array['second', 'minute', 'hour', 'day of month', 'month', 'day of week'])[
        array_position(v_masks, null)
      ],
      left(v_fields[array_position(v_masks, null)], 60)
    ));
  end if;

  v_cron.seconds := v_masks[1];
  v_cron.minutes := v_masks[2];
  v_cron.hours := v_masks[3];
  v_cron.days := v_masks[4];
  v_cron.months := v_masks[5];
  v_cron.weekdays := case right(v_masks[6], 1)
    when '1' then overlay(v_masks[6] placing '1' from 1)
    else v_masks[6]
  end;
  v_cron.either_day := v_fields[4] !~ '^[*]' and v_fields[6] !~ '^[*]';
  v_cron.goes_on := v_fields[2] ~ '^[*]' or v_fields[3] ~ '^[*]';
  return v_cron;
end;
$$;

-- The first time of a day, in seconds since its midnight, that the fields allow from another on;
-- null if there is none that day.
create or replace function teguh._cron_time(p_cron teguh._cron, p_from integer)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hour   integer := p_from / 3600;
  v_minute integer := p_from / 60 % 60;
  v_ahead  integer;
begin
  if substr(p_cron.hours, v_hour + 1, 1) = '1' then
    if substr(p_cron.minutes, v_minute + 1, 1) = '1' then
      v_ahead := strpos(substr(p_cron.seconds, p_from % 60 + 1), '1');
      if v_ahead > 0 then
        return p_from + v_ahead - 1;
      end if;
    end if;

    v_ahead := strpos(substr(p_cron.minutes, v_minute + 2), '1');
    if v_ahead > 0 then
      return v_hour * 3600 + (v_minute + v_ahead) * 60 + strpos(p_cron.seconds, '1') - 1;
    end if;
  end if;

  v_ahead := strpos(substr(p_cron.hours, v_hour + 2), '1');
  if v_ahead = 0 then
    return null;
  end if;
  return
    (v_hour + v_ahead) * 3600
    + (strpos(p_cron.minutes, '1') - 1) * 60
    + strpos(p_cron.seconds, '1') - 1;
end;
$$;

-- The first reading of a clock that the fields allow from another on.  Null if there is none
-- within nine years: then there is none at all, because 29 February comes every eight at least.
create or replace function teguh._cron_reading(p_cron teguh._cron, p_from timestamp)
  returns timestamp
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_day  date := p_from::date;
  v_last date := v_day + 3300;
  v_days text;
  v_time integer := teguh._cron_time(p_cron, extract(epoch from p_from - v_day)::integer);
begin
  if v_time is null then
    v_day := v_day + 1;
    v_time := teguh._cron_time(p_cron, 0);
  end if;

  while v_day < v_last loop
    if substr(p_cron.months, extract(month from v_day)::integer + 1, 1) = '0' then
      v_day := (date_trunc('month', v_day::timestamp) + interval '1 month')::date;
      v_time := teguh._cron_time(p_cron, 0);
      continue;
    end if;

    v_days := substr(p_cron.days, extract(day from v_day)::integer + 1, 1)
              || substr(p_cron.weekdays, extract(dow from v_day)::integer + 1, 1);
    if v_days = '11' or v_days <> '00' and p_cron.either_day then
      return v_day + make_interval(secs => v_time);
    end if;
    v_day := v_day + 1;
    v_time := teguh._cron_time(p_cron, 0);
  end loop;

  return null;
end;
$$;

-- What the clocks of a time zone read at an instant.  Here and below, an instant is the reading of
-- a clock in UTC: sums of those do not depend on the session's time zone.
create or replace function teguh._clock(p_at timestamp, p_timezone text)
  returns timestamp
  language sql
  immutable
as $$
  select pg_catalog.timezone(p_timezone, pg_catalog.timezone('UTC', p_at));
$$;

-- The first instant at which the clocks of a time zone read this, or later where they skip it.
create or replace function teguh._clock_reads(p_reading timestamp, p_timezone text)
  returns timestamp
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_about timestamp := timezone('UTC', timezone(p_timezone, p_reading));
  v_day   interval := interval '24 hours';
  v_first timestamp;
  v_last  timestamp;
  v_half  timestamp;
begin
  -- by the clocks of the day before, then by those of the day after
  v_last := p_reading - (teguh._clock(v_about - v_day, p_timezone) - (v_about - v_day));
  if teguh._clock(v_last, p_timezone) = p_reading then
    return v_last;
  end if;
  v_first := p_reading - (teguh._clock(v_about + v_day, p_timezone) - (v_about + v_day));
  if teguh._clock(v_first, p_timezone) = p_reading then
    return v_first;
  end if;

  while v_last - v_first > interval '1 second' loop
    v_half := v_first + date_trunc('second', (v_last - v_first) / 2);
    if teguh._clock(v_half, p_timezone) < p_reading then
      v_first := v_half;
    else
      v_last := v_half;
    end if;
  end loop;
  return v_last;
end;
$$;

-- The first instant after one, up to another, at which the clocks of a time zone are set otherwise.
create or replace function teguh._clock_set(p_from timestamp, p_to timestamp, p_timezone text)
  returns timestamp
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_offset interval := teguh._clock(p_from, p_timezone) - p_from;
  v_first  timestamp := p_from;
  v_last   timestamp := p_to;
  v_half   timestamp;
begin
  while v_last - v_first > interval '1 second' loop
    v_half := v_first + date_trunc('second', (v_last - v_first) / 2);
    if teguh._clock(v_half, p_timezone) - v_half = v_offset then
      v_first := v_half;
    else
      v_last := v_half;
    end if;
  end loop;
  return v_last;
end;
$$;

-- The first instant, from one on, at which the clocks of a time zone read what the fields allow.
--
-- As long as nobody sets the clocks, that is as far off as it is on them.  So go on to where they
-- are set, and from there anew; a day at a time, within which that happens once.
create or replace function teguh._cron_passing(
  p_cron     teguh._cron,
  p_from     timestamp,
  p_timezone text
)
  returns timestamp
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_at    timestamp := p_from;
  v_clock timestamp;
  v_next  timestamp;
  v_to    timestamp;
begin
  for v_try in 1..1000 loop
    v_clock := teguh._clock(v_at, p_timezone);
    v_next := teguh._cron_reading(p_cron, v_clock);
    v_to := v_at + least(v_next - v_clock, interval '24 hours');
    if v_next is null then
      return null;
    elsif v_to = v_at then
      return v_at;
    elsif teguh._clock(v_to, p_timezone) - v_to <> v_clock - v_at then
      v_at := teguh._clock_set(v_at, v_to, p_timezone);
    elsif v_next - v_clock <= interval '24 hours' then
      return v_to;
    else
      v_at := greatest(v_to, teguh._clock_reads(v_next - interval '12 hours', p_timezone));
    end if;
  end loop;

  return null;
end;
$$;

-- When a schedule fires next after an instant; null is never.
create or replace function teguh._cron_next(
  p_cron     teguh._cron,
  p_after    timestamptz,
  p_timezone text
)
  returns timestamptz
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_after   timestamp := date_trunc(
    'second', greatest(timezone('UTC', p_after), timestamp '0001-01-02 00:00:00')
  );
  v_at      timestamp := v_after + interval '1 second';
  v_reading timestamp;
begin
  if v_after > timestamp '9990-01-01 00:00:00' then
    return null;
  elsif p_cron.every_seconds is not null then
    v_at := timestamp 'epoch' + make_interval(secs => p_cron.every_seconds * (
      1 + floor(extract(epoch from v_after) / p_cron.every_seconds)
    ));
    return timezone('UTC', v_at);
  elsif p_cron.goes_on then
    return timezone('UTC', teguh._cron_passing(p_cron, v_at, p_timezone));
  end if;

  v_reading := teguh._clock(v_after, p_timezone);
  loop
    v_reading := teguh._cron_reading(p_cron, v_reading + interval '1 second');
    v_after := teguh._clock_reads(v_reading, p_timezone);
    exit when v_after >= v_at or v_reading is null;
  end loop;
  return timezone('UTC', v_after);
end;
$$;

-- Refuse what is no time zone of the server's, and forms that mean something else than they seem
-- to: "UTC+3" lies west of Greenwich.
create or replace function teguh._check_timezone(p_timezone text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known boolean := coalesce(p_timezone ~ '^[A-Za-z_]+(/[A-Za-z0-9_+-]+)*$', false);
begin
  if v_known then
    begin
      perform timezone(p_timezone, timestamp 'epoch');
    exception
      when invalid_parameter_value then
        v_known := false;
    end;
  end if;

  if not v_known then
    raise exception 'time zone "%" is not known', left(coalesce(p_timezone, 'null'), 200)
      using
        errcode = 'TG005',
        detail = 'The server has no time zone of that name.',
        hint = 'Use a name of pg_timezone_names, for instance Europe/Berlin.';
  end if;
end;
$$;

-- When a schedule fires next.
create or replace function teguh.next_fire_time(
  p_schedule text,
  p_after    timestamptz,
  p_timezone text default 'UTC'
)
  returns timestamptz
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_timezone(p_timezone);
  if p_after is null then
    raise exception 'next_fire_time needs a time'
      using
        errcode = '22004',
        detail = 'The time after which the schedule is to fire is null.',
        hint = 'Pass now().';
  end if;

  return teguh._cron_next(teguh._read_schedule(p_schedule), p_after, p_timezone);
end;
$$;

comment on function teguh.next_fire_time(text, timestamptz, text) is
  'When a schedule fires next after a time; null if never. Nothing but the arguments and the '
  'server''s time zones matters. Schedules: five fields (minute, hour, day of month, month, day of '
  'week) or six (second first), with lists, ranges, steps and names; @hourly, @daily, @midnight, '
  '@weekly, @monthly, @yearly, @annually; every N seconds, minutes, hours, days or weeks, counted '
  'from 1970 on in UTC. If both day of month and day of week are restricted, either is enough; not '
  'so if one begins with *. When clocks are set: a schedule whose minute or hour begins with * '
  'fires whenever clocks read what it says, so twice in an hour that comes twice, and not in one '
  'that is skipped. Any other fires once for each time it names: the first time that clocks read '
  'it, or at the end of the gap in which it lies. Raises TG005 for a bad schedule or time zone, '
  '22004 for a null time.';
