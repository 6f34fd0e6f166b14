"""What is left when a program ends, however it ends. Real containers, under every Python that is here."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrt import SandboxClient
from tests.bridge.kit import Program, bounded, environment, reap_orphans, run, until
from tests.leaks import assert_nothing_left

VERSIONS = ("3.11", "3.12", "3.13", "3.14")


@functools.cache
def _pythons() -> dict[str, str]:
    """An interpreter of each version that can load what the package needs; this one at least.

    Where there is no 3.12, ``test_no_thread_is_started_for_it`` refuses threads at exit as 3.12 does.
    """
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {ours: sys.executable}
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}")]
        candidates += sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python")), reverse=True)
        for python in candidates:
            if python is not None and version not in found and _works(python, version):
                found[version] = python
    return dict(sorted(found.items()))


def _works(python: str, version: str) -> bool:
    check = f"import sys, trio, attrs, sandboxrt; assert '%d.%d' % sys.version_info[:2] == '{version}'"
    done = subprocess.run([python, "-c", check], env=environment(python), check=False, capture_output=True)
    return done.returncode == 0


@pytest.fixture(params=list(_pythons()))
def python(request: pytest.FixtureRequest) -> str:
    return _pythons()[request.param]


@pytest.mark.container
def test_what_was_left_open_is_deleted(python: str, tmp_path: Path) -> None:
    with assert_nothing_left(tmp_path):
        output = run(
            f"""
            client = sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r})
            sb = client.create_sandbox()
            other = client.sandbox()
            handle = sb.run("echo ready; sleep 1000", timeout=0, wait=False)
            print(next(iter(handle)).data, end="")
            """,
            python=python,
        )
    assert output == "ready\n"


@pytest.mark.container
def test_no_thread_is_started_for_it(tmp_path: Path) -> None:
    with assert_nothing_left(tmp_path):
        output = run(
            f"""
            import trio._core._thread_cache as cache
            cache.IDLE_TIMEOUT = 0.05  # a program that exits after a while has no idle worker threads left
            client = sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r})
            boxes = [client.create_sandbox() for _ in range(3)]
            print(boxes[0].run("echo ready").stdout, end="")
            deadline = time.monotonic() + 10
            while threading.active_count() > 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            print(threading.active_count())

            def refuse(self):
                raise RuntimeError("can't create new thread at interpreter shutdown")
            threading.Thread.start = refuse
            """
        )
    assert output == "ready\n2\n"


@pytest.mark.container
def test_a_thread_that_outlives_the_main_thread_goes_on(python: str, tmp_path: Path) -> None:
    with assert_nothing_left(tmp_path):
        output = run(
            f"""
            client = sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r})
            sb = client.create_sandbox()
            def later():
                threading.main_thread().join()
                sb.write("/tmp/file", "after the end\\n")
                print(sb.run("cat /tmp/file").stdout, end="")
                with client.sandbox() as another:
                    print(another.run("echo and more").stdout, end="")
            threading.Thread(target=later).start()
            """,
            python=python,
        )
    assert output == "after the end\nand more\n"


@pytest.mark.container
def test_ctrl_c_ends_a_program_and_its_sandboxes(python: str, tmp_path: Path) -> None:
    code = f"""
        def say(text):
            print(text, end="", flush=True)
        with sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r}) as client:
            with client.sandbox() as sb:
                try:
                    sb.run("echo running; sleep 1000", timeout=0, on_stdout=say)
                except KeyboardInterrupt:
                    left = sb.run("grep -l sleep /proc/[0-9]*/comm").stdout
                    print("interrupted, and left:", repr(left), flush=True)
                    raise
        """
    with assert_nothing_left(tmp_path), Program.start(code, python=python) as program:
        program.expect("running")
        with bounded(15):
            program.interrupt()
            program.expect("interrupted, and left: ''")
            program.finish(-2, stderr="KeyboardInterrupt")


@pytest.mark.container
def test_ctrl_c_in_the_middle_of_a_creation_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
        client = sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r})
        client.create_sandbox()
        try:
            print("first", flush=True)
            while True:
                client.delete_sandbox(client.create_sandbox().name)
        except KeyboardInterrupt:
            print(len(client.list_sandboxes()) <= 2, flush=True)
        """
    with assert_nothing_left(tmp_path), Program.start(code) as program:
        program.expect("first")
        program.interrupt()
        assert program.finish() == "True\n"


@pytest.mark.container
def test_calls_in_flight_in_daemon_threads_do_not_hold_it_up(python: str, tmp_path: Path) -> None:
    with assert_nothing_left(tmp_path), bounded(20):
        output = run(
            f"""
            client = sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r})
            sb = client.create_sandbox()
            def forever():
                try:
                    sb.run("sleep 1000", timeout=0)
                except sandboxrt.ClientClosedError as error:
                    sys.stdout.write(f"ended: {{error}}\\n")
            for _ in range(3):
                threading.Thread(target=forever, daemon=True).start()
            time.sleep(0.3)
            """,
            python=python,
        )
    # Daemon threads may or may not get to say it.
    assert set(output.splitlines()) <= {"ended: the client was closed while this call was under way"}


