-- Tasks can be found by words, by the matter they belong to, and by the task they are for.
select teguh._each_queue('alter table teguh.t_template add column tags text[]');
select teguh._each_queue('alter table teguh.t_template add column correlation_id text');
select teguh._each_queue('alter table teguh.t_template add column parent_task_id uuid');
