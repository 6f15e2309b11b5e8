"""The description of the endpoints, in OpenAPI 3.1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_origin

from teguh.server._errors import Problem
from teguh.server._routes import BARE
from teguh.server._shape import hints, parameters, schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from teguh.server._routes import Route
    from teguh.server._shape import Field

REFUSED = {
    400: "The request makes no sense, or a value is refused.",
    401: "There is no such token.",
    403: "The token, or the role of the service, may not do this.",
    404: "There is no such thing.",
    409: "It cannot be done as things stand.",
    413: "The body is too large.",
    429: "The queue is full: try again later.",
    503: "The database does not answer: try again later.",
}


def describe(routes: Sequence[Route], prefix: str, version: str) -> dict[str, Any]:
    """Return the document."""
    named: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in routes:
        path = ("" if route.path in BARE else prefix) + route.path
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, named)
    problem = schema(Problem, named)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "teguh",
            "version": version,
            "description": "Durable execution in PostgreSQL: each endpoint is one SQL function.",
        },
        "paths": paths,
        "components": {
            "schemas": named,
            "responses": {
                str(status): {
                    "description": text,
                    "content": {"application/json": {"schema": problem}},
                }
                for status, text in REFUSED.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


_TAGS = {
    "queues", "tasks", "dead-letters", "runs", "events", "schedules", "streams", "workflow-runs"
}  # fmt: skip


def _operation(route: Route, named: dict[str, Any]) -> dict[str, Any]:
    summary, text = _said(route)
    operation: dict[str, Any] = {
        "operationId": route.call.__name__ if route.path != "/stats" else "all_stats",
        "tags": [_tag(route.path)],
        "summary": summary,
        "description": f"{text}\n\nScopes: {', '.join(route.scopes) or 'none'}.",
        "security": [{"token": []}] if route.scopes else [],
        "responses": {
            **_answer(route, named),
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in REFUSED},
        },
    }
    fields = parameters(route.call)
    inside = [field for field in fields if in_path(field, route.path)]
    others = [field for field in fields if field not in inside]
    operation["parameters"] = [_parameter(field, "path", named) for field in inside]
    if takes_body(route.method):
        if others:
            operation["requestBody"] = {
                "required": any(field.required for field in others),
                "content": {"application/json": {"schema": _body(others, named)}},
            }
    else:
        operation["parameters"] += [_parameter(field, "query", named) for field in others]
    return operation


def in_path(field: Field, path: str) -> bool:
    """Tell whether a field is in the path."""
    return f"{{{field.name}}}" in path


def takes_body(method: str) -> bool:
    """Tell whether the parameters are in the body."""
    return method in ("POST", "PUT", "PATCH")


def _tag(path: str) -> str:
    parts = [part for part in path.split("/") if part and part[0] != "{"]
    return next((part for part in parts[1::-1] if part in _TAGS), "upkeep")


def _said(route: Route) -> tuple[str, str]:
    """Return summary and description from the docstring of the method."""
    text = re.sub(r":\w+:`(?:teguh\.)?(\w+)`", r"`\1`", route.call.__doc__ or "")
    text = re.sub(r"\s+", " ", text.replace("``", "`").replace("None", "null")).strip()
    text = re.sub(r" Raise [^.]*\.", "", text)  # the answers say it
    summary, _, _ = text.partition(". ")
    return summary.removesuffix("."), text


def _parameter(field: Field, place: str, named: dict[str, Any]) -> dict[str, Any]:
    shape = dict(schema(field.kind, named))
    if place == "query":
        shape = _without_null(shape)
    if place == "path":
        shape = {"minLength": 1, **_without_null(shape)}
    if not field.required and isinstance(field.default, str | int | float):
        shape["default"] = field.default
    required = field.required or place == "path"
    known = {"name": field.name, "in": place, "required": required}
    if shape.get("type") == "object":
        return {**known, "content": {"application/json": {"schema": shape}}}
    return {**known, "schema": shape}


def _without_null(shape: dict[str, Any]) -> dict[str, Any]:
    members = [member for member in shape.get("anyOf", []) if member != {"type": "null"}]
    if not members:
        return shape
    return dict(members[0]) if len(members) == 1 else {"anyOf": members}


def _body(fields: Sequence[Field], named: dict[str, Any]) -> dict[str, Any]:
    properties = {}
    for field in fields:
        shape = schema(field.kind, named)
        if not field.required and isinstance(field.default, str | int | float):
            shape = {**shape, "default": field.default}
        properties[field.name] = shape
    return {
        "type": "object",
        "properties": properties,
        "required": [field.name for field in fields if field.required],
        "additionalProperties": False,
    }


def _answer(route: Route, named: dict[str, Any]) -> dict[str, Any]:
    returned = hints(route.call).get("return")
    if returned is type(None):
        return {"204": {"description": "Done."}}
    shape = schema(str if route.media != "application/json" else returned, named)
    if route.value:
        shape = {
            "type": "object",
            "properties": {route.value: shape},
            "required": [route.value],
            "additionalProperties": False,
        }
    text = "What was found." if get_origin(returned) is list else "The answer."
    return {"200": {"description": text, "content": {route.media: {"schema": shape}}}}
