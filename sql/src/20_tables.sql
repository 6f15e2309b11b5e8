-- Queues and the policy of each.
create table if not exists teguh.queues (
  queue_name   text        not null,
  policy       jsonb       not null default '{}',
  created_at   timestamptz not null,
  built_for    bigint,
  paused_until timestamptz,
  ruled        boolean     not null default false,
  buckets      float8[] not null default '{0.005,0.01,0.05,0.1,0.5,1,5,10,30,60,300,1800}',
  constraint queues_pkey primary key (queue_name)
);

comment on table teguh.queues is
  'One row per queue. A queue''s own tables are named after it: t_<queue> and so on.';
comment on column teguh.queues.policy is
  'Settings given to create_queue(): notify, cleanup_ttl, cleanup_limit, '
  'default_max_attempts, default_retry_strategy, default_timeout, default_ttl, '
  'duration_buckets, max_pending, on_full, max_messages, history, namespace.';

comment on column teguh.queues.built_for is
  'The database and table that the queue''s dispatch was built for, as a hash. Another '
  'one tells that the queue was restored from a dump.';

comment on column teguh.queues.buckets is
  'Bounds of the buckets in which the durations of runs are counted, in seconds, ascending.';

comment on column teguh.queues.ruled is
  'Whether claims go by lanes: the queue has a limit, a task with a priority, or workers that '
  'say which tasks they know. It stays so.';

comment on column teguh.queues.paused_until is
  'Until when claims return nothing; null unless it was paused.';

-- Who may do what.
create table if not exists teguh.grants (
  grantee    regrole not null,
  access     text    not null,
  queue_name text    not null,
  constraint grants_pkey primary key (grantee, access, queue_name)
);

comment on table teguh.grants is
  'Rights given by grant_access(): kept so that they can be given again for a new queue '
  'or a new function.';
comment on column teguh.grants.queue_name is
  'The queue the right is for; * for every queue, also those to come.';

-- Limits on what runs.
create table if not exists teguh.limits (
  queue_name     text    not null,
  scope          text    not null,
  name           text    not null,
  max_running    integer,
  rate           integer,
  period_seconds double precision,
  fifo           boolean not null default false,
  fair           boolean not null default false,
  set_at         timestamptz,
  constraint limits_pkey primary key (queue_name, scope, name)
);

comment on table teguh.limits is
  'Limits set by set_limit().';
comment on column teguh.limits.queue_name is
  'The queue the limit is for; * for all of them together.';
comment on column teguh.limits.name is
  'The task name or key, * for each that has no limit of its own; empty for a whole queue.';

-- Pauses of a part of a queue.
create table if not exists teguh.pauses (
  queue_name   text        not null,
  scope        text        not null,
  name         text        not null,
  paused_until timestamptz not null,
  constraint pauses_pkey primary key (queue_name, scope, name)
);

comment on table teguh.pauses is
  'Task names and keys (scope task, key) of which claims return nothing until then.';

-- When tasks were started that count against a rate.
create table if not exists teguh.starts (
  queue_name text        not null,
  scope      text        not null,
  name       text        not null,
  started_at timestamptz not null,
  qty        integer     not null
);

create index if not exists starts_lookup
  on teguh.starts (queue_name, scope, name, started_at);

comment on table teguh.starts is
  'How many tasks were started when, for limits with a rate. Deleted when the period is over.';

-- The task names that workers ask for.
create table if not exists teguh.wanted (
  queue_name text        not null,
  task_name  text        not null,
  seen_at    timestamptz not null,
  constraint wanted_pkey primary key (queue_name, task_name)
);

comment on table teguh.wanted is
  'The task names that workers which say what they know have asked for, and when last, to a '
  'minute.';

