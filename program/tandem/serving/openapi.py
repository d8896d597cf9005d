"""Descriptions of the service: a sentence for people, an OpenAPI document for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ERROR = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {
        "error": {"type": "string", "description": "The kind of error, for a program."},
        "message": {"type": "string", "description": "What was wrong and what to do, for a person."},
    },
}
_FAILURES = {
    "400": "The body is not valid for its Content-Type.",
    "406": "None of the media types in Accept can be produced.",
    "413": "The body is too large.",
    "415": "The Content-Type cannot be read.",
    "500": "The model failed on this request.",
    "503": "The model is loading, or too many requests wait; try again after Retry-After seconds.",
}


def describe_service(content_types: Sequence[str]) -> str:
    """Return a sentence or two on what this is and how to use it."""
    return (
        "This is a model that answers requests: POST one to /invocations, as "
        f"{', '.join(content_types)}. GET /ping tells whether it is ready, "
        "/openapi.json describes all of it.\n"
    )


def make_openapi(content_types: Sequence[str], accepts: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the routes, with the media types of the algorithm."""
    failures = {
        status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
        for status, text in _FAILURES.items()
    }
    score = {
        "summary": "Score what the body holds.",
        "requestBody": {"required": True, "content": _list_types(content_types)},
        "responses": {
            "200": {"description": "One result a row.", "content": _list_types(accepts)},
            **failures,
        },
    }
    ping = {
        "summary": "Check whether requests can be scored.",
        "responses": {"200": {"description": "They can."}, "503": failures["503"], "500": failures["500"]},
    }
    batch = {
        "summary": "Parameters for batch transform.",
        "responses": {
            "200": {"description": "Concurrency and payload.", "content": _list_types(["application/json"])}
        },
    }
    metrics = {
        "summary": "Metrics for Prometheus.",
        "responses": {"200": {"description": "Prometheus's text.", "content": _list_types(["text/plain"])}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Scoring service",
            "version": "1",
            "description": describe_service(content_types).strip(),
        },
        "paths": {
            "/invocations": {"post": score},
            "/ping": {"get": ping},
            "/execution-parameters": {"get": batch},
            "/metrics": {"get": metrics},
        },
    }


def _list_types(types: Sequence[str]) -> Mapping[str, Any]:
    return {media_type: {} for media_type in types}
