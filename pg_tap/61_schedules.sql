-- A schedule spawns its task once for each time that it names, whoever looks and whenever.
begin;
select plan(85);
set local timezone = 'UTC';
set local teguh.fake_now = '2031-05-01 12:00:00.5+00';

-- What was spawned, by what, for what time
select teguh.create_queue('q');
create function pg_temp.spawned()
  returns text[]
  language sql
as $$
  select array_agg(
    format(
      '%s %s %s', t.task_name, t.headers ->> 'schedule_name', t.headers ->> 'planned_at'
    )
    order by t.headers ->> 'planned_at', t.task_name
  )
  from teguh.t_q as t;
$$;
create function pg_temp.forget()
  returns void
  language sql
as $$
  delete from teguh.t_q;
$$;
create function pg_temp.upcoming(p_name text)
  returns text
  language sql
as $$
  select to_char(s.next_fire_at, 'MM-DD HH24:MI:SS') from teguh.get_schedule(p_name) as s;
$$;

-- Given a queue with a schedule
select is(teguh.next_due('q'), null, 'without a schedule nothing is due');
select teguh.create_schedule('beat', 'q', 't', '*/10 * * * *', '{
  "params": {"n": 1}, "task_options": {"max_attempts": 2, "headers": {"trace": "x"}}
}');

-- Then
select is(pg_temp.upcoming('beat'), '05-01 12:10:00', 'a schedule has a next time');
select is(teguh.next_due('q'), '2031-05-01 12:10:00+00', 'until then a worker may wait');
select is(teguh.ticker(), 0, 'before that it does not fire');
select is(pg_temp.spawned(), null, 'and has spawned nothing');
select is(
  (select s.options from teguh.get_schedule('beat') as s),
  '{"timezone": "UTC", "params": {"n": 1}, "catch_up": "one", "overlap": "allow",
    "task_options": {"max_attempts": 2, "headers": {"trace": "x"}}, "jitter_seconds": 0,
    "starts_at": null, "ends_at": null}',
  'its options are shown with their defaults'
);

-- When the time has come
set local teguh.fake_now = '2031-05-01 12:10:00+00';
select is(teguh.next_due('q'), '2031-05-01 12:10:00.01+00', 'a worker looks again at once');
select is(teguh.ticker('q'), 1, 'a tick spawns one task');
select is(teguh.ticker('q'), 0, 'the next tick none');
select is(
  (select row(t.params, t.max_attempts, t.headers, t.state)::text from teguh.t_q as t),
  row('{"n": 1}'::jsonb, 2, '{"trace": "x", "schedule_name": "beat", "triggered": false,
    "planned_at": "2031-05-01T12:10:00Z"}'::jsonb, 'pending')::text,
  'with the params and options it was given, and told what for'
);
select is(
  (
    select row(s.last_planned_at, s.last_fired_at, s.last_task_id = t.task_id, s.last_error)::text
    from teguh.get_schedule('beat') as s
    cross join teguh.t_q as t
  ),
  row(
    timestamptz '2031-05-01 12:10:00+00', timestamptz '2031-05-01 12:10:00+00', true, null::text
  )::text,
  'the schedule shows what it did'
);
select is(pg_temp.upcoming('beat'), '05-01 12:20:00', 'and when it fires next');
select is(teguh.next_due('q'), '2031-05-01 12:10:00+00', 'a task that is ready comes first');

-- When a claim comes before any tick
select pg_temp.forget();
set local teguh.fake_now = '2031-05-01 12:20:03+00';
select is(
  (select c.headers ->> 'planned_at' from teguh.claim_task('q', 'w') as c),
  '2031-05-01T12:20:00Z', 'it fires the schedule and gets the task'
);
select is((select count(*) from teguh.claim_task('q', 'w')), 0::bigint, 'once');
select is(teguh.ticker(), 0, 'and no tick does it again');

