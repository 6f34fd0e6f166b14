"""What changes in a message's headers on its way through: pure functions over lists of headers.

To the service: nothing of the visitor's right to be there (token, cookie, API key), nothing that concerns one
connection only, and who asked from where, said by us alone. To the visitor: addresses as the visitor knows them, and no
cookie that reaches beyond this service.

Source: RFC 9110 §7.6; protocol.md §6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import attrs

from sandboxrt.protocol.service_urls import TOKEN_HEADER

__all__ = ["COOKIE", "SECURE_COOKIE", "Headers", "View", "cookies", "to_service", "to_visitor"]

Headers: TypeAlias = list[tuple[bytes, bytes]]

COOKIE: Final = "sandboxrt-service"
SECURE_COOKIE: Final = "__Host-sandboxrt-service"
"""The cookie's name where there is TLS: browsers then vouch that no other host has set it."""

_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding"
    b" upgrade".split()
)
_OURS: Final = frozenset(
    b"host expect forwarded x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-prefix x-forwarded-proto"
    b" x-forwarded-server x-real-ip x-langsmith-user-id x-langsmith-user-email x-langsmith-user-token".split()
) | {TOKEN_HEADER.encode()}
_API_KEY: Final = re.compile(rb"(?:bearer\s+)?srt_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", re.IGNORECASE)
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104  compared, not bound


@attrs.frozen(kw_only=True)
class View:
    """A service as one visitor sees it.

    Attributes:
        scheme: ``http`` or ``https``.
        host: The ``Host`` that the visitor sent.
        prefix: The path before the service's own; ``""`` on an origin of its own.
        port: The service's port inside.
        peer: The visitor's address.
    """

    scheme: str
    host: str
    prefix: str
    port: int
    peer: str


def to_service(headers: Iterable[tuple[bytes, bytes]], view: View, upgrade: bytes | None) -> Headers:
    """A request's headers as the service gets them; ``upgrade`` is what the visitor asks to change to."""
    given = list(headers)
    dropped = _HOP | _OURS | _named(given)
    is_chunked = any(name.lower() == b"transfer-encoding" for name, _ in given)
    # By path a service has the name that it gives itself, and whatever it makes of that is translated on the way out.
    found: Headers = [(b"Host", f"localhost:{view.port}".encode() if view.prefix else view.host.encode("latin-1"))]
    for name, value in given:
        lower = name.lower()
        if lower in dropped or (is_chunked and lower == b"content-length"):
            continue
        if lower in (b"x-api-key", b"authorization") and _API_KEY.fullmatch(value.strip()):
            continue
        kept = _other_cookies(value) if lower == b"cookie" else value
        if kept or not value:
            found.append((name, kept))
    if is_chunked:
        found.append((b"Transfer-Encoding", b"chunked"))
    found += [
        (b"X-Forwarded-For", view.peer.encode()),
        (b"X-Forwarded-Proto", view.scheme.encode()),
        (b"X-Forwarded-Host", view.host.encode("latin-1")),
    ]
    if view.prefix:
        found.append((b"X-Forwarded-Prefix", view.prefix.encode()))
    if upgrade is None:
        found.append((b"Connection", b"close"))
    else:
        found += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
    return found


def to_visitor(headers: Iterable[tuple[bytes, bytes]], view: View) -> Headers:
    """An answer's headers as the visitor gets them; how its body is framed is left to the connection."""
    given = list(headers)
    dropped = _HOP | _named(given)
    is_chunked = any(name.lower() == b"transfer-encoding" for name, _ in given)
    found: Headers = []
    for name, value in given:
        lower = name.lower()
        if lower in dropped or (is_chunked and lower == b"content-length"):
            continue
        if lower in (b"location", b"content-location"):
            found.append((name, _location(value, view)))
        elif lower != b"set-cookie":
            found.append((name, value))
        elif _cookie_name(value) not in (COOKIE, SECURE_COOKIE):
            found.append((name, _set_cookie(value, view.prefix)))
    return found


def cookies(headers: Iterable[tuple[bytes, bytes]], name: str) -> list[str]:
    """Every value of one cookie; another host of the same domain may have set one of that name too."""
    return [
        pair.strip().partition(b"=")[2].decode("latin-1")
        for header, value in headers
        if header.lower() == b"cookie"
        for pair in value.split(b";")
        if _cookie_name(pair) == name
    ]


def _named(headers: Headers) -> frozenset[bytes]:
    """The headers that ``Connection`` says are for this connection only."""
    return frozenset(
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    )


def _cookie_name(pair: bytes) -> str:
    return pair.partition(b";")[0].partition(b"=")[0].strip().decode("latin-1")


def _other_cookies(value: bytes) -> bytes:
    pairs = (pair.strip() for pair in value.split(b";"))
    return b"; ".join(pair for pair in pairs if pair and _cookie_name(pair) not in (COOKIE, SECURE_COOKIE))


def _location(value: bytes, view: View) -> bytes:
    """Where a redirect leads: the service's own names for itself become the visitor's."""
    text = value.decode("latin-1")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return value
    if parts.netloc:
        is_ours = parts.netloc.lower() == view.host.lower() and not view.prefix
        if not is_ours and not (host in _LOCAL and port == view.port):
            return value
        text = text[text.index(parts.netloc) + len(parts.netloc) :]
        text = text if text.startswith("/") else "/" + text
    elif not text.startswith("/"):
        return value
    return (view.prefix + text).encode("latin-1")


def _set_cookie(value: bytes, prefix: str) -> bytes:
    """A cookie that stays with this service: of no domain, and by path below that path."""
    pair, *attributes = value.split(b";")
    kept = [pair]
    has_path = False
    for attribute in attributes:
        name, _, text = attribute.partition(b"=")
        word = name.strip().lower()
        if word == b"path" and prefix:
            has_path = True
            path = text.strip()
            kept.append(b" Path=" + prefix.encode() + (path if path.startswith(b"/") else b"/"))
        elif word != b"domain":
            kept.append(attribute)
    if prefix and not has_path:
        kept.append(b" Path=" + prefix.encode() + b"/")
    return b";".join(kept)
