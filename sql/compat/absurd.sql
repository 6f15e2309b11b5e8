-- The schema absurd on top of teguh: the functions and relations of absurd 0.5.1,
-- for its clients and tools.  Install it after teguh.sql; running it again refreshes it.
--
--   clock, names, errors    what every function here begins with
--   options                 retry strategies, limits of time: absurd's to teguh's and back
--   template                views and functions stamped once per queue
--   queues, policies        create_queue ... list_queues
--   tasks, runs             spawn_task ... emit_event
--   upkeep                  cleanup, uuid helpers, partitions, cron
--   copy                    copy_from_schema: an absurd database moves over
begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
set local check_function_bodies = off;

-- Refuse to run without teguh, or over a schema that absurd itself made.
do $$
begin
  if to_regprocedure('teguh.version()') is null then
    raise exception 'teguh is not installed in this database'
      using
        errcode = 'TG010',
        detail = 'The schema absurd made here is a layer over the schema teguh.',
        hint = 'Run sql/teguh.sql first.';
  end if;

  if to_regclass('absurd.queues') is not null and to_regclass('absurd._queues') is null then
    raise exception 'the schema absurd is in use by absurd itself'
      using
        errcode = '42P06',
        detail = 'Its tables hold tasks, and are not ours to replace.',
        hint = 'Stop its workers; alter schema absurd rename to absurd_old; run this file '
               'again; select * from absurd.copy_from_schema(''absurd_old'').';
  end if;
end;
$$;

create schema if not exists absurd;

comment on schema absurd is
  'The functions and relations of absurd 0.5.1, carried out by teguh.';

-- Queues by the name that absurd's clients use.
create table if not exists absurd._queues (
  queue_name          text        not null,
  teguh_name          text        not null,
  created_at          timestamptz not null,
  storage_mode        text        not null,
  default_partition   text        not null default 'enabled',
  partition_lookahead interval    not null default '28 days',
  partition_lookback  interval    not null default '1 day',
  cleanup_ttl         interval    not null default '30 days',
  cleanup_limit       integer     not null default 1000,
  detach_mode         text        not null default 'none',
  detach_min_age      interval    not null default '30 days',
  constraint queues_pkey primary key (queue_name),
  constraint queues_teguh_name unique (teguh_name)
);

comment on table absurd._queues is
  'Queues: the name and policy that absurd''s clients know, and teguh''s name for it.';
comment on column absurd._queues.teguh_name is
  'The same name where teguh allows it, else one made of its hash.';
comment on column absurd._queues.storage_mode is
  'What create_queue() was asked for. It makes no difference here.';

create or replace view absurd.queues as
select
  q.queue_name,
  q.created_at,
  q.storage_mode,
  q.default_partition,
  q.partition_lookahead,
  q.partition_lookback,
  q.cleanup_ttl,
  q.cleanup_limit,
  q.detach_mode,
  q.detach_min_age
from absurd._queues as q;

comment on view absurd.queues is
  'Queues and their policies, in the columns of absurd''s table of that name.';

-- What a function has to know of a run before it acts.
do $$
begin
  if to_regtype('absurd._run') is null then
    create type absurd._run as (
      task_id          uuid,
      run_id           uuid,
      attempt          integer,
      state            text,
      task_state       text,
      lease_expires_at timestamptz,
      max_attempts     integer,
      teguh_name       text
    );
  end if;
end;
$$;

comment on type absurd._run is
  'A run, its state as absurd has it, the state of its task, and teguh''s name of its queue.';

-- The version of absurd whose functions these are.
create or replace function absurd.get_schema_version()
  returns text
  language sql
  immutable
  parallel safe
  set search_path = pg_catalog, pg_temp
as $$
  select '0.5.1'::text;
$$;

comment on function absurd.get_schema_version() is
  'The version of absurd whose functions and relations this schema has.';

-- The clock of this schema.
create or replace function absurd.current_time()
  returns timestamptz
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(
    nullif(btrim(current_setting('absurd.fake_now', true)), '')::timestamptz,
    teguh.current_time()
  );
end;
$$;

comment on function absurd.current_time() is
  'The time: the setting absurd.fake_now when it is not blank, else teguh''s clock.';

-- Let teguh go by absurd.fake_now until the transaction ends, or until the setting is
-- blank again.  absurd.given_now remembers what was set here, so that a value of
-- teguh.fake_now that came from elsewhere stays.
create or replace function absurd._set_clock()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_fake  text := coalesce(btrim(current_setting('absurd.fake_now', true)), '');
  v_given text := coalesce(current_setting('absurd.given_now', true), '');
begin
  if v_fake = '' and v_given = '' then
    return;
  end if;

  perform set_config('teguh.fake_now', v_fake, true);
  perform set_config('absurd.given_now', v_fake, true);
end;
$$;

-- Set the clock and look a queue up: what every call begins with.  Where absurd would
-- not find the queue's table the error is 42P01, where it looks into its table of
-- queues P0001.
create or replace function absurd._queue(p_queue_name text, p_errcode text default '42P01')
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  perform absurd._set_clock();
  select q.teguh_name into v_name
  from absurd._queues as q
  where q.queue_name = p_queue_name;
  if not found then
    raise exception 'queue "%" does not exist', left(coalesce(p_queue_name, 'null'), 60)
      using
        errcode = p_errcode,
        detail = 'absurd.queues has no row of that name.',
        hint = format('Create it: select absurd.create_queue(%L);', left(p_queue_name, 60));
  end if;

  return v_name;
end;
$$;

