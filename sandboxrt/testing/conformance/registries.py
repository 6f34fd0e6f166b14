"""Named registries: what is kept of them, what is refused, and what they never show. Nothing is fetched here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from sandboxrt.errors import (
    ResourceAlreadyExistsError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    SandboxClientError,
    ValidationError,
)
from sandboxrt.models import Registry
from sandboxrt.protocol.registries import CreateRegistry, ListRegistries, UpdateRegistry
from sandboxrt.protocol.rest import CreateSnapshot
from sandboxrt.testing.conformance.driver import Case, Driver, by_name, new_name

__all__ = ["REGISTRY_CASES"]

_E = TypeVar("_E", bound=Exception)
_CASES: list[Case] = []
_PASSWORD = "a password that nobody shows"  # noqa: S105  of nobody


def _case(case: Case) -> Case:
    _CASES.append(case)
    return case


async def _raises(kind: type[_E], awaitable: Awaitable[object]) -> _E:
    try:
        await awaitable
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


@asynccontextmanager
async def named(driver: Driver, **options: Any) -> AsyncIterator[Registry]:
    """A registry for the length of a block."""
    wanted = {"name": new_name(), "url": "registry.example/team", "username": "robot", "password": _PASSWORD, **options}
    made = await driver.registries.create(CreateRegistry(**wanted))
    try:
        yield made
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await driver.registries.delete(made.id)


@_case
async def a_registry_is_kept_without_showing_its_password(driver: Driver) -> None:
    """By name and by id, before and after a change."""
    async with named(driver) as made:
        assert (made.url, made.username, made.auth_type) == ("registry.example/team", "robot", "DOCKER_CONFIG")
        assert (made.provider, made.repository_search_mode) == ("DOCKER_REGISTRY", "NONE")
        assert made.id and made.created_at and made.updated_at
        for reference in (made.name, made.id):
            assert await driver.registries.get(reference) == made
        name = new_name()
        changed = await driver.registries.update(made.name, UpdateRegistry(name=name, url="https://registry.example"))
        assert (changed.id, changed.name, changed.username) == (made.id, name, "robot")
        missing = await _raises(ResourceNotFoundError, driver.registries.get(made.name))
        assert missing.resource_type == "registry"
        page = await driver.registries.list(ListRegistries(name_contains=name.upper()))
        assert page.items == page.registries == (changed,)
        assert _PASSWORD not in repr((made, changed, page))
    await _raises(ResourceNotFoundError, driver.registries.delete(made.id))
    await _raises(ResourceNotFoundError, driver.registries.update(made.id, UpdateRegistry(name="x")))


@_case
async def registries_come_in_pages(driver: Driver) -> None:
    """Newest first; by cursor, and by offset."""
    prefix = new_name()
    async with (
        named(driver, name=prefix + "-0"),
        named(driver, name=prefix + "-1"),
        named(driver, name=prefix + "-2"),
    ):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await driver.registries.list(ListRegistries(name_contains=prefix, page_size=2, cursor=cursor))
            seen += [registry.name for registry in page.items]
            if (cursor := page.next_cursor) is None:
                break
        assert seen == [f"{prefix}-{number}" for number in (2, 1, 0)]
        page = await driver.registries.list(ListRegistries(name_contains=prefix, limit=1, offset=1))
        assert ([registry.name for registry in page.items], page.offset) == ([prefix + "-1"], 2)
        wrong: tuple[dict[str, Any], ...] = ({"limit": 0}, {"offset": -1}, {"page_size": 101}, {"cursor": "none"})
        for asked in wrong:
            await _raises(SandboxClientError, driver.registries.list(ListRegistries(**asked)))


@_case
async def registries_refuse_what_cannot_be(driver: Driver) -> None:
    """Names that are taken, fields that are wrong, and a password that would go to another host."""
    async with named(driver) as one, named(driver) as two:
        taken = await _raises(
            ResourceAlreadyExistsError, driver.registries.create(CreateRegistry(name=one.name, url=one.url))
        )
        assert taken.resource_type == "registry"
        await _raises(ResourceNameConflictError, driver.registries.update(two.id, UpdateRegistry(name=one.name)))
        good: dict[str, Any] = {"name": new_name(), "url": "registry.example", "username": "u", "password": "p"}
        for field, value in (("name", "a b"), ("url", "ftp://registry.example"), ("username", None)):
            wanted = {**good, field: value}
            error = await _raises(ValidationError, driver.registries.create(CreateRegistry(**wanted)))
            assert error.field == field
        error = await _raises(ValidationError, driver.registries.update(one.id, UpdateRegistry(url="evil.example")))
        assert error.field == "password"
        moved = UpdateRegistry(url="other.example", password="again")  # noqa: S106  of nobody
        assert (await driver.registries.update(one.id, moved)).url == "other.example"


@_case
async def a_login_goes_to_no_other_host(driver: Driver) -> None:
    """Images of other hosts are refused, and so is a second login beside the stored one."""
    async with named(driver) as made:

        def request(image: str = "app:1", **options: Any) -> CreateSnapshot:
            wanted = {"registry_id": made.id, **options}
            return CreateSnapshot(name=new_name(), docker_image=image, fs_capacity_bytes=2**30, **wanted)

        error = await _raises(ValidationError, driver.create_snapshot(request("evil.example/app:1")))
        assert error.field == "docker_image"
        assert "evil.example" in str(error) and "registry.example" in str(error)
        error = await _raises(ValidationError, driver.create_snapshot(request(registry_url="evil.example")))
        assert error.field == "registry_url"
        unknown = "00000000-0000-4000-8000-000000000000"
        missing = await _raises(ResourceNotFoundError, driver.create_snapshot(request(registry_id=unknown)))
        assert missing.resource_type == "registry"


REGISTRY_CASES = by_name(_CASES)