-- Schedules.
create table if not exists teguh.schedules (
  schedule_name   text             not null,
  queue_name      text             not null,
  task_name       text             not null,
  schedule        text             not null,
  timezone        text             not null default 'UTC',
  params          jsonb            not null default 'null',
  task_options    jsonb            not null default '{}',
  catch_up        text             not null default 'one',
  overlap         text             not null default 'allow',
  jitter_seconds  double precision not null default 0,
  starts_at       timestamptz,
  ends_at         timestamptz,
  created_at      timestamptz      not null,
  paused_at       timestamptz,
  planned_at      timestamptz,
  next_at         timestamptz,
  last_planned_at timestamptz,
  last_fired_at   timestamptz,
  last_skipped_at timestamptz,
  last_task_id    uuid,
  last_error      text,
  open_task_ids   uuid[]           not null default '{}',
  constraint schedules_pkey primary key (schedule_name)
);

create index if not exists schedules_due
  on teguh.schedules (queue_name, next_at)
  where next_at is not null;

comment on table teguh.schedules is
  'Schedules set by create_schedule(): what is spawned when, and when that was last done.';
comment on column teguh.schedules.planned_at is
  'The next time it is to fire; null while it is paused, and when there is none any more.';
comment on column teguh.schedules.next_at is
  'When it is looked at next: at that time, or later if firing then was tried and failed.';
comment on column teguh.schedules.last_skipped_at is
  'The last planned time at which nothing was spawned: missed, or the task before was not over.';
comment on column teguh.schedules.last_error is
  'Why the last try to fire failed; null when it did not.';
comment on column teguh.schedules.open_task_ids is
  'With overlap skip: tasks it spawned before the last that may not be over yet.';

-- Workflow runs.
create table if not exists teguh.workflow_runs (
  workflow_run_id uuid        not null,
  name            text        not null,
  version         text,
  inputs          jsonb,
  tags            text[],
  created_by      text,
  idempotency_key text,
  created_at      timestamptz not null,
  kept_at         timestamptz not null,
  constraint workflow_runs_pkey primary key (workflow_run_id)
);

create unique index if not exists workflow_runs_once
  on teguh.workflow_runs (idempotency_key)
  where idempotency_key is not null;
create index if not exists workflow_runs_name
  on teguh.workflow_runs (name collate "C", workflow_run_id);
create index if not exists workflow_runs_kept
  on teguh.workflow_runs (kept_at);

comment on table teguh.workflow_runs is
  'Workflow runs made by create_workflow_run(). How they stand, their tasks say.';
comment on column teguh.workflow_runs.kept_at is
  'When cleanup last saw that it is in use; when it was created if it has not looked yet.';

-- What the tasks of workflow runs came to that are gone.
create table if not exists teguh.workflow_tallies (
  workflow_run_id uuid        not null,
  queue_name      text        not null,
  state           text        not null,
  own             boolean     not null,
  qty             bigint      not null,
  started_at      timestamptz,
  finished_at     timestamptz not null
);

create index if not exists workflow_tallies_lookup
  on teguh.workflow_tallies (workflow_run_id);

comment on table teguh.workflow_tallies is
  'How tasks of workflow runs ended that were cleaned up, or went down with their queue. Only '
  'inserted; deleted with the workflow run.';
comment on column teguh.workflow_tallies.own is
  'Whether the run depends on how they ended: see _is_own().';

-- The handlers of tasks that are SQL functions.
create table if not exists teguh.handlers (
  queue_name    text        not null,
  task_name     text        not null,
  function_name text        not null,
  registered_at timestamptz not null,
  constraint handlers_pkey primary key (queue_name, task_name)
);

comment on table teguh.handlers is
  'Functions set by register_handler(), which work() runs.';
comment on column teguh.handlers.task_name is
  'The tasks it is for; * for those that no other is for.';
comment on column teguh.handlers.function_name is
  'Its schema and name, quoted where needed. It takes a teguh.job.';

-- What nobody but the owner of this schema knows.
create table if not exists teguh.secrets (
  secret text not null
);
insert into teguh.secrets (secret)
select gen_random_uuid()::text || gen_random_uuid()::text
where not exists (select from teguh.secrets);

comment on table teguh.secrets is
  'One row, made at random: with it is sealed which queues a transaction may name (_voucher).';

-- Which versions this schema has had.
create table if not exists teguh.versions (
  version      text        not null,
  installed_at timestamptz not null,
  constraint versions_pkey primary key (version)
);

