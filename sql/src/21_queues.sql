-- Check a queue's name and hand it back.  Names of tables and functions are made
-- of it, and the notify channel.
create or replace function teguh.validate_queue_name(p_queue_name text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is null or btrim(p_queue_name) = '' then
    raise exception 'queue name must not be blank'
      using
        errcode = '42602',
        detail = 'The name is null, empty or only spaces.',
        hint = 'Give the queue a name such as orders.';
  end if;

  if octet_length(p_queue_name) > 55 or p_queue_name !~ '^[a-z][a-z0-9_]*$' then
    raise exception 'queue name "%" is not valid', left(p_queue_name, 60)
      using
        errcode = '42602',
        detail = format('It has %s bytes.', octet_length(p_queue_name)),
        hint = 'Use 1 to 55 lowercase letters, digits and underscores, a letter first.';
  end if;

  if p_queue_name = 'template' then
    raise exception 'queue name "template" is reserved'
      using
        errcode = '42939',
        detail = 'Every queue is made in the likeness of the one called template.',
        hint = 'Choose another name.';
  end if;

  return p_queue_name;
end;
$$;

comment on function teguh.validate_queue_name(text) is
  'Returns the name if a queue may have it: 1 to 55 lowercase letters, digits and '
  'underscores, a letter first. Raises 42602 if not, 42939 for the reserved "template".';

-- The policy of a queue, or TG001.  Every call that works on a queue comes through here, and
-- waits here while an upgrade holds teguh.queues.  What was called before the upgrade would
-- go on with functions from after it, and has to be called again.
create or replace function teguh._policy(p_queue_name text)
  returns jsonb
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb;
begin
  select
    case
      when q.paused_until is null and not q.ruled then q.policy
      else q.policy || jsonb_strip_nulls(
        jsonb_build_object('paused_until', q.paused_until, 'ruled', nullif(q.ruled, false))
      )
    end
  into v_policy
  from teguh.queues as q
  where q.queue_name = p_queue_name;

  if not found then
    raise exception 'queue "%" does not exist', left(coalesce(p_queue_name, 'null'), 60)
      using
        errcode = 'TG001',
        detail = 'No queue of that name was created in this database.',
        hint = format('Create it: select teguh.create_queue(%L);', left(p_queue_name, 60));
  end if;

  if teguh.version() <> '@TEGUH_VERSION@' then
    raise exception 'teguh was upgraded while this call waited'
      using
        errcode = '40001',
        detail = format('The call began with version @TEGUH_VERSION@, and %s is installed now.',
          teguh.version()),
        hint = 'Try again.';
  end if;

  return v_policy;
end;
$$;

-- The queue's own function behind a public one, as text to execute.
create or replace function teguh._call(p_verb text, p_queue_name text, p_arguments integer)
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._policy(p_queue_name);
  return 'select * from teguh.' || quote_ident('_' || p_verb || '_' || p_queue_name)
         || '(' || substr('$1, $2, $3, $4, $5, $6, $7', 1, greatest(4 * p_arguments - 2, 0)) || ')';
end;
$$;

-- What the template queue is made of, as DDL in the order to run it.
create or replace view teguh._template_ddl as
with template as (
  select c.oid, c.relname, c.reloptions
  from pg_catalog.pg_class as c
  where c.relnamespace = 'teguh'::regnamespace
    and c.relkind = 'r'
    and c.relname ~ '^_?[a-z0-9]+_template$'
)

select
  1 as step,
  format(
    'create sequence teguh.%s minvalue %s start %s', s.sequencename, s.min_value, s.start_value
  ) as ddl,
  s.sequencename as name
from pg_catalog.pg_sequences as s
where s.schemaname = 'teguh' and s.sequencename ~ '^_?[a-z0-9]+_template$'

union all

select
  2,
  format(
    'create table teguh.%s (%s)%s',
    t.relname,
    string_agg(
      format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
      || case when a.attnotnull then ' not null' else '' end
      || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''),
      ', ' order by a.attnum
    ),
    ' with (' || array_to_string(t.reloptions, ', ') || ')'
  ),
  t.relname
