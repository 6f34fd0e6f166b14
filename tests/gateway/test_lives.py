"""What outlives what: tokens a restart, sandboxes a visit, servers a visitor that reads nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from sandboxrt import SandboxClient
from tests.gateway.conftest import TOKEN, Site, start_application
from tests.serving import serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]


def test_tokens_outlive_a_restart_and_wake_what_is_stopped(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with SandboxClient(api_endpoint=f"{server.url}/v2/sandboxes", api_key=server.key) as client:
            box = client.create_sandbox(name="box")
            start_application(box, 3000, "box")
            box.write("/srv/file", "kept")
            service, file = box.service(3000), box.generate_download_url("/srv/file").download_url
            url, headers = service.service_url, {TOKEN: service.token}
            assert httpx.get(url, headers=headers).status_code == 200
        port, key = server.port, server.key
        assert server.stop() == 0
    with (
        serving(tmp_path, port=port, key=key) as server,
        SandboxClient(api_endpoint=f"{server.url}/v2/sandboxes", api_key=key) as client,
    ):
        assert client.get_sandbox("box").status == "stopped"
        assert httpx.get(file, timeout=40).text == "kept"
        assert client.get_sandbox("box").status == "ready"
        client.stop_sandbox("box")
        # It is awake again; its programs do not start by themselves.
        assert httpx.get(url, headers=headers, timeout=40).status_code == 502
        assert client.get_sandbox("box").status == "ready"
        rotate = [sys.executable, "-m", "sandboxrt", "keys", "rotate-links", "--state-dir", str(tmp_path)]
        subprocess.run(rotate, check=True, capture_output=True, timeout=30)
        assert httpx.get(file, timeout=40).text == "kept"
        newer = client.get_sandbox("box").service(3000)
        subprocess.run([*rotate, "--retire"], check=True, capture_output=True, timeout=30)
        time.sleep(2.1)
        assert httpx.get(file, timeout=40).status_code == 403
        assert httpx.get(url, headers=headers).status_code == 401
        assert httpx.get(url, headers={TOKEN: newer.token}).status_code == 401
        client.delete_sandbox("box")


def test_a_visitor_who_reads_nothing_costs_little(site: Site) -> None:
    link = site.link()
    path = urlsplit(link["service_url"]).path
    pid = site.server.process.pid
    before = _resident_mib(pid)
    request = f"GET {path}big?mib=256 HTTP/1.1\r\nHost: x\r\n{TOKEN}: {link['token']}\r\n\r\n".encode()
    stalled = [socket.create_connection(("127.0.0.1", site.server.port)) for _ in range(30)]
    try:
        for each in stalled:
            each.sendall(request)
        time.sleep(2)
        assert _resident_mib(pid) - before < 60
        with site.by_path() as service:
            assert service.get("/second").status_code == 200
    finally:
        for each in stalled:
            each.close()


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the server is gone")


def test_tenants_make_links_to_their_own_only(site: Site) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "sandboxrt", "keys", "create", "--tenant", "x", "--state-dir", site.server.state_dir],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    with httpx.Client(base_url=f"{site.server.url}/v2/sandboxes", headers={"X-Api-Key": made.stdout.strip()}) as other:
        for name in ("first", site.sandbox.id):
            assert other.post(f"/boxes/{name}/service-url", json={"port": 3000}).status_code == 404
            assert other.post(f"/boxes/{name}/download-url", json={"path": "/a"}).status_code == 404
