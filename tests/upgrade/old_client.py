"""The client of another release, one call of each kind: python old_client.py WHEEL DSN QUEUE."""

from __future__ import annotations

import sys

wheel, dsn, queue = sys.argv[1:]
sys.path.insert(0, wheel)

import teguh  # noqa: E402 - from the wheel

assert str(teguh.__file__).startswith(wheel), teguh.__file__
with teguh.Client.connect(dsn) as client:
    client.create_queue(queue, notify="always")
    spawned = client.spawn_task(queue, "a", {"n": 1}, idempotency_key="k", max_attempts=2)
    (other,) = client.spawn_tasks(queue, [teguh.NewTask("b", options={"delay_seconds": 3600})])
    (run,) = client.claim_task(queue, "w", qty=2)
    assert (run.run_id, run.params) == (spawned.run_id, {"n": 1})
    client.extend_claim(queue, run.run_id, 60)
    client.set_task_checkpoint_state(queue, run.task_id, "s", 1, run.run_id)
    (checkpoint,) = client.get_task_checkpoint_states(queue, run.task_id, run.run_id)
    assert (checkpoint.checkpoint_name, checkpoint.state) == ("s", 1)
    assert client.await_event(queue, run.task_id, run.run_id, "wait", "e").should_suspend
    client.emit_event(queue, "e", {"x": 1})
    (run,) = client.claim_task(queue, "w")
    assert run.event_payload == {"x": 1}
    client.fail_run(queue, run.run_id, {"oh": "no"}, retry_at=client.current_time())
    (run,) = client.claim_task(queue, "w")
    client.complete_run(queue, run.run_id, "done")
    result = client.get_task_result(queue, run.task_id)
    assert (result.state, result.completed_payload) == ("completed", "done")
    client.cancel_task(queue, other.task_id)
    assert client.retry_task(queue, other.task_id).task_id == other.task_id
    client.ticker(queue)
    client.next_due(queue)
    client.cleanup_all_queues(queue)
    client.status()
    client.drop_queue(queue)
    print(client.version())