-- When the same is said again
select is(
  (select count(*) from teguh.list_actions('q') as a where a.action = 'create_schedule'),
  1::bigint, 'the creation is on record'
);
select teguh.create_schedule('beat', 'q', 't', '*/10 * * * *', '{
  "params": {"n": 1}, "task_options": {"max_attempts": 2, "headers": {"trace": "x"}}
}');
select is(pg_temp.upcoming('beat'), '05-01 12:30:00', 'the next time stays');
select is(
  (select count(*) from teguh.list_actions('q')), 1::bigint, 'and nothing is changed'
);
set local teguh.fake_now = '2031-05-01 12:30:10+00';
select teguh.create_schedule('beat', 'q', 'u', '*/10 * * * *');
select is(pg_temp.upcoming('beat'), '05-01 12:30:00', 'nor is what is due lost by other params');
select pg_temp.forget();
select is(teguh.ticker(), 1, 'it fires');
select is(pg_temp.spawned(), '{"u beat 2031-05-01T12:30:00Z"}', 'as it is now');
select teguh.create_schedule('beat', 'q', 'u', '0 * * * *');
select is(pg_temp.upcoming('beat'), '05-01 13:00:00', 'other times hold from now on');
select teguh.create_queue('other');
select throws_ok(
  $$ select teguh.create_schedule('beat', 'other', 'u', '0 * * * *') $$, 'TG004', null,
  'a schedule does not move to another queue'
);

