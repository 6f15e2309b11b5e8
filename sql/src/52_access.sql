-- Who may call what: each public function, the functions of a queue behind it, and the kinds
-- of access that include it.  What concerns all queues at once is only for those who have
-- access to all (everywhere).
create or replace view teguh._rights as
select
  r.routine,
  string_to_array(r.verbs, ' ') as verbs,
  string_to_array(r.access, ' ') as access,
  r.everywhere
from (
  -- noqa: disable=LT01,LT02
  values
    ('version',                    '',            'client worker observer admin', false),
    ('current_time',               '',            'client worker observer admin', false),
    ('portable_uuidv7',            '',            'client worker observer admin', false),
    ('uuidv7_timestamp',           '',            'client worker observer admin', false),
    ('validate_queue_name',        '',            'client worker observer admin', false),
    ('list_queues',                '',            'client worker observer admin', false),
    ('status',                     '',            'client worker observer admin', false),
    ('get_queue_policy',           '',            'client worker observer admin', false),
    ('queue_stats',                'stat',        'client worker observer admin', false),
    ('metrics',                    'gauge',       'client worker observer admin', false),
    ('prometheus',                 'gauge',       'client worker observer admin', false),
    ('health',                     'stat tardy',  'client worker observer admin', false),
    ('get_task_result',            'show',        'client worker observer admin', false),
    ('list_namespaces',            '',            'client worker observer admin', false),
    ('get_task',                   'peek',        'client worker observer admin', false),
    ('list_tasks',                 'rows',        'client worker observer admin', false),
    ('list_runs',                  'runs',        'client worker observer admin', false),
    ('get_task_history',           'past',        'client worker observer admin', false),
    ('list_workers',               'held',        'client worker observer admin', false),
    ('list_dead_letters',          'rows',        'client worker observer admin', false),
    ('list_actions',               'acts',        'client worker observer admin', false),
    ('list_events',                'news',        'client worker observer admin', false),
    ('get_task_checkpoint_state',  'recall',      'client worker observer admin', false),
    ('get_task_checkpoint_states', 'list',        'client worker observer admin', false),
    ('limit_usage',                'usage',       'client worker observer admin', false),
    ('next_fire_time',             '',            'client worker observer admin', false),
    ('get_schedule',               'diary',       'client worker observer admin', false),
    ('list_schedules',             'diary',       'client worker observer admin', false),
    ('list_messages',              'inbox',       'client worker observer admin', false),
    ('get_attributes',             'told',        'client worker observer admin', false),
    ('get_workflow_run',           'flow',        'client worker observer admin', false),
    ('list_workflow_runs',         'flow',        'client worker observer admin', false),
    ('get_workflow_tree',          'member',      'client worker observer admin', false),
    ('create_workflow_run',        '',            'client worker admin',          false),
    ('update_workflow_run',        '',            'client worker admin',          false),
    ('spawn_task',                 'new put once room rule vouch', 'client worker admin', false),
    ('spawn_tasks',                'put series room rule', 'client worker admin',     false),
    ('emit_event',                 'emit',        'client worker admin',          false),
    ('send_message',               'post',        'client worker admin',          false),
    ('cancel_task',                'halt',        'client worker admin',          false),
    ('cancel_tasks',               'abort',       'client worker admin',          false),
    ('retry_task',                 'rerun',       'client worker admin',          false),
    ('claim_task',                 'take',        'worker admin',                 false),
    ('claim_any',                  'take oldest want', 'worker admin',            false),
    ('next_due',                   'next',        'worker admin',                 false),
    ('complete_run',               'done',        'worker admin',                 false),
    ('complete_runs',              'flush',       'worker admin',                 false),
    ('fail_run',                   'fail',        'worker admin',                 false),
    ('schedule_run',               'nap',         'worker admin',                 false),
    ('release_run',                'free',        'worker admin',                 false),
    ('extend_claim',               'keep',        'worker admin',                 false),
    ('set_task_checkpoint_state',  'mark',        'worker admin',                 false),
    ('await_event',                'wait',        'worker admin',                 false),
    ('receive_message',            'hear',        'worker admin',                 false),
    ('set_attributes',             'pin',         'worker admin',                 false),
    ('spawn_children',             'brood bind put room rule', 'worker admin',    false),
    ('await_children',             'rally',       'worker admin',                 false),
    ('add_compensation',           'repent',      'worker admin',                 false),
    ('repeat_run',                 'repeat',      'worker admin',                 false),
    ('work',                       'staff grip',  'worker admin',                 false),
    ('step',                       '',            'client worker observer admin', false),
    ('sleep_for',                  '',            'client worker observer admin', false),
    ('sleep_until',                '',            'client worker observer admin', false),
    ('await',                      '',            'client worker observer admin', false),
    ('receive',                    '',            'client worker observer admin', false),
    ('children',                   '',            'client worker observer admin', false),
    ('list_handlers',              'staff',       'client worker observer admin', false),
    ('register_handler',           'hire',        'admin',                        false),
    ('unregister_handler',         'hire',        'admin',                        false),
    ('ticker',                     'tick',        'worker admin',                 false),
    ('cleanup_tasks',              'purge',       'admin',                        false),
    ('cleanup_events',             'sweep',       'admin',                        false),
    ('rebuild_dispatch',           'remake',      'admin',                        false),
    ('requeue_task',               'retake',      'admin',                        false),
    ('requeue_tasks',              'regain',      'admin',                        false),
    ('replay_dead_letters',        'replay',      'admin',                        false),
    ('purge_dead_letters',         'bury',        'admin',                        false),
    ('pause_queue',                'pause halve', 'admin',                        false),
    ('resume_queue',               'pause halve', 'admin',                        false),
    ('create_schedule',            'enroll',      'admin',                        false),
    ('update_schedule',            'reform',      'admin',                        false),
    ('pause_schedule',             'steer',       'admin',                        false),
    ('resume_schedule',            'steer',       'admin',                        false),
    ('drop_schedule',              'steer',       'admin',                        false),
    ('trigger_schedule',           'launch',      'admin',                        false),
    ('ticker_loop',                '',            'admin',                        true),
    ('cleanup_workflow_runs',      'used',        'admin',                        true),
    ('cleanup_all_queues',         '',            'admin',                        true),
    ('create_queue',               '',            'admin',                        true),
    ('drop_queue',                 '',            'admin',                        true),
    ('set_queue_policy',           '',            'admin',                        true),
    ('set_limit',                  '',            'admin',                        true),
    ('start',                      '',            'admin',                        true),
    ('stop',                       '',            'admin',                        true),
    ('grant_access',               '',            'admin',                        true),
    ('revoke_access',              '',            'admin',                        true)
  -- noqa: enable=LT01,LT02
) as r(routine, verbs, access, everywhere);

