"""Taking the files out of a sandbox that cannot be started any more, because its disk is damaged."""

from __future__ import annotations

from pathlib import Path

from sandboxrt.engine.capture import DISK_IMAGE
from sandboxrt.engine.damage import Rescued, rescue
from sandboxrt.engine.loops import loops_below
from sandboxrt.errors import ResourceInUseError, ResourceNotFoundError, SandboxOperationError, ValidationError
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.store import Store
from sandboxrt.threads import run_blocking

__all__ = ["rescue_sandbox"]


async def rescue_sandbox(store: Store, name_or_id: str, target: Path, tenant: str = "") -> Rescued:
    """Copy what was written in a sandbox that does not run, as far as its disk can be read. Nothing of it is changed.

    Args:
        store: The records, open; the sandbox may belong to a living server.
        name_or_id: Which; of any tenant by id.
        target: The folder to make. ``files`` in it has what was changed since the sandbox's snapshot, by its place
            inside, and ``tmp`` its ``/tmp``.
        tenant: Whose, for a name.

    Raises:
        ResourceNotFoundError: There is no such sandbox, or it has no files.
        ResourceInUseError: It runs; stop it first.
        ValidationError: The target exists.
        SandboxOperationError: Nothing can be read, or it has no disk of its own.

    Cancellation: The copy goes on to its end.
    """
    row = await store.find_sandbox(name_or_id, tenant)
    folder = sandbox_dir(store.state_dir, row.engine_id)
    image = folder / DISK_IMAGE

    def copy() -> Rescued:
        if not folder.is_dir():
            raise ResourceNotFoundError(f"Sandbox '{row.name}' has no files any more", "sandbox")
        if not image.exists():
            raise SandboxOperationError(
                f"Sandbox '{row.name}' has no disk of its own; its files are below {folder}", "read", "NoDisk"
            )
        if loops_below(folder):
            raise ResourceInUseError(f"Sandbox '{row.name}' runs; stop it first", "sandbox", (row.owner_id,))
        try:
            return rescue(image, target, row.uid_base)
        except FileExistsError:
            raise ValidationError(f"{target} exists; name a folder that does not", "target") from None
        except OSError as error:
            raise SandboxOperationError(f"Cannot write to {target}: {error}", "read", "OSError") from error

    return await run_blocking(None, copy)
