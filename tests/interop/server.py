"""A real server over real containers whose network misbehaves on request; run as a process of its own.

``python -m tests.interop.server STATE_DIR`` prints one line of JSON when it is ready, and stops when its input ends.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import trio

from sandboxrt import AsyncSandboxClient
from sandboxrt.host.command import CommandSettings
from sandboxrt.host.config import HostConfig
from sandboxrt.models import Quota
from sandboxrt.server.app import AppSettings
from sandboxrt.server.guarded import ConnectionLimits
from sandboxrt.server.limits import KeyLimits
from sandboxrt.server.serve import ServerSettings, open_server
from sandboxrt.store import KeyRecords, Store
from tests.interop.faults import Faults, Proxy

_IMAGE = "python:3.12-slim"
_SNAPSHOT = "interop"
_DISK_BYTES = 2 * 1024**3
_QUOTAS = {
    "sandbox_count": Quota(sandboxes=1),
    "cpu": Quota(vcpus=1.5),
    "memory": Quota(mem_bytes=3 * 2**29),
    "storage": Quota(storage_bytes=6 * 2**30),
}
"""Each has room for one sandbox of the default size."""


async def main(state_dir: Path) -> None:
    """Serve until the input ends."""
    async with Store.open(state_dir) as store:
        keys = KeyRecords(store)
        key = (await keys.create("interop")).secret
        limited = {kind: (await keys.create(f"limited-{kind}", quota=quota)).secret for kind, quota in _QUOTAS.items()}
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    settings = ServerSettings(
        port=0,
        public_url=url,
        host=HostConfig(state_dir=state_dir, command=CommandSettings(term_grace_s=0.5)),
        app=AppSettings(public_url=url, default_snapshot="host", key_limits=KeyLimits(requests_per_s=1000, burst=2000)),
        connections=ConnectionLimits(drain_s=2.0, linger_s=1.0),
    )
    async with open_server(settings) as server, trio.open_nursery() as nursery:
        # Inside the server, so that its connections are guarded as always; only the application is wrapped.
        server.app._app = faults = Faults(server.app._app)
        proxy = Proxy(faults, server.port)
        nursery.start_soon(partial(trio.serve_listeners, proxy.serve, listeners))
        async with AsyncSandboxClient(api_endpoint=f"{url}/v2/sandboxes", api_key=key) as client:
            snapshot = await client.create_snapshot(_SNAPSHOT, _IMAGE, _DISK_BYTES)
        print(
            json.dumps(
                {
                    "endpoint": url,
                    "key": key,
                    "limited_keys": limited,
                    "snapshot_id": snapshot.id,
                    "snapshot_name": snapshot.name,
                }
            ),
            flush=True,
        )
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
