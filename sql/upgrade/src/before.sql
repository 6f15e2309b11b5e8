-- Go on as the owner of the schema, whoever runs this, so that what is made belongs to that role.
do $$
begin
  perform set_config('teguh.caller', current_setting('role'), true);
  perform set_config('role', n.nspowner::regrole::name, true)
  from pg_namespace as n
  where n.nspname = 'teguh';
end;
$$;

-- Stop unless @FROM@ is installed, and wait until nobody is using it.
--
-- Every call that works on a queue reads teguh.queues first.  While that table is locked, nobody is
-- in the middle of a call: whoever comes now waits, and is told to try again (40001) when all is
-- done.  The lock is not waited for with the workers queueing up behind: a try lasts a tenth of a
-- second, every tenth one longer than deadlock_timeout, upon which autovacuum gives way.  Between
-- the tries work goes on.
do $$
declare
  v_short  text := '100ms';
  v_long   text := ceil(
    1000 * extract(epoch from current_setting('deadlock_timeout')::interval) + 500
  ) || 'ms';
  v_found  text;
  v_tables text;
  v_locked boolean := false;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'teguh is upgraded in a READ COMMITTED transaction'
      using
        errcode = '25001',
        detail = 'The queues that others have just created must be seen.',
        hint = 'set default_transaction_isolation = ''read committed'';';
  end if;

  for v_try in 1..200 loop
    v_found := null;
    if to_regprocedure('teguh.version()') is not null then
      execute 'select teguh.version()' into v_found;
    end if;
    if v_found is distinct from '@FROM@' then
      raise exception 'this script upgrades teguh @FROM@ to @TO@'
        using
          errcode = 'TG010',
          detail = coalesce('Version ' || v_found || ' is installed.', 'No teguh is installed.'),
          hint = case v_found
            when '@TO@' then 'There is nothing left to do.'
            else 'Run the script that is named after the installed version.'
          end;
    end if;
    exit when v_locked;

    begin
      perform set_config('lock_timeout', case v_try % 10 when 0 then v_long else v_short end, true);
      lock table teguh.queues in access exclusive mode;
      select string_agg(c.oid::regclass::text, ', ' order by c.relname)
      into v_tables
      from pg_class as c
      join (
        select 'template' as name
        union all
        select q.queue_name from teguh.queues as q
      ) as q
        on c.relname in (
          select t.prefix || '_' || q.name
          from unnest('@TABLES@'::text[]) as t(prefix)
        )
      where c.relnamespace = 'teguh'::regnamespace;
      if v_tables is not null then
        execute 'lock table ' || v_tables || ' in access exclusive mode';
      end if;
      v_locked := true;
    exception
      when lock_not_available or deadlock_detected then
        perform pg_sleep(0.1 * random());
    end;
  end loop;

  if not v_locked then
    raise exception 'teguh stays in use: nothing was upgraded'
      using
        errcode = '55P03',
        detail = format(
          'Transactions of these processes keep its tables locked: %s.',
          (
            select coalesce(string_agg(distinct l.pid::text, ', '), 'none any more')
            from pg_locks as l
            join pg_class as c on c.oid = l.relation
            where c.relnamespace = 'teguh'::regnamespace
              and l.pid <> pg_backend_pid()
              and l.granted
          )
        ),
        hint = 'Workers need not stop. End long transactions, dumps, sessions "idle in '
               'transaction" (see pg_stat_activity), and try again.';
  end if;

  perform set_config('lock_timeout', '10s', true);
end;
$$;

-- Drop what @TO@ does not have, and what cannot be replaced: routines whose arguments or results
-- differ from those of @FROM@, views and types that differ.  A type that a table uses is for the
-- delta to change.  Rights that were given on them are kept in mind.
do $$
declare
  v_changed text[] := '@CHANGED@';
  v_types   oid[] := array(
    select t.oid
    from pg_type as t
    join pg_class as c on c.oid = t.typrelid and c.relkind = 'c'
    where t.typnamespace = 'teguh'::regnamespace
      and t.typname = any (v_changed)
      and not exists (
        select
        from pg_attribute as a
        join pg_class as u on u.oid = a.attrelid and u.relkind in ('r', 'p')
        where a.atttypid in (t.oid, t.typarray)
      )
  );
  v_arrays  oid[] := array(select t.typarray from pg_type as t where t.oid = any (v_types));
  v_drop    text;
begin
  perform set_config(
    'teguh.kept_grants',
    coalesce(
      jsonb_agg(
        jsonb_build_object(
          'name', p.proname, 'role', a.grantee::regrole::text, 'passes_on', a.is_grantable
        )
      )::text,
      '[]'
    ),
    true
  )
  from pg_proc as p
  cross join lateral aclexplode(p.proacl) as a
  where p.pronamespace = 'teguh'::regnamespace
    and a.grantee not in (0, p.proowner);

  for v_drop in
    select format('drop view %s', c.oid::regclass)
    from pg_class as c
    where c.relnamespace = 'teguh'::regnamespace
      and c.relkind = 'v'
      and c.relname = any (v_changed)
    union all
    select format('drop routine %s', p.oid::regprocedure)
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and (
        p.proname = any (v_changed)
        or exists (
          select
          from pg_depend as d
          where d.classid = 'pg_proc'::regclass
            and d.objid = p.oid
            and d.refclassid = 'pg_type'::regclass
            and d.refobjid = any (v_types || v_arrays)
        )
      )
    union all
    select format('drop type %s', t.oid::regtype)
    from pg_type as t
    where t.oid = any (v_types)
  loop
    execute v_drop;
  end loop;

  -- what says nothing any more shall not keep its comment
  for v_drop in
    select format('comment on routine %s is null', p.oid::regprocedure)
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and obj_description(p.oid, 'pg_proc') is not null
  loop
    execute v_drop;
  end loop;
end;
$$;
