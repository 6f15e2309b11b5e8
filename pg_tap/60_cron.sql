-- A schedule says when it fires: fields, words and intervals, in any time zone, also when clocks
-- are set.
begin;
select plan(131);
set local timezone = 'America/New_York';

-- Given schedules, times after which they are to fire, and time zones
create function pg_temp.next(p_schedule text, p_after text, p_timezone text default 'UTC')
  returns text
  language sql
as $$
  select to_char(
    timezone('UTC', teguh.next_fire_time(p_schedule, (p_after || '+00')::timestamptz, p_timezone)),
    'YYYY-MM-DD HH24:MI:SS'
  );
$$;

-- Then: fields
select is(
  pg_temp.next(t.schedule, t.after), t.fires, format('"%s" fires after %s', t.schedule, t.after)
)
from (
  values
    ('* * * * *', '2027-01-01 00:00:00', '2027-01-01 00:01:00'),
    ('* * * * *', '2027-01-01 00:00:59.999999', '2027-01-01 00:01:00'),
    ('*/15 * * * *', '2027-01-01 00:45:00', '2027-01-01 01:00:00'),
    ('5/20 * * * *', '2027-01-01 00:25:00', '2027-01-01 00:45:00'),
    ('10-30/10 * * * *', '2027-01-01 00:30:00', '2027-01-01 01:10:00'),
    ('0,1,59 * * * *', '2027-01-01 00:01:00', '2027-01-01 00:59:00'),
    ('1-3,7 * * * *', '2027-01-01 00:03:00', '2027-01-01 00:07:00'),
    ('59 23 31 12 *', '2027-01-01 00:00:00', '2027-12-31 23:59:00'),
    ('59 23 31 12 *', '2027-12-31 23:59:00', '2028-12-31 23:59:00'),
    ('30 9 * * mon-fri', '2027-01-01 09:30:00', '2027-01-04 09:30:00'),
    ('30 9 * * MON,Wed', '2027-01-04 09:30:00', '2027-01-06 09:30:00'),
    ('0 0 * * 0', '2027-01-01 00:00:00', '2027-01-03 00:00:00'),
    ('0 0 * * 7', '2027-01-01 00:00:00', '2027-01-03 00:00:00'),
    ('0 0 * * sat-sun', '2027-01-02 00:00:00', '2027-01-03 00:00:00'),
    ('0 0 * * fri-7', '2027-01-03 00:00:00', '2027-01-08 00:00:00'),
    ('0 0 1 jan,JUL *', '2027-01-01 00:00:00', '2027-07-01 00:00:00'),
    ('0 0 31 * *', '2027-01-31 00:00:00', '2027-03-31 00:00:00'),
    ('0 0 29 2 *', '2027-01-01 00:00:00', '2028-02-29 00:00:00'),
    ('0 0 29 2 *', '2096-02-29 00:00:00', '2104-02-29 00:00:00'),
    ('0 0 13 * fri', '2027-01-01 00:00:00', '2027-01-08 00:00:00'),
    ('0 0 13 * fri', '2027-01-08 00:00:00', '2027-01-13 00:00:00'),
    ('0 0 */2 * fri', '2027-01-01 00:00:00', '2027-01-15 00:00:00'),
    ('0 0 13 * */5', '2027-01-01 00:00:00', '2027-06-13 00:00:00'),
    ('0 */6 * * *', '2027-01-01 18:00:00', '2027-01-02 00:00:00'),
    ('30 * * * * *', '2027-01-01 00:00:00', '2027-01-01 00:00:30'),
    ('*/20 * * * * *', '2027-01-01 00:00:40', '2027-01-01 00:01:00'),
    ('15,45 59 23 31 12 *', '2027-12-31 23:59:15.5', '2027-12-31 23:59:45'),
    (E' 0\t0  1 * * \n', '2027-01-01 00:00:00', '2027-02-01 00:00:00'),
    ('0 0 30 2 *', '2027-01-01 00:00:00', null),
    ('*/7 * 31 2,4,6,9,11 *', '2027-01-01 00:00:00', null),
    ('* * * * *', '0001-01-01 00:00:00', '0001-01-02 00:01:00')
) as t(schedule, after, fires);

