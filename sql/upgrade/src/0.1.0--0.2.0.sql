-- Tasks can be found by words, by the matter they belong to, and by the task they are for.
select teguh._each_queue('alter table teguh.t_template add column tags text[]');
select teguh._each_queue('alter table teguh.t_template add column correlation_id text');
select teguh._each_queue('alter table teguh.t_template add column parent_task_id uuid');

-- A queue knows what its dispatch was built for (teguh._home), and can be paused.
alter table teguh.queues add column built_for bigint;
alter table teguh.queues add column paused_until timestamptz;
update teguh.queues as q
set built_for = hashtextextended(
  d.oid::text || '/' || format('teguh.p0_%s', q.queue_name)::regclass::oid::text, 0
)
from pg_database as d
where d.datname = current_database();
