-- Two segments are used in turn, and one that has nothing left to say is truncated.
-- Each statement commits by itself: the ring moves only on what is committed.
select plan(28);

-- Given segments of one page, and a clock to set
set teguh.segment_bytes = 8192;
set teguh.fake_now = '2031-05-01 12:00:00+00';
select teguh.create_queue('q');

create function pg_temp.spawn(p_count integer, p_delay double precision)
  returns bigint
  language sql
as $$
  select count(*)
  from teguh.spawn_tasks('q', (
    select jsonb_agg(jsonb_build_object(
      'task_name', 'a', 'options', jsonb_build_object('delay_seconds', p_delay)
    ))
    from generate_series(1, p_count)
  ));
$$;

create function pg_temp.pages()
  returns text
  language sql
as $$
  select format('%s, %s',
    pg_relation_size('teguh.p0_q') / 8192, pg_relation_size('teguh.p1_q') / 8192);
$$;

create function pg_temp.claim(p_count integer)
  returns bigint
  language sql
as $$
  select count(*) from teguh.claim_task('q', 'w', 0, p_count);
$$;

-- When nothing has been queued
select teguh.ticker('q');

-- Then
select is(pg_temp.pages(), '0, 0', 'an empty queue does not rotate');

-- When a segment is less than full
select pg_temp.spawn(1, 0);
select pg_temp.claim(1);
set teguh.segment_bytes = 1000000;
select teguh.ticker('q');
select teguh.ticker('q');

-- Then
select is(pg_temp.pages(), '1, 0', 'a segment is kept until it is full');

-- When it is full
set teguh.segment_bytes = 8192;
select teguh.ticker('q');
select pg_temp.spawn(10, 0);

-- Then
select is(pg_temp.pages(), '1, 1', 'when a segment is full new rows go to the other one');

-- When the first has nothing left to say but that a run has a lease without end
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');

-- Then
select is(pg_temp.pages(), '0, 1', 'a segment that has nothing left to say is truncated');

select is(pg_temp.claim(100), 10::bigint, 'no task was lost by that');

-- When the second is full but not worked off
select pg_temp.spawn(200, 0);
select teguh.ticker('q');
select pg_temp.spawn(20, 0);
select teguh.ticker('q');
select teguh.ticker('q');

-- Then
select isnt(
  split_part(pg_temp.pages(), ', ', 2), '0',
  'a segment with ready tasks is not truncated'
);

select is(pg_temp.claim(1000), 220::bigint, 'claims find what lies in both segments');

select is(teguh.next_due('q'), null, 'nothing is left in either');

-- When the older one has been worked off
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');

-- Then
select is(
  split_part(pg_temp.pages(), ', ', 2), '0',
  'it is truncated then'
);

-- Given long sleepers in a segment, and much work after them
select pg_temp.spawn(300, 3600);
select pg_temp.spawn(5, 86400);

create function pg_temp.work()
  returns bigint
  language plpgsql
as $$
declare
  v_done bigint;
begin
  perform pg_temp.spawn(300, 0);
  return pg_temp.claim(1000);
end;
$$;

create temporary table done (n bigint);

-- When the ring turns again and again
insert into done select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
insert into done select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
insert into done select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
insert into done select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
insert into done select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
insert into done select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');

-- Then
select is((select sum(d.n) from done as d), 1800::numeric, 'all of the work was done, once');

select is(
  teguh.next_due('q'), '2031-05-01 13:00:00+00',
  'long sleepers are carried over: the next is due when it was'
);

select ok(
  pg_sequence_last_value('teguh.ring_q') >= 4,
  'long sleepers do not keep a segment: the ring has turned'
);

select is(
  (
    select count(distinct p.task_id)
    from (select * from teguh.p0_q union all select * from teguh.p1_q) as p
    join teguh.t_q as t on t.task_id = p.task_id and t.turn = p.turn and t.state = 'sleeping'
    where p.kind = 's'
  ),
  305::bigint,
  'every sleeper still has a timer'
);

-- When they wake
set teguh.fake_now = '2031-05-01 13:00:00+00';

-- Then
select is(pg_temp.claim(1000), 300::bigint, 'sleepers that were carried over wake in time');