comment on table teguh.versions is
  'One row per version that was installed here or that this schema was upgraded to.';

-- The template queue: what create_queue() stamps out once per queue, replacing
-- "template" by the queue's name.  No prefix contains another underscore, so
-- the names of two queues cannot meet.

-- Tasks.  No index on a column that changes: every update is a HOT update, and
-- the fill factor leaves room on the page for the versions of one life.
create table if not exists teguh.t_template (
  task_id          uuid        not null,
  run_id           uuid        not null,
  turn             integer     not null,
  attempt          integer     not null default 0,
  failures         integer     not null default 0,
  state            text        not null,
  created_at       timestamptz not null,
  available_at     timestamptz,
  deadline_at      timestamptz,
  first_started_at timestamptz,
  started_at       timestamptz,
  lease_expires_at timestamptz,
  finished_at      timestamptz,
  max_attempts     integer,
  task_name        text        not null,
  claimed_by       text,
  params           jsonb       not null,
  headers          jsonb,
  retry_strategy   jsonb,
  cancellation     jsonb,
  idempotency_key  text,
  wake_event       text,
  event_payload    jsonb,
  result           jsonb,
  failure_reason   jsonb,
  tags             text[],
  correlation_id   text,
  parent_task_id   uuid,
  workflow_run_id  uuid,
  timeout_seconds  double precision,
  expires_at       timestamptz,
  on_expired       jsonb,
  priority         smallint,
  flow_key         text,
  laned            boolean     not null default false,
  links            jsonb,
  constraint tkey_template primary key (task_id)
)
with (
  fillfactor = 25,
  autovacuum_vacuum_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.05
);

create unique index if not exists tonce_template
  on teguh.t_template (idempotency_key)
  where idempotency_key is not null;

-- What tasks are found by. In the order of ids within each value, so that a page of the
-- newest is the end of a stretch of the index. Compared as bytes, a name costs a spawn least.
create index if not exists tname_template
  on teguh.t_template (task_name collate "C", task_id);
create index if not exists tmatter_template
  on teguh.t_template (correlation_id collate "C", task_id)
  where correlation_id is not null;
create index if not exists tparent_template
  on teguh.t_template (parent_task_id, task_id)
  where parent_task_id is not null;
create index if not exists tflow_template
  on teguh.t_template (workflow_run_id, task_id)
  where workflow_run_id is not null;

comment on table teguh.t_template is
  'Tasks: what was asked for, where it stands, and what came of it.';
comment on column teguh.t_template.run_id is
  'The current run. Its number is in the bits that the task''s id leaves zero.';
comment on column teguh.t_template.turn is
  'How often the task has been queued. Dispatch rows and timers name the turn '
  'they are for, and mean nothing once it has passed.';
comment on column teguh.t_template.attempt is
  'How often a worker has been handed the task.';
comment on column teguh.t_template.failures is
  'How many runs failed: by their handler, or because the lease expired.';
comment on column teguh.t_template.available_at is
  'When the task may run; null while only an event can wake it.';
comment on column teguh.t_template.deadline_at is
  'When the task ends of itself: is cancelled by its own policy (max_delay before its '
  'first start, max_duration after), or expires.';
comment on column teguh.t_template.lease_expires_at is
  'When the worker''s claim ends, or would have; null while nobody holds the task, and '
  'when it never ends.';
comment on column teguh.t_template.wake_event is
  'The event that is awaited, or that woke the current turn.';
comment on column teguh.t_template.event_payload is
  'Payload of the event that woke the task; null if the wait timed out.';
comment on column teguh.t_template.failure_reason is
  'Why the last run failed.';
comment on column teguh.t_template.tags is
  'Words given at the spawn to find the task by; null if there are none.';
comment on column teguh.t_template.correlation_id is
  'What ties tasks together that belong to one matter of the application.';
comment on column teguh.t_template.parent_task_id is
  'The task that this one was spawned for; it may lie in another queue.';
comment on column teguh.t_template.workflow_run_id is
  'The workflow run the task belongs to; null if to none.';
