-- The hand-written minimum for the same durable work: a row per task, claimed under a lease by one
-- UPDATE, completed by one UPDATE. No retries, no steps, no sleeps but a start time.
create table job (
  id bigint generated always as identity primary key,
  task text not null,
  params jsonb not null,
  state smallint not null default 0, -- 0 pending, 1 running, 2 done
  run_at timestamptz not null default now(),
  attempt integer not null default 0,
  lease_until timestamptz,
  worker text,
  result jsonb
);

create index job_ready on job (run_at, id) where state = 0;
