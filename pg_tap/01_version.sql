-- An installation says what it is, its version, and which versions it has had.
begin;
select plan(4);

-- Given an installed schema
-- Then
select matches(
  teguh.version(), '^[0-9]+[.][0-9]+[.][0-9]+$',
  'the version has three numbers'
);

select is(
  (select p.provolatile from pg_proc as p where p.oid = 'teguh.version()'::regprocedure), 'i',
  'the version is a constant of the installed schema'
);

select isnt(
  obj_description('teguh'::regnamespace, 'pg_namespace'), null,
  'the schema says what it holds'
);

select results_eq(
  'select v.version from teguh.versions as v where v.version = teguh.version()',
  'select teguh.version()',
  'the version is noted with the moment it came'
);

select * from finish();
rollback;
