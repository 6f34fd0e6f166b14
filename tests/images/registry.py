"""Runs Debian's docker-registry on the loopback interface, plain, with TLS, or with a password."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.stretch import stretched

USERNAME = "tester"
PASSWORD = "s3cret:with/odd chars"
# bcrypt of the above; Python has no bcrypt of its own.
_HTPASSWD = f"{USERNAME}:$2b$04$uXJDWo1DT8v2d3TKZ0G6JOfKoswdXz8O9r.u5j3F2RffKM3cRX0xi\n"


@attrs.frozen
class Registry:
    """A registry that runs.

    Attributes:
        address: ``127.0.0.1:PORT``.
        registries_conf: Sends the short names of docker.io to it (where it has no TLS).
        certs_dir: Holds the CA certificate that its own is signed by, with TLS.
        username: What it asks for, if it does; ``password`` likewise.
    """

    address: str
    registries_conf: Path
    certs_dir: Path | None = None
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)

    def push(self, layout: Path, tag: str, repository: str) -> str:
        """Copy an image of an OCI layout to it; returns the reference to pull it by."""
        reference = f"{self.address}/{repository}"
        argv = ["skopeo", "copy", "--quiet", "--insecure-policy"]
        if self.certs_dir is None:
            argv.append("--dest-tls-verify=false")
        else:
            argv += ["--dest-cert-dir", str(self.certs_dir)]
        if self.username is not None:
            argv += ["--dest-creds", f"{self.username}:{self.password}"]
        argv += [f"oci:{layout}:{tag}", f"docker://{reference}"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return reference


@contextlib.contextmanager
def running_registry(folder: Path, *, tls: bool = False, password: bool = False) -> Iterator[Registry]:
    """Run a registry whose files are in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    certs = _make_certificates(folder / "certs") if tls else None
    for _ in range(5):
        address = f"127.0.0.1:{_free_port()}"
        config = _write_config(folder, address, certs, password)
        with open(folder / "log", "ab") as log:
            process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
        try:
            if _answers(address, process):
                yield Registry(
                    address,
                    _write_registries_conf(folder, address),
                    certs,
                    USERNAME if password else None,
                    PASSWORD if password else None,
                )
                return
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    raise AssertionError(f"docker-registry does not start: {(folder / 'log').read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + stretched(15)
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return process.poll() is None
        time.sleep(0.02)
    return False


def _write_config(folder: Path, address: str, certs: Path | None, password: bool) -> Path:
    http: dict[str, object] = {"addr": address, "secret": "test"}
    if certs is not None:
        http["tls"] = {"certificate": str(folder / "server.crt"), "key": str(folder / "server.key")}
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": http,
    }
    if password:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    path = folder / "config.yml"
    # JSON is YAML.
    path.write_text(json.dumps(config))
    return path


def _write_registries_conf(folder: Path, address: str) -> Path:
    path = folder / "registries.conf"
    path.write_text(
        'unqualified-search-registries = ["docker.io"]\n'
        f'[[registry]]\nprefix = "docker.io"\nlocation = "{address}"\ninsecure = true\n'
    )
    return path


def _make_certificates(certs: Path) -> Path:
    """A CA in ``certs/ca.crt``, and beside that folder a server certificate that it signed."""
    certs.mkdir()
    folder = certs.parent

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30, cwd=folder)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "certs/ca.crt", "-subj", "/CN=sandboxrt test CA")
    openssl("req", *new_key[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (folder / "server.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    signing = ("-CA", "certs/ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "server.ext")
    openssl("x509", "-req", "-in", "server.csr", *signing, "-out", "server.crt")
    return certs