def test_handlers_of_the_program_at_exit_may_still_use_it(tmp_path: Path) -> None:
    output = run(
        f"""
        import atexit
        # Registered after the import, so it runs before the package's own.
        def late():
            print(client.list_sandboxes())
        client = sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r})
        atexit.register(late)
        """
    )
    assert output == "[]\n"


def test_exit_from_inside_of_blocks(tmp_path: Path) -> None:
    with Program.start(
        f"""
        with fake_engine() as engine:
            with sandboxrt.SandboxClient(engine=engine, state_dir={str(tmp_path)!r}) as client:
                with client.sandbox() as sb:
                    sys.exit(3)
        """
    ) as program:
        assert program.finish(3) == ""


def test_fork_gives_the_child_a_runtime_of_its_own(tmp_path: Path) -> None:
    output = run(
        f"""
        with fake_engine() as engine:
            client = sandboxrt.SandboxClient(engine=engine, state_dir={str(tmp_path / "parent")!r})
            sb = client.create_sandbox()
            handle = sb.run("echo parent; sleep 1000", wait=False, timeout=0)
            pid = os.fork()
            if pid == 0:
                for use in (client.list_sandboxes, handle.kill, lambda: sb.run("true"), lambda: next(iter(handle))):
                    try:
                        use()
                    except sandboxrt.ClientClosedError as error:
                        print(error)
                with fake_engine() as fresh:
                    with sandboxrt.SandboxClient(engine=fresh, state_dir={str(tmp_path / "child")!r}) as own:
                        print(own.sandbox().run("echo child").stdout, end="")
                client.close()
                del client, sb, handle
                sys.stdout.flush()
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), sb.run("echo parent").stdout, end="")
            client.close()
        """
    )
    told = (
        "this client was opened before os.fork() and belongs to the parent process; "
        "make a new client in this process, and leave the parent's alone"
    )
    assert output.splitlines() == [told] * 4 + ["child", "0 parent"]


def test_a_forked_child_leaves_the_parents_blocks_quietly_and_exits(tmp_path: Path) -> None:
    output = run(
        f"""
        with fake_engine() as engine:
            with sandboxrt.SandboxClient(engine=engine, state_dir={str(tmp_path)!r}) as client:
                with client.sandbox() as sb:
                    pid = os.fork()
                    if pid:
                        _, status = os.waitpid(pid, 0)
                        print(os.waitstatus_to_exitcode(status), sb.run("echo alive").stdout, end="")
        if not pid:
            sys.exit(7)
        """
    )
    assert output == "7 alive\n"


@pytest.mark.container
def test_children_of_multiprocessing_clean_up_after_themselves(tmp_path: Path) -> None:
    with assert_nothing_left(tmp_path):
        output = run(
            f"""
            import multiprocessing
            def child():
                client = sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r})
                sys.stdout.write(client.create_sandbox().run("echo child").stdout)
            with sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r}) as client:
                process = multiprocessing.get_context("fork").Process(target=child)
                process.start()
                process.join()
                print(process.exitcode, os.listdir({str(tmp_path / "sandboxes")!r}))
            """
        )
    assert output == "child\n0 []\n"


@pytest.mark.container
def test_a_forked_child_does_not_keep_the_containers_of_its_dead_parent(tmp_path: Path) -> None:
    with Program.start(
        f"""
        client = sandboxrt.SandboxClient(mode="embedded", state_dir={str(tmp_path)!r})
        sb = client.create_sandbox()
        pid = os.fork()
        if pid == 0:
            os.close(1), os.close(2)
            deadline = time.monotonic() + 30
            while not os.path.exists({str(tmp_path / "enough")!r}) and time.monotonic() < deadline:
                time.sleep(0.02)
            os._exit(0)
        print(sb.id.replace("-", ""), pid, flush=True)
        time.sleep(30)
        """
    ) as program:
        assert program.process.stdout is not None
        group, child = program.process.stdout.readline().split()
        assert _processes_of(group)
        program.process.kill()
        until(lambda: reap_orphans() or not _processes_of(group), 5)
    assert os.path.exists(f"/proc/{child}")
    (tmp_path / "enough").touch()
    os.waitpid(int(child), 0)
    with SandboxClient(mode="embedded", state_dir=tmp_path) as client:  # removes what is left on disk
        assert client.list_sandboxes() == []
    assert os.listdir(tmp_path / "sandboxes") == []


def _processes_of(group: str) -> list[str]:
    found = []
    for path in glob.glob("/proc/[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if group in Path(path).read_text():
                found.append(path)
    return found
