begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
set local check_function_bodies = off;

-- A schema of that name that somebody else has made may hold anything, and the functions
-- below run with the rights of whoever owns them.
do $$
declare
  v_owner regrole := (
    select n.nspowner::regrole from pg_namespace as n where n.nspname = 'teguh'
  );
begin
  if v_owner is null then
    create schema teguh;
  elsif v_owner <> current_user::regrole then
    raise exception 'schema "teguh" belongs to %', v_owner
      using
        errcode = '42501',
        detail = 'Everything in it must belong to the role that owns it.',
        hint = format('Run this as that role: set role %s;', v_owner);
  end if;
end;
$$;

-- Refuse to run over another version: tables change only through sql/upgrade.
do $$
declare
  v_found text;
begin
  if to_regprocedure('teguh.version()') is not null then
    execute 'select teguh.version()' into v_found;
    if v_found <> '@TEGUH_VERSION@' then
      raise exception 'teguh % is installed, this file is version @TEGUH_VERSION@', v_found
        using
          errcode = 'TG010',
          detail = 'Re-running the file refreshes one version and never changes tables.',
          hint = format(
            'Run sql/upgrade/teguh--%s--@TEGUH_VERSION@.sql, or install into another database.',
            v_found
          );
    end if;
  end if;
end;
$$;
