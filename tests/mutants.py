"""Engines that are wrong in one line, for tools/mutants.py: is there a test for each?"""

from __future__ import annotations

from tests.chaos.mutants import MUTANTS as OF_STORMS
from tests.chaos.mutants import Mutant

# what is wrong: the function, what to replace in it, by what
LINES = {
    # dispatch
    "a task past its deadline is claimed": (
        "_pick0_template",
        "        and (t.deadline_at is null or t.deadline_at > p_now)\n",
        "",
    ),
    "a stale dispatch row is claimed": (
        "_pick0_template",
        "where (t.task_id, t.turn) = (p.task_id, p.turn)",
        "where t.task_id = p.task_id",
    ),
    "the newest is claimed first": (
        "_pick0_template",
        "order by p.xid, p.seq\n",
        "order by p.xid desc, p.seq desc\n",
    ),
    "each claim counts as the first": (
        "_pick0_template",
        "coalesce(t.first_started_at, p_now)",
        "p_now",
    ),
    "a lease ends after the timeout": (
        "_pick0_template",
        "least(p_until, teguh._after(p_now, t.timeout_seconds))",
        "p_until",
    ),
    "max_duration begins with each claim": (
        "_pick0_template",
        "when t.attempt > 0 or t.cancellation is null then",
        "when t.cancellation is null then",
    ),
    "a claim does not see to what is due": (
        "_take_template",
        "exit when v_left <= 0 or v_fired = 0 or (v_fired > 0 and v_left = v_before);",
        "exit when true;",
    ),
    "a claim has no checkpoints": (
        "_take_template",
        "case when t.turn = 1 then '{}' else teguh._known_template(t.task_id, t.run_id) end",
        "'{}'::jsonb",
    ),
    "what timed out is a checkpoint": (
        "_known_template",
        "        and c.status = 'committed'\n",
        "",
    ),
    "max_duration has no timer": (
        "_limits_template",
        "t.attempt = 1 and t.deadline_at is not null as begins",
        "false as begins",
    ),
    "a timeout has no timer": (
        "_limits_template",
        "filter (where t.timeout_seconds is not null),\n    array_agg(t.turn)",
        "filter (where false),\n    array_agg(t.turn)",
    ),
    "an idle worker forgets its sleepers": (
        "_soon0_template",
        "    if found or v_count = 100 then\n",
        "    if v_count = 100 then\n",
    ),
    "a paused queue says when it is due": (
        "next_due",
        "  if v_due is not null then\n",
        "  if false then\n",
    ),
    "a timer may be due at once": (
        "_add0_template",
        "case when p_kind <> 'r' then greatest(u.due_at, v_soonest) end",
        "case when p_kind <> 'r' then u.due_at end",
    ),
    "a clock that steps back loses timers": (
        "_add0_template",
        "    perform teguh._back0_template(p_kind, v_first);\n",
        "    null;\n",
    ),
    "rows go to the newest segment only": (
        "_push_template",
        "    exit when v_newest = v_seen;\n",
        "    exit;\n",
    ),
    # timers
    "the timer position goes too far": (
        "_due0_template",
        "v_to.due_at := greatest(v_from.due_at, p_now);",
        "v_to.due_at := greatest(v_from.due_at, p_now + interval '5 seconds');",
    ),
    "a timer position passes what has a newer id": (
        "_due0_template",
        "perform teguh._raise_xmax();",
        "null;",
    ),
    "a timer position passes what slow clocks have set and not committed": (
        "_last0_template",
        "case when v_last.late is not null then",
        "case when false then",
    ),
    "a timer position passes what slow clocks set after it": (
        "_last0_template",
        "k.n >= v_last.xid::text::bigint",
        "false",
    ),
    "sleepers of an older segment go first": (
        "_fire_template",
        "select t.available_at",
        "select now() as available_at",
    ),
    "an extended lease has no timer": (
        "_expire_template",
        "'l', array[v_timer.task_id], array[v_timer.turn], array[v_timer.due_at]",
        "'l', null, null, null",
    ),
    "a lease that ends while somebody locks the task is forgotten": (
        "_expire_template",
        "'l', array[v_timer.task_id], array[v_timer.turn], array[p_now + interval '1 second']",
        "'l', null, null, null",
    ),
    "a lease that is extended meanwhile has no timer": (
        "_expire_template",
        "    elsif v_task.lease_expires_at > p_now then\n",
        "    elsif false then\n",
    ),
    "a deadline of its own makes a task expire": (
        "_close_template",
        "p_task.expires_at > p_task.deadline_at or p_task.expires_at is null",
        "p_task.expires_at is null",
    ),
    "what follows an expired task lacks its tags": (
        "_follow_template",
        "      'correlation_id', p_task.correlation_id, 'tags', p_task.tags\n",
        "      'correlation_id', p_task.correlation_id\n",
    ),
    "timeouts are taken for lost workers": (
        "_timeout_reason",
        "when p_overtime then",
        "when not p_overtime then",
    ),
    # rotation
    "a segment is given up while sleepers are in it": (
        "_spent0_template",
        "         and not exists (select from teguh._left0_template('s', 1))\n",
        "",
    ),
    "a segment is given up while tasks are ready in it": (
        "_spent0_template",
        "teguh._dry0_template()",
        "true",
    ),
    "the counts of a segment are lost with it": (
        "_turn0_template",
        "    perform teguh._bank1_template();\n",
        "",
    ),
    # leases and runs
    "a lease cannot be made shorter": (
        "_keep_template",
        "v_task.lease_expires_at is null or v_until < v_task.lease_expires_at",
        "v_task.lease_expires_at is null",
    ),
    "a heartbeat goes past the timeout": (
        "_keep_template",
        "teguh._after(v_task.started_at, v_task.timeout_seconds)",
        "'infinity'",
    ),
    "a worker that lost its run goes on": (
        "_hold_template",
        "v_task.run_id = p_run_id and v_task.state = 'running'",
        "v_task.state = 'running'",
    ),
    "a lost run is taken for one that waits": (
        "_deny_template",
        "v_late boolean := teguh._run_number(p_run_id) < teguh._run_number(p_task.run_id);",
        "v_late boolean := false;",
    ),
    "a run that was lost is completed": (
        "_flush_template",
        "      and t.run_id = r.run_id\n",
        "",
    ),
    "a result comes with an old failure": (
        "_done_template",
        "    failure_reason = null,\n",
        "",
    ),
    "a run that is handed back counts": (
        "_free_template",
        "attempt = v_task.attempt - 1,",
        "attempt = v_task.attempt,",
    ),
    "a run that is handed back has started": (
        "_free_template",
        "    first_started_at = case when not v_unbegun then t.first_started_at end,\n",
        "",
    ),
    "a run that is handed back has no new deadline": (
        "_free_template",
        "  if v_unbegun and v_limit is not null then\n",
        "  if false then\n",
    ),
    "a sleeper keeps the event that woke it": (
        "_nap_template",
        "    wake_event = null,\n",
        "",
    ),
    # retries
    "there is one run too many": (
        "_end_template",
        "v_failures >= p_task.max_attempts",
        "v_failures > p_task.max_attempts",
    ),
    "a retry begins at the deadline": (
        "_end_template",
        "v_retry_at >= p_task.deadline_at",
        "v_retry_at > p_task.deadline_at",
    ),
    "the first delay is the second": ("_backoff", "(p_failures - 1) * ln", "p_failures * ln"),
    "delays have no cap": ("_backoff", "  v_delay := least(v_delay, v_most);\n", ""),
    "jitter makes delays longer": ("_backoff", "(1 - v_jitter", "(1 + v_jitter"),
    "a retry is due in the past": (
        "_again_template",
        "available_at = greatest(p_at, p_now),",
        "available_at = p_at,",
    ),
    "the next run has the payload of the last": (
        "_again_template",
        "    event_payload = null,\n",
        "",
    ),
    "a run is blamed for one before it": (
        "_redo_template",
        "teguh._blame_template(p_task)",
        "p_task.failure_reason",
    ),
    "a retried task fails at once again": (
        "_renew_template",
        "when t.max_attempts <= t.failures then t.failures + 1",
        "when t.max_attempts < t.failures then t.failures + 1",
    ),
    "a retried task expires again": (
        "_renew_template",
        "    expires_at = null\n",
        "    expires_at = t.expires_at\n",
    ),
    "a retried task has the other limit": (
        "_renew_template",
        "when p_task.first_started_at is null then",
        "when p_task.first_started_at is not null then",
    ),
    "a step that is taken again is remembered": (
        "_forget_template",
        "c.updated_at >= v_since",
        "c.updated_at > v_since",
    ),
    "a replay comes all at once": (
        "_replay_template",
        "teguh._after(v_now, coalesce(v_count / p_per_second, 0))",
        "v_now",
    ),
    "a task that is taken away has failed": (
        "_retake_template",
        "v_task.failures, v_task.failure_reason, v_now, v_now",
        "v_task.failures + 1, v_task.failure_reason, v_now, v_now",
    ),
    # spawning and unique keys
    "a delay counts against max_delay": (
        "_new_template",
        "greatest(v_due_at, v_now), (p_spawn.cancellation",
        "v_now, (p_spawn.cancellation",
    ),
    "a key leads to whatever has it": (
        "_found_template",
        "not p_tasks[v_place].return_mismatch",
        "p_tasks[v_place].return_mismatch",
    ),
    "a window is open at the wrong time": (
        "_blocks",
        "p_now < p_created_at",
        "p_now > p_created_at",
    ),
    "what has begun is replaced": ("_blocks", "not p_begun and", ""),
    "a replaced task keeps its turn": (
        "_swap_template",
        "    turn = p_task.turn + 1,\n",
        "    turn = p_task.turn,\n",
    ),
    "a task is put off without end": (
        "_meet_template",
        "p_spawn.uniqueness ? 'max_wait_seconds'",
        "false",
    ),
    "a unique key leads to its first task": (
        "_once_template",
        "  set task_id = v_new.task_id\n",
        "  set task_id = u.task_id\n",
    ),
    "delayed tasks take no room": ("_room_template", "s.pending + s.delayed", "s.pending"),
    "what has begun makes room": ("_first0_template", "        and t.attempt = 0\n", ""),
    # events
    "a wait never times out": (
        "_wait_template",
        "coalesce(v_wait.timeout_at <= v_now, false)",
        "false",
    ),
    "an emit wakes what has timed out": (
        "_emit_template",
        "    continue when v_wait.timeout_at <= v_now;\n",
        "",
    ),
    "the last emit counts": (
        "_emit_template",
        "  where e.emitted_at is null;\n",
        "  where true;\n",
    ),
    "an emit wakes a later turn": ("_emit_template", "      and t.turn = v_wait.turn\n", ""),
    "an emit and an await miss each other": ("_wait_template", "    for share;\n", ";\n"),
    "an event that was only awaited stays": (
        "_sweep_template",
        "coalesce(e.emitted_at, e.created_at) <= v_before",
        "e.emitted_at <= v_before",
    ),
    # cleanup
    "cleanup goes by the time of spawning": (
        "_purge_template",
        "      and t.finished_at <= v_before\n",
        "",
    ),
    "cleanup removes actions upon tasks that stay": (
        "_purge_template",
        "  where a.task_id is null\n    and a.acted_at",
        "  where a.acted_at",
    ),
    "cleanup leaves unique keys": (
        "_erase_template",
        "  delete from teguh.u_template as u\n  where u.task_id = any (p_task_ids);\n",
        "",
    ),
    "cleanup leaves checkpoints": (
        "_erase_template",
        "  delete from teguh.c_template as c\n  where c.task_id = any (p_task_ids);\n",
        "",
    ),
    "a cancelled task waits on": (
        "_stop_template",
        "  perform teguh._lost_template(p_task_id, 'cancelled', p_now);\n",
        "",
    ),
    # statistics
    "what has not started counts as sleeping": (
        "_moved_template",
        "teguh._letter(p_task.state, p_task.attempt, p_task.wake_event)",
        "teguh._letter(p_task.state, 1, p_task.wake_event)",
    ),
    "many that change count as one": ("_reckon_template", "cardinality(p_task_names)", "1"),
    # priorities and limits
    "the lowest goes first": ("_line_template", "- 60 * coalesce(", "+ 60 * coalesce("),
    "open places of a key are not counted": (
        "_slots_template",
        "teguh._left_over(l, k.flow_key, h.qty, p_now) - o.qty",
        "teguh._left_over(l, k.flow_key, h.qty, p_now)",
    ),
    "a rate counts one period and a moment": ("_started", "s.started_at > ", "s.started_at >= "),
    "a limit counts what has ended": (
        "_going_template",
        "  where t.turn = h.turn\n",
        "  where t.turn = h.turn or true\n",
    ),
    "a paused name is claimed": (
        "_choose_template",
        "where teguh._closed_until(substr('_template', 2), 'task', n.task_name, p_now) is null",
        "where true",
    ),
    "a key is opened in the order of arrival": (
        "_unbar_template",
        "order by w.ranking, w.seq",
        "order by w.seq",
    ),
    "what runs already is not counted": (
        "_reign_template",
        "  perform teguh._enrol_template();\n",
        "",
    ),
    "a paused queue is claimed from": (
        "claim_any",
        "    continue when teguh._paused_until(v_policy) is not null;\n",
        "",
    ),
    # schedules, sequences, children, messages
    "a schedule is fired twice": (
        "_strike_template",
        "    for no key update skip locked\n",
        "",
    ),
    "a sequence loses what it was given": (
        "_ensue_template",
        "when jsonb_typeof(v_result) = 'object' then v_result",
        "when jsonb_typeof(v_result) = 'object' then '{}'",
    ),
    "a parent that is locked does not hear of its children": (
        "_gather_template",
        "'s', array[t.task_id], array[-1], array[p_now + interval '1 second']",
        "'s', null, null, null",
    ),
    "a parent is woken as often as children end": (
        "_gather_template",
        "    where teguh._ripe_template(w)\n",
        "",
    ),
    "messages are received in any order": (
        "_hear_template",
        "order by m.n\n",
        "order by m.n desc\n",
    ),
}

MUTANTS = {
    **{name: Mutant(f"teguh.{function}", old, new) for name, (function, old, new) in LINES.items()},
    **OF_STORMS,
}  # fmt: skip
