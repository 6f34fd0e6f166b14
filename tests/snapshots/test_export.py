"""Exports are images that other tools take, with everything that the snapshot had, and nothing that it hid."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from sandboxrt import AsyncSandboxClient
from sandboxrt.cli import main
from sandboxrt.engine.base import Layer
from sandboxrt.errors import ResourceCreationError, ValidationError
from sandboxrt.snapshots.content import ImageConfig, SnapshotContent
from sandboxrt.snapshots.export import export_image
from sandboxrt.snapshots.pack import pack
from tests.images.catalogue import Catalogue
from tests.images.registry import Registry
from tests.snapshots.conftest import OpenLibrary, request_for

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

MIB = 1024**2
CHANGES = """set -e
cd /srv/app
mkdir gone emptied kept
touch gone/inner emptied/inner kept/inner
echo one > file
ln file hard
ln -s file soft
mkfifo fifo
truncate -s 3M sparse
chown 7:8 kept
chmod 4755 file
"""
MORE = "cd /srv/app; rm -r gone; rm -r emptied; mkdir emptied; rm fifo; echo two > new; rm /etc/group"
LOOK = """cd /srv/app
ls
ls emptied kept
cat new soft
stat -c '%h %a' file
stat -c '%u %g' kept
stat -c %s sparse
test ! -e /etc/group && echo no group
"""
SEEN = """emptied
file
hard
kept
new
soft
sparse
emptied:

kept:
inner
two
one
2 4755
7 8
3145728
no group
"""


def snapshot(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["snapshot", *arguments])


def tool(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def make_captures(state_dir: Path, catalogue: Catalogue) -> str:
    """A capture of a capture of an image; the id."""
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client:
        base = await client.create_snapshot("base", catalogue.reference("nobash:1"), 64 * MIB)
        async with client.sandbox(base.id) as sandbox:
            assert (await sandbox.run(CHANGES, user="root")).success
            first = await sandbox.capture_snapshot("first")
        async with client.sandbox(first.id) as sandbox:
            assert (await sandbox.run(MORE, user="root")).success
            return (await sandbox.capture_snapshot("second")).id


async def look(state_dir: Path, registry: Registry, reference: str) -> str:
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client:
        imported = await client.create_snapshot(
            "imported", reference, 64 * MIB, registry_url=f"http://{registry.address}", tls_verify=False
        )
        async with client.sandbox(imported.id) as sandbox:
            result = await sandbox.run("id -un; pwd; echo $GREETING; " + LOOK)
            return result.stdout


def test_a_capture_goes_to_a_registry_and_comes_back(tmp_path: Path, catalogue: Catalogue, registry: Registry) -> None:
    state, layout = tmp_path / "state", tmp_path / "layout"
    snapshot_id = trio.run(make_captures, state, catalogue)
    exported = snapshot("export", "second", str(layout), "--state-dir", str(state), "--tag", "v1")
    assert (exported.exit_code, exported.stdout) == (0, f"oci:{layout}:v1\n"), exported.output
    found = json.loads(tool("skopeo", "inspect", f"oci:{layout}:v1"))
    assert len(found["Layers"]) == 3
    config = json.loads(tool("skopeo", "inspect", "--config", f"oci:{layout}:v1"))
    assert config["rootfs"]["diff_ids"] == found["Layers"]
    assert [entry["created_by"] for entry in config["history"]] == ["sandboxrt snapshot second"] * 3
    assert json.loads(tool("umoci", "stat", "--image", f"{layout}:v1", "--json"))["history"]
    registry.push(layout, "v1", "team/app:v1")
    assert trio.run(look, tmp_path / "other", registry, "team/app:v1") == f"app\n/srv/app\nhello world\n{SEEN}"
    # And as one file, which the command line brings back by itself.
    archive = tmp_path / "image.tar"
    exported = snapshot("export", snapshot_id, str(archive), "--state-dir", str(state))
    assert exported.stdout == f"oci-archive:{archive}:latest\n", exported.output
    tool("skopeo", "copy", "--quiet", "--insecure-policy", exported.stdout.strip(), f"oci:{tmp_path / 'copy'}:x")
    imported = snapshot("import", str(archive), "back", "--capacity", "64m", "--state-dir", str(tmp_path / "third"))
    assert imported.exit_code == 0, imported.output
    listed = snapshot("list", "--json", "--state-dir", str(tmp_path / "third"))
    (entry,) = json.loads(listed.stdout)
    assert (entry["id"], entry["status"], entry["tags"]) == (imported.stdout.strip(), "ready", ["latest"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copy",
        "image.tar",
        "layout",
        "other",
        "state",
        "third",
    ]


def test_the_command_line_from_the_list_to_the_deletion(tmp_path: Path, catalogue: Catalogue) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    assert "no state folder" in snapshot("list", *state).output
    made = snapshot("import", str(catalogue.layout("tiny:1")), "app", *state)
    assert made.exit_code == 0, made.output
    assert "app" in snapshot("list", *state).output
    assert json.loads(snapshot("list", "--json", "--name-contains", "nothing", *state).stdout) == []
    refused = snapshot("export", "app", str(tmp_path), *state)
    assert (refused.exit_code, "exists" in refused.output) == (1, True)
    assert "no folder" in snapshot("export", "app", str(tmp_path / "no/folder"), *state).output
    assert "not found" in snapshot("export", "nobody", str(tmp_path / "x"), *state).output
    assert snapshot("delete", "app:latest", *state).stdout == f"deleted {made.stdout}"
    assert "not found" in snapshot("delete", "app", *state).output


async def test_what_cannot_be_in_an_image_is_told_and_nothing_is_left(
    tmp_path: Path, open_library: OpenLibrary, catalogue: Catalogue
) -> None:
    async with open_library() as library:
        made = await library.wait((await library.create(request_for(catalogue.reference("tiny:1")))).id)
        root = tmp_path / "state/snapshots" / made.id / "root"
        (root / ".wh.odd").touch()
        with pytest.raises(ResourceCreationError, match=r"\.wh\.odd") as caught:
            await library.export(made.id, tmp_path / "out", tag="x")
        assert caught.value.error_type == "Export"
        with trio.move_on_after(0.05) as scope:
            (root / ".wh.odd").unlink()
            with open(root / "large", "wb") as file:
                file.truncate(2**32)
            await library.export(made.id, tmp_path / "out", tag="x")
        assert scope.cancelled_caught
        with pytest.raises(ValidationError, match="needs a name"):
            await library.export(made.id, Path("/"), tag="x")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def members(blobs: Path, digest: str) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(blobs / digest.removeprefix("sha256:")) as tar:
        return {member.name: member for member in tar}


def test_what_a_mask_hides_does_not_leave_the_machine(tmp_path: Path) -> None:
    usr, mask, blobs = (tmp_path / name for name in ("usr", "mask", "blobs"))
    for folder in (usr / "local/bin", usr / "bin", usr / "lib/secret", mask / "local/bin", mask / "lib", blobs):
        folder.mkdir(parents=True)
    for name in ("local/bin/own", "bin/program", "lib/secret/key", "lib/helper"):
        (usr / name).write_text("text")
    os.setxattr(mask / "local", "trusted.overlay.opaque", b"y")
    (mask / "lib/secret").mkdir()
    os.setxattr(mask / "lib/secret", "trusted.overlay.opaque", b"y")
    os.mknod(mask / "lib/helper", stat.S_IFCHR, os.makedev(0, 0))
    lower = members(blobs, pack(str(usr), "/usr", str(blobs), 0, str(mask))[0])
    assert sorted(lower) == ["usr", "usr/bin", "usr/bin/program", "usr/lib"]
    upper = members(blobs, pack(str(mask), "/usr", str(blobs), 0, str(mask))[0])
    assert sorted(upper) == ["usr", "usr/lib", "usr/lib/secret", "usr/local", "usr/local/bin"]


def test_marks_and_attributes_are_those_of_images(tmp_path: Path) -> None:
    layer, blobs = tmp_path / "layer", tmp_path / "blobs"
    for folder in (layer / "opaque", blobs):
        folder.mkdir(parents=True)
    os.setxattr(layer / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(layer / "gone", stat.S_IFCHR, os.makedev(0, 0))
    (layer / "file").write_bytes(b"x")
    os.setxattr(layer / "file", "user.note", b"\xff\0")
    os.setxattr(layer / "file", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    (layer / os.fsdecode(b"odd \xff")).touch()
    found = members(blobs, pack(str(layer), "/", str(blobs))[0])
    names = [".", ".wh.gone", "file", os.fsdecode(b"odd \xff"), "opaque", "opaque/.wh..wh..opq"]
    assert sorted(found) == sorted(names)
    assert found["file"].pax_headers["SCHILY.xattr.user.note"].encode("utf-8", "surrogateescape") == b"\xff\0"
    assert found["file"].pax_headers["SCHILY.xattr.security.capability"].startswith("\x01\0\0\x02")


async def test_the_built_in_snapshot_is_exported_without_what_it_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small folder in the place of this machine's ``/usr``, which is gigabytes."""
    usr, root, mask = (tmp_path / name for name in ("usr", "root", "mask"))
    for folder in (usr / "bin", usr / "local", root / "usr", mask / "local"):
        folder.mkdir(parents=True)
    (usr / "bin/program").write_text("text")
    (usr / "local/own").write_text("text")
    os.setxattr(mask / "local", "trusted.overlay.opaque", b"y")
    monkeypatch.setattr("sandboxrt.snapshots.export._USR", usr)
    layers = (Layer(root), Layer(mask, "/usr"), Layer(usr, "/usr"))
    content = SnapshotContent(layers, ImageConfig(env={"PATH": "/bin"}, work_dir="/root"))
    exported = await export_image(
        content,
        tmp_path / "image",
        tag="host",
        name="host",
        created_at="2026-01-02T03:04:05.678Z",
        limiter=trio.CapacityLimiter(1),
    )
    assert exported.layers == 3
    tool("umoci", "raw", "unpack", "--image", f"{tmp_path}/image:host", str(tmp_path / "unpacked"))
    unpacked = tmp_path / "unpacked"
    found = sorted(str(path.relative_to(unpacked)) for path in unpacked.rglob("*"))
    assert found == ["usr", "usr/bin", "usr/bin/program", "usr/local"]
    config = json.loads(tool("skopeo", "inspect", "--config", exported.reference))
    assert config["config"] == {"Env": ["PATH=/bin"], "WorkingDir": "/root"}
    assert config["created"] == "2026-01-02T03:04:05Z"
