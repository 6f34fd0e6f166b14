"""The classes of ``sandboxrt.client.registries``, on asyncio.

Generated from sandboxrt/client/registries.py by tools/gen_facades.py: do not edit.
"""

from __future__ import annotations

from collections.abc import Mapping

from sandboxrt.bridge.loops import AsyncioFacade
from sandboxrt.client import registries as _trio_registries
from sandboxrt.models import Registry, RegistryPage

__all__ = ["AsyncRegistries"]


class AsyncRegistries(AsyncioFacade[_trio_registries.AsyncRegistries]):
    """The registries that images are fetched from with a login, by names of one's own.

    Make one, and give its ``id`` to ``create_snapshot`` as ``registry_id``. Its password is stored encrypted, never
    shown, and sent to that registry alone.

    Source: protocol.md §2.8.
    """

    async def create(
        self,
        *,
        name: str,
        url: str,
        auth_type: str | None = None,
        aws_role_arn: str | None = None,
        password: str | None = None,
        username: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Registry:
        """Make a registry.

        Args:
            name: Unique among one's own: 1 to 128 letters, digits, ``.``, ``_`` or ``-``.
            url: ``HOST[:PORT][/PATH]``, with ``https://`` if you like; ``http://`` for one without TLS.
            auth_type: ``"DOCKER_CONFIG"``, a user and a password, if left out; other servers know ``"AWS_ROLE"``.
            aws_role_arn: The role of the latter.
            password: Of the user; left out with ``username`` for a registry that asks for no login.
            username: Who logs in.
            headers: For a server.

        Raises:
            ResourceAlreadyExistsError: There is one of that name.
            ValidationError: A value cannot be; ``field`` names it.
        """
        return await self._call(
            lambda: self._inner.create(
                name=name,
                url=url,
                auth_type=auth_type,
                aws_role_arn=aws_role_arn,
                password=password,
                username=username,
                headers=headers,
            )
        )

    async def retrieve(self, name: str, *, headers: Mapping[str, str] | None = None) -> Registry:
        """A registry by name or id. Raises :class:`~sandboxrt.errors.ResourceNotFoundError`."""
        return await self._call(lambda: self._inner.retrieve(name, headers=headers))

    async def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        name_contains: str | None = None,
        offset: int | None = None,
        page_size: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RegistryPage:
        """A page of registries, newest first: by ``cursor`` and ``page_size`` where one is given, else by ``offset``.

        Args:
            cursor: ``next_cursor`` of the page before.
            limit: 1 to 500; 50 if left out.
            name_contains: Part of the name, whatever its case.
            offset: How many to pass over.
            page_size: 1 to 100; 20 if left out.
            headers: For a server.

        Raises:
            SandboxClientError: A value is out of range, or no cursor.
        """
        return await self._call(
            lambda: self._inner.list(
                cursor=cursor,
                limit=limit,
                name_contains=name_contains,
                offset=offset,
                page_size=page_size,
                headers=headers,
            )
        )

    async def update(
        self,
        path_name: str,
        *,
        auth_type: str | None = None,
        aws_role_arn: str | None = None,
        body_name: str | None = None,
        password: str | None = None,
        url: str | None = None,
        username: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Registry:
        """Change a registry; what is left out stays. Builds that go on keep the login that they began with.

        Args:
            path_name: Its name or id.
            auth_type: As of :meth:`create`; ``aws_role_arn`` likewise.
            aws_role_arn: See there.
            body_name: Its new name.
            password: The new password.
            url: Where it is now; another host or scheme needs the password again.
            username: Who logs in.
            headers: For a server.

        Raises:
            ResourceNotFoundError: There is no such registry.
            ResourceNameConflictError: Another one has the new name.
            ValidationError: A value cannot be; ``field`` names it.
        """
        return await self._call(
            lambda: self._inner.update(
                path_name,
                auth_type=auth_type,
                aws_role_arn=aws_role_arn,
                body_name=body_name,
                password=password,
                url=url,
                username=username,
                headers=headers,
            )
        )

    async def delete(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Forget a registry and its password; snapshots that were built with it stay.

        Raises:
            ResourceNotFoundError: There is no such registry.
            ResourceInUseError: Snapshots are being built with it.
        """
        await self._call(lambda: self._inner.delete(name, headers=headers))
