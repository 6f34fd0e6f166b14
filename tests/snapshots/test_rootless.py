"""An unprivileged user can have snapshots too: with subordinate ids owners are kept, without them all is the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.images.layouts import entry, layer, write_layout
from tests.rootless import USER_ID, as_user

PROGRAM = """
import json, os, sys, trio
from sandboxrt.errors import SandboxClientError
from sandboxrt.protocol.rest import CreateSnapshot
from sandboxrt.snapshots.disk import namespace_prefix
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store

async def main():
    found = {"mapped": bool(namespace_prefix())}
    async with Store.open(sys.argv[1]) as store, SnapshotLibrary(store) as library:
        for name, image in (("good", sys.argv[2]), ("bad", "oci:/nowhere")):
            request = CreateSnapshot(name=name, docker_image=image, fs_capacity_bytes=2**30)
            snapshot = await library.create(request)
            try:
                snapshot = await library.wait(snapshot.id, 60)
            except SandboxClientError as error:
                found[name] = str(error)
                continue
            (layer,) = (await library.use(snapshot.id)).layers
            found[name] = {path: os.lstat(layer.path / path).st_uid for path in ("root-file", "user-file", "closed")}
            found["attributes"] = os.listxattr(layer.path / "root-file")
            found["used"] = snapshot.fs_used_bytes
            await library.delete(snapshot.id)
        host = await library.host_snapshot()
        mask = (await library.use(host.id)).layers[1].path
        found["opaque"] = os.getxattr(mask / "local", "user.overlay.opaque").decode()
        await library.delete(host.id)
        found["left"] = os.listdir(sys.argv[1] + "/snapshots")
    print(json.dumps(found))

trio.run(main)
"""


def _as_user(tmp_path: Path, subordinate: str) -> dict[str, Any]:
    layout = write_layout(
        tmp_path / "layout",
        [
            layer(
                [
                    entry("root-file", "x", xattrs={"user.overlay.redirect": "/etc", "user.note": "kept"}),
                    entry("user-file", "x", uid=1000, gid=1000),
                    entry("closed", mode=0o000, uid=7, gid=7, xattrs={"user.overlay.opaque": "y"}),
                    entry("closed/inner", "x" * 5000, mode=0o000, uid=7, gid=7),
                ]
            )
        ],
    )
    done = as_user(tmp_path, subordinate, PROGRAM, str(tmp_path / "state"), f"oci:{layout}")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_with_subordinate_ids(tmp_path: Path) -> None:
    found = _as_user(tmp_path, f"stranger:{2**30}:65536\n")
    assert found["mapped"] is True
    # Owners are the subordinate ids, as sandboxes have them; the user's own is nobody inside.
    assert found["good"] == {"root-file": 2**30, "user-file": 2**30 + 1000, "closed": 2**30 + 7}
    assert found["attributes"] == ["user.note"]
    assert found["used"] >= 4096
    assert (found["opaque"], found["left"]) == ("y", [])
    assert "ImagePull" in found["bad"]


def test_without(tmp_path: Path) -> None:
    found = _as_user(tmp_path, "")
    assert found["mapped"] is False
    assert set(found["good"].values()) == {USER_ID}
    assert (found["opaque"], found["left"]) == ("y", [])
    assert "ImagePull" in found["bad"]
