"""The OpenAPI 3.1 document of the control plane, and of the data plane's HTTP part in outline.

Source: OpenAPI 3.1.1; what it describes is protocol.md §2.
"""

from __future__ import annotations

from typing import Any, Final

from sandboxrt._version import __version__
from sandboxrt.protocol.links_wire import MAX_SERVICE_S, MEDIA_TYPE
from sandboxrt.protocol.rest_fields import FOREIGN_TRANSPORTS
from sandboxrt.protocol.rest_wire import Ceilings

__all__ = ["SORT_FIELDS", "document"]

SORT_FIELDS: Final = (
    "name",
    "status",
    "created_at",
    "stopped_at",
    "idle_ttl_seconds",
    "delete_after_stop_seconds",
)
"""What lists of sandboxes can be sorted by."""

_PREFIX: Final = "/api/v2/sandboxes"
_TEXT: Final = {"type": "string"}
_MAYBE_TEXT: Final = {"type": ["string", "null"]}
_MAYBE_INT: Final = {"type": ["integer", "null"]}
_STRINGS: Final = {"type": "object", "additionalProperties": _TEXT}
_TTL: Final = {"type": ["integer", "null"], "minimum": 0, "maximum": 316224000, "multipleOf": 60}
_JSON: Final = "application/json"
_BOX_NAME: Final = "[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
_PART: Final = "[A-Za-z0-9][A-Za-z0-9._-]*"


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _maybe(name: str) -> dict[str, Any]:
    return {"oneOf": [_ref(name), {"type": "null"}]}


def _input(longest: int, shortest: int = 0) -> dict[str, Any]:
    return {"type": ["string", "null"], "minLength": shortest, "maxLength": longest, "pattern": "^[^\\u0000]*$"}


def _names(most: int, longest_name: int, longest_text: int, without: str = "") -> dict[str, Any]:
    """An object of texts without NUL, and with no character of ``without`` in its names."""
    return {
        "type": ["object", "null"],
        "maxProperties": most,
        "propertyNames": {"minLength": 1, "maxLength": longest_name, "pattern": f"^[^\\u0000{without}]*$"},
        "additionalProperties": {"type": "string", "maxLength": longest_text, "pattern": "^[^\\u0000]*$"},
    }


def _not_both(one: str, other: str) -> dict[str, Any]:
    given = {"type": "string"}
    return {"not": {"properties": {one: given, other: given}, "required": [one, other]}}


_RUN_CONFIG = _object({"user": _input(65536), "work_dir": _input(65536), "env_vars": _names(4096, 4096, 126975, "=")})
_SANDBOX_REQUEST = {
    "ttl_seconds": _TTL,
    "idle_ttl_seconds": _TTL,
    "delete_after_stop_seconds": _TTL,
    "run_config": {"oneOf": [_ref("RunConfig"), {"type": "null"}]},
}
_SNAPSHOT_NAME = {
    "type": "string",
    "maxLength": 255,
    "pattern": f"^{_PART}(/{_PART})*$",
    "not": {"anyOf": [{"const": "host"}, {"pattern": "^system/"}]},
}
_TAG = {"type": ["string", "null"], "pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"}
_REGISTRY_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
_REGISTRY_URL = {
    "type": "string",
    "maxLength": 512,
    "pattern": f"^(https?://)?[A-Za-z0-9]+([.-][A-Za-z0-9]+)*(:[1-9][0-9]{{0,3}})?(/{_PART})*$",
    "description": "HOST[:PORT][/PATH], with https:// or http:// if you like; IPv6 addresses in brackets, too.",
}
_REGISTRY_LOGIN = {
    "auth_type": {"enum": ["DOCKER_CONFIG", None]},
    "username": {"type": "string", "minLength": 1, "maxLength": 4096, "pattern": "^[^\\u0000-\\u001f\\u007f:]*$"},
    "password": {"type": "string", "minLength": 1, "maxLength": 4096, "pattern": "^[^\\u0000-\\u001f\\u007f]*$"},
}
_STATUS = {"enum": ["provisioning", "ready", "failed", "stopped", "deleting"]}

