-- Ten random bytes.  pgcrypto's generator is used when the extension is
-- installed, in whatever schema; else the random bytes of a version 4 uuid
-- (all but its bytes 6 to 8, which hold version and variant).  The choice is
-- made here, once: run this file again after adding pgcrypto.
--
-- Whoever owns the extension or its schema could put another function in that place, which would
-- run with the rights of teguh's owner: both must be that role's, a superuser's or the database
-- owner's.
do $$
declare
  v_source text := (
    select format('%I.gen_random_bytes(10)', n.nspname)
    from pg_catalog.pg_extension as e
    join pg_catalog.pg_namespace as n on n.oid = e.extnamespace
    where e.extname = 'pgcrypto'
      and not exists (
        select
        from pg_catalog.unnest(array[e.extowner, n.nspowner]) as u(owner)
        join pg_catalog.pg_roles as r on r.oid = u.owner
        where not r.rolsuper
          and r.rolname not in (current_user, 'pg_database_owner')
          and not exists (
            select
            from pg_catalog.pg_database as d
            where d.datname = current_database() and d.datdba = r.oid
          )
      )
  );
begin
  execute format(
    $sql$
      create or replace function teguh._random_bytes()
        returns bytea
        language plpgsql
        volatile
        set search_path = pg_catalog, pg_temp
      as $body$
      declare
        v_uuid bytea := uuid_send(gen_random_uuid());
      begin
        return %s;
      end;
      $body$
    $sql$,
    coalesce(v_source, 'substr(v_uuid, 1, 6) || substr(v_uuid, 10, 4)')
  );
end;
$$;

-- Build a version 7 uuid (RFC 9562): 48 bits of milliseconds, 74 random bits.
create or replace function teguh._make_uuidv7(p_at timestamptz)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_bytes bytea := substr(int8send(floor(date_part('epoch', p_at) * 1000)::bigint), 3)
                   || teguh._random_bytes();
begin
  v_bytes := set_byte(v_bytes, 6, (get_byte(v_bytes, 6) & 15) | 112);
  v_bytes := set_byte(v_bytes, 8, (get_byte(v_bytes, 8) & 63) | 128);
  return encode(v_bytes, 'hex')::uuid;
end;
$$;

-- PostgreSQL 18 has uuidv7(); it cannot follow the test clock.
do $$
declare
  v_native boolean := to_regprocedure('pg_catalog.uuidv7()') is not null;
begin
  execute format(
    $sql$
      create or replace function teguh.portable_uuidv7()
        returns uuid
        language plpgsql
        volatile
        set search_path = pg_catalog, pg_temp
      as $body$
      begin
        %s
        return teguh._make_uuidv7(teguh.current_time());
      end;
      $body$
    $sql$,
    case
      when v_native
        then $native$
        if nullif(btrim(current_setting('teguh.fake_now', true)), '') is null then
          return uuidv7();
        end if;
        $native$
    end
  );
end;
$$;

comment on function teguh.portable_uuidv7() is
  'A new version 7 uuid (RFC 9562) with 74 random bits: the built-in uuidv7() of '
  'PostgreSQL 18 unless teguh.fake_now is set, else from gen_random_bytes() of '
  'pgcrypto where that is installed, else from gen_random_uuid().';

-- The time inside a version 7 uuid.
create or replace function teguh.uuidv7_timestamp(p_uuid uuid)
  returns timestamptz
  language sql
  immutable
  strict
  parallel safe
  set search_path = pg_catalog, pg_temp
as $$
  select
    case
      when get_byte(b.bytes, 6) >> 4 = 7 and get_byte(b.bytes, 8) >> 6 = 2
        then to_timestamp(
          ('x' || encode(substr(b.bytes, 1, 6), 'hex'))::bit(48)::bigint / 1000.0
        )
    end
  from (select uuid_send(p_uuid) as bytes) as b;
$$;

comment on function teguh.uuidv7_timestamp(uuid) is
  'The time, to the millisecond, at which a version 7 uuid was made. Null when the '
  'uuid is null or of another version.';

-- A task's id is a version 7 uuid whose bits 52 to 63 and 120 to 127 are zero;
-- its runs are numbered in those 20 bits.  A run's id therefore leads to its
-- task by primary key, and 54 random bits remain beside the millisecond.  Bytes 8
-- to 14 of a version 4 uuid are the variant and just as many random bits.
create or replace function teguh._task_id(p_now timestamptz)
  returns uuid
  language sql
  volatile
as $$
  select pg_catalog.encode(
    pg_catalog.byteacat(
      pg_catalog.substr(
        pg_catalog.int8send(
          pg_catalog.floor(pg_catalog.date_part('epoch', p_now) operator(pg_catalog.*) 1000)::bigint
        ), 3
      ),
      pg_catalog.byteacat(
        pg_catalog.decode('7000', 'hex'),
        pg_catalog.byteacat(
          pg_catalog.substr(pg_catalog.uuid_send(pg_catalog.gen_random_uuid()), 9, 7),
          pg_catalog.decode('00', 'hex')
        )
      )
    ),
    'hex'
  )::pg_catalog.uuid;
$$;

-- The id of a task's run with this number, 1 to 1048575: five hexadecimal digits.
create or replace function teguh._run_id(p_task_id uuid, p_number integer)
  returns uuid
  language sql
  immutable
as $$
  select pg_catalog.overlay(
    pg_catalog.overlay(
      p_task_id::pg_catalog.text,
      pg_catalog.substr(pg_catalog.lpad(pg_catalog.to_hex(p_number), 5, '0'), 1, 3), 16, 3
    ),
    pg_catalog.substr(pg_catalog.lpad(pg_catalog.to_hex(p_number), 5, '0'), 4, 2), 35, 2
  )::pg_catalog.uuid;
$$;

-- The task to which a run belongs.
create or replace function teguh._run_task(p_run_id uuid)
  returns uuid
  language sql
  immutable
as $$
  select pg_catalog.overlay(
    pg_catalog.overlay(p_run_id::pg_catalog.text, '000', 16, 3), '00', 35, 2
  )::pg_catalog.uuid;
$$;

-- A run's number within its task.
create or replace function teguh._run_number(p_run_id uuid)
  returns integer
  language sql
  immutable
as $$
  select pg_catalog.textcat(
    'x',
    pg_catalog.textcat(
      pg_catalog.substr(p_run_id::pg_catalog.text, 16, 3),
      pg_catalog.substr(p_run_id::pg_catalog.text, 35, 2)
    )
  )::bit(20)::integer;
$$;
