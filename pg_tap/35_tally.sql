-- Every change of a task is counted, exactly once, whatever happens to the segments.
select plan(28);

create function pg_temp.at(p_second integer)
  returns void
  language plpgsql
as $$
begin
  perform set_config(
    'teguh.fake_now', (timestamptz '2031-05-01 12:00+00' + make_interval(secs => p_second))::text,
    false
  );
end;
$$;

-- Given a queue
select pg_temp.at(0);
select teguh.create_queue('q');

-- Where tasks are by the tallies, and that this is where they are.
create function pg_temp.counted()
  returns text
  language sql
as $$
  select string_agg(s.letter || s.qty, ' ' order by s.letter)
  from (
    select s.letter, sum(s.qty) as qty
    from teguh._count_q() as c
    cross join lateral (values (c.became, c.qty), (c.was, - c.qty)) as s(letter, qty)
    where s.letter <> '-'
    group by s.letter
    having sum(s.qty) <> 0
  ) as s;
$$;
create function pg_temp.there()
  returns text
  language sql
as $$
  select string_agg(s.letter || s.qty, ' ' order by s.letter)
  from (
    select teguh._letter(t.state, t.attempt, t.wake_event) as letter, count(*) as qty
    from teguh.t_q as t
    group by 1
  ) as s;
$$;
create function pg_temp.run(p_name text)
  returns uuid
  language sql
as $$
  select t.run_id from teguh.t_q as t where t.task_name = p_name;
$$;

-- Given tasks, spawned one by one and together
select teguh.spawn_task('q', 'single', '1');
select teguh.spawn_task('q', 'delayed', '1', '{"delay_seconds": 100}');
select teguh.spawn_task('q', 'once', '1', '{"idempotency_key": "k"}');
select teguh.spawn_task('q', 'once', '1', '{"idempotency_key": "k"}');
select teguh.spawn_tasks('q', '[
  {"task_name": "many"}, {"task_name": "many"},
  {"task_name": "many", "options": {"delay_seconds": 100}}
]');

-- Then
select is(pg_temp.counted(), 'd2 p4', 'what is spawned is counted, what was there is not');
select is(pg_temp.there(), 'd2 p4', 'which is what there is');

-- When they are claimed one by one and together
select count(*) from teguh.claim_task('q', 'w', 1000, 1);
select count(*) from teguh.claim_task('q', 'w', 1000, 10);
select is(pg_temp.counted(), 'd2 r4', 'claims are counted');

-- When runs end, sleep, wait, are released, fail
select teguh.complete_run('q', pg_temp.run('single'));
select is(pg_temp.counted(), 'c1 d2 r3', 'a completion is counted');
select teguh.schedule_run('q', pg_temp.run('once'), '2031-05-01 12:00:10+00');
select is(pg_temp.counted(), 'c1 d2 r2 s1', 'a sleep is counted');
select teguh.await_event('q', t.task_id, t.run_id, 'step', 'go')
from teguh.t_q as t
where t.task_name = 'many' and t.state = 'running'
limit 1;
select is(pg_temp.counted(), 'c1 d2 r1 s1 w1', 'a wait is counted');
select teguh.release_run('q', t.run_id)
from teguh.t_q as t
where t.task_name = 'many' and t.state = 'running';
select is(pg_temp.counted(), 'c1 d2 p1 s1 w1', 'a release is counted');
select teguh.emit_event('q', 'go');
select is(pg_temp.counted(), 'c1 d2 p2 s1', 'a wake-up by an event is counted');

select pg_temp.at(10);
select teguh.fail_run('q', c.run_id, '"no"') from teguh.claim_task('q', 'w', 1000, 2) as c;
select is(pg_temp.counted(), pg_temp.there(), 'failed runs that are retried are counted');
select pg_temp.at(100);
create temporary table ended as
select r.*
from teguh.complete_runs('q', (
  select jsonb_agg(jsonb_build_object('run_id', c.run_id))
  from teguh.claim_task('q', 'w', 1000, 10) as c
)) as r;
select is(pg_temp.counted(), 'c6', 'runs that are completed together are counted');
select is(
  (
    select sum(c.qty)::bigint from teguh._count_q() as c
    where c.became = 'c' and c.most = 0.005 and c.was = 'r'
  ),
  6::bigint,
  'with the bucket of their duration'
);