comment on view teguh._rights is
  'What client, worker, observer and admin may call.';

-- The functions that this access to a queue (*: to all) allows to execute.
--
-- Helpers are for everybody who has access at all: they run with the rights of whoever calls
-- them, and give none.  But those that execute a text they are given would let whoever may only
-- call functions, as through PostgREST, run any statement: these are for teguh's owner, and what
-- work() needs of them for workers.
create or replace function teguh._allowed(p_access text, p_queue_name text)
  returns setof regprocedure
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select p.oid::regprocedure
  from pg_proc as p
  where p.pronamespace = 'teguh'::regnamespace
    and (
      p.proname in (
        '_policy', '_set_ticked', '_xmin_age', '_overall_usage', '_scheduled_in', '_recorded_run',
        '_recorded_runs', '_recorded_tallies'
      )
      or (
        p.proname ~ '^_'
        and not p.prosecdef
        and p.proname not in (
          '_each_queue', '_leave_extension', '_stamp_function', '_stamp_queues', '_stamp_relation'
        )
        and (p.proname not in ('_advance', '_obey', '_run_pass') or p_access in ('worker', 'admin'))
        and not exists (
          select
          from pg_proc as f
          where f.pronamespace = p.pronamespace
            and f.proname = (substring(p.proname from '^_[a-z0-9]+_') || 'template')::name
        )
      )
      or p.proname in (
        select r.routine
        from teguh._rights as r
        where p_access = any (r.access)
          and (p_queue_name = '*' or not r.everywhere)
      )
      or p.proname in (
        select format('_%s_%s', v.verb, q.queue_name)
        from teguh._rights as r
        cross join lateral unnest(r.verbs) as v(verb)
        join teguh.queues as q on p_queue_name in ('*', q.queue_name)
        where p_access = any (r.access)
      )
    );
$$;

