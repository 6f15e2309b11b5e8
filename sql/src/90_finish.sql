-- The second segment's functions are those of the first with 0 and 1 exchanged.
do $$
declare
  v_ddl text;
begin
  for v_ddl in
    select pg_catalog.pg_get_functiondef(p.oid)
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and p.proname ~ '^_[a-z]+0_template$'
  loop
    execute replace(
      replace(replace(v_ddl, '0_template', '#_template'), '1_template', '0_template'),
      '#_template', '1_template'
    );
  end loop;
end;
$$;

-- These functions of a queue are the doors to its tables: they run with the rights of teguh's
-- owner, and who may execute them is for grant_access() to say.
--
-- Fix the shape of their plans.  Segments have no statistics, and a plan is
-- made while they are all but empty: every access must be by index, in order, row by
-- row.  A task's table may be empty when a session makes its plans, too.  Where a plan
-- cannot follow, the settings make it look so expensive that it would be compiled.
do $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and substring(p.proname from '^_([a-z]+)_template$') in (
        select v.verb
        from teguh._rights as r
        cross join lateral unnest(r.verbs) as v(verb)
      )
  loop
    execute pg_catalog.format(
      'alter function %s security definer set plan_cache_mode = force_generic_plan '
      'set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off '
      'set enable_mergejoin = off set enable_sort = off set jit = off',
      v_function
    );
  end loop;
end;
$$;

-- The template is a queue like any other; and queues that exist get what it has, those from
-- before 0.2.0 also the counts and lists of their tasks.
do $$
declare
  v_queue_name text;
begin
  perform teguh._init_template();
  perform teguh._stamp_queues(array(select q.queue_name from teguh.queues as q order by 1));

  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
  loop
    execute pg_catalog.format(
      'select teguh._init_%1$s(), teguh._census_%1$s(), teguh._recap_%1$s()', v_queue_name
    );
  end loop;
end;
$$;

-- Nothing is for everybody, but what was granted holds for new functions, too.
do $$
declare
  v_routine regprocedure;
begin
  for v_routine in
    select p.oid
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and pg_catalog.has_function_privilege('public', p.oid, 'execute')
  loop
    execute pg_catalog.format('revoke all on routine %s from public', v_routine);
  end loop;
  perform teguh._grant_again();
end;
$$;

insert into teguh.versions (version, installed_at)
values (teguh.version(), teguh.current_time())
on conflict do nothing;

commit;
