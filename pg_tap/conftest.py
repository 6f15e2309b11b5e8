"""Run every pg_tap/NN_topic.sql as one test, without psql.

Such a file is plain SQL.  Its first line is a comment that says the behaviour; then

    begin;
    select plan(2);
    ...
    select * from finish();
    rollback;

It runs statement by statement, as the role that installed teguh (no superuser; it may `set role`
to teguh_guest, who has no rights), in a fresh database that holds teguh and pgTAP (in schema
public).  The test passes when as many lines as planned came and each of them is `ok` or marked
`# TODO` or `# SKIP`.  The same file runs with `psql -f` in any database with teguh and pgtap.

pgTAP itself stands in vendor/: no package of PyPI has it, and the tests need nothing but Python
and PyPI.  tools/refresh_pgtap.py renews the copy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.cluster import cluster_of
from tools.pgtap import TapError, run

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MODULE = re.compile(r"\d\d_[a-z0-9_]+\.sql")


class TapItem(pytest.Item):
    """One pgTAP file as a test."""

    def runtest(self) -> None:
        cluster = cluster_of(self.config)
        with cluster.database("pgtap") as name:
            tap = run(cluster.owner_dsn(name), self.path)
        if tap.skip_all is not None:
            pytest.skip(tap.skip_all)
        if problem := tap.problem():
            raise TapError(f"{self.path.name}: {problem}\n{tap.failures()}".rstrip())

    def repr_failure(
        self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None
    ) -> str:
        if isinstance(excinfo.value, TapError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.path.name


class TapFile(pytest.File):
    """A pg_tap/NN_topic.sql."""

    def collect(self) -> Iterable[TapItem]:
        yield TapItem.from_parent(self, name=self.path.stem)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> TapFile | None:
    """Collect pgTAP files."""
    if MODULE.fullmatch(file_path.name):
        return TapFile.from_parent(parent, path=file_path)
    return None