_SCHEMAS: Final[dict[str, Any]] = {
    "RunConfig": _RUN_CONFIG,
    "Sandbox": _object(
        {
            "id": _TEXT,
            "name": _TEXT,
            "status": _STATUS,
            "status_message": _MAYBE_TEXT,
            "dataplane_url": _MAYBE_TEXT,
            "created_at": _MAYBE_TEXT,
            "updated_at": _MAYBE_TEXT,
            "stopped_at": _MAYBE_TEXT,
            "expires_at": _MAYBE_TEXT,
            "ttl_seconds": _MAYBE_INT,
            "idle_ttl_seconds": _MAYBE_INT,
            "delete_after_stop_seconds": _MAYBE_INT,
            "snapshot_id": _MAYBE_TEXT,
            "vcpus": {"type": ["number", "null"]},
            "cpu_millicores": _MAYBE_INT,
            "mem_bytes": _MAYBE_INT,
            "fs_capacity_bytes": _MAYBE_INT,
            "labels": _STRINGS,
            "run_config": _maybe("RunConfig"),
            "lease_seconds": _MAYBE_INT,
        },
        "id",
        "name",
        "status",
        "labels",
    ),
    "Lease": _object({"lease_seconds": {"type": "integer", "minimum": 1}}, "lease_seconds"),
    "SandboxList": _object(
        {
            "sandboxes": {"type": "array", "items": _ref("Sandbox")},
            "items": {"type": "array", "items": _ref("Sandbox")},
            "next_cursor": {"type": "null"},
            "offset": {"type": "integer"},
        },
        "sandboxes",
        "items",
    ),
    "SandboxStatus": _object({"status": _STATUS, "status_message": _MAYBE_TEXT}, "status"),
    "IsolationReport": _object(
        {
            "runtime": _TEXT,
            "findings": {
                "type": "object",
                "additionalProperties": _object(
                    {"achieved": {"type": "boolean"}, "detail": _TEXT, "fix": _MAYBE_TEXT}, "achieved", "detail"
                ),
            },
        },
        "runtime",
        "findings",
    ),
    "CreateSandbox": _object(
        {
            "wait_for_ready": {"type": ["boolean", "null"]},
            "timeout": {"type": ["number", "null"], "minimum": 0, "maximum": 3600},
            "name": {"type": ["string", "null"], "pattern": f"^({_BOX_NAME})?$"},
            "snapshot": _input(512, 1),
            "snapshot_id": _input(512, 1),
            "snapshot_name": _input(512, 1),
            **_SANDBOX_REQUEST,
            "labels": _names(128, 256, 4096),
            "env_vars": _names(4096, 4096, 126975, "="),
        }
    )
    | {
        "allOf": [
            _not_both("snapshot_id", "snapshot_name"),
            _not_both("snapshot_id", "snapshot"),
            _not_both("snapshot_name", "snapshot"),
        ]
    },
    "UpdateSandbox": _object({"name": {"type": ["string", "null"], "pattern": f"^{_BOX_NAME}$"}, **_SANDBOX_REQUEST}),
    "Snapshot": _object(
        {
            "id": _TEXT,
            "name": _TEXT,
            "status": {"enum": ["building", "ready", "failed"]},
            "status_message": _MAYBE_TEXT,
            "error_type": _MAYBE_TEXT,
            "fs_capacity_bytes": {"type": "integer"},
            "fs_used_bytes": _MAYBE_INT,
            "docker_image": _MAYBE_TEXT,
            "image_digest": _MAYBE_TEXT,
            "source_sandbox_id": _MAYBE_TEXT,
            "tags": {"type": "array", "items": _TEXT},
            "run_config": _maybe("RunConfig"),
            "created_at": _MAYBE_TEXT,
            "updated_at": _MAYBE_TEXT,
            "created_by": _MAYBE_TEXT,
            "registry_id": _MAYBE_TEXT,
        },
        "id",
        "name",
        "status",
        "tags",
    ),
    "SnapshotList": _object(
        {
            "snapshots": {"type": "array", "items": _ref("Snapshot")},
            "items": {"type": "array", "items": _ref("Snapshot")},
            "next_cursor": {"type": "null"},
            "offset": {"type": "integer"},
        },
        "snapshots",
        "items",
    ),
    "CreateSnapshot": _object(
        {
            "name": _SNAPSHOT_NAME,
            "docker_image": {
                "type": "string",
                "minLength": 1,
                "maxLength": 512,
                "pattern": "^[^\\u0000]*$",
                "not": {"pattern": f"^({'|'.join(sorted(FOREIGN_TRANSPORTS))}):"},
            },
            "fs_capacity_bytes": {"type": "integer", "minimum": 16777216, "maximum": 2**53},
            "tag": _TAG,
            "run_config": {"oneOf": [_ref("RunConfig"), {"type": "null"}]},
            "registry_url": _input(512, 1),
            "registry_username": _input(65536),
            "registry_password": _input(65536),
            "registry_id": _input(512, 1),
        },
        "name",
        "docker_image",
        "fs_capacity_bytes",
    )
    | {"allOf": [_not_both("registry_id", f"registry_{other}") for other in ("url", "username", "password")]},
    "Registry": _object(
        {
            "id": _TEXT,
            "name": _TEXT,
            "url": _TEXT,
            "auth_type": {"enum": ["DOCKER_CONFIG", "AWS_ROLE"]},
            "aws_role_arn": _MAYBE_TEXT,
            "username": _MAYBE_TEXT,
            "provider": {"enum": ["DOCKER_REGISTRY", "HARBOR", "GHCR", "ECR", "GAR", "DOCKER_HUB"]},
            "repository_search_mode": {"enum": ["GLOBAL", "SCOPED", "NONE"]},
            "created_at": _TEXT,
            "created_by": _MAYBE_TEXT,
            "updated_at": _TEXT,
            "updated_by": _MAYBE_TEXT,
        },
        "id",
        "name",
        "url",
        "auth_type",
    ),
    "RegistryList": _object(
        {
            "registries": {"type": "array", "items": _ref("Registry")},
            "items": {"type": "array", "items": _ref("Registry")},
            "next_cursor": _MAYBE_TEXT,
            "offset": {"type": "integer"},
        },
        "registries",
        "items",
        "next_cursor",
        "offset",
    ),
    "CreateRegistry": _object(
        {"name": _REGISTRY_NAME, "url": _REGISTRY_URL, **_REGISTRY_LOGIN},
        "name",
        "url",
    )
    | {"dependentRequired": {"username": ["password"], "password": ["username"]}},
    "UpdateRegistry": _object(
        {
            "name": {**_REGISTRY_NAME, "type": ["string", "null"]},
            "url": {**_REGISTRY_URL, "type": ["string", "null"]},
            **_REGISTRY_LOGIN,
        }
    ),
    "CaptureSnapshot": _object(
        {
            "name": _SNAPSHOT_NAME,
            "tag": _TAG,
            "fs_capacity_bytes": {"type": ["integer", "null"], "minimum": 16777216, "maximum": 2**53},
            "run_config": {"oneOf": [_ref("RunConfig"), {"type": "null"}]},
        },
        "name",
    ),
    "SnapshotTags": _object(
        {
            "name": _TEXT,
            "tags": {
                "type": "array",
                "items": _object({"tag": _TEXT, "snapshot_id": _TEXT}, "tag", "snapshot_id"),
            },
        },
        "name",
        "tags",
    ),
    "CreateServiceURL": _object(
        {
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
            "expires_in_seconds": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_SERVICE_S},
        },
        "port",
    ),
    "ServiceURL": _object(
        {"browser_url": _TEXT, "service_url": _TEXT, "token": _TEXT, "expires_at": _TEXT},
        "browser_url",
        "service_url",
        "token",
        "expires_at",
    ),
    "CreateDownloadURL": _object(
        {
            "path": {"type": "string", "minLength": 1, "maxLength": 2048, "pattern": "^[^\\u0000]*$"},
            "expires_in_seconds": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1},
            "content_type": {"type": ["string", "null"], "pattern": f"^{MEDIA_TYPE}$"},
            "content_disposition": {"enum": ["attachment", "inline", None]},
            "csp_sandbox": {"enum": [True, None]},
        },
        "path",
    ),
    "DownloadURL": _object(
        {"download_url": _TEXT, "token": _TEXT, "expires_at": _MAYBE_TEXT}, "download_url", "token", "expires_at"
    ),
    "Error": _object(
        {"detail": _object({"error": _TEXT, "message": _TEXT, "error_id": _TEXT}, "error", "message")}, "detail"
    ),
    "Faults": _object(
        {
            "detail": {
                "type": "array",
                "items": _object({"loc": {"type": "array"}, "msg": _TEXT, "type": _TEXT}, "loc", "msg", "type"),
            }
        },
        "detail",
    ),
}