-- When parts are changed
select teguh.update_schedule('beat', '{"schedule": "30 2 * * *", "timezone": "Europe/Berlin"}');
select is(pg_temp.upcoming('beat'), '05-02 00:30:00', 'the time zone counts');
select is(
  (select s.task_name from teguh.get_schedule('beat') as s), 'u', 'what was not named stays'
);
select teguh.update_schedule('beat', '{"timezone": null, "task_name": "t"}');
select is(pg_temp.upcoming('beat'), '05-02 02:30:00', 'null sets a part back');
select throws_ok(
  format('select teguh.update_schedule(%L, %L)', 'beat', t.change), 'TG005', null,
  format('%s is refused', t.change)
)
from (
  values
    ('{"schedule": null}'), ('{"task_name": ""}'), ('{"queue_name": "other"}'),
    ('{"catch_up": "some"}'), ('{"overlap": 1}'), ('{"jitter_seconds": -1}'),
    ('{"starts_at": "soon"}'), ('{"timezone": "Mars"}'), ('{"schedule": "0 0 30 2 *"}'),
    ('{"starts_at": "2031-06-01", "ends_at": "2031-06-01"}'), ('{"task_options": []}'),
    ('{"task_options": {"max_attempts": 0}}'), ('{"task_options": {"idempotency_key": "k"}}'),
    ('{"task_options": {"available_at": "2031-06-01"}}')
) as t(change);
select throws_ok(
  $$
    select teguh.update_schedule(
      'beat', '{"task_options": {"on_failure": {"task_name": "t", "queue_name": "nowhere"}}}'
    )
  $$,
  'TG001', null, 'a queue that its tasks name has to be there'
);
select teguh.update_schedule(
  'beat', '{"task_options": {"on_failure": {"task_name": "t", "queue_name": "other"}}}'
);
select is(
  (select s.options #>> '{task_options,on_failure,queue_name}' from teguh.get_schedule('beat') as s),
  'other', 'and may be another one'
);
select teguh.update_schedule('beat', '{"task_options": null}');
select throws_ok(
  $$ select teguh.create_schedule(' ', 'q', 't', '@daily') $$, 'TG005', null,
  'a schedule needs a name'
);
select throws_ok(
  $$ select teguh.create_schedule('new', 'nowhere', 't', '@daily') $$, 'TG001', null,
  'and a queue'
);
select throws_ok(
  format(t.call, 'nothing'), 'TG008', null, format('there is none for %s', t.call)
)
from (
  values
    ('select teguh.get_schedule(%L)'), ('select teguh.update_schedule(%L, ''{}'')'),
    ('select teguh.pause_schedule(%L)'), ('select teguh.resume_schedule(%L)'),
    ('select teguh.drop_schedule(%L)'), ('select teguh.trigger_schedule(%L)')
) as t(call);

-- When it is paused
select pg_temp.forget();
select teguh.update_schedule('beat', '{"schedule": "@hourly"}');
select teguh.pause_schedule('beat', 'too loud');
select teguh.pause_schedule('beat');
set local teguh.fake_now = '2031-05-01 14:05:00+00';
select is(teguh.ticker(), 0, 'it does not fire');
select is(teguh.next_due('q'), null, 'nor is waited for');
select teguh.update_schedule('beat', '{"schedule": "*/30 * * * *"}');
select is(pg_temp.upcoming('beat'), null, 'not even after a change');
select is((select count(*) from teguh.trigger_schedule('beat', 'now')), 1::bigint, 'but on demand');
select teguh.resume_schedule('beat');
select is(pg_temp.upcoming('beat'), '05-01 14:30:00', 'resumed, it goes on from then');
select is(teguh.ticker(), 0, 'what has passed meanwhile is not made up for');
select is(
  (select row(t.headers ->> 'triggered', t.headers ->> 'planned_at')::text from teguh.t_q as t),
  '(true,2031-05-01T14:05:00Z)', 'what was triggered says so'
);
select is(
  array(select concat_ws(' ', a.action, a.reason) from teguh.list_actions('q') as a limit 4),
  '{resume_schedule,trigger_schedule now,update_schedule,pause_schedule too loud}',
  'it is on record who did what and why'
);
select teguh.drop_schedule('beat');
select is((select count(*) from teguh.list_schedules()), 0::bigint, 'a dropped schedule is gone');

-- Given three that nobody has looked at for a while
select pg_temp.forget();
set local teguh.fake_now = '2031-05-02 00:00:00+00';
select teguh.create_schedule(u.name, 'q', u.name, '*/20 * * * *', jsonb_build_object(
  'catch_up', u.name
))
from unnest('{one,all,skip}'::text[]) as u(name);
set local teguh.fake_now = '2031-05-02 01:00:59+00';
select is(teguh.ticker(), 5, 'they catch up');
select is(
  pg_temp.spawned(),
  '{"all all 2031-05-02T00:20:00Z","all all 2031-05-02T00:40:00Z","all all 2031-05-02T01:00:00Z",
    "one one 2031-05-02T01:00:00Z","skip skip 2031-05-02T01:00:00Z"}',
  'all of the times, or the last of them, or the last if it is not late'
);
select is(
  array(select s.next_fire_at from teguh.list_schedules('q') as s),
  array_fill(timestamptz '2031-05-02 01:20:00+00', array[3]), 'and go on together'
);
select pg_temp.forget();
set local teguh.fake_now = '2031-05-02 01:21:01+00';
select is(teguh.ticker(), 2, 'a minute is the bound');
select is(
  (select s.last_skipped_at from teguh.get_schedule('skip') as s), '2031-05-02 01:20:00+00',
  'what was missed is shown'
);
select teguh.update_schedule('all', '{"schedule": "every second"}');
select teguh.update_schedule('one', '{"schedule": "every second"}');
select pg_temp.forget();
set local teguh.fake_now = '2032-05-02 01:21:01+00';
select is(
  array[teguh.ticker(), teguh.ticker()], '{101,100}', 'all comes a hundred at a time, one at once'
);
select is(
  pg_temp.upcoming('one') || ' ' || pg_temp.upcoming('all'), '05-02 01:21:02 05-02 01:24:22',
  'the one is up to date, the other has a year to go'
);
select teguh.drop_schedule(s.schedule_name) from teguh.list_schedules() as s;

