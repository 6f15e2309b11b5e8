-- Have pg_dump copy the rows of the registries, which belong to the extension.  But not the version
-- that is installed: the `create extension` of a dump writes it.
do $$
declare
  v_table record;
begin
  for v_table in
    select c.oid, c.relname
    from pg_extension as e
    join pg_depend as d on d.refobjid = e.oid and d.deptype = 'e'
    join pg_class as c on d.classid = 'pg_class'::regclass and c.oid = d.objid
    where e.extname = 'teguh'
      and d.refclassid = 'pg_extension'::regclass
      and c.relkind = 'r'
      and c.relname !~ '_template$'
    order by c.relname
  loop
    perform pg_extension_config_dump(
      v_table.oid,
      case v_table.relname when 'versions' then 'where version <> teguh.version()' else '' end
    );
  end loop;
end;
$$;
