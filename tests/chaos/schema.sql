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

-- what handlers in the database have done: their steps, and that they came to their end
create table chaos.inside (task_id uuid not null, step text not null);

create function chaos.step(job teguh.job, step jsonb) returns jsonb
language plpgsql as $$
begin
  insert into chaos.inside (task_id, step) values (job.task_id, step #>> '{}');
  if step #>> '{}' ~ '^tell' then
    perform teguh.set_attributes(job.queue_name, job.run_id, jsonb_build_object(step #>> '{}', 1));
  elsif random() < 0.1 then
    raise exception 'whim';
  end if;
  return '1';
end;
$$;

create function chaos.follow(job teguh.job) returns jsonb
language plpgsql as $$
declare
  v_step text;
begin
  for v_step in
    select p.step from jsonb_array_elements_text(job.params -> 'plan') as p(step)
  loop
    case split_part(v_step, '-', 1)
      when 'sleep' then
        perform teguh.sleep_for(job, v_step, 0.05);
      when 'wait' then
        perform teguh.await(job, v_step, job.params ->> 'event', 0.2);
      when 'hear' then
        perform teguh.receive(job, v_step, job.params ->> 'topic', 0.2);
      when 'brood' then
        perform teguh.children(
          job, v_step, '[{"task_name": "bred", "params": {"plan": ["write-0"]}}]',
          p_options => job.params -> 'options'
        );
      else
        perform teguh.step(job, v_step, 'chaos.step', to_jsonb(v_step));
    end case;
  end loop;
  insert into chaos.inside (task_id, step) values (job.task_id, 'end');
  return '1';
end;
$$;
