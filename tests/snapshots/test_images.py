"""Images come in from registries, layouts and archives, or fail with the tool's own reason and leave nothing."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from sandboxrt.errors import ResourceCreationError, ResourceNotFoundError, ResourceTimeoutError, ValidationError
from sandboxrt.snapshots.content import Phase, Progress, SnapshotConfig
from tests.images.catalogue import Catalogue
from tests.images.layouts import digest, entry, layer, write_layout
from tests.images.registry import Registry
from tests.snapshots.conftest import GIB, OpenLibrary, left_on_disk, request_for, small_disk


async def test_a_short_name_goes_where_registries_conf_says(
    open_library: OpenLibrary, readme_registry: Registry, tmp_path: Path
) -> None:
    async with open_library() as library:
        created = await library.create(request_for("python:3.12-slim", "python-snapshot"))
        assert (created.status, created.docker_image) == ("building", "python:3.12-slim")
        snapshot = await library.wait(created.id, 60)
        content = await library.use(snapshot.id)
    assert snapshot.status == "ready"
    assert snapshot.image_digest is not None and snapshot.image_digest.startswith("sha256:")
    assert snapshot.fs_used_bytes is not None and snapshot.fs_used_bytes > 10_000_000
    assert snapshot.fs_capacity_bytes == GIB
    assert content.config.work_dir == "/app"
    assert content.config.env["PYTHON_VERSION"] == "3.12"
    assert content.config.cmd == ("python3",)
    (root,) = content.layers
    assert os.readlink(root.path / "usr/bin/python") == "python3"
    assert (root.path / "usr/bin/python3.11").is_file()
    assert left_on_disk(tmp_path) == [snapshot.id]
    assert sorted(os.listdir(root.path.parent)) == ["root"]


async def test_the_digest_is_the_registry_s(open_library: OpenLibrary, registry: Registry) -> None:
    reference = f"docker://{registry.address}/tiny:1"
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", reference], check=True, capture_output=True
    ).stdout
    async with open_library() as library:
        snapshot = await library.create(request_for(reference, tls_verify=False))
        snapshot = await library.wait(snapshot.id, 30)
    assert snapshot.image_digest == digest(raw)


async def test_mirrors_and_insecure_registries_from_the_configuration(
    open_library: OpenLibrary, registry: Registry
) -> None:
    config = SnapshotConfig(
        registries_conf=None,
        registry_mirrors=(registry.address,),
        insecure_registries=(registry.address,),
    )
    async with open_library(config) as library:
        for reference in ("tiny:1", f"{registry.address}/tiny:1", f"docker://{registry.address}/library/tiny:1"):
            snapshot = await library.create(request_for(reference))
            assert (await library.wait(snapshot.id, 30)).status == "ready"


async def test_registry_url_serves_short_names(open_library: OpenLibrary, registry: Registry) -> None:
    async with open_library() as library:
        snapshot = await library.create(request_for("tiny:1", registry_url=f"http://{registry.address}"))
        assert (await library.wait(snapshot.id, 30)).status == "ready"


async def test_tls_with_a_known_and_an_unknown_certificate(open_library: OpenLibrary, tls_registry: Registry) -> None:
    reference = f"{tls_registry.address}/tiny:1"
    async with open_library() as library:
        refused = await library.create(request_for(reference))
        with pytest.raises(ResourceCreationError, match="certificate") as caught:
            await library.wait(refused.id, 30)
        assert caught.value.error_type == "ImagePull"
        accepted = await library.create(request_for(reference, tls_verify=False))
        assert (await library.wait(accepted.id, 30)).status == "ready"
    async with open_library(SnapshotConfig(certs_dir=tls_registry.certs_dir)) as library:
        trusted = await library.create(request_for(reference))
        assert (await library.wait(trusted.id, 30)).status == "ready"


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_a_refused_login(
    open_library: OpenLibrary, password_registry: Registry, password: str | None, tmp_path: Path
) -> None:
    options = {} if password is None else {"registry_username": "tester", "registry_password": password}
    request = request_for(f"{password_registry.address}/tiny:1", tls_verify=False, **options)
    async with open_library() as library:
        snapshot = await library.create(request)
        with pytest.raises(ResourceCreationError, match=r"authentication required|unauthorized") as caught:
            await library.wait(snapshot.id, 30)
    assert (caught.value.resource_type, caught.value.error_type) == ("snapshot", "ImagePull")
    assert "\n" not in str(caught.value)
    assert left_on_disk(tmp_path) == []


async def test_credentials_work_and_show_nowhere(
    open_library: OpenLibrary, password_registry: Registry, tmp_path: Path
) -> None:
    assert password_registry.password is not None
    request = request_for(
        f"{password_registry.address}/tiny:1",
        tls_verify=False,
        registry_username=password_registry.username,
        registry_password=password_registry.password,
    )
    assert password_registry.password not in repr(request)
    seen: list[str] = []
    async with open_library() as library:
        snapshot = await library.create(request)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_spy, tmp_path, seen)
            assert (await library.wait(snapshot.id, 30)).status == "ready"
            nursery.cancel_scope.cancel()
    assert seen and all(password_registry.password not in text for text in seen)
    for path in (tmp_path / "state").rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert password_registry.password.encode() not in content and b"auths" not in content, path


async def _spy(tmp_path: Path, seen: list[str]) -> None:
    """Note the command lines of all children, and the mode of the file that holds the credentials."""
    while True:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                line = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(tmp_path) in line:
                seen.append(line)
        for auth in (tmp_path / "state" / "snapshots").glob(".build-*/auth.json"):
            assert stat.S_IMODE(auth.stat().st_mode) == 0o600
            assert stat.S_IMODE(auth.parent.stat().st_mode) == 0o700
        await trio.sleep(0.005)


async def test_an_auth_file(open_library: OpenLibrary, password_registry: Registry, tmp_path: Path) -> None:
    import base64

    secret = base64.b64encode(f"{password_registry.username}:{password_registry.password}".encode()).decode()
    auth_file = tmp_path / "mine.json"
    auth_file.write_text(json.dumps({"auths": {password_registry.address: {"auth": secret}}}))
    async with open_library() as library:
        request = request_for(f"{password_registry.address}/tiny:1", tls_verify=False, auth_file=auth_file)
        snapshot = await library.create(request)
        assert (await library.wait(snapshot.id, 30)).status == "ready"


async def test_a_wrong_name(open_library: OpenLibrary, readme_registry: Registry, tmp_path: Path) -> None:
    async with open_library() as library:
        snapshot = await library.create(request_for("no-such-image:9"))
        with pytest.raises(ResourceCreationError, match=r"skopeo: .*manifest unknown") as caught:
            await library.wait(snapshot.id, 30)
        assert caught.value.error_type == "ImagePull"
        assert str(caught.value).endswith("[ImagePull]") and str(caught.value).count("ImagePull") == 1
        failed = await library.get(snapshot.id)
        assert failed.status == "failed" and failed.status_message in str(caught.value)
        with pytest.raises(ResourceCreationError, match="manifest unknown"):
            await library.wait(snapshot.id, 30)
    assert left_on_disk(tmp_path) == []


async def test_nobody_listens(open_library: OpenLibrary, tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        async with open_library() as library:
            snapshot = await library.create(request_for(f"127.0.0.1:{reserved.getsockname()[1]}/tiny:1"))
            with pytest.raises(ResourceCreationError, match="connection refused") as caught:
                await library.wait(snapshot.id, 30)
    assert caught.value.error_type == "ImagePull"
    assert left_on_disk(tmp_path) == []


async def test_another_platform(open_library: OpenLibrary, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "foreign", [layer([entry("a", "b")])], architecture="s390x")
    async with open_library() as library:
        snapshot = await library.create(request_for(f"oci:{layout}:latest"))
        with pytest.raises(ResourceCreationError, match="s390x") as caught:
            await library.wait(snapshot.id, 30)
    assert caught.value.error_type == "ImagePull"
    assert left_on_disk(tmp_path) == []


async def test_an_index_without_this_platform(open_library: OpenLibrary, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "list", [layer([entry("a", "b")])], architecture="s390x")
    index = json.loads((layout / "index.json").read_text())
    (manifest,) = index["manifests"]
    inner = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                **{key: manifest[key] for key in ("mediaType", "digest", "size")},
                "platform": {"os": "linux", "architecture": "s390x"},
            }
        ],
    }
    data = json.dumps(inner).encode()
    (layout / "blobs/sha256" / digest(data).removeprefix("sha256:")).write_bytes(data)
    index["manifests"] = [
        {
            "mediaType": inner["mediaType"],
            "digest": digest(data),
            "size": len(data),
            "annotations": manifest["annotations"],
        }
    ]
    (layout / "index.json").write_text(json.dumps(index))
    async with open_library() as library:
        snapshot = await library.create(request_for(f"oci:{layout}:latest"))
        with pytest.raises(ResourceCreationError, match="no image found in") as caught:
            await library.wait(snapshot.id, 30)
    assert caught.value.error_type == "ImagePull"


async def test_configuration_is_read(open_library: OpenLibrary, catalogue: Catalogue) -> None:
    async with open_library() as library:
        snapshot = await library.create(request_for(catalogue.reference("nobash:1")))
        await library.wait(snapshot.id, 30)
        content = await library.use(snapshot.id)
    config, (root,) = content.config, content.layers
    assert config.user == "app"
    assert config.work_dir == "/srv/app"
    assert config.entrypoint == ("/bin/sh", "-c")
    assert config.cmd == ("echo started",)
    assert (config.env["GREETING"], config.env["EMPTY"]) == ("hello world", "")
    assert not (root.path / "usr/bin/bash").exists()
    owned = (root.path / "srv/app").stat()
    if os.geteuid() == 0:
        assert (owned.st_uid, owned.st_gid) == (1234, 1234)


async def test_a_docker_archive(open_library: OpenLibrary, catalogue: Catalogue, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    source = catalogue.reference("tiny:1")
    argv = ["skopeo", "copy", "--quiet", "--insecure-policy", source, f"docker-archive:{archive}:tiny:1"]
    subprocess.run(argv, check=True, timeout=30)
    async with open_library() as library:
        for reference in (f"docker-archive:{archive}", f"docker-archive:{archive}:docker.io/library/tiny:1"):
            snapshot = await library.create(request_for(reference))
            assert (await library.wait(snapshot.id, 30)).status == "ready"
        missing = await library.create(request_for(f"docker-archive:{tmp_path}/missing.tar"))
        with pytest.raises(ResourceCreationError, match="no such file"):
            await library.wait(missing.id, 30)


async def test_an_image_without_history(open_library: OpenLibrary, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "bare", [layer([entry("a", "b")]), layer([entry("c", "d")])], history=False)
    async with open_library() as library:
        snapshot = await library.create(request_for(f"oci:{layout}"))
        await library.wait(snapshot.id, 30)
        (root,) = (await library.use(snapshot.id)).layers
        assert (root.path / "a").read_text() == "b"
        assert (root.path / "c").read_text() == "d"


async def test_progress_goes_forward_and_ends(open_library: OpenLibrary, registry: Registry) -> None:
    async with open_library() as library:
        request = request_for("python:3.12-slim", registry_url=f"http://{registry.address}")
        snapshot = await library.create(request)
        seen: list[Progress] = [progress async for progress in library.progress(snapshot.id)]
        assert (await library.get(snapshot.id)).status == "ready"
        assert [progress async for progress in library.progress(snapshot.id)] == [
            Progress(Phase.DONE, seen[-1].done_bytes, seen[-1].done_bytes)
        ]
    order = [Phase.WAIT, Phase.PULL, Phase.UNPACK, Phase.CHECK, Phase.DONE]
    places = [order.index(progress.phase) for progress in seen]
    assert places == sorted(places) and seen[-1].phase == Phase.DONE
    pulls = [progress for progress in seen if progress.phase == Phase.PULL and progress.total_bytes]
    assert pulls and all(progress.done_bytes <= progress.total_bytes for progress in pulls if progress.total_bytes)


async def test_waiting_has_a_limit_and_does_not_end_the_build(open_library: OpenLibrary, registry: Registry) -> None:
    async with open_library() as library:
        snapshot = await library.create(request_for("python:3.12-slim", registry_url=f"http://{registry.address}"))
        with pytest.raises(ResourceTimeoutError) as caught:
            await library.wait(snapshot.id, 0.01)
        assert caught.value.last_status == "building"
        assert (await library.wait(snapshot.id, 60)).status == "ready"


async def test_deleting_ends_the_build(open_library: OpenLibrary, registry: Registry, tmp_path: Path) -> None:
    async with open_library() as library:
        snapshot = await library.create(request_for("python:3.12-slim", registry_url=f"http://{registry.address}"))
        async for progress in library.progress(snapshot.id):
            if progress.phase in (Phase.PULL, Phase.UNPACK):
                break
        with trio.fail_after(10):
            await library.delete(snapshot.id)
        with pytest.raises(ResourceNotFoundError):
            await library.get(snapshot.id)
        assert left_on_disk(tmp_path) == []
        assert _children_with(str(tmp_path)) == []


async def test_leaving_ends_the_builds(open_library: OpenLibrary, registry: Registry, tmp_path: Path) -> None:
    async with open_library() as library:
        for number in range(4):
            request = request_for("python:3.12-slim", f"n{number}", registry_url=f"http://{registry.address}")
            snapshot = await library.create(request)
        await trio.sleep(0.2)
    assert left_on_disk(tmp_path) == []
    assert _children_with(str(tmp_path)) == []
    async with open_library() as library:
        with pytest.raises(ResourceNotFoundError):
            await library.get(snapshot.id)


def _children_with(text: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"docker_image": ""}, "docker_image"),
        ({"docker_image": "--help"}, "docker_image"),
        ({"docker_image": "a b"}, "docker_image"),
        ({"docker_image": "oci:"}, "docker_image"),
        ({"docker_image": "docker://-x"}, "docker_image"),
        ({"docker_image": "x\0y"}, "docker_image"),
        ({"docker_image": "tiny:1", "name": ""}, "name"),
        ({"docker_image": "tiny:1", "name": "host"}, "name"),
        ({"docker_image": "tiny:1", "registry_url": "ftp://x"}, "registry_url"),
        ({"docker_image": "tiny:1", "registry_url": "user:secret@x"}, "registry_url"),
    ],
)
async def test_what_is_refused_at_once(open_library: OpenLibrary, changes: dict[str, str], field: str) -> None:
    async with open_library() as library:
        with pytest.raises(ValidationError) as caught:
            await library.create(request_for(**changes))
        assert caught.value.field == field
        assert await library.list() == ()


async def test_the_umask_does_not_matter(open_library: OpenLibrary, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", [layer([entry("a/b", "c")])])
    old = os.umask(0o077)
    try:
        async with open_library() as library:
            snapshot = await library.create(request_for(f"oci:{layout}"))
            await library.wait(snapshot.id, 30)
            (root,) = (await library.use(snapshot.id)).layers
    finally:
        os.umask(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (root.path, root.path / "a")] == [0o755, 0o755]
    # What is above it is nobody else's business: a layer may hold programs that run as root.
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_a_full_disk(tmp_path: Path, open_library: OpenLibrary) -> None:
    layout = write_layout(tmp_path / "layout", [layer([entry("big", os.urandom(12 * 1024**2))])])
    (tmp_path / "state").mkdir()
    with small_disk(tmp_path / "state", 16 * 1024**2):
        async with open_library(SnapshotConfig(min_free_bytes=0)) as library:
            snapshot = await library.create(request_for(f"oci:{layout}"))
            with pytest.raises(ResourceCreationError, match="no space left on device") as caught:
                await library.wait(snapshot.id, 30)
            assert caught.value.error_type == "DiskFull"
            assert left_on_disk(tmp_path) == []
        async with open_library(SnapshotConfig(min_free_bytes=1024**3)) as library:
            snapshot = await library.create(request_for(f"oci:{layout}"))
            with pytest.raises(ResourceCreationError, match=r"No space left on device: .* leave 1073741824") as caught:
                await library.wait(snapshot.id, 30)
            assert caught.value.error_type == "DiskFull"
            assert left_on_disk(tmp_path) == []
