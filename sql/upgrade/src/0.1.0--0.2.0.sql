-- Tasks can be found by words, by the matter they belong to, and by what they are for.
do $$
begin
  perform teguh._each_queue('alter table teguh.t_template add column tags text[]');
  perform teguh._each_queue('alter table teguh.t_template add column correlation_id text');
  perform teguh._each_queue('alter table teguh.t_template add column parent_task_id uuid');
  perform teguh._each_queue('alter table teguh.t_template add column workflow_run_id uuid');
end;
$$;

-- A run may have a timeout, a task may expire.
do $$
begin
  perform teguh._each_queue(
    'alter table teguh.t_template add column timeout_seconds double precision'
  );
  perform teguh._each_queue('alter table teguh.t_template add column expires_at timestamptz');
  perform teguh._each_queue('alter table teguh.t_template add column on_expired jsonb');
end;
$$;

-- A check costs each statement that changes a task more than it is worth: only functions do.
do $$
begin
  perform teguh._each_queue('alter table teguh.t_template drop constraint tstate_template');
  perform teguh._each_queue('alter table teguh.c_template drop constraint cstatus_template');
end;
$$;

-- A task may have a priority and a key; it may stand in a lane.
do $$
begin
  perform teguh._each_queue('alter table teguh.t_template add column priority smallint');
  perform teguh._each_queue('alter table teguh.t_template add column flow_key text');
  perform teguh._each_queue(
    'alter table teguh.t_template add column laned boolean not null default false'
  );
end;
$$;

-- A task may be followed by others.
do $$
begin
  perform teguh._each_queue('alter table teguh.t_template add column links jsonb');
end;
$$;

-- A queue knows what its dispatch was built for (teguh._home), and can be paused.
alter table teguh.queues add column built_for bigint;
alter table teguh.queues add column paused_until timestamptz;
alter table teguh.queues add column ruled boolean not null default false;
update teguh.queues as q
set
  built_for = hashtextextended(
    d.oid::text || '/' || format('teguh.p0_%s', q.queue_name)::regclass::oid::text, 0
  )
from pg_database as d
where d.datname = current_database();

-- Runs are counted by how long they take, and positions may hold sums of that.
alter table teguh.queues add column buckets float8[] not null
  default '{0.005,0.01,0.05,0.1,0.5,1,5,10,30,60,300,1800}';
create type teguh._tally as (
  task_name text,
  was "char",
  became "char",
  most double precision,
  qty bigint,
  seconds double precision
);
do $$
begin
  perform teguh._each_queue('alter table teguh.k0_template add column snapshot pg_snapshot');
  perform teguh._each_queue('alter table teguh.k1_template add column snapshot pg_snapshot');
  perform teguh._each_queue('alter table teguh.k0_template add column tallies teguh._tally[]');
  perform teguh._each_queue('alter table teguh.k1_template add column tallies teguh._tally[]');
end;
$$;