comment on column teguh.t_template.timeout_seconds is
  'How long a worker may hold the task at a time; null is without limit.';
comment on column teguh.t_template.expires_at is
  'When the task expires unless it is over; null is never.';
comment on column teguh.t_template.on_expired is
  'The task to spawn when this one expires: queue_name, task_name, params, options.';

comment on column teguh.t_template.priority is
  'How many minutes the task counts as older than it is; null is 0.';
comment on column teguh.t_template.flow_key is
  'What tasks are limited, ordered or taken in turns by; null if by nothing.';
comment on column teguh.t_template.links is
  'What follows when the task is over (sequence, data, on_failure, compensate, undo), whom it is '
  'to be reported to (join), whether it has children that end with it; null if nothing.';
comment on column teguh.t_template.laned is
  'Whether the ready task stands in a lane rather than in dispatch.';

-- The tags of tasks, to find tasks by: inserted with the task, deleted with it.
create table if not exists teguh.g_template (
  tag     text not null,
  task_id uuid not null
);

create unique index if not exists gkey_template
  on teguh.g_template (tag collate "C", task_id);

comment on table teguh.g_template is
  'The tags of each task, once more: here a tag leads to its tasks in the order of their ids.';

-- The attributes of tasks, to find tasks by: written by their runs, deleted with the task.
create table if not exists teguh.v_template (
  task_id uuid not null,
  name    text not null,
  word    text not null,
  constraint vkey_template primary key (task_id, name)
);

create unique index if not exists vfind_template
  on teguh.v_template (name collate "C", word collate "C", task_id);

comment on table teguh.v_template is
  'What tasks say of themselves: attributes and their values.';
comment on column teguh.v_template.word is
  'The value as JSON text, the same for equal values: see _word().';

-- Tasks that ended without success.
create table if not exists teguh.d_template (
  state    text        not null,
  task_id  uuid        not null,
  ended_at timestamptz not null,
  constraint dkey_template primary key (state, task_id)
);

comment on table teguh.d_template is
  'Tasks that failed, expired or were cancelled, so that they are found without looking at '
  'those that completed. A row is a hint: the task''s own state decides.';

-- Dispatch: what is ready, and what becomes so by the passing of time.  Two
-- segments per queue, used in turn.  Rows are only ever inserted; a segment that
-- has nothing left to say is truncated.
create table if not exists teguh.p0_template (
  xid        xid8    not null default pg_current_xact_id(),
  seq        bigint  not null,
  woke       bigint,
  due_at     timestamptz,
  turn       integer not null,
  kind       "char"  not null,
  task_id    uuid    not null,
  more_ids   uuid[],
  more_turns integer[]
)
with (autovacuum_enabled = off);

create table if not exists teguh.p1_template (
  xid        xid8    not null default pg_current_xact_id(),
  seq        bigint  not null,
  woke       bigint,
  due_at     timestamptz,
  turn       integer not null,
  kind       "char"  not null,
  task_id    uuid    not null,
  more_ids   uuid[],
  more_turns integer[]
)
with (autovacuum_enabled = off);

create index if not exists p0ready_template
  on teguh.p0_template (xid, seq)
  where kind = 'r';
create index if not exists p0due_template
  on teguh.p0_template (kind, due_at, seq)
  where kind <> 'r';
create index if not exists p1ready_template
  on teguh.p1_template (xid, seq)
  where kind = 'r';
create index if not exists p1due_template
  on teguh.p1_template (kind, due_at, seq)
  where kind <> 'r';

comment on table teguh.p0_template is
  'Dispatch rows, one of two segments. A row is a hint that may be stale or '
  'double; whether its task is to be had, the task says.';
comment on column teguh.p0_template.kind is
  'r: ready to be claimed. s: a sleeper''s timer. l: a lease''s or deadline''s timer.';
comment on column teguh.p0_template.turn is
  'The task''s turn that the row is for; 0 for the timer of a deadline; -1 for a look at '
  'whether the children or the message it waits for are there (s), or for a task that its parent '
  'takes along (l).';
