"""Row 40: named registries. The seed's client knows their ids, and nothing to make one with."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import langsmith.sandbox as ls
from context import Context, check, raises, same

MIB = 1024 * 1024


async def named_registries(context: Context) -> None:
    """A private image with a stored login, and what is refused."""
    private = context.options["private"]
    host = private["url"].removeprefix("http://")
    name = f"internal-{context.generation[1]}-{context.form}"
    async with context.client() as client, _registry(context, client, name, private) as registry_id:
        for image in ("tiny:1", f"{host}/tiny:1"):
            snapshot = await client.create_snapshot(name, image, 64 * MIB, registry_id=registry_id)
            try:
                same((snapshot.status, snapshot.registry_id), ("ready", registry_id), "the snapshot")
                async with await client.sandbox(snapshot.id) as sandbox:
                    same((await sandbox.run("echo private", shell="/bin/sh")).stdout, "private\n", "a command in it")
            finally:
                await client.delete_snapshot(snapshot.id)
        elsewhere = await raises(
            ls.SandboxClientError,
            client.create_snapshot(name, "evil.example/tiny:1", 64 * MIB, registry_id=registry_id),
        )
        check("evil.example" in str(elsewhere) and host in str(elsewhere), f"both hosts are named: {elsewhere}")
        await raises(
            ls.ResourceNotFoundError,
            client.create_snapshot(name, "tiny:1", 64 * MIB, registry_id="00000000-0000-4000-8000-000000000000"),
        )
        wrong = {**private, "password": "wrong"}
        async with _registry(context, client, name + "-wrong", wrong) as wrong_id:
            refused = await raises(
                ls.ResourceCreationError, client.create_snapshot(name, "tiny:1", 64 * MIB, registry_id=wrong_id)
            )
            said = str(refused)
            check(f"'{name}-wrong'" in said and private["username"] in said, f"registry and user are named: {said}")
        for left in await client.list_snapshots(name_contains=name):
            await client.delete_snapshot(left.id)
        if not context.seed:
            await _managing(context, client, name, registry_id, private)


async def _managing(context: Context, client: Any, name: str, registry_id: str, private: dict[str, str]) -> None:
    registries = client.registries
    found = await registries.retrieve(name)
    same((found.id, found.name, found.url), (registry_id, name, private["url"]), "by name")
    same(
        (found.auth_type, found.provider, found.repository_search_mode),
        ("DOCKER_CONFIG", "DOCKER_REGISTRY", "NONE"),
        "kind",
    )
    check(found.created_at and found.updated_at and found.created_by, "who made it, and when")
    check(private["password"] not in repr(found), "no password")
    if context.newest:
        page = await registries.list(name_contains=name.upper(), page_size=1)
        same(([each.id for each in page.items], page.next_cursor), ([registry_id], None), "the list by cursor")
        error = await raises(Exception, registries.list(page_size=500))
        same(getattr(error, "status_code", error), 400, "a page that is too long")
    page = await registries.list(name_contains=name, limit=1, offset=0)
    same([each.id for each in page.registries], [registry_id], "the list by offset")
    changed = await registries.update(name, body_name=name + "-2", username="somebody", password="else")
    same((changed.id, changed.name), (registry_id, name + "-2"), "after a change")
    login = {"username": "somebody", "password": "else"}
    for doing, status in (
        (registries.retrieve(name), 404),
        (registries.create(name=name + "-2", url="registry.example", **login), 409),
        (registries.create(name="a b", url="registry.example", **login), 422),
        (registries.create(name=name, url="ftp://registry.example", **login), 422),
        (registries.update(name + "-2", url="evil.example"), 422),
        (registries.delete(name), 404),
    ):
        error = await raises(Exception, doing)
        same(getattr(error, "status_code", error), status, "the status")
    await registries.update(name + "-2", body_name=name)


@contextlib.asynccontextmanager
async def _registry(context: Context, client: Any, name: str, login: dict[str, str]) -> AsyncIterator[str]:
    if not context.seed:
        made = await client.registries.create(name=name, **login)
        try:
            yield made.id
        finally:
            await client.registries.delete(made.id)  # whatever it is called by now
        return
    made_by_hand = _ask(context, "POST", "", {"name": name, **login})
    try:
        yield made_by_hand["id"]
    finally:
        _ask(context, "DELETE", "/" + name)


def _ask(context: Context, method: str, path: str, body: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(
        f"{context.endpoint}/api/v2/sandboxes/registries{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"X-Api-Key": context.key or "", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        content = answer.read()
    return json.loads(content) if content else None


SCENARIOS = {"40 registries": named_registries}