from template as t
join pg_catalog.pg_attribute as a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
left join pg_catalog.pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
group by t.relname, t.reloptions

union all

select
  3,
  format(
    'alter table teguh.%s add constraint %s %s', t.relname, k.conname, pg_get_constraintdef(k.oid)
  ),
  k.conname
from template as t
join pg_catalog.pg_constraint as k on k.conrelid = t.oid and k.contype <> 'n'

union all

select 4, pg_get_indexdef(i.indexrelid), c.relname
from template as t
join pg_catalog.pg_index as i on i.indrelid = t.oid
join pg_catalog.pg_class as c on c.oid = i.indexrelid
where not exists (select 1 from pg_catalog.pg_constraint as k where k.conindid = i.indexrelid)

union all

select
  5,
  format('comment on table teguh.%s is %L', t.relname, obj_description(t.oid, 'pg_class')),
  t.relname
from template as t

union all

select 6, pg_get_functiondef(p.oid), p.proname
from pg_catalog.pg_proc as p
where p.pronamespace = 'teguh'::regnamespace
  and p.proname ~ '^_?[a-z0-9]+_template$'

union all

select 7, format('revoke all on function %s from public', p.oid::regprocedure), p.proname
from pg_catalog.pg_proc as p
where p.pronamespace = 'teguh'::regnamespace
  and p.proname ~ '^_?[a-z0-9]+_template$';

comment on view teguh._template_ddl is
  'The template queue as DDL, in steps, with the name of what each makes. Read back from '
  'the catalog, so that it is always what was written in the sources, upgrades included.';

-- Rename the template queue to another wherever a text names it.
create or replace function teguh._stamp(p_ddl text, p_queue_name text)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select regexp_replace(p_ddl, '_template(?![a-z0-9_])', '_' || p_queue_name, 'g');
$$;