-- Then: words and intervals
select is(
  pg_temp.next(t.schedule, '2027-06-15 10:20:30'), t.fires, format('"%s" fires', t.schedule)
)
from (
  values
    ('@hourly', '2027-06-15 11:00:00'),
    ('@daily', '2027-06-16 00:00:00'),
    ('@midnight', '2027-06-16 00:00:00'),
    ('@weekly', '2027-06-20 00:00:00'),
    ('@MONTHLY', '2027-07-01 00:00:00'),
    ('@yearly', '2028-01-01 00:00:00'),
    ('@annually', '2028-01-01 00:00:00'),
    ('every second', '2027-06-15 10:20:31'),
    ('every 90 seconds', '2027-06-15 10:21:00'),
    ('every minute', '2027-06-15 10:21:00'),
    ('Every  7 minutes', '2027-06-15 10:26:00'),
    ('every hour', '2027-06-15 11:00:00'),
    ('every 5 hours', '2027-06-15 14:00:00'),
    ('every day', '2027-06-16 00:00:00'),
    ('every 1 days', '2027-06-16 00:00:00'),
    ('every week', '2027-06-17 00:00:00')
) as t(schedule, fires);
select is(
  teguh.next_fire_time('every 5 hours', '2027-03-27 22:00+00', 'Europe/Berlin'),
  teguh.next_fire_time('every 5 hours', '2027-03-27 22:00+00'),
  'intervals do not care where they are'
);

-- Then: what is not valid is refused
select throws_ok(
  format('select teguh.next_fire_time(%L, now())', t.schedule), 'TG005', null,
  format('"%s" is refused', t.schedule)
)
from (
  values
    (null), (''), ('* * * *'), ('* * * * * * *'), ('60 * * * *'), ('* 24 * * *'), ('* * 0 * *'),
    ('* * 32 * *'), ('* * * 0 *'), ('* * * 13 *'), ('* * * * 8'), ('60 * * * * *'),
    ('30-10 * * * *'), ('*/0 * * * *'), ('*/90 * * * *'), ('1/ * * * *'), ('1, * * * *'),
    (',1 * * * *'), ('1--2 * * * *'), ('-1 * * * *'), ('1.5 * * * *'), ('* * * foo *'),
    ('* * * * monday'), ('mon * * * *'), ('* * L * *'), ('* * * * 5#2'), ('? * * * *'),
    ('99999999999 * * * *'), ('@reboot'), ('@never'), ('every'), ('every 0 seconds'),
    ('every 1.5 hours'), ('every -1 minutes'), ('every fortnight'), ('every 999999999 weeks'),
    ('daily')
) as t(schedule);
select throws_ok(
  format('select teguh.next_fire_time(%L, now(), %L)', '@daily', t.timezone), 'TG005', null,
  format('time zone "%s" is refused', t.timezone)
)
from (
  values (null), (''), ('Europe/Berlinn'), ('UTC+3'), ('+03:00'), ('<x>-3'), ('Nowhere')
) as t(timezone);
select throws_ok($$ select teguh.next_fire_time('@daily', null) $$, '22004', null, 'so is no time');
select is(teguh.next_fire_time('@daily', 'infinity'), null, 'after infinity nothing comes');

