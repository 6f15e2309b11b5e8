-- Installed: both segments have their functions, plans are fixed, nothing is open to all.
begin;
select plan(8);

-- Given the functions of the first segment
-- Then
select is(
  array(
    select replace(p.proname, '0_template', '1_template')::text
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname ~ '0_template$'
    order by 1
  ),
  array(
    select p.proname::text
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname ~ '1_template$'
    order by 1
  ),
  'every function of the first segment has its like for the second'
);

select is_empty(
  $$
    select p.proname
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and (p.proname ~ '0_template$' and p.prosrc ~ '[pk]1_template'
        or p.proname ~ '1_template$' and p.prosrc ~ '[pk]0_template')
      and p.proname !~ '^_turn'
      and p.prosrc !~ '_carry'
  $$,
  'none looks into the other segment, but for the turn of the ring'
);

-- Given the functions behind the public ones
create temporary table entry as
select p.oid, p.proname::text as name, p.proconfig
from pg_proc as p
where p.pronamespace = 'teguh'::regnamespace
  and p.proname ~ '_template$'
  and exists (
    select from pg_proc as c
    where c.pronamespace = 'teguh'::regnamespace
      and (c.prosrc like '%_call(''' || split_part(p.proname, '_', 2) || '''%'
        or c.prosrc like '%teguh._' || split_part(p.proname, '_', 2) || '_'' ||%')
  );

-- Then
select ok((select count(*) > 12 from entry), 'there are functions behind the public ones');

select is_empty(
  $$
    select e.name
    from entry as e
    where not e.proconfig @> '{plan_cache_mode=force_generic_plan,enable_seqscan=off}'
  $$,
  'their plans are fixed: by index, whatever the statistics say'
);

select is_empty(
  $$
    select p.proname
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and p.proconfig::text ~ 'enable_[a-z]+=off'
      and not p.proconfig @> '{jit=off}'
  $$,
  'where plans are fixed nothing is compiled'
);

-- Given a queue made of it
select teguh.create_queue('zebra');

-- Then
select is(
  array(
    select regexp_replace(p.proname, '_zebra$', '') || p.proconfig::text
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname ~ '_zebra$'
    order by 1
  ),
  array(
    select regexp_replace(p.proname, '_template$', '') || p.proconfig::text
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname ~ '_template$'
    order by 1
  ),
  'a queue''s functions have the settings of the template''s'
);

select is(
  (
    select count(*)
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and has_function_privilege('public', p.oid, 'execute')
  ),
  0::bigint,
  'nothing is for everybody'
);

select is(
  (select count(*) from teguh.t_template), 0::bigint,
  'the template is empty'
);

select * from finish();
rollback;
