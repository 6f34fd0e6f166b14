"""The fake engine's shell language means what sh means."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trio.testing

from sandboxrt.host.host import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.exec import CloseStdin, Execute, Input
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import converse, run
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.script import ScriptError, parse
from sandboxrt.testing.state import memory_state

SAME_AS_SH = [
    "echo a 'b  c' \"d $X\" e\\ f",
    "X=1; echo $X ${X}2 '$X' \"\\$X\"",
    'X=1 printenv X; echo "[$X]"',
    "export Y=7; printenv Y; (export Y=8; printenv Y); printenv Y",
    "true && echo yes || echo no; false && echo yes || echo no",
    "false; echo $?; (exit 3); echo $?",
    "for i in a b 'c d'; do echo [$i]; done",
    "while read L; do echo got $L; done",
    "echo out; echo err >&2",
    "(echo a; echo b >&2) 2>&1",
    "printf '%s-%s\\n' a b; printf 'x\\ty\\\\z\\101\\n'; printf '%%%d\\n' 5",
    "echo one > f; echo two >> f; cat f; cat < f; rm f; cat f 2>/dev/null || echo gone",
    "cd /; pwd; cd /nowhere 2>/dev/null || pwd",
    "head -c 5 /dev/zero; echo",
    "mkdir -p d/e; cd d/e && echo x > g; cat g; cd ../..; cat d/e/g",
    "echo a # a comment\necho b\n\necho c",
    "exit 9",
    "no-such-program-here",
    "trap '' TERM; kill -TERM $$; echo survived",
    "kill -TERM $$; echo not reached",
    "exec echo replaced; echo not reached",
    "read A; echo first=$A; cat",
    "echo 'unfinished",
]


@pytest.mark.parametrize("script", SAME_AS_SH)
async def test_same_as_sh(script: str, tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    stdin = "line 1\nline 2\nlast"
    work = tmp_path / "work"
    work.mkdir()
    real = subprocess.run(
        ["/bin/sh", "-c", script], input=stdin.encode(), capture_output=True, cwd=work, timeout=20, check=False
    )
    async with (
        FakeEngine() as engine,
        open_host(HostConfig(state_dir=tmp_path), engine=engine, state=memory_state()) as host,
    ):
        await host.create_sandbox(CreateSandbox(name="box"))
        await run(host, "box", "mkdir -p work")
        async with converse(host, "box", Execute(command=script, cwd="work")) as reader:
            await reader.link.send(Input(stdin))
            await reader.link.send(CloseStdin())
            fake = await reader.to_end()
    code = 128 - real.returncode if real.returncode < 0 else real.returncode
    assert fake.stdout == real.stdout.decode()
    assert fake.exit_code == code
    assert bool(fake.stderr) == bool(real.stderr)


@pytest.mark.parametrize("script", ["a | b", "echo $(date)", "echo `date`", "(a", "a )", "while true", "for", "a > "])
def test_what_it_does_not_know_is_refused(script: str) -> None:
    with pytest.raises(ScriptError):
        parse(script)