-- Given one that must not overlap
select pg_temp.forget();
set local teguh.fake_now = '2031-05-03 00:00:00+00';
select teguh.create_schedule('alone', 'q', 't', '@hourly', '{"overlap": "skip"}');
set local teguh.fake_now = '2031-05-03 01:00:00+00';
select is(teguh.ticker(), 1, 'it fires');
set local teguh.fake_now = '2031-05-03 02:00:00+00';
select is(teguh.ticker(), 0, 'not while its task is not over');
select is(
  (select s.last_skipped_at from teguh.get_schedule('alone') as s), '2031-05-03 02:00:00+00',
  'and shows what it left out'
);
select teguh.trigger_schedule('alone');
select teguh.cancel_task('q', t.task_id)
from teguh.t_q as t
where t.headers -> 'triggered' = 'true';
set local teguh.fake_now = '2031-05-03 03:00:00+00';
select is(teguh.ticker(), 0, 'nor while the one before that which was triggered is not');
select teguh.cancel_tasks('q', '{}', '{"all": true}');
set local teguh.fake_now = '2031-05-03 04:00:00+00';
select is(teguh.ticker(), 1, 'then again');
select teguh.drop_schedule('alone');

-- Given jitter, a delay, a start and an end
select pg_temp.forget();
select teguh.create_schedule('j' || n, 'q', 't', '@hourly', '{
  "jitter_seconds": 60, "task_options": {"delay_seconds": 10}, "ends_at": "2031-05-03T07:00:00Z",
  "starts_at": "2031-05-03T06:00:00Z"
}')
from generate_series(1, 20) as n;
set local teguh.fake_now = '2031-05-03 05:59:59+00';
select is(teguh.ticker(), 0, 'before the start it does not fire');
set local teguh.fake_now = '2031-05-03 06:00:00+00';
select is(teguh.ticker(), 20, 'at the start it does');
select ok(
  bool_and(
    t.available_at >= '2031-05-03 06:00:10+00' and t.available_at < '2031-05-03 06:01:10+00'
    and t.headers ->> 'planned_at' = '2031-05-03T06:00:00Z'
  ),
  'the task starts later, within the jitter'
)
from teguh.t_q as t;
select ok(count(distinct t.available_at) > 10, 'at different times') from teguh.t_q as t;
select is(pg_temp.upcoming('j1'), null, 'at the end it is over');
set local teguh.fake_now = '2031-05-03 08:00:00+00';
select teguh.create_schedule('j1', 'q', 't', '@hourly', '{
  "jitter_seconds": 60, "task_options": {"delay_seconds": 10}, "ends_at": "2031-05-03T07:00:00Z",
  "starts_at": "2031-05-03T06:00:00Z"
}');
select is(pg_temp.upcoming('j1'), null, 'said again, it is over still');
select teguh.drop_schedule(s.schedule_name) from teguh.list_schedules() as s;

-- Given a queue that is full
select pg_temp.forget();
select teguh.create_queue('full', '{"max_pending": 1}');
select teguh.spawn_task('full', 't', '{}');
select teguh.create_schedule('late', 'full', 't', '@hourly');
select teguh.create_schedule('fine', 'q', 't', '@hourly');
set local teguh.fake_now = '2031-05-03 09:00:00+00';
select is(teguh.ticker(), 1, 'a schedule that cannot spawn does not keep others from it');
select is(
  (
    select row(s.last_error, s.next_fire_at, s.last_fired_at)::text
    from teguh.get_schedule('late') as s
  ),
  row(
    'queue "full" is full'::text, timestamptz '2031-05-03 09:00:00+00', null::timestamptz
  )::text,
  'it says why'
);
select is(teguh.next_due('full'), '2031-05-03 09:00:00+00', 'there is work');
select teguh.cancel_tasks('full', '{}', '{"all": true}');
select is(teguh.next_due('full'), '2031-05-03 09:00:10+00', 'it is tried again in ten seconds');
set local teguh.fake_now = '2031-05-03 09:00:10+00';
select is(teguh.ticker(), 1, 'and then comes through');
select is((select s.last_error from teguh.get_schedule('late') as s), null, 'all is well');

-- When a queue is dropped
select teguh.drop_queue('full');
select is(
  array(select s.schedule_name from teguh.list_schedules() as s), '{fine}',
  'its schedules go with it'
);

select * from finish();
rollback;