comment on column teguh.p0_template.more_ids is
  'Further tasks of the same claim, whose leases end at the same time; their turns '
  'are in more_turns.';
comment on column teguh.p0_template.woke is
  'The waiting workers that were notified of this row: see _push_template.';
comment on table teguh.p1_template is
  'Dispatch rows, the other segment: see p0.';

-- Lanes: the ready tasks of a queue that goes by rules.  Written only under the queue's lock
-- (teguh._gate_number).
create table if not exists teguh.l_template (
  ranking   double precision not null,
  seq       bigint           not null,
  task_id   uuid             not null,
  turn      integer          not null,
  gate      "char"           not null,
  task_name text             not null,
  flow_key  text             not null
);

create index if not exists lopen_template
  on teguh.l_template (task_name collate "C", ranking, seq)
  where gate = 'o';
create index if not exists lkey_template
  on teguh.l_template (flow_key collate "C", gate, ranking, seq);

comment on table teguh.l_template is
  'Lanes: ready tasks in the order in which they are to be claimed. A row is a hint; '
  'whether its task is to be had, the task says.';
comment on column teguh.l_template.ranking is
  'The virtual due time in seconds since 1970 or, in a fair queue, the round it is in.';
comment on column teguh.l_template.gate is
  'o: open, its key leaves room for it. w: waits for that.';
comment on column teguh.l_template.flow_key is
  'The key; empty if the task has none.';

-- Holds: what runs in a queue that goes by rules.
create table if not exists teguh.h_template (
  task_id   uuid    not null,
  turn      integer not null,
  fifo      boolean not null,
  task_name text    not null,
  flow_key  text    not null
);

create index if not exists hkey_template
  on teguh.h_template (flow_key collate "C");
create index if not exists hfifo_template
  on teguh.h_template (task_id)
  where fifo;

comment on table teguh.h_template is
  'Tasks that take up room under limits. A row counts while its run is held or, if its key is '
  'first in, first out, until its task is over; then the next claim deletes it.';

-- Positions: how far a segment has been worked off.  Each row is a statement
-- that stays true; the latest is the most useful.
create table if not exists teguh.k0_template (
  n        bigint not null,
  kind     "char" not null,
  xid      xid8,
  seq      bigint not null,
  due_at   timestamptz,
  gaps     teguh._gap[],
  late     teguh._late[],
  snapshot pg_snapshot,
  tallies  teguh._tally[]
)
with (autovacuum_enabled = off);

create table if not exists teguh.k1_template (
  n        bigint not null,
  kind     "char" not null,
  xid      xid8,
  seq      bigint not null,
  due_at   timestamptz,
  gaps     teguh._gap[],
  late     teguh._late[],
  snapshot pg_snapshot,
  tallies  teguh._tally[]
)
with (autovacuum_enabled = off);

create index if not exists k0last_template
  on teguh.k0_template (kind, n);
create index if not exists k1last_template
  on teguh.k1_template (kind, n);

comment on table teguh.k0_template is
  'Positions in segment p0: every row before one has been dealt with, but for '
  'those in gaps (ready rows) or of the transactions in late (timers). Timers set by slow clocks '
  '(kinds S, L; n: the transaction). And sums of n0 (kind n).';
comment on column teguh.k0_template.tallies is
  'The sum of the rows of n0 that were visible to the snapshot.';
comment on table teguh.k1_template is
  'Positions in segment p1: see k0.';

-- Tallies: what became of how many tasks.  Inserted by the transaction that changes them, so
-- they are right whenever it is; truncated with their segment, when they have been added to the
-- totals.
create table if not exists teguh.n0_template (
  xid       xid8             not null default pg_current_xact_id(),
  seconds   double precision not null,
  most      double precision not null,
  qty       integer          not null,
  was       "char"           not null,
  became    "char"           not null,
  task_name text             not null
)
with (autovacuum_enabled = off);

create table if not exists teguh.n1_template (
  xid       xid8             not null default pg_current_xact_id(),
  seconds   double precision not null,
  most      double precision not null,
  qty       integer          not null,
  was       "char"           not null,
  became    "char"           not null,
  task_name text             not null
)
with (autovacuum_enabled = off);

