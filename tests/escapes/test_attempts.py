"""Every attempt to get out is refused, in a real container, by each runtime, for root and for an ordinary user.

The attempts of one runtime share a container. A refusal proves something only if the probe could have succeeded: the
controls run the same probe on the host, where it must be allowed.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.base import Identity, Layer
from sandboxrt.engine.oci import OciEngine
from tests.engine.oci_kit import settled
from tests.escapes.attempts import ATTEMPTS, SINCE, Attempt
from tests.escapes.kit import NO_ADDRESS, ROOT, USER, HostCanary, ask_all, parse_batch, running, workplace

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

Verdicts = Mapping[tuple[Identity, str], str]
CONTROLS = list(dict.fromkeys(attempt.question for attempt in ATTEMPTS if attempt.control))


async def _collect(folder: Path, runtime: str, layer: Layer, canary: HostCanary) -> Verdicts:
    place = workplace(folder)
    verdicts: dict[tuple[Identity, str], str] = {}
    async with OciEngine(folder, runtime) as engine, running(engine, place, layer) as container:
        for who in (ROOT, USER):
            asked = {each.question: canary.inside(each.question) for each in ATTEMPTS if each.identity == who}
            answers = await ask_all(container, asked.values(), who)
            verdicts |= {(who, question): answers[filled] for question, filled in asked.items()}
    assert await settled(place) == []
    return verdicts


@pytest.fixture(scope="module", params=["crun", "runc"])
def verdicts(request: pytest.FixtureRequest, state_dir: Path, layer: Layer, canary: HostCanary) -> Verdicts:
    return trio.run(_collect, state_dir, request.param, layer, canary)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.id)
def test_refused(attempt: Attempt, verdicts: Verdicts) -> None:
    verdict = verdicts[attempt.identity, attempt.question]
    assert verdict.split()[0:1] == ["refused"], verdict
    # The reason counts: a probe that fails for another one than policy has not been refused.
    assert verdict.split()[1] in attempt.refusals, verdict


@pytest.fixture(scope="module")
def allowed(probe: Path, canary: HostCanary) -> Iterator[Mapping[str, str]]:
    """What the host's root is told, each probe in namespaces of its own, with a descriptor that leads to the root."""
    asked = {question: canary.outside(question) for question in CONTROLS}
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The attempts' scratch folders go with this one: nobody else removes what they made.
        with tempfile.TemporaryDirectory(prefix="escapes-control-") as scratch:
            done = subprocess.run(
                [probe, "control", *asked.values()],
                stdout=subprocess.PIPE,
                timeout=110,
                check=True,
                cwd=scratch,
                env={**os.environ, "TMPDIR": scratch},
                pass_fds=[root],
            )
    finally:
        os.close(root)
    answers = parse_batch(done.stdout)
    yield {question: answers[filled] for question, filled in asked.items()}


def _has_content(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or os.listdir(path) != [])


KERNEL = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])


@pytest.mark.parametrize("question", CONTROLS)
def test_control_on_the_host_is_allowed(question: str, allowed: Mapping[str, str], canary: HostCanary) -> None:
    path = question.partition(",")[2]
    if SINCE.get(question, KERNEL) > KERNEL:
        assert allowed[question] == "refused ENOSYS"
    elif "{address}" in question and canary.address == NO_ADDRESS:
        assert allowed[question] == "refused ENETUNREACH"
    elif path.startswith(("/proc/", "/sys/")) and "{" not in path and not _has_content(Path(path)):
        # This kernel was built without it; what is masked where it exists is in the configuration all the same.
        assert allowed[question] in ("refused ENOENT", "refused EMPTY")
    else:
        assert allowed[question].startswith("ALLOWED"), allowed[question]


@pytest.mark.parametrize("name", ["setuid", "setgroups"])
def test_control_a_change_of_ids_is_allowed_to_root(name: str, probe: Path) -> None:
    done = subprocess.run([probe, name], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("ALLOWED")


def test_control_a_setuid_program_makes_root_of_an_ordinary_user_on_the_host(probe: Path, layer: Layer) -> None:
    # Temporary folders are often mounted with "nosuid".
    enter = 'mount --bind "$0" "$0" && mount -o remount,bind,suid "$0" && exec setpriv --reuid "$1" --regid "$1"'
    command = [str(probe), "run_setuid", str(layer.path / "bin/probe-setuid")]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'{enter} --clear-groups "$2" "$3" "$4"',
            layer.path,
            str(USER.uid),
            *command,
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == "ALLOWED euid 0\n"
