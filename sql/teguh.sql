-- Teguh 0.2.0: durable execution as a SQL library for PostgreSQL 14 and later.
--
-- This one file makes a database a workflow engine: schema teguh with its tables and functions.
-- Install it with `psql -f teguh.sql`, or send it through any driver as one string: it holds no
-- psql command.  It needs CREATE on the database, no superuser and no extension.  Running it again
-- over the same version changes nothing but refreshes the functions.
--
-- Generated from sql/src by tools/build_sql.py (`make sql`): edit the modules, not this file.
--
-- Line  What stands there
--  602  00_install.sql
--  650  01_version.sql: What the schema is, and its version
--  657    version
--  669  10_clock.sql: The one clock of the engine.  The setting teguh.fake_now stops it for tests
--  671    current_time
--  690    _after
--  705    _micros
--  716  11_uuid.sql: Ten random bytes.  pgcrypto's generator is used when the extension is
--  748    _random_bytes
--  767    _make_uuidv7
--  790    portable_uuidv7
--  820    uuidv7_timestamp
--  846    _task_id
--  871    _run_id
--  886    _run_task
--  897    _run_number
--  911  12_types.sql: The composite types that functions pass to each other
--  916    _gap (type)
--  924    _late (type)
--  931    _timer (type)
--  938    _tally (type)
--  949    _picked (type)
--  961    _spawn (type)
--  986    _cron (type)
-- 1000    _filter (type)
-- 1015    job (type)
-- 1031    _shift (type)
-- 1078  13_options.sql: Refuse keys that are not options.  An option misspelt must never be ignored
-- 1080    _check_keys
-- 1113    _number_option
-- 1148    _integer_option
-- 1164    _whole_option
-- 1191    _text_option
-- 1217    _flag_option
-- 1239    _present
-- 1250    _name_option
-- 1267    _uuid_option
-- 1294    _tags_option
-- 1323    _check_name
-- 1350    _check_seconds
-- 1378    _check_isolation
-- 1397    _buckets_option
-- 1435    _check_policy
-- 1485    _check_spawn
-- 1532    _read_spawn_options
-- 1609    _time_option
-- 1630    _moment_option
-- 1662    _read_time_options
-- 1701    _unique_option
-- 1755    _inherit
-- 1785    _check_cancellation
-- 1802  14_retry.sql: Refuse a retry strategy that could not be carried out.  Null is the default
-- 1805    _check_retry_strategy
-- 1843    _backoff
-- 1896    _fraction
-- 1907  20_tables.sql: Queues and the policy of each
-- 1909    queues (table)
-- 1942    grants (table)
-- 1956    limits (table)
-- 1977    pauses (table)
-- 1989    starts (table)
-- 2004    wanted (table)
-- 2016    schedules (table)
-- 2060    workflow_runs (table)
-- 2087    workflow_tallies (table)
-- 2107    handlers (table)
-- 2123    secrets (table)
-- 2134    versions (table)
-- 2149    t_template (table)
-- 2263    g_template (table)
-- 2275    v_template (table)
-- 2291    d_template (table)
-- 2305    p0_template (table)
-- 2318    p1_template (table)
-- 2363    l_template (table)
-- 2390    h_template (table)
-- 2410    k0_template (table)
-- 2423    k1_template (table)
-- 2453    n0_template (table)
-- 2464    n1_template (table)
-- 2480    n_template (table)
-- 2504    seq_template (sequence)
-- 2505    ring_template (sequence)
-- 2506    parked_template (sequence)
-- 2507    woken_template (sequence)
-- 2508    plan_template (sequence)
-- 2509    fired_template (sequence)
-- 2510    clock_template (sequence)
-- 2511    carry_template (sequence)
-- 2512    round_template (sequence)
-- 2513    agenda_template (sequence)
-- 2538    r_template (table)
-- 2555    a_template (table)
-- 2581    c_template (table)
-- 2597    e_template (table)
-- 2616    u_template (table)
-- 2629    j_template (table)
-- 2652    f_template (table)
-- 2665    m_template (table)
-- 2690    w_template (table)
-- 2705  21_queues.sql: Check a queue's name and hand it back.  Names of tables and functions are made
-- 2708    validate_queue_name
-- 2750    _policy
-- 2793    _call
-- 2807    _template_ddl (view)
-- 2892    _stamp
-- 2904    _stamp_queues
-- 2932    _stamp_relation
-- 2972    _stamp_function
-- 3005    _function
-- 3017    _signature
-- 3028    _leave_extension
-- 3054    _lock_number
-- 3065    _has_tables
-- 3081    _share_queue
-- 3094    _may
-- 3110    _each_queue
-- 3132    _init_template
-- 3163    _hush_template
-- 3184    _beyond
-- 3193    create_queue
-- 3259    _refuse_busy
-- 3276    _reach_queue
-- 3292    drop_queue
-- 3322    _drop_all
-- 3380    list_queues
-- 3404  30_enqueue.sql: Queue tasks: ready to be claimed (kind r), or as timers that come due later
-- 3413    _push_template
-- 3454    _fill
-- 3474    _add0_template
-- 3542    _back0_template
-- 3554  31_claim.sql: Claim up to p_qty ready tasks of one segment, oldest first, and set the timers of
-- 3559    _claim0_template
-- 3631    _pick0_template
-- 3714    _limits_template
-- 3755    _move0_template
-- 3817    _open_xids
-- 3837    _next0_template
-- 3866    _many0_template
-- 3895    _stuck0_template
-- 3933    _trim0_template
-- 3974    _bring_template
-- 4005    _take_template
-- 4087    _known_template
-- 4117    _paused_until
-- 4130    claim_task
-- 4191    _next_template
-- 4233    _soon0_template
-- 4291    next_due
-- 4316  32_timers.sql: Collect the timers of one kind that have come due in a segment, up to p_limit,
-- 4330    _due0_template
-- 4411    _raise_xmax
-- 4429    _wind_template
-- 4468    _last0_template
-- 4513    _any0_template
-- 4540    _miss0_template
-- 4576    _pass0_template
-- 4621    _fire_template
-- 4678    _expire_template
-- 4754    _timeout_reason
-- 4773    _over_template
-- 4795    _close_template
-- 4825    _follow_template
-- 4860  33_rotate.sql: Bytes a segment may grow to before the other one is opened
-- 4862    _segment_bytes
-- 4883    _turn_template
-- 4915    _turn0_template
-- 4953    _spent0_template
-- 4967    _dry0_template
-- 4994    _left0_template
-- 5025    _carry0_template
-- 5069  34_rebuild.sql: Build the dispatch tables of a queue anew from its tasks.  Returns how many tasks wait
-- 5075    _remake_template
-- 5133    _alive_template
-- 5187    _home
-- 5200    _settle_template
-- 5222    rebuild_dispatch
-- 5259    _recap_template
-- 5290  35_tally.sql: The letter by which tallies know where a task stands
-- 5292    _letter
-- 5311    _letters
-- 5323    _bound
-- 5343    _tally_template
-- 5368    _reckon_template
-- 5395    _finish_template
-- 5423    _moved_template
-- 5454    _sum0_template
-- 5490    _noted0_template
-- 5525    _bank0_template
-- 5545    _census_template
-- 5567    _count_template
-- 5589  36_lanes.sql: Lanes: how a queue that goes by rules is claimed from
-- 5599    _gate_number
-- 5610    _enter_gate
-- 5632    _limit_of
-- 5650    _rule_template
-- 5676    _reign_template
-- 5690    _enrol_template
-- 5717    _going_template
-- 5733    _busy_template
-- 5749    _everywhere_busy
-- 5775    _closed_until
-- 5795    _is_fresh
-- 5810    _is_limited
-- 5821    _started
-- 5838    _left_over
-- 5859    _slots_template
-- 5909    _vacate_template
-- 5972    _unbar_template
-- 6001    _intake_template
-- 6022    _sift0_template
-- 6109    _line_template
-- 6169    _keys_template
-- 6223    _admit_template
-- 6286    _spare_template
-- 6308    _choose_template
-- 6354    _named_template
-- 6381    _weed_template
-- 6417    _cull_template
-- 6448    _seize_template
-- 6523    _quit_template
-- 6551    _occupy_template
-- 6591    _chance_template
-- 6621    _align_template
-- 6666  37_claim_any.sql: Remember which task names workers ask for.  Once a minute is often enough, and one at a time:
-- 6669    _want_template
-- 6703    _names_option
-- 6738    _order_queues
-- 6776    _remember_names
-- 6796    claim_any
-- 6873    _check_order
-- 6890  40_spawn.sql: Insert tasks and queue them.  Rows come back in the order of p_tasks
-- 6895    _put_template
-- 6966    _enlist_template
-- 7009    _new_template
-- 7069    _tag_template
-- 7087    _room_template
-- 7114    _shed_template
-- 7156    _first0_template
-- 7197    _once_template
-- 7246    _begun_template
-- 7260    _blocks
-- 7287    _meet_template
-- 7321    _swap_template
-- 7382    _series_template
-- 7419    _found_template
-- 7476    _abide
-- 7498    _queues_named
-- 7529    _voucher
-- 7542    _vouch
-- 7559    _vouch_template
-- 7575    _check_named
-- 7601    _check_follows
-- 7618    _revouch
-- 7634    _check_spawner
-- 7658    spawn_task
-- 7726    spawn_tasks
-- 7778    _read_task
-- 7796  41_runs.sql: Lock the task of a run that a worker holds, or raise why it does not
-- 7801    _hold_template
-- 7823    _deny_template
-- 7863    _own_template
-- 7883    _done_template
-- 7931    complete_run
-- 7954    _flush_template
-- 8037    _why_template
-- 8060    _read_runs
-- 8106    _explain_bad_run
-- 8131    complete_runs
-- 8156    _end_template
-- 8205    _lost_template
-- 8225    _file_template
-- 8252    _blame_template
-- 8280    _again_template
-- 8320    _queue_template
-- 8341    _fail_template
-- 8359    fail_run
-- 8383    _nap_template
-- 8412    schedule_run
-- 8442    _free_template
-- 8490    release_run
-- 8515    _keep_template
-- 8541    extend_claim
-- 8564  42_checkpoints.sql: Store a step's state under the fence of a run that is held.  The lock on the
-- 8569    _mark_template
-- 8591    _note_template
-- 8621    set_task_checkpoint_state
-- 8656    _recall_template
-- 8678    get_task_checkpoint_state
-- 8702    _list_template
-- 8731    get_task_checkpoint_states
-- 8757  43_events.sql: Wait for an event, or learn how the wait ended
-- 8764    _wait_template
-- 8836    _park_template
-- 8878    _check_event
-- 8897    await_event
-- 8934    _emit_template
-- 8997    emit_event
-- 9023    _read_event_cursor
-- 9061    _meant_template
-- 9114    _leaf_template
-- 9167    _sought_template
-- 9183    _news_template
-- 9236    list_events
-- 9294  44_control.sql: Read a task, or raise TG003
-- 9296    _fetch_template
-- 9323    _stop_template
-- 9355    _act_template
-- 9377    _halt_template
-- 9393    cancel_task
-- 9415    _rerun_template
-- 9493    _forget_template
-- 9530    _redo_template
-- 9566    _renew_template
-- 9602    retry_task
-- 9652    _show_template
-- 9700    get_task_result
-- 9735  45_cleanup.sql: Remove tasks that have been over for longer than p_ttl seconds, with their
-- 9742    _purge_template
-- 9772    _erase_template
-- 9826    _first_uuid
-- 9845    _sweep_template
-- 9885    _clean
-- 9919    cleanup_tasks
-- 9940    cleanup_events
-- 9961    cleanup_all_queues
-- 9996  46_limits.sql: Set or take away a limit of a queue, arrange its lanes by it, and tell the workers that wait
-- 9998    _cap_template
-- 10027    _write_limit
-- 10050    _read_limit
-- 10099    _check_limit_keys
-- 10121    set_limit
-- 10176    _usage_template
-- 10254    _overall_usage
-- 10298    limit_usage
-- 10331  46_policy.sql: Set a queue's pause, or end it (null) and tell the workers that wait
-- 10333    _pause_template
-- 10354    _halve_template
-- 10384    _check_only
-- 10407    pause_queue
-- 10443    resume_queue
-- 10469    get_queue_policy
-- 10493    set_queue_policy
-- 10511    list_namespaces
-- 10528  47_inspect.sql: Read a filter, or raise TG005.  p_states: the only states meant, which the filter then must
-- 10531    _read_filter
-- 10567    _states_option
-- 10598    _read_cursor
-- 10617    _check_limit
-- 10641    _find_template
-- 10693    _seek_template
-- 10745    _page_template
-- 10823    _ended_template
-- 10860    _fit_template
-- 10901    _live_template
-- 10938    _hints_template
-- 10961    _hints0_template
-- 11003    _rows_template
-- 11054    list_tasks
-- 11101    _peek_template
-- 11159    get_task
-- 11215    _runs_template
-- 11264    list_runs
-- 11295    _past_template
-- 11371    _since_template
-- 11389    get_task_history
-- 11409    _held_template
-- 11441    list_workers
-- 11481    _read_place
-- 11500    _acts_template
-- 11526    list_actions
-- 11558  48_operate.sql: Cancel tasks, locked in the order of their ids.  What is over by then is passed over
-- 11560    _abort_template
-- 11597    cancel_tasks
-- 11634    _check_meant
-- 11656    _limit_option
-- 11669    _retake_template
-- 11707    requeue_task
-- 11732    _regain_template
-- 11767    requeue_tasks
-- 11806    list_dead_letters
-- 11850    _replay_template
-- 11891    replay_dead_letters
-- 11931    _bury_template
-- 11973    purge_dead_letters
-- 12003  49_stats.sql: When the first task that is ready became so; null if none is
-- 12005    _oldest_template
-- 12049    _elder0_template
-- 12085    _tenure_template
-- 12110    _is_wanted
-- 12127    _stat_template
-- 12173    queue_stats
-- 12229    _from
-- 12243    _tardy_template
-- 12274    _counters (view)
-- 12298    _gauge_template
-- 12352    _spans_template
-- 12405    metrics
-- 12444    _xmin_age
-- 12463    prometheus
-- 12522    _label_text
-- 12545    _schedule_problems
-- 12583    health
-- 12639  50_ticker.sql: One tick of one queue: take a step in the rotation, build dispatch anew if the queue was
-- 12644    _tick_template
-- 12669    _ticked (sequence)
-- 12675    _set_ticked
-- 12688    ticker
-- 12735    ticker_loop (procedure)
-- 12761  51_cron.sql: Whether pg_cron is installed in this database
-- 12763    _has_cron
-- 12773    _cron_has_seconds
-- 12792    _plan_cron
-- 12827    _work_option
-- 12860    _explain_no_cron
-- 12909    start
-- 12946    _unschedule
-- 12962    _is_ours
-- 12972    _drop_job
-- 12991    stop
-- 13011    _maintain
-- 13033    status
-- 13072  52_access.sql: Who may call what: each public function, the functions of a queue behind it, and the kinds
-- 13076    _rights (view)
-- 13193    _allowed
-- 13238    _grant
-- 13257    _grant_again
-- 13273    _grant_queue
-- 13288    _check_grant
-- 13321    grant_access
-- 13357    revoke_access
-- 13412  60_cron.sql: Refuse a schedule that cannot be read, or not followed
-- 13414    _refuse_schedule
-- 13431    _cron_value
-- 13445    _cron_field
-- 13506    _read_every
-- 13528    _read_schedule
-- 13603    _cron_time
-- 13641    _cron_reading
-- 13680    _clock
-- 13689    _clock_reads
-- 13725    _clock_set
-- 13753    _cron_passing
-- 13791    _cron_next
-- 13831    _check_timezone
-- 13860    next_fire_time
-- 13896  61_schedules.sql: Schedules: rows that a tick or a claim of their queue looks at when they are due
-- 13909    _planning_number
-- 13919    _replan_template
-- 13933    _agenda_template
-- 13950    _future_template
-- 13978    _strike_template
-- 14034    _chime_template
-- 14090    _undone_template
-- 14109    _planned_after
-- 14128    _due_times
-- 14178    _spawn_scheduled
-- 14223    _check_task_options
-- 14253    _word_option
-- 14275    _draw_schedule
-- 14314    _schedule_options
-- 14329    _miss_schedule
-- 14345    _scheduled_in
-- 14366    _grasp_template
-- 14393    _enroll_template
-- 14429    _redraw_template
-- 14479    create_schedule
-- 14523    _reform_template
-- 14553    update_schedule
-- 14585    _steer_template
-- 14628    pause_schedule
-- 14649    resume_schedule
-- 14669    drop_schedule
-- 14689    _launch_template
-- 14721    trigger_schedule
-- 14743    _diary_template
-- 14779    get_schedule
-- 14814    list_schedules
-- 14857  62_links.sql: What follows when a task is over: the next of a sequence, compensation, a report to the parent
-- 14862    _links_option
-- 14905    _read_link
-- 14947    _trail_template
-- 14994    _linked_template
-- 15026    _ensue_template
-- 15069    _undoings
-- 15097    _undo_template
-- 15138    _repent_template
-- 15178    add_compensation
-- 15218    _repeat_template
-- 15248    _blank_template
-- 15286    repeat_run
-- 15312  63_children.sql: Children: tasks that a step spawns and may wait for
-- 15321    _brood_template
-- 15351    _bind_template
-- 15383    _read_child
-- 15432    _child_queues
-- 15458    _birth
-- 15482    spawn_children
-- 15567    _cancel_option
-- 15590    _answer
-- 15610    _report_template
-- 15646    _tell_template
-- 15661    _judge_template
-- 15697    _ripe_template
-- 15724    _gather_template
-- 15789    _rally_template
-- 15866    _crop_template
-- 15917    _yield_template
-- 15938    _dismiss
-- 15959    _ditch_template
-- 16004    _perish_template
-- 16023    _orphan_template
-- 16038    await_children
-- 16095  64_workflow_runs.sql: Workflow runs: what tasks of any queues belong to together
-- 16102    _refuse_run
-- 16118    _read_run
-- 16138    create_workflow_run
-- 16196    update_workflow_run
-- 16227    _is_own
-- 16240    _flow_template
-- 16273    _score_template
-- 16310    _recorded_run
-- 16321    _recorded_tallies
-- 16333    _flows
-- 16368    _survey
-- 16424    get_workflow_run
-- 16474    _is_alike
-- 16489    _recorded_runs
-- 16524    _status_option
-- 16555    list_workflow_runs
-- 16639    _member_template
-- 16672    _members
-- 16708    get_workflow_tree
-- 16784    _used_template
-- 16801    _needed_runs
-- 16833    _merge_tallies
-- 16856    cleanup_workflow_runs
-- 16931  65_attributes.sql: Attributes: what a task says of itself while it runs, so that it can be found by it
-- 16935    _word
-- 16949    _check_attributes
-- 16986    _attributes_option
-- 17003    _pinned_template
-- 17022    _pin_template
-- 17053    set_attributes
-- 17082    _told_template
-- 17095    get_attributes
-- 17113  66_messages.sql: Messages: a mailbox per task
-- 17120    _shut_template
-- 17163    _post_template
-- 17212    send_message
-- 17253    _hear_template
-- 17320    receive_message
-- 17358    _unhear_template
-- 17379    _tidy_template
-- 17406    _inbox_template
-- 17432    list_messages
-- 17454  70_handlers.sql: Handlers that are SQL functions, and what they can call; 71_work runs them
-- 17465    _resolve_function
-- 17522    _hire_template
-- 17544    register_handler
-- 17568    unregister_handler
-- 17587    _staff_template
-- 17608    list_handlers
-- 17645    _number_step
-- 17676    _order
-- 17692    step
-- 17726    _doze
-- 17743    sleep_for
-- 17764    sleep_until
-- 17787    await
-- 17821    receive
-- 17853    children
-- 17889  71_work.sql: The worker that runs handlers which are SQL functions: the database itself
-- 17901    _crew
-- 17949    _steps_given
-- 17976    _claim_batch
-- 18019    _grip_template
-- 18035    _begin_pass
-- 18061    _read_error
-- 18090    _carry_out
-- 18170    _run_pass (procedure)
-- 18201    _step_call
-- 18229    _obey (procedure)
-- 18267    _begin_shift
-- 18304    _begin_round
-- 18324    _leave_round
-- 18359    _handler_of
-- 18373    _advance (procedure)
-- 18398    work (procedure)
-- 18449  90_finish.sql: The second segment's functions are those of the first with 0 and 1 exchanged

-- sql/src/00_install.sql
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
    if v_found <> '0.2.0' then
      raise exception 'teguh % is installed, this file is version 0.2.0', v_found
        using
          errcode = 'TG010',
          detail = 'Re-running the file refreshes one version and never changes tables.',
          hint = format(
            'Run sql/upgrade/teguh--%s--0.2.0.sql, or install into another database.',
            v_found
          );
    end if;
  end if;
end;
$$;

-- sql/src/01_version.sql
-- What the schema is, and its version.
comment on schema teguh is
  'Durable execution as SQL functions: tasks, retries, steps, sleeps, events. '
  'One set of tables and functions per queue, stamped from the queue "template".';

-- The version of the installed schema.
create or replace function teguh.version()
  returns text
  language sql
  immutable
  parallel safe
as $$
  select '0.2.0'::pg_catalog.text;
$$;

comment on function teguh.version() is
  'The version of the installed schema.';

-- sql/src/10_clock.sql
-- The one clock of the engine.  The setting teguh.fake_now stops it for tests.
create or replace function teguh.current_time()
  returns timestamptz
  language sql
  volatile
as $$
  select case
    when pg_catalog.length(pg_catalog.btrim(pg_catalog.current_setting('teguh.fake_now', true)))
      operator(pg_catalog.>) 0
      then pg_catalog.current_setting('teguh.fake_now', true)::timestamp with time zone
    else pg_catalog.clock_timestamp()
  end;
$$;

comment on function teguh.current_time() is
  'The time every part of teguh goes by but the lag of the ticker: the setting '
  'teguh.fake_now when it is not blank (a clock for tests), else '
  'clock_timestamp(). Raises 22007 when teguh.fake_now is not a timestamp.';

-- A moment some seconds after another.  Saturates instead of overflowing.
create or replace function teguh._after(p_from timestamptz, p_seconds double precision)
  returns timestamptz
  language sql
  stable
as $$
  select case
    when p_seconds operator(pg_catalog.>) 3e9::double precision
      then 'infinity'::timestamp with time zone
    when p_seconds operator(pg_catalog.<) '-3e9'::double precision
      then '-infinity'::timestamp with time zone
    else p_from operator(pg_catalog.+) pg_catalog.make_interval(secs => p_seconds)
  end;
$$;

-- A moment as microseconds since 1970, the form in which a register keeps it.
create or replace function teguh._micros(p_at timestamptz)
  returns bigint
  language sql
  stable
as $$
  select (
    pg_catalog.date_part('epoch', least(p_at, '9999-12-31 00:00:00+00'::timestamp with time zone))
    operator(pg_catalog.*) 1000000
  )::bigint;
$$;

-- sql/src/11_uuid.sql
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

-- sql/src/12_types.sql
-- The composite types that functions pass to each other.
do $$
begin
  if to_regtype('teguh._gap') is null then
    create type teguh._gap as (
      xid      xid8,
      low_seq  bigint,
      high_seq bigint
    );
  end if;

  if to_regtype('teguh._late') is null then
    create type teguh._late as (
      xid   xid8,
      since timestamptz
    );
  end if;

  if to_regtype('teguh._timer') is null then
    create type teguh._timer as (
      task_id uuid,
      turn    integer
    );
  end if;

  if to_regtype('teguh._tally') is null then
    create type teguh._tally as (
      task_name text,
      was       "char",
      became    "char",
      most      double precision,
      qty       bigint,
      seconds   double precision
    );
  end if;

  if to_regtype('teguh._picked') is null then
    create type teguh._picked as (
      task_ids uuid[],
      turns    integer[],
      names    text[],
      was      "char"[],
      limited  boolean,
      first    teguh._gap,
      woke     bigint
    );
  end if;

  if to_regtype('teguh._spawn') is null then
    create type teguh._spawn as (
      task_name       text,
      params          jsonb,
      headers         jsonb,
      retry_strategy  jsonb,
      max_attempts    integer,
      cancellation    jsonb,
      idempotency_key text,
      return_mismatch boolean,
      available_at    timestamptz,
      tags            text[],
      correlation_id  text,
      parent_task_id  uuid,
      workflow_run_id uuid,
      timeout_seconds double precision,
      expires_at      timestamptz,
      on_expired      jsonb,
      uniqueness      jsonb,
      priority        smallint,
      flow_key        text,
      links           jsonb
    );
  end if;

  if to_regtype('teguh._cron') is null then
    create type teguh._cron as (
      every_seconds bigint,
      seconds       text,
      minutes       text,
      hours         text,
      days          text,
      months        text,
      weekdays      text,
      either_day    boolean,
      goes_on       boolean
    );
  end if;

  if to_regtype('teguh._filter') is null then
    create type teguh._filter as (
      states          text[],
      task_name       text,
      tags            text[],
      correlation_id  text,
      parent_task_id  uuid,
      workflow_run_id uuid,
      created_after   timestamptz,
      created_before  timestamptz,
      claimed_by      text,
      attributes      jsonb
    );
  end if;

  if to_regtype('teguh.job') is null then
    create type teguh.job as (
      queue_name    text,
      task_id       uuid,
      run_id        uuid,
      task_name     text,
      params        jsonb,
      headers       jsonb,
      attempt       integer,
      failures      integer,
      wake_event    text,
      event_payload jsonb,
      steps         jsonb
    );
  end if;

  if to_regtype('teguh._shift') is null then
    create type teguh._shift as (
      worker_id     text,
      batch         integer,
      lease         double precision,
      known_only    boolean,
      unknown_delay double precision,
      poll_seconds  double precision,
      until         timestamptz,
      ticks_at      timestamptz,
      left_to_claim integer,
      pause         double precision
    );
  end if;
end;
$$;

comment on type teguh._gap is
  'A stretch of one transaction''s ready rows, both ends included, that the scan '
  'position has left behind and claims still look at.';
comment on type teguh._late is
  'A transaction that was open when the timer position moved, and the position '
  'from which its rows may still turn up.';
comment on type teguh._timer is
  'A timer that has come due: a task and the turn it was set for.';
comment on type teguh._picked is
  'What a claim took: tasks, their turns, names and where they stood; whether one of them has '
  'a timer of its own; the place of the first one past the scan position, the most of their '
  'woke.';
comment on type teguh._tally is
  'How many tasks of a name changed so: where they stood and stand (see teguh._letter). If '
  'their runs ended, they took at most so many seconds each, so many all together; else 0.';
comment on type teguh._spawn is
  'One task to spawn, its options checked.';
comment on type teguh._cron is
  'A schedule that was read: a number of seconds, or fields as strings of 0 and 1 from the '
  'value 0 on. either_day: one of day of month and day of week is enough. goes_on: it goes by '
  'the time that passes, not by places on the clock.';
comment on type teguh._filter is
  'Which tasks are meant; what is null does not matter.';
comment on type teguh.job is
  'What the handler of a task is given: the task and its run, as claim_task() returns them. steps '
  'is for step() and its like to read: what each step has given, in an array that is empty if '
  'its wait timed out.';
comment on type teguh._shift is
  'A call of work(): its options; when it ticks next; how many runs it may still claim; how many '
  'seconds it is to pause, null when it is to end.';

-- sql/src/13_options.sql
-- Refuse keys that are not options.  An option misspelt must never be ignored.
create or replace function teguh._check_keys(p_what text, p_options jsonb, p_known text[])
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
begin
  if jsonb_typeof(p_options) is distinct from 'object' then
    raise exception '% must be a JSON object', p_what
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_options::text, 'null'), 200)),
        hint = 'Pass an object such as {}.';
  end if;

  select k.key into v_unknown
  from jsonb_object_keys(p_options) as k(key)
  where k.key <> all (p_known)
  limit 1;

  if found then
    raise exception 'unknown key "%" in %', left(v_unknown, 200), p_what
      using
        errcode = 'TG005',
        detail = format('Known keys: %s.', array_to_string(p_known, ', ')),
        hint = 'Check the spelling.';
  end if;
end;
$$;

-- Read an option that must be a number within bounds; null when absent or null.
create or replace function teguh._number_option(
  p_options jsonb,
  p_key     text,
  p_least   double precision,
  p_most    double precision
)
  returns double precision
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value jsonb := p_options -> p_key;
begin
  if v_value is null or v_value = 'null' then
    return null;
  end if;

  if jsonb_typeof(v_value) <> 'number'
    or v_value::numeric < p_least::numeric
    or v_value::numeric > p_most::numeric
  then
    raise exception '"%" must be a number from % to %', p_key, p_least, p_most
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = 'Give a JSON number within these bounds; durations are in seconds.';
  end if;

  -- what is too small for a double precision is an error to the cast
  return case when abs(v_value::numeric) >= 1e-300 then v_value::double precision else 0 end;
end;
$$;

-- Read an option that must be a whole number within bounds; null when absent.
create or replace function teguh._integer_option(
  p_options jsonb,
  p_key     text,
  p_least   integer
)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._whole_option(p_options, p_key, p_least, 2147483647);
end;
$$;

-- The same up to another bound.
create or replace function teguh._whole_option(
  p_options jsonb,
  p_key     text,
  p_least   integer,
  p_most    integer
)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value double precision := teguh._number_option(p_options, p_key, p_least, p_most);
begin
  if v_value <> floor(v_value) then
    raise exception '"%" must be a whole number', p_key
      using
        errcode = 'TG005',
        detail = format('Found: %s.', p_options -> p_key),
        hint = format('Use %s or %s.', floor(v_value), ceil(v_value));
  end if;

  return v_value::integer;
end;
$$;

-- Read an option that must be a string; null when absent or null.
create or replace function teguh._text_option(p_options jsonb, p_key text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value jsonb := p_options -> p_key;
begin
  if v_value is null or v_value = 'null' then
    return null;
  end if;

  if jsonb_typeof(v_value) <> 'string' then
    raise exception '"%" must be a string', p_key
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = 'Put the value in double quotes.';
  end if;

  return p_options ->> p_key;
end;
$$;

-- Read an option that must be true or false; false when absent or null.
create or replace function teguh._flag_option(p_options jsonb, p_key text)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value jsonb := coalesce(nullif(p_options -> p_key, 'null'), 'false');
begin
  if jsonb_typeof(v_value) <> 'boolean' then
    raise exception '"%" must be true or false', p_key
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = 'Without quotes.';
  end if;

  return v_value::boolean;
end;
$$;

-- An object without those of its keys that are null; what is inside them stays as it is.
create or replace function teguh._present(p_object jsonb)
  returns jsonb
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(e.key, e.value) filter (where e.value <> 'null')
  from jsonb_each(p_object) as e(key, value);
$$;

-- Read an option that must be a name; null when absent or null.
create or replace function teguh._name_option(p_options jsonb, p_key text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := teguh._text_option(p_options, p_key);
begin
  if v_name is not null then
    perform teguh._check_name(replace(p_key, '_', ' '), v_name);
  end if;
  return v_name;
end;
$$;

-- Read an option that must be a uuid; null when absent or null.
create or replace function teguh._uuid_option(p_options jsonb, p_key text)
  returns uuid
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value text := teguh._text_option(p_options, p_key);
begin
  if v_value is null then
    return null;
  end if;

  begin
    return v_value::uuid;
  exception
    when invalid_text_representation then
      raise exception '"%" must be a uuid', p_key
        using
          errcode = 'TG005',
          detail = format('Found: "%s".', left(v_value, 200)),
          hint = 'For instance the task_id that spawn_task() returned.';
  end;
end;
$$;

-- Read the tags of a spawn: an array of names; null when absent, null or empty.
create or replace function teguh._tags_option(p_options jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value jsonb := nullif(p_options -> 'tags', 'null');
  v_tags  text[];
begin
  if jsonb_typeof(v_value) <> 'array'
    or jsonb_path_exists(v_value, 'strict $[*] ? (@.type() <> "string")')
  then
    raise exception '"tags" must be an array of strings'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = 'For instance ["nightly", "billing"].';
  end if;

  select array_agg(a.tag order by a.place) into v_tags
  from jsonb_array_elements_text(v_value) with ordinality as a(tag, place);
  perform teguh._check_name('tag', t.tag)
  from unnest(v_tags) as t(tag);
  return v_tags;
end;
$$;

-- Refuse a blank or overlong name.  Names are index keys, hence the limit.
create or replace function teguh._check_name(p_what text, p_name text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_name is null or btrim(p_name) = '' then
    raise exception '% must not be blank', p_what
      using
        errcode = 'TG005',
        detail = 'The name is null, empty or only spaces.',
        hint = 'Give it a name.';
  end if;

  if octet_length(p_name) > 1024 then
    raise exception '% is longer than 1024 bytes', p_what
      using
        errcode = 'TG005',
        detail = format('It has %s bytes and begins with "%s".', octet_length(p_name),
          left(p_name, 60)),
        hint = 'Put the data into params or the payload, and a short name here.';
  end if;
end;
$$;

-- Refuse a duration that is null, not a number, or below a bound.
create or replace function teguh._check_seconds(
  p_what    text,
  p_seconds double precision,
  p_zero_ok boolean
)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_seconds is null
    or p_seconds = 'NaN'
    or p_seconds < 0
    or (p_seconds = 0 and not p_zero_ok)
  then
    raise exception '% must be % of seconds', p_what,
      case when p_zero_ok then 'zero or a positive number' else 'a positive number' end
      using
        errcode = 'TG005',
        detail = format('Found: %s.', coalesce(p_seconds::text, 'null')),
        hint = 'Fractions such as 0.5 are fine.';
  end if;
end;
$$;

-- Functions that look at what others have just committed need a fresh snapshot
-- per statement.
create or replace function teguh._check_isolation(p_function text)
  returns void
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception '% must run in a READ COMMITTED transaction', p_function
      using
        errcode = '25001',
        detail = format('The isolation level is %s: what others commit meanwhile cannot be seen.',
          upper(current_setting('transaction_isolation'))),
        hint = 'Call it outside of the transaction, or begin that with READ COMMITTED.';
  end if;
end;
$$;

-- Read the bounds of a queue's duration buckets; null when absent or null.
create or replace function teguh._buckets_option(p_policy jsonb)
  returns double precision[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value  jsonb := nullif(p_policy -> 'duration_buckets', 'null');
  v_bounds double precision[];
begin
  if v_value is null then
    return null;
  end if;

  if jsonb_path_exists(
      v_value, 'strict $ ? (@.type() == "array" && @.size() >= 1 && @.size() <= 50)'
    )
    and not jsonb_path_exists(v_value, 'strict $[*] ? (@.type() <> "number" || @ <= 0 || @ > 1e12)')
  then
    v_bounds := array(
      select distinct b.bound::double precision as bound
      from jsonb_array_elements_text(v_value) as b(bound)
      order by bound
    );
  end if;
  if to_jsonb(v_bounds) = v_value then
    return v_bounds;
  end if;

  raise exception '"duration_buckets" must be an ascending array of seconds'
    using
      errcode = 'TG005',
      detail = format('Found: %s.', left(v_value::text, 200)),
      hint = 'For instance [0.1, 1, 10, 60]: at most 50 bounds, each above zero.';
end;
$$;

-- Read the options of a queue's policy, refusing what is not understood.
create or replace function teguh._check_policy(p_policy jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_notify text;
begin
  perform teguh._check_keys('queue policy', p_policy, array[
    'notify', 'cleanup_ttl', 'cleanup_limit', 'default_max_attempts', 'default_retry_strategy',
    'default_timeout', 'default_ttl', 'duration_buckets', 'max_pending', 'on_full', 'max_messages',
    'namespace', 'history'
  ]);
  perform teguh._number_option(p_policy, 'cleanup_ttl', 0, 1e12);
  perform teguh._integer_option(p_policy, 'cleanup_limit', 1);
  perform teguh._integer_option(p_policy, 'default_max_attempts', 1);
  perform teguh._check_retry_strategy(p_policy -> 'default_retry_strategy');
  perform teguh._number_option(p_policy, 'default_timeout', 1e-3, 1e12);
  perform teguh._number_option(p_policy, 'default_ttl', 1e-3, 1e12);
  perform teguh._buckets_option(p_policy);
  perform teguh._integer_option(p_policy, 'max_pending', 1);
  perform teguh._integer_option(p_policy, 'max_messages', 1);
  perform teguh._flag_option(p_policy, 'history');

  if teguh._text_option(p_policy, 'on_full') not in ('reject', 'drop_oldest') then
    raise exception 'unknown on_full "%"', left(p_policy ->> 'on_full', 200)
      using
        errcode = 'TG005',
        detail = 'Known values: reject, drop_oldest.',
        hint = 'reject raises TG007 at the spawn, drop_oldest cancels what is first in line.';
  end if;

  if teguh._text_option(p_policy, 'namespace') is not null then
    perform teguh._check_name('namespace', p_policy ->> 'namespace');
  end if;

  v_notify := teguh._text_option(p_policy, 'notify');
  if v_notify not in ('auto', 'always', 'off') then
    raise exception 'unknown notify policy "%"', left(v_notify, 200)
      using
        errcode = 'TG005',
        detail = 'Known policies: auto, always, off.',
        hint = 'auto notifies when a worker is waiting.';
  end if;
end;
$$;

-- Turn one task and its options into a row to insert, or raise.  p_policy gives
-- the defaults of the queue.
create or replace function teguh._check_spawn(
  p_queue_name text,
  p_task_name  text,
  p_params     jsonb,
  p_options    jsonb,
  p_policy     jsonb
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_spawn   teguh._spawn;
begin
  perform teguh._check_name('task name', p_task_name);
  v_spawn.task_name := p_task_name;
  v_spawn.params := coalesce(p_params, 'null');
  v_spawn.return_mismatch := false;

  if v_options <> '{}' then
    v_spawn := teguh._read_spawn_options(p_queue_name, v_spawn, v_options);
  end if;

  if p_policy <> '{}' then
    if v_spawn.retry_strategy is null then
      v_spawn.retry_strategy := nullif(p_policy -> 'default_retry_strategy', 'null');
    end if;
    if not v_options ? 'max_attempts' then
      v_spawn.max_attempts := (p_policy ->> 'default_max_attempts')::integer;
    end if;
    if not v_options ? 'timeout_seconds' then
      v_spawn.timeout_seconds := (p_policy ->> 'default_timeout')::double precision;
    end if;
    if not v_options ?| '{ttl_seconds,deadline_at}' then
      v_spawn.expires_at := teguh._after(
        greatest(v_spawn.available_at, teguh.current_time()),
        (p_policy ->> 'default_ttl')::double precision
      );
    end if;
  end if;
  return v_spawn;
end;
$$;

-- Read the options of one spawn into the row.
create or replace function teguh._read_spawn_options(
  p_queue_name text,
  p_spawn      teguh._spawn,
  p_options    jsonb
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn    teguh._spawn := p_spawn;
  v_mismatch text;
begin
  perform teguh._check_keys('spawn options', p_options, array[
    'headers', 'retry_strategy', 'max_attempts', 'cancellation', 'idempotency_key',
    'idempotency_mismatch', 'available_at', 'delay_seconds', 'tags', 'correlation_id',
    'parent_task_id', 'parent_run_id', 'parent_queue_name', 'workflow_run_id', 'timeout_seconds',
    'ttl_seconds', 'deadline_at', 'on_expired', 'unique', 'priority', 'key',
    'sequence', 'on_failure', 'compensate'
  ]);

  v_spawn.headers := nullif(p_options -> 'headers', 'null');
  if jsonb_typeof(v_spawn.headers) <> 'object' then
    raise exception '"headers" must be a JSON object'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_spawn.headers::text, 200)),
        hint = 'For instance {"traceparent": "00-…"}.';
  end if;

  v_spawn.retry_strategy := nullif(p_options -> 'retry_strategy', 'null');
  perform teguh._check_retry_strategy(v_spawn.retry_strategy);
  v_spawn.max_attempts := teguh._integer_option(p_options, 'max_attempts', 1);
  v_spawn.cancellation := nullif(p_options -> 'cancellation', 'null');
  perform teguh._check_cancellation(v_spawn.cancellation);

  v_spawn.idempotency_key := teguh._text_option(p_options, 'idempotency_key');
  if v_spawn.idempotency_key is not null then
    perform teguh._check_name('idempotency key', v_spawn.idempotency_key);
  end if;
  v_mismatch := teguh._text_option(p_options, 'idempotency_mismatch');
  if v_mismatch not in ('return', 'error') then
    raise exception 'unknown idempotency_mismatch "%"', left(v_mismatch, 200)
      using
        errcode = 'TG005',
        detail = 'Known values: error, return.',
        hint = 'With return the existing task is returned whatever it was spawned with.';
  end if;
  v_spawn.return_mismatch := coalesce(v_mismatch = 'return', false);

  v_spawn.available_at := teguh._moment_option(
    p_options, 'available_at', 'delay_seconds', 0, teguh.current_time()
  );
  v_spawn.tags := teguh._tags_option(p_options);
  v_spawn.correlation_id := teguh._name_option(p_options, 'correlation_id');
  v_spawn.parent_task_id := teguh._uuid_option(p_options, 'parent_task_id');
  v_spawn.workflow_run_id := teguh._uuid_option(p_options, 'workflow_run_id');
  if p_options ?| '{timeout_seconds,ttl_seconds,deadline_at,on_expired}' then
    v_spawn := teguh._read_time_options(p_queue_name, v_spawn, p_options);
  end if;
  v_spawn.priority := nullif(teguh._whole_option(p_options, 'priority', -32768, 32767), 0);
  v_spawn.flow_key := teguh._name_option(p_options, 'key');
  if p_options ? 'unique' then
    v_spawn.uniqueness := teguh._unique_option(p_options);
  end if;
  if p_options ?| '{sequence,on_failure,compensate}' then
    v_spawn.links := teguh._links_option(p_queue_name, p_options);
  end if;
  if p_options ? 'parent_run_id' then
    v_spawn := teguh._inherit(p_queue_name, v_spawn, p_options);
  end if;
  return v_spawn;
end;
$$;

-- Read an option that must be a timestamp; null when absent or null.
create or replace function teguh._time_option(p_options jsonb, p_key text)
  returns timestamptz
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value text := teguh._text_option(p_options, p_key);
begin
  return v_value::timestamptz;
exception
  when invalid_datetime_format or datetime_field_overflow or invalid_parameter_value then
    raise exception '"%" is not a timestamp', p_key
      using
        errcode = 'TG005',
        detail = format('Found: "%s".', left(v_value, 200)),
        hint = 'Use ISO 8601 with an offset, for instance 2027-01-31T09:00:00+00.';
end;
$$;

-- Read a moment that is given as such or in seconds from another; null when neither is.
create or replace function teguh._moment_option(
  p_options jsonb,
  p_at      text,
  p_seconds text,
  p_least   double precision,
  p_from    timestamptz
)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_seconds double precision := teguh._number_option(p_options, p_seconds, p_least, 1e12);
begin
  if p_options ->> p_at is null then
    return teguh._after(p_from, v_seconds);
  end if;

  if v_seconds is not null then
    raise exception 'both "%" and "%" are given', p_at, p_seconds
      using
        errcode = 'TG005',
        detail = 'They name the same moment in two ways.',
        hint = 'Give one of them.';
  end if;

  return teguh._time_option(p_options, p_at);
end;
$$;

-- Read how long a task may take, at a time and altogether, and what follows when it expires.
create or replace function teguh._read_time_options(
  p_queue_name text,
  p_spawn      teguh._spawn,
  p_options    jsonb
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn      teguh._spawn := p_spawn;
  v_queue_name text;
begin
  v_spawn.timeout_seconds := teguh._number_option(p_options, 'timeout_seconds', 1e-3, 1e12);
  v_spawn.expires_at := teguh._moment_option(
    p_options, 'deadline_at', 'ttl_seconds', 1e-3,
    greatest(v_spawn.available_at, teguh.current_time())
  );
  v_spawn.on_expired := nullif(p_options -> 'on_expired', 'null');
  if v_spawn.on_expired is null then
    return v_spawn;
  end if;

  perform teguh._check_keys(
    'on_expired', v_spawn.on_expired, array['queue_name', 'task_name', 'params', 'options']
  );
  v_queue_name := coalesce(
    teguh._text_option(v_spawn.on_expired, 'queue_name'), p_queue_name
  );
  perform teguh._read_task(
    v_queue_name, v_spawn.on_expired - 'queue_name', teguh._policy(v_queue_name)
  );
  perform teguh._check_spawner(p_queue_name, v_queue_name);
  return v_spawn;
end;
$$;

-- Read in what way a task is to be the only one of its key; null when absent or null.
create or replace function teguh._unique_option(p_options jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_unique   jsonb := nullif(p_options -> 'unique', 'null');
  v_conflict text;
begin
  if v_unique is null then
    return null;
  end if;

  perform teguh._check_keys('unique', v_unique, array[
    'key', 'states', 'on_conflict', 'window_seconds', 'max_wait_seconds'
  ]);
  perform teguh._check_name('unique key', teguh._text_option(v_unique, 'key'));
  perform teguh._number_option(v_unique, 'window_seconds', 1e-3, 1e12);
  perform teguh._number_option(v_unique, 'max_wait_seconds', 1e-3, 1e12);
  v_conflict := coalesce(teguh._text_option(v_unique, 'on_conflict'), 'error');

  if v_conflict not in ('error', 'return', 'replace', 'debounce') then
    raise exception 'unknown on_conflict "%"', left(v_conflict, 200)
      using
        errcode = 'TG005',
        detail = 'Known values: error, return, replace, debounce.',
        hint = 'replace and debounce change a task that has not started yet.';
  elsif v_conflict in ('replace', 'debounce') and v_unique ?| '{states,window_seconds}'
    or v_conflict <> 'debounce' and v_unique ? 'max_wait_seconds'
  then
    raise exception '"unique" has keys that do not go together'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_unique::text, 200)),
        hint = 'states, window_seconds: error and return; max_wait_seconds: debounce.';
  elsif v_unique ? 'states' and not coalesce(
    jsonb_typeof(v_unique -> 'states') = 'array'
    and v_unique -> 'states' <@ '["pending", "running", "sleeping", "completed", "failed",
      "cancelled", "expired"]', false
  ) then
    raise exception '"states" must be an array of states'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left((v_unique -> 'states')::text, 200)),
        hint = 'For instance ["pending", "running", "sleeping"], which is the default.';
  end if;

  return v_unique || jsonb_build_object('on_conflict', v_conflict);
end;
$$;

-- Take from the run that spawns a task what the options do not say: the task it is for, the
-- workflow run, the matter, the tags.
create or replace function teguh._inherit(
  p_queue_name text,
  p_spawn      teguh._spawn,
  p_options    jsonb
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn  teguh._spawn := p_spawn;
  v_run_id uuid := teguh._uuid_option(p_options, 'parent_run_id');
  v_queue  text := coalesce(teguh._text_option(p_options, 'parent_queue_name'), p_queue_name);
  v_parent record;
begin
  select r.* into v_parent
  from teguh.get_task_result(v_queue, teguh._run_task(v_run_id)) as r;

  v_spawn.parent_task_id := coalesce(v_spawn.parent_task_id, v_parent.task_id);
  v_spawn.workflow_run_id := coalesce(v_spawn.workflow_run_id, v_parent.workflow_run_id);
  v_spawn.correlation_id := coalesce(v_spawn.correlation_id, v_parent.correlation_id);
  if not p_options ? 'tags' then
    v_spawn.tags := v_parent.tags;
  end if;
  return v_spawn;
end;
$$;

-- Refuse a cancellation policy with anything but positive seconds.
create or replace function teguh._check_cancellation(p_cancellation jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_cancellation is null then
    return;
  end if;

  perform teguh._check_keys('cancellation', p_cancellation, array['max_delay', 'max_duration']);
  perform teguh._number_option(p_cancellation, 'max_delay', 1e-6, 1e12);
  perform teguh._number_option(p_cancellation, 'max_duration', 1e-6, 1e12);
end;
$$;

-- sql/src/14_retry.sql
-- Refuse a retry strategy that could not be carried out.  Null is the default
-- strategy.
create or replace function teguh._check_retry_strategy(p_strategy jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind text;
begin
  if p_strategy is null or p_strategy = 'null' then
    return;
  end if;

  perform teguh._check_keys('retry strategy', p_strategy, array[
    'kind', 'base_seconds', 'factor', 'max_seconds', 'jitter'
  ]);
  perform teguh._number_option(p_strategy, 'base_seconds', 0, 1e12);
  perform teguh._number_option(p_strategy, 'factor', 0, 1e6);
  perform teguh._number_option(p_strategy, 'max_seconds', 0, 1e12);
  perform teguh._number_option(p_strategy, 'jitter', 0, 1);

  v_kind := teguh._text_option(p_strategy, 'kind');
  if v_kind is null
    or v_kind not in ('none', 'fixed', 'exponential', 'linear', 'quadratic')
  then
    raise exception 'unknown retry strategy "%"', left(coalesce(v_kind, 'null'), 200)
      using
        errcode = 'TG005',
        detail = 'Known kinds: none, fixed, exponential, linear, quadratic.',
        hint = 'For instance {"kind": "fixed", "base_seconds": 10}.';
  end if;
end;
$$;

-- Seconds to wait before the run that follows this many failures.  Without a
-- strategy: exponential, base 1, factor 2, cap 300, jitter 0.1.  The jitter is a
-- hash of task and failures, so the same failure always waits as long.  Grows to
-- the cap and stays there: nothing overflows, however many failures there are.
create or replace function teguh._backoff(
  p_strategy jsonb,
  p_failures integer,
  p_task_id  uuid
)
  returns double precision
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind   text := coalesce(p_strategy ->> 'kind', 'exponential');
  v_base   double precision := (p_strategy ->> 'base_seconds')::double precision;
  v_factor double precision := coalesce((p_strategy ->> 'factor')::double precision, 2);
  v_most   double precision := coalesce(
    (p_strategy ->> 'max_seconds')::double precision,
    case when p_strategy is null then 300 else 1e9 end
  );
  v_jitter double precision := coalesce(
    (p_strategy ->> 'jitter')::double precision,
    case when p_strategy is null then 0.1 else 0 end
  );
  v_delay  double precision;
begin
  if v_kind = 'none' then
    return 0;
  elsif v_kind = 'fixed' then
    v_delay := coalesce(v_base, 60);
  elsif v_kind in ('linear', 'quadratic') then
    v_delay := coalesce(v_base, 30) * p_failures::double precision
               * case v_kind when 'linear' then 1 else p_failures end;
  else
    v_base := coalesce(v_base, case when p_strategy is null then 1 else 30 end);
    -- v_base * v_factor ^ (p_failures - 1), by way of logarithms: power() overflows, and
    -- exp() raises when it underflows
    v_delay := case
      when v_base = 0 then 0
      else exp(greatest(
        least(
          ln(v_base) + (p_failures - 1) * ln(greatest(v_factor, 1e-12)),
          ln(1e12::double precision)
        ),
        -600
      ))
    end;
  end if;

  v_delay := least(v_delay, v_most);
  return v_delay * (1 - v_jitter * teguh._fraction(p_task_id::text || p_failures));
end;
$$;

-- A number from 0 up to 1 that is always the same for the same text.
create or replace function teguh._fraction(p_text text)
  returns double precision
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (hashtextextended(p_text, 0) & 1048575) / 1048576.0::double precision;
end;
$$;

-- sql/src/20_tables.sql
-- Queues and the policy of each.
create table if not exists teguh.queues (
  queue_name   text        not null,
  policy       jsonb       not null default '{}',
  created_at   timestamptz not null,
  built_for    bigint,
  paused_until timestamptz,
  ruled        boolean     not null default false,
  buckets      float8[] not null default '{0.005,0.01,0.05,0.1,0.5,1,5,10,30,60,300,1800}',
  constraint queues_pkey primary key (queue_name)
);

comment on table teguh.queues is
  'One row per queue. A queue''s own tables are named after it: t_<queue> and so on.';
comment on column teguh.queues.policy is
  'Settings given to create_queue(): notify, cleanup_ttl, cleanup_limit, '
  'default_max_attempts, default_retry_strategy, default_timeout, default_ttl, '
  'duration_buckets, max_pending, on_full, max_messages, history, namespace.';

comment on column teguh.queues.built_for is
  'The database and table that the queue''s dispatch was built for, as a hash. Another '
  'one tells that the queue was restored from a dump.';

comment on column teguh.queues.buckets is
  'Bounds of the buckets in which the durations of runs are counted, in seconds, ascending.';

comment on column teguh.queues.ruled is
  'Whether claims go by lanes: the queue has a limit, a task with a priority, or workers that '
  'say which tasks they know. It stays so.';

comment on column teguh.queues.paused_until is
  'Until when claims return nothing; null unless it was paused.';

-- Who may do what.
create table if not exists teguh.grants (
  grantee    regrole not null,
  access     text    not null,
  queue_name text    not null,
  constraint grants_pkey primary key (grantee, access, queue_name)
);

comment on table teguh.grants is
  'Rights given by grant_access(): kept so that they can be given again for a new queue '
  'or a new function.';
comment on column teguh.grants.queue_name is
  'The queue the right is for; * for every queue, also those to come.';

-- Limits on what runs.
create table if not exists teguh.limits (
  queue_name     text    not null,
  scope          text    not null,
  name           text    not null,
  max_running    integer,
  rate           integer,
  period_seconds double precision,
  fifo           boolean not null default false,
  fair           boolean not null default false,
  set_at         timestamptz,
  constraint limits_pkey primary key (queue_name, scope, name)
);

comment on table teguh.limits is
  'Limits set by set_limit().';
comment on column teguh.limits.queue_name is
  'The queue the limit is for; * for all of them together.';
comment on column teguh.limits.name is
  'The task name or key, * for each that has no limit of its own; empty for a whole queue.';

-- Pauses of a part of a queue.
create table if not exists teguh.pauses (
  queue_name   text        not null,
  scope        text        not null,
  name         text        not null,
  paused_until timestamptz not null,
  constraint pauses_pkey primary key (queue_name, scope, name)
);

comment on table teguh.pauses is
  'Task names and keys (scope task, key) of which claims return nothing until then.';

-- When tasks were started that count against a rate.
create table if not exists teguh.starts (
  queue_name text        not null,
  scope      text        not null,
  name       text        not null,
  started_at timestamptz not null,
  qty        integer     not null
);

create index if not exists starts_lookup
  on teguh.starts (queue_name, scope, name, started_at);

comment on table teguh.starts is
  'How many tasks were started when, for limits with a rate. Deleted when the period is over.';

-- The task names that workers ask for.
create table if not exists teguh.wanted (
  queue_name text        not null,
  task_name  text        not null,
  seen_at    timestamptz not null,
  constraint wanted_pkey primary key (queue_name, task_name)
);

comment on table teguh.wanted is
  'The task names that workers which say what they know have asked for, and when last, to a '
  'minute.';

-- Schedules.
create table if not exists teguh.schedules (
  schedule_name   text             not null,
  queue_name      text             not null,
  task_name       text             not null,
  schedule        text             not null,
  timezone        text             not null default 'UTC',
  params          jsonb            not null default 'null',
  task_options    jsonb            not null default '{}',
  catch_up        text             not null default 'one',
  overlap         text             not null default 'allow',
  jitter_seconds  double precision not null default 0,
  starts_at       timestamptz,
  ends_at         timestamptz,
  created_at      timestamptz      not null,
  paused_at       timestamptz,
  planned_at      timestamptz,
  next_at         timestamptz,
  last_planned_at timestamptz,
  last_fired_at   timestamptz,
  last_skipped_at timestamptz,
  last_task_id    uuid,
  last_error      text,
  open_task_ids   uuid[]           not null default '{}',
  constraint schedules_pkey primary key (schedule_name)
);

create index if not exists schedules_due
  on teguh.schedules (queue_name, next_at)
  where next_at is not null;

comment on table teguh.schedules is
  'Schedules set by create_schedule(): what is spawned when, and when that was last done.';
comment on column teguh.schedules.planned_at is
  'The next time it is to fire; null while it is paused, and when there is none any more.';
comment on column teguh.schedules.next_at is
  'When it is looked at next: at that time, or later if firing then was tried and failed.';
comment on column teguh.schedules.last_skipped_at is
  'The last planned time at which nothing was spawned: missed, or the task before was not over.';
comment on column teguh.schedules.last_error is
  'Why the last try to fire failed; null when it did not.';
comment on column teguh.schedules.open_task_ids is
  'With overlap skip: tasks it spawned before the last that may not be over yet.';

-- Workflow runs.
create table if not exists teguh.workflow_runs (
  workflow_run_id uuid        not null,
  name            text        not null,
  version         text,
  inputs          jsonb,
  tags            text[],
  created_by      text,
  idempotency_key text,
  created_at      timestamptz not null,
  kept_at         timestamptz not null,
  constraint workflow_runs_pkey primary key (workflow_run_id)
);

create unique index if not exists workflow_runs_once
  on teguh.workflow_runs (idempotency_key)
  where idempotency_key is not null;
create index if not exists workflow_runs_name
  on teguh.workflow_runs (name collate "C", workflow_run_id);
create index if not exists workflow_runs_kept
  on teguh.workflow_runs (kept_at);

comment on table teguh.workflow_runs is
  'Workflow runs made by create_workflow_run(). How they stand, their tasks say.';
comment on column teguh.workflow_runs.kept_at is
  'When cleanup last saw that it is in use; when it was created if it has not looked yet.';

-- What the tasks of workflow runs came to that are gone.
create table if not exists teguh.workflow_tallies (
  workflow_run_id uuid        not null,
  queue_name      text        not null,
  state           text        not null,
  own             boolean     not null,
  qty             bigint      not null,
  started_at      timestamptz,
  finished_at     timestamptz not null
);

create index if not exists workflow_tallies_lookup
  on teguh.workflow_tallies (workflow_run_id);

comment on table teguh.workflow_tallies is
  'How tasks of workflow runs ended that were cleaned up, or went down with their queue. Only '
  'inserted; deleted with the workflow run.';
comment on column teguh.workflow_tallies.own is
  'Whether the run depends on how they ended: see _is_own().';

-- The handlers of tasks that are SQL functions.
create table if not exists teguh.handlers (
  queue_name    text        not null,
  task_name     text        not null,
  function_name text        not null,
  registered_at timestamptz not null,
  constraint handlers_pkey primary key (queue_name, task_name)
);

comment on table teguh.handlers is
  'Functions set by register_handler(), which work() runs.';
comment on column teguh.handlers.task_name is
  'The tasks it is for; * for those that no other is for.';
comment on column teguh.handlers.function_name is
  'Its schema and name, quoted where needed. It takes a teguh.job.';

-- What nobody but the owner of this schema knows.
create table if not exists teguh.secrets (
  secret text not null
);
insert into teguh.secrets (secret)
select gen_random_uuid()::text || gen_random_uuid()::text
where not exists (select from teguh.secrets);

comment on table teguh.secrets is
  'One row, made at random: with it is sealed which queues a transaction may name (_voucher).';

-- Which versions this schema has had.
create table if not exists teguh.versions (
  version      text        not null,
  installed_at timestamptz not null,
  constraint versions_pkey primary key (version)
);

comment on table teguh.versions is
  'One row per version that was installed here or that this schema was upgraded to.';

-- The template queue: what create_queue() stamps out once per queue, replacing
-- "template" by the queue's name.  No prefix contains another underscore, so
-- the names of two queues cannot meet.

-- Tasks.  No index on a column that changes: every update is a HOT update, and
-- the fill factor leaves room on the page for the versions of one life.
create table if not exists teguh.t_template (
  task_id          uuid        not null,
  run_id           uuid        not null,
  turn             integer     not null,
  attempt          integer     not null default 0,
  failures         integer     not null default 0,
  state            text        not null,
  created_at       timestamptz not null,
  available_at     timestamptz,
  deadline_at      timestamptz,
  first_started_at timestamptz,
  started_at       timestamptz,
  lease_expires_at timestamptz,
  finished_at      timestamptz,
  max_attempts     integer,
  task_name        text        not null,
  claimed_by       text,
  params           jsonb       not null,
  headers          jsonb,
  retry_strategy   jsonb,
  cancellation     jsonb,
  idempotency_key  text,
  wake_event       text,
  event_payload    jsonb,
  result           jsonb,
  failure_reason   jsonb,
  tags             text[],
  correlation_id   text,
  parent_task_id   uuid,
  workflow_run_id  uuid,
  timeout_seconds  double precision,
  expires_at       timestamptz,
  on_expired       jsonb,
  priority         smallint,
  flow_key         text,
  laned            boolean     not null default false,
  links            jsonb,
  constraint tkey_template primary key (task_id)
)
with (
  fillfactor = 25,
  autovacuum_vacuum_scale_factor = 0.05,
  autovacuum_analyze_scale_factor = 0.05
);

create unique index if not exists tonce_template
  on teguh.t_template (idempotency_key)
  where idempotency_key is not null;

-- What tasks are found by. In the order of ids within each value, so that a page of the
-- newest is the end of a stretch of the index. Compared as bytes, a name costs a spawn least.
create index if not exists tname_template
  on teguh.t_template (task_name collate "C", task_id);
create index if not exists tmatter_template
  on teguh.t_template (correlation_id collate "C", task_id)
  where correlation_id is not null;
create index if not exists tparent_template
  on teguh.t_template (parent_task_id, task_id)
  where parent_task_id is not null;
create index if not exists tflow_template
  on teguh.t_template (workflow_run_id, task_id)
  where workflow_run_id is not null;

comment on table teguh.t_template is
  'Tasks: what was asked for, where it stands, and what came of it.';
comment on column teguh.t_template.run_id is
  'The current run. Its number is in the bits that the task''s id leaves zero.';
comment on column teguh.t_template.turn is
  'How often the task has been queued. Dispatch rows and timers name the turn '
  'they are for, and mean nothing once it has passed.';
comment on column teguh.t_template.attempt is
  'How often a worker has been handed the task.';
comment on column teguh.t_template.failures is
  'How many runs failed: by their handler, or because the lease expired.';
comment on column teguh.t_template.available_at is
  'When the task may run; null while only an event can wake it.';
comment on column teguh.t_template.deadline_at is
  'When the task ends of itself: is cancelled by its own policy (max_delay before its '
  'first start, max_duration after), or expires.';
comment on column teguh.t_template.lease_expires_at is
  'When the worker''s claim ends, or would have; null while nobody holds the task, and '
  'when it never ends.';
comment on column teguh.t_template.wake_event is
  'The event that is awaited, or that woke the current turn.';
comment on column teguh.t_template.event_payload is
  'Payload of the event that woke the task; null if the wait timed out.';
comment on column teguh.t_template.failure_reason is
  'Why the last run failed.';
comment on column teguh.t_template.tags is
  'Words given at the spawn to find the task by; null if there are none.';
comment on column teguh.t_template.correlation_id is
  'What ties tasks together that belong to one matter of the application.';
comment on column teguh.t_template.parent_task_id is
  'The task that this one was spawned for; it may lie in another queue.';
comment on column teguh.t_template.workflow_run_id is
  'The workflow run the task belongs to; null if to none.';
comment on column teguh.t_template.timeout_seconds is
  'How long a worker may hold the task at a time; null is without limit.';
comment on column teguh.t_template.expires_at is
  'When the task expires unless it is over; null is never.';
comment on column teguh.t_template.on_expired is
  'The task to spawn when this one expires: queue_name, task_name, params, options.';

comment on column teguh.t_template.priority is
  'How many minutes the task counts as older than it is; null is 0.';
comment on column teguh.t_template.flow_key is
  'What tasks are limited, ordered or taken in turns by; null if by nothing.';
comment on column teguh.t_template.links is
  'What follows when the task is over (sequence, data, on_failure, compensate, undo), whom it is '
  'to be reported to (join), whether it has children that end with it; null if nothing.';
comment on column teguh.t_template.laned is
  'Whether the ready task stands in a lane rather than in dispatch.';

-- The tags of tasks, to find tasks by: inserted with the task, deleted with it.
create table if not exists teguh.g_template (
  tag     text not null,
  task_id uuid not null
);

create unique index if not exists gkey_template
  on teguh.g_template (tag collate "C", task_id);

comment on table teguh.g_template is
  'The tags of each task, once more: here a tag leads to its tasks in the order of their ids.';

-- The attributes of tasks, to find tasks by: written by their runs, deleted with the task.
create table if not exists teguh.v_template (
  task_id uuid not null,
  name    text not null,
  word    text not null,
  constraint vkey_template primary key (task_id, name)
);

create unique index if not exists vfind_template
  on teguh.v_template (name collate "C", word collate "C", task_id);

comment on table teguh.v_template is
  'What tasks say of themselves: attributes and their values.';
comment on column teguh.v_template.word is
  'The value as JSON text, the same for equal values: see _word().';

-- Tasks that ended without success.
create table if not exists teguh.d_template (
  state    text        not null,
  task_id  uuid        not null,
  ended_at timestamptz not null,
  constraint dkey_template primary key (state, task_id)
);

comment on table teguh.d_template is
  'Tasks that failed, expired or were cancelled, so that they are found without looking at '
  'those that completed. A row is a hint: the task''s own state decides.';

-- Dispatch: what is ready, and what becomes so by the passing of time.  Two
-- segments per queue, used in turn.  Rows are only ever inserted; a segment that
-- has nothing left to say is truncated.
create table if not exists teguh.p0_template (
  xid        xid8    not null default pg_current_xact_id(),
  seq        bigint  not null,
  woke       bigint,
  due_at     timestamptz,
  turn       integer not null,
  kind       "char"  not null,
  task_id    uuid    not null,
  more_ids   uuid[],
  more_turns integer[]
)
with (autovacuum_enabled = off);

create table if not exists teguh.p1_template (
  xid        xid8    not null default pg_current_xact_id(),
  seq        bigint  not null,
  woke       bigint,
  due_at     timestamptz,
  turn       integer not null,
  kind       "char"  not null,
  task_id    uuid    not null,
  more_ids   uuid[],
  more_turns integer[]
)
with (autovacuum_enabled = off);

create index if not exists p0ready_template
  on teguh.p0_template (xid, seq)
  where kind = 'r';
create index if not exists p0due_template
  on teguh.p0_template (kind, due_at, seq)
  where kind <> 'r';
create index if not exists p1ready_template
  on teguh.p1_template (xid, seq)
  where kind = 'r';
create index if not exists p1due_template
  on teguh.p1_template (kind, due_at, seq)
  where kind <> 'r';

comment on table teguh.p0_template is
  'Dispatch rows, one of two segments. A row is a hint that may be stale or '
  'double; whether its task is to be had, the task says.';
comment on column teguh.p0_template.kind is
  'r: ready to be claimed. s: a sleeper''s timer. l: a lease''s or deadline''s timer.';
comment on column teguh.p0_template.turn is
  'The task''s turn that the row is for; 0 for the timer of a deadline; -1 for a look at '
  'whether the children or the message it waits for are there (s), or for a task that its parent '
  'takes along (l).';
comment on column teguh.p0_template.more_ids is
  'Further tasks of the same claim, whose leases end at the same time; their turns '
  'are in more_turns.';
comment on column teguh.p0_template.woke is
  'The waiting workers that were notified of this row: see _push_template.';
comment on table teguh.p1_template is
  'Dispatch rows, the other segment: see p0.';

-- Lanes: the ready tasks of a queue that goes by rules.  Written only under the queue's lock
-- (teguh._gate_number).
create table if not exists teguh.l_template (
  ranking   double precision not null,
  seq       bigint           not null,
  task_id   uuid             not null,
  turn      integer          not null,
  gate      "char"           not null,
  task_name text             not null,
  flow_key  text             not null
);

create index if not exists lopen_template
  on teguh.l_template (task_name collate "C", ranking, seq)
  where gate = 'o';
create index if not exists lkey_template
  on teguh.l_template (flow_key collate "C", gate, ranking, seq);

comment on table teguh.l_template is
  'Lanes: ready tasks in the order in which they are to be claimed. A row is a hint; '
  'whether its task is to be had, the task says.';
comment on column teguh.l_template.ranking is
  'The virtual due time in seconds since 1970 or, in a fair queue, the round it is in.';
comment on column teguh.l_template.gate is
  'o: open, its key leaves room for it. w: waits for that.';
comment on column teguh.l_template.flow_key is
  'The key; empty if the task has none.';

-- Holds: what runs in a queue that goes by rules.
create table if not exists teguh.h_template (
  task_id   uuid    not null,
  turn      integer not null,
  fifo      boolean not null,
  task_name text    not null,
  flow_key  text    not null
);

create index if not exists hkey_template
  on teguh.h_template (flow_key collate "C");
create index if not exists hfifo_template
  on teguh.h_template (task_id)
  where fifo;

comment on table teguh.h_template is
  'Tasks that take up room under limits. A row counts while its run is held or, if its key is '
  'first in, first out, until its task is over; then the next claim deletes it.';

-- Positions: how far a segment has been worked off.  Each row is a statement
-- that stays true; the latest is the most useful.
create table if not exists teguh.k0_template (
  n        bigint not null,
  kind     "char" not null,
  xid      xid8,
  seq      bigint not null,
  due_at   timestamptz,
  gaps     teguh._gap[],
  late     teguh._late[],
  snapshot pg_snapshot,
  tallies  teguh._tally[]
)
with (autovacuum_enabled = off);

create table if not exists teguh.k1_template (
  n        bigint not null,
  kind     "char" not null,
  xid      xid8,
  seq      bigint not null,
  due_at   timestamptz,
  gaps     teguh._gap[],
  late     teguh._late[],
  snapshot pg_snapshot,
  tallies  teguh._tally[]
)
with (autovacuum_enabled = off);

create index if not exists k0last_template
  on teguh.k0_template (kind, n);
create index if not exists k1last_template
  on teguh.k1_template (kind, n);

comment on table teguh.k0_template is
  'Positions in segment p0: every row before one has been dealt with, but for '
  'those in gaps (ready rows) or of the transactions in late (timers). Timers set by slow clocks '
  '(kinds S, L; n: the transaction). And sums of n0 (kind n).';
comment on column teguh.k0_template.tallies is
  'The sum of the rows of n0 that were visible to the snapshot.';
comment on table teguh.k1_template is
  'Positions in segment p1: see k0.';

-- Tallies: what became of how many tasks.  Inserted by the transaction that changes them, so
-- they are right whenever it is; truncated with their segment, when they have been added to the
-- totals.
create table if not exists teguh.n0_template (
  xid       xid8             not null default pg_current_xact_id(),
  seconds   double precision not null,
  most      double precision not null,
  qty       integer          not null,
  was       "char"           not null,
  became    "char"           not null,
  task_name text             not null
)
with (autovacuum_enabled = off);

create table if not exists teguh.n1_template (
  xid       xid8             not null default pg_current_xact_id(),
  seconds   double precision not null,
  most      double precision not null,
  qty       integer          not null,
  was       "char"           not null,
  became    "char"           not null,
  task_name text             not null
)
with (autovacuum_enabled = off);

create index if not exists nxid0_template
  on teguh.n0_template (xid);
create index if not exists nxid1_template
  on teguh.n1_template (xid);

create table if not exists teguh.n_template (
  task_name text             not null,
  was       "char"           not null,
  became    "char"           not null,
  most      double precision not null,
  qty       bigint           not null,
  seconds   double precision not null,
  constraint nkey_template primary key (task_name, was, became, most)
);

comment on table teguh.n0_template is
  'Tallies, one of two segments: how many tasks of a name changed so. The letters are those '
  'of teguh._letter, and - for not being there.';
comment on column teguh.n0_template.most is
  'The bucket of their durations if runs ended: the bound in seconds; else 0.';
comment on column teguh.n0_template.seconds is
  'The sum of their durations if runs ended; else 0.';
comment on table teguh.n1_template is
  'Tallies, the other segment: see n0.';
comment on table teguh.n_template is
  'Totals of what was in segments that have been truncated.';

-- Registers.  A sequence is changed in place: no dead rows, and every session
-- sees the present value whatever its snapshot.
create sequence if not exists teguh.seq_template;
create sequence if not exists teguh.ring_template minvalue 0 start 0;
create sequence if not exists teguh.parked_template minvalue 0 start 0;
create sequence if not exists teguh.woken_template minvalue 0 start 0;
create sequence if not exists teguh.plan_template minvalue 0 start 0;
create sequence if not exists teguh.fired_template minvalue 0 start 0;
create sequence if not exists teguh.clock_template minvalue 0 start 0;
create sequence if not exists teguh.carry_template minvalue 0 start 0;
create sequence if not exists teguh.round_template minvalue 0 start 0;
create sequence if not exists teguh.agenda_template minvalue 0 start 0;

comment on sequence teguh.seq_template is
  'Numbers dispatch rows and positions.';
comment on sequence teguh.ring_template is
  'Which segments are in use: 2g means generation g alone, 2g+1 both g and g+1; '
  'generation g lies in segment g mod 2. New rows go to the latest.';
comment on sequence teguh.parked_template is
  'Counts claims that came back short: each may be a worker about to wait.';
comment on sequence teguh.woken_template is
  'The claims among those whose worker is known to have been notified since.';
comment on sequence teguh.plan_template is
  'When a waiting worker looks next of its own accord, in microseconds since 1970.';
comment on sequence teguh.fired_template is
  'When a claim last looked for due timers, in milliseconds since 1970.';
comment on sequence teguh.clock_template is
  'The latest timer position, in microseconds since 1970.';
comment on sequence teguh.round_template is
  'The round that a fair queue is in.';
comment on sequence teguh.agenda_template is
  'No schedule of the queue is due before, in microseconds since 1970.';
comment on sequence teguh.carry_template is
  'Bytes that the last change of segment carried over.';

-- Runs that ended while their task went on.  The task holds its current run.
create table if not exists teguh.r_template (
  task_id          uuid        not null,
  run_id           uuid        not null,
  attempt          integer     not null,
  state            text        not null,
  claimed_by       text,
  started_at       timestamptz,
  lease_expires_at timestamptz,
  finished_at      timestamptz not null,
  failure_reason   jsonb,
  constraint rkey_template primary key (task_id, run_id)
);

comment on table teguh.r_template is
  'History: runs that failed, were cancelled or taken back, and were followed by another.';

-- What people did to tasks and to the queue.
create table if not exists teguh.a_template (
  n        bigint      not null,
  acted_at timestamptz not null,
  deed     text        not null,
  by_role  text        not null default session_user,
  reason   text,
  task_id  uuid,
  run_id   uuid,
  detail   jsonb,
  constraint akey_template primary key (n)
);

create index if not exists atask_template
  on teguh.a_template (task_id)
  where task_id is not null;
create index if not exists aage_template
  on teguh.a_template (acted_at)
  where task_id is null;

comment on table teguh.a_template is
  'Actions: what was done from outside, by whom and why. Only inserted; deleted with the task, '
  'or by age if it is about none.';
comment on column teguh.a_template.run_id is
  'The run that was cancelled, or that was begun.';

-- Checkpoints.
create table if not exists teguh.c_template (
  task_id         uuid        not null,
  checkpoint_name text        not null,
  state           jsonb       not null,
  status          text        not null,
  owner_run_id    uuid        not null,
  updated_at      timestamptz not null,
  constraint ckey_template primary key (task_id, checkpoint_name)
);

comment on table teguh.c_template is
  'Checkpoints: the results of steps and of waits that are over.';
comment on column teguh.c_template.status is
  'committed, or timed_out when the awaited event did not come in time.';

-- Events.
create table if not exists teguh.e_template (
  event_name text        not null,
  created_at timestamptz not null,
  emitted_at timestamptz,
  payload    jsonb,
  constraint ekey_template primary key (event_name)
);

create index if not exists eage_template
  on teguh.e_template (created_at);
create index if not exists ename_template
  on teguh.e_template (event_name collate "C");

comment on table teguh.e_template is
  'Events that were emitted, or are awaited. The row is also the lock between the two.';
comment on column teguh.e_template.emitted_at is
  'When the event was first emitted; null while it is only awaited.';

-- Unique keys.
create table if not exists teguh.u_template (
  unique_key text not null,
  task_id    uuid not null,
  constraint ukey_template primary key (unique_key)
);

create index if not exists utask_template
  on teguh.u_template (task_id);

comment on table teguh.u_template is
  'Unique keys, and the last task that was spawned with each.';

-- Children that a step has spawned.
create table if not exists teguh.j_template (
  task_id      uuid        not null,
  step_name    text        not null,
  run_id       uuid        not null,
  spawned_at   timestamptz not null,
  child_ids    uuid[]      not null,
  child_queues text[]      not null,
  ends_with_us boolean     not null,
  wanted       text,
  fail_fast    boolean,
  constraint jkey_template primary key (task_id, step_name)
);

comment on table teguh.j_template is
  'Children that a step of a task has spawned, in the order given, and how they are awaited.';
comment on column teguh.j_template.run_id is
  'The run that spawned them: children of an earlier repetition are not counted.';
comment on column teguh.j_template.ends_with_us is
  'Whether those that are not over are cancelled when the task ends without success.';
comment on column teguh.j_template.wanted is
  'all, any, or how many are to complete; null while nobody waits.';

-- Children that are over.
create table if not exists teguh.f_template (
  task_id   uuid    not null,
  step_name text    not null,
  run_id    uuid    not null,
  place     integer not null,
  state     text    not null,
  constraint fkey_template primary key (task_id, step_name, run_id, place)
);

comment on table teguh.f_template is
  'Which children of a step are over, and how they ended.';

-- Messages.
create table if not exists teguh.m_template (
  task_id         uuid        not null,
  n               bigint      not null,
  sent_at         timestamptz not null,
  topic           text        not null,
  received_by     text        not null default '',
  payload         jsonb       not null,
  idempotency_key text,
  constraint mkey_template primary key (task_id, received_by, topic, n)
);

create unique index if not exists monce_template
  on teguh.m_template (task_id, idempotency_key)
  where idempotency_key is not null;

comment on table teguh.m_template is
  'Messages to tasks. A message that was received stays until its task is removed or repeats: its '
  'key is known then, and it can be received again when the task starts from that step once more.';
comment on column teguh.m_template.n is
  'In the order in which they were sent.';
comment on column teguh.m_template.received_by is
  'The step that has received it; empty while none has, a space if that was before the task began '
  'anew.';

-- Waits.
create table if not exists teguh.w_template (
  task_id    uuid    not null,
  event_name text    not null,
  step_name  text    not null,
  turn       integer not null,
  timeout_at timestamptz,
  constraint wkey_template primary key (task_id)
);

create index if not exists wevent_template
  on teguh.w_template (event_name);

comment on table teguh.w_template is
  'Waits: the event each waiting task waits for, and until when.';

-- sql/src/21_queues.sql
-- Check a queue's name and hand it back.  Names of tables and functions are made
-- of it, and the notify channel.
create or replace function teguh.validate_queue_name(p_queue_name text)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is null or btrim(p_queue_name) = '' then
    raise exception 'queue name must not be blank'
      using
        errcode = '42602',
        detail = 'The name is null, empty or only spaces.',
        hint = 'Give the queue a name such as orders.';
  end if;

  if octet_length(p_queue_name) > 55 or p_queue_name !~ '^[a-z][a-z0-9_]*$' then
    raise exception 'queue name "%" is not valid', left(p_queue_name, 60)
      using
        errcode = '42602',
        detail = format('It has %s bytes.', octet_length(p_queue_name)),
        hint = 'Use 1 to 55 lowercase letters, digits and underscores, a letter first.';
  end if;

  if p_queue_name = 'template' then
    raise exception 'queue name "template" is reserved'
      using
        errcode = '42939',
        detail = 'Every queue is made in the likeness of the one called template.',
        hint = 'Choose another name.';
  end if;

  return p_queue_name;
end;
$$;

comment on function teguh.validate_queue_name(text) is
  'Returns the name if a queue may have it: 1 to 55 lowercase letters, digits and '
  'underscores, a letter first. Raises 42602 if not, 42939 for the reserved "template".';

-- The policy of a queue, or TG001.  Every call that works on a queue comes through here, and
-- waits here while an upgrade holds teguh.queues.  What was called before the upgrade would
-- go on with functions from after it, and has to be called again.
create or replace function teguh._policy(p_queue_name text)
  returns jsonb
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb;
begin
  select
    case
      when q.paused_until is null and not q.ruled then q.policy
      else q.policy || jsonb_strip_nulls(
        jsonb_build_object('paused_until', q.paused_until, 'ruled', nullif(q.ruled, false))
      )
    end
  into v_policy
  from teguh.queues as q
  where q.queue_name = p_queue_name;

  if not found then
    raise exception 'queue "%" does not exist', left(coalesce(p_queue_name, 'null'), 60)
      using
        errcode = 'TG001',
        detail = 'No queue of that name was created in this database.',
        hint = format('Create it: select teguh.create_queue(%L);', left(p_queue_name, 60));
  end if;

  if teguh.version() <> '0.2.0' then
    raise exception 'teguh was upgraded while this call waited'
      using
        errcode = '40001',
        detail = format('The call began with version 0.2.0, and %s is installed now.',
          teguh.version()),
        hint = 'Try again.';
  end if;

  return v_policy;
end;
$$;

-- The queue's own function behind a public one, as text to execute.
create or replace function teguh._call(p_verb text, p_queue_name text, p_arguments integer)
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._policy(p_queue_name);
  return 'select * from teguh.' || quote_ident('_' || p_verb || '_' || p_queue_name)
         || '(' || substr('$1, $2, $3, $4, $5, $6, $7', 1, greatest(4 * p_arguments - 2, 0)) || ')';
end;
$$;

-- What the template queue is made of, as DDL in the order to run it.
create or replace view teguh._template_ddl as
with template as (
  select c.oid, c.relname, c.reloptions
  from pg_catalog.pg_class as c
  where c.relnamespace = 'teguh'::regnamespace
    and c.relkind = 'r'
    and c.relname ~ '^_?[a-z0-9]+_template$'
)

select
  1 as step,
  format(
    'create sequence teguh.%s minvalue %s start %s', s.sequencename, s.min_value, s.start_value
  ) as ddl,
  s.sequencename as name
from pg_catalog.pg_sequences as s
where s.schemaname = 'teguh' and s.sequencename ~ '^_?[a-z0-9]+_template$'

union all

select
  2,
  format(
    'create table teguh.%s (%s)%s',
    t.relname,
    string_agg(
      format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
      || case when a.attnotnull then ' not null' else '' end
      || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''),
      ', ' order by a.attnum
    ),
    ' with (' || array_to_string(t.reloptions, ', ') || ')'
  ),
  t.relname
from template as t
join pg_catalog.pg_attribute as a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
left join pg_catalog.pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
group by t.relname, t.reloptions

union all

select
  3,
  format(
    'alter table teguh.%s add constraint %s %s', t.relname, k.conname, pg_get_constraintdef(k.oid)
  ),
  k.conname
from template as t
join pg_catalog.pg_constraint as k on k.conrelid = t.oid and k.contype <> 'n'

union all

select 4, pg_get_indexdef(i.indexrelid), c.relname
from template as t
join pg_catalog.pg_index as i on i.indrelid = t.oid
join pg_catalog.pg_class as c on c.oid = i.indexrelid
where not exists (select 1 from pg_catalog.pg_constraint as k where k.conindid = i.indexrelid)

union all

select
  5,
  format('comment on table teguh.%s is %L', t.relname, obj_description(t.oid, 'pg_class')),
  t.relname
from template as t

union all

select 6, pg_get_functiondef(p.oid), p.proname
from pg_catalog.pg_proc as p
where p.pronamespace = 'teguh'::regnamespace
  and p.proname ~ '^_?[a-z0-9]+_template$'

union all

select 7, format('revoke all on function %s from public', p.oid::regprocedure), p.proname
from pg_catalog.pg_proc as p
where p.pronamespace = 'teguh'::regnamespace
  and p.proname ~ '^_?[a-z0-9]+_template$';

comment on view teguh._template_ddl is
  'The template queue as DDL, in steps, with the name of what each makes. Read back from '
  'the catalog, so that it is always what was written in the sources, upgrades included.';

-- Rename the template queue to another wherever a text names it.
create or replace function teguh._stamp(p_ddl text, p_queue_name text)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select regexp_replace(p_ddl, '_template(?![a-z0-9_])', '_' || p_queue_name, 'g');
$$;

-- Bring queues up to the template: create what they lack, renew comments and functions.  So a
-- new queue is made, and so an upgrade reaches the others.  Columns and whatever else changes in
-- a table that is there already are for the upgrade's script.
create or replace function teguh._stamp_queues(p_queue_names text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_made       record;
  v_queue_name text;
begin
  for v_made in
    select d.step, d.name, d.ddl
    from teguh._template_ddl as d
    where d.step <= 6
    order by d.step, d.ddl
  loop
    foreach v_queue_name in array p_queue_names loop
      if v_made.step = 6 then
        perform teguh._stamp_function(v_made.name, v_made.ddl, v_queue_name);
      else
        perform teguh._stamp_relation(v_made.step, v_made.name, v_made.ddl, v_queue_name);
      end if;
    end loop;
  end loop;
end;
$$;

-- Give a queue one sequence, table, constraint, index or comment that it lacks.
create or replace function teguh._stamp_relation(
  p_step       integer,
  p_name       text,
  p_ddl        text,
  p_queue_name text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := teguh._stamp(p_name, p_queue_name);
  v_done boolean := case p_step
    when 3 then exists (
      select
      from pg_constraint as k
      where k.connamespace = 'teguh'::regnamespace and k.conname = v_name
    )
    when 5 then
      obj_description(to_regclass('teguh.' || v_name), 'pg_class')
      = obj_description(to_regclass('teguh.' || p_name), 'pg_class')
    else to_regclass('teguh.' || v_name) is not null
  end;
begin
  if v_done then
    return;
  end if;

  execute teguh._stamp(p_ddl, p_queue_name);
  if p_step in (1, 2) then
    perform teguh._leave_extension('pg_class', to_regclass('teguh.' || v_name));
  end if;
end;
$$;

-- Create a queue's function, or replace one that differs from the template's.
--
-- In an extension's script nothing may be replaced but what the extension has: there the
-- function joins it for the moment.
create or replace function teguh._stamp_function(p_name text, p_ddl text, p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ddl  text := teguh._stamp(p_ddl, p_queue_name);
  v_name name := teguh._stamp(p_name, p_queue_name);
  v_old  regprocedure := teguh._function(v_name);
begin
  if v_old is not null then
    if pg_get_functiondef(v_old) = v_ddl then
      return;
    elsif teguh._signature(v_old)
      <> teguh._stamp(teguh._signature(teguh._function(p_name::name)), p_queue_name)
    then
      execute format('drop function %s', v_old);
      v_old := null;
    elsif exists (select from pg_extension as e where e.extname = 'teguh') then
      execute format('alter extension teguh add function %s', v_old);
    end if;
  end if;

  execute v_ddl;
  if v_old is null then
    execute format('revoke all on function %s from public', teguh._function(v_name));
  end if;
  perform teguh._leave_extension('pg_proc', teguh._function(v_name));
end;
$$;

-- The function of a name; null if there is none.
create or replace function teguh._function(p_name name)
  returns regprocedure
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select p.oid
  from pg_proc as p
  where p.pronamespace = 'teguh'::regnamespace and p.proname = p_name;
$$;

-- What of a function cannot be changed by replacing it.
create or replace function teguh._signature(p_function oid)
  returns text
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select pg_get_function_arguments(p_function) || ' -> ' || pg_get_function_result(p_function);
$$;

-- Take something of a queue out of the extension.  Made in the extension's script, it would be
-- the extension's, and neither be dumped nor be dropped with the queue.
create or replace function teguh._leave_extension(p_class regclass, p_object oid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_member text := (
    select i.type || ' ' || i.identity
    from pg_depend as d
    join pg_extension as e on e.oid = d.refobjid and e.extname = 'teguh'
    cross join lateral pg_identify_object(d.classid, d.objid, 0) as i
    where d.classid = p_class
      and d.objid = p_object
      and d.refclassid = 'pg_extension'::regclass
      and d.deptype = 'e'
  );
begin
  if v_member is not null then
    execute 'alter extension teguh drop ' || v_member;
  end if;
end;
$$;

-- Number of the advisory lock that drop_queue() holds, and whoever goes through all queues
-- shares: a queue that is being dropped is passed over.
create or replace function teguh._lock_number(p_queue_name text)
  returns bigint
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended('teguh.queue_' || p_queue_name, 0);
$$;

-- Whether a queue is there.  By a query, whose snapshot is newer than the lock that the caller
-- holds: to_regclass() may go by what the session knew before.
create or replace function teguh._has_tables(p_queue_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (
    select from pg_class as c
    where c.relnamespace = 'teguh'::regnamespace
      and c.relname = 't_' || p_queue_name
  );
end;
$$;

-- Keep a queue from being dropped until the transaction ends.  False if it is being dropped.
create or replace function teguh._share_queue(p_queue_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return pg_try_advisory_xact_lock_shared(teguh._lock_number(p_queue_name))
         and teguh._has_tables(p_queue_name);
end;
$$;

-- Whether the caller may execute one of a queue's functions.
create or replace function teguh._may(p_verb text, p_queue_name text)
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and p.proname = format('_%s_%s', p_verb, p_queue_name)
      and has_function_privilege(p.oid, 'execute')
  );
$$;

-- Run one statement on the template and on every queue: for upgrade scripts.
create or replace function teguh._each_queue(p_ddl text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  execute p_ddl;

  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
    order by q.queue_name
  loop
    execute teguh._stamp(p_ddl, v_queue_name);
  end loop;
end;
$$;

-- Give the queue's registers their first values: a sequence has none before that.
create or replace function teguh._init_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_sequence_last_value('teguh.ring_template'::regclass) is null then
    perform nextval('teguh.seq_template'::regclass);
    perform nextval('teguh.parked_template'::regclass);
    perform setval('teguh.ring_template'::regclass, 0);
    perform setval('teguh.woken_template'::regclass, 0);
    perform setval('teguh.plan_template'::regclass, teguh._beyond());
    perform setval('teguh.fired_template'::regclass, 0);
    perform setval('teguh.clock_template'::regclass, 0);
    perform setval('teguh.carry_template'::regclass, 0);
    update teguh.queues as q
    set built_for = teguh._home('teguh.p0_template'::regclass)
    where q.queue_name = substr('_template', 2);
  end if;
  -- queues from before 0.2.0 lack these
  if pg_sequence_last_value('teguh.round_template'::regclass) is null then
    perform setval('teguh.round_template'::regclass, 0);
    perform setval('teguh.agenda_template'::regclass, teguh._beyond());
  end if;
end;
$$;

-- Set the notify policy.  Always: the count of waiting workers is beyond what any
-- dispatch row can answer.  Off: so is the answer.  The count itself goes on, because
-- dispatch rows refer to it.
create or replace function teguh._hush_template(p_notify text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint := nextval('teguh.parked_template'::regclass) % teguh._beyond();
begin
  perform setval(
    'teguh.parked_template'::regclass,
    v_count + case when p_notify = 'always' then teguh._beyond() else 0 end
  );
  perform setval(
    'teguh.woken_template'::regclass,
    case when p_notify = 'off' then teguh._beyond() else 0 end
  );
end;
$$;

-- A number that no register reaches by counting.
create or replace function teguh._beyond()
  returns bigint
  language sql
  immutable
as $$
  select 4611686018427387904;
$$;

-- Create a queue, or set policy keys of one that exists.
create or replace function teguh.create_queue(p_queue_name text, p_policy jsonb default '{}')
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := coalesce(p_policy, '{}');
begin
  perform teguh.validate_queue_name(p_queue_name);
  perform teguh._check_policy(v_policy);

  insert into teguh.queues as q (queue_name, policy, created_at, ruled)
  values (
    p_queue_name, jsonb_strip_nulls(v_policy), teguh.current_time(),
    exists (select from teguh.limits as l where l.queue_name = '*')
  )
  on conflict (queue_name) do nothing;

  if found then
    perform teguh._stamp_queues(array[p_queue_name]);
    execute format('select teguh._init_%s()', p_queue_name);
    perform teguh._grant_queue(p_queue_name);
  else
    update teguh.queues as q
    set policy = jsonb_strip_nulls(q.policy || v_policy)
    where q.queue_name = p_queue_name
      and q.policy <> jsonb_strip_nulls(q.policy || v_policy);
    if not found then
      return;
    end if;
  end if;

  if v_policy -> 'duration_buckets' = 'null' then
    update teguh.queues as q
    set buckets = default
    where q.queue_name = p_queue_name;
  elsif v_policy ? 'duration_buckets' then
    update teguh.queues as q
    set buckets = teguh._buckets_option(v_policy)
    where q.queue_name = p_queue_name;
  end if;

  if v_policy ? 'notify' then
    execute format('select teguh._hush_%s($1)', p_queue_name) using v_policy ->> 'notify';
  end if;
end;
$$;

comment on function teguh.create_queue(text, jsonb) is
  'Creates a queue. On a queue that exists, sets the policy keys given and leaves '
  'the others. Policy: notify (auto, always, off), cleanup_ttl (seconds that '
  'finished tasks are kept, default 2592000), cleanup_limit (tasks removed per '
  'call, default 1000), default_max_attempts, default_retry_strategy, default_timeout '
  '(seconds a run may take), default_ttl (seconds until a task expires), duration_buckets '
  '(ascending bounds in seconds, by which metrics() counts how long runs took: those that end '
  'from then on), max_pending (tasks that have not started; what is more is rejected with TG007 '
  'or, if on_full is drop_oldest, cancels those that are first in line), max_messages (messages '
  'that wait in the mailbox of one task; what is more is rejected with TG007), history '
  '(whether runs that another follows are kept for list_runs() and get_task_history(), default '
  'true; those that end from then on), namespace (a name that queues are grouped by, '
  'default "default"); null sets a key back to its default. '
  'Raises 42602 or 42939 for a name that cannot be, TG005 for a bad policy.';

-- Give up on a queue whose tables could not be locked.
create or replace function teguh._refuse_busy(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'queue "%" stays in use', p_queue_name
    using
      errcode = '55P03',
      detail = 'Other transactions keep its tables locked.',
      hint = 'Stop its workers, end idle transactions, and try again.';
end;
$$;

-- Keep a queue from being dropped until our transaction ends, and see whether it is there.
-- Waits for a drop that is under way, which never waits long for us.
create or replace function teguh._reach_queue(p_queue_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock_shared(teguh._lock_number(p_queue_name));
  return teguh._has_tables(p_queue_name);
end;
$$;

-- Drop a queue with everything in it.
--
-- Never waits for a lock long enough to be part of a deadlock: all of it happens
-- under a short lock_timeout and, if others are busy there, is undone and tried again.
create or replace function teguh.drop_queue(p_queue_name text)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '100ms'
as $$
begin
  perform teguh._policy(p_queue_name);
  for v_try in 1..300 loop
    begin
      perform teguh._drop_all(p_queue_name);
      return;
    exception
      when lock_not_available then
        perform pg_sleep(0.1 * random());
    end;
  end loop;

  perform teguh._refuse_busy(p_queue_name);
end;
$$;

comment on function teguh.drop_queue(text) is
  'Drops a queue and all its tasks, in whatever state. Waits up to a minute for '
  'transactions that are using it. Raises TG001 if there is no such queue, 55P03 '
  'if it stays busy.';

-- Drop what belongs to a queue, unless somebody else just did.
create or replace function teguh._drop_all(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_tables text;
  v_drop   text;
begin
  perform pg_advisory_xact_lock(teguh._lock_number(p_queue_name));
  delete from teguh.queues as q
  where q.queue_name = p_queue_name;
  if not found then
    return;
  end if;
  delete from teguh.grants as g
  where g.queue_name = p_queue_name;
  delete from teguh.limits as l
  where l.queue_name = p_queue_name;
  delete from teguh.pauses as p
  where p.queue_name = p_queue_name;
  delete from teguh.starts as s
  where s.queue_name = p_queue_name;
  delete from teguh.wanted as w
  where w.queue_name = p_queue_name;
  delete from teguh.schedules as s
  where s.queue_name = p_queue_name;
  delete from teguh.handlers as h
  where h.queue_name = p_queue_name;
  perform teguh._drop_job(p_queue_name);

  select string_agg('teguh.' || teguh._stamp(c.relname, p_queue_name), ', ' order by c.relname)
  into v_tables
  from pg_class as c
  where c.relnamespace = 'teguh'::regnamespace
    and c.relkind = 'r'
    and c.relname ~ '^_?[a-z0-9]+_template$';
  execute 'lock table ' || v_tables || ' in access exclusive mode';
  execute format('select teguh._perish_%s()', p_queue_name);

  for v_drop in
    -- sequences first: who waits for a table may hold one, and is not to find a deadlock
    select format('drop sequence teguh.%s', teguh._stamp(s.sequencename, p_queue_name))
    from pg_sequences as s
    where s.schemaname = 'teguh' and s.sequencename ~ '^_?[a-z0-9]+_template$'
    union all
    select format('drop function %s', teguh._stamp(p.oid::regprocedure::text, p_queue_name))
    from pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace and p.proname ~ '^_?[a-z0-9]+_template$'
  loop
    execute v_drop;
  end loop;
  execute 'drop table ' || v_tables;
end;
$$;

-- The queues of this database.
create or replace function teguh.list_queues()
  returns table(
    queue_name   text,
    created_at   timestamptz,
    policy       jsonb,
    paused_until timestamptz,
    namespace    text
  )
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select
    q.queue_name, q.created_at, q.policy, q.paused_until,
    coalesce(q.policy ->> 'namespace', 'default')
  from teguh.queues as q
  order by q.queue_name;
$$;

comment on function teguh.list_queues() is
  'The queues of this database by name, each with the policy it was given, until when '
  'it is paused, null if it never was, and its namespace.';

-- sql/src/30_enqueue.sql
-- Queue tasks: ready to be claimed (kind r), or as timers that come due later
-- (kinds s and l, with p_due_at: one moment for each, or one for all).  Without tasks
-- (null) nothing is done.
--
-- The transaction gets its id before it has the row, so whoever takes a snapshot
-- meanwhile sees it running.  The ring is read again after the insert: if a new
-- segment was opened in between, the rows go there as well; the first ones are
-- doubles, which do no harm.
create or replace function teguh._push_template(
  p_kind     "char",
  p_task_ids uuid[],
  p_turns    integer[],
  p_due_at   timestamptz[] default '{}'
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_newest bigint;
  v_seen   bigint;
  v_woke   bigint;
begin
  if p_task_ids is null then
    return;
  end if;

  perform pg_current_xact_id();
  v_newest := (pg_sequence_last_value('teguh.ring_template'::regclass) + 1) / 2;
  loop
    v_seen := v_newest;
    if v_seen % 2 = 0 then
      v_woke := teguh._add0_template(p_kind, p_task_ids, p_turns, p_due_at);
    else
      v_woke := teguh._add1_template(p_kind, p_task_ids, p_turns, p_due_at);
    end if;

    v_newest := (pg_sequence_last_value('teguh.ring_template'::regclass) + 1) / 2;
    exit when v_newest = v_seen;
  end loop;

  if v_woke is not null then
    perform pg_notify('teguh_template', '');
  end if;
end;
$$;

-- A number as often as there are tasks.
create or replace function teguh._fill(p_number integer, p_task_ids uuid[])
  returns integer[]
  language sql
  immutable
as $$
  select pg_catalog.array_fill(p_number, array[coalesce(pg_catalog.cardinality(p_task_ids), 0)]);
$$;

-- Insert dispatch rows into one segment.  Returns null unless a waiting worker must
-- be notified: for ready rows, if some have not been since they were counted, the
-- count; for a sleeper, if it is due before any of them would look again.
--
-- The registers are read when the insert already holds its lock on the segment.  A
-- worker about to wait counts itself first and looks for such locks second
-- (_next_template): one of the two always sees the other.
--
-- A timer is never due at the present moment, so that a timer position, which is
-- a moment that has passed, cannot be ahead of it.  Timers that are due together share
-- rows, 64 tasks in each: what a claim hands out is seldom there any more when its lease
-- would end, and should cost little.
create or replace function teguh._add0_template(
  p_kind     "char",
  p_task_ids uuid[],
  p_turns    integer[],
  p_due_at   timestamptz[]
)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_soonest timestamptz := teguh.current_time() + interval '1 microsecond';
  v_first   timestamptz;
  v_woke    bigint;
begin
  if p_kind = 'l' and cardinality(p_task_ids) > cardinality(p_due_at) then
    v_first := greatest(p_due_at[1], v_soonest);
    insert into teguh.p0_template as p (seq, due_at, kind, task_id, turn, more_ids, more_turns)
    select
      nextval('teguh.seq_template'::regclass), v_first, p_kind,
      p_task_ids[g.i], p_turns[g.i], p_task_ids[g.i + 1:g.i + 63], p_turns[g.i + 1:g.i + 63]
    from generate_series(1, cardinality(p_task_ids), 64) as g(i);
  else
    with added as (
      insert into teguh.p0_template as p (seq, woke, due_at, kind, task_id, turn)
      select
        nextval('teguh.seq_template'::regclass),
        (
          select nullif(greatest(w.parked, w.woken), w.woken)
          from (
            select
              pg_sequence_last_value('teguh.parked_template'::regclass) as parked,
              pg_sequence_last_value('teguh.woken_template'::regclass) as woken
            where p_kind <> 'l'
          ) as w
        ),
        case when p_kind <> 'r' then greatest(u.due_at, v_soonest) end,
        p_kind,
        u.task_id,
        u.turn
      from unnest(p_task_ids, p_turns, p_due_at) as u(task_id, turn, due_at)
      returning p.woke, p.due_at
    )

    select max(a.woke), min(a.due_at) into v_woke, v_first
    from added as a;
  end if;

  if v_first < 'infinity'
    and teguh._micros(v_first) <= pg_sequence_last_value('teguh.clock_template'::regclass)
  then
    perform teguh._back0_template(p_kind, v_first);
  end if;

  if p_kind = 's'
    and teguh._micros(v_first) >= pg_sequence_last_value('teguh.plan_template'::regclass)
    and v_woke < teguh._beyond()
  then
    return null;
  end if;
  return v_woke;
end;
$$;

-- Note that our transaction has set a timer with a clock behind the one by which a timer position
-- was, or is just being, moved: who reads that goes back before the timer (_last0_template). n is
-- our transaction's id.
create or replace function teguh._back0_template(p_kind "char", p_due_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.k0_template as k (n, kind, seq, due_at)
  values (pg_current_xact_id()::text::bigint, upper(p_kind::text)::"char", 0, p_due_at);
end;
$$;

-- sql/src/31_claim.sql
-- Claim up to p_qty ready tasks of one segment, oldest first, and set the timers of
-- their leases, of runs that have a timeout and, at a first start, of max_duration.  A lease
-- without end has a timer, too, one that is never due: by it the run is found.  Moves the scan
-- position on when it has fallen 32 rows behind.  Returns the tasks claimed.
create or replace function teguh._claim0_template(
  p_worker text,
  p_now    timestamptz,
  p_until  timestamptz,
  p_qty    integer
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from   teguh.k0_template;
  v_picked teguh._picked;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;
  if not found then
    v_from.xid := '0';
    v_from.seq := 0;
  end if;

  v_picked := teguh._pick0_template(p_worker, p_now, p_until, p_qty, v_from);

  if v_picked.woke > pg_sequence_last_value('teguh.woken_template'::regclass)
    and v_picked.woke < teguh._beyond()
  then
    perform setval('teguh.woken_template'::regclass, v_picked.woke);
  end if;
  if v_picked.task_ids is not null then
    if v_picked.names[1] = all (v_picked.names) and v_picked.was[1] = all (v_picked.was) then
      insert into teguh.n0_template as n (task_name, was, became, qty, most, seconds)
      values (
        v_picked.names[1], v_picked.was[1], 'r', cardinality(v_picked.task_ids), 0, 0
      );
    else
      perform teguh._reckon_template(v_picked.names, v_picked.was, 'r');
    end if;
    perform teguh._push_template(
      'l', v_picked.task_ids, v_picked.turns, array[coalesce(p_until, 'infinity')]
    );
  end if;
  if v_picked.limited then
    perform teguh._limits_template(v_picked.task_ids);
  end if;

  -- numbers that are close tell of few rows between them, seldom wrongly
  if coalesce((v_picked.first).low_seq - v_from.seq not between 0 and 31, true)
    and teguh._many0_template(
      32, v_from.xid, v_from.seq,
      coalesce((v_picked.first).xid, '18446744073709551615'),
      coalesce((v_picked.first).low_seq, 0)
    )
  then
    perform teguh._move0_template(
      v_from.xid, v_from.seq, v_from.gaps,
      (v_picked.first).xid, (v_picked.first).low_seq
    );
  end if;

  return v_picked.task_ids;
end;
$$;

-- Claim up to p_qty tasks among the ready rows that lie in a gap or from a place on.
--
-- The task's row is the arbiter.  A dispatch row only says where to look; the row
-- lock, taken with skip locked, re-reads the task, so that one which was claimed or
-- cancelled since the statement's snapshot is passed over.
create or replace function teguh._pick0_template(
  p_worker text,
  p_now    timestamptz,
  p_until  timestamptz,
  p_qty    integer,
  p_from   teguh.k0_template
)
  returns teguh._picked
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_picked teguh._picked;
begin
  with ready as materialized (
    select p.xid, p.seq, p.woke, t.task_id, t.was
    from (
      select p.*
      from unnest(p_from.gaps) as g
      cross join lateral (
        select p.*
        from teguh.p0_template as p
        where p.kind = 'r'
          and p.xid = g.xid
          and p.seq between g.low_seq and g.high_seq
        order by p.seq
      ) as p
      union all
      (
        select p.*
        from teguh.p0_template as p
        where p.kind = 'r'
          and (p.xid, p.seq) >= (p_from.xid, p_from.seq)
        order by p.xid, p.seq
      )
    ) as p
    cross join lateral (
      select t.task_id, teguh._letter(t.state, t.attempt, t.wake_event) as was
      from teguh.t_template as t
      where (t.task_id, t.turn) = (p.task_id, p.turn)
        and t.state in ('pending', 'sleeping')
        and not t.laned
        and (t.deadline_at is null or t.deadline_at > p_now)
      for no key update skip locked
    ) as t
    limit p_qty
  ),

  claimed as (
    update teguh.t_template as t
    set
      state = 'running',
      attempt = t.attempt + 1,
      claimed_by = p_worker,
      started_at = p_now,
      first_started_at = coalesce(t.first_started_at, p_now),
      lease_expires_at = least(p_until, teguh._after(p_now, t.timeout_seconds)),
      deadline_at = case
        when t.attempt > 0 or t.cancellation is null then t.deadline_at
        else least(t.expires_at, teguh._after(p_now, (t.cancellation ->> 'max_duration')::float8))
      end
    from ready as r
    where t.task_id = r.task_id
    returning t.task_id, t.turn, t.task_name, r.was, r.xid, r.seq, r.woke,
      t.timeout_seconds is not null or t.attempt = 1 and t.deadline_at is not null as limited
  )

  select
    array_agg(c.task_id), array_agg(c.turn), array_agg(c.task_name), array_agg(c.was),
    bool_or(c.limited),
    (array_agg(row(c.xid, c.seq, null)::teguh._gap)
      filter (where (c.xid, c.seq) >= (p_from.xid, p_from.seq)))[1],
    max(c.woke)
  into v_picked
  from claimed as c;

  return v_picked;
end;
$$;

-- Set the timers of claimed tasks that end of themselves: the deadline of one that starts, and
-- the timeout of a run.
create or replace function teguh._limits_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_begun     uuid[];
  v_deadlines timestamptz[];
  v_timed     uuid[];
  v_turns     integer[];
  v_ends      timestamptz[];
begin
  select
    array_agg(t.task_id) filter (where t.begins),
    array_agg(t.deadline_at) filter (where t.begins),
    array_agg(t.task_id) filter (where t.timeout_seconds is not null),
    array_agg(t.turn) filter (where t.timeout_seconds is not null),
    array_agg(t.lease_expires_at) filter (where t.timeout_seconds is not null)
  into v_begun, v_deadlines, v_timed, v_turns, v_ends
  from (
    select t.*, t.attempt = 1 and t.deadline_at is not null as begins
    from teguh.t_template as t
    where t.task_id = any (p_task_ids)
  ) as t;

  perform teguh._push_template('l', v_begun, teguh._fill(0, v_begun), v_deadlines);
  perform teguh._push_template('l', v_timed, v_turns, v_ends);
end;
$$;

-- Move the scan position of a segment to its first row that is still to be had.
--
-- What is written must stay true: every row before the position, visible now or
-- later, is claimed or stale, unless it lies in a gap.  So the position never
-- passes the id of a transaction that may still insert rows, and it is looked up
-- after the list of those was taken.  What would hold it back for long becomes a
-- gap once 256 rows have come to lie behind it: rows that an open claim keeps
-- locked, or an open transaction, whose rows are claimed right after it commits.
--
-- p_first_xid and p_first_seq: the first row this claim took past the position.
create or replace function teguh._move0_template(
  p_xid       xid8,
  p_seq       bigint,
  p_gaps      teguh._gap[],
  p_first_xid xid8,
  p_first_seq bigint
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_n        bigint := nextval('teguh.seq_template'::regclass);
  v_snapshot pg_snapshot := pg_current_snapshot();
  v_open     xid8[] := teguh._open_xids(v_snapshot);
  v_gaps     teguh._gap[] := teguh._trim0_template(p_gaps, v_open);
  v_room     integer := 128 - coalesce(cardinality(v_gaps), 0);
  v_xid      xid8;
  v_seq      bigint;
  v_writer   xid8;
begin
  select r.xid, r.seq into v_xid, v_seq
  from teguh._next0_template(p_xid, p_seq) as r;
  while v_room > 0 and teguh._many0_template(256, v_xid, v_seq, p_first_xid, p_first_seq) loop
    v_gaps := v_gaps || teguh._stuck0_template(v_xid, v_seq, p_first_xid, p_first_seq);
    v_room := v_room - 1;
    select r.xid, r.seq into v_xid, v_seq
    from teguh._next0_template(v_xid, (v_gaps[cardinality(v_gaps)]).high_seq + 1) as r;
  end loop;

  if v_xid is null or v_xid >= pg_snapshot_xmax(v_snapshot) then
    v_xid := pg_snapshot_xmax(v_snapshot);
    v_seq := 0;
  end if;

  foreach v_writer in array v_open loop
    exit when (v_writer, 0) >= (v_xid, v_seq);
    continue when exists (
      select from unnest(v_gaps) as g
      where g.xid = v_writer and g.low_seq = 0
    );
    if v_room > 0 and teguh._many0_template(256, v_writer, 0, v_xid, v_seq) then
      v_gaps := v_gaps || row(v_writer, 0, 9223372036854775807)::teguh._gap;
      v_room := v_room - 1;
    else
      v_xid := v_writer;
      v_seq := 0;
      exit;
    end if;
  end loop;

  if (v_xid, v_seq) > (p_xid, p_seq)
    or ((v_xid, v_seq) = (p_xid, p_seq) and v_gaps is distinct from p_gaps)
  then
    insert into teguh.k0_template as k (n, kind, xid, seq, gaps)
    values (v_n, 'r', v_xid, v_seq, v_gaps);
  end if;
end;
$$;

-- The transactions that may still insert rows, ascending; our own is one of them.
create or replace function teguh._open_xids(p_snapshot pg_snapshot)
  returns xid8[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select x.xid
    from (
      select pg_snapshot_xip(p_snapshot) as xid
      union
      select pg_current_xact_id()
    ) as x
    order by x.xid
  );
end;
$$;

-- The first row of a segment, from a place on, whose task is still to be had.
create or replace function teguh._next0_template(
  p_xid   xid8,
  p_seq   bigint,
  out xid xid8,
  out seq bigint
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  select p.xid, p.seq into xid, seq
  from teguh.p0_template as p
  where p.kind = 'r'
    and (p.xid, p.seq) >= (p_xid, p_seq)
    and exists (
      select from teguh.t_template as t
      where t.task_id = p.task_id
        and t.turn = p.turn
        and t.state in ('pending', 'sleeping')
        and not t.laned
      offset 0
    )
  order by p.xid, p.seq
  limit 1;
end;
$$;

-- Whether at least so many rows lie between two places; false if one is null.
create or replace function teguh._many0_template(
  p_count   integer,
  p_xid     xid8,
  p_seq     bigint,
  p_end_xid xid8,
  p_end_seq bigint
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_xid xid8;
  v_seq bigint;
begin
  -- an upper bound in the query would not end the scan inside one transaction
  select p.xid, p.seq into v_xid, v_seq
  from teguh.p0_template as p
  where p.kind = 'r'
    and (p.xid, p.seq) >= (p_xid, p_seq)
  order by p.xid, p.seq
  limit 1 offset p_count - 1;
  return coalesce((v_xid, v_seq) < (p_end_xid, p_end_seq), false);
end;
$$;

-- The stretch from a row that is still to be had to the last such row of the same
-- transaction before another place: what open claims hold locked.
create or replace function teguh._stuck0_template(
  p_xid     xid8,
  p_seq     bigint,
  p_end_xid xid8,
  p_end_seq bigint
)
  returns teguh._gap
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last bigint;
begin
  select p.seq into v_last
  from teguh.p0_template as p
  where p.kind = 'r'
    and p.xid = p_xid
    and p.seq >= p_seq
    and p.seq < case when p_xid = p_end_xid then p_end_seq else 9223372036854775807 end
    and exists (
      select from teguh.t_template as t
      where t.task_id = p.task_id
        and t.turn = p.turn
        and t.state in ('pending', 'sleeping')
        and not t.laned
      offset 0
    )
  order by p.xid desc, p.seq desc
  limit 1;

  -- none: they were claimed or given up a moment ago
  return row(p_xid, p_seq, coalesce(v_last, p_seq))::teguh._gap;
end;
$$;

-- Bring each gap's low end up to its first row that is still to be had, and drop a
-- gap that has none, unless its transaction is still open.
create or replace function teguh._trim0_template(p_gaps teguh._gap[], p_open xid8[])
  returns teguh._gap[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_gap  teguh._gap;
  v_gaps teguh._gap[];
begin
  foreach v_gap in array coalesce(p_gaps, '{}') loop
    if v_gap.xid <> all (p_open) then
      select p.seq into v_gap.low_seq
      from teguh.p0_template as p
      where p.kind = 'r'
        and p.xid = v_gap.xid
        and p.seq between v_gap.low_seq and v_gap.high_seq
        and exists (
          select from teguh.t_template as t
          where t.task_id = p.task_id
            and t.turn = p.turn
            and t.state in ('pending', 'sleeping')
            and not t.laned
          offset 0
        )
      order by p.seq
      limit 1;
    end if;

    if v_gap.low_seq is not null then
      v_gaps := v_gaps || v_gap;
    end if;
  end loop;

  return v_gaps;
end;
$$;

-- Deal for a claim with schedules and timers that are due.  Returns how many tasks there are more
-- to be claimed.  p_first: the claim has no task yet.  Schedules may wait for a unique key, which
-- comes before any task.
create or replace function teguh._bring_template(
  p_now   timestamptz,
  p_first boolean,
  p_limit integer
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer := 0;
begin
  if p_first
    and coalesce(
      pg_sequence_last_value('teguh.agenda_template'::regclass) <= teguh._micros(p_now), true
    )
  then
    v_count := teguh._strike_template(p_now, false, 100);
  end if;
  return v_count + teguh._fire_template(p_now, p_limit);
end;
$$;

-- Claim up to p_qty runs of the queue.
--
-- Due timers are looked at first when no claim has done so for 20 ms, and in any
-- case before a claim comes back short: nothing due waits for a ticker.  A claim
-- that does come back short counts its worker as waiting, so that the next spawn
-- notifies.  p_ruled: the queue goes by lanes, where tasks of some names (null: of all) may be
-- asked for.
create or replace function teguh._take_template(
  p_worker  text,
  p_timeout double precision,
  p_qty     integer,
  p_ruled   boolean,
  p_names   text[]
)
  returns table(
    run_id           uuid,
    task_id          uuid,
    attempt          integer,
    task_name        text,
    params           jsonb,
    retry_strategy   jsonb,
    max_attempts     integer,
    headers          jsonb,
    wake_event       text,
    event_payload    jsonb,
    failures         integer,
    checkpoints      jsonb,
    lease_expires_at timestamptz,
    timeout_seconds  double precision
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now      timestamptz := teguh.current_time();
  v_until    timestamptz := case when p_timeout > 0 then teguh._after(v_now, p_timeout) end;
  v_millis   bigint := teguh._micros(clock_timestamp()) / 1000;
  v_fired    integer := -1;
  v_left     integer := p_qty;
  v_before   integer;
  v_ring     bigint;
  v_task_ids uuid[] := '{}';
begin
  if v_millis - pg_sequence_last_value('teguh.fired_template'::regclass) not between 0 and 19 then
    perform setval('teguh.fired_template'::regclass, v_millis);
    v_fired := teguh._bring_template(v_now, true, 1000);
  end if;
  loop
    v_before := v_left;
    v_ring := pg_sequence_last_value('teguh.ring_template'::regclass);
    for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
      exit when v_left <= 0;
      v_task_ids := v_task_ids || case
        when p_ruled then teguh._admit_template(p_worker, v_now, v_until, v_left, p_names)
        when v_gen % 2 = 0 then teguh._claim0_template(p_worker, v_now, v_until, v_left)
        else teguh._claim1_template(p_worker, v_now, v_until, v_left)
      end;
      v_left := p_qty - cardinality(v_task_ids);
    end loop;

    -- what was fired and could not be had is locked by somebody else
    exit when v_left <= 0 or v_fired = 0 or (v_fired > 0 and v_left = v_before);
    v_fired := teguh._bring_template(v_now, v_left = p_qty, least(v_left, 1000) + 100);
    exit when v_fired = 0;
  end loop;
  if v_left > 0 then
    perform nextval('teguh.parked_template'::regclass);
  end if;

  return query
  select
    t.run_id, t.task_id, t.attempt, t.task_name, t.params, t.retry_strategy, t.max_attempts,
    t.headers, t.wake_event, t.event_payload, t.failures, t.known, t.lease_expires_at,
    t.timeout_seconds
  from unnest(v_task_ids) as u(task_id)
  cross join lateral (
    select
      t.*,
      case when t.turn = 1 then '{}' else teguh._known_template(t.task_id, t.run_id) end as known
    from teguh.t_template as t where t.task_id = u.task_id offset 0
  ) as t
  where t.known is not null;
end;
$$;

-- All checkpoints of a task that was just claimed, as one object.  If that is larger than a jsonb
-- can be, the run fails, and null is returned: others must be had all the same.
create or replace function teguh._known_template(p_task_id uuid, p_run_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(
    (
      select jsonb_object_agg(c.checkpoint_name, c.state)
      from teguh.c_template as c
      where c.task_id = p_task_id
        and c.status = 'committed'
    ),
    '{}'
  );
exception
  when program_limit_exceeded then
    perform teguh._fail_template(
      p_run_id,
      jsonb_build_object(
        'name', '$Checkpoints', 'message', 'the checkpoints are together larger than a jsonb can be'
      ),
      null
    );
    return null;
end;
$$;

-- Until when a queue is paused, by its policy; null if it is not.
create or replace function teguh._paused_until(p_policy jsonb)
  returns timestamptz
  language sql
  volatile
as $$
  select case
    when pg_catalog.jsonb_object_field_text(p_policy, 'paused_until')::timestamp with time zone
      operator(pg_catalog.>) teguh.current_time()
      then pg_catalog.jsonb_object_field_text(p_policy, 'paused_until')::timestamp with time zone
  end;
$$;

-- Claim runs of a queue.
create or replace function teguh.claim_task(
  p_queue_name    text,
  p_worker_id     text,
  p_claim_timeout double precision default 30,
  p_qty           integer default 1
)
  returns table(
    run_id           uuid,
    task_id          uuid,
    attempt          integer,
    task_name        text,
    params           jsonb,
    retry_strategy   jsonb,
    max_attempts     integer,
    headers          jsonb,
    wake_event       text,
    event_payload    jsonb,
    failures         integer,
    checkpoints      jsonb,
    lease_expires_at timestamptz,
    timeout_seconds  double precision
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
begin
  perform teguh._check_isolation('claim_task');
  if teguh._paused_until(v_policy) is not null then
    return;
  end if;

  return query execute 'select * from teguh._take_' || p_queue_name || '($1, $2, $3, $4, null)'
  using
    coalesce(nullif(btrim(p_worker_id), ''), 'worker'),
    nullif(p_claim_timeout, 'NaN'),
    greatest(coalesce(p_qty, 1), 1),
    v_policy ? 'ruled';
end;
$$;

comment on function teguh.claim_task(text, text, double precision, integer) is
  'Hands up to p_qty due runs to a worker, oldest due first, under a lease of '
  'p_claim_timeout seconds (zero, less or null: without end). A blank worker id counts '
  'as "worker", a quantity below 1 as 1. attempt is how often the task has been '
  'handed out, this time included; checkpoints maps step names to their stored '
  'states; wake_event is the event that woke the run, with its payload, or the '
  'event whose wait timed out, with payload SQL null; timeout_seconds is how long the run '
  'may be held at a time, and the lease ends no later. Raises TG001 for an unknown '
  'queue, 25001 unless the transaction is READ COMMITTED.';

-- When the next sleeper is due, and whether it is safe to wait until then.
--
-- A caller that waits for a notification must hear of every task that was spawned
-- without one.  Such a spawn was made before this worker was counted as waiting,
-- so its transaction either is still open, seen by its lock on the newest segment,
-- or has committed, seen by the look for ready tasks that comes after.  Likewise for
-- sleepers: while the register of the next planned look says never, each one that is
-- spawned notifies; so that is what it says before the look.
create or replace function teguh._next_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := teguh.current_time();
  v_ring  bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_due   timestamptz;
  v_first timestamptz;
begin
  perform setval('teguh.plan_template'::regclass, teguh._beyond());
  if exists (
    select from pg_locks as l
    where l.relation in ('teguh.p0_template'::regclass, 'teguh.p1_template'::regclass)
      and l.mode = 'RowExclusiveLock'
      and l.database = (select d.oid from pg_database as d where d.datname = current_database())
      and l.pid is distinct from pg_backend_pid()
  ) then
    v_due := v_now + interval '10 milliseconds';
  end if;

  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    v_first := case
      when v_gen % 2 = 0 then teguh._soon0_template(v_now)
      else teguh._soon1_template(v_now)
    end;
    v_due := least(v_due, v_first);
  end loop;

  v_due := least(v_due, teguh._chance_template(v_now), teguh._future_template(v_now));
  if v_due is not null then
    perform setval('teguh.plan_template'::regclass, greatest(teguh._micros(v_due), 0));
  end if;
  return v_due;
end;
$$;

-- When a segment next has a task for a worker: now, when a timer is due, or null.
-- Timers whose task was woken before them are passed over, the first hundred of
-- them; past that the moment may come too early, never too late.
create or replace function teguh._soon0_template(p_now timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ready  teguh.k0_template;
  v_timers teguh.k0_template := teguh._last0_template('s');
  v_timer  record;
  v_count  integer := 0;
begin
  select k.* into v_ready
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;

  perform from teguh._next0_template(coalesce(v_ready.xid, '0'), coalesce(v_ready.seq, 0)) as r
  where r.xid is not null;
  if found or teguh._trim0_template(v_ready.gaps, '{}') is not null then
    return p_now;
  end if;

  perform from unnest(v_timers.late) as l
  join teguh.p0_template as p on p.xid = l.xid
  where p.kind = 's'
    and p.kind <> 'r'
    and p.due_at >= l.since
    and p.due_at <= v_timers.due_at;
  if found then
    return p_now;
  end if;

  for v_timer in
    select p.due_at, p.task_id, p.turn
    from teguh.p0_template as p
    where p.kind = 's'
      and p.kind <> 'r'
      and (p.due_at, p.seq) > (v_timers.due_at, v_timers.seq)
    order by p.due_at, p.seq
    limit 100
  loop
    v_count := v_count + 1;
    perform from teguh.t_template as t
    where t.task_id = v_timer.task_id
      and t.state = 'sleeping'
      and v_timer.turn in (-1, t.turn);
    if found or v_count = 100 then
      return nullif(v_timer.due_at, 'infinity');
    end if;
  end loop;

  return null;
end;
$$;

-- When the next delayed task of a queue is due, or its next schedule.
create or replace function teguh.next_due(p_queue_name text)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_due    timestamptz := teguh._paused_until(v_policy);
begin
  if v_due is not null then
    return nullif(v_due, 'infinity');
  end if;

  execute 'select teguh._next_' || p_queue_name || '()' into v_due;
  return v_due;
end;
$$;

comment on function teguh.next_due(text) is
  'When the next delayed task of the queue or its next schedule is due; null if none is. A worker '
  'calls it before it waits, and waits no longer: the answer is the present moment if a task is '
  'ready, and 10 ms from it while spawns are being committed. While the queue is paused: when that '
  'ends, null if not by itself. Raises TG001 for an unknown queue.';

-- sql/src/32_timers.sql
-- Collect the timers of one kind that have come due in a segment, up to p_limit,
-- and move that kind's timer position past them.
--
-- What is written must stay true: every timer at or before the position, visible
-- now or later, was collected by a transaction that commits with it, unless the
-- transaction that set it is in "late".  Those were open when the position
-- moved; when one has ended, its timers are looked for once.
--
-- A transaction that gets its id after the clock was set notes the timers that it sets
-- behind it.  So ids from before are all that matter: those below our own, if we have none
-- yet, or else those that a new snapshot is made to list.  If somebody else is just about
-- to set the clock, the position stays, and sleepers that were collected and claimed are
-- passed over instead.
create or replace function teguh._due0_template(
  p_kind  "char",
  p_now   timestamptz,
  p_limit integer
)
  returns teguh._timer[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_moves    boolean;
  v_n        bigint;
  v_snapshot pg_snapshot;
  v_from     teguh.k0_template;
  v_to       teguh.k0_template;
  v_due      teguh._timer[];
  v_rows     bigint;
begin
  if not teguh._any0_template(p_kind, p_now, teguh._last0_template(p_kind)) then
    return '{}';
  end if;

  -- in this order: whoever sets a timer with a clock behind ours then either has an
  -- open transaction in the snapshot, or is seen in the position read after it, or
  -- finds the clock, and goes back behind this position
  v_moves := teguh._wind_template(p_now);
  if v_moves and pg_current_xact_id_if_assigned() is not null then
    perform teguh._raise_xmax();
  end if;
  v_n := nextval('teguh.seq_template'::regclass);
  v_snapshot := pg_current_snapshot();
  v_from := teguh._last0_template(p_kind);

  select
    array_agg(row(u.task_id, u.turn)::teguh._timer order by d.due_at, d.seq),
    count(distinct d.seq)
  into v_due, v_rows
  from (
    select p.task_id, p.turn, p.more_ids, p.more_turns, p.due_at, p.seq
    from teguh.p0_template as p
    where p.kind = p_kind
      and p.kind <> 'r'
      and (p.due_at, p.seq) > (v_from.due_at, v_from.seq)
      and p.due_at <= p_now
      and (v_moves or p_kind = 'l' or exists (
        select from teguh.t_template as t
        where t.task_id = p.task_id
          and p.turn in (-1, t.turn)
          and t.state = 'sleeping'
        offset 0
      ))
    order by p.due_at, p.seq
    limit p_limit
  ) as d
  cross join lateral unnest(d.task_id || d.more_ids, d.turn || d.more_turns) as u(task_id, turn);

  if not v_moves then
    return coalesce(v_due, '{}') || teguh._miss0_template(v_from, v_snapshot);
  end if;

  v_to.due_at := greatest(v_from.due_at, p_now);
  v_to.seq := 9223372036854775807;
  if v_rows = p_limit then
    select p.due_at, p.seq into v_to.due_at, v_to.seq
    from teguh.p0_template as p
    where p.kind = p_kind
      and p.kind <> 'r'
      and (p.due_at, p.seq) > (v_from.due_at, v_from.seq)
    order by p.due_at, p.seq
    limit 1 offset p_limit - 1;
  end if;
  perform teguh._pass0_template(v_n, p_kind, v_snapshot, v_from, v_to);

  return coalesce(v_due, '{}') || teguh._miss0_template(v_from, v_snapshot);
end;
$$;

-- Have new snapshots list every transaction that is open and has an id by now, newer ones than
-- ours, too: snapshots reach up to the newest id that has ended, so give one to a subtransaction,
-- by a message that goes nowhere, and roll it back.
create or replace function teguh._raise_xmax()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_logical_emit_message(true, 'teguh', '');
  raise sqlstate 'TG000';
exception
  when sqlstate 'TG000' then
    null;
end;
$$;

-- Set the clock by which timer positions are moved to a moment, unless it is past it.  The clock
-- never goes back: one at a time sets it, under a lock that is given up at once whatever happens.
-- False if that is somebody else.
create or replace function teguh._wind_template(p_now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now    bigint := teguh._micros(p_now);
  v_number bigint := hashtextextended('teguh.clock_template', 0);
  v_locked boolean := false;
begin
  if v_now <= pg_sequence_last_value('teguh.clock_template'::regclass) then
    return true;
  end if;

  begin
    v_locked := pg_try_advisory_lock(v_number);
    if not v_locked then
      return false;
    end if;
    if v_now > pg_sequence_last_value('teguh.clock_template'::regclass) then
      perform setval('teguh.clock_template'::regclass, v_now);
    end if;
    v_locked := not pg_advisory_unlock(v_number);
  exception
    when others or query_canceled then
      if v_locked then
        perform pg_advisory_unlock(v_number);
      end if;
      raise;
  end;

  return true;
end;
$$;

-- The latest timer position of one kind, or before it what the position does not account for
-- because it was set with a clock behind: by its own transaction, by later ones, and by those in
-- "late". The beginning of time if there is none.
create or replace function teguh._last0_template(p_kind "char")
  returns teguh.k0_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last  teguh.k0_template;
  v_slow  "char" := upper(p_kind::text);
  v_early timestamptz;
begin
  select k.* into v_last
  from teguh.k0_template as k
  where k.kind = p_kind
  order by k.kind desc, k.n desc
  limit 1;
  if not found then
    v_last.kind := p_kind;
    v_last.seq := 0;
    v_last.due_at := '-infinity';
    return v_last;
  end if;

  v_early := least(
    (
      select min(k.due_at)
      from teguh.k0_template as k
      where k.kind = v_slow
        and k.n >= v_last.xid::text::bigint
    ),
    case when v_last.late is not null then (
      select min(k.due_at)
      from unnest(v_last.late) as l
      join teguh.k0_template as k on k.kind = v_slow and k.n = l.xid::text::bigint
    ) end
  );
  if v_early <= v_last.due_at then
    v_last.due_at := v_early - interval '1 microsecond';
    v_last.seq := 0;
  end if;
  return v_last;
end;
$$;

-- Whether there is a timer to collect after a position, or may be one before it.
create or replace function teguh._any0_template(
  p_kind "char",
  p_now  timestamptz,
  p_from teguh.k0_template
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform from teguh.p0_template as p
  where p.kind = p_kind
    and p.kind <> 'r'
    and (p.due_at, p.seq) > (p_from.due_at, p_from.seq)
    and p.due_at <= p_now
  order by p.due_at, p.seq
  limit 1;
  return found or exists (
    select from unnest(p_from.late) as l
    where pg_visible_in_snapshot(l.xid, pg_current_snapshot())
  );
end;
$$;

-- The timers before a position whose transactions were open when it moved, and have
-- ended by now.
create or replace function teguh._miss0_template(
  p_from     teguh.k0_template,
  p_snapshot pg_snapshot
)
  returns teguh._timer[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ended xid8[];
  v_since timestamptz;
begin
  select array_agg(l.xid), min(l.since) into v_ended, v_since
  from unnest(p_from.late) as l
  where pg_visible_in_snapshot(l.xid, p_snapshot);
  if v_ended is null then
    return '{}';
  end if;

  return array(
    select row(u.task_id, u.turn)::teguh._timer
    from teguh.p0_template as p
    cross join lateral unnest(p.task_id || p.more_ids, p.turn || p.more_turns) as u(task_id, turn)
    where p.kind = p_from.kind
      and p.kind <> 'r'
      and p.due_at >= v_since
      and p.due_at <= p_from.due_at
      and p.xid = any (v_ended)
  );
end;
$$;

-- Write a timer position, with the transactions that may still insert timers
-- before it.  With very many of them open the position stays where it is, and
-- timers already collected are collected again, which does no harm.
create or replace function teguh._pass0_template(
  p_n        bigint,
  p_kind     "char",
  p_snapshot pg_snapshot,
  p_from     teguh.k0_template,
  p_to       teguh.k0_template
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_after bigint := pg_snapshot_xmax(p_snapshot)::text::bigint;
  v_own   bigint := pg_current_xact_id()::text::bigint;
  v_late  teguh._late[];
begin
  if v_own - v_after > 128 then
    return;
  end if;

  -- transactions that are open with an id past xmax are not in the snapshot's list
  select array_agg(row(x.xid, coalesce(l.since, p_from.due_at))::teguh._late) into v_late
  from (
    select pg_snapshot_xip(p_snapshot) as xid
    union
    select g.id::text::xid8
    from generate_series(v_after, v_own - 1) as g(id)
  ) as x
  left join unnest(p_from.late) as l on l.xid = x.xid;
  if cardinality(v_late) > 128 then
    return;
  end if;

  insert into teguh.k0_template as k (n, kind, xid, due_at, seq, late)
  values (p_n, p_kind, pg_current_xact_id(), p_to.due_at, p_to.seq, v_late);
end;
$$;

-- Deal with the timers that have come due: queue sleepers, end runs whose lease
-- expired, cancel tasks past their deadline.  Up to p_limit of each kind per
-- segment.  Returns how many tasks have become claimable or changed.
--
-- A timer is a hint like any dispatch row.  Several transactions may deal with
-- the same one; the task's turn and state decide.
create or replace function teguh._fire_template(p_now timestamptz, p_limit integer)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring     bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_sleepers teguh._timer[] := '{}';
  v_leases   teguh._timer[] := '{}';
  v_joined   uuid[];
  v_task_ids uuid[];
  v_turns    integer[];
begin
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    if v_gen % 2 = 0 then
      v_sleepers := v_sleepers || teguh._due0_template('s', p_now, p_limit);
      v_leases := v_leases || teguh._due0_template('l', p_now, p_limit);
    else
      v_sleepers := v_sleepers || teguh._due1_template('s', p_now, p_limit);
      v_leases := v_leases || teguh._due1_template('l', p_now, p_limit);
    end if;
  end loop;

  if v_sleepers <> '{}' then
    -- what came due first is queued first, in whichever segment its timer is
    select
      array_agg(d.task_id order by t.available_at, d.task_id),
      array_agg(d.turn order by t.available_at, d.task_id)
    into v_task_ids, v_turns
    from (select distinct u.task_id, u.turn from unnest(v_sleepers) as u) as d
    cross join lateral (
      select t.available_at
      from teguh.t_template as t
      where (t.task_id, t.turn, t.state) = (d.task_id, d.turn, 'sleeping')
      offset 0
    ) as t;
    if v_task_ids is not null then
      perform teguh._push_template('r', v_task_ids, v_turns);
    end if;
    v_joined := array(
      select distinct u.task_id
      from unnest(v_sleepers) as u
      where u.turn = -1
      order by u.task_id
    );
  end if;

  return coalesce(cardinality(v_task_ids), 0)
         + teguh._gather_template(v_joined, p_now)
         + teguh._expire_template(v_leases, p_now);
end;
$$;

-- Deal with timers of leases, of deadlines (turn 0), and of children whose parent has ended
-- (turn -1).  A lease that was extended gets a new timer; so does a task that somebody holds
-- locked, to be looked at again in a second.  Returns how many tasks have changed.
create or replace function teguh._expire_template(p_timers teguh._timer[], p_now timestamptz)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_timer record;
  v_task  teguh.t_template;
  v_count integer := 0;
begin
  for v_timer in
    select
      d.task_id,
      d.turn,
      case d.turn when -1 then p_now when 0 then t.deadline_at else t.lease_expires_at end
        as due_at
    from (select distinct u.task_id, u.turn from unnest(p_timers) as u) as d
    cross join lateral (
      select t.turn, t.state, t.deadline_at, t.lease_expires_at
      from teguh.t_template as t
      where t.task_id = d.task_id
      offset 0
    ) as t
    where (d.turn = t.turn and t.state = 'running')
      or (d.turn in (-1, 0) and t.state in ('pending', 'running', 'sleeping'))
    order by d.task_id
  loop
    continue when v_timer.due_at is null;
    if v_timer.due_at > p_now then
      perform teguh._push_template(
        'l', array[v_timer.task_id], array[v_timer.turn], array[v_timer.due_at]
      );
      continue;
    end if;

    select t.* into v_task
    from teguh.t_template as t
    where t.task_id = v_timer.task_id
    for no key update skip locked;
    if not found then
      perform teguh._push_template(
        'l', array[v_timer.task_id], array[v_timer.turn], array[p_now + interval '1 second']
      );
    elsif v_timer.turn = -1 then
      v_count := v_count + (teguh._stop_template(v_task.task_id, p_now) is not null)::integer;
    elsif v_timer.turn = 0 then
      v_count := v_count + teguh._over_template(v_task, p_now);
    elsif v_task.lease_expires_at > p_now then
      -- extended since the loop began
      perform teguh._push_template(
        'l', array[v_timer.task_id], array[v_timer.turn], array[v_task.lease_expires_at]
      );
    elsif v_task.state = 'running'
      and v_task.turn = v_timer.turn
      and v_task.lease_expires_at <= p_now
    then
      perform teguh._end_template(
        v_task,
        teguh._timeout_reason(
          v_task.lease_expires_at
          >= teguh._after(v_task.started_at, v_task.timeout_seconds),
          v_task.claimed_by
        ),
        null,
        p_now
      );
      v_count := v_count + 1;
    end if;
  end loop;

  return v_count;
end;
$$;

-- Why a run that was not reported on in time has failed.
create or replace function teguh._timeout_reason(p_overtime boolean, p_worker text)
  returns jsonb
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_overtime then jsonb_build_object(
      'name', '$RunTimeout',
      'message', format('worker %s did not end the run within its timeout', p_worker)
    )
    else jsonb_build_object(
      'name', '$ClaimTimeout',
      'message', format('the lease of worker %s expired', p_worker)
    )
  end;
$$;

-- End a locked task whose deadline has passed: it expires, or is cancelled.
create or replace function teguh._over_template(
  p_task teguh.t_template,
  p_now  timestamptz
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task.deadline_at > p_now
    or p_task.state not in ('pending', 'running', 'sleeping')
  then
    return 0;
  end if;

  perform teguh._close_template(p_task, p_now);
  return 1;
end;
$$;

-- End a locked task that cannot go on before its deadline.
create or replace function teguh._close_template(
  p_task teguh.t_template,
  p_now  timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task.expires_at > p_task.deadline_at or p_task.expires_at is null then
    perform teguh._stop_template(p_task.task_id, p_now);
    return;
  end if;

  update teguh.t_template as t
  set
    state = 'expired',
    lease_expires_at = null,
    finished_at = p_now
  where t.task_id = p_task.task_id;
  perform teguh._lost_template(p_task.task_id, 'expired', p_now);
  perform teguh._moved_template(p_task, 'e');
  if p_task.on_expired is not null then
    perform teguh._follow_template(p_task);
  end if;
end;
$$;

-- Spawn what is to follow an expired task.  If that cannot be, the task says why.
create or replace function teguh._follow_template(p_task teguh.t_template)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_detail text;
begin
  perform teguh.spawn_task(
    coalesce(p_task.on_expired ->> 'queue_name', substr('_template', 2)),
    p_task.on_expired ->> 'task_name',
    coalesce(
      p_task.on_expired -> 'params',
      jsonb_build_object(
        '$task_id', p_task.task_id, '$task_name', p_task.task_name, '$params', p_task.params
      )
    ),
    teguh._present(jsonb_build_object(
      'parent_task_id', p_task.task_id, 'workflow_run_id', p_task.workflow_run_id,
      'correlation_id', p_task.correlation_id, 'tags', p_task.tags
    ))
    || coalesce(p_task.on_expired -> 'options', '{}')
  );
exception
  when sqlstate 'TG001' or sqlstate 'TG005' or sqlstate 'TG006' or sqlstate 'TG007'
    or program_limit_exceeded
  then
    get stacked diagnostics v_detail = message_text;
    update teguh.t_template as t
    set failure_reason = jsonb_build_object('name', '$OnExpired', 'message', v_detail)
    where t.task_id = p_task.task_id;
end;
$$;

-- sql/src/33_rotate.sql
-- Bytes a segment may grow to before the other one is opened.
create or replace function teguh._segment_bytes()
  returns bigint
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    nullif(btrim(current_setting('teguh.segment_bytes', true)), '')::bigint,
    67108864
  );
$$;

-- Take one step in the use of the two segments, if one is due:
--
--   one in use, grown large             -> open the other, if that is empty
--   two in use, the older has no say    -> stop looking at the older
--   one in use, the other not empty     -> truncate the other
--
-- The ring moves only on what is committed, because a register does not roll
-- back.  Nothing waits for a lock: a step that cannot have it is left to a later
-- call.
create or replace function teguh._turn_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring   bigint;
  v_limit  bigint;
  v_newest bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('teguh.ring_template', 0)) then
    return;
  end if;

  v_ring := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_newest := (v_ring + 1) / 2 % 2;
  -- what was carried over does not count, or the next change would come at once
  v_limit := greatest(
    teguh._segment_bytes(),
    3 * pg_sequence_last_value('teguh.carry_template'::regclass)
  );

  if v_newest = 0 then
    perform teguh._turn0_template(v_ring, v_limit);
  else
    perform teguh._turn1_template(v_ring, v_limit);
  end if;
end;
$$;

-- The step to take while segment 0 gets the new rows.
create or replace function teguh._turn0_template(p_ring bigint, p_limit bigint)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_full boolean := pg_relation_size('teguh.p0_template'::regclass) >= p_limit;
begin
  if p_ring % 2 = 1 then
    -- nobody inserts into the older segment any more, and nobody still might
    lock table teguh.p1_template in share mode nowait;
    if not teguh._spent1_template() then
      if v_full then
        perform teguh._carry1_template();
      end if;
      return;
    end if;
    perform setval('teguh.ring_template'::regclass, p_ring + 1);
  elsif pg_relation_size('teguh.p1_template'::regclass) > 0
    or pg_relation_size('teguh.k1_template'::regclass) > 0
    or pg_relation_size('teguh.n1_template'::regclass) > 0
  then
    lock table teguh.p1_template, teguh.k1_template, teguh.n1_template
      in access exclusive mode nowait;
    perform teguh._bank1_template();
    truncate teguh.p1_template, teguh.k1_template, teguh.n1_template;
  elsif v_full then
    perform setval('teguh.ring_template'::regclass, p_ring + 1);
  end if;
exception
  when lock_not_available then
    return;
end;
$$;

-- Whether a segment into which nobody inserts has nothing left to say: every
-- ready row is stale or claimed, every timer collected.
create or replace function teguh._spent0_template()
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._dry0_template()
         and not exists (select from teguh._left0_template('s', 1))
         and not exists (select from teguh._left0_template('l', 1));
end;
$$;

-- Whether no ready row of a segment is still to be had.
create or replace function teguh._dry0_template()
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from teguh.k0_template;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;

  return teguh._trim0_template(v_from.gaps, '{}') is null
         and not exists (
           select
           from teguh._next0_template(
             coalesce(v_from.xid, '0'), coalesce(v_from.seq, 0)
           ) as r
           where r.xid is not null
         );
end;
$$;

-- The timers of a segment that have not been collected, up to p_limit (null: all).
create or replace function teguh._left0_template(p_kind "char", p_limit integer)
  returns setof teguh.p0_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from teguh.k0_template := teguh._last0_template(p_kind);
begin
  return query
  select p.*
  from teguh.p0_template as p
  where p.kind = p_kind
    and p.kind <> 'r'
    and (p.due_at, p.seq) > (v_from.due_at, v_from.seq)
  order by p.due_at, p.seq
  limit p_limit;

  return query
  select p.*
  from unnest(v_from.late) as l
  join teguh.p0_template as p on p.xid = l.xid
  where p.kind = p_kind
    and p.kind <> 'r'
    and p.due_at between l.since and v_from.due_at
  limit p_limit;
end;
$$;

-- Carry the timers of a drained segment over to the newest one, so that long
-- sleepers do not keep it.  Timers that mean nothing any more stay behind.
create or replace function teguh._carry0_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind     "char";
  v_task_ids uuid[];
  v_turns    integer[];
  v_due_at   timestamptz[];
  v_count    bigint := 0;
begin
  if not teguh._dry0_template() then
    return;
  end if;

  foreach v_kind in array array['s', 'l']::"char"[] loop
    select array_agg(u.task_id), array_agg(u.turn), array_agg(p.due_at)
    into v_task_ids, v_turns, v_due_at
    from teguh._left0_template(v_kind, null) as p
    cross join lateral unnest(p.task_id || p.more_ids, p.turn || p.more_turns) as u(task_id, turn)
    where exists (
      select from teguh.t_template as t
      where t.task_id = u.task_id
        and u.turn in (-1, 0, t.turn)
        and t.state in ('pending', 'running', 'sleeping')
      offset 0
    );
    if v_task_ids is not null then
      perform teguh._push_template(v_kind, v_task_ids, v_turns, v_due_at);
      v_count := v_count + cardinality(v_task_ids);
    end if;

    insert into teguh.k0_template as k (n, kind, due_at, seq)
    values (
      nextval('teguh.seq_template'::regclass), v_kind, 'infinity', 9223372036854775807
    );
  end loop;

  perform setval('teguh.carry_template'::regclass, v_count * 100);
end;
$$;

-- sql/src/34_rebuild.sql
-- Build the dispatch tables of a queue anew from its tasks.  Returns how many tasks wait
-- for a worker or a time.
--
-- All of it happens under exclusive locks: nobody sees a queue half built.  The ring
-- stays where it is, because a register does not roll back; both segments are empty.
create or replace function teguh._remake_template()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_count bigint := 0;
  v_after uuid := uuid '00000000-0000-0000-0000-000000000000';
  v_batch record;
begin
  lock table
    teguh.t_template, teguh.p0_template, teguh.p1_template, teguh.k0_template, teguh.k1_template,
    teguh.n0_template, teguh.n1_template
    in access exclusive mode;
  perform teguh._init_template();
  perform teguh._census_template();
  perform teguh._bank0_template();
  perform teguh._bank1_template();
  truncate
    teguh.p0_template, teguh.p1_template, teguh.k0_template, teguh.k1_template,
    teguh.n0_template, teguh.n1_template;
  perform setval('teguh.plan_template'::regclass, teguh._beyond());
  perform setval('teguh.agenda_template'::regclass, 0);
  delete from teguh.l_template;
  update teguh.t_template as t
  set laned = false
  where t.laned;

  loop
    v_batch := teguh._alive_template(v_after, 10000);
    exit when v_batch.last is null;
    v_after := v_batch.last;
    v_count := v_count
               + coalesce(cardinality(v_batch.ready), 0)
               + coalesce(cardinality(v_batch.sleepers), 0);
    perform teguh._push_template('r', v_batch.ready, v_batch.ready_turns);
    perform teguh._push_template('s', v_batch.sleepers, v_batch.sleeper_turns, v_batch.due_at);
    perform teguh._push_template('l', v_batch.leased, v_batch.lease_turns, v_batch.leases);
    perform teguh._push_template(
      'l', v_batch.limited, teguh._fill(0, v_batch.limited), v_batch.limits
    );
  end loop;

  perform teguh._tell_template(w.task_id)
  from teguh.w_template as w
  where w.event_name = '$children'
    or starts_with(w.event_name, '$message:');

  update teguh.queues as q
  set built_for = teguh._home('teguh.p0_template'::regclass)
  where q.queue_name = substr('_template', 2);
  return v_count;
end;
$$;

-- The next tasks, in the order of their ids, that dispatch has to know of: those that are
-- ready, that sleep until a time, that a worker holds, that have a deadline.
create or replace function teguh._alive_template(
  p_after           uuid,
  p_limit           integer,
  out last          uuid,
  out ready         uuid[],
  out ready_turns   integer[],
  out sleepers      uuid[],
  out sleeper_turns integer[],
  out due_at        timestamptz[],
  out leased        uuid[],
  out lease_turns   integer[],
  out leases        timestamptz[],
  out limited       uuid[],
  out limits        timestamptz[]
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  with batch as materialized (
    select t.task_id, t.turn, t.state, t.available_at, t.lease_expires_at, t.deadline_at
    from teguh.t_template as t
    where t.task_id > p_after
    order by t.task_id
    limit p_limit
  )

  select
    (select t.task_id from batch as t order by t.task_id desc limit 1),
    array_agg(b.task_id) filter (where b.state = 'pending'),
    array_agg(b.turn) filter (where b.state = 'pending'),
    array_agg(b.task_id) filter (where b.state = 'sleeping' and b.available_at is not null),
    array_agg(b.turn) filter (where b.state = 'sleeping' and b.available_at is not null),
    array_agg(b.available_at) filter (where b.state = 'sleeping' and b.available_at is not null),
    array_agg(b.task_id) filter (where b.state = 'running'),
    array_agg(b.turn) filter (where b.state = 'running'),
    array_agg(coalesce(b.lease_expires_at, 'infinity')) filter (where b.state = 'running'),
    array_agg(b.task_id) filter (where b.limited),
    array_agg(b.deadline_at) filter (where b.limited)
  into
    last, ready, ready_turns, sleepers, sleeper_turns, due_at, leased, lease_turns, leases,
    limited, limits
  from (
    select
      t.*,
      t.deadline_at is not null and t.state in ('pending', 'running', 'sleeping') as limited
    from batch as t
  ) as b;
end;
$$;

-- What dispatch was built for: this database and table.  Transaction ids, which the
-- dispatch tables are made of, mean nothing in the copy that a restored dump is.
create or replace function teguh._home(p_table regclass)
  returns bigint
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended(d.oid::text || '/' || p_table::oid::text, 0)
  from pg_database as d
  where d.datname = current_database();
$$;

-- Build dispatch anew if the queue was brought here by a dump or a copy.  If the locks are
-- not to be had, a later call will do it.
create or replace function teguh._settle_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '100ms'
as $$
begin
  perform from teguh.queues as q
  where q.queue_name = substr('_template', 2)
    and q.built_for = teguh._home('teguh.p0_template'::regclass)
    and pg_sequence_last_value('teguh.ring_template'::regclass) is not null;
  if not found then
    perform teguh._remake_template();
  end if;
exception
  when lock_not_available then
    return;
end;
$$;

-- Build dispatch anew.
create or replace function teguh.rebuild_dispatch(p_queue_name text)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '100ms'
as $$
declare
  v_call  text := teguh._call('remake', p_queue_name, 0);
  v_count bigint;
begin
  for v_try in 1..300 loop
    begin
      execute v_call into v_count;
      return v_count;
    exception
      when lock_not_available then
        perform pg_sleep(0.1 * random());
    end;
  end loop;

  perform teguh._refuse_busy(p_queue_name);
  return null;
end;
$$;

comment on function teguh.rebuild_dispatch(text) is
  'Builds the dispatch tables of a queue anew from its tasks: what is ready, what sleeps '
  'until when, what is leased until when. ticker() does so by itself in a database '
  'that was restored from a dump; call this after a copy by other means, or when those '
  'tables were damaged. Waits up to a minute for transactions that are using the '
  'queue. Returns how many tasks wait for a worker or a time. Raises TG001 for an unknown '
  'queue, 55P03 if it stays busy.';

-- Write down what a queue from before 0.2.0 lacks: which tasks ended without success, and the
-- timers of leases without end, by which their runs are found.  Called while a version is
-- being installed; where it was already, nothing lacks.
create or replace function teguh._recap_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_ids uuid[];
  v_turns    integer[];
begin
  perform from teguh.versions as v
  where v.version = teguh.version();
  if found or exists (select from teguh.d_template) then
    return;
  end if;

  insert into teguh.d_template as d (state, task_id, ended_at)
  select t.state, t.task_id, t.finished_at
  from teguh.t_template as t
  where t.state in ('failed', 'cancelled');

  select array_agg(t.task_id), array_agg(t.turn) into v_task_ids, v_turns
  from teguh.t_template as t
  where t.state = 'running'
    and t.lease_expires_at is null;
  perform teguh._push_template(
    'l', v_task_ids, v_turns, array['infinity'::timestamptz]
  );
end;
$$;

-- sql/src/35_tally.sql
-- The letter by which tallies know where a task stands.
create or replace function teguh._letter(p_state text, p_attempt integer, p_wake_event text)
  returns "char"
  language sql
  immutable
as $$
  select case
    when p_state operator(pg_catalog.=) 'pending' then 'p'
    when p_state operator(pg_catalog.=) 'running' then 'r'
    when p_state operator(pg_catalog.=) 'completed' then 'c'
    when p_state operator(pg_catalog.=) 'failed' then 'f'
    when p_state operator(pg_catalog.=) 'cancelled' then 'x'
    when p_state operator(pg_catalog.=) 'expired' then 'e'
    when p_attempt operator(pg_catalog.=) 0 then 'd'
    when p_wake_event is null then 's'
    else 'w'
  end::pg_catalog."char";
$$;

-- A letter as often as there are tasks.
create or replace function teguh._letters(p_letter "char", p_task_ids uuid[])
  returns "char"[]
  language sql
  immutable
as $$
  select pg_catalog.array_fill(
    p_letter, array[coalesce(pg_catalog.cardinality(p_task_ids), 0)]
  );
$$;

-- The least bound of the duration buckets that a duration does not exceed.  What would be less
-- than a nanosecond too long counts as equal.
create or replace function teguh._bound(p_seconds double precision, p_buckets double precision[])
  returns double precision
  language sql
  immutable
as $$
  select coalesce(
    p_buckets[
      pg_catalog.width_bucket(
        p_seconds operator(pg_catalog.-) 1e-9::double precision, p_buckets
      ) operator(pg_catalog.+) 1
    ],
    'infinity'::double precision
  );
$$;

-- Note how many tasks of a name changed, for the statistics, in the transaction that changes
-- them.  p_most and p_seconds: how long their runs took if that ended runs, else 0.
--
-- It does no harm if a segment is no longer the newest.  What is in it is counted for as long as
-- it is there, and added to the totals by whoever truncates it.
create or replace function teguh._tally_template(
  p_task_name text,
  p_was       "char",
  p_became    "char",
  p_qty       integer default 1,
  p_most      double precision default 0,
  p_seconds   double precision default 0
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if (pg_sequence_last_value('teguh.ring_template'::regclass) + 1) / 2 % 2 = 0 then
    insert into teguh.n0_template as n (task_name, was, became, qty, most, seconds)
    values (p_task_name, p_was, p_became, p_qty, p_most, p_seconds);
  else
    insert into teguh.n1_template as n (task_name, was, became, qty, most, seconds)
    values (p_task_name, p_was, p_became, p_qty, p_most, p_seconds);
  end if;
end;
$$;

-- Note changes of several tasks to the same, one row for all that are alike.
create or replace function teguh._reckon_template(
  p_task_names text[],
  p_was        "char"[],
  p_became     "char"
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task_names[1] = all (p_task_names) and p_was[1] = all (p_was) then
    perform teguh._tally_template(
      p_task_names[1], p_was[1], p_became, cardinality(p_task_names)
    );
  else
    perform teguh._tally_template(c.task_name, c.was, p_became, c.qty)
    from (
      select u.task_name, u.was, count(*)::integer as qty
      from unnest(p_task_names, p_was) as u(task_name, was)
      group by u.task_name, u.was
    ) as c;
  end if;
end;
$$;

-- Note that runs have ended with success, one row for all that are alike.
create or replace function teguh._finish_template(
  p_task_names text[],
  p_seconds    double precision[]
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_buckets double precision[];
begin
  select q.buckets into v_buckets
  from teguh.queues as q
  where q.queue_name = substr('_template', 2);

  perform teguh._tally_template(c.task_name, 'r', 'c', c.qty, c.most, c.seconds)
  from (
    select
      u.task_name, teguh._bound(u.seconds, v_buckets) as most, count(*)::integer as qty,
      sum(u.seconds) as seconds
    from unnest(p_task_names, p_seconds) as u(task_name, seconds)
    group by u.task_name, teguh._bound(u.seconds, v_buckets)
  ) as c;
end;
$$;

-- Note the change of a task that was as given.  p_now: a run ended then.
create or replace function teguh._moved_template(
  p_task   teguh.t_template,
  p_became "char",
  p_now    timestamptz default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_was     "char" := teguh._letter(p_task.state, p_task.attempt, p_task.wake_event);
  v_seconds double precision := date_part('epoch', p_now - p_task.started_at);
begin
  if v_seconds is null then
    perform teguh._tally_template(p_task.task_name, v_was, p_became);
  else
    perform teguh._tally_template(
      p_task.task_name, v_was, p_became, 1, teguh._bound(v_seconds, q.buckets), v_seconds
    )
    from teguh.queues as q
    where q.queue_name = substr('_template', 2);
  end if;
end;
$$;

-- Sum up the notes of a segment, so that readers need not, once a thousand have been made since
-- that was done last.
--
-- The sum holds what was visible to its snapshot, and says which that is.  A transaction that has
-- an id by then leaves it to another: what it notes later would look as if it had been seen.
create or replace function teguh._sum0_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last pg_snapshot := (
    select k.snapshot
    from teguh.k0_template as k
    where k.kind = 'n'
    order by k.kind desc, k.n desc
    limit 1
  );
begin
  perform from teguh.n0_template as n
  where n.xid >= coalesce(pg_snapshot_xmax(v_last), '0')
  order by n.xid
  limit 1 offset 999;
  if not found or pg_current_xact_id_if_assigned() is not null then
    return;
  end if;

  insert into teguh.k0_template as k (n, kind, seq, snapshot, tallies)
  select
    nextval('teguh.seq_template'::regclass), 'n', 0, pg_current_snapshot(),
    array_agg(row(c.task_name, c.was, c.became, c.most, c.qty, c.seconds)::teguh._tally)
  from (
    select c.task_name, c.was, c.became, c.most, sum(c.qty) as qty, sum(c.seconds) as seconds
    from teguh._noted0_template() as c
    group by c.task_name, c.was, c.became, c.most
  ) as c;
end;
$$;

-- The notes of a segment: its latest sum, and what that did not see.
create or replace function teguh._noted0_template()
  returns setof teguh._tally
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  with last as materialized (
    select k.snapshot, k.tallies
    from teguh.k0_template as k
    where k.kind = 'n'
    order by k.kind desc, k.n desc
    limit 1
  ),

  unseen as (
    select n.*
    from teguh.n0_template as n
    where n.xid >= coalesce((select pg_snapshot_xmax(l.snapshot) from last as l), '0')
    union all
    select n.*
    from last as l
    cross join lateral pg_snapshot_xip(l.snapshot) as x(xid)
    join teguh.n0_template as n on n.xid = x.xid
  )

  select t.task_name, t.was, t.became, t.most, t.qty, t.seconds
  from last as l
  cross join lateral unnest(l.tallies) as t
  union all
  select u.task_name, u.was, u.became, u.most, u.qty, u.seconds
  from unseen as u;
$$;

-- Add the notes of a segment to the totals, which is about to be truncated under a lock that
-- nobody shares.
create or replace function teguh._bank0_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.n_template as n (task_name, was, became, most, qty, seconds)
  select o.task_name, o.was, o.became, o.most, sum(o.qty), sum(o.seconds)
  from teguh.n0_template as o
  group by o.task_name, o.was, o.became, o.most
  on conflict (task_name, was, became, most) do update
  set
    qty = n.qty + excluded.qty,
    seconds = n.seconds + excluded.seconds;
end;
$$;

-- Count the tasks that are there, for a queue whose changes were never noted: it is from an
-- older version, or was copied by other means.
create or replace function teguh._census_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.n_template as n (task_name, was, became, most, qty, seconds)
  select
    t.task_name, '-', teguh._letter(t.state, t.attempt, t.wake_event) as became, 0, count(*), 0
  from teguh.t_template as t
  where not exists (select from teguh.n_template)
    and not exists (select from teguh.n0_template)
    and not exists (select from teguh.n1_template)
  group by t.task_name, teguh._letter(t.state, t.attempt, t.wake_event);
end;
$$;

-- What became of how many tasks, by name: totals and all notes.
--
-- The locks come first, and make sure that the statement that counts sees the totals as they are
-- after a segment was truncated.
create or replace function teguh._count_template()
  returns setof teguh._tally
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  lock table teguh.n0_template, teguh.n1_template in access share mode;
  return query
  select c.task_name, c.was, c.became, c.most, sum(c.qty)::bigint, sum(c.seconds)
  from (
    select n.task_name, n.was, n.became, n.most, n.qty, n.seconds
    from teguh.n_template as n
    union all
    select * from teguh._noted0_template()
    union all
    select * from teguh._noted1_template()
  ) as c
  group by c.task_name, c.was, c.became, c.most;
end;
$$;

-- sql/src/36_lanes.sql
-- Lanes: how a queue that goes by rules is claimed from.
--
-- A claim of such a queue first moves what is ready from dispatch into lanes, and then takes
-- from these what priorities, limits and the worker leave.  All of it happens under one lock
-- per queue, held until the claim's transaction ends: what was decided is committed before
-- anybody decides again.

-- Number of the advisory lock under which lanes and limits are read and written; of all queues
-- together: *.  That of all is taken first.
create or replace function teguh._gate_number(p_queue_name text)
  returns bigint
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended('teguh.gate_' || p_queue_name, 0);
$$;

-- Take a queue's lock (*: that of all queues).  A transaction that has one already does not wait
-- for another: of two which took them in different orders neither could go on.  Then false.
create or replace function teguh._enter_gate(p_queue_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_number bigint := teguh._gate_number(p_queue_name);
begin
  if p_queue_name <> '*' and coalesce(current_setting('teguh.gate', true), '') in ('', '*')
    or p_queue_name = '*' and coalesce(current_setting('teguh.gate', true), '') = ''
  then
    perform pg_advisory_xact_lock(v_number);
    perform set_config('teguh.gate', p_queue_name, true);
    return true;
  end if;

  return pg_try_advisory_xact_lock(v_number);
end;
$$;

-- The limit for a task name, a key or a queue: its own, or that for each.
create or replace function teguh._limit_of(p_queue_name text, p_scope text, p_name text)
  returns setof teguh.limits
  language sql
  stable
  rows 1
  set search_path = pg_catalog, pg_temp
as $$
  select l.*
  from teguh.limits as l
  where l.queue_name = p_queue_name
    and l.scope = p_scope
    and l.name in (p_name, '*')
  order by l.name = '*'
  limit 1;
$$;

-- Let a queue go by rules from now on.  p_wait: even if somebody else is just about to; else that
-- is left to them.
create or replace function teguh._rule_template(p_wait boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not p_wait then
    perform from teguh.queues as q
    where q.queue_name = substr('_template', 2)
      and not q.ruled
    for no key update skip locked;
    if not found then
      return;
    end if;
  end if;

  update teguh.queues as q
  set ruled = true
  where q.queue_name = substr('_template', 2)
    and not q.ruled;
end;
$$;

-- Let a queue go by rules, take its lock, and count what runs already: while it had no limits,
-- nobody did.
create or replace function teguh._reign_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._rule_template(true);
  perform pg_advisory_xact_lock(teguh._gate_number(substr('_template', 2)));
  perform teguh._enrol_template();
end;
$$;

-- Count what runs, and was claimed by somebody who did not go by rules yet.
create or replace function teguh._enrol_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.h_template as h (task_id, turn, fifo, task_name, flow_key)
  select distinct t.task_id, t.turn, false, t.task_name, coalesce(t.flow_key, '')
  from (
    (select p.* from teguh._left0_template('l', null) as p)
    union all
    (select p.* from teguh._left1_template('l', null) as p)
  ) as p
  cross join lateral unnest(p.task_id || p.more_ids, p.turn || p.more_turns) as u(task_id, turn)
  cross join lateral (
    select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
  ) as t
  where t.turn = u.turn
    and t.state = 'running'
    and not exists (
      select from teguh.h_template as h where (h.task_id, h.turn) = (t.task_id, t.turn)
    );
end;
$$;

-- The runs that are held, by what they are limited by.
create or replace function teguh._going_template()
  returns table(task_name text, flow_key text)
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select h.task_name, h.flow_key
  from teguh.h_template as h
  cross join lateral (
    select t.* from teguh.t_template as t where t.task_id = h.task_id offset 0
  ) as t
  where t.turn = h.turn
    and t.state = 'running';
$$;

-- How many runs are held, of one task name or of all (null).
create or replace function teguh._busy_template(p_task_name text)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select count(*)
    from teguh._going_template() as r
    where r.task_name = coalesce(p_task_name, r.task_name)
  );
end;
$$;

-- The same of all queues together.
create or replace function teguh._everywhere_busy()
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
  v_one        bigint;
  v_all        bigint := 0;
begin
  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
  loop
    if teguh._share_queue(v_queue_name) then
      execute format('select teguh._busy_%s(null)', v_queue_name) into v_one;
      v_all := v_all + v_one;
    end if;
  end loop;

  return v_all;
end;
$$;

-- Until when a task name or a key is paused, by itself or as each of them (*); null if it is not.
create or replace function teguh._closed_until(
  p_queue_name text,
  p_scope      text,
  p_name       text,
  p_now        timestamptz
)
  returns timestamptz
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select max(p.paused_until)
  from teguh.pauses as p
  where p.queue_name = p_queue_name
    and p.scope = p_scope
    and p.name in (p_name, '*')
    and p.paused_until > p_now;
$$;

-- Whether a limit of a queue, or of all queues, was set in the last three seconds.
create or replace function teguh._is_fresh(p_queue_name text, p_now timestamptz)
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select
    from teguh.limits as l
    where l.queue_name in (p_queue_name, '*')
      and l.set_at > p_now - interval '3 seconds'
  );
$$;

-- Whether a queue has limits of its own, or pauses.
create or replace function teguh._is_limited(p_queue_name text)
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (select from teguh.limits as l where l.queue_name = p_queue_name)
    or exists (select from teguh.pauses as p where p.queue_name = p_queue_name);
$$;

-- How many tasks were started within the period of a rate.
create or replace function teguh._started(
  p_limit teguh.limits,
  p_name  text,
  p_now   timestamptz
)
  returns bigint
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(sum(s.qty), 0)::bigint
  from teguh.starts as s
  where (s.queue_name, s.scope, s.name) = (p_limit.queue_name, p_limit.scope, p_name)
    and s.started_at > teguh._after(p_now, -p_limit.period_seconds);
$$;

-- How many more tasks may start under a limit; null if it says nothing.
create or replace function teguh._left_over(
  p_limit   teguh.limits,
  p_name    text,
  p_running bigint,
  p_now     timestamptz
)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return least(
    case when p_limit.fifo then 1 else p_limit.max_running end - p_running,
    p_limit.rate - teguh._started(p_limit, p_name, p_now)
  );
end;
$$;

-- How many more tasks of each key may be open: those that are, and those that run, take up room.
-- So do those that are kept first in line, but when they stand in a lane themselves.
create or replace function teguh._slots_template(p_keys text[], p_now timestamptz)
  returns table(flow_key text, slots bigint)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select
    k.flow_key,
    least(
      teguh._left_over(l, k.flow_key, h.qty, p_now) - o.qty,
      case
        when teguh._closed_until(substr('_template', 2), 'key', k.flow_key, p_now) > p_now then 0
      end
    )
  from (
    select distinct u.flow_key
    from unnest(p_keys) as u(flow_key)
    where u.flow_key <> ''
  ) as k
  left join lateral (
    select l.* from teguh._limit_of(substr('_template', 2), 'key', k.flow_key) as l
  ) as l on true
  cross join lateral (
    select count(*) as qty
    from teguh.h_template as h
    where h.flow_key collate "C" = k.flow_key
      and l.queue_name is not null
      and not (h.fifo and exists (
        select
        from teguh.t_template as t
        where t.task_id = h.task_id
          and t.laned
          and t.state in ('pending', 'sleeping')
      ))
  ) as h
  cross join lateral (
    select count(*) as qty
    from teguh.l_template as o
    where o.flow_key collate "C" = k.flow_key
      and o.gate = 'o'
      and l.queue_name is not null
  ) as o;
end;
$$;

-- Forget what no longer takes up room.  Returns the keys that may have room since.  p_everywhere:
-- there is a limit over all queues.
create or replace function teguh._vacate_template(p_everywhere boolean, p_now timestamptz)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys   text[];
  v_rated  text[];
  v_paused text[];
begin
  with over as (
    delete from teguh.h_template as h
    where not exists (
      select
      from teguh.t_template as t
      where t.task_id = h.task_id
        and (
          t.state = 'running'
          and t.turn = h.turn
          or h.fifo
          and t.state in ('pending', 'running', 'sleeping')
        )
      offset 0
    )
    returning h.flow_key
  )

  select array_agg(distinct o.flow_key) into v_keys
  from over as o;

  with past as (
    delete from teguh.starts as s
    where s.queue_name in (substr('_template', 2), case when p_everywhere then '*' end)
      and s.started_at <= teguh._after(
        p_now,
        -coalesce(
          (select l.period_seconds from teguh._limit_of(s.queue_name, s.scope, s.name) as l), 0
        )
      )
    returning s.scope, s.name
  )

  select array_agg(distinct p.name) filter (where p.scope = 'key') into v_rated
  from past as p;

  with over as (
    delete from teguh.pauses as p
    where p.queue_name = substr('_template', 2)
      and p.paused_until <= p_now
    returning p.scope, p.name
  )

  select array_agg(o.name) filter (where o.scope = 'key') into v_paused
  from over as o;
  if '*' = any (v_paused) then
    v_paused := array(select distinct l.flow_key from teguh.l_template as l where l.gate = 'w');
  end if;
  return v_keys || v_rated || v_paused;
end;
$$;

-- Open the first tasks of each key's lane, as far as there is room.
create or replace function teguh._unbar_template(p_keys text[], p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_keys is null then
    return;
  end if;

  update teguh.l_template as l
  set gate = 'o'
  where l.ctid = any (array(
    select w.place
    from teguh._slots_template(p_keys, p_now) as s
    cross join lateral (
      select w.ctid as place
      from teguh.l_template as w
      where w.flow_key collate "C" = s.flow_key
        and w.gate = 'w'
      order by w.ranking, w.seq
      limit case when s.slots is not null then greatest(s.slots, 0) end
    ) as w
  ));
end;
$$;

-- Move tasks that are ready from dispatch into the lanes, ten thousand at most.
create or replace function teguh._intake_template(p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
begin
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    if v_gen % 2 = 0 then
      perform teguh._line_template(teguh._sift0_template(p_now), p_now);
    else
      perform teguh._line_template(teguh._sift1_template(p_now), p_now);
    end if;
  end loop;
end;
$$;

-- Mark the first ready tasks of a segment as standing in a lane, and move its scan position past
-- them.  Returns them in the order in which they were queued.
create or replace function teguh._sift0_template(p_now timestamptz)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from   teguh.k0_template;
  v_picked teguh._picked;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;
  if not found then
    v_from.xid := '0';
    v_from.seq := 0;
  end if;

  with ready as materialized (
    select p.xid, p.seq, t.task_id
    from (
      select p.*
      from unnest(v_from.gaps) as g
      join teguh.p0_template as p on p.xid = g.xid and p.seq between g.low_seq and g.high_seq
      where p.kind = 'r'
      union all
      (
        select p.*
        from teguh.p0_template as p
        where p.kind = 'r'
          and (p.xid, p.seq) >= (v_from.xid, v_from.seq)
        order by p.xid, p.seq
      )
    ) as p
    cross join lateral (
      select t.task_id
      from teguh.t_template as t
      where (t.task_id, t.turn) = (p.task_id, p.turn)
        and t.state in ('pending', 'sleeping')
        and not t.laned
        and (t.deadline_at is null or t.deadline_at > p_now)
      for no key update skip locked
    ) as t
    limit 10000
  ),

  moved as (
    update teguh.t_template as t
    set laned = true
    from ready as r
    where t.task_id = r.task_id
    returning t.task_id, r.xid, r.seq
  )

  select
    array_agg(m.task_id order by m.xid, m.seq),
    (
      array_agg(row(m.xid, m.seq, null)::teguh._gap order by m.xid, m.seq)
        filter (where (m.xid, m.seq) >= (v_from.xid, v_from.seq))
    )[1]
  into v_picked.task_ids, v_picked.first
  from moved as m;

  if teguh._many0_template(
    32, v_from.xid, v_from.seq,
    coalesce((v_picked.first).xid, '18446744073709551615'),
    coalesce((v_picked.first).low_seq, 0)
  ) then
    perform teguh._move0_template(
      v_from.xid, v_from.seq, v_from.gaps,
      (v_picked.first).xid, (v_picked.first).low_seq
    );
  end if;
  return v_picked.task_ids;
end;
$$;

-- Put tasks into the lanes, in the order given.
--
-- A task ranks by its virtual due time: when it became due, a minute earlier for each degree of
-- priority; so it passes what is not as much older, and is itself passed in the end by nothing.
-- In a fair queue it ranks by rounds, one task of each key in each.  A key that is first in,
-- first out ranks by arrival; a task of it that has begun ranks before all of the key.
--
-- There may be as many keys as tasks, so here a hash join is wanted.
create or replace function teguh._line_template(p_task_ids uuid[], p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
  set enable_hashjoin = on
as $$
declare
  v_queue_name text := substr('_template', 2);
  v_fair       boolean := exists (
    select from teguh.limits as l where l.queue_name = v_queue_name and l.fair
  );
  v_round      double precision := coalesce(
    pg_sequence_last_value('teguh.round_template'::regclass), 0
  );
begin
  insert into teguh.l_template as l (ranking, seq, task_id, turn, gate, task_name, flow_key)
  select
    n.ranking, nextval('teguh.seq_template'::regclass), n.task_id, n.turn,
    case when coalesce(n.nth <= n.slots, true) then 'o' else 'w' end::"char",
    n.task_name, n.flow_key
  from (
    select
      t.*, k.slots,
      row_number() over (partition by t.flow_key order by not t.kept, t.place) as nth,
      case
        when t.kept then
          least(
            k.earliest,
            case
              when v_fair then v_round + 1 else min(t.due) over (partition by t.flow_key)
            end
          ) - 0.001
        when v_fair then
          greatest(k.latest, v_round)
          + row_number() over (partition by t.flow_key, t.kept order by t.place)
        when k.fifo then
          greatest(k.latest, max(t.due) over (partition by t.flow_key order by t.place))
        else t.due
      end as ranking
    from (
      select
        u.place, t.task_id, t.turn, t.task_name, coalesce(t.flow_key, '') as flow_key,
        date_part('epoch', t.available_at) - 60 * coalesce(t.priority, 0) as due,
        exists (
          select from teguh.h_template as h where h.fifo and h.task_id = t.task_id
        ) as kept
      from unnest(p_task_ids) with ordinality as u(task_id, place)
      cross join lateral (
        select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
      ) as t
    ) as t
    join teguh._keys_template(p_task_ids, p_now) as k on k.flow_key = t.flow_key
    order by t.place
  ) as n;
end;
$$;

-- What is to be known of the keys of tasks: how many of each may be opened (null: all), the first
-- and last ranking there is, whether it is first in, first out.
create or replace function teguh._keys_template(p_task_ids uuid[], p_now timestamptz)
  returns table(
    flow_key text,
    slots    bigint,
    earliest double precision,
    latest   double precision,
    fifo     boolean
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
  set enable_hashjoin = on
as $$
#variable_conflict use_column
declare
  v_keys text[] := array(
    select distinct coalesce(t.flow_key, '')
    from unnest(p_task_ids) as u(task_id)
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
  );
begin
  return query
  select k.flow_key, s.slots, r.earliest, r.latest, coalesce(l.fifo, false)
  from unnest(v_keys) as k(flow_key)
  left join teguh._slots_template(v_keys, p_now) as s on s.flow_key = k.flow_key
  left join lateral (
    select l.fifo from teguh._limit_of(substr('_template', 2), 'key', k.flow_key) as l
  ) as l on k.flow_key <> ''
  cross join lateral (
    select min(f.ranking) as earliest, max(r.ranking) as latest
    from unnest('{o,w}'::"char"[]) as g(gate)
    cross join lateral (
      select f.ranking
      from teguh.l_template as f
      where f.flow_key collate "C" = k.flow_key
        and f.gate = g.gate
      order by f.ranking, f.seq
      limit 1
    ) as f
    cross join lateral (
      select r.ranking
      from teguh.l_template as r
      where r.flow_key collate "C" = k.flow_key
        and r.gate = g.gate
      order by r.ranking desc, r.seq desc
      limit 1
    ) as r
  ) as r;
end;
$$;

-- Claim up to p_qty tasks of the lanes, of the names given or of all (null).
create or replace function teguh._admit_template(
  p_worker     text,
  p_now        timestamptz,
  p_until      timestamptz,
  p_qty        integer,
  p_task_names text[]
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_everywhere boolean := exists (select from teguh.limits as l where l.queue_name = '*');
  v_limited    boolean;
  v_task_ids   uuid[] := '{}';
  v_claimed    uuid[];
  v_locked     tid[] := '{}';
  v_room       bigint;
  v_picks      record;
begin
  if v_everywhere and not teguh._enter_gate('*')
    or not teguh._enter_gate(substr('_template', 2))
  then
    return '{}';
  end if;
  v_limited := v_everywhere or teguh._is_limited(substr('_template', 2));
  if v_limited then
    -- claims that were open when the limit was set could not be seen then
    if teguh._is_fresh(substr('_template', 2), p_now) then
      perform teguh._enrol_template();
    end if;
    perform teguh._unbar_template(teguh._vacate_template(v_everywhere, p_now), p_now);
  end if;
  perform teguh._intake_template(p_now);

  loop
    v_room := teguh._spare_template(v_everywhere, p_now);
    v_picks := teguh._choose_template(
      least(p_qty - cardinality(v_task_ids), v_room)::integer, v_locked, p_task_names, p_now
    );
    exit when v_picks.task_ids is null;
    if teguh._weed_template(v_picks.places, p_now) then
      -- where there is one, there may be many
      v_picks := teguh._choose_template(1000, v_locked, p_task_names, p_now);
      perform teguh._weed_template(v_picks.places, p_now);
      continue;
    end if;

    v_claimed := teguh._seize_template(
      p_worker, p_now, p_until, v_picks.task_ids, v_picks.turns, v_picks.places, v_limited
    );
    v_task_ids := v_task_ids || v_claimed;
    if cardinality(v_claimed) < cardinality(v_picks.task_ids) then
      v_locked := v_locked || v_picks.places;
    end if;
  end loop;

  return v_task_ids;
end;
$$;

-- How many more tasks the limits of the queue and of all queues leave; null is without limit.
create or replace function teguh._spare_template(p_everywhere boolean, p_now timestamptz)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return least(
    (
      select teguh._left_over(l, '', teguh._busy_template(null), p_now)
      from teguh._limit_of(substr('_template', 2), 'queue', '') as l
    ),
    case when p_everywhere then (
      select teguh._left_over(l, '', teguh._everywhere_busy(), p_now)
      from teguh._limit_of('*', 'all', '') as l
    ) end
  );
end;
$$;

-- The first tasks of the lanes, up to p_qty, that limits leave and the worker knows, but for those
-- in places where somebody holds them locked.
create or replace function teguh._choose_template(
  p_qty        integer,
  p_locked     tid[],
  p_task_names text[],
  p_now        timestamptz,
  out places   tid[],
  out task_ids uuid[],
  out turns    integer[]
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[] := coalesce(p_task_names, teguh._named_template());
begin
  if p_qty <= 0 then
    return;
  end if;

  select array_agg(c.place), array_agg(c.task_id), array_agg(c.turn)
  into places, task_ids, turns
  from (
    select l.*
    from unnest(v_names) as n(task_name)
    left join lateral (
      select teguh._left_over(m, n.task_name, teguh._busy_template(n.task_name), p_now) as qty
      from teguh._limit_of(substr('_template', 2), 'task', n.task_name) as m
    ) as s on true
    cross join lateral (
      select l.ctid as place, l.task_id, l.turn, l.ranking, l.seq
      from teguh.l_template as l
      where l.gate = 'o'
        and l.task_name collate "C" = n.task_name
        and l.ctid <> all (p_locked)
      order by l.ranking, l.seq
      limit least(p_qty, case when s.qty is not null then greatest(s.qty, 0) end)
    ) as l
    where teguh._closed_until(substr('_template', 2), 'task', n.task_name, p_now) is null
    order by l.ranking, l.seq
    limit p_qty
  ) as c;
end;
$$;

-- The names of the tasks that are open.
create or replace function teguh._named_template()
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name  text;
  v_names text[];
begin
  loop
    select l.task_name into v_name
    from teguh.l_template as l
    where l.gate = 'o'
      and l.task_name collate "C" > coalesce(v_name, '')
    order by l.task_name collate "C"
    limit 1;
    exit when not found;
    v_names := v_names || v_name;
  end loop;

  return v_names;
end;
$$;

-- Delete the rows among some of the lanes whose tasks are not to be had any more, and let others
-- of their keys take their places.  False if there was none.
create or replace function teguh._weed_template(p_places tid[], p_now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys text[] := teguh._cull_template(p_places, p_now);
begin
  if v_keys is null then
    return false;
  end if;

  -- where one was there may be many, such as all of a key that were cancelled
  perform teguh._cull_template(
    array(
      select w.place
      from unnest(v_keys) as k(flow_key)
      cross join lateral (
        select l.ctid as place
        from teguh.l_template as l
        where l.flow_key collate "C" = k.flow_key
          and l.gate = 'w'
        order by l.ranking, l.seq
        limit 1000
      ) as w
    ),
    p_now
  );
  perform teguh._unbar_template(v_keys, p_now);
  return true;
end;
$$;

-- Delete the rows among some of the lanes whose tasks are not to be had any more.  Returns their
-- keys, null if there was none.
create or replace function teguh._cull_template(p_places tid[], p_now timestamptz)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_keys text[];
begin
  with stale as (
    delete from teguh.l_template as l
    where l.ctid = any (p_places)
      and not exists (
        select
        from teguh.t_template as t
        where (t.task_id, t.turn) = (l.task_id, l.turn)
          and t.state in ('pending', 'sleeping')
          and t.laned
          and (t.deadline_at is null or t.deadline_at > p_now)
        offset 0
      )
    returning l.flow_key
  )

  select array_agg(distinct s.flow_key) into v_keys
  from stale as s;
  return v_keys;
end;
$$;

-- Claim chosen tasks, but for those that somebody holds locked.
create or replace function teguh._seize_template(
  p_worker   text,
  p_now      timestamptz,
  p_until    timestamptz,
  p_task_ids uuid[],
  p_turns    integer[],
  p_places   tid[],
  p_limited  boolean
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_picked teguh._picked;
begin
  with free as materialized (
    select t.task_id, t.was
    from unnest(p_task_ids, p_turns) as u(task_id, turn)
    cross join lateral (
      select t.task_id, teguh._letter(t.state, t.attempt, t.wake_event) as was
      from teguh.t_template as t
      where (t.task_id, t.turn) = (u.task_id, u.turn)
        and t.state in ('pending', 'sleeping')
        and t.laned
      for no key update skip locked
    ) as t
  ),

  claimed as (
    update teguh.t_template as t
    set
      state = 'running',
      laned = false,
      attempt = t.attempt + 1,
      claimed_by = p_worker,
      started_at = p_now,
      first_started_at = coalesce(t.first_started_at, p_now),
      lease_expires_at = least(p_until, teguh._after(p_now, t.timeout_seconds)),
      deadline_at = case
        when t.attempt > 0 or t.cancellation is null then t.deadline_at
        else least(t.expires_at, teguh._after(p_now, (t.cancellation ->> 'max_duration')::float8))
      end
    from free as f
    where t.task_id = f.task_id
    returning t.task_id, t.turn, t.task_name, f.was,
      t.timeout_seconds is not null or t.attempt = 1 and t.deadline_at is not null as limited
  )

  select
    array_agg(c.task_id), array_agg(c.turn), array_agg(c.task_name), array_agg(c.was),
    bool_or(c.limited)
  into v_picked.task_ids, v_picked.turns, v_picked.names, v_picked.was, v_picked.limited
  from claimed as c;
  if v_picked.task_ids is null then
    return '{}';
  end if;

  perform teguh._quit_template(v_picked.task_ids, p_places);
  if p_limited then
    perform teguh._occupy_template(v_picked.task_ids, p_now);
  end if;
  perform teguh._reckon_template(v_picked.names, v_picked.was, 'r');
  perform teguh._push_template(
    'l', v_picked.task_ids, v_picked.turns, array[coalesce(p_until, 'infinity')]
  );
  if v_picked.limited then
    perform teguh._limits_template(v_picked.task_ids);
  end if;
  return v_picked.task_ids;
end;
$$;

-- Take claimed tasks out of their lanes.
create or replace function teguh._quit_template(p_task_ids uuid[], p_places tid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_round bigint;
begin
  with gone as (
    delete from teguh.l_template as l
    where l.ctid = any (p_places)
      and l.task_id = any (p_task_ids)
    returning l.ranking
  )

  select max(g.ranking)::bigint into v_round
  from gone as g;
  perform from teguh.limits as l
  where l.queue_name = substr('_template', 2)
    and l.fair;
  if found and v_round > coalesce(pg_sequence_last_value('teguh.round_template'::regclass), -1) then
    perform setval('teguh.round_template'::regclass, v_round);
  end if;
end;
$$;

-- Count claimed tasks against the limits.
create or replace function teguh._occupy_template(p_task_ids uuid[], p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := substr('_template', 2);
begin
  delete from teguh.h_template as h
  where h.fifo
    and h.task_id = any (p_task_ids);
  insert into teguh.h_template as h (task_id, turn, fifo, task_name, flow_key)
  select
    t.task_id, t.turn, coalesce(l.fifo, false), t.task_name, coalesce(t.flow_key, '')
  from teguh.t_template as t
  left join lateral (
    select l.fifo from teguh._limit_of(v_queue_name, 'key', t.flow_key) as l
  ) as l on t.flow_key is not null
  where t.task_id = any (p_task_ids);

  insert into teguh.starts as s (queue_name, scope, name, started_at, qty)
  select l.queue_name, l.scope, c.name, p_now, count(*)
  from teguh.t_template as t
  cross join lateral (
    values (v_queue_name, 'queue', ''), (v_queue_name, 'task', t.task_name),
      (v_queue_name, 'key', t.flow_key), ('*', 'all', '')
  ) as c(queue_name, scope, name)
  cross join lateral (
    select l.* from teguh._limit_of(c.queue_name, c.scope, c.name) as l
  ) as l
  where t.task_id = any (p_task_ids)
    and l.rate is not null
    and c.name is not null
  group by l.queue_name, l.scope, c.name;
end;
$$;

-- When a claim may find something in the lanes that it did not find now: when the period of a rate
-- is over, or in a second; null if they are empty.
create or replace function teguh._chance_template(p_now timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform from teguh.l_template
  limit 1;
  if not found then
    return null;
  end if;

  return least(
    teguh._after(p_now, 1),
    (
      select min(teguh._after(s.started_at, l.period_seconds))
      from teguh.starts as s
      cross join lateral (
        select l.period_seconds from teguh._limit_of(s.queue_name, s.scope, s.name) as l
      ) as l
      where s.queue_name in (substr('_template', 2), '*')
        and teguh._after(s.started_at, l.period_seconds) > p_now
    )
  );
end;
$$;

-- Arrange the lanes anew: limits have changed.  p_rank: so may have what they rank by, and what
-- is kept first in line.
create or replace function teguh._align_template(p_rank boolean, p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_ids uuid[];
begin
  if p_rank then
    update teguh.h_template as h
    set fifo = not h.fifo
    where h.fifo <> coalesce(
      (
        select l.fifo
        from teguh._limit_of(substr('_template', 2), 'key', nullif(h.flow_key, '')) as l
      ),
      false
    );

    with gone as (
      delete from teguh.l_template as l
      returning l.task_id, l.turn, l.seq
    )

    select array_agg(t.task_id order by g.seq) into v_task_ids
    from gone as g
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = g.task_id offset 0
    ) as t
    where t.turn = g.turn
      and t.laned;
    perform teguh._line_template(v_task_ids, p_now);
  else
    update teguh.l_template as l
    set gate = 'w'
    where l.gate = 'o'
      and l.flow_key <> '';
    perform teguh._unbar_template(
      array(select distinct l.flow_key from teguh.l_template as l), p_now
    );
  end if;
end;
$$;

-- sql/src/37_claim_any.sql
-- Remember which task names workers ask for.  Once a minute is often enough, and one at a time:
-- nobody waits for another.
create or replace function teguh._want_template(p_task_names text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := teguh.current_time();
  v_names text[] := array(
    select distinct u.task_name
    from unnest(p_task_names) as u(task_name)
    where not exists (
      select
      from teguh.wanted as w
      where (w.queue_name, w.task_name) = (substr('_template', 2), u.task_name)
        and w.seen_at between v_now - interval '1 minute' and v_now
    )
    order by u.task_name
  );
begin
  if v_names <> '{}'
    and pg_try_advisory_xact_lock(hashtextextended('teguh.wanted_template', 0))
  then
    insert into teguh.wanted as w (queue_name, task_name, seen_at)
    select substr('_template', 2), u.task_name, v_now
    from unnest(v_names) as u(task_name)
    on conflict (queue_name, task_name) do update
    set seen_at = excluded.seen_at;
  end if;
  perform teguh._rule_template(false);
end;
$$;

-- Read an array of task names; null when absent or null.
create or replace function teguh._names_option(p_options jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names jsonb := nullif(p_options -> 'task_names', 'null');
  v_name  text;
begin
  if v_names is null then
    return null;
  end if;

  if jsonb_typeof(v_names) <> 'array'
    or jsonb_path_exists(v_names, '$[*] ? (@.type() != "string")')
    or v_names = '[]'
  then
    raise exception '"task_names" must be an array of names'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_names::text, 200)),
        hint = 'For instance ["charge", "ship"]; leave it out to claim whatever there is.';
  end if;
  for v_name in
    select n.name
    from jsonb_array_elements_text(v_names) as n(name)
  loop
    perform teguh._check_name('task name', v_name);
  end loop;
  return array(select distinct n.name from jsonb_array_elements_text(v_names) as n(name));
end;
$$;

-- The queues that a worker claims from, in the order in which it does.
create or replace function teguh._order_queues(p_queue_names text[], p_order text)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names  text[] := coalesce(p_queue_names, array(
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('take', q.queue_name) and teguh._share_queue(q.queue_name)
  ));
  v_count  integer := cardinality(v_names);
  v_turn   integer;
  v_oldest timestamptz;
  v_ages   timestamptz[];
begin
  if p_order = 'round_robin' and v_count > 1 then
    v_turn := coalesce(nullif(current_setting('teguh.turn', true), ''), '0')::integer % v_count;
    perform set_config('teguh.turn', ((v_turn + 1) % v_count)::text, false);
    return v_names[v_turn + 1:] || v_names[:v_turn];
  elsif p_order = 'oldest' then
    for v_place in 1 .. v_count loop
      execute 'select * from ' || teguh._from('oldest', v_names[v_place]) into v_oldest;
      v_ages[v_place] := v_oldest;
    end loop;
    return array(
      select u.name
      from unnest(v_names, v_ages) with ordinality as u(name, oldest, place)
      order by u.oldest nulls last, u.place
    );
  end if;

  return v_names;
end;
$$;

-- Remember of several queues which task names are asked for.
create or replace function teguh._remember_names(p_queue_names text[], p_task_names text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  for v_queue_name in
    select distinct u.name
    from unnest(p_queue_names) as u(name)
  loop
    perform teguh._policy(v_queue_name);
    execute format('select teguh._want_%s($1)', v_queue_name) using p_task_names;
  end loop;
end;
$$;

-- Claim runs of several queues.
create or replace function teguh.claim_any(
  p_queue_names   text[],
  p_worker_id     text,
  p_claim_timeout double precision default 30,
  p_qty           integer default 1,
  p_options       jsonb default '{}'
)
  returns table(
    run_id           uuid,
    task_id          uuid,
    attempt          integer,
    task_name        text,
    params           jsonb,
    retry_strategy   jsonb,
    max_attempts     integer,
    headers          jsonb,
    wake_event       text,
    event_payload    jsonb,
    failures         integer,
    checkpoints      jsonb,
    lease_expires_at timestamptz,
    timeout_seconds  double precision,
    queue_name       text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_names   text[];
  v_queues  text[];
  v_queue   text;
  v_policy  jsonb;
  v_left    integer := greatest(coalesce(p_qty, 1), 1);
  v_count   integer;
begin
  perform teguh._check_isolation('claim_any');
  perform teguh._check_keys('claim options', v_options, array['task_names', 'order']);
  v_names := teguh._names_option(v_options);
  perform teguh._check_order(teguh._text_option(v_options, 'order'));

  v_queues := teguh._order_queues(
    p_queue_names, coalesce(v_options ->> 'order', 'round_robin')
  );
  if v_names is not null then
    perform teguh._remember_names(v_queues, v_names);
  end if;

  foreach v_queue in array v_queues loop
    exit when v_left <= 0;
    v_policy := teguh._policy(v_queue);
    continue when teguh._paused_until(v_policy) is not null;
    return query execute format(
      'select t.*, $6 from teguh._take_%s($1, $2, $3, $4, $5) as t', v_queue
    )
    using
      coalesce(nullif(btrim(p_worker_id), ''), 'worker'), nullif(p_claim_timeout, 'NaN'), v_left,
      v_policy ? 'ruled' or v_names is not null, v_names, v_queue;
    get diagnostics v_count = row_count;
    v_left := v_left - v_count;
  end loop;
end;
$$;

comment on function teguh.claim_any(text[], text, double precision, integer, jsonb) is
  'Claims like claim_task(), from several queues (null: all that the caller may claim from), up to '
  'p_qty runs in all, each with its queue_name; a queue that another worker is just claiming from '
  'may be passed over. Options: order, in which queues are looked through: '
  'round_robin (the default; each call of a session begins with the next), strict (as given), '
  'oldest (the one whose first ready task has waited longest); task_names, which the worker '
  'knows: it gets no other, and queue_stats() counts as unclaimable what nobody asks for. A '
  'queue for which task_names was ever given is claimed from in another way from then on, which '
  'costs each claim more: see set_limit(). Raises TG001 for an unknown queue, TG005 for a bad '
  'option, 25001 unless the transaction is READ COMMITTED.';

-- Refuse an order that is none.
create or replace function teguh._check_order(p_order text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_order not in ('round_robin', 'strict', 'oldest') then
    raise exception 'unknown order "%"', left(p_order, 200)
      using
        errcode = 'TG005',
        detail = 'Known orders: round_robin, strict, oldest.',
        hint = 'round_robin is the default.';
  end if;
end;
$$;

-- sql/src/40_spawn.sql
-- Insert tasks and queue them.  Rows come back in the order of p_tasks.
--
-- Tasks with a key are inserted in the order of their keys, so that callers who
-- spawn the same keys wait for each other in one direction only.
create or replace function teguh._put_template(p_tasks teguh._spawn[])
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now   timestamptz;
  v_ids   uuid[];
  v_added uuid[];
begin
  perform teguh._check_follows(substr('_template', 2), s)
  from unnest(p_tasks) as s
  where num_nonnulls(s.links, s.on_expired) > 0;
  perform pg_current_xact_id();
  v_now := teguh.current_time();

  with spawns as materialized (
    select s.*, teguh._task_id(v_now) as task_id
    from unnest(p_tasks) with ordinality as s(
      task_name, params, headers, retry_strategy, max_attempts, cancellation,
      idempotency_key, return_mismatch, available_at, tags, correlation_id, parent_task_id,
      workflow_run_id, timeout_seconds, expires_at, on_expired, uniqueness, priority, flow_key,
      links, place
    )
  ),

  added as (
    insert into teguh.t_template as t (
      task_id, run_id, turn, state, created_at, available_at, deadline_at, max_attempts,
      task_name, params, headers, retry_strategy, cancellation, idempotency_key, tags,
      correlation_id, parent_task_id, workflow_run_id, timeout_seconds, expires_at, on_expired,
      priority, flow_key, links
    )
    select
      s.task_id, teguh._run_id(s.task_id, 1), 1,
      case when s.available_at > v_now then 'sleeping' else 'pending' end,
      v_now, coalesce(s.available_at, v_now),
      least(s.expires_at, teguh._after(
        greatest(s.available_at, v_now), (s.cancellation ->> 'max_delay')::double precision
      )),
      s.max_attempts, s.task_name, s.params, s.headers, s.retry_strategy, s.cancellation,
      s.idempotency_key, s.tags, s.correlation_id, s.parent_task_id, s.workflow_run_id,
      s.timeout_seconds, s.expires_at, s.on_expired, s.priority, s.flow_key,
      s.links
    from spawns as s
    order by s.idempotency_key nulls first, s.place
    on conflict (idempotency_key) where idempotency_key is not null do nothing
    returning t.task_id
  )

  select
    array(select s.task_id from spawns as s order by s.place),
    array_agg(a.task_id)
  into v_ids, v_added
  from added as a;

  perform teguh._enlist_template(v_added);

  if cardinality(v_added) = cardinality(p_tasks) then
    return query
    select u.task_id, teguh._run_id(u.task_id, 1), 1, true
    from unnest(v_ids) as u(task_id);
  else
    return query select * from teguh._found_template(p_tasks, v_ids, v_added);
  end if;
end;
$$;

-- Queue tasks that were just inserted, set their timers, count them.
create or replace function teguh._enlist_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ready         uuid[];
  v_ready_names   text[];
  v_sleepers      uuid[];
  v_sleeper_names text[];
  v_due_at        timestamptz[];
  v_limited       uuid[];
  v_limits        timestamptz[];
  v_tagged        uuid[];
begin
  select
    array_agg(t.task_id) filter (where t.state = 'pending'),
    array_agg(t.task_name) filter (where t.state = 'pending'),
    array_agg(t.task_id) filter (where t.state = 'sleeping'),
    array_agg(t.task_name) filter (where t.state = 'sleeping'),
    array_agg(t.available_at) filter (where t.state = 'sleeping'),
    array_agg(t.task_id) filter (where t.deadline_at is not null),
    array_agg(t.deadline_at) filter (where t.deadline_at is not null),
    array_agg(t.task_id) filter (where t.tags is not null)
  into
    v_ready, v_ready_names, v_sleepers, v_sleeper_names, v_due_at, v_limited, v_limits, v_tagged
  from unnest(p_task_ids) as u(task_id)
  join teguh.t_template as t on t.task_id = u.task_id;

  perform teguh._push_template('r', v_ready, teguh._fill(1, v_ready));
  perform teguh._push_template('s', v_sleepers, teguh._fill(1, v_sleepers), v_due_at);
  perform teguh._push_template('l', v_limited, teguh._fill(0, v_limited), v_limits);
  perform teguh._reckon_template(v_ready_names, teguh._letters('-', v_ready), 'p');
  perform teguh._reckon_template(v_sleeper_names, teguh._letters('-', v_sleepers), 'd');
  if v_tagged is not null then
    perform teguh._tag_template(v_tagged);
  end if;
end;
$$;

-- Insert one task without an idempotency key, and queue it.  Returns its id.  Most spawns
-- are such, and this costs half of what _put_template does.
create or replace function teguh._new_template(p_spawn teguh._spawn)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz;
  v_task_id  uuid;
  v_due_at   timestamptz;
  v_deadline timestamptz := p_spawn.expires_at;
begin
  if num_nonnulls(p_spawn.links, p_spawn.on_expired) > 0 then
    perform teguh._check_follows(substr('_template', 2), p_spawn);
  end if;
  perform pg_current_xact_id();
  v_now := teguh.current_time();
  v_task_id := teguh._task_id(v_now);
  v_due_at := coalesce(p_spawn.available_at, v_now);
  if p_spawn.cancellation is not null then
    v_deadline := least(v_deadline, teguh._after(
      greatest(v_due_at, v_now), (p_spawn.cancellation ->> 'max_delay')::double precision
    ));
  end if;

  insert into teguh.t_template as t (
    task_id, run_id, turn, state, created_at, available_at, deadline_at, max_attempts,
    task_name, params, headers, retry_strategy, cancellation, tags, correlation_id,
    parent_task_id, workflow_run_id, timeout_seconds, expires_at, on_expired, priority, flow_key,
    links
  )
  values (
    v_task_id, teguh._run_id(v_task_id, 1), 1,
    case when v_due_at > v_now then 'sleeping' else 'pending' end,
    v_now, v_due_at, v_deadline, p_spawn.max_attempts, p_spawn.task_name, p_spawn.params,
    p_spawn.headers, p_spawn.retry_strategy, p_spawn.cancellation, p_spawn.tags,
    p_spawn.correlation_id, p_spawn.parent_task_id, p_spawn.workflow_run_id,
    p_spawn.timeout_seconds, p_spawn.expires_at, p_spawn.on_expired, p_spawn.priority,
    p_spawn.flow_key, p_spawn.links
  );

  if v_due_at > v_now then
    perform teguh._push_template('s', array[v_task_id], array[1], array[v_due_at]);
  else
    perform teguh._push_template('r', array[v_task_id], array[1]);
  end if;
  if v_deadline is not null then
    perform teguh._push_template('l', array[v_task_id], array[0], array[v_deadline]);
  end if;
  perform teguh._tally_template(
    p_spawn.task_name, '-', case when v_due_at > v_now then 'd' else 'p' end::"char"
  );
  if p_spawn.tags is not null then
    perform teguh._tag_template(array[v_task_id]);
  end if;
  return v_task_id;
end;
$$;

-- Let new tasks be found by their tags.
create or replace function teguh._tag_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.g_template as g (tag, task_id)
  select distinct u.tag, t.task_id
  from teguh.t_template as t
  cross join lateral unnest(t.tags) as u(tag)
  where t.task_id = any (p_task_ids);
end;
$$;

-- See to it that no more tasks are waiting to start than the policy allows.
--
-- Spawns at the same moment do not see each other, and may together go past it.
create or replace function teguh._room_template(p_policy jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_most  bigint := (p_policy ->> 'max_pending')::bigint;
  v_extra bigint := (
    select s.pending + s.delayed - v_most
    from teguh._stat_template() as s
  );
begin
  if v_extra > 0 and p_policy ->> 'on_full' = 'drop_oldest' then
    v_extra := v_extra - teguh._shed_template(v_extra);
  end if;
  if v_extra > 0 then
    raise exception 'queue "%" is full', substr('_template', 2)
      using
        errcode = 'TG007',
        detail = format('%s tasks wait for their start, which is all its policy allows.', v_most),
        hint = 'Spawn again later, start more workers, or set "max_pending" higher.';
  end if;
end;
$$;

-- Cancel the tasks that are first in line, up to p_count.  Returns how many those were.
create or replace function teguh._shed_template(p_count bigint)
  returns bigint
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring     bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_task_ids uuid[];
begin
  -- what stands in a lane was spawned before what is still in dispatch
  v_task_ids := array(
    select t.task_id
    from (select l.* from teguh.l_template as l order by l.seq) as l
    cross join lateral (
      select t.task_id
      from teguh.t_template as t
      where (t.task_id, t.turn) = (l.task_id, l.turn)
        and t.state in ('pending', 'sleeping')
        and t.laned
        and t.attempt = 0
      for no key update skip locked
    ) as t
    limit p_count
  );
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    v_task_ids := v_task_ids || case
      when v_gen % 2 = 0 then teguh._first0_template(p_count - cardinality(v_task_ids))
      else teguh._first1_template(p_count - cardinality(v_task_ids))
    end;
  end loop;

  update teguh.t_template as t
  set failure_reason = '{"name": "$QueueFull", "message": "newer tasks took its place"}'
  where t.task_id = any (v_task_ids);
  perform teguh._stop_template(u.task_id, teguh.current_time())
  from unnest(v_task_ids) as u(task_id);
  return cardinality(v_task_ids);
end;
$$;

-- Lock the tasks of a segment that are first in line and have not started, up to p_count.
create or replace function teguh._first0_template(p_count bigint)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from teguh.k0_template;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;

  return array(
    select t.task_id
    from (
      select p.*
      from teguh.p0_template as p
      where p.kind = 'r'
        and (p.xid, p.seq) >= (coalesce(v_from.xid, '0'), coalesce(v_from.seq, 0))
      order by p.xid, p.seq
    ) as p
    cross join lateral (
      select t.task_id
      from teguh.t_template as t
      where (t.task_id, t.turn) = (p.task_id, p.turn)
        and t.state in ('pending', 'sleeping')
        and not t.laned
        and t.attempt = 0
      for no key update skip locked
    ) as t
    limit p_count
  );
end;
$$;

-- Insert one task that is to be the only one of its key, or deal with the one that is there.
--
-- The key's row is locked first, then the task.
create or replace function teguh._once_template(p_spawn teguh._spawn)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now  timestamptz := teguh.current_time();
  v_key  text := p_spawn.uniqueness ->> 'key';
  v_held uuid;
  v_new  record;
  v_task teguh.t_template;
begin
  perform teguh._check_follows(substr('_template', 2), p_spawn);
  -- cleanup may remove the row in between
  loop
    insert into teguh.u_template as u (unique_key, task_id)
    values (v_key, uuid '00000000-0000-0000-0000-000000000000')
    on conflict (unique_key) do nothing;
    select u.task_id into v_held
    from teguh.u_template as u
    where u.unique_key = v_key
    for update;
    exit when found;
  end loop;

  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = v_held
  for no key update;
  if found and teguh._blocks(
    p_spawn.uniqueness, v_task.state, teguh._begun_template(v_task), v_task.created_at, v_now
  ) then
    perform teguh._meet_template(v_task, p_spawn, v_now);
    return query select v_task.task_id, v_task.run_id, greatest(v_task.attempt, 1), false;
    return;
  end if;

  select p.* into v_new
  from teguh._put_template(array[p_spawn]) as p;
  update teguh.u_template as u
  set task_id = v_new.task_id
  where u.unique_key = v_key;
  return query select v_new.task_id, v_new.run_id, v_new.attempt, v_new.created;
end;
$$;

-- Whether a task has begun.  One that was handed back has if it has done something before.
create or replace function teguh._begun_template(p_task teguh.t_template)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return p_task.attempt > 0
    or exists (select from teguh.c_template as c where c.task_id = p_task.task_id)
    or exists (select from teguh.j_template as j where j.task_id = p_task.task_id);
end;
$$;

-- Whether a task keeps another of the same key from being spawned.
create or replace function teguh._blocks(
  p_unique     jsonb,
  p_state      text,
  p_begun      boolean,
  p_created_at timestamptz,
  p_now        timestamptz
)
  returns boolean
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_unique ->> 'on_conflict' in ('replace', 'debounce') then
      not p_begun and p_state in ('pending', 'sleeping')
    else
      coalesce(p_unique -> 'states', '["pending", "running", "sleeping"]') ? p_state
      or coalesce(
        p_now < p_created_at + make_interval(
          secs => (p_unique ->> 'window_seconds')::double precision
        ),
        false
      )
  end;
$$;

-- Do with the locked task of a unique key what the spawn wants to be done.
create or replace function teguh._meet_template(
  p_task  teguh.t_template,
  p_spawn teguh._spawn,
  p_now   timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_spawn.uniqueness ->> 'on_conflict' = 'error' then
    raise exception 'unique key "%" is in use', p_spawn.uniqueness ->> 'key'
      using
        errcode = 'TG006',
        detail = format('Task %s has it and is %s.', p_task.task_id, p_task.state),
        hint = 'With "on_conflict": "return" that task is returned.';
  elsif p_spawn.uniqueness ->> 'on_conflict' in ('replace', 'debounce') then
    perform teguh._swap_template(
      p_task,
      p_spawn,
      least(
        greatest(p_spawn.available_at, p_now),
        case when p_spawn.uniqueness ? 'max_wait_seconds' then greatest(p_now, teguh._after(
          p_task.created_at, (p_spawn.uniqueness ->> 'max_wait_seconds')::double precision
        )) end
      ),
      p_now
    );
  end if;
end;
$$;

-- Make a locked task that has not started the one that is spawned now, for another time.
create or replace function teguh._swap_template(
  p_task  teguh.t_template,
  p_spawn teguh._spawn,
  p_at    timestamptz,
  p_now   timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_deadline timestamptz := least(
    p_spawn.expires_at,
    teguh._after(p_at, (p_spawn.cancellation ->> 'max_delay')::double precision)
  );
begin
  update teguh.t_template as t
  set
    turn = p_task.turn + 1,
    state = case when p_at > p_now then 'sleeping' else 'pending' end,
    available_at = p_at,
    deadline_at = v_deadline,
    task_name = p_spawn.task_name,
    params = p_spawn.params,
    headers = p_spawn.headers,
    retry_strategy = p_spawn.retry_strategy,
    max_attempts = p_spawn.max_attempts,
    cancellation = p_spawn.cancellation,
    tags = p_spawn.tags,
    correlation_id = p_spawn.correlation_id,
    parent_task_id = p_spawn.parent_task_id,
    workflow_run_id = p_spawn.workflow_run_id,
    timeout_seconds = p_spawn.timeout_seconds,
    expires_at = p_spawn.expires_at,
    on_expired = p_spawn.on_expired,
    priority = p_spawn.priority,
    flow_key = p_spawn.flow_key,
    links = p_spawn.links,
    laned = false
  where t.task_id = p_task.task_id;

  delete from teguh.g_template as g
  where g.task_id = p_task.task_id
    and g.tag collate "C" = any (p_task.tags);
  if p_spawn.tags is not null then
    perform teguh._tag_template(array[p_task.task_id]);
  end if;
  perform teguh._moved_template(p_task, '-');
  perform teguh._tally_template(
    p_spawn.task_name, '-', case when p_at > p_now then 'd' else 'p' end::"char"
  );
  perform teguh._queue_template(p_task.task_id, p_task.turn + 1, p_at, p_now);
  if v_deadline is not null then
    perform teguh._push_template('l', array[p_task.task_id], array[0], array[v_deadline]);
  end if;
end;
$$;

-- Insert tasks one by one, in the order of their unique keys.  Rows come back in the order of
-- p_tasks.
create or replace function teguh._series_template(p_tasks teguh._spawn[])
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_place   integer;
  v_one     record;
  v_ids     uuid[];
  v_runs    uuid[];
  v_tries   integer[];
  v_created boolean[];
begin
  for v_place in
    select g.i
    from generate_subscripts(p_tasks, 1) as g(i)
    order by (p_tasks[g.i]).uniqueness ->> 'key' nulls first, g.i
  loop
    if (p_tasks[v_place]).uniqueness is null then
      select p.* into v_one
      from teguh._put_template(array[p_tasks[v_place]]) as p;
    else
      select o.* into v_one
      from teguh._once_template(p_tasks[v_place]) as o;
    end if;
    v_ids[v_place] := v_one.task_id;
    v_runs[v_place] := v_one.run_id;
    v_tries[v_place] := v_one.attempt;
    v_created[v_place] := v_one.created;
  end loop;

  return query select u.* from unnest(v_ids, v_runs, v_tries, v_created) as u;
end;
$$;

-- The results of a spawn that met idempotency keys already in use.
create or replace function teguh._found_template(
  p_tasks teguh._spawn[],
  p_ids   uuid[],
  p_added uuid[]
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  for v_place in 1 .. cardinality(p_tasks) loop
    task_id := p_ids[v_place];
    created := coalesce(task_id = any (p_added), false);
    if created then
      run_id := teguh._run_id(task_id, 1);
      attempt := 1;
      return next;
      continue;
    end if;

    select t.* into v_task
    from teguh.t_template as t
    where t.idempotency_key = p_tasks[v_place].idempotency_key;
    if not found then
      raise exception 'the task with idempotency key "%" was just removed',
        p_tasks[v_place].idempotency_key
        using
          errcode = '40001',
          detail = 'It was there when this spawn began, and is gone now.',
          hint = 'Spawn again.';
    end if;

    if not p_tasks[v_place].return_mismatch
      and (v_task.task_name, v_task.params)
          is distinct from (p_tasks[v_place].task_name, p_tasks[v_place].params)
    then
      raise exception 'idempotency key "%" belongs to another task', v_task.idempotency_key
        using
          errcode = 'TG006',
          detail = format('Task %s was spawned with another name or other params.',
            v_task.task_id),
          hint = 'Use another key, or "idempotency_mismatch": "return" to get that task.';
    end if;

    task_id := v_task.task_id;
    run_id := v_task.run_id;
    attempt := greatest(v_task.attempt, 1);
    return next;
  end loop;
end;
$$;

-- See to what a queue asks for when tasks were spawned into it: it goes by rules from the first
-- that has a priority (p_ranked), and may be full.
create or replace function teguh._abide(
  p_queue_name text,
  p_policy     jsonb,
  p_ranked     boolean,
  p_room       boolean
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_ranked and not p_policy ? 'ruled' then
    execute format('select teguh.%I(false)', '_rule_' || p_queue_name);
  end if;
  if p_room and p_policy ? 'max_pending' then
    execute format('select teguh.%I($1)', '_room_' || p_queue_name) using p_policy;
  end if;
end;
$$;

-- Every queue that is named by what is to follow a task: by its links, or by options of a spawn.
create or replace function teguh._queues_named(p_links jsonb)
  returns setof text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  with recursive named as (
    select p_links as one
    union all
    select f.one
    from named as n
    cross join lateral (
      select n.one -> k.key as one
      from unnest('{on_expired,on_failure,compensate,options,join}'::text[]) as k(key)
      union all
      select e.one
      from unnest('{sequence,undo}'::text[]) as k(key)
      cross join lateral jsonb_array_elements(
        case jsonb_typeof(n.one -> k.key) when 'array' then n.one -> k.key else '[]' end
      ) as e(one)
    ) as f
    where jsonb_typeof(f.one) = 'object'
  )

  select distinct n.one ->> 'queue_name'
  from named as n
  where n.one ->> 'queue_name' is not null;
$$;

-- What proves that this transaction may name a queue.  Only the owner of teguh, and its functions,
-- can read what it is made of.  Without a secret, in a copy of the schema alone, it proves nothing.
create or replace function teguh._voucher(p_queue_name text)
  returns text
  language sql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
  select encode(
    sha256(convert_to(concat_ws('/', pg_current_xact_id(), p_queue_name, s.secret), 'UTF8')), 'hex'
  )
  from teguh.secrets as s;
$$;

-- Note that this transaction may name a queue: among its settings, which leave no dead rows.
create or replace function teguh._vouch(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known   text := coalesce(current_setting('teguh.vouched', true), '');
  v_voucher text := teguh._voucher(p_queue_name);
begin
  if strpos(v_known, v_voucher) = 0 then
    perform set_config('teguh.vouched', v_known || v_voucher, true);
  end if;
end;
$$;

-- Note that this transaction may name this queue: who may execute this may spawn here.
create or replace function teguh._vouch_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._vouch(substr('_template', 2));
end;
$$;

-- Refuse to store the name of another queue unless somebody has vouched for it in this transaction.
--
-- What is stored is carried out later, with all rights.  The function that stores it has all
-- rights, too, and may be called by itself: what _check_spawner() has found cannot be told it by an
-- argument.
create or replace function teguh._check_named(p_queue_name text, p_names text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := (
    select u.name
    from unnest(p_names) as u(name)
    where u.name <> p_queue_name
      and strpos(current_setting('teguh.vouched', true), teguh._voucher(u.name)) > 0 is not true
    limit 1
  );
begin
  if v_name is not null then
    raise exception 'nobody who may spawn tasks in queue "%" has asked for that', left(v_name, 60)
      using
        errcode = '42501',
        detail = 'What follows a task is spawned where its spawner may spawn.',
        hint = 'Call the public function, with a role that has access to both queues.';
  end if;
end;
$$;

-- The same for what is to follow a task.
create or replace function teguh._check_follows(p_queue_name text, p_spawn teguh._spawn)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_named(p_queue_name, array(
    select n.name
    from teguh._queues_named(
      coalesce(p_spawn.links, '{}') || jsonb_build_object('on_expired', p_spawn.on_expired)
    ) as n(name)
  ));
end;
$$;

-- Vouch for what a task names that was checked when it was stored.
create or replace function teguh._revouch(p_spawn teguh._spawn)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._vouch(n.name)
  from teguh._queues_named(
    coalesce(p_spawn.links, '{}') || jsonb_build_object('on_expired', p_spawn.on_expired)
  ) as n(name);
end;
$$;

-- Refuse to have tasks spawned later, with all rights, where the caller may not spawn any; p_from
-- is the queue that stores the other's name.
create or replace function teguh._check_spawner(p_from text, p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not has_function_privilege(
    format('teguh._put_%s(teguh._spawn[])', p_queue_name), 'execute'
  ) then
    raise exception 'role "%" may not spawn tasks in queue "%"', current_user, p_queue_name
      using
        errcode = '42501',
        detail = 'What follows a task is spawned where its spawner may spawn.',
        hint = 'grant_access() gives a role access to a queue.';
  end if;

  if p_queue_name <> p_from then
    execute format('select teguh.%I()', '_vouch_' || p_queue_name);
  end if;
end;
$$;

-- Spawn one task.
create or replace function teguh.spawn_task(
  p_queue_name text,
  p_task_name  text,
  p_params     jsonb,
  p_options    jsonb default '{}'
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_spawn  teguh._spawn := teguh._check_spawn(
    p_queue_name, p_task_name, p_params, p_options, v_policy
  );
begin
  if v_spawn.uniqueness is not null then
    execute 'select * from teguh._once_' || p_queue_name || '($1)'
    into task_id, run_id, attempt, created
    using v_spawn;
  elsif v_spawn.idempotency_key is not null then
    execute 'select * from teguh._put_' || p_queue_name || '($1)'
    into task_id, run_id, attempt, created
    using array[v_spawn];
  else
    execute 'select teguh._new_' || p_queue_name || '($1)' into task_id using v_spawn;
    run_id := teguh._run_id(task_id, 1);
    attempt := 1;
    created := true;
  end if;
  return next;

  if v_spawn.priority is not null and not v_policy ? 'ruled' then
    execute 'select teguh._rule_' || p_queue_name || '(false)';
  end if;
  if created and v_policy ? 'max_pending' then
    execute 'select teguh._room_' || p_queue_name || '($1)' using v_policy;
  end if;
end;
$$;

comment on function teguh.spawn_task(text, text, jsonb, jsonb) is
  'Spawns a task in the caller''s transaction: it exists once that commits. Options: '
  'headers (object), retry_strategy ({"kind": none, fixed, exponential, linear, quadratic, '
  '"base_seconds", "factor", "max_seconds", "jitter"}), max_attempts (null: '
  'unlimited), cancellation ({"max_delay", "max_duration"} in seconds), '
  'idempotency_key, idempotency_mismatch (error or return), available_at, '
  'delay_seconds, timeout_seconds (how long a worker may hold it at a time), ttl_seconds or '
  'deadline_at (when it expires unless it is over), on_expired ({"queue_name", "task_name", '
  '"params", "options"}: spawned when it expires), tags (array of strings), correlation_id, '
  'parent_task_id (a task of any queue), workflow_run_id; parent_run_id (with '
  'parent_queue_name if that is another: the run that spawns this one, from which it has '
  'parent_task_id and, unless they are given, tags, correlation_id, workflow_run_id), unique '
  '({"key", "on_conflict"}: no second task while one of that key is pending, running or '
  'sleeping, or in the given states, or for window_seconds from its creation; on_conflict error '
  'raises, return returns it; replace turns one that has not started into the new one, debounce '
  'also, no later than max_wait_seconds after its creation), sequence (array of {"queue_name", '
  '"task_name", "params", "options", "compensate"}: each is spawned when the one before is '
  'completed, with its params and result), compensate (a task that undoes this one if a later one '
  'of the sequence ends without success), on_failure (a task to spawn if this one, or a later one '
  'of the sequence, does). created is false when the '
  'idempotency key or unique key was in use and the existing task '
  'is returned. Raises TG001 for an unknown queue, TG005 for a bad option, TG006 for a '
  'key that belongs to another task or is in use, TG007 when the queue is full, 42501 if the '
  'caller may not spawn in the queue of a task that is to follow.';

-- Spawn many tasks with one statement.
create or replace function teguh.spawn_tasks(p_queue_name text, p_tasks jsonb)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_verb   text := 'put';
  v_spawns teguh._spawn[];
  v_new    boolean := false;
begin
  if jsonb_typeof(p_tasks) is distinct from 'array' then
    raise exception 'tasks must be a JSON array'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_tasks::text, 'null'), 200)),
        hint = 'For instance [{"task_name": "send", "params": {}, "options": {}}].';
  end if;

  select array_agg(teguh._read_task(p_queue_name, a.task, v_policy) order by a.place) into v_spawns
  from jsonb_array_elements(p_tasks) with ordinality as a(task, place);
  if v_spawns is null then
    return;
  end if;

  if exists (select from unnest(v_spawns) as s where s.uniqueness is not null) then
    v_verb := 'series';
  end if;
  for task_id, run_id, attempt, created in
    execute format('select * from teguh._%s_%s($1)', v_verb, p_queue_name) using v_spawns
  loop
    v_new := v_new or created;
    return next;
  end loop;

  if not v_policy ? 'ruled' and exists (
    select from unnest(v_spawns) as s where s.priority is not null
  ) then
    execute 'select teguh._rule_' || p_queue_name || '(false)';
  end if;
  if v_new and v_policy ? 'max_pending' then
    execute 'select teguh._room_' || p_queue_name || '($1)' using v_policy;
  end if;
end;
$$;

comment on function teguh.spawn_tasks(text, jsonb) is
  'Spawns an array of {"task_name", "params", "options"}, all or none; the rows come '
  'back in the order of the array. Options and errors are those of spawn_task().';

-- Read one element of an array of tasks.
create or replace function teguh._read_task(p_queue_name text, p_task jsonb, p_policy jsonb)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_keys('task', p_task, array['task_name', 'params', 'options']);
  return teguh._check_spawn(
    p_queue_name,
    teguh._text_option(p_task, 'task_name'),
    p_task -> 'params',
    nullif(p_task -> 'options', 'null'),
    p_policy
  );
end;
$$;

-- sql/src/41_runs.sql
-- Lock the task of a run that a worker holds, or raise why it does not.
--
-- Every call of a worker comes through here, or makes the same checks in one
-- update.  The row lock keeps the run from ending under the caller until commit.
create or replace function teguh._hold_template(p_run_id uuid)
  returns teguh.t_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = teguh._run_task(p_run_id)
  for no key update;

  if (v_task.run_id = p_run_id and v_task.state = 'running') is not true then
    perform teguh._deny_template(v_task, p_run_id);
  end if;
  return v_task;
end;
$$;

-- Raise why a run is not held, whose task stands like this; null: there is no such task.
create or replace function teguh._deny_template(p_task teguh.t_template, p_run_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_late boolean := teguh._run_number(p_run_id) < teguh._run_number(p_task.run_id);
begin
  if p_task.task_id is null
    or teguh._run_number(p_run_id) not between 1 and teguh._run_number(p_task.run_id)
  then
    raise exception 'run "%" does not exist', p_run_id
      using
        errcode = 'TG002',
        detail = 'No task of this queue has a run with that id.',
        hint = 'Check the queue, and that the id is a run''s and not a task''s.';
  elsif p_task.state = 'cancelled' then
    raise exception 'task "%" is cancelled', p_task.task_id
      using
        errcode = 'AB001',
        detail = format('It was cancelled at %s.', p_task.finished_at),
        hint = 'Stop working on it.';
  elsif v_late or p_task.state in ('completed', 'failed', 'expired') then
    raise exception 'run "%" has ended', p_run_id
      using
        errcode = 'AB002',
        detail = format('Its task is %s, in run "%s".', p_task.state, p_task.run_id),
        hint = 'Stop working on it: it was finished, or its lease was lost.';
  end if;

  raise exception 'run "%" is not running', p_run_id
    using
      errcode = 'TG004',
      detail = format('It is %s: no worker holds it.', p_task.state),
      hint = 'Claim it first.';
end;
$$;

-- The same, and the run must be one of this task.
create or replace function teguh._own_template(p_task_id uuid, p_run_id uuid)
  returns teguh.t_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_task_id is distinct from teguh._run_task(p_run_id) then
    raise exception 'run "%" is not a run of task "%"', p_run_id, p_task_id
      using
        errcode = 'TG002',
        detail = 'A run may write only to its own task.',
        hint = 'Pass the task_id and run_id that claim_task returned together.';
  end if;

  return teguh._hold_template(p_run_id);
end;
$$;

-- End a run with success.
create or replace function teguh._done_template(p_run_id uuid, p_state jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_id uuid := teguh._run_task(p_run_id);
  v_now     timestamptz := teguh.current_time();
  v_turn    integer;
  v_name    text;
  v_started timestamptz;
  v_links   jsonb;
  v_seconds double precision;
begin
  update teguh.t_template as t
  set
    state = 'completed',
    result = p_state,
    failure_reason = null,
    finished_at = v_now
  where t.task_id = v_task_id
    and t.run_id = p_run_id
    and t.state = 'running'
  returning t.turn, t.task_name, t.started_at, t.links into v_turn, v_name, v_started, v_links;
  if not found then
    perform teguh._hold_template(p_run_id);
  end if;

  v_seconds := date_part('epoch', v_now - v_started);
  perform teguh._tally_template(
    v_name, 'r', 'c', 1, teguh._bound(v_seconds, q.buckets), v_seconds
  )
  from teguh.queues as q
  where q.queue_name = substr('_template', 2);

  if v_links is not null then
    perform teguh._linked_template(v_task_id, 'completed');
  end if;
  -- a task in its first turn has never waited
  if v_turn > 1 then
    delete from teguh.w_template as w
    where w.task_id = v_task_id;
  end if;
end;
$$;

-- Complete a run.
create or replace function teguh.complete_run(
  p_queue_name text,
  p_run_id     uuid,
  p_state      jsonb default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('done', p_queue_name, 2) using p_run_id, p_state;
end;
$$;

comment on function teguh.complete_run(text, uuid, jsonb) is
  'Ends a run with success and stores p_state as the result of its task. Raises '
  'TG001 for an unknown queue, TG002 for an unknown run, TG004 if nobody holds the '
  'run, AB001 if the task is cancelled, AB002 if the run has ended.';

-- End many runs with success, in the order of their ids: the rows are locked as they are
-- updated.  A run that is no longer held is reported, and does not keep the others from
-- ending.
create or replace function teguh._flush_template(p_run_ids uuid[], p_states jsonb[])
  returns table(run_id uuid, applied boolean, error text)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now     timestamptz := teguh.current_time();
  v_done    uuid[];
  v_waited  uuid[];
  v_linked  uuid[];
  v_errors  text[];
  v_names   text[];
  v_seconds double precision[];
  v_least   double precision;
  v_most    double precision;
  v_sum     double precision;
begin
  with runs as materialized (
    select teguh._run_task(u.run_id) as task_id, u.run_id, u.state
    from unnest(p_run_ids, p_states) as u(run_id, state)
    order by 1
  ),

  done as (
    update teguh.t_template as t
    set
      state = 'completed',
      result = r.state,
      failure_reason = null,
      finished_at = v_now
    from runs as r
    where t.task_id = r.task_id
      and t.run_id = r.run_id
      and t.state = 'running'
    returning
      t.task_id, t.run_id, t.turn, t.task_name, t.links is not null as linked,
      date_part('epoch', v_now - t.started_at) as seconds
  )

  select
    array_agg(d.run_id), array_agg(d.task_name),
    array_agg(d.task_id) filter (where d.turn > 1), array_agg(d.task_id) filter (where d.linked),
    array_agg(d.seconds), min(d.seconds), max(d.seconds), sum(d.seconds)
  into v_done, v_names, v_waited, v_linked, v_seconds, v_least, v_most, v_sum
  from done as d;
  perform teguh._tally_template(
    v_names[1], 'r', 'c', cardinality(v_names), teguh._bound(v_most, q.buckets), v_sum
  )
  from teguh.queues as q
  where q.queue_name = substr('_template', 2)
    and v_names[1] = all (v_names)
    and teguh._bound(v_least, q.buckets) = teguh._bound(v_most, q.buckets);
  if not found then
    perform teguh._finish_template(v_names, v_seconds);
  end if;
  if v_linked is not null then
    perform teguh._linked_template(u.task_id, 'completed')
    from unnest(v_linked) as u(task_id);
  end if;

  -- a task in its first turn has never waited
  if v_waited is not null then
    delete from teguh.w_template as w
    where w.task_id = any (v_waited);
  end if;

  if cardinality(v_done) is distinct from cardinality(p_run_ids) then
    v_errors := array(
      select case when u.run_id = any (v_done) then null else teguh._why_template(u.run_id) end
      from unnest(p_run_ids) as u(run_id)
    );
  end if;

  return query
  select u.run_id, u.error is null, u.error
  from unnest(p_run_ids, v_errors) as u(run_id, error);
end;
$$;

-- Why a run could not be completed, as the SQLSTATE that complete_run() raises.  Its task is not
-- locked: the caller holds others, and whoever holds this one may wait for those.
create or replace function teguh._why_template(p_run_id uuid)
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = teguh._run_task(p_run_id);
  if (v_task.run_id = p_run_id and v_task.state = 'running') is not true then
    perform teguh._deny_template(v_task, p_run_id);
  end if;
  return 'AB002';
exception
  when sqlstate 'AB001' or sqlstate 'AB002' or sqlstate 'TG002' or sqlstate 'TG004' then
    return sqlstate;
end;
$$;

-- Read an array of runs to complete, or raise TG005.
create or replace function teguh._read_runs(
  p_runs      jsonb,
  out run_ids uuid[],
  out states  jsonb[]
)
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_good boolean;
begin
  if jsonb_typeof(p_runs) is distinct from 'array' then
    raise exception 'runs must be a JSON array'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_runs::text, 'null'), 200)),
        hint = 'For instance [{"run_id": "…", "state": {}}].';
  end if;

  begin
    select
      array_agg((a.run ->> 'run_id')::uuid),
      array_agg(nullif(a.run -> 'state', 'null')),
      bool_and(coalesce(a.run - '{run_id,state}'::text[] = '{}', false))
    into run_ids, states, v_good
    from jsonb_array_elements(p_runs) as a(run);
  exception
    when invalid_text_representation or invalid_parameter_value then
      v_good := false;
  end;
  if not v_good or array_position(run_ids, null) is not null then
    perform teguh._explain_bad_run(p_runs);
  end if;

  if (select count(distinct u.run_id) from unnest(run_ids) as u(run_id)) < cardinality(run_ids) then
    raise exception 'a run is listed twice'
      using
        errcode = 'TG005',
        detail = 'A run ends once, with one result.',
        hint = 'List each run_id once.';
  end if;
end;
$$;

-- Raise which element of an array is no run.
create or replace function teguh._explain_bad_run(p_runs jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_bad jsonb;
begin
  select a.run into v_bad
  from jsonb_array_elements(p_runs) as a(run)
  where jsonb_typeof(a.run) <> 'object'
    or a.run - '{run_id,state}'::text[] <> '{}'
    or coalesce(a.run ->> 'run_id', '') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
  limit 1;

  raise exception 'not a run to complete'
    using
      errcode = 'TG005',
      detail = format('Found: %s.', left(v_bad::text, 200)),
      hint = 'An element is {"run_id": a run''s id, "state": its result}, and nothing else.';
end;
$$;

-- Complete many runs with one statement.
create or replace function teguh.complete_runs(p_queue_name text, p_runs jsonb)
  returns table(run_id uuid, applied boolean, error text)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_runs record;
begin
  v_runs := teguh._read_runs(p_runs);
  return query execute teguh._call('flush', p_queue_name, 2) using v_runs.run_ids, v_runs.states;
end;
$$;

comment on function teguh.complete_runs(text, jsonb) is
  'Ends an array of {"run_id", "state"} with success. Each run comes back with '
  'applied; where that is false, error is the SQLSTATE that complete_run() would '
  'have raised, and the other runs are completed all the same. Raises TG001 for an '
  'unknown queue, TG005 for anything but an array.';

-- End a run of a locked task with failure: queue the next run, or end the task.
--
-- The task keeps its current run only, so what ended goes to the history when
-- another run follows.  A retry that could not start before the task's deadline
-- is a cancellation.
create or replace function teguh._end_template(
  p_task     teguh.t_template,
  p_reason   jsonb,
  p_retry_at timestamptz,
  p_now      timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_failures integer := p_task.failures + 1;
  v_number   integer := teguh._run_number(p_task.run_id) + 1;
  v_retry_at timestamptz := coalesce(
    p_retry_at,
    teguh._after(p_now, teguh._backoff(p_task.retry_strategy, v_failures, p_task.task_id))
  );
begin
  if v_failures >= p_task.max_attempts or v_number > 1048575 then
    update teguh.t_template as t
    set
      state = 'failed',
      failures = v_failures,
      failure_reason = p_reason,
      finished_at = p_now
    where t.task_id = p_task.task_id;
    perform teguh._lost_template(p_task.task_id, 'failed', p_now);
    perform teguh._moved_template(p_task, 'f', p_now);
    return;
  end if;

  if v_retry_at >= p_task.deadline_at then
    update teguh.t_template as t
    set
      failures = v_failures,
      failure_reason = p_reason
    where t.task_id = p_task.task_id;
    perform teguh._close_template(p_task, p_now);
    return;
  end if;

  perform teguh._file_template(p_task, 'failed', p_reason, p_now);
  perform teguh._again_template(p_task, v_number, v_failures, p_reason, v_retry_at, p_now);
end;
$$;

-- Note that a locked task has ended without success: it waits for nothing, is found among its
-- like, and is followed by what there is for that case.
create or replace function teguh._lost_template(p_task_id uuid, p_state text, p_now timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.w_template as w
  where w.task_id = p_task_id;
  insert into teguh.d_template as d (state, task_id, ended_at)
  values (p_state, p_task_id, p_now)
  on conflict do nothing;
  perform teguh._linked_template(p_task_id, p_state)
  from teguh.t_template as t
  where t.task_id = p_task_id
    and t.links is not null;
end;
$$;

-- Write the run that a locked task is leaving behind into the history, if the queue keeps one.
create or replace function teguh._file_template(
  p_task   teguh.t_template,
  p_state  text,
  p_reason jsonb,
  p_now    timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.r_template as r (
    task_id, run_id, attempt, state, claimed_by, started_at, lease_expires_at, finished_at,
    failure_reason
  )
  select
    p_task.task_id, p_task.run_id, p_task.attempt, p_state, p_task.claimed_by,
    p_task.started_at, p_task.lease_expires_at, p_now, p_reason
  from teguh.queues as q
  where q.queue_name = substr('_template', 2)
    and coalesce((q.policy ->> 'history')::boolean, true);
end;
$$;

-- Why the current run of a task has failed; null if it has not.  Until then the task's row says
-- why the last one that did has: of a task that is over, the number of failures tells them apart.
create or replace function teguh._blame_template(p_task teguh.t_template)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case
    when p_task.state = 'failed' then p_task.failure_reason
    when p_task.state in ('expired', 'cancelled') and p_task.failures > (
      select count(*)
      from teguh.r_template as r
      where r.task_id = p_task.task_id
        and r.failure_reason is not null
    ) then p_task.failure_reason
    else nullif(p_task.failure_reason, (
      select r.failure_reason
      from teguh.r_template as r
      where r.task_id = p_task.task_id
        and r.failure_reason is not null
      order by r.run_id desc
      limit 1
    ))
  end;
end;
$$;

-- Begin the next run of a locked task: at once, or when p_at has come.
create or replace function teguh._again_template(
  p_task     teguh.t_template,
  p_number   integer,
  p_failures integer,
  p_reason   jsonb,
  p_at       timestamptz,
  p_now      timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  update teguh.t_template as t
  set
    run_id = teguh._run_id(p_task.task_id, p_number),
    turn = p_task.turn + 1,
    laned = false,
    failures = p_failures,
    state = case when p_at > p_now then 'sleeping' else 'pending' end,
    available_at = greatest(p_at, p_now),
    claimed_by = null,
    lease_expires_at = null,
    finished_at = null,
    wake_event = null,
    event_payload = null,
    failure_reason = p_reason
  where t.task_id = p_task.task_id;

  perform teguh._queue_template(p_task.task_id, p_task.turn + 1, p_at, p_now);
  perform teguh._moved_template(
    p_task,
    case when p_at > p_now then 's' else 'p' end::"char",
    case when p_failures > p_task.failures then p_now end
  );
end;
$$;

-- Queue a task for a turn that begins at once, or when p_at has come.
create or replace function teguh._queue_template(
  p_task_id uuid,
  p_turn    integer,
  p_at      timestamptz,
  p_now     timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_at > p_now then
    perform teguh._push_template('s', array[p_task_id], array[p_turn], array[p_at]);
  else
    perform teguh._push_template('r', array[p_task_id], array[p_turn]);
  end if;
end;
$$;

-- End a run with failure.
create or replace function teguh._fail_template(
  p_run_id   uuid,
  p_reason   jsonb,
  p_retry_at timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._end_template(
    teguh._hold_template(p_run_id), coalesce(p_reason, 'null'), p_retry_at, teguh.current_time()
  );
end;
$$;

-- Fail a run.
create or replace function teguh.fail_run(
  p_queue_name text,
  p_run_id     uuid,
  p_reason     jsonb,
  p_retry_at   timestamptz default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('fail', p_queue_name, 3) using p_run_id, p_reason, p_retry_at;
end;
$$;

comment on function teguh.fail_run(text, uuid, jsonb, timestamptz) is
  'Ends a run with failure. While the task has failed fewer than max_attempts times '
  'another run follows, at p_retry_at or, if that is null, after the delay of its '
  'retry strategy; else the task ends as failed. p_reason is kept per run. Raises '
  'TG001 for an unknown queue, TG002 for an unknown run, TG004 if nobody holds the '
  'run, AB001 if the task is cancelled, AB002 if the run has ended.';

-- Put a run to sleep.
create or replace function teguh._nap_template(p_run_id uuid, p_wake_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._hold_template(p_run_id);
  v_now  timestamptz := teguh.current_time();
begin
  update teguh.t_template as t
  set
    turn = v_task.turn + 1,
    state = case when p_wake_at > v_now then 'sleeping' else 'pending' end,
    available_at = greatest(p_wake_at, v_now),
    claimed_by = null,
    lease_expires_at = null,
    wake_event = null,
    event_payload = null
  where t.task_id = v_task.task_id;

  perform teguh._queue_template(v_task.task_id, v_task.turn + 1, p_wake_at, v_now);
  perform teguh._moved_template(
    v_task, case when p_wake_at > v_now then 's' else 'p' end::"char"
  );
end;
$$;

-- Let a run sleep until a moment.
create or replace function teguh.schedule_run(
  p_queue_name text,
  p_run_id     uuid,
  p_wake_at    timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_wake_at is null then
    raise exception 'wake time must not be null'
      using
        errcode = '22004',
        detail = 'A run that sleeps must have a time to wake at.',
        hint = 'Pass a timestamp; one in the past wakes the run at once.';
  end if;

  execute teguh._call('nap', p_queue_name, 2) using p_run_id, p_wake_at;
end;
$$;

comment on function teguh.schedule_run(text, uuid, timestamptz) is
  'Lets a run sleep until p_wake_at; at once if that has passed. It keeps its id and '
  'consumes no attempt of max_attempts. Raises 22004 for a null time, TG001 for an '
  'unknown queue, TG002 for an unknown run, TG004 if nobody holds the run, AB001 if '
  'the task is cancelled, AB002 if the run has ended.';

-- Hand a run back as if it had not been claimed.
create or replace function teguh._free_template(p_run_id uuid, p_delay double precision)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task    teguh.t_template := teguh._hold_template(p_run_id);
  v_now     timestamptz := teguh.current_time();
  v_at      timestamptz := teguh._after(v_now, p_delay);
  v_unbegun boolean := v_task.attempt = 1;
  v_limit   timestamptz := v_task.deadline_at;
begin
  if v_unbegun then
    v_limit := least(
      v_task.expires_at,
      teguh._after(v_at, (v_task.cancellation ->> 'max_delay')::double precision)
    );
  end if;

  update teguh.t_template as t
  set
    turn = v_task.turn + 1,
    attempt = v_task.attempt - 1,
    state = case when v_at > v_now then 'sleeping' else 'pending' end,
    available_at = v_at,
    deadline_at = v_limit,
    first_started_at = case when not v_unbegun then t.first_started_at end,
    claimed_by = null,
    lease_expires_at = null
  where t.task_id = v_task.task_id;

  if v_unbegun and v_limit is not null then
    perform teguh._push_template('l', array[v_task.task_id], array[0], array[v_limit]);
  end if;
  perform teguh._queue_template(v_task.task_id, v_task.turn + 1, v_at, v_now);
  perform teguh._moved_template(
    v_task,
    teguh._letter(
      case when v_at > v_now then 'sleeping' else 'pending' end,
      v_task.attempt - 1,
      v_task.wake_event
    )
  );
end;
$$;

-- Hand a run back.
create or replace function teguh.release_run(
  p_queue_name text,
  p_run_id     uuid,
  p_delay      double precision default 0
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_seconds('delay', p_delay, true);
  execute teguh._call('free', p_queue_name, 2) using p_run_id, p_delay;
end;
$$;

comment on function teguh.release_run(text, uuid, double precision) is
  'Hands a run back to the queue, claimable again after p_delay seconds. Neither its '
  'attempt nor its failures change: for a worker that shuts down, or does not know '
  'the task. Raises TG001 for an unknown queue, TG002 for an unknown run, TG004 if '
  'nobody holds the run, TG005 for a bad delay, AB001 if the task is cancelled, AB002 '
  'if the run has ended.';

-- Move the end of a lease.  An earlier end than before needs a timer of its own; a
-- later one is found out when the present timer comes due.
create or replace function teguh._keep_template(p_run_id uuid, p_extend_by double precision)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task  teguh.t_template := teguh._hold_template(p_run_id);
  v_until timestamptz := least(
    teguh._after(teguh.current_time(), p_extend_by),
    teguh._after(v_task.started_at, v_task.timeout_seconds)
  );
begin
  update teguh.t_template as t
  set lease_expires_at = v_until
  where t.task_id = v_task.task_id;

  if v_task.lease_expires_at is null or v_until < v_task.lease_expires_at then
    perform teguh._push_template(
      'l', array[v_task.task_id], array[v_task.turn], array[v_until]
    );
  end if;
end;
$$;

-- Extend a lease: the heartbeat.
create or replace function teguh.extend_claim(
  p_queue_name text,
  p_run_id     uuid,
  p_extend_by  double precision
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_seconds('extension', p_extend_by, false);
  execute teguh._call('keep', p_queue_name, 2) using p_run_id, p_extend_by;
end;
$$;

comment on function teguh.extend_claim(text, uuid, double precision) is
  'Sets the end of a run''s lease to p_extend_by seconds from now: it never adds up, and '
  'never goes past the run''s timeout. '
  'Raises TG001 for an unknown queue, TG002 for an unknown run, TG004 if nobody holds '
  'the run, TG005 unless p_extend_by is positive, AB001 if the task is cancelled, '
  'AB002 if the run has ended.';

-- sql/src/42_checkpoints.sql
-- Store a step's state under the fence of a run that is held.  The lock on the
-- task lasts until the caller commits, so what the caller writes in the same
-- transaction and the checkpoint stand or fall together.  A checkpoint of a later
-- run is never overwritten by an earlier one.
create or replace function teguh._mark_template(
  p_task_id   uuid,
  p_step_name text,
  p_state     jsonb,
  p_run_id    uuid,
  p_extend_by double precision
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._own_template(p_task_id, p_run_id);
  perform teguh._note_template(p_task_id, p_step_name, p_state, 'committed', p_run_id);
  if p_extend_by is not null then
    perform teguh._keep_template(p_run_id, p_extend_by);
  end if;
end;
$$;

-- Write a checkpoint of a task that is locked.
create or replace function teguh._note_template(
  p_task_id   uuid,
  p_step_name text,
  p_state     jsonb,
  p_status    text,
  p_run_id    uuid
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.c_template as c (
    task_id, checkpoint_name, state, status, owner_run_id, updated_at
  )
  values (
    p_task_id, p_step_name, coalesce(p_state, 'null'), p_status, p_run_id, teguh.current_time()
  )
  on conflict (task_id, checkpoint_name) do update
  set
    state = excluded.state,
    status = excluded.status,
    owner_run_id = excluded.owner_run_id,
    updated_at = excluded.updated_at
  where teguh._run_number(c.owner_run_id) <= teguh._run_number(excluded.owner_run_id);
end;
$$;

-- Store the state of a step.
create or replace function teguh.set_task_checkpoint_state(
  p_queue_name      text,
  p_task_id         uuid,
  p_step_name       text,
  p_state           jsonb,
  p_owner_run       uuid,
  p_extend_claim_by double precision default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_name('step name', p_step_name);
  if p_extend_claim_by is not null then
    perform teguh._check_seconds('extension', p_extend_claim_by, false);
  end if;

  execute teguh._call('mark', p_queue_name, 5)
  using p_task_id, p_step_name, p_state, p_owner_run, p_extend_claim_by;
end;
$$;

comment on function teguh.set_task_checkpoint_state(
  text, uuid, text, jsonb, uuid, double precision
) is
  'Stores the state of a step, null as JSON null, in the caller''s transaction: '
  'business writes made there commit together with it. p_extend_claim_by also sets '
  'the end of the lease to that many seconds from now. Raises TG001 for an unknown '
  'queue, TG002 for an unknown run or one of another task, TG004 if nobody holds the '
  'run, TG005 for a bad name or extension, AB001 if the task is cancelled, AB002 if '
  'the run has ended.';

-- The state of one checkpoint.
create or replace function teguh._recall_template(p_task_id uuid, p_step_name text)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_state jsonb;
begin
  select c.state into v_state
  from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name;
  if not found then
    perform teguh._fetch_template(p_task_id);
  end if;

  return v_state;
end;
$$;

-- Read the state of a step.
create or replace function teguh.get_task_checkpoint_state(
  p_queue_name text,
  p_task_id    uuid,
  p_step_name  text
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_state jsonb;
begin
  execute teguh._call('recall', p_queue_name, 2) into v_state using p_task_id, p_step_name;
  return v_state;
end;
$$;

comment on function teguh.get_task_checkpoint_state(text, uuid, text) is
  'The stored state of a step; SQL null if there is none, JSON null if that is what '
  'was stored or the step is a wait that timed out. Raises TG001 for an unknown '
  'queue, TG003 for an unknown task.';

-- The checkpoints of a task that a run may see: its own and those of earlier runs.
create or replace function teguh._list_template(p_task_id uuid, p_run_id uuid)
  returns table(
    checkpoint_name text,
    state           jsonb,
    status          text,
    owner_run_id    uuid,
    updated_at      timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select c.checkpoint_name, c.state, c.status, c.owner_run_id, c.updated_at
  from teguh.c_template as c
  where c.task_id = p_task_id
    and (
      p_run_id is null
      or teguh._run_number(c.owner_run_id) <= teguh._run_number(p_run_id)
    )
  order by c.updated_at, c.checkpoint_name;
  if not found then
    perform teguh._fetch_template(p_task_id);
  end if;
end;
$$;

-- List the checkpoints of a task.
create or replace function teguh.get_task_checkpoint_states(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid
)
  returns table(
    checkpoint_name text,
    state           jsonb,
    status          text,
    owner_run_id    uuid,
    updated_at      timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('list', p_queue_name, 2) using p_task_id, p_run_id;
end;
$$;

comment on function teguh.get_task_checkpoint_states(text, uuid, uuid) is
  'The checkpoints of a task that were written by this run or earlier ones (null: '
  'all), oldest first. status is committed, or timed_out for a wait that timed out. '
  'Raises TG001 for an unknown queue, TG003 for an unknown task.';

-- sql/src/43_events.sql
-- Wait for an event, or learn how the wait ended.
--
-- The event's row is locked first, the task's second, as emit does: of an emit
-- and an await at the same time one sees what the other did.  The outcome, also
-- that the wait timed out, becomes a checkpoint, so that a replay sees the same.
-- A wait whose time is over has timed out even if the event came a moment later.
create or replace function teguh._wait_template(
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_event_name text,
  p_timeout    double precision
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := teguh.current_time();
  v_event teguh.e_template;
  v_task  teguh.t_template;
  v_wait  teguh.w_template;
  v_over  boolean;
begin
  select false, c.state, c.status = 'timed_out' into should_suspend, payload, timed_out
  from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name;
  if found then
    perform teguh._own_template(p_task_id, p_run_id);
    payload := case when not timed_out then payload end;
    return next;
    return;
  end if;

  -- cleanup may remove the row in between
  loop
    insert into teguh.e_template as e (event_name, created_at)
    values (p_event_name, v_now)
    on conflict (event_name) do nothing;
    select e.* into v_event
    from teguh.e_template as e
    where e.event_name = p_event_name
    for share;
    exit when found;
  end loop;

  v_task := teguh._own_template(p_task_id, p_run_id);
  select w.* into v_wait
  from teguh.w_template as w
  where w.task_id = p_task_id
    and w.step_name = p_step_name
    and w.event_name = p_event_name;
  v_over := coalesce(v_wait.timeout_at <= v_now, false)
            or coalesce(p_timeout = 0 and v_event.emitted_at is null, false);

  if v_event.emitted_at is null and not v_over then
    perform teguh._park_template(
      v_task, p_step_name, p_event_name,
      coalesce(v_wait.timeout_at, teguh._after(v_now, p_timeout))
    );
    return query select true, null::jsonb, false;
    return;
  end if;

  payload := case when not v_over then v_event.payload end;
  perform teguh._note_template(
    p_task_id, p_step_name, payload, case when v_over then 'timed_out' else 'committed' end,
    p_run_id
  );
  delete from teguh.w_template as w
  where w.task_id = p_task_id;
  return query select false, payload, v_over;
end;
$$;

-- Put a locked task to sleep until an event is emitted, or its timeout has come.
create or replace function teguh._park_template(
  p_task       teguh.t_template,
  p_step_name  text,
  p_event_name text,
  p_timeout_at timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  update teguh.t_template as t
  set
    turn = p_task.turn + 1,
    state = 'sleeping',
    available_at = p_timeout_at,
    claimed_by = null,
    lease_expires_at = null,
    wake_event = p_event_name,
    event_payload = null
  where t.task_id = p_task.task_id;

  insert into teguh.w_template as w (task_id, event_name, step_name, turn, timeout_at)
  values (p_task.task_id, p_event_name, p_step_name, p_task.turn + 1, p_timeout_at)
  on conflict (task_id) do update
  set
    event_name = excluded.event_name,
    step_name = excluded.step_name,
    turn = excluded.turn,
    timeout_at = excluded.timeout_at;

  if p_timeout_at is not null then
    perform teguh._push_template(
      's', array[p_task.task_id], array[p_task.turn + 1], array[p_timeout_at]
    );
  end if;
  perform teguh._moved_template(p_task, 'w');
end;
$$;

-- Refuse what is no name of an event.
create or replace function teguh._check_event(p_event_name text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_name('event name', p_event_name);
  if p_event_name = '$children' or starts_with(p_event_name, '$message:') then
    raise exception 'an event cannot be named "%"', left(p_event_name, 200)
      using
        errcode = 'TG005',
        detail = 'That is what a task waits for in await_children() or receive_message().',
        hint = 'Give it another name.';
  end if;
end;
$$;

-- Wait for an event.
create or replace function teguh.await_event(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_event_name text,
  p_timeout    double precision default null
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_isolation('await_event');
  perform teguh._check_name('step name', p_step_name);
  perform teguh._check_event(p_event_name);
  if p_timeout is not null then
    perform teguh._check_seconds('timeout', p_timeout, true);
  end if;

  return query execute teguh._call('wait', p_queue_name, 5)
  using p_task_id, p_run_id, p_step_name, p_event_name, p_timeout;
end;
$$;

comment on function teguh.await_event(text, uuid, uuid, text, text, double precision) is
  'Waits for an event in a step of a run. should_suspend: the run now sleeps until '
  'the event is emitted or p_timeout seconds (null: for ever) have passed; the worker '
  'lets go of it and calls again when it is claimed next. Otherwise the wait is over, '
  'with the payload or timed_out, and stays so for this step. Raises TG001 for an '
  'unknown queue, TG002 for an unknown run or one of another task, TG004 if nobody '
  'holds the run, TG005 for a bad name or timeout, AB001 if the task is cancelled, '
  'AB002 if the run has ended, 25001 unless the transaction is READ COMMITTED.';

-- Emit an event and wake every task that waits for it.  Tasks are locked in the
-- order of their ids.  Each waiter gets its checkpoint here.
create or replace function teguh._emit_template(p_event_name text, p_payload jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_wait     teguh.w_template;
  v_task     teguh.t_template;
  v_task_ids uuid[] := '{}';
  v_turns    integer[] := '{}';
  v_names    text[] := '{}';
begin
  insert into teguh.e_template as e (event_name, created_at, emitted_at, payload)
  values (p_event_name, v_now, v_now, p_payload)
  on conflict (event_name) do update
  set
    emitted_at = excluded.emitted_at,
    payload = excluded.payload
  where e.emitted_at is null;
  if not found then
    return;
  end if;

  for v_wait in
    select w.*
    from teguh.w_template as w
    where w.event_name = p_event_name
    order by w.task_id
  loop
    continue when v_wait.timeout_at <= v_now;
    update teguh.t_template as t
    set
      turn = t.turn + 1,
      laned = false,
      state = 'pending',
      available_at = v_now,
      event_payload = p_payload
    where t.task_id = v_wait.task_id
      and t.turn = v_wait.turn
      and t.state = 'sleeping'
    returning t.* into v_task;
    if found then
      perform teguh._note_template(
        v_task.task_id, v_wait.step_name, p_payload, 'committed', v_task.run_id
      );
      delete from teguh.w_template as w
      where w.task_id = v_wait.task_id;
      v_task_ids := v_task_ids || v_task.task_id;
      v_turns := v_turns || v_task.turn;
      v_names := v_names || v_task.task_name;
    end if;
  end loop;

  if v_task_ids <> '{}' then
    perform teguh._push_template('r', v_task_ids, v_turns);
    perform teguh._reckon_template(v_names, teguh._letters('w', v_task_ids), 'p');
  end if;
end;
$$;

-- Emit an event.
create or replace function teguh.emit_event(
  p_queue_name text,
  p_event_name text,
  p_payload    jsonb default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_isolation('emit_event');
  perform teguh._check_event(p_event_name);
  execute teguh._call('emit', p_queue_name, 2)
  using p_event_name, coalesce(p_payload, 'null');
end;
$$;

comment on function teguh.emit_event(text, text, jsonb) is
  'Emits an event in the caller''s transaction: every task that waits for it becomes '
  'claimable, every task that will wait for it goes on at once. The first emit of a '
  'name counts, later ones change nothing; a null payload is JSON null. Raises TG001 '
  'for an unknown queue, TG005 for a bad name, 25001 unless the transaction is READ '
  'COMMITTED.';

-- Read the cursor of a page of events: the event before which it begins.
create or replace function teguh._read_event_cursor(p_cursor text)
  returns teguh.e_template
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_place text[];
  v_event teguh.e_template;
begin
  if p_cursor is null then
    v_event.created_at := 'infinity';
    v_event.event_name := '';
    return v_event;
  end if;

  begin
    v_place := regexp_match(convert_from(decode(p_cursor, 'hex'), 'UTF8'), '^([^ ]+ [^ ]+) (.+)$');
    v_event.created_at := v_place[1]::timestamptz;
    v_event.event_name := v_place[2];
  exception
    when data_exception then
      v_event.event_name := null;
  end;
  if v_event.event_name is null then
    raise exception 'not a cursor'
      using
        errcode = 'TG005',
        detail = format('Found: "%s".', left(p_cursor, 200)),
        hint = 'Pass the cursor of the last row of the page before, or null for the first page.';
  end if;

  return v_event;
end;
$$;

-- The names that may be meant when they begin so, or are awaited; null if these are many, and
-- events are better looked through by age.
create or replace function teguh._meant_template(p_prefix text, p_awaited boolean)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[];
begin
  if p_prefix is not null then
    v_names := array(
      select e.event_name
      from teguh.e_template as e
      where e.event_name collate "C" >= p_prefix
      order by e.event_name collate "C"
      limit 2000
    );
    if not coalesce(starts_with(v_names[2000], p_prefix), false) then
      return v_names;
    end if;
  end if;

  if p_awaited then
    v_names := array(
      with recursive awaited as (
        (select w.event_name from teguh.w_template as w order by w.event_name limit 1)
        union all
        select n.event_name
        from awaited as a
        cross join lateral (
          select w.event_name
          from teguh.w_template as w
          where w.event_name > a.event_name
          order by w.event_name
          limit 1
        ) as n
      )

      select a.event_name
      from awaited as a
      limit 2000
    );
    if cardinality(v_names) < 2000 then
      return v_names;
    end if;
  end if;

  return null;
end;
$$;

-- The names of a page of events, the newest first.  p_before, p_name: the event before which it
-- begins.
create or replace function teguh._leaf_template(
  p_prefix  text,
  p_emitted boolean,
  p_awaited boolean,
  p_after   timestamptz,
  p_before  timestamptz,
  p_name    text,
  p_limit   integer
)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := teguh.current_time();
  v_names text[] := teguh._meant_template(p_prefix, p_awaited);
begin
  if v_names is null then
    return array(
      select e.event_name
      from teguh.e_template as e
      where (e.created_at, e.event_name) < (p_before, p_name)
        and e.created_at >= p_after
        and (p_prefix is null or starts_with(e.event_name, p_prefix))
        and (p_emitted is null or (e.emitted_at is not null) = p_emitted)
        and (p_awaited is null or teguh._sought_template(e.event_name, v_now) = p_awaited)
      order by e.created_at desc, e.event_name desc
      limit p_limit
    );
  end if;

  return array(
    select e.event_name
    from unnest(v_names) as u(event_name)
    cross join lateral (
      select e.*
      from teguh.e_template as e
      where e.event_name = u.event_name
      offset 0
    ) as e
    where (e.created_at, e.event_name) < (p_before, p_name)
      and e.created_at >= p_after
      and (p_prefix is null or starts_with(e.event_name, p_prefix))
      and (p_emitted is null or (e.emitted_at is not null) = p_emitted)
      and (p_awaited is null or teguh._sought_template(e.event_name, v_now) = p_awaited)
    order by e.created_at desc, e.event_name desc
    limit p_limit
  );
end;
$$;

-- Whether an emit of this event would wake a task.
create or replace function teguh._sought_template(p_event_name text, p_now timestamptz)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (
    select from teguh.w_template as w
    where w.event_name = p_event_name
      and (w.timeout_at > p_now or w.timeout_at is null)
  );
end;
$$;

-- A page of events, as rows.
create or replace function teguh._news_template(
  p_prefix  text,
  p_emitted boolean,
  p_awaited boolean,
  p_after   timestamptz,
  p_before  timestamptz,
  p_name    text,
  p_limit   integer
)
  returns table(
    event_name text,
    created_at timestamptz,
    emitted_at timestamptz,
    payload    jsonb,
    waiters    bigint,
    cursor     text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now   timestamptz := teguh.current_time();
  v_names text[] := teguh._leaf_template(
    p_prefix, p_emitted, p_awaited, p_after, p_before, p_name, p_limit
  );
begin
  return query
  select
    e.event_name, e.created_at, e.emitted_at, e.payload, w.waiters,
    encode(convert_to(
      to_char(e.created_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00 ') || e.event_name,
      'UTF8'
    ), 'hex')
  from unnest(v_names) with ordinality as u(event_name, place)
  cross join lateral (
    select e.*
    from teguh.e_template as e
    where e.event_name = u.event_name
    offset 0
  ) as e
  cross join lateral (
    select count(*) as waiters
    from teguh.w_template as w
    where w.event_name = e.event_name
      and (w.timeout_at > v_now or w.timeout_at is null)
  ) as w
  order by u.place;
end;
$$;

-- List events.
create or replace function teguh.list_events(
  p_queue_name text,
  p_filter     jsonb default '{}',
  p_cursor     text default null,
  p_limit      integer default 50
)
  returns table(
    event_name text,
    created_at timestamptz,
    emitted_at timestamptz,
    payload    jsonb,
    waiters    bigint,
    cursor     text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_filter jsonb := coalesce(p_filter, '{}');
  v_place  teguh.e_template := teguh._read_event_cursor(p_cursor);
  v_until  timestamptz;
begin
  perform teguh._check_keys('filter of events', v_filter, array[
    'prefix', 'emitted', 'awaited', 'created_after', 'created_before', 'older_than_seconds'
  ]);
  v_until := least(
    teguh._time_option(v_filter, 'created_before'),
    teguh._after(
      teguh.current_time(), -teguh._number_option(v_filter, 'older_than_seconds', 0, 1e12)
    )
  );
  if v_until <= v_place.created_at then
    v_place.created_at := v_until;
    v_place.event_name := '';
  end if;

  return query execute teguh._call('news', p_queue_name, 7)
  using
    teguh._text_option(v_filter, 'prefix'),
    case when v_filter -> 'emitted' <> 'null' then teguh._flag_option(v_filter, 'emitted') end,
    case when v_filter -> 'awaited' <> 'null' then teguh._flag_option(v_filter, 'awaited') end,
    coalesce(teguh._time_option(v_filter, 'created_after'), '-infinity'),
    v_place.created_at,
    v_place.event_name,
    teguh._check_limit(p_limit);
end;
$$;

comment on function teguh.list_events(text, jsonb, text, integer) is
  'The events of a queue that were emitted or awaited, the newest first, a page at a time. '
  'created_at is when that was first, emitted_at null while it is only awaited, waiters how many '
  'tasks an emit would wake. The filter may have prefix (of the name), emitted, awaited (whether '
  'there are waiters), created_after, created_before, older_than_seconds. p_cursor is the cursor '
  'of the last row of the page before, null for the first page. What no index leads to (emitted, '
  'a prefix of very many) is looked for from the newest on. Rows go when cleanup removes events. '
  'Raises TG001 for an unknown queue, TG005 for a bad filter, cursor or limit.';

-- sql/src/44_control.sql
-- Read a task, or raise TG003.
create or replace function teguh._fetch_template(p_task_id uuid)
  returns teguh.t_template
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = p_task_id;
  if not found then
    raise exception 'task "%" does not exist', p_task_id
      using
        errcode = 'TG003',
        detail = 'This queue has no task with that id.',
        hint = 'Check the queue; or the task was removed by cleanup.';
  end if;

  return v_task;
end;
$$;

-- Cancel a task that is not over.  Its dispatch rows and timers mean nothing from
-- then on; a worker that holds it meets AB001 at its next call.  Returns the run that it was
-- in, null if it was over.
create or replace function teguh._stop_template(p_task_id uuid, p_now timestamptz)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = p_task_id
    and t.state in ('pending', 'running', 'sleeping')
  for no key update;
  if not found then
    perform teguh._fetch_template(p_task_id);
    return null;
  end if;

  update teguh.t_template as t
  set
    state = 'cancelled',
    lease_expires_at = null,
    finished_at = p_now
  where t.task_id = p_task_id;
  perform teguh._lost_template(p_task_id, 'cancelled', p_now);
  perform teguh._moved_template(v_task, 'x');
  return v_task.run_id;
end;
$$;

-- Record what somebody has done, in the transaction that does it.
create or replace function teguh._act_template(
  p_action  text,
  p_reason  text,
  p_task_id uuid,
  p_run_id  uuid,
  p_detail  jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into teguh.a_template as a (n, acted_at, deed, reason, task_id, run_id, detail)
  values (
    nextval('teguh.seq_template'::regclass), teguh.current_time(), p_action, p_reason, p_task_id,
    p_run_id, p_detail
  );
end;
$$;

-- Cancel a task for somebody.
create or replace function teguh._halt_template(p_task_id uuid, p_reason text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_id uuid := teguh._stop_template(p_task_id, teguh.current_time());
begin
  if v_run_id is not null then
    perform teguh._act_template('cancel', p_reason, p_task_id, v_run_id, null);
  end if;
end;
$$;

-- Cancel a task.
create or replace function teguh.cancel_task(
  p_queue_name text,
  p_task_id    uuid,
  p_reason     text default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('halt', p_queue_name, 2) using p_task_id, p_reason;
end;
$$;

comment on function teguh.cancel_task(text, uuid, text) is
  'Cancels a task. One that is over stays as it is; a worker that holds it meets '
  'AB001 at its next call. p_reason is shown by get_task_history() and list_actions(). Raises '
  'TG001 for an unknown queue, TG003 for an unknown task.';

-- Run a task that is over once more: in place, keeping its checkpoints, or as a new
-- task of the same name, params and options.
create or replace function teguh._rerun_template(
  p_task_id      uuid,
  p_spawn_new    boolean,
  p_max_attempts integer,
  p_from_step    text,
  p_reason       text
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now   timestamptz := teguh.current_time();
  v_task  teguh.t_template;
  v_spawn teguh._spawn;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = p_task_id
  for no key update;
  if not found then
    perform teguh._fetch_template(p_task_id);
  elsif v_task.state not in ('failed', 'cancelled', 'expired')
    and not (p_spawn_new and v_task.state = 'completed')
  then
    raise exception 'task "%" is %', p_task_id, v_task.state
      using
        errcode = 'TG004',
        detail = 'Only a task that failed, expired or was cancelled can be retried in place.',
        hint = 'With {"spawn_new": true} a completed one can be run again as a new task.';
  end if;

  if p_spawn_new then
    v_spawn := row(
      v_task.task_name, v_task.params, v_task.headers, v_task.retry_strategy,
      coalesce(p_max_attempts, v_task.max_attempts), v_task.cancellation, null, false, null,
      v_task.tags, v_task.correlation_id, v_task.parent_task_id, v_task.workflow_run_id,
      v_task.timeout_seconds, null, v_task.on_expired, null, v_task.priority, v_task.flow_key,
      nullif(v_task.links - '{join,children,undo}'::text[], '{}')
    )::teguh._spawn;
    perform teguh._revouch(v_spawn);
    select p.* into task_id, run_id, attempt, created
    from teguh._put_template(array[v_spawn]) as p;
    perform teguh._act_template(
      'retry', p_reason, p_task_id, null, jsonb_build_object('task_id', task_id)
    );
    return next;
    return;
  end if;

  if p_max_attempts <= v_task.failures then
    raise exception 'max_attempts % is used up', p_max_attempts
      using
        errcode = 'TG005',
        detail = format('The task has failed %s times.', v_task.failures),
        hint = format('Give at least %s.', v_task.failures + 1);
  end if;

  if p_from_step is not null and not teguh._forget_template(p_task_id, p_from_step) then
    raise exception 'task "%" has no checkpoint "%"', p_task_id, left(p_from_step, 200)
      using
        errcode = 'TG005',
        detail = 'It cannot start again from a step that it never took.',
        hint = 'get_task_checkpoint_states() lists its checkpoints.';
  end if;
  perform teguh._redo_template(v_task, 'retry', p_max_attempts, p_reason, v_now);

  return query
  select t.task_id, t.run_id, t.attempt + 1, false
  from teguh.t_template as t
  where t.task_id = p_task_id;
end;
$$;

-- Delete the checkpoint of a step and all that were written after it, forget the children
-- spawned from then on, and put the messages back that were received.  False if there is none.
create or replace function teguh._forget_template(p_task_id uuid, p_from_step text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_since timestamptz;
begin
  select min(s.at) into v_since
  from (
    select c.updated_at as at
    from teguh.c_template as c
    where (c.task_id, c.checkpoint_name) = (p_task_id, p_from_step)
    union all
    select j.spawned_at
    from teguh.j_template as j
    where (j.task_id, j.step_name) = (p_task_id, p_from_step)
  ) as s;

  perform teguh._unhear_template(p_task_id, v_since);
  delete from teguh.c_template as c
  where c.task_id = p_task_id
    and c.updated_at >= v_since;
  delete from teguh.f_template as f
  using teguh.j_template as j
  where j.task_id = p_task_id
    and j.spawned_at >= v_since
    and (f.task_id, f.step_name) = (j.task_id, j.step_name);
  delete from teguh.j_template as j
  where j.task_id = p_task_id
    and j.spawned_at >= v_since;
  return v_since is not null;
end;
$$;

-- Begin another run of a locked task that ended without success, when p_at has come.
create or replace function teguh._redo_template(
  p_task         teguh.t_template,
  p_action       text,
  p_max_attempts integer,
  p_reason       text,
  p_at           timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_number integer := teguh._run_number(p_task.run_id) + 1;
begin
  perform teguh._file_template(
    p_task, p_task.state, teguh._blame_template(p_task), p_task.finished_at
  );
  perform teguh._again_template(
    p_task, v_number, p_task.failures, p_task.failure_reason, p_at, teguh.current_time()
  );
  perform teguh._renew_template(p_task, p_max_attempts, p_at);
  delete from teguh.d_template as d
  where d.state = p_task.state
    and d.task_id = p_task.task_id;
  if p_task.links ? 'join' then
    perform teguh._answer(p_task.links -> 'join', null);
  end if;
  perform teguh._act_template(
    p_action, p_reason, p_task.task_id, teguh._run_id(p_task.task_id, v_number), null
  );
end;
$$;

-- Give a task that is retried in place room for another run and a new deadline, counted from
-- when it may start.  One that expired does not expire again.
create or replace function teguh._renew_template(
  p_task         teguh.t_template,
  p_max_attempts integer,
  p_at           timestamptz
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key   text := case
    when p_task.first_started_at is null then 'max_delay' else 'max_duration'
  end;
  v_limit timestamptz := teguh._after(
    p_at, (p_task.cancellation ->> v_key)::double precision
  );
begin
  update teguh.t_template as t
  set
    max_attempts = case
      when p_max_attempts is not null then p_max_attempts
      when t.max_attempts <= t.failures then t.failures + 1
      else t.max_attempts
    end,
    deadline_at = v_limit,
    expires_at = null
  where t.task_id = p_task.task_id;

  if v_limit is not null then
    perform teguh._push_template('l', array[p_task.task_id], array[0], array[v_limit]);
  end if;
end;
$$;

-- Retry a task.
create or replace function teguh.retry_task(
  p_queue_name text,
  p_task_id    uuid,
  p_options    jsonb default '{}'
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options   jsonb := coalesce(p_options, '{}');
  v_spawn_new boolean;
  v_from_step text;
begin
  perform teguh._check_keys(
    'retry options', v_options, array['spawn_new', 'max_attempts', 'from_step', 'reason']
  );
  v_spawn_new := teguh._flag_option(v_options, 'spawn_new');
  v_from_step := teguh._text_option(v_options, 'from_step');
  if v_spawn_new and v_from_step is not null then
    raise exception 'both "spawn_new" and "from_step" are given'
      using
        errcode = 'TG005',
        detail = 'A new task has no checkpoints, and starts with its first step.',
        hint = 'Leave one of them out.';
  end if;

  return query execute teguh._call('rerun', p_queue_name, 5)
  using
    p_task_id,
    v_spawn_new,
    teguh._integer_option(v_options, 'max_attempts', 1),
    v_from_step,
    teguh._text_option(v_options, 'reason');
end;
$$;

comment on function teguh.retry_task(text, uuid, jsonb) is
  'Runs a failed, expired or cancelled task once more, from its checkpoints on, without '
  'its old time to live. Options: '
  'spawn_new (true: leave the task and spawn a new one like it; also for completed '
  'tasks), max_attempts (default: room for at least one more run), from_step (delete the '
  'checkpoint of that step and all written after it; messages received since are in the mailbox '
  'again), reason (shown by get_task_history() and list_actions()). attempt is the '
  'number that the next claim will show. Raises TG001 for an unknown queue, TG003 for '
  'an unknown task, TG004 if it is not over, TG005 for a bad option or a step without '
  'checkpoint.';

-- A task's state and result.
create or replace function teguh._show_template(p_task_id uuid)
  returns table(
    task_id           uuid,
    state             text,
    attempts          integer,
    completed_payload jsonb,
    cancelled_at      timestamptz,
    failure_reason    jsonb,
    failures          integer,
    task_name         text,
    created_at        timestamptz,
    available_at      timestamptz,
    first_started_at  timestamptz,
    finished_at       timestamptz,
    tags              text[],
    correlation_id    text,
    parent_task_id    uuid,
    workflow_run_id   uuid
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
begin
  return query
  select
    v_task.task_id,
    v_task.state,
    v_task.attempt,
    v_task.result,
    case when v_task.state = 'cancelled' then v_task.finished_at end,
    v_task.failure_reason,
    v_task.failures,
    v_task.task_name,
    v_task.created_at,
    v_task.available_at,
    v_task.first_started_at,
    v_task.finished_at,
    v_task.tags,
    v_task.correlation_id,
    v_task.parent_task_id,
    v_task.workflow_run_id;
end;
$$;

-- Look up a task's result.
create or replace function teguh.get_task_result(p_queue_name text, p_task_id uuid)
  returns table(
    task_id           uuid,
    state             text,
    attempts          integer,
    completed_payload jsonb,
    cancelled_at      timestamptz,
    failure_reason    jsonb,
    failures          integer,
    task_name         text,
    created_at        timestamptz,
    available_at      timestamptz,
    first_started_at  timestamptz,
    finished_at       timestamptz,
    tags              text[],
    correlation_id    text,
    parent_task_id    uuid,
    workflow_run_id   uuid
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('show', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.get_task_result(text, uuid) is
  'Where a task stands and what came of it. state is pending, running, sleeping, '
  'completed, failed, cancelled or expired; attempts is how often it was handed to a '
  'worker; failure_reason is why its last failed run failed, null if one has succeeded since; '
  'tags, correlation_id, parent_task_id and workflow_run_id are what it was spawned with. Raises '
  'TG001 for an unknown queue, TG003 for an unknown task.';

-- sql/src/45_cleanup.sql
-- Remove tasks that have been over for longer than p_ttl seconds, with their
-- checkpoints and history, up to p_limit; and as old actions that are about no task.
--
-- A task finished after it was made, and ids are in the order of their making, so
-- only tasks made before the limit are looked at.  Their state is read again under
-- the lock: a task that is being retried stays.
create or replace function teguh._purge_template(p_ttl double precision, p_limit integer)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_before   timestamptz := greatest(teguh._after(teguh.current_time(), -p_ttl), 'epoch');
  v_upto     uuid := teguh._first_uuid(v_before + interval '1 millisecond');
  v_task_ids uuid[];
begin
  v_task_ids := array(
    select t.task_id
    from teguh.t_template as t
    where t.task_id < v_upto
      and t.state in ('completed', 'failed', 'cancelled', 'expired')
      and t.finished_at <= v_before
    order by t.task_id
    limit p_limit
    for update skip locked
  );

  delete from teguh.a_template as a
  where a.task_id is null
    and a.acted_at <= v_before;
  return teguh._erase_template(v_task_ids);
end;
$$;

-- Remove locked tasks with all that belongs to them.  Returns how many.
create or replace function teguh._erase_template(p_task_ids uuid[])
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[];
  v_was   "char"[];
begin
  perform teguh._score_template(p_task_ids);
  delete from teguh.g_template as g
  using teguh.t_template as t
  where t.task_id = any (p_task_ids)
    and t.tags is not null
    and g.task_id = t.task_id
    and g.tag collate "C" = any (t.tags);
  delete from teguh.d_template as d
  where d.state in ('failed', 'cancelled', 'expired')
    and d.task_id = any (p_task_ids);
  with gone as (
    delete from teguh.t_template as t
    where t.task_id = any (p_task_ids)
    returning t.task_name, t.state
  )

  select array_agg(g.task_name), array_agg(teguh._letter(g.state, 0, null))
  into v_names, v_was
  from gone as g;
  perform teguh._reckon_template(v_names, v_was, '-');

  delete from teguh.u_template as u
  where u.task_id = any (p_task_ids);
  delete from teguh.c_template as c
  where c.task_id = any (p_task_ids);
  delete from teguh.r_template as r
  where r.task_id = any (p_task_ids);
  delete from teguh.w_template as w
  where w.task_id = any (p_task_ids);
  delete from teguh.v_template as v
  where v.task_id = any (p_task_ids);
  delete from teguh.j_template as j
  where j.task_id = any (p_task_ids);
  delete from teguh.f_template as f
  where f.task_id = any (p_task_ids);
  delete from teguh.a_template as a
  where a.task_id = any (p_task_ids);
  delete from teguh.m_template as m
  where m.task_id = any (p_task_ids);
  return cardinality(p_task_ids);
end;
$$;

-- The least version 7 uuid of a millisecond.
create or replace function teguh._first_uuid(p_at timestamptz)
  returns uuid
  language sql
  immutable
  strict
  set search_path = pg_catalog, pg_temp
as $$
  select encode(
    substr(int8send(floor(
      date_part('epoch', greatest('epoch', least(p_at, '9999-12-31 00:00:00+00'))) * 1000
    )::bigint), 3)
    || decode('70008000000000000000', 'hex'),
    'hex'
  )::uuid;
$$;

-- Remove events that were emitted, or first awaited, longer than p_ttl seconds ago,
-- up to p_limit.  Never one that a task waits for: a waiter shares the lock of the
-- event's row, and is looked for when that row is locked.
create or replace function teguh._sweep_template(p_ttl double precision, p_limit integer)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_before timestamptz := teguh._after(teguh.current_time(), -p_ttl);
  v_names  text[];
  v_count  integer;
begin
  v_names := array(
    select e.event_name
    from teguh.e_template as e
    where e.created_at <= v_before
      and coalesce(e.emitted_at, e.created_at) <= v_before
      and not exists (
        select from teguh.w_template as w
        where w.event_name = e.event_name
        offset 0
      )
    order by e.created_at
    limit p_limit
    for update of e skip locked
  );

  delete from teguh.e_template as e
  where e.event_name = any (v_names)
    and not exists (
      select from teguh.w_template as w
      where w.event_name = e.event_name
      offset 0
    );
  get diagnostics v_count = row_count;
  return v_count;
end;
$$;

-- Check what cleanup was asked for, with the queue's policy for what was not said,
-- and do it.
create or replace function teguh._clean(
  p_verb       text,
  p_queue_name text,
  p_ttl        double precision,
  p_limit      integer
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_ttl    double precision := coalesce(
    p_ttl, (v_policy ->> 'cleanup_ttl')::double precision, 2592000
  );
  v_limit  integer := coalesce(p_limit, (v_policy ->> 'cleanup_limit')::integer, 1000);
  v_count  integer;
begin
  perform teguh._check_seconds('ttl', v_ttl, true);
  if v_limit < 1 then
    raise exception 'limit must be at least 1'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', v_limit),
        hint = 'Leave it out for the limit of the queue''s policy.';
  end if;

  execute teguh._call(p_verb, p_queue_name, 2) into v_count using v_ttl, v_limit;
  return v_count;
end;
$$;

-- Remove old tasks.
create or replace function teguh.cleanup_tasks(
  p_queue_name  text,
  p_ttl_seconds double precision default null,
  p_limit       integer default null
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._clean('purge', p_queue_name, p_ttl_seconds, p_limit);
end;
$$;

comment on function teguh.cleanup_tasks(text, double precision, integer) is
  'Removes tasks that completed, failed, expired or were cancelled more than p_ttl_seconds '
  'ago, up to p_limit, and returns how many. Null: what the queue''s policy says, else 30 '
  'days and 1000. Raises TG001 for an unknown queue, TG005 for a bad argument.';

-- Remove old events.
create or replace function teguh.cleanup_events(
  p_queue_name  text,
  p_ttl_seconds double precision default null,
  p_limit       integer default null
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._clean('sweep', p_queue_name, p_ttl_seconds, p_limit);
end;
$$;

comment on function teguh.cleanup_events(text, double precision, integer) is
  'Removes events emitted more than p_ttl_seconds ago, up to p_limit, and returns how '
  'many. An event that a task waits for stays. Null: what the queue''s policy says, '
  'else 30 days and 1000. Raises TG001 for an unknown queue, TG005 for a bad argument.';

-- Remove old tasks and events of one queue or of all, and then old workflow runs.
create or replace function teguh.cleanup_all_queues(p_queue_name text default null)
  returns table(queue_name text, tasks_deleted integer, events_deleted integer)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for queue_name in
    select q.queue_name
    from teguh.queues as q
    where p_queue_name is null or q.queue_name = p_queue_name
    order by q.queue_name
  loop
    continue when not teguh._share_queue(queue_name);
    tasks_deleted := teguh.cleanup_tasks(queue_name);
    events_deleted := teguh.cleanup_events(queue_name);
    return next;
  end loop;

  if p_queue_name is null then
    perform teguh.cleanup_workflow_runs();
  end if;
end;
$$;

comment on function teguh.cleanup_all_queues(text) is
  'Removes old tasks and events of a queue (null: of every queue) as its policy says, '
  'one bounded batch each, and returns the counts; for every queue also what '
  'cleanup_workflow_runs() removes. Raises TG001 for an unknown queue.';

-- sql/src/46_limits.sql
-- Set or take away a limit of a queue, arrange its lanes by it, and tell the workers that wait.
create or replace function teguh._cap_template(p_limit teguh.limits)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := teguh.current_time();
  v_old teguh.limits;
  v_new teguh.limits;
begin
  perform teguh._reign_template();
  select l.* into v_old
  from teguh._limit_of(p_limit.queue_name, p_limit.scope, p_limit.name) as l;
  perform teguh._write_limit(p_limit);
  select l.* into v_new
  from teguh._limit_of(p_limit.queue_name, p_limit.scope, p_limit.name) as l;
  perform teguh._align_template(
    p_limit.scope = 'key'
    and (coalesce(v_old.fair, false), coalesce(v_old.fifo, false))
        <> (coalesce(v_new.fair, false), coalesce(v_new.fifo, false)),
    v_now
  );
  perform pg_notify('teguh_template', '');
end;
$$;

-- Write a limit down; one that limits nothing goes, as does what was noted for rates that are no
-- more.
create or replace function teguh._write_limit(p_limit teguh.limits)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.limits as l
  where (l.queue_name, l.scope, l.name) = (p_limit.queue_name, p_limit.scope, p_limit.name);
  if p_limit.fifo or p_limit.fair or num_nonnulls(p_limit.max_running, p_limit.rate) > 0 then
    insert into teguh.limits select p_limit.*;
  end if;
  delete from teguh.starts as s
  where (s.queue_name, s.scope) = (p_limit.queue_name, p_limit.scope)
    and not exists (
      select
      from teguh._limit_of(s.queue_name, s.scope, s.name) as l
      where l.rate is not null
    );
end;
$$;

-- Read a limit, or raise TG005.
create or replace function teguh._read_limit(
  p_queue_name text,
  p_scope      text,
  p_name       text,
  p_limit      jsonb
)
  returns teguh.limits
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit teguh.limits;
  v_given jsonb := coalesce(p_limit, '{}');
begin
  if coalesce(p_scope, '') not in ('all', 'queue', 'task', 'key')
    or (p_scope = 'all') <> (p_queue_name is null)
    or p_scope in ('all', 'queue') and p_name is not null
  then
    raise exception 'no limit can be on that'
      using
        errcode = 'TG005',
        detail = 'Scopes: all (no queue, no name), queue (no name), task, key (a name or *).',
        hint = 'For instance set_limit(''default'', ''key'', ''*'', ''{"max_running": 1}'').';
  end if;

  perform teguh._check_keys('limit', v_given, array[
    'max_running', 'rate', 'period_seconds', 'fifo', 'fair'
  ]);
  if p_scope in ('task', 'key') then
    v_limit.name := coalesce(p_name, '*');
    perform teguh._check_name('name', v_limit.name);
  else
    v_limit.name := '';
  end if;
  v_limit.queue_name := coalesce(p_queue_name, '*');
  v_limit.set_at := teguh.current_time();
  v_limit.scope := p_scope;
  v_limit.max_running := teguh._integer_option(v_given, 'max_running', 0);
  v_limit.rate := teguh._integer_option(v_given, 'rate', 0);
  v_limit.period_seconds := teguh._number_option(v_given, 'period_seconds', 1e-3, 1e9);
  v_limit.fifo := coalesce(teguh._flag_option(v_given, 'fifo'), false);
  v_limit.fair := coalesce(teguh._flag_option(v_given, 'fair'), false);
  perform teguh._check_limit_keys(v_limit);
  return v_limit;
end;
$$;

-- Refuse what does not go together in a limit.
create or replace function teguh._check_limit_keys(p_limit teguh.limits)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if (p_limit.rate is null) <> (p_limit.period_seconds is null)
    or p_limit.fifo and (p_limit.scope <> 'key' or p_limit.max_running is not null)
    or p_limit.fair and (p_limit.scope <> 'key' or p_limit.name <> '*')
  then
    raise exception 'the limit has keys that do not go together'
      using
        errcode = 'TG005',
        detail = 'rate goes with period_seconds; fifo is for keys, and lets one run at a time by '
          'itself; fair is for all keys (*).',
        hint = 'For instance {"rate": 10, "period_seconds": 1}.';
  end if;
end;
$$;

-- Limit what runs.
create or replace function teguh.set_limit(
  p_queue_name text,
  p_scope      text,
  p_name       text default null,
  p_limit      jsonb default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit      teguh.limits;
  v_queue_name text;
begin
  perform teguh._check_isolation('set_limit');
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;
  v_limit := teguh._read_limit(p_queue_name, p_scope, p_name, p_limit);

  if p_queue_name is not null then
    execute format('select teguh._cap_%s($1)', p_queue_name) using v_limit;
    return;
  end if;

  perform pg_advisory_xact_lock(teguh._gate_number('*'));
  perform teguh._write_limit(v_limit);
  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
    order by q.queue_name
  loop
    if teguh._share_queue(v_queue_name) then
      execute format('select teguh._reign_%s()', v_queue_name);
      perform pg_notify('teguh_' || v_queue_name, '');
    end if;
  end loop;
end;
$$;

comment on function teguh.set_limit(text, text, text, jsonb) is
  'Limits what runs at a time. p_scope: all (all queues together; p_queue_name is null), queue, '
  'task (a task name) or key (the option "key" of spawn_task); p_name: which, or * or null for '
  'each of them by itself, but those that have one of their own. p_limit: '
  'max_running; rate with period_seconds (starts in any such period); for keys '
  'fifo (tasks of a key run one at a time in the order in which they came due, the next when the '
  'one before is over, retries and sleeps included), and for all keys (*) fair (they take turns). '
  'Replaces the limit that was; null takes it away. It holds for every claim that begins after '
  'the commit, and counts what runs already. From then on the queue is claimed from in another '
  'way, which costs each claim more. Raises TG001 for an unknown queue, TG005 for a bad limit, '
  '25001 unless the transaction is READ COMMITTED.';

-- How much of the limits of a queue is used.
create or replace function teguh._usage_template()
  returns table(
    scope          text,
    name           text,
    max_running    integer,
    running        bigint,
    rate           integer,
    period_seconds double precision,
    started        bigint,
    waiting        bigint,
    fifo           boolean,
    fair           boolean,
    paused_until   timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now timestamptz := teguh.current_time();
begin
  return query
  with counted as materialized (
    select c.scope, c.name, sum(u.running) as running, sum(u.waiting) as waiting
    from (
      select r.task_name, r.flow_key, 1 as running, 0 as waiting
      from teguh._going_template() as r
      union all
      select l.task_name, l.flow_key, 0, 1
      from teguh.l_template as l
      cross join lateral (
        select t.* from teguh.t_template as t where t.task_id = l.task_id offset 0
      ) as t
      where t.turn = l.turn
        and t.state in ('pending', 'sleeping')
        and t.laned
    ) as u
    cross join lateral (
      values ('queue', ''), ('task', u.task_name), ('key', u.flow_key)
    ) as c(scope, name)
    group by c.scope, c.name
  ),

  shown as (
    select l.scope, coalesce(c.name, l.name) as name, c.running, c.waiting
    from teguh.limits as l
    left join counted as c on c.scope = l.scope and case
      when l.name <> '*' then c.name = l.name
      else c.name <> '' and not exists (
        select
        from teguh.limits as o
        where (o.queue_name, o.scope, o.name) = (l.queue_name, l.scope, c.name)
      )
    end
    where l.queue_name = substr('_template', 2)
    union all
    select p.scope, p.name, c.running, c.waiting
    from teguh.pauses as p
    left join counted as c on (c.scope, c.name) = (p.scope, p.name)
    where p.queue_name = substr('_template', 2)
      and not exists (select from teguh._limit_of(p.queue_name, p.scope, p.name))
  )

  select
    s.scope, nullif(s.name, ''), l.max_running, coalesce(s.running, 0)::bigint, l.rate,
    l.period_seconds, teguh._started(l, s.name, v_now), coalesce(s.waiting, 0)::bigint,
    coalesce(l.fifo, false), coalesce(l.fair, false),
    teguh._closed_until(substr('_template', 2), s.scope, s.name, v_now)
  from shown as s
  left join lateral (
    select l.* from teguh._limit_of(substr('_template', 2), s.scope, s.name) as l
  ) as l on true
  order by s.scope, s.name;
end;
$$;

-- How much of the limit over all queues is used.
create or replace function teguh._overall_usage()
  returns table(
    scope          text,
    name           text,
    max_running    integer,
    running        bigint,
    rate           integer,
    period_seconds double precision,
    started        bigint,
    waiting        bigint,
    fifo           boolean,
    fair           boolean,
    paused_until   timestamptz
  )
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
  v_waiting    bigint := 0;
  v_some       bigint;
begin
  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
  loop
    if teguh._share_queue(v_queue_name) then
      execute format('select count(*) from teguh.l_%s', v_queue_name) into v_some;
      v_waiting := v_waiting + v_some;
    end if;
  end loop;

  return query
  select
    l.scope, null::text, l.max_running, teguh._everywhere_busy(), l.rate, l.period_seconds,
    teguh._started(l, '', teguh.current_time()), v_waiting, l.fifo, l.fair, null::timestamptz
  from teguh.limits as l
  where l.queue_name = '*';
end;
$$;

-- How much of its limits a queue uses.
create or replace function teguh.limit_usage(p_queue_name text)
  returns table(
    scope          text,
    name           text,
    max_running    integer,
    running        bigint,
    rate           integer,
    period_seconds double precision,
    started        bigint,
    waiting        bigint,
    fifo           boolean,
    fair           boolean,
    paused_until   timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is not null then
    return query execute teguh._call('usage', p_queue_name, 0);
  else
    return query select u.* from teguh._overall_usage() as u;
  end if;
end;
$$;

comment on function teguh.limit_usage(text) is
  'The limits of a queue (null: the one over all queues), one for each name or key (*) once per '
  'name or key that runs or waits: how many of them run, how many were started within the period, '
  'and how many wait in the lanes for their turn; tasks that no claim has come to yet are not '
  'among these. paused_until: see pause_queue(). Raises TG001 for an unknown queue.';

-- sql/src/46_policy.sql
-- Set a queue's pause, or end it (null) and tell the workers that wait.
create or replace function teguh._pause_template(p_until timestamptz, p_reason text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  update teguh.queues as q
  set paused_until = p_until
  where q.queue_name = substr('_template', 2);
  if p_until is null then
    perform pg_notify('teguh_template', '');
  end if;
  perform teguh._act_template(
    case when p_until is null then 'resume' else 'pause' end, p_reason, null, null,
    jsonb_strip_nulls(jsonb_build_object('until', p_until))
  );
end;
$$;

-- Set or end (null) the pause of one task name or key of a queue.
create or replace function teguh._halve_template(p_only jsonb, p_until timestamptz, p_reason text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := substr('_template', 2);
  v_scope      text := case when p_only ->> 'key' is null then 'task' else 'key' end;
  v_name       text := coalesce(p_only ->> 'key', p_only ->> 'task_name');
begin
  perform teguh._reign_template();
  delete from teguh.pauses as p
  where (p.queue_name, p.scope, p.name) = (v_queue_name, v_scope, v_name);
  if p_until is not null then
    insert into teguh.pauses as p (queue_name, scope, name, paused_until)
    values (v_queue_name, v_scope, v_name, p_until);
  end if;
  perform teguh._align_template(false, teguh.current_time());
  if p_until is null then
    perform pg_notify('teguh_template', '');
  end if;
  perform teguh._act_template(
    case when p_until is null then 'resume' else 'pause' end, p_reason, null, null,
    p_only || jsonb_strip_nulls(jsonb_build_object('until', p_until))
  );
end;
$$;

-- Read which task name or key is to be paused.
create or replace function teguh._check_only(p_only jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_keys('what to pause', p_only, array['task_name', 'key']);
  if num_nonnulls(
    teguh._text_option(p_only, 'task_name'), teguh._text_option(p_only, 'key')
  ) <> 1 then
    raise exception 'either a task name or a key can be paused'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(p_only::text, 200)),
        hint = 'For instance {"task_name": "send"}.';
  end if;

  perform teguh._check_name('name', coalesce(p_only ->> 'task_name', p_only ->> 'key'));
end;
$$;

-- Pause a queue.
create or replace function teguh.pause_queue(
  p_queue_name text,
  p_until      timestamptz default 'infinity',
  p_reason     text default null,
  p_only       jsonb default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_until is null then
    raise exception 'a pause must have an end'
      using
        errcode = '22004',
        detail = 'The time until which the queue is paused is null.',
        hint = 'Leave it out to pause until resume_queue() is called.';
  end if;

  if p_only is null then
    execute teguh._call('pause', p_queue_name, 2) using p_until, p_reason;
  else
    perform teguh._check_only(p_only);
    execute teguh._call('halve', p_queue_name, 3) using p_only, p_until, p_reason;
  end if;
end;
$$;

comment on function teguh.pause_queue(text, timestamptz, text, jsonb) is
  'Lets claims of a queue return nothing until p_until, or until resume_queue(); with p_only '
  '({"task_name"} or {"key"}) nothing of that name or key (*: of any), see set_limit(). Spawns, '
  'events, running tasks and timers go on. list_actions() shows p_reason. Raises '
  'TG001 for an unknown queue, TG005 for a bad p_only, 22004 for a null time.';

-- Resume a queue.
create or replace function teguh.resume_queue(
  p_queue_name text,
  p_reason     text default null,
  p_only       jsonb default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_only is null then
    execute teguh._call('pause', p_queue_name, 2) using null::timestamptz, p_reason;
  else
    perform teguh._check_only(p_only);
    execute teguh._call('halve', p_queue_name, 3) using p_only, null::timestamptz, p_reason;
  end if;
end;
$$;

comment on function teguh.resume_queue(text, text, jsonb) is
  'Ends the pause of a queue, or with p_only that of a task name or key, and wakes its workers; '
  'what is not paused stays as it is. list_actions() shows p_reason. '
  'Raises TG001 for an unknown queue, TG005 for a bad p_only.';

-- Read a queue's policy.
create or replace function teguh.get_queue_policy(p_queue_name text)
  returns jsonb
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return '{
    "notify": "auto", "cleanup_ttl": 2592000, "cleanup_limit": 1000,
    "default_max_attempts": null, "default_retry_strategy": null,
    "default_timeout": null, "default_ttl": null, "namespace": "default",
    "max_pending": null, "on_full": "reject", "max_messages": null, "history": true,
    "duration_buckets": [
      0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800
    ]
  }'::jsonb || (teguh._policy(p_queue_name) - '{paused_until,ruled}'::text[]);
end;
$$;

comment on function teguh.get_queue_policy(text) is
  'The policy of a queue, with the defaults for what was not set: see create_queue() for '
  'the keys. Raises TG001 for an unknown queue.';

-- Set keys of a queue's policy.
create or replace function teguh.set_queue_policy(p_queue_name text, p_policy jsonb)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh.create_queue(p_queue_name, p_policy);
end;
$$;

comment on function teguh.set_queue_policy(text, jsonb) is
  'Sets the keys given of a queue''s policy and leaves the others; null sets a key back to '
  'its default. Creates the queue if there is none: it is create_queue(). Raises 42602 or '
  '42939 for a name that cannot be, TG005 for a bad policy.';

-- Count queues by namespace.
create or replace function teguh.list_namespaces()
  returns table(namespace text, queues bigint)
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(q.policy ->> 'namespace', 'default'), count(*)
  from teguh.queues as q
  group by 1
  order by 1;
$$;

comment on function teguh.list_namespaces() is
  'The namespaces that queues are in, by name, and how many are in each. A queue''s namespace is '
  'a key of its policy.';

-- sql/src/47_inspect.sql
-- Read a filter, or raise TG005.  p_states: the only states meant, which the filter then must
-- not name; null if it may.
create or replace function teguh._read_filter(p_filter jsonb, p_states text[] default null)
  returns teguh._filter
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_input  jsonb := coalesce(p_filter, '{}');
  v_filter teguh._filter;
begin
  perform teguh._check_keys('filter', v_input, array_remove(array[
    case when p_states is null then 'state' end, 'task_name', 'tag', 'tags', 'correlation_id',
    'parent_task_id', 'workflow_run_id', 'attributes', 'created_after', 'created_before',
    'older_than_seconds'
  ], null));
  v_filter.states := coalesce(p_states, teguh._states_option(v_input));
  v_filter.task_name := teguh._text_option(v_input, 'task_name');
  v_filter.tags := nullif(array_remove(
    teguh._tags_option(v_input) || teguh._text_option(v_input, 'tag'), null
  ), '{}');
  v_filter.correlation_id := teguh._text_option(v_input, 'correlation_id');
  v_filter.parent_task_id := teguh._uuid_option(v_input, 'parent_task_id');
  v_filter.workflow_run_id := teguh._uuid_option(v_input, 'workflow_run_id');
  v_filter.attributes := teguh._attributes_option(v_input);
  v_filter.created_after := teguh._time_option(v_input, 'created_after');
  v_filter.created_before := least(
    teguh._time_option(v_input, 'created_before'),
    teguh._after(
      teguh.current_time(), -teguh._number_option(v_input, 'older_than_seconds', 0, 1e12)
    )
  );
  return v_filter;
end;
$$;

-- Read the states of a filter: one, or an array; null if it names none.
create or replace function teguh._states_option(p_filter jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value  jsonb := nullif(p_filter -> 'state', 'null');
  v_known  text[] := '{pending,running,sleeping,completed,failed,cancelled,expired}';
  v_states jsonb := case
    when jsonb_typeof(v_value) = 'array' then v_value
    else jsonb_build_array(v_value)
  end;
begin
  if v_value is null then
    return null;
  end if;

  if v_states = '[]' or not v_states <@ to_jsonb(v_known) then
    raise exception '"state" must be a state or an array of states'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = format('States: %s.', array_to_string(v_known, ', '));
  end if;

  return array(select s.state from jsonb_array_elements_text(v_states) as s(state));
end;
$$;

-- Read the cursor of a page: the id before which it begins.
create or replace function teguh._read_cursor(p_cursor text)
  returns uuid
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(p_cursor, 'ffffffff-ffff-ffff-ffff-ffffffffffff')::uuid;
exception
  when invalid_text_representation then
    raise exception 'not a cursor'
      using
        errcode = 'TG005',
        detail = format('Found: "%s".', left(p_cursor, 200)),
        hint = 'Pass the cursor of the last row of the page before, or null for the first page.';
end;
$$;

-- Refuse a limit that is none.
create or replace function teguh._check_limit(p_limit integer)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_limit between 1 and 10000 then
    return p_limit;
  end if;

  raise exception 'limit must be a number from 1 to 10000'
    using
      errcode = 'TG005',
      detail = format('Found: %s.', coalesce(p_limit::text, 'null')),
      hint = 'Take page after page, or call again.';
end;
$$;

-- Find tasks, the newest first: the ids of up to p_limit that were made before p_before.
--
-- Candidates are taken from an index in stretches of 500, from whichever is the sparsest there,
-- and are looked at one by one.  Live tasks are found by dispatch, all at once; so before that
-- a stretch of the newest tasks is tried.
create or replace function teguh._find_template(
  p_filter teguh._filter,
  p_before uuid,
  p_limit  integer
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_after  uuid := coalesce(
    teguh._first_uuid(p_filter.created_after), '00000000-0000-0000-0000-000000000000'
  );
  v_before uuid := least(
    p_before, teguh._first_uuid(p_filter.created_before + interval '1 millisecond')
  );
  v_live   uuid[] := case
    when not p_filter.states && '{pending,running,sleeping}' then '{}'::uuid[]
  end;
  v_first  boolean := p_filter.states && '{pending,running,sleeping}';
  v_page   uuid[];
  v_found  uuid[] := '{}';
begin
  loop
    if v_first then
      v_page := teguh._page_template('task', null, p_filter, null, v_after, v_before);
    else
      v_page := teguh._seek_template(p_filter, v_live, v_after, v_before);
    end if;
    v_found := v_found
               || teguh._fit_template(p_filter, v_page, p_limit - cardinality(v_found));
    exit when cardinality(v_found) >= p_limit or cardinality(v_page) < 500;
    v_before := v_page[500];

    if v_first
      and 'completed' <> all (p_filter.states)
      and num_nonnulls(
        p_filter.correlation_id, p_filter.parent_task_id, p_filter.workflow_run_id
      ) = 0
    then
      v_live := teguh._live_template(p_filter.states);
    end if;
    v_first := false;
  end loop;

  return v_found;
end;
$$;

-- The next 500 candidates for a filter, by that way on which they go back the farthest.  By
-- state it leads only when the live tasks in question are known.
create or replace function teguh._seek_template(
  p_filter teguh._filter,
  p_live   uuid[],
  p_after  uuid,
  p_before uuid
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_way  record;
  v_page uuid[];
  v_best uuid[];
begin
  for v_way in
    select w.kind, w.tag
    from (
      values
        ('matter', null::text, p_filter.correlation_id is not null),
        ('parent', null, p_filter.parent_task_id is not null),
        ('flow', null, p_filter.workflow_run_id is not null),
        ('state', null, 'completed' <> all (p_filter.states) and p_live is not null),
        ('name', null, p_filter.task_name is not null)
    ) as w(kind, tag, given)
    where w.given
    union all
    select 'tag', u.tag
    from unnest(p_filter.tags) as u(tag)
    union all
    select 'attribute', k.name
    from jsonb_object_keys(p_filter.attributes) as k(name)
  loop
    v_page := teguh._page_template(v_way.kind, v_way.tag, p_filter, p_live, p_after, p_before);
    if v_best is null
      or cardinality(v_page) < cardinality(v_best)
      or v_page[500] < v_best[500]
    then
      v_best := v_page;
    end if;
    exit when cardinality(v_best) < 100;
  end loop;

  return coalesce(
    v_best, teguh._page_template('task', null, p_filter, null, p_after, p_before)
  );
end;
$$;

-- Up to 500 ids from p_after up to p_before, the greatest first, of one kind: tasks of a
-- matter, of a name, and so on.  p_tag: of which tag, or by which of the attributes.
create or replace function teguh._page_template(
  p_kind   text,
  p_tag    text,
  p_filter teguh._filter,
  p_live   uuid[],
  p_after  uuid,
  p_before uuid
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return case p_kind
    when 'task' then array(
      select t.task_id
      from teguh.t_template as t
      where t.task_id >= p_after and t.task_id < p_before
      order by t.task_id desc
      limit 500
    )
    when 'name' then array(
      select t.task_id
      from teguh.t_template as t
      where t.task_name collate "C" = p_filter.task_name
        and t.task_id >= p_after and t.task_id < p_before
      order by t.task_name collate "C" desc, t.task_id desc
      limit 500
    )
    when 'matter' then array(
      select t.task_id
      from teguh.t_template as t
      where t.correlation_id collate "C" = p_filter.correlation_id
        and t.task_id >= p_after and t.task_id < p_before
      order by t.correlation_id collate "C" desc, t.task_id desc
      limit 500
    )
    when 'parent' then array(
      select t.task_id
      from teguh.t_template as t
      where t.parent_task_id = p_filter.parent_task_id
        and t.task_id >= p_after and t.task_id < p_before
      order by t.parent_task_id desc, t.task_id desc
      limit 500
    )
    when 'flow' then array(
      select t.task_id
      from teguh.t_template as t
      where t.workflow_run_id = p_filter.workflow_run_id
        and t.task_id >= p_after and t.task_id < p_before
      order by t.workflow_run_id desc, t.task_id desc
      limit 500
    )
    when 'tag' then array(
      select g.task_id
      from teguh.g_template as g
      where g.tag collate "C" = p_tag
        and g.task_id >= p_after and g.task_id < p_before
      order by g.tag collate "C" desc, g.task_id desc
      limit 500
    )
    when 'attribute' then array(
      select v.task_id
      from teguh.v_template as v
      where v.name collate "C" = p_tag
        and v.word collate "C" = teguh._word(p_filter.attributes -> p_tag)
        and v.task_id >= p_after and v.task_id < p_before
      order by v.name collate "C" desc, v.word collate "C" desc, v.task_id desc
      limit 500
    )
    else teguh._ended_template(p_filter.states, p_live, p_after, p_before)
  end;
end;
$$;

-- The same for states other than completed: of the tasks that are alive, and those that ended
-- without success.
create or replace function teguh._ended_template(
  p_states text[],
  p_live   uuid[],
  p_after  uuid,
  p_before uuid
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select e.task_id
    from (
      select u.task_id
      from unnest(p_live) as u(task_id)
      where u.task_id >= p_after and u.task_id < p_before
      union
      select d.task_id
      from unnest(p_states) as s(state)
      cross join lateral (
        select d.task_id
        from teguh.d_template as d
        where d.state = s.state
          and d.task_id >= p_after and d.task_id < p_before
        order by d.state desc, d.task_id desc
        limit 500
      ) as d
    ) as e
    order by e.task_id desc
    limit 500
  );
end;
$$;

-- Those among the candidates that the filter means, in the order given, up to p_limit.
create or replace function teguh._fit_template(
  p_filter   teguh._filter,
  p_task_ids uuid[],
  p_limit    integer
)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select t.task_id
    from unnest(p_task_ids) with ordinality as u(task_id, place)
    cross join lateral (
      select t.*
      from teguh.t_template as t
      where t.task_id = u.task_id
      offset 0
    ) as t
    where (p_filter.states is null or t.state = any (p_filter.states))
      and (p_filter.task_name is null or t.task_name = p_filter.task_name)
      and (p_filter.tags is null or t.tags @> p_filter.tags)
      and (p_filter.correlation_id is null or t.correlation_id = p_filter.correlation_id)
      and (p_filter.parent_task_id is null or t.parent_task_id = p_filter.parent_task_id)
      and (p_filter.workflow_run_id is null or t.workflow_run_id = p_filter.workflow_run_id)
      and (p_filter.created_after is null or t.created_at >= p_filter.created_after)
      and (p_filter.created_before is null or t.created_at < p_filter.created_before)
      and (p_filter.claimed_by is null or t.claimed_by = p_filter.claimed_by)
      and (
        p_filter.attributes is null
        or teguh._pinned_template(t.task_id) @> p_filter.attributes
      )
    order by u.place
    limit p_limit
  );
end;
$$;

-- The tasks in these states, of pending, running and sleeping: all that dispatch and lanes know
-- of, and those that only an event can wake.
create or replace function teguh._live_template(p_states text[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hints uuid[] := '{}';
begin
  -- in the order in which a task goes from one to the next, or it might slip through
  if 'sleeping' = any (p_states) then
    v_hints := array(select w.task_id from teguh.w_template as w);
  end if;
  if p_states && '{pending,sleeping}' then
    v_hints := v_hints || teguh._hints_template('sr');
    v_hints := v_hints || array(select l.task_id from teguh.l_template as l);
  end if;
  if 'running' = any (p_states) then
    v_hints := v_hints || teguh._hints_template('l');
  end if;

  return array(
    select h.task_id
    from (select distinct u.task_id from unnest(v_hints) as u(task_id)) as h
    cross join lateral (
      select t.state
      from teguh.t_template as t
      where t.task_id = h.task_id
      offset 0
    ) as t
    where t.state = any (p_states)
    order by h.task_id desc
  );
end;
$$;

-- The tasks of the rows of both segments that their positions have not passed.
create or replace function teguh._hints_template(p_kinds text)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring  bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_hints uuid[] := '{}';
begin
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    v_hints := v_hints || case
      when v_gen % 2 = 0 then teguh._hints0_template(p_kinds)
      else teguh._hints1_template(p_kinds)
    end;
  end loop;

  return v_hints;
end;
$$;

-- The tasks of the rows of a segment that its positions have not passed.  p_kinds: s and l for
-- timers of sleepers and leases, r for what is ready.
create or replace function teguh._hints0_template(p_kinds text)
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hints uuid[] := '{}';
  v_ready teguh.k0_template := teguh._last0_template('r');
begin
  if strpos(p_kinds, 's') > 0 then
    v_hints := array(select p.task_id from teguh._left0_template('s', null) as p);
  end if;

  if strpos(p_kinds, 'r') > 0 then
    v_hints := v_hints || array(
      select p.task_id
      from teguh.p0_template as p
      where p.kind = 'r'
        and (p.xid, p.seq) >= (coalesce(v_ready.xid, '0'), v_ready.seq)
      union all
      select p.task_id
      from unnest(v_ready.gaps) as g
      join teguh.p0_template as p on p.xid = g.xid
      where p.kind = 'r'
        and p.seq between g.low_seq and g.high_seq
    );
  end if;

  if strpos(p_kinds, 'l') > 0 then
    v_hints := v_hints || array(
      select u.task_id
      from teguh._left0_template('l', null) as p
      cross join lateral unnest(p.task_id || p.more_ids) as u(task_id)
    );
  end if;

  return v_hints;
end;
$$;

-- A page of tasks, as rows.
create or replace function teguh._rows_template(
  p_filter teguh._filter,
  p_before uuid,
  p_limit  integer
)
  returns table(
    task_id          uuid,
    task_name        text,
    state            text,
    attempts         integer,
    failures         integer,
    created_at       timestamptz,
    available_at     timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    claimed_by       text,
    lease_expires_at timestamptz,
    failure_reason   jsonb,
    tags             text[],
    correlation_id   text,
    parent_task_id   uuid,
    workflow_run_id  uuid,
    cursor           text,
    attributes       jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task_ids uuid[] := teguh._find_template(p_filter, p_before, p_limit);
begin
  return query
  select
    t.task_id, t.task_name, t.state, t.attempt, t.failures, t.created_at, t.available_at,
    t.started_at, t.finished_at, t.claimed_by, t.lease_expires_at, t.failure_reason, t.tags,
    t.correlation_id, t.parent_task_id, t.workflow_run_id, t.task_id::text,
    teguh._pinned_template(t.task_id)
  from unnest(v_task_ids) with ordinality as u(task_id, place)
  cross join lateral (
    select t.*
    from teguh.t_template as t
    where t.task_id = u.task_id
    offset 0
  ) as t
  order by u.place;
end;
$$;

-- List tasks.
create or replace function teguh.list_tasks(
  p_queue_name text,
  p_filter     jsonb default '{}',
  p_cursor     text default null,
  p_limit      integer default 50
)
  returns table(
    task_id          uuid,
    task_name        text,
    state            text,
    attempts         integer,
    failures         integer,
    created_at       timestamptz,
    available_at     timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    claimed_by       text,
    lease_expires_at timestamptz,
    failure_reason   jsonb,
    tags             text[],
    correlation_id   text,
    parent_task_id   uuid,
    workflow_run_id  uuid,
    cursor           text,
    attributes       jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('rows', p_queue_name, 3)
  using
    teguh._read_filter(p_filter), teguh._read_cursor(p_cursor), teguh._check_limit(p_limit);
end;
$$;

comment on function teguh.list_tasks(text, jsonb, text, integer) is
  'Tasks of a queue, the newest first, a page at a time: pass the cursor of a page''s last row for '
  'the next one. The filter may have state (one, or an array), task_name, tag, tags (an '
  'array: all of them), correlation_id, parent_task_id, workflow_run_id, attributes (an '
  'object: all of them, with these values), created_after (at or after), created_before, '
  'older_than_seconds; all that is given must hold. started_at is when it was last handed to a '
  'worker; attributes are what set_attributes() has published. Raises TG001 for an unknown queue, '
  'TG005 for an unknown key, a bad value, a bad cursor, or a limit that is not from 1 to 10000.';

-- All about a task.
create or replace function teguh._peek_template(p_task_id uuid)
  returns table(
    task_id           uuid,
    state             text,
    attempts          integer,
    completed_payload jsonb,
    cancelled_at      timestamptz,
    failure_reason    jsonb,
    failures          integer,
    task_name         text,
    created_at        timestamptz,
    available_at      timestamptz,
    first_started_at  timestamptz,
    finished_at       timestamptz,
    tags              text[],
    correlation_id    text,
    parent_task_id    uuid,
    workflow_run_id   uuid,
    run_id            uuid,
    params            jsonb,
    headers           jsonb,
    started_at        timestamptz,
    claimed_by        text,
    lease_expires_at  timestamptz,
    wake_event        text,
    event_payload     jsonb,
    max_attempts      integer,
    retry_strategy    jsonb,
    timeout_seconds   double precision,
    cancellation      jsonb,
    deadline_at       timestamptz,
    expires_at        timestamptz,
    on_expired        jsonb,
    idempotency_key   text,
    priority          smallint,
    flow_key          text,
    attributes        jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
begin
  return query
  select
    r.*, v_task.run_id, v_task.params, v_task.headers, v_task.started_at, v_task.claimed_by,
    v_task.lease_expires_at, v_task.wake_event, v_task.event_payload, v_task.max_attempts,
    v_task.retry_strategy, v_task.timeout_seconds, v_task.cancellation, v_task.deadline_at,
    v_task.expires_at, v_task.on_expired, v_task.idempotency_key,
    coalesce(v_task.priority, 0::smallint), v_task.flow_key,
    teguh._pinned_template(p_task_id)
  from teguh._show_template(p_task_id) as r;
end;
$$;

-- Look at a task.
create or replace function teguh.get_task(p_queue_name text, p_task_id uuid)
  returns table(
    task_id           uuid,
    state             text,
    attempts          integer,
    completed_payload jsonb,
    cancelled_at      timestamptz,
    failure_reason    jsonb,
    failures          integer,
    task_name         text,
    created_at        timestamptz,
    available_at      timestamptz,
    first_started_at  timestamptz,
    finished_at       timestamptz,
    tags              text[],
    correlation_id    text,
    parent_task_id    uuid,
    workflow_run_id   uuid,
    run_id            uuid,
    params            jsonb,
    headers           jsonb,
    started_at        timestamptz,
    claimed_by        text,
    lease_expires_at  timestamptz,
    wake_event        text,
    event_payload     jsonb,
    max_attempts      integer,
    retry_strategy    jsonb,
    timeout_seconds   double precision,
    cancellation      jsonb,
    deadline_at       timestamptz,
    expires_at        timestamptz,
    on_expired        jsonb,
    idempotency_key   text,
    priority          smallint,
    flow_key          text,
    attributes        jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('peek', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.get_task(text, uuid) is
  'All about a task: what get_task_result() tells, and what it was asked for. run_id is the '
  'current run; started_at is when the task was last handed to a worker, claimed_by to whom; '
  'wake_event is the event that is awaited, or that woke it; deadline_at is when it ends of '
  'itself, by its own policy or because it expires; flow_key is the option "key"; attributes are '
  'what set_attributes() has published. Raises TG001 for an unknown queue, TG003 for '
  'an unknown task.';

-- The runs of a task: those that were followed by another, and the current one.
create or replace function teguh._runs_template(p_task_id uuid)
  returns table(
    run_id           uuid,
    number           integer,
    state            text,
    attempt          integer,
    claimed_by       text,
    started_at       timestamptz,
    lease_expires_at timestamptz,
    finished_at      timestamptz,
    failure_reason   jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
  v_last teguh.r_template;
begin
  return query
  select
    r.run_id, teguh._run_number(r.run_id), r.state, r.attempt, r.claimed_by,
    case when r.attempt > r.attempt_before then r.started_at end,
    r.lease_expires_at, r.finished_at, r.failure_reason
  from (
    select r.*, lag(r.attempt, 1, 0) over (order by r.run_id) as attempt_before
    from teguh.r_template as r
    where r.task_id = p_task_id
  ) as r
  order by r.run_id;

  -- until the current run starts, the task's row says what was true of the last one
  select r.* into v_last
  from teguh.r_template as r
  where r.task_id = p_task_id
  order by r.run_id desc
  limit 1;
  return query
  select
    v_task.run_id, teguh._run_number(v_task.run_id), v_task.state, v_task.attempt,
    v_task.claimed_by,
    case when v_task.attempt > coalesce(v_last.attempt, 0) then v_task.started_at end,
    v_task.lease_expires_at, v_task.finished_at, teguh._blame_template(v_task);
end;
$$;

-- List the runs of a task.
create or replace function teguh.list_runs(p_queue_name text, p_task_id uuid)
  returns table(
    run_id           uuid,
    number           integer,
    state            text,
    attempt          integer,
    claimed_by       text,
    started_at       timestamptz,
    lease_expires_at timestamptz,
    finished_at      timestamptz,
    failure_reason   jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('runs', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.list_runs(text, uuid) is
  'The runs of a task, the oldest first; the last one is the current run, in the task''s own '
  'state. A run that was followed by another is failed, cancelled, expired or released '
  '(requeue_task). started_at is when it was last handed to a worker, null if never. Raises '
  'TG001 for an unknown queue, TG003 for an unknown task.';

-- What happened to a task, put together from its row, its runs, and the actions on it.
--
-- Of its sleeps only the present one is known, and not when it began: it is shown at the
-- time of the last thing before it.
create or replace function teguh._past_template(p_task_id uuid)
  returns table(at timestamptz, event text, run_id uuid, attempt integer, detail jsonb)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
begin
  return query
  with runs as materialized (
    select
      r.*,
      lead(r.run_id) over by_number as next_id,
      lag(r.failure_reason ->> 'name') over by_number as lost
    from teguh._runs_template(p_task_id) as r
    window by_number as (order by r.number)
  ),

  actions as materialized (
    select
      a.run_id, a.deed, a.acted_at,
      jsonb_strip_nulls(
        jsonb_build_object('action', a.deed, 'by_role', a.by_role, 'reason', a.reason)
      ) as detail
    from teguh.a_template as a
    where a.task_id = p_task_id
  ),

  events as (
    select
      0 as number, 0 as place, v_task.created_at as happened_at, 'created' as happening,
      null::uuid as run_id, null::integer as attempt, '{}'::jsonb as detail
    union all
    select
      r.number, 1, r.started_at,
      case when r.lost in ('$ClaimTimeout', '$RunTimeout') then 'recovered' else 'started' end,
      r.run_id, r.attempt, jsonb_strip_nulls(jsonb_build_object('claimed_by', r.claimed_by))
    from runs as r
    where r.started_at is not null
    union all
    select
      r.number, 3, r.finished_at, r.state, r.run_id, r.attempt,
      case when r.failure_reason is null then '{}'
        else jsonb_build_object('failure_reason', r.failure_reason)
      end || coalesce(a.detail, '{}')
    from runs as r
    left join actions as a
      on (a.deed, a.run_id) in (('cancel', r.run_id), ('requeue', r.next_id))
    where r.finished_at is not null
    union all
    select
      r.number, 4, coalesce(a.acted_at, r.finished_at),
      case when r.state = 'completed' then 'repeating' else 'retrying' end, r.next_id, r.attempt,
      coalesce(a.detail, '{}')
    from runs as r
    left join actions as a on a.run_id = r.next_id and a.deed <> 'cancel'
    where r.next_id is not null and r.state <> 'released'
    union all
    select
      r.number, 2, teguh._since_template(p_task_id, r.started_at), 'sleeping', r.run_id, r.attempt,
      jsonb_strip_nulls(
        jsonb_build_object('until', v_task.available_at, 'event', v_task.wake_event)
      )
    from runs as r
    where r.next_id is null and r.state = 'sleeping'
  )

  select e.happened_at, e.happening, e.run_id, e.attempt, e.detail
  from events as e
  order by e.number, e.place;
end;
$$;

-- The time of the last thing that is known to have happened to a task before it went to sleep.
create or replace function teguh._since_template(p_task_id uuid, p_started_at timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return greatest(
    p_started_at,
    (select t.created_at from teguh.t_template as t where t.task_id = p_task_id),
    (select max(r.finished_at) from teguh.r_template as r where r.task_id = p_task_id),
    (select max(a.acted_at) from teguh.a_template as a where a.task_id = p_task_id),
    (select max(c.updated_at) from teguh.c_template as c where c.task_id = p_task_id)
  );
end;
$$;

-- Tell what happened to a task.
create or replace function teguh.get_task_history(p_queue_name text, p_task_id uuid)
  returns table(at timestamptz, event text, run_id uuid, attempt integer, detail jsonb)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('past', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.get_task_history(text, uuid) is
  'What happened to a task, in order. Events: created, started (the last time in a run that a '
  'worker was handed it), recovered (the same, after a run whose worker was lost), sleeping '
  '(the present sleep, not those that are over), released, completed, failed, cancelled, '
  'expired, retrying (another run follows), repeating (the same, after success). detail has, '
  'where it applies, claimed_by, failure_reason, until, event, and of what somebody did action, '
  'by_role, reason. Raises TG001 for an unknown queue, TG003 for an unknown task.';

-- The workers that hold a lease.
create or replace function teguh._held_template()
  returns table(
    worker_id         text,
    runs              bigint,
    oldest_start      timestamptz,
    soonest_lease_end timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_task_ids uuid[] := teguh._live_template('{running}');
begin
  return query
  select t.claimed_by, count(*), min(t.started_at), min(t.lease_expires_at)
  from unnest(v_task_ids) as u(task_id)
  cross join lateral (
    select t.*
    from teguh.t_template as t
    where t.task_id = u.task_id
    offset 0
  ) as t
  where t.state = 'running'
    and coalesce(t.lease_expires_at, 'infinity') > v_now
  group by t.claimed_by
  order by t.claimed_by;
end;
$$;

-- List workers.
create or replace function teguh.list_workers(p_queue_name text default null)
  returns table(
    worker_id         text,
    queue_name        text,
    runs              bigint,
    oldest_start      timestamptz,
    soonest_lease_end timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('held', q.queue_name))
  loop
    continue when p_queue_name is null and not teguh._share_queue(queue_name);
    for worker_id, runs, oldest_start, soonest_lease_end in
      execute teguh._call('held', queue_name, 0)
    loop
      return next;
    end loop;
  end loop;
end;
$$;

comment on function teguh.list_workers(text) is
  'The workers that hold runs of a queue (null: of each queue the caller may look at) under a '
  'lease that has not expired: how many, since when the oldest, and when the next lease ends, '
  'null if none ever does. A worker that has nothing to do is not known here. Raises TG001 '
  'for an unknown queue.';

-- Read the cursor of a page of actions: the number before which it begins.
create or replace function teguh._read_place(p_cursor text)
  returns bigint
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(p_cursor::bigint, 9223372036854775807);
exception
  when invalid_text_representation or numeric_value_out_of_range then
    raise exception 'not a cursor'
      using
        errcode = 'TG005',
        detail = format('Found: "%s".', left(p_cursor, 200)),
        hint = 'Pass the cursor of the last row of the page before, or null for the first page.';
end;
$$;

-- A page of actions.
create or replace function teguh._acts_template(p_before bigint, p_limit integer)
  returns table(
    at      timestamptz,
    action  text,
    by_role text,
    reason  text,
    task_id uuid,
    run_id  uuid,
    detail  jsonb,
    cursor  text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select a.acted_at, a.deed, a.by_role, a.reason, a.task_id, a.run_id, a.detail, a.n::text
  from teguh.a_template as a
  where a.n < p_before
  order by a.n desc
  limit p_limit;
end;
$$;

-- List actions.
create or replace function teguh.list_actions(
  p_queue_name text,
  p_cursor     text default null,
  p_limit      integer default 50
)
  returns table(
    at      timestamptz,
    action  text,
    by_role text,
    reason  text,
    task_id uuid,
    run_id  uuid,
    detail  jsonb,
    cursor  text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('acts', p_queue_name, 2)
  using teguh._read_place(p_cursor), teguh._check_limit(p_limit);
end;
$$;

comment on function teguh.list_actions(text, text, integer) is
  'What was done to a queue and its tasks from outside, the latest first, a page at a time: '
  'cancel, retry, replay, requeue, purge, pause, resume; by which role, and why if a reason was '
  'given. run_id is the run that was cancelled, or that the action began. Rows go with their '
  'task; those about no task when cleanup removes tasks of that age. Raises TG001 for an '
  'unknown queue, TG005 for a bad cursor or limit.';

-- sql/src/48_operate.sql
-- Cancel tasks, locked in the order of their ids.  What is over by then is passed over.
create or replace function teguh._abort_template(
  p_filter teguh._filter,
  p_limit  integer,
  p_reason text
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_task_ids uuid[] := teguh._find_template(
    p_filter, 'ffffffff-ffff-ffff-ffff-ffffffffffff', p_limit
  );
  v_task_id  uuid;
  v_count    integer := 0;
begin
  for v_task_id in
    select t.task_id
    from teguh.t_template as t
    where t.task_id = any (v_task_ids)
      and t.state in ('pending', 'running', 'sleeping')
    order by t.task_id
    for no key update
  loop
    perform teguh._act_template(
      'cancel', p_reason, v_task_id, teguh._stop_template(v_task_id, v_now), null
    );
    v_count := v_count + 1;
  end loop;

  return v_count;
end;
$$;

-- Cancel the tasks that a filter means.
create or replace function teguh.cancel_tasks(
  p_queue_name text,
  p_filter     jsonb,
  p_options    jsonb default '{}'
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_filter  teguh._filter := teguh._read_filter(p_filter);
  v_count   integer;
begin
  perform teguh._check_keys('cancel options', v_options, array['all', 'limit', 'reason']);
  perform teguh._check_meant(p_filter, v_options);

  v_filter.states := array(
    select s.state
    from unnest('{pending,running,sleeping}'::text[]) as s(state)
    where v_filter.states is null or s.state = any (v_filter.states)
  );
  execute teguh._call('abort', p_queue_name, 3) into v_count
  using
    v_filter, teguh._limit_option(v_options), teguh._text_option(v_options, 'reason');
  return v_count;
end;
$$;

comment on function teguh.cancel_tasks(text, jsonb, jsonb) is
  'Cancels tasks that are not over, and returns how many. The filter is that of list_tasks(). '
  'Options: limit (the newest so many, default 1000: call again until 0 comes back), reason, all '
  '(true: an empty filter is meant, and means every task). Raises TG001 for an unknown queue, '
  'TG005 for an unknown key, a bad value, or an empty filter without all.';

-- Refuse a filter that means every task, unless the options say so.
create or replace function teguh._check_meant(p_filter jsonb, p_options jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from jsonb_each(p_filter) as e where e.value not in ('null', '[]', '{}')
  )
    and not teguh._flag_option(p_options, 'all')
  then
    raise exception 'the filter is empty'
      using
        errcode = 'TG005',
        detail = 'It means every task of the queue.',
        hint = 'If that is what you want, say so: p_options => ''{"all": true}''.';
  end if;
end;
$$;

-- Read how many tasks a call may touch.
create or replace function teguh._limit_option(p_options jsonb)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return teguh._check_limit(coalesce(teguh._integer_option(p_options, 'limit', 1), 1000));
end;
$$;

-- Take a task away from its worker and queue it.  The next run has another id, so that the
-- worker, should it be alive after all, meets AB002.
create or replace function teguh._retake_template(p_task_id uuid, p_reason text)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now    timestamptz := teguh.current_time();
  v_number integer;
  v_task   teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = p_task_id
  for no key update;
  if not found then
    perform teguh._fetch_template(p_task_id);
  elsif v_task.state <> 'running' then
    raise exception 'task "%" is %', p_task_id, v_task.state
      using
        errcode = 'TG004',
        detail = 'No worker holds it.',
        hint = 'retry_task() runs a task that is over once more.';
  end if;

  v_number := teguh._run_number(v_task.run_id) + 1;
  perform teguh._file_template(v_task, 'released', null, v_now);
  perform teguh._again_template(
    v_task, v_number, v_task.failures, v_task.failure_reason, v_now, v_now
  );
  perform teguh._act_template(
    'requeue', p_reason, p_task_id, teguh._run_id(p_task_id, v_number), null
  );
  return teguh._run_id(p_task_id, v_number);
end;
$$;

-- Take a task away from a worker that is known to be dead.
create or replace function teguh.requeue_task(
  p_queue_name text,
  p_task_id    uuid,
  p_reason     text default null
)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_id uuid;
begin
  execute teguh._call('retake', p_queue_name, 2) into v_run_id using p_task_id, p_reason;
  return v_run_id;
end;
$$;

comment on function teguh.requeue_task(text, uuid, text) is
  'Takes a running task away from its worker, for instance one that is known to be dead, before '
  'the lease ends, and queues it at once with its checkpoints. No failure is counted. Returns '
  'the id of the next run; the worker meets AB002 if it is alive after all. Raises TG001 for an '
  'unknown queue, TG003 for an unknown task, TG004 unless it is running.';

-- Take the tasks that a filter means away from their workers, locked in the order of their ids.
create or replace function teguh._regain_template(
  p_filter teguh._filter,
  p_limit  integer,
  p_reason text
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_ids uuid[] := teguh._find_template(
    p_filter, 'ffffffff-ffff-ffff-ffff-ffffffffffff', p_limit
  );
  v_task_id  uuid;
  v_count    integer := 0;
begin
  for v_task_id in
    select t.task_id
    from teguh.t_template as t
    where t.task_id = any (v_task_ids)
      and t.state = 'running'
      and t.claimed_by = coalesce(p_filter.claimed_by, t.claimed_by)
    order by t.task_id
    for no key update
  loop
    perform teguh._retake_template(v_task_id, p_reason);
    v_count := v_count + 1;
  end loop;

  return v_count;
end;
$$;

-- Take the tasks that a filter means away from their workers.
create or replace function teguh.requeue_tasks(
  p_queue_name text,
  p_filter     jsonb,
  p_options    jsonb default '{}'
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_filter  teguh._filter := teguh._read_filter(p_filter);
  v_count   integer;
begin
  perform teguh._check_keys(
    'requeue options', v_options, array['all', 'limit', 'reason', 'worker_id']
  );
  v_filter.claimed_by := teguh._text_option(v_options, 'worker_id');
  if v_filter.claimed_by is null then
    perform teguh._check_meant(p_filter, v_options);
  end if;

  v_filter.states := array['running'];
  execute teguh._call('regain', p_queue_name, 3) into v_count
  using
    v_filter, teguh._limit_option(v_options), teguh._text_option(v_options, 'reason');
  return v_count;
end;
$$;

comment on function teguh.requeue_tasks(text, jsonb, jsonb) is
  'Does requeue_task() for the running tasks that a filter means; returns how many. The filter is '
  'that of list_tasks(), whatever it says of states. Options: worker_id (only what that worker '
  'holds), limit (the newest so many, default 1000: call again until 0 comes back), reason, all '
  '(true: an empty filter without worker_id is meant, and means every running task). Raises TG001 '
  'for an unknown queue, TG005 for an unknown key, a bad value, or an empty filter without all.';

-- Dead letters are the tasks that failed.
create or replace function teguh.list_dead_letters(
  p_queue_name text,
  p_filter     jsonb default '{}',
  p_cursor     text default null,
  p_limit      integer default 50
)
  returns table(
    task_id          uuid,
    task_name        text,
    state            text,
    attempts         integer,
    failures         integer,
    created_at       timestamptz,
    available_at     timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    claimed_by       text,
    lease_expires_at timestamptz,
    failure_reason   jsonb,
    tags             text[],
    correlation_id   text,
    parent_task_id   uuid,
    workflow_run_id  uuid,
    cursor           text,
    attributes       jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('rows', p_queue_name, 3)
  using
    teguh._read_filter(p_filter, '{failed}'), teguh._read_cursor(p_cursor),
    teguh._check_limit(p_limit);
end;
$$;

comment on function teguh.list_dead_letters(text, jsonb, text, integer) is
  'The tasks of a queue that failed: list_tasks() with state failed, which the filter does not '
  'name again. Raises TG001 for an unknown queue, TG005 for an unknown key, a bad value, a bad '
  'cursor or limit.';

-- Run failed tasks once more, so many per second, locked in the order of their ids.
create or replace function teguh._replay_template(
  p_filter       teguh._filter,
  p_limit        integer,
  p_per_second   double precision,
  p_max_attempts integer,
  p_options      jsonb
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_task_ids uuid[] := teguh._find_template(
    p_filter, 'ffffffff-ffff-ffff-ffff-ffffffffffff', p_limit
  );
  v_task     teguh.t_template;
  v_count    integer := 0;
begin
  for v_task in
    select t.*
    from teguh.t_template as t
    where t.task_id = any (v_task_ids)
      and t.state = 'failed'
    order by t.task_id
    for no key update
  loop
    perform teguh._forget_template(v_task.task_id, p_options ->> 'from_step');
    perform teguh._redo_template(
      v_task, 'replay', greatest(p_max_attempts, v_task.failures + 1), p_options ->> 'reason',
      teguh._after(v_now, coalesce(v_count / p_per_second, 0))
    );
    v_count := v_count + 1;
  end loop;

  return v_count;
end;
$$;

-- Run failed tasks once more.
create or replace function teguh.replay_dead_letters(
  p_queue_name text,
  p_filter     jsonb default '{}',
  p_options    jsonb default '{}'
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_count   integer;
begin
  perform teguh._check_keys(
    'replay options', v_options,
    array['limit', 'per_second', 'max_attempts', 'from_step', 'reason']
  );
  perform teguh._text_option(v_options, 'from_step');
  perform teguh._text_option(v_options, 'reason');
  execute teguh._call('replay', p_queue_name, 5) into v_count
  using
    teguh._read_filter(p_filter, '{failed}'),
    teguh._limit_option(v_options),
    teguh._number_option(v_options, 'per_second', 1e-6, 1e6),
    teguh._integer_option(v_options, 'max_attempts', 1),
    v_options;
  return v_count;
end;
$$;

comment on function teguh.replay_dead_letters(text, jsonb, jsonb) is
  'Runs failed tasks once more, from their checkpoints on, and returns how many. The filter is '
  'that of list_dead_letters(). Options: limit (the newest so many, default 1000: call again '
  'until 0 comes back), per_second (they start one after another at this rate, not all at once), '
  'max_attempts (at least room for one more run), from_step (delete the checkpoint of that step '
  'and all written after it; a task without it goes on where it failed), reason. Raises TG001 for '
  'an unknown queue, TG005 for an unknown key or a bad value.';

-- Remove tasks that failed more than p_ttl seconds ago, up to p_limit.
create or replace function teguh._bury_template(
  p_ttl    double precision,
  p_limit  integer,
  p_reason text
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_before   timestamptz := teguh._after(teguh.current_time(), -p_ttl);
  v_upto     uuid := teguh._first_uuid(v_before + interval '1 millisecond');
  v_task_ids uuid[];
begin
  v_task_ids := array(
    select t.task_id
    from (
      select d.task_id
      from teguh.d_template as d
      where d.state = 'failed'
        and d.task_id < v_upto
        and d.ended_at <= v_before
      order by d.state, d.task_id
    ) as d
    join teguh.t_template as t on t.task_id = d.task_id
    where t.state = 'failed'
      and t.finished_at <= v_before
    limit p_limit
    for update of t skip locked
  );

  if v_task_ids <> '{}' then
    perform teguh._act_template(
      'purge', p_reason, null, null, jsonb_build_object('tasks', cardinality(v_task_ids))
    );
  end if;
  return teguh._erase_template(v_task_ids);
end;
$$;

-- Remove tasks that failed.
create or replace function teguh.purge_dead_letters(
  p_queue_name  text,
  p_ttl_seconds double precision default null,
  p_limit       integer default 1000,
  p_reason      text default null
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := teguh._policy(p_queue_name);
  v_ttl    double precision := coalesce(
    p_ttl_seconds, (v_policy ->> 'cleanup_ttl')::double precision, 2592000
  );
  v_count  integer;
begin
  perform teguh._check_seconds('ttl', v_ttl, true);
  execute teguh._call('bury', p_queue_name, 3) into v_count
  using v_ttl, teguh._check_limit(p_limit), p_reason;
  return v_count;
end;
$$;

comment on function teguh.purge_dead_letters(text, double precision, integer, text) is
  'Removes tasks that failed more than p_ttl_seconds ago (null: what the queue''s policy says of '
  'cleanup, else 30 days), up to p_limit, and returns how many. Raises TG001 for an unknown '
  'queue, TG005 for a bad argument.';

-- sql/src/49_stats.sql
-- When the first task that is ready became so; null if none is.
create or replace function teguh._oldest_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ring bigint := pg_sequence_last_value('teguh.ring_template'::regclass);
  v_one  timestamptz;
  v_all  timestamptz;
begin
  for v_gen in v_ring / 2 .. (v_ring + 1) / 2 loop
    v_one := case
      when v_gen % 2 = 0 then teguh._elder0_template()
      else teguh._elder1_template()
    end;
    v_all := least(v_all, v_one);
  end loop;

  return least(v_all, (
    select min(t.available_at)
    from unnest(teguh._named_template()) as n(task_name)
    cross join lateral (
      select t.available_at
      from (
        select l.*
        from teguh.l_template as l
        where l.gate = 'o'
          and l.task_name collate "C" = n.task_name
        order by l.ranking, l.seq
      ) as l
      cross join lateral (
        select t.* from teguh.t_template as t where t.task_id = l.task_id offset 0
      ) as t
      where t.turn = l.turn
        and t.state in ('pending', 'sleeping')
        and t.laned
      limit 1
    ) as t
  ));
end;
$$;

-- The same of one segment.
create or replace function teguh._elder0_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from teguh.k0_template;
begin
  select k.* into v_from
  from teguh.k0_template as k
  where k.kind = 'r'
  order by k.kind desc, k.n desc
  limit 1;

  return (
    select min(t.available_at)
    from (
      select g.xid, g.low_seq as seq
      from unnest(teguh._trim0_template(v_from.gaps, '{}')) as g
      union all
      select r.xid, r.seq
      from teguh._next0_template(coalesce(v_from.xid, '0'), coalesce(v_from.seq, 0)) as r
    ) as f
    join teguh.p0_template as p on (p.xid, p.seq) = (f.xid, f.seq) and p.kind = 'r'
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = p.task_id offset 0
    ) as t
  );
end;
$$;

-- When the run that has been held longest was claimed; null if none is held.
--
-- Leases that began first end first, unless they were extended: so the first thousand timers that
-- still mean something are looked at.
create or replace function teguh._tenure_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select min(t.started_at)
    from (
      (select p.* from teguh._left0_template('l', 1000) as p)
      union all
      (select p.* from teguh._left1_template('l', 1000) as p)
    ) as p
    cross join lateral unnest(p.task_id || p.more_ids, p.turn || p.more_turns) as u(task_id, turn)
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
    where t.state = 'running'
      and u.turn in (0, t.turn)
  );
end;
$$;

-- Whether workers ask for a task name: lately one has, or none of them says what it asks for.
create or replace function teguh._is_wanted(
  p_queue_name text,
  p_task_name  text,
  p_now        timestamptz
)
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(bool_or(w.task_name = p_task_name), true)
  from teguh.wanted as w
  where w.queue_name = p_queue_name
    and w.seen_at > p_now - interval '5 minutes';
$$;

-- How many tasks stand where, and how old the oldest are.
create or replace function teguh._stat_template()
  returns table(
    pending            bigint,
    delayed            bigint,
    running            bigint,
    sleeping           bigint,
    waiting            bigint,
    completed          bigint,
    failed             bigint,
    cancelled          bigint,
    expired            bigint,
    oldest_pending_age double precision,
    oldest_lease_age   double precision,
    unclaimable        bigint
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := teguh.current_time();
  v_oldest  timestamptz := teguh._oldest_template();
  v_longest timestamptz := teguh._tenure_template();
begin
  return query
  select
    coalesce(sum(s.qty) filter (where s.letter = 'p'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'd'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'r'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 's'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'w'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'c'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'f'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'x'), 0)::bigint,
    coalesce(sum(s.qty) filter (where s.letter = 'e'), 0)::bigint,
    case when v_oldest is not null then date_part('epoch', v_now - least(v_oldest, v_now)) end,
    case when v_longest is not null then date_part('epoch', v_now - least(v_longest, v_now)) end,
    coalesce(sum(s.qty) filter (where s.letter = 'p' and not teguh._is_wanted(
      substr('_template', 2), c.task_name, v_now
    )), 0)::bigint
  from teguh._count_template() as c
  cross join lateral (values (c.became, c.qty), (c.was, -c.qty)) as s(letter, qty);
end;
$$;

-- Say how many tasks stand where.
create or replace function teguh.queue_stats(p_queue_name text default null)
  returns table(
    queue_name                 text,
    pending                    bigint,
    delayed                    bigint,
    running                    bigint,
    sleeping                   bigint,
    waiting                    bigint,
    completed                  bigint,
    failed                     bigint,
    cancelled                  bigint,
    expired                    bigint,
    oldest_pending_age_seconds double precision,
    oldest_lease_age_seconds   double precision,
    paused                     boolean,
    unclaimable                bigint
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queue record;
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for v_queue in
    select q.queue_name, coalesce(q.paused_until > teguh.current_time(), false) as paused
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('stat', q.queue_name))
  loop
    continue when p_queue_name is null and not teguh._share_queue(v_queue.queue_name);
    return query execute
      'select $1, s.pending, s.delayed, s.running, s.sleeping, s.waiting, s.completed, s.failed, '
      's.cancelled, s.expired, s.oldest_pending_age, s.oldest_lease_age, $2, s.unclaimable from '
      || teguh._from('stat', v_queue.queue_name) || ' as s'
    using v_queue.queue_name, v_queue.paused;
  end loop;
end;
$$;

comment on function teguh.queue_stats(text) is
  'How many tasks of a queue (null: of each queue the caller may read) stand where, from '
  'counters: it costs the same whatever the queue holds. pending: may be claimed; delayed: not '
  'started yet, for later; sleeping: between two turns; waiting: for an event. A task that has '
  'come due counts where it was until it is claimed. oldest_pending_age_seconds: for how long '
  'the first task in line has been ready, null if none is; oldest_lease_age_seconds: for how '
  'long the first of the runs that are held has been, null if none is; unclaimable: pending, but '
  'of a name that no worker has asked for in five minutes, where workers say which names they '
  'know (claim_any). Raises TG001 for an unknown queue.';

-- A queue's own function without arguments, as text to select from.
create or replace function teguh._from(p_verb text, p_queue_name text)
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._policy(p_queue_name);
  return format('teguh.%I()', '_' || p_verb || '_' || p_queue_name);
end;
$$;

-- How many schedules of the queue are overdue, which are those that should have fired more than
-- five minutes ago; how late the latest is, what it is called, and why the last try failed.
create or replace function teguh._tardy_template()
  returns table(
    overdue       bigint,
    lag_seconds   double precision,
    schedule_name text,
    last_error    text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now  timestamptz := teguh.current_time();
  v_from timestamptz := teguh._agenda_template();
begin
  -- one that could not fire is looked at again ten seconds later
  return query
  select
    count(*) filter (where s.planned_at < v_now - interval '5 minutes'),
    coalesce(date_part('epoch', v_now - min(s.planned_at)), 0),
    (array_agg(s.schedule_name order by s.planned_at, s.schedule_name))[1],
    (array_agg(s.last_error order by s.planned_at, s.schedule_name))[1]
  from teguh.schedules as s
  where s.queue_name = substr('_template', 2)
    and s.next_at >= v_from
    and s.next_at <= v_now + interval '10 seconds'
    and s.planned_at <= v_now;
end;
$$;

-- The names of what tallies count, by where a task stood and stands.
create or replace view teguh._counters as
select
  c.name,
  string_to_array(c.was, null) as was,
  string_to_array(c.became, null) as became,
  c.ended
from (
  -- noqa: disable=LT01,LT02
  values
    ('created',   '-',     'pdrswcfxe', null),
    ('started',   'pdsw',  'r',         null),
    ('completed', '-r',    'c',         null),
    ('failed',    '-rsw',  'f',         null),
    ('retried',   'r',     'ps',        true),
    ('cancelled', '-pdrsw', 'x',        null),
    ('expired',   '-pdrsw', 'e',        null)
  -- noqa: enable=LT01,LT02
) as c(name, was, became, ended);

comment on view teguh._counters is
  'The totals of metrics(), and which tallies each of them adds up. ended: only those of runs '
  'that ended.';

-- The metrics of one queue.
create or replace function teguh._gauge_template()
  returns table(name text, labels jsonb, value double precision)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue jsonb := jsonb_build_object('queue', substr('_template', 2));
begin
  return query
  select 'teguh_tasks', v_queue || jsonb_build_object('state', s.key), s.value::double precision
  from teguh._stat_template() as r
  cross join lateral jsonb_each_text(to_jsonb(r)) as s
  where s.key !~ '^oldest_|^unclaimable$'
  union all
  select 'teguh_tasks_' || s.key, v_queue, s.value::double precision
  from teguh._stat_template() as r
  cross join lateral jsonb_each_text(to_jsonb(r)) as s
  where s.key = 'unclaimable'
  union all
  select 'teguh_' || s.key || '_seconds', v_queue, s.value::double precision
  from teguh._stat_template() as r
  cross join lateral jsonb_each_text(to_jsonb(r)) as s
  where s.key ~ '^oldest_'
    and s.value is not null
  union all
  select n.name, v_queue, n.value
  from teguh._tardy_template() as r
  cross join lateral (
    values
      ('teguh_schedules_overdue', r.overdue::double precision),
      ('teguh_schedule_lag_seconds', r.lag_seconds)
  ) as n(name, value);

  return query
  with tallies as materialized (
    select c.* from teguh._count_template() as c
  )

  select
    'teguh_tasks_' || k.name || '_total',
    v_queue || jsonb_build_object('task', c.task_name),
    sum(c.qty)::double precision
  from tallies as c
  join teguh._counters as k
    on c.was::text = any (k.was) and c.became::text = any (k.became)
    and (k.ended is null or c.most > 0)
  group by k.name, c.task_name
  union all
  select * from teguh._spans_template();
end;
$$;

-- How long runs took, as a cumulative histogram.
create or replace function teguh._spans_template()
  returns table(name text, labels jsonb, value double precision)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_bounds double precision[] := (
    select q.buckets || double precision 'infinity'
    from teguh.queues as q
    where q.queue_name = substr('_template', 2)
  );
begin
  return query
  with ended as materialized (
    select c.task_name, c.most, sum(c.qty) as qty, sum(c.seconds) as seconds
    from teguh._count_template() as c
    where c.most > 0
    group by c.task_name, c.most
  ),

  tasks as (
    select
      e.task_name,
      jsonb_build_object('queue', substr('_template', 2), 'task', e.task_name) as labels,
      sum(e.qty) as qty,
      sum(e.seconds) as seconds
    from ended as e
    group by e.task_name
  )

  select
    'teguh_run_duration_seconds_bucket',
    t.labels || jsonb_build_object(
      'le', case b.bound when 'infinity' then '+Inf' else b.bound::text end
    ),
    (
      select coalesce(sum(e.qty), 0)::double precision
      from ended as e
      where e.task_name = t.task_name and e.most <= b.bound
    )
  from tasks as t
  cross join unnest(v_bounds) as b(bound)
  union all
  select 'teguh_run_duration_seconds_sum', t.labels, t.seconds
  from tasks as t
  union all
  select 'teguh_run_duration_seconds_count', t.labels, t.qty::double precision
  from tasks as t;
end;
$$;

-- Say all there is to measure.
create or replace function teguh.metrics()
  returns table(name text, labels jsonb, value double precision)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queue_name text;
begin
  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('gauge', q.queue_name)
  loop
    continue when not teguh._share_queue(v_queue_name);
    return query execute 'select * from ' || teguh._from('gauge', v_queue_name);
  end loop;

  return query
  select 'teguh_ticker_lag_seconds', '{}'::jsonb, s.lag_seconds
  from teguh.status() as s
  where s.lag_seconds is not null
  union all
  select 'teguh_oldest_xmin_age', '{}'::jsonb, teguh._xmin_age()::double precision;
end;
$$;

comment on function teguh.metrics() is
  'What there is to measure, of the queues the caller may read. teguh_tasks by queue and state; '
  'teguh_tasks_created_, started_, completed_, failed_, retried_, cancelled_, expired_total and '
  'the histogram teguh_run_duration_seconds by queue and task; ages in seconds; '
  'teguh_schedules_overdue (that should have fired more than 5 minutes ago) and '
  'teguh_schedule_lag_seconds (how late the latest is) by queue; the lag of the ticker; how many '
  'transactions old the oldest snapshot is that keeps dead rows from being removed, as far as the '
  'owner of teguh may see. Whether a label le is a bound, the policy of the queue says '
  '(duration_buckets).';

-- How many transactions old the oldest snapshot or replication slot is that can be seen.
create or replace function teguh._xmin_age()
  returns integer
  language sql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(max(x.age), 0)
  from (
    select age(a.backend_xmin) as age
    from pg_stat_activity as a
    where a.backend_xmin is not null
    union all
    select greatest(age(s.xmin), age(s.catalog_xmin))
    from pg_replication_slots as s
  ) as x;
$$;

-- Say the same in the text format of Prometheus.
create or replace function teguh.prometheus()
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    with metrics as materialized (
      select
        m.*,
        regexp_replace(m.name, '_(bucket|sum|count)$', '') as family
      from teguh.metrics() as m
    ),

    lines as (
      select
        m.family,
        m.name || coalesce(nullif('{' || teguh._label_text(m.labels) || '}', '{}'), '')
        || ' ' || case m.value when 'infinity' then '+Inf' else m.value::text end as line,
        m.name,
        m.labels - 'le' as series,
        case m.labels ->> 'le' when '+Inf' then 'infinity' else m.labels ->> 'le' end
          ::double precision as bound
      from metrics as m
    ),

    families as (
      select
        l.family,
        string_agg(l.line, chr(10) order by l.series::text, l.name, l.bound) as lines
      from lines as l
      group by l.family
    )

    select
      string_agg(
        format(
          '# TYPE %2$s %3$s%1$s%4$s%1$s',
          chr(10),
          f.family,
          case
            when f.family ~ '_total$' then 'counter'
            when f.family ~ 'duration_seconds$' then 'histogram'
            else 'gauge'
          end,
          f.lines
        ),
        '' order by f.family
      )
    from families as f
  );
end;
$$;

comment on function teguh.prometheus() is
  'What metrics() says, in the text format that Prometheus reads (version 0.0.4).';

-- Labels in the text format of Prometheus.
create or replace function teguh._label_text(p_labels jsonb)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    string_agg(
      format(
        '%s="%s"', l.key,
        replace(
          replace(replace(l.value, chr(92), chr(92) || chr(92)), '"', chr(92) || '"'),
          chr(10), chr(92) || 'n'
        )
      ),
      ',' order by l.key
    ),
    ''
  )
  from jsonb_each_text(p_labels) as l;
$$;

-- What is wrong with the schedules of the queues that the caller may read: problems of health().
create or replace function teguh._schedule_problems()
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
  v_overdue    bigint;
  v_lag        double precision;
  v_name       text;
  v_error      text;
  v_problems   jsonb := '[]'::jsonb;
begin
  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('tardy', q.queue_name)
  loop
    continue when not teguh._share_queue(v_queue_name);
    execute
      'select t.overdue, t.lag_seconds, t.schedule_name, t.last_error from '
      || teguh._from('tardy', v_queue_name) || ' as t'
    into v_overdue, v_lag, v_name, v_error;
    if v_overdue > 0 then
      v_problems := v_problems || jsonb_build_object(
        'problem', format('schedules of queue "%s" are overdue: %s', v_queue_name, v_overdue),
        'hint', format('"%s" should have fired %s s ago: %s', v_name, round(v_lag),
          coalesce(v_error, 'nobody ticks this queue.'))
      );
    end if;
  end loop;

  return v_problems;
end;
$$;

-- Say whether all is well.
create or replace function teguh.health()
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_lag      double precision := (select s.lag_seconds from teguh.status() as s);
  v_age      integer := teguh._xmin_age();
  v_problems jsonb := '[]'::jsonb;
  v_queue    record;
begin
  if v_lag is null or v_lag > 300 then
    v_problems := v_problems || jsonb_build_object(
      'problem', 'nobody ticks',
      'hint', 'Run a worker, or schedule teguh.ticker() with teguh.start().'
    );
  end if;
  if v_age > 10000000 then
    v_problems := v_problems || jsonb_build_object(
      'problem', format('a snapshot is %s transactions old', v_age),
      'hint', 'Look for old transactions in pg_stat_activity, and for unused replication slots.'
    );
  end if;

  for v_queue in
    select s.*
    from teguh.queue_stats() as s
    where not s.paused
      and s.running = 0
      and s.oldest_pending_age_seconds > 300
  loop
    v_problems := v_problems || jsonb_build_object(
      'problem', format('nobody works on queue "%s"', v_queue.queue_name),
      'hint', format('Its first task has been ready for %s s: start a worker.',
        round(v_queue.oldest_pending_age_seconds))
    );
  end loop;
  v_problems := v_problems || teguh._schedule_problems();

  return jsonb_build_object(
    'status', case v_problems when '[]' then 'ok' else 'degraded' end,
    'version', teguh.version(),
    'ticker_lag_seconds', v_lag,
    'oldest_xmin_age', v_age,
    'problems', v_problems
  );
end;
$$;

comment on function teguh.health() is
  'An object: status is ok or degraded; problems says what is wrong, each with a hint: nobody '
  'has ticked for 5 minutes, a snapshot is over ten million transactions old, tasks of a '
  'queue have been ready for 5 minutes while nobody works on it, or schedules should have fired '
  '5 minutes ago and have not.';

-- sql/src/50_ticker.sql
-- One tick of one queue: take a step in the rotation, build dispatch anew if the queue was
-- restored from a dump, sum up the statistics, deal with schedules and timers that are due, as
-- _bring_template does.  The step comes first, and only when the caller has written nothing yet: it
-- moves a register, and must not go by what may be rolled back.
create or replace function teguh._tick_template(
  p_now   timestamptz,
  p_fresh boolean,
  p_limit integer
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_fired integer;
begin
  if p_fresh then
    perform teguh._turn_template();
    perform teguh._settle_template();
    perform teguh._sum0_template();
    perform teguh._sum1_template();
  end if;
  v_fired := teguh._strike_template(p_now, p_fresh, p_limit);
  return v_fired + teguh._fire_template(p_now, p_limit);
end;
$$;

-- When the ticker last ran, in microseconds since 1970.
create sequence if not exists teguh._ticked minvalue 0 start 0;

comment on sequence teguh._ticked is
  'When the ticker last ran, in microseconds since 1970.';

-- Note that the ticker has run.
create or replace function teguh._set_ticked()
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform setval('teguh._ticked'::regclass, teguh._micros(clock_timestamp()));
end;
$$;

-- Tick one queue or all.
create or replace function teguh.ticker(p_queue_name text default null)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now        timestamptz := teguh.current_time();
  v_fresh      boolean := pg_current_xact_id_if_assigned() is null;
  v_queue_name text;
  v_one        integer;
  v_count      integer := 0;
begin
  perform teguh._check_isolation('ticker');
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('tick', q.queue_name))
  loop
    continue when not teguh._share_queue(v_queue_name);
    execute teguh._call('tick', v_queue_name, 3) into v_one
    using v_now, v_fresh, 10000;
    v_count := v_count + v_one;
  end loop;

  perform teguh._set_ticked();
  return v_count;
end;
$$;

comment on function teguh.ticker(text) is
  'Does for a queue (null: for every queue the caller may tick) what has come due: spawns what is '
  'scheduled, queues sleepers, ends waits and leases that timed out, applies cancellation '
  'policies, takes a step in the rotation of the dispatch tables, builds them anew in a restored '
  'database, notifies. Bounded per call. Returns how many tasks became claimable or changed state. '
  'Claims see to due tasks themselves; rotation needs this called every few seconds or minutes, by '
  'pg_cron or a worker, and does not happen in a transaction that has written before. Raises TG001 '
  'for an unknown queue, 25001 unless the transaction is READ COMMITTED.';

-- Tick all queues again and again, with a commit after each round.
--
-- A procedure that commits cannot pin its search_path: every name is qualified.
create or replace procedure teguh.ticker_loop(p_options jsonb default '{}')
  language plpgsql
as $$
declare
  v_pause pg_catalog.float8;
  v_until pg_catalog.timestamptz;
begin
  perform teguh._check_keys('ticker options', p_options, array['tick_seconds', 'max_seconds']);
  v_pause := coalesce(teguh._number_option(p_options, 'tick_seconds', 0.001, 3600), 0.1);
  v_until := pg_catalog.clock_timestamp() operator(pg_catalog.+) pg_catalog.make_interval(
    secs => coalesce(teguh._number_option(p_options, 'max_seconds', 0, 86400), 55)
  );

  loop
    perform teguh.ticker();
    commit;
    exit when pg_catalog.clock_timestamp() operator(pg_catalog.>=) v_until;
    perform pg_catalog.pg_sleep(v_pause);
  end loop;
end;
$$;

comment on procedure teguh.ticker_loop(jsonb) is
  'Calls ticker() every tick_seconds (default 0.1) for max_seconds (default 55), '
  'committing in between. Raises TG005 for a bad option.';

-- sql/src/51_cron.sql
-- Whether pg_cron is installed in this database.
create or replace function teguh._has_cron()
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_extension as e where e.extname = 'pg_cron');
$$;

-- Whether the server's pg_cron can run a job every second, as it can from 1.5 on.
create or replace function teguh._cron_has_seconds()
  returns boolean
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    bool_and(
      string_to_array(
        substring(coalesce(a.installed_version, a.default_version) from '^[0-9]+[.][0-9]+'), '.'
      )::integer[] >= array[1, 5]
    ),
    true
  )
  from pg_available_extensions as a
  where a.name = 'pg_cron';
$$;

-- The jobs that start() schedules.
create or replace function teguh._plan_cron(p_options jsonb)
  returns table(job_name text, schedule text, command text)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  job_name := 'teguh_ticker';
  schedule := coalesce(
    teguh._text_option(p_options, 'ticker_schedule'),
    case when teguh._cron_has_seconds() then '1 seconds' else '* * * * *' end
  );
  command := case schedule
    when '* * * * *' then 'call teguh.ticker_loop(''{"tick_seconds": 1}'')'
    else 'select teguh.ticker()'
  end;
  return next;

  job_name := 'teguh_maint';
  schedule := coalesce(teguh._text_option(p_options, 'cleanup_schedule'), '*/5 * * * *');
  command := 'select teguh._maintain()';
  return next;

  for job_name, schedule, command in
    select
      'teguh_work_' || u.queue_name, '* * * * *',
      format('call teguh.work(%L, %L)', u.queue_name, '{"max_seconds": 59}')
    from unnest(teguh._work_option(p_options)) as u(queue_name)
  loop
    return next;
  end loop;
end;
$$;

-- The queues whose handlers are to be run: those given, or all that have handlers.
create or replace function teguh._work_option(p_options jsonb)
  returns text[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_given jsonb := nullif(p_options -> 'work', 'null');
  v_names text[];
begin
  if v_given is null then
    v_names := array(select distinct h.queue_name from teguh.handlers as h order by 1);
  elsif jsonb_typeof(v_given) <> 'array'
    or jsonb_path_exists(v_given, 'strict $[*] ? (@.type() <> "string")')
  then
    raise exception '"work" must be an array of queues'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_given::text, 200)),
        hint = 'For instance ["orders"]; leave it out for every queue that has handlers.';
  else
    v_names := array(select distinct q.name from jsonb_array_elements_text(v_given) as q(name));
  end if;

  perform teguh._crew(u.queue_name)
  from unnest(v_names) as u(queue_name);
  return v_names;
end;
$$;

-- Tell how to get a ticker without pg_cron at hand.  pg_cron lives in one database
-- of a server and can run jobs in the others, but must be asked there.  Which one
-- that is, an ordinary role cannot know.
create or replace function teguh._explain_no_cron(p_options jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_loaded boolean;
begin
  if not exists (select from pg_available_extensions as a where a.name = 'pg_cron') then
    raise notice 'pg_cron is not installed: nothing was scheduled'
      using
        detail = 'Workers see to due tasks themselves, and tick while they run.',
        hint = 'Install pg_cron, or call teguh.ticker() and teguh.cleanup_all_queues() yourself, '
               'and teguh.work() for queues whose handlers are SQL functions.';
    return;
  end if;

  begin
    v_loaded := current_setting('cron.database_name', true) is not null;
  exception
    when insufficient_privilege then
      v_loaded := true;  -- only superusers may read what is there
  end;
  if not v_loaded then
    raise notice 'pg_cron is not loaded: nothing was scheduled'
      using
        detail = 'Its files are on the server, but it is not in shared_preload_libraries.',
        hint = 'Add pg_cron there, restart, create extension pg_cron.';
    return;
  end if;

  raise notice 'pg_cron is not in this database: nothing was scheduled'
    using
      detail = 'It lives in one database of the server and can run jobs in the others.',
      hint = (
        select 'In that database: ' || string_agg(
          format(
            'select cron.schedule_in_database(%L, %L, %L, %L);',
            j.job_name, j.schedule, j.command, current_database()
          ),
          ' '
        )
        from teguh._plan_cron(p_options) as j
      );
end;
$$;

-- Schedule ticker, cleanup and the work on queues.
create or replace function teguh.start(p_options jsonb default '{}')
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_jobs    text[];
begin
  perform teguh._check_keys(
    'start options', v_options, array['ticker_schedule', 'cleanup_schedule', 'work']
  );
  v_jobs := array(select j.job_name from teguh._plan_cron(v_options) as j);
  if not teguh._has_cron() then
    perform teguh._explain_no_cron(v_options);
    return;
  end if;

  perform teguh._unschedule(v_jobs);
  perform cron.schedule(j.job_name, j.schedule, j.command)
  from teguh._plan_cron(v_options) as j;
end;
$$;

comment on function teguh.start(jsonb) is
  'Schedules the jobs teguh_ticker and teguh_maint by pg_cron: ticker() every second '
  '(before pg_cron 1.5: a loop every minute that ticks every second), cleanup every '
  'five minutes; and for each queue that has handlers teguh_work_<queue>, a session that '
  'calls work() minute after minute, as teguh''s owner. Options: ticker_schedule, '
  'cleanup_schedule, in pg_cron''s syntax; work, an array of the queues to work on instead. '
  'Calling it again changes the jobs. Without pg_cron in this database: a notice, with '
  'the statements to run where it is. Raises TG005 for a bad option and, for a queue to work '
  'on, what work() raises.';

-- Unschedule our jobs in this database but those named.
create or replace function teguh._unschedule(p_but text[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform cron.unschedule(j.jobid)
  from cron.job as j
  where teguh._is_ours(j.jobname)
    and j.database = current_database()
    and j.jobname <> all (p_but);
end;
$$;

-- Whether a job of pg_cron is one that start() schedules.
create or replace function teguh._is_ours(p_job_name text)
  returns boolean
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select p_job_name in ('teguh_ticker', 'teguh_maint') or starts_with(p_job_name, 'teguh_work_');
$$;

-- Unschedule the work on a queue, which is being dropped.
create or replace function teguh._drop_job(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not teguh._has_cron() or not has_schema_privilege('cron', 'usage') then
    return;
  end if;

  perform cron.unschedule(j.jobid)
  from cron.job as j
  where j.jobname = 'teguh_work_' || p_queue_name
    and j.database = current_database();
end;
$$;

-- Unschedule what start() has.
create or replace function teguh.stop()
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if teguh._has_cron() then
    perform teguh._unschedule('{}');
  end if;
end;
$$;

comment on function teguh.stop() is
  'Unschedules what start() scheduled. A job that is already gone, or pg_cron not '
  'being there, is no error.';

-- The maintenance job: cleanup of all queues, and of pg_cron's log of our own jobs,
-- which nobody else clears.
create or replace function teguh._maintain()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh.cleanup_all_queues();

  if teguh._has_cron() then
    delete from cron.job_run_details as d
    where d.jobid in (
        select j.jobid
        from cron.job as j
        where teguh._is_ours(j.jobname)
      )
      and d.end_time < clock_timestamp() - interval '1 hour';
  end if;
end;
$$;

-- Show whether somebody ticks.
create or replace function teguh.status()
  returns table(
    scheduler    text,
    ticker_job   text,
    cleanup_job  text,
    last_tick_at timestamptz,
    lag_seconds  double precision,
    work_jobs    text[]
  )
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if teguh._has_cron() then
    scheduler := 'pg_cron';
    select
      max(j.schedule) filter (where j.jobname = 'teguh_ticker'),
      max(j.schedule) filter (where j.jobname = 'teguh_maint'),
      array_agg(substr(j.jobname, 12) order by j.jobname)
        filter (where starts_with(j.jobname, 'teguh_work_'))
    into ticker_job, cleanup_job, work_jobs
    from cron.job as j
    where j.database = current_database();
  end if;

  last_tick_at := timestamptz 'epoch'
                  + pg_sequence_last_value('teguh._ticked'::regclass) * interval '1 microsecond';
  lag_seconds := extract(epoch from clock_timestamp() - last_tick_at);
  return next;
end;
$$;

comment on function teguh.status() is
  'One row: scheduler is pg_cron where that is installed, else null; the schedules of '
  'the two jobs, null where not scheduled; when ticker() last ran, by whomever, and '
  'how many seconds ago, both null if never; the queues that jobs work on, null if none.';

-- sql/src/52_access.sql
-- Who may call what: each public function, the functions of a queue behind it, and the kinds
-- of access that include it.  What concerns all queues at once is only for those who have
-- access to all (everywhere).
create or replace view teguh._rights as
select
  r.routine,
  string_to_array(r.verbs, ' ') as verbs,
  string_to_array(r.access, ' ') as access,
  r.everywhere
from (
  -- noqa: disable=LT01,LT02
  values
    ('version',                    '',            'client worker observer admin', false),
    ('current_time',               '',            'client worker observer admin', false),
    ('portable_uuidv7',            '',            'client worker observer admin', false),
    ('uuidv7_timestamp',           '',            'client worker observer admin', false),
    ('validate_queue_name',        '',            'client worker observer admin', false),
    ('list_queues',                '',            'client worker observer admin', false),
    ('status',                     '',            'client worker observer admin', false),
    ('get_queue_policy',           '',            'client worker observer admin', false),
    ('queue_stats',                'stat',        'client worker observer admin', false),
    ('metrics',                    'gauge',       'client worker observer admin', false),
    ('prometheus',                 'gauge',       'client worker observer admin', false),
    ('health',                     'stat tardy',  'client worker observer admin', false),
    ('get_task_result',            'show',        'client worker observer admin', false),
    ('list_namespaces',            '',            'client worker observer admin', false),
    ('get_task',                   'peek',        'client worker observer admin', false),
    ('list_tasks',                 'rows',        'client worker observer admin', false),
    ('list_runs',                  'runs',        'client worker observer admin', false),
    ('get_task_history',           'past',        'client worker observer admin', false),
    ('list_workers',               'held',        'client worker observer admin', false),
    ('list_dead_letters',          'rows',        'client worker observer admin', false),
    ('list_actions',               'acts',        'client worker observer admin', false),
    ('list_events',                'news',        'client worker observer admin', false),
    ('get_task_checkpoint_state',  'recall',      'client worker observer admin', false),
    ('get_task_checkpoint_states', 'list',        'client worker observer admin', false),
    ('limit_usage',                'usage',       'client worker observer admin', false),
    ('next_fire_time',             '',            'client worker observer admin', false),
    ('get_schedule',               'diary',       'client worker observer admin', false),
    ('list_schedules',             'diary',       'client worker observer admin', false),
    ('list_messages',              'inbox',       'client worker observer admin', false),
    ('get_attributes',             'told',        'client worker observer admin', false),
    ('get_workflow_run',           'flow',        'client worker observer admin', false),
    ('list_workflow_runs',         'flow',        'client worker observer admin', false),
    ('get_workflow_tree',          'member',      'client worker observer admin', false),
    ('create_workflow_run',        '',            'client worker admin',          false),
    ('update_workflow_run',        '',            'client worker admin',          false),
    ('spawn_task',                 'new put once room rule vouch', 'client worker admin', false),
    ('spawn_tasks',                'put series room rule', 'client worker admin',     false),
    ('emit_event',                 'emit',        'client worker admin',          false),
    ('send_message',               'post',        'client worker admin',          false),
    ('cancel_task',                'halt',        'client worker admin',          false),
    ('cancel_tasks',               'abort',       'client worker admin',          false),
    ('retry_task',                 'rerun',       'client worker admin',          false),
    ('claim_task',                 'take',        'worker admin',                 false),
    ('claim_any',                  'take oldest want', 'worker admin',            false),
    ('next_due',                   'next',        'worker admin',                 false),
    ('complete_run',               'done',        'worker admin',                 false),
    ('complete_runs',              'flush',       'worker admin',                 false),
    ('fail_run',                   'fail',        'worker admin',                 false),
    ('schedule_run',               'nap',         'worker admin',                 false),
    ('release_run',                'free',        'worker admin',                 false),
    ('extend_claim',               'keep',        'worker admin',                 false),
    ('set_task_checkpoint_state',  'mark',        'worker admin',                 false),
    ('await_event',                'wait',        'worker admin',                 false),
    ('receive_message',            'hear',        'worker admin',                 false),
    ('set_attributes',             'pin',         'worker admin',                 false),
    ('spawn_children',             'brood bind put room rule', 'worker admin',    false),
    ('await_children',             'rally',       'worker admin',                 false),
    ('add_compensation',           'repent',      'worker admin',                 false),
    ('repeat_run',                 'repeat',      'worker admin',                 false),
    ('work',                       'staff grip',  'worker admin',                 false),
    ('step',                       '',            'client worker observer admin', false),
    ('sleep_for',                  '',            'client worker observer admin', false),
    ('sleep_until',                '',            'client worker observer admin', false),
    ('await',                      '',            'client worker observer admin', false),
    ('receive',                    '',            'client worker observer admin', false),
    ('children',                   '',            'client worker observer admin', false),
    ('list_handlers',              'staff',       'client worker observer admin', false),
    ('register_handler',           'hire',        'admin',                        false),
    ('unregister_handler',         'hire',        'admin',                        false),
    ('ticker',                     'tick',        'worker admin',                 false),
    ('cleanup_tasks',              'purge',       'admin',                        false),
    ('cleanup_events',             'sweep',       'admin',                        false),
    ('rebuild_dispatch',           'remake',      'admin',                        false),
    ('requeue_task',               'retake',      'admin',                        false),
    ('requeue_tasks',              'regain',      'admin',                        false),
    ('replay_dead_letters',        'replay',      'admin',                        false),
    ('purge_dead_letters',         'bury',        'admin',                        false),
    ('pause_queue',                'pause halve', 'admin',                        false),
    ('resume_queue',               'pause halve', 'admin',                        false),
    ('create_schedule',            'enroll',      'admin',                        false),
    ('update_schedule',            'reform',      'admin',                        false),
    ('pause_schedule',             'steer',       'admin',                        false),
    ('resume_schedule',            'steer',       'admin',                        false),
    ('drop_schedule',              'steer',       'admin',                        false),
    ('trigger_schedule',           'launch',      'admin',                        false),
    ('ticker_loop',                '',            'admin',                        true),
    ('cleanup_workflow_runs',      'used',        'admin',                        true),
    ('cleanup_all_queues',         '',            'admin',                        true),
    ('create_queue',               '',            'admin',                        true),
    ('drop_queue',                 '',            'admin',                        true),
    ('set_queue_policy',           '',            'admin',                        true),
    ('set_limit',                  '',            'admin',                        true),
    ('start',                      '',            'admin',                        true),
    ('stop',                       '',            'admin',                        true),
    ('grant_access',               '',            'admin',                        true),
    ('revoke_access',              '',            'admin',                        true)
  -- noqa: enable=LT01,LT02
) as r(routine, verbs, access, everywhere);

comment on view teguh._rights is
  'What client, worker, observer and admin may call.';

-- The functions that this access to a queue (*: to all) allows to execute.
--
-- Helpers are for everybody who has access at all: they run with the rights of whoever calls
-- them, and give none.  But those that execute a text they are given would let whoever may only
-- call functions, as through PostgREST, run any statement: these are for teguh's owner, and what
-- work() needs of them for workers.
create or replace function teguh._allowed(p_access text, p_queue_name text)
  returns setof regprocedure
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select p.oid::regprocedure
  from pg_proc as p
  where p.pronamespace = 'teguh'::regnamespace
    and (
      p.proname in (
        '_policy', '_set_ticked', '_xmin_age', '_overall_usage', '_scheduled_in', '_recorded_run',
        '_recorded_runs', '_recorded_tallies'
      )
      or (
        p.proname ~ '^_'
        and not p.prosecdef
        and p.proname not in (
          '_each_queue', '_leave_extension', '_stamp_function', '_stamp_queues', '_stamp_relation'
        )
        and (p.proname not in ('_advance', '_obey', '_run_pass') or p_access in ('worker', 'admin'))
        and not exists (
          select
          from pg_proc as f
          where f.pronamespace = p.pronamespace
            and f.proname = (substring(p.proname from '^_[a-z0-9]+_') || 'template')::name
        )
      )
      or p.proname in (
        select r.routine
        from teguh._rights as r
        where p_access = any (r.access)
          and (p_queue_name = '*' or not r.everywhere)
      )
      or p.proname in (
        select format('_%s_%s', v.verb, q.queue_name)
        from teguh._rights as r
        cross join lateral unnest(r.verbs) as v(verb)
        join teguh.queues as q on p_queue_name in ('*', q.queue_name)
        where p_access = any (r.access)
      )
    );
$$;

-- Carry out one row of teguh.grants.
create or replace function teguh._grant(p_grantee regrole, p_access text, p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_routines text := (
    select string_agg(a.routine::text, ', ')
    from teguh._allowed(p_access, p_queue_name) as a(routine)
  );
begin
  execute format('grant usage on schema teguh to %s', p_grantee);
  execute format('grant execute on routine %s to %s', v_routines, p_grantee);
end;
$$;

-- Carry out again all that was granted: there are new functions.  Rows of roles that were
-- dropped meanwhile go.
create or replace function teguh._grant_again()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.grants as g
  where not exists (select from pg_roles as r where r.oid = g.grantee);

  perform teguh._grant(g.grantee, g.access, g.queue_name)
  from teguh.grants as g;
end;
$$;

-- Give those who have access to all queues access to a new one.
create or replace function teguh._grant_queue(p_queue_name text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._grant(g.grantee, g.access, p_queue_name)
  from teguh.grants as g
  join pg_roles as r on r.oid = g.grantee
  where g.queue_name = '*';
end;
$$;

-- Find a role, and refuse a kind of access that is none.
create or replace function teguh._check_grant(p_role text, p_access text)
  returns regrole
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_role oid;
begin
  if p_access not in ('client', 'worker', 'observer', 'admin') then
    raise exception 'unknown access "%"', left(p_access, 200)
      using
        errcode = 'TG005',
        detail = 'Known kinds of access: client, worker, observer, admin.',
        hint = 'worker includes what client may do, admin includes all.';
  end if;

  select r.oid into v_role
  from pg_roles as r
  where r.rolname = p_role;
  if not found then
    raise exception 'role "%" does not exist', left(coalesce(p_role, 'null'), 200)
      using
        errcode = '42704',
        detail = 'Access is given to roles that exist.',
        hint = 'Create it first: create role … login;';
  end if;

  return v_role;
end;
$$;

-- Give a role access.
create or replace function teguh.grant_access(
  p_role        text,
  p_access      text,
  p_queue_names text[] default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_role       regrole := teguh._check_grant(p_role, coalesce(p_access, 'null'));
  v_queue_name text;
begin
  foreach v_queue_name in array coalesce(p_queue_names, '{*}') loop
    if p_queue_names is not null then
      perform teguh._policy(v_queue_name);
    end if;
    insert into teguh.grants as g (grantee, access, queue_name)
    values (v_role, p_access, v_queue_name)
    on conflict do nothing;
    perform teguh._grant(v_role, p_access, v_queue_name);
  end loop;
end;
$$;

comment on function teguh.grant_access(text, text, text[]) is
  'Lets a role use the queues named, or all, also those to come, if p_queue_names is null. '
  'client: spawn, cancel, retry, emit events, send messages, read results. worker: that, and '
  'claim runs and report on them, tick. observer: read. admin: all of it and cleanup; for all '
  'queues also create and drop queues, schedule, grant. Everything goes through functions; nobody '
  'gets at the tables. Raises 42704 for an unknown role, TG001 for an unknown queue, TG005 '
  'for an unknown kind of access.';

-- Take access away.
create or replace function teguh.revoke_access(
  p_role        text,
  p_access      text default null,
  p_queue_names text[] default null
)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_role regrole := teguh._check_grant(p_role, p_access);
begin
  if v_role = current_user::regrole then
    raise exception 'role "%" owns teguh', p_role
      using
        errcode = 'TG004',
        detail = 'Its rights were not granted, and everything here needs them.',
        hint = 'Revoke the access of roles that grant_access() gave it to.';
  end if;

  perform from teguh.grants as g
  where g.grantee = v_role
    and g.access = coalesce(p_access, g.access)
    and g.queue_name = '*'
    and p_queue_names is not null;
  if found then
    raise exception 'role "%" has access to all queues', p_role
      using
        errcode = 'TG004',
        detail = 'It cannot be taken away for some of them.',
        hint = 'Revoke it for all (p_queue_names => null), and grant what is to stay.';
  end if;

  delete from teguh.grants as g
  where g.grantee = v_role
    and g.access = coalesce(p_access, g.access)
    and (p_queue_names is null or g.queue_name = any (p_queue_names));

  execute format('revoke all on all routines in schema teguh from %s', v_role);
  execute format('revoke all on schema teguh from %s', v_role);
  perform teguh._grant(g.grantee, g.access, g.queue_name)
  from teguh.grants as g
  where g.grantee = v_role;
end;
$$;

comment on function teguh.revoke_access(text, text, text[]) is
  'Takes from a role what grant_access() gave: one kind of access or, if p_access is null, '
  'all; for the queues named or, if p_queue_names is null, for all. Rights on functions that '
  'were granted by hand go, too. What a role was never given is no error. Raises 42704 for an '
  'unknown role, TG004 when the role has access to all queues and only some are named, or owns '
  'teguh, TG005 for an unknown kind of access.';

-- sql/src/60_cron.sql
-- Refuse a schedule that cannot be read, or not followed.
create or replace function teguh._refuse_schedule(p_schedule text, p_detail text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'schedule "%" is not valid', left(coalesce(p_schedule, 'null'), 200)
    using
      errcode = 'TG005',
      detail = p_detail,
      hint = 'For instance "30 9 * * mon-fri" (minute, hour, day of month, month, day of week; '
        'six fields begin with the second), "@daily", "every 90 seconds".';
end;
$$;

-- The number that a part of a field stands for; null if it is none.
create or replace function teguh._cron_value(p_text text, p_least integer, p_names text[])
  returns integer
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_text ~ '^[0-9]+$' then p_text::integer
    else array_position(p_names, p_text) - 1 + p_least
  end;
$$;

-- Read one field, in lower case: which values it allows, as a string of 0 and 1 from the value 0
-- on; null if it is not valid.
create or replace function teguh._cron_field(
  p_field text,
  p_least integer,
  p_most  integer,
  p_names text[] default '{}'
)
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_mask  text := repeat('0', p_most + 1);
  v_term  text;
  v_parts text[];
  v_from  integer;
  v_to    integer;
  v_step  integer;
begin
  foreach v_term in array string_to_array(p_field, ',') loop
    v_parts := regexp_match(
      v_term,
      '^(?:[*]|([0-9]{1,4}|[a-z]{3})(?:-([0-9]{1,4}|[a-z]{3}))?)(?:/([0-9]{1,4}))?$'
    );
    v_step := coalesce(v_parts[3]::integer, 1);
    if v_parts[1] is null then
      v_from := p_least;
      v_to := p_most;
    else
      v_from := teguh._cron_value(v_parts[1], p_least, p_names);
      v_to := case
        when v_parts[2] is not null then teguh._cron_value(v_parts[2], p_least, p_names)
        when v_parts[3] is not null then p_most
        else v_from
      end;
      -- only the days of the week have a 7, which is Sunday as 0 is
      if p_most = 7 and v_to = 0 and v_from > 0 then
        v_to := 7;
      end if;
    end if;
    if v_parts is null
      or v_from is null
      or v_to is null
      or v_from < p_least
      or v_to > p_most
      or v_to < v_from
      or v_step not between 1 and p_most - p_least + 1
    then
      return null;
    end if;

    for v_value in v_from .. v_to by v_step loop
      v_mask := overlay(v_mask placing '1' from v_value + 1);
    end loop;
  end loop;

  return v_mask;
end;
$$;

-- Read "every 90 seconds"; null if the schedule is no such.
create or replace function teguh._read_every(p_schedule text)
  returns bigint
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[] := regexp_match(
    p_schedule, '^every (?:([0-9]{1,9}) )?(second|minute|hour|day|week)s?$'
  );
begin
  return coalesce(v_parts[1], '1')::bigint * case v_parts[2]
    when 'second' then 1
    when 'minute' then 60
    when 'hour' then 3600
    when 'day' then 86400
    when 'week' then 604800
  end;
end;
$$;

-- Read a schedule, or raise TG005.
create or replace function teguh._read_schedule(p_schedule text)
  returns teguh._cron
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_text   text := lower(btrim(regexp_replace(p_schedule, '[[:space:]]+', ' ', 'g')) collate "C");
  v_fields text[];
  v_masks  text[];
  v_cron   teguh._cron;
begin
  v_cron.every_seconds := teguh._read_every(v_text);
  if v_cron.every_seconds between 1 and 3155760000 then
    return v_cron;
  end if;

  v_fields := string_to_array(
    case v_text
      when '@hourly' then '0 * * * *'
      when '@daily' then '0 0 * * *'
      when '@midnight' then '0 0 * * *'
      when '@weekly' then '0 0 * * 0'
      when '@monthly' then '0 0 1 * *'
      when '@yearly' then '0 0 1 1 *'
      when '@annually' then '0 0 1 1 *'
      else v_text
    end, ' '
  );
  if cardinality(v_fields) = 5 then
    v_fields := '0'::text || v_fields;
  end if;
  if v_fields is null or v_cron.every_seconds is not null or cardinality(v_fields) <> 6 then
    perform teguh._refuse_schedule(
      p_schedule, 'It is neither five or six fields nor one of the known words.'
    );
  end if;

  v_masks := array[
    teguh._cron_field(v_fields[1], 0, 59),
    teguh._cron_field(v_fields[2], 0, 59),
    teguh._cron_field(v_fields[3], 0, 23),
    teguh._cron_field(v_fields[4], 1, 31),
    teguh._cron_field(
      v_fields[5], 1, 12, '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'
    ),
    teguh._cron_field(v_fields[6], 0, 7, '{sun,mon,tue,wed,thu,fri,sat}')
  ];
  if array_position(v_masks, null) is not null then
    perform teguh._refuse_schedule(p_schedule, format(
      'The %s "%s" is not valid.',
      (array['second', 'minute', 'hour', 'day of month', 'month', 'day of week'])[
        array_position(v_masks, null)
      ],
      left(v_fields[array_position(v_masks, null)], 60)
    ));
  end if;

  v_cron.seconds := v_masks[1];
  v_cron.minutes := v_masks[2];
  v_cron.hours := v_masks[3];
  v_cron.days := v_masks[4];
  v_cron.months := v_masks[5];
  v_cron.weekdays := case right(v_masks[6], 1)
    when '1' then overlay(v_masks[6] placing '1' from 1)
    else v_masks[6]
  end;
  v_cron.either_day := v_fields[4] !~ '^[*]' and v_fields[6] !~ '^[*]';
  v_cron.goes_on := v_fields[2] ~ '^[*]' or v_fields[3] ~ '^[*]';
  return v_cron;
end;
$$;

-- The first time of a day, in seconds since its midnight, that the fields allow from another on;
-- null if there is none that day.
create or replace function teguh._cron_time(p_cron teguh._cron, p_from integer)
  returns integer
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_hour   integer := p_from / 3600;
  v_minute integer := p_from / 60 % 60;
  v_ahead  integer;
begin
  if substr(p_cron.hours, v_hour + 1, 1) = '1' then
    if substr(p_cron.minutes, v_minute + 1, 1) = '1' then
      v_ahead := strpos(substr(p_cron.seconds, p_from % 60 + 1), '1');
      if v_ahead > 0 then
        return p_from + v_ahead - 1;
      end if;
    end if;

    v_ahead := strpos(substr(p_cron.minutes, v_minute + 2), '1');
    if v_ahead > 0 then
      return v_hour * 3600 + (v_minute + v_ahead) * 60 + strpos(p_cron.seconds, '1') - 1;
    end if;
  end if;

  v_ahead := strpos(substr(p_cron.hours, v_hour + 2), '1');
  if v_ahead = 0 then
    return null;
  end if;
  return
    (v_hour + v_ahead) * 3600
    + (strpos(p_cron.minutes, '1') - 1) * 60
    + strpos(p_cron.seconds, '1') - 1;
end;
$$;

-- The first reading of a clock that the fields allow from another on.  Null if there is none
-- within nine years: then there is none at all, because 29 February comes every eight at least.
create or replace function teguh._cron_reading(p_cron teguh._cron, p_from timestamp)
  returns timestamp
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_day  date := p_from::date;
  v_last date := v_day + 3300;
  v_days text;
  v_time integer := teguh._cron_time(p_cron, extract(epoch from p_from - v_day)::integer);
begin
  if v_time is null then
    v_day := v_day + 1;
    v_time := teguh._cron_time(p_cron, 0);
  end if;

  while v_day < v_last loop
    if substr(p_cron.months, extract(month from v_day)::integer + 1, 1) = '0' then
      v_day := (date_trunc('month', v_day::timestamp) + interval '1 month')::date;
      v_time := teguh._cron_time(p_cron, 0);
      continue;
    end if;

    v_days := substr(p_cron.days, extract(day from v_day)::integer + 1, 1)
              || substr(p_cron.weekdays, extract(dow from v_day)::integer + 1, 1);
    if v_days = '11' or v_days <> '00' and p_cron.either_day then
      return v_day + make_interval(secs => v_time);
    end if;
    v_day := v_day + 1;
    v_time := teguh._cron_time(p_cron, 0);
  end loop;

  return null;
end;
$$;

-- What the clocks of a time zone read at an instant.  Here and below, an instant is the reading of
-- a clock in UTC: sums of those do not depend on the session's time zone.
create or replace function teguh._clock(p_at timestamp, p_timezone text)
  returns timestamp
  language sql
  immutable
as $$
  select pg_catalog.timezone(p_timezone, pg_catalog.timezone('UTC', p_at));
$$;

-- The first instant at which the clocks of a time zone read this, or later where they skip it.
create or replace function teguh._clock_reads(p_reading timestamp, p_timezone text)
  returns timestamp
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_about timestamp := timezone('UTC', timezone(p_timezone, p_reading));
  v_day   interval := interval '24 hours';
  v_first timestamp;
  v_last  timestamp;
  v_half  timestamp;
begin
  -- by the clocks of the day before, then by those of the day after
  v_last := p_reading - (teguh._clock(v_about - v_day, p_timezone) - (v_about - v_day));
  if teguh._clock(v_last, p_timezone) = p_reading then
    return v_last;
  end if;
  v_first := p_reading - (teguh._clock(v_about + v_day, p_timezone) - (v_about + v_day));
  if teguh._clock(v_first, p_timezone) = p_reading then
    return v_first;
  end if;

  while v_last - v_first > interval '1 second' loop
    v_half := v_first + date_trunc('second', (v_last - v_first) / 2);
    if teguh._clock(v_half, p_timezone) < p_reading then
      v_first := v_half;
    else
      v_last := v_half;
    end if;
  end loop;
  return v_last;
end;
$$;

-- The first instant after one, up to another, at which the clocks of a time zone are set otherwise.
create or replace function teguh._clock_set(p_from timestamp, p_to timestamp, p_timezone text)
  returns timestamp
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_offset interval := teguh._clock(p_from, p_timezone) - p_from;
  v_first  timestamp := p_from;
  v_last   timestamp := p_to;
  v_half   timestamp;
begin
  while v_last - v_first > interval '1 second' loop
    v_half := v_first + date_trunc('second', (v_last - v_first) / 2);
    if teguh._clock(v_half, p_timezone) - v_half = v_offset then
      v_first := v_half;
    else
      v_last := v_half;
    end if;
  end loop;
  return v_last;
end;
$$;

-- The first instant, from one on, at which the clocks of a time zone read what the fields allow.
--
-- As long as nobody sets the clocks, that is as far off as it is on them.  So go on to where they
-- are set, and from there anew; a day at a time, within which that happens once.
create or replace function teguh._cron_passing(
  p_cron     teguh._cron,
  p_from     timestamp,
  p_timezone text
)
  returns timestamp
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_at    timestamp := p_from;
  v_clock timestamp;
  v_next  timestamp;
  v_to    timestamp;
begin
  for v_try in 1..1000 loop
    v_clock := teguh._clock(v_at, p_timezone);
    v_next := teguh._cron_reading(p_cron, v_clock);
    v_to := v_at + least(v_next - v_clock, interval '24 hours');
    if v_next is null then
      return null;
    elsif v_to = v_at then
      return v_at;
    elsif teguh._clock(v_to, p_timezone) - v_to <> v_clock - v_at then
      v_at := teguh._clock_set(v_at, v_to, p_timezone);
    elsif v_next - v_clock <= interval '24 hours' then
      return v_to;
    else
      v_at := greatest(v_to, teguh._clock_reads(v_next - interval '12 hours', p_timezone));
    end if;
  end loop;

  return null;
end;
$$;

-- When a schedule fires next after an instant; null is never.
create or replace function teguh._cron_next(
  p_cron     teguh._cron,
  p_after    timestamptz,
  p_timezone text
)
  returns timestamptz
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_after   timestamp := date_trunc(
    'second', greatest(timezone('UTC', p_after), timestamp '0001-01-02 00:00:00')
  );
  v_at      timestamp := v_after + interval '1 second';
  v_reading timestamp;
begin
  if v_after > timestamp '9990-01-01 00:00:00' then
    return null;
  elsif p_cron.every_seconds is not null then
    v_at := timestamp 'epoch' + make_interval(secs => p_cron.every_seconds * (
      1 + floor(extract(epoch from v_after) / p_cron.every_seconds)
    ));
    return timezone('UTC', v_at);
  elsif p_cron.goes_on then
    return timezone('UTC', teguh._cron_passing(p_cron, v_at, p_timezone));
  end if;

  v_reading := teguh._clock(v_after, p_timezone);
  loop
    v_reading := teguh._cron_reading(p_cron, v_reading + interval '1 second');
    v_after := teguh._clock_reads(v_reading, p_timezone);
    exit when v_after >= v_at or v_reading is null;
  end loop;
  return timezone('UTC', v_after);
end;
$$;

-- Refuse what is no time zone of the server's, and forms that mean something else than they seem
-- to: "UTC+3" lies west of Greenwich.
create or replace function teguh._check_timezone(p_timezone text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known boolean := coalesce(p_timezone ~ '^[A-Za-z_]+(/[A-Za-z0-9_+-]+)*$', false);
begin
  if v_known then
    begin
      perform timezone(p_timezone, timestamp 'epoch');
    exception
      when invalid_parameter_value then
        v_known := false;
    end;
  end if;

  if not v_known then
    raise exception 'time zone "%" is not known', left(coalesce(p_timezone, 'null'), 200)
      using
        errcode = 'TG005',
        detail = 'The server has no time zone of that name.',
        hint = 'Use a name of pg_timezone_names, for instance Europe/Berlin.';
  end if;
end;
$$;

-- When a schedule fires next.
create or replace function teguh.next_fire_time(
  p_schedule text,
  p_after    timestamptz,
  p_timezone text default 'UTC'
)
  returns timestamptz
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_timezone(p_timezone);
  if p_after is null then
    raise exception 'next_fire_time needs a time'
      using
        errcode = '22004',
        detail = 'The time after which the schedule is to fire is null.',
        hint = 'Pass now().';
  end if;

  return teguh._cron_next(teguh._read_schedule(p_schedule), p_after, p_timezone);
end;
$$;

comment on function teguh.next_fire_time(text, timestamptz, text) is
  'When a schedule fires next after a time; null if never. Nothing but the arguments and the '
  'server''s time zones matters. Schedules: five fields (minute, hour, day of month, month, day of '
  'week) or six (second first), with lists, ranges, steps and names; @hourly, @daily, @midnight, '
  '@weekly, @monthly, @yearly, @annually; every N seconds, minutes, hours, days or weeks, counted '
  'from 1970 on in UTC. If both day of month and day of week are restricted, either is enough; not '
  'so if one begins with *. When clocks are set: a schedule whose minute or hour begins with * '
  'fires whenever clocks read what it says, so twice in an hour that comes twice, and not in one '
  'that is skipped. Any other fires once for each time it names: the first time that clocks read '
  'it, or at the end of the gap in which it lies. Raises TG005 for a bad schedule or time zone, '
  '22004 for a null time.';

-- sql/src/61_schedules.sql
-- Schedules: rows that a tick or a claim of their queue looks at when they are due.
--
-- A schedule fires in one transaction, under the lock of its row: what is due is spawned and
-- planned_at moves on.  So each planned time fires once, whoever and however many look.
--
-- The register agenda_<queue> tells from when on there is something to look at: no schedule that
-- is committed, or may yet be, has a next_at before.  To fire only moves next_at on, so that needs
-- no care.  Whoever brings a next_at forward sets the register to 0 and shares a lock until the
-- end of the transaction; it is only raised, by a tick, when nobody does, to what is committed.
-- So a look costs one probe of the index, whatever dead rows an old snapshot has it keep.

-- Number of the advisory lock that those share who bring a schedule of the queue forward.
create or replace function teguh._planning_number(p_queue_name text)
  returns bigint
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended('teguh.agenda_' || p_queue_name, 0);
$$;

-- Have the queue's schedules looked at anew, also by workers that wait.
create or replace function teguh._replan_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_xact_lock_shared(teguh._planning_number(substr('_template', 2)));
  perform setval('teguh.agenda_template'::regclass, 0);
  perform pg_notify('teguh_template', '');
end;
$$;

-- The first moment at which a schedule of the queue may be due.
create or replace function teguh._agenda_template()
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_micros bigint := coalesce(pg_sequence_last_value('teguh.agenda_template'::regclass), 0);
begin
  return case
    when v_micros < teguh._beyond() then timestamptz 'epoch' + v_micros * interval '1 microsecond'
    else 'infinity'
  end;
end;
$$;

-- When the next schedule of the queue is due; 10 ms from now if one is that nobody has fired.
create or replace function teguh._future_template(p_now timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from timestamptz := teguh._agenda_template();
  v_next timestamptz;
begin
  if v_from < 'infinity' then
    select s.next_at into v_next
    from teguh.schedules as s
    where s.queue_name = substr('_template', 2)
      and s.next_at >= v_from
    order by s.next_at
    limit 1;
  end if;
  return case
    when v_next <= p_now then p_now + interval '10 milliseconds'
    else v_next
  end;
end;
$$;

-- Fire the schedules of the queue that are due, up to p_limit; those that somebody else has
-- locked are being fired.  Returns how many tasks were spawned.  p_fresh: the transaction has
-- written nothing before, so when nothing is due the register may be raised.
create or replace function teguh._strike_template(
  p_now   timestamptz,
  p_fresh boolean,
  p_limit integer
)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_from  timestamptz := teguh._agenda_template();
  v_plan  teguh.schedules;
  v_found boolean := false;
  v_count integer := 0;
begin
  if v_from > p_now then
    return 0;
  end if;

  for v_plan in
    select s.*
    from teguh.schedules as s
    where s.queue_name = substr('_template', 2)
      and s.next_at >= v_from
      and s.next_at <= p_now
    order by s.next_at
    limit p_limit
    for no key update skip locked
  loop
    v_found := true;
    v_count := v_count + teguh._chime_template(v_plan, p_now);
  end loop;

  if p_fresh
    and not v_found
    and pg_try_advisory_xact_lock(teguh._planning_number(substr('_template', 2)))
  then
    perform setval('teguh.agenda_template'::regclass, coalesce(
      (
        select greatest(teguh._micros(s.next_at) - 1, 0)
        from teguh.schedules as s
        where s.queue_name = substr('_template', 2)
          and s.next_at >= v_from
        order by s.next_at
        limit 1
      ),
      teguh._beyond()
    ));
  end if;
  return v_count;
end;
$$;

-- Fire a locked schedule that is due.  Returns how many tasks it spawned.  If that cannot be, say
-- why, and have it looked at again in 10 seconds.
create or replace function teguh._chime_template(p_plan teguh.schedules, p_now timestamptz)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_due    record := teguh._due_times(p_plan, p_now);
  v_at     timestamptz;
  v_open   uuid[] := p_plan.open_task_ids || p_plan.last_task_id;
  v_task   uuid;
  v_fired  timestamptz;
  v_missed timestamptz := v_due.missed_at;
  v_count  integer := 0;
  v_error  text;
begin
  foreach v_at in array v_due.planned loop
    if p_plan.overlap = 'skip' then
      v_open := teguh._undone_template(v_open || v_task);
      if v_open <> '{}' then
        v_missed := v_at;
        continue;
      end if;
    end if;

    select s.task_id into v_task
    from teguh._spawn_scheduled(p_plan, v_at, false, p_now) as s;
    v_fired := v_at;
    v_count := v_count + 1;
  end loop;

  update teguh.schedules as s
  set
    planned_at = v_due.next_at,
    next_at = v_due.next_at,
    last_planned_at = coalesce(v_fired, s.last_planned_at),
    last_fired_at = case when v_fired is null then s.last_fired_at else p_now end,
    last_skipped_at = coalesce(v_missed, s.last_skipped_at),
    last_task_id = coalesce(v_task, s.last_task_id),
    last_error = null,
    open_task_ids = case s.overlap when 'skip' then v_open else '{}' end
  where s.schedule_name = p_plan.schedule_name;
  return v_count;
exception
  when data_exception or sqlstate 'TG005' or sqlstate 'TG006' or sqlstate 'TG007' then
    get stacked diagnostics v_error = message_text;
    update teguh.schedules as s
    set
      next_at = p_now + interval '10 seconds',
      last_error = v_error
    where s.schedule_name = p_plan.schedule_name;
    return 0;
end;
$$;

-- Those of some tasks that are not over.
create or replace function teguh._undone_template(p_task_ids uuid[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select distinct u.task_id
    from unnest(p_task_ids) as u(task_id)
    cross join lateral (
      select t.state from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
    where t.state in ('pending', 'running', 'sleeping')
  );
end;
$$;

-- When a schedule fires next after a moment, within the time it is for; null if not any more.
create or replace function teguh._planned_after(p_plan teguh.schedules, p_after timestamptz)
  returns timestamptz
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_next timestamptz := teguh._cron_next(
    teguh._read_schedule(p_plan.schedule),
    greatest(p_after, p_plan.starts_at - interval '1 microsecond'),
    p_plan.timezone
  );
begin
  return case when v_next < coalesce(p_plan.ends_at, 'infinity') then v_next end;
end;
$$;

-- What a schedule that is due has to fire, and when it fires next.  All that was missed, up to
-- 100 at a time; or the last, unless what is more than a minute late is not made up for.
create or replace function teguh._due_times(
  p_plan        teguh.schedules,
  p_now         timestamptz,
  out planned   timestamptz[],
  out next_at   timestamptz,
  out missed_at timestamptz
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_last timestamptz := p_plan.planned_at;
  v_upto timestamptz := p_now;
  v_half timestamptz;
begin
  planned := array[v_last];
  next_at := teguh._planned_after(p_plan, v_last);
  if p_plan.catch_up = 'all' then
    while next_at <= p_now and cardinality(planned) < 100 loop
      planned := planned || next_at;
      next_at := teguh._planned_after(p_plan, next_at);
    end loop;
    return;
  end if;

  if next_at <= p_now then
    -- the last one that is due lies between these two
    v_last := next_at;
    while v_upto - v_last >= interval '1 second' loop
      v_half := v_last + (v_upto - v_last) / 2;
      next_at := teguh._planned_after(p_plan, v_half);
      if next_at <= p_now then
        v_last := next_at;
      else
        v_upto := v_half;
      end if;
    end loop;
    next_at := teguh._planned_after(p_plan, v_last);
    planned := array[v_last];
  end if;
  if p_plan.catch_up = 'skip' and v_last < p_now - interval '60 seconds' then
    missed_at := v_last;
    planned := '{}';
  end if;
end;
$$;

-- Spawn the task of a schedule for a planned time, or for the moment at which it is triggered.
-- The jitter of a planned time is always the same.
create or replace function teguh._spawn_scheduled(
  p_plan      teguh.schedules,
  p_at        timestamptz,
  p_triggered boolean,
  p_now       timestamptz
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_start timestamptz := teguh._after(
    p_at, (p_plan.task_options ->> 'delay_seconds')::double precision
  );
begin
  v_start := coalesce(v_start, p_at);
  if not p_triggered and p_plan.jitter_seconds > 0 then
    v_start := teguh._after(v_start, p_plan.jitter_seconds * (
      hashtextextended(p_plan.schedule_name || extract(epoch from p_at), 0) & 1048575
    ) / 1048576);
  end if;

  return query
  select s.*
  from teguh.spawn_task(
    p_plan.queue_name,
    p_plan.task_name,
    p_plan.params,
    p_plan.task_options - 'delay_seconds'
    || jsonb_build_object(
      'headers',
      coalesce(nullif(p_plan.task_options -> 'headers', 'null'), '{}')
      || jsonb_build_object(
        'schedule_name', p_plan.schedule_name,
        'planned_at', to_char(timezone('UTC', p_at), 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'triggered', p_triggered
      )
    )
    || case when v_start > p_now then jsonb_build_object('available_at', v_start) else '{}' end
  ) as s;
end;
$$;

-- Refuse options of a spawn that cannot be the same each time a schedule fires.
create or replace function teguh._check_task_options(p_plan teguh.schedules)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
begin
  perform teguh._check_spawn(
    p_plan.queue_name, p_plan.task_name, p_plan.params, p_plan.task_options, '{}'
  );
  select u.key into v_key
  from unnest(array[
    'idempotency_key', 'idempotency_mismatch', 'available_at', 'deadline_at', 'parent_run_id',
    'parent_queue_name'
  ]) as u(key)
  where p_plan.task_options ? u.key
  limit 1;
  if found then
    raise exception '"%" is no option for the tasks of a schedule', v_key
      using
        errcode = 'TG005',
        detail = 'It means one task or one moment, and a schedule spawns many.',
        hint = 'Options in seconds, such as "ttl_seconds", count from each firing.';
  end if;
end;
$$;

-- Read an option that must be one of some words; its default when absent or null.
create or replace function teguh._word_option(p_options jsonb, p_key text, p_words text[])
  returns text
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_word text := coalesce(teguh._text_option(p_options, p_key), p_words[1]);
begin
  if v_word <> all (p_words) then
    raise exception 'unknown % "%"', p_key, left(v_word, 200)
      using
        errcode = 'TG005',
        detail = format('Known values: %s.', array_to_string(p_words, ', ')),
        hint = 'Check the spelling.';
  end if;

  return v_word;
end;
$$;

-- Set those parts of a schedule that are among the options, and check the whole, or raise TG005.
create or replace function teguh._draw_schedule(p_plan teguh.schedules, p_options jsonb)
  returns teguh.schedules
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan teguh.schedules := p_plan;
begin
  v_plan.timezone := coalesce(teguh._text_option(p_options, 'timezone'), 'UTC');
  v_plan.params := coalesce(p_options -> 'params', 'null');
  v_plan.task_options := coalesce(nullif(p_options -> 'task_options', 'null'), '{}');
  v_plan.catch_up := teguh._word_option(p_options, 'catch_up', '{one,skip,all}');
  v_plan.overlap := teguh._word_option(p_options, 'overlap', '{allow,skip}');
  v_plan.jitter_seconds := coalesce(
    teguh._number_option(p_options, 'jitter_seconds', 0, 1e9), 0
  );
  v_plan.starts_at := teguh._time_option(p_options, 'starts_at');
  v_plan.ends_at := teguh._time_option(p_options, 'ends_at');

  perform teguh._check_name('schedule name', v_plan.schedule_name);
  perform teguh._check_timezone(v_plan.timezone);
  perform teguh._check_task_options(v_plan);
  if v_plan.ends_at <= v_plan.starts_at then
    raise exception 'the schedule ends before it starts'
      using
        errcode = 'TG005',
        detail = format('It starts at %s and ends at %s.', v_plan.starts_at, v_plan.ends_at),
        hint = 'The end itself does not belong to it.';
  elsif teguh._cron_next(
    teguh._read_schedule(v_plan.schedule), teguh.current_time(), v_plan.timezone
  ) is null then
    perform teguh._refuse_schedule(v_plan.schedule, 'The time that it describes never comes.');
  end if;
  return v_plan;
end;
$$;

-- A schedule's options, as create_schedule() takes them.
create or replace function teguh._schedule_options(p_plan teguh.schedules)
  returns jsonb
  language sql
  stable
  set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'timezone', p_plan.timezone, 'params', p_plan.params, 'task_options', p_plan.task_options,
    'catch_up', p_plan.catch_up, 'overlap', p_plan.overlap,
    'jitter_seconds', p_plan.jitter_seconds, 'starts_at', p_plan.starts_at,
    'ends_at', p_plan.ends_at
  );
$$;

-- Raise TG008.
create or replace function teguh._miss_schedule(p_schedule_name text)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'schedule "%" does not exist', left(coalesce(p_schedule_name, 'null'), 200)
    using
      errcode = 'TG008',
      detail = 'No schedule of that name was created in this database, or it was dropped.',
      hint = 'See teguh.list_schedules().';
end;
$$;

-- The queue of a schedule, or TG008.
create or replace function teguh._scheduled_in(p_schedule_name text)
  returns text
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  select s.queue_name into v_queue_name
  from teguh.schedules as s
  where s.schedule_name = p_schedule_name;
  if not found then
    perform teguh._miss_schedule(p_schedule_name);
  end if;
  return v_queue_name;
end;
$$;

-- Lock a schedule of the queue and read it, or raise TG008.
create or replace function teguh._grasp_template(p_schedule_name text)
  returns teguh.schedules
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan teguh.schedules;
begin
  select s.* into v_plan
  from teguh.schedules as s
  where s.schedule_name = p_schedule_name
  for no key update;
  if not found then
    perform teguh._miss_schedule(p_schedule_name);
  elsif v_plan.queue_name <> substr('_template', 2) then
    raise exception 'schedule "%" belongs to another queue', p_schedule_name
      using
        errcode = 'TG004',
        detail = format('It spawns tasks of queue "%s".', v_plan.queue_name),
        hint = 'Take another name, or drop it first.';
  end if;
  return v_plan;
end;
$$;

-- Write a schedule down, or change the one that has its name.
create or replace function teguh._enroll_template(p_plan teguh.schedules)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan teguh.schedules := p_plan;
begin
  perform teguh._check_named(
    substr('_template', 2),
    array(select n.name from teguh._queues_named(p_plan.task_options) as n(name))
  );
  v_plan.queue_name := substr('_template', 2);
  v_plan.created_at := teguh.current_time();
  v_plan.planned_at := teguh._planned_after(v_plan, v_plan.created_at);
  v_plan.next_at := v_plan.planned_at;
  v_plan.open_task_ids := '{}';
  insert into teguh.schedules as s
  select v_plan.*
  on conflict (schedule_name) do nothing;
  if not found then
    perform teguh._redraw_template(teguh._grasp_template(v_plan.schedule_name), v_plan);
    return;
  end if;

  perform teguh._replan_template();
  perform teguh._act_template(
    'create_schedule', null, null, null,
    jsonb_build_object('schedule_name', v_plan.schedule_name)
  );
end;
$$;

-- Change a locked schedule.  What is the same already stays as it is; what is planned changes only
-- with the times.
create or replace function teguh._redraw_template(p_old teguh.schedules, p_new teguh.schedules)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_plan teguh.schedules := p_new;
begin
  if (p_old.schedule, p_old.timezone, p_old.starts_at, p_old.ends_at)
      is not distinct from (p_new.schedule, p_new.timezone, p_new.starts_at, p_new.ends_at)
    or p_old.paused_at is not null
  then
    v_plan.planned_at := p_old.planned_at;
    v_plan.next_at := p_old.next_at;
  end if;

  update teguh.schedules as s
  set
    task_name = v_plan.task_name,
    schedule = v_plan.schedule,
    timezone = v_plan.timezone,
    params = v_plan.params,
    task_options = v_plan.task_options,
    catch_up = v_plan.catch_up,
    overlap = v_plan.overlap,
    jitter_seconds = v_plan.jitter_seconds,
    starts_at = v_plan.starts_at,
    ends_at = v_plan.ends_at,
    planned_at = v_plan.planned_at,
    next_at = v_plan.next_at
  where s.schedule_name = v_plan.schedule_name
    and (
      s.task_name, s.schedule, s.timezone, s.params, s.task_options, s.catch_up, s.overlap,
      s.jitter_seconds, s.starts_at, s.ends_at
    ) is distinct from (
      v_plan.task_name, v_plan.schedule, v_plan.timezone, v_plan.params, v_plan.task_options,
      v_plan.catch_up, v_plan.overlap, v_plan.jitter_seconds, v_plan.starts_at, v_plan.ends_at
    );
  if found then
    perform teguh._replan_template();
    perform teguh._act_template(
      'update_schedule', null, null, null,
      jsonb_build_object('schedule_name', v_plan.schedule_name)
    );
  end if;
end;
$$;

-- Create a schedule, or make one what is said here.
create or replace function teguh.create_schedule(
  p_schedule_name text,
  p_queue_name    text,
  p_task_name     text,
  p_schedule      text,
  p_options       jsonb default '{}'
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_plan    teguh.schedules;
begin
  perform teguh._policy(p_queue_name);
  perform teguh._check_keys('schedule options', v_options, array[
    'params', 'task_options', 'timezone', 'catch_up', 'overlap', 'jitter_seconds', 'starts_at',
    'ends_at'
  ]);
  v_plan.schedule_name := p_schedule_name;
  v_plan.queue_name := p_queue_name;
  v_plan.task_name := p_task_name;
  v_plan.schedule := p_schedule;
  execute teguh._call('enroll', p_queue_name, 1)
  using teguh._draw_schedule(v_plan, v_options);
end;
$$;

comment on function teguh.create_schedule(text, text, text, text, jsonb) is
  'Spawns a task at each time that a schedule names (see next_fire_time()), exactly once, by '
  'ticker() or by a claim of the queue. With a name that exists, the schedule becomes what is said '
  'here; if it is that already, nothing changes, nor does its next time unless the times do. '
  'Options: params; task_options (those of spawn_task() that mean no single task or moment); '
  'timezone (default UTC); catch_up, for times that passed while nobody ticked: one (default: once '
  'for all of them, at the last), all, or skip (none, if later than a minute); overlap: allow '
  '(default), or skip (not at a time when a task it has spawned is not over); jitter_seconds '
  '(start up to so much later, always the same for the same time); starts_at; ends_at (itself '
  'excluded). The headers of the task get schedule_name, planned_at and triggered. A spawn that '
  'fails, as in a full queue, is tried again every 10 seconds. Raises TG001 for an unknown queue, '
  'TG004 if the schedule is another queue''s, TG005 for a bad schedule, name or option.';

-- Change parts of a schedule of the queue.
create or replace function teguh._reform_template(p_schedule_name text, p_changes jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_old teguh.schedules := teguh._grasp_template(p_schedule_name);
  v_new teguh.schedules := v_old;
begin
  perform teguh._check_named(
    substr('_template', 2),
    array(select n.name from teguh._queues_named(p_changes -> 'task_options') as n(name))
  );
  v_new.task_name := case
    when p_changes ? 'task_name' then teguh._text_option(p_changes, 'task_name')
    else v_old.task_name
  end;
  v_new.schedule := case
    when p_changes ? 'schedule' then teguh._text_option(p_changes, 'schedule')
    else v_old.schedule
  end;
  v_new := teguh._draw_schedule(v_new, teguh._schedule_options(v_old) || p_changes);
  v_new.planned_at := teguh._planned_after(v_new, teguh.current_time());
  v_new.next_at := v_new.planned_at;
  perform teguh._redraw_template(v_old, v_new);
end;
$$;

-- Change parts of a schedule.
create or replace function teguh.update_schedule(p_schedule_name text, p_changes jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := teguh._scheduled_in(p_schedule_name);
  v_named      text;
begin
  perform teguh._check_keys('schedule changes', p_changes, array[
    'task_name', 'schedule', 'params', 'task_options', 'timezone', 'catch_up', 'overlap',
    'jitter_seconds', 'starts_at', 'ends_at'
  ]);
  for v_named in
    select n.name
    from teguh._queues_named(p_changes -> 'task_options') as n(name)
  loop
    perform teguh._policy(v_named);
    perform teguh._check_spawner(v_queue_name, v_named);
  end loop;
  execute teguh._call('reform', v_queue_name, 2) using p_schedule_name, p_changes;
end;
$$;

comment on function teguh.update_schedule(text, jsonb) is
  'Sets the parts given of a schedule and leaves the others: task_name, schedule, and the options '
  'of create_schedule(); null sets an option back to its default. When the times change, the next '
  'one is looked for from now on. Raises TG008 for an unknown schedule, TG005 for a bad change.';

-- Pause, resume or drop a schedule of the queue.  Paused, it has no next time; resumed, it has the
-- next from then on.
create or replace function teguh._steer_template(
  p_deed          text,
  p_schedule_name text,
  p_reason        text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now  timestamptz := teguh.current_time();
  v_plan teguh.schedules := teguh._grasp_template(p_schedule_name);
begin
  if p_deed = 'drop_schedule' then
    delete from teguh.schedules as s
    where s.schedule_name = p_schedule_name;
  elsif (p_deed = 'pause_schedule') = (v_plan.paused_at is not null) then
    return;
  else
    update teguh.schedules as s
    set
      paused_at = case p_deed when 'pause_schedule' then v_now end,
      planned_at = p.planned_at,
      next_at = p.planned_at
    from (
      select case p_deed
        when 'resume_schedule' then teguh._planned_after(v_plan, v_now)
      end as planned_at
    ) as p
    where s.schedule_name = p_schedule_name;
  end if;

  if p_deed = 'resume_schedule' then
    perform teguh._replan_template();
  end if;
  perform teguh._act_template(
    p_deed, p_reason, null, null, jsonb_build_object('schedule_name', p_schedule_name)
  );
end;
$$;

-- Pause a schedule.
create or replace function teguh.pause_schedule(
  p_schedule_name text,
  p_reason        text default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('steer', teguh._scheduled_in(p_schedule_name), 3)
  using 'pause_schedule', p_schedule_name, p_reason;
end;
$$;

comment on function teguh.pause_schedule(text, text) is
  'Lets a schedule not fire until resume_schedule(). Times that pass meanwhile are not made up '
  'for. One that is paused already stays so. list_actions() shows p_reason. Raises TG008 for an '
  'unknown schedule.';

-- Resume a schedule.
create or replace function teguh.resume_schedule(
  p_schedule_name text,
  p_reason        text default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('steer', teguh._scheduled_in(p_schedule_name), 3)
  using 'resume_schedule', p_schedule_name, p_reason;
end;
$$;

comment on function teguh.resume_schedule(text, text) is
  'Lets a paused schedule fire again, from its next time on. One that is not paused stays as it '
  'is. list_actions() shows p_reason. Raises TG008 for an unknown schedule.';

-- Drop a schedule.
create or replace function teguh.drop_schedule(
  p_schedule_name text,
  p_reason        text default null
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute teguh._call('steer', teguh._scheduled_in(p_schedule_name), 3)
  using 'drop_schedule', p_schedule_name, p_reason;
end;
$$;

comment on function teguh.drop_schedule(text, text) is
  'Drops a schedule; tasks that it has spawned stay. list_actions() shows p_reason. Raises TG008 '
  'for an unknown schedule.';

-- Fire a schedule of the queue besides what is planned.
create or replace function teguh._launch_template(p_schedule_name text, p_reason text)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_now  timestamptz := teguh.current_time();
  v_plan teguh.schedules := teguh._grasp_template(p_schedule_name);
  v_task record;
begin
  select s.* into v_task
  from teguh._spawn_scheduled(v_plan, v_now, true, v_now) as s;
  update teguh.schedules as s
  set
    last_fired_at = v_now,
    last_task_id = v_task.task_id,
    open_task_ids = case s.overlap
      when 'skip' then teguh._undone_template(s.open_task_ids || s.last_task_id)
      else '{}'
    end
  where s.schedule_name = p_schedule_name;
  perform teguh._act_template(
    'trigger_schedule', p_reason, null, null,
    jsonb_build_object('schedule_name', p_schedule_name, 'task_id', v_task.task_id)
  );
  return query select v_task.task_id, v_task.run_id, v_task.attempt, v_task.created;
end;
$$;

-- Fire a schedule now.
create or replace function teguh.trigger_schedule(
  p_schedule_name text,
  p_reason        text default null
)
  returns table(task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('launch', teguh._scheduled_in(p_schedule_name), 2)
  using p_schedule_name, p_reason;
end;
$$;

comment on function teguh.trigger_schedule(text, text) is
  'Spawns the task of a schedule now, besides those that are planned, also while it is paused or '
  'over, and whatever its overlap. The header planned_at is the present moment, triggered is true. '
  'Returns what spawn_task() does. list_actions() shows p_reason. Raises TG008 for an unknown '
  'schedule, and what spawn_task() raises.';

-- The schedules of the queue, or one of them.
create or replace function teguh._diary_template(p_schedule_name text)
  returns table(
    schedule_name   text,
    queue_name      text,
    task_name       text,
    schedule        text,
    options         jsonb,
    created_at      timestamptz,
    paused_at       timestamptz,
    next_fire_at    timestamptz,
    last_planned_at timestamptz,
    last_fired_at   timestamptz,
    last_skipped_at timestamptz,
    last_task_id    uuid,
    last_error      text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select
    s.schedule_name, s.queue_name, s.task_name, s.schedule,
    teguh._schedule_options(s),
    s.created_at, s.paused_at, s.planned_at, s.last_planned_at, s.last_fired_at,
    s.last_skipped_at, s.last_task_id, s.last_error
  from teguh.schedules as s
  where s.queue_name = substr('_template', 2)
    and s.schedule_name = coalesce(p_schedule_name, s.schedule_name)
  order by s.schedule_name;
end;
$$;

-- Read a schedule.
create or replace function teguh.get_schedule(p_schedule_name text)
  returns table(
    schedule_name   text,
    queue_name      text,
    task_name       text,
    schedule        text,
    options         jsonb,
    created_at      timestamptz,
    paused_at       timestamptz,
    next_fire_at    timestamptz,
    last_planned_at timestamptz,
    last_fired_at   timestamptz,
    last_skipped_at timestamptz,
    last_task_id    uuid,
    last_error      text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('diary', teguh._scheduled_in(p_schedule_name), 1)
  using p_schedule_name;
end;
$$;

comment on function teguh.get_schedule(text) is
  'One row: what the schedule spawns and when; options has all of them, with their defaults. '
  'paused_at is null unless it is paused; next_fire_at is null while it is, and when it is over. '
  'last_planned_at is the last planned time at which it fired, last_fired_at when it did or was '
  'triggered, last_skipped_at the last planned time at which it did not, last_task_id the last '
  'task it spawned, last_error why it could not, null when it could. Raises TG008 for an unknown '
  'schedule.';

-- List schedules.
create or replace function teguh.list_schedules(p_queue_name text default null)
  returns table(
    schedule_name   text,
    queue_name      text,
    task_name       text,
    schedule        text,
    options         jsonb,
    created_at      timestamptz,
    paused_at       timestamptz,
    next_fire_at    timestamptz,
    last_planned_at timestamptz,
    last_fired_at   timestamptz,
    last_skipped_at timestamptz,
    last_task_id    uuid,
    last_error      text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('diary', q.queue_name))
  loop
    continue when p_queue_name is null and not teguh._share_queue(v_queue_name);
    return query execute teguh._call('diary', v_queue_name, 1) using null::text;
  end loop;
end;
$$;

comment on function teguh.list_schedules(text) is
  'The schedules of a queue (null: of each queue the caller may look at), with the columns of '
  'get_schedule(), by queue and name. Raises TG001 for an unknown queue.';

-- sql/src/62_links.sql
-- What follows when a task is over: the next of a sequence, compensation, a report to the parent.
-- All of it happens in the transaction that ends the task.

-- Read what is to follow a task from its options.
create or replace function teguh._links_option(p_queue_name text, p_options jsonb)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_sequence jsonb := nullif(p_options -> 'sequence', 'null');
  v_one      jsonb;
  v_tasks    jsonb := '[]'::jsonb;
begin
  if v_sequence is not null and jsonb_typeof(v_sequence) <> 'array' then
    raise exception '"sequence" must be an array of tasks'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_sequence::text, 200)),
        hint = 'For instance [{"task_name": "pack"}, {"task_name": "ship"}].';
  end if;

  for v_one in
    select s.task
    from jsonb_array_elements(coalesce(v_sequence, '[]')) as s(task)
  loop
    perform teguh._check_keys('task of the sequence', v_one, array[
      'queue_name', 'task_name', 'params', 'options', 'compensate'
    ]);
    v_tasks := v_tasks || (
      teguh._read_link(p_queue_name, v_one - 'compensate')
      || coalesce(teguh._present(jsonb_build_object(
        'compensate', teguh._read_link(p_queue_name, v_one -> 'compensate')
      )), '{}')
    );
  end loop;

  return teguh._present(jsonb_build_object(
    'sequence', nullif(v_tasks, '[]'),
    'on_failure', teguh._read_link(p_queue_name, p_options -> 'on_failure'),
    'compensate', teguh._read_link(p_queue_name, p_options -> 'compensate')
  ));
end;
$$;

-- Read a task that is to be spawned later, in this queue unless it names another; null is none.
create or replace function teguh._read_link(p_queue_name text, p_task jsonb)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  if nullif(p_task, 'null') is null then
    return null;
  end if;

  perform teguh._check_keys(
    'task that follows', p_task, array['queue_name', 'task_name', 'params', 'options']
  );
  v_queue_name := coalesce(teguh._text_option(p_task, 'queue_name'), p_queue_name);
  perform teguh._read_task(v_queue_name, p_task - 'queue_name', teguh._policy(v_queue_name));
  perform teguh._check_spawner(p_queue_name, v_queue_name);
  if p_task -> 'options'
    ?| '{sequence,on_failure,compensate,unique,idempotency_key,parent_run_id}'
  then
    raise exception 'a task that follows cannot have such options'
      using
        errcode = 'TG005',
        detail = 'sequence, on_failure, compensate, unique, idempotency_key and parent_run_id '
          'are for what is spawned by hand.',
        hint = 'Name the tasks one after another in one sequence.';
  elsif jsonb_typeof(coalesce(p_task -> 'params', 'null')) not in ('null', 'object') then
    raise exception 'params of a task that follows must be an object'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left((p_task -> 'params')::text, 200)),
        hint = 'It gets more params from the task before it.';
  end if;

  return teguh._present(p_task || jsonb_build_object('queue_name', v_queue_name));
end;
$$;

-- Spawn a task that follows a locked one, in a full queue, too.  If that cannot be, the locked
-- one says why.
create or replace function teguh._trail_template(
  p_task   teguh.t_template,
  p_what   text,
  p_next   jsonb,
  p_params jsonb,
  p_links  jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text := coalesce(p_next ->> 'queue_name', substr('_template', 2));
  v_policy     jsonb;
  v_spawn      teguh._spawn;
  v_detail     text;
begin
  perform teguh._reach_queue(v_queue_name);
  v_policy := teguh._policy(v_queue_name);
  v_spawn := teguh._read_task(
    v_queue_name,
    jsonb_build_object(
      'task_name', p_next -> 'task_name', 'params', p_params, 'options', p_next -> 'options'
    ),
    v_policy
  );
  v_spawn.parent_task_id := coalesce(v_spawn.parent_task_id, p_task.task_id);
  v_spawn.workflow_run_id := coalesce(v_spawn.workflow_run_id, p_task.workflow_run_id);
  v_spawn.correlation_id := coalesce(v_spawn.correlation_id, p_task.correlation_id);
  if not coalesce(p_next -> 'options' ? 'tags', false) then
    v_spawn.tags := p_task.tags;
  end if;
  v_spawn.links := teguh._present(p_links);
  perform teguh._revouch(v_spawn);
  execute format('select count(*) from teguh._put_%s($1)', v_queue_name) using array[v_spawn];
  perform teguh._abide(v_queue_name, v_policy, v_spawn.priority is not null, false);
exception
  when sqlstate 'TG001' or sqlstate 'TG005' then
    get stacked diagnostics v_detail = message_text;
    update teguh.t_template as t
    set failure_reason = jsonb_build_object('name', p_what, 'message', v_detail)
    where t.task_id = p_task.task_id;
end;
$$;

-- Do what is to follow a locked task, now that it is over.
create or replace function teguh._linked_template(p_task_id uuid, p_state text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template;
begin
  select t.* into v_task
  from teguh.t_template as t
  where t.task_id = p_task_id;

  if p_state <> 'completed' then
    perform teguh._undo_template(v_task);
    if v_task.links ? 'children' then
      perform teguh._orphan_template(p_task_id);
    end if;
  elsif v_task.links ? 'sequence' then
    perform teguh._ensue_template(v_task);
  end if;

  if v_task.links ? 'join' then
    perform teguh._answer(v_task.links -> 'join', p_state);
  end if;
end;
$$;

-- Spawn the next task of the sequence that a completed one is in.
--
-- Its params are the data gathered so far, with its own on top.  A result that is no object is
-- filed under the name of its task.
create or replace function teguh._ensue_template(p_task teguh.t_template)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_links  jsonb := p_task.links;
  v_next   jsonb := v_links -> 'sequence' -> 0;
  v_result jsonb := coalesce(p_task.result, 'null');
  v_data   jsonb := coalesce(v_links -> 'data', '{}');
begin
  if not v_links ? 'backwards' then
    v_data := v_data
              || case when jsonb_typeof(p_task.params) = 'object' then p_task.params else '{}' end
              || case
                when jsonb_typeof(v_result) = 'object' then v_result
                when v_result = 'null' then '{}'
                else jsonb_build_object(p_task.task_name, v_result)
              end;
  end if;

  perform teguh._trail_template(
    p_task, '$Sequence', v_next,
    case
      when v_links ? 'backwards' then coalesce(v_next -> 'params', '{}')
      else v_data || coalesce(v_next -> 'params', '{}')
    end,
    jsonb_build_object(
      'sequence', nullif((v_links -> 'sequence') - 0, '[]'),
      'data', case when not v_links ? 'backwards' then v_data end,
      'backwards', v_links -> 'backwards',
      'on_failure', v_links -> 'on_failure',
      'compensate', v_next -> 'compensate',
      'undo', nullif(
        teguh._undoings(p_task.task_id, p_task.task_name, p_task.params, v_result, v_links), '[]'
      )
    )
  );
end;
$$;

-- What undoes a task that is done and those before it, the last first.
create or replace function teguh._undoings(
  p_task_id   uuid,
  p_task_name text,
  p_params    jsonb,
  p_result    jsonb,
  p_links     jsonb
)
  returns jsonb
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_links ? 'compensate' then jsonb_build_array(
      p_links -> 'compensate' || jsonb_build_object(
        'params',
        coalesce(p_links -> 'compensate' -> 'params', '{}') || jsonb_build_object(
          '$task_id', p_task_id, '$task_name', p_task_name, '$params', p_params,
          '$result', p_result
        )
      )
    )
    else '[]'
  end || coalesce(p_links -> 'undo', '[]');
$$;

-- Spawn what undoes the steps that are done, one after another, and what is to follow a failure.
-- If that is larger than a jsonb can be, the task says so: whoever ends it must be able to.
create or replace function teguh._undo_template(p_task teguh.t_template)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_undo   jsonb := p_task.links -> 'undo';
  v_follow jsonb := p_task.links -> 'on_failure';
begin
  if v_undo is not null then
    perform teguh._trail_template(
      p_task, '$Compensation', v_undo -> 0, coalesce(v_undo -> 0 -> 'params', '{}'),
      jsonb_build_object('sequence', nullif(v_undo - 0, '[]'), 'backwards', true)
    );
    update teguh.t_template as t
    set links = t.links - 'undo'
    where t.task_id = p_task.task_id;
  end if;

  if v_follow is not null then
    perform teguh._trail_template(
      p_task, '$OnFailure', v_follow,
      coalesce(v_follow -> 'params', '{}') || jsonb_build_object(
        '$error', p_task.failure_reason, '$state', p_task.state, '$params', p_task.params,
        '$task_id', p_task.task_id, '$task_name', p_task.task_name
      ),
      null
    );
  end if;
exception
  when program_limit_exceeded then
    update teguh.t_template as t
    set failure_reason = jsonb_build_object(
      'name', '$OnFailure', 'message', 'what is to follow is larger than a jsonb can be'
    )
    where t.task_id = p_task.task_id;
end;
$$;

-- Have a task spawned for a step, should the run's task end without success.
create or replace function teguh._repent_template(
  p_task_id   uuid,
  p_run_id    uuid,
  p_step_name text,
  p_task      jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._own_template(p_task_id, p_run_id);
  v_undo jsonb := coalesce(v_task.links -> 'undo', '[]');
begin
  perform teguh._check_named(substr('_template', 2), array(
    select n.name
    from teguh._queues_named(jsonb_build_object('compensate', p_task)) as n(name)
  ));
  if v_undo @> jsonb_build_array(jsonb_build_object(
    'step', p_step_name, 'params', jsonb_build_object('$task_id', p_task_id)
  )) then
    return;
  end if;

  update teguh.t_template as t
  set links = coalesce(t.links, '{}') || jsonb_build_object(
    'undo',
    jsonb_build_array(p_task || jsonb_build_object(
      'step', p_step_name,
      'params', coalesce(p_task -> 'params', '{}') || jsonb_build_object(
        '$task_id', p_task_id, '$task_name', v_task.task_name, '$step', p_step_name
      )
    )) || v_undo
  )
  where t.task_id = p_task_id;
end;
$$;

-- Register the compensation of a step.
create or replace function teguh.add_compensation(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_task       jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_name('step name', p_step_name);
  if nullif(p_task, 'null') is null then
    raise exception 'the compensation must not be null'
      using
        errcode = '22004',
        detail = 'There is no task to spawn.',
        hint = 'For instance {"task_name": "refund", "params": {"amount": 10}}.';
  end if;

  execute teguh._call('repent', p_queue_name, 4)
  using p_task_id, p_run_id, p_step_name, teguh._read_link(p_queue_name, p_task);
end;
$$;

comment on function teguh.add_compensation(text, uuid, uuid, text, jsonb) is
  'Registers a task ({"task_name", "params", "options", "queue_name"}) that is spawned if the '
  'run''s task, or a later one of its sequence, fails, expires or is cancelled: the compensations '
  'of all steps run one after another, that of the last step first, each when the one before is '
  'completed. In the caller''s transaction, so that it stands or falls with what it is to undo. '
  'Its params also have $task_id, $task_name and $step. A second time for the same step changes '
  'nothing. Raises TG001 for an unknown queue, TG002 for an unknown run or one of another task, '
  'TG004 if nobody holds the run, TG005 for a bad task, 22004 for none, 42501 if the caller may '
  'not spawn it, AB001 if the task is cancelled, AB002 if the run has ended.';

-- End a run with success, and begin the task anew after some time, with no checkpoints, no
-- children, and nothing to undo of its own.  Messages that it has not received stay.
-- max_duration begins anew, too; when it expires does not change.
create or replace function teguh._repeat_template(p_run_id uuid, p_after double precision)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task   teguh.t_template := teguh._hold_template(p_run_id);
  v_now    timestamptz := teguh.current_time();
  v_number integer := teguh._run_number(v_task.run_id) + 1;
  v_at     timestamptz := teguh._after(v_now, p_after);
begin
  if v_number > 1048575 then
    raise exception 'task "%" has no run left', v_task.task_id
      using
        errcode = 'TG004',
        detail = 'A task has at most 1048575 runs.',
        hint = 'Spawn another like it, and complete this one.';
  end if;

  perform teguh._file_template(v_task, 'completed', null, v_now);
  perform teguh._moved_template(v_task, 'c', v_now);
  perform teguh._blank_template(v_task, v_at);
  v_task.state := 'completed';
  perform teguh._again_template(v_task, v_number, 0, null, v_at, v_now);
  return teguh._run_id(v_task.task_id, v_number);
end;
$$;

-- Take from a locked task what belongs to the repetition that is over.
create or replace function teguh._blank_template(p_task teguh.t_template, p_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit timestamptz := least(
    p_task.expires_at,
    teguh._after(p_at, (p_task.cancellation ->> 'max_duration')::double precision)
  );
begin
  delete from teguh.c_template as c
  where c.task_id = p_task.task_id;
  delete from teguh.w_template as w
  where w.task_id = p_task.task_id;
  delete from teguh.j_template as j
  where j.task_id = p_task.task_id;
  delete from teguh.f_template as f
  where f.task_id = p_task.task_id;
  perform teguh._tidy_template(p_task.task_id);

  update teguh.t_template as t
  set
    deadline_at = v_limit,
    links = teguh._present(p_task.links - 'children' || jsonb_build_object('undo', (
      select jsonb_agg(u.one order by u.place)
      from jsonb_array_elements(p_task.links -> 'undo') with ordinality as u(one, place)
      where u.one -> 'params' ->> '$task_id' <> p_task.task_id::text
    )))
  where t.task_id = p_task.task_id;
  if v_limit is not null then
    perform teguh._push_template('l', array[p_task.task_id], array[0], array[v_limit]);
  end if;
end;
$$;

-- Repeat a run.
create or replace function teguh.repeat_run(
  p_queue_name    text,
  p_run_id        uuid,
  p_after_seconds double precision default 0
)
  returns uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_id uuid;
begin
  perform teguh._check_seconds('period', p_after_seconds, true);
  execute teguh._call('repeat', p_queue_name, 2) into v_run_id using p_run_id, p_after_seconds;
  return v_run_id;
end;
$$;

comment on function teguh.repeat_run(text, uuid, double precision) is
  'Ends a run with success, and begins the same task anew in p_after_seconds: another run, without '
  'the checkpoints and children of this one, with all its attempts, and with the messages that it '
  'has not received. Returns its id. A ttl goes on, max_duration begins anew. Raises TG001 for an '
  'unknown queue, TG002 for an unknown run, TG004 if nobody holds the run or after 1048575 runs, '
  'TG005 for a bad period, AB001 if the task is cancelled, AB002 if the run has ended.';

-- sql/src/63_children.sql
-- Children: tasks that a step spawns and may wait for.
--
-- A child that is over leaves a row with its parent's queue, and a timer that makes somebody count
-- them a moment later, when all that committed at the same time can be seen.  Nobody locks the
-- parent for that, so that ten thousand children can end side by side.

-- Lock the task of a run, and see which children a step has (null: none yet) and what they would
-- have of it.
create or replace function teguh._brood_template(
  p_run_id            uuid,
  p_step_name         text,
  out child_ids       uuid[],
  out child_queues    text[],
  out task_id         uuid,
  out workflow_run_id uuid,
  out correlation_id  text,
  out tags            text[]
)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task teguh.t_template := teguh._hold_template(p_run_id);
begin
  select j.child_ids, j.child_queues into child_ids, child_queues
  from teguh.j_template as j
  where j.task_id = v_task.task_id
    and j.step_name = p_step_name;
  task_id := v_task.task_id;
  workflow_run_id := v_task.workflow_run_id;
  correlation_id := v_task.correlation_id;
  tags := v_task.tags;
end;
$$;

-- Write down which children a step of a locked task has.
create or replace function teguh._bind_template(
  p_run_id       uuid,
  p_step_name    text,
  p_ids          uuid[],
  p_queues       text[],
  p_ends_with_us boolean
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task_id uuid := teguh._run_task(p_run_id);
begin
  perform teguh._check_named(substr('_template', 2), p_queues);
  insert into teguh.j_template as j (
    task_id, step_name, run_id, spawned_at, child_ids, child_queues, ends_with_us
  )
  values (
    v_task_id, p_step_name, p_run_id, teguh.current_time(), p_ids, p_queues, p_ends_with_us
  );
  if p_ends_with_us then
    update teguh.t_template as t
    set links = coalesce(t.links, '{}') || '{"children": true}'
    where t.task_id = v_task_id;
  end if;
end;
$$;

-- Read one child to spawn.  One of another workflow run than its parent's is apart: its end
-- matters there.
create or replace function teguh._read_child(
  p_queue_name text,
  p_join       jsonb,
  p_task       jsonb,
  p_like       teguh._spawn
)
  returns teguh._spawn
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_spawn teguh._spawn := teguh._read_task(
    p_queue_name, p_task - 'queue_name', teguh._policy(p_queue_name)
  );
begin
  if v_spawn.idempotency_key is not null or v_spawn.uniqueness is not null then
    raise exception 'a child cannot have an idempotency key or a unique key'
      using
        errcode = 'TG005',
        detail = 'The task of that key might be another''s child, or nobody''s.',
        hint = 'The step''s name makes sure that children are spawned once.';
  elsif v_spawn.links ? 'sequence' then
    raise exception 'a child cannot have a sequence'
      using
        errcode = 'TG005',
        detail = 'Its parent waits for one task.',
        hint = 'Let the child itself spawn what is to follow, and await it.';
  end if;

  v_spawn.parent_task_id := coalesce(v_spawn.parent_task_id, p_like.parent_task_id);
  v_spawn.workflow_run_id := coalesce(v_spawn.workflow_run_id, p_like.workflow_run_id);
  v_spawn.correlation_id := coalesce(v_spawn.correlation_id, p_like.correlation_id);
  if not coalesce(p_task -> 'options' ? 'tags', false) then
    v_spawn.tags := p_like.tags;
  end if;
  v_spawn.links := coalesce(v_spawn.links, '{}') || jsonb_build_object(
    'join',
    p_join || case
      when v_spawn.workflow_run_id is distinct from p_like.workflow_run_id
        then '{"apart": true}'
      else '{}'
    end::jsonb
  );
  return v_spawn;
end;
$$;

-- The queue of each child, the parent's unless it names another.
create or replace function teguh._child_queues(p_queue_name text, p_tasks jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if jsonb_typeof(p_tasks) is distinct from 'array'
    or jsonb_path_exists(p_tasks, '$[*] ? (@.type() != "object")')
  then
    raise exception 'children must be a JSON array of tasks'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_tasks::text, 'null'), 200)),
        hint = 'For instance [{"task_name": "resize", "params": {"width": 100}}].';
  end if;

  return array(
    select coalesce(teguh._text_option(t.task, 'queue_name'), p_queue_name)
    from jsonb_array_elements(p_tasks) with ordinality as t(task, place)
    order by t.place
  );
end;
$$;

-- Spawn children in one queue.  Returns their ids in the order given.
create or replace function teguh._birth(p_queue_name text, p_spawns teguh._spawn[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids uuid[];
begin
  execute format(
    'select array_agg(p.task_id order by p.place) from teguh.%I($1) with ordinality '
    'as p(task_id, run_id, attempt, created, place)', '_put_' || p_queue_name
  ) into v_ids using p_spawns;
  perform teguh._abide(
    p_queue_name,
    teguh._policy(p_queue_name),
    exists (select from unnest(p_spawns) as s where s.priority is not null),
    true
  );
  return v_ids;
end;
$$;

-- Spawn the children of a step.
create or replace function teguh.spawn_children(
  p_queue_name text,
  p_run_id     uuid,
  p_step_name  text,
  p_tasks      jsonb,
  p_options    jsonb default '{}'
)
  returns table(queue_name text, task_id uuid, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_like   teguh._spawn;
  v_join   jsonb := jsonb_build_object('queue_name', p_queue_name, 'step_name', p_step_name);
  v_cancel boolean := teguh._cancel_option(p_options);
  v_queues text[] := teguh._child_queues(p_queue_name, p_tasks);
  v_queue  text;
  v_places bigint[];
  v_spawns teguh._spawn[];
  v_here   teguh._spawn[];
  v_known  text[];
  v_some   uuid[];
  v_ids    uuid[];
begin
  perform teguh._check_name('step name', p_step_name);
  execute teguh._call('brood', p_queue_name, 2)
  into
    v_ids, v_known, v_like.parent_task_id, v_like.workflow_run_id, v_like.correlation_id,
    v_like.tags
  using p_run_id, p_step_name;
  if v_ids is not null then
    return query
    select u.queue_name, u.task_id, false
    from unnest(v_known, v_ids) as u(queue_name, task_id);
    return;
  end if;

  v_join := v_join || jsonb_build_object('task_id', v_like.parent_task_id, 'run_id', p_run_id);
  for v_place in 1 .. cardinality(v_queues) loop
    v_spawns[v_place] := teguh._read_child(
      v_queues[v_place], v_join || jsonb_build_object('place', v_place), p_tasks -> v_place - 1,
      v_like
    );
  end loop;

  for v_queue, v_places in
    select q.name, array_agg(q.place order by q.place)
    from unnest(v_queues) with ordinality as q(name, place)
    group by q.name
    order by q.name
  loop
    perform teguh._check_spawner(v_queue, p_queue_name);
    perform teguh._check_spawner(p_queue_name, v_queue);
    -- in a loop, as a query would copy all of them for each
    v_here := '{}';
    for v_place in 1 .. cardinality(v_places) loop
      v_here[v_place] := v_spawns[v_places[v_place]];
    end loop;
    v_some := teguh._birth(v_queue, v_here);
    for v_place in 1 .. cardinality(v_places) loop
      v_ids[v_places[v_place]] := v_some[v_place];
    end loop;
  end loop;

  execute teguh._call('bind', p_queue_name, 5)
  using p_run_id, p_step_name, coalesce(v_ids, '{}'), v_queues, v_cancel;
  return query
  select u.queue_name, u.task_id, true
  from unnest(v_queues, v_ids) as u(queue_name, task_id);
end;
$$;

comment on function teguh.spawn_children(text, uuid, text, jsonb, jsonb) is
  'Spawns tasks ({"task_name", "params", "options", "queue_name"}) for a step of a run, in the '
  'caller''s transaction: of any queue, as many as there are, and once, whatever is given the '
  'second time. They come back in the order given; created is false if they were there. They have '
  'the run''s task as parent_task_id and, unless they say otherwise, its workflow_run_id, '
  'correlation_id and tags. Options: on_parent_end (leave or cancel: what becomes of them if the '
  'task ends without success; default leave). Raises TG001 for an unknown queue, TG002 for an '
  'unknown run, TG004 if nobody holds the run, TG005 for a bad task or option, TG007 when a queue '
  'is full, AB001 if the task is cancelled, AB002 if the run has ended.';

-- Read whether children are to be cancelled when their parent ends without success.
create or replace function teguh._cancel_option(p_options jsonb)
  returns boolean
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
begin
  perform teguh._check_keys('options', v_options, array['on_parent_end']);
  if teguh._text_option(v_options, 'on_parent_end') not in ('leave', 'cancel') then
    raise exception 'unknown on_parent_end "%"', left(v_options ->> 'on_parent_end', 200)
      using
        errcode = 'TG005',
        detail = 'Known values: leave, cancel.',
        hint = 'leave is the default.';
  end if;
  return coalesce(v_options ->> 'on_parent_end' = 'cancel', false);
end;
$$;

-- Tell a parent that a child is over; null: that it is not over any more.  A queue that was
-- dropped is told nothing.
create or replace function teguh._answer(p_join jsonb, p_state text)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if teguh._reach_queue(p_join ->> 'queue_name') then
    execute format(
      'select teguh.%I($1, $2, $3, $4, $5)', '_report_' || (p_join ->> 'queue_name')
    )
    using
      (p_join ->> 'task_id')::uuid, p_join ->> 'step_name', (p_join ->> 'run_id')::uuid,
      (p_join ->> 'place')::integer, p_state;
  end if;
end;
$$;

-- Write down that a child is over, and see to it that the children are counted a moment later;
-- unless its parent is gone, or has begun anew without it.
create or replace function teguh._report_template(
  p_task_id   uuid,
  p_step_name text,
  p_run_id    uuid,
  p_place     integer,
  p_state     text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_state is null then
    delete from teguh.f_template as f
    where (f.task_id, f.step_name) = (p_task_id, p_step_name)
      and (f.run_id, f.place) = (p_run_id, p_place);
    return;
  end if;

  perform from teguh.j_template as j
  where (j.task_id, j.step_name, j.run_id) = (p_task_id, p_step_name, p_run_id);
  if not found then
    return;
  end if;

  insert into teguh.f_template as f (task_id, step_name, run_id, place, state)
  values (p_task_id, p_step_name, p_run_id, p_place, p_state)
  on conflict (task_id, step_name, run_id, place) do update
  set state = excluded.state;
  perform teguh._tell_template(p_task_id);
end;
$$;

-- Have it looked in a moment whether what a task waits for is there: its children, with whatever
-- else ends until then, or a message.
create or replace function teguh._tell_template(p_task_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._push_template(
    's', array[p_task_id], array[-1], array[teguh.current_time() + interval '20 milliseconds']
  );
end;
$$;

-- How the children of a step stand: whether what is awaited has come true, and whether it still
-- can.  Null if no children were spawned.
create or replace function teguh._judge_template(
  p_task_id   uuid,
  p_step_name text,
  p_mode      text,
  p_fail_fast boolean
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_all    integer;
  v_run_id uuid;
  v_over   integer;
  v_good   integer;
  v_want   integer;
begin
  select cardinality(j.child_ids), j.run_id into v_all, v_run_id
  from teguh.j_template as j
  where j.task_id = p_task_id
    and j.step_name = p_step_name;
  select count(*), count(*) filter (where f.state = 'completed') into v_over, v_good
  from teguh.f_template as f
  where f.task_id = p_task_id
    and f.step_name = p_step_name
    and f.run_id = v_run_id;

  v_want := case p_mode when 'all' then v_all when 'any' then 1 else p_mode::integer end;
  return v_over >= v_all
         or (p_mode <> 'all' and v_good >= v_want)
         or (p_fail_fast and v_all - (v_over - v_good) < v_want);
end;
$$;

-- Whether the children or the message that a task waits for are there.
create or replace function teguh._ripe_template(p_wait teguh.w_template)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_wait.event_name = '$children' then
    return (
      select teguh._judge_template(j.task_id, j.step_name, j.wanted, j.fail_fast)
      from teguh.j_template as j
      where (j.task_id, j.step_name) = (p_wait.task_id, p_wait.step_name)
    );
  end if;

  return starts_with(p_wait.event_name, '$message:') and exists (
    select from teguh.m_template as m
    where m.task_id = p_wait.task_id
      and m.received_by = ''
      and m.topic = substr(p_wait.event_name, length('$message:') + 1)
  );
end;
$$;

-- Wake those of the tasks given whose children have done what they wait for, or who have got the
-- message.  Returns how many.  One that somebody holds locked is looked at again in a second:
-- whoever it is may roll back.  Messages to a task that was removed meanwhile go, too.
create or replace function teguh._gather_template(p_task_ids uuid[], p_now timestamptz)
  returns integer
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_wait  record;
  v_task  teguh.t_template;
  v_count integer := 0;
begin
  if coalesce(p_task_ids, '{}') = '{}' then
    return 0;
  end if;

  delete from teguh.m_template as m
  where m.task_id = any (array(
    select u.task_id
    from unnest(p_task_ids) as u(task_id)
    where not exists (
      select from teguh.t_template as t where t.task_id = u.task_id offset 0
    )
  ));

  for v_wait in
    select w.task_id, w.turn
    from unnest(p_task_ids) as u(task_id)
    join teguh.w_template as w on w.task_id = u.task_id
    where teguh._ripe_template(w)
    order by w.task_id
  loop
    select t.* into v_task
    from teguh.t_template as t
    where (t.task_id, t.turn) = (v_wait.task_id, v_wait.turn)
      and t.state = 'sleeping'
    for no key update skip locked;
    if not found then
      perform teguh._push_template(
        's', array[t.task_id], array[-1], array[p_now + interval '1 second']
      )
      from teguh.t_template as t
      where (t.task_id, t.turn, t.state) = (v_wait.task_id, v_wait.turn, 'sleeping');
      continue;
    end if;

    update teguh.t_template as t
    set
      turn = v_task.turn + 1,
      laned = false,
      state = 'pending',
      available_at = p_now
    where t.task_id = v_task.task_id;
    perform teguh._push_template('r', array[v_task.task_id], array[v_task.turn + 1]);
    perform teguh._moved_template(v_task, 'p');
    v_count := v_count + 1;
  end loop;

  return v_count;
end;
$$;

-- Wait for the children of a step, or learn what became of them.
--
-- The children are counted after the wait is written down, by a timer of its own: of a child that
-- ends at the same moment either this sees that it is over, or that count does.
create or replace function teguh._rally_template(
  p_task_id   uuid,
  p_run_id    uuid,
  p_step_name text,
  p_mode      text,
  p_timeout   double precision,
  p_fail_fast boolean,
  p_cancel    boolean
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := teguh.current_time();
  v_task    teguh.t_template := teguh._own_template(p_task_id, p_run_id);
  v_timeout timestamptz;
  v_done    boolean;
begin
  select false, c.state, c.status = 'timed_out' into should_suspend, payload, timed_out
  from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name;
  if found then
    payload := case when not timed_out then payload end;
    return next;
    return;
  end if;

  v_done := teguh._judge_template(p_task_id, p_step_name, p_mode, p_fail_fast);
  if v_done is null then
    raise exception 'step "%" has no children', left(p_step_name, 200)
      using
        errcode = 'TG004',
        detail = 'None were spawned under that name.',
        hint = 'Call spawn_children() with the same step name first.';
  end if;

  select w.timeout_at into v_timeout
  from teguh.w_template as w
  where w.task_id = p_task_id
    and w.step_name = p_step_name
    and w.event_name = '$children';
  v_timeout := coalesce(v_timeout, teguh._after(v_now, p_timeout));
  if not v_done and (v_timeout is null or v_timeout > v_now) then
    update teguh.j_template as j
    set
      wanted = p_mode,
      fail_fast = p_fail_fast
    where j.task_id = p_task_id
      and j.step_name = p_step_name;
    perform teguh._park_template(v_task, p_step_name, '$children', v_timeout);
    perform teguh._tell_template(p_task_id);
    return query select true, null::jsonb, false;
    return;
  end if;

  if p_cancel then
    perform teguh._dismiss(j.child_queues, j.child_ids, true)
    from teguh.j_template as j
    where j.task_id = p_task_id
      and j.step_name = p_step_name;
  end if;
  payload := case when v_done then teguh._crop_template(p_task_id, p_step_name) end;
  perform teguh._note_template(
    p_task_id, p_step_name, payload, case when v_done then 'committed' else 'timed_out' end,
    p_run_id
  );
  delete from teguh.w_template as w
  where w.task_id = p_task_id;
  return query select false, payload, not v_done;
end;
$$;

-- What became of the children of a step, in the order in which they were spawned.  Of one that is
-- gone with its queue, or was removed, only the state is known.
create or replace function teguh._crop_template(p_task_id uuid, p_step_name text)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_children teguh.j_template;
  v_queue    text;
  v_some     jsonb;
  v_all      jsonb := '{}'::jsonb;
begin
  select j.* into v_children
  from teguh.j_template as j
  where j.task_id = p_task_id
    and j.step_name = p_step_name;
  for v_queue in
    select distinct q.name
    from unnest(v_children.child_queues) as q(name)
  loop
    continue when not teguh._reach_queue(v_queue);
    execute format('select teguh.%I($1)', '_yield_' || v_queue)
    into v_some using v_children.child_ids;
    v_all := v_all || coalesce(v_some, '{}');
  end loop;

  return coalesce(
    (
      select jsonb_agg(
        jsonb_build_object('task_id', c.task_id, 'queue_name', c.queue_name)
        || coalesce(v_all -> c.task_id::text, jsonb_build_object(
          'state', f.state, 'result', null, 'failure_reason', null
        ))
        order by c.place
      )
      from unnest(v_children.child_ids, v_children.child_queues) with ordinality
        as c(task_id, queue_name, place)
      left join lateral (
        select f.state
        from teguh.f_template as f
        where (f.task_id, f.step_name) = (p_task_id, p_step_name)
          and (f.run_id, f.place) = (v_children.run_id, c.place::integer)
        offset 0
      ) as f on true
    ),
    '[]'
  );
end;
$$;

-- What became of those tasks that are of this queue, by their ids.
create or replace function teguh._yield_template(p_task_ids uuid[])
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select jsonb_object_agg(t.task_id, jsonb_build_object(
      'state', t.state, 'result', t.result, 'failure_reason', t.failure_reason
    ))
    from unnest(p_task_ids) as u(task_id)
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
  );
end;
$$;

-- Cancel those of some tasks that are not over: p_wait for those that somebody holds locked, or
-- leave them to a timer.
create or replace function teguh._dismiss(p_queues text[], p_task_ids uuid[], p_wait boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
begin
  for v_queue in
    select distinct q.name
    from unnest(p_queues) as q(name)
    order by q.name
  loop
    continue when not teguh._reach_queue(v_queue);
    execute format('select teguh.%I($1, $2)', '_ditch_' || v_queue) using p_task_ids, p_wait;
  end loop;
end;
$$;

-- Cancel those of some tasks that are of this queue and not over, in the order of their ids.
create or replace function teguh._ditch_template(p_task_ids uuid[], p_wait boolean)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now      timestamptz := teguh.current_time();
  v_task_ids uuid[];
begin
  if p_wait then
    perform from teguh.t_template as t
    where t.task_id = any (p_task_ids)
      and t.state in ('pending', 'running', 'sleeping')
    order by t.task_id
    for no key update;
  end if;
  v_task_ids := array(
    select t.task_id
    from teguh.t_template as t
    where t.task_id = any (p_task_ids)
      and t.state in ('pending', 'running', 'sleeping')
    order by t.task_id
    for no key update skip locked
  );
  perform teguh._stop_template(u.task_id, v_now)
  from unnest(v_task_ids) as u(task_id);

  v_task_ids := array(
    select t.task_id
    from teguh.t_template as t
    where t.task_id = any (p_task_ids)
      and t.state in ('pending', 'running', 'sleeping')
  );
  if v_task_ids <> '{}' then
    perform teguh._push_template(
      'l', v_task_ids, teguh._fill(-1, v_task_ids),
      array_fill(v_now + interval '1 second', array[cardinality(v_task_ids)])
    );
  end if;
end;
$$;

-- Tell the parents and the workflow runs of tasks that go down with their queue: to them they
-- are cancelled.
create or replace function teguh._perish_template()
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._answer(t.links -> 'join', 'cancelled')
  from teguh.t_template as t
  where t.links -> 'join' ->> 'queue_name' <> substr('_template', 2)
    and t.state in ('pending', 'running', 'sleeping');
  perform teguh._score_template(array(
    select t.task_id from teguh.t_template as t where t.workflow_run_id is not null
  ));
end;
$$;

-- Cancel the children that are to end with a task which has.  Claims and tickers end tasks, too,
-- and never wait: a child that somebody holds locked is cancelled a second later.
create or replace function teguh._orphan_template(p_task_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._dismiss(j.child_queues, j.child_ids, false)
  from teguh.j_template as j
  where j.task_id = p_task_id
    and j.ends_with_us;
end;
$$;

-- Wait for the children of a step.
create or replace function teguh.await_children(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_mode       text default 'all',
  p_timeout    double precision default null,
  p_options    jsonb default '{}'
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
begin
  perform teguh._check_isolation('await_children');
  perform teguh._check_name('step name', p_step_name);
  perform teguh._check_keys('options', v_options, array['on_failure', 'cancel_rest']);
  if coalesce(p_mode, '') !~ '^(all|any|[1-9][0-9]{0,8})$'
    or coalesce(teguh._text_option(v_options, 'on_failure'), 'collect')
    not in ('collect', 'fail_fast')
  then
    raise exception 'children are awaited all, any or so many; on_failure is collect or fail_fast'
      using
        errcode = 'TG005',
        detail = format('Found: %s, %s.', left(p_mode, 200), left(v_options::text, 200)),
        hint = 'For instance all, with {"on_failure": "fail_fast"}.';
  end if;
  if p_timeout is not null then
    perform teguh._check_seconds('timeout', p_timeout, true);
  end if;

  return query execute teguh._call('rally', p_queue_name, 7)
  using
    p_task_id, p_run_id, p_step_name, p_mode, p_timeout,
    coalesce(v_options ->> 'on_failure' = 'fail_fast', false),
    teguh._flag_option(v_options, 'cancel_rest');
end;
$$;

comment on function teguh.await_children(
  text, uuid, uuid, text, text, double precision, jsonb
) is
  'Waits for the children that spawn_children() has spawned for a step: p_mode all (over, in '
  'whatever way), any (one completed) or a number (so many completed); if that cannot come true '
  'any more, until all are over. should_suspend: the run now sleeps; the worker lets go of it and '
  'calls again when it is claimed next. Otherwise payload is an array in the order in which they '
  'were spawned, of {"task_id", "queue_name", "state", "result", "failure_reason"}, or timed_out '
  'is true; and so it stays for this step. Options: on_failure (collect, the default; fail_fast: '
  'over as soon as so many have failed that p_mode cannot come true), cancel_rest (true: those not '
  'over by then are cancelled). Raises TG001 for an unknown queue, TG002 for an unknown run or one '
  'of another task, TG004 if nobody holds the run or the step has no children, TG005 for a bad '
  'mode or option, AB001 if the task is cancelled, AB002 if the run has ended, 25001 unless the '
  'transaction is READ COMMITTED.';

-- sql/src/64_workflow_runs.sql
-- Workflow runs: what tasks of any queues belong to together.
--
-- A task names its workflow run by id, and whether there is one of that id does not matter to it.
-- How a run stands is worked out from its tasks, and from what those came to that are gone.

-- Refuse a workflow run that nobody knows.
create or replace function teguh._refuse_run(p_workflow_run_id uuid)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'workflow run "%" does not exist', p_workflow_run_id
    using
      errcode = 'TG009',
      detail = 'None of that id was created, or it was cleaned up.',
      hint = 'list_workflow_runs() shows those there are.';
end;
$$;

-- Read what is to be known of a workflow run.
create or replace function teguh._read_run(p_options jsonb, p_known text[])
  returns teguh.workflow_runs
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run teguh.workflow_runs;
begin
  perform teguh._check_keys('workflow run options', p_options, p_known);
  v_run.version := teguh._name_option(p_options, 'version');
  v_run.inputs := nullif(p_options -> 'inputs', 'null');
  v_run.tags := teguh._tags_option(p_options);
  v_run.created_by := teguh._name_option(p_options, 'created_by');
  v_run.idempotency_key := teguh._name_option(p_options, 'idempotency_key');
  return v_run;
end;
$$;

-- Create a workflow run.
create or replace function teguh.create_workflow_run(p_name text, p_options jsonb default '{}')
  returns table(workflow_run_id uuid, created boolean)
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_run  teguh.workflow_runs := teguh._read_run(
    coalesce(p_options, '{}'),
    array['version', 'inputs', 'tags', 'created_by', 'idempotency_key']
  );
  v_name text;
begin
  perform teguh._check_name('name of a workflow run', p_name);
  v_run.name := p_name;
  v_run.created_at := teguh.current_time();
  v_run.kept_at := v_run.created_at;
  v_run.workflow_run_id := teguh._make_uuidv7(v_run.created_at);
  insert into teguh.workflow_runs as w
  select v_run.*
  on conflict (idempotency_key) where idempotency_key is not null do nothing;
  if found then
    return query select v_run.workflow_run_id, true;
    return;
  end if;

  select w.workflow_run_id, w.name into workflow_run_id, v_name
  from teguh.workflow_runs as w
  where w.idempotency_key = v_run.idempotency_key;
  if not found then
    raise exception 'the workflow run with idempotency key "%" was just removed',
      v_run.idempotency_key
      using
        errcode = '40001',
        detail = 'It was there when this call began, and is gone now.',
        hint = 'Create it again.';
  elsif v_name <> p_name then
    raise exception 'idempotency key "%" belongs to another workflow run', v_run.idempotency_key
      using
        errcode = 'TG006',
        detail = format('Workflow run %s has the name "%s".', workflow_run_id, left(v_name, 200)),
        hint = 'Use another key.';
  end if;
  created := false;
  return next;
end;
$$;

comment on function teguh.create_workflow_run(text, jsonb) is
  'Creates a workflow run, for tasks that are spawned with its id as workflow_run_id and for all '
  'that follow from them, in any queues. Options: version, inputs (any JSON), tags (array of '
  'strings), created_by, idempotency_key (if it is in use, created is false and nothing changes). '
  'Raises TG005 for a bad name or option, TG006 for a key that belongs to a run of another name, '
  '40001 if the run of that key is removed at that moment.';

-- Change a workflow run.
create or replace function teguh.update_workflow_run(p_workflow_run_id uuid, p_options jsonb)
  returns void
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_run teguh.workflow_runs := teguh._read_run(
    p_options, array['version', 'inputs', 'tags', 'created_by']
  );
begin
  update teguh.workflow_runs as w
  set
    version = case when p_options ? 'version' then v_run.version else w.version end,
    inputs = case when p_options ? 'inputs' then v_run.inputs else w.inputs end,
    tags = case when p_options ? 'tags' then v_run.tags else w.tags end,
    created_by = case when p_options ? 'created_by' then v_run.created_by else w.created_by end
  where w.workflow_run_id = p_workflow_run_id;
  if not found then
    perform teguh._refuse_run(p_workflow_run_id);
  end if;
end;
$$;

comment on function teguh.update_workflow_run(uuid, jsonb) is
  'Sets what is given of a workflow run: version, inputs, tags, created_by; null takes it away. '
  'The rest stays as it is. Raises TG009 for an unknown workflow run, TG005 for a bad option.';

-- Whether a workflow run depends on how a task ended.  It does not on a child's end: that is for
-- the child's parent to judge, provided that it belongs to the same run.
create or replace function teguh._is_own(p_links jsonb)
  returns boolean
  language sql
  immutable
as $$
  select
    p_links is null
    or not (p_links operator(pg_catalog.?) 'join')
    or (p_links operator(pg_catalog.->) 'join') operator(pg_catalog.?) 'apart';
$$;

-- How many tasks of workflow runs stand where in this queue.  begun: whether they were ever
-- handed to a worker, or are over.
create or replace function teguh._flow_template(p_run_ids uuid[])
  returns table(
    workflow_run_id uuid,
    state           text,
    own             boolean,
    begun           boolean,
    qty             bigint,
    started_at      timestamptz,
    finished_at     timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    u.run_id, t.state, teguh._is_own(t.links) as is_own,
    t.attempt > 0 or t.state in ('completed', 'failed', 'cancelled', 'expired') as has_begun,
    count(*), min(t.first_started_at), max(t.finished_at)
  from unnest(p_run_ids) as u(run_id)
  cross join lateral (
    select t.*
    from teguh.t_template as t
    where t.workflow_run_id = u.run_id
    offset 0
  ) as t
  group by u.run_id, t.state, is_own, has_begun;
end;
$$;

-- Write down what tasks come to that are about to be deleted, for their workflow runs.  Those that
-- are not over are cancelled, as far as the run is concerned.
create or replace function teguh._score_template(p_task_ids uuid[])
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := teguh.current_time();
begin
  insert into teguh.workflow_tallies as w (
    workflow_run_id, queue_name, state, own, qty, started_at, finished_at
  )
  select
    t.workflow_run_id, substr('_template', 2), t.state, t.own, count(*), min(t.first_started_at),
    max(t.finished_at)
  from (
    select
      t.workflow_run_id, t.first_started_at, teguh._is_own(t.links) as own,
      coalesce(t.finished_at, v_now) as finished_at,
      case
        when t.state in ('pending', 'running', 'sleeping') then 'cancelled'
        else t.state
      end as state
    from unnest(p_task_ids) as u(task_id)
    cross join lateral (
      select t.* from teguh.t_template as t where t.task_id = u.task_id offset 0
    ) as t
    where t.workflow_run_id is not null
  ) as t
  where exists (
    select from teguh.workflow_runs as w where w.workflow_run_id = t.workflow_run_id offset 0
  )
  group by t.workflow_run_id, t.state, t.own;
end;
$$;

-- A workflow run as it was created.
create or replace function teguh._recorded_run(p_run_id uuid)
  returns setof teguh.workflow_runs
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select w.* from teguh.workflow_runs as w where w.workflow_run_id = p_run_id;
$$;

-- What the tasks of workflow runs came to that are gone.
create or replace function teguh._recorded_tallies(p_run_ids uuid[])
  returns setof teguh.workflow_tallies
  language sql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
  select t.* from teguh.workflow_tallies as t where t.workflow_run_id = any (p_run_ids);
$$;

-- How many tasks of workflow runs stand where, in all queues that the caller may look at; those
-- included that are gone, also with their queue.
create or replace function teguh._flows(p_run_ids uuid[])
  returns table(
    workflow_run_id uuid,
    state           text,
    own             boolean,
    begun           boolean,
    qty             bigint,
    started_at      timestamptz,
    finished_at     timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
begin
  for v_queue in
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('flow', q.queue_name)
  loop
    continue when not teguh._share_queue(v_queue);
    return query execute teguh._call('flow', v_queue, 1) using p_run_ids;
  end loop;

  return query
  select t.workflow_run_id, t.state, t.own, true, t.qty, t.started_at, t.finished_at
  from teguh._recorded_tallies(p_run_ids) as t
  where teguh._may('flow', t.queue_name)
    or to_regclass('teguh.t_' || t.queue_name) is null;
end;
$$;

-- How workflow runs stand, by their tasks.
create or replace function teguh._survey(p_run_ids uuid[])
  returns table(
    workflow_run_id uuid,
    status          text,
    started_at      timestamptz,
    finished_at     timestamptz,
    pending         bigint,
    running         bigint,
    sleeping        bigint,
    completed       bigint,
    failed          bigint,
    cancelled       bigint,
    expired         bigint
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    s.run_id,
    case
      when s.running > 0 or s.pending > 0 and s.begun then 'running'
      when s.pending > 0 or not s.begun then 'pending'
      when s.sleeping > 0 then 'sleeping'
      when s.lost then 'failed'
      when s.stopped then 'cancelled'
      else 'completed'
    end,
    s.started_at,
    case when s.pending + s.running + s.sleeping = 0 then s.finished_at end,
    s.pending, s.running, s.sleeping, s.completed, s.failed, s.cancelled, s.expired
  from (
    select
      u.run_id,
      coalesce(bool_or(f.begun), false) as begun,
      coalesce(bool_or(f.own and f.state in ('failed', 'expired')), false) as lost,
      coalesce(bool_or(f.own and f.state = 'cancelled'), false) as stopped,
      min(f.started_at) as started_at,
      max(f.finished_at) as finished_at,
      coalesce(sum(f.qty) filter (where f.state = 'pending'), 0)::bigint as pending,
      coalesce(sum(f.qty) filter (where f.state = 'running'), 0)::bigint as running,
      coalesce(sum(f.qty) filter (where f.state = 'sleeping'), 0)::bigint as sleeping,
      coalesce(sum(f.qty) filter (where f.state = 'completed'), 0)::bigint as completed,
      coalesce(sum(f.qty) filter (where f.state = 'failed'), 0)::bigint as failed,
      coalesce(sum(f.qty) filter (where f.state = 'cancelled'), 0)::bigint as cancelled,
      coalesce(sum(f.qty) filter (where f.state = 'expired'), 0)::bigint as expired
    from unnest(p_run_ids) as u(run_id)
    left join teguh._flows(p_run_ids) as f on f.workflow_run_id = u.run_id
    group by u.run_id
  ) as s;
end;
$$;

-- Look at a workflow run.
create or replace function teguh.get_workflow_run(p_workflow_run_id uuid)
  returns table(
    workflow_run_id uuid,
    name            text,
    version         text,
    status          text,
    tags            text[],
    created_by      text,
    created_at      timestamptz,
    started_at      timestamptz,
    finished_at     timestamptz,
    pending         bigint,
    running         bigint,
    sleeping        bigint,
    completed       bigint,
    failed          bigint,
    cancelled       bigint,
    expired         bigint,
    inputs          jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    s.workflow_run_id, w.name, w.version, s.status, w.tags, w.created_by, w.created_at,
    s.started_at, s.finished_at, s.pending, s.running, s.sleeping, s.completed, s.failed,
    s.cancelled, s.expired, w.inputs
  from teguh._survey(array[p_workflow_run_id]) as s
  left join teguh._recorded_run(p_workflow_run_id) as w on true
  where w.workflow_run_id is not null
    or s.pending + s.running + s.sleeping + s.completed + s.failed + s.cancelled + s.expired > 0;
  if not found then
    perform teguh._refuse_run(p_workflow_run_id);
  end if;
end;
$$;

comment on function teguh.get_workflow_run(uuid) is
  'A workflow run, and how many of its tasks, in the queues that the caller may look at, stand '
  'where, those included that were cleaned up. status is worked out from that. pending: none was '
  'ever handed to a worker; running: one runs, or may be claimed; sleeping: all that are not over '
  'sleep; if all are over, failed if one failed or expired, else cancelled if one was, else '
  'completed. How a child ended is for its parent to judge and does not matter here. It costs as '
  'much as the run has tasks. For an id that was only given to tasks, name and created_at are '
  'null. Raises TG009 for an id that is neither a workflow run''s nor any task''s.';

-- Whether a workflow run is like another in what that one names.
create or replace function teguh._is_alike(p_run teguh.workflow_runs, p_like teguh.workflow_runs)
  returns boolean
  language sql
  immutable
as $$
  select
    (p_like.version is null or p_run.version operator(pg_catalog.=) p_like.version)
    and (
      p_like.created_by is null
      or p_run.created_by operator(pg_catalog.=) p_like.created_by
    )
    and (p_like.tags is null or p_run.tags operator(pg_catalog.@>) p_like.tags);
$$;

-- Up to p_limit workflow runs like one, from p_after up to p_before, the newest first.
create or replace function teguh._recorded_runs(
  p_like   teguh.workflow_runs,
  p_after  uuid,
  p_before uuid,
  p_limit  integer
)
  returns setof teguh.workflow_runs
  language plpgsql
  stable
  security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_like.name is not null then
    return query
    select w.*
    from teguh.workflow_runs as w
    where w.name collate "C" = p_like.name
      and w.workflow_run_id >= p_after and w.workflow_run_id < p_before
      and teguh._is_alike(w, p_like)
    order by w.name collate "C" desc, w.workflow_run_id desc
    limit p_limit;
  else
    return query
    select w.*
    from teguh.workflow_runs as w
    where w.workflow_run_id >= p_after and w.workflow_run_id < p_before
      and teguh._is_alike(w, p_like)
    order by w.workflow_run_id desc
    limit p_limit;
  end if;
end;
$$;

-- Read which statuses a filter names: one, or an array; null if none.
create or replace function teguh._status_option(p_filter jsonb)
  returns text[]
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_value    jsonb := nullif(p_filter -> 'status', 'null');
  v_known    text[] := '{pending,running,sleeping,completed,failed,cancelled}';
  v_statuses jsonb := case
    when jsonb_typeof(v_value) = 'array' then v_value
    else jsonb_build_array(v_value)
  end;
begin
  if v_value is null then
    return null;
  end if;

  if v_statuses = '[]' or not v_statuses <@ to_jsonb(v_known) then
    raise exception '"status" must be a status or an array of them'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_value::text, 200)),
        hint = format('Known: %s.', array_to_string(v_known, ', '));
  end if;

  return array(select s.status from jsonb_array_elements_text(v_statuses) as s(status));
end;
$$;

-- List workflow runs.
create or replace function teguh.list_workflow_runs(
  p_filter jsonb default '{}',
  p_cursor text default null,
  p_limit  integer default 50
)
  returns table(
    workflow_run_id uuid,
    name            text,
    version         text,
    status          text,
    tags            text[],
    created_by      text,
    created_at      timestamptz,
    started_at      timestamptz,
    finished_at     timestamptz,
    pending         bigint,
    running         bigint,
    sleeping        bigint,
    completed       bigint,
    failed          bigint,
    cancelled       bigint,
    expired         bigint,
    cursor          text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_filter   jsonb := coalesce(p_filter, '{}');
  v_like     teguh.workflow_runs := teguh._read_run(v_filter, array[
    'name', 'version', 'tags', 'created_by', 'created_after', 'created_before', 'status'
  ]);
  v_since    timestamptz := teguh._time_option(v_filter, 'created_after');
  v_until    timestamptz := teguh._time_option(v_filter, 'created_before');
  v_statuses text[] := teguh._status_option(v_filter);
  v_after    uuid := coalesce(
    teguh._first_uuid(v_since), '00000000-0000-0000-0000-000000000000'
  );
  v_before   uuid := least(
    teguh._read_cursor(p_cursor), teguh._first_uuid(v_until + interval '1 millisecond')
  );
  v_left     integer := teguh._check_limit(p_limit);
  v_stretch  integer;
  v_page     teguh.workflow_runs[];
  v_count    integer;
begin
  v_like.name := teguh._name_option(v_filter, 'name');
  loop
    v_stretch := case when v_statuses is null then least(v_left, 200) else 200 end;
    v_page := array(
      select w from teguh._recorded_runs(v_like, v_after, v_before, v_stretch) as w
    );
    return query
    select
      w.workflow_run_id, w.name, w.version, s.status, w.tags, w.created_by, w.created_at,
      s.started_at, s.finished_at, s.pending, s.running, s.sleeping, s.completed, s.failed,
      s.cancelled, s.expired, w.workflow_run_id::text
    from unnest(v_page) as w
    join teguh._survey(array(select w.workflow_run_id from unnest(v_page) as w)) as s
      on s.workflow_run_id = w.workflow_run_id
    where (v_statuses is null or s.status = any (v_statuses))
      and (v_since is null or w.created_at >= v_since)
      and (v_until is null or w.created_at < v_until)
    order by w.workflow_run_id desc
    limit v_left;
    get diagnostics v_count = row_count;
    v_left := v_left - v_count;
    exit when v_left = 0 or cardinality(v_page) < v_stretch;
    v_before := (v_page[v_stretch]).workflow_run_id;
  end loop;
end;
$$;

comment on function teguh.list_workflow_runs(jsonb, text, integer) is
  'Workflow runs, the newest first, a page at a time: pass the cursor of a page''s last row for '
  'the next one. The filter may have name, version, tags (an array: all of them), created_by, '
  'created_after (at or after), created_before, status (one, or an array). status and counts are '
  'those of get_workflow_run(): a page costs as much as its runs have tasks, and with status in '
  'the filter also what the runs in between have. name has an index. Raises TG005 for an unknown '
  'key, a bad value, a bad cursor, or a limit that is not from 1 to 10000.';

-- The first tasks of a workflow run in this queue.
create or replace function teguh._member_template(p_run_id uuid, p_limit integer)
  returns table(
    queue_name     text,
    task_id        uuid,
    parent_task_id uuid,
    task_name      text,
    state          text,
    attempts       integer,
    failures       integer,
    created_at     timestamptz,
    started_at     timestamptz,
    finished_at    timestamptz,
    failure_reason jsonb,
    attributes     jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select
    substr('_template', 2), t.task_id, t.parent_task_id, t.task_name, t.state, t.attempt,
    t.failures, t.created_at, t.first_started_at, t.finished_at, t.failure_reason,
    teguh._pinned_template(t.task_id)
  from teguh.t_template as t
  where t.workflow_run_id = p_run_id
  order by t.workflow_run_id, t.task_id
  limit p_limit;
end;
$$;

-- The first tasks of a workflow run in each queue that the caller may look at.
create or replace function teguh._members(p_run_id uuid, p_limit integer)
  returns table(
    queue_name     text,
    task_id        uuid,
    parent_task_id uuid,
    task_name      text,
    state          text,
    attempts       integer,
    failures       integer,
    created_at     timestamptz,
    started_at     timestamptz,
    finished_at    timestamptz,
    failure_reason jsonb,
    attributes     jsonb
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
begin
  for v_queue in
    select q.queue_name
    from teguh.list_queues() as q
    where teguh._may('member', q.queue_name)
  loop
    continue when not teguh._share_queue(v_queue);
    return query execute teguh._call('member', v_queue, 2) using p_run_id, p_limit;
  end loop;
end;
$$;

-- Show the tasks of a workflow run as a tree, each right below its parent.
--
-- A parent is older than its task, so that nothing is above itself.
create or replace function teguh.get_workflow_tree(
  p_workflow_run_id uuid,
  p_limit           integer default 1000
)
  returns table(
    depth          integer,
    queue_name     text,
    task_id        uuid,
    parent_task_id uuid,
    task_name      text,
    state          text,
    attempts       integer,
    failures       integer,
    created_at     timestamptz,
    started_at     timestamptz,
    finished_at    timestamptz,
    failure_reason jsonb,
    attributes     jsonb,
    cut            boolean
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  with recursive members as materialized (
    select m.*, row_number() over (order by m.created_at, m.task_id) as place
    from teguh._members(p_workflow_run_id, teguh._check_limit(p_limit) + 1) as m
  ),

  shown as materialized (
    select m.*
    from members as m
    where m.place <= p_limit
  ),

  tree as (
    select s.task_id, s.created_at, 0 as steps, array[s.place] as places
    from shown as s
    where not exists (
      select
      from shown as p
      where p.task_id = s.parent_task_id and p.created_at <= s.created_at
    )
    union all
    select s.task_id, s.created_at, p.steps + 1, p.places || s.place
    from tree as p
    join shown as s on s.parent_task_id = p.task_id and s.created_at >= p.created_at
  )

  select
    t.steps, s.queue_name, s.task_id, s.parent_task_id, s.task_name, s.state, s.attempts,
    s.failures, s.created_at, s.started_at, s.finished_at, s.failure_reason, s.attributes,
    (select count(*) from members) > p_limit
  from tree as t
  join shown as s on s.task_id = t.task_id
  order by t.places;
  if not found then
    perform from teguh._recorded_run(p_workflow_run_id);
    if not found then
      perform teguh._refuse_run(p_workflow_run_id);
    end if;
  end if;
end;
$$;

comment on function teguh.get_workflow_tree(uuid, integer) is
  'The tasks of a workflow run in the queues that the caller may look at, as a tree: a task is '
  'followed by those that have it as parent, one level deeper, the oldest first. One whose parent '
  'is not in the run, or gone, is at level 0. No more than the p_limit oldest; cut tells, in every '
  'row, that there are more. started_at is when it was first handed to a worker. Raises TG005 for '
  'a limit that is not from 1 to 10000, TG009 for an id that is neither a workflow run''s nor any '
  'task''s.';

-- Those of some workflow runs that have a task in this queue.
create or replace function teguh._used_template(p_run_ids uuid[])
  returns setof uuid
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select u.run_id
  from unnest(p_run_ids) as u(run_id)
  where exists (
    select from teguh.t_template as t where t.workflow_run_id = u.run_id offset 0
  );
end;
$$;

-- Those of some workflow runs that have a task; null when a queue cannot be looked at.
create or replace function teguh._needed_runs(p_run_ids uuid[])
  returns uuid[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
  v_some  uuid[];
  v_used  uuid[] := '{}';
begin
  for v_queue in
    select q.queue_name
    from teguh.list_queues() as q
  loop
    if not teguh._share_queue(v_queue) then
      return null;
    end if;
    execute format('select array(%s)', teguh._call('used', v_queue, 1))
    into v_some
    using array(
      select u.run_id from unnest(p_run_ids) as u(run_id) where u.run_id <> all (v_used)
    );
    v_used := v_used || v_some;
  end loop;

  return v_used;
end;
$$;

-- Add up what tasks of workflow runs came to that are gone, so that a run without end does not
-- gather more and more of it.
create or replace function teguh._merge_tallies(p_run_ids uuid[])
  returns void
  language sql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
  with taken as (
    delete from teguh.workflow_tallies as t
    where t.workflow_run_id = any (p_run_ids)
    returning t.*
  )

  insert into teguh.workflow_tallies as w (
    workflow_run_id, queue_name, state, own, qty, started_at, finished_at
  )
  select
    t.workflow_run_id, t.queue_name, t.state, t.own, sum(t.qty), min(t.started_at),
    max(t.finished_at)
  from taken as t
  group by t.workflow_run_id, t.queue_name, t.state, t.own;
$$;

-- Remove old workflow runs.  What is in use is looked at again after another p_ttl_seconds.
create or replace function teguh.cleanup_workflow_runs(
  p_ttl_seconds double precision default null,
  p_limit       integer default null
)
  returns integer
  language plpgsql
  volatile
  security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := teguh.current_time();
  v_ttl     double precision := coalesce(p_ttl_seconds, (
    select greatest(2592000, max((q.policy ->> 'cleanup_ttl')::double precision))
    from teguh.queues as q
  ));
  v_limit   integer := teguh._check_limit(coalesce(p_limit, 1000));
  v_before  timestamptz;
  v_run_ids uuid[];
  v_used    uuid[];
begin
  perform teguh._check_seconds('ttl', v_ttl, true);
  v_before := teguh._after(v_now, -v_ttl);
  v_run_ids := array(
    select w.workflow_run_id
    from teguh.workflow_runs as w
    where w.kept_at <= v_before
    order by w.kept_at
    limit v_limit
    for update skip locked
  );
  v_used := teguh._needed_runs(v_run_ids);
  if v_used is null then
    return 0;
  end if;

  update teguh.workflow_runs as w
  set kept_at = v_now
  where w.workflow_run_id = any (v_used);
  perform teguh._merge_tallies(v_used);
  v_run_ids := array(
    select u.run_id from unnest(v_run_ids) as u(run_id) where u.run_id <> all (v_used)
  );
  update teguh.workflow_runs as w
  set kept_at = t.ended_at
  from (
    select t.workflow_run_id, max(t.finished_at) as ended_at
    from teguh.workflow_tallies as t
    where t.workflow_run_id = any (v_run_ids)
    group by t.workflow_run_id
  ) as t
  where w.workflow_run_id = t.workflow_run_id
    and t.ended_at > v_before;
  v_run_ids := array(
    select w.workflow_run_id
    from teguh.workflow_runs as w
    where w.workflow_run_id = any (v_run_ids)
      and w.kept_at <= v_before
  );

  delete from teguh.workflow_tallies as t
  where t.workflow_run_id = any (v_run_ids);
  delete from teguh.workflow_runs as w
  where w.workflow_run_id = any (v_run_ids);
  return cardinality(v_run_ids);
end;
$$;

comment on function teguh.cleanup_workflow_runs(double precision, integer) is
  'Removes workflow runs that have no task in any queue and were created, and had their last task '
  'end, more than p_ttl_seconds ago; looks at up to p_limit, and returns how many it removed. One '
  'that still has tasks is looked at again after another p_ttl_seconds. Null: 30 days, or the '
  'longest cleanup_ttl of any queue if that is longer, and 1000. cleanup_all_queues() calls it. '
  'Raises TG005 for a bad argument.';

-- sql/src/65_attributes.sql
-- Attributes: what a task says of itself while it runs, so that it can be found by it.

-- A value as text, the same for equal values: 1.0 is 1.
create or replace function teguh._word(p_value jsonb)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select case jsonb_typeof(p_value)
    when 'number' then trim_scale(p_value::numeric)::text
    else p_value::text
  end;
$$;

-- Refuse attributes that cannot be.  Both name and value are in the key of an index, hence the
-- limits.
create or replace function teguh._check_attributes(p_attributes jsonb)
  returns void
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_bad record;
begin
  if jsonb_typeof(p_attributes) is distinct from 'object' then
    raise exception 'attributes must be a JSON object'
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(coalesce(p_attributes::text, 'null'), 200)),
        hint = 'For instance {"customer": "c-17", "amount": 250}.';
  end if;

  perform teguh._check_name('name of an attribute', a.key)
  from jsonb_each(p_attributes) as a;

  select a.key, a.value into v_bad
  from jsonb_each(p_attributes) as a
  where jsonb_typeof(a.value) not in ('string', 'number', 'boolean')
    or octet_length(teguh._word(a.value)) > 1024
  limit 1;
  if found then
    raise exception 'attribute "%" must be a string, a number, true or false',
      left(v_bad.key, 200)
      using
        errcode = 'TG005',
        detail = format('Found: %s.', left(v_bad.value::text, 200)),
        hint = 'As JSON text it may have 1024 bytes.';
  end if;
end;
$$;

-- Read the attributes of a filter; null when absent, null or empty.
create or replace function teguh._attributes_option(p_filter jsonb)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_attributes jsonb := nullif(p_filter -> 'attributes', 'null');
begin
  if v_attributes is not null then
    perform teguh._check_attributes(v_attributes);
  end if;
  return nullif(v_attributes, '{}');
end;
$$;

-- The attributes of a task, as an object.
create or replace function teguh._pinned_template(p_task_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(
    (
      select jsonb_object_agg(v.name, v.word::jsonb)
      from teguh.v_template as v
      where v.task_id = p_task_id
    ),
    '{}'
  );
end;
$$;

-- Set attributes of the task of a run that is held.
create or replace function teguh._pin_template(p_run_id uuid, p_attributes jsonb)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._hold_template(p_run_id);
begin
  delete from teguh.v_template as v
  where v.task_id = v_task.task_id
    and p_attributes -> v.name = 'null';
  insert into teguh.v_template as v (task_id, name, word)
  select v_task.task_id, a.key, teguh._word(a.value)
  from jsonb_each(p_attributes) as a
  where a.value <> 'null'
  on conflict (task_id, name) do update
  set word = excluded.word
  where v.word <> excluded.word;

  if (select count(*) from teguh.v_template as v where v.task_id = v_task.task_id) > 64 then
    raise exception 'task "%" would have more than 64 attributes', v_task.task_id
      using
        errcode = 'TG005',
        detail = 'Each is a row of an index, to find the task by.',
        hint = 'Take away what nobody looks for: {"name": null}.';
  end if;
end;
$$;

-- Set attributes of a run's task.
create or replace function teguh.set_attributes(
  p_queue_name text,
  p_run_id     uuid,
  p_attributes jsonb
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_attributes(case
    when jsonb_typeof(p_attributes) = 'object' then coalesce(teguh._present(p_attributes), '{}')
    else p_attributes
  end);
  execute teguh._call('pin', p_queue_name, 2) using p_run_id, p_attributes;
end;
$$;

comment on function teguh.set_attributes(text, uuid, jsonb) is
  'Publishes attributes of a run''s task, in the caller''s transaction: names with strings, '
  'numbers, true or false, by which list_tasks() and all that takes its filter find the task. '
  'Those not named stay as they are; null takes one away. They stay with the task until it is '
  'cleaned up, also when it is retried or repeated. Names and values have up to 1024 bytes, a '
  'task up to 64 attributes. Raises TG001 for an unknown queue, TG002 for an unknown run, TG004 '
  'if nobody holds the run, TG005 for a bad attribute or too many, AB001 if the task is '
  'cancelled, AB002 if the run has ended.';

-- The attributes of a task that exists.
create or replace function teguh._told_template(p_task_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._fetch_template(p_task_id);
  return teguh._pinned_template(p_task_id);
end;
$$;

-- Read the attributes of a task.
create or replace function teguh.get_attributes(p_queue_name text, p_task_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_attributes jsonb;
begin
  execute teguh._call('told', p_queue_name, 1) into v_attributes using p_task_id;
  return v_attributes;
end;
$$;

comment on function teguh.get_attributes(text, uuid) is
  'What a task has published by set_attributes(), as an object; {} if nothing. Raises TG001 for '
  'an unknown queue, TG003 for an unknown task.';

-- sql/src/66_messages.sql
-- Messages: a mailbox per task.
--
-- A sender locks nothing of the task: it leaves a row, and a timer that makes somebody look into
-- the mailbox a moment later, when both that row and the wait for it can be seen.

-- Raise why a task takes no message, if it does not.
create or replace function teguh._shut_template(p_task_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._fetch_template(p_task_id);
  v_most integer;
begin
  if v_task.state not in ('pending', 'running', 'sleeping') then
    raise exception 'task "%" is %', p_task_id, v_task.state
      using
        errcode = 'TG004',
        detail = 'Nobody would receive the message.',
        hint = 'If it is to be run again, retry it first.';
  end if;

  select (q.policy ->> 'max_messages')::integer into v_most
  from teguh.queues as q
  where q.queue_name = substr('_template', 2)
    and q.policy ? 'max_messages';
  if not found then
    return;
  end if;

  perform from teguh.m_template as m
  where m.task_id = p_task_id
    and m.received_by = ''
  limit 1 offset v_most - 1;
  if found then
    raise exception 'the mailbox of task "%" is full', p_task_id
      using
        errcode = 'TG007',
        detail = format('It has the %s messages that the queue''s policy allows.', v_most),
        hint = 'Send again later, or set "max_messages" higher.';
  end if;
end;
$$;

-- Put a message into a mailbox, unless it was sent before.  A key is remembered after the message
-- was received, too, and asked for first: a sender that did not hear the answer may learn it even
-- when the task is over by now.
create or replace function teguh._post_template(
  p_task_id uuid,
  p_topic   text,
  p_payload jsonb,
  p_key     text
)
  returns table(message_id bigint, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known teguh.m_template;
begin
  loop
    select m.* into v_known
    from teguh.m_template as m
    where m.task_id = p_task_id
      and m.idempotency_key = p_key;
    exit when found;

    perform teguh._shut_template(p_task_id);
    insert into teguh.m_template as m (task_id, n, sent_at, topic, payload, idempotency_key)
    values (
      p_task_id, nextval('teguh.seq_template'::regclass), teguh.current_time(), p_topic, p_payload,
      p_key
    )
    on conflict (task_id, idempotency_key) where idempotency_key is not null do nothing
    returning m.n, true into message_id, created;
    if found then
      perform teguh._tell_template(p_task_id);
      return next;
      return;
    end if;
  end loop;

  if (v_known.topic, v_known.payload) is distinct from (p_topic, p_payload) then
    raise exception 'idempotency key "%" belongs to another message', p_key
      using
        errcode = 'TG006',
        detail = format('Topic and payload of message %s differ from these.', v_known.n),
        hint = 'Use a key that names one message.';
  end if;

  return query select v_known.n, false;
end;
$$;

-- Send a message.
create or replace function teguh.send_message(
  p_queue_name text,
  p_task_id    uuid,
  p_topic      text,
  p_payload    jsonb default null,
  p_options    jsonb default '{}'
)
  returns table(message_id bigint, created boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
begin
  perform teguh._check_name('topic', p_topic);
  perform teguh._check_keys('options of a message', v_options, array['idempotency_key']);

  return query execute teguh._call('post', p_queue_name, 4)
  using
    p_task_id, p_topic, coalesce(p_payload, 'null'),
    teguh._name_option(v_options, 'idempotency_key');
end;
$$;

comment on function teguh.send_message(text, uuid, text, jsonb, jsonb) is
  'Sends a message to a task that is not over, in the caller''s transaction: it waits in the '
  'task''s mailbox until receive_message() takes it, once. Messages of a topic that were sent one '
  'after the other are received in that order. A null payload is JSON null. Option: '
  'idempotency_key (a second message of that key to the task is not sent, also when the first has '
  'been received: created is false, message_id the first one''s; remembered as long as the task, '
  'and if it repeats, as long as the queue''s cleanup_ttl says). Raises TG001 for an unknown '
  'queue, TG003 for an unknown task, TG004 for one that is over, TG005 for a bad topic or option, '
  'TG006 if the key belongs to a message of another topic or payload, TG007 if max_messages of '
  'the queue''s policy are waiting (as far as that can be seen while others are sending).';

-- Take the first message of a topic out of a mailbox, or wait for one.
--
-- The mailbox is looked at again after the wait is written down, by a timer of its own: of a
-- message that is sent at the same moment either this sees the row, or that look does.  The
-- message becomes the checkpoint of the step as it is taken.
create or replace function teguh._hear_template(
  p_task_id   uuid,
  p_run_id    uuid,
  p_step_name text,
  p_topic     text,
  p_timeout   double precision
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now     timestamptz := teguh.current_time();
  v_task    teguh.t_template := teguh._own_template(p_task_id, p_run_id);
  v_event   text := '$message:' || p_topic;
  v_timeout timestamptz;
  v_message teguh.m_template;
begin
  select false, c.state, c.status = 'timed_out' into should_suspend, payload, timed_out
  from teguh.c_template as c
  where c.task_id = p_task_id
    and c.checkpoint_name = p_step_name;
  if found then
    payload := case when not timed_out then payload end;
    return next;
    return;
  end if;

  select w.timeout_at into v_timeout
  from teguh.w_template as w
  where w.task_id = p_task_id
    and w.step_name = p_step_name
    and w.event_name = v_event;
  v_timeout := coalesce(v_timeout, teguh._after(v_now, p_timeout));
  select m.* into v_message
  from teguh.m_template as m
  where m.task_id = p_task_id
    and m.received_by = ''
    and m.topic = p_topic
  order by m.n
  limit 1;
  timed_out := not found;
  if timed_out and (v_timeout is null or v_timeout > v_now) then
    perform teguh._park_template(v_task, p_step_name, v_event, v_timeout);
    perform teguh._tell_template(p_task_id);
    return query select true, null::jsonb, false;
    return;
  end if;

  update teguh.m_template as m
  set received_by = p_step_name
  where m.task_id = p_task_id
    and m.received_by = ''
    and m.topic = p_topic
    and m.n = v_message.n;
  perform teguh._note_template(
    p_task_id, p_step_name, v_message.payload,
    case when timed_out then 'timed_out' else 'committed' end, p_run_id
  );
  delete from teguh.w_template as w
  where w.task_id = p_task_id;
  return query select false, v_message.payload, timed_out;
end;
$$;

-- Receive a message.
create or replace function teguh.receive_message(
  p_queue_name text,
  p_task_id    uuid,
  p_run_id     uuid,
  p_step_name  text,
  p_topic      text,
  p_timeout    double precision default null
)
  returns table(should_suspend boolean, payload jsonb, timed_out boolean)
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_isolation('receive_message');
  perform teguh._check_name('step name', p_step_name);
  perform teguh._check_name('topic', p_topic);
  if p_timeout is not null then
    perform teguh._check_seconds('timeout', p_timeout, true);
  end if;

  return query execute teguh._call('hear', p_queue_name, 5)
  using p_task_id, p_run_id, p_step_name, p_topic, p_timeout;
end;
$$;

comment on function teguh.receive_message(text, uuid, uuid, text, text, double precision) is
  'Takes the oldest message of a topic out of the mailbox of a run''s task, in the caller''s '
  'transaction, and stores it as the checkpoint of the step: another step gets the next message, '
  'the same step the same one again. should_suspend: there was none, and the run now sleeps until '
  'one is sent or p_timeout seconds (null: for ever) have passed; the worker lets go of it and '
  'calls again when it is claimed next. Otherwise the wait is over, with the payload or '
  'timed_out, and stays so for this step. A message that is there when the time is over was in '
  'time. Raises TG001 for an unknown queue, TG002 for an unknown run or one of another task, TG004 '
  'if nobody holds the run, TG005 for a bad name or timeout, AB001 if the task is cancelled, AB002 '
  'if the run has ended, 25001 unless the transaction is READ COMMITTED.';

-- Put the messages back that were received by steps of a locked task from some time on.
create or replace function teguh._unhear_template(p_task_id uuid, p_since timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  update teguh.m_template as m
  set received_by = ''
  where m.task_id = p_task_id
    and m.received_by in (
      select c.checkpoint_name
      from teguh.c_template as c
      where c.task_id = p_task_id
        and c.updated_at >= p_since
    );
end;
$$;

-- Forget the messages that a locked task has received, now that it repeats.  Their keys are
-- remembered for some time: a sender may not have heard yet that it was sent.
create or replace function teguh._tidy_template(p_task_id uuid)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  delete from teguh.m_template as m
  using teguh.queues as q
  where q.queue_name = substr('_template', 2)
    and m.task_id = p_task_id
    and m.received_by <> ''
    and (
      m.idempotency_key is null
      or m.sent_at <= teguh._after(
        teguh.current_time(),
        -coalesce((q.policy ->> 'cleanup_ttl')::double precision, 2592000)
      )
    );
  update teguh.m_template as m
  set received_by = ' '
  where m.task_id = p_task_id
    and m.received_by not in ('', ' ');
end;
$$;

-- The messages that wait in a task's mailbox.
create or replace function teguh._inbox_template(p_task_id uuid)
  returns table(
    message_id      bigint,
    topic           text,
    payload         jsonb,
    sent_at         timestamptz,
    idempotency_key text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select m.n, m.topic, m.payload, m.sent_at, m.idempotency_key
  from teguh.m_template as m
  where m.task_id = p_task_id
    and m.received_by = ''
  order by m.n;
  if not found then
    perform teguh._fetch_template(p_task_id);
  end if;
end;
$$;

-- List the messages of a task that have not been received.
create or replace function teguh.list_messages(p_queue_name text, p_task_id uuid)
  returns table(
    message_id      bigint,
    topic           text,
    payload         jsonb,
    sent_at         timestamptz,
    idempotency_key text
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query execute teguh._call('inbox', p_queue_name, 1) using p_task_id;
end;
$$;

comment on function teguh.list_messages(text, uuid) is
  'The messages in a task''s mailbox that it has not received, in the order in which they were '
  'sent. Those that it has are among its checkpoints. Raises TG001 for an unknown queue, TG003 '
  'for an unknown task.';

-- sql/src/70_handlers.sql
-- Handlers that are SQL functions, and what they can call; 71_work runs them.
--
-- A handler is run from its first line, in a pass.  Steps that have a checkpoint give it.  The
-- first one that has none raises an order, which ends the pass and takes back what it has written.
--
-- An order has the SQLSTATE P0004, which "when others" does not catch: a handler's own exception
-- blocks let it through.

-- Find a function by its name, which must be qualified, and one of these lists of arguments that
-- it may have.  Gives its name as it is to be called.
create or replace function teguh._resolve_function(p_function text, p_arguments text[])
  returns text
  language plpgsql
  stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_parts text[];
begin
  begin
    v_parts := parse_ident(p_function);
  exception
    when invalid_parameter_value then
      null;
  end;
  if cardinality(v_parts) is distinct from 2 then
    raise exception 'not the name of a function: "%"', left(coalesce(p_function, 'null'), 200)
      using
        errcode = 'TG005',
        detail = 'A schema and a name are needed: nothing is looked up in a search_path.',
        hint = 'For instance shop.charge, without arguments.';
  end if;

  perform from pg_proc as p
  join pg_namespace as n on n.oid = p.pronamespace
  where (n.nspname, p.proname) = (v_parts[1], v_parts[2])
    and oidvectortypes(p.proargtypes) = any (p_arguments)
    and p.prorettype = 'jsonb'::regtype
    and p.prokind = 'f'
    and not p.proretset;
  if not found then
    raise exception 'function %(%) does not exist', left(p_function, 200), p_arguments[1]
      using
        errcode = '42883',
        detail = coalesce(
          (
            select format(
              'There is: %s.', string_agg(
                p.oid::regprocedure || ' returning ' || pg_get_function_result(p.oid), '; '
              )
            )
            from pg_proc as p
            join pg_namespace as n on n.oid = p.pronamespace
            where (n.nspname, p.proname) = (v_parts[1], v_parts[2])
              and p.prokind = 'f'
            having count(*) > 0
          ),
          'There is none of that name.'
        ),
        hint = format('It takes %s and returns jsonb.', array_to_string(p_arguments, ' or '));
  end if;

  return format('%I.%I', v_parts[1], v_parts[2]);
end;
$$;

-- Set the handler of a task; null: take it away.  Gives whether there was one.
create or replace function teguh._hire_template(p_task_name text, p_function text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known boolean;
begin
  delete from teguh.handlers as h
  where h.queue_name = substr('_template', 2)
    and h.task_name = p_task_name;
  v_known := found;
  if p_function is not null then
    insert into teguh.handlers as h (queue_name, task_name, function_name, registered_at)
    values (substr('_template', 2), p_task_name, p_function, teguh.current_time());
  end if;
  return v_known;
end;
$$;

-- Register a handler.
create or replace function teguh.register_handler(
  p_queue_name text,
  p_task_name  text,
  p_function   text
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_name('task name', p_task_name);
  execute teguh._call('hire', p_queue_name, 2)
  using p_task_name, teguh._resolve_function(p_function, array['teguh.job']);
end;
$$;

comment on function teguh.register_handler(text, text, text) is
  'Lets work() run a function for a queue''s tasks of a name, * for all those that have no handler '
  'of their own. It is given by schema and name, takes one argument of the type teguh.job and '
  'returns jsonb, the task''s result. What was registered before for that name is replaced. '
  'Raises TG001 for an unknown queue, TG005 for a bad name, 42883 if there is no such function.';

-- Take a handler away.
create or replace function teguh.unregister_handler(p_queue_name text, p_task_name text)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_known boolean;
begin
  execute teguh._call('hire', p_queue_name, 2) into v_known using p_task_name, null::text;
  return v_known;
end;
$$;

comment on function teguh.unregister_handler(text, text) is
  'Takes back what register_handler() did. Returns whether there was a handler. Raises TG001 for '
  'an unknown queue.';

-- The handlers of the queue.
create or replace function teguh._staff_template()
  returns table(
    queue_name    text,
    task_name     text,
    function_name text,
    registered_at timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select h.*
  from teguh.handlers as h
  where h.queue_name = substr('_template', 2)
  order by h.task_name;
end;
$$;

-- List handlers.
create or replace function teguh.list_handlers(p_queue_name text default null)
  returns table(
    queue_name    text,
    task_name     text,
    function_name text,
    registered_at timestamptz
  )
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_name text;
begin
  if p_queue_name is not null then
    perform teguh._policy(p_queue_name);
  end if;

  for v_queue_name in
    select q.queue_name
    from teguh.list_queues() as q
    where q.queue_name = p_queue_name
      or (p_queue_name is null and teguh._may('staff', q.queue_name))
  loop
    continue when p_queue_name is null and not teguh._share_queue(v_queue_name);
    return query execute teguh._call('staff', v_queue_name, 0);
  end loop;
end;
$$;

comment on function teguh.list_handlers(text) is
  'The handlers of a queue (null: of each queue the caller may look at) by queue and task name: '
  'function_name is with its schema. Raises TG001 for an unknown queue.';

-- What a step is called in this pass.  A name that comes again is numbered, as by the Python
-- context.  The names so far are kept in a setting; where an exception block is undone, so are the
-- names of the steps in it, and it finds the same steps when it is tried again.
create or replace function teguh._number_step(p_name text)
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_names text[] := nullif(current_setting('teguh.steps', true), '');
  v_count integer := cardinality(array_positions(v_names, p_name));
begin
  perform teguh._check_name('step name', p_name);
  if p_name ~ '#[0-9]+$' then
    raise exception 'a step cannot be named "%"', left(p_name, 200)
      using
        errcode = 'TG005',
        detail = 'That is how steps are numbered whose name comes again.',
        hint = 'Give it another name.';
  elsif v_names is null then
    raise exception 'step "%" is not in a handler', left(p_name, 200)
      using
        errcode = 'TG004',
        detail = 'A handler''s steps are run by work(), and have no steps themselves.',
        hint = 'Register the handler, spawn its task, and: call teguh.work(queue);';
  end if;

  perform set_config('teguh.steps', (v_names || p_name)::text, true);
  return p_name || case when v_count > 0 then '#' || v_count + 1 else '' end;
end;
$$;

-- End a pass: what is to be done now, work() has to do.
create or replace function teguh._order(p_order jsonb)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'an order for teguh.work()'
    using
      errcode = 'P0004',
      detail = p_order::text,
      hint = 'Whoever catches this loses a step: let it pass.';
end;
$$;

-- Run a step.
create or replace function teguh.step(
  p_job      teguh.job,
  p_name     text,
  p_function text,
  p_argument jsonb default 'null'
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := teguh._number_step(p_name);
begin
  if p_job.steps ? v_step then
    return p_job.steps -> v_step -> 0;
  end if;

  return teguh._order(jsonb_build_object(
    'do', 'step', 'step', v_step, 'function', p_function, 'argument', coalesce(p_argument, 'null')
  ));
end;
$$;

comment on function teguh.step(teguh.job, text, text, jsonb) is
  'For handlers: what a function returns for an argument, or what it returned the first time. It '
  'is given by schema and name, takes jsonb, or teguh.job and jsonb (if there are both, the run '
  'fails), and returns jsonb. What it writes commits together with that it is done: exactly once. '
  'An error in it fails the run, and '
  'is not for the handler to catch. A name used again in a handler is numbered (charge, charge#2): '
  'the steps must come in the same order each time. Raises TG004 outside of a handler, TG005 for a '
  'bad name.';

-- Sleep until a moment, which the first pass that comes here says.
create or replace function teguh._doze(p_job teguh.job, p_name text, p_until timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step  text := teguh._number_step(p_name);
  v_until timestamptz := coalesce((p_job.steps -> v_step ->> 0)::timestamptz, p_until);
begin
  if not p_job.steps ? v_step or v_until > teguh.current_time() then
    perform teguh._order(jsonb_build_object('do', 'sleep', 'step', v_step, 'until', v_until));
  end if;
end;
$$;

-- Let a handler sleep.
create or replace function teguh.sleep_for(
  p_job     teguh.job,
  p_name    text,
  p_seconds double precision
)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform teguh._check_seconds('sleep', p_seconds, true);
  perform teguh._doze(p_job, p_name, teguh._after(teguh.current_time(), p_seconds));
end;
$$;

comment on function teguh.sleep_for(teguh.job, text, double precision) is
  'For handlers: lets the task sleep for some seconds, counted once. Meanwhile nobody holds it. '
  'Raises TG004 outside of a handler, TG005 for a bad name or number of seconds.';

-- Let a handler sleep until a moment.
create or replace function teguh.sleep_until(p_job teguh.job, p_name text, p_wake_at timestamptz)
  returns void
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_wake_at is null then
    raise exception 'wake time must not be null'
      using
        errcode = '22004',
        detail = 'A task that sleeps must have a time to wake at.',
        hint = 'Pass a timestamp; one in the past does not let it sleep.';
  end if;
  perform teguh._doze(p_job, p_name, p_wake_at);
end;
$$;

comment on function teguh.sleep_until(teguh.job, text, timestamptz) is
  'For handlers: lets the task sleep until a moment; the one given first counts. Raises 22004 for '
  'a null time, TG004 outside of a handler, TG005 for a bad name.';

-- Wait for an event in a handler.
create or replace function teguh.await(
  p_job        teguh.job,
  p_name       text,
  p_event_name text,
  p_timeout    double precision default null
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := teguh._number_step(p_name);
begin
  if p_job.steps ? v_step then
    return p_job.steps -> v_step -> 0;
  end if;

  perform teguh._check_event(p_event_name);
  if p_timeout is not null then
    perform teguh._check_seconds('timeout', p_timeout, true);
  end if;
  return teguh._order(jsonb_build_object(
    'do', 'await', 'step', v_step, 'event', p_event_name, 'timeout', p_timeout
  ));
end;
$$;

comment on function teguh.await(teguh.job, text, text, double precision) is
  'For handlers: the payload of an event of the task''s queue, JSON null if it has none; SQL null '
  'if it has not come within p_timeout seconds (null: however long it takes). Meanwhile nobody '
  'holds the task. Raises TG004 outside of a handler, TG005 for a bad name or timeout.';

-- Receive a message in a handler.
create or replace function teguh.receive(
  p_job     teguh.job,
  p_name    text,
  p_topic   text,
  p_timeout double precision default null
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := teguh._number_step(p_name);
begin
  if p_job.steps ? v_step then
    return p_job.steps -> v_step -> 0;
  end if;

  return teguh._order(jsonb_build_object(
    'do', 'receive', 'step', v_step, 'topic', p_topic, 'timeout', p_timeout
  ));
end;
$$;

comment on function teguh.receive(teguh.job, text, text, double precision) is
  'For handlers: takes the oldest message of a topic out of the task''s mailbox, as '
  'receive_message() does, or waits for one. Returns its payload, JSON null if it has none; SQL '
  'null if none has come within p_timeout seconds (null: however long it takes). Meanwhile nobody '
  'holds the task. Raises TG004 outside of a handler, TG005 for a bad name; the run fails with '
  'what receive_message() raises.';

-- Spawn children in a handler and wait for them.
create or replace function teguh.children(
  p_job     teguh.job,
  p_name    text,
  p_tasks   jsonb,
  p_mode    text default 'all',
  p_timeout double precision default null,
  p_options jsonb default '{}'
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step text := teguh._number_step(p_name);
begin
  if p_job.steps ? v_step then
    return p_job.steps -> v_step -> 0;
  end if;

  return teguh._order(jsonb_build_object(
    'do', 'children', 'step', v_step, 'tasks', p_tasks, 'mode', p_mode, 'timeout', p_timeout,
    'options', coalesce(p_options, '{}')
  ));
end;
$$;

comment on function teguh.children(
  teguh.job, text, jsonb, text, double precision, jsonb
) is
  'For handlers: spawns tasks as spawn_children() does, and waits for them as await_children() '
  'does, with the options of both. Returns what became of them, an array in the order in which '
  'they were given; SQL null if that is not known within p_timeout seconds (null: however long it '
  'takes). Raises TG004 outside of a handler, TG005 for a bad name; the run fails with what the '
  'two raise.';

-- sql/src/71_work.sql
-- The worker that runs handlers which are SQL functions: the database itself.
--
-- work() catches the order that a pass has come to, carries it out, commits, and begins another
-- pass.  So every step is a transaction of its own, though a function cannot commit.  The pass that
-- comes to the handler's end commits together with the completion.

-- The handlers of a queue by task name, for whoever is about to run them.
--
-- Refuses one whose owner could not act as the caller anyway: who may register handlers, or
-- replace the function, must not gain the rights of whoever calls work(), which by pg_cron is
-- teguh's owner.
create or replace function teguh._crew(p_queue_name text)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_handler record;
  v_owner   regrole;
  v_found   jsonb := '{}'::jsonb;
begin
  for v_handler in
    select h.task_name, h.function_name
    from teguh.list_handlers(p_queue_name) as h
  loop
    v_found := v_found || jsonb_build_object(
      v_handler.task_name, teguh._resolve_function(v_handler.function_name, array['teguh.job'])
    );
    select p.proowner into v_owner
    from pg_proc as p
    where p.oid = (v_handler.function_name || '(teguh.job)')::regprocedure;
    if not pg_has_role(v_owner, current_user, 'member') then
      raise exception 'function % is not for role "%" to run', v_handler.function_name, current_user
        using
          errcode = '42501',
          detail = format('It is %s''s, who is not a member of that role.', v_owner),
          hint = format(
            'Call work() as the owner of its handlers, or: grant %I to %s;', current_user, v_owner
          );
    end if;
  end loop;

  if v_found = '{}' then
    raise exception 'queue "%" has no handlers', p_queue_name
      using
        errcode = 'TG004',
        detail = 'Its tasks are for workers elsewhere, or for nobody.',
        hint = format(
          'Register functions: select teguh.register_handler(%L, task name, function);',
          p_queue_name
        );
  end if;
  return v_found;
end;
$$;

-- What the steps of a run have given, as teguh.job has it; null if a jsonb cannot hold it: then the
-- run has failed.
create or replace function teguh._steps_given(p_queue_name text, p_task_id uuid, p_run_id uuid)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select coalesce(
      jsonb_object_agg(
        s.checkpoint_name,
        case s.status when 'timed_out' then '[]' else jsonb_build_array(s.state) end
      ),
      '{}'
    )
    from teguh.get_task_checkpoint_states(p_queue_name, p_task_id, p_run_id) as s
  );
exception
  when program_limit_exceeded then
    perform teguh.fail_run(p_queue_name, p_run_id, jsonb_build_object(
      'name', '$Checkpoints', 'message', 'the checkpoints are together larger than a jsonb can be'
    ));
    return null;
end;
$$;

-- Claim runs: of any name or, if so wanted, of those that there are handlers for.
create or replace function teguh._claim_batch(
  p_queue_name text,
  p_handlers   jsonb,
  p_shift      teguh._shift
)
  returns teguh.job[]
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := case
    when p_shift.known_only
      then jsonb_build_object('task_names', array(select jsonb_object_keys(p_handlers)))
    else '{}'
  end;
begin
  if p_shift.known_only and p_handlers ? '*' then
    raise exception 'known_only does not go with a handler for *'
      using
        errcode = 'TG005',
        detail = 'That handler knows every name.',
        hint = 'Leave one of them out.';
  end if;

  return array(
    select (
      c.queue_name, c.task_id, c.run_id, c.task_name, c.params, c.headers, c.attempt, c.failures,
      c.wake_event, c.event_payload,
      case when c.checkpoints = '{}' then c.checkpoints
        else teguh._steps_given(c.queue_name, c.task_id, c.run_id)
      end
    )::teguh.job
    from teguh.claim_any(
      array[p_queue_name], p_shift.worker_id, p_shift.lease,
      least(p_shift.batch, p_shift.left_to_claim), v_options
    ) as c
  );
end;
$$;

-- Lock the task of a run that was claimed until the transaction ends, so that nobody takes it for
-- lost however long that is.  False if its time is over.
create or replace function teguh._grip_template(p_run_id uuid)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_task teguh.t_template := teguh._hold_template(p_run_id);
begin
  return coalesce(
    teguh._after(v_task.started_at, v_task.timeout_seconds) > teguh.current_time(), true
  );
end;
$$;

-- Begin a pass, unless the run was lost, cancelled, or has no handler and is handed back.
create or replace function teguh._begin_pass(
  p_job     teguh.job,
  p_handler text,
  p_delay   double precision
)
  returns boolean
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_held boolean;
begin
  execute teguh._call('grip', p_job.queue_name, 1) into v_held using p_job.run_id;
  if p_handler is null then
    perform teguh.release_run(p_job.queue_name, p_job.run_id, p_delay);
    return false;
  end if;
  return v_held;
exception
  when sqlstate 'AB001' or sqlstate 'AB002' or sqlstate 'TG002' or sqlstate 'TG004' then
    return false;
end;
$$;

-- Read an error: it is an order, or else fails the run, with a reason as other workers give it.
create or replace function teguh._read_error(
  p_sqlstate text,
  p_message  text,
  p_detail   text,
  p_hint     text,
  p_context  text
)
  returns jsonb
  language plpgsql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_sqlstate = 'P0004' and p_message = 'an order for teguh.work()' then
    return p_detail::jsonb;
  end if;

  return jsonb_build_object('do', 'fail', 'reason', jsonb_strip_nulls(jsonb_build_object(
    'name', p_sqlstate,
    'message', p_message,
    'detail', nullif(p_detail, ''),
    'hint', nullif(p_hint, ''),
    'traceback', left(p_context, 10000)
  )));
end;
$$;

-- Do with a locked run what a pass has come to.  Gives what its steps have given by then, null if
-- the run is not ours any more; it is not, either, if the handler or step itself has ended it.
create or replace function teguh._carry_out(
  p_job    teguh.job,
  p_order  jsonb,
  p_result jsonb,
  p_lease  double precision
)
  returns jsonb
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_step  text := p_order ->> 'step';
  v_given jsonb := jsonb_build_array(p_result);
  v_waits boolean := false;
begin
  case p_order ->> 'do'
    when 'complete' then
      perform teguh.complete_run(p_job.queue_name, p_job.run_id, p_result);
      return null;
    when 'fail' then
      perform teguh.fail_run(p_job.queue_name, p_job.run_id, p_order -> 'reason');
      return null;
    when 'step' then
      perform teguh.set_task_checkpoint_state(
        p_job.queue_name, p_job.task_id, v_step, p_result, p_job.run_id
      );
    when 'sleep' then
      perform teguh.set_task_checkpoint_state(
        p_job.queue_name, p_job.task_id, v_step, p_order -> 'until', p_job.run_id
      );
      v_given := jsonb_build_array(p_order -> 'until');
      v_waits := (p_order ->> 'until')::timestamptz > teguh.current_time();
      if v_waits then
        perform teguh.schedule_run(
          p_job.queue_name, p_job.run_id, (p_order ->> 'until')::timestamptz
        );
      end if;
    when 'await' then
      select a.should_suspend, case when a.timed_out then '[]' else jsonb_build_array(a.payload) end
      into v_waits, v_given
      from teguh.await_event(
        p_job.queue_name, p_job.task_id, p_job.run_id, v_step, p_order ->> 'event',
        (p_order ->> 'timeout')::double precision
      ) as a;
    when 'receive' then
      select a.should_suspend, case when a.timed_out then '[]' else jsonb_build_array(a.payload) end
      into v_waits, v_given
      from teguh.receive_message(
        p_job.queue_name, p_job.task_id, p_job.run_id, v_step, p_order ->> 'topic',
        (p_order ->> 'timeout')::double precision
      ) as a;
    when 'children' then
      perform teguh.spawn_children(
        p_job.queue_name, p_job.run_id, v_step, p_order -> 'tasks',
        (p_order -> 'options') - array['on_failure', 'cancel_rest']
      );
      select a.should_suspend, case when a.timed_out then '[]' else jsonb_build_array(a.payload) end
      into v_waits, v_given
      from teguh.await_children(
        p_job.queue_name, p_job.task_id, p_job.run_id, v_step, p_order ->> 'mode',
        (p_order ->> 'timeout')::double precision, (p_order -> 'options') - 'on_parent_end'
      ) as a;
  end case;

  if v_waits then
    return null;
  end if;
  perform teguh.extend_claim(p_job.queue_name, p_job.run_id, p_lease);
  return p_job.steps || jsonb_build_object(v_step, v_given);
exception
  when sqlstate 'AB001' or sqlstate 'AB002' or sqlstate 'TG004' then
    return null;
end;
$$;

-- Run a handler.  If it comes to its end, so does its run, in one piece, and p_order is null.
-- Otherwise what it has written is taken back, and p_order is what it has come to.
--
-- User code finds its own search_path here: every name is qualified.
create or replace procedure teguh._run_pass(p_job teguh.job, p_handler text, out p_order jsonb)
  language plpgsql
as $$
declare
  v_result  pg_catalog.jsonb;
  v_state   pg_catalog.text;
  v_message pg_catalog.text;
  v_detail  pg_catalog.text;
  v_hint    pg_catalog.text;
  v_context pg_catalog.text;
begin
  -- in one query with what is not for parallel workers, so that the handler is not, either
  execute pg_catalog.format(
    'select %s($1) where pg_catalog.set_config($2, $3, true) is not null', p_handler
  ) into v_result using p_job, 'teguh.steps', '{}';
  set constraints all immediate;
  perform teguh._carry_out(p_job, '{"do": "complete"}', v_result, null);
  p_order := null;
exception
  when others or assert_failure then
    get stacked diagnostics
      v_state = returned_sqlstate,
      v_message = message_text,
      v_detail = pg_exception_detail,
      v_hint = pg_exception_hint,
      v_context = pg_exception_context;
    p_order := teguh._read_error(v_state, v_message, v_detail, v_hint, v_context);
end;
$$;

-- The statement that calls a step's function with its argument, $1, and the job, $2.
create or replace function teguh._step_call(p_order jsonb)
  returns text
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_function text := teguh._resolve_function(
    p_order ->> 'function', array['jsonb', 'teguh.job, jsonb']
  );
begin
  if to_regprocedure(v_function || '(teguh.job, jsonb)') is null then
    return format('select %s($1)', v_function);
  elsif to_regprocedure(v_function || '(jsonb)') is not null then
    raise exception 'there are two functions %', v_function
      using
        errcode = 'TG005',
        detail = 'One takes jsonb, the other teguh.job and jsonb.',
        hint = 'Give them different names: whoever adds one must not take the place of the other.';
  end if;

  return format('select %s($2, $1)', v_function);
end;
$$;

-- Carry out an order: run the step's function, or let the run wait.  Gives what its steps have
-- given by then, null if the run is not ours any more.  An error takes all of it back and fails the
-- run.
create or replace procedure teguh._obey(
  p_job       teguh.job,
  p_order     jsonb,
  p_lease     double precision,
  out p_steps jsonb
)
  language plpgsql
as $$
declare
  v_result  pg_catalog.jsonb;
  v_state   pg_catalog.text;
  v_message pg_catalog.text;
  v_detail  pg_catalog.text;
  v_hint    pg_catalog.text;
  v_context pg_catalog.text;
begin
  if pg_catalog.jsonb_exists(p_order, 'function') then
    execute teguh._step_call(p_order)
    into v_result
    using pg_catalog.jsonb_extract_path(p_order, 'argument'), p_job;
    set constraints all immediate;
  end if;
  p_steps := teguh._carry_out(p_job, p_order, v_result, p_lease);
exception
  when others or assert_failure then
    get stacked diagnostics
      v_state = returned_sqlstate,
      v_message = message_text,
      v_detail = pg_exception_detail,
      v_hint = pg_exception_hint,
      v_context = pg_exception_context;
    p_steps := teguh._carry_out(
      p_job, teguh._read_error(v_state, v_message, v_detail, v_hint, v_context), null, null
    );
end;
$$;

-- Read the options of work().
create or replace function teguh._begin_shift(p_options jsonb)
  returns teguh._shift
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_options jsonb := coalesce(p_options, '{}');
  v_shift   teguh._shift;
begin
  perform teguh._check_keys('work options', v_options, array[
    'batch', 'claim_timeout', 'known_only', 'limit', 'max_seconds', 'poll_seconds',
    'unknown_delay', 'worker_id'
  ]);
  v_shift.worker_id := coalesce(
    teguh._name_option(v_options, 'worker_id'), format('work:%s', pg_backend_pid())
  );
  v_shift.batch := coalesce(teguh._integer_option(v_options, 'batch', 1), 1);
  v_shift.lease := coalesce(teguh._number_option(v_options, 'claim_timeout', 0.001, 1e9), 30);
  v_shift.known_only := teguh._flag_option(v_options, 'known_only');
  v_shift.unknown_delay := coalesce(
    teguh._number_option(v_options, 'unknown_delay', 0.01, 1e9), 10
  );
  v_shift.poll_seconds := coalesce(
    teguh._number_option(v_options, 'poll_seconds', 0.01, 3600), 1
  );
  v_shift.until := teguh._after(
    clock_timestamp(), teguh._number_option(v_options, 'max_seconds', 0, 1e9)
  );
  v_shift.left_to_claim := coalesce(
    teguh._integer_option(v_options, 'limit', 1), 2147483647
  );
  return v_shift;
end;
$$;

-- Tick, at most every ten seconds, before claiming.
create or replace function teguh._begin_round(p_queue_name text, p_shift teguh._shift)
  returns teguh._shift
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_shift teguh._shift := p_shift;
begin
  if v_shift.ticks_at > clock_timestamp() then
    return v_shift;
  end if;

  perform teguh.ticker(p_queue_name);
  v_shift.ticks_at := clock_timestamp() + interval '10 seconds';
  return v_shift;
end;
$$;

-- See how long to pause after so many runs: until the next one is due.
create or replace function teguh._leave_round(
  p_queue_name text,
  p_shift      teguh._shift,
  p_claimed    integer
)
  returns teguh._shift
  language plpgsql
  volatile
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now   timestamptz := clock_timestamp();
  v_shift teguh._shift := p_shift;
  v_next  double precision;
begin
  v_shift.left_to_claim := p_shift.left_to_claim - p_claimed;
  if v_shift.left_to_claim <= 0
    or v_shift.until <= v_now
    or (v_shift.until is null and p_claimed = 0)
  then
    v_shift.pause := null;
  elsif p_claimed > 0 then
    v_shift.pause := 0;
  else
    v_next := date_part('epoch', teguh.next_due(p_queue_name) - teguh.current_time());
    v_shift.pause := least(
      date_part('epoch', v_shift.until - v_now), v_shift.poll_seconds,
      case when v_next < 0.01 then 0.01 else v_next end
    );
  end if;
  return v_shift;
end;
$$;

-- The handler of a task; null if there is none.
create or replace function teguh._handler_of(p_handlers jsonb, p_task_name text)
  returns text
  language sql
  immutable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p_handlers ->> p_task_name, p_handlers ->> '*');
$$;

-- Take a run a step further, in a transaction of its own.  Gives what its steps have given by then,
-- null if the run is not ours any more.
--
-- The task is locked from the beginning of the pass until what came of a step is committed.  To
-- wait it is let go of before: an event's row is locked before the task's.
create or replace procedure teguh._advance(
  p_job       teguh.job,
  p_handler   text,
  p_lease     double precision,
  out p_steps jsonb
)
  language plpgsql
as $$
declare
  v_order pg_catalog.jsonb;
begin
  call teguh._run_pass(p_job, p_handler, v_order);
  if v_order is not null then
    if not pg_catalog.jsonb_exists(v_order, 'function') then
      rollback;
    end if;
    call teguh._obey(p_job, v_order, p_lease, p_steps);
  end if;
  commit;
end;
$$;

-- Work as a worker.
--
-- A procedure that commits cannot pin its search_path: every name is qualified.
create or replace procedure teguh.work(p_queue_name text, p_options jsonb default '{}')
  language plpgsql
as $$
declare
  v_shift    teguh._shift := teguh._begin_shift(p_options);
  v_handlers pg_catalog.jsonb;
  v_handler  pg_catalog.text;
  v_jobs     teguh.job[];
  v_job      teguh.job;
begin
  loop
    v_handlers := teguh._crew(p_queue_name);
    v_shift := teguh._begin_round(p_queue_name, v_shift);
    commit;
    v_jobs := teguh._claim_batch(p_queue_name, v_handlers, v_shift);
    commit;

    foreach v_job in array v_jobs loop
      v_handler := teguh._handler_of(v_handlers, v_job.task_name);
      if v_handler is null then  -- unless it was registered meanwhile
        v_handlers := teguh._crew(p_queue_name);
        v_handler := teguh._handler_of(v_handlers, v_job.task_name);
      end if;
      while v_job.steps is not null
        and teguh._begin_pass(v_job, v_handler, v_shift.unknown_delay)
      loop
        call teguh._advance(v_job, v_handler, v_shift.lease, v_job.steps);
      end loop;
      commit;
    end loop;

    v_shift := teguh._leave_round(p_queue_name, v_shift, pg_catalog.cardinality(v_jobs));
    commit;
    exit when v_shift.pause is null;
    perform pg_catalog.pg_sleep(v_shift.pause);
  end loop;
end;
$$;

comment on procedure teguh.work(text, jsonb) is
  'Works as a worker of a queue: claims runs, runs their handlers (register_handler()) with the '
  'rights and the search_path of the caller, commits after each step, and returns when nothing is '
  'due. Options: max_seconds (go on for so long, waiting for what becomes due), poll_seconds (the '
  'longest wait between two looks, default 1), limit (of runs), batch (how many to claim at a '
  'time, default 1), claim_timeout (seconds after which the run of a session that died is taken '
  'from it, default 30; a step may take longer), known_only (claim only tasks that there are '
  'handlers for: see claim_any()), unknown_delay (seconds for which others are handed back, '
  'default 10), worker_id. Not for a transaction block. Raises TG001 for an unknown queue, TG004 '
  'if it has no handlers, TG005 for a bad option, 42883 if a handler''s function is gone, 42501 if '
  'its owner is no member of the caller''s role, 25001 unless transactions are READ COMMITTED.';

-- sql/src/90_finish.sql
-- The second segment's functions are those of the first with 0 and 1 exchanged.
do $$
declare
  v_ddl text;
begin
  for v_ddl in
    select pg_catalog.pg_get_functiondef(p.oid)
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and p.proname ~ '^_[a-z]+0_template$'
  loop
    execute replace(
      replace(replace(v_ddl, '0_template', '#_template'), '1_template', '0_template'),
      '#_template', '1_template'
    );
  end loop;
end;
$$;

-- These functions of a queue are the doors to its tables: they run with the rights of teguh's
-- owner, and who may execute them is for grant_access() to say.
--
-- Fix the shape of their plans.  Segments have no statistics, and a plan is
-- made while they are all but empty: every access must be by index, in order, row by
-- row.  A task's table may be empty when a session makes its plans, too.  Where a plan
-- cannot follow, the settings make it look so expensive that it would be compiled.
do $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and substring(p.proname from '^_([a-z]+)_template$') in (
        select v.verb
        from teguh._rights as r
        cross join lateral unnest(r.verbs) as v(verb)
      )
  loop
    execute pg_catalog.format(
      'alter function %s security definer set plan_cache_mode = force_generic_plan '
      'set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off '
      'set enable_mergejoin = off set enable_sort = off set jit = off',
      v_function
    );
  end loop;
end;
$$;

-- The template is a queue like any other; and queues that exist get what it has, those from
-- before 0.2.0 also the counts and lists of their tasks.
do $$
declare
  v_queue_name text;
begin
  perform teguh._init_template();
  perform teguh._stamp_queues(array(select q.queue_name from teguh.queues as q order by 1));

  for v_queue_name in
    select q.queue_name
    from teguh.queues as q
  loop
    execute pg_catalog.format(
      'select teguh._init_%1$s(), teguh._census_%1$s(), teguh._recap_%1$s()', v_queue_name
    );
  end loop;
end;
$$;

-- Nothing is for everybody, but what was granted holds for new functions, too.
do $$
declare
  v_routine regprocedure;
begin
  for v_routine in
    select p.oid
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'teguh'::regnamespace
      and pg_catalog.has_function_privilege('public', p.oid, 'execute')
  loop
    execute pg_catalog.format('revoke all on routine %s from public', v_routine);
  end loop;
  perform teguh._grant_again();
end;
$$;

insert into teguh.versions (version, installed_at)
values (teguh.version(), teguh.current_time())
on conflict do nothing;

commit;
