-- Remove teguh from a database: `psql -v ON_ERROR_STOP=1 -f`, or as one string through any driver,
-- as the owner of the schema teguh or as superuser.
--
-- It refuses while there are queues.  Drop them first, or have them removed with all their tasks
-- (more than some 30 at once need more locks than a server has by default):
--
--   set teguh.uninstall_queues = 'drop';
--
-- The jobs of pg_cron go, too, if that is in this database.  If it is in another, run there:
-- select cron.unschedule('teguh_ticker'), cron.unschedule('teguh_maint');
-- and likewise teguh_work_<queue> for each queue that was worked on.
begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;

do $$
declare
  v_queues text;
  v_others text;
begin
  if to_regnamespace('teguh') is null then
    raise exception 'teguh is not installed in this database'
      using
        errcode = '3F000',
        detail = 'There is no schema teguh.',
        hint = 'Check the name of the database.';
  end if;

  if exists (select from pg_extension as e where e.extname = 'teguh') then
    raise exception 'teguh is installed as an extension'
      using
        errcode = '55000',
        detail = 'What belongs to an extension goes with it.',
        hint = 'Run: select teguh.stop(); drop extension teguh; drop schema teguh;';
  end if;

  lock table teguh.queues in access exclusive mode;
  select string_agg(q.queue_name, ', ' order by q.queue_name)
  into v_queues
  from teguh.queues as q;
  if v_queues is not null
    and current_setting('teguh.uninstall_queues', true) is distinct from 'drop'
  then
    raise exception 'there are queues: nothing was removed'
      using
        errcode = '2BP01',
        detail = format('Queues: %s.', left(v_queues, 500)),
        hint = 'Drop them, or remove them with all their tasks: '
               'set teguh.uninstall_queues = ''drop'';';
  end if;

  select string_agg(distinct i.identity, ', ') into v_others
  from pg_depend as d
  cross join lateral pg_identify_object(d.classid, d.objid, 0) as i
  cross join lateral pg_identify_object(d.refclassid, d.refobjid, 0) as r
  where r.schema = 'teguh'
    and d.deptype = 'n'
    and i.schema is distinct from 'teguh'
    and i.identity !~ ' teguh[.]';
  if v_others is not null then
    raise exception 'other objects depend on teguh: nothing was removed'
      using
        errcode = '2BP01',
        detail = format('They are: %s.', left(v_others, 500)),
        hint = 'Drop them first.';
  end if;

  perform teguh.stop();
end;
$$;

drop schema teguh cascade;

commit;
