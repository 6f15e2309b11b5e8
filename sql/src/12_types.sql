-- The composite types that functions pass to each other.
do $$
begin
  if to_regtype('teguh._gap') is null then
    create type teguh._gap as (
      xid      xid8,
      low_seq  bigint,
      high_seq bigint
    );
  end if;

  if to_regtype('teguh._late') is null then
    create type teguh._late as (
      xid   xid8,
      since timestamptz
    );
  end if;

  if to_regtype('teguh._timer') is null then
    create type teguh._timer as (
      task_id uuid,
      turn    integer
    );
  end if;

  if to_regtype('teguh._tally') is null then
    create type teguh._tally as (
      task_name text,
      was       "char",
      became    "char",
      most      double precision,
      qty       bigint,
      seconds   double precision
    );
  end if;

  if to_regtype('teguh._picked') is null then
    create type teguh._picked as (
      task_ids uuid[],
      turns    integer[],
      names    text[],
      was      "char"[],
      limited  boolean,
      first    teguh._gap,
      woke     bigint
    );
  end if;

  if to_regtype('teguh._spawn') is null then
    create type teguh._spawn as (
      task_name       text,
      params          jsonb,
      headers         jsonb,
      retry_strategy  jsonb,
      max_attempts    integer,
      cancellation    jsonb,
      idempotency_key text,
      return_mismatch boolean,
      available_at    timestamptz,
      tags            text[],
      correlation_id  text,
      parent_task_id  uuid,
      workflow_run_id uuid,
      timeout_seconds double precision,
      expires_at      timestamptz,
      on_expired      jsonb,
      uniqueness      jsonb,
      priority        smallint,
      flow_key        text,
      links           jsonb
    );
  end if;

  if to_regtype('teguh._cron') is null then
    create type teguh._cron as (
      every_seconds bigint,
      seconds       text,
      minutes       text,
      hours         text,
      days          text,
      months        text,
      weekdays      text,
      either_day    boolean,
      goes_on       boolean
    );
  end if;

  if to_regtype('teguh._filter') is null then
    create type teguh._filter as (
      states          text[],
      task_name       text,
      tags            text[],
      correlation_id  text,
      parent_task_id  uuid,
      workflow_run_id uuid,
      created_after   timestamptz,
      created_before  timestamptz,
      claimed_by      text,
      attributes      jsonb
    );
  end if;

  if to_regtype('teguh.job') is null then
    create type teguh.job as (
      queue_name    text,
      task_id       uuid,
      run_id        uuid,
      task_name     text,
      params        jsonb,
      headers       jsonb,
      attempt       integer,
      failures      integer,
      wake_event    text,
      event_payload jsonb,
      steps         jsonb
    );
  end if;

  if to_regtype('teguh._shift') is null then
    create type teguh._shift as (
      worker_id     text,
      batch         integer,
      lease         double precision,
      known_only    boolean,
      unknown_delay double precision,
      poll_seconds  double precision,
      until         timestamptz,
      ticks_at      timestamptz,
      left_to_claim integer,
      pause         double precision
    );
  end if;
end;
$$;

comment on type teguh._gap is
  'A stretch of one transaction''s ready rows, both ends included, that the scan '
  'position has left behind and claims still look at.';
comment on type teguh._late is
  'A transaction that was open when the timer position moved, and the position '
  'from which its rows may still turn up.';
comment on type teguh._timer is
  'A timer that has come due: a task and the turn it was set for.';
comment on type teguh._picked is
  'What a claim took: tasks, their turns, names and where they stood; whether one of them has '
  'a timer of its own; the place of the first one past the scan position, the most of their '
  'woke.';
comment on type teguh._tally is
  'How many tasks of a name changed so: where they stood and stand (see teguh._letter). If '
  'their runs ended, they took at most so many seconds each, so many all together; else 0.';
comment on type teguh._spawn is
  'One task to spawn, its options checked.';
comment on type teguh._cron is
  'A schedule that was read: a number of seconds, or fields as strings of 0 and 1 from the '
  'value 0 on. either_day: one of day of month and day of week is enough. goes_on: it goes by '
  'the time that passes, not by places on the clock.';
comment on type teguh._filter is
  'Which tasks are meant; what is null does not matter.';
comment on type teguh.job is
  'What the handler of a task is given: the task and its run, as claim_task() returns them. steps '
  'is for step() and its like to read: what each step has given, in an array that is empty if '
  'its wait timed out.';
comment on type teguh._shift is
  'A call of work(): its options; when it ticks next; how many runs it may still claim; how many '
  'seconds it is to pause, null when it is to end.';
