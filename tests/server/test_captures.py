"""Captures over HTTP: what is answered, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

from sandboxrt.errors import ResourceCreationError
from sandboxrt.testing.fake import FakeEngine, Faults
from tests.server.app_kit import detail, faults, site


async def test_a_capture_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        box = await here.box()
        await here.acme.post("/boxes/box/stop", json={})
        answer = await here.acme.post("/boxes/box/snapshot", json={"name": "team/made", "tag": None, "unknown": 1})
        assert answer.status_code == 201, answer.text
        made = answer.json()
        assert (made["name"], made["source_sandbox_id"], made["docker_image"]) == ("team/made", box["id"], None)
        found = (await here.acme.get(f"/snapshots/{made['id']}")).json()
        assert (found["status"], found["tags"]) == ("ready", ["latest"])
        assert (await here.acme.get("/snapshots/team%2Fmade:latest")).json()["id"] == made["id"]
        assert (await here.acme.get("/snapshots-by-name/team%2Fmade")).json()["tags"][0]["tag"] == "latest"
        config = {"user": "root", "work_dir": "/tmp", "env_vars": {"A": "b"}}
        body = {"name": "team/made", "tag": "v2", "fs_capacity_bytes": 2**30, "run_config": config}
        second = (await here.acme.post(f"/boxes/{box['id']}/snapshot", json=body)).json()
        assert (second["fs_capacity_bytes"], second["run_config"]) == (2**30, config)
        assert len((await here.acme.get("/snapshots?name_contains=MADE")).json()["snapshots"]) == 2
        # Another tenant sees neither the sandbox nor what was made of it.
        detail(await here.other.post("/boxes/box/snapshot", json={"name": "x"}), 404)
        detail(await here.other.get(f"/snapshots/{made['id']}"), 404)
        assert (await here.other.get("/snapshots")).json()["snapshots"] == []


async def test_what_is_in_use_is_named(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        base = await here.snapshot("base")
        await here.box("user", snapshot_id=base["id"])
        await here.acme.post("/boxes/user/snapshot", json={"name": "derived"})
        found = detail(await here.acme.delete(f"/snapshots/{base['id']}"), 409)
        assert found["error"] == "InUse"
        assert "user" in found["message"] and "derived" in found["message"]
        await here.acme.delete("/boxes/user")
        assert "derived" in detail(await here.acme.delete(f"/snapshots/{base['id']}"), 409)["message"]


async def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.box()
        path = "/boxes/box/snapshot"
        assert set(faults(await here.acme.post(path, json={}))) == {"body.name"}
        for name in ("", "host", "system/x", "a:b", "a/", "x" * 256, 7):
            assert set(faults(await here.acme.post(path, json={"name": name}))) == {"body.name"}
        wrong = {"name": "x", "tag": "a/b", "fs_capacity_bytes": 1, "run_config": 3}
        assert set(faults(await here.acme.post(path, json=wrong))) == {
            "body.tag",
            "body.fs_capacity_bytes",
            "body.run_config",
        }
        for field, value in (
            ("docker_image", "app:1"),
            ("checkpoint", True),
            ("include_memory", True),
            ("include", ["all"]),
            ("image_config", {"cmd": ["x"]}),
            ("labels", {"a": "b"}),
            ("description", "text"),
        ):
            found = faults(await here.acme.post(path, json={"name": "x", field: value}))
            assert "is not supported" in found[f"body.{field}"]
        assert (await here.acme.get("/snapshots")).json()["snapshots"] == []
        detail(await here.acme.post("/boxes/none/snapshot", json={"name": "x"}), 404)
        detail(await here.acme.post(path, content=b"["), 400)


async def test_a_failure_is_the_snapshots_status(tmp_path: Path) -> None:
    reason = ResourceCreationError("No space left on device on this host", "snapshot", "DiskFull")
    async with site(tmp_path, engine=FakeEngine(Faults(capture_error=reason))) as here:
        await here.box()
        made = (await here.acme.post("/boxes/box/snapshot", json={"name": "x"})).json()
        found = (await here.acme.get(f"/snapshots/{made['id']}")).json()
        assert found["status"] == "failed"
        assert "No space left" in found["status_message"]
