-- The types that functions pass to each other are composites with a comment.
begin;
select plan(4);

-- Given the composite types
-- Then
select is_empty(
  $$
    select t.typname
    from pg_type as t
    join pg_class as c on c.oid = t.typrelid and c.relkind = 'c'
    where t.typnamespace = 'teguh'::regnamespace
      and obj_description(t.oid, 'pg_type') is null
  $$,
  'each says what it is'
);

-- When values are made of them
-- Then
select is(
  (row('10', '2031-01-01 00:00+00')::teguh._late).since, '2031-01-01 00:00+00'::timestamptz,
  'a latecomer is remembered with the position from which its rows may turn up'
);

select is(
  (row('00000000-0000-7000-8000-000000000000', 3)::teguh._timer).turn, 3,
  'a timer names the turn it is for'
);

select is(
  (teguh._check_spawn('q', 'a', null, '{}', '{}')).params, 'null'::jsonb,
  'a task to spawn has its options checked and its nulls filled in'
);

select * from finish();
rollback;
