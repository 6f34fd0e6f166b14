"""How sandboxes are found: by name and id, through every change, and without a look at the others."""

from __future__ import annotations

import pytest
import trio

from sandboxrt.errors import ResourceNotFoundError
from sandboxrt.host.host import Host
from sandboxrt.host.sandbox import Sandbox
from sandboxrt.protocol.rest import CreateSandbox, UpdateSandbox
from sandboxrt.testing.state import MemoryRecords
from tests.host.conftest import OpenFake

MANY = 100


async def test_no_look_at_the_others(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_host(box=False) as (host, _):
        ids = [(await host.create_sandbox(CreateSandbox(name=f"box-{n}"))).id for n in range(MANY)]
        looks = 0
        true_id = Sandbox.id.fget
        assert true_id is not None

        def counting(self: Sandbox) -> str:
            nonlocal looks
            looks += 1
            return str(true_id(self))

        monkeypatch.setattr(Sandbox, "id", property(counting))
        for reference in (ids[0], ids[-1], "box-0", f"box-{MANY - 1}"):
            await host.find(reference)
        with pytest.raises(ResourceNotFoundError):
            await host.find("00000000-0000-4000-8000-000000000000")
        assert looks <= 5


async def test_by_id_and_name_through_its_life(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host() as (host, _):
        other = await host.create_sandbox(CreateSandbox(name="other", wait_for_ready=False))
        assert (await host.find(other.id)).name == "other"
        await host.update_sandbox("box", UpdateSandbox(new_name="first"))
        assert [info.name for info in await host.list_sandboxes()] == ["first", "other"]
        await _is_missing(host, "box")
        assert (await host.get_sandbox("first")).id == (await host.find("first")).id
        await host.delete_sandbox(other.id)
        await _is_missing(host, other.id)
        again = await host.create_sandbox(CreateSandbox(name="other"))
        assert again.id != other.id
        assert (await host.find(again.id)).name == "other"


async def test_one_that_is_deleted_while_it_is_renamed_leaves_no_name(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = MemoryRecords.update_sandbox

    async def slow(self: MemoryRecords, name_or_id: str, **changes: object) -> object:
        row = await change(self, name_or_id, **changes)  # type: ignore[arg-type]
        await trio.sleep(10)
        return row

    monkeypatch.setattr(MemoryRecords, "update_sandbox", slow)
    async with fake_host() as (host, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.update_sandbox, "box", UpdateSandbox(new_name="new"))
            await trio.sleep(1)
            await host.delete_sandbox("box")
        for name in ("box", "new"):
            await _is_missing(host, name)
            await host.create_sandbox(CreateSandbox(name=name))
        assert len(await host.list_sandboxes()) == 2


async def _is_missing(host: Host, reference: str) -> None:
    with pytest.raises(ResourceNotFoundError):
        await host.find(reference)
