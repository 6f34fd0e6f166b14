"""Signed claims: who may reach which port of which sandbox, and which file, until when.

The tokens are JSON Web Tokens (HS256). A key's id stands in the header, so that keys can change while tokens that an
older one has signed are still good. Clocks and randomness are the caller's.

Source: protocol.md §2.6, §2.7, §6; RFC 7519. The claims are ours: clients never look into a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import attrs
import jwt
from jwt.types import Options

__all__ = [
    "DownloadClaims",
    "ServiceClaims",
    "TokenError",
    "TokenExpiredError",
    "TokenKey",
    "check_download",
    "check_service",
    "issue_download",
    "issue_service",
]

_ALGORITHM: Final = "HS256"
_SERVICE: Final = "service"
_DOWNLOAD: Final = "download"
_MAX_CHARS: Final = 16 * 1024
_UNCHECKED: Final[Options] = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
"""What the library would check against a clock of its own."""

Disposition = Literal["attachment", "inline"]


class TokenError(Exception):
    """No token of ours: unreadable, altered, signed with another key, or made for something else."""


class TokenExpiredError(TokenError):
    """It was good until it expired."""


@attrs.frozen
class TokenKey:
    """What tokens are signed with.

    Attributes:
        id: Its name, which the tokens show.
        secret: 32 random bytes.
    """

    id: str
    secret: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class ServiceClaims:
    """The right to talk to one port of one sandbox.

    Attributes:
        sandbox_id: Which sandbox.
        port: Which port.
        tenant: Whose sandbox it is.
        expires_at: Until when, in seconds since the epoch.
    """

    sandbox_id: str
    port: int
    tenant: str
    expires_at: float


@attrs.frozen(kw_only=True)
class DownloadClaims:
    """The right to get one file of one sandbox, in one way.

    Attributes:
        sandbox_id: Which sandbox.
        path: Which file, as the one who made the link wrote it.
        tenant: Whose sandbox it is.
        content_type: The media type that it is given; guessed from its name where ``None``.
        disposition: Whether a browser saves it or shows it.
        expires_at: Until when, in seconds since the epoch; ``None`` = for ever.
    """

    sandbox_id: str
    path: str
    tenant: str
    content_type: str | None = None
    disposition: Disposition = "attachment"
    expires_at: float | None = None


def issue_service(claims: ServiceClaims, key: TokenKey) -> str:
    """A token for a service."""
    return _sign(
        key, _SERVICE, sid=claims.sandbox_id, port=claims.port, tenant=claims.tenant, exp=round(claims.expires_at, 3)
    )


def check_service(token: str, keys: Iterable[TokenKey], now: float) -> ServiceClaims:
    """What a token for a service claims.

    Raises:
        TokenExpiredError: It was good until before ``now``.
        TokenError: It never was.
    """
    body = _verified(token, keys, _SERVICE)
    match body:
        case {"sid": str(sandbox_id), "port": int(port), "tenant": str(tenant), "exp": int() | float() as expires_at}:
            if now >= expires_at:
                raise TokenExpiredError
            return ServiceClaims(sandbox_id=sandbox_id, port=port, tenant=tenant, expires_at=expires_at)
    raise TokenError("the token has no such claims")


def issue_download(claims: DownloadClaims, key: TokenKey) -> str:
    """A token for a file."""
    return _sign(
        key,
        _DOWNLOAD,
        sid=claims.sandbox_id,
        path=claims.path,
        tenant=claims.tenant,
        type=claims.content_type,
        shown=claims.disposition,
        exp=None if claims.expires_at is None else round(claims.expires_at, 3),
    )


def check_download(token: str, keys: Iterable[TokenKey], now: float) -> DownloadClaims:
    """What a token for a file claims. Raises as :func:`check_service`."""
    body = _verified(token, keys, _DOWNLOAD)
    expires_at, content_type = body.get("exp"), body.get("type")
    if isinstance(expires_at, int | float) and now >= expires_at:
        raise TokenExpiredError
    match body:
        case {
            "sid": str(sandbox_id),
            "path": str(path),
            "tenant": str(tenant),
            "shown": "attachment" | "inline" as disposition,
        } if isinstance(expires_at, int | float | None) and isinstance(content_type, str | None):
            return DownloadClaims(
                sandbox_id=sandbox_id,
                path=path,
                tenant=tenant,
                content_type=content_type,
                disposition=disposition,
                expires_at=expires_at,
            )
    raise TokenError("the token has no such claims")


def _sign(key: TokenKey, purpose: str, **claims: Any) -> str:
    body = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode({"aud": purpose, **body}, key.secret, algorithm=_ALGORITHM, headers={"kid": key.id})


def _verified(token: str, keys: Iterable[TokenKey], purpose: str) -> Mapping[str, Any]:
    if not token.isascii() or len(token) > _MAX_CHARS:
        raise TokenError("that is no token")
    try:
        name = jwt.get_unverified_header(token).get("kid")
        key = next((key for key in keys if key.id == name), None)
        if key is None:
            raise TokenError("the token was signed with a key that is not known here, or no longer")
        body: Mapping[str, Any] = jwt.decode(
            token, key.secret, algorithms=[_ALGORITHM], audience=purpose, options=_UNCHECKED
        )
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise TokenError(str(error)) from None
    return body
