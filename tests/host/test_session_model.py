"""One command session against a plain model: whatever its readers do, they see one stream and one end."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import attrs
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrt.host.attachment import AnyAttachment
from sandboxrt.host.host import Host, HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.exec import CloseStdin, ErrorFrame, Execute, Exit, Input, Kill, Output, Reconnect
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state

# Every operation happens at a multiple of ten seconds; the limits fall in between.
STEP_S = 10.0
TIMEOUT_S = 95.0
IDLE_S = 35.0
FIRST = Execute(
    command="echo begin; cat; echo end >&2; exit 5",
    command_id="c",
    timeout_s=TIMEOUT_S,
    idle_timeout_s=IDLE_S,
    ttl_s=-1,
)
ENDS: dict[str, Exit | str] = {
    "killed": Exit(137),
    "idle": Exit(137),
    "input ended": Exit(5),
    "timed out": "CommandTimeout",
}


@attrs.define(eq=False)
class Reader:
    """One attachment and what it has seen; nothing may be missing, repeated, or come after the end."""

    link: AnyAttachment
    text: str = ""
    end: Exit | ErrorFrame | None = None
    paused: bool = False

    async def catch_up(self) -> None:
        """Take all that is there."""
        while self.end is None:
            with trio.move_on_after(0.01) as scope:
                frame = await self.link.receive()
                if isinstance(frame, Output) and frame.stream == "stdout":
                    assert frame.offset == len(self.text.encode())
                    self.text += frame.data
                elif isinstance(frame, Exit | ErrorFrame):
                    self.end = frame
            if scope.cancelled_caught:
                return


class Session:
    """The host's session and the model of it, moved together."""

    def __init__(self, host: Host, first: AnyAttachment) -> None:
        self.host = host
        self.readers = [Reader(first)]
        self.now = 0.0
        self.idle_since = math.inf
        self.text = "begin\n"
        self.end = ""

    def reader(self, number: int) -> Reader | None:
        return self.readers[number % len(self.readers)] if self.readers else None

    def ends_with(self, why: str) -> None:
        self.end = self.end or why

    async def attach(self, number: int, text: str) -> None:
        self.readers.append(Reader(await self.host.attach("box", Reconnect("c"))))
        self.idle_since = math.inf

    async def detach(self, number: int, text: str) -> None:
        if reader := self.reader(number):
            self.readers.remove(reader)
            await reader.link.aclose()
            if not self.readers:
                self.idle_since = self.now

    async def pause(self, number: int, text: str) -> None:
        if reader := self.reader(number):
            reader.paused = not reader.paused

    async def input(self, number: int, text: str) -> None:
        if reader := self.reader(number):
            await reader.link.send(Input(text))
            if not self.end:
                self.text += text

    async def close_stdin(self, number: int, text: str) -> None:
        if reader := self.reader(number):
            await reader.link.send(CloseStdin())
            self.ends_with("input ended")

    async def kill(self, number: int, text: str) -> None:
        if reader := self.reader(number):
            await reader.link.send(Kill())
            self.ends_with("killed")

    async def nothing(self, number: int, text: str) -> None:
        pass

    async def pass_time(self, began: float) -> None:
        self.now += STEP_S
        await trio.sleep_until(began + self.now)
        idle_at = self.idle_since + IDLE_S
        if min(idle_at, TIMEOUT_S) < self.now:
            self.ends_with("idle" if idle_at < TIMEOUT_S else "timed out")
        for reader in self.readers:
            if not reader.paused:
                await reader.catch_up()
                self.check(reader)

    def check(self, reader: Reader) -> None:
        assert reader.text == self.text
        if not self.end:
            assert reader.end is None
            return
        expected = ENDS[self.end]
        assert reader.end == expected or getattr(reader.end, "error_type", None) == expected

    async def finish(self, began: float) -> None:
        await self.attach(0, "")
        await self.kill(-1, "")
        await self.attach(0, "")
        for reader in self.readers:
            reader.paused = False
        await self.pass_time(began)
        for reader in self.readers:
            await reader.link.aclose()


OPERATIONS = [
    Session.attach,
    Session.detach,
    Session.pause,
    Session.input,
    Session.input,
    Session.close_stdin,
    Session.kill,
    Session.nothing,
    Session.nothing,
]
steps = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 3), st.text("aé€😀\n", min_size=1, max_size=5)), max_size=16
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_session_follows_its_model(steps) -> None:  # type: ignore[no-untyped-def]
    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = HostConfig(state_dir=Path(folder))
            async with FakeEngine() as engine, open_host(config, engine=engine, state=memory_state()) as host:
                await host.create_sandbox(CreateSandbox(name="box"))
                began = trio.current_time()
                session = Session(host, await host.attach("box", FIRST))
                await session.readers[0].catch_up()
                for operation, number, text in steps:
                    await operation(session, number, text)
                    await session.pass_time(began)
                await session.finish(began)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
