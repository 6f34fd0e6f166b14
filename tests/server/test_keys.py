"""API keys over HTTP: who is let in, who is not, and that nothing of a key is seen again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import pytest
import trio

from tests.server.app_kit import API, detail, site


async def test_wrong_and_missing_keys(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        box = await here.box()
        for path in ("/boxes", "/boxes/box", "/snapshots", box["dataplane_url"] + "/download?path=/etc/passwd", "/no"):
            assert detail(await here.nobody.get(path), 401)["error"] == "Unauthorized"
            for wrong in ("", "x", here.secret[:-1], here.secret + "A", here.secret.upper(), "k" * 5000):
                answer = await here.nobody.get(path, headers={"X-Api-Key": wrong})
                found = detail(answer, 401)
                assert found["error"] == "Unauthorized" and here.secret not in answer.text
        for headers in (
            {"x-api-key": here.secret},
            {"X-API-KEY": here.secret},
            {"Authorization": f"Bearer {here.secret}"},
        ):
            assert (await here.nobody.get("/boxes", headers=headers)).status_code == 200
        twice = [("X-Api-Key", "wrong"), ("x-api-key", here.secret)]
        assert (await here.nobody.get("/boxes", headers=twice)).status_code == 200
        detail(await here.nobody.get("/boxes", headers=list(reversed(twice))), 401)


async def test_a_revoked_key_is_refused_within_seconds(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        assert (await here.acme.get("/boxes")).status_code == 200
        revoked = next(key for key in await here.keys.list() if key.tenant == "acme")
        await here.keys.revoke(revoked.id)
        with trio.fail_after(5):
            while (answer := await here.acme.get("/boxes")).status_code == 200:
                await trio.sleep(0.1)
        assert detail(answer, 401)["error"] == "Unauthorized"
        assert (await here.other.get("/boxes")).status_code == 200


async def test_the_log_is_json_and_has_no_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sandboxrt.server.access")
    async with site(tmp_path) as here:
        box = await here.box()
        await here.acme.post(box["dataplane_url"] + "/execute", json={"command": "echo hush-hush"})
        await here.acme.get(box["dataplane_url"] + "/download?path=/very/private")
        await here.nobody.get("/boxes", headers={"X-Api-Key": "srt_wrong"})
        await here.acme.get('/boxes/%0A%22"')
    lines = [record.getMessage() for record in caplog.records if record.name == "sandboxrt.server.access"]
    entries = [json.loads(line) for line in lines]
    assert [entry["status"] for entry in entries] == [201, 200, 404, 401, 404]
    assert all(entry["request_id"] and entry["ms"] >= 0 and entry["client"] == "127.0.0.1" for entry in entries)
    assert entries[0]["key"] == here.secret.split("_")[1] and entries[3]["key"] is None
    for hidden in (here.secret, here.secret.rpartition("_")[2], "hush-hush", "private", "srt_wrong"):
        assert all(hidden not in line for line in lines)


async def test_no_keys_on_loopback(tmp_path: Path) -> None:
    async with site(tmp_path, insecure_no_auth=True) as here:
        url = f"http://127.0.0.1:{here.server.port}{API}"
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/boxes")).status_code == 200
            # What a browser sends for a page of a stranger's.
            service = f"3000--{'0' * 8}-0000-0000-0000-{'0' * 12}.localhost:{here.server.port}"
            for headers in (
                {"Host": "evil.example"},
                {"Origin": "https://evil.example"},
                {"Origin": f"http://{service}"},  # a sandbox's own page
                {"Origin": "null"},
                {"Sec-Fetch-Site": "same-site"},
                {"Sec-Fetch-Site": "cross-site"},
            ):
                detail(await client.get("/boxes", headers=headers), 401)
