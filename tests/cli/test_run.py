"""``sandboxrt run`` as a user meets it: a program with arguments, streams, signals and an exit code."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.container

SANDBOXRT = (sys.executable, "-m", "sandboxrt")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {**os.environ, "SANDBOXRT_STATE_DIR": str(tmp_path_factory.mktemp("state"))}


def run(
    environment: dict[str, str], *arguments: str, stdin: bytes = b"", timeout_s: float = 60
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*SANDBOXRT, "run", *arguments],
        input=stdin,
        env=environment,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )


def test_output_and_exit_code(environment: dict[str, str]) -> None:
    done = run(environment, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


def test_arguments_arrive_as_written(environment: dict[str, str]) -> None:
    words = ("a b", "$HOME", "'", "*", "")
    done = run(environment, "--", "printf", "<%s>\\n", *words)
    assert done.stdout.decode() == "".join(f"<{word}>\n" for word in words)


def test_environment_directory_and_user(environment: dict[str, str]) -> None:
    script = "echo $WHO $(pwd) $(id -u)"
    done = run(environment, "-e", "WHO=me", "-w", "/opt", "-u", "1000", "--", "sh", "-c", script)
    assert done.stdout == b"me /opt 1000\n", done.stderr


def test_standard_input_only_when_asked(environment: dict[str, str]) -> None:
    assert run(environment, "-i", "--", "cat", stdin="héllo\n".encode()).stdout == "héllo\n".encode()
    assert run(environment, "--", "cat", stdin=b"not for you").stdout == b""


def test_timeout(environment: dict[str, str]) -> None:
    done = run(environment, "--timeout", "500ms", "--", "sh", "-c", "echo before; sleep 60")
    assert (done.returncode, done.stdout) == (124, b"before\n")
    assert done.stderr == b"sandboxrt: the command was ended after 0.5 s\n"


def test_unknown_program(environment: dict[str, str]) -> None:
    done = run(environment, "--", "no-such-program")
    assert done.returncode == 127
    assert b"no-such-program" in done.stderr


def test_limits(environment: dict[str, str]) -> None:
    done = run(environment, "--pids", "16", "--", "sh", "-c", "for i in $(seq 40); do sleep 5 & done")
    assert done.returncode != 0
    assert b"fork" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), b"Missing argument"),
        (("--timeout", "soon", "--", "true"), b"write it like 30s"),
        (("-e", "NOVALUE", "--", "true"), b"is not KEY=VALUE"),
        (("--memory", "lots", "--", "true"), b"write it like 512m"),
        (("--cpus", "0", "--", "true"), b"x>=0.01"),
        (("-t", "--", "true"), b"-t needs a terminal"),
        (("--nonsense", "--", "true"), b"No such option"),
    ],
)
def test_wrong_arguments(environment: dict[str, str], arguments: Sequence[str], says: bytes) -> None:
    done = run(environment, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--image", "oci:/no/such/layout", "--", "true"), "/no/such/layout"),
        (("--runtime", "no-such-runtime", "--", "true"), "no-such-runtime"),
        (("-w", "/no/such/folder", "--", "true"), "/no/such/folder"),
        (("-u", "nobody-here", "--", "true"), "nobody-here"),
    ],
)
def test_what_sandboxrt_cannot_do(environment: dict[str, str], arguments: Sequence[str], says: str) -> None:
    done = run(environment, *arguments)
    assert done.returncode == 125
    assert done.stderr.decode().startswith("sandboxrt: ")
    assert says in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def _children(environment: dict[str, str]) -> Iterator[int]:
    """Processes of sandboxes in this state folder, found by the folder's name in their mounts or command lines."""
    needle = environment["SANDBOXRT_STATE_DIR"].encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if needle in (entry / "mountinfo").read_bytes() or needle in (entry / "cmdline").read_bytes():
                    yield int(entry.name)
            except OSError:
                continue


def _started(environment: dict[str, str], *command: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [*SANDBOXRT, "run", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_interrupt_reaches_the_command(environment: dict[str, str]) -> None:
    script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    process = _started(environment, "--", "bash", "-c", script)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (7, b"caught\n", b"")


def test_second_interrupt_kills(environment: dict[str, str]) -> None:
    process = _started(environment, "--", "bash", "-c", "trap '' INT; echo ready; while :; do sleep 0.05; done")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 137


def test_reader_that_goes_away_ends_the_command(environment: dict[str, str]) -> None:
    process = _started(environment, "--", "sh", "-c", "echo ready; while :; do echo more; done")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 137
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_killed_hard_it_takes_the_sandbox_with_it(environment: dict[str, str]) -> None:
    process = _started(environment, "--", "sh", "-c", "echo ready; sleep 600")
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while (left := list(_children(environment))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_terminal(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [*SANDBOXRT, "run", "-t", "--", "sh", "-c", "tty; stty size; read line; echo got $line; exit 4"],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    shown = b""
    asked = False
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 4096)
        if not asked and b"33 101" in shown:
            os.write(ours, b"words\r")
            asked = True
    while select.select([ours], [], [], 0.2)[0]:
        shown += os.read(ours, 4096)
    assert process.wait(timeout=5) == 4, shown
    assert b"/dev/pts/" in shown
    assert b"got words" in shown
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
