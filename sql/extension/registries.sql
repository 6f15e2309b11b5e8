-- What is in the registries is data, and belongs into a dump. The version that is installed is
-- noted by the script that installs it.
do $$
begin
  perform pg_extension_config_dump(
    c.oid, case c.relname when 'versions' then 'where version <> teguh.version()' else '' end
  )
  from pg_extension as e
  join pg_depend as d
    on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
  join pg_class as c on d.classid = 'pg_class'::regclass and c.oid = d.objid
  where e.extname = 'teguh'
    and c.relkind = 'r'
    and c.relname !~ '_template$';
end;
$$;