-- Carry out one row of teguh.grants.
create or replace function teguh._grant(p_grantee regrole, p_access text, p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_routines text := (
    select string_agg(a.routine::text, ', ')
    from teguh._allowed(p_access, p_queue_name) as a(routine)
  );
begin
  execute format('grant usage on schema teguh to %s', p_grantee);
  execute format('grant execute on routine %s to %s', v_routines, p_grantee);
end;
$$;

-- Carry out again all that was granted: there are new functions.  Rows of roles that were
-- dropped meanwhile go.
create or replace function teguh._grant_again()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.grants as g
  where not exists (select from pg_roles as r where r.oid = g.grantee);

  perform teguh._grant(g.grantee, g.access, g.queue_name)
  from teguh.grants as g;
end;
$$;

-- Give those who have access to all queues access to a new one.
create or replace function teguh._grant_queue(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._grant(g.grantee, g.access, p_queue_name)
  from teguh.grants as g
  join pg_roles as r on r.oid = g.grantee
  where g.queue_name = '*';
end;
$$;

-- Find a role, and refuse a kind of access that is none.
create or replace function teguh._check_grant(p_role text, p_access text)
  returns regrole
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_role oid;
begin
  if p_access not in ('client', 'worker', 'observer', 'admin') then
    raise exception 'unknown access "%"', left(p_access, 200)
      using
        errcode = 'TG005',
        detail = 'Known kinds of access: client, worker, observer, admin.',
        hint = 'worker includes what client may do, admin includes all.';
  end if;

  select r.oid into v_role
  from pg_roles as r
  where r.rolname = p_role;
  if not found then
    raise exception 'role "%" does not exist', left(coalesce(p_role, 'null'), 200)
      using
        errcode = '42704',
        detail = 'Access is given to roles that exist.',
        hint = 'Create it first: create role … login;';
  end if;

  return v_role;
end;
$$;

-- Give a role access.
create or replace function teguh.grant_access(
  p_role        text,
  p_access      text,
  p_queue_names text[] default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_role       regrole := teguh._check_grant(p_role, coalesce(p_access, 'null'));
  v_queue_name text;
begin
  foreach v_queue_name in array coalesce(p_queue_names, '{*}') loop
    if p_queue_names is not null then
      perform teguh._policy(v_queue_name);
    end if;
    insert into teguh.grants as g (grantee, access, queue_name)
    values (v_role, p_access, v_queue_name)
    on conflict do nothing;
    perform teguh._grant(v_role, p_access, v_queue_name);
  end loop;
end;
$$;

comment on function teguh.grant_access(text, text, text[]) is
  'Lets a role use the queues named, or all, also those to come, if p_queue_names is null. '
  'client: spawn, cancel, retry, emit events, send messages, read results. worker: that, and '
  'claim runs and report on them, tick. observer: read. admin: all of it and cleanup; for all '
  'queues also create and drop queues, schedule, grant. Everything goes through functions; nobody '
  'gets at the tables. Raises 42704 for an unknown role, TG001 for an unknown queue, TG005 '
  'for an unknown kind of access.';

-- Take access away.
create or replace function teguh.revoke_access(
  p_role        text,
  p_access      text default null,
  p_queue_names text[] default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_role regrole := teguh._check_grant(p_role, p_access);
begin
  if v_role = current_user::regrole then
    raise exception 'role "%" owns teguh', p_role
      using
        errcode = 'TG004',
        detail = 'Its rights were not granted, and everything here needs them.',
        hint = 'Revoke the access of roles that grant_access() gave it to.';
  end if;

  perform from teguh.grants as g
  where g.grantee = v_role
    and g.access = coalesce(p_access, g.access)
    and g.queue_name = '*'
    and p_queue_names is not null;
  if found then
    raise exception 'role "%" has access to all queues', p_role
      using
        errcode = 'TG004',
        detail = 'It cannot be taken away for some of them.',
        hint = 'Revoke it for all (p_queue_names => null), and grant what is to stay.';
  end if;

  delete from teguh.grants as g
  where g.grantee = v_role
    and g.access = coalesce(p_access, g.access)
    and (p_queue_names is null or g.queue_name = any (p_queue_names));

  execute format('revoke all on all routines in schema teguh from %s', v_role);
  execute format('revoke all on schema teguh from %s', v_role);
  perform teguh._grant(g.grantee, g.access, g.queue_name)
  from teguh.grants as g
  where g.grantee = v_role;
end;
$$;

comment on function teguh.revoke_access(text, text, text[]) is
  'Takes from a role what grant_access() gave: one kind of access or, if p_access is null, '
  'all; for the queues named or, if p_queue_names is null, for all. Rights on functions that '
  'were granted by hand go, too. What a role was never given is no error. Raises 42704 for an '
  'unknown role, TG004 when the role has access to all queues and only some are named, or owns '
  'teguh, TG005 for an unknown kind of access.';
