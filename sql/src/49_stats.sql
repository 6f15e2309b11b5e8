-- When the first task that is ready became so; null if none is.
create or replace function teguh._oldest_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_one  timestamptz;
  v_all  timestamptz;
begin
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    v_one := case
      when v_gen % 2 = 0 then teguh._elder0_template()
      else teguh._elder1_template()
    end;
    v_all := least(v_all, v_one);
  end loop;

  return least(v_all, (
    select min(t.available_at)
    from unnest(teguh._named_template()) as n(task_name)
    cross join lateral (
      select t.available_at
      from (
        select l.*
        from teguh.l_template as l
        where l.gate = 'o'
          and l.task_name collate "C" = n.task_name
        order by l.ranking, l.seq
      ) as l
      cross join lateral (
        select t.* from teguh.t_template as t where t.task_id = l.task_id offset 0
      ) as t
      where t.turn = l.turn
        and t.state in ('pending', 'sleeping')
        and t.laned
      limit 1
    ) as t
  ));
end;
$$;

-- The same of one segment.
create or replace function teguh._elder0_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from teguh.k0_template;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;

  return (
    select min(t.available_at)
    from (
      select g.xid, g.low_seq as seq
      from unnest(teguh._trim0_template(v_from.gaps, '{}')) as g
      union all
      select r.xid, r.seq
      from teguh._next0_template(coalesce(v_from.xid, '0'), coalesce(v_from.seq, 0)) as r
    ) as f
    join teguh.p0_template as p on (p.xid, p.seq) = (f.xid, f.seq) and p.kind = 'r'
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = p.task_id offset 0
    ) as t
  );
end;
$$;

-- When the run that has been held longest was claimed; null if none is held.
--
-- Leases that began first end first, unless they were extended: so the first thousand timers that
-- still mean something are looked at.
create or replace function teguh._tenure_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select min(t.started_at)
    from (
      (select p.* from teguh._left0_template('l', 1000) as p)
      union all
      (select p.* from teguh._left1_template('l', 1000) as p)
    ) as p
    cross join lateral unnest(p.task_id || p.more_ids, p.turn || p.more_turns) as u(task_id, turn)
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
    where t.state = 'running'
      and u.turn in (0, t.turn)
  );
end;
$$;

-- Whether workers ask for a task name: lately one has, or none of them says what it asks for.
create or replace function teguh._is_wanted(
  p_queue_name text,
  p_task_name  text,
  p_now        timestamptz
)
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(bool_or(w.task_name = p_task_name), true)
  from teguh.wanted as w
  where w.queue_name = p_queue_name
    and w.seen_at > p_now - interval '5 minutes';
$$;

