"""The machine, and who uses its processors. Linux only: elsewhere nothing is known of that."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


def describe(data: Path | None) -> dict[str, Any]:
    """Return what the machine is; `data` is where the server's data are."""
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }
    if PROC.exists():
        models = _values(PROC / "cpuinfo", "model name")
        found["processor"] = models[0] if models else None
        memory = _values(PROC / "meminfo", "MemTotal")
        found["memory_gib"] = round(int(memory[0].split()[0]) / 1048576, 1)
        found["file_system"] = _file_system(data) if data else None
    return found


def _values(file: Path, key: str) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]


def _file_system(path: Path) -> str | None:
    """Return the type of the file system that holds a path."""
    best, kind = "", None
    for line in (PROC / "mounts").read_text(encoding="utf-8").splitlines():
        place, type_ = line.split()[1:3]
        if path.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, type_
    return kind


class Processors:
    """CPU seconds of some process trees and of everybody, since it was made."""

    def __init__(self, **roots: int | None) -> None:
        self._roots = {name: pid for name, pid in roots.items() if pid}
        self._began = time.monotonic()
        self._before = self._now()

    def _now(self) -> tuple[dict[str, float], float] | None:
        if not PROC.exists():
            return None
        parents, used = {}, {}
        for entry in PROC.iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                parents[int(entry.name)] = int(fields[1])
                used[int(entry.name)] = sum(map(int, fields[11:15])) / TICKS
        trees = dict.fromkeys(self._roots, 0.0)
        for pid, seconds in used.items():
            for name, root in self._roots.items():
                if _is_under(pid, root, parents):
                    trees[name] += seconds
                    break
        line = (PROC / "stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]
        numbers = list(map(int, line))
        return trees, (sum(numbers) - numbers[3] - numbers[4]) / TICKS

    def used(self) -> dict[str, float]:
        """Return CPU seconds by tree, and `others`: cores that all other processes kept busy."""
        after = self._now()
        if self._before is None or after is None:
            return {}
        trees = {name: after[0][name] - self._before[0][name] for name in self._roots}
        elapsed = max(time.monotonic() - self._began, 0.01)
        others = after[1] - self._before[1] - sum(trees.values())
        return {**trees, "others": max(0.0, others) / elapsed}


def _is_under(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        if pid == root:
            return True
        pid = parents.get(pid, 0)
    return False
