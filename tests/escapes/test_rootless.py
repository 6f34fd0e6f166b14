"""The same attempts in sandboxes of an unprivileged user: what root's sandboxes refuse, theirs refuse too.

What is missing for such a user (limits that need control groups, ids of its own for each sandbox) is not claimed
either, and not tested here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sandboxrt.engine.base import Identity, Layer
from tests.escapes.attempts import ATTEMPTS, Attempt
from tests.escapes.kit import HOSTNAME, SETUID_PROBE, USER, HostCanary
from tests.rootless import as_user

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

FIRST_ID = 2**30
SUBORDINATE = f"stranger:{FIRST_ID}:65536\n"

# What reading and writing from outside gives; "special" is a folder of the probe's, "link" leads to a host's file.
PATHS = {
    "/root/link": ({"not-found"}, {"not-found"}),
    "/proc/self/root/etc/hostname": ({"loop"}, {"loop"}),
    "/proc/1/root/etc/hostname": ({"permission", "loop"}, {"permission", "loop"}),
    "/proc/sys/kernel/core_pattern": ({"permission"}, {"permission"}),
    "/root/special/fifo": ({"not-regular"}, {"not-regular"}),
    "/root/special/zero": ({"not-regular"}, {"not-regular"}),
    "/root/special/loop": ({"loop"}, {"loop"}),
}

PROGRAM = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import trio
from pathlib import Path
from sandboxrt.engine.base import FileError, Identity, Layer
from sandboxrt.engine.oci import OciEngine
from tests.escapes.kit import ask, ask_all, first_line, holding, running, start, workplace

async def main():
    state, runtime, questions = Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    layer, found = Layer(Path(sys.argv[5])), {}
    place = workplace(state)
    options = {"uid_base": 0, "allow_unenforced_limits": True}
    async with OciEngine(state, runtime) as engine, running(engine, place, layer, **options) as container:
        found["verdicts"] = [await ask_all(container, asked, Identity(uid, uid)) for uid, asked in questions]
        found["fds"] = await ask(container, "fds")
        found["interfaces"] = await ask(container, "interfaces")
        found["uid_map"] = await ask(container, "dump", "/proc/self/uid_map")
        found["hostname"] = await ask(container, "dump", "/proc/sys/kernel/hostname")
        found["told"] = [await ask(container, "grep", place.ids[0], where) for where in ("/proc", "/sys")]
        found["mounts"] = await ask(container, "dump", "/proc/self/mountinfo")
        async with running(engine, place, layer, **options) as neighbour:
            async with holding(container, "inotify", "500") as said:
                found["inotify"] = [said, await ask(neighbour, "inotify", "20")]
            async with holding(container, "terminals", "500") as said:
                found["terminals"] = [said, await ask(neighbour, "terminals", "4")]
            async with holding(container, "occupy", "meet", "8000") as said:
                asked = ["tcp,127.0.0.1,8000", "abstract,meet", "read,/tmp/meet", "queue,/meet", "shared_memory"]
                found["meeting"] = [said, await ask_all(container, asked), await ask_all(neighbour, asked)]
                found["census"] = [await ask(container, "census"), await ask(neighbour, "census")]
        for text in ("symlink " + sys.argv[6] + " /root/link", "specials /root/special"):
            await ask(container, *text.split())
        found["reads"] = [await kind(container, path) for path in json.loads(sys.argv[7])]
        found["writes"] = [await kind(container, path, True) for path in json.loads(sys.argv[7])]
    print(json.dumps(found))

async def kind(container, path, writing=False):
    async def content():
        yield b"escaped"
    try:
        with trio.fail_after(10):
            if writing:
                await container.replace_file(path, content(), Identity())
            else:
                await (await container.open_file(path, Identity())).aclose()
    except FileError as error:
        return error.kind.value
    return "opened"

trio.run(main)
"""


Found = Mapping[str, Any]


@pytest.fixture(scope="module", params=["crun", "runc"])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, layer: Layer, canary: HostCanary
) -> Found:
    folder = tmp_path_factory.mktemp("rootless")
    root = folder / "root"
    shutil.copytree(layer.path, root)
    for path in (root, *root.rglob("*")):
        os.chown(path, FIRST_ID, FIRST_ID)  # root of the sandbox, as in a layer that the user unpacked
    (root / SETUID_PROBE.lstrip("/")).chmod(0o4755)
    questions = [
        (uid, [canary.inside(each.question) for each in ATTEMPTS if each.identity == Identity(uid, uid)])
        for uid in (0, USER.uid)
    ]
    paths = json.dumps([str(Path(__file__).parents[2])])
    state = folder / "state" / "escapes"
    arguments = (json.dumps(questions), str(root), str(canary.file), json.dumps(list(PATHS)))
    done = as_user(folder, SUBORDINATE, PROGRAM, paths, str(state), request.param, *arguments)
    assert done.returncode == 0, done.stderr
    answers: Found = json.loads(done.stdout)
    assert list((state / "sandboxes").iterdir()) == []
    return answers


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.id)
def test_refused(attempt: Attempt, found: Found, canary: HostCanary) -> None:
    verdict = found["verdicts"][0 if attempt.identity.uid == 0 else 1][canary.inside(attempt.question)]
    assert verdict.split()[0:1] == ["refused"], verdict
    assert verdict.split()[1] in attempt.refusals, verdict


def test_root_inside_is_the_first_subordinate_id(found: Found) -> None:
    # In the ids of the user's own namespace, in which 0 is the user and 1 the first subordinate one.
    assert found["uid_map"].split() == ["0", "1", "65536"]


def test_nothing_of_the_host_is_told(found: Found) -> None:
    assert found["hostname"] == HOSTNAME
    assert found["interfaces"] == "lo"
    assert [line.partition("[")[0] for line in found["fds"].splitlines()] == ["0 pipe:", "1 pipe:", "2 pipe:"]
    assert found["told"] == ["refused NONE", "refused NONE"]
    assert "/dev/.init" in found["mounts"]
    assert not any(name in found["mounts"] for name in ("rootless", "sandboxes", "pytest"))


def test_shared_tables_are_divided(found: Found) -> None:
    assert found["inotify"] == ["32 EMFILE", "20 0"]
    assert found["terminals"] == ["64 ENOSPC", "4 0"]


def test_a_neighbour_is_not_found(found: Found) -> None:
    said, same, other = found["meeting"]
    assert said == "ready"
    assert all(verdict.startswith("ALLOWED") for verdict in same.values()), same
    assert all(verdict in ("refused ECONNREFUSED", "refused ENOENT") for verdict in other.values()), other
    assert found["census"] == ["1", "0"]


def test_the_hosts_file_calls_are_not_led_astray(found: Found, canary: HostCanary) -> None:
    for path, reading, writing in zip(PATHS, found["reads"], found["writes"], strict=True):
        assert reading in PATHS[path][0], (path, reading)
        assert writing in PATHS[path][1], (path, writing)
    assert canary.file.read_text() == "host"
