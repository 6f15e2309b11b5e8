"""bench/peers measures what it says, gives up in time, and its page agrees with its figures."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.peers import __main__ as command
from bench.peers import install as installer
from bench.peers import report
from bench.peers.base import ROOT, Peer
from bench.peers.install import Environment, NotInstalled, interpreter
from bench.peers.measure import CELLS, Bench, Deadline, Failed, Sizes
from bench.peers.registry import NAMES, load
from tools.servers import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.servers import Databases

FEW = Sizes(
    single=5, bulk=50, drain=200, drain_seconds=20, flows=0.02, backlog=400, sleeping=300,
    pickups=3, settle_seconds=0.1, idle_seconds=0.2, client_seconds=0.3, pinned_seconds=0.5,
    clients=2,
)  # fmt: skip


@pytest.fixture
def bench(server: Databases, tmp_path: Path) -> Iterator[Bench]:
    """A bench with few jobs, whose peers run in this Python."""
    made = Bench(server, FEW, tmp_path)
    made.environments = dict.fromkeys((*NAMES, "stuck"), Environment())
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("name", "setting"), [("teguh", "default"), ("teguh", "tuned"), ("limit", "tuned")]
)
def test_a_drain_ends_with_every_job_done_once(bench: Bench, name: str, setting: str) -> None:
    figures = CELLS["drain"][0](bench, load(name), setting)
    assert (figures["jobs"], figures["twice"], figures["stopped"]) == (200, 0, False)
    assert figures["rate"] > 0
    assert figures["wal"] > 100


def test_a_backlog_and_sleepers_stay_behind(bench: Bench) -> None:
    teguh = load("teguh_sql")
    for cell in ("backlog", "sleeping"):
        figures = CELLS[cell][0](bench, teguh, "tuned")
        assert (figures["jobs"], figures["stopped"]) == (200, False)
    with bench.database(teguh, "sleeping") as database:
        rows = bench.server.execute(
            "select state, count(*) from teguh.t_bench group by state order by state", database
        )
        assert rows == [("pending", 200), ("sleeping", 300)]


def test_every_other_cell_has_its_figures(bench: Bench) -> None:
    teguh, plain = load("teguh"), load("teguh_sql")
    figures = CELLS["enqueue"][0](bench, teguh, "")
    assert min(figures["single_rate"], figures["bulk_rate"], figures["single_wal"]) > 0
    figures = CELLS["steps"][0](bench, teguh, "default")
    assert (figures["jobs"], figures["twice"], figures["stopped"]) == (20, 0, False)
    figures = CELLS["pickup"][0](bench, teguh, "tuned")
    assert len(figures["waits"]) + figures["lost"] == 3
    figures = CELLS["clients"][0](bench, plain, "")
    assert min(figures["one_rate"], figures["many_rate"], figures["many_p99"]) > 0
    figures = CELLS["pinned"][0](bench, plain, "")
    assert len(figures["curve"]) == 10
    assert figures["curve"][-1][0] <= figures["jobs"]


def test_the_server_is_durable_and_counts_statements(server: Databases, tmp_path: Path) -> None:
    if not isinstance(server, Server):
        pytest.skip("an existing server is not ours to configure")
    with command.server_of(argparse.Namespace(dsn=None, server=server.kind)) as own:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert own.execute(f"show {name}") == [("on",)]
        preloaded = own.execute("show shared_preload_libraries") == [("pg_stat_statements",)]
        made = Bench(own, FEW, tmp_path)
        assert made.counts_statements == preloaded
        if preloaded:
            before = made.statements("postgres")
            own.execute("select 1")
            after = made.statements("postgres")
            assert before is not None
            assert after is not None
            assert after > before
        made.close()


def stuck(bench: Bench, tmp_path: Path, program: str) -> Peer:
    """Return a peer whose install command is that program."""
    script = tmp_path / "stuck.py"
    script.write_text(program, encoding="utf-8")
    peer = Peer()
    peer.name, peer.script, peer.scripted = "stuck", script, frozenset({"install"})
    bench.environments["stuck"] = Environment(node=sys.executable)
    return peer


def test_what_hangs_is_killed_with_its_children(bench: Bench, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    peer = stuck(
        bench, tmp_path,
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n",
    )  # fmt: skip
    with pytest.raises(Failed, match="not done in 2 s"):
        bench.run(peer, Deadline(2), "install", "")
    pid = int(note.read_text(encoding="utf-8"))
    deadline = time.monotonic() + 10
    while (stat := Path(f"/proc/{pid}/stat")).exists() and " Z " not in stat.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_ends_badly_is_quoted(bench: Bench, tmp_path: Path) -> None:
    peer = stuck(bench, tmp_path, "raise SystemExit('no such luck')")
    with pytest.raises(Failed, match="no such luck"):
        bench.run(peer, Deadline(20), "install", "")


def options(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> argparse.Namespace:
    """Return the command's options."""
    monkeypatch.setattr(sys, "argv", ["peers", *arguments])
    return command.parse()


