"""Blocking and asyncio clients of one process share a host; other processes see whose sandboxes there are."""

from __future__ import annotations

from pathlib import Path

from tests.bridge.kit import Program

CELL = """
client = sandboxrt.SandboxClient(engine=engine, state_dir={folder!r})
sandbox = client.create_sandbox(name="mine")
print(sandbox.run("echo well").stdout, end="")
"""


def test_both_facades_use_each_others_sandboxes(tmp_path: Path) -> None:
    with Program.start(
        f"""
        import asyncio
        from sandboxrt.aio import AsyncSandboxClient
        async def other():
            async with AsyncSandboxClient(engine=engine, state_dir={str(tmp_path)!r}) as client:
                print([sandbox.name for sandbox in await client.list_sandboxes()])
                print((await (await client.get_sandbox("mine")).run("echo used")).stdout, end="")
                await client.create_sandbox(name="goes")
        with fake_engine() as engine:
            with sandboxrt.SandboxClient(engine=engine, state_dir={str(tmp_path)!r}) as client:
                client.create_sandbox(name="mine")
                asyncio.run(other())
                print([(sandbox.name, sandbox.owner) for sandbox in client.list_sandboxes()])
        """
    ) as program:
        assert program.finish() == "['mine']\nused\n[('mine', None)]\n"


def test_a_cell_of_a_notebook_that_runs_again(tmp_path: Path) -> None:
    with Program.start(
        f"""
        import gc
        cell = {CELL.format(folder=str(tmp_path))!r}
        with fake_engine() as engine:
            for _ in range(3):
                exec(cell)
                gc.collect()
                time.sleep(0.2)  # for the client before, which nothing refers to, to leave
                print(sandbox.run("echo still").stdout, end="")
            client.close()
        """
    ) as program:
        assert program.finish() == "well\nstill\n" * 3


def test_a_client_that_is_dropped_takes_its_sandboxes_along_and_says_so(tmp_path: Path) -> None:
    with Program.start(
        f"""
        import gc
        with fake_engine() as engine:
            stays = sandboxrt.SandboxClient(engine=engine, state_dir={str(tmp_path)!r})
            stays.list_sandboxes()
            sandboxrt.SandboxClient(engine=engine, state_dir={str(tmp_path)!r}).create_sandbox(name="mine")
            gc.collect()
            while stays.list_sandboxes():
                time.sleep(0.01)
            try:
                stays.get_sandbox("mine")
            except sandboxrt.ResourceNotFoundError as error:
                print(error)
            stays.close()
        """
    ) as program:
        assert program.finish() == (
            "Sandbox 'mine' not found: it went with the client that created it, which was closed or no longer"
            " referred to\n"
        )


def test_other_processes_are_named(tmp_path: Path) -> None:
    """A forked child is another process, too, though it began as a copy of this one."""
    with Program.start(
        f"""
        with fake_engine() as engine:
            client = sandboxrt.SandboxClient(engine=engine, state_dir={str(tmp_path)!r})
            client.create_sandbox(name="parents")
            parent, child = os.getpid(), os.fork()
            if child == 0:
                with fake_engine() as fresh:
                    with sandboxrt.SandboxClient(engine=fresh, state_dir={str(tmp_path)!r}) as own:
                        own.create_sandbox(name="childs")
                        found = {{sandbox.name: sandbox.owner for sandbox in own.list_sandboxes(elsewhere=True)}}
                        print(found["childs"], found["parents"].pid == parent)
                        try:
                            own.get_sandbox("parents")
                        except sandboxrt.ResourceInUseError as error:
                            print(str(error).replace(str(parent), "N"), error.used_by == (f"-c, pid {{parent}}",))
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(child, 0)
            print([sandbox.name for sandbox in client.list_sandboxes()])
            client.close()
        """
    ) as program:
        assert program.finish() == (
            "None True\n"
            "Sandbox 'parents' belongs to another running process (-c, pid N), which alone can use it;"
            " run a server to share sandboxes True\n"
            "['parents']\n"
        )
