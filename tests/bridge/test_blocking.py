"""The blocking client's rules, over the fake engine."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import attrs
import pytest
import trio

import sandboxrt
from sandboxrt import ClientClosedError, CommandTimeoutError, SandboxClient
from sandboxrt.bridge import blocking
from sandboxrt.bridge.blocking import BlockingClient, BlockingFacade
from sandboxrt.bridge.call import Call
from sandboxrt.bridge.portal import Portal
from sandboxrt.testing.fake import FakeEngine, Faults
from tests.bridge.kit import Made, bounded, fake_engine, until

# -- lifetime ----------------------------------------------------------------------------------------------------------


def test_works_without_with(engine: FakeEngine, state_dir: Path) -> None:
    client = SandboxClient(engine=engine, state_dir=state_dir)
    sb = client.create_sandbox()
    assert sb.run("echo one").stdout == "one\n"
    assert [each.name for each in client.list_sandboxes()] == [sb.name]
    assert client.get_sandbox(sb.name).id == sb.id
    client.close()
    assert engine.containers == {}
    client.close()  # again: nothing
    with pytest.raises(ClientClosedError, match="make a new one"):
        client.list_sandboxes()
    with pytest.raises(ClientClosedError, match="make a new one"):
        sb.run("true")


def test_one_daemon_thread_for_all_clients(engine: FakeEngine, state_dir: Path) -> None:
    with (
        SandboxClient(engine=engine, state_dir=state_dir) as one,
        SandboxClient(engine=engine, state_dir=state_dir) as two,
    ):
        one.list_sandboxes()
        two.list_sandboxes()
        threads = [thread for thread in threading.enumerate() if thread.name == "sandboxrt"]
        assert len(threads) == 1
        assert threads[0].daemon


def test_closed_before_use_is_closed(engine: FakeEngine, state_dir: Path) -> None:
    client = SandboxClient(engine=engine, state_dir=state_dir)
    client.close()
    with pytest.raises(ClientClosedError, match="make a new one"):
        client.list_sandboxes()


def test_client_closes_with_the_last_object_of_it(engine: FakeEngine, state_dir: Path) -> None:
    client = SandboxClient(engine=engine, state_dir=state_dir)
    sb = client.create_sandbox()
    del client
    gc.collect()
    assert sb.run("echo here").stdout == "here\n"
    del sb
    gc.collect()
    until(lambda: not engine.containers)


def test_bad_arguments_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="mode must be"):
        SandboxClient(mode="elsewhere")  # type: ignore[arg-type]


def test_failed_opening_is_the_callers_error_and_may_be_tried_again(tmp_path: Path, engine: FakeEngine) -> None:
    wall = tmp_path / "state"
    wall.write_text("a file where a folder should be")
    client = SandboxClient(engine=engine, state_dir=wall)
    with pytest.raises(sandboxrt.SandboxClientError):
        client.list_sandboxes()
    wall.unlink()
    assert client.list_sandboxes() == []
    client.close()


def test_threads_that_open_it_together_share_one(engine: FakeEngine, state_dir: Path) -> None:
    client = SandboxClient(engine=engine, state_dir=state_dir)
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: client.create_sandbox().name, range(8)))
    assert sorted(sandbox.name for sandbox in client.list_sandboxes()) == sorted(names)
    client.close()


def test_many_threads_at_once(client: SandboxClient) -> None:
    with client.sandbox() as sb, ThreadPoolExecutor(16) as pool:
        results = pool.map(lambda n: sb.run(f"echo {n}").stdout, range(200))
        assert list(results) == [f"{n}\n" for n in range(200)]


def test_closing_ends_calls_of_other_threads(engine: FakeEngine, state_dir: Path) -> None:
    client = SandboxClient(engine=engine, state_dir=state_dir)
    sb = client.create_sandbox()
    handle = sb.run("sleep 1000", wait=False, timeout=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: handle.result)
        time.sleep(0.1)
        with bounded(5):
            client.close()
            with pytest.raises(ClientClosedError):
                waiting.result()


def test_blocks_that_outlive_the_client_end_quietly(engine: FakeEngine, state_dir: Path) -> None:
    client = SandboxClient(engine=engine, state_dir=state_dir)
    with client.sandbox() as sb, sb.run("sleep 1000", wait=False):
        client.close()
        assert engine.containers == {}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_the_thread_fails_its_calls_and_spares_later_clients() -> None:
    def fault() -> None:
        raise RuntimeError("a fault of ours")

    portal = Portal(_Swallows())
    blocking.call(portal, trio.lowlevel.checkpoint)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "sandboxrt"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(blocking.call, portal, trio.sleep_forever)
        until(waiting.running)
        time.sleep(0.1)
        portal.runtime().post(fault)
        with bounded(5), pytest.raises(ClientClosedError):
            waiting.result()
    thread.join(5)
    with pytest.raises(ClientClosedError, match="make a new client"):
        blocking.call(portal, trio.lowlevel.checkpoint)
    assert blocking.call(Portal(_Swallows()), lambda: _soon(2)) == 2


# -- results -----------------------------------------------------------------------------------------------------------


def test_objects_are_of_the_blocking_kind(client: SandboxClient) -> None:
    with client.sandbox() as sb:
        assert type(sb) is sandboxrt.Sandbox
        assert repr(sb) == f"<Sandbox {sb.name} ready>"
        handle = sb.run("echo hi", wait=False)
        assert type(handle) is sandboxrt.CommandHandle
        assert repr(handle).startswith("<CommandHandle ")
        assert type(handle.reconnect()) is sandboxrt.CommandHandle
        assert all(type(each) is sandboxrt.Sandbox for each in client.list_sandboxes())
    assert repr(client).startswith("<SandboxClient embedded in")


def test_errors_come_as_they_are(client: SandboxClient) -> None:
    with client.sandbox() as sb:
        with pytest.raises(CommandTimeoutError) as caught:
            sb.run("echo part; sleep 1000", timeout=0.2)
        assert caught.value.stdout == "part\n"
        with pytest.raises(ValueError, match="callbacks need wait=True"):
            sb.run("true", wait=False, on_stdout=print)  # type: ignore[call-overload]


def test_groups_of_one_are_unwrapped(client: SandboxClient) -> None:
    inner = ValueError("the one")

    async def fail(error: BaseException) -> None:
        raise error

    async def nursery() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, ExceptionGroup("", [inner]))

    with pytest.raises(ValueError, match="the one") as caught:
        client._call(nursery)
    assert caught.value is inner
    with pytest.raises(ExceptionGroup) as several:
        client._call(lambda: fail(ExceptionGroup("two", [ValueError(), KeyError()])))
    assert len(several.value.exceptions) == 2


# -- context managers --------------------------------------------------------------------------------------------------


@attrs.define
class Probe:
    """A context manager that only one task can enter and leave, as trio's own are."""

    tasks: list[trio.lowlevel.Task] = attrs.field(factory=list)
    errors: list[BaseException | None] = attrs.field(factory=list)
    nursery_manager: object = None

    async def __aenter__(self) -> Probe:
        self.tasks.append(trio.lowlevel.current_task())
        self.nursery_manager = manager = trio.open_nursery()
        (await manager.__aenter__()).start_soon(trio.sleep_forever)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.tasks.append(trio.lowlevel.current_task())
        self.errors.append(error)
        manager = self.nursery_manager
        manager._nursery.cancel_scope.cancel()  # type: ignore[attr-defined]
        await manager.__aexit__(kind, error, trace)  # type: ignore[attr-defined]
        return False