def test_a_whole_run_publishes_and_a_trial_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = options(monkeypatch)
    assert (whole.publish, whole.form, whole.rounds) == (True, "short", 3)
    assert whole.into == ROOT / "bench"
    assert options(monkeypatch, "--long").publish
    for arguments in (["--quick"], ["--peers=limit"], ["--only=drain"], ["--into=x"]):
        assert not options(monkeypatch, *arguments).publish
    assert options(monkeypatch, "--quick").rounds == 1
    assert options(monkeypatch, "--quick").into == ROOT / "build" / "peers"
    for wrong in ("--only=sprint", "--peers=somebody"):
        with pytest.raises(SystemExit):
            options(monkeypatch, wrong)


@pytest.fixture
def run_in(
    server: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Run the command on the session's server without installing; return what it wrote."""

    def run(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["peers", f"--into={tmp_path}", *arguments])
        monkeypatch.setattr(command, "server_of", lambda _: nullcontext(server))
        monkeypatch.setattr(command, "install", lambda *_: Environment())
        monkeypatch.setattr(command, "CACHE", tmp_path)
        monkeypatch.setattr(command, "QUICK", FEW)
        assert command.main() == 0
        assert (tmp_path / "peers.txt").stat().st_size > 100
        found: dict[str, Any] = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
        return found

    return run


def test_rounds_take_turns(run_in: Callable[..., dict[str, Any]]) -> None:
    chosen = ["--quick", "--peers=limit,teguh_sql", "--only=enqueue", "--rounds=2"]
    found = run_in(*chosen)
    order = [(one["round"], one["peer"]) for one in found["measurements"]]
    assert order == [(1, "teguh_sql"), (1, "limit"), (2, "limit"), (2, "teguh_sql")]
    assert all("figures" in one for one in found["measurements"])


def test_what_is_over_the_budget_is_left_out(run_in: Callable[..., dict[str, Any]]) -> None:
    found = run_in("--quick", "--peers=limit", "--only=enqueue,drain", "--budget=0.01")
    assert (found["measurements"], found["left_out"]) == ([], 3)


def test_a_peer_that_cannot_be_had_is_named(
    run_in: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "CACHE", tmp_path / "cache")
    with pytest.raises(NotInstalled, match="nowhere"):
        installer.install(load("oban"), "/nowhere/python", tmp_path / "log")
    data = measured([], oban={"not_installed": "it is nowhere"})
    assert "oban: not installed, it is nowhere." in report.as_text(report.Results(data))


def measured(measurements: list[dict[str, Any]], **peers: dict[str, Any]) -> dict[str, Any]:
    """Return what a run would have written."""
    about = {"versions": [], "settings": {"default": "", "tuned": ""}, "keeps": "", "absent": {}}
    return {
        "at": "", "form": "short", "minutes": 0, "left_out": 0, "not_measured": {},
        "measurements": measurements,
        "peers": {
            name: {"title": name, "not_installed": None, **about, **given}
            for name, given in peers.items()
        },
    }  # fmt: skip


def test_tables_have_medians_reasons_and_who_is_ahead() -> None:
    found = [
        {"cell": "drain", "peer": peer, "setting": "tuned", "round": round_,
         "figures": {"rate": rate, "jobs": 9, "stopped": False, "others": 0.25}}
        for peer, rates in {"teguh": (100, 900, 200), "other": (400, 300, 500)}.items()
        for round_, rate in enumerate(rates)
    ]  # fmt: skip
    found.append({"cell": "drain", "peer": "third", "setting": "tuned", "error": "it fell over"})
    lacking = {"absent": {"steps": "has no steps"}}
    data = measured(found, teguh={}, other=lacking, third=lacking)
    tables = {table.title: table for table in report.tables(report.Results(data))}
    drained = tables["Drain"]
    assert [row[:3] for row in drained.rows] == [["teguh", "", "200"], ["other", "", "400"]]
    assert "Medians of 3 measurements." in drained.notes
    assert "Other processes kept 0.25 cores busy (median), 0.25 at most." in drained.notes
    assert "third (tuned): no figure in drain, it fell over." in drained.notes
    assert "teguh (default): drain was left out for want of time." in drained.notes
    assert tables["Where teguh is behind"].rows == [["drain", "other 2.0 x"]]
    assert tables["Ratios"].rows[0][3] == "0.50"


def test_the_python_of_the_peers_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS_PYTHON", "/some/python")
    assert interpreter() == "/some/python"
    monkeypatch.delenv("PEERS_PYTHON")
    assert Path(interpreter()).exists()


def test_page_plots_and_text_are_made_from_the_figures() -> None:
    file = ROOT / "bench" / "peers.json"
    results = report.read(file)
    text = report.PAGE.read_text(encoding="utf-8")
    assert report.page(text, results) == text
    assert file.with_suffix(".txt").read_text(encoding="utf-8") == report.as_text(results)
    drawn = report.images(results)
    for name, svg in drawn.items():
        assert (report.IMAGES / f"{name}.svg").read_text(encoding="utf-8") == svg
        assert f"(images/{name}.svg)" in text
    assert set(re.findall(r"\(images/(\w+)\.svg\)", text)) == set(drawn)
