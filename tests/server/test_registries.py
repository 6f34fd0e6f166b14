"""Named registries over HTTP, as every client sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.app_kit import Site, detail, faults, site

LOGIN = {"username": "robot", "password": "correct horse"}


async def make(here: Site, name: str = "internal", url: str = "registry.example", **fields: Any) -> dict[str, Any]:
    answer = await here.acme.post("/registries", json={"name": name, "url": url, **LOGIN, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_registrys_life(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        made = await make(here)
        assert made["auth_type"] == "DOCKER_CONFIG" and made["aws_role_arn"] is None
        assert made["created_by"] and made["created_by"] == made["updated_by"]
        for reference in ("internal", made["id"]):
            found = await here.acme.get(f"/registries/{reference}")
            assert (found.status_code, found.json()) == (200, made)
        changed = await here.acme.patch("/registries/internal", json={"name": "renamed", "password": "other word"})
        assert (changed.json()["id"], changed.json()["name"]) == (made["id"], "renamed")
        detail(await here.acme.get("/registries/internal"), 404)
        listed = (await here.acme.get("/registries")).json()
        assert listed["items"] == listed["registries"] == [changed.json()]
        assert (listed["next_cursor"], listed["offset"]) == (None, 0)
        for answer in (found, changed):
            assert "correct horse" not in answer.text and "other word" not in answer.text
        assert (await here.acme.delete("/registries/renamed")).status_code == 204
        detail(await here.acme.delete("/registries/renamed"), 404)


async def test_pages(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for number in range(5):
            await make(here, f"r{number}")

        async def page(query: str) -> dict[str, Any]:
            answer = await here.acme.get("/registries?" + query)
            assert answer.status_code == 200, answer.text
            return answer.json()

        seen, cursor = [], ""
        while True:
            found = await page(f"page_size=2{cursor}")
            seen += [item["name"] for item in found["items"]]
            if found["next_cursor"] is None:
                break
            cursor = "&cursor=" + found["next_cursor"]
            await make(here, f"new{len(seen)}")  # what is new does not move the pages
        assert seen == ["r4", "r3", "r2", "r1", "r0"]
        found = await page("limit=2&offset=1&name_contains=R")
        assert ([item["name"] for item in found["items"]], found["offset"]) == (["r3", "r2"], 3)
        for query in ("page_size=0", "page_size=101", "page_size=x", "cursor=x"):
            assert detail(await here.acme.get("/registries?" + query), 400)["error"] == "InvalidRequest"
        for query in ("limit=0", "limit=501", "offset=-1"):
            faults(await here.acme.get("/registries?" + query))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a b"},
        {"url": "ftp://registry.example"},
        {"url": "https://user:pw@registry.example"},
        {"username": None},
        {"password": None},
        {"password": 5},
        {"auth_type": "AWS_ROLE"},
    ],
)
async def test_what_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    async with site(tmp_path) as here:
        answer = await here.acme.post("/registries", json={"name": "x", "url": "registry.example", **LOGIN, **fields})
        (field,) = fields
        assert f"body.{field}" in faults(answer)
        assert "correct horse" not in answer.text


async def test_conflicts(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await make(here)
        answer = await here.acme.post("/registries", json={"name": "internal", "url": "registry.example"})
        assert detail(answer, 409)["error"] == "AlreadyExists"
        await make(here, "second")
        answer = await here.acme.patch("/registries/second", json={"name": "internal"})
        assert detail(answer, 409)["error"] == "NameConflict"
        answer = await here.acme.patch("/registries/second", json={"url": "evil.example"})
        assert "body.password" in faults(answer)


async def test_where_a_generation_looks_for_them(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        made = await make(here)
        for prefix in ("/v2/sandboxes", "/api/v2/sandboxes", "/api/v1/v2/sandboxes", "/api/api/v2/sandboxes"):
            url = f"{here.server.url}{prefix}/registries"
            assert (await here.acme.get(url)).json()["items"] == [made]
            detail(await here.nobody.get(url), 401)


async def test_tenants_and_strangers(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        made = await make(here)
        detail(await here.nobody.get("/registries"), 401)
        assert (await here.other.get("/registries")).json()["items"] == []
        for reference in ("internal", made["id"]):
            detail(await here.other.get(f"/registries/{reference}"), 404)
            detail(await here.other.patch(f"/registries/{reference}", json={"password": "x"}), 404)
            detail(await here.other.delete(f"/registries/{reference}"), 404)
        assert detail(await build(here.other, made["id"]), 404)["message"].count(made["id"]) == 1


async def build(client: httpx.AsyncClient, registry_id: str, image: str = "team/app:1", **more: Any) -> httpx.Response:
    body = {"name": "app", "docker_image": image, "fs_capacity_bytes": 2**30, "registry_id": registry_id, **more}
    return await client.post("/snapshots", json=body)


async def test_snapshots_of_a_registry(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        made = await make(here)
        for image in ("team/app:1", "registry.example/team/app:1", "docker://registry.example:443/team/app"):
            answer = await build(here.acme, made["id"], image)
            assert answer.status_code == 201, answer.text
            assert (answer.json()["registry_id"], answer.json()["docker_image"]) == (made["id"], image)
        answer = await build(here.acme, made["id"], "evil.example/team/app:1")
        assert "body.docker_image" in faults(answer)
        assert "evil.example" in answer.text and "registry.example" in answer.text
        for field in ("registry_url", "registry_username", "registry_password"):
            assert f"body.{field}" in faults(await build(here.acme, made["id"], **{field: "x.example"}))
        detail(await build(here.acme, "none"), 404)
        await here.acme.delete("/registries/internal")
        detail(await build(here.acme, made["id"]), 404)
