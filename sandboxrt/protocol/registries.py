"""Named registries as they are asked for, and the rules that hold wherever they are kept.

Source: protocol.md §2.8; the rules are ours.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, Literal

import attrs

from sandboxrt.models import Registry
from sandboxrt.protocol.image_names import DOCKER_HUB, RegistryAddress, parse_registry_url
from sandboxrt.protocol.rest_fields import invalid

__all__ = [
    "CreateRegistry",
    "ListRegistries",
    "RegistryLogin",
    "UpdateRegistry",
    "changed",
    "check_registry",
    "cursor_after",
    "cursor_start",
    "provider_of",
]

AuthType = Literal["DOCKER_CONFIG", "AWS_ROLE"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_LOGIN: Final = 4096
_PROVIDERS: Final = (
    (re.compile(r"ghcr\.io"), "GHCR"),
    (re.compile(r"(?:.*\.dkr\.ecr\..*\.amazonaws\.com(?:\.cn)?|public\.ecr\.aws)"), "ECR"),
    (re.compile(r"(?:.*-docker\.pkg\.dev|(?:.*\.)?gcr\.io)"), "GAR"),
    (re.compile(re.escape(DOCKER_HUB)), "DOCKER_HUB"),
    (re.compile(r"(?:.*\.)?goharbor\.io"), "HARBOR"),
)


@attrs.frozen(kw_only=True)
class CreateRegistry:
    """Make a named registry; the fields are those of :class:`~sandboxrt.models.Registry`.

    Attributes:
        password: Never shown, stored encrypted.
        tenant: Whose it is.
        by: The id of the key that asks, for ``created_by``.
    """

    name: str
    url: str
    auth_type: str | None = None
    aws_role_arn: str | None = None
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    tenant: str = ""
    by: str | None = None


@attrs.frozen(kw_only=True)
class UpdateRegistry:
    """Change a named registry; what is ``None`` stays. The fields are those of :class:`CreateRegistry`."""

    name: str | None = None
    url: str | None = None
    auth_type: str | None = None
    aws_role_arn: str | None = None
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    by: str | None = None


@attrs.frozen(kw_only=True)
class ListRegistries:
    """List registries, newest first: by ``cursor`` and ``page_size`` where one of them is given, else by offset.

    Attributes:
        name_contains: Only names that contain this, upper and lower case alike.
        limit: 1 to 500; 50 where left out.
        offset: How many to pass over.
        page_size: 1 to 100; 20 where left out.
        cursor: ``next_cursor`` of the page before.
        tenant: Whose.
    """

    name_contains: str | None = None
    limit: int | None = None
    offset: int | None = None
    page_size: int | None = None
    cursor: str | None = None
    tenant: str = ""


@attrs.frozen
class RegistryLogin:
    """A registry with the password that is stored for it, if one is: for whoever fetches an image."""

    registry: Registry
    password: str | None = attrs.field(repr=False)

    @property
    def address(self) -> RegistryAddress:
        """Where it is."""
        return parse_registry_url(self.registry.url)


def check_registry(request: CreateRegistry) -> RegistryAddress:
    """Where a new registry is; what cannot be is refused.

    Raises:
        ValidationError: With ``field``.
    """
    _check_auth(request.auth_type, request.aws_role_arn)
    _check_name(request.name)
    _check_login("username", request.username)
    _check_login("password", request.password)
    if (request.username is None) != (request.password is None):
        missing, given = ("username", "password") if request.username is None else ("password", "username")
        raise invalid(f"is required with {given}", missing)
    return _address(request.url)


def changed(current: Registry, change: UpdateRegistry, *, has_password: bool) -> Registry:
    """A registry after a change, without its time stamps.

    A stored password was given for one host: whoever moves the registry to another one has to give it again. Anybody
    with a key of the tenant could otherwise have it sent to a host of their own.

    Raises:
        ValidationError: With ``field``.
    """
    _check_auth(change.auth_type, change.aws_role_arn)
    if change.name is not None:
        _check_name(change.name)
    _check_login("username", change.username)
    _check_login("password", change.password)
    url = current.url if change.url is None else change.url
    moved = _address(url).origin != _address(current.url).origin
    if moved and has_password and change.password is None:
        raise invalid("is required with a url of another host or scheme: the stored one was given for this", "password")
    username = current.username if change.username is None else change.username
    if username is None and change.password is not None:
        raise invalid("is required with password", "username")
    if username is not None and change.password is None and not has_password:
        raise invalid("is required with username", "password")
    return attrs.evolve(
        current,
        name=current.name if change.name is None else change.name,
        url=url,
        username=username,
        provider=provider_of(url),
    )


def provider_of(url: str) -> str:
    """What kind of registry has that address, as its host tells."""
    host = _address(url).host.partition(":")[0].lower()
    return next((name for pattern, name in _PROVIDERS if pattern.fullmatch(host)), "DOCKER_REGISTRY")


def cursor_after(place: int) -> str:
    """The cursor of the page after the registry at that place of the list."""
    return base64.urlsafe_b64encode(f"r{place}".encode()).decode().rstrip("=")


def cursor_start(cursor: str) -> int:
    """The place that a cursor goes on after.

    Raises:
        ValidationError: It is none of :func:`cursor_after`.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (ValueError, binascii.Error):
        text = ""
    if not re.fullmatch(r"r[0-9]{1,18}", text, re.ASCII) or cursor != cursor_after(int(text[1:])):
        raise invalid("must be the next_cursor of an answer before", "query", "cursor")
    return int(text[1:])


def _check_auth(auth_type: str | None, aws_role_arn: str | None) -> None:
    if auth_type not in (None, "DOCKER_CONFIG"):
        if auth_type == "AWS_ROLE":
            raise invalid("AWS_ROLE is not supported here: use DOCKER_CONFIG with username and password", "auth_type")
        raise invalid("must be DOCKER_CONFIG", "auth_type")
    if aws_role_arn:
        raise invalid("is not supported here; leave it out", "aws_role_arn")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise invalid("must have 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit", "name")


def _check_login(field: str, text: str | None) -> None:
    if text is None:
        return
    if not 0 < len(text) <= _MAX_LOGIN:
        raise invalid(f"must have 1 to {_MAX_LOGIN} characters", field)
    if any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in text):
        raise invalid("must not contain control characters", field)
    if field == "username" and ":" in text:
        raise invalid("must not contain ':', which separates it from the password where it is sent", field)


def _address(url: str) -> RegistryAddress:
    try:
        return parse_registry_url(url)
    except ValueError as error:
        raise invalid(str(error), "url") from None