-- Bring queues up to the template: create what they lack, renew comments and functions.  So a
-- new queue is made, and so an upgrade reaches the others.  Columns and whatever else changes in
-- a table that is there already are for the upgrade's script.
create or replace function teguh._stamp_queues(p_queue_names text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_made       record;
  v_queue_name text;
begin
  for v_made in
    select d.step, d.name, d.ddl
    from teguh._template_ddl as d
    where d.step <= 6
    order by d.step, d.ddl
  loop
    foreach v_queue_name in array p_queue_names loop
      if v_made.step = 6 then
        perform teguh._stamp_function(v_made.name, v_made.ddl, v_queue_name);
      else
        perform teguh._stamp_relation(v_made.step, v_made.name, v_made.ddl, v_queue_name);
      end if;
    end loop;
  end loop;
end;
$$;

-- Give a queue one sequence, table, constraint, index or comment that it lacks.
create or replace function teguh._stamp_relation(
  p_step       integer,
  p_name       text,
  p_ddl        text,
  p_queue_name text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := teguh._stamp(p_name, p_queue_name);
  v_done boolean := case p_step
    when 3 then exists (
      select
      from pg_constraint as k
      where k.connamespace = 'teguh'::regnamespace and k.conname = v_name
    )
    when 5 then
      obj_description(to_regclass('teguh.' || v_name), 'pg_class')
      = obj_description(to_regclass('teguh.' || p_name), 'pg_class')
    else to_regclass('teguh.' || v_name) is not null
  end;
begin
  if v_done then
    return;
  end if;

  execute teguh._stamp(p_ddl, p_queue_name);
  if p_step in (1, 2) then
    perform teguh._leave_extension('pg_class', to_regclass('teguh.' || v_name));
  end if;
end;
$$;

-- Create a queue's function, or replace one that differs from the template's.
--
-- In an extension's script nothing may be replaced but what the extension has: there the
-- function joins it for the moment.
create or replace function teguh._stamp_function(p_name text, p_ddl text, p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ddl  text := teguh._stamp(p_ddl, p_queue_name);
  v_name name := teguh._stamp(p_name, p_queue_name);
  v_old  regprocedure := teguh._function(v_name);
begin
  if v_old is not null then
    if pg_get_functiondef(v_old) = v_ddl then
      return;
    elsif teguh._signature(v_old)
      <> teguh._stamp(teguh._signature(teguh._function(p_name::name)), p_queue_name)
    then
      execute format('drop function %s', v_old);
      v_old := null;
    elsif exists (select from pg_extension as e where e.extname = 'teguh') then
      execute format('alter extension teguh add function %s', v_old);
    end if;
  end if;

  execute v_ddl;
  if v_old is null then
    execute format('revoke all on function %s from public', teguh._function(v_name));
  end if;
  perform teguh._leave_extension('pg_proc', teguh._function(v_name));
end;
$$;

-- The function of a name; null if there is none.
create or replace function teguh._function(p_name name)
  returns regprocedure
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select p.oid
  from pg_proc as p
  where p.pronamespace = 'teguh'::regnamespace and p.proname = p_name;
$$;

-- What of a function cannot be changed by replacing it.
create or replace function teguh._signature(p_function oid)
  returns text
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select pg_get_function_arguments(p_function) || ' -> ' || pg_get_function_result(p_function);
$$;

-- Take something of a queue out of the extension.  Made in the extension's script, it would be
-- the extension's, and neither be dumped nor be dropped with the queue.
create or replace function teguh._leave_extension(p_class regclass, p_object oid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_member text := (
    select i.type || ' ' || i.identity
    from pg_depend as d
    join pg_extension as e on e.oid = d.refobjid and e.extname = 'teguh'
    cross join lateral pg_identify_object(d.classid, d.objid, 0) as i
    where d.classid = p_class
      and d.objid = p_object
      and d.refclassid = 'pg_extension'::regclass
      and d.deptype = 'e'
  );
begin
  if v_member is not null then
    execute 'alter extension teguh drop ' || v_member;
  end if;
end;
$$;

-- Number of the advisory lock that drop_queue() holds, and whoever goes through all queues
-- shares: a queue that is being dropped is passed over.
create or replace function teguh._lock_number(p_queue_name text)
  returns bigint
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended('teguh.queue_' || p_queue_name, 0);
$$;

-- Whether a queue is there.  By a query, whose snapshot is newer than the lock that the caller
-- holds: to_regclass() may go by what the session knew before.
create or replace function teguh._has_tables(p_queue_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (
    select from pg_class as c
    where c.relnamespace = 'teguh'::regnamespace
      and c.relname = 't_' || p_queue_name
  );
end;
$$;

-- Keep a queue from being dropped until the transaction ends.  False if it is being dropped.
create or replace function teguh._share_queue(p_queue_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return pg_try_advisory_xact_lock_shared(teguh._lock_number(p_queue_name))
         and teguh._has_tables(p_queue_name);
end;
$$;

-- Whether the caller may execute one of a queue's functions.
create or replace function teguh._may(p_verb text, p_queue_name text)
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and p.proname = format('_%s_%s', p_verb, p_queue_name)
      and has_function_privilege(p.oid, 'execute')
  );
$$;

-- Run one statement on the template and on every queue: for upgrade scripts.
create or replace function teguh._each_queue(p_ddl text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  execute p_ddl;

  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
    order by q.queue_name
  loop
    execute teguh._stamp(p_ddl, v_queue_name);
  end loop;
end;
$$;

-- Give the queue's registers their first values: a sequence has none before that.
create or replace function teguh._init_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_sequence_last_value('teguh.ring_template'::regclass) is null then
    perform nextval('teguh.seq_template'::regclass);
    perform nextval('teguh.parked_template'::regclass);
    perform setval('teguh.ring_template'::regclass, 0);
    perform setval('teguh.woken_template'::regclass, 0);
    perform setval('teguh.plan_template'::regclass, teguh._beyond());
    perform setval('teguh.fired_template'::regclass, 0);
    perform setval('teguh.clock_template'::regclass, 0);
    perform setval('teguh.carry_template'::regclass, 0);
    update teguh.queues as q
    set built_for = teguh._home('teguh.p0_template'::regclass)
    where q.queue_name = substr('_template', 2);
  end if;
  -- queues from before 0.2.0 lack these
  if pg_sequence_last_value('teguh.round_template'::regclass) is null then
    perform setval('teguh.round_template'::regclass, 0);
    perform setval('teguh.agenda_template'::regclass, teguh._beyond());
  end if;
end;
$$;

-- Set the notify policy.  Always: the count of waiting workers is beyond what any
-- dispatch row can answer.  Off: so is the answer.  The count itself goes on, because
-- dispatch rows refer to it.
create or replace function teguh._hush_template(p_notify text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint := nextval('teguh.parked_template'::regclass) % teguh._beyond();
begin
  perform setval(
    'teguh.parked_template'::regclass,
    v_count + case when p_notify = 'always' then teguh._beyond() else 0 end
  );
  perform setval(
    'teguh.woken_template'::regclass,
    case when p_notify = 'off' then teguh._beyond() else 0 end
  );
end;
$$;

-- A number that no register reaches by counting.
create or replace function teguh._beyond()
  returns bigint
  language sql
  immutable
as $$
  select 4611686018427387904;
$$;

-- Create a queue, or set policy keys of one that exists.
create or replace function teguh.create_queue(p_queue_name text, p_policy jsonb default '{}')
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := coalesce(p_policy, '{}');
begin
  perform teguh.validate_queue_name(p_queue_name);
  perform teguh._check_policy(v_policy);

  insert into teguh.queues as q (queue_name, policy, created_at, ruled)
  values (
    p_queue_name, jsonb_strip_nulls(v_policy), teguh.current_time(),
    exists (select from teguh.limits as l where l.queue_name = '*')
  )
  on conflict (queue_name) do nothing;

  if found then
    perform teguh._stamp_queues(array[p_queue_name]);
    execute format('select teguh._init_%s()', p_queue_name);
    perform teguh._grant_queue(p_queue_name);
  else
    update teguh.queues as q
    set policy = jsonb_strip_nulls(q.policy || v_policy)
    where q.queue_name = p_queue_name
      and q.policy <> jsonb_strip_nulls(q.policy || v_policy);
    if not found then
      return;
    end if;
  end if;

  if v_policy -> 'duration_buckets' = 'null' then
    update teguh.queues as q
    set buckets = default
    where q.queue_name = p_queue_name;
  elsif v_policy ? 'duration_buckets' then
    update teguh.queues as q
    set buckets = teguh._buckets_option(v_policy)
    where q.queue_name = p_queue_name;
  end if;

  if v_policy ? 'notify' then
    execute format('select teguh._hush_%s($1)', p_queue_name) using v_policy ->> 'notify';
  end if;
end;
$$;

comment on function teguh.create_queue(text, jsonb) is
  'Creates a queue. On a queue that exists, sets the policy keys given and leaves '
  'the others. Policy: notify (auto, always, off), cleanup_ttl (seconds that '
  'finished tasks are kept, default 2592000), cleanup_limit (tasks removed per '
  'call, default 1000), default_max_attempts, default_retry_strategy, default_timeout '
  '(seconds a run may take), default_ttl (seconds until a task expires), duration_buckets '
  '(ascending bounds in seconds, by which metrics() counts how long runs took: those that end '
  'from then on), max_pending (tasks that have not started; what is more is rejected with TG007 '
  'or, if on_full is drop_oldest, cancels those that are first in line), max_messages (messages '
  'that wait in the mailbox of one task; what is more is rejected with TG007), history '
  '(whether runs that another follows are kept for list_runs() and get_task_history(), default '
  'true; those that end from then on), namespace (a name that queues are grouped by, '
  'default "default"); null sets a key back to its default. '
  'Raises 42602 or 42939 for a name that cannot be, TG005 for a bad policy.';

-- Give up on a queue whose tables could not be locked.
create or replace function teguh._refuse_busy(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'queue "%" stays in use', p_queue_name
    using
      errcode = '55P03',
      detail = 'Other transactions keep its tables locked.',
      hint = 'Stop its workers, end idle transactions, and try again.';
end;
$$;

-- Keep a queue from being dropped until our transaction ends, and see whether it is there.
-- Waits for a drop that is under way, which never waits long for us.
create or replace function teguh._reach_queue(p_queue_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock_shared(teguh._lock_number(p_queue_name));
  return teguh._has_tables(p_queue_name);
end;
$$;

-- Drop a queue with everything in it.
--
-- Never waits for a lock long enough to be part of a deadlock: all of it happens
-- under a short lock_timeout and, if others are busy there, is undone and tried again.
create or replace function teguh.drop_queue(p_queue_name text)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '100ms'
as $$
begin
  perform teguh._policy(p_queue_name);
  for v_try in 1..300 loop
    begin
      perform teguh._drop_all(p_queue_name);
      return;
    exception
      when lock_not_available then
        perform pg_sleep(0.1 * random());
    end;
  end loop;

  perform teguh._refuse_busy(p_queue_name);
end;
$$;

comment on function teguh.drop_queue(text) is
  'Drops a queue and all its tasks, in whatever state. Waits up to a minute for '
  'transactions that are using it. Raises TG001 if there is no such queue, 55P03 '
  'if it stays busy.';

-- Drop what belongs to a queue, unless somebody else just did.
create or replace function teguh._drop_all(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_tables text;
  v_drop   text;
begin
  perform pg_advisory_xact_lock(teguh._lock_number(p_queue_name));
  delete from teguh.queues as q
  where q.queue_name = p_queue_name;
  if not found then
    return;
  end if;
  delete from teguh.grants as g
  where g.queue_name = p_queue_name;
  delete from teguh.limits as l
  where l.queue_name = p_queue_name;
  delete from teguh.pauses as p
  where p.queue_name = p_queue_name;
  delete from teguh.starts as s
  where s.queue_name = p_queue_name;
  delete from teguh.wanted as w
  where w.queue_name = p_queue_name;
  delete from teguh.schedules as s
  where s.queue_name = p_queue_name;
  delete from teguh.handlers as h
  where h.queue_name = p_queue_name;
  perform teguh._drop_job(p_queue_name);

  select string_agg('teguh.' || teguh._stamp(c.relname, p_queue_name), ', ' order by c.relname)
  into v_tables
  from pg_class as c
  where c.relnamespace = 'teguh'::regnamespace
    and c.relkind = 'r'
    and c.relname ~ '^_?[a-z0-9]+_template$';
  execute 'lock table ' || v_tables || ' in access exclusive mode';
  execute format('select teguh._perish_%s()', p_queue_name);

  for v_drop in
    -- sequences first: who waits for a table may hold one, and is not to find a deadlock
    select format('drop sequence teguh.%s', teguh._stamp(s.sequencename, p_queue_name))
    from pg_sequences as s
    where s.schemaname = 'teguh' and s.sequencename ~ '^_?[a-z0-9]+_template$'
    union all
    select format('drop function %s', teguh._stamp(p.oid::regprocedure::text, p_queue_name))
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname ~ '^_?[a-z0-9]+_template$'
  loop
    execute v_drop;
  end loop;
  execute 'drop table ' || v_tables;
end;
$$;

-- The queues of this database.
create or replace function teguh.list_queues()
  returns table(
    queue_name   text,
    created_at   timestamptz,
    policy       jsonb,
    paused_until timestamptz,
    namespace    text
  )
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select
    q.queue_name, q.created_at, q.policy, q.paused_until,
    coalesce(q.policy ->> 'namespace', 'default')
  from teguh.queues as q
  order by q.queue_name;
$$;

comment on function teguh.list_queues() is
  'The queues of this database by name, each with the policy it was given, until when '
  'it is paused, null if it never was, and its namespace.';
