"""The JSON of named registries: strict where a server reads it, lenient where a client does, as ``rest_wire``.

Source: protocol.md §2.8.
"""

from __future__ import annotations

from typing import Any

import attrs

from sandboxrt.models import Registry, RegistryPage
from sandboxrt.protocol.registries import CreateRegistry, ListRegistries, UpdateRegistry
from sandboxrt.protocol.rest_fields import Name, Text, structure

__all__ = [
    "create_registry_from_json",
    "create_registry_to_json",
    "list_registries_to_query",
    "registry_from_json",
    "registry_page_from_json",
    "registry_page_to_json",
    "registry_to_json",
    "update_registry_from_json",
    "update_registry_to_json",
]


@attrs.frozen(kw_only=True)
class _CreateBody:
    name: Name
    url: Name
    auth_type: Text | None = None
    aws_role_arn: Text | None = None
    username: Text | None = None
    password: Text | None = None


@attrs.frozen(kw_only=True)
class _UpdateBody:
    name: Name | None = None
    url: Name | None = None
    auth_type: Text | None = None
    aws_role_arn: Text | None = None
    username: Text | None = None
    password: Text | None = None


# -- what a server is sent, and answers ------------------------------------------------------------------------------


def create_registry_from_json(body: object) -> CreateRegistry:
    """A create request as a server is sent it. Raises ``ValidationError`` with every fault of types in ``details``."""
    return CreateRegistry(**attrs.asdict(structure(_CreateBody, body, ())))


def update_registry_from_json(body: object) -> UpdateRegistry:
    """An update request as a server is sent it. Raises ``ValidationError`` likewise."""
    return UpdateRegistry(**attrs.asdict(structure(_UpdateBody, body, ())))


def registry_to_json(registry: Registry) -> dict[str, Any]:
    """The registry object of protocol.md §2.8, and the user's name, which official servers keep to themselves."""
    return attrs.asdict(registry)


def registry_page_to_json(page: RegistryPage) -> dict[str, Any]:
    """A page of them, by both of its names."""
    items = [registry_to_json(registry) for registry in page.items]
    return {"registries": items, "items": items, "next_cursor": page.next_cursor, "offset": page.offset}


# -- what a client sends, and is answered ----------------------------------------------------------------------------


def create_registry_to_json(request: CreateRegistry) -> dict[str, Any]:
    """A create request: only what was asked for."""
    return _asked(request)


def update_registry_to_json(request: UpdateRegistry) -> dict[str, Any]:
    """An update request: only what changes."""
    return _asked(request)


def list_registries_to_query(request: ListRegistries) -> dict[str, str | int]:
    """The query of a list request."""
    return _asked(request)


def registry_from_json(body: object) -> Registry:
    """A registry as some server describes it; what is missing or odd is ``None``, or empty where something must be."""
    found = body if isinstance(body, dict) else {}
    texts = {field.name: value for field in attrs.fields(Registry) if isinstance(value := found.get(field.name), str)}
    return Registry(**{"id": "", "name": "", "url": "", **texts})


def registry_page_from_json(body: object) -> RegistryPage:
    """A page of them; a server may know one name of it only."""
    found = body if isinstance(body, dict) else {}
    items = found.get("items") or found.get("registries")
    cursor, offset = found.get("next_cursor"), found.get("offset")
    return RegistryPage(
        tuple(registry_from_json(item) for item in items) if isinstance(items, list) else (),
        cursor if isinstance(cursor, str) and cursor else None,
        offset if isinstance(offset, int) else 0,
    )


def _asked(request: CreateRegistry | UpdateRegistry | ListRegistries) -> dict[str, Any]:
    # Whose it is and who asks is what the server knows by the key.
    return attrs.asdict(request, filter=lambda field, value: value is not None and field.name not in ("tenant", "by"))