-- Then: when clocks are set forward, fixed times in the gap come at its end, others do not
select is(
  pg_temp.next(t.schedule, t.after, t.timezone), t.fires,
  format('"%s" in %s fires after %s', t.schedule, t.timezone, t.after)
)
from (
  values
    -- Berlin: 28 March 2027, 02:00 becomes 03:00 at 01:00 UTC
    ('30 2 * * *', '2027-03-27 12:00:00', 'Europe/Berlin', '2027-03-28 01:00:00'),
    ('30 2 * * *', '2027-03-28 01:00:00', 'Europe/Berlin', '2027-03-29 00:30:00'),
    ('0 2 * * *', '2027-03-28 00:59:59', 'Europe/Berlin', '2027-03-28 01:00:00'),
    ('0,30 2,3 * * *', '2027-03-28 01:00:00', 'Europe/Berlin', '2027-03-28 01:30:00'),
    ('30 1 * * *', '2027-03-27 12:00:00', 'Europe/Berlin', '2027-03-28 00:30:00'),
    ('30 3 * * *', '2027-03-27 12:00:00', 'Europe/Berlin', '2027-03-28 01:30:00'),
    ('30 * * * *', '2027-03-28 00:30:00', 'Europe/Berlin', '2027-03-28 01:30:00'),
    ('*/30 2 * * *', '2027-03-27 12:00:00', 'Europe/Berlin', '2027-03-29 00:00:00'),
    -- and back on 31 October 2027, 03:00 becomes 02:00 at 01:00 UTC
    ('30 2 * * *', '2027-10-30 12:00:00', 'Europe/Berlin', '2027-10-31 00:30:00'),
    ('30 2 * * *', '2027-10-31 00:30:00', 'Europe/Berlin', '2027-11-01 01:30:00'),
    ('30 2 * * *', '2027-10-31 01:15:00', 'Europe/Berlin', '2027-11-01 01:30:00'),
    ('0 3 * * *', '2027-10-31 00:30:00', 'Europe/Berlin', '2027-10-31 02:00:00'),
    ('30 * * * *', '2027-10-31 00:30:00', 'Europe/Berlin', '2027-10-31 01:30:00'),
    ('*/30 2 * * *', '2027-10-31 00:30:00', 'Europe/Berlin', '2027-10-31 01:00:00'),
    ('0 30 2 * * *', '2027-10-31 00:30:00', 'Europe/Berlin', '2027-11-01 01:30:00'),
    -- New York: 14 March, 02:00 becomes 03:00 at 07:00 UTC; 7 November 02:00 01:00 at 06:00 UTC
    ('15 2 * * *', '2027-03-13 12:00:00', 'America/New_York', '2027-03-14 07:00:00'),
    ('*/15 * * * *', '2027-03-14 06:45:00', 'America/New_York', '2027-03-14 07:00:00'),
    ('0 1 * * *', '2027-11-07 05:00:00', 'America/New_York', '2027-11-08 06:00:00'),
    ('0 * * * *', '2027-11-07 05:00:00', 'America/New_York', '2027-11-07 06:00:00'),
    -- Lord Howe: half an hour; 3 October 02:00 becomes 02:30 at 15:30 UTC the day before;
    -- 4 April 02:00 becomes 01:30 at 15:00 UTC the day before
    ('15 2 * * *', '2027-10-02 12:00:00', 'Australia/Lord_Howe', '2027-10-02 15:30:00'),
    ('30 2 * * *', '2027-10-02 12:00:00', 'Australia/Lord_Howe', '2027-10-02 15:30:00'),
    ('*/20 2 * * *', '2027-10-02 12:00:00', 'Australia/Lord_Howe', '2027-10-02 15:40:00'),
    ('45 1 * * *', '2027-04-03 14:45:00', 'Australia/Lord_Howe', '2027-04-04 15:15:00'),
    ('*/45 1 * * *', '2027-04-03 14:45:00', 'Australia/Lord_Howe', '2027-04-03 15:15:00'),
    -- Kolkata: none
    ('30 2 * * *', '2027-03-27 21:00:00', 'Asia/Kolkata', '2027-03-28 21:00:00'),
    -- Casablanca: back for Ramadan on 10 March 2024, 03:00 becomes 02:00 at 02:00 UTC; and
    -- forward on 14 April, 02:00 becomes 03:00 at 02:00 UTC
    ('30 2 * * *', '2024-03-10 01:30:00', 'Africa/Casablanca', '2024-03-11 02:30:00'),
    ('30 * * * *', '2024-03-10 01:30:00', 'Africa/Casablanca', '2024-03-10 02:30:00'),
    ('30 2 * * *', '2024-04-13 12:00:00', 'Africa/Casablanca', '2024-04-14 02:00:00'),
    -- Havana: midnight is skipped on 14 March and comes twice on 7 November
    ('@daily', '2027-03-13 12:00:00', 'America/Havana', '2027-03-14 05:00:00'),
    ('0 0 * * sun', '2027-11-07 04:00:00', 'America/Havana', '2027-11-14 05:00:00'),
    ('*/30 0 * * sun', '2027-11-07 04:30:00', 'America/Havana', '2027-11-07 05:00:00'),
    -- Apia: 30 December 2011 was skipped
    ('0 12 30 12 *', '2011-12-01 00:00:00', 'Pacific/Apia', '2011-12-30 10:00:00'),
    ('0 */6 * * *', '2011-12-30 06:00:00', 'Pacific/Apia', '2011-12-30 10:00:00'),
    ('30 0 29 2 *', '2096-03-01 00:00:00', 'Europe/Berlin', '2104-02-28 23:30:00')
) as t(schedule, after, timezone, fires);

-- Then: it is pure
select is(
  (select p.provolatile from pg_proc as p where p.oid = to_regproc('teguh.next_fire_time')), 'i',
  'the answer depends on the arguments alone'
);
set local timezone = 'Pacific/Apia';
select is(
  pg_temp.next('@daily', '2027-03-28 00:00:00', 'Europe/Berlin'), '2027-03-28 22:00:00',
  'and not on the session''s time zone'
);
set local teguh.fake_now = '2001-01-01';
select is(
  pg_temp.next('@daily', '2027-03-28 00:00:00', 'Europe/Berlin'), '2027-03-28 22:00:00',
  'nor on the clock'
);

select * from finish();
rollback;