-- How many tasks stand where, and how old the oldest are.
create or replace function teguh._stat_template()
  returns table(
    pending            bigint,
    delayed            bigint,
    running            bigint,
    sleeping           bigint,
    waiting            bigint,
    completed          bigint,
    failed             bigint,
    cancelled          bigint,
    expired            bigint,
    oldest_pending_age double precision,
    oldest_lease_age   double precision,
    unclaimable        bigint
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := teguh.current_time();
  v_oldest  timestamptz := teguh._oldest_template();
  v_longest timestamptz := teguh._tenure_template();
begin
  return query
  select
    coalesce(sum(s.qty) filter (where s.letter = 'p'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'd'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'r'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 's'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'w'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'c'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'f'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'x'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'e'), 0)::bigint,
    case when v_oldest is not null then date_part('epoch', v_now - least(v_oldest, v_now)) end,
    case when v_longest is not null then date_part('epoch', v_now - least(v_longest, v_now)) end,
    coalesce(sum(s.qty) filter (where s.letter = 'p' and not teguh._is_wanted(
      substr('_template', 2), c.task_name, v_now
    )), 0)::bigint
  from teguh._count_template() as c
  cross join lateral (values (c.became, c.qty), (c.was, -c.qty)) as s(letter, qty);
end;
$$;

-- Say how many tasks stand where.
create or replace function teguh.queue_stats(p_queue_name text default null)
  returns table(
    queue_name                 text,
    pending                    bigint,
    delayed                    bigint,
    running                    bigint,
    sleeping                   bigint,
    waiting                    bigint,
    completed                  bigint,
    failed                     bigint,
    cancelled                  bigint,
    expired                    bigint,
    oldest_pending_age_seconds double precision,
    oldest_lease_age_seconds   double precision,
    paused                     boolean,
    unclaimable                bigint
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queue record;
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for v_queue in
    select q.queue_name, coalesce(q.paused_until > teguh.current_time(), false) as paused
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('stat', q.queue_name))
  loop
    continue when p_queue_name is null and not teguh._share_queue(v_queue.queue_name);
    return query execute
      'select $1, s.pending, s.delayed, s.running, s.sleeping, s.waiting, s.completed, s.failed, '
      's.cancelled, s.expired, s.oldest_pending_age, s.oldest_lease_age, $2, s.unclaimable from '
      || teguh._from('stat', v_queue.queue_name) || ' as s'
    using v_queue.queue_name, v_queue.paused;
  end loop;
end;
$$;

comment on function teguh.queue_stats(text) is
  'How many tasks of a queue (null: of each queue the caller may read) stand where, from '
  'counters: it costs the same whatever the queue holds. pending: may be claimed; delayed: not '
  'started yet, for later; sleeping: between two turns; waiting: for an event. A task that has '
  'come due counts where it was until it is claimed. oldest_pending_age_seconds: for how long '
  'the first task in line has been ready, null if none is; oldest_lease_age_seconds: for how '
  'long the first of the runs that are held has been, null if none is; unclaimable: pending, but '
  'of a name that no worker has asked for in five minutes, where workers say which names they '
  'know (claim_any). Raises TG001 for an unknown queue.';

-- A queue's own function without arguments, as text to select from.
create or replace function teguh._from(p_verb text, p_queue_name text)
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._policy(p_queue_name);
  return format('teguh.%I()', '_' || p_verb || '_' || p_queue_name);
end;
$$;

-- How many schedules of the queue are overdue, which are those that should have fired more than
-- five minutes ago; how late the latest is, what it is called, and why the last try failed.
create or replace function teguh._tardy_template()
  returns table(
    overdue       bigint,
    lag_seconds   double precision,
    schedule_name text,
    last_error    text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now  timestamptz := teguh.current_time();
  v_from timestamptz := teguh._agenda_template();
begin
  -- one that could not fire is looked at again ten seconds later
  return query
  select
    count(*) filter (where s.planned_at < v_now - interval '5 minutes'),
    coalesce(date_part('epoch', v_now - min(s.planned_at)), 0),
    (array_agg(s.schedule_name order by s.planned_at, s.schedule_name))[1],
    (array_agg(s.last_error order by s.planned_at, s.schedule_name))[1]
  from teguh.schedules as s
  where s.queue_name = substr('_template', 2)
    and s.next_at >= v_from
    and s.next_at <= v_now + interval '10 seconds'
    and s.planned_at <= v_now;
end;
$$;

-- The names of what tallies count, by where a task stood and stands.
create or replace view teguh._counters as
select
  c.name,
  string_to_array(c.was, null) as was,
  string_to_array(c.became, null) as became,
  c.ended
from (
  -- noqa: disable=LT01,LT02
  values
    ('created',   '-',     'pdrswcfxe', null),
    ('started',   'pdsw',  'r',         null),
    ('completed', '-r',    'c',         null),
    ('failed',    '-rsw',  'f',         null),
    ('retried',   'r',     'ps',        true),
    ('cancelled', '-pdrsw', 'x',        null),
    ('expired',   '-pdrsw', 'e',        null)
  -- noqa: enable=LT01,LT02
) as c(name, was, became, ended);

comment on view teguh._counters is
  'The totals of metrics(), and which tallies each of them adds up. ended: only those of runs '
  'that ended.';

-- The metrics of one queue.
create or replace function teguh._gauge_template()
  returns table(name text, labels jsonb, value double precision)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue jsonb := jsonb_build_object('queue', substr('_template', 2));
begin
  return query
  select 'teguh_tasks', v_queue || jsonb_build_object('state', s.key), s.value::double precision
  from teguh._stat_template() as r
  cross join lateral jsonb_each_text(to_jsonb(r)) as s
  where s.key !~ '^oldest_|^unclaimable$'
  union all
  select 'teguh_tasks_' || s.key, v_queue, s.value::double precision
  from teguh._stat_template() as r
  cross join lateral jsonb_each_text(to_jsonb(r)) as s
  where s.key = 'unclaimable'
  union all
  select 'teguh_' || s.key || '_seconds', v_queue, s.value::double precision
  from teguh._stat_template() as r
  cross join lateral jsonb_each_text(to_jsonb(r)) as s
  where s.key ~ '^oldest_'
    and s.value is not null
  union all
  select n.name, v_queue, n.value
  from teguh._tardy_template() as r
  cross join lateral (
    values
      ('teguh_schedules_overdue', r.overdue::double precision),
      ('teguh_schedule_lag_seconds', r.lag_seconds)
  ) as n(name, value);

  return query
  with tallies as materialized (
    select c.* from teguh._count_template() as c
  )

  select
    'teguh_tasks_' || k.name || '_total',
    v_queue || jsonb_build_object('task', c.task_name),
    sum(c.qty)::double precision
  from tallies as c
  join teguh._counters as k
    on c.was::text = any (k.was) and c.became::text = any (k.became)
    and (k.ended is null or c.most > 0)
  group by k.name, c.task_name
  union all
  select * from teguh._spans_template();
end;
$$;

-- How long runs took, as a cumulative histogram.
create or replace function teguh._spans_template()
  returns table(name text, labels jsonb, value double precision)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_bounds double precision[] := (
    select q.buckets || double precision 'infinity'
    from teguh.queues as q
    where q.queue_name = substr('_template', 2)
  );
begin
  return query
  with ended as materialized (
    select c.task_name, c.most, sum(c.qty) as qty, sum(c.seconds) as seconds
    from teguh._count_template() as c
    where c.most > 0
    group by c.task_name, c.most
  ),

  tasks as (
    select
      e.task_name,
      jsonb_build_object('queue', substr('_template', 2), 'task', e.task_name) as labels,
      sum(e.qty) as qty,
      sum(e.seconds) as seconds
    from ended as e
    group by e.task_name
  )

  select
    'teguh_run_duration_seconds_bucket',
    t.labels || jsonb_build_object(
      'le', case b.bound when 'infinity' then '+Inf' else b.bound::text end
    ),
    (
      select coalesce(sum(e.qty), 0)::double precision
      from ended as e
      where e.task_name = t.task_name and e.most <= b.bound
    )
  from tasks as t
  cross join unnest(v_bounds) as b(bound)
  union all
  select 'teguh_run_duration_seconds_sum', t.labels, t.seconds
  from tasks as t
  union all
  select 'teguh_run_duration_seconds_count', t.labels, t.qty::double precision
  from tasks as t;
end;
$$;

-- Say all there is to measure.
create or replace function teguh.metrics()
  returns table(name text, labels jsonb, value double precision)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queue_name text;
begin
  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('gauge', q.queue_name)
  loop
    continue when not teguh._share_queue(v_queue_name);
    return query execute 'select * from ' || teguh._from('gauge', v_queue_name);
  end loop;

  return query
  select 'teguh_ticker_lag_seconds', '{}'::jsonb, s.lag_seconds
  from teguh.status() as s
  where s.lag_seconds is not null
  union all
  select 'teguh_oldest_xmin_age', '{}'::jsonb, teguh._xmin_age()::double precision;
end;
$$;

comment on function teguh.metrics() is
  'What there is to measure, of the queues the caller may read. teguh_tasks by queue and state; '
  'teguh_tasks_created_, started_, completed_, failed_, retried_, cancelled_, expired_total and '
  'the histogram teguh_run_duration_seconds by queue and task; ages in seconds; '
  'teguh_schedules_overdue (that should have fired more than 5 minutes ago) and '
  'teguh_schedule_lag_seconds (how late the latest is) by queue; the lag of the ticker; how many '
  'transactions old the oldest snapshot is that keeps dead rows from being removed, as far as the '
  'owner of teguh may see. Whether a label le is a bound, the policy of the queue says '
  '(duration_buckets).';

-- How many transactions old the oldest snapshot or replication slot is that can be seen.
create or replace function teguh._xmin_age()
  returns integer
  language sql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(max(x.age), 0)
  from (
    select age(a.backend_xmin) as age
    from pg_stat_activity as a
    where a.backend_xmin is not null
    union all
    select greatest(age(s.xmin), age(s.catalog_xmin))
    from pg_replication_slots as s
  ) as x;
$$;

-- Say the same in the text format of Prometheus.
create or replace function teguh.prometheus()
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    with metrics as materialized (
      select
        m.*,
        regexp_replace(m.name, '_(bucket|sum|count)$', '') as family
      from teguh.metrics() as m
    ),

    lines as (
      select
        m.family,
        m.name || coalesce(nullif('{' || teguh._label_text(m.labels) || '}', '{}'), '')
        || ' ' || case m.value when 'infinity' then '+Inf' else m.value::text end as line,
        m.name,
        m.labels - 'le' as series,
        case m.labels ->> 'le' when '+Inf' then 'infinity' else m.labels ->> 'le' end
          ::double precision as bound
      from metrics as m
    ),

    families as (
      select
        l.family,
        string_agg(l.line, chr(10) order by l.series::text, l.name, l.bound) as lines
      from lines as l
      group by l.family
    )

    select
      string_agg(
        format(
          '# TYPE %2$s %3$s%1$s%4$s%1$s',
          chr(10),
          f.family,
          case
            when f.family ~ '_total$' then 'counter'
            when f.family ~ 'duration_seconds$' then 'histogram'
            else 'gauge'
          end,
          f.lines
        ),
        '' order by f.family
      )
    from families as f
  );
end;
$$;

comment on function teguh.prometheus() is
  'What metrics() says, in the text format that Prometheus reads (version 0.0.4).';

-- Labels in the text format of Prometheus.
create or replace function teguh._label_text(p_labels jsonb)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    string_agg(
      format(
        '%s="%s"', l.key,
        replace(
          replace(replace(l.value, chr(92), chr(92) || chr(92)), '"', chr(92) || '"'),
          chr(10), chr(92) || 'n'
        )
      ),
      ',' order by l.key
    ),
    ''
  )
  from jsonb_each_text(p_labels) as l;
