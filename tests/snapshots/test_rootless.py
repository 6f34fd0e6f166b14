"""An unprivileged user can have snapshots too: with subordinate ids owners are kept, without them all is the user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.images.layouts import entry, layer, write_layout

USER_ID = 61234

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
            request = CreateSnapshot(name=name, docker_image=image, fs_capacity_bytes=1)
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

# Accounts and subordinate ids as the test wants them, seen by nothing but this test's processes.
ENTER = """
set -e
for name in passwd subuid subgid; do mount --bind "$0/$name" /etc/$name; done
exec setpriv --reuid "$1" --regid "$1" --clear-groups "$2" -c "$3" "$4" "$5"
"""


def _readable_python() -> tuple[str, dict[str, str]]:
    """An interpreter that every user can run, and the environment with which it finds what this one finds."""
    real = Path(sys.executable).resolve()
    if all(folder.stat().st_mode & 0o005 == 0o005 for folder in real.parents):
        return sys.executable, {}
    return "/usr/bin/python3", {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if "site-packages" in path)
        + f"{os.pathsep}{Path(__file__).parents[2]}"
    }


def _as_user(tmp_path: Path, subordinate: str) -> dict[str, Any]:
    tables = tmp_path / "tables"
    tables.mkdir()
    account = f"stranger:x:{USER_ID}:{USER_ID}::{tmp_path}/home:/bin/sh\n"
    (tables / "passwd").write_text(Path("/etc/passwd").read_text() + account)
    for name in ("subuid", "subgid"):
        (tables / name).write_text(subordinate)
    for name in ("state", "home"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, USER_ID, USER_ID)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o011)
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
    python, paths = _readable_python()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "LANG": "C.UTF-8", **paths}
    arguments = [str(tables), str(USER_ID), python, PROGRAM, str(tmp_path / "state"), f"oci:{layout}"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", ENTER, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_with_subordinate_ids(tmp_path: Path) -> None:
    found = _as_user(tmp_path, f"stranger:{2**30}:65536\n")
    assert found["mapped"] is True
    # Inside, root is the user and the ids from 1 on are the subordinate ones.
    assert found["good"] == {"root-file": USER_ID, "user-file": 2**30 + 999, "closed": 2**30 + 6}
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
