"""A backup of a server under load, put back into another folder: all is there, each sandbox as of one instant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.test_copies import BEATING, check_it_beats, client_of, run, start
from tests.leaks import assert_nothing_left
from tests.serving import Serving, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(300)]

FILL = r"""
set -e
cd /root
echo precious > file; cp file suid; chown 1000:33 suid; chmod 4751 suid; ln file hard
truncate -s 64M sparse; printf end | dd of=sparse bs=1 seek=50000000 conv=notrunc 2>/dev/null
python3 -c "import os; os.setxattr('file', 'user.note', bytes(range(256)))"
head -c 4000000 /dev/urandom > big; md5sum < big > big.md5
"""
"""Owners, set-user-id, links, holes, attributes with every byte, and contents that nobody could guess."""
CHECK = r"""
set -e
cd /root
stat -c '%u:%g %a' suid; stat -c '%h' file; stat -c '%s' sparse; test $(stat -c %b sparse) -lt 1000
python3 -c "import os; assert os.getxattr('file', 'user.note') == bytes(range(256))"
md5sum < big | cmp - big.md5 && cat file
"""
CHECKED = "1000:33 4751\n2\n67108864\nprecious\n"
LOAD = "i=0; while :; do i=$((i+1)); echo $i > /root/first; echo $i > /root/second; done"
"""At every instant the first is the second, or one more (or empty, for a moment)."""


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "sandboxrt", *map(str, words)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, httpx.Client]]:
    """A server with ``live``, in which programs run and write, ``rests``, which is stopped, and a capture of it."""
    folder = tmp_path_factory.mktemp("loaded")
    with assert_nothing_left(), serving(folder) as server, client_of(server) as client:
        for name in ("live", "rests"):
            assert client.post("/boxes", json={"name": name, "ttl_seconds": 3600}, timeout=60).json()["name"] == name
            run(client, name, FILL)
        shot = client.post("/boxes/rests/snapshot", json={"name": "shot"}).json()
        while client.get(f"/snapshots/{shot['id']}").json()["status"] == "building":
            time.sleep(0.05)
        assert client.post("/boxes/rests/stop").status_code < 300
        run(client, "live", BEATING)
        run(client, "live", f"setsid sh -c '{LOAD}' >/dev/null 2>&1 & sync")
        yield server, client


def test_backup_and_restore(loaded: tuple[Serving, httpx.Client], tmp_path: Path) -> None:
    server, client = loaded
    done = subprocess.run(
        command("backup", tmp_path, "--state-dir", server.state_dir), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "2 sandboxes and 2 snapshots" in done.stderr
    check_it_beats(client)
    (made,) = tmp_path.glob("*.backup")
    assert made.stat().st_mode & 0o077 == 0
    assert str(made) in done.stdout
    assert made.stat().st_blocks * 512 < 200 * 1024**2, "holes stay holes"
    done = subprocess.run(
        command("restore", made, "--state-dir", tmp_path / "other"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = subprocess.run(
        command("doctor", "--state", "--state-dir", tmp_path / "other"), capture_output=True, text=True
    )
    assert "is sound" in found.stdout, found.stdout
    with assert_nothing_left(), serving(tmp_path / "other", key=server.key) as other, client_of(other) as its:
        boxes = {box["name"]: box for box in its.get("/boxes").json()["sandboxes"]}
        assert {name: box["status"] for name, box in boxes.items()} == {"live": "stopped", "rests": "stopped"}
        assert boxes["live"]["id"] == client.get("/boxes/live").json()["id"]
        for name in boxes:
            start(its, name)
            assert run(its, name, CHECK) == CHECKED
        first, second = (int(run(its, "live", f"cat /root/{name}").strip() or -1) for name in ("first", "second"))
        assert -1 in (first, second) or first - second in (0, 1)
        assert max(first, second) > 0
        made_of = its.post("/boxes", json={"name": "new", "snapshot_name": "shot"}).json()
        assert made_of["status"] == "ready", made_of
        assert run(its, "new", CHECK) == CHECKED
        for name in (*boxes, "new"):
            assert its.delete(f"/boxes/{name}").status_code == 204
    check_it_beats(client)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_backup_that_dies_lets_go(loaded: tuple[Serving, httpx.Client], tmp_path: Path, number: int) -> None:
    server, client = loaded
    # The copy takes its time, while the sandbox stands still.
    slow = tmp_path / "tar"
    slow.write_text('#!/bin/sh\ncase $* in *--version*) ;; *disk.img*) sleep 30;; esac\nexec /bin/tar "$@"\n')
    slow.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    maker = subprocess.Popen(
        command("backup", tmp_path / "new", "--state-dir", server.state_dir),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # Whoever runs the tests in the background ignores it, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        box = client.get("/boxes/live").json()
        frozen = {"command": "echo x > /root/probe; sync", "timeout": 3}
        deadline = time.monotonic() + 60
        while client.post(f"{box['dataplane_url']}/execute", json=frozen).json().get("exit_code") == 0:
            assert time.monotonic() < deadline, "it never stands still"
            assert maker.poll() is None
        os.killpg(maker.pid, number)
        maker.wait(30)
    finally:
        if maker.poll() is None:
            os.killpg(maker.pid, signal.SIGKILL)
        maker.wait(30)
    assert run(client, "live", "echo again > /root/probe; sync; cat /root/probe") == "again\n"
    check_it_beats(client)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tar"], "nothing is left"