_REASONS: Final = {
    400: "The request cannot be carried out as it is",
    401: "No key, or one that is not good",
    404: "There is none, or it is another tenant's",
    408: "It was not ready, or the request not there, in time",
    409: "The name is taken, or the thing is in use",
    413: "The body is too long",
    422: "Fields are wrong, or it could not be made",
    429: "Too many requests; Retry-After says when to come again",
    500: "The server failed; its log has the reason",
    501: "Not done by this server yet",
    503: "The server stops or is too busy; the same request may come again",
}
_ALWAYS: Final = (401, 429, 500, 503)


def _operation(
    identifier: str, summary: str, good: dict[int, str | None], bad: tuple[int, ...], body: str | None = None
) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, schema in good.items():
        content = {} if schema is None else {"content": {_JSON: {"schema": _ref(schema)}}}
        responses[str(status)] = {"description": summary, **content}
    for status in sorted({*bad, *_ALWAYS}):
        schema_of = {"anyOf": [_ref("Faults"), _ref("Error")]} if status == 422 else _ref("Error")
        responses[str(status)] = {"description": _REASONS[status], "content": {_JSON: {"schema": schema_of}}}
    found: dict[str, Any] = {"operationId": identifier, "summary": summary, "responses": responses}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {_JSON: {"schema": _ref(body)}}}
    return found