set teguh.fake_now = '2031-05-02 12:00:00+00';
select is(pg_temp.claim(1000), 5::bigint, 'so do those that sleep for a day');
select is(pg_temp.claim(1000), 0::bigint, 'none wakes twice');

-- Given running tasks with leases, whose segment is to be rotated
create temporary table held as
select count(*) as n
from teguh.spawn_tasks('q', (
  select jsonb_agg('{"task_name": "leased"}'::jsonb) from generate_series(1, 50)
));
create temporary table leased as
select c.run_id, c.task_id from teguh.claim_task('q', 'w', 100, 1000) as c;
select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
select pg_temp.work();
select teguh.ticker('q');
select teguh.ticker('q');

-- When the leases expire
set teguh.fake_now = '2031-05-02 12:01:40+00';
select teguh.ticker('q');

-- Then
select is(
  (
    select count(*)
    from leased as l
    join teguh.t_q as t on t.task_id = l.task_id
    where t.failures = 1
  ),
  50::bigint,
  'leases are carried over, too: each expires when its time has come'
);

select teguh.cancel_task('q', l.task_id) from leased as l;

-- Given two segments in use, the older one with due sleepers only
select teguh.drop_queue('q');
select teguh.create_queue('q');
set teguh.fake_now = '2031-05-02 12:00:00+00';
select pg_temp.spawn(200, 60);
select teguh.ticker('q');
set teguh.fake_now = '2031-05-02 13:00:00+00';

-- When a ticker is rolled back
begin;
select is(teguh.ticker('q'), 200, 'a tick finds the sleepers');
rollback;

-- Then
select is(pg_temp.claim(1000), 200::bigint, 'a ticker that is rolled back loses nothing');

-- When claims are rolled back in whose transaction somebody ticks
select pg_temp.spawn(200, 0);
select teguh.ticker('q');
select teguh.ticker('q');
begin;
select is(pg_temp.claim(1000), 200::bigint, 'a claim takes all');
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
rollback;
select teguh.ticker('q');

-- Then
select is(
  pg_temp.claim(1000),
  200::bigint,
  'claims that are rolled back after a tick lose nothing'
);

-- When several ticks are rolled back at once, whatever they would do
select pg_temp.spawn(200, 50);
begin;
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
rollback;
select pg_temp.spawn(200, 50);
begin;
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
rollback;
set teguh.fake_now = '2031-05-02 14:00:00+00';

-- Then
select is(pg_temp.claim(1000), 400::bigint, 'several ticks rolled back lose nothing');

-- Given the size of a segment
-- Then
select is(teguh._segment_bytes(), 8192::bigint, 'the size of a segment can be set');
set teguh.segment_bytes = '';
select is(teguh._segment_bytes(), 67108864::bigint, 'a segment has 64 MiB by default');

-- Given a spent segment that was filled by what was rolled back
set teguh.segment_bytes = 8192;
begin;
select pg_temp.spawn(500, 0);
rollback;
select teguh.ticker('q');
select teguh.ticker('q');
select teguh.ticker('q');
select pg_temp.spawn(10, 0);

-- Then
select is(pg_temp.claim(100), 10::bigint, 'what was rolled back is in nobody''s way');

select is_empty(
  $$ select t.task_id from teguh.t_q as t where t.state <> 'running' $$,
  'nothing was lost by any turn of the ring'
);

select isnt(
  pg_sequence_last_value('teguh.ring_q'), 0::bigint,
  'the ring has turned'
);

select teguh.drop_queue('q');

-- Given sleepers in both segments, of which the younger is due first
select teguh.create_queue('q');
select teguh.spawn_task('q', 'late', null, '{"delay_seconds": 20}');
select teguh.ticker('q');
select teguh.spawn_task('q', 'soon', null, '{"delay_seconds": 10}');
set teguh.fake_now = '2031-05-02 14:01:00+00';

-- Then
select results_eq(
  $$ select c.task_name from teguh.claim_task('q', 'w', 0, 2) as c $$,
  array['soon', 'late'],
  'what came due first is claimed first, in whichever segment it slept'
);

select teguh.drop_queue('q');
select * from finish();