-- When tasks are cancelled, expire, fail for good, are retried
select teguh.cancel_task('q', s.task_id) from teguh.spawn_task('q', 'cancelled', '1') as s;
select teguh.cancel_task('q', s.task_id) from teguh.spawn_task('q', 'cancelled', '1') as s;
select teguh.cancel_task('q', t.task_id) from teguh.t_q as t where t.task_name = 'cancelled';
select teguh.spawn_task('q', 'expired', '1', '{"ttl_seconds": 5}');
select teguh.spawn_task('q', 'failed', '1', '{"max_attempts": 1}');
select pg_temp.at(106);
select teguh.ticker('q');
select teguh.fail_run('q', c.run_id, '"no"') from teguh.claim_task('q', 'w', 1000, 10) as c;
select is(pg_temp.counted(), 'c6 e1 f1 x2', 'other ends are counted');
select teguh.retry_task('q', t.task_id)
from teguh.t_q as t
where t.task_name in ('failed', 'cancelled', 'expired');
select is(pg_temp.counted(), 'c6 p4', 'retries of what was over are counted');

-- When a run that an event woke is released for later
select teguh.spawn_task('q', 'woken', '1');
select teguh.await_event('q', c.task_id, c.run_id, 'step', 'alarm')
from teguh.claim_task('q', 'w', 1000, 10) as c
where c.task_name = 'woken';
select teguh.emit_event('q', 'alarm');
select teguh.release_run('q', c.run_id, 5)
from teguh.claim_task('q', 'w', 1000, 10) as c
where c.task_name = 'woken';
select pg_temp.at(112);
select count(*) from teguh.claim_task('q', 'w', 1000, 10);
select is(pg_temp.counted(), pg_temp.there(), 'a release for later is counted');
select teguh.release_run('q', t.run_id) from teguh.t_q as t where t.state = 'running';

-- When a lease expires
select count(*) from teguh.claim_task('q', 'w', 1, 10);
select pg_temp.at(114);
select teguh.ticker('q');
select is(pg_temp.counted(), pg_temp.there(), 'expired leases are counted');

-- When tasks are removed
select teguh.cleanup_tasks('q', 0);
select is(pg_temp.counted(), pg_temp.there(), 'cleanup is counted');

-- When what is done is undone
begin;
select teguh.spawn_task('q', 'undone', '1');
rollback;
select is(pg_temp.counted(), pg_temp.there(), 'what was rolled back is not counted');

-- When so many notes were made that they are summed up
create temporary table before as select pg_temp.counted() as said;
select count(*) from generate_series(1, 1200) as g(i)
cross join lateral teguh.spawn_task('q', 'bulk', to_jsonb(g.i));
select count(*) from teguh.claim_task('q', 'w', 1, 1);
select pg_temp.at(200);
select teguh.ticker('q');
select is(
  (select count(*) from teguh.k0_q as k where k.kind = 'n'), 1::bigint,
  'the ticker sums notes up'
);
select is(
  (select count(*) from teguh.t_q as t where t.failures > 0) > 0, true,
  'given that it ended a lease right after'
);
select is(pg_temp.counted(), pg_temp.there(), 'the sum stands for them');
select teguh.spawn_task('q', 'later', '1');
select is(pg_temp.counted(), pg_temp.there(), 'and later ones come on top');
select teguh.ticker('q');
select is(
  (select count(*) from teguh.k0_q as k where k.kind = 'n'), 1::bigint,
  'few notes are not summed up'
);

-- When a transaction that has an id would sum up
select count(*) from generate_series(1, 1200) as g(i)
cross join lateral teguh.spawn_task('q', 'bulk', to_jsonb(g.i));
begin;
select teguh.spawn_task('q', 'early', '1');
select teguh._sum0_q();
commit;
select is(
  (select count(*) from teguh.k0_q as k where k.kind = 'n'), 1::bigint,
  'it leaves the notes to another'
);

-- When segments change, again and again
set teguh.segment_bytes = 8192;
do $$
begin
  for v_round in 1..24 loop
    perform teguh.spawn_task('q', 'round', '1');
    perform teguh.complete_run('q', c.run_id) from teguh.claim_task('q', 'w', 1000, 400) as c;
    commit;
    perform teguh.ticker('q');
    commit;
  end loop;
end;
$$;
select is(
  (select pg_sequence_last_value('teguh.ring_q'::regclass) >= 2), true,
  'given that segments were used up'
);
select is((select sum(n.qty) > 1000 from teguh.n_q as n), true, 'what they held was added up');
select is(pg_temp.counted(), pg_temp.there(), 'and nothing was lost or counted twice');

-- When dispatch is built anew
select teguh.rebuild_dispatch('q');
select is(pg_temp.counted(), pg_temp.there(), 'rebuilding keeps the counts');

-- When a queue comes from elsewhere, without notes
truncate teguh.n_q, teguh.n0_q, teguh.n1_q;
select teguh.rebuild_dispatch('q');
select is(pg_temp.counted(), pg_temp.there(), 'what is there is counted');

select teguh.drop_queue('q');
select * from finish();
