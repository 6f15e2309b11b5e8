"""The service is what its OpenAPI document says, and its page needs nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from teguh.server._app import PREFIX
from teguh.server._routes import BARE, ROUTES, SSE

if TYPE_CHECKING:
    from tests.server.support import Api


def test_every_endpoint_is_described(service: Api) -> None:
    document = service.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert described == {
        (route.method, ("" if route.path in BARE else PREFIX) + route.path) for route in ROUTES
    }
    names = [o["operationId"] for path in document["paths"].values() for o in path.values()]
    assert len(names) == len(set(names))
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert not re.search(r"SQL: |Raise|:class:", operation["summary"])
            assert "``" not in operation["description"]


# What the engine refuses though a schema allows it is no failure: it knows better than a schema.
SETTINGS = """
[parameters]
"path.queue" = "jobs"
[checks]
positive_data_acceptance.enabled = false
"""


@pytest.mark.timeout(900)
def test_the_service_is_what_its_description_says(service: Api, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    run = subprocess.run(
        [
            Path(sys.executable).parent / "st", "run", f"{service.url}/openapi.json",
            "--header", f"Authorization: {service.headers['Authorization']}",
            "--phases", "coverage,fuzzing", "--max-examples", "3", "--seed", "1", "--no-color",
            "--exclude-path-regex", "/streams/",  # they do not end
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout
    tested = re.search(r"Tested: (\d+)", run.stdout)
    assert tested
    assert int(tested[1]) == len([route for route in ROUTES if route.media != SSE])


def test_the_page_shows_the_endpoints_and_fetches_nothing_from_elsewhere(service: Api) -> None:
    page = service.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert re.findall(r"https?:", page.text) == []
    assert re.findall(r'(?:href|src|fetch\()\s*=?\s*"([^"]+)"', page.text) == [
        "openapi.json", "openapi.json"
    ]  # fmt: skip
    assert "innerHTML" not in page.text
