"""The core of the command line does without the extra, and says what the extra would do."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

import teguh
from teguh._install import package_version
from teguh.cli import CORE, EXTRA, add_core, main

# A process in which nothing of the extra can be imported.
BARE = """
import sys
sys.modules |= {name: None for name in ("typer", "rich")}
from teguh.cli import main
sys.exit(main(sys.argv[1:]))
"""


def bare(*arguments: str, dsn: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE, *arguments],
        env={**os.environ, "TEGUH_DSN": dsn},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("verb", EXTRA)
def test_without_the_extra_its_verbs_say_how_to_get_it(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("teguh._cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main([verb, "list"]) == 2
    assert "pip install 'teguh[cli]'" in capsys.readouterr().err


def test_without_the_extra_the_core_installs_and_spawns(empty_dsn: str) -> None:
    assert bare("install", "--queue", "jobs", dsn=empty_dsn).returncode == 0
    spawned = bare("spawn", "jobs", "report", '{"n": 1}', dsn=empty_dsn)
    with teguh.Client.connect(empty_dsn) as client:
        assert client.get_task("jobs", spawned.stdout.strip()).params == {"n": 1}
    refused = bare("spawn", "nowhere", "report", dsn=empty_dsn)
    assert refused.returncode == 1
    assert 'teguh: queue "nowhere" does not exist (TG001)\ndetail: ' in refused.stderr


def test_without_the_extra_the_help_names_its_verbs() -> None:
    told = bare("--help")
    assert told.returncode == 0
    assert all(verb in told.stdout for verb in (*CORE, *EXTRA))
    assert bare("--version").stdout == f"teguh {package_version()}\n"
    assert bare("queues", "list").returncode == 2
    assert bare("nonsense").returncode == 2


def test_a_verb_of_the_core_never_loads_the_extra() -> None:
    source = (
        "import sys; from teguh.cli import main"
        "; status = main(['worker', 'nothing', '--queue', 'q'])"
        "; sys.exit(10 if 'typer' in sys.modules or 'rich' in sys.modules else status)"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 2


def complete(words: str) -> set[str]:
    """What bash is told of how the last word might go on."""
    environment = {
        **os.environ,
        "_TEGUH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    source = "from teguh.cli import main; import sys; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False
    )
    return set(done.stdout.split())


def test_a_shell_completes_verbs_options_and_what_there_is_to_choose_from() -> None:
    assert complete("teguh ") >= {*CORE, *EXTRA}
    assert complete("teguh queues p") == {"pause"}
    assert complete("teguh tasks list jobs --state c") == {"completed", "cancelled"}
    assert complete("teguh limits set ") == {"all", "queue", "task", "key"}


def test_a_shell_completes_the_options_of_the_core() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    add_core(commands)
    for verb, parser in commands.choices.items():
        options = {
            name for action in parser._actions for name in action.option_strings if name[:2] == "--"
        }
        assert complete(f"teguh {verb} --") == options
