"""The README's samples of snapshots: built, captured, listed, deleted; embedded and served, in all three forms.

What the README cannot say is put in its place: an id for the abbreviated one, and packages for ``pip`` that lie in the
sandbox, because there is no network.
"""

from __future__ import annotations

import ensurepip
import io
import zipfile
from pathlib import Path

import pytest
import trio

import sandboxrt
import sandboxrt.aio
from tests.images.catalogue import Catalogue
from tests.images.registry import Registry
from tests.readme.forms import FORMS, Run, blocking, source_of

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

PACKAGES = {"numpy": "numpy", "pandas": "pandas", "scikit-learn": "sklearn"}
PIP_CONF = "[global]\nno-index = true\nfind-links = /opt/wheels\nbreak-system-packages = true\nno-cache-dir = true\n"
PIP = '#!/bin/sh\nexec python3 /opt/wheels/pip.whl/pip "$@"\n'
AFTERWARDS = """
with client.sandbox(snapshot_id=snapshot.id) as check:
    result = check.run("python -c 'import numpy, pandas, sklearn; print(numpy.__version__)'")
client.delete_snapshot(snapshot.id)
"""


def _pip() -> bytes:
    """pip as a wheel, which runs as it is; Python brings it, or Debian beside it."""
    folders = (Path(ensurepip.__file__).parent / "_bundled", Path("/usr/share/python-wheels"))
    (wheel, *_) = [path for folder in folders for path in sorted(folder.glob("pip-*.whl"))]
    return wheel.read_bytes()


def _wheel(package: str, module: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as wheel:
        info = f"{package.replace('-', '_')}-1.0.dist-info"
        wheel.writestr(f"{module}/__init__.py", '__version__ = "1.0"\n')
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return written.getvalue()


@pytest.fixture
def base_snapshot_id(readme_snapshot_id: str) -> str:
    """A snapshot with ``pip`` and the packages of the sample: a capture itself, made once."""

    async def build() -> str:
        async with sandboxrt.AsyncSandboxClient() as client:
            for snapshot in await client.list_snapshots(name_contains="with-pip"):
                if snapshot.status == "ready":
                    return snapshot.id
            async with client.sandbox(readme_snapshot_id) as sandbox:
                await sandbox.write("/usr/local/bin/pip", PIP)
                await sandbox.write("/etc/pip.conf", PIP_CONF)
                await sandbox.write("/opt/wheels/pip.whl", _pip())
                for package, module in PACKAGES.items():
                    name = f"{package.replace('-', '_')}-1.0-py3-none-any.whl"
                    await sandbox.write(f"/opt/wheels/{name}", _wheel(package, module))
                assert (await sandbox.run("chmod +x /usr/local/bin/pip && pip --version")).success
                return (await sandbox.capture_snapshot("with-pip")).id

    return trio.run(build)


@FORMS
def test_build_a_snapshot(run: Run, readme_host: None) -> None:
    source = source_of("build_a_snapshot")
    if run is not blocking:
        source = source.replace("client = SandboxClient()\n", "")
    names, stdout = run(source)
    version, empty, again = stdout.split("\n")[:3]
    assert version.startswith("Python 3.")
    assert (empty, again) == ("", version)
    assert names["snapshot"].name == "my-python-env"


@FORMS
def test_capture_a_running_sandbox(run: Run, base_snapshot_id: str) -> None:
    names, stdout = run(source_of("capture_a_running_sandbox") + AFTERWARDS, base_snapshot_id=base_snapshot_id)
    snapshot = names["snapshot"]
    assert stdout == f"{snapshot.id} {snapshot.source_sandbox_id}\n"
    assert snapshot.source_sandbox_id
    assert names["result"].stdout == "1.0\n"


@FORMS
def test_snapshot_crud(run: Run, readme_snapshot_id: str, registry: Registry, catalogue: Catalogue) -> None:
    registry.push(catalogue.layout("tiny:1"), "1", "nvidia/cuda:12.0-devel-ubuntu22.04")

    async def build() -> str:
        async with sandboxrt.AsyncSandboxClient() as client:
            return (await client.create_snapshot("to-delete", "tiny:1", 64 * 1024**2)).id

    source = source_of("snapshot_crud").replace("550e8400-...", trio.run(build))
    names, _ = run(source)
    assert all("python" in snapshot.name.lower() for snapshot in names["snapshots"])
    assert (names["snapshot"].name, names["snapshot"].status) == ("heavy-image", "ready")