class _Probed(BlockingFacade[Probe]):
    def __enter__(self) -> Probe:
        return self._enter(self._inner)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self._exit(error)


def test_one_task_enters_and_leaves(client: SandboxClient) -> None:
    with _Probed._of(Probe(), client._portal) as probe:
        assert client._call(lambda: _soon(1)) == 1
    assert probe.tasks[0] is probe.tasks[1]
    assert probe.errors == [None]


def test_the_blocks_error_goes_through_and_stays_itself(client: SandboxClient) -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught, _Probed._of(Probe(), client._portal) as probe:
        raise error
    assert caught.value is error
    assert probe.errors == [error]
    assert "portal.py" not in "".join(traceback.format_exception(error))


def test_an_error_may_be_swallowed_or_replaced(client: SandboxClient) -> None:
    with _Probed._of(_Swallows(), client._portal):  # type: ignore[arg-type]
        raise KeyError("gone")
    with pytest.raises(LookupError, match="instead"), _Probed._of(_Swallows(LookupError("instead")), client._portal):  # type: ignore[arg-type]
        raise KeyError("gone")


@attrs.define
class _Swallows:
    instead: Exception | None = None

    async def __aenter__(self) -> _Swallows:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self.instead is not None:
            raise self.instead
        return True


def test_client_and_sandbox_are_left_by_who_entered_them(client: SandboxClient, engine: FakeEngine) -> None:
    with pytest.raises(KeyError), client.sandbox():
        assert len(engine.containers) == 1
        raise KeyError
    assert engine.containers == {}
    kept = client.create_sandbox()
    with kept:
        pass
    assert len(engine.containers) == 1


