"""A server in a process of its own, and an application in a sandbox of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from sandboxrt import Sandbox, SandboxClient
from tests.serving import Serving, serving

APPLICATION = Path(__file__).with_name("application.py")
TOKEN = "X-Langsmith-Sandbox-Service-Token"


@attrs.define
class Site:
    """A server, one sandbox in it with the application on port 3000, and a second one."""

    server: Serving
    client: SandboxClient
    sandbox: Sandbox
    other: Sandbox
    api: httpx.Client

    def link(self, port: int = 3000, sandbox: Sandbox | None = None, **fields: Any) -> dict[str, Any]:
        name = (sandbox or self.sandbox).name
        answer = self.api.post(f"/boxes/{name}/service-url", json={"port": port, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def by_path(self, **fields: Any) -> httpx.Client:
        """A program's client: the token in its header."""
        link = self.link(**fields)
        return httpx.Client(base_url=link["service_url"], headers={TOKEN: link["token"]}, timeout=20)

    def host(self, port: int = 3000, sandbox: Sandbox | None = None) -> str:
        return f"{port}--{(sandbox or self.sandbox).id}.localhost:{self.server.port}"

    def by_origin(self, **headers: str) -> httpx.Client:
        """A client that speaks to the service's origin; its name is known to browsers alone."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.server.port}", headers={"Host": self.host(), **headers}, timeout=20
        )


def start_application(sandbox: Sandbox, port: int, name: str) -> None:
    sandbox.write("/home/user/application.py", APPLICATION.read_text())
    handle = sandbox.run(f"python3 /home/user/application.py {port} {name}", timeout=0, wait=False, idle_timeout=-1)
    for chunk in handle:
        if "serving" in chunk.data:
            return
    raise AssertionError(f"the application does not start: {handle.result}")


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with (
        serving(tmp_path_factory.mktemp("services")) as server,
        SandboxClient(api_endpoint=f"{server.url}/v2/sandboxes", api_key=server.key) as client,
        client.sandbox(name="first") as first,
        client.sandbox(name="second") as second,
        httpx.Client(base_url=f"{server.url}/v2/sandboxes", headers={"X-Api-Key": server.key}, timeout=20) as api,
    ):
        start_application(first, 3000, "first")
        start_application(second, 3000, "second")
        yield Site(server, client, first, second, api)
