"""Engines broken on purpose, each in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A function of the engine, what to replace in it, and the checks of a storm that notice."""

    function: str
    old: str
    new: str
    noticed: tuple[str, ...] = ()
    rules: bool = False


MUTANTS = {
    "that a task can be claimed twice": Mutant(
        "teguh._pick0_template",
        "for no key update skip locked",
        "",
        ("a run is handed out once",),
    ),
    "that the position passes open transactions": Mutant(
        "teguh._move0_template",
        "xid8[] := teguh._open_xids(v_snapshot)",
        "xid8[] := '{}'",
        ("every task is over",),
    ),
    "that timers of open transactions are missed": Mutant(
        "teguh._pass0_template",
        "p_to.seq, v_late",
        "p_to.seq, null",
        ("every task is over",),
    ),
    "that a parent does not hear of its children": Mutant(
        "teguh._report_template",
        "perform teguh._tell_template(p_task_id);",
        "",
        ("every task is over",),
    ),
    "that a task does not hear of its messages": Mutant(
        "teguh._post_template",
        "perform teguh._tell_template(p_task_id);",
        "",
        ("every task is over",),
    ),
    "that a message stays in the mailbox": Mutant(
        "teguh._hear_template",
        "and m.n = v_message.n;",
        "and m.n = v_message.n and p_step_name <> 'hear-0';",
        ("a message is received once",),
    ),
    "that a step in the database is not remembered": Mutant(
        "teguh._carry_out",
        "        p_job.queue_name, p_job.task_id, v_step, p_result, p_job.run_id\n",
        "        p_job.queue_name, p_job.task_id, v_step || '?', p_result, p_job.run_id\n",
        ("a step in the database is done",),
    ),
    "that a sequence goes on in two ways": Mutant(
        "teguh._linked_template",
        "perform teguh._ensue_template(v_task);",
        "perform teguh._ensue_template(v_task), teguh._ensue_template(v_task);",
        ("a task of a sequence is followed once",),
    ),
    "that two claims decide at once": Mutant(
        "teguh._enter_gate",
        "perform pg_advisory_xact_lock(v_number);",
        "",
        # more ran than may, or they met in a deadlock
        tuple(
            f"an error reached a caller: {error}"
            for error in ("more than the limit ran", "worker", "verdict")
        ),
        rules=True,
    ),
}


def mutated(text: str, mutant: Mutant) -> str:
    """Return the SQL file with the mutant's function changed; raise if that is not possible."""
    start = text.index(f"create or replace function {mutant.function}(")
    end = text.index("\n$$;\n", start)
    body = text[start:end]
    if body.count(mutant.old) != 1:
        raise LookupError(f"{mutant.function} has {mutant.old!r} {body.count(mutant.old)} times")
    return text[:start] + body.replace(mutant.old, mutant.new) + text[end:]
