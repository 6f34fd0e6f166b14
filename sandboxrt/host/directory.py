"""Which sandboxes a host has, by name, by id and by tenant: the one place that adds and removes them.

Everything that is done in a sandbox asks by its id first, so no way to find one depends on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from sandboxrt.host.sandbox import Sandbox

__all__ = ["Directory"]


class Directory:
    """The sandboxes of a host."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, str], Sandbox] = {}
        self._by_id: dict[str, Sandbox] = {}
        self._names: dict[str, dict[Sandbox, set[str]]] = {}
        """By tenant. One that is being renamed has two."""

    def __repr__(self) -> str:
        return f"<Directory of {len(self)} sandboxes>"

    def __len__(self) -> int:
        return sum(map(len, self._names.values()))

    def __iter__(self) -> Iterator[Sandbox]:
        """All of them; oldest first within a tenant."""
        for sandboxes in self._names.values():
            yield from sandboxes

    def of_tenant(self, tenant: str) -> tuple[Sandbox, ...]:
        """A tenant's, oldest first, whatever they are called meanwhile."""
        return tuple(self._names.get(tenant, ()))

    def named(self, name: str, tenant: str) -> Sandbox | None:
        """A tenant's of that name."""
        return self._by_name.get((tenant, name))

    def with_id(self, sandbox_id: str) -> Sandbox | None:
        """The one of that id, whoever's."""
        return self._by_id.get(sandbox_id)

    def add(self, sandbox: Sandbox) -> None:
        """Have it found by its name, which is free, and by its id where it has one."""
        self._names.setdefault(sandbox.request.tenant, {})[sandbox] = set()
        self.reserve(sandbox, sandbox.name)
        self.identify(sandbox)

    def identify(self, sandbox: Sandbox) -> None:
        """Have it found by its id, from when it has one."""
        if sandbox.id:
            self._by_id[sandbox.id] = sandbox

    def reserve(self, sandbox: Sandbox, name: str) -> bool:
        """Have it found by another name, too, if that is free."""
        tenant = sandbox.request.tenant
        if (tenant, name) in self._by_name:
            return False
        self._by_name[tenant, name] = sandbox
        self._names[tenant][sandbox].add(name)
        return True

    def release(self, sandbox: Sandbox, name: str) -> None:
        """Have it found by that name no more. Harmless when it is not."""
        tenant = sandbox.request.tenant
        names = self._names.get(tenant, {}).get(sandbox, set())
        if name in names:
            names.remove(name)
            del self._by_name[tenant, name]

    def remove(self, sandbox: Sandbox) -> None:
        """Have it found no more, whatever it is called meanwhile. Idempotent."""
        tenant = sandbox.request.tenant
        for name in self._names.get(tenant, {}).pop(sandbox, ()):
            del self._by_name[tenant, name]
        self._by_id.pop(sandbox.id, None)
        if not self._names.get(tenant, True):
            del self._names[tenant]
