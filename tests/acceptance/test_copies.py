"""A state folder is copied beside its running server, as a backup or a trial does: the original never notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.leaks import assert_nothing_left
from tests.server.app_kit import API
from tests.serving import Serving, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

BEAT = "import time\nwhile True: print('beat', file=open('/tmp/beats', 'a')); time.sleep(0.05)"
"""One process that stays the same, so that a look at what is left behind does not mistake it for something new."""
BEATING = f'setsid python3 -c "{BEAT}" >/dev/null 2>&1 & echo $! > /tmp/pid'


def client_of(server: Serving) -> httpx.Client:
    return httpx.Client(base_url=server.url + API, headers={"X-Api-Key": server.key}, timeout=30)


def run(client: httpx.Client, name: str, command: str) -> str:
    box = client.get(f"/boxes/{name}").json()
    answer = client.post(f"{box['dataplane_url']}/execute", json={"command": command})
    assert answer.status_code == 200, answer.text
    assert answer.json()["exit_code"] == 0, answer.json()
    return str(answer.json()["stdout"])


def start(client: httpx.Client, name: str) -> None:
    assert client.post(f"/boxes/{name}/start", json={}).status_code < 300
    while (box := client.get(f"/boxes/{name}").json())["status"] == "provisioning":
        pass
    assert box["status"] == "ready", box


@contextmanager
def beating(folder: Path) -> Iterator[tuple[Serving, httpx.Client]]:
    """A server with the sandbox ``live``, in which something runs for as long as nobody kills it."""
    with serving(folder) as server, closing(client_of(server)) as client:
        assert client.post("/boxes", json={"name": "live"}).json()["status"] == "ready"
        run(client, "live", "echo precious > /root/file; sync")
        run(client, "live", BEATING)
        yield server, client


def check_it_beats(client: httpx.Client) -> None:
    """The very same process runs, and what was in the sandbox is there."""
    assert client.get("/boxes/live").json()["status"] == "ready"
    count = "wc -l < /tmp/beats"
    script = f"kill -0 $(cat /tmp/pid) && a=$({count}) && sleep 0.5 && test $({count}) -gt $a && cat /root/file"
    assert run(client, "live", script) == "precious\n"


def doctor(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "sandboxrt", "doctor", "--state", "--json", "--state-dir", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, httpx.Client]]:
    with assert_nothing_left(), beating(tmp_path_factory.mktemp("original")) as found:
        yield found


def test_a_server_on_a_copy(original: tuple[Serving, httpx.Client], tmp_path: Path) -> None:
    server, client = original
    copy = tmp_path / "b"
    subprocess.run(["cp", "-a", "--sparse=always", server.state_dir, copy], check=True)
    with assert_nothing_left():
        with serving(copy, key=server.key) as other, client_of(other) as its:
            assert its.get("/boxes/live").json()["status"] == "stopped", "it does not run here"
            check_it_beats(client)
            start(its, "live")
            assert run(its, "live", "cat /root/file") == "precious\n"
            run(its, "live", "echo changed > /root/file")
            check_it_beats(client)
            assert its.delete("/boxes/live").status_code == 204
            check_it_beats(client)
            assert other.stop() == 0
        check_it_beats(client)


def test_the_doctor_on_a_copy(original: tuple[Serving, httpx.Client], tmp_path: Path) -> None:
    server, client = original
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)  # the folder was there before, as where a backup is put back
    subprocess.run(f"tar -C {server.state_dir} -cSf - . | tar -C {copy} -xpf -", shell=True, check=True)
    _, found = doctor(copy)
    assert "abandoned-sandbox" in [each["kind"] for each in found["findings"]]
    assert "processes" not in json.dumps(found), "what runs is the original's"
    code, found = doctor(copy, "--repair")
    assert (code, found["trouble"]) == (0, [])
    check_it_beats(client)
    assert doctor(copy)[1]["sound"]
    assert doctor(server.state_dir)[1]["findings"] == []


def test_a_folder_that_is_moved_stays_itself(tmp_path: Path) -> None:
    """Renamed after its server was killed: what that has left is found and freed, and the files are there."""
    with assert_nothing_left():
        with beating(tmp_path / "a") as (server, _):
            server.kill()
            os.rename(tmp_path / "a", tmp_path / "moved")
            (tmp_path / "a").mkdir()  # for the log of the killed one
        with serving(tmp_path / "moved", key=server.key) as again, client_of(again) as client:
            start(client, "live")
            assert run(client, "live", "cat /root/file") == "precious\n"
            client.delete("/boxes/live")
