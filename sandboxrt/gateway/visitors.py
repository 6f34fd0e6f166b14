"""Who may talk to a service: by its token in a header, or by the cookie that a browser got for it.

A cookie is sent by browsers whoever asks them to, so it counts only for what the service's own pages ask for, and for
what a user does with the address bar or a link (RFC 6265 §8.2 has the attack, Fetch Metadata the means).

Source: protocol.md §6; W3C Fetch Metadata Request Headers; RFC 6455 §10.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sandboxrt.gateway.refusals import RefusalError
from sandboxrt.protocol.tokens import ServiceClaims, TokenError, TokenExpiredError, TokenKey, check_service

__all__ = ["check_origin", "check_token"]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_EXPIRED: Final = "Service link has expired"
_UNKNOWN: Final = "Authentication required"


def check_token(
    tokens: Sequence[str], keys: Iterable[TokenKey], sandbox_id: str, port: int, now: float
) -> ServiceClaims:
    """What the first token claims that is good for this service.

    Raises:
        RefusalError: None is: 401 for none, forged and expired ones, 403 for those of another service.
    """
    if not tokens:
        raise RefusalError(401, "Unauthorized", f"{_UNKNOWN}: send the service's token, or open its browser_url")
    keys = tuple(keys)
    worst = RefusalError(401, "Unauthorized", f"{_UNKNOWN}: the token is not one of this server's")
    for token in tokens:
        try:
            claims = check_service(token, keys, now)
        except TokenExpiredError:
            worst = RefusalError(401, "Expired", f"{_EXPIRED}; get a new one from service()")
            continue
        except TokenError:
            continue
        if (claims.sandbox_id, claims.port) == (sandbox_id, port):
            return claims
        worst = RefusalError(403, "Forbidden", f"{_UNKNOWN}: the token is for another sandbox or port")
    raise worst


def check_origin(method: str, headers: Mapping[str, str], origin: str, *, upgrades: bool) -> None:
    """Refuse a request with a cookie that somebody else's page has asked for.

    Args:
        method: The request's.
        headers: Likewise; names in lower case.
        origin: The service's own origin.
        upgrades: Whether it asks to change the connection, to a WebSocket for instance: no browser keeps other pages
            from that.

    Raises:
        RefusalError: 403.
    """
    site = headers.get("sec-fetch-site")
    claimed = headers.get("origin")
    is_own = claimed is not None and claimed.lower() == origin.lower()
    if upgrades and not is_own:
        raise _foreign()
    # A page that shows nobody where it is says "null" for its origin, but the browser knows better.
    if site in ("same-origin", "none"):
        return
    if claimed is not None and not is_own:
        raise _foreign()
    if site is not None:
        visits = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if method in ("GET", "HEAD") and visits and not upgrades:
            return
        raise _foreign()
    if method not in _SAFE and claimed is None:
        raise RefusalError(
            403, "Forbidden", f"{_UNKNOWN}: without an Origin, send the token in its header, not as a cookie"
        )


def _foreign() -> RefusalError:
    return RefusalError(403, "Forbidden", f"{_UNKNOWN}: pages of other origins may not use this service's cookie")
