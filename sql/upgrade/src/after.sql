-- Drop the routines of queues that @TO@ does not have any more, and whatever else this script has
-- neither made nor replaced.  What somebody else has put into this schema has no place here.
do $$
declare
  v_drop text;
begin
  for v_drop in
    select format('drop routine %s', p.oid::regprocedure)
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and age(p.xmin) > 0
      and p.proname not in (
        select teguh._stamp(t.proname, q.queue_name)
        from pg_proc as t
        cross join teguh.queues as q
        where t.pronamespace = 'teguh'::regnamespace
          and t.proname ~ '_template$'
          and age(t.xmin) <= 0
      )
  loop
    execute v_drop;
  end loop;
end;
$$;

-- Give again what was given on routines that had to be dropped.
do $$
declare
  v_grant record;
begin
  for v_grant in
    select p.oid::regprocedure as callee, k.role, k.passes_on
    from jsonb_to_recordset(current_setting('teguh.kept_grants')::jsonb)
      as k(name name, role text, passes_on boolean)
    join pg_proc as p on p.pronamespace = 'teguh'::regnamespace and p.proname = k.name
  loop
    execute format(
      'grant execute on routine %s to %s%s', v_grant.callee, v_grant.role,
      case when v_grant.passes_on then ' with grant option' else '' end
    );
  end loop;

  perform set_config('role', current_setting('teguh.caller'), true);
end;
$$;
