-- What committed. Each row is written in the very transaction it tells about, so that it is there
-- if and only if what it tells about happened.
create schema chaos;

-- a task was spawned, or met again by its idempotency key
create table chaos.spawned (task_id uuid not null);

-- a worker was handed a run
create table chaos.claimed (run_id uuid not null, task_id uuid not null, worker text not null);

-- a worker handed a run back that goes on later: it sleeps, waits or was released
create table chaos.returned (run_id uuid not null, task_id uuid not null, how text not null);

-- the business writes of a step
create table chaos.steps (run_id uuid not null, task_id uuid not null, step text not null);

-- what a wait for an event ended with; told again by each replay
create table chaos.outcomes (task_id uuid not null, step text not null, outcome text not null);

-- a message was sent; n counts those that its sender has tried to send
create table chaos.sent (
  sender text not null, n bigint not null, task_id uuid not null, topic text not null,
  payload text not null
);
create sequence chaos.n;

-- a run was completed
create table chaos.completed (run_id uuid not null, task_id uuid not null);