-- Refuse a queue that does not exist, where null means all of them.
create or replace function absurd._check_queue(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is not null then
    perform absurd._queue(absurd.validate_queue_name(p_queue_name), 'P0001');
  end if;
end;
$$;

-- The queue's own function behind a call, as text to execute.
create or replace function absurd._call(p_verb text, p_queue_name text, p_arguments integer)
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return 'select * from absurd._' || p_verb || '_' || absurd._queue(p_queue_name)
         || '(' || substr('$1, $2, $3', 1, 4 * p_arguments - 2) || ')';
end;
$$;

-- The attempt that a run is: its number, see teguh._run_number().  Views call this
-- with the rights of whoever reads them.
create or replace function absurd._attempt(p_run_id uuid)
  returns integer
  language plpgsql
  immutable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._run_number(p_run_id);
end;
$$;

-- The task that an id means.  Ids given out by absurd itself, before its tasks were
-- copied, have more random bits than teguh's and lose those.
create or replace function absurd._task_id(p_task_id uuid)
  returns uuid
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._run_task(p_task_id);
end;
$$;

-- Look a run up, or raise that it is not there.
create or replace function absurd._find_run(p_queue_name text, p_run_id uuid)
  returns absurd._run
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := absurd._queue(p_queue_name);
  v_run  absurd._run;
begin
  execute 'select * from absurd._run_' || v_name || '($1)' into v_run using p_run_id;
  if v_run.run_id is null then
    raise exception 'run "%" not found in queue "%"', p_run_id, p_queue_name
      using
        errcode = 'P0001',
        detail = 'No task of this queue has a run with that id.',
        hint = 'Check the queue, and that the id is a run''s and not a task''s.';
  end if;

  v_run.teguh_name := v_name;
  return v_run;
end;
$$;

-- Look a task up, with its current run, or raise that it is not there.
create or replace function absurd._last_run(p_queue_name text, p_task_id uuid)
  returns absurd._run
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := absurd._queue(p_queue_name);
  v_run  absurd._run;
begin
  execute 'select * from absurd._last_' || v_name || '($1)' into v_run
  using absurd._task_id(p_task_id);
  if v_run.run_id is null then
    raise exception 'task "%" not found in queue "%"', p_task_id, p_queue_name
      using
        errcode = 'P0001',
        detail = 'This queue has no task with that id.',
        hint = 'Check the queue; or the task was removed by cleanup.';
  end if;

  v_run.teguh_name := v_name;
  return v_run;
end;
$$;

-- Raise that a task is cancelled.
create or replace function absurd._refuse_cancelled(p_run absurd._run)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'task "%" has been cancelled', p_run.task_id
    using
      errcode = 'AB001',
      detail = format('Run "%s" is %s.', p_run.run_id, p_run.state),
      hint = 'Stop working on it.';
end;
$$;

-- Raise that a run has failed.
create or replace function absurd._refuse_failed(p_run absurd._run)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'run "%" has already failed', p_run.run_id
    using
      errcode = 'AB002',
      detail = format('It was attempt %s of task "%s".', p_run.attempt, p_run.task_id),
      hint = 'Stop working on it: its lease was lost, or somebody failed it.';
end;
$$;

-- Raise that a run is not in a state for what was asked.
create or replace function absurd._refuse_state(p_run absurd._run, p_wanted text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'run "%" is not %', p_run.run_id, p_wanted
    using
      errcode = 'P0001',
      detail = format('It is %s.', p_run.state),
      hint = 'Only the worker that has claimed a run may act on it.';
end;
$$;

-- Raise that a run is one of another task.
create or replace function absurd._refuse_owner(
  p_queue_name text,
  p_run        absurd._run,
  p_task_id    uuid
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'run "%" does not belong to task "%" in queue "%"', p_run.run_id, p_task_id,
    p_queue_name
    using
      errcode = 'P0001',
      detail = format('It is a run of task "%s".', p_run.task_id),
      hint = 'Pass the task_id and run_id that claim_task returned together.';
end;
$$;

-- Refuse a blank name.
create or replace function absurd._check_name(p_what text, p_name text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_name is null or btrim(p_name) = '' then
    raise exception '% must be provided', p_what
      using
        errcode = 'P0001',
        detail = 'It is null, empty or only spaces.',
        hint = 'Give it a name.';
  end if;
end;
$$;

-- Read one number of a retry strategy; null when absent.
create or replace function absurd._strategy_number(
  p_strategy jsonb,
  p_key      text,
  p_most     double precision
)
  returns double precision
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value double precision;
begin
  begin
    v_value := (p_strategy ->> p_key)::double precision;
  exception
    when invalid_text_representation or numeric_value_out_of_range then
      v_value := 'NaN';
  end;

  if v_value not between 0 and p_most then
    raise exception '% of a retry strategy must be from 0 to %', p_key, p_most
      using
        errcode = 'AB003',
        detail = format('Found: %s.', left(p_strategy ->> p_key, 200)),
        hint = 'Delays are in seconds, one day at most.';
  end if;

  return v_value;
end;
$$;

-- Turn absurd's retry strategy into teguh's, or raise AB003.  Absurd's defaults are
-- no delay without a strategy, and a cap of one day; where one of them is filled
-- in, "jitter" is set to 0, which absurd does not know and which changes nothing.
create or replace function absurd._to_strategy(p_strategy jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind   text := coalesce(p_strategy ->> 'kind', 'none');
  v_factor double precision;
  v_most   double precision;
begin
  if p_strategy is null then
    return '{"kind": "none", "jitter": 0}';
  end if;

  if jsonb_typeof(p_strategy) <> 'object' or v_kind not in ('none', 'fixed', 'exponential') then
    raise exception 'retry strategy "%" is not supported', left(v_kind, 200)
      using
        errcode = 'AB003',
        detail = format('Found: %s.', left(p_strategy::text, 200)),
        hint = 'Use an object with "kind": none, fixed or exponential.';
  end if;

  if v_kind = 'none' then
    return '{"kind": "none"}';
  elsif v_kind = 'fixed' then
    return jsonb_strip_nulls(jsonb_build_object(
      'kind', v_kind,
      'base_seconds', absurd._strategy_number(p_strategy, 'base_seconds', 86400)
    ));
  end if;

  v_factor := absurd._strategy_number(p_strategy, 'factor', 1e308);
  v_most := absurd._strategy_number(p_strategy, 'max_seconds', 86400);
  return jsonb_strip_nulls(jsonb_build_object(
    'kind', v_kind,
    'base_seconds', absurd._strategy_number(p_strategy, 'base_seconds', 86400),
    'factor', case when v_factor > 1e6 then 1e6 else v_factor end,
    'max_seconds', coalesce(v_most, 86400),
    'jitter', case when v_most is null then 0 end
  ));
end;
$$;

-- The strategy that a task was spawned with, of what _to_strategy() made of it.
create or replace function absurd._from_strategy(p_strategy jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_strategy -> 'jitter' is distinct from '0' then p_strategy
    when p_strategy ->> 'kind' <> 'none' then p_strategy - '{jitter,max_seconds}'::text[]
  end;
end;
$$;

-- The strategy of a task that is copied.  One that absurd itself would not accept any
-- more must not keep the others from being copied.
create or replace function absurd._copied_strategy(p_strategy jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return absurd._to_strategy(p_strategy);
exception
  when sqlstate 'AB003' then
    return absurd._to_strategy(null);
end;
$$;

-- Turn absurd's cancellation policy into teguh's; null if it has no limit.  Teguh has no
-- limit of zero: a microsecond is over at the first look, too.
create or replace function absurd._to_cancellation(p_cancellation jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_delay    numeric := p_cancellation ->> 'max_delay';
  v_duration numeric := p_cancellation ->> 'max_duration';
begin
  return nullif(
    jsonb_strip_nulls(jsonb_build_object(
      'max_delay', case when v_delay <= 0 then 1e-6 else v_delay end,
      'max_duration', case when v_duration <= 0 then 1e-6 else v_duration end
    )),
    '{}'
  );
end;
$$;

-- The delay before the attempt that follows this one.
create or replace function absurd.retry_delay_seconds(p_strategy jsonb, p_attempt integer)
  returns double precision
  language plpgsql
  immutable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return round(
    teguh._backoff(
      absurd._to_strategy(p_strategy),
      greatest(coalesce(p_attempt, 1), 1),
      '00000000-0000-0000-0000-000000000000'
    )::numeric,
    6
  );
end;
$$;

comment on function absurd.retry_delay_seconds(jsonb, integer) is
  'The seconds that a retry strategy waits after this attempt has failed; a null '
  'strategy does not wait. Raises AB003 for a bad strategy.';

-- The relations of a queue, written for teguh's template queue.  _stamp_views() makes
-- those of each queue from them.

-- Tasks.
create or replace view absurd._tasks as
select
  t.task_id,
  t.task_name,
  t.params,
  t.headers,
  absurd._from_strategy(t.retry_strategy) as retry_strategy,
  t.max_attempts,
  t.cancellation,
  t.created_at as enqueue_at,
  t.first_started_at,
  t.state,
  absurd._attempt(t.run_id) as attempts,
  t.run_id as last_attempt_run,
  t.result as completed_payload,
  case when t.state = 'cancelled' then t.finished_at end as cancelled_at,
  t.idempotency_key
from teguh.t_template as t;

-- The state of a task's current run.  A task that was cancelled because its run failed
-- too late for a retry has a failed run.
create or replace function absurd._run_state(p_state text, p_failures integer, p_run_id uuid)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_state = 'cancelled' and p_failures >= absurd._attempt(p_run_id) then 'failed'
    else p_state
  end;
end;
$$;

-- Why a run failed.  Where its lease expired absurd also says whose it was.
create or replace function absurd._reason(
  p_reason     jsonb,
  p_worker     text,
  p_expired_at timestamptz,
  p_attempt    integer
)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_reason ->> 'name' is distinct from '$ClaimTimeout' then
    return p_reason;
  end if;

  return jsonb_strip_nulls(jsonb_build_object(
      'workerId', p_worker, 'claimExpiredAt', p_expired_at, 'attempt', p_attempt
    ))
    || p_reason;
end;
$$;

-- Runs: the current one of each task, and those that were followed by another.  A run
-- exists from the end of the one before; it has started if its task was handed out
-- since.  Without a common table expression the columns that nobody reads cost nothing.
create or replace view absurd._runs as
select
  t.run_id,
  t.task_id,
  absurd._attempt(t.run_id) as attempt,
  s.run_state as state,
  case when s.run_state <> 'cancelled' then t.claimed_by end as claimed_by,
  t.lease_expires_at as claim_expires_at,
  case
    when s.run_state in ('running', 'completed') then t.started_at
    else coalesce(t.available_at, 'infinity')
  end as available_at,
  case
    when s.run_state <> 'failed' and t.event_payload is null then t.wake_event
  end as wake_event,
  t.event_payload,
  case when t.attempt > coalesce(b.attempt, 0) then t.started_at end as started_at,
  case when s.run_state = 'completed' then t.finished_at end as completed_at,
  case when s.run_state = 'failed' then t.finished_at end as failed_at,
  t.result,
  case
    when s.run_state = 'failed'
      then absurd._reason(
          t.failure_reason, t.claimed_by, t.lease_expires_at, absurd._attempt(t.run_id)
        )
  end as failure_reason,
  coalesce(b.finished_at, t.created_at) as created_at
from teguh.t_template as t
join lateral (
  values (
    case
      when t.state = 'cancelled' then absurd._run_state(t.state, t.failures, t.run_id)
      else t.state
    end
  )
) as s(run_state) on true
left join lateral (
  select r.attempt, r.finished_at
  from teguh.r_template as r
  where r.task_id = t.task_id
  order by r.run_id desc
  limit 1
) as b on true

union all

select
  h.run_id,
  h.task_id,
  absurd._attempt(h.run_id),
  case when h.state = 'released' then 'cancelled' else h.state end,
  case when h.state not in ('cancelled', 'released') then h.claimed_by end,
  h.lease_expires_at,
  coalesce(h.started_at, h.finished_at),
  null,
  null,
  case when h.attempt > coalesce(b.attempt, 0) then h.started_at end,
  null,
  case when h.state = 'failed' then h.finished_at end,
  null,
  absurd._reason(h.failure_reason, h.claimed_by, h.lease_expires_at, absurd._attempt(h.run_id)),
  coalesce(b.finished_at, t.created_at)
from teguh.r_template as h
join teguh.t_template as t on t.task_id = h.task_id
left join lateral (
  select r.attempt, r.finished_at
  from teguh.r_template as r
  where r.task_id = h.task_id
    and r.run_id < h.run_id
  order by r.run_id desc
  limit 1
) as b on true;

-- Checkpoints.
create or replace view absurd._checkpoints as
select
  c.task_id,
  c.checkpoint_name,
  c.state,
  c.status,
  c.owner_run_id,
  c.updated_at
from teguh.c_template as c;

-- Events; one that is only awaited has no payload and was emitted in 1970.
create or replace view absurd._events as
select
  e.event_name,
  e.payload,
  coalesce(e.emitted_at, 'epoch') as emitted_at
from teguh.e_template as e;

-- Waits of the runs that sleep.  One whose time is over is kept by teguh until its
-- run comes back to it.
create or replace view absurd._waits as
select
  w.task_id,
  t.run_id,
  w.step_name,
  w.event_name,
  w.timeout_at,
  t.started_at as created_at
from teguh.w_template as w
join teguh.t_template as t on t.task_id = w.task_id and t.turn = w.turn
where t.state = 'sleeping';

-- Look a run up.
create or replace function absurd._run_template(p_run_id uuid)
  returns absurd._run
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_id uuid := absurd._task_id(p_run_id);
  v_attempt integer := absurd._attempt(p_run_id);
  v_run     absurd._run;
  v_current uuid;
begin
  select
    t.task_id, t.run_id, t.state, t.lease_expires_at, t.max_attempts,
    absurd._run_state(t.state, t.failures, t.run_id)
  into
    v_run.task_id, v_current, v_run.task_state, v_run.lease_expires_at, v_run.max_attempts,
    v_run.state
  from teguh.t_template as t
  where t.task_id = v_task_id;
  if not found or v_attempt not between 1 and absurd._attempt(v_current) then
    return null;
  end if;

  v_run.run_id := p_run_id;
  v_run.attempt := v_attempt;
  if p_run_id <> v_current then
    v_run.lease_expires_at := null;
    select r.state into v_run.state
    from teguh.r_template as r
    where (r.task_id, r.run_id) = (v_task_id, p_run_id);
  end if;

  return v_run;
end;
$$;

-- The state of a task and what came of it; no row if there is no such task.
create or replace function absurd._show_template(p_task_id uuid)
  returns table(task_id uuid, state text, result jsonb, failure_reason jsonb)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    t.task_id,
    t.state,
    t.result,
    case
      when t.state = 'failed'
        then absurd._reason(
          t.failure_reason, t.claimed_by, t.lease_expires_at, absurd._attempt(t.run_id)
        )
    end
  from teguh.t_template as t
  where t.task_id = p_task_id;
end;
$$;

-- Look up the last run of a task.
create or replace function absurd._last_template(p_task_id uuid)
  returns absurd._run
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select absurd._run_template(t.run_id)
    from teguh.t_template as t
    where t.task_id = p_task_id
  );
end;
$$;

-- Forget waits that are over: of runs that were claimed for another reason than that
-- their wait timed out.  Teguh would end a later wait of the same step with them.
create or replace function absurd._forget_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.w_template as w
  where w.task_id = any (p_task_ids);
end;
$$;

-- Fail a run that nobody holds but that has begun.
create or replace function absurd._fail_template(
  p_run_id   uuid,
  p_reason   jsonb,
  p_retry_at timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = absurd._task_id(p_run_id)
  for no key update;
  if v_task.run_id = p_run_id and v_task.state = 'sleeping' then
    perform teguh._end_template(
      v_task, coalesce(p_reason, 'null'), p_retry_at, teguh.current_time()
    );
  else
    -- it was claimed, or ended, a moment ago
    perform teguh._fail_template(p_run_id, p_reason, p_retry_at);
  end if;
end;
$$;

-- Store a checkpoint for a run that nobody holds.
create or replace function absurd._mark_template(
  p_task_id   uuid,
  p_step_name text,
  p_state     jsonb,
  p_run_id    uuid
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform from teguh.t_template as t
  where t.task_id = p_task_id
  for no key update;
  perform teguh._note_template(p_task_id, p_step_name, p_state, 'committed', p_run_id);
end;
$$;

-- Read one checkpoint; null if there is none.
create or replace function absurd._read_template(
  p_task_id   uuid,
  p_step_name text,
  p_pending   boolean
)
  returns table(
    checkpoint_name text,
    state           jsonb,
    status          text,
    owner_run_id    uuid,
    updated_at      timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select c.checkpoint_name, c.state, c.status, c.owner_run_id, c.updated_at
  from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name
    and (p_pending or c.status = 'committed');
end;
$$;

-- Forget that a wait timed out: to teguh a timeout is a result, which later runs see
-- again; to absurd it is not, and they wait anew.  Returns whether the event has been
-- emitted by now.  Its row and the task's are locked.
create or replace function absurd._again_template(
  p_task_id    uuid,
  p_step_name  text,
  p_event_name text
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name
    and c.status = 'timed_out';
  return exists (
    select from teguh.e_template as e
    where e.event_name = p_event_name
      and e.emitted_at is not null
  );
end;
$$;

-- Copy the tasks of an absurd queue, see copy_from_schema(), with their last runs.  An
-- id keeps its time and 54 of its random bits, the others are what teguh numbers runs
-- in.  All begin in turn 2: a task in its first turn could have no checkpoints.
create or replace function absurd._move_template()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  with totals as (
    select
      r.task_id,
      count(r.started_at) as begun,
      count(*) filter (where r.state = 'failed') as failures,
      (array_agg(r.failure_reason order by r.attempt desc)
        filter (where r.state = 'failed'))[1] as reason
    from pg_temp.absurd_r as r
    group by r.task_id
  ),

  tasks as (
    select o.*, absurd._to_cancellation(o.cancellation) as limits
    from pg_temp.absurd_t as o
  )

  insert into teguh.t_template as t (
    task_id, run_id, turn, attempt, failures, state, created_at, available_at, deadline_at,
    first_started_at, started_at, lease_expires_at, finished_at, max_attempts, task_name,
    claimed_by, params, headers, retry_strategy, cancellation, idempotency_key, wake_event,
    event_payload, result, failure_reason
  )
  select
    absurd._task_id(o.task_id),
    teguh._run_id(absurd._task_id(o.task_id), r.attempt),
    2, h.begun, h.failures, o.state, o.enqueue_at,
    nullif(r.available_at, 'infinity'),
    case
      when o.state in ('completed', 'failed', 'cancelled') then null
      when h.begun > 0
        then teguh._after(o.first_started_at, (o.limits ->> 'max_duration')::double precision)
      else teguh._after(o.enqueue_at, (o.limits ->> 'max_delay')::double precision)
    end,
    o.first_started_at, r.started_at, r.claim_expires_at,
    case o.state
      when 'completed' then coalesce(r.completed_at, r.created_at)
      when 'failed' then coalesce(r.failed_at, r.created_at)
      when 'cancelled' then coalesce(o.cancelled_at, r.created_at)
    end,
    o.max_attempts, o.task_name, r.claimed_by, o.params,
    case when jsonb_typeof(o.headers) = 'object' then o.headers end,
    absurd._copied_strategy(o.retry_strategy), o.limits, o.idempotency_key, r.wake_event,
    r.event_payload, o.completed_payload, h.reason
  from tasks as o
  join pg_temp.absurd_r as r on r.run_id = o.last_attempt_run
  join totals as h on h.task_id = o.task_id;
  get diagnostics v_count = row_count;
  return v_count;
end;
$$;

-- Copy the runs that were followed by another.
create or replace function absurd._past_template()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  with counted as (
    select r.*, count(r.started_at) over (partition by r.task_id order by r.attempt) as begun
    from pg_temp.absurd_r as r
  )

  insert into teguh.r_template as r (
    task_id, run_id, attempt, state, claimed_by, started_at, lease_expires_at, finished_at,
    failure_reason
  )
  select
    absurd._task_id(h.task_id),
    teguh._run_id(absurd._task_id(h.task_id), h.attempt),
    h.begun, h.state, h.claimed_by, h.started_at, h.claim_expires_at,
    coalesce(h.failed_at, o.cancelled_at, h.created_at),
    h.failure_reason
  from counted as h
  join pg_temp.absurd_t as o on o.task_id = h.task_id
  where h.run_id <> o.last_attempt_run;
  get diagnostics v_count = row_count;
  return v_count;
end;
$$;

-- Copy checkpoints.
create or replace function absurd._steps_template()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  insert into teguh.c_template as c (
    task_id, checkpoint_name, state, status, owner_run_id, updated_at
  )
  select
    absurd._task_id(o.task_id), o.checkpoint_name, coalesce(o.state, 'null'), o.status,
    teguh._run_id(absurd._task_id(o.task_id), coalesce(r.attempt, 1)), o.updated_at
  from pg_temp.absurd_c as o
  left join pg_temp.absurd_r as r on r.run_id = o.owner_run_id
  where o.status = 'committed';
  get diagnostics v_count = row_count;
  return v_count;
end;
$$;

-- Copy events, those that were emitted and those that are awaited.
create or replace function absurd._events_template()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  insert into teguh.e_template as e (event_name, created_at, emitted_at, payload)
  select
    o.event_name,
    case when o.payload is null then teguh.current_time() else o.emitted_at end,
    case when o.payload is not null then o.emitted_at end,
    o.payload
  from pg_temp.absurd_e as o
  where o.payload is not null
    or o.event_name in (select w.event_name from pg_temp.absurd_w as w);
  get diagnostics v_count = row_count;
  return v_count;
end;
$$;

-- Copy the waits of runs that sleep.
create or replace function absurd._waits_template()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint;
begin
  insert into teguh.w_template as w (task_id, event_name, step_name, turn, timeout_at)
  select distinct on (o.task_id)
    absurd._task_id(o.task_id), o.event_name, o.step_name, 2, o.timeout_at
  from pg_temp.absurd_w as o
  join pg_temp.absurd_r as r on r.run_id = o.run_id
  where r.state = 'sleeping'
    and r.wake_event = o.event_name
  order by o.task_id asc, o.created_at desc;
  get diagnostics v_count = row_count;
  return v_count;
end;
$$;

-- Queue what was copied: ready tasks in the order they became due, sleepers, leases,
-- and deadlines.
create or replace function absurd._line_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids    uuid[];
  v_due_at timestamptz[];
begin
  v_ids := (
    select array_agg(t.task_id order by t.available_at, t.task_id)
    from teguh.t_template as t
    where t.state = 'pending'
  );
  perform teguh._push_template('r', v_ids, teguh._fill(2, v_ids));

  select array_agg(t.task_id), array_agg(t.available_at) into v_ids, v_due_at
  from teguh.t_template as t
  where t.state = 'sleeping'
    and t.available_at is not null;
  perform teguh._push_template('s', v_ids, teguh._fill(2, v_ids), v_due_at);

  select array_agg(t.task_id), array_agg(t.lease_expires_at) into v_ids, v_due_at
  from teguh.t_template as t
  where t.state = 'running'
    and t.lease_expires_at is not null;
  perform teguh._push_template('l', v_ids, teguh._fill(2, v_ids), v_due_at);

  select array_agg(t.task_id), array_agg(t.deadline_at) into v_ids, v_due_at
  from teguh.t_template as t
  where t.deadline_at is not null;
  perform teguh._push_template('l', v_ids, teguh._fill(0, v_ids), v_due_at);
end;
$$;

-- The functions that each queue gets a copy of.
create or replace view absurd._template_functions as
select p.oid::regprocedure as signature, p.proname
from pg_catalog.pg_proc as p
where p.pronamespace = 'absurd'::regnamespace
  and p.proname ~ '^_[a-z]+_template$';

-- The plans of these functions must not depend on statistics, as in teguh; but for those
-- that copy, which read whole tables.
do $$
declare
  v_routine regprocedure;
begin
  for v_routine in
    select f.signature
    from absurd._template_functions as f
    where f.proname !~ '^_(move|past|steps|events|waits|line)_'
  loop
    execute pg_catalog.format(
      'alter function %s set plan_cache_mode = force_generic_plan '
      'set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off '
      'set enable_mergejoin = off set enable_sort = off set jit = off',
      v_routine
    );
  end loop;
end;
$$;

-- Rename the template queue to another wherever a text names it.
create or replace function absurd._stamp(p_ddl text, p_name text)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select regexp_replace(p_ddl, '_template\M', '_' || p_name, 'g');
$$;

-- Create or refresh a queue's views and functions.
create or replace function absurd._stamp_queue(p_queue_name text, p_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_view    text;
  v_routine regprocedure;
begin
  foreach v_view in array array['tasks', 'runs', 'checkpoints', 'events', 'waits'] loop
    execute format(
      'create or replace view absurd.%I as %s',
      left(v_view, 1) || '_' || p_queue_name,
      absurd._stamp(pg_get_viewdef(('absurd._' || v_view)::regclass), p_name)
    );
  end loop;

  for v_routine in
    select f.signature
    from absurd._template_functions as f
  loop
    execute absurd._stamp(pg_get_functiondef(v_routine), p_name);
    execute format(
      'revoke all on function %s from public', absurd._stamp(v_routine::text, p_name)
    );
  end loop;
end;
$$;

-- Drop a queue's views and functions.
create or replace function absurd._unstamp_queue(p_queue_name text, p_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_letter  text;
  v_routine regprocedure;
begin
  foreach v_letter in array array['w', 'e', 'c', 'r', 't'] loop
    execute format('drop view if exists absurd.%I', v_letter || '_' || p_queue_name);
  end loop;

  for v_routine in
    select f.signature
    from absurd._template_functions as f
  loop
    execute format('drop function if exists %s', absurd._stamp(v_routine::text, p_name));
  end loop;
end;
$$;

-- Check a queue's name and hand it back.
create or replace function absurd.validate_queue_name(p_queue_name text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(octet_length(p_queue_name), 0) not between 1 and 57 then
    raise exception 'queue name "%" is not valid', left(coalesce(p_queue_name, 'null'), 60)
      using
        errcode = 'P0001',
        detail = format('It has %s bytes.', coalesce(octet_length(p_queue_name), 0)),
        hint = 'Use 1 to 57 bytes, of any characters.';
  end if;

  return p_queue_name;
end;
$$;

comment on function absurd.validate_queue_name(text) is
  'Returns the name if a queue may have it: 1 to 57 bytes. Raises P0001 if not.';

-- Teguh's name for a queue.
create or replace function absurd._teguh_name(p_queue_name text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_queue_name ~ '^[a-z][a-z0-9_]*$'
      and octet_length(p_queue_name) <= 55
      and p_queue_name <> 'template'
      then p_queue_name
    else 'absurd_' || md5(p_queue_name)
  end;
end;
$$;

-- The part of a policy that teguh's own cleanup goes by.
create or replace function absurd._teguh_policy(p_queue absurd._queues)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return jsonb_build_object(
    'cleanup_ttl', date_part('epoch', p_queue.cleanup_ttl),
    'cleanup_limit', p_queue.cleanup_limit
  );
end;
$$;

-- Create a queue, or find that it exists.
create or replace function absurd.create_queue(
  p_queue_name   text,
  p_storage_mode text default 'unpartitioned'
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_mode  text := lower(btrim(coalesce(p_storage_mode, '')));
  v_queue absurd._queues;
begin
  perform absurd.validate_queue_name(p_queue_name);
  if v_mode not in ('unpartitioned', 'partitioned') then
    raise exception 'storage mode "%" is not supported', left(p_storage_mode, 60)
      using
        errcode = 'P0001',
        detail = 'Known modes: unpartitioned, partitioned.',
        hint = 'Leave it out: here both are the same.';
  end if;

  insert into absurd._queues as q (queue_name, teguh_name, created_at, storage_mode)
  values (p_queue_name, absurd._teguh_name(p_queue_name), absurd.current_time(), v_mode)
  on conflict (queue_name) do nothing
  returning q.* into v_queue;
  if found then
    perform absurd._set_clock();
    perform teguh.create_queue(v_queue.teguh_name, absurd._teguh_policy(v_queue));
    perform absurd._stamp_queue(v_queue.queue_name, v_queue.teguh_name);
    return;
  end if;

  select q.* into v_queue
  from absurd._queues as q
  where q.queue_name = p_queue_name;
  if v_queue.storage_mode <> v_mode then
    raise exception 'queue "%" already exists with storage mode "%"', p_queue_name,
      v_queue.storage_mode
      using
        errcode = 'P0001',
        detail = 'A queue keeps the mode that it was created with.',
        hint = 'Ask for that mode.';
  end if;
end;
$$;

comment on function absurd.create_queue(text, text) is
  'Creates a queue, with relations t_, r_, c_, e_ and w_<queue>; one that teguh has '
  'under that name is taken over. The storage mode is noted, and makes no difference. '
  'Raises P0001 for a bad name or mode, or if the queue exists with another mode.';

-- Create a queue's views and functions anew.
create or replace function absurd.ensure_queue_tables(p_queue_name text)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd.validate_queue_name(p_queue_name);
  perform absurd._stamp_queue(p_queue_name, absurd._queue(p_queue_name, 'P0001'));
end;
$$;

comment on function absurd.ensure_queue_tables(text) is
  'Creates the relations and functions of a queue anew. Raises P0001 for an unknown queue.';

-- Drop a queue with everything in it.
create or replace function absurd.drop_queue(p_queue_name text)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  delete from absurd._queues as q
  where q.queue_name = p_queue_name
  returning q.teguh_name into v_name;
  if not found then
    return;
  end if;

  if teguh._has_cron() then
    perform absurd.disable_cron(p_queue_name);
  end if;
  perform absurd._unstamp_queue(p_queue_name, v_name);
  perform teguh.drop_queue(v_name);
end;
$$;

comment on function absurd.drop_queue(text) is
  'Drops a queue and all its tasks; nothing happens if there is no such queue. Raises '
  '55P03 if the queue stays in use.';

-- The names of the queues.
create or replace function absurd.list_queues()
  returns table(queue_name text)
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select q.queue_name
  from absurd._queues as q
  order by q.queue_name;
$$;

comment on function absurd.list_queues() is
  'The names of the queues.';

-- The policy of a queue.
create or replace function absurd.get_queue_policy(p_queue_name text)
  returns table(
    queue_name          text,
    storage_mode        text,
    default_partition   text,
    partition_lookahead interval,
    partition_lookback  interval,
    cleanup_ttl         interval,
    cleanup_limit       integer,
    detach_mode         text,
    detach_min_age      interval
  )
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select
    q.queue_name, q.storage_mode, q.default_partition, q.partition_lookahead,
    q.partition_lookback, q.cleanup_ttl, q.cleanup_limit, q.detach_mode, q.detach_min_age
  from absurd._queues as q
  where q.queue_name = p_queue_name;
$$;

comment on function absurd.get_queue_policy(text) is
  'The policy of a queue, one row; none if there is no such queue. cleanup_ttl and '
  'cleanup_limit are what cleanup goes by, the rest is only kept.';

-- Raise that a policy has a bad value.
create or replace function absurd._refuse_policy(p_key text, p_value text, p_wanted text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception '% must be %', p_key, p_wanted
    using
      errcode = 'P0001',
      detail = format('Found: %s.', left(p_value, 200)),
      hint = 'The policy stays as it was.';
end;
$$;

-- Refuse a policy that cannot be, for a queue of this storage mode.
create or replace function absurd._check_policy(p_policy jsonb, p_storage_mode text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key   text;
  v_value text;
begin
  for v_key, v_value in
    select p.key, p.value
    from jsonb_each_text(p_policy) as p
  loop
    case v_key
      when 'partition_lookahead', 'partition_lookback', 'cleanup_ttl', 'detach_min_age' then
        if v_value::interval < interval '0' then
          perform absurd._refuse_policy(v_key, v_value, 'zero or a positive interval');
        end if;
      when 'cleanup_limit' then
        if v_value::integer < 1 then
          perform absurd._refuse_policy(v_key, v_value, 'at least 1');
        end if;
      when 'detach_mode' then
        if lower(btrim(coalesce(v_value, ''))) not in ('none', 'empty') then
          perform absurd._refuse_policy(v_key, v_value, 'none or empty');
        end if;
      when 'default_partition' then
        if p_storage_mode <> 'partitioned' then
          perform absurd._refuse_policy(v_key, v_value, 'left out: the queue is unpartitioned');
        elsif lower(btrim(coalesce(v_value, ''))) not in ('enabled', 'disabled') then
          perform absurd._refuse_policy(v_key, v_value, 'enabled or disabled');
        end if;
      else
        perform absurd._refuse_policy(v_key, v_value, 'left out: no policy has such a key');
    end case;
  end loop;
end;
$$;

-- Change a queue's policy.
create or replace function absurd.set_queue_policy(p_queue_name text, p_policy jsonb)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := coalesce(p_policy, '{}');
  v_name   text;
  v_queue  absurd._queues;
begin
  perform absurd.validate_queue_name(p_queue_name);
  if jsonb_typeof(v_policy) <> 'object' then
    perform absurd._refuse_policy('queue policy', v_policy::text, 'a JSON object');
  end if;
  v_name := absurd._queue(p_queue_name, 'P0001');
  select q.* into v_queue
  from absurd._queues as q
  where q.queue_name = p_queue_name
  for no key update;
  perform absurd._check_policy(v_policy, v_queue.storage_mode);

  update absurd._queues as q
  set
    partition_lookahead = coalesce(
      (v_policy ->> 'partition_lookahead')::interval, q.partition_lookahead
    ),
    partition_lookback = coalesce(
      (v_policy ->> 'partition_lookback')::interval, q.partition_lookback
    ),
    cleanup_ttl = coalesce((v_policy ->> 'cleanup_ttl')::interval, q.cleanup_ttl),
    cleanup_limit = coalesce((v_policy ->> 'cleanup_limit')::integer, q.cleanup_limit),
    detach_mode = coalesce(lower(btrim(v_policy ->> 'detach_mode')), q.detach_mode),
    detach_min_age = coalesce((v_policy ->> 'detach_min_age')::interval, q.detach_min_age),
    default_partition = coalesce(
      lower(btrim(v_policy ->> 'default_partition')), q.default_partition
    )
  where q.queue_name = p_queue_name
  returning q.* into v_queue;

  perform teguh.create_queue(v_name, absurd._teguh_policy(v_queue));
end;
$$;

comment on function absurd.set_queue_policy(text, jsonb) is
  'Changes the keys given of a queue''s policy: cleanup_ttl, partition_lookahead, '
  'partition_lookback, detach_min_age (intervals as text), cleanup_limit, detach_mode '
  '(none, empty), default_partition (enabled, disabled). Raises P0001 for an unknown '
  'queue or key, or a bad value.';

-- Turn the options of a spawn into teguh's.  Keys that absurd does not know are
-- passed over, as there, but for teguh's two that delay a start.
create or replace function absurd._spawn_options(p_options jsonb)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_attempts integer := (p_options ->> 'max_attempts')::integer;
begin
  if v_attempts < 1 then
    raise exception 'max_attempts must be at least 1'
      using
        errcode = 'P0001',
        detail = format('Found: %s.', v_attempts),
        hint = 'Leave it out for no limit.';
  end if;

  return jsonb_build_object(
      'headers', p_options -> 'headers',
      'retry_strategy', absurd._to_strategy(p_options -> 'retry_strategy'),
      'max_attempts', v_attempts,
      'cancellation', absurd._to_cancellation(p_options -> 'cancellation'),
      'idempotency_key', p_options ->> 'idempotency_key',
      'idempotency_mismatch', 'return'
    )
    || jsonb_strip_nulls(jsonb_build_object(
      'available_at', p_options -> 'available_at',
      'delay_seconds', p_options -> 'delay_seconds'
    ));
end;
$$;

-- Spawn a task.
create or replace function absurd.spawn_task(
  p_queue_name text,
  p_task_name  text,
  p_params     jsonb,
  p_options    jsonb default '{}'
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := absurd._queue(p_queue_name);
begin
  perform absurd._check_name('task_name', p_task_name);
  return query
  select s.task_id, s.run_id, absurd._attempt(s.run_id), s.created
  from teguh.spawn_task(
    v_name, p_task_name, p_params, absurd._spawn_options(p_options)
  ) as s;
end;
$$;

comment on function absurd.spawn_task(text, text, jsonb, jsonb) is
  'Spawns a task. Options: headers, retry_strategy, max_attempts, cancellation, '
  'idempotency_key as in absurd; and available_at or delay_seconds, as in teguh. Without a '
  'retry strategy a failed run is followed by another at once. created is false when '
  'the key was in use and the existing task is returned. Raises 42P01 for an unknown '
  'queue, AB003 for a bad retry strategy, P0001 or TG005 for other bad options.';

-- Tick when nobody has for ten seconds.  Absurd's workers know of no ticker, and without
-- one teguh's dispatch tables would not be truncated.  Several workers may do so at once.
create or replace function absurd._tick()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now  bigint := teguh._micros(clock_timestamp());
  v_last bigint := pg_sequence_last_value('teguh._ticked'::regclass);
begin
  if v_last is null or v_now - v_last not between 0 and 10000000 then
    perform teguh.ticker();
  end if;
end;
$$;

-- Claim runs.
create or replace function absurd.claim_task(
  p_queue_name    text,
  p_worker_id     text,
  p_claim_timeout integer default 30,
  p_qty           integer default 1
)
  returns table(
    run_id         uuid,
    task_id        uuid,
    attempt        integer,
    task_name      text,
    params         jsonb,
    retry_strategy jsonb,
    max_attempts   integer,
    headers        jsonb,
    wake_event     text,
    event_payload  jsonb
  )
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_name     text := absurd._queue(p_queue_name);
  v_task_ids uuid[];
  v_claims   integer;
begin
  perform absurd._tick();
  for
    run_id, task_id, attempt, task_name, params, retry_strategy, max_attempts, headers,
    wake_event, event_payload, v_claims
  in
    select
      c.run_id, c.task_id, absurd._attempt(c.run_id), c.task_name, c.params,
      absurd._from_strategy(c.retry_strategy), c.max_attempts, c.headers,
      case when c.event_payload is null then c.wake_event end, c.event_payload, c.attempt
    from teguh.claim_task(v_name, p_worker_id, coalesce(p_claim_timeout, 30), p_qty) as c
  loop
    if v_claims > 1 and wake_event is null then
      v_task_ids := v_task_ids || task_id;
    end if;
    return next;
  end loop;

  if v_task_ids is not null then
    execute 'select absurd._forget_' || v_name || '($1)' using v_task_ids;
  end if;
end;
$$;

comment on function absurd.claim_task(text, text, integer, integer) is
  'Hands up to p_qty due runs to a worker, under a lease of p_claim_timeout seconds '
  '(zero or less: without end). attempt is the run''s number; wake_event is set only when '
  'the wait for it timed out, and event_payload when the event came. Raises 42P01 for '
  'an unknown queue, 25001 unless the transaction is READ COMMITTED.';

-- Complete a run.
create or replace function absurd.complete_run(
  p_queue_name text,
  p_run_id     uuid,
  p_state      jsonb default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run absurd._run := absurd._find_run(p_queue_name, p_run_id);
begin
  case v_run.state
    when 'running' then
      perform teguh.complete_run(v_run.teguh_name, p_run_id, p_state);
    when 'cancelled' then
      perform absurd._refuse_cancelled(v_run);
    when 'failed' then
      perform absurd._refuse_failed(v_run);
    else
      perform absurd._refuse_state(v_run, 'running');
  end case;
end;
$$;

comment on function absurd.complete_run(text, uuid, jsonb) is
  'Ends a run with success. Raises 42P01 for an unknown queue, AB001 if the run was '
  'cancelled, AB002 if it has failed, P0001 if there is none or it is not running.';

-- Let a run sleep.
create or replace function absurd.schedule_run(
  p_queue_name text,
  p_run_id     uuid,
  p_wake_at    timestamptz
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run absurd._run := absurd._find_run(p_queue_name, p_run_id);
begin
  if v_run.state <> 'running' then
    perform absurd._refuse_state(v_run, 'running');
  end if;

  perform teguh.schedule_run(v_run.teguh_name, p_run_id, p_wake_at);
end;
$$;

comment on function absurd.schedule_run(text, uuid, timestamptz) is
  'Lets a run sleep until p_wake_at; it keeps its id and its attempt. Raises 42P01 for '
  'an unknown queue, P0001 if there is no such run or it is not running, 22004 for a null time.';

-- Fail a run.
create or replace function absurd.fail_run(
  p_queue_name text,
  p_run_id     uuid,
  p_reason     jsonb,
  p_retry_at   timestamptz default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run      absurd._run := absurd._find_run(p_queue_name, p_run_id);
  v_retry_at timestamptz := case
    when p_retry_at is not null then greatest(p_retry_at, absurd.current_time())
  end;
begin
  case v_run.state
    when 'running' then
      perform teguh.fail_run(v_run.teguh_name, p_run_id, p_reason, v_retry_at);
    when 'sleeping' then
      execute 'select absurd._fail_' || v_run.teguh_name || '($1, $2, $3)'
      using p_run_id, p_reason, v_retry_at;
    when 'cancelled' then
      perform absurd._refuse_cancelled(v_run);
    when 'failed' then
      perform absurd._refuse_failed(v_run);
    else
      perform absurd._refuse_state(v_run, 'running or sleeping');
  end case;
end;
$$;

comment on function absurd.fail_run(text, uuid, jsonb, timestamptz) is
  'Ends a running or sleeping run with failure. While attempts are left another run '
  'follows, at p_retry_at or after the delay of the retry strategy, but a task that would '
  'be past its max_duration by then is cancelled. Raises 42P01 for an unknown queue, AB001 '
  'if the run was cancelled, AB002 if it has failed, P0001 if there is none or it is '
  'neither running nor sleeping.';

-- Run a failed task once more.
create or replace function absurd.retry_task(
  p_queue_name text,
  p_task_id    uuid,
  p_options    jsonb default '{}'
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_new  boolean := coalesce((p_options ->> 'spawn_new')::boolean, false);
  v_most integer := (p_options ->> 'max_attempts')::integer;
  v_run  absurd._run := absurd._last_run(p_queue_name, p_task_id);
begin
  if v_run.task_state <> 'failed' then
    raise exception 'task "%" is not failed', p_task_id
      using
        errcode = 'P0001',
        detail = format('It is %s.', v_run.task_state),
        hint = 'Only a task that has failed can be retried.';
  end if;

  if not v_new then
    v_most := coalesce(v_most, greatest(v_run.max_attempts, v_run.attempt) + 1);
  end if;
  if v_most < 1 or (v_most <= v_run.attempt and not v_new) then
    raise exception 'max_attempts % is too low', v_most
      using
        errcode = 'P0001',
        detail = format('The task has had %s attempts.', v_run.attempt),
        hint = format('Give at least %s.', v_run.attempt + 1);
  end if;

  return query
  select r.task_id, r.run_id, absurd._attempt(r.run_id), r.created
  from teguh.retry_task(
    v_run.teguh_name,
    v_run.task_id,
    jsonb_build_object('spawn_new', v_new, 'max_attempts', v_most)
  ) as r;
end;
$$;

comment on function absurd.retry_task(text, uuid, jsonb) is
  'Runs a failed task once more. Options: max_attempts (default: one more), spawn_new '
  '(true: spawn another task of the same name, params and options, without the '
  'idempotency key). Raises 42P01 for an unknown queue, P0001 if the task does not exist '
  'or has not failed, or for a bad option.';

-- Cancel a task.
create or replace function absurd.cancel_task(p_queue_name text, p_task_id uuid)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run absurd._run := absurd._last_run(p_queue_name, p_task_id);
begin
  perform teguh.cancel_task(v_run.teguh_name, v_run.task_id);
end;
$$;

comment on function absurd.cancel_task(text, uuid) is
  'Cancels a task; one that is over stays as it is. Raises 42P01 for an unknown queue, '
  'P0001 for an unknown task.';

-- A task's state and result.
create or replace function absurd.get_task_result(p_queue_name text, p_task_id uuid)
  returns table(task_id uuid, state text, result jsonb, failure_reason jsonb)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute absurd._call('show', p_queue_name, 1) using absurd._task_id(p_task_id);
end;
$$;

comment on function absurd.get_task_result(text, uuid) is
  'The state of a task, its result if it is completed, and why its last run failed if it '
  'is failed; no row for an unknown task. Raises 42P01 for an unknown queue.';

-- Store a checkpoint.
create or replace function absurd.set_task_checkpoint_state(
  p_queue_name      text,
  p_task_id         uuid,
  p_step_name       text,
  p_state           jsonb,
  p_owner_run       uuid,
  p_extend_claim_by integer default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_id uuid := absurd._task_id(p_task_id);
  v_run     absurd._run;
begin
  perform absurd._check_name('step_name', p_step_name);
  v_run := absurd._find_run(p_queue_name, p_owner_run);
  if v_run.task_id is distinct from v_task_id then
    perform absurd._refuse_owner(p_queue_name, v_run, v_task_id);
  elsif v_run.task_state = 'cancelled' then
    perform absurd._refuse_cancelled(v_run);
  elsif v_run.state = 'failed' then
    perform absurd._refuse_failed(v_run);
  elsif v_run.state = 'running' then
    perform teguh.set_task_checkpoint_state(
      v_run.teguh_name, v_task_id, p_step_name, p_state, p_owner_run,
      case
        when p_extend_claim_by > 0 and v_run.lease_expires_at is not null then p_extend_claim_by
      end
    );
  else
    execute 'select absurd._mark_' || v_run.teguh_name || '($1, $2, $3, $4)'
    using v_task_id, p_step_name, p_state, p_owner_run;
  end if;
end;
$$;

comment on function absurd.set_task_checkpoint_state(text, uuid, text, jsonb, uuid, integer) is
  'Stores the state of a step. p_extend_claim_by also sets the end of the lease, if the '
  'run has one, to that many seconds from now; zero, less or null leaves it. Raises 42P01 '
  'for an unknown queue, AB001 if the task is cancelled, AB002 if the run has failed, '
  'P0001 for an unknown run, one of another task, or a blank name.';

-- Extend a lease: the heartbeat.
create or replace function absurd.extend_claim(
  p_queue_name text,
  p_run_id     uuid,
  p_extend_by  integer
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run absurd._run;
begin
  if p_extend_by is null or p_extend_by <= 0 then
    raise exception 'extend_by must be positive'
      using
        errcode = 'P0001',
        detail = format('Found: %s.', coalesce(p_extend_by::text, 'null')),
        hint = 'It is the number of seconds from now to the end of the lease.';
  end if;

  v_run := absurd._find_run(p_queue_name, p_run_id);
  if v_run.task_state = 'cancelled' then
    perform absurd._refuse_cancelled(v_run);
  elsif v_run.state = 'failed' then
    perform absurd._refuse_failed(v_run);
  elsif v_run.state <> 'running' then
    perform absurd._refuse_state(v_run, 'running');
  elsif v_run.lease_expires_at is null then
    perform absurd._refuse_state(v_run, 'under a lease');
  end if;

  perform teguh.extend_claim(v_run.teguh_name, p_run_id, p_extend_by);
end;
$$;

comment on function absurd.extend_claim(text, uuid, integer) is
  'Sets the end of a run''s lease to p_extend_by seconds from now. Raises 42P01 for an '
  'unknown queue, AB001 if the task is cancelled, AB002 if the run has failed, P0001 if '
  'there is none, it is not running or has no lease, or p_extend_by is not positive.';

-- Read one checkpoint.
create or replace function absurd.get_task_checkpoint_state(
  p_queue_name      text,
  p_task_id         uuid,
  p_step_name       text,
  p_include_pending boolean default false
)
  returns table(
    checkpoint_name text,
    state           jsonb,
    status          text,
    owner_run_id    uuid,
    updated_at      timestamptz
  )
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute absurd._call('read', p_queue_name, 3)
  using absurd._task_id(p_task_id), p_step_name, coalesce(p_include_pending, false);
end;
$$;

comment on function absurd.get_task_checkpoint_state(text, uuid, text, boolean) is
  'One checkpoint of a task, no row if there is none. p_include_pending also shows one '
  'that is not committed: of a wait that timed out. Raises 42P01 for an unknown queue.';

-- List the checkpoints of a task.
create or replace function absurd.get_task_checkpoint_states(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid
)
  returns table(
    checkpoint_name text,
    state           jsonb,
    status          text,
    owner_run_id    uuid,
    updated_at      timestamptz
  )
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_run absurd._run := absurd._find_run(p_queue_name, p_run_id);
begin
  if v_run.task_id is distinct from absurd._task_id(p_task_id) then
    perform absurd._refuse_owner(p_queue_name, v_run, p_task_id);
  end if;

  return query
  select c.checkpoint_name, c.state, c.status, c.owner_run_id, c.updated_at
  from teguh.get_task_checkpoint_states(
    v_run.teguh_name, v_run.task_id, p_run_id
  ) as c
  where c.status = 'committed';
end;
$$;

comment on function absurd.get_task_checkpoint_states(text, uuid, uuid) is
  'The checkpoints that a run may see: its own and those of earlier attempts, oldest '
  'first. Raises 42P01 for an unknown queue, P0001 for an unknown run or one of another task.';

-- Wait for an event, or learn how the wait ended.
--
-- A timeout of nothing suspends all the same.  A wait that timed out ends so once; had
-- the event come in the meantime, it counts.
create or replace function absurd.await_event(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_event_name text,
  p_timeout    integer default null
)
  returns table(should_suspend boolean, payload jsonb)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name      text := absurd._queue(p_queue_name);
  v_task_id   uuid := absurd._task_id(p_task_id);
  v_timeout   double precision := case when p_timeout = 0 then 1e-6 else p_timeout end;
  v_timed_out boolean;
  v_emitted   boolean;
  v_run       absurd._run;
begin
  perform absurd._check_name('event_name', p_event_name);
  if p_timeout < 0 then
    raise exception 'timeout must not be negative'
      using
        errcode = 'P0001',
        detail = format('Found: %s.', p_timeout),
        hint = 'Leave it out to wait for ever.';
  end if;

  select false, c.state into should_suspend, payload
  from absurd.get_task_checkpoint_state(p_queue_name, v_task_id, p_step_name) as c;
  if not found then
    v_run := absurd._find_run(p_queue_name, p_run_id);
    if v_run.task_state = 'cancelled' then
      perform absurd._refuse_cancelled(v_run);
    elsif v_run.state <> 'running' then
      perform absurd._refuse_state(v_run, 'running');
    end if;

    loop
      select a.should_suspend, a.payload, a.timed_out into should_suspend, payload, v_timed_out
      from teguh.await_event(
        v_name, v_task_id, p_run_id, p_step_name, p_event_name, v_timeout
      ) as a;
      exit when not v_timed_out;
      execute 'select absurd._again_' || v_name || '($1, $2, $3)' into v_emitted
      using v_task_id, p_step_name, p_event_name;
      exit when not v_emitted;
    end loop;
  end if;
  return next;
end;
$$;

comment on function absurd.await_event(text, uuid, uuid, text, text, integer) is
  'Waits for an event in a step of a run. should_suspend: the run now sleeps until the '
  'event is emitted or p_timeout seconds (null: for ever) have passed. Otherwise the wait '
  'is over, with the payload, or SQL null if it timed out. Raises 42P01 for an unknown '
  'queue, AB001 if the task is cancelled, P0001 if there is no such run or it is not '
  'running, or for a bad name or timeout, 25001 unless the transaction is READ COMMITTED.';

-- Emit an event.
create or replace function absurd.emit_event(
  p_queue_name text,
  p_event_name text,
  p_payload    jsonb default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd._check_name('event_name', p_event_name);
  perform teguh.emit_event(absurd._queue(p_queue_name), p_event_name, p_payload);
end;
$$;

comment on function absurd.emit_event(text, text, jsonb) is
  'Emits an event: tasks that wait for it become claimable. The first emit of a name '
  'counts. Raises 42P01 for an unknown queue, P0001 for a blank name, 25001 unless the '
  'transaction is READ COMMITTED.';

-- Refuse a ttl that is no number of seconds.
create or replace function absurd._check_ttl(p_ttl_seconds integer)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_ttl_seconds is null or p_ttl_seconds < 0 then
    raise exception 'ttl must not be negative'
      using
        errcode = 'P0001',
        detail = format('Found: %s.', coalesce(p_ttl_seconds::text, 'null')),
        hint = 'It is the number of seconds that old rows are kept.';
  end if;
end;
$$;

-- Remove old tasks.
create or replace function absurd.cleanup_tasks(
  p_queue_name  text,
  p_ttl_seconds integer,
  p_limit       integer default 1000
)
  returns integer
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd._check_ttl(p_ttl_seconds);
  if p_limit = 0 then
    return 0;
  end if;

  return teguh.cleanup_tasks(
    absurd._queue(p_queue_name), p_ttl_seconds, coalesce(p_limit, 2147483647)
  );
end;
$$;

comment on function absurd.cleanup_tasks(text, integer, integer) is
  'Removes up to p_limit tasks (null: all) that have been over for p_ttl_seconds, and '
  'returns how many. Raises 42P01 for an unknown queue, P0001 for a bad ttl, TG005 for a '
  'negative limit.';

-- Remove old events.
create or replace function absurd.cleanup_events(
  p_queue_name  text,
  p_ttl_seconds integer,
  p_limit       integer default 1000
)
  returns integer
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd._check_ttl(p_ttl_seconds);
  if p_limit = 0 then
    return 0;
  end if;

  return teguh.cleanup_events(
    absurd._queue(p_queue_name), p_ttl_seconds, coalesce(p_limit, 2147483647)
  );
end;
$$;

comment on function absurd.cleanup_events(text, integer, integer) is
  'Removes up to p_limit events (null: all) emitted p_ttl_seconds ago or earlier, but '
  'none that a task waits for, and returns how many. Raises 42P01 for an unknown queue, '
  'P0001 for a bad ttl, TG005 for a negative limit.';

-- Remove old tasks and events of one queue or of all.
create or replace function absurd.cleanup_all_queues(p_queue_name text default null)
  returns table(queue_name text, tasks_deleted integer, events_deleted integer)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
begin
  perform absurd._set_clock();
  perform absurd._check_queue(p_queue_name);

  for queue_name, v_name in
    select q.queue_name, q.teguh_name
    from absurd._queues as q
    where p_queue_name is null or q.queue_name = p_queue_name
    order by q.queue_name
  loop
    select c.tasks_deleted, c.events_deleted into tasks_deleted, events_deleted
    from teguh.cleanup_all_queues(v_name) as c;
    return next;
  end loop;
end;
$$;

comment on function absurd.cleanup_all_queues(text) is
  'Removes old tasks and events of a queue (null: of every queue) as its policy says, '
  'one batch each, and returns the counts. Raises P0001 for an unknown queue.';

-- A new version 7 uuid.
create or replace function absurd.portable_uuidv7()
  returns uuid
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh.portable_uuidv7();
end;
$$;

comment on function absurd.portable_uuidv7() is
  'A new version 7 uuid.';

-- The time inside a version 7 uuid.
create or replace function absurd.uuidv7_timestamp(p_id uuid)
  returns timestamptz
  language plpgsql
  immutable
  strict
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh.uuidv7_timestamp(p_id);
end;
$$;

comment on function absurd.uuidv7_timestamp(uuid) is
  'The time at which a version 7 uuid was made; null for other uuids.';

-- The least version 7 uuid of a millisecond.
create or replace function absurd.uuidv7_floor(p_ts timestamptz)
  returns uuid
  language plpgsql
  immutable
  strict
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_millis double precision := floor(date_part('epoch', p_ts) * 1000);
begin
  if v_millis not between 0 and 281474976710655 then
    raise exception 'no version 7 uuid has the time %', p_ts
      using
        errcode = 'P0001',
        detail = 'They count the milliseconds since 1970 in 48 bits.',
        hint = 'Use a time from 1970 to 10889.';
  end if;

  return teguh._first_uuid(p_ts);
end;
$$;

comment on function absurd.uuidv7_floor(timestamptz) is
  'The least version 7 uuid of a time. Raises P0001 outside of the years 1970 to 10889.';

-- The beginning of a week.
create or replace function absurd.week_bucket_utc(p_ts timestamptz)
  returns timestamptz
  language sql
  immutable
  strict
  set search_path = pg_catalog, pg_temp
as $$
  select date_trunc('week', p_ts at time zone 'UTC') at time zone 'UTC';
$$;

comment on function absurd.week_bucket_utc(timestamptz) is
  'The Monday, midnight UTC, that begins the week of a time.';

-- The short name of a week.
create or replace function absurd.partition_week_tag(p_ts timestamptz)
  returns text
  language sql
  immutable
  strict
  set search_path = pg_catalog, pg_temp
as $$
  select right(to_char(p_ts at time zone 'UTC', 'IYYYIW'), 3);
$$;

comment on function absurd.partition_week_tag(timestamptz) is
  'The last digit of the ISO year of a time and the two of its ISO week, in UTC.';

-- Say that there are no partitions.
create or replace function absurd.ensure_partitions(p_queue_name text default null)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd._check_queue(p_queue_name);

  raise notice 'teguh needs no partitions: nothing to do';
end;
$$;

comment on function absurd.ensure_partitions(text) is
  'Does nothing but say so: teguh''s tables need no partitions. Raises P0001 for an '
  'unknown queue.';

-- The partitions that could be detached: none.
create or replace function absurd.list_detach_candidates(p_queue_name text default null)
  returns table(queue_name text, parent_table text, partition_table text)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd.ensure_partitions(p_queue_name);
end;
$$;

comment on function absurd.list_detach_candidates(text) is
  'No rows: there are no partitions. Raises P0001 for an unknown queue.';

-- Drop a partition: there is none.  A job that was to do it is unscheduled.
create or replace function absurd.drop_detached_partition(
  p_partition_table     text,
  p_unschedule_job_name text default null
)
  returns boolean
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd._check_name('partition table', p_partition_table);
  perform absurd.ensure_partitions();
  if p_unschedule_job_name ~ '^absurd_(drop|detach)_run_' and teguh._has_cron() then
    perform cron.unschedule(j.jobid)
    from cron.job as j
    where j.jobname = p_unschedule_job_name
      and j.database = current_database();
  end if;

  return false;
end;
$$;

comment on function absurd.drop_detached_partition(text, text) is
  'False: there are no partitions. Unschedules the job of that name, if it is one of '
  'absurd''s. Raises P0001 for a blank partition.';

-- Schedule the detaching of partitions: there are none.
create or replace function absurd.schedule_detach_jobs(p_queue_name text default null)
  returns table(
    job_name        text,
    job_id          bigint,
    queue_name      text,
    partition_table text,
    job_kind        text
  )
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd.ensure_partitions(p_queue_name);
end;
$$;

comment on function absurd.schedule_detach_jobs(text) is
  'No rows, and no jobs: there are no partitions. Raises P0001 for an unknown queue.';

-- Refuse to go on without pg_cron.
create or replace function absurd._check_cron()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not teguh._has_cron() then
    raise exception 'pg_cron is not available'
      using
        errcode = 'P0001',
        detail = 'The extension is not in this database.',
        hint = 'Call absurd.cleanup_all_queues() and teguh.ticker() from somewhere else.';
  end if;
end;
$$;

-- The end of the names of a queue's jobs, or of those for all queues.
create or replace function absurd._job_suffix(p_queue_name text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(left(md5(p_queue_name), 12), 'all');
end;
$$;

-- Schedule upkeep.  Cleanup is the one job of absurd's three that has something to do; the
-- ticker is teguh's.
create or replace function absurd.enable_cron(
  p_queue_name         text default null,
  p_partition_schedule text default '5 * * * *',
  p_cleanup_schedule   text default '17 * * * *',
  p_detach_schedule    text default '29 * * * *'
)
  returns table(job_name text, job_id bigint)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd._check_queue(p_queue_name);
  perform absurd._check_name('partition schedule', p_partition_schedule);
  perform absurd._check_name('cleanup schedule', p_cleanup_schedule);
  perform absurd._check_name('detach schedule', p_detach_schedule);
  perform absurd._check_cron();

  perform teguh.start();
  job_name := 'absurd_cleanup_' || absurd._job_suffix(p_queue_name);
  job_id := cron.schedule(
    job_name,
    p_cleanup_schedule,
    format('select * from absurd.cleanup_all_queues(%L)', p_queue_name)
  );
  return next;
end;
$$;

comment on function absurd.enable_cron(text, text, text, text) is
  'Schedules the cleanup of a queue (null: of every queue) by pg_cron, and teguh''s ticker. '
  'The other two schedules are for partitions, and not used. Raises P0001 without '
  'pg_cron, for an unknown queue or a blank schedule.';

-- Unschedule upkeep.
create or replace function absurd.disable_cron(p_queue_name text default null)
  returns table(job_name text, job_id bigint)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is not null then
    perform absurd.validate_queue_name(p_queue_name);
  end if;
  perform absurd._check_cron();

  for job_name, job_id in
    select j.jobname, j.jobid
    from cron.job as j
    where j.database = current_database()
      and j.jobname ~ (
        '^absurd_(partitions|cleanup|detach_plan|detach_run|drop_run)_'
        || absurd._job_suffix(p_queue_name) || '(_|$)'
      )
    order by j.jobname, j.jobid
  loop
    perform cron.unschedule(job_id);
    return next;
  end loop;
end;
$$;

comment on function absurd.disable_cron(text) is
  'Unschedules what enable_cron() scheduled for a queue (null: for all queues), and what '
  'absurd itself had scheduled there, and returns the jobs. Teguh''s ticker goes on. Raises '
  'P0001 without pg_cron.';

-- Create an absurd queue's twin, which must be empty, with its policy.
create or replace function absurd._create_copy(p_queue jsonb)
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := p_queue ->> 'queue_name';
  v_mode       text := coalesce(p_queue ->> 'storage_mode', 'unpartitioned');
  v_policy     jsonb := p_queue - '{queue_name,created_at,storage_mode}'::text[];
  v_name       text;
  v_busy       boolean;
begin
  perform absurd.create_queue(v_queue_name, v_mode);
  v_name := absurd._queue(v_queue_name);
  execute format('select exists (select from teguh.%I)', 't_' || v_name) into v_busy;
  if v_busy then
    raise exception 'queue "%" has tasks already', v_queue_name
      using
        errcode = 'P0001',
        detail = 'Tasks are copied into an empty queue only.',
        hint = format('Drop it first: select absurd.drop_queue(%L);', v_queue_name);
  end if;

  if v_mode = 'unpartitioned' then
    v_policy := v_policy - 'default_partition';
  end if;
  perform absurd.set_queue_policy(v_queue_name, v_policy);
  update absurd._queues as q
  set created_at = (p_queue ->> 'created_at')::timestamptz
  where q.queue_name = v_queue_name;

  return v_name;
end;
$$;

-- Copy everything from the schema of an absurd installation.  Its tables are locked
-- against writes, and shown under fixed names to the functions of each queue.
create or replace function absurd.copy_from_schema(p_schema text)
  returns table(
    queue_name  text,
    tasks       bigint,
    runs        bigint,
    checkpoints bigint,
    events      bigint,
    waits       bigint
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue  jsonb;
  v_name   text;
  v_letter text;
  v_table  text;
begin
  if p_schema = 'absurd' or to_regclass(format('%I.queues', p_schema)) is null then
    raise exception 'schema "%" is no absurd installation to copy from', p_schema
      using
        errcode = 'P0001',
        detail = 'It must have a table "queues", and another name than this schema has.',
        hint = 'Rename absurd''s schema before this one is installed.';
  end if;

  for v_queue in
    execute format('select to_jsonb(q) from %I.queues as q order by q.queue_name', p_schema)
  loop
    queue_name := v_queue ->> 'queue_name';
    v_name := absurd._create_copy(v_queue);
    foreach v_letter in array array['t', 'r', 'c', 'e', 'w'] loop
      v_table := format('%I.%I', p_schema, v_letter || '_' || queue_name);
      execute format('lock table %s in share mode', v_table);
      execute format('create temp view absurd_%s as select * from %s', v_letter, v_table);
    end loop;

    execute format('select absurd._move_%s()', v_name) into tasks;
    execute format('select absurd._past_%s()', v_name) into runs;
    execute format('select absurd._steps_%s()', v_name) into checkpoints;
    execute format('select absurd._events_%s()', v_name) into events;
    execute format('select absurd._waits_%s()', v_name) into waits;
    execute format('select absurd._line_%s()', v_name);
    drop view pg_temp.absurd_t, pg_temp.absurd_r, pg_temp.absurd_c, pg_temp.absurd_e,
      pg_temp.absurd_w;
    runs := runs + tasks;
    return next;
  end loop;
end;
$$;

comment on function absurd.copy_from_schema(text) is
  'Copies queues, policies, tasks, runs, checkpoints, events and waits from a schema in '
  'which absurd 0.5.1 is installed, under another name than absurd, in the caller''s '
  'transaction, and returns what was copied of each queue. The ids of tasks and runs lose '
  'some bits; functions that take a task''s id accept the old one. Raises P0001 if there '
  'is no absurd in that schema, or a queue of that name has tasks here.';

-- Queues that exist get the functions and views of this file.
do $$
declare
  v_queue absurd._queues;
begin
  for v_queue in
    select q.*
    from absurd._queues as q
    order by q.queue_name
  loop
    perform absurd._stamp_queue(v_queue.queue_name, v_queue.teguh_name);
  end loop;
end;
$$;

-- Nothing is for everybody.
do $$
declare
  v_routine regprocedure;
begin
  for v_routine in
    select p.oid
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'absurd'::regnamespace
  loop
    execute pg_catalog.format('revoke all on routine %s from public', v_routine);
  end loop;
end;
$$;

commit;
