"""What watches a server can read without a key, and that it is what it claims to be."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.server.app_kit import detail, site


async def test_metrics_are_valid_and_true(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.box()
        for _ in range(3):
            await here.acme.get("/boxes/box")
        await here.acme.get('/boxes/"quoted"\\%0A')
        await here.acme.request("BREW", "/boxes")
        await here.nobody.get("/boxes")
        root = f"http://127.0.0.1:{here.server.port}"
        answer = await here.nobody.get(root + "/metrics")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        assert families["sandboxrt_requests"].type == "counter"
        counted = {
            (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
            for sample in families["sandboxrt_requests"].samples
        }
        one = "/api/v2/sandboxes/boxes/{name}"
        assert counted["GET", one, "200"] == 3 and counted["GET", one, "404"] == 1
        assert counted["OTHER", "unknown", "405"] == 1 and counted["GET", "unknown", "401"] == 1
        times = families["sandboxrt_request_seconds"]
        assert times.type == "histogram"
        buckets = [s.value for s in times.samples if s.name.endswith("_bucket") and s.labels["route"] == one]
        assert buckets == sorted(buckets) and buckets[-1] == 4
        assert {s.labels["kind"]: s.value for s in families["sandboxrt_requests_open"].samples}["http"] == 1
        assert [(s.labels, s.value) for s in families["sandboxrt_sandboxes"].samples] == [({"status": "ready"}, 1)]
        # Nothing of any tenant's is in it.
        assert here.secret.split("_")[1] not in answer.text and "quoted" not in answer.text


async def test_health(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        root = f"http://127.0.0.1:{here.server.port}"
        answer = await here.nobody.get(root + "/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert (await here.nobody.get(root + "/openapi.json")).json()["openapi"].startswith("3.1")
        for path in ("/healthz/", "/metrics/x", "/healthz%2F"):
            detail(await here.nobody.get(root + path), 401)
