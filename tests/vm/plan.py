"""What is done in a guest, step by step: a command, who runs it, how long it may take."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import attrs

__all__ = ["USER", "Step", "check_steps", "install_steps", "suite_steps", "tree_of"]

USER = "alice"
_PYTHON = ".venv/bin/python"
_BEFORE = "/var/tmp/before.json"
# One for all checks of a user's: what a state folder needs only once (two programs, the first disk) is made once.
_STATE = "/var/tmp/checked"
# Whose limits an ordinary user can enforce in a control group that systemd has given him; disks need root.
_DELEGATED = "cpu,memory,pids"
_ALL = f"{_DELEGATED},disk"
_SCOPE = "systemd-run --user --scope --quiet -p Delegate=yes --"
_RUNTIMES = ("crun", "runc")


@attrs.frozen
class Step:
    """One command in a guest.

    Attributes:
        name: What the summary calls it.
        command: For a shell, in the tree that was brought along.
        user: Who logs in and runs it.
        limit_s: How long it may take where nothing else runs.
        code: How it has to end.
        says: What its output has to contain.
        figure: What of its output goes into the summary: the last line that contains this.
        needed: Nothing after it makes sense when it fails.
        reports: It prints checks of its own, which stand in the summary in its place.
        listed: Lines of its output that begin so stand in the summary, too.
        note: What the summary adds to the figure.
    """

    name: str
    command: str
    user: str = "root"
    limit_s: float = 300
    code: int = 0
    says: str = ""
    figure: str = ""
    needed: bool = False
    reports: bool = False
    listed: str = ""
    note: str = ""


def _guest(module: str, *arguments: str, prefix: str = "") -> str:
    return f"{prefix} {_PYTHON} -m tests.vm.guest.{module} {shlex.join(arguments)}".strip()


def tree_of(installer: str) -> str:
    """Where ``installer`` has a clone of the project."""
    return "/root/sandboxrt" if installer == "root" else f"/home/{installer}/sandboxrt"


def install_steps(installer: str) -> Iterator[Step]:
    """The README's first command on a fresh machine, by root or by a user with sudo; before it, without a network."""
    how = "as root" if installer == "root" else "as an ordinary user with sudo"
    yield Step(
        f"setup_system.sh without a network, {how}",
        # A mirror that cannot be reached: port 9 of loopback refuses at once.
        "echo 'deb [trusted=yes] http://127.0.0.1:9/ ./' | sudo tee /etc/apt/sources.list.d/far.list > /dev/null; "
        "sudo mv /etc/apt/sources.list /etc/apt/kept; tools/setup_system.sh; code=$?; "
        "sudo mv /etc/apt/kept /etc/apt/sources.list; sudo rm /etc/apt/sources.list.d/far.list; exit $code",
        user=installer,
        code=1,
        says="connect it to a network",
        figure="setup: error:",
    )
    yield Step(
        f"quickstart.sh on the fresh machine, {how}",
        "tools/quickstart.sh",
        user=installer,
        limit_s=900,
        says="the sandbox is gone; nothing of it is left on this machine",
        figure="is ready after",
        needed=True,
    )


def check_steps() -> Iterator[Step]:
    """Doctor, limits and promises as root, a server as a unit and in a session, an ordinary user; nothing is left."""
    yield Step(
        "a second runtime from Debian's packages",
        "apt-get install -qq -y --no-install-recommends runc > /dev/null && runc --version",
        figure="runc version",
    )
    yield Step("what is there before", _guest("leftovers", "before", _BEFORE), needed=True)
    yield from _root_steps()
    yield from _user_steps()
    yield Step("what is there after", _guest("leftovers", "after", _BEFORE), reports=True)


def _root_steps() -> Iterator[Step]:
    doctor = shlex.join([_PYTHON, "-m", "sandboxrt", "doctor", "--state-dir", _STATE])
    yield Step("doctor, root", doctor, says="Ready:", figure="Ready:")
    for runtime in _RUNTIMES:
        where = f"root, {runtime}"
        brief = [] if runtime == _RUNTIMES[0] else ["--brief"]
        arguments = (where, _STATE, "--runtime", runtime, "--enforced", _ALL, *brief)
        yield Step(where, _guest("sandbox", *arguments), limit_s=400, reports=True)
    for how in ("unit", "session"):
        yield Step(f"serve, {how}", _guest("service", how, _STATE), limit_s=300, reports=True)


def _user_steps() -> Iterator[Step]:
    state = f"{_STATE}-{USER}"
    doctor = shlex.join([_PYTHON, "-m", "sandboxrt", "doctor", "--state-dir", state])
    # Disks of a bounded size are root's alone, and a login session has no control group to share out.
    yield Step("doctor, ordinary user", doctor, user=USER, code=1, says="disk-limit", figure="disk-limit")
    for group, prefix, enforced in (("a delegated group", _SCOPE, _DELEGATED), ("no group", "", "")):
        for runtime in _RUNTIMES:
            where = f"ordinary user with {group}, {runtime}"
            arguments = (where, state, "--runtime", runtime, "--enforced", enforced, "--brief")
            yield Step(where, _guest("sandbox", *arguments, prefix=prefix), user=USER, limit_s=300, reports=True)


# -- the suites of the long form ---------------------------------------------------------------------------------------


_TEST_GROUP = """
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["test"])
"""


@attrs.frozen
class Suite:
    """Some tests of the project's own.

    Attributes:
        name: What the summary calls them.
        tests: Their files or folders.
        left_out: What of them does not run in a guest, as pytest's ``-k`` words, and why.
        limit_s: How long they may take.
    """

    name: str
    tests: str
    left_out: tuple[tuple[str, str], ...] = ()
    limit_s: float = 5400


SUITES = (
    Suite(
        "engine",
        "tests/engine",
        (("runsc", "gVisor has no fast way to run where there is no hypervisor, and none in emulation"),),
    ),
    Suite("escapes", "tests/escapes"),
    Suite("acceptance", "tests/acceptance"),
)


def suite_steps(stretch: float) -> Iterator[Step]:
    """The engine, escape and acceptance suites as root, time limits multiplied by ``stretch``."""
    yield Step(
        "what the tests need",
        f"tools/setup_system.sh --test && {_PYTHON} -m pip install --quiet $({_PYTHON} -c {shlex.quote(_TEST_GROUP)})",
        limit_s=1800,
        needed=True,
    )
    for suite in SUITES:
        chosen = " and ".join(f"not {words}" for words, _ in suite.left_out)
        select = f"-k {shlex.quote(chosen)}" if chosen else ""
        yield Step(
            f"suite {suite.name}",
            # Debian 13's /tmp is a file system in memory that takes no set-user-id programs, which tests make.
            f"SANDBOXRT_TEST_STRETCH={stretch:g} TMPDIR=/var/tmp {_PYTHON} -m pytest -q {suite.tests} {select} "
            "-p no:cacheprovider 2>&1",
            limit_s=suite.limit_s,
            figure=" in ",
            listed="SKIPPED",
            note="; ".join(f"without {words}: {why}" for words, why in suite.left_out),
        )
