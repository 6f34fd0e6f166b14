"""The images of the tests do what the tests expect of them, before any sandbox is involved."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.images.catalogue import RECIPES, Catalogue
from tests.images.registry import Registry

# In namespaces of its own, so that nothing stays mounted and no process stays behind.
ENTER = """
mount --bind "$0" "$0"; mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"
exec chroot "$0" /bin/sh -c "$1"
"""


@pytest.fixture(scope="module")
def roots(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("roots")
    found = {}
    for name, recipe in RECIPES.items():
        found[name] = folder / name
        image = f"{catalogue.layout(name)}:{recipe.tag}"
        subprocess.run(["umoci", "raw", "unpack", "--image", image, found[name]], check=True, capture_output=True)
    return found


def _run(root: Path, script: str) -> tuple[str, str]:
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, str(root), script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_python(roots: dict[str, Path]) -> None:
    root = roots["python:3.12-slim"]
    assert _run(root, "python -c 'print(2 + 2)'") == ("4\n", "")
    stdout, stderr = _run(root, "cd /app && make build")
    assert stdout.startswith("building step 1\n") and stdout.endswith("done\n")
    assert stderr.count("warning: ") == 8
    assert "Ready" in _run(root, "cd /app && timeout 1 python server.py; true")[0]
    assert "PID" in _run(root, "top -b -n 1")[0]
    assert "1 sh" in _run(root, "ps -e -o pid=,comm= | tr -s ' '; pgrep -l sh")[0].replace("\n ", "\n")
    assert _run(root, "python -c 'import json, ssl, sqlite3, readline, asyncio; print(1)'")[0] == "1\n"
    assert _run(root, "bash -c 'echo $BASH'")[0] in ("/bin/bash\n", "/usr/bin/bash\n")


def test_redis(roots: dict[str, Path]) -> None:
    script = """
        redis-server --unixsocket /tmp/redis.sock --port 0 --daemonize yes --dir /data >/dev/null
        for try in $(seq 100); do redis-cli -s /tmp/redis.sock ping 2>/dev/null && break; sleep 0.05; done
        redis-cli -s /tmp/redis.sock shutdown nosave
    """
    assert _run(roots["redis:7"], script)[0] == "PONG\n"


def test_no_bash(roots: dict[str, Path]) -> None:
    root = roots["nobash:1"]
    assert not list(root.rglob("bin/*bash"))
    assert _run(root, "id app")[0] == "uid=1234(app) gid=1234(app) groups=1234(app),2000(extra)\n"


def test_tiny(roots: dict[str, Path]) -> None:
    assert _run(roots["tiny:1"], "echo hello")[0] == "hello\n"
    assert sum(path.stat().st_size for path in roots["tiny:1"].rglob("*") if path.is_file()) < 8 * 1024**2


def test_images_are_built_once(catalogue: Catalogue) -> None:
    before = catalogue.layout("tiny:1").stat().st_mtime_ns
    assert Catalogue(catalogue.folder).layout("tiny:1").stat().st_mtime_ns == before


def test_an_image_can_be_built_again(catalogue: Catalogue, tmp_path: Path) -> None:
    again = Catalogue(tmp_path).layout("tiny:1")
    assert (again / "index.json").read_bytes() == (catalogue.layout("tiny:1") / "index.json").read_bytes()
    shutil.rmtree(again)


def test_registries_hold_them(registry: Registry, tls_registry: Registry, password_registry: Registry) -> None:
    for name in RECIPES:
        for reference in (name, f"library/{name}"):
            target = f"docker://{registry.address}/{reference}"
            subprocess.run(
                ["skopeo", "inspect", "--raw", "--tls-verify=false", target], check=True, capture_output=True
            )
    tiny = f"docker://{tls_registry.address}/tiny:1"
    subprocess.run(
        ["skopeo", "inspect", "--raw", "--cert-dir", str(tls_registry.certs_dir), tiny], check=True, capture_output=True
    )
    assert subprocess.run(["skopeo", "inspect", "--raw", tiny], capture_output=True, check=False).returncode != 0
    locked = f"docker://{password_registry.address}/tiny:1"
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", locked]
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0
