"""Sandboxes over HTTP, on a real port."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio

from sandboxrt.errors import ResourceCreationError
from sandboxrt.server.app import CONTROL_PREFIXES, AppSettings
from sandboxrt.testing.fake import FakeEngine, Faults
from tests.server.app_kit import API, detail, faults, site


async def test_a_box_from_its_making_to_its_end(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        made = await here.box(labels={"team": "a"}, vcpus=2, mem_bytes=2**28, run_config={"env_vars": {"A": "1"}})
        assert made["status"] == "ready" and made["idle_ttl_seconds"] == 600 and made["expires_at"]
        assert made["dataplane_url"] == f"{here.server.url}/api/v2/sandboxes/dp/{made['id']}"
        assert made["vcpus"] == 2 and made["cpu_millicores"] == 2000 and made["labels"] == {"team": "a"}
        assert made["run_config"] == {"env_vars": {"A": "1"}}
        for key in ("box", made["id"]):
            assert (await here.acme.get(f"/boxes/{key}")).json()["id"] == made["id"]
            status = (await here.acme.get(f"/boxes/{key}/status")).json()
            assert status == {"status": "ready", "status_message": None}
        listed = (await here.acme.get("/boxes")).json()
        assert [box["name"] for box in listed["sandboxes"]] == ["box"] and listed["items"] == listed["sandboxes"]
        ran = await here.acme.post(made["dataplane_url"] + "/execute", json={"command": "echo $A"})
        assert ran.json() == {"stdout": "1\n", "stderr": "", "exit_code": 0}
        assert (await here.acme.patch("/boxes/box", json={})).json()["id"] == made["id"]
        changed = await here.acme.patch(
            "/boxes/box", json={"name": "new", "idle_ttl_seconds": 0, "run_config": {"env_vars": {"A": "2"}}}
        )
        assert changed.json()["name"] == "new" and changed.json()["expires_at"] is None
        ran = await here.acme.post(made["dataplane_url"] + "/execute", json={"command": "echo $A"})
        assert ran.json()["stdout"] == "2\n"
        detail(await here.acme.get("/boxes/box"), 404)
        answer = await here.acme.delete("/boxes/new")
        assert answer.status_code == 204 and not answer.content
        detail(await here.acme.delete("/boxes/new"), 404)
        assert (await here.acme.get("/boxes")).json()["sandboxes"] == []


async def test_every_prefix(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.box()
        for prefix in CONTROL_PREFIXES:
            url = f"http://127.0.0.1:{here.server.port}{prefix}"
            assert (await here.acme.get(f"{url}/boxes/box")).json()["name"] == "box"
            assert (await here.acme.get(f"{url}/snapshots")).json()["snapshots"] == []


async def test_names(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        generated = (await here.acme.post("/boxes", json={})).json()
        assert generated["name"].startswith("sandbox-")
        await here.box("one")
        await here.box("two")
        assert detail(await here.acme.post("/boxes", json={"name": "one"}), 409)["error"] == "AlreadyExists"
        assert detail(await here.acme.patch("/boxes/two", json={"name": "one"}), 409)["error"] == "NameConflict"
        for name in ("a/b", "a b", "ünï", "x" * 64, "x" * 10_000, "-a", "..", "\0"):
            assert "body.name" in faults(await here.acme.post("/boxes", json={"name": name}))
            assert "body.name" in faults(await here.acme.patch("/boxes/two", json={"name": name}))
        for path in ("a%2Fb", "%2e%2e", "x" * 10_000, "%ff%fe", "%00", "one%2Fstatus", "%C3%BC"):
            assert detail(await here.acme.get(f"/boxes/{path}"), 404)["error"] == "NotFound"


async def test_a_repeated_create(tmp_path: Path) -> None:
    engine = FakeEngine(faults=Faults(create_delay_s=0.3))
    async with site(tmp_path, engine=engine) as here:
        made: list[str] = []

        async def create() -> None:
            answer = await here.acme.post("/boxes", json={"name": "box"}, headers={"Idempotency-Key": "k1"})
            assert answer.status_code == 201, answer.text
            made.append(answer.json()["id"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await trio.sleep(0.05)
            nursery.start_soon(create)
        await create()
        assert len(set(made)) == 1
        detail(await here.acme.post("/boxes", json={"name": "box"}, headers={"Idempotency-Key": "k2"}), 409)
        wrong = await here.acme.post("/boxes", json={"name": "new"}, headers={"Idempotency-Key": "k" * 257})
        assert "header.idempotency-key" in faults(wrong)


async def test_waiting(tmp_path: Path) -> None:
    engine = FakeEngine(faults=Faults(create_delay_s=0.5))
    async with site(tmp_path, engine=engine) as here:
        box = await here.box("later", wait_for_ready=False)
        assert box["status"] == "provisioning" and box["dataplane_url"] is None and box["id"]
        url = f"{here.server.url}/api/v2/sandboxes/dp/{box['id']}"
        assert detail(await here.acme.post(url + "/execute", json={"command": "true"}), 400)["error"] == "NotReady"
        answer = await here.acme.post("/boxes", json={"name": "hasty", "timeout": 0.1})
        detail(answer, 408)
        detail(await here.acme.get("/boxes/hasty"), 404)
        with trio.fail_after(5):
            while (await here.acme.get("/boxes/later/status")).json()["status"] != "ready":
                await trio.sleep(0.05)
        assert (await here.acme.get("/boxes/later")).json()["dataplane_url"] == url


async def test_a_create_whose_client_goes_away(tmp_path: Path) -> None:
    engine = FakeEngine(faults=Faults(create_delay_s=1.0))
    async with site(tmp_path, engine=engine) as here:
        with trio.move_on_after(0.3):
            await here.acme.post("/boxes", json={"name": "box"})
        with trio.fail_after(5):
            while (await here.acme.get("/boxes/box")).status_code != 404:
                await trio.sleep(0.05)
        assert not engine.containers


async def test_a_box_that_cannot_be_made(tmp_path: Path) -> None:
    engine = FakeEngine(faults=Faults(create_error=ResourceCreationError("no room", "sandbox", "Unschedulable")))
    async with site(tmp_path, engine=engine) as here:
        found = detail(await here.acme.post("/boxes", json={"name": "box"}), 422)
        assert found["error"] == "Unschedulable" and found["message"] == "no room"
        box = await here.box("later", wait_for_ready=False)
        with trio.fail_after(5):
            while (box := (await here.acme.get("/boxes/later")).json())["status"] == "provisioning":
                await trio.sleep(0.02)
        assert box["status"] == "failed" and "no room" in box["status_message"] and box["dataplane_url"] is None
        engine.faults.create_error = RuntimeError("secret of the host")
        hidden = detail(await here.acme.post("/boxes", json={"name": "odd"}), 422)
        assert "Traceback" not in hidden["message"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"ttl_seconds": 61}, "body.ttl_seconds"),
        ({"ttl_seconds": -60}, "body.ttl_seconds"),
        ({"idle_ttl_seconds": True}, "body.idle_ttl_seconds"),
        ({"vcpus": "2"}, "body.vcpus"),
        ({"vcpus": 65}, "body.vcpus"),
        ({"mem_bytes": 10**400}, "body.mem_bytes"),
        ({"mem_bytes": 1}, "body.mem_bytes"),
        ({"fs_capacity_bytes": 1.5}, "body.fs_capacity_bytes"),
        ({"labels": {"a": 1}}, "body.labels"),
        ({"labels": {"a" * 257: "x"}}, "body.labels"),
        ({"labels": {str(n): "" for n in range(129)}}, "body.labels"),
        ({"run_config": {"user": 0}}, "body.run_config.user"),
        ({"run_config": []}, "body.run_config"),
        ({"wait_for_ready": "yes"}, "body.wait_for_ready"),
        ({"timeout": -1}, "body.timeout"),
        ({"snapshot_id": "a", "snapshot": "b"}, "body.snapshot"),
        ({"proxy_config": {"rules": []}}, "body.proxy_config"),
        ({"mount_config": {"mounts": []}}, "body.mount_config"),
        ({"access_delegation": {"mode": "EXPLICIT"}}, "body.access_delegation"),
        ({"persistent": True}, "body.persistent"),
        ({"preserve_memory_on_stop": True}, "body.preserve_memory_on_stop"),
        ({"restore_memory": True}, "body.restore_memory"),
        ({"run_config": {"env_vars": {"A": "\ud800"}}}, "body.run_config.env_vars"),
    ],
)
async def test_fields_that_cannot_be(tmp_path: Path, fields: dict[str, object], field: str) -> None:
    async with site(tmp_path) as here:
        import json

        # Half a surrogate pair only travels escaped.
        answer = await here.acme.post("/boxes", content=json.dumps({"name": "box", **fields}))
        assert list(faults(answer)) == [field]
        assert field.removeprefix("body.") in answer.json()["detail"][0]["msg"]
        assert (await here.acme.get("/boxes")).json()["sandboxes"] == []


async def test_options_that_say_nothing_are_no_harm(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.box(persistent=False, proxy_config=None, mount_config={}, unknown=[1, {"a": None}], ttl_seconds=None)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"vcpus": NaN}'])
async def test_bodies_that_are_none(tmp_path: Path, body: bytes) -> None:
    async with site(tmp_path) as here:
        for method, path in (("POST", "/boxes"), ("POST", "/snapshots")):
            answer = await here.acme.request(method, path, content=body)
            assert answer.status_code in (400, 422), answer.text
            assert answer.json()["detail"]


async def test_snapshots_of_boxes(tmp_path: Path) -> None:
    async with site(tmp_path, app=AppSettings(public_url="")) as here:
        assert "body.snapshot_id" in faults(await here.acme.post("/boxes", json={}))
        made = await here.snapshot()
        for reference in (
            {"snapshot_id": made["id"]},
            {"snapshot_name": "app"},
            {"snapshot": "app:3.20"},
            {"snapshot": "app"},
            {"snapshot": "app", "snapshot_name": "app"},
        ):
            assert (await here.acme.post("/boxes", json=reference)).json()["snapshot_id"] == made["id"]
        for reference in ({"snapshot_id": "x"}, {"snapshot": "app:none"}, {"snapshot_name": "host"}):
            detail(await here.acme.post("/boxes", json=reference), 404)
        assert detail(await here.acme.delete(f"/snapshots/{made['id']}"), 409)["error"] == "InUse"


async def test_lists(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for name, labels in (("b1", {"k": "v"}), ("a2", {"k": "w"}), ("c3", {})):
            await here.box(name, labels=labels)

        async def names(query: str) -> list[str]:
            return [box["name"] for box in (await here.acme.get("/boxes?" + query)).json()["sandboxes"]]

        assert await names("") == ["b1", "a2", "c3"]
        assert await names("label=k") == ["b1", "a2"]
        assert await names("label=k%3Dv") == ["b1"]
        assert await names("name_contains=A") == ["a2"]
        assert await names("sort_by=name&sort_direction=desc") == ["c3", "b1", "a2"]
        assert await names("limit=1&offset=1") == ["a2"]
        assert await names("status=failed&unknown=1") == []
        assert (await here.acme.get("/boxes?limit=2")).json()["offset"] == 2
        for query in ("limit=0", "limit=501", "offset=-1", "limit=x", "limit=" + "9" * 5000, "sort_by=nothing"):
            assert query.split("=")[0] in next(iter(faults(await here.acme.get("/boxes?" + query))))


async def test_what_is_not_there_yet(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.box()
        for method, path in (("GET", "/boxes/box/service-urls"),):
            answer = await here.acme.request(method, path, json={} if method != "GET" else None)
            assert detail(answer, 501)["error"] == "NotImplemented"
        detail(await here.acme.post("/boxes/none/start", json={}), 404)
        answer = await here.acme.put("/boxes/box", json={})
        assert detail(answer, 405)["error"] == "MethodNotAllowed" and "PATCH" in answer.headers["allow"]
        detail(await here.acme.get("/nothing"), 404)


async def test_stop_start_and_wake(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        url = (await here.box())["dataplane_url"]

        async def output(command: str) -> httpx.Response:
            return await here.acme.post(url + "/execute", json={"command": command})

        assert (await output("echo kept > /tmp/file")).json()["exit_code"] == 0
        for _ in range(2):
            stopped = await here.acme.post("/boxes/box/stop", json={})
            assert (stopped.status_code, stopped.json()["status"]) == (200, "stopped")
            # It is where it was: newer clients go on using the address.
            assert stopped.json()["dataplane_url"] == url and stopped.json()["stopped_at"]
        for _ in range(2):
            assert (await here.acme.post("/boxes/box/start", json={})).status_code == 202
        with trio.fail_after(10):
            while (await here.acme.get("/boxes/box/status")).json()["status"] != "ready":
                await trio.sleep(0.02)
        assert (await output("cat /tmp/file")).json()["stdout"] == "kept\n"
        await here.acme.post("/boxes/box/stop", json={})
        # Coming back for a command does not wake it; there is none.
        resumed = {"command_id": "c", "stdout_offset": 0, "stderr_offset": 0}
        assert (await here.acme.post(url + "/execute/stream/resume", json=resumed)).status_code == 404
        assert (await here.acme.get("/boxes/box")).json()["status"] == "stopped"
        # It wakes when it is used.
        assert (await output("cat /tmp/file")).json()["stdout"] == "kept\n"
        assert (await here.acme.get("/boxes/box")).json()["status"] == "ready"
        for word in ("start", "stop"):
            detail(await here.other.post(f"/boxes/box/{word}", json={}), 404)
            detail(await here.acme.post(f"/boxes/none/{word}", json={}), 404)


async def test_leases(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        answer = await here.acme.post("/boxes", json={"name": "leased"}, headers={"Sandboxrt-Lease": "1"})
        assert (answer.status_code, answer.json()["lease_seconds"]) == (201, 1)
        for _ in range(3):
            await trio.sleep(0.5)
            renewed = await here.acme.post("/boxes/leased/lease")
            assert (renewed.status_code, renewed.json()) == (200, {"lease_seconds": 1})
        detail(await here.other.post("/boxes/leased/lease"), 404)
        with trio.fail_after(10):
            while (await here.acme.get("/boxes/leased")).status_code != 404:
                await trio.sleep(0.1)
        free = await here.box("free")
        assert free["lease_seconds"] is None
        assert "body.lease_seconds" in faults(await here.acme.post("/boxes/free/lease"))
        for wrong in ("0", "-1", "3601", "x", "1.5", "9" * 5, ""):
            refused = await here.acme.post("/boxes", json={"name": "new"}, headers={"Sandboxrt-Lease": wrong})
            assert "header.sandboxrt-lease" in faults(refused), wrong


async def test_a_request_that_is_not_read_whole_is_told_that_its_connection_ends(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for path, status in (("/nothing", 404), ("/boxes/none/status", 405)):
            answer = await here.acme.post(path, content=b"x" * 300_000)
            assert (answer.status_code, answer.headers.get("connection")) == (status, "close")
        refused = await here.nobody.post("/boxes", content=b"x" * 300_000)
        assert (refused.status_code, refused.headers.get("connection")) == (401, "close")
        for _ in range(20):
            kept = await here.acme.post("/boxes/none/start", json={})
            assert (kept.status_code, kept.headers.get("connection")) == (404, None)
        assert (await here.acme.get("/boxes")).headers.get("connection") is None


async def test_a_body_that_is_cut_short_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxrt.server.boxes._BODY_S", 0.2)
    async with site(tmp_path) as place:
        head = f"POST {API}/boxes HTTP/1.1\r\nHost: x\r\nX-Api-Key: {place.secret}\r\nContent-Length: 100\r\n\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", place.server.port) as stream:
            await stream.send_all(head.encode() + b'{"name": "bo')
            with trio.fail_after(10):
                answer = await stream.receive_some(65536)
                while b"too slow" not in answer:
                    answer += await stream.receive_some(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"The body does not come: it was cut short, or is too slow" in answer
        assert (await place.acme.get("/boxes")).json()["sandboxes"] == []


async def test_a_create_that_was_given_up_can_be_withdrawn_by_its_key(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        mine, others = {"Idempotency-Key": "mine"}, {"Idempotency-Key": "others"}
        assert (await here.acme.post("/boxes", json={"name": "box"}, headers=others)).status_code == 201
        # It is somebody else's sandbox that has the name, or there is none.
        for name in ("box", "none"):
            detail(await here.acme.delete(f"/boxes/{name}", headers=mine), 404)
        assert (await here.acme.get("/boxes/box")).json()["status"] == "ready"
        detail(await here.acme.post("/boxes", json={"name": "box"}, headers=mine), 409)
        # Its own is gone, whether the answer to the create came or not; without a key it is a deletion like any other.
        assert (await here.acme.delete("/boxes/box", headers=others)).status_code == 204
        detail(await here.acme.get("/boxes/box"), 404)
        await here.box("unmarked")
        detail(await here.acme.delete("/boxes/unmarked", headers=mine), 404)
        assert (await here.acme.delete("/boxes/unmarked")).status_code == 204
