"""The asyncio client's rules, over the fake engine."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

import sandboxrt
from sandboxrt import ClientClosedError, CommandTimeoutError
from sandboxrt.aio import AsyncCommandHandle, AsyncSandbox, AsyncSandboxClient
from sandboxrt.bridge import loops
from sandboxrt.testing.fake import FakeEngine, Faults
from tests.bridge.kit import Made, bounded, until


@pytest.fixture
def aio(engine: FakeEngine, state_dir: Path) -> Callable[[Callable[[AsyncSandboxClient], Awaitable[object]]], None]:
    """Runs a function with an open client in an asyncio loop of its own."""

    def run(function: Callable[[AsyncSandboxClient], Awaitable[object]]) -> None:
        async def main() -> None:
            async with AsyncSandboxClient(engine=engine, state_dir=state_dir) as client:
                await function(client)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asyncio.run(main(), debug=True)
            gc.collect()
        assert engine.containers == {}

    return run


Aio = Callable[[Callable[[AsyncSandboxClient], Awaitable[object]]], None]


# -- lifetime and results ----------------------------------------------------------------------------------------------


def test_both_forms_of_a_sandbox_block(aio: Aio, engine: FakeEngine) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        async with client.sandbox() as sb:
            assert type(sb) is AsyncSandbox
            assert (await sb.run("echo one")).stdout == "one\n"
        assert engine.containers == {}
        async with await client.sandbox() as sb:
            await sb.write("/tmp/file", "content")
            assert await sb.read("/tmp/file") == b"content"
        assert engine.containers == {}

    aio(main)


def test_works_without_async_with(engine: FakeEngine, state_dir: Path) -> None:
    async def main() -> None:
        client = AsyncSandboxClient(engine=engine, state_dir=state_dir)
        sb = await client.create_sandbox()
        assert [each.name for each in await client.list_sandboxes()] == [sb.name]
        await client.aclose()
        await client.aclose()
        with pytest.raises(ClientClosedError, match="make a new one"):
            await sb.run("true")

    asyncio.run(main())


def test_results_of_handles(aio: Aio) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        async with client.sandbox() as sb:
            handle = await sb.run("echo a; sleep 0.05; echo b", wait=False)
            assert type(handle) is AsyncCommandHandle
            results = await asyncio.gather(*(_result(handle) for _ in range(5)))
            assert all(result.stdout == "a\nb\n" for result in results)
            again = await sb.reconnect(handle.command_id)
            assert [chunk.data async for chunk in again] == ["a\nb\n"]
            with pytest.raises(CommandTimeoutError) as caught:
                await sb.run("echo part; sleep 1000", timeout=0.2)
            assert caught.value.stdout == "part\n"

    aio(main)


async def _result(handle: AsyncCommandHandle) -> sandboxrt.ExecutionResult:
    return await handle.result


def test_iteration_break_and_on(aio: Aio) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        async with client.sandbox() as sb, await sb.run("echo one; read x; echo got $x", wait=False) as handle:
            async for chunk in handle:
                assert chunk.data == "one\n"
                break
            await handle.send_input("word\n")
            assert [chunk.data async for chunk in handle] == ["got word\n"]

    aio(main)


def test_many_calls_at_once(aio: Aio) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        async with client.sandbox() as sb:
            results = await asyncio.gather(*(sb.run(f"echo {n}") for n in range(100)))
            assert [result.stdout for result in results] == [f"{n}\n" for n in range(100)]

    aio(main)


def test_a_sandbox_that_is_never_awaited_is_never_made(aio: Aio, engine: FakeEngine) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        client.sandbox()
        gc.collect()
        await asyncio.sleep(0)
        assert await client.list_sandboxes() == []

    aio(main)


def test_errors_in_blocks_pass_through(aio: Aio, engine: FakeEngine) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        error = KeyError("mine")
        with pytest.raises(KeyError) as caught:
            async with client.sandbox():
                raise error
        assert caught.value is error
        assert engine.containers == {}

    aio(main)


def test_groups_of_one_are_unwrapped(aio: Aio) -> None:
    async def fail() -> None:
        async with trio.open_nursery():
            raise ValueError("the one")

    async def main(client: AsyncSandboxClient) -> None:
        with pytest.raises(ValueError, match="the one"):
            await client._call(fail)

    aio(main)


# -- callbacks ---------------------------------------------------------------------------------------------------------


def test_callbacks_run_on_the_callers_loop_in_its_context(aio: Aio) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[tuple[str, str, int, asyncio.AbstractEventLoop]] = []

    def note(text: str) -> None:
        seen.append((text, variable.get(), threading.get_ident(), asyncio.get_running_loop()))

    async def main(client: AsyncSandboxClient) -> None:
        variable.set("mine")
        async with client.sandbox() as sb:
            await sb.run("echo out; sleep 0.02; echo err >&2", on_stdout=note, on_stderr=note)
        here = ("mine", threading.get_ident(), asyncio.get_running_loop())
        assert seen == [("out\n", *here), ("err\n", *here)]

    aio(main)


def test_a_callbacks_error_ends_the_command(aio: Aio, engine: FakeEngine) -> None:
    error = RuntimeError("enough")

    def refuse(text: str) -> None:
        raise error

    async def main(client: AsyncSandboxClient) -> None:
        async with client.sandbox() as sb:
            with pytest.raises(RuntimeError) as caught:
                await sb.run("echo one; sleep 1000", timeout=0, on_stdout=refuse)
            assert caught.value is error
            (container,) = engine.containers.values()
            until(lambda: not container.processes)

    aio(main)


# -- cancellation ------------------------------------------------------------------------------------------------------


def test_cancelling_a_call_ends_it_and_waits(aio: Aio, engine: FakeEngine) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        async with client.sandbox() as sb:
            (container,) = engine.containers.values()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await sb.run("sleep 1000", timeout=0)
            until(lambda: not container.processes, 2)
            assert (await sb.run("echo still")).stdout == "still\n"

    aio(main)


def test_cancelling_a_creation_leaves_nothing(aio: Aio, engine: FakeEngine) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        engine.faults = Faults(create_delay_s=0.3)
        task = asyncio.create_task(client.create_sandbox())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.list_sandboxes() == []

    aio(main)


def test_what_arrives_after_a_cancellation_is_discarded_whatever_cancels_again(aio: Aio) -> None:
    made = Made(tidy_s=0.2)

    async def stubborn() -> Made:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.3)
        return made

    async def main(client: AsyncSandboxClient) -> None:
        task = asyncio.create_task(client._call(stubborn))
        for _ in range(5):
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.discarded.is_set()

    aio(main)


def test_a_result_that_crosses_a_cancellation_is_discarded(aio: Aio) -> None:
    async def main(client: AsyncSandboxClient) -> None:
        made = Made()

        async def make() -> Made:
            return made

        task = asyncio.create_task(client._call(make))
        await asyncio.sleep(0)
        time.sleep(0.05)  # the result is on its way to this loop by now
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert made.discarded.is_set()

    aio(main)


def test_the_wait_for_clean_up_is_bounded(aio: Aio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "SETTLE_S", 0.2)

    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(1.5)

    async def main(client: AsyncSandboxClient) -> None:
        with bounded(1), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client._call(stubborn)

    aio(main)


def test_cancelling_a_block_still_deletes(aio: Aio, engine: FakeEngine) -> None:
    async def block(client: AsyncSandboxClient) -> None:
        async with client.sandbox():
            await asyncio.sleep(1000)

    async def main(client: AsyncSandboxClient) -> None:
        task = asyncio.create_task(block(client))
        while not engine.containers:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.containers == {}

    aio(main)


def test_a_task_group_cancels_its_calls(aio: Aio, engine: FakeEngine) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise KeyError

    async def main(client: AsyncSandboxClient) -> None:
        async with client.sandbox() as sb:
            engine.faults = Faults(create_delay_s=0.3)
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
                    for _ in range(5):
                        group.create_task(client.create_sandbox())
                    group.create_task(sb.run("sleep 1000", timeout=0))
            assert [type(error) for error in caught.value.exceptions] == [KeyError]
            assert [each.name for each in await client.list_sandboxes()] == [sb.name]

    aio(main)


# -- loops -------------------------------------------------------------------------------------------------------------


def test_several_loops_share_a_client(engine: FakeEngine, state_dir: Path) -> None:
    client = AsyncSandboxClient(engine=engine, state_dir=state_dir)

    async def job(n: int) -> str:
        async with client.sandbox() as sb:
            results = await asyncio.gather(*(sb.run(f"echo {n}.{i}") for i in range(5)))
            return "".join(result.stdout for result in results)

    with ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(lambda n: asyncio.run(job(n)), range(12)))
    assert outputs == ["".join(f"{n}.{i}\n" for i in range(5)) for n in range(12)]
    asyncio.run(client.aclose())


def test_a_sandbox_outlives_its_loop(engine: FakeEngine, state_dir: Path) -> None:
    client = AsyncSandboxClient(engine=engine, state_dir=state_dir)
    sb = asyncio.run(_awaited(client.sandbox()))
    assert asyncio.run(sb.run("echo next loop")).stdout == "next loop\n"
    asyncio.run(client.aclose())


async def _awaited(creation: Awaitable[AsyncSandbox]) -> AsyncSandbox:
    return await creation


def test_the_end_of_a_loop_ends_its_calls(engine: FakeEngine, state_dir: Path) -> None:
    client = AsyncSandboxClient(engine=engine, state_dir=state_dir)
    sb = asyncio.run(_awaited(client.sandbox()))

    async def leave() -> None:
        asyncio.create_task(sb.run("sleep 1000", timeout=0))  # noqa: RUF006 - asyncio.run cancels it
        await asyncio.sleep(0.1)

    with bounded(5):
        asyncio.run(leave())
    (container,) = engine.containers.values()
    until(lambda: not container.processes)
    asyncio.run(client.aclose())


@pytest.mark.filterwarnings("ignore:.*was never retrieved", "ignore:.*Task was destroyed")
def test_a_loop_that_closes_over_its_calls_leaves_nothing(engine: FakeEngine, state_dir: Path) -> None:
    client = AsyncSandboxClient(engine=engine, state_dir=state_dir)
    made = Made()
    asyncio.run(_awaited(client.sandbox()))

    async def make() -> Made:
        await trio.sleep(0.3)
        return made

    loop = asyncio.new_event_loop()
    task = loop.create_task(client._call(make))
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()  # with the call under way, and nobody to tell
    assert made.discarded.wait(5)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()
    asyncio.run(client.aclose())


def test_a_dropped_call_is_interrupted(engine: FakeEngine, state_dir: Path) -> None:
    client = AsyncSandboxClient(engine=engine, state_dir=state_dir)
    cancelled = threading.Event()

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    loop = asyncio.new_event_loop()
    coroutine = client._call(work)

    async def first_steps() -> None:
        coroutine.send(None)  # as a task would, up to its first wait
        await asyncio.sleep(0.1)

    loop.run_until_complete(first_steps())
    coroutine.close()
    assert cancelled.wait(5)
    loop.run_until_complete(client.aclose())
    loop.close()


# -- the wrong place ---------------------------------------------------------------------------------------------------


async def test_under_trio_names_the_trio_client() -> None:
    with pytest.raises(RuntimeError, match="under trio use `from sandboxrt import AsyncSandboxClient`"):
        async with AsyncSandboxClient(mode="embedded"):
            pass


def test_without_a_loop_names_the_blocking_client() -> None:
    coroutine = AsyncSandboxClient(mode="embedded").list_sandboxes()
    with pytest.raises(RuntimeError, match="in blocking code use `from sandboxrt import SandboxClient`"):
        coroutine.send(None)


def test_the_trio_client_under_asyncio_names_this_one() -> None:
    async def main() -> None:
        async with sandboxrt.AsyncSandboxClient(mode="embedded"):
            pass

    with pytest.raises(RuntimeError, match=r"under asyncio use `from sandboxrt\.aio import AsyncSandboxClient`"):
        asyncio.run(main())


def test_the_trio_client_without_a_loop_names_the_blocking_one() -> None:
    coroutine = sandboxrt.AsyncSandboxClient(mode="embedded").__aenter__()
    with pytest.raises(RuntimeError, match="in blocking code use `from sandboxrt import SandboxClient`"):
        coroutine.send(None)
