"""Named registries in a state folder: passwords are not readable there, and are lost with their key alone."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest
import trio

from sandboxrt.errors import (
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
)
from sandboxrt.protocol.registries import CreateRegistry, UpdateRegistry
from sandboxrt.store import RegistryRecords, Store
from sandboxrt.store.vault import KEY_FILE, SealError, Vault

PASSWORD = "correct horse battery staple"
INTERNAL = CreateRegistry(
    name="internal", url="registry.example", username="robot", password=PASSWORD, tenant="acme", by="key-1"
)


async def test_a_password_is_sealed_and_comes_back_after_a_restart(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        made = await RegistryRecords(store).add(INTERNAL)
        assert (made.name, made.username, made.provider, made.created_by) == (
            "internal",
            "robot",
            "DOCKER_REGISTRY",
            "key-1",
        )
        # The log is the newest part of the database while it is open.
        contents = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"internal" in contents and PASSWORD.encode() not in contents
    contents = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"internal" in contents and PASSWORD.encode() not in contents
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if KEY_FILE in path.name] == [KEY_FILE]
    async with Store.open(tmp_path) as store:
        records = RegistryRecords(store)
        login = await records.login(made.id, "acme")
        assert (login.registry, login.password) == (made, PASSWORD)
        assert PASSWORD not in repr(login) and PASSWORD not in repr(made)


async def test_without_a_login_there_is_no_key(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        records = RegistryRecords(store)
        made = await records.add(CreateRegistry(name="open", url="registry.example"))
        assert (await records.login(made.id, "")).password is None
    assert not (tmp_path / KEY_FILE).exists()


@pytest.mark.parametrize("key", ["missing", "other", "broken"])
async def test_a_key_that_is_lost(tmp_path: Path, key: str) -> None:
    async with Store.open(tmp_path) as store:
        made = await RegistryRecords(store).add(INTERNAL)
    path = tmp_path / KEY_FILE
    good = path.read_bytes()
    path.unlink()
    if key == "other":
        Vault(tmp_path).seal(b"something")
    elif key == "broken":
        path.write_bytes(b"no key")
    async with Store.open(tmp_path) as store:
        records = RegistryRecords(store)
        with pytest.raises(ResourceCreationError, match=f"'internal' cannot be read.*{KEY_FILE}.*update the") as raised:
            await records.login(made.id, "acme")
        assert raised.value.error_type == "RegistryCredentials"
        assert (await records.find("internal", "acme")) == made
        # Either of the ways out that the message names.
        if key == "broken":
            with pytest.raises(ResourceCreationError, match="cannot be stored"):
                await records.change("internal", "acme", UpdateRegistry(password="new"))
            path.write_bytes(good)
            assert (await records.login(made.id, "acme")).password == PASSWORD
        else:
            await records.change("internal", "acme", UpdateRegistry(password="new"))
            assert (await records.login(made.id, "acme")).password == "new"


async def test_a_password_is_bound_to_its_registry_and_host(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        records = RegistryRecords(store)
        one = await records.add(INTERNAL)
        two = await records.add(CreateRegistry(name="evil", url="evil.example", username="u", password="p"))
        with sqlite3.connect(tmp_path / "state.db") as db:
            db.execute(
                "UPDATE registries SET password = (SELECT password FROM registries WHERE id = ?) WHERE id = ?",
                (one.id, two.id),
            )
            db.execute("UPDATE registries SET url = 'evil.example' WHERE id = ?", (one.id,))
        db.close()
        for registry_id, tenant in ((one.id, "acme"), (two.id, "")):
            with pytest.raises(ResourceCreationError, match="for another registry"):
                await records.login(registry_id, tenant)


def test_two_that_make_a_key_agree(tmp_path: Path) -> None:
    sealed: list[bytes] = []
    start = threading.Barrier(8)

    def seal() -> None:
        start.wait(10)
        sealed.append(Vault(tmp_path).seal(b"content"))

    threads = [threading.Thread(target=seal) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [Vault(tmp_path).open(each) for each in sealed] == [b"content"] * 8
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    with pytest.raises(SealError, match="not the one"):
        Vault(tmp_path).open(sealed[0][:-8] + b"AAAAAAA=")


async def test_tenants_do_not_see_one_another(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        records = RegistryRecords(store)
        made = await records.add(INTERNAL)
        for reference in ("internal", made.id):
            for tenant in ("other", ""):
                with pytest.raises(ResourceNotFoundError):
                    await records.find(reference, tenant)
                with pytest.raises(ResourceNotFoundError):
                    await records.change(reference, tenant, UpdateRegistry(name="mine"))
                with pytest.raises(ResourceNotFoundError):
                    await records.remove(reference, tenant)
                with pytest.raises(ResourceNotFoundError):
                    await records.login(reference, tenant)
                assert await records.page(tenant, "", 10, 0, None) == ()
        # The same name is another registry's.
        await records.add(CreateRegistry(name="internal", url="registry.example", tenant="other"))
        await records.remove("internal", "other")
        assert (await records.find(made.id.upper(), "acme")) == made


async def test_names_are_unique_and_pages_stable(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        records = RegistryRecords(store)
        for number in range(5):
            await records.add(CreateRegistry(name=f"Reg-{number}", url="registry.example"))
        with pytest.raises(ResourceAlreadyExistsError):
            await records.add(CreateRegistry(name="Reg-3", url="registry.example"))
        with pytest.raises(ResourceNameConflictError):
            await records.change("Reg-2", "", UpdateRegistry(name="Reg-3"))
        assert (await records.change("Reg-2", "", UpdateRegistry(name="Reg-2", url="x.example"))).url == "x.example"

        async def names(*arguments: object) -> list[str]:
            return [registry.name for _, registry in await records.page("", *arguments)]  # type: ignore[arg-type]

        assert await names("", 10, 0, None) == ["Reg-4", "Reg-3", "Reg-2", "Reg-1", "Reg-0"]
        assert await names("reg", 2, 1, None) == ["Reg-3", "Reg-2"]
        ((place, _),) = await records.page("", "-3", 1, 0, None)
        assert await names("", 10, 0, place) == ["Reg-2", "Reg-1", "Reg-0"]


async def test_a_registry_in_use_stays(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        records = RegistryRecords(store)
        made = await records.add(INTERNAL)
        snapshot = await store.add_snapshot(name="app", kind="image", fs_capacity_bytes=1, registry_id=made.id)
        with pytest.raises(ResourceInUseError) as raised:
            await records.remove("internal", "acme")
        assert raised.value.used_by == ("app",)
        await store.finish_snapshot(snapshot.id, content="{}")
        await records.remove("internal", "acme")
        assert (await store.find_snapshot(snapshot.id)).public.registry_id == made.id
        with trio.fail_after(5), pytest.raises(ResourceNotFoundError):
            await records.login(made.id, "acme")