$$;

-- What is wrong with the schedules of the queues that the caller may read: problems of health().
create or replace function teguh._schedule_problems()
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
  v_overdue    bigint;
  v_lag        double precision;
  v_name       text;
  v_error      text;
  v_problems   jsonb := '[]'::jsonb;
begin
  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('tardy', q.queue_name)
  loop
    continue when not teguh._share_queue(v_queue_name);
    execute
      'select t.overdue, t.lag_seconds, t.schedule_name, t.last_error from '
      || teguh._from('tardy', v_queue_name) || ' as t'
    into v_overdue, v_lag, v_name, v_error;
    if v_overdue > 0 then
      v_problems := v_problems || jsonb_build_object(
        'problem', format('schedules of queue "%s" are overdue: %s', v_queue_name, v_overdue),
        'hint', format('"%s" should have fired %s s ago: %s', v_name, round(v_lag),
          coalesce(v_error, 'nobody ticks this queue.'))
      );
    end if;
  end loop;

  return v_problems;
end;
$$;

-- Say whether all is well.
create or replace function teguh.health()
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_lag      double precision := (select s.lag_seconds from teguh.status() as s);
  v_age      integer := teguh._xmin_age();
  v_problems jsonb := '[]'::jsonb;
  v_queue    record;
begin
  if v_lag is null or v_lag > 300 then
    v_problems := v_problems || jsonb_build_object(
      'problem', 'nobody ticks',
      'hint', 'Run a worker, or schedule teguh.ticker() with teguh.start().'
    );
  end if;
  if v_age > 10000000 then
    v_problems := v_problems || jsonb_build_object(
      'problem', format('a snapshot is %s transactions old', v_age),
      'hint', 'Look for old transactions in pg_stat_activity, and for unused replication slots.'
    );
  end if;

  for v_queue in
    select s.*
    from teguh.queue_stats() as s
    where not s.paused
      and s.running = 0
      and s.oldest_pending_age_seconds > 300
  loop
    v_problems := v_problems || jsonb_build_object(
      'problem', format('nobody works on queue "%s"', v_queue.queue_name),
      'hint', format('Its first task has been ready for %s s: start a worker.',
        round(v_queue.oldest_pending_age_seconds))
    );
  end loop;
  v_problems := v_problems || teguh._schedule_problems();

  return jsonb_build_object(
    'status', case v_problems when '[]' then 'ok' else 'degraded' end,
    'version', teguh.version(),
    'ticker_lag_seconds', v_lag,
    'oldest_xmin_age', v_age,
    'problems', v_problems
  );
end;
$$;

comment on function teguh.health() is
  'An object: status is ok or degraded; problems says what is wrong, each with a hint: nobody '
  'has ticked for 5 minutes, a snapshot is over ten million transactions old, tasks of a '
  'queue have been ready for 5 minutes while nobody works on it, or schedules should have fired '
  '5 minutes ago and have not.';