def test_one_with_at_a_time(client: SandboxClient) -> None:
    with client.sandbox() as sb, pytest.raises(RuntimeError, match="in a with block already"), sb:
        pass


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_callbacks_run_on_the_callers_thread(client: SandboxClient) -> None:
    seen: list[tuple[str, int]] = []

    def note(text: str) -> None:
        seen.append((text, threading.get_ident()))

    def job() -> int:
        sb.run("echo out; sleep 0.05; echo err >&2; sleep 0.05; echo out", on_stdout=note, on_stderr=note)
        return threading.get_ident()

    with client.sandbox() as sb, ThreadPoolExecutor(1) as pool:
        caller = pool.submit(job).result()
    assert seen == [("out\n", caller), ("err\n", caller), ("out\n", caller)]
    assert caller != threading.get_ident()


def test_a_callbacks_error_ends_the_command(client: SandboxClient, engine: FakeEngine) -> None:
    error = RuntimeError("enough")

    def refuse(text: str) -> None:
        raise error

    with client.sandbox() as sb:
        with pytest.raises(RuntimeError) as caught:
            sb.run("echo one; sleep 1000", timeout=0, on_stdout=refuse)
        assert caught.value is error
        (container,) = engine.containers.values()
        until(lambda: not container.processes)


def test_callbacks_may_use_the_client(client: SandboxClient) -> None:
    answers: list[str] = []
    with client.sandbox() as sb:
        sb.run("echo a; sleep 0.05; echo b", on_stdout=lambda text: answers.append(sb.run(f"echo re {text}").stdout))
    assert answers == ["re a\n", "re b\n"]


def test_a_slow_callback_loses_nothing(client: SandboxClient) -> None:
    pieces: list[str] = []

    def slow(text: str) -> None:
        time.sleep(0.001)
        pieces.append(text)

    with client.sandbox() as sb:
        result = sb.run("for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.002; done", on_stdout=slow)
    assert "".join(pieces) == result.stdout == "1\n2\n3\n4\n5\n6\n7\n8\n9\n"


# -- iteration ---------------------------------------------------------------------------------------------------------


def test_iteration_takes_batches(client: SandboxClient, monkeypatch: pytest.MonkeyPatch) -> None:
    crossings = 0
    submit = Portal.submit

    def count(self: Portal, call: Call[object]) -> None:
        nonlocal crossings
        crossings += 1
        submit(self, call)

    size = 64 * 65536
    with client.sandbox() as sb:
        handle = sb.run(f"head -c {size} /dev/zero", wait=False)
        sb.run("sleep 0.3")  # all of it is there
        monkeypatch.setattr(Portal, "submit", count)
        chunks = list(handle)
        monkeypatch.undo()
    assert sum(len(chunk.data) for chunk in chunks) == size
    assert len(chunks) >= 64
    assert crossings <= len(chunks) / 8


def test_break_detaches_and_a_later_loop_goes_on(client: SandboxClient) -> None:
    with client.sandbox() as sb:
        handle = sb.run("echo one; read x; echo got $x; read y; echo end $y", wait=False)
        for chunk in handle:
            assert chunk.data == "one\n"
            break
        assert handle.last_stdout_offset == 4
        handle.send_input("a\n")
        for chunk in handle:
            assert (chunk.data, chunk.offset) == ("got a\n", 4)
            break
        handle.send_input("b\n")
        assert [chunk.data for chunk in handle] == ["end b\n"]
        assert list(handle) == []
        assert handle.result.stdout == "one\ngot a\nend b\n"


def test_dropping_an_iterator_lets_go_of_the_command(client: SandboxClient, engine: FakeEngine) -> None:
    with client.sandbox() as sb:
        handle = sb.run("echo one; sleep 1000", wait=False, timeout=0, kill_on_disconnect=True)
        for _chunk in handle:
            break
        (container,) = engine.containers.values()
        until(lambda: not container.processes)


def test_closing_an_iterator_ends_it(client: SandboxClient) -> None:
    with client.sandbox() as sb:
        handle = sb.run("echo one; sleep 1000", wait=False, timeout=0)
        iterator = iter(handle)
        assert next(iterator).data == "one\n"
        iterator.close()
        with pytest.raises(StopIteration):
            next(iterator)
        handle.kill()
        assert handle.result.exit_code == 137