create index if not exists nxid0_template
  on teguh.n0_template (xid);
create index if not exists nxid1_template
  on teguh.n1_template (xid);

create table if not exists teguh.n_template (
  task_name text             not null,
  was       "char"           not null,
  became    "char"           not null,
  most      double precision not null,
  qty       bigint           not null,
  seconds   double precision not null,
  constraint nkey_template primary key (task_name, was, became, most)
);

comment on table teguh.n0_template is
  'Tallies, one of two segments: how many tasks of a name changed so. The letters are those '
  'of teguh._letter, and - for not being there.';
comment on column teguh.n0_template.most is
  'The bucket of their durations if runs ended: the bound in seconds; else 0.';
comment on column teguh.n0_template.seconds is
  'The sum of their durations if runs ended; else 0.';
comment on table teguh.n1_template is
  'Tallies, the other segment: see n0.';
comment on table teguh.n_template is
  'Totals of what was in segments that have been truncated.';

-- Registers.  A sequence is changed in place: no dead rows, and every session
-- sees the present value whatever its snapshot.
create sequence if not exists teguh.seq_template;
create sequence if not exists teguh.ring_template minvalue 0 start 0;
create sequence if not exists teguh.parked_template minvalue 0 start 0;
create sequence if not exists teguh.woken_template minvalue 0 start 0;
create sequence if not exists teguh.plan_template minvalue 0 start 0;
create sequence if not exists teguh.fired_template minvalue 0 start 0;
create sequence if not exists teguh.clock_template minvalue 0 start 0;
create sequence if not exists teguh.carry_template minvalue 0 start 0;
create sequence if not exists teguh.round_template minvalue 0 start 0;
create sequence if not exists teguh.agenda_template minvalue 0 start 0;

comment on sequence teguh.seq_template is
  'Numbers dispatch rows and positions.';
comment on sequence teguh.ring_template is
  'Which segments are in use: 2g means generation g alone, 2g+1 both g and g+1; '
  'generation g lies in segment g mod 2. New rows go to the latest.';
comment on sequence teguh.parked_template is
  'Counts claims that came back short: each may be a worker about to wait.';
comment on sequence teguh.woken_template is
  'The claims among those whose worker is known to have been notified since.';
comment on sequence teguh.plan_template is
  'When a waiting worker looks next of its own accord, in microseconds since 1970.';
comment on sequence teguh.fired_template is
  'When a claim last looked for due timers, in milliseconds since 1970.';
comment on sequence teguh.clock_template is
  'The latest timer position, in microseconds since 1970.';
comment on sequence teguh.round_template is
  'The round that a fair queue is in.';
comment on sequence teguh.agenda_template is
  'No schedule of the queue is due before, in microseconds since 1970.';
comment on sequence teguh.carry_template is
  'Bytes that the last change of segment carried over.';

-- Runs that ended while their task went on.  The task holds its current run.
create table if not exists teguh.r_template (
  task_id          uuid        not null,
  run_id           uuid        not null,
  attempt          integer     not null,
  state            text        not null,
  claimed_by       text,
  started_at       timestamptz,
  lease_expires_at timestamptz,
  finished_at      timestamptz not null,
  failure_reason   jsonb,
  constraint rkey_template primary key (task_id, run_id)
);

comment on table teguh.r_template is
  'History: runs that failed, were cancelled or taken back, and were followed by another.';

-- What people did to tasks and to the queue.
create table if not exists teguh.a_template (
  n        bigint      not null,
  acted_at timestamptz not null,
  deed     text        not null,
  by_role  text        not null default session_user,
  reason   text,
  task_id  uuid,
  run_id   uuid,
  detail   jsonb,
  constraint akey_template primary key (n)
);

create index if not exists atask_template
  on teguh.a_template (task_id)
  where task_id is not null;
create index if not exists aage_template
  on teguh.a_template (acted_at)
  where task_id is null;

