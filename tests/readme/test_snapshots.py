"""The README's samples of snapshots: built, captured, listed, deleted; embedded and served, in all three forms.

What the README cannot say is put in its place: an id for the abbreviated one, and packages for ``pip`` that lie in the
sandbox, because there is no network.
"""

from __future__ import annotations

import asyncio
import ensurepip
import io
import zipfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import trio

import sandboxrt
import sandboxrt.aio
from tests.images.catalogue import Catalogue
from tests.images.registry import Registry
from tests.readme.transform import asynchronous

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

SAMPLES = Path(__file__).parent / "samples"
PACKAGES = {"numpy": "numpy", "pandas": "pandas", "scikit-learn": "sklearn"}
PIP_CONF = "[global]\nno-index = true\nfind-links = /opt/wheels\nbreak-system-packages = true\nno-cache-dir = true\n"
PIP = '#!/bin/sh\nexec python3 /opt/wheels/pip.whl/pip "$@"\n'
AFTERWARDS = """
with client.sandbox(snapshot_id=snapshot.id) as check:
    result = check.run("python -c 'import numpy, pandas, sklearn; print(numpy.__version__)'")
client.delete_snapshot(snapshot.id)
"""


def _source(name: str) -> str:
    return (SAMPLES / f"{name}.py").read_text(encoding="utf-8")


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


def _blocking(source: str, **names: Any) -> tuple[dict[str, Any], str]:
    with sandboxrt.SandboxClient() as client, redirect_stdout(io.StringIO()) as stdout:
        names["client"] = client
        exec(compile(source, "sample.py", "exec"), names)
    return names, stdout.getvalue()


def _sample(source: str, *parameters: str) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(compile(asynchronous(source, ("client", *parameters)), "sample.py", "exec"), names)
    return names["sample"]  # type: ignore[no-any-return]


def _on_trio(source: str, **names: Any) -> tuple[dict[str, Any], str]:
    async def main() -> dict[str, Any]:
        async with sandboxrt.AsyncSandboxClient() as client:
            return await _sample(source, *names)(client, *names.values())  # type: ignore[no-any-return]

    with redirect_stdout(io.StringIO()) as stdout:
        return trio.run(main), stdout.getvalue()


def _on_asyncio(source: str, **names: Any) -> tuple[dict[str, Any], str]:
    async def main() -> dict[str, Any]:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            return await _sample(source, *names)(client, *names.values())  # type: ignore[no-any-return]

    with redirect_stdout(io.StringIO()) as stdout:
        return asyncio.run(main()), stdout.getvalue()


Run = Callable[..., tuple[dict[str, Any], str]]
FORMS = pytest.mark.parametrize("run", [_blocking, _on_trio, _on_asyncio], ids=["blocking", "trio", "asyncio"])


@FORMS
def test_build_a_snapshot(run: Run, readme_host: None) -> None:
    source = _source("build_a_snapshot")
    if run is not _blocking:
        source = source.replace("client = SandboxClient()\n", "")
    names, stdout = run(source)
    version, empty, again = stdout.split("\n")[:3]
    assert version.startswith("Python 3.")
    assert (empty, again) == ("", version)
    assert names["snapshot"].name == "my-python-env"


@FORMS
def test_capture_a_running_sandbox(run: Run, base_snapshot_id: str) -> None:
    names, stdout = run(_source("capture_a_running_sandbox") + AFTERWARDS, base_snapshot_id=base_snapshot_id)
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

    source = _source("snapshot_crud").replace("550e8400-...", trio.run(build))
    names, _ = run(source)
    assert all("python" in snapshot.name.lower() for snapshot in names["snapshots"])
    assert (names["snapshot"].name, names["snapshot"].status) == ("heavy-image", "ready")
