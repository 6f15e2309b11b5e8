"""make install, make dist, and what META.json tells PGXN."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import ROOT
from tools.build_extension import CONTROL, files
from tools.build_sql import version

# The PGXN meta spec 1.0.0, as far as it is about what a META.json may hold:
# https://rfcs.pgxn.org/0001-meta-spec-v1.html
REQUIRED = {"name", "version", "abstract", "maintainer", "license", "provides", "meta-spec"}
OPTIONAL = {
    "description", "generated_by", "tags", "no_index", "prereqs", "release_status", "resources",
}  # fmt: skip
LICENSES = {
    "agpl_3", "apache_1_1", "apache_2_0", "artistic_1", "artistic_2", "bsd", "freebsd", "gfdl_1_2",
    "gfdl_1_3", "gpl_1", "gpl_2", "gpl_3", "lgpl_2_1", "lgpl_3_0", "mit", "mozilla_1_0",
    "mozilla_1_1", "openssl", "perl_5", "postgresql", "qpl_1_0", "ssleay", "sun", "zlib",
    "open_source", "restricted", "unrestricted", "unknown",
}  # fmt: skip
PHASES = {"configure", "runtime", "build", "test", "develop"}
RELATIONS = {"requires", "recommends", "suggests", "conflicts"}
SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-?[A-Za-z][0-9A-Za-z-]*)?")
TERM = re.compile(r"[^\s/\\\x00-\x1f]{2,}")
RANGE = re.compile(
    rf"0|\s*((<|<=|>|>=|==|!=)?\s*{SEMVER.pattern})(\s*,\s*(<|<=|>|>=|==|!=)?\s*.+)*"
)


def problems(meta: dict[str, Any]) -> list[str]:
    """Return what the specification does not allow in a META.json."""
    found = [f"{key} is missing" for key in REQUIRED - meta.keys()]
    custom = {key for key in meta if re.match("[xX]_", key)}
    found += [f"{key} is unknown" for key in meta.keys() - REQUIRED - OPTIONAL - custom]
    if found:
        return found
    if not TERM.fullmatch(meta["name"]):
        found.append("name is no term")
    if not SEMVER.fullmatch(meta["version"]):
        found.append("version is no semantic version")
    for key in ("abstract", "maintainer"):
        if not (isinstance(meta[key], str) and meta[key]) and not isinstance(meta[key], list):
            found.append(f"{key} is empty")
    if meta["license"] not in LICENSES:
        found.append("license is unknown")
    if meta["meta-spec"].get("version") != "1.0.0":
        found.append("meta-spec has another version")
    if meta.get("release_status", "stable") not in ("stable", "testing", "unstable"):
        found.append("release_status is unknown")
    for name, provided in meta["provides"].items():
        if not TERM.fullmatch(name):
            found.append(f"{name} is no term")
        if not {"file", "version"} <= provided.keys() <= {"file", "version", "abstract", "docfile"}:
            found.append(f"what {name} provides lacks something, or has too much")
        elif not SEMVER.fullmatch(provided["version"]):
            found.append(f"the version of {name} is no semantic version")
    for phase, relations in meta.get("prereqs", {}).items():
        if phase not in PHASES or not relations.keys() <= RELATIONS:
            found.append(f"prereqs: {phase} is unknown, or a relation in it")
        for wanted in relations.values():
            found += [f"{n}: {v}" for n, v in wanted.items() if not RANGE.fullmatch(str(v))]
    tags = meta.get("tags", [])
    found += [f"tag {tag!r}" for tag in tags if not 0 < len(tag) < 256 or re.search(r"[/\\]", tag)]
    return found


def test_meta_json_is_what_pgxn_takes() -> None:
    meta = json.loads((ROOT / "META.json").read_text())
    assert problems(meta) == []
    for provided in meta["provides"].values():
        assert provided["version"] == meta["version"]
        for key in ("file", "docfile"):
            assert (ROOT / provided[key]).exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": "1.2"}, "version is no semantic version"),
        ({"license": "free"}, "license is unknown"),
        ({"colour": "red"}, "colour is unknown"),
        ({"provides": {"teguh": {"version": "1.0.0"}}}, "what teguh provides lacks something"),
        ({"prereqs": {"runtime": {"requires": {"PostgreSQL": "new"}}}}, "PostgreSQL: new"),
        ({"tags": ["a/b"]}, "tag 'a/b'"),
    ],
)
def test_what_pgxn_would_refuse_is_found(change: dict[str, Any], problem: str) -> None:
    meta = json.loads((ROOT / "META.json").read_text())
    assert [found for found in problems({**meta, **change}) if problem in found]


def test_the_control_file_gives_nobody_more_rights() -> None:
    control = files()["teguh.control"]
    assert f"default_version = '{version()}'" in control
    assert "superuser = false" in control
    assert "trusted" not in CONTROL


def made(*arguments: str, cwd: Path = ROOT) -> str:
    """Run make and return what it said."""
    ran = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture
def pg_config() -> str:
    """The pg_config of a server that extensions can be built for."""
    program = shutil.which("pg_config")
    if program is None:
        pytest.skip("pg_config is not installed: apt-get install postgresql-server-dev-15")
    pgxs = subprocess.run([program, "--pgxs"], capture_output=True, text=True, check=True)
    if not Path(pgxs.stdout.strip()).exists():
        pytest.skip("PGXS is not installed: apt-get install postgresql-server-dev-15")
    return program


def installed(destination: Path) -> dict[str, str]:
    """Return what make has put under a directory, by name."""
    return {path.name: path.read_text() for path in destination.rglob("*") if path.is_file()}


def test_make_install_puts_the_files_where_the_server_looks(pg_config: str, tmp_path: Path) -> None:
    made("install", f"PG_CONFIG={pg_config}", f"DESTDIR={tmp_path}")
    wanted = {name: text for name, text in files().items() if "pgtle" not in name}
    assert installed(tmp_path) == wanted
    made("uninstall", f"PG_CONFIG={pg_config}", f"DESTDIR={tmp_path}")
    assert installed(tmp_path) == {}


def test_the_archive_for_pgxn_installs_without_python(pg_config: str, tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("an archive is made from a git checkout")
    archive = ROOT / made("dist").split()[-1]
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    unpacked = tmp_path / f"teguh-{version()}"
    assert json.loads((unpacked / "META.json").read_text())["version"] == version()
    target = tmp_path / "installed"
    made("install", "PYTHON=false", f"PG_CONFIG={pg_config}", f"DESTDIR={target}", cwd=unpacked)
    assert {f"teguh--{version()}.sql", "teguh.control"} <= installed(target).keys()
