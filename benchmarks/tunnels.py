"""Tunnels: our client's beside the official one's, on the same server, and beside bare TCP and ``ssh -L`` on loopback.

What is tunnelled to is the same everywhere: Redis, PostgreSQL, and a program that sends 100 MB. For the clients it runs
in their sandboxes, for the other two on this machine.
"""

from __future__ import annotations

import contextlib
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Measurement
from benchmarks.samples import Case, interleave

__all__ = ["measure_tunnels"]

BLOB_BYTES: Final = 100_000_000
PORTS: Final = {"blob": 7100, "redis": 7101, "postgres": 7102}
_POSTGRES: Final = "/usr/lib/postgresql/15/bin"
_BLOB: Final = f"""
import socket
data = bytes(1 << 20)
listener = socket.create_server(("127.0.0.1", {PORTS["blob"]}))
while True:
    there = listener.accept()[0]
    left = {BLOB_BYTES}
    try:
        while left:
            left -= there.send(data[:left])
    except OSError:
        pass
    there.close()
"""
START: Final = f"""
cat >/tmp/blob.py <<'END'
{_BLOB}
END
/usr/bin/python3 -S /tmp/blob.py >/dev/null 2>&1 &
/usr/bin/redis-server --port {PORTS["redis"]} --save '' --daemonize yes >/dev/null
mkdir -p /tmp/pg && chown nobody /tmp/pg
as_nobody() {{ setpriv --reuid=nobody --clear-groups env PATH={_POSTGRES}:$PATH "$@"; }}
as_nobody initdb --no-sync -D /tmp/pg/data -U postgres --auth=trust --locale=C >/dev/null
as_nobody pg_ctl -D /tmp/pg/data -w -l /tmp/pg/log -o "-p {PORTS["postgres"]} -k /tmp/pg -c fsync=off" start >/dev/null
"""
"""Starts all three, as the root of a sandbox or of a scratch root on this machine."""
_WAIT_S: Final = 60.0


def measure_tunnels(clients: Mapping[str, Any], folder: Path, *, quick: bool) -> list[Measurement]:
    """All rows. ``clients`` are the drivers of ``benchmarks/served.py``."""
    with contextlib.ExitStack() as stack:
        ways: dict[str, Mapping[str, int]] = {}
        for name, client in clients.items():
            client.ask("prepare", command=START)
            ways[name] = {what: client.ask("tunnel", port=port) for what, port in PORTS.items()}
        stack.enter_context(_servers_here())
        ways["bare TCP"] = PORTS
        ways["ssh -L"] = stack.enter_context(_ssh(folder))
        for ports in ways.values():
            _run("pgbench", "-i", "-s", "1", "-q", *_pg(ports["postgres"]))
        rounds = 2 if quick else 9
        return [
            _rates("tunnel: 100 MB from a sandbox", "MB/s", ways, _throughput, rounds, "half of ssh -L", _NOTE_BLOB),
            _rates("tunnel: redis-benchmark", "/s", ways, _redis, rounds, "above the official one's", _NOTE_REDIS),
            _rates("tunnel: pgbench", "/s", ways, _pgbench, rounds, "above the official one's", _NOTE_PG),
        ]


_NOTE_BLOB: Final = (
    "One connection. Bare TCP and `ssh -L` lead to the same program on this machine, outside of sandboxes."
)
_NOTE_REDIS: Final = "`redis-benchmark -t get -c 20`: requests a second over 20 connections."
_NOTE_PG: Final = "`pgbench -S -c 4`: read-only transactions a second over 4 connections."


def _rates(
    title: str,
    unit: str,
    ways: Mapping[str, Mapping[str, int]],
    sample: Callable[[Mapping[str, int]], float],
    rounds: int,
    target: str,
    note: str,
) -> Measurement:
    cases = {name: Case(lambda ports=ports: sample(ports)) for name, ports in ways.items()}  # type: ignore[misc]
    samples = interleave(cases, rounds=rounds, warmup=1)
    return Measurement(title, unit, samples, target, higher_is_better=True, note=note)


def _throughput(ports: Mapping[str, int]) -> float:
    began = time.perf_counter()
    length = 0
    with socket.create_connection(("127.0.0.1", ports["blob"]), timeout=_WAIT_S) as stream:
        buffer = bytearray(1 << 20)
        while got := stream.recv_into(buffer):
            length += got
    assert length == BLOB_BYTES, length
    return BLOB_BYTES / 1e6 / (time.perf_counter() - began)


def _redis(ports: Mapping[str, int]) -> float:
    said = _run("redis-benchmark", "-p", str(ports["redis"]), "-t", "get", "-c", "20", "-n", "5000", "--csv")
    return float(said.splitlines()[-1].split(",")[1].strip('"'))


def _pgbench(ports: Mapping[str, int]) -> float:
    said = _run("pgbench", "-S", "-n", "-c", "4", "-t", "400", *_pg(ports["postgres"]))
    match = re.search(r"tps = ([0-9.]+) \(without", said)
    assert match is not None, said
    return float(match[1])


def _pg(port: int) -> tuple[str, ...]:
    return "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "postgres"


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_WAIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv}: exit {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


@contextlib.contextmanager
def _servers_here() -> Iterator[None]:
    """What the sandboxes have, on this machine."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ending([sys.executable, "-S", "-c", _BLOB]))
        stack.enter_context(_ending(["redis-server", "--port", str(PORTS["redis"]), "--save", ""]))
        # Not below the run's own folder, which only root may enter.
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandboxrt-bench-pg-", dir="/var/tmp")))
        nobody = pwd.getpwnam("nobody")
        shutil.chown(data, nobody.pw_uid)
        options: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": data}
        make = [f"{_POSTGRES}/initdb", "--no-sync", "-D", "data", "-U", "postgres", "--auth=trust", "--locale=C"]
        subprocess.run(make, check=True, capture_output=True, timeout=_WAIT_S, **options)
        serve = [f"{_POSTGRES}/postgres", "-D", "data", "-p", str(PORTS["postgres"]), "-k", "", "-c", "fsync=off"]
        stack.enter_context(_ending(serve, **options))
        for port in PORTS.values():
            _wait_listening(port)
        yield


@contextlib.contextmanager
def _ssh(folder: Path) -> Iterator[dict[str, int]]:
    """``ssh -L`` to an sshd of its own on loopback, with keys made for it."""
    place = folder / "ssh"
    place.mkdir(mode=0o700)
    for key in ("host", "user"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / key))
    port, local = _free_port(), {what: _free_port() for what in PORTS}
    Path("/run/sshd").mkdir(exist_ok=True)
    config = place / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {place}/host\nAuthorizedKeysFile {place}/user.pub\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n"
    )
    forwards = [word for what, there in PORTS.items() for word in ("-L", f"{local[what]}:127.0.0.1:{there}")]
    client = ["ssh", "-N", "-F", "none", "-p", str(port), "-i", str(place / "user"), *forwards]
    client += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={place}/known", "root@127.0.0.1"]
    with _ending(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]):
        _wait_listening(port)
        with _ending(client):
            for there in local.values():
                _wait_listening(there)
            yield local


@contextlib.contextmanager
def _ending(argv: list[str], **options: Any) -> Iterator[None]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_listening(port: int) -> None:
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