comment on table teguh.a_template is
  'Actions: what was done from outside, by whom and why. Only inserted; deleted with the task, '
  'or by age if it is about none.';
comment on column teguh.a_template.run_id is
  'The run that was cancelled, or that was begun.';

-- Checkpoints.
create table if not exists teguh.c_template (
  task_id         uuid        not null,
  checkpoint_name text        not null,
  state           jsonb       not null,
  status          text        not null,
  owner_run_id    uuid        not null,
  updated_at      timestamptz not null,
  constraint ckey_template primary key (task_id, checkpoint_name)
);

comment on table teguh.c_template is
  'Checkpoints: the results of steps and of waits that are over.';
comment on column teguh.c_template.status is
  'committed, or timed_out when the awaited event did not come in time.';

-- Events.
create table if not exists teguh.e_template (
  event_name text        not null,
  created_at timestamptz not null,
  emitted_at timestamptz,
  payload    jsonb,
  constraint ekey_template primary key (event_name)
);

create index if not exists eage_template
  on teguh.e_template (created_at);
create index if not exists ename_template
  on teguh.e_template (event_name collate "C");

comment on table teguh.e_template is
  'Events that were emitted, or are awaited. The row is also the lock between the two.';
comment on column teguh.e_template.emitted_at is
  'When the event was first emitted; null while it is only awaited.';

-- Unique keys.
create table if not exists teguh.u_template (
  unique_key text not null,
  task_id    uuid not null,
  constraint ukey_template primary key (unique_key)
);

create index if not exists utask_template
  on teguh.u_template (task_id);

comment on table teguh.u_template is
  'Unique keys, and the last task that was spawned with each.';

-- Children that a step has spawned.
create table if not exists teguh.j_template (
  task_id      uuid        not null,
  step_name    text        not null,
  run_id       uuid        not null,
  spawned_at   timestamptz not null,
  child_ids    uuid[]      not null,
  child_queues text[]      not null,
  ends_with_us boolean     not null,
  wanted       text,
  fail_fast    boolean,
  constraint jkey_template primary key (task_id, step_name)
);

comment on table teguh.j_template is
  'Children that a step of a task has spawned, in the order given, and how they are awaited.';
comment on column teguh.j_template.run_id is
  'The run that spawned them: children of an earlier repetition are not counted.';
comment on column teguh.j_template.ends_with_us is
  'Whether those that are not over are cancelled when the task ends without success.';
comment on column teguh.j_template.wanted is
  'all, any, or how many are to complete; null while nobody waits.';

-- Children that are over.
create table if not exists teguh.f_template (
  task_id   uuid    not null,
  step_name text    not null,
  run_id    uuid    not null,
  place     integer not null,
  state     text    not null,
  constraint fkey_template primary key (task_id, step_name, run_id, place)
);

comment on table teguh.f_template is
  'Which children of a step are over, and how they ended.';

-- Messages.
create table if not exists teguh.m_template (
  task_id         uuid        not null,
  n               bigint      not null,
  sent_at         timestamptz not null,
  topic           text        not null,
  received_by     text        not null default '',
  payload         jsonb       not null,
  idempotency_key text,
  constraint mkey_template primary key (task_id, received_by, topic, n)
);

create unique index if not exists monce_template
  on teguh.m_template (task_id, idempotency_key)
  where idempotency_key is not null;

comment on table teguh.m_template is
  'Messages to tasks. A message that was received stays until its task is removed or repeats: its '
  'key is known then, and it can be received again when the task starts from that step once more.';
comment on column teguh.m_template.n is
  'In the order in which they were sent.';
comment on column teguh.m_template.received_by is
  'The step that has received it; empty while none has, a space if that was before the task began '
  'anew.';

-- Waits.
create table if not exists teguh.w_template (
  task_id    uuid    not null,
  event_name text    not null,
  step_name  text    not null,
  turn       integer not null,
  timeout_at timestamptz,
  constraint wkey_template primary key (task_id)
);

create index if not exists wevent_template
  on teguh.w_template (event_name);

comment on table teguh.w_template is
  'Waits: the event each waiting task waits for, and until when.';