def _query(name: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _path(name: str, text: str, pattern: str | None = None) -> dict[str, Any]:
    schema = _TEXT if pattern is None else {**_TEXT, "pattern": pattern}
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": text}


def _page(most: int, default: str) -> list[dict[str, Any]]:
    return [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": most}, f"At most so many; {default}."),
        _query("offset", {"type": "integer", "minimum": 0, "maximum": 2**53}, "So many are passed over."),
        _query("name_contains", _TEXT, "Only names that contain this, upper and lower case alike."),
    ]


def _paths() -> dict[str, Any]:
    reading = (400, 408, 413, 422)
    boxes: dict[str, Any] = {
        "post": {
            **_operation(
                "createSandbox", "Make a sandbox", {201: "Sandbox"}, (*reading, 404, 409), body="CreateSandbox"
            ),
            "parameters": [
                {
                    "name": "Idempotency-Key",
                    "in": "header",
                    "required": False,
                    "schema": {"type": "string", "minLength": 1, "maxLength": 256},
                    "description": "Made by the client for one create: with the same name and key it is repeated.",
                },
                {
                    "name": "Sandboxrt-Lease",
                    "in": "header",
                    "required": False,
                    "schema": {"type": "integer", "minimum": 1, "maximum": 3600},
                    "description": "Delete the sandbox when its lease was not renewed for so many seconds.",
                },
            ],
        },
        "get": {
            **_operation("listSandboxes", "List sandboxes", {200: "SandboxList"}, (422,)),
            "parameters": [
                *_page(500, "all where left out"),
                _query("status", _TEXT, "Only those in this status."),
                _query("label", {"type": "array", "items": _TEXT}, "key or key=value; all must match."),
                _query("sort_by", {"enum": list(SORT_FIELDS)}, "A field; oldest first where left out."),
                _query("sort_direction", {"enum": ["asc", "desc"]}, "The order."),
            ],
        },
    }
    box: dict[str, Any] = {
        "parameters": [_path("name", "The sandbox's name or id.")],
        "get": _operation("getSandbox", "One sandbox", {200: "Sandbox"}, (404,)),
        "patch": _operation(
            "updateSandbox", "Change a sandbox", {200: "Sandbox"}, (*reading, 404, 409), body="UpdateSandbox"
        ),
        "delete": _operation("deleteSandbox", "Delete a sandbox", {204: None}, (404,)),
    }
    snapshots: dict[str, Any] = {
        "post": _operation(
            "createSnapshot",
            "Begin to build a snapshot",
            {201: "Snapshot"},
            (*reading, 404),
            body="CreateSnapshot",
        ),
        "get": {
            **_operation("listSnapshots", "List snapshots", {200: "SnapshotList"}, (422,)),
            "parameters": _page(500, "50 where left out"),
        },
    }
    snapshot: dict[str, Any] = {
        "parameters": [_path("ref", "An id; to read also name:tag or a name. '/' is written %2F.")],
        "get": _operation("getSnapshot", "One snapshot", {200: "Snapshot"}, (404,)),
        "delete": _operation("deleteSnapshot", "Delete a snapshot", {204: None}, (404, 409)),
    }
    registries: dict[str, Any] = {
        "post": _operation(
            "createRegistry", "Name a registry", {201: "Registry"}, (*reading, 409), body="CreateRegistry"
        ),
        "get": {
            **_operation("listRegistries", "List named registries", {200: "RegistryList"}, (400, 422)),
            "parameters": [
                *_page(500, "50 where left out"),
                _query(
                    "page_size", {"type": "integer", "minimum": 1, "maximum": 100}, "At most so many, by cursor; 20."
                ),
                # No other text is one.
                _query(
                    "cursor", {"type": "string", "maxLength": 0}, "next_cursor of the page before; empty for the first."
                ),
            ],
        },
    }
    registry: dict[str, Any] = {
        "parameters": [_path("name", "The registry's name or id.")],
        "get": _operation("getRegistry", "One named registry", {200: "Registry"}, (404,)),
        "patch": _operation(
            "updateRegistry", "Change a named registry", {200: "Registry"}, (*reading, 404, 409), body="UpdateRegistry"
        ),
        "delete": _operation("deleteRegistry", "Forget a named registry", {204: None}, (404, 409)),
    }
    return {
        "/registries": registries,
        "/registries/{name}": registry,
        "/boxes": boxes,
        "/boxes/{name}": box,
        "/boxes/{name}/status": {
            "parameters": [_path("name", "The sandbox's name or id.")],
            "get": _operation("getSandboxStatus", "A sandbox's status", {200: "SandboxStatus"}, (404,)),
        },
        "/boxes/{name}/start": {
            "parameters": [_path("name", "The sandbox's name or id.")],
            "post": _operation("startSandbox", "Begin to start a stopped sandbox", {202: "Sandbox"}, (400, 404)),
        },
        "/boxes/{name}/stop": {
            "parameters": [_path("name", "The sandbox's name or id.")],
            "post": _operation("stopSandbox", "Stop a sandbox; its files stay", {200: "Sandbox"}, (400, 404)),
        },
        "/boxes/{name}/snapshot": {
            "parameters": [_path("name", "The sandbox's name or id.")],
            "post": _operation(
                "captureSnapshot",
                "Begin to make a snapshot of a sandbox's files",
                {201: "Snapshot"},
                (*reading, 404),
                body="CaptureSnapshot",
            ),
        },
        "/boxes/{name}/lease": {
            "parameters": [_path("name", "The sandbox's name or id.")],
            "post": _operation("renewLease", "Renew a sandbox's lease", {200: "Lease"}, (404, 422)),
        },
        "/boxes/{name}/isolation": {
            "parameters": [_path("name", "The sandbox's name or id.")],
            "get": _operation("getIsolation", "What isolation a sandbox has", {200: "IsolationReport"}, (404,)),
        },
        "/boxes/{name}/service-url": {
            "parameters": [_path("name", "The sandbox's name or id.")],
            "post": _operation(
                "createServiceURL",
                "A link to an HTTP service inside",
                {200: "ServiceURL"},
                (*reading, 404),
                body="CreateServiceURL",
            ),
        },
        "/boxes/{name}/download-url": {
            "parameters": [_path("name", "The sandbox's name or id.")],
            "post": _operation(
                "createDownloadURL",
                "A link to a file, for GET and HEAD without key: below this server's address or on its service domain",
                {200: "DownloadURL"},
                (*reading, 404),
                body="CreateDownloadURL",
            ),
        },
        "/snapshots": snapshots,
        "/snapshots/{ref}": snapshot,
        "/snapshots-by-name/{ref}": {
            "parameters": [_path("ref", "A snapshot's name, without a tag.", "^[^:]+$")],
            "get": _operation("listSnapshotTags", "The tags of a snapshot's name", {200: "SnapshotTags"}, (400, 404)),
        },
    }


def _schemas(ceilings: Ceilings) -> dict[str, Any]:
    """The schemas, with what this server lets one sandbox ask for."""
    cpus = {"type": ["number", "null"], "minimum": 0.01, "maximum": ceilings.vcpus}
    millicores = {"type": ["integer", "null"], "minimum": 10, "maximum": int(ceilings.vcpus * 1000)}
    memory = {"type": ["integer", "null"], "minimum": 16777216, "maximum": ceilings.mem_bytes}
    disk = {"type": ["integer", "null"], "minimum": 16777216, "maximum": ceilings.fs_capacity_bytes}
    create = _SCHEMAS["CreateSandbox"]
    limits = {"vcpus": cpus, "cpu_millicores": millicores, "mem_bytes": memory, "fs_capacity_bytes": disk}
    return {**_SCHEMAS, "CreateSandbox": {**create, "properties": {**create["properties"], **limits}}}


def document(public_url: str, ceilings: Ceilings | None = None) -> dict[str, Any]:
    """The document of a server at that URL, which lets sandboxes ask for so much."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sandboxrt",
            "version": __version__,
            "summary": "The control plane of a sandbox server; commands and files go through each dataplane_url.",
        },
        "servers": [{"url": public_url}],
        "security": [{"key": []}],
        "paths": {_PREFIX + path: item for path, item in _paths().items()},
        "components": {
            "schemas": _schemas(ceilings or Ceilings()),
            "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"}},
        },
    }