def test_iteration_raises_how_the_command_ended(client: SandboxClient) -> None:
    with client.sandbox() as sb:
        handle = sb.run("echo part; sleep 1000", wait=False, timeout=0.2)
        got = []
        with pytest.raises(CommandTimeoutError):
            got.extend(chunk.data for chunk in handle)


# -- interruption ------------------------------------------------------------------------------------------------------


def _interrupt_soon(after_s: float = 0.15) -> threading.Timer:
    timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_ends_the_command_and_is_raised(client: SandboxClient, engine: FakeEngine) -> None:
    with client.sandbox() as sb:
        (container,) = engine.containers.values()
        with bounded(10), pytest.raises(KeyboardInterrupt):
            _interrupt_soon()
            sb.run("sleep 1000", timeout=0)
        until(lambda: not container.processes, 2)
        assert sb.run("echo still").stdout == "still\n"


def test_ctrl_c_leaves_no_sandbox_half_made(client: SandboxClient, engine: FakeEngine) -> None:
    engine.faults = Faults(create_delay_s=0.3)
    with bounded(10), pytest.raises(KeyboardInterrupt):
        _interrupt_soon()
        client.create_sandbox()
    assert client.list_sandboxes() == []


def test_what_arrives_after_ctrl_c_is_discarded(client: SandboxClient) -> None:
    made = Made(tidy_s=0.1)

    async def stubborn() -> Made:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.3)
        return made

    with pytest.raises(KeyboardInterrupt):
        _interrupt_soon()
        client._call(stubborn)
    assert made.discarded.is_set()


def test_ctrl_c_while_opening_closes_again(engine: FakeEngine, state_dir: Path) -> None:
    entered = threading.Event()

    @attrs.define
    class Slow:
        async def __aenter__(self) -> Slow:
            entered.set()
            await trio.sleep_forever()
            return self

        async def __aexit__(self, *error: object) -> None:
            pass

    slow = Slow()
    with bounded(5), pytest.raises(KeyboardInterrupt):
        _interrupt_soon()
        BlockingClient._of(slow, Portal(slow)).__enter__()
    assert entered.is_set()


def test_ctrl_c_in_a_with_statements_exit_waits_for_it(client: SandboxClient) -> None:
    finished = threading.Event()

    @attrs.define
    class Slow:
        async def __aenter__(self) -> Slow:
            return self

        async def __aexit__(self, *error: object) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.4)
            finished.set()

    with pytest.raises(KeyboardInterrupt), _Probed._of(Slow(), client._portal):  # type: ignore[arg-type]
        _interrupt_soon()
    assert finished.is_set()


def test_the_wait_for_clean_up_is_bounded(client: SandboxClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "SETTLE_S", 0.2)

    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)

    with bounded(1.5), pytest.raises(KeyboardInterrupt):
        _interrupt_soon()
        client._call(stubborn)


def test_any_signal_handlers_error_interrupts(client: SandboxClient, engine: FakeEngine) -> None:
    class AlarmError(Exception):
        pass

    def ring(*_: object) -> None:
        raise AlarmError

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        with client.sandbox() as sb:
            signal.setitimer(signal.ITIMER_REAL, 0.15)
            with pytest.raises(AlarmError):
                sb.run("sleep 1000", timeout=0)
            (container,) = engine.containers.values()
            until(lambda: not container.processes, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# -- the wrong place ---------------------------------------------------------------------------------------------------


async def test_in_a_trio_task_names_the_trio_client() -> None:
    client = SandboxClient(mode="embedded")
    with pytest.raises(RuntimeError, match="from sandboxrt import AsyncSandboxClient"):
        client.list_sandboxes()
    with pytest.raises(RuntimeError, match="from sandboxrt import AsyncSandboxClient"), client:
        pass


async def test_in_a_worker_thread_of_trio_works(state_dir: Path) -> None:
    def job() -> str:
        with fake_engine() as engine, SandboxClient(engine=engine, state_dir=state_dir) as client:
            return client.sandbox().run("echo worker").stdout

    assert await trio.to_thread.run_sync(job) == "worker\n"


def test_under_a_running_asyncio_loop_works_as_notebooks_need(client: SandboxClient) -> None:
    import asyncio

    async def cell() -> str:
        with client.sandbox() as sb:
            return sb.run("echo cell").stdout

    assert asyncio.run(cell()) == "cell\n"


async def _soon(value: int) -> int:
    await trio.lowlevel.checkpoint()
    return value
