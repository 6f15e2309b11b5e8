"""Generate the sync half of the Python package from the async half.

    python tools/make_sync.py            # write python/src/teguh/_sync
    python tools/make_sync.py --check    # fail if what is written is not what would be

The sources are in python/src/teguh/_async. Tokens are replaced by the table below; a block
between `# [async only]` and `# [end]` is left out, one between `# [sync only]` and `# [end]`
loses its comment signs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "src" / "teguh"

HEADER = "# Generated from teguh/_async/{name} by tools/make_sync.py: edit that file instead.\n"

# In order. Names first, then grammar.
REPLACEMENTS = [
    (r"\bAsync(Client|Conn|Pool|TaskContext|Calls|Iterator)\b", r"\1"),
    (r"\bAbstractAsyncContextManager\b", "AbstractContextManager"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\basyncio\.Semaphore\b", "threading.Semaphore"),
    (r"\bimport asyncio\b", "import threading"),
    (r"\bopen_async\b", "open_sync"),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\bteguh\._async\b", "teguh._sync"),
    (r"\bAwaitable\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", r"\1"),
    (r"\bAwaitable, ", ""),
    (r"  # noqa: ASYNC109.*", ""),
    (r"\bone thread or task at a time\b", "one thread at a time"),
    (r"``await (Client\.connect)", r"``\1"),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
]


def sync_source(name: str, source: str) -> str:
    """Return the sync twin of an async source."""
    lines = []
    block = None
    for line in source.splitlines(keepends=True):
        mark = re.fullmatch(r"\s*# \[(async only|sync only|end)\]\n", line)
        if mark:
            block = None if mark[1] == "end" else mark[1]
        elif block is None:
            lines.append(line)
        elif block == "sync only":
            lines.append(re.sub(r"^(\s*)# ?", r"\1", line))
    text = "".join(lines)
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    text = HEADER.format(name=name) + re.sub(r"[ \t]+\n", "\n", text)
    target = str(PACKAGE / "_sync" / name)
    text = ruff(
        text, "check", "--quiet", "--fix-only", "--select", "I,F401", "--stdin-filename", target
    )
    return ruff(text, "format", "--quiet", "--stdin-filename", target)


def ruff(text: str, *args: str) -> str:
    """Return a source as ruff rewrites it."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *args, "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def main() -> int:
    """Write or check the generated files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    stale = []
    for path in sorted((PACKAGE / "_async").glob("*.py")):
        target = PACKAGE / "_sync" / path.name
        if path.name == "__init__.py":
            wanted = '"""Generated from teguh._async by tools/make_sync.py."""\n'
        else:
            wanted = sync_source(path.name, path.read_text())
        if target.exists() and target.read_text() == wanted:
            continue
        stale.append(target.name)
        if not check:
            target.write_text(wanted)
    if check and stale:
        print(f"stale in teguh/_sync: {', '.join(stale)}; run python tools/make_sync.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
