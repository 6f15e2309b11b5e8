-- Ids are version 7 uuids: in the order of their making, with 74 random bits.
begin;
select plan(19);

-- Given 10000 ids of one moment, made of our own random bytes
set teguh.fake_now = '2031-05-01 12:00:00.123+00';
create temporary table id as
select teguh.portable_uuidv7() as id from generate_series(1, 10000);

-- Then
select is(
  (select count(distinct i.id) from id as i), 10000::bigint,
  'no two ids are the same'
);

select is_empty(
  $$ select i.id from id as i where i.id::text !~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab]' $$,
  'every id says version 7 and the variant of RFC 9562'
);

select is(
  (select count(distinct teguh.uuidv7_timestamp(i.id)) from id as i), 1::bigint,
  'every id carries the same moment'
);

select is(
  (select teguh.uuidv7_timestamp(i.id) from id as i limit 1), '2031-05-01 12:00:00.123+00',
  'it is the moment of the test clock, to the millisecond'
);

create temporary table bit as
select b.place, count(*) filter (where get_bit(uuid_send(i.id), b.place) = 1) as ones
from id as i
cross join generate_series(0, 127) as b(place)
group by b.place;

select is(
  (select count(*) from bit as b where b.ones between 4700 and 5300), 74::bigint,
  'an id has 74 random bits, over 10,000 ids'
);

select is(
  (select count(*) from bit as b where b.ones in (0, 10000)), 54::bigint,
  'its other 54 bits are time, version and variant'
);

-- When the clock goes on by itself
reset teguh.fake_now;

-- Then
select matches(
  teguh.portable_uuidv7()::text, '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab]',
  'an id made by the real clock says version 7 as well'
);

select ok(
  teguh.uuidv7_timestamp(teguh.portable_uuidv7())
  between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '1 second',
  'it carries the present moment'
);

select ok(
  (select teguh.portable_uuidv7() from pg_sleep(0.003))
  > (select i.id from (select teguh._make_uuidv7('2020-01-01') as id) as i),
  'a later id is greater'
);

-- Given where random bytes come from
-- Then
select is(
  position(
    coalesce(
      (
        select quote_ident(n.nspname) || '.gen_random_bytes('
        from pg_extension as e
        join pg_namespace as n on n.oid = e.extnamespace
        where e.extname = 'pgcrypto'
      ),
      'substr(v_uuid'
    )
    in (select p.prosrc from pg_proc as p where p.oid = 'teguh._random_bytes()'::regprocedure)
  ) > 0,
  true,
  'the schema of pgcrypto is read from the catalog and qualified; without it uuids give the bits'
);

select is(
  octet_length(teguh._random_bytes()), 10,
  'ten random bytes come at a time'
);

select is(
  (
    select p.prosrc ~ 'return uuidv7\(\)'
    from pg_proc as p
    where p.oid = 'teguh.portable_uuidv7()'::regprocedure
  ),
  to_regprocedure('pg_catalog.uuidv7()') is not null,
  'the built-in uuidv7() is used where there is one'
);

-- Given other uuids
-- Then
select is(
  teguh.uuidv7_timestamp(gen_random_uuid()), null,
  'a version 4 uuid carries no time'
);

select is(
  teguh.uuidv7_timestamp(null), null,
  'no uuid carries no time'
);

select is(
  teguh.uuidv7_timestamp('017f22e2-79b0-7cc3-98c4-dc0c0c07398f'),
  '2022-02-22 19:22:22+00',
  'the example of RFC 9562 is read right'
);

-- Given a task's id
create temporary table task as select teguh._task_id('2031-05-01 12:00:00+00') as id;

-- Then
select is(
  teguh._run_number((select t.id from task as t)), 0,
  'a task''s id leaves the number of its run zero'
);

select results_eq(
  $$
    select teguh._run_number(r.id), teguh._run_task(r.id) = r.task_id
    from task as t
    cross join unnest(array[1, 255, 256, 65535, 65536, 1048575]) as n(number)
    cross join lateral (select teguh._run_id(t.id, n.number) as id, t.id as task_id) as r
  $$,
  $$ values (1, true), (255, true), (256, true), (65535, true), (65536, true), (1048575, true) $$,
  'a run''s id leads to its task and number'
);

select is(
  teguh.uuidv7_timestamp(teguh._run_id((select t.id from task as t), 70000)),
  teguh.uuidv7_timestamp((select t.id from task as t)),
  'a run''s id is a version 7 uuid of the same moment'
);

select ok(
  (
    select count(distinct teguh._task_id('2031-05-01 12:00:00+00')) = 1000
    from generate_series(1, 1000)
  ),
  'a thousand tasks of one moment have a thousand ids'
);

select * from finish();
rollback;
