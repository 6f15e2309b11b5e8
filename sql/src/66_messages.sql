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
